"""Which schedule the library runs on Hopper: data, found by `benchmarks/search_schedules.py` on one H200.

A row holds up to its head size (the larger of the key's and the value's), for one mask kind ("causal" is both alignments; "part" are masks
that may leave out keys on both sides, where those of "causal" follow) and up to its number of keys; the first row that fits is taken. Where
a grid of its tiles would leave half of the multiprocessors idle, the rows of SMALL come first; where it fills the last wave so badly that
smaller tiles end sooner, those of FINE do. The spec's option `lazy` is in powers of e: 5.5 is a factor of 2**8. With it goes `sums`,
whichever of the two kinds that know of the weights' rounding is the faster one: "rounded" where the tensor core makes the sums (`ones`:
level in time at D = 64, 3 % slower at D = 128), and in short loops at D = 256 (2 to 3 %); else "corrected" (1 to 2 % at D = 128, where
"rounded" costs 6 %). Of FEW keys it is "rounded": what the rounding of so few weights adds up to is a part of the row's result, and of the
gradient of q three times of what else errs (measured: 4 keys in bf16, values of one sign).
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import replace
from typing import NamedTuple

from ..errors import FcError
from ..ir.schedule import Schedule

LAZY = 5.5
#: so many keys' weights do not make up for each other's rounding
FEW = 64
ANY = 1 << 31


class Choice(NamedTuple):
    """A schedule, and the spec's options that were tuned with it."""

    schedule: Schedule
    lazy: float = 0.0
    sums: str = "exact"


