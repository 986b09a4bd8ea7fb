"""flatten: a loop that does nothing but run another one runs as one loop.

In: tile IR with its loops split. Out: the same, where an outer loop's body is an inner loop with products, over a range that does not
change in the outer one, that carries all that the outer one carries, with scalars in front of it: one loop counts the iterations of both,
and the two indices are its index divided by how many iterations the inner one has, and what is left over. Guaranteed: the same iterations
in the same order; what runs an iteration ahead or behind does so from one outer iteration to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.core import Block, Kernel, Op
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, edited, map_bodies, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar

WHOLE = ("descending", "unroll", "turns", "chain")


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, lambda block: edited(block, lambda op: _loop(op) if op.kind == "for" else op))


def _loop(outer: Op) -> Op | Sequence[Op]:
    body = outer.regions[0]
    *scalars, inner, last = body.ops if len(body.ops) > 1 else (outer, outer)
    if not _runs(outer, scalars, inner, last):
        return outer
    before, inside = Builder(inner.loc), Builder(inner.loc)
    (first, end), (low, high), zero, one = outer.operands[:2], inner.operands[:2], before.const(0), before.const(1)
    each = before.emit("max", before.emit("sub", high, low), zero)
    count = before.emit("mul", before.emit("max", before.emit("sub", end, first), zero), each)
    by = before.emit("max", each, one)  # (where there are none, nothing is divided)
    index = body.args[0].anew()
    env = Env({body.args[0]: inside.emit("add", first, inside.emit("floordiv", index, by)),
               inner.regions[0].args[0]: inside.emit("add", low, inside.emit("mod", index, by))})
    env.map |= dict(zip(body.args[1:], inner.regions[0].args[1:]))
    ops = (*inside.ops, *(substitute(op, env) for op in (*scalars, *inner.regions[0].ops)))
    whole = Block((index, *inner.regions[0].args[1:]), ops)
    return [*before.ops, Op("for", (zero, count, *outer.operands[2:]), outer.results, {}, (whole,), inner.loc)]


def _runs(outer: Op, scalars: Sequence[Op], inner: Op, last: Op) -> bool:
    """Whether this is all that the outer loop does."""
    if inner.kind != "for" or len(outer.regions) + len(inner.regions) > 2 or any(op.get(w) for op in (outer, inner) for w in WHOLE):
        return False
    body = outer.regions[0]
    plain = all(isinstance(r.type, Scalar) for op in scalars for r in op.results) and not any(o.regions or has_effect(o) for o in scalars)
    made = {*body.args, *(r for op in scalars for r in op.results)}
    same = inner.operands[2:] == body.args[1:] and last.operands == inner.results
    carried = set(body.args[1:])  # as they are where an inner loop begins: nobody but that reads them
    same = same and not any(not carried.isdisjoint(op.reads) for op in (*scalars, *inner.regions[0].ops))
    products = any(op.kind == "dot" for op in inner.regions[0].ops)
    return products and plain and same and made.isdisjoint(inner.operands[:2])
