"""Instruction records against the hardware: each wrapper's result is what its record says, on random registers."""

import numpy as np
import pytest

from fcgen.backends.targets.ada import INSTRS
from fcgen.ir.elementwise import to_dtype
from fcgen.ir.types import DTYPES

from . import micro

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

THREADS, BLOCKS = 128, 64
COUNT = THREADS * BLOCKS
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}
rng = np.random.default_rng(0)


def gpu(x, dtype=None):
    t = torch.from_numpy(np.ascontiguousarray(x)).cuda()
    return t if dtype is None else t.to(dtype)


def values(low=-4.0, high=4.0):
    return rng.uniform(low, high, COUNT).astype(np.float32)


def apply(name, *inputs, out=torch.float32):
    return micro.launch(name, torch.empty(COUNT, dtype=out, device="cuda"), *inputs, threads=THREADS, blocks=BLOCKS)


@pytest.mark.parametrize("name", [n for n, i in INSTRS.items() if i.shape])
def test_matrix_products(name):
    """The result's layout is the record's; its sums are within a few float32 roundings of exact ones."""
    i = INSTRS[name]
    dtype = DTYPES[i.dtype]
    draw = lambda n: to_dtype(rng.standard_normal((32, n)) if dtype.is_float else rng.integers(*dtype.range, (32, n)), dtype)
    a, b, c = draw(i.a.regs), draw(i.b.regs), to_dtype(10 * rng.standard_normal((32, i.c.regs)), dtype.computed)
    raw = lambda x: gpu(x.astype(dtype.stored).view(np.int32))
    got = micro.launch(name, gpu(c), raw(a), raw(b), threads=32)
    np.testing.assert_allclose(got, i.effect(a, b, c), rtol=0, atol=5e-4 if dtype.is_float else 0)


@pytest.mark.parametrize("name", [n for n, i in INSTRS.items() if n.startswith("ldmatrix")])
def test_matrix_loads(name):
    count = int(name.split("_")[1][1:])
    blocks = rng.permutation(count * 64).astype(np.int16).reshape(count, 8, 8)
    got = micro.launch(name, torch.empty((32, 2 * count), dtype=torch.int16, device="cuda"), gpu(blocks), threads=32)
    np.testing.assert_array_equal(got, INSTRS[name].effect(blocks))


def test_every_effect_is_tested():
    assert {n for n, i in INSTRS.items() if i.effect} == {n for n, i in INSTRS.items() if i.shape or n.startswith("ldmatrix")}


#: name -> (exact function, arguments, largest relative error, largest absolute error), as the records' texts promise
NUMERIC = {
    "exp2_approx": (np.exp2, (-20, 20), 2.0**-22, 0), "log2_approx": (np.log2, (0.01, 100), 2.0**-22, 2.0**-21.5),
    "rcp_approx": (lambda x: 1 / x, (0.01, 100), 2.0**-22, 0), "sqrt_approx": (np.sqrt, (0, 100), 2.0**-22, 0),
    "rsqrt_approx": (lambda x: x**-0.5, (0.01, 100), 2.0**-22, 0), "sigmoid_approx": (lambda x: 1 / (1 + np.exp(-x)), (-8, 8), 2e-6, 0),
    "sin_approx": (np.sin, (-100, 100), 0, 1e-6), "cos_approx": (np.cos, (-100, 100), 0, 1e-6), "tanh_approx": (np.tanh, (-8, 8), 2.0**-10.9, 0),
}


@pytest.mark.parametrize("name", NUMERIC)
def test_approximations(name):
    exact, (low, high), rtol, atol = NUMERIC[name]
    x = values(low, high)
    np.testing.assert_allclose(apply(name, gpu(x)), exact(x.astype(np.float64)), rtol=rtol, atol=atol)


def test_division():
    a, b = values(), values(0.1, 9)
    np.testing.assert_allclose(apply("div_approx", gpu(a), gpu(b)), a.astype(np.float64) / b, rtol=2.0**-22)


