"""Head sizes of `fcgen.attention`: every multiple of 8 up to 512, values apart from keys, with the library's schedules on both targets."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.eager import eager
from benchmarks.on_cpu import Array, on_cpu

SIZES = [(8, 8), (8, 64), (24, 40), (64, 256), (192, 128), (72, 136), (264, 264), (320, 8), (128, 512), (512, 64), (408, 512), (512, 512)]


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize(("d", "e"), SIZES)
def test_sizes(d: int, e: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_cpu(monkeypatch, target)
    rng = np.random.default_rng(d + e)
    q, k, v = (rng.standard_normal((1, h, n, w)).astype(np.float16) for h, n, w in ((2, 20, d), (1, 33, d), (1, 33, e)))
    out, lse = fc.attention(Array(q), Array(k), Array(v), causal="bottom_right", return_lse=True)
    want = eager(q, k, v, seen=lambda b, h, i, j: j <= i + 13)
    np.testing.assert_allclose(out.array.astype(float), want[0], atol=4e-3)
    np.testing.assert_allclose(lse.array.astype(float), want[1], atol=1e-3)
    assert seen[0].machine.meta["target"] == target
