"""Elements of 8 bits, unsigned integers and sums along axes on the GPU, against what the interpreter says or float64."""

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.types import DTYPES

from ..types import specs

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
TARGET = fc.gpu_target() if torch.cuda.is_available() else "sm_90a"
HOPPER = TARGET == "sm_90a"


def same(a, b):
    return bool(((a == b) | (np.isnan(a.astype(float)) & np.isnan(b.astype(float)))).all())


@pytest.mark.parametrize("a", ["f32", "f16", "i8", "u8", "f8e4m3", "f8e5m2", "u32", "i32"])
def test_conversions(a):
    """Every bit pattern of the narrow types, and floats that are ties, too large, infinite or NaN; to every other type."""
    dtype = DTYPES[a]
    x = np.arange(256, dtype=np.uint8).view(dtype.stored).astype(dtype.np_dtype) if dtype.bits == 8 else specs.numbers(a, (2048,))
    x = x.reshape(-1, 32)
    p = specs.to_all.compile(target=TARGET, schedule=fc.Schedule(tiles={"BM": 16, "BN": 32}, warps=1), check=False, T=dtype)
    got, want = p.run(X=x), p.interpret(X=x)
    for n, b in enumerate(specs.TO):
        assert same(got[f"Y{n}"], want[f"Y{n}"]), (a, b)


def test_torch_tensors():
    """Tensors of torch's own dtypes are taken as they are."""
    for name, ours in (("int8", "i8"), ("uint8", "u8"), ("float8_e4m3fn", "f8e4m3"), ("float8_e5m2", "f8e5m2")):
        x = torch.randint(0, 120, (40, 64), device="cuda", dtype=torch.uint8).view(getattr(torch, name))
        y = torch.empty(40, 64, device="cuda")
        schedule = fc.Schedule(tiles={"BM": 16, "BN": 32}, warps=1)
        specs.convert.compile(target=TARGET, schedule=schedule, check=False, TI=DTYPES[ours], TO=fc.f32)(x, y)
        assert torch.equal(y, x.float())


def test_philox_bit_by_bit():
    p = specs.philox.compile(target=TARGET, schedule=fc.Schedule(tiles={"BM": 128}, warps=4), check=False)
    x = torch.zeros(1000, 4, dtype=torch.int32, device="cuda").view(torch.uint32)
    p(X=x, key=0xDEADBEEF, offset=7)
    assert (x.view(torch.int32).cpu().numpy().view(np.uint32) == specs.philox_of_numpy(1000, 0xDEADBEEF, 7)).all()


@pytest.mark.parametrize("name", ["i8", "u8", "i32", "u32"])
def test_integers_wrap(name):
    rng, dtype = np.random.default_rng(0), DTYPES[name]
    a = rng.integers(*dtype.range, 1000, endpoint=True).astype(dtype.stored)
    b = np.where(rng.random(1000) < 0.7, rng.integers(0, 40, 1000), a[::-1]).astype(dtype.stored)
    p = specs.integer.compile(target=TARGET, schedule=fc.Schedule(tiles={"BM": 64}, warps=1), check=False, T=dtype, K=len(specs.OPS), fns=tuple(specs.OPS.values()))
    got = p.run(A=a, B=b)["Y"]
    for n, fn in enumerate(specs.OPS):
        assert (got[n] == specs.meaning(fn, a, b)).all(), fn


@pytest.mark.parametrize(("name", "axis"), [("f16", 1), ("f32", 0), ("i32", 0), ("u32", 1), ("i8", 1), ("f8e4m3", 1)])
def test_sums(name, axis):
    dtype, rng = DTYPES[name], np.random.default_rng(0)
    x = rng.standard_normal((50, 32, 64)) if dtype.is_float else rng.integers(*dtype.range, (50, 32, 64), endpoint=True)
    x = specs.to_dtype(x, dtype)
    got = specs.sums.compile(target=TARGET, schedule=fc.Schedule(warps=4), check=False, T=dtype, R=32, C=64, axis=axis).run(X=x)
    near = {"f32": 1e-5, "f16": 2e-3, "f8e4m3": 0.13}.get(name, 0)
    for n, w in specs.expected(x, name, axis).items():
        np.testing.assert_allclose(got[n].astype(float), w.astype(float), rtol=near, atol=4 * near, err_msg=n)