class Row(NamedTuple):
    """head, keys, value: up to which head size, number of keys and value's head size this is the schedule; above: which head size is too
    small. masks: "none", "causal" or "part"."""

    head: int
    masks: str
    keys: int
    schedule: Schedule
    sums: str = "corrected"
    value: int = ANY
    above: int = 0

    def steps(self, rows: int, keys: int, tiles: int, sms: int) -> float:
        """Rows of as many scores as there are keys that the busiest multiprocessor works on. tiles: the grid without its row axis."""
        m = dict(self.schedule.tiles)["BLOCK_M"]
        waves = -(-tiles * -(-rows // m) // sms)
        seen = 1.0 if self.masks == "none" else max(0.5, 1 - rows / 2 / max(1, keys))  # of the scores; the longest tiles first
        return m * max(1.0, seen * waves)


def _s(m: int, n: int, groups: int, stages: object = 2, **more: object) -> Schedule:
    """Tiles of m x n over consumer warpgroups, with what every row has in common."""
    common = {"persistent": "dynamic", "l2": 32, "epilogue": "quad", "compare_bits": True, "pdl": True}
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", stages=stages, late="acc", vote=True,
                    **{**common, **more})  # type: ignore[arg-type]


#: loads of Q for the next tile start while this one's are still read
_TWO = {"q": 2, "k": 2, "v": 2}
_THREE = {"q": 2, "k": 3, "v": 3}
#: one tile of 192 rows fills a third of the shared memory at D = 192
_DEEP = {"q": 1, "k": 2, "v": 2}
#: Heads of 257 to 384, not timed: both warpgroups make the scores of all 64 rows, and each a half of the values' columns
_HALVES = {"s": (1, 1), "acc": (1, 2)}
#: Two warpgroups share 64 rows: each makes all scores, and half of the columns of what these weigh. One slot fills the shared memory.
#: H200, 2026-11-27, 4k: 441 TFLOP/s, causal 389; 64 keys 425 and 387, 32 in two slots 396 and 343, half of the scores by each 361;
#: PyTorch 142 and 122
_WIDE = replace(_s(64, 80, 2, 1, grid={"s": (1, 1)}, persistent="none"), late=())
#: Masks stand under a branch where that costs about 1 % or less: it is a third less to compile. Beside two loops, in turns: D = 64 1.5 %
#: slower at 1024 and 0.4 % at 4096, D = 256 0.9 % at 1024 and level from 4096 on; not timed at D = 192 and in the small rows. At D = 128 it
#: is 2 to 3 %.
#: A value's head size of 128 at D = 192, FINE, CHUNK and l2=64 (1 % at D = 128, 16k): benchmarks/shapes.py, H200, 2026-11-27.
#: A window of 1024 at 32k and D = 128: 0.267 ms with 64 keys a tile, 0.288 with 80, FlashAttention-3 0.312; at D = 64 0.341 and with 128
#: 0.348. Where warpgroups leave out tiles of their own, deeper rings let them: on an H100 0.262 for 0.273 with three slots, at D = 64 0.341
#: for 0.352. Neighbours within 7 on a grid of 32 x 32: D = 128 0.232 with a branch, without 0.260; D = 64 0.340, with 128 x 128 0.380.
#: (H200, 2026-11-27)
#: H200, 2026-11-21
ROWS: tuple[Row, ...] = (
    Row(64, "causal", 512, _s(192, 128, 3, _THREE, ones="acc", epilogue="tma", split="branch"), "rounded"),
    Row(64, "causal", ANY, _s(192, 128, 3, _THREE, ones="acc", from_end="rows", split="branch"), "rounded"),
    Row(64, "none", ANY, _s(192, 128, 3, _THREE, ones="acc", epilogue="tma", l2=0), "rounded"),
    Row(64, "part", ANY, _s(192, 64, 3, {"q": 2, "k": 6, "v": 6}, ones="acc", from_end="rows", split="branch"), "rounded"),
    Row(128, "causal", 512, _s(128, 128, 2, _TWO, tokens=True, ones="acc", regs_a="s", epilogue="tma"), "rounded"),
    Row(128, "causal", 1024, _s(192, 64, 3, _THREE, from_end="rows")),
    Row(128, "none", 512, _s(128, 128, 2, _TWO, tokens=True, ones="acc", regs_a="s", epilogue="tma", l2=0), "rounded"),
    Row(128, "causal", ANY, _s(192, 80, 3, _THREE, from_end="rows", l2=64)),
    Row(128, "none", ANY, _s(192, 80, 3, _THREE, l2=0)),
    Row(128, "part", ANY, _s(192, 64, 3, {"q": 2, "k": 4, "v": 4}, from_end="rows", l2=64, split="branch"), above=64),
    Row(192, "causal", ANY, _s(192, 64, 3, _DEEP, from_end="rows", split="branch"), value=128),
    Row(192, "none", 1024, _s(128, 96, 2, _TWO, l2=0), value=128),
    Row(192, "none", ANY, _s(128, 128, 2, l2=0), value=128),
    Row(192, "causal", ANY, _s(128, 80, 2, split="branch"), "rounded"),
    Row(192, "none", ANY, _s(128, 80, 2, l2=0)),
    Row(256, "causal", 1024, _s(128, 64, 2, split="branch"), "rounded"),
    Row(256, "causal", ANY, _s(128, 64, 2, split="branch", l2=64)),
    Row(256, "none", 1024, _s(128, 64, 2, l2=0), "rounded"),
    Row(256, "none", ANY, _s(128, 64, 2, l2=0)),
    *(Row(head, masks, ANY, _s(64, keys, 2, grid=_HALVES, l2=32 if masks == "causal" else 0))
      for head, keys in ((320, 64), (384, 48)) for masks in ("causal", "none")),
    Row(512, "causal", ANY, _WIDE),
    Row(512, "none", ANY, replace(_WIDE, l2=0)),
)
SMALL: tuple[Row, ...] = (
    Row(64, "causal", 512, _s(64, 64, 1, 4, persistent="none", epilogue="tma")),
    Row(64, "causal", ANY, _s(64, 128, 1, 4, persistent="none", epilogue="tma")),
    Row(64, "none", ANY, _s(64, 128, 1, 4, persistent="none", epilogue="tma", l2=0)),
    Row(128, "causal", 512, _s(64, 64, 1, 3, persistent="none", epilogue="tma")),
    Row(128, "causal", ANY, _s(64, 128, 1, persistent="none", epilogue="tma", split="branch")),
    Row(128, "none", ANY, _s(64, 128, 1, persistent="none", epilogue="tma", l2=0)),
    Row(256, "causal", ANY, _s(64, 64, 1, persistent="none", epilogue="tma")),
    Row(256, "none", ANY, _s(64, 64, 1, persistent="none", epilogue="tma", l2=0)),
)
#: Beside those of ROWS: tiles of fewer rows, slower per row by the part below.
FINE: tuple[Row, ...] = (
    Row(64, "causal", ANY, _s(128, 128, 2, _THREE)),
    Row(64, "none", ANY, _s(128, 176, 2, ones="acc", l2=0), "rounded"),
    Row(128, "causal", 4096, _s(128, 128, 2, tokens=True, ones="acc"), "rounded"),
    Row(128, "causal", ANY, _s(128, 176, 2, tokens=True, ones="acc"), "rounded"),
    Row(128, "none", ANY, _s(128, 128, 2, tokens=True, ones="acc", l2=0), "rounded"),
)
SLOWER = 1.16
#: Where keys outnumber rows, all tiles of a causal mask are as long as each other, and no good comes of counting them from the end.
CHUNK: tuple[Row, ...] = (
    Row(64, "causal", ANY, _s(192, 128, 3, _THREE, ones="acc", split="branch"), "rounded"),
    Row(128, "causal", ANY, _s(192, 80, 3, _THREE)),
    Row(192, "causal", ANY, _s(128, 128, 2, l2=64), value=128),
)
#: Instead of those of FINE, where all tiles run at once: no block claims tiles. 512 rows of 32 heads on 16k keys: 0.204 ms, 0.209 with
#: claims, FlashAttention-3 0.210 (H200, 2026-11-28).
ALONE: tuple[Row, ...] = (
    Row(128, "causal", ANY, _s(128, 176, 2, tokens=True, ones="acc", persistent="none", l2=0), "rounded", above=64),
)
#: A scale that may be negative is multiplied into every score: a second tile of them is alive, and the tiles above do not fit. Not tuned.
ANY_SCALE: tuple[Row, ...] = (
    Row(64, "causal", ANY, _s(128, 128, 2, _THREE)),
    Row(64, "none", ANY, _s(128, 128, 2, _THREE, l2=0)),
    Row(128, "causal", ANY, _s(128, 128, 2, _TWO)),
    Row(128, "none", ANY, _s(128, 128, 2, _TWO, l2=0)),
)


def rows() -> tuple[Row, ...]:
    """All of them."""
    return (*ROWS, *SMALL, *FINE, *ALONE, *CHUNK, *ANY_SCALE)


@functools.cache
def _rows(table: tuple[Row, ...], head: int, mask: str, value: int) -> list[Row]:
    """What fits a head size, in the order of preference."""
    return [row for row in table if row.above < head <= row.head and row.masks == mask and value <= row.value]


def pick(head: int, mask: str, rows: int, keys: int, tiles: int, sms: int, positive: bool = True, value: int | None = None) -> Choice:
    """What to run for a head size (the larger of the key's and the value's), mask kind and numbers of rows and keys. tiles: programs of one
    row each, the grid without its row axis. positive: the scale is. value: the value's head size, where it is not `head`."""
    def first(table: tuple[Row, ...]) -> Row | None:
        kinds = {"none": ("none",), "part": ("part", "causal")}.get(mask, ("causal",))
        found = [row for kind in kinds for row in _rows(table, head, kind, value if positive and value else head)]
        return next((row for row in found if keys <= row.keys), None)

    row = first(SMALL) if tiles * -(-rows // 128) <= sms // 2 else None
    row = row or (None if positive else first(ANY_SCALE))
    row = row or (first(CHUNK) if positive and keys >= 4 * rows > 4 * 128 else None) or first(ROWS)
    if row is None:
        raise FcError("compile/schedule", f"the library has no Hopper schedule for head size {head}", expected=f"at most {ROWS[-1].head}",
                      got=head)
    fine = first(FINE) if positive and tiles * rows < 8 * sms * 128 and row not in SMALL else None
    if fine and row.steps(rows, keys, tiles, sms) > SLOWER * fine.steps(rows, keys, tiles, sms):
        row = fine
        if keys > 4096 and tiles * -(-rows // dict(row.schedule.tiles)["BLOCK_M"]) <= sms:
            row = first(ALONE) or row
    return Choice(row.schedule, LAZY, "rounded" if keys <= FEW else row.sums)


def reach(keys: int) -> int:
    """Numbers of keys with the same reach have the same schedule."""
    return bisect.bisect_left(_REACHES, keys)


_REACHES = sorted({FEW, *(row.keys for row in rows())})
