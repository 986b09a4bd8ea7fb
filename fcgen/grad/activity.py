"""Which values hang on what a derivative is asked for: floats, through loops and branches."""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.core import Op, Value


def spread(ops: Iterable[Op], active: set[Value]) -> set[Value]:
    """`active`, and the values that hang on it, in regions too."""
    for op in ops:
        active |= _results(op, active)
    return active


def _results(op: Op, active: set[Value]) -> set[Value]:
    if op.kind == "for":
        body = op.regions[0]
        inside = within(op, active)
        return {r for r, a in zip(op.results, body.args[1:]) if a in inside}
    if op.kind == "if":
        inside = spread((o for r in op.regions for o in r.ops), set(active))
        return {r for r, *ys in zip(op.results, *(b.yielded for b in op.regions)) if any(y in inside for y in ys) and r.type.dtype.is_float}
    return {r for r in op.results if r.type.dtype.is_float} if any(v in active for v in op.operands) else set()


def within(loop: Op, active: set[Value]) -> set[Value]:
    """What is active in the body of a loop."""
    body, inits = loop.regions[0], loop.operands[2:]
    args = {a for a, init in zip(body.args[1:], inits) if init in active}
    while True:
        inside = spread(body.ops, active | args)
        more = {a for a, y in zip(body.args[1:], body.yielded) if y in inside and a.type.dtype.is_float} - args
        if not more:
            return inside
        args |= more
