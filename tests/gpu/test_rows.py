"""Row kernels of lengths that no power of two divides, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc

from ..passes.test_long_rows import norm


@pytest.mark.gpu
@pytest.mark.parametrize("D", [1000, 1008])
def test_a_row_norm(D: int) -> None:
    program = norm.compile(D=D, schedule=fc.Schedule(tiles={"BM": 16}))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((300, D)).astype(np.float32), rng.standard_normal(D).astype(np.float32)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(program.run(X=x, W=w, eps=1e-5)["Y"], want, rtol=1e-3, atol=1e-4)
