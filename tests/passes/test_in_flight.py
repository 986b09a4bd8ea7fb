"""Staged operands of products in flight: nobody may take their bytes before they are settled."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc


@fc.kernel
def two_maps(X: T[M, D], W: T[V, D], U: T[V, E], Y: "out f32[M, E]"):
    """Two products per step, each of a tile that goes through shared memory."""
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    x = fc.load(X[rows])
    acc, other = fc.var(fc.zeros(rows, U.E)), fc.var(fc.zeros(rows, U.E))
    for words in fc.loop(fc.tile(W.V, "BLOCK_V")):
        s, u = fc.dot(x, fc.load(W[words]).T), fc.load(U[words])
        acc <<= acc * 0.5 + fc.dot(fc.maximum(s, 0.0).to(U.dtype), u)
        other <<= other * 0.25 + fc.dot(fc.minimum(s, 0.0).to(U.dtype), u)
    fc.store(Y[rows], acc + other)


@pytest.mark.parametrize("late", ["", "acc", "acc+other"])
@pytest.mark.parametrize("reuse", [True, False])
def test_tiles_of_products_in_flight_share_no_bytes(late, reuse):
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_V": 16}, math="wgmma", copy="tma", stages=2, late=late, reuse_frags=reuse,
                           own_rows=False, split="none")
    p = two_maps.compile(target="sm_90a", T=fc.f16, D=16, E=16, schedule=schedule)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        args = {n: (rng.standard_normal((s, 16)) / 4).astype(np.float16) for n, s in (("X", 70), ("W", 75), ("U", 75))}
        np.testing.assert_allclose(p.simulate(seed=seed, **args)["Y"], p.interpret(**args)["Y"], atol=2e-3)
