"""operands_first: what a product's left operand is computed from is read at once, and its slots are let go behind the product's issue.

In: selected machine IR. Out: the same, where in front of a wgmma whose left operand is made in registers the reads of slots that it
follows from stand next to each other, behind the waits for all of them, so that one's latency hides the others'; what lets these slots go
stands behind the commit: the fence that goes with it waits for loads, and the tensor core need not. Where a loop issues no such product,
the slots that its plain loads have read are let go together, behind the last of them: one fence is enough.
"""

from __future__ import annotations

from ...ir.core import Block, Kernel, Op, Value, walk
from ...ir.ops import has_effect
from ...ir.rewrite import map_bodies
from ...ir.rings import RELEASES, read_from
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag

#: ops with an effect that reads of other slots may pass
PASSED = {*RELEASES, "mbar_wait", "ldmatrix", "ld_shared"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, _block)


def _block(block: Block) -> Block:
    ops = [o.within(_block) for o in block.ops]
    fences = [o for o in ops if o.kind == "wgmma_fence"]
    for fence in fences:
        ops = _ordered(ops, fence)
    return Block(block.args, tuple(ops if fences else _together(ops)))


def _ordered(ops: list[Op], fence: Op) -> list[Op]:
    at = ops.index(fence)
    product = next((o for o in ops[at:] if o.kind == "wgmma"), None)
    commit = next((n for n, o in enumerate(ops) if n > at and o.kind == "wgmma_commit"), None)
    if product is None or commit is None or not isinstance(product.operands[0].type, Frag):
        return ops
    made = {r: o for o in ops[:at] for r in o.results}
    need = _slice(product.operands[0], made)
    reads = [o for o in ops[:at] if id(o) in need and read_from(o, made) is not None]
    if not reads:
        return ops
    first = ops.index(reads[0])
    between = ops[first + 1:at]
    if any(o.regions or (o.kind not in PASSED and has_effect(o)) for o in between):
        return ops
    cursors = {read_from(o, made) for o in reads}
    places = {id(made[v]) for o in reads for v in o.operands if v in made}
    early = [o for o in between if o in reads or id(o) in places or (o.kind == "mbar_wait" and o.operands[1] in cursors)]
    late = [o for o in between if o.kind in RELEASES and o.operands[-1] in cursors]
    rest = [o for o in between if o not in early and o not in late]
    moved = {r for o in late for r in o.results}
    if any(o.reads & moved for o in (*early, *rest, *ops[at:commit + 1])):
        return ops
    return [*ops[:first + 1], *early, *rest, *ops[at:commit + 1], *late, *ops[commit + 1:]]


def _together(ops: list[Op]) -> list[Op]:
    """The arrivals that follow plain loads, and the steps of their cursors, moved down to the last arrival in front of the next inner block
    that waits for tiles of its own."""
    made = {r: o for o in ops for r in o.results}
    out: list[Op] = []
    run: list[Op] = []
    for op in (*ops, None):
        if op is not None and not any(o.kind == "mbar_wait" for r in op.regions for o in walk(r)):
            run.append(op)
            continue
        read = {read_from(x, made) for o in run for x in (o, *(y for r in o.regions for y in walk(r)))} - {None}
        last = max((n for n, o in enumerate(run) if o.kind == "mbar_arrive"), default=0)
        late = [o for o in run[:last] if o.kind in RELEASES and o.operands[-1] in read]
        rest = [o for o in run[:last] if o not in late]
        moved = {r for o in late for r in o.results}
        out += run if any(o.reads & moved for o in rest) else [*rest, *late, *run[last:]]
        out += [op] if op is not None else []
        run = []
    return out


def _slice(v: Value, made: dict[Value, Op]) -> set[int]:
    """The ops that a value follows from."""
    need: set[int] = set()
    todo = [v]
    while todo:
        op = made.get(todo.pop())
        if op is not None and id(op) not in need:
            need.add(id(op))
            todo += op.operands
    return need