@pytest.mark.parametrize("kind", TORCH)
def test_sixteen_bits(kind):
    """Rounding, packing (first in the low half) and unpacking are torch's, to the bit."""
    lo, hi = values(-1e3, 1e3), values(-1e3, 1e3)
    halves = torch.stack([gpu(lo, TORCH[kind]), gpu(hi, TORCH[kind])], 1)
    words = halves.view(torch.int32).cpu().numpy().ravel()
    np.testing.assert_array_equal(apply(f"pack_{kind}", gpu(lo), gpu(hi), out=torch.int32), words)
    np.testing.assert_array_equal(apply(f"round_{kind}", gpu(lo)), halves[:, 0].float().cpu().numpy())
    np.testing.assert_array_equal(apply(f"to_f32_{kind}", halves[:, 0].contiguous()), halves[:, 0].float().cpu().numpy())
    np.testing.assert_array_equal(apply(f"at_{kind}", halves), halves.flatten()[:COUNT].float().cpu().numpy())
    np.testing.assert_array_equal(apply("half_of", halves, out=torch.int16), halves.view(torch.int16).flatten()[:COUNT].cpu().numpy())


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_two_halves(name):
    """As in floats and rounded; subnormal results too."""
    a, b = (values(-300, 300).astype(np.float16) for _ in range(2))
    a[::5] *= np.float16(1e-6)
    words = lambda x: gpu(np.stack([x, x[::-1]], 1).copy().view(np.int32).ravel())
    got = apply(f"{name}_f16x2", words(a), words(b), out=torch.int32).view(np.float16).reshape(-1, 2)
    want = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name](a.astype(np.float32), b.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(got, np.stack([want, want[::-1]], 1))


def test_bytes_that_are_unpacked():
    """Four bits of a byte as halves less 8, the upper ones by a multiply-add."""
    w = rng.integers(0, 2**32, COUNT, dtype=np.uint32)
    for second in (0, 1):
        t = apply("spread_bytes", gpu(w.view(np.int32)), gpu(np.full(COUNT, second, np.int32)), out=torch.int32)
        pair = w.view(np.uint8).reshape(-1, 4)[:, 2 * second:2 * second + 2]
        np.testing.assert_array_equal(t.view(np.float16).reshape(-1, 2), pair + 1024.0)
        const = lambda x: gpu(np.full(2 * COUNT, x, np.float16).view(np.int32))
        got = apply("fma_f16x2", gpu(t & 0x64F064F0), const(1 / 16), const(-72), out=torch.int32)
        np.testing.assert_array_equal(got.view(np.float16).reshape(-1, 2), (pair >> 4) - 8.0)


@pytest.mark.parametrize("dtype, much", [(np.int32, 1000), (np.int64, 2**40)], ids=["i32", "i64"])
@pytest.mark.parametrize("name, exact", [("floor_div", np.floor_divide), ("floor_mod", np.mod)])
def test_integer_division(name, exact, dtype, much):
    a, b = rng.integers(-much, much, COUNT, dtype=dtype), rng.integers(1, 50, COUNT, dtype=dtype)
    b *= rng.choice([-1, 1], COUNT).astype(dtype)
    got = apply(name + ("_i64" if dtype == np.int64 else ""), gpu(a), gpu(b), out=gpu(a).dtype)
    np.testing.assert_array_equal(got, exact(a, b))


@pytest.mark.parametrize("kind", micro.SHUFFLES)
def test_shuffles(kind):
    dtype = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "f64": np.float64}[kind]
    x = rng.integers(-1000, 1000, COUNT).astype(dtype)
    for mask in (1, 2, 7, 16):
        got = apply(f"shfl_xor_{kind}", gpu(x), gpu(np.full(COUNT, mask, np.int32)), out=gpu(x).dtype)
        np.testing.assert_array_equal(got, x[np.arange(COUNT) ^ mask])


@pytest.mark.parametrize("tag, ctype, n", micro.MOVES)
def test_loads_and_stores(tag, ctype, n):
    dtype = {"f32": np.float32, "b32": np.int32, "i32": np.int32, "f64": np.float64, "i64": np.int64}[tag]
    x = gpu(rng.integers(-1000, 1000, COUNT * n).astype(dtype))
    got = micro.launch(f"move_{tag}x{n}", torch.zeros_like(x), x, threads=THREADS, blocks=BLOCKS)
    np.testing.assert_array_equal(got, x.cpu().numpy())


@pytest.mark.parametrize("size", [16, 8, 4])
def test_asynchronous_copies(size):
    x = rng.integers(0, 256, 128 * size, dtype=np.uint8)
    got = micro.launch(f"cp_async_{size}", torch.zeros(2 * 128 * size, dtype=torch.uint8, device="cuda"), gpu(x)).reshape(2, 128, size)
    rows = x.reshape(128, size)
    np.testing.assert_array_equal(got[0], rows)
    kept = np.arange(size)[None] < (np.arange(128) % (size + 1))[:, None]
    np.testing.assert_array_equal(got[1], np.where(kept, rows, 0))


def test_all_lanes_fetch_what_one_has_posted():
    x = rng.integers(-2**31, 2**31, 4, dtype=np.int64).astype(np.int32)
    got = micro.launch("posts", torch.zeros(128, dtype=torch.int32, device="cuda"), gpu(x))
    np.testing.assert_array_equal(got.reshape(4, 32), np.repeat(np.roll(x, -1), 32).reshape(4, 32))
