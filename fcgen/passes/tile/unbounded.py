"""Why interval analysis leaves a condition open: the value that it has no bounds for, in words for people."""

from __future__ import annotations

from ...ir.core import Op, Value
from ...ir.ops import OPS
from ..facts.common import COMPARISONS, called
from .affine import Affine


def reason(affine: Affine, condition: Value) -> str:
    """What the analysis could not see through in a condition that it could not decide."""
    op = affine.defs.get(condition)
    if op is None or op.kind not in COMPARISONS:
        return f"nothing is known of {_told(condition, op)} before the loop runs"
    if op.operands[0].type.dtype.is_float:
        return f"{_told(condition, op)} compares floats, which have no bounds before the loop runs"
    for x in op.operands:
        if affine.span(x) is None:
            v = _source(affine, x)
            return f"{_told(v, affine.defs.get(v))} has no bounds that are known before the loop runs"
    return f"{_told(condition, op)} has bounds that decide nothing"


def _source(affine: Affine, v: Value) -> Value:
    """The first value without bounds that all further ones without bounds follow from."""
    while (op := affine.defs.get(v)) is not None:
        open_ = [x for x in op.operands if hasattr(x.type, "dtype") and affine.span(x) is None]
        if not open_ or OPS[op.kind].effect != "none":
            return v
        v = open_[0]
    return v


def _told(v: Value, op: Op | None) -> str:
    if op is None:
        return called(v)
    return f"{called(v)} ({op.kind}{f', {op.loc.short}' if op.loc else ''})"
