"""Which schedule the library runs on Hopper: data, found by `benchmarks/search_schedules.py` on one H200.

A row holds up to its head size (the larger of the key's and the value's), for one mask kind ("causal" is both alignments) and up to its
length; the first row that fits is taken. Where a grid of the row's tiles would leave half of the multiprocessors idle, the last table's
rows come first. The spec's option `lazy` is in powers of e: 5.5 is a factor of 2**8. With it goes `sums`, whichever of the two kinds that
know of the weights' rounding is the faster one: "rounded" where the tensor core makes the sums (`ones`: level in time at D = 64, 3 % slower
at D = 128), and in short loops at D = 256 (2 to 3 %); else "corrected" (1 to 2 % at D = 128, where "rounded" costs 6 %).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ..errors import FcError
from ..ir.schedule import Schedule

LAZY = 5.5
ANY = 1 << 31


class Choice(NamedTuple):
    """A schedule, and the spec's options that were tuned with it."""

    schedule: Schedule
    lazy: float = 0.0
    sums: str = "exact"


class Row(NamedTuple):
    """head, length: up to which this is the schedule. masks: "none", "causal" or "any"."""

    head: int
    masks: str
    length: int
    schedule: Schedule
    sums: str = "corrected"


def _s(m: int, n: int, groups: int, stages: object = 2, **more: object) -> Schedule:
    """Tiles of m x n over consumer warpgroups, with what every row has in common."""
    common = {"persistent": "dynamic", "l2": 32, "epilogue": "quad", "compare_bits": True, "pdl": True}
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", stages=stages, late="acc", vote=True,
                    **{**common, **more})  # type: ignore[arg-type]


#: loads of Q for the next tile start while this one's are still read
_TWO = {"q": 2, "k": 2, "v": 2}
_THREE = {"q": 2, "k": 3, "v": 3}
#: Masks stand under a branch where that costs about 1 % or less: it is a third less to compile. Beside two loops, in turns: D = 64 1.5 %
#: slower at 1024 and 0.4 % at 4096, D = 256 0.9 % at 1024 and level from 4096 on; not timed at D = 192 and in the small rows. At D = 128 it
#: is 2 to 3 %.
#: H200, 2026-11-21
ROWS: tuple[Row, ...] = (
    Row(64, "causal", 512, _s(192, 128, 3, _THREE, ones="acc", epilogue="tma", split="branch"), "rounded"),
    Row(64, "causal", ANY, _s(192, 128, 3, _THREE, ones="acc", from_end="rows", split="branch"), "rounded"),
    Row(64, "none", ANY, _s(192, 128, 3, _THREE, ones="acc", epilogue="tma", l2=0), "rounded"),
    Row(128, "causal", 1024, _s(128, 128, 2, _TWO, tokens=True, ones="acc", regs_a="s"), "rounded"),
    Row(128, "none", 512, _s(128, 128, 2, _TWO, tokens=True, ones="acc", regs_a="s", l2=0), "rounded"),
    Row(128, "causal", ANY, _s(192, 80, 3, _THREE, from_end="rows")),
    Row(128, "none", ANY, _s(192, 80, 3, _THREE, l2=0)),
    Row(192, "causal", ANY, _s(128, 80, 2, split="branch"), "rounded"),
    Row(192, "none", ANY, _s(128, 80, 2, l2=0)),
    Row(256, "causal", 1024, _s(128, 64, 2, split="branch"), "rounded"),
    Row(256, "causal", ANY, _s(128, 64, 2, split="branch")),
    Row(256, "none", 1024, _s(128, 64, 2, l2=0), "rounded"),
    Row(256, "none", ANY, _s(128, 64, 2, l2=0)),
)
SMALL: tuple[Row, ...] = (
    Row(64, "causal", ANY, _s(64, 128, 1, 4, persistent="none", epilogue="tma", split="branch")),
    Row(64, "none", ANY, _s(64, 128, 1, 4, persistent="none", epilogue="tma", l2=0)),
    Row(128, "causal", ANY, _s(64, 128, 1, persistent="none", epilogue="tma", split="branch")),
    Row(128, "none", ANY, _s(64, 128, 1, persistent="none", epilogue="tma", l2=0)),
    Row(256, "causal", ANY, _s(64, 64, 1, persistent="none", epilogue="tma", split="branch")),
    Row(256, "none", ANY, _s(64, 64, 1, persistent="none", epilogue="tma", l2=0)),
)
#: A scale that may be negative is multiplied into every score: a second tile of them is alive, and the tiles above do not fit. Not tuned.
ANY_SCALE: tuple[Row, ...] = (
    Row(64, "causal", ANY, _s(128, 128, 2, _THREE)),
    Row(64, "none", ANY, _s(128, 128, 2, _THREE, l2=0)),
    Row(128, "causal", ANY, _s(128, 128, 2, _TWO)),
    Row(128, "none", ANY, _s(128, 128, 2, _TWO, l2=0)),
)


@functools.cache
def _rows(head: int, mask: str, positive: bool) -> list[tuple[bool, int, Choice]]:
    """What fits a head size, in the order of preference: (is it for small grids, the most rows, the choice)."""
    tables = (SMALL, ROWS) if positive else (SMALL, ANY_SCALE, ROWS)
    return [(table is SMALL, row.length, Choice(row.schedule, LAZY, row.sums)) for table in tables for row in table
            if head <= row.head and row.masks in ("any", mask)]


def pick(head: int, mask: str, length: int, tiles: int, sms: int, positive: bool = True) -> Choice:
    """What to run for a head size, mask kind and length. tiles: programs of one row each, the grid without its row axis. positive: the
    scale is."""
    for small, most, choice in _rows(head, "none" if mask == "none" else "causal", positive):
        if length <= most and not (small and tiles * -(-length // 128) > sms // 2):
            return choice
    raise FcError(
        "compile/schedule", f"the library has no Hopper schedule for head size {head}", expected=f"at most {ROWS[-1][0]}", got=head
    )
