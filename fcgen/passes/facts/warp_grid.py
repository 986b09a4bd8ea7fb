"""Over which warps the result of a dot is spread: a question of its shape, its instruction family and the schedule."""

from __future__ import annotations

from ...errors import FcError
from ...ir.core import Op
from ...ir.schedule import Schedule
from .jobs import warps_of

#: family -> warps of a unit, rows and columns of its smallest part, most columns of one
UNITS = {"mma": (1, 16, 8, 1 << 20), "wmma": (1, 16, 16, 1 << 20), "wgmma": (4, 64, 8, 256)}


def grid_of(op: Op, schedule: Schedule) -> tuple[int, int]:
    """(rows, columns) of warps, of warpgroups for wgmma: as the schedule says, else all of its role, along rows as far as rows go. Raises
    FcError where the tile does not divide."""
    (rows, cols), family, warps = op.result.type.shape, op["math"], warps_of(op, schedule)
    found = spread(family, rows, cols, warps, op.get("ones", 0), op.get("grid"))
    if found is not None:
        return found
    size, tall, wide, most = UNITS[family]
    units = warps // size
    what = "warpgroups" if family == "wgmma" else "warps"
    asked = ", {} x {}".format(*op["grid"]) if op.get("grid") else ""
    raise FcError("compile/schedule", f"the tile of %{op['site']} does not divide into {family} instructions over the {what}",
                  expected=f"for each of {units} {what} multiples of {tall} rows and {wide} columns"
                  + (f", at most {most} columns" if family == "wgmma" else ""),
                  got=f"{rows} x {cols} over {warps} warps{asked}", loc=op.loc,
                  hint="change Schedule.tiles, Schedule.warps or Schedule.grid")


def spread(family: str, rows: int, cols: int, warps: int, ones: int = 0, asked: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """The first grid that a result of so many rows and columns, `ones` of them made beside the others, divides over."""
    size, tall, wide, most = UNITS[family]
    units = warps // size
    for down, across in [asked] if asked else [(units // n, n) for n in range(1, units + 1) if units % n == 0]:
        # a part of a stored right operand is whole panels, of 32 bytes at least; ones stand beside all of it
        part = 16 if across > 1 and family == "wgmma" else wide
        whole = rows % (tall * down) == 0 and cols % (part * across) == 0
        if whole and (cols - ones) // across <= most and not (ones and across > 1):
            return down, across
    return None


def along_rows(op: Op, schedule: Schedule) -> bool:
    """Whether each warp, with wgmma each warpgroup, has rows of a dot's result that no other one has."""
    return op.get("math") not in UNITS or grid_of(op, schedule)[0] == warps_of(op, schedule) // UNITS[op["math"]][0]
