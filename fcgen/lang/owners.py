"""Which programs write where: two programs of the grid must not store to one place.

A store is taken to be of one program if its position, or a condition around it, depends on every axis of the grid. That is a check
for what is surely wrong, not a proof: the tile interpreter finds the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.core import Block, Op, Value
from ..ir.depends import depending


def shared_stores(body: Block) -> Iterator[tuple[Op, set[Value]]]:
    """(a store that does not add, the grid indices on which it depends in no way)."""
    follow = {i: depending(body, i, indices=True) for i in body.args}
    for op, where in _stores(body, ()):
        if not op.get("reduce"):
            yield op, {i for i, values in follow.items() if values.isdisjoint(where)}


def _stores(block: Block, around: tuple[Value, ...]) -> Iterator[tuple[Op, tuple[Value, ...]]]:
    """(a store, its positions and the conditions around it)."""
    for op in block.ops:
        if op.kind == "store":
            yield op, (*around, *op.operands[2:])
        for r in op.regions:
            yield from _stores(r, (*around, op.operands[0]) if op.kind == "if" else around)
