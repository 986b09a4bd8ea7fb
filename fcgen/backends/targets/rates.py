"""How fast a multiprocessor of each target is at what, per clock: to compare schedules with each other, not to tell times.

Source: NVIDIA data sheets of the largest common chip of each target (A100, A40, L40S, H100), at its boost clock; the second level's rates
are measured ones. FLOP count a multiply-add as two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """sms: multiprocessors. mma, wgmma: FLOP of 16-bit products. lanes: float32 operations; slow: those of the special unit. shared, l2:
    bytes; bulk: those of the second level that bulk copies bring; burst: where a grid runs all at once, and no tile that other blocks have
    just read; memory: a multiprocessor's share of those of the memory. threads: that a
    multiprocessor holds."""

    sms: int
    mma: float
    lanes: int
    l2: float
    threads: int = 2048
    wgmma: float = 0.0
    bulk: float = 0.0
    burst: float = 0.0
    memory: float = 0.0
    slow: int = 16
    shared: int = 128


RATES: Mapping[str, Rates] = {
    "sm_80": Rates(108, 2048, 64, 47), "sm_86": Rates(84, 1024, 128, 24, 1536), "sm_89": Rates(142, 1024, 128, 24, 1536),
    "sm_90": Rates(132, 2560, 128, 40), "sm_90a": Rates(132, 2560, 128, 40, wgmma=4096, bulk=64, burst=50, memory=17),
}
