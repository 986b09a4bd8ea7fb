"""Reductions that hang on the tile size, which a schedule decides.

A reduction along a range of the grid, or of a loop, is one of a tile of its dimension. What sums up tiles makes it one of the dimension: an
atomic add, a variable of the loop, or a place per tile, which another program reads. Where what follows from it is stored along the range
itself, it is not: the numbers are others with other tiles. That may be meant (a scale per block), so it is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import FcWarning, Loc
from ..ir.access import Access
from ..ir.core import Block, Op, Value, walk
from ..ir.depends import depending
from .ranges import Range, extent_name


def in_parts(body: Block, folded: Mapping[Value, Range]) -> Iterator[tuple[FcWarning, Loc]]:
    made = {r: op for op in walk(body) for r in op.results}
    for value, along in folded.items():
        op = made.get(value)
        if op is None or op.kind != "reduce" or op.loc is None or along._tile is None:
            continue
        if isinstance(along.dim, int) and along.size >= along.dim:
            continue
        places = depending(body, along._tile, indices=True)
        if _stored(body, value, along._start, along._tile in body.args, places):
            dim = extent_name(along.dim)
            yield FcWarning(f"this {op['fn']} is of one tile of {dim}, and what follows from it is stored along the same tiles: results "
                            f"depend on {along.block}, now {along.size} (loop over {dim} to fold all of it, or fold what tiles give with "
                            "fc.atomic_add)"), op.loc


def _stored(body: Block, value: Value, start: Value, whole: bool, places: set[Value]) -> bool:
    """Whether what follows from it within its own tile is stored at the run from `start` on, and at none of the `places` that are the
    tile's own. whole: loops around are part of the tile's program."""
    out, before, stores = {value}, 0, list[Op]()
    while len(out) > before:
        before, stores = len(out), []
        for op in walk(body):
            if op.kind == "store":
                stores += [op] if op.operands[1] in out else []
            elif op.kind == "for":
                args = op.regions[0].args[1:]
                out.update(a for a, init in zip(args, op.operands[2:]) if init in out)
                out.update(r for r, y in zip(op.results, op.regions[0].yielded) if whole and y in out)
            elif op.kind == "if":
                out.update(r for n, r in enumerate(op.results) if any(x.yielded[n] in out for x in op.regions))
            elif not out.isdisjoint(op.operands):
                out.update(op.results)
    for axes in (Access.of(op).axes for op in stores if not op.get("reduce")):
        own = any(a.word == "at" and a.start in places for a in axes)
        if not own and any(a.is_run and a.start is start for a in axes):
            return True
    return False
