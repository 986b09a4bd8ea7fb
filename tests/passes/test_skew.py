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


@fc.kernel
def causal(X: T[M, D], W: T[V, D], U: T[V, E], Y: "out f32[M, E]"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    x = fc.load(X[rows])
    acc = fc.var(fc.zeros(rows, U.E))
    for words in fc.loop(fc.tile(W.V, "BLOCK_V"), descending=True, live=lambda words: words.index <= rows.index):
        s = fc.dot(x, fc.load(W[words]).T)
        p = fc.where(words.valid & (words.index <= rows.index), s, 0.0)
        acc <<= acc + fc.dot(p.to(U.dtype), fc.load(U[words]))
    fc.store(Y[rows], acc)


@pytest.mark.parametrize(("columns", "masked"), [(16, 1), (64, 1), (128, 0)])
def test_masked_tiles_have_no_loop_where_there_is_one_at_most(columns, masked):
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_V": columns}, warps=8, math="wgmma", copy="tma", late="acc", stages=2)
    p, rng = causal.compile(target="sm_90a", T=fc.f16, D=16, E=16, schedule=schedule), np.random.default_rng(0)
    after = run_passes(p.tile, p.schedule, p.target, stop_after="skew")
    assert sum(o.kind == "for" and o.get("part") == "masked" for o in walk(after.body)) == masked
    for rows, words in ((1, 1), (64, 200), (65, 63), (130, 129), (257, 257), (300, 140)):
        x, w, u = (rng.integers(-2, 3, (n, 16)).astype(np.float16) for n in (rows, words, words))
        s = np.tril(x.astype(np.float64) @ w.astype(np.float64).T)
        np.testing.assert_allclose(p.simulate(X=x, W=w, U=u)["Y"], s @ u.astype(np.float64), atol=1e-2)


@fc.kernel
def carrying(X: T[M, D], W: T[V, D], U: T[V, E], Y: "out f32[M, E]", *, scale: f32, kind="tile", down=False):
    """What a late product meets is changed behind it, by what is not late."""
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    x = fc.load(X[rows])
    m, acc, t = fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, U.E)), fc.var(fc.zeros(rows, U.E) + scale)
    c, e = fc.var(scale), fc.var(scale)
    for words in fc.loop(fc.tile(W.V, "BLOCK_V"), descending=down):
        s = fc.where(words.valid, fc.dot(x, fc.load(W[words]).T) * 0.2, 0.0)
        factor = {"tile": t, "number": c, "older": e}[kind]
        acc <<= acc * factor + fc.dot(s.to(U.dtype), fc.load(U[words])) * (1.0 if kind == "older" else factor)
        m <<= fc.max(s, axis=1)
        t <<= t * 0.5 + m * 0.25
        e <<= c * 0.5
        c <<= c * 0.75 + e
    fc.store(Y[rows], acc)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("kind", ["tile", "number", "older"])
def test_late_dots_meet_what_was_carried_into_their_own_iteration(kind, down):
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_V": 16}, warps=4, math="wgmma", copy="tma", late="acc", stages=2)
    p, rng = carrying.compile(target="sm_90a", T=fc.f16, D=16, E=16, kind=kind, down=down, schedule=schedule, check=False), np.random.default_rng(0)
    for words in (1, 16, 17, 40):
        x, w, u = (rng.standard_normal((n, 16)).astype(np.float16) for n in (64, words, words))
        given = {"X": x, "W": w, "U": u, "scale": 0.5}
        np.testing.assert_allclose(p.simulate(**given)["Y"], p.interpret(**given)["Y"], atol=2e-3)
