"""factors: of a product of tiles, those that are known early are multiplied early.

In: tile IR with its loops split. Out: the same, where a product of several tiles of floats hangs on a dot that others of its factors do not
wait for, two or more of these being tiles that hang on dots themselves: they are multiplied where the last of them is known, with the
scalars that are, and the product with what comes late. So one tile waits in registers for the dot where there were several. Guaranteed:
only the order of products differs, and where what they are made of stands; there are as many of them or fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from ...ir.core import Block, Kernel, Op, Value, definitions, uses
from ...ir.rewrite import Builder, map_bodies
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Tile
from ..facts.common import ELEMENTWISE

#: what may be computed earlier
MOVES = ELEMENTWISE | {"broadcast", "const", "full", "iota"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, _block)


def _block(block: Block) -> Block:
    block = Block(block.args, tuple(op.within(_block) for op in block.ops))
    for root in [op for op in block.ops if op.kind == "mul"]:
        block = _early(block, root)
    return block


def _early(block: Block, root: Op) -> Block:
    """With the factors of a product in the order in which they are known."""
    users, at = uses(block), {r: n for n, op in enumerate(block.ops) for r in op.results}
    if root.result not in at or not isinstance(root.result.type, Tile) or not root.result.type.dtype.is_float:
        return block
    inner = {op.result: op for op in block.ops if op.kind == "mul" and op.result.type == root.result.type}
    if any(u.kind == "mul" and u.result in inner and len(users[root.result]) == 1 for u in users.get(root.result, ())):
        return block  # a part of a larger one
    parts, factors, todo = {root.result}, list[Value](), list(root.operands)
    while todo:
        v = todo.pop(0)
        if v in inner and len(users[v]) == 1:
            parts.add(v)
            todo = [*inner[v].operands, *todo]
        else:
            factors.append(v)
    waits = _waits(block)
    tiles = [v for v in factors if isinstance(v.type, Tile)]
    last = max((waits.get(v, -1) for v in tiles), default=-1)
    early = [v for v in tiles if waits.get(v, -1) < last]
    late = [v for v in tiles if v not in early]
    if sum(waits.get(v, -1) >= 0 for v in early) < 2 or any(at.get(v, -1) > at[root.result] for v in factors):
        return block
    defs = definitions(block)
    for anchor in sorted({at[v] for v in early if v in at}):
        moved = _closure(early, anchor, block, at)
        if moved is not None:
            break
    scalars = [v for v in factors if not isinstance(v.type, Tile)]
    known = [v for v in scalars if at.get(v, -1) <= anchor]
    late = [*(v for v in scalars if v not in known), *late]
    made = Builder(root.loc)
    product = reduce(lambda a, b: made.emit("mul", a, b), early)
    if known:
        product = made.emit("mul", product, reduce(lambda a, b: made.emit("mul", a, b), known))
    rest = Builder(root.loc)
    *front, end = late
    for v in front:
        product = rest.emit("mul", product, v)
    rest.add(Op("mul", (product, end), root.results, root.attrs, (), root.loc))
    ops: list[Op] = []
    assert moved is not None and all(p in defs for p in parts)
    for n, op in enumerate(block.ops):
        if op is root:
            ops += rest.ops
        elif n not in moved and parts.isdisjoint(op.results):
            ops.append(op)
        if n == anchor:
            ops += [*(block.ops[m] for m in sorted(moved)), *made.ops]
    return Block(block.args, tuple(ops))


def _waits(block: Block) -> dict[Value, int]:
    """Value of the block -> the last dot that it waits for, by its place."""
    out: dict[Value, int] = {}
    for n, op in enumerate(block.ops):
        wait = n if op.kind == "dot" else max((out.get(v, -1) for v in op.reads), default=-1)
        out.update(dict.fromkeys(op.results, wait))
    return out


def _closure(values: list[Value], anchor: int, block: Block, at: Mapping[Value, int]) -> set[int] | None:
    """The ops behind `anchor` that make the values, if all of them may stand there."""
    out, todo = set[int](), list(values)
    while todo:
        n = at.get(todo.pop(), -1)
        if n > anchor and n not in out:
            if block.ops[n].kind not in MOVES or block.ops[n].regions:
                return None
            out.add(n)
            todo += block.ops[n].operands
    return out
