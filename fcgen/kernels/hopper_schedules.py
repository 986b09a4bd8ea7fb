"""Which schedule the library runs on Hopper: data, found by `benchmarks/search_schedules.py` on one H200.

A row holds up to its head size (the larger of the key's and the value's), for one mask kind ("causal" is both alignments) and up to its
length; the first row that fits is taken. Where a grid of the row's tiles would leave half of the multiprocessors idle, the last table's
rows come first. `lazy` is the spec's option, in powers of e: 5.5 is a factor of 2**8. With it goes `sums`: "rounded" where the tensor core
makes the sums (`ones`: level in time at D = 64, 3 % slower at D = 128), else "corrected" (1 to 2 %; "rounded" costs 6 % at D = 128).
"""

from __future__ import annotations

from ..errors import FcError
from ..ir.schedule import Schedule

LAZY = 5.5
ANY = 1 << 31
Row = tuple[int, str, int, Schedule]


def _s(m: int, n: int, groups: int, stages: object = 2, **more: object) -> Schedule:
    """Tiles of m x n over consumer warpgroups, with what every row has in common."""
    common = {"persistent": "dynamic", "l2": 32, "epilogue": "quad", "compare_bits": True, "pdl": True}
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", stages=stages, late="acc", vote=True,
                    **{**common, **more})  # type: ignore[arg-type]


#: loads of Q for the next tile start while this one's are still read
_TWO = {"q": 2, "k": 2, "v": 2}
_THREE = {"q": 2, "k": 3, "v": 3}
#: H200, 2026-11-21
ROWS: tuple[Row, ...] = (
    (64, "causal", 512, _s(192, 128, 3, _THREE, ones="acc", epilogue="tma")),
    (64, "causal", ANY, _s(192, 128, 3, _THREE, ones="acc", from_end="rows")),
    (64, "any", ANY, _s(192, 128, 3, _THREE, ones="acc", epilogue="tma")),
    (128, "causal", 1024, _s(128, 128, 2, _TWO, tokens=True, ones="acc", regs_a="s")),
    (128, "none", 512, _s(128, 128, 2, _TWO, tokens=True, ones="acc", regs_a="s")),
    (128, "causal", ANY, _s(192, 80, 3, _THREE, from_end="rows")),
    (128, "any", ANY, _s(192, 80, 3, _THREE)),
    (192, "any", ANY, _s(128, 80, 2)),
    (256, "any", ANY, _s(128, 64, 2)),
)
SMALL: tuple[Row, ...] = (
    (64, "any", ANY, _s(64, 128, 1, 4, persistent="none", epilogue="tma")),
    (128, "any", ANY, _s(64, 128, 1, persistent="none")),
    (256, "any", ANY, _s(64, 64, 1, persistent="none")),
)


def pick(head: int, mask: str, length: int, tiles: int, sms: int) -> Schedule:
    """The schedule for a head size, mask kind and length. tiles: programs of one row each, the grid without its row axis."""
    kind = "none" if mask == "none" else "causal"
    for table in (SMALL, ROWS):
        for size, masks, longest, schedule in table:
            if head > size or masks not in ("any", kind) or length > longest:
                continue
            if table is SMALL and tiles * -(-length // 128) > sms // 2:
                break
            return schedule
    raise FcError(
        "compile/schedule", f"the library has no Hopper schedule for head size {head}", expected=f"at most {ROWS[-1][0]}", got=head
    )
