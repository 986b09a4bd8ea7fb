"""The generated text computes what the kernel says: run on the CPU against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.backends.ada import TARGETS
from fcgen.backends.cuda import print_cuda
from fcgen.ir.elementwise import round_bf16
from fcgen.ir.ops import verify
from fcgen.ir.types import bf16, f16, f32

from .host import run_on_host
from .programs import branches, gemm, row_softmax, two_dots


def stored(x: np.ndarray, dtype) -> np.ndarray:
    if dtype == bf16:
        return (round_bf16(x).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(dtype.np_dtype)


def loaded(x: np.ndarray, dtype) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == bf16 else x.astype(np.float32)


def run(k, tmp_path, blocks, tensors, scalars=None, sizes=None):
    run_on_host(print_cuda(verify(k), TARGETS["sm_89"]), tmp_path, blocks, tensors, scalars or {}, sizes or {})


@pytest.mark.parametrize("cols, dtype, vec", [(128, f32, 4), (256, f16, 8), (64, bf16, 2), (96, f32, 1)])
def test_row_softmax(cols, dtype, vec, tmp_path):
    m, rng = 37, np.random.default_rng(0)
    x = stored(rng.standard_normal((m, cols)).astype(np.float32) * 3, dtype)
    y = np.zeros_like(x)
    run(row_softmax(cols, dtype, 4, vec), tmp_path, 3, {"X": x, "Y": y}, {"scale": 0.7}, {"M": m})
    a = loaded(x, dtype) * 0.7
    p = np.exp(a - a.max(1, keepdims=True))
    np.testing.assert_allclose(loaded(y, dtype), p / p.sum(1, keepdims=True), rtol=1e-5 if dtype == f32 else 1e-2, atol=1e-7)


@pytest.mark.parametrize("shape, tile, dtype, stages", [((150, 100, 130), (128, 64, 64), f16, 2), ((64, 128, 96), (64, 128, 32), bf16, 3)])
def test_gemm(shape, tile, dtype, stages, tmp_path):
    (m, n, k), rng = shape, np.random.default_rng(1)
    a, b = (stored(rng.standard_normal(s).astype(np.float32), dtype) for s in ((m, k), (k, n)))
    bias, c = rng.standard_normal(n).astype(np.float32), np.zeros((m, n), a.dtype)
    guard = dtype == f16
    blocks = -(-m // tile[0]) * -(-n // tile[1])
    run(gemm(*tile, dtype, stages, 4, True, guard), tmp_path, blocks, {"A": a, "B": b, "C": c, "bias": bias}, {}, {"M": m, "N": n, "K": k})
    want = loaded(a, dtype).astype(np.float64) @ loaded(b, dtype) + (bias if guard else 0)
    np.testing.assert_allclose(loaded(c, dtype), want, rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("m, n, d, dtype, hold", [(128, 64, 64, bf16, True), (64, 32, 128, f16, False), (64, 64, 32, f16, True)])
def test_two_dots(m, n, d, dtype, hold, tmp_path):
    rows, cols, rng = m + 9, 2 * n + 5, np.random.default_rng(2)
    x, y, z = (stored(rng.standard_normal((1, 2, s, d)).astype(np.float32), dtype) for s in (rows, cols, cols))
    o, l = np.zeros_like(x), np.zeros((1, 2, rows), np.float32)
    c = 1.4426950408889634 / d ** 0.5
    run(two_dots(m, n, d, dtype, hold=hold), tmp_path, 4, {"X": x, "Y": y, "Z": z, "O": o, "L": l}, {"c": c},
        {"B": 1, "H": 2, "M": rows, "N": cols})
    s = loaded(x, dtype).astype(np.float64) @ np.swapaxes(loaded(y, dtype), 2, 3)
    top = s.max(-1, keepdims=True)
    p = np.exp2((s - top) * c)
    np.testing.assert_allclose(loaded(o, dtype), p @ loaded(z, dtype) / p.sum(-1, keepdims=True), rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(l, (top + np.log2(p.sum(-1, keepdims=True)))[..., 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [300, 301])
def test_branches(n, tmp_path):
    rng = np.random.default_rng(3)
    x, table = rng.standard_normal(n).astype(np.float32), rng.integers(-5, 5, n).astype(np.int32)
    y = np.zeros(n, np.float32)
    run(branches(), tmp_path, 2, {"X": x, "Y": y, "table": table}, {}, {"N": n})
    u, v = np.zeros(512, np.float32), np.zeros(512, np.float32)
    u[:n], v[:n] = x, table
    p, q = (v, u) if n % 2 else (u, v)
    k = 7
    for _ in range(n):
        k = (k - 3) // 2
    warps = (p < q).reshape(-1, 32)  # lane i of a warp holds elements that lie 128 apart in a block of 256
    low = warps.reshape(2, 2, 4, 32).any(axis=(1, 3))
    low = np.broadcast_to(low[:, None, :, None], (2, 2, 4, 32)).reshape(-1)
    out = np.where(low, p * k, p)
    sig = 1 / (1 + np.exp(-out))
    np.testing.assert_allclose(y, (sig * (sig + 1))[:n], rtol=2e-6, atol=1e-30)
