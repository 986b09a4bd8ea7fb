"""Dots over a grid of warps, on the GPU against float64: products, reductions that warps share, heads of 512, five products in a loop."""

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference

from ..kernels import test_backward as five
from ..kernels import test_wide_heads as wide
from ..kernels.test_backward import by_columns  # noqa: F401  (a fixture)
from ..passes import test_warp_grid as grids

pytestmark = pytest.mark.gpu
pytest.importorskip("torch")


def target(schedule: fc.Schedule) -> str:
    """The GPU's own; of the architecture's bulk copies where the schedule uses them."""
    if schedule.copy == "tma" and fc.gpu_target() != "sm_90a":
        pytest.skip("bulk copies are Hopper's")
    return fc.gpu_target()


@pytest.mark.parametrize("spec", [grids.product, grids.product_of_transposed], ids=["plain", "transposed"])
@pytest.mark.parametrize("case", grids.CASES, ids=str)
def test_products(case, spec):
    m, n, k, warps, math, grid, _ = case
    s = grids.schedule(m, n, k, warps, math, grid)
    rng = np.random.default_rng(m + n)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((3 * m + 8, 3 * k), (3 * k, 3 * n + 8)))
    p = spec.compile(target=target(s), schedule=s, T=fc.f16)
    got = p.run(A=np.ascontiguousarray(a.T), B=np.ascontiguousarray(b.T)) if spec is grids.product_of_transposed else p.run(A=a, B=b)
    assert np.abs(got["C"] - a.astype(float) @ b.astype(float)).max() < 1e-2


@pytest.mark.parametrize("m, n, warps, math, grid", grids.SHARED)
def test_reductions(m, n, warps, math, grid):
    p, args, want = grids.shared_case(m, n, warps, math, grid, target)
    got = p.run(**args)
    for name, (value, limit) in want.items():
        assert np.abs(got[name] - value).max() < limit, name


@pytest.mark.parametrize("name", wide.CASES)
def test_heads_of_512(name):
    schedule, mask = wide.CASES[name]
    p = attention.compile(target=target(schedule), schedule=schedule, T=fc.f16, D=512, E=512, mask=mask, lazy=5.5)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, s, 512)).astype(np.float16) for s in (700, 750, 750))
    got, (want, lse) = p.run(Q=q, K=k, V=v, scale=512**-0.5), attention_reference(q, k, v, mask=mask, scale=512**-0.5)
    seen = np.isfinite(lse)
    assert np.abs(got["O"] - want).max() < 2e-3 and np.abs((got["LSE"] - lse)[seen]).max() < 1e-3


@pytest.mark.parametrize("name", five.CASES)
def test_five_products(name, by_columns):  # noqa: F811
    schedule = five.CASES[name][2]
    p, args, want = five.case(name, by_columns, target(schedule), (900, 700))
    got = p.run(**args)
    for out in want:
        assert np.abs(got[out] - want[out]).max() < 5e-3, out


def test_rows_of_the_next_tile_do_not_arrive_while_this_ones_are_read(by_columns):  # noqa: F811
    """Rows outside a tensor are zeros, which wait for no memory: without a fence, one run in some tens had another tile's Delta in half of
    a warp's lanes."""
    import torch

    schedule = five.CASES["80x128"][2]
    p = by_columns.backward.compile(target=target(schedule), schedule=schedule, T=fc.f16, D=128, turned=True)
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(4, 16, 2064, 128, device="cuda", dtype=torch.float16) for _ in range(4))
    lse2, delta = (torch.randn(4, 16, 2064, device="cuda") * 0.2 + x for x in (12.0, 0.0))
    runs = []
    for _ in range(20):
        out = {"Sums": torch.zeros(q.shape, device="cuda"), "dK": torch.empty_like(k), "dV": torch.empty_like(v)}
        p(Q=q, K=k, V=v, dO=do, LSE2=lse2, Delta=delta, scale=128**-0.5, **out)
        runs.append(out)
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in ("dK", "dV"))
