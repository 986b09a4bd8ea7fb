"""Clusters on the GPU: the example's product and attention, beside the same schedules without clusters, at odd tile counts."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import attention

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def hopper():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("clusters are Hopper's")


def both(spec, schedule, cluster, arguments, **binding):
    """(outputs with clusters, without)."""
    out = []
    for text in (f"{schedule}, cluster={{{cluster}}}", schedule):
        program = spec.compile(target="sm_90a", schedule=fc.Schedule.parse(text), **binding)
        for _ in range(3):  # barriers in a wrong phase show when the memory was used before
            got = program.run(**arguments)
        out.append(got)
    return out


@pytest.mark.parametrize("persistent", ["none", "static"])
@pytest.mark.parametrize("cluster", ["rows: 2", "cols: 2", "rows: 4", "cols: 8"])
@pytest.mark.parametrize("m, n, k", [(128, 128, 64), (1000, 520, 264), (4096, 4096, 1024), (2050, 4100, 72)])
def test_a_product_is_the_same_bit_by_bit(m, n, k, cluster, persistent, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("gemm").example
    rng = np.random.default_rng(0)
    arguments = {"A": (rng.standard_normal((m, k)) / 8).astype(np.float16), "B": (rng.standard_normal((n, k)) / 8).astype(np.float16),
                 "bias": rng.standard_normal(n).astype(np.float32)}
    schedule = ("tiles={BLOCK_M: 128, BLOCK_N: 128, BLOCK_K: 64}, warps=8, math=wgmma, copy=tma, stages=4, epilogue=quad, "
                f"persistent={persistent}")
    got, want = both(example.spec, schedule, cluster, arguments, **example.binding)
    np.testing.assert_array_equal(got["C"], want["C"])
    x = torch.from_numpy(arguments["A"]).cuda().float() @ torch.from_numpy(arguments["B"]).cuda().float().T
    exact = torch.nn.functional.gelu(x + torch.from_numpy(arguments["bias"]).cuda()).cpu().numpy()
    np.testing.assert_allclose(np.asarray(got["C"], np.float32), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("persistent", ["none", "static"])
@pytest.mark.parametrize("m, n", [(1, 1), (130, 200), (2048, 2048), (1000, 333)])
def test_attention_is_the_same_bit_by_bit(m, n, persistent):
    rng = np.random.default_rng(0)
    draw = lambda h, s: rng.standard_normal((2, h, s, 64)).astype(np.float16)
    arguments = {"Q": draw(4, m), "K": draw(2, n), "V": draw(2, n), "scale": 0.125}
    schedule = ("tiles={BLOCK_M: 128, BLOCK_N: 64}, warps=8, math=wgmma, copy=tma, stages=2, late=acc, vote=True, epilogue=quad, "
                f"persistent={persistent}")
    got, want = both(attention, schedule, "rows: 2", arguments, T=fc.f16, D=64, E=64, mask="none", lazy=8.0)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
