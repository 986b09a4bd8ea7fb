"""flatten: a loop that does nothing but run another one runs as one loop.

In: tile IR with its loops split. Out: the same, where an outer loop's body is an inner loop with products, over a range that does not
change in the outer one, that carries all that the outer one carries, with scalars in front of it: one loop counts the iterations of both,
and the two indices are its index divided by how many iterations the inner one has, and what is left over. Guaranteed: the same iterations;
what runs an iteration ahead or behind does so from one outer iteration to the next. Their order is the same but where all are sums, and
programs begin the inner loop apart and end it together, or the other way round: those would drift apart with each outer iteration, until
L2 had to hold what all of these read. They take every outer iteration of an inner one, from the end that programs have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.core import Block, Kernel, Op, definitions, walk
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, edited, map_bodies, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar
from ..facts.common import effect
from ..facts.work import moves
from .parts import more_than_sum

WHOLE = ("descending", "unroll", "turns", "chain")


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    defs, tiled = definitions(kernel.body), [v for v, a in zip(kernel.body.args, kernel.grid) if a.tile > 1]

    def apart(loop: Op) -> tuple[bool, bool]:
        """Whether programs differ in a loop's begin and in its end."""
        low, high = (any(moves(v, axis, defs) for axis in tiled) for v in loop.operands[:2])
        return low, high

    return map_bodies(kernel, lambda block: edited(block, lambda op: _loop(op, apart) if op.kind == "for" else op))


def _loop(outer: Op, apart: Callable[[Op], tuple[bool, bool]]) -> Op | Sequence[Op]:
    body = outer.regions[0]
    *scalars, inner, last = body.ops if len(body.ops) > 1 else (outer, outer)
    if not _runs(outer, scalars, inner, last):
        return outer
    before, inside = Builder(inner.loc), Builder(inner.loc)
    (first, end), (low, high), zero, one = outer.operands[:2], inner.operands[:2], before.const(0), before.const(1)
    counts = [before.emit("max", before.emit("sub", last, begin), zero) for begin, last in ((first, end), (low, high))]
    count = before.emit("mul", *counts)
    index, begins, ends = body.args[0].anew(), *apart(inner)
    across = begins != ends and _sums(inner)
    by = before.emit("max", counts[not across], one)  # (where there are none, nothing is divided)
    slow, fast = inside.emit("floordiv", index, by), inside.emit("mod", index, by)
    (m, n), back = (fast, slow) if across else (slow, fast), across and begins
    env = Env({body.args[0]: inside.emit("add", first, m), inner.regions[0].args[0]:
               inside.emit("sub", before.emit("sub", high, one), n) if back else inside.emit("add", low, n)})
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


def _sums(inner: Op) -> bool:
    """Whether the order of its iterations is only that of sums."""
    body = inner.regions[0]
    written = (op for op in walk(body) if op.kind != "yield" and not op.regions and effect(op) == "write")
    return all(op.kind == "store" and op.get("reduce") == "add" for op in written) and all(
        more_than_sum(body, arg, y) is None for arg, y in zip(body.args[1:], body.yielded))
