"""signs: a loop that multiplies tiles by a number of unknown sign is written twice, once for a number above zero.

In: a simplified tile program. Out: an equal one, where a branch on the number chooses between the loop as it was and one from which `scale`
has moved the number to where it costs least; the same one where that would save less than a part of the loop's work. The number is one that
the program computes or reads: of a parameter, the spec says whether it is positive. In the loop of its own it is the larger of itself and
the least number that has all its digits, which it is, and whose sign every pass sees. Guaranteed: numbers that are not finite take the loop
as it was.
"""

from __future__ import annotations

from math import inf

from ...ir.core import Block, Kernel, Op, Value, definitions, made_within, walk
from ...ir.rewrite import Builder, Env, branch, copy_op, map_bodies, remove_dead, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ..facts.common import positive, promised_positive
from .scale import Factor, block_cost, is_root

#: what must be saved of a loop's elementwise work: programs get longer
SAVED = 1 / 16
LEAST = 2.0**-126


def run(kernel: Kernel, schedule: Schedule, target: Target | None) -> Kernel:
    told = promised_positive(kernel)

    def body(block: Block) -> Block:
        defs, out = definitions(block), Builder()
        for op in block.ops:
            found = None if op.kind != "for" else next((x for c in _unknown(op, defs) if (x := _twice(op, c, kernel))), None)
            out.ops += found or [op]
        return Block(block.args, tuple(out.ops))

    def _unknown(loop: Op, defs: dict[Value, Op]) -> list[Value]:
        """Numbers from in front of a loop that its tiles are multiplied by."""
        inside = made_within(loop.regions[0])
        factors = dict.fromkeys(o.operands[1] for o in walk(loop.regions[0]) if is_root(o))
        return [c for c in factors if c in defs and c not in inside and not positive(c, told, defs)]

    return map_bodies(kernel, body)


def _twice(loop: Op, c: Value, kernel: Kernel) -> list[Op] | None:
    out, then, otherwise = Builder(loop.loc), Builder(loop.loc), Builder(loop.loc)
    const = lambda b, x: b.emit("const", value=x, dtype="f32")
    known = then.emit("max", c, const(then, LEAST), name=c.name)
    copy = copy_op(substitute(loop, Env({c: known})), env := Env())
    factor = Factor(known, Block((), (copy,)), kernel)
    factor.seen |= definitions(kernel.body).keys() | {known}
    then.ops += factor.ops(factor.block)
    ends = env.all(loop.results)
    otherwise.add(copy_op(loop, env := Env()))
    finite = out.emit("lt", c, const(out, inf))
    above = out.emit("and", out.emit("ge", c, const(out, LEAST)), finite)
    both = out.add(branch(above, then, ends, env.all(loop.results), loop.results, otherwise).within(remove_dead))
    if block_cost(next(o for o in both.regions[0].ops if o.kind == "for").regions[0]) > (1 - SAVED) * block_cost(loop.regions[0]):
        return None
    return out.ops
