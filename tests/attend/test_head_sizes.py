"""Head sizes of `fcgen.attention`: every multiple of 8 up to 512, values apart from keys, with the library's schedules on both targets."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.eager import eager
from benchmarks.on_cpu import Array, fits_on_paper, on_cpu
from fcgen.attend import variants

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


def test_functions_with_many_values_at_a_large_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of the table has registers for them beside lists of blocks: the schedule is found by the model."""
    seen, rng = on_cpu(monkeypatch, "sm_90a"), np.random.default_rng(1)
    monkeypatch.setattr(variants, "_fits", lambda program: False)
    (h, m, n), d = (2, 7, 200), 320
    q, k, v = (rng.standard_normal((1, heads, length, d)).astype(np.float16) for heads, length in ((h, m), (1, n), (1, n)))
    ids, layout = np.sort(rng.integers(0, 9, (1, n))).astype(np.int32), rng.integers(0, 2, (1, h, 1, 7)).astype(np.int8)
    heat, slopes, bias = rng.random(h).astype(np.float32), rng.random(h).astype(np.float32), rng.standard_normal((1, h, m, n)).astype(np.float32)
    lengths = np.array([60], np.int32)
    mask = (fc.masks.documents(ids) & fc.masks.block_sparse(layout, (16, 32)) | fc.masks.window(5, 60)) & fc.masks.padding(lengths)
    score = fc.scores.chain(fc.scores.temperature(heat), fc.scores.bias(bias), fc.scores.alibi(slopes))
    out = fc.attention(Array(q), Array(k), Array(v), mask=mask, score=score, causal="bottom_right")
    sees = lambda b, y, i, j: (((ids[0][i] == ids[0][j]) & (layout[0, y][i // 16, j // 32] != 0)) | ((j >= i - 5) & (j <= i + 60))) & (j < 60) & (j <= i + n - m)
    want = eager(q, k, v, seen=sees, score=lambda s, b, y, i, j: s * heat[y] + bias[0, y] - slopes[y] * abs(i - j))
    np.testing.assert_allclose(out.array.astype(float), want[0], atol=4e-3)
    assert fits_on_paper(next(p for p in seen if p.name == "listed_attention"))
