"""Every schedule that the library ships for Hopper, at its own tiles and head size, is silent in the simulator and right.

Every row x mask x one of the outputs (with and without the log-sum-exp; both with FCGEN_ALL=1) x trip count from 1 to 2 x stages + 1 of its
deepest ring runs. What else may differ is paired with these: f16 with the log-sum-exp and bf16 without it; engines that act late at one trip, early at two and in any order from
three on; more row tiles where there are few key tiles, so that a block that claims tiles goes around the ring of Q too.
"""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.program import Program
from fcgen.ir.types import Buffer
from fcgen.kernels import hopper_schedules
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.kernels.reference import attention_reference
from fcgen.sim.machine import simulate
from tests.sim.cases import EVERYTHING

TABLES = ("ROWS", "SMALL", "FINE", "ALONE", "CHUNK", "ANY_SCALE")
ROWS = {f"{table}-{n}-{row[0]}": row for table in TABLES for n, row in enumerate(getattr(hopper_schedules, table))}
MASKS = {"none": ["none"], "causal": ["causal_top_left", "causal_bottom_right"]}
MASKS["part"] = MASKS["causal"][-1:]
MASKS["any"] = MASKS["none"] + MASKS["causal"]
DTYPE = {"lse": fc.f16, "plain": fc.bf16, "any_scale_lse": fc.f16, "any_scale_plain": fc.bf16}
ATOL = {fc.f16: 3e-3, fc.bf16: 2e-2}


def compiled(row: str, mask: str, spec: str) -> Program:
    r = ROWS[row]
    return attention.compile(**VARIANTS[spec], target="sm_90a", schedule=r.schedule, T=DTYPE[spec], D=r.head, E=min(r.head, r.value), mask=mask, lazy=hopper_schedules.LAZY,
                              sums=r.sums)


def trip_counts(p: Program) -> range:
    return range(1, 2 * max(b.type.slots for b in p.machine.buffers if isinstance(b.type, Buffer)) + 2)


def run(p: Program, mask: str, spec: str, trips: int, scale: float) -> None:
    """The last row tile and the last key tile are not whole."""
    dtype, tiles = DTYPE[spec], dict(p.schedule.tiles)
    blocks = 2 if p.schedule.persistent == "none" else max(2, 7 - 2 * trips)
    m, n, d, e = (blocks - 1) * tiles["BLOCK_M"] + 3, trips * tiles["BLOCK_N"] - 5, p.params[0].type.dims[3], p.params[2].type.dims[3]
    rng = np.random.default_rng(trips)
    q, k, v = (fc.round_to(rng.standard_normal((1, 1, s, d)).astype(np.float32), dtype) for s, d in ((m, d), (n, d), (n, e)))
    result = simulate(p.machine, {"Q": q, "K": k, "V": v, "scale": scale}, p.target, seed=trips - 1)
    assert not result.reports, f"{trips} trips: {result.reports[0]}"
    want, lse = attention_reference(q, k, v, mask=mask, scale=scale)
    np.testing.assert_allclose(np.asarray(result.outputs["O"], np.float64), want, atol=ATOL[dtype])
    if "LSE" in result.outputs:
        np.testing.assert_allclose(result.outputs["LSE"], lse, atol=1e-4)


BOTH = [row for row, r in ROWS.items() if row[0] in "RS" and r.head <= 256]
CASES = [(row, mask, spec) for row in ROWS if "ANY" not in row for mask in (MASKS[ROWS[row].masks] if row in BOTH else MASKS[ROWS[row].masks][-1:])
         for spec in (("lse", "plain") if row in BOTH else ("plain",))]


#: one output of each row and mask in turns, both with FCGEN_ALL=1
SOME = [(row, mask, spec) for n, (row, mask, spec) in enumerate(CASES) if EVERYTHING or row[0] not in "RS" or (n // 2 + n) % 2]


@pytest.mark.parametrize(("row", "mask", "spec"), SOME)
def test_every_shipped_schedule_is_silent_and_right(row: str, mask: str, spec: str) -> None:
    p = compiled(row, mask, spec)
    for trips in trip_counts(p):
        run(p, mask, spec, trips, 0.1)


@pytest.mark.parametrize("row", [row for row, r in ROWS.items() if r.value >= r.head and (row[:3] in ("SMA", "ANY") or (row[0] == "R" and r.head > 128))])
def test_so_is_it_for_a_scale_that_is_not_positive(row: str) -> None:
    mask = MASKS[ROWS[row].masks][-1]
    run(compiled(row, mask, "any_scale_plain"), mask, "any_scale_plain", 2, -0.1)