@pytest.mark.parametrize("name", ["i8", "f8e4m3", "f8e5m2"])
def test_keys_of_8_bits(name):
    rng = np.random.default_rng(0)
    p = specs.eight.compile(target=TARGET, schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4), check=False, TK=DTYPES[name], D=64)
    q = rng.standard_normal((2, 200, 64)).astype(np.float16)
    (k, ks), (v, vs) = (specs.scaled(rng, name, (2, 300, 64)) for _ in range(2))
    s = np.einsum("hmd,hnd->hmn", q.astype(np.float64), k.astype(np.float64) * ks[..., None]) * 0.125
    w = np.exp(s - s.max(2, keepdims=True))
    want = np.einsum("hmn,hnd->hmd", w / w.sum(2, keepdims=True), v.astype(np.float64) * vs[..., None])
    got = p.run(Q=q, K=k, KS=ks, V=v, VS=vs)["O"]
    assert np.abs(got - want).max() < 4e-3 * np.abs(want).max()


def test_keys_of_4_bits():
    rng = np.random.default_rng(0)
    q, (k, ks) = rng.standard_normal((2, 100, 2, 32)).astype(np.float16), specs.scaled(rng, "u8", (2, 300, 32))
    p = specs.four.compile(target=TARGET, schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4), check=False, TK=fc.u8, E=32)
    whole = np.concatenate([k & 15, k >> 4], axis=2).astype(np.float64) - 8
    want = np.einsum("hmd,hnd->hmn", q.reshape(2, 100, 64).astype(np.float64), whole * ks[..., None])
    np.testing.assert_allclose(p.run(Q=q, K=k, KS=ks)["S"], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("math", ["mma", "wgmma"] if HOPPER else ["mma"])
@pytest.mark.parametrize(("name", "widths"), [("i8", (16, 256)), ("u8", (64,)), ("f8e4m3", (96, 256)), ("f8e5m2", (48,))])
def test_products(name, widths, math):
    """Integers exactly; floats of 8 bits within what the tensor core's sums of products keep (about 2**-13 of the largest)."""
    dtype, (a, b, want) = DTYPES[name], specs.operands(name, 200, 280, 272)
    for cols in widths:
        schedule = fc.Schedule(tiles={"BM": 64, "BN": cols, "BK": 128}, warps=4, math=math, copy="tma" if math == "wgmma" else "cp_async")
        p = specs.product.compile(target=TARGET, schedule=schedule, check=False, T=dtype, S=dtype.computed)
        got = p.run(A=a, B=b)["C"]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max() if dtype.is_float else 0, err_msg=str(cols))


@pytest.mark.parametrize("more", [{"math": "mma"}, {"math": "wgmma", "copy": "tma"}, {"math": "wgmma", "copy": "tma", "regs_a": ("s",)}])
def test_both_products_of_8_bits(more):
    if more["math"] == "wgmma" and not HOPPER:
        pytest.skip("needs wgmma")
    given, want = specs.whole_f8_case(300, 496)
    p = specs.whole_f8.compile(target=TARGET, schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, **more), check=False, T=fc.f8e4m3, D=64)
    assert np.abs(p.run(**given)["O"] - p.interpret(**given)["O"]).max() < 2e-2 * np.abs(want).max()


@pytest.mark.parametrize(("name", "to", "more"), [
    ("i8", "i8", {"math": "wgmma", "copy": "tma", "epilogue": "tma", "persistent": "static"}),
    ("f8e4m3", "f8e4m3", {"math": "wgmma", "copy": "tma", "cluster": {"cols": 2}}), ("i8", "u8", {"math": "mma", "epilogue": "smem"})])
def test_results_of_8_bits(name, to, more):
    if more["math"] == "wgmma" and not HOPPER:
        pytest.skip("needs wgmma")
    a, b, want = specs.operands(name, 400, 512, 272)
    scale = np.linspace(0.2, 1, 400, dtype=np.float32) * np.float32(100 / np.abs(want).max())
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 64, "BK": 64}, warps=4, **more)
    p = specs.requantised.compile(target=TARGET, schedule=schedule, check=False, T=DTYPES[name], TO=DTYPES[to])
    got, told = p.run(A=a, B=b, S=scale)["C"].astype(float), p.interpret(A=a, B=b, S=scale)["C"].astype(float)
    assert (got != told).mean() < 0.02 and np.abs(got - told).max() <= (1 if to[0] != "f" else 0.13 * np.abs(told).max())
