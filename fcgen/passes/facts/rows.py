"""Which programs treat the rows of their tiles alone: no row takes anything from another one, from the loop to the store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ...ir.access import Access
from ...ir.core import Block, Op, Value, walk
from ...ir.depends import followed
from ...ir.types import Tile


def stored_rows(block: Block, defs: Mapping[Value, Op]) -> tuple[Value, Value | str | int, int] | None:
    """(first row, dimension or limit that ends them, rows) of the guarded rows that every store of the program writes, if they are
    the same for all, and are the rows of the loops that the stored tiles follow from."""
    found: set[tuple[Value, Value | str | int, int]] = set()
    for op in walk(block):
        if op.kind != "store":
            continue
        rows = next((r for r in Access.of(op).runs if r.along == 0), None)
        if rows is None or not rows.is_run or not rows.guard or rows.start is None or not _keeps_rows(op.operands[1], defs):
            return None
        found.add((rows.start, rows.limit or rows.dim, rows.size))
    return found.pop() if len(found) == 1 else None


def _keeps_rows(v: Value, defs: Mapping[Value, Op]) -> bool:
    """Are the rows of a tile, or the elements of a vector, those with the same number of all loops that it follows from?"""
    @cache
    def keeps(v: Value) -> bool:
        op = defs.get(v)
        if op is None or not _looped(v, defs):
            return True
        if op.kind == "for":
            return independent_rows(op.regions[0]) is not None and all(map(keeps, op.operands[2:]))
        if op.kind == "broadcast":
            return tuple(op["axes"]) == (0,) and keeps(op.operands[0])
        if op.kind in ("reduce", "cumsum"):
            return op["axis"] == 1 and len(op.operands[0].type.shape) == 2 and keeps(op.operands[0])
        if op.kind == "dot":
            return not _looped(op.operands[1], defs) and all(map(keeps, op.operands))
        return op.kind != "transpose" and not op.regions and all(map(keeps, op.operands))

    return keeps(v)


def _looped(v: Value, defs: Mapping[Value, Op]) -> bool:
    """Does a value follow from a tile that a loop, or a branch, has made?"""
    return followed([v], defs, lambda op: not (op.regions and any(isinstance(r.type, Tile) for r in op.results))) is None


def independent_rows(body: Block) -> int | None:
    """The number of rows of the loop's 2-d tiles, if no row takes anything from another one; else None."""
    defs = body.made
    loaded = {v for v, o in defs.items() if o.kind == "load"}
    loaded |= {v for v, o in defs.items() if o.kind == "transpose" and o.operands[0] in loaded}
    rows: set[int] = set()
    for op in body.ops:
        if op.regions or op.kind in ("store", "gather"):
            return None
        for v in op.results:
            if isinstance(v.type, Tile) and len(v.type.shape) == 2 and v not in loaded:
                rows.add(v.type.shape[0])
        if op.kind == "transpose" and op.result not in loaded:
            return None
        if op.kind in ("reduce", "cumsum") and (op["axis"] != 1 or len(op.operands[0].type.shape) != 2):
            return None
        if op.kind == "dot" and op.operands[1] not in loaded:
            return None
    return rows.pop() if len(rows) == 1 else None
