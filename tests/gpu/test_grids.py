"""Blocks of one role that work through the tiles of a grid, on a GPU: products and rows with more tiles than blocks, claimed several times."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference

from ..kernels.test_listed import paged, pages

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")


def path() -> str:
    """The target without bulk copies."""
    return fc.gpu_target().removesuffix("a")


@pytest.mark.parametrize("mask", ["none", "causal_bottom_right"])
@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_attention_with_many_tiles_per_block(how: str, mask: str) -> None:
    """A thousand tiles of short rows; launched three times, since the counter must be 0 again after each."""
    s = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, persistent=how, min_blocks=2)
    p = attention.compile(target=path(), schedule=s, T=fc.f16, D=64, E=64, mask=mask)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, h, 330, 64)).astype(np.float16) for h in (88, 22, 22))
    want, lse = attention_reference(q, k, v, mask=mask, scale=0.125)
    given = {n: torch.from_numpy(x).cuda() for n, x in (("Q", q), ("K", k), ("V", v))}
    o, l = torch.empty_like(given["Q"]), torch.empty((2, 88, 330), device="cuda")
    for _ in range(3):
        o.fill_(float("nan"))
        p.launcher({**given, "O": o, "LSE": l, "scale": 0.125})
        torch.cuda.synchronize()
        np.testing.assert_allclose(o.cpu().numpy().astype(np.float64), want, atol=3e-3)
        np.testing.assert_allclose(l.cpu().numpy(), lse, atol=1e-3)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_pages_on_hopper(stages: int) -> None:
    """Rows that a table lists are copied ahead by those who multiply them, beside bulk copies of the rest."""
    if path() != "sm_90":
        pytest.skip("needs warpgroup instructions")
    s = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, math="wgmma", copy="tma", stages=stages, persistent="dynamic")
    p = paged.compile(target="sm_90a", schedule=s, T=fc.f16, D=16)
    for count, size in ((1000, 16), (333, 5)):
        args, want = pages(count, size, -(-count // size) + 2)
        np.testing.assert_allclose(p.run(**args)["O"].astype(float), want, atol=3e-3)
