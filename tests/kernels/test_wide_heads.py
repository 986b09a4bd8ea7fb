"""Heads of 512: an accumulator that no warpgroup, and no warp, can hold alone. Right in the simulator, and without spills."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.kernels.reference import attention_reference

D = 512


def hopper(n, **more):
    return fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": n}, warps=8, math="wgmma", copy="tma", **{"stages": 1, "epilogue": "quad", **more})


def ada(m, n, **more):
    return fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=8, stages=1, hold_a=False, **more)


#: the scores are made by both warpgroups, or half of the columns by each
CASES = {
    "by both": (hopper(32, stages=2, grid={"s": (1, 1)}, late="acc", vote=True), "none"),
    "by both, claimed tiles": (hopper(32, grid={"s": (1, 1), "acc": (1, 2)}, persistent="dynamic", l2=32, vote=True), "causal_top_left"),
    "by halves": (hopper(64, epilogue="direct"), "none"),
    "by halves, late": (hopper(32, stages=2, late="acc", vote=True), "causal_bottom_right"),
    "ada": (ada(32, 32, grid={"s": (2, 2)}), "none"),
    "ada, by halves": (ada(64, 16, grid={"s": (4, 1)}), "causal_top_left"),
}


@pytest.mark.parametrize("name", CASES)
def test_heads_of_512(name):
    schedule, mask = CASES[name]
    target = "sm_90a" if schedule.copy == "tma" else "sm_89"
    p = attention.compile(**VARIANTS["lse"], target=target, schedule=schedule, T=fc.f16, D=D, E=D, mask=mask, lazy=5.5)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, s, D)).astype(np.float16) for s in (70, 75, 75))
    got = p.simulate(Q=q, K=k, V=v, scale=D**-0.5)
    want, lse = attention_reference(q, k, v, mask=mask, scale=D**-0.5)
    assert np.abs(got["O"] - want).max() < 2e-3 and np.abs(got["LSE"] - lse).max() < 1e-3
    assert not p.resources.spills
