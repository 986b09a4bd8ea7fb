"""Tensors whose rows, strides or pointers are not multiples of 16 bytes, and scalars at the ends of 32 bits, on the GPU."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
T, M, N, D, B, H = None, None, None, None, None, None  # names in annotations


@fc.kernel
def gram(X: "T[M, D]", Z: "T[N, D]", Y: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(Z.N, "BN"))
    fc.store(Y[rows, cols], fc.dot(fc.load(X[rows]), fc.load(Z[cols]).T))


@pytest.mark.parametrize("copy", ["cp_async", "vector"])
@pytest.mark.parametrize("d", [8, 9, 10, 12, 20, 28])
def test_rows_of_any_pitch(d, copy):
    p = gram.compile(target=fc.gpu_target().rstrip("a"), schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, copy=copy), T=fc.f16, D=d)
    x, z = (torch.randn(n, d, device="cuda").half() for n in (300, 200))
    y = torch.full((300, 200), float("nan"), device="cuda")
    p(x, z, y)
    want = x.double() @ z.double().T
    assert (y.double() - want).norm() / want.norm() < 1e-6


@fc.kernel
def plane(Q: "f16[B, H, M, 10, 4]", W: "i32[M, 10]", O: "out f32[B, H, M, 10]", *, r: "i32"):
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BM"))
    fc.store(O[b, h, rows], fc.load(Q[b, h, rows, :, r]).to(fc.f32) * fc.load(W[rows]).to(fc.f32))


def test_a_strided_plane_beside_odd_rows():
    p = plane.compile(target=fc.gpu_target(), schedule=fc.Schedule(tiles={"BM": 32}, warps=2))
    q, w = torch.randn(2, 3, 100, 10, 4, device="cuda").half(), torch.randint(0, 9, (100, 10), device="cuda", dtype=torch.int32)
    for r in range(4):
        o = torch.full((2, 3, 100, 10), float("nan"), device="cuda")
        p(q, w, o, r=r)
        assert torch.equal(o, q[..., r].float() * w)


@pytest.mark.parametrize("n", [1024, 1001, 1002])
def test_columns_whose_number_is_not_known(n, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    example = importlib.import_module("softmax").example
    p = example.compile(target=fc.gpu_target())
    x = torch.randn(50, n, device="cuda").half()
    y = torch.full_like(x, float("nan"))
    p(x, y)
    assert (y.double() - torch.softmax(x.double(), 1)).abs().max() < 1e-3


def views(d):
    """(name, tensor [1, 2, 100, d]) of views that no bulk copy can read."""
    wide = torch.randn(1, 2, 100, d + 2, device="cuda").half()
    flat = torch.randn(2 * 100 * d + 8, device="cuda").half()
    return {"stride": wide[..., :d], "stride and pointer": wide[..., 1:d + 1], "pointer": flat[1:1 + 200 * d].view(1, 2, 100, d),
            "four bytes": flat[2:2 + 200 * d].view(1, 2, 100, d)}


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_views(d, causal):
    plain = torch.randn(1, 2, 100, d, device="cuda").half()
    for name, odd in views(d).items():
        for q, k, v in ((odd, plain, plain), (plain, odd, plain), (plain, plain, odd), (odd, odd, odd)):
            want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal)
            for _ in range(2):
                assert (fc.attention(q, k, v, causal=causal).double() - want).abs().max() < 4e-3, name
    out = views(d)["stride and pointer"]
    kept = out.clone()
    fc.attention(plain, plain, plain, out=out)
    want = torch.nn.functional.scaled_dot_product_attention(plain.double(), plain.double(), plain.double())
    assert (out.double() - want).abs().max() < 4e-3 and not torch.equal(kept, out)


def test_bulk_copies_are_refused_what_they_cannot_read():
    if fc.gpu_target() != "sm_90a":
        pytest.skip("needs TMA")
    p = gram.compile(target="sm_90a", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, copy="tma", math="wgmma"), T=fc.f16, D=64)
    x, y = torch.randn(128, 68, device="cuda").half()[:, :64], torch.empty(128, 128, device="cuda")
    with pytest.raises(FcError, match="axis 0 of argument `X` is not aligned") as e:
        p(x, x.contiguous(), y)
    assert "X.contiguous()" in e.value.hint


@pytest.mark.parametrize("arch", ["sm_80", "own"])
@pytest.mark.parametrize("window", [2**31 - 1, 2**31 - 2, 2**31 - 63, 100, 1])
def test_windows_of_any_size(window, arch, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    variants = importlib.import_module("variants")
    own = fc.gpu_target()
    target = own if arch == "own" else own.rstrip("a")
    arguments = {**variants.inputs(np.random.default_rng(0)), "window": window}
    want = variants.reference(**arguments)
    got = variants.example.compile(target=target).run(**arguments)
    for name, x in want.items():
        assert abs(got[name] - x).max() < 5e-3
