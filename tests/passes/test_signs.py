"""Loops that multiply by a number of unknown sign: one of their own for numbers above zero, from which the product has gone."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen import scores
from fcgen.ir.core import walk
from fcgen.kernels.attention import attention
from fcgen.passes import run_passes
from fcgen.passes.tile.scale import is_root

HOPPER = "tiles={BLOCK_M: 64, BLOCK_N: 64}, warps=4, math=wgmma, copy=tma, stages=2, late=acc, vote=True, compare_bits=True"
AMPERE = "tiles={BLOCK_M: 64, BLOCK_N: 32}, warps=4, math=mma, copy=cp_async, stages=2"
FACTORS = np.array([1.5, -0.7, 0.0, 2.0**-140, np.inf, 2.0**20], np.float32)
HEAT = [2.0]


def program(score, schedule=HOPPER, target="sm_90a", **more):
    return attention.compile(target=target, schedule=fc.Schedule.parse(schedule), T=fc.f16, D=64, E=64, score=score, LSE=None, **more)


def branches(p):
    """Branches with a loop on both sides, and how many products with a number stand in each."""
    first = getattr(p, "first", p)
    after = run_passes(first.tile, first.schedule, first.target, stop_after="signs")
    loops = lambda r: [o for o in walk(r) if o.kind == "for"]
    return [tuple(sum(is_root(o) for f in loops(r) for o in f.regions[0].ops if o.kind == "mul" and len(o.result.type.shape) == 2)
                  for r in op.regions) for op in walk(after.body) if op.kind == "if" and all(map(loops, op.regions))]


@pytest.mark.parametrize("schedule, target, more", [
    (HOPPER, "sm_90a", {"lazy": 5.5}), (HOPPER + ", ones=acc, split=branch", "sm_90a", {"lazy": 5.5, "sums": "rounded"}), (AMPERE, "sm_89", {})])
def test_every_sign_gives_the_same_result(schedule, target, more):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, len(FACTORS), n, 64)).astype(np.float16) for n in (70, 130, 130))
    p = program(scores.temperature(FACTORS), schedule, target, **more)
    assert len(branches(p)) == 1
    given = {"Q": q, "K": k, "V": v, "scale": 0.125, "score_0": FACTORS}
    want, got = p.interpret(**given)["O"], p.simulate(**given)["O"]
    s = np.einsum("bhid,bhjd->bhij", q.astype(float), k.astype(float)) * 0.125 * FACTORS[:, None, None]
    with np.errstate(all="ignore"):
        w = np.exp(s - s.max(-1, keepdims=True))
        exact = np.einsum("bhij,bhjd->bhid", w / w.sum(-1, keepdims=True), v.astype(float))
    for o in (want, got):
        np.testing.assert_allclose(o[:, np.isfinite(FACTORS)].astype(float), exact[:, np.isfinite(FACTORS)], atol=2e-3)
        assert np.isnan(o[:, ~np.isfinite(FACTORS)].astype(float)).all()


def test_the_loop_above_zero_has_no_product_with_the_number():
    hot = lambda s, b, h, i, j: s * HEAT[0]  # a number that is held, and enters as a parameter
    row = lambda s, b, h, i, j: s * (FACTORS[h] + 1.0)
    for score in (scores.temperature(FACTORS), hot, row):
        assert branches(program(score, lazy=5.5)) == [(1, 2)]  # one is that of the exponential's base


def test_loops_that_would_not_gain_are_written_once():
    known = lambda s, b, h, i, j: s * 0.5
    for score in (None, known, scores.alibi(np.ones(6, np.float32)), scores.soft_cap(9.0)):
        assert branches(program(score)) == []
    assert branches(program(None, positive=False)) == []  # of a parameter the spec says whether it is positive
