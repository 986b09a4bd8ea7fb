"""Staged operands of products in flight: nobody may take their bytes before they are settled."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.schedule_pairs import SPECS, unlike
from fcgen.errors import FcError
from fcgen.ir.core import walk_kernel
from fcgen.sim.machine import simulate
from fcgen.sim.trial import random_inputs


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


@fc.kernel
def two_sums(X: T[M, D], W: T[V, D], U: T[V, E], P: "inout f32[M, E]", R: "inout f32[M, E]"):
    """Two products per step that are only stored, each of a tile that the step stages."""
    (words,) = fc.grid(fc.tile(W.V, "BV"))
    w, u = fc.load(W[words]), fc.load(U[words])
    for rows in fc.loop(fc.tile(X.M, "BM")):
        s = fc.dot(fc.load(X[rows]), w.T)
        p = fc.dot(fc.maximum(s, 0.0).to(U.dtype), u)
        r = fc.dot(fc.minimum(s, 0.0).to(U.dtype), u)
        fc.atomic_add(P[rows], p)
        fc.atomic_add(R[rows], r)


def lowered(**fields):
    return two_sums.compile(target="sm_90a", T=fc.f16, D=64, E=64, check=False, schedule=fc.Schedule(
        **{"tiles": {"BM": 64, "BV": 64}, "math": "wgmma", "copy": "tma", "epilogue": "direct", "reuse_frags": False, **fields}))


@pytest.mark.parametrize("m", [1, 65, 130])
@pytest.mark.parametrize("fields", [{"behind": "p"}, {"behind": "r", "early": "s"}, {"early": "s", "stages": 1, "persistent": "static"}])
def test_products_an_iteration_ahead_or_behind(fields, m):
    rng = np.random.default_rng(m)
    args = {n: (rng.standard_normal((k, 64)) / 4).astype(np.float16) for n, k in (("X", m), ("W", 70), ("U", 70))}
    p, (x, w, u) = lowered(**fields), (args[n].astype(float) for n in "XWU")
    result = simulate(p.machine, {**args, **{n: np.zeros((m, 64), np.float32) for n in "PR"}}, p.target)
    assert not result.reports, result.reports[0]
    for name, of in (("P", np.maximum), ("R", np.minimum)):
        np.testing.assert_allclose(result.outputs[name], of(x @ w.T, 0) @ u, atol=4e-3)


@pytest.mark.parametrize("fields, says", [
    ({"early": "s+r"}, "what its own iteration computes"), ({"early": "p", "behind": "r"}, "what its own iteration computes"),
    ({"behind": "p+r"}, "one product of each loop"), ({"behind": "p", "math": {"s": "wgmma", "p": "mma", "r": "wgmma"}}, "p by mma"),
    ({"early": "s+p", "math": {"s": "wgmma", "p": "mma", "r": "wgmma"}}, "p by mma")])
def test_products_that_can_be_neither_are_refused_each(fields, says):
    """Whatever becomes of the others: a staged tile that its own iteration fills is no tile that was copied."""
    with pytest.raises(FcError, match=says) as e:
        str(lowered(**fields).machine)
    assert e.value.code == "compile/schedule" and e.value.loc is not None


@fc.kernel
def chunked_sums(Q: T[H, M, D], K: T[H, M, D], V: T[H, M, E], O: "out f32[H, M, E]", R: "out f32[H, M, M]"):
    """A state that is read as it was, beside a product that is already in flight."""
    (h,) = fc.grid(Q.H)
    state = fc.var(fc.zeros(K.D, V.E))
    for rows in fc.loop(fc.tile(Q.M, "BM")):
        cols = rows.again()
        q, k, v = fc.load(Q[h, rows]), fc.load(K[h, cols]), fc.load(V[h, cols])
        weights, across = fc.dot(q, k.T), fc.dot(q, state.to(V.dtype))
        fc.store(R[h, rows, cols], weights)
        fc.store(O[h, rows], across)
        state <<= state + fc.dot(k.T, v)


def test_a_carried_accumulator_is_read_in_front_of_what_is_in_flight():
    """ptxas makes products wait (C7517) where ordinary instructions read what the iteration before accumulated while others are in flight;
    the cubin would be refused."""
    p = chunked_sums.compile(target="sm_90a", T=fc.f16, D=64, E=64, check=False, schedule=fc.Schedule(
        tiles={"BM": 64}, math="wgmma", copy="tma", stages=2, epilogue="direct"))
    loops = ([o.kind for o in op.regions[0].ops] for op in walk_kernel(p.machine) if op.kind == "for")
    kinds = next(kinds for kinds in loops if "wgmma" in kinds)
    assert kinds.index("cast") < kinds.index("wgmma_fence") and kinds.count("settle") == 3
    assert p.cubin


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("early", ["g", "g+r"])
def test_behind_a_loop_slots_are_let_go_when_the_products_it_left_in_flight_are_done(early, stages):
    """Its last iteration stands behind the loop, and begins with the arrival for the tile of the product that the loop issued last."""
    spec = SPECS["gated"]
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 32}, math="wgmma", copy="tma", stages={"u": stages}, early=early)
    p = spec.spec.compile(target="sm_90a", schedule=schedule, check=False, **spec.binding)
    for n in (32, 100):
        assert unlike(p, random_inputs(p.machine, {"M": 70, "N": n}), 1e-2) == ""


@fc.kernel
def from_one(X: T[M, D], W: T[V, D], U: T[V, D], Y: "out f32[M, V]", Z: "out f32[M, V]", O: "out f32[M, V]"):
    """Two products start from one tile, which is read while they run."""
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(W.V, "BV"))
    x = fc.load(X[rows])
    s = fc.dot(x, fc.load(W[cols]).T)
    y, z = s + fc.dot(x, fc.load(U[cols]).T), s + fc.dot(x * 2.0, fc.load(U[cols]).T)
    o = s * 2.0
    fc.store(Y[rows, cols], y)
    fc.store(Z[rows, cols], z)
    fc.store(O[rows, cols], o)


def test_a_tile_that_products_start_from_is_still_there():
    """A wgmma that adds to what is read again works on a copy."""
    rng = np.random.default_rng(0)
    x, w, u = (rng.standard_normal((64, 64)).astype(np.float16) for _ in range(3))
    schedule = fc.Schedule(tiles={"BM": 64, "BV": 64}, warps=4, math="wgmma", copy="tma")
    p = from_one.compile(target="sm_90a", T=fc.f16, D=64, schedule=schedule, check=False)
    got, (s, t) = p.simulate(X=x, W=w, U=u), (x.astype(float) @ y.astype(float).T for y in (w, u))
    for name, want in (("Y", s + t), ("Z", s + 2 * t), ("O", 2 * s)):
        np.testing.assert_allclose(got[name], want, atol=2e-3)
