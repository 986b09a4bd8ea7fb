"""Blocks that share a loop's iterations on the GPU: right at odd sizes, the same in every launch, and beside what needs every part of a loop."""

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import example, gemm_nt, norm_gemm

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
BULK = "copy=tma, stages=2, epilogue=direct"


@pytest.fixture(autouse=True)
def hopper():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("clusters are Hopper's")


def same(program, arguments, out):
    """The output of five launches, which agree bit by bit."""
    first, *others = [np.asarray(program.run(**arguments)[out]) for _ in range(5)]
    for other in others:
        np.testing.assert_array_equal(first.view(np.uint16), other.view(np.uint16))
    return first.astype(np.float64)


@pytest.mark.parametrize("parts", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("m, n, k", [(16, 4096, 4096), (1, 136, 8), (70, 1000, 1016), (2050, 520, 2048)])
@pytest.mark.parametrize("how", ["BM: 64, BN: 32, BK: 64}, warps=4, math=wgmma, min_blocks=2", "BM: 16, BN: 64, BK: 64}, warps=4, math=mma"])
def test_a_product_is_right_and_the_same_each_time(how, m, n, k, parts):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, k)).astype(np.float16) for rows in (m, n))
    program = gemm_nt.compile(target="sm_90a", schedule=fc.Schedule.parse(f"tiles={{{how}, {BULK}, parts={parts}"), T=fc.f16)
    want = a.astype(np.float64) @ b.astype(np.float64).T
    assert np.abs(same(program, {"A": a, "B": b}, "C") - want).max() < 2e-3 * np.abs(want).max()


@pytest.mark.parametrize("epilogue", ["direct", "tma"])
def test_what_stands_behind_a_shared_loop_sees_whole_sums(epilogue):
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal((n, 1024)).astype(np.float16) for n in (200, 264))
    g = rng.uniform(0.5, 1.5, 1024).astype(np.float32)
    text = f"tiles={{BM: 64, BN: 64, BK: 64}}, warps=4, math=wgmma, copy=tma, stages=2, epilogue={epilogue}, parts=4"
    program = norm_gemm.compile(target="sm_90a", schedule=fc.Schedule.parse(text), T=fc.f16)
    wide = x.astype(np.float64)
    want = (wide * g) @ w.astype(np.float64).T / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5)
    assert np.abs(same(program, {"X": x, "W": w, "G": g}, "Y") - want).max() < 3e-3 * np.abs(want).max()


def test_four_bit_weights():
    spec = example("int4_gemm").spec
    rng = np.random.default_rng(2)
    x, w, s = rng.standard_normal((16, 2, 1040)), rng.integers(0, 256, (1000, 1040)), rng.uniform(0.05, 0.1, 1000)
    text = f"tiles={{BLOCK_M: 16, BLOCK_N: 128, BLOCK_K: 128}}, warps=4, math=wgmma, {BULK}, parts=4, pdl=True"
    program = spec.compile(target="sm_90a", schedule=fc.Schedule.parse(text), T=fc.f16)
    held = {"X": x.astype(np.float16), "W": w.astype(np.uint8), "S": s.astype(np.float32)}
    wide = held["X"].astype(np.float64)
    want = (wide[:, 0] @ (w % 16 - 8).T + wide[:, 1] @ (w // 16 - 8).T) * held["S"]
    assert np.abs(same(program, held, "Y") - want).max() < 2e-3 * np.abs(want).max()
