"""Rows whose length no power of two divides: they spread over the lanes of a warp, and fit its registers."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.budget import check_budget


@fc.kernel
def norm(X: "f32[M, D]", W: "f32[D]", Y: "out f32[M, D]", *, eps: "f32 > 0"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[rows])
    centred = x - fc.sum(x, axis=1) / X.D
    spread = fc.sum(centred * centred, axis=1) / X.D
    fc.store(Y[rows], centred * fc.rsqrt(spread + eps) * fc.load(W[:]))


@pytest.mark.parametrize("D", [1000, 1008, 515])
def test_a_row_norm(D: int) -> None:
    program = norm.compile(target="sm_89", D=D, schedule=fc.Schedule(tiles={"BM": 16}))
    assert check_budget(program.machine, program.target).fragment_regs <= 255
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((20, D)).astype(np.float32), rng.standard_normal(D).astype(np.float32)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(program.simulate(X=x, W=w, eps=1e-5)["Y"], want, rtol=1e-3, atol=1e-4)
