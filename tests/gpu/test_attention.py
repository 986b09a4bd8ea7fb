"""Attention on the GPU: dtypes, head sizes, masks, grouped heads, odd lengths, strides and instruction families against float64."""

import dataclasses

import pytest

import fcgen as fc
from benchmarks.pool import LAZY, Job, build, launcher
from benchmarks.random_configs import Config, Guarded, inputs, reference, run, verdict
from fcgen.kernels.schedules import pick

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")

BASE = Config(0, "f16", b=2, h=4, g=2, m=130, n=200, d=64, e=64, causal=False, scale=None, spread=1.0, layouts=("plain",) * 4)
CASES = {
    "plain": {}, "bf16": {"dtype": "bf16"}, "top_left": {"causal": "top_left"}, "bottom_right": {"causal": "bottom_right"},
    "no_keys": {"causal": "bottom_right", "m": 200, "n": 70}, "one_row": {"m": 1}, "one_key": {"n": 1}, "one": {"m": 1, "n": 1},
    "odd": {"m": 77, "n": 333, "causal": "top_left"}, "mqa": {"h": 8, "g": 1}, "same_heads": {"h": 3, "g": 3},
    "d16": {"d": 16, "e": 16}, "d72_e40": {"d": 72, "e": 40}, "d256": {"d": 256, "e": 256},
    "d128": {"d": 128, "e": 128, "causal": "top_left"},
    "bshd": {"layouts": ("bshd",) * 4}, "padded": {"layouts": ("padded",) * 4}, "sliced": {"layouts": ("sliced",) * 4},
    "broadcast": {"layouts": ("broadcast", "broadcast", "plain", "bshd")}, "scale": {"scale": 0.3}, "negative_scale": {"scale": -0.1},
}


@pytest.mark.parametrize("name", CASES)
def test_library(name):
    assert run(dataclasses.replace(BASE, **CASES[name]))[1] == []


@pytest.mark.parametrize(("dtype", "d", "n", "x"), [("bfloat16", 64, 1, 133120.0), ("bfloat16", 128, 40, 133120.0), ("float16", 128, 40, 1e4),
                                                    ("float16", 64, 3000, 6e4), ("bfloat16", 256, 700, -1e9), ("float16", 64, 300, 300.0)])
@pytest.mark.parametrize("target", ["own", "mma"])
def test_scores_of_any_size(dtype, d, n, x, target):
    """Equal scores weigh the same however large they are, beside rows of scores of other sizes."""
    schedule = None if target == "own" else pick("sm_90", d)
    q, k, v = (torch.randn(1, 2, length, d, device="cuda", dtype=getattr(torch, dtype)) for length in (300, n, n))
    q[:, :, ::2], k[...] = x, abs(x)
    k[:, 1, ::3] = abs(x) / 2
    s = q.double() @ k.double().transpose(2, 3) * d**-0.5
    out, lse = fc.attention(q, k, v, return_lse=True, schedule=schedule)
    want = s.softmax(-1) @ v.double()
    rows = slice(0, None, 2)  # the scores of the others are sums of large numbers with both signs: their own rounding shows
    assert (out.double() - want)[:, :, rows].abs().max() < (4e-3 if dtype == "float16" else 3e-2)
    assert out.isfinite().all()
    torch.testing.assert_close(lse[:, :, rows].double(), s.logsumexp(-1)[:, :, rows], rtol=1e-5, atol=1e-3)


SCHEDULES = {
    "wmma": (None, LAZY), "wmma_two": (fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, math="wmma"), 0.0),
    "mixed": (fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, math={"s": "wmma", "acc": "fma"}, copy="vector", stages=1), 0.0),
    "fma": (fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 64}, math="fma", copy="vector", stages=1), 0.0),
    "scalar": (fc.Schedule(tiles={"BLOCK_M": 4, "BLOCK_N": 64}, math="fma", copy="scalar", epilogue="direct", stages=1), 0.0),
    "deep": (fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, stages=4), 0.0),
    "ahead": (fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, stages=1, ahead=True), 0.0),
}


@pytest.mark.parametrize("causal", ["none", "top_left"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, dtype, causal):
    schedule, lazy = SCHEDULES[name]
    c = dataclasses.replace(BASE, dtype=dtype, causal=False if causal == "none" else causal, n=333)
    arch = fc.gpu_target()
    mask = c.kernel(arch)[3]
    made = build(Job(schedule or pick(arch, 64, "wmma", mask), mask=mask, dtype=dtype, lazy=lazy, arch=arch))
    assert made.error is None, made.error
    q, k, v = inputs(c)
    out, lse = Guarded((c.b, c.h, c.m, c.e), q.dtype), Guarded((c.b, c.h, c.m), torch.float32)
    launcher(made)({"Q": q, "K": k, "V": v, "O": out.tensor, "LSE": lse.tensor, "scale": c.d**-0.5})
    torch.cuda.synchronize()
    assert verdict(c, (out.tensor, lse.tensor), reference(c, q, k, v))[1] == []
    assert (out.damage(), lse.damage()) == (0, 0)


def test_repeats_are_bit_identical():
    assert run(dataclasses.replace(BASE, causal="bottom_right", n=1025), repeats=50)[1] == []


@pytest.mark.alone
def test_other_streams():
    """Work is ordered on torch's current stream, and on the one that a program is given."""
    from fcgen.attend.forward import attention, compiled

    q, k, v = (torch.randn(1, 2, 2048, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    program = compiled("f16", 64, 64, "none", True, fc.gpu_target())
    lse = torch.empty(q.shape[:3], device="cuda")
    want, late, out = attention(q, k, v), torch.zeros_like(q), torch.empty_like(q)
    want_too = torch.empty_like(q)
    program(q, k, v, want_too, lse, scale=0.125)
    torch.cuda.synchronize()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(q)  # on the side stream, after the pause
        attention(late, k, v, out=out)
    assert not side.query(), "the call waited for the stream"
    side.synchronize()
    assert torch.equal(out, want)

    late.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(q)
    program(late, k, v, out, lse, scale=0.125, stream=side.cuda_stream)
    assert not side.query(), "the call waited for the stream"
    side.synchronize()
    assert torch.equal(out, want_too)


def test_cuda_graph():
    from fcgen.attend.forward import attention

    q, k, v = (torch.randn(1, 2, 256, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    attention(q, k, v)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v)
    q.copy_(torch.randn_like(q))
    graph.replay()
    assert torch.equal(out, attention(q, k, v))
