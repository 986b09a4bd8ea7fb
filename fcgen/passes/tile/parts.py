"""parts: a loop that adds up is shared by the blocks of a cluster.

In: tile IR. Out: with `parts`, the same with one more axis of the grid, along which so many blocks form a cluster. Each of them walks its
part of the loop's iterations and begins with zeros; behind the loop the first one adds up what they found (`sum_blocks`), in their order,
and alone writes. Guaranteed: the loop does nothing but add up, so only the order of its sums differs; the same order in every launch.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import FcError, Loc
from ...ir.attrs import RANK
from ...ir.core import Block, GridAxis, Kernel, Op, Value, definitions, uses, walk
from ...ir.known import const_of
from ...ir.rewrite import Builder, branch
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar, Tensor, Tile, i32
from ..facts.common import effect, without_effect


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if schedule.parts == 1:
        return kernel
    if len(kernel.grid) == RANK:
        raise FcError("compile/schedule", "Schedule.parts: the grid has no room for one more axis, of the blocks that share a loop",
                      expected=f"at most {RANK - 1} axes", got=RANK, hint="join axes, or leave parts out of the schedule")
    loop = shared_loop(kernel.body, schedule.parts)
    part, b = Value(Scalar(i32), "part"), Builder()
    defs, first = definitions(kernel.body), None
    for op in kernel.body.ops:
        b.loc = op.loc
        if op is loop:
            _shared(op, part, schedule.parts, defs, b)
        elif op.kind != "yield" and effect(op) == "write":
            first = first or b.emit("eq", part, b.const(0), name="first_part")
            then = Builder()
            then.add(op)
            b.add(branch(first, then, loc=op.loc))
        else:
            b.add(op)
    grid = (*kernel.grid, GridAxis("part", schedule.parts, cluster=schedule.parts))
    return replace(kernel.with_body(b.block((*kernel.body.args, part))), grid=grid, order=())  # (`order` comes later)


def shared_loop(body: Block, parts: int) -> Op:
    """The loop that is shared. Raises FcError "compile/schedule" where there is none, or it is more than sums."""
    loops = [op for op in body.ops if any(o.kind == "for" for o in walk(op))]
    if len(loops) != 1 or loops[0].kind != "for":
        raise without_effect("parts", "blocks share the iterations of one loop", expected="one loop outside of all others", got=parts)
    (loop,) = loops
    if (made := next((o for o in body.ops if o is not loop and o.results and effect(o) == "write"), None)) is not None:
        raise FcError("compile/schedule", f"Schedule.parts: %{made.results[0].name} is made beside what only the first block writes",
                      expected="branches that either make values, or write", got=made.kind, loc=made.loc)
    inner = loop.regions[0]
    other = next((o for o in walk(inner) if o.kind != "yield" and not o.regions and effect(o) == "write"), None)
    if other is not None:
        raise _more(other.kind, other.loc)
    for arg, y in zip(inner.args[1:], inner.yielded):
        if (other := _more_than_sum(inner, arg, y)) is not None:
            raise _more(f"%{arg.name}: {arg.type}", other.loc or loop.loc)
        if not isinstance(arg.type, Tile):
            raise FcError("compile/schedule", "Schedule.parts: blocks add up tiles", expected="a tile", got=f"%{arg.name}: {arg.type}",
                          loc=loop.loc)
    if not inner.yielded:
        raise without_effect("parts", "the loop carries nothing that blocks could add up", got=parts, loc=loop.loc)
    reached = {word: {v: o for o in walk(body) if not o.regions and effect(o) == word for v in o.operands if isinstance(v.type, Tensor)}
               for word in ("read", "write")}
    for v, o in reached["read"].items():
        if v in reached["write"]:  # the first block does not wait for what the others read
            raise FcError("compile/schedule", f"Schedule.parts: all blocks read {v.name}, and the first one writes it", loc=o.loc,
                          expected="tensors that are read, or written", got=parts, hint=f"write another tensor than {v.name}")
    return loop


def _more_than_sum(body: Block, arg: Value, y: Value) -> Op | None:
    """What the loop does with a carried value besides adding to it, once in each iteration."""
    made, used, after, led = definitions(body), uses(body), body.ops[-1], {arg}
    for o in body.ops:
        if not led.isdisjoint(o.reads):
            led.update(o.results)

    while True:
        others = [o for o in used.get(y, ()) if o not in (after, body.ops[-1])]
        if others:  # what is summed up so far is part of something else
            return others[0]
        if y is arg:
            return None
        op = made.get(y)
        before = [v for v in op.operands if v in led] if op is not None and op.kind in ("add", "dot") else []
        if op is None or len(before) != 1 or (op.kind == "dot" and before[0] is not op.operands[-1]):
            return op or after
        y, after = before[0], op


def _more(what: str, loc: Loc | None) -> FcError:
    return FcError("compile/schedule", "Schedule.parts: the loop does more than add up", got=what, loc=loc,
                   expected="x <<= x + f(...), where f does not read x")


def _shared(loop: Op, part: Value, parts: int, defs: dict[Value, Op], b: Builder) -> None:
    """This block's part of the loop, and the sums behind it. What sums begin with is added once, behind it all."""
    low, high, *inits = loop.operands
    count, n = b.emit("sub", high, low), b.const(parts)
    bound = lambda p, name: b.emit("add", low, b.emit("floordiv", b.emit("mul", count, p), n), name=name)
    bounds = bound(part, "part_from"), bound(b.emit("add", part, b.const(1)), "part_to")
    begun = [const_of(v, defs) != 0 for v in inits]
    zero = lambda t: b.emit("full", b.emit("const", value=0, dtype=str(t.dtype)), shape=t.shape)
    zeros = [zero(v.type) if own else v for v, own in zip(inits, begun)]
    found = tuple(Value(r.type, r.name) for r in loop.results)
    b.add(replace(loop, operands=(*bounds, *zeros), results=found))
    for v, init, own, result in zip(found, inits, begun, loop.results):
        total = Value(result.type, result.name) if own else result
        b.add(Op("sum_blocks", (v,), (total,), loc=loop.loc))
        if own:
            b.add(Op("add", (init, total), (result,), loc=loop.loc))
