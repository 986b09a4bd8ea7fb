"""Which schedule the library runs a head size with: data, measured on one H200 where a line says so, and checked everywhere.

A row holds up to its head size (the larger of the key's and the value's, in multiples of 16) and for one mask; "any" is the rest. Every row
compiles for every target of its table, for each head size it covers, without spills: the tests see to it.
"""

from __future__ import annotations

import functools

from ..errors import FcError
from ..ir.schedule import Schedule
from . import hopper_schedules


def _tiles(m: int, n: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n}


Row = tuple[int, str, Schedule]

#: heads that no warp holds an accumulator of; not timed
_WIDE = Schedule(tiles=_tiles(64, 32), warps=8, stages=1, ahead=True, hold_a=False)
#: 163 KiB of shared memory and more: sm_80, sm_90
LARGE: tuple[Row, ...] = (
    (64, "any", Schedule(tiles=_tiles(128, 64))),  # H200, 2026-11: 1.07 to 1.23 x FlashAttention-2 at D = 64
    (96, "any", Schedule(tiles=_tiles(64, 64), hold_a=False)),
    (128, "none", Schedule(tiles=_tiles(64, 64), stages=1, ahead=True)),  # H200: 0.93 to 0.95 at D = 128
    (128, "any", Schedule(tiles=_tiles(64, 96), hold_a=False)),  # H200: 0.96 to 1.10
    (192, "any", Schedule(tiles=_tiles(128, 64), warps=8, stages=1, ahead=True, hold_a=False)),
    (240, "any", Schedule(tiles=_tiles(128, 32), warps=8, stages=1, ahead=True, hold_a=False)),
    (256, "any", Schedule(tiles=_tiles(128, 64), warps=8, stages=1, ahead=True, hold_a=False)),
    (512, "any", _WIDE),
)
#: sm_90: as LARGE, but that tiles of 64 keys spill at D = 256 (8 to 36 bytes; ptxas of sm_80 keeps them, and spills with 48)
HOPPER_MMA: tuple[Row, ...] = (
    *LARGE[:-2], (256, "any", Schedule(tiles=_tiles(128, 48), warps=8, stages=1, ahead=True, hold_a=False)), LARGE[-1],
)
#: 99 KiB: sm_86, sm_89. Two blocks share a multiprocessor up to head size 128.
SMALL: tuple[Row, ...] = (
    (64, "any", Schedule(tiles=_tiles(128, 64))),
    (128, "any", Schedule(tiles=_tiles(64, 64), stages=1, ahead=True)),
    (192, "any", Schedule(tiles=_tiles(64, 32), hold_a=False)),
    (256, "any", Schedule(tiles=_tiles(64, 64), stages=1, ahead=True, hold_a=False)),
    (320, "any", _WIDE),
    (512, "any", Schedule(tiles=_tiles(64, 16), warps=8, stages=1, hold_a=False, grid={"s": (4, 1)})),
)
#: The WMMA API, staged through shared memory; to be used with the spec's `lazy` option, which makes most rescaling factors one.
WMMA_LARGE: tuple[Row, ...] = (
    (64, "any", Schedule(tiles=_tiles(128, 64), math="wmma", stages=1, ahead=True, skip_ones=True)),  # H200: 0.59 to 0.62
    (128, "any", Schedule(tiles=_tiles(64, 64), math="wmma", stages=1, ahead=True, skip_ones=True)),  # H200: 0.60
)
WMMA_SMALL: tuple[Row, ...] = (
    (64, "any", Schedule(tiles=_tiles(128, 64), math="wmma", stages=1, ahead=True, skip_ones=True)),
    (128, "any", Schedule(tiles=_tiles(64, 64), math="wmma", stages=1, ahead=True, skip_ones=True)),
)
#: One block per tile everywhere: where blocks claim tiles, two to a multiprocessor, the rows of sm_90 are 0.97 x as fast, in fixed steps
#: 0.84 to 0.87 x (causal, D = 64 and 128, H200, results/2026-11-27-h200/grids.json).
TABLES: dict[tuple[str, str], tuple[Row, ...]] = {
    ("sm_80", "mma"): LARGE, ("sm_86", "mma"): SMALL, ("sm_89", "mma"): SMALL, ("sm_90", "mma"): HOPPER_MMA,
    ("sm_80", "wmma"): WMMA_LARGE, ("sm_86", "wmma"): WMMA_SMALL, ("sm_89", "wmma"): WMMA_SMALL, ("sm_90", "wmma"): WMMA_LARGE,
}


@functools.cache
def shipped() -> frozenset[Schedule]:
    """Every schedule of the library: the tests run each of them in the simulator."""
    return frozenset([*(row[2] for table in TABLES.values() for row in table), *(row.schedule for row in hopper_schedules.rows())])


def pick(arch: str, head: int, math: str | None = None, mask: str = "none") -> Schedule:
    """The schedule for a target, a head size (the larger of the key's and the value's) and a mask kind. math: which instructions; the
    target's fastest if None ("wgmma" on sm_90a, else "mma").

    With "wgmma", the one for long inputs. Raises FcError "compile/schedule" where the target has none for them and that head size."""
    math = math or ("wgmma" if arch == "sm_90a" else "mma")
    if (arch, math) == ("sm_90a", "wgmma"):
        return hopper_schedules.pick(head, mask, hopper_schedules.ANY, hopper_schedules.ANY, hopper_schedules.ANY, 1).schedule
    if arch == "sm_90a":
        arch = "sm_90"  # which it has all of
    if (arch, math) not in TABLES:
        raise FcError("compile/schedule", f"the library has no {math} schedule for {arch}", got=f"{math}, {arch}",
                      expected="; ".join(f"{m} on {a}" for a, m in (*TABLES, ("sm_90a", "wgmma"))), hint="pass a Schedule of your own")
    table = TABLES[arch, math]
    for size, kind, schedule in table:
        if head <= size and kind in ("any", mask):
            return schedule
    raise FcError("compile/schedule", f"the library has no {math} schedule for head size {head} on {arch}",
                  expected=f"at most {table[-1][0]}", got=head, hint='use math="mma", or pass a Schedule of your own')


def choose(arch: str, q: tuple[int, ...], k: tuple[int, ...], value: int, mask: str, sms: int,
           positive: bool = True) -> hopper_schedules.Choice:
    """The schedule and the spec's options for one call of attention. q: [B, H, M, D], k: [B, Hkv, N, D], value: the value's head size;
    sms: the GPU's multiprocessors."""
    head = max(q[3], value)
    if arch == "sm_90a":
        return hopper_schedules.pick(head, mask, q[2], k[2], q[0] * q[1], sms, positive, value)
    return hopper_schedules.Choice(pick(arch, head, mask=mask))
