"""The op table: one record per op with its rule, checked and inferred in one place; and verification of whole kernels.

`OpDef.infer(operand types, attrs)` returns the result types, or raises `RuleError` naming the rule broken with expected and got.
Ops whose result layout is a free choice (a load may fill any fragment) infer None and check the declared result instead.
The ops themselves are declared in `tile_ops` and `machine_ops`; adding one is adding a record there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FcError, Loc
from .core import Block, Kernel, Op, Value
from .types import Type


class RuleError(Exception):
    """An op that breaks a rule of its definition."""

    def __init__(self, rule: str, expected: Any = None, got: Any = None, hint: str | None = None):
        super().__init__(rule)
        self.rule, self.expected, self.got, self.hint = rule, expected, got, hint


@dataclass(frozen=True)
class OpDef:
    """kind: the op's name in IR text. levels: "tile", "machine". attrs: name -> type; a name ending in "?" may be missing.
    effect: "none" (may be removed or duplicated), "read" (may be removed), or "write" (must stay, in order)."""

    kind: str
    levels: tuple[str, ...]
    doc: str
    infer: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Type, ...] | None]
    attrs: Mapping[str, type | tuple[type, ...]]
    effect: str = "none"
    check: Callable[[Op], None] | None = None


OPS: dict[str, OpDef] = {}


def define(kind: str, levels: str, doc: str, infer: Callable[..., Any], *, effect: str = "none",
           check: Callable[[Op], None] | None = None, **attrs: Any) -> None:
    """Declare an op. levels: words "tile" and/or "machine". An attr given as `(type, None)` is optional."""
    assert kind not in OPS, f"op {kind} is declared twice"
    OPS[kind] = OpDef(kind, tuple(levels.split()), " ".join(doc.split()), infer, attrs, effect, check)


def need(condition: bool, rule: str, expected: Any = None, got: Any = None, hint: str | None = None) -> None:
    if not condition:
        raise RuleError(rule, expected, got, hint)


def infer(kind: str, operands: Iterable[Value], attrs: Mapping[str, Any], loc: Loc | None = None) -> tuple[Type, ...]:
    """Result types of an op. Raises FcError "ir/verify" where the rule is broken or the result type is a free choice."""
    _load()
    try:
        types = OPS[kind].infer(tuple(v.type for v in operands), attrs)
    except RuleError as e:
        raise FcError("ir/verify", f"{kind}: {e.rule}", expected=e.expected, got=e.got, hint=e.hint, loc=loc) from None
    assert types is not None, f"{kind}: the result type is a free choice and must be given"
    return types


def has_effect(op: Op) -> bool:
    """Whether the op must stay even if nobody reads its results."""
    _load()
    if op.regions and any(has_effect(o) for r in op.regions for o in r.ops):
        return True
    return OPS[op.kind].effect == "write"


def verify(kernel: Kernel) -> Kernel:
    """Check every op against its record, and that values are defined before use. Returns the kernel.

    Raises FcError "ir/verify" with the op's place and, as notes, the op itself."""
    _load()
    seen: set[Value] = set(kernel.params) | set(kernel.buffers)
    for role in kernel.roles:
        if len(role.body.args) != len(kernel.grid):
            raise FcError("ir/verify", f"role {role.name}: one argument per grid axis", expected=len(kernel.grid),
                          got=len(role.body.args))
        _verify_block(kernel, role.body, seen)
    return kernel


def _verify_block(kernel: Kernel, block: Block, outer: set[Value]) -> None:
    seen = outer | set(block.args)
    for op in block.ops:
        d = OPS.get(op.kind)
        if d is None:
            raise _bad(op, RuleError(f"no op is called {op.kind!r}"))
        if kernel.level not in d.levels:
            raise _bad(op, RuleError(f"{op.kind} does not exist at this level", expected=" or ".join(d.levels), got=kernel.level))
        for v in op.operands:
            if v not in seen:
                raise _bad(op, RuleError(f"operand %{v.name} is used before it is defined"))
        _check_attrs(op, d)
        try:
            types = d.infer(tuple(v.type for v in op.operands), op.attrs)
            if types is not None:
                got = tuple(r.type for r in op.results)
                need(tuple(types) == got, "result types follow from the operands", expected=", ".join(map(str, types)),
                     got=", ".join(map(str, got)))
            if d.check is not None:
                d.check(op)
        except RuleError as e:
            raise _bad(op, e) from None
        for r in op.regions:
            _verify_block(kernel, r, seen)
        seen |= set(op.results)


def _check_attrs(op: Op, d: OpDef) -> None:
    for name, kind in d.attrs.items():
        optional = isinstance(kind, tuple) and None in kind
        allowed = tuple(k for k in kind if k is not None) if isinstance(kind, tuple) else (kind,)
        if name not in op.attrs:
            if not optional:
                raise _bad(op, RuleError(f"{op.kind} needs the attribute {name!r}"))
        elif not isinstance(op.attrs[name], allowed):
            raise _bad(op, RuleError(f"{op.kind}: attribute {name!r} has the wrong type",
                                     expected=" or ".join(t.__name__ for t in allowed), got=repr(op.attrs[name])))
    for name in op.attrs:
        if name not in d.attrs:
            raise _bad(op, RuleError(f"{op.kind} has no attribute {name!r}", expected=", ".join(d.attrs) or "no attributes"))


def _bad(op: Op, e: RuleError) -> FcError:
    from .text import print_op

    return FcError("ir/verify", f"{op.kind}: {e.rule}", expected=e.expected, got=e.got, hint=e.hint, loc=op.loc,
                   notes=[f"in  {print_op(op)}"])


def _load() -> None:
    """The tables live in modules that import this one."""
    from . import machine_ops, tile_ops  # noqa: F401
