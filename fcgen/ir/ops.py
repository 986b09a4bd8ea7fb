"""All ops: the tables of both levels filled, and what may be asked of an op by its record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import FcError, Loc
from . import async_ops, machine_ops, store_ops, tile_ops  # noqa: F401  (they declare their ops)
from .core import Op, Value
from .op_table import OPS, RuleError, told
from .types import Type


def infer(kind: str, operands: Iterable[Value], attrs: Mapping[str, Any], loc: Loc | None = None) -> tuple[Type, ...]:
    """Result types of an op. Raises FcError "ir/verify" where the rule is broken or the result type is a free choice."""
    try:
        types = OPS[kind].infer(tuple(v.type for v in operands), attrs)
    except RuleError as e:
        raise FcError("ir/verify", told(kind, e), expected=e.expected, got=e.got, hint=e.hint, loc=loc) from None
    assert types is not None, f"{kind}: the result type is a free choice and must be given"
    return types


def has_effect(op: Op) -> bool:
    """Whether the op must stay even if nobody reads its results."""
    if any(o.kind != "yield" and has_effect(o) for r in op.regions for o in r.ops):
        return True
    return OPS[op.kind].effect == "write"
