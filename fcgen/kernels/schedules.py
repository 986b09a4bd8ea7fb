"""Which schedule the library runs a head size with: data, measured where it says so, and a rule for the sizes in between.

Keys: the head size up to which an entry holds. Sizes are those of the padded head (multiples of 16). Every entry is compiled for every
target of its row in the tests, without spills.
"""

from __future__ import annotations

from ..ir.schedule import Schedule


def _tiles(m: int, n: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n}


#: 163 KiB of shared memory and more (sm_80, sm_90): (largest head size, schedule)
LARGE = (
    (32, Schedule(tiles=_tiles(128, 128), warps=4, stages=2)),
    (64, Schedule(tiles=_tiles(128, 64), warps=4, stages=2)),
    (96, Schedule(tiles=_tiles(128, 64), warps=4, stages=2, hold_a=False)),
    (128, Schedule(tiles=_tiles(128, 64), warps=4, stages=2, hold_a=False)),
    (192, Schedule(tiles=_tiles(128, 64), warps=8, stages=1, ahead=True, hold_a=False)),
    (256, Schedule(tiles=_tiles(128, 64), warps=8, stages=1, ahead=True, hold_a=False)),
)
#: 99 KiB (sm_86, sm_89)
SMALL = (
    (32, Schedule(tiles=_tiles(128, 128), warps=4, stages=2)),
    (64, Schedule(tiles=_tiles(128, 64), warps=4, stages=2)),
    (96, Schedule(tiles=_tiles(128, 32), warps=4, stages=2, hold_a=False)),
    (128, Schedule(tiles=_tiles(128, 32), warps=4, stages=2, hold_a=False)),
    (192, Schedule(tiles=_tiles(64, 32), warps=4, stages=2, hold_a=False)),
    (256, Schedule(tiles=_tiles(64, 64), warps=4, stages=1, ahead=True, hold_a=False)),
)
#: The WMMA family: staged through shared memory.
WMMA = (
    (64, Schedule(tiles=_tiles(64, 64), warps=4, math="wmma", stages=2, skip_ones=True)),
    (128, Schedule(tiles=_tiles(64, 64), warps=4, math="wmma", stages=1, skip_ones=True)),
    (256, Schedule(tiles=_tiles(64, 32), warps=4, math="wmma", stages=1, skip_ones=True)),
)
TABLES = {"sm_80": LARGE, "sm_90": LARGE, "sm_86": SMALL, "sm_89": SMALL}


def pick(arch: str, head: int, math: str = "mma") -> Schedule:
    """The schedule for a target and a head size (the larger of the key's and the value's)."""
    table = WMMA if math == "wmma" else TABLES[arch]
    return next(s for size, s in table if head <= size)
