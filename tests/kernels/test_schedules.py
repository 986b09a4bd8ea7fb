"""Every schedule that the library ships compiles for every target it ships for, without spills, and computes the right thing in the
simulator."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.program import Program
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference
from fcgen.kernels.schedules import TABLES, choose, pick
from fcgen.sim.machine import simulate
from tests.sim.cases import EVERYTHING

LAZY = 2.77  # 4 in powers of two: what the WMMA schedules are meant for
HEADS = {"mma": (*range(16, 257, 16), 272, 320, 336, 384, 448, 512), "wmma": range(16, 129, 16)}
EVERY = [(arch, math, d, mask) for arch, math in TABLES if arch != "sm_86" for d in HEADS[math] for mask in ("none", "causal_bottom_right")]
#: the largest head of each row with both masks on sm_89 and one of them elsewhere, and of the others a twelfth; all with FCGEN_ALL=1
SHIPPED = [(arch, math, d, mask) for n, (arch, math, d, mask) in enumerate(EVERY)
           if EVERYTHING or n % 12 == d // 16 % 12
           or (any(d == row[0] for row in TABLES[arch, math]) and (arch == "sm_89" or (mask == "none") == (d % 128 == 0)))]


def program(arch: str, math: str, d: int, mask: str, dtype: fc.ir.types.DType = fc.f16) -> Program:
    return attention.compile(
        target=arch, schedule=pick(arch, d, math, mask), T=dtype, D=d, E=d, mask=mask, lazy=LAZY if math == "wmma" else 0.0
    )


@pytest.mark.parametrize(("arch", "math", "d", "mask"), SHIPPED)
def test_no_shipped_schedule_spills(arch: str, math: str, d: int, mask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(tmp_path / "cache"))
    p = program(arch, math, d, mask)
    r = p.resources
    assert (r.spill_stores, r.spill_loads, r.stack_bytes) == (0, 0, 0)
    assert r.registers <= 255 and p.built.facts.smem_bytes <= p.target.smem_per_block


def test_sm_86_ships_what_sm_89_does() -> None:
    assert all(TABLES["sm_86", math] == TABLES["sm_89", math] for math in ("mma", "wmma"))


ROWS = [(arch, math, size, mask if mask != "any" else "causal_bottom_right")
        for (arch, math), table in TABLES.items() if arch in ("sm_89", "sm_90") for size, mask, _ in table]


@pytest.mark.parametrize(("arch", "math", "d", "mask"), ROWS)
def test_each_is_silent_in_the_simulator_and_right(arch: str, math: str, d: int, mask: str) -> None:
    """Trip counts 1 to 2 x stages + 1 of the loop, the last row tile, every dtype once."""
    p = program(arch, math, d, mask, fc.bf16 if d % 32 else fc.f16)
    tiles = dict(p.schedule.tiles)
    rng = np.random.default_rng(d)
    for trips in range(1, 2 * max(b.type.slots for b in p.machine.buffers) + 2):
        m, n = tiles["BLOCK_M"] + 3, trips * tiles["BLOCK_N"] - 5
        q, k, v = (fc.round_to(rng.standard_normal((1, 1, s, d)).astype(np.float32), fc.bf16 if d % 32 else fc.f16) for s in (m, n, n))
        result = simulate(p.machine, {"Q": q, "K": k, "V": v, "scale": d**-0.5}, p.target, seed=trips, programs=[(0, 0, 1)])
        assert not result.reports, result.reports[0]
        want, lse = attention_reference(q, k, v, mask=mask)
        rows = slice(tiles["BLOCK_M"], None)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(
                np.asarray(result.outputs["O"][:, :, rows], np.float64), want[:, :, rows], atol=2e-2 if d % 32 else 3e-3
            )
            np.testing.assert_allclose(result.outputs["LSE"][:, :, rows], lse[:, :, rows], atol=1e-4)


@pytest.mark.parametrize("arch", ["sm_89", "sm_90", "sm_90a"])
def test_there_is_one_where_there_are_no_keys_or_rows(arch: str) -> None:
    found = {choose(arch, (b, 6, rows, head), (b, 6, keys, head), value, mask, 132, positive).schedule
             for b, rows, keys in itertools.product((0, 1, 2), (0, 1, 4096, 8175), (0, 1, 8000)) for head, value in ((64, 64), (64, 256), (128, 128))
             for mask in ("none", "causal_bottom_right", "part") for positive in (True, False)}
    assert found and all(isinstance(s, fc.Schedule) for s in found)
