# mypy: disable-error-code="name-defined, valid-type, syntax"
"""A tile of any dtype that meets a product's result travels through shared memory, and is read from there into registers."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk_kernel
from fcgen.ir.types import DTYPES
from fcgen.passes import run_passes

SCHEDULES = {"sm_89": "tiles={BM: 64, BN: 64}, warps=4, math=mma, stages=2",
             "sm_90a": "tiles={BM: 64, BN: 64}, warps=4, math=wgmma, copy=tma, stages=2"}


@fc.kernel
def weighed(Q: "f16[M, D]", K: "f16[N, D]", W: "T[M, N]", O: "out f32[M, D]"):
    (rows,) = fc.grid(fc.tile(Q.M, "BM"))
    q, acc = fc.load(Q[rows]), fc.var(fc.zeros(rows, Q.D))
    for cols in fc.loop(fc.tile(K.N, "BN")):
        k = fc.load(K[cols])
        s = fc.dot(q, k.T)
        w = fc.load(W[rows, cols])
        s = fc.where(w, s, 0.0) if w.dtype == fc.i1 else s * w.to(fc.f32)
        acc <<= acc + fc.dot(s.to(fc.f16), k)
    fc.store(O[rows], acc)


@pytest.mark.parametrize("target", SCHEDULES)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in ("f64", "i64")])
def test_a_tile_of_this_dtype_prints_and_is_right(dtype: str, target: str) -> None:
    p = weighed.compile(target=target, schedule=fc.Schedule.parse(SCHEDULES[target]), T=DTYPES[dtype], D=64)
    rng = np.random.default_rng(1)
    q, k = (fc.round_to(rng.standard_normal((n, 64)).astype(np.float32), fc.f16) for n in (70, 144))
    w = rng.integers(0, 3, (70, 144)).astype(np.float32)
    w = w > 0 if dtype == "i1" else fc.round_to(w, DTYPES[dtype]) if DTYPES[dtype].is_float else w.astype(DTYPES[dtype].np_dtype)
    got = p.simulate(Q=q, K=k, W=w)["O"]
    s = (np.asarray(q, np.float64) @ np.asarray(k, np.float64).T) * np.asarray(w, np.float64)
    np.testing.assert_allclose(got, s @ np.asarray(k, np.float64), rtol=2e-2, atol=0.5)
    assert any(op.kind in ("ld_shared", "ldmatrix") for op in walk_kernel(p.machine))
    assert p.resources.registers


@fc.kernel
def scaled(X: T[M, D], W: T[V, D], Y: "out f32[V, M]", *, rarely=False):
    """What each row of X adds up to is wanted along the columns of a product."""
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[rows])
    r = fc.sum(x.to(fc.f32) * x.to(fc.f32), axis=1)
    for cols in fc.loop(fc.tile(W.V, "BV")):
        s = fc.var(fc.dot(fc.load(W[cols]), x.T))
        if rarely:
            with fc.when(cols.start > 64):
                s <<= s * r
        else:
            s <<= s * r
        fc.store(Y[cols, rows], s)


@pytest.mark.parametrize("rarely", [False, True])
@pytest.mark.parametrize("target, fields", [("sm_89", {}), ("sm_90a", {"math": "wgmma", "copy": "tma"})])
def test_a_row_that_no_loop_changes_is_stored_once_in_front_of_it(target, fields, rarely):
    """And where only a branch reads it, in the branch."""
    schedule = fc.Schedule(tiles={"BM": 64, "BV": 64}, warps=4, stages=2, **fields)
    p = scaled.compile(target=target, T=fc.f16, D=64, rarely=rarely, schedule=schedule, check=False)
    placed = run_passes(p.tile, p.schedule, p.target, stop_after="place")
    loop = next(op for op in placed.body.ops if op.kind == "for")
    inside = [op.kind for op in loop.regions[0].ops if op.results and len(getattr(op.results[0].type, "shape", ())) == 1]
    assert [k for k in inside if k in ("reduce", "stage")] == [] and ("unstage" in inside) == (not rarely)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, 64)).astype(np.float16) for n in (70, 130))
    want = w.astype(float) @ x.astype(float).T
    factor = np.broadcast_to((x.astype(float)**2).sum(1), want.shape).copy()
    factor[:128 if rarely else 0] = 1.0
    np.testing.assert_allclose(p.simulate(X=x, W=w)["Y"], want * factor, rtol=2e-3, atol=2e-2)
