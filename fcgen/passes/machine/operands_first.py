"""operands_first: what a product's left operand is computed from is read at once, and its slots are let go behind the product's issue.

In: selected machine IR. Out: the same, where in front of a wgmma whose left operand is made in registers the reads of slots that it
follows from stand next to each other, behind the waits for all of them, so that one's latency hides the others'; what lets these slots go
stands behind the commit: the fence that goes with it waits for loads, and the tensor core need not. Where a loop issues no such product,
the slots that its plain loads have read are let go together, behind the last of them: one fence is enough.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.core import Block, Kernel, Op, Value, free_values, walk
from ...ir.ops import has_effect
from ...ir.rewrite import map_bodies
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag

READS = ("ldmatrix", "ld_shared")
#: ops with an effect that reads of other slots may pass
PASSED = ("mbar_wait", "mbar_arrive", "advance")


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, _block)


def _block(block: Block) -> Block:
    ops = [replace(o, regions=tuple(map(_block, o.regions))) if o.regions else o for o in block.ops]
    for fence in [o for o in ops if o.kind == "wgmma_fence"]:
        ops = _ordered(ops, fence)
    return Block(block.args, tuple(ops if any(o.kind == "wgmma" for o in ops) else _together(ops)))


def _ordered(ops: list[Op], fence: Op) -> list[Op]:
    at = ops.index(fence)
    product = next((o for o in ops[at:] if o.kind == "wgmma"), None)
    commit = next((n for n, o in enumerate(ops) if n > at and o.kind == "wgmma_commit"), None)
    if product is None or commit is None or not isinstance(product.operands[0].type, Frag):
        return ops
    made = {r: o for o in ops[:at] for r in o.results}
    view = lambda read: made.get(read.operands[0])
    reads = [o for o in ops[:at] if id(o) in _slice(product.operands[0], made) and o.kind in READS
             and (v := view(o)) is not None and v.kind == "slot"]
    if not reads:
        return ops
    first = ops.index(reads[0])
    between = ops[first + 1:at]
    if any(o.regions or (o.kind not in (*READS, *PASSED) and has_effect(o)) for o in between):
        return ops
    cursors = {made[r.operands[0]].operands[1] for r in reads}
    places = {id(made[v]) for r in reads for v in r.operands if v in made and made[v].kind in ("slot", "const")}
    early = [o for o in between if o in reads or id(o) in places or (o.kind == "mbar_wait" and o.operands[1] in cursors)]
    late = [o for o in between if o.kind in ("mbar_arrive", "advance") and o.operands[-1] in cursors]
    moved = {r for o in late for r in o.results}
    rest = [o for o in between if o not in early and o not in late]
    if any(_uses(o, moved) for o in (*early, *rest, *ops[at:commit + 1])):
        return ops
    return [*ops[:first + 1], *early, *rest, *ops[at:commit + 1], *late, *ops[commit + 1:]]


def _together(ops: list[Op]) -> list[Op]:
    """The arrivals that follow plain loads, and the steps of their cursors, moved down to the last arrival of the block."""
    cursor = {o.result: o.operands[1] for o in ops if o.kind == "slot"}
    read = {cursor[o.operands[0]] for x in ops for o in (x, *(y for r in x.regions for y in walk(r))) if o.kind in READS and o.operands[0] in cursor}
    last = max((n for n, o in enumerate(ops) if o.kind == "mbar_arrive"), default=0)
    late = [o for o in ops[:last] if o.kind in ("mbar_arrive", "advance") and o.operands[-1] in read]
    moved = {r for o in late for r in o.results}
    rest = [o for o in ops[:last] if o not in late]
    if any(_uses(o, moved) for o in rest) or not any(o.kind == "mbar_arrive" for o in late):
        return ops
    return [*rest, *late, *ops[last:]]


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


def _uses(op: Op, values: set[Value]) -> bool:
    return any(v in values for v in op.operands) or any(free_values(r) & values for r in op.regions)
