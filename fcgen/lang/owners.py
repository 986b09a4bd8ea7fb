"""Which programs write where: two programs of the grid must not store to one place.

A store is taken to be of one program if its position, or a condition around it, depends on every axis of the grid. That is a check
for what is surely wrong, not a proof: the tile interpreter finds the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.core import Block, Op, Value

NOTHING: frozenset[Value] = frozenset()


def shared_stores(body: Block) -> Iterator[tuple[Op, frozenset[Value]]]:
    """(a store that does not add, the grid indices on which it depends in no way)."""
    depends: dict[Value, frozenset[Value]] = {a: frozenset((a,)) for a in body.args}
    _spread(body, depends)
    for op, around in _stores(body, NOTHING, depends):
        if not op.get("reduce"):
            yield op, frozenset(body.args) - around.union(*(depends.get(v, NOTHING) for v in op.operands[2:]))


def _spread(block: Block, depends: dict[Value, frozenset[Value]]) -> None:
    """Give every value of the block the grid indices that it is made from."""
    for op in block.ops:
        mine = NOTHING.union(*(depends.get(v, NOTHING) for v in op.operands))
        if op.kind == "for":
            mine |= _loop(op, depends)
        else:
            for r in op.regions:
                _spread(r, depends)
                mine |= NOTHING.union(*(depends.get(v, NOTHING) for v in r.yielded))
        for v in op.results:
            depends[v] = mine


def _loop(op: Op, depends: dict[Value, frozenset[Value]]) -> frozenset[Value]:
    """What a loop's results depend on. Its carried values are taken together: until the body adds nothing more."""
    bounds = NOTHING.union(*(depends.get(v, NOTHING) for v in op.operands[:2]))
    carried = NOTHING.union(*(depends.get(v, NOTHING) for v in op.operands[2:]))
    while True:
        for r in op.regions:
            depends.update((a, carried | bounds) for a in r.args[1:])
            depends[r.args[0]] = bounds
            _spread(r, depends)
        more = carried.union(*(depends.get(v, NOTHING) for v in op.regions[0].yielded))
        if more == carried:
            return carried | bounds
        carried = more


def _stores(block: Block, around: frozenset[Value], depends: dict[Value, frozenset[Value]]) -> Iterator[tuple[Op, frozenset[Value]]]:
    for op in block.ops:
        if op.kind == "store":
            yield op, around
        inside = around | depends.get(op.operands[0], NOTHING) if op.kind == "if" else around
        for r in op.regions:
            yield from _stores(r, inside, depends)
