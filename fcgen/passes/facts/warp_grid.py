"""Over which warps the result of a dot is spread: a question of its shape, its instruction family and the schedule."""

from __future__ import annotations

from ...errors import FcError
from ...ir.core import Op
from ...ir.schedule import Schedule

#: family -> warps of a unit, rows and columns of its smallest part, most columns of one
UNITS = {"mma": (1, 16, 8, 1 << 20), "wmma": (1, 16, 16, 1 << 20), "wgmma": (4, 64, 8, 256)}


def grid_of(op: Op, schedule: Schedule) -> tuple[int, int]:
    """(rows, columns) of warps, of warpgroups for wgmma: as the schedule says, else all of them, along rows as far as rows go. Raises
    FcError where the tile does not divide."""
    found = next((g for g in ([op["grid"]] if op.get("grid") else _grids(op, schedule)) if _fits(op, *g)), None)
    if found is not None:
        return found
    (rows, cols), family = op.result.type.shape, op["math"]
    size, tall, wide, most = UNITS[family]
    units = schedule.warps // size
    what = "warpgroups" if family == "wgmma" else "warps"
    asked = ", {} x {}".format(*op["grid"]) if op.get("grid") else ""
    raise FcError("compile/schedule", f"the tile of %{op['site']} does not divide into {family} instructions over the {what}",
                  expected=f"for each of {units} {what} multiples of {tall} rows and {wide} columns"
                  + (f", at most {most} columns" if family == "wgmma" else ""),
                  got=f"{rows} x {cols} over {schedule.warps} warps{asked}", loc=op.loc,
                  hint="change Schedule.tiles, Schedule.warps or Schedule.grid")


def _grids(op: Op, schedule: Schedule) -> list[tuple[int, int]]:
    return all_grids(op["math"], schedule.warps)


def all_grids(family: str, warps: int) -> list[tuple[int, int]]:
    """Those that all units have a part in, along rows first."""
    units = warps // UNITS[family][0]
    return [(units // n, n) for n in range(1, units + 1) if units % n == 0]


def _fits(op: Op, down: int, across: int) -> bool:
    (rows, cols), ones = op.result.type.shape, op.get("ones", 0)
    whole = cols % (UNITS[op["math"]][2] * across) == 0 and not (ones and across > 1)
    return whole and divides(rows, cols - ones, op["math"], down, across)


def divides(rows: int, cols: int, family: str, down: int, across: int) -> bool:
    """Whether a result divides into instructions over so many units along rows and columns."""
    _, tall, wide, most = UNITS[family]
    # a part of a stored right operand is whole panels, of 32 bytes at least; ones stand beside all of it
    part = 16 if across > 1 and family == "wgmma" else wide
    return rows % (tall * down) == 0 and cols % (part * across) == 0 and cols // across <= most


def along_rows(op: Op, schedule: Schedule) -> bool:
    """Whether each warp, with wgmma each warpgroup, has rows of a dot's result that no other one has."""
    return op.get("math") not in UNITS or grid_of(op, schedule)[0] == schedule.warps // UNITS[op["math"]][0]
