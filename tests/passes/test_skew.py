"""Dots that run one iteration behind: loops up and down, masks at either end, ranges that differ between warpgroups."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk
from fcgen.passes import run_passes


@fc.kernel
def expected(X: T[M, D], W: T[V, D], U: T[V, E], L: "out f32[M]", Y: "out f32[M, E]", *, down=False, masked=True):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    x = fc.load(X[rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, U.E))
    for words in fc.loop(fc.tile(W.V, "BLOCK_V"), descending=down):
        s = fc.dot(x, fc.load(W[words]).T) * 0.2
        if masked:
            s = fc.where(words.valid, s, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        p, fade = fc.exp(s - top), fc.exp(m - top)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(U.dtype), fc.load(U[words]))
        m <<= top
    fc.store(L[rows], m + fc.log(l))
    fc.store(Y[rows], acc / l)


def program(down, **more):
    fields = {"late": "acc", "stages": 2, **more}
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_V": 16}, warps=8, math="wgmma", copy="tma", **fields)
    return expected.compile(target="sm_90a", T=fc.f16, D=16, E=16, down=down, schedule=schedule)


@pytest.mark.parametrize("more", [{}, {"own_rows": False}, {"ones": "acc"}, {"split": "none"}, {"split": "branch"}])
@pytest.mark.parametrize("down", [False, True])
def test_a_late_dot_is_right_in_both_directions(down, more):
    p, rng = program(down, **more), np.random.default_rng(0)
    for words in (1, 15, 16, 17, 32, 33, 75):
        x, w, u = (rng.standard_normal((n, 16)).astype(np.float16) for n in (130, words, words))
        s = x.astype(np.float64) @ w.astype(np.float64).T * 0.2
        weights = np.exp(s - s.max(1, keepdims=True))
        got = p.simulate(X=x, W=w, U=u)
        np.testing.assert_allclose(got["L"], np.log(weights.sum(1)) + s.max(1), atol=1e-3)
        np.testing.assert_allclose(got["Y"], weights @ u.astype(np.float64) / weights.sum(1, keepdims=True), atol=2e-3)


@pytest.mark.parametrize("down", [False, True])
def test_copies_of_a_loop_are_one_run_of_tiles(down):
    """One tile before, one after: not one of each around every copy."""
    after = run_passes(program(down).tile, program(down).schedule, program(down).target, stop_after="skew")
    assert sum(o.kind == "if" for o in walk(after.body)) == 1


def test_a_product_that_some_tiles_mask_does_not_run_late():
    """Its mask would run with the tile behind it, which may be one that has none."""
    with pytest.raises(fc.FcError, match="cannot run late: what masks its result"):
        _ = program(False, late="s+acc").machine
