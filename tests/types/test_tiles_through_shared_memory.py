# mypy: disable-error-code="name-defined, valid-type, syntax"
"""A tile of any dtype that meets a product's result travels through shared memory, and is read from there into registers."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk_kernel
from fcgen.ir.types import DTYPES

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
