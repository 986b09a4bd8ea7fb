"""The generated text computes what the kernel says: run on the CPU against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda.printer import print_cuda
from fcgen.backends.targets.ada import TARGETS
from fcgen.ir.layout import SmemLayout, blocked, mma_a, mma_b, mma_c, native_smem
from fcgen.ir.types import bf16, f16, f32, i32
from fcgen.ir.verify import verify

from .host import CONTRACT, run_on_host
from .programs import branches, gemm, half_math, row_softmax, small_shapes, through_shared, two_dots


def stored(x: np.ndarray, dtype) -> np.ndarray:
    return x.astype(dtype.stored)


def loaded(x: np.ndarray, dtype) -> np.ndarray:
    return x.astype(np.float32)


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


@pytest.mark.parametrize(
    "shape, tile, dtype, stages", [((150, 100, 130), (128, 64, 64), f16, 2), ((64, 128, 96), (64, 128, 32), bf16, 3)]
)
def test_gemm(shape, tile, dtype, stages, tmp_path):
    (m, n, k), rng = shape, np.random.default_rng(1)
    a, b = (stored(rng.standard_normal(s).astype(np.float32), dtype) for s in ((m, k), (k, n)))
    bias, c = rng.standard_normal(n).astype(np.float32), np.zeros((m, n), a.dtype)
    guard = dtype == f16
    blocks = -(-m // tile[0]) * -(-n // tile[1])
    run(
        gemm(*tile, dtype, stages, 4, True, guard),
        tmp_path,
        blocks,
        {"A": a, "B": b, "C": c, "bias": bias},
        {},
        {"M": m, "N": n, "K": k},
    )
    want = loaded(a, dtype).astype(np.float64) @ loaded(b, dtype) + (bias if guard else 0)
    np.testing.assert_allclose(loaded(c, dtype), want, rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("m, n, d, dtype, hold", [(128, 64, 64, bf16, True), (64, 32, 128, f16, False), (64, 64, 32, f16, True)])
def test_two_dots(m, n, d, dtype, hold, tmp_path):
    rows, cols, rng = m + 9, 2 * n + 5, np.random.default_rng(2)
    x, y, z = (stored(rng.standard_normal((1, 2, s, d)).astype(np.float32), dtype) for s in (rows, cols, cols))
    o, l = np.zeros_like(x), np.zeros((1, 2, rows), np.float32)
    c = 1.4426950408889634 / d**0.5
    run(
        two_dots(m, n, d, dtype, hold=hold),
        tmp_path,
        4,
        {"X": x, "Y": y, "Z": z, "O": o, "L": l},
        {"c": c},
        {"B": 1, "H": 2, "M": rows, "N": cols},
    )
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


PAD = SmemLayout(64, 8)
CASES = {
    "swizzled f16 to accumulator": (f16, (64, 64), native_smem(64, 2), blocked(64, 64, 4, 8), mma_c(64, 64)),
    "accumulator to rows": (bf16, (128, 64), native_smem(64, 2), mma_c(128, 64), blocked(128, 64, 4, 8)),
    "two panels": (f16, (64, 128), native_smem(128, 2), mma_c(64, 128), blocked(64, 128, 4, 8)),
    "padded f32": (f32, (32, 64), SmemLayout(64, 4), blocked(32, 64, 4, 4), blocked(32, 64, 4, 2)),
    "padded f16": (f16, (64, 64), PAD, mma_c(64, 64, (2, 2)), blocked(64, 64, 4, 4)),
    "swizzle 32": (f16, (64, 16), native_smem(16, 2), blocked(64, 16, 4, 4), mma_a(64, 16)),
    "swizzle 64, integers": (i32, (64, 16), native_smem(16, 4), blocked(64, 16, 4, 4), blocked(64, 16, 4, 1)),
    "ldmatrix a": (f16, (128, 64), native_smem(64, 2), blocked(128, 64, 4, 8), mma_a(128, 64), "ldmatrix"),
    "ldmatrix a, padded": (f16, (64, 64), PAD, blocked(64, 64, 4, 8), mma_a(64, 64), "ldmatrix"),
    "ldmatrix b": (f16, (64, 128), native_smem(128, 2), blocked(64, 128, 4, 8), mma_b(64, 128), "ldmatrix", False, True),
    "ldmatrix b, stored transposed": (
        bf16,
        (32, 128),
        native_smem(128, 2),
        blocked(32, 128, 4, 8),
        mma_b(128, 32),
        "ldmatrix",
        True,
        False,
    ),
    "ldmatrix a, stored transposed": (
        f16,
        (64, 64),
        native_smem(64, 2),
        blocked(64, 64, 4, 8),
        mma_a(64, 64),
        "ldmatrix",
        True,
        True,
    ),
    "ldmatrix b over warps": (
        f16,
        (64, 32),
        native_smem(32, 2),
        blocked(64, 32, 4, 8),
        mma_b(64, 32, (1, 4)),
        "ldmatrix",
        False,
        True,
    ),
    "plain transposed": (f16, (32, 64), native_smem(64, 2), blocked(32, 64, 4, 8), blocked(64, 32, 4, 2), "ld_shared", True),
    "plain transposed f32": (f32, (32, 64), SmemLayout(64, 1), blocked(32, 64, 4, 4), blocked(64, 32, 4, 4), "ld_shared", True),
    "at run time": (
        f16,
        (32, 64),
        native_smem(128, 2),
        blocked(32, 64, 4, 8),
        mma_c(32, 64, (2, 2)),
        "ld_shared",
        False,
        False,
        True,
    ),
    "ldmatrix at run time": (f16, (64, 64), native_smem(128, 2), mma_c(64, 64), mma_a(64, 64), "ldmatrix", False, False, True),
    "at run time f32": (
        f32,
        (32, 32),
        SmemLayout(64, 4),
        blocked(32, 32, 4, 4),
        blocked(32, 32, 4, 2),
        "ld_shared",
        False,
        False,
        True,
    ),
    "atomics": (f16, (64, 64), native_smem(64, 2), blocked(64, 64, 4, 8), mma_c(64, 64), "ld_shared", False, False, False, "add"),
}


@pytest.mark.parametrize("case", CASES)
def test_through_shared(case, tmp_path):
    """Every element arrives where its coordinates say, through each pair of layouts; with rows and columns cut off by guards."""
    dtype, shape, *_ = args = CASES[case]
    transposed = args[6] if len(args) > 6 else False
    k = through_shared(*args)
    for cut in (0, 3):
        x = np.random.default_rng(5).integers(-100, 100, (shape[0] - cut, shape[1] - 2 * cut)).astype(np.float32)
        out_shape = shape[::-1] if transposed else shape
        x, y = stored(x, dtype), np.zeros(out_shape, stored(x, dtype).dtype)
        run(k, tmp_path, 1, {"X": x, "Y": y}, {"where": shape[0]}, dict(zip("RCPQ", x.shape + y.shape)))
        want = np.zeros(shape, x.dtype)
        want[: x.shape[0], : x.shape[1]] = x
        np.testing.assert_array_equal(y, want.T if transposed else want)


def test_half_math(tmp_path):
    m, h = 70, np.float16
    x = np.random.default_rng(6).standard_normal((m, 64)).astype(h)
    y, t = np.zeros_like(x), np.zeros(64, np.float32)
    run(half_math(), tmp_path, 3, {"X": x, "Y": y, "T": t}, {}, {"M": m})
    w = x * x + h(0.1)
    w = w * (w + x)
    w = np.where(np.arange(64)[None] <= (np.arange(m) % 32)[:, None], w, x)
    odd = (np.arange(m) // 32 % 2 == 1)[:, None]
    np.testing.assert_array_equal(y, np.where(odd, -w, np.maximum(w, x)))
    np.testing.assert_array_equal(t, np.arange(64) * 8.0)


def test_small_shapes(tmp_path):
    x = np.random.default_rng(7).standard_normal(128).astype(np.float32)
    y, z = np.zeros(192, np.float32), np.zeros(4, np.float32)
    run(small_shapes(), tmp_path, 1, {"X": x, "Y": y, "Z": z}, {}, {"N": 192})
    np.testing.assert_array_equal(y, np.concatenate([x, x[64:]]))
    np.testing.assert_allclose(z, [0, 0, 0, x.sum(dtype=np.float64)], rtol=1e-5)


@fc.kernel
def weights_of_rows(X: "f32[M, N]", Y: "out f32[M, N]", *, scale: "f32 > 0"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    m, l = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        x = fc.where(cols.valid, fc.load(X[rows, cols]) * scale, -fc.inf)
        top = fc.maximum(m, fc.max(x, axis=1))
        l <<= l * fc.exp(m - top) + fc.sum(fc.exp(x - top), axis=1)
        m <<= top
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        fc.store(Y[rows, cols], fc.exp(fc.load(X[rows, cols]) * scale - m) / l)


@pytest.mark.skipif(not CONTRACT, reason="the CPU has no multiply-add")
def test_exponents_of_large_numbers_are_differences(tmp_path):
    """exp(x - top) is one multiply-add per element, whose product is exact: beside a rounded top * scale, equal elements would differ."""
    rng, rows = np.random.default_rng(0), np.array([1.0, 77.7, 8191.0, 8300.0, 1.3e5, 2.77e8, 1.28e10, 1.134e12, -1.134e12, 3e25])
    x = (rows[:, None] + (np.abs(rows) < 1e6)[:, None] * rng.standard_normal((len(rows), 50))).astype(np.float32)
    x[:, 7] = -1e30
    y = np.full_like(x, np.nan)
    p = weights_of_rows.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 32}))
    run_on_host(print_cuda(p.machine, TARGETS["sm_89"]), tmp_path, 1, {"X": x, "Y": y}, {"scale": 0.0883}, {"M": len(rows), "N": 50})
    a = x.astype(np.float64) * np.float64(np.float32(0.0883))
    want = np.exp(a - a.max(1, keepdims=True))
    np.testing.assert_allclose(y, want / want.sum(1, keepdims=True), rtol=1e-3, atol=1e-7)


@fc.kernel
def divided(A: "T[N]", B: "T[N]", Q: "out T[N]", R: "out T[N]"):
    n = fc.grid(fc.tile(A.N, "BLOCK"))
    a, b = fc.load(A[n]), fc.load(B[n])
    fc.store(Q[n], a // b)
    fc.store(R[n], a % b)


@pytest.mark.parametrize("dtype, much", [(np.int32, 2**20), (np.int64, 2**40)], ids=["i32", "i64"])
def test_integers_are_divided_downwards_whatever_their_signs(dtype, much, tmp_path):
    p = divided.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK": 128}, warps=4), check=False, T=fc.i32 if dtype == np.int32 else fc.i64)
    rng = np.random.default_rng(0)  # (whole tiles: a zero beside them, which a GPU divides by, ends a program of the CPU)
    a, b = rng.integers(-much, much, 384).astype(dtype), rng.integers(1, 99, 384).astype(dtype)
    b *= rng.choice([-1, 1], 384).astype(dtype)
    a[:8], b[:8] = [7, -7, 7, -7, 0, 6, -6, 6], [2, 2, -2, -2, -3, -3, 3, 3]
    q, r = np.zeros_like(a), np.zeros_like(a)
    run_on_host(print_cuda(p.machine, TARGETS["sm_89"]), tmp_path, 3, {"A": a, "B": b, "Q": q, "R": r}, {}, {"N": 384})
    np.testing.assert_array_equal(q, a // b)
    np.testing.assert_array_equal(r, a % b)
    assert p.built


@fc.kernel
def cut_and_divided(A: "i32[N]", Q: "out i32[N]", *, d: "i32", to="u32"):
    fc.positive(d)
    (tile,) = fc.grid(fc.tile(A.N, "BLOCK"))
    n = tile.index
    x = {"u32": n.to(fc.u32) * 2654435761, "i64": n.to(fc.i64) * 3000000000, "i8": n.to(fc.i8),
         "i32": n * 1000003 + 5 * 10**8}[to]
    fc.store(Q[tile], fc.load(A[tile]) * 0 + x.to(fc.i32) // d)


@pytest.mark.parametrize("to", ["u32", "i64", "i8", "i32"])
def test_what_is_cut_to_fewer_bits_is_divided_as_what_may_be_negative(to, tmp_path):
    p = cut_and_divided.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK": 128}, warps=4), check=False, to=to)
    a, q = np.zeros(3840, np.int32), np.zeros(3840, np.int32)
    run_on_host(print_cuda(p.machine, TARGETS["sm_89"]), tmp_path, 30, {"A": a, "Q": q}, {"d": 7}, {"N": len(a)})
    n = np.arange(len(a), dtype=np.int64)
    x = {"u32": n * 2654435761, "i64": n * 3000000000, "i8": n.astype(np.int8), "i32": n * 1000003 + 5 * 10**8}[to].astype(np.int32)
    assert (x < 0).any()
    np.testing.assert_array_equal(q, x // 7)
