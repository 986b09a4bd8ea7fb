"""early_reads: a tile that is added to a product, or multiplied with it, is read while the product runs.

In: selected machine IR in which every product is settled where it stands. Out: the same, where a tile that goes from a channel's slot to
registers is waited for, read and let go in front of the first op that needs a product's result, and not behind it. It takes no register
that is not taken anyway, since accumulators are there from the products' start.
"""

from __future__ import annotations

from ...ir.core import Block, Kernel, Op, Value
from ...ir.rewrite import map_bodies
from ...ir.rings import RELEASES, position, read_from
from ...ir.schedule import Schedule
from ...ir.target import Target


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, _block)


def _block(block: Block) -> Block:
    ops = [o.within(_block) for o in block.ops]
    made = {r: o for o in ops for r in o.results}
    for read in [o for o in ops if read_from(o, made) and len(o.result.type.shape) == 2]:
        at = ops.index(read)
        last = max((n for n, o in enumerate(ops[:at]) if o.kind == "settle"), default=None)
        if last is None:
            continue
        settled = {r for o in ops[:at] if o.kind == "settle" for r in o.results}
        first = next((n for n in range(last + 1, at) if ops[n].reads & settled), at)
        group = _group(read, ops, first, made)
        if group is not None:
            rest = [o for o in ops[first:] if o not in group]
            ops[first:] = [*group, *rest]
    return Block(block.args, tuple(ops))


def _group(read: Op, ops: list[Op], first: int, made: dict[Value, Op]) -> list[Op] | None:
    """What goes with a read, in order: its slot, positions, the wait, and what lets the slot go. None where some of it must stay."""
    view = read.operands[0]
    cursor, at = position(view, made), ops.index(read)
    behind = [o for o in ops[first:] if cursor in o.operands and o.kind in RELEASES]
    if sum(view in o.operands for o in ops) > 1 or len(behind) != 2:
        return None
    need = set(read.operands)
    group = [o for o in ops[first:at] if need.intersection(o.results) or (o.kind == "mbar_wait" and cursor in o.operands)]
    group += [read, *behind]
    later = {r for o in ops[first:] if o not in group for r in o.results}
    return group if all(later.isdisjoint(o.operands) for o in group) else None
