"""Along which axes of the grid programs have more and more work, or less and less: by how the bounds of their loops go. And along which
they wait for each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...errors import FcError
from ...ir.core import Kernel, Op, Value, definitions, walk
from ...ir.tile_ops import in_turn
from ...ir.types import Scalar


def works(kernel: Kernel, axis: int) -> int:
    """1 where a loop's end grows with the axis, -1 where its begin alone does, so that the last program has the least work; else 0."""
    defs, on = definitions(kernel.body), kernel.body.args[axis]
    copies: dict[object, list[Op]] = {}  # of a loop, in its direction: only where the first begins and the last ends counts
    for op in walk(kernel.body):
        if op.kind == "for":
            copies.setdefault(op.get("chain", op), []).append(op)
    ordered = [loops[::-1] if loops[0].get("descending") else loops for loops in copies.values()]
    ends = [(_goes(loops[0].operands[0], on, defs), _goes(loops[-1].operands[1], on, defs)) for loops in ordered]
    if any(end not in (0, -1) for _, end in ends):
        return 1
    return -1 if any(begin == 1 or end == -1 for begin, end in ends) else 0


def waits(kernel: Kernel, axis: int) -> int:
    """1 where a program's turn comes later the larger its place on the axis is, -1 where it comes earlier, else 0. It waits for the ones
    before it, which must begin before it does, and better not beside it. Raises FcError where that cannot be told."""
    stores = [op for op in walk(kernel.body) if op.get("turn")]
    defs, on = (definitions(kernel.body) if stores else {}), kernel.body.args[axis]
    unknown = {a for op in walk(kernel.body) if op.kind == "for" for a in op.regions[0].args[1:]} if stores else set()
    goes = {_goes(in_turn(op)[-1], on, defs, unknown) for op in stores} or {0}
    if len(goes) > 1 or None in goes:
        raise FcError("compile/unsupported", f"whether turns come earlier or later along {kernel.grid[axis].name} cannot be told: programs "
                      "could begin in an order in which one waits for a later one", loc=stores[0].loc,
                      expected="a number that grows, or falls, along the axes of the grid",
                      hint="as in turn=(Turns[rows.start], cols.start // cols.size)")
    (way,) = goes
    return way or 0


def _goes(v: Value, on: Value, defs: Mapping[Value, Op], unknown: Collection[Value] | None = None, fuel: int = 24) -> int | None:
    """Whether a number grows with another one (1), falls (-1), or neither (0, where only conditions hang on it too); None if that cannot be
    said. unknown: nothing is said of these; without them an estimate will do, to which numbers that divide are positive and what
    conditions decide is no step."""
    op = defs.get(v)
    if unknown is not None and (v in unknown or (op is not None and op.regions)):
        return None
    if v is on or op is None or not isinstance(v.type, Scalar):
        return int(v is on)
    if fuel == 0:
        return None
    of = [_goes(o, on, defs, unknown, fuel - 1) for o in op.operands]
    if not any(x != 0 for x in of):
        return 0
    if op.kind == "select":
        return _together(of[1:]) if unknown is None or of[0] == 0 else None
    if op.kind == "floordiv" and unknown is not None:
        by = defs.get(op.operands[1])
        return of[0] if by is not None and (by.kind == "size" or (by.kind == "const" and by["value"] > 0)) else None
    if op.kind == "narrow":  # what holds for all rows
        return of[0]
    if op.kind in ("sub", "neg"):
        return _together([*of[:-1], None if of[-1] is None else -of[-1]])
    if op.kind == "mul":
        sign = next((1 if d["value"] >= 0 else -1 for d in map(defs.get, op.operands) if d is not None and d.kind == "const"), None)
        moving = [x for x in of if x != 0]
        return None if sign is None or len(moving) != 1 or moving[0] is None else sign * moving[0]
    return _together(of) if op.kind in ("add", "min", "max", "floordiv", "cast") and (op.kind != "floordiv" or of[1] == 0) else None


def _together(of: list[int | None]) -> int | None:
    moving = {x for x in of if x != 0}
    return moving.pop() if len(moving) == 1 else None if moving else 0
