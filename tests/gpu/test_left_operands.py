"""Operands that are computed in registers from slots of rings, on the GPU: many tiles, rows and columns that end inside of one."""

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import example, norm_gemm, norm_gemm_same
from fcgen.ir.core import walk
from fcgen.kernels.backward import backward_keys, backward_queries

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
HOPPER = {"math": "wgmma", "copy": "tma", "epilogue": "tma", "persistent": "static"}


def needs_hopper():
    if fc.gpu_target() != "sm_90a":
        pytest.skip("instructions of Hopper")


@pytest.mark.parametrize("tiles, warps, stages", [((192, 160, 64), 12, 4), ((128, 256, 64), 8, 4), ((192, 80, 64), 12, 2)])
def test_slots_are_not_filled_before_they_are_read(tiles, warps, stages):
    """Zeros of the rows outside of X come at once, into what the tile before had there: 2e-3 of rms where arrivals waited for no load."""
    needs_hopper()
    schedule = fc.Schedule(tiles=dict(zip(("BM", "BN", "BK"), tiles)), warps=warps, stages=stages, l2=32, **HOPPER)
    p = norm_gemm.compile(target="sm_90a", T=fc.f16, schedule=schedule, check=False)
    torch.manual_seed(0)
    m, n, k = 192 * 30 + 64, 4000, 1024
    x, w = torch.randn(m, k, device="cuda").half(), (torch.randn(n, k, device="cuda") / 32).half()
    g, y = torch.rand(k, device="cuda") + 0.5, torch.empty(m, n, device="cuda", dtype=torch.float16)
    want = ((x.float() * g).half().float() @ w.float().T) * torch.rsqrt((x.float() ** 2).mean(1, keepdim=True) + 1e-5)
    for _ in range(5):
        y.fill_(float("nan"))
        p(X=x, G=g, W=w, Y=y)
        off = (y.float() - want).square().mean(1).sqrt() / want.square().mean(1).sqrt()
        assert off.max().item() < 2e-3  # of each row


@pytest.mark.parametrize("spec, factors", [(norm_gemm, torch.float32), (norm_gemm_same, torch.float16)])
@pytest.mark.parametrize("k", [8, 64, 72, 136, 1000])
def test_operands_in_flight_are_not_overwritten(spec, factors, k):
    """One, two, three and many iterations, of which two are printed one behind the other."""
    needs_hopper()
    schedule = fc.Schedule(tiles={"BM": 128, "BN": 256, "BK": 64}, warps=8, stages=3, l2=32, **HOPPER)
    p = spec.compile(target="sm_90a", T=fc.f16, schedule=schedule, check=False)
    assert any(o.get("turns") for r in p.machine.roles for o in walk(r.body))
    torch.manual_seed(k)
    x, w = torch.randn(2000, k, device="cuda").half(), torch.randn(1000, k, device="cuda").half()
    g, y = (torch.rand(k, device="cuda") + 0.5).to(factors), torch.full((2000, 1000), float("nan"), device="cuda", dtype=torch.float16)
    want = ((x.double() * g.double()).half().double() @ w.double().T) * torch.rsqrt((x.double() ** 2).mean(1, keepdim=True) + 1e-5)
    p(X=x, G=g, W=w, Y=y)
    assert (y.double() - want).norm().item() < 1e-3 * want.norm().item()


@pytest.mark.parametrize("tiles, warps", [((192, 192, 64), 12), ((128, 256, 64), 8), ((128, 16, 64), 8)])
def test_unpacked_operands(tiles, warps):
    needs_hopper()
    e = example("int4_gemm")
    schedule = fc.Schedule(tiles=dict(zip(("BLOCK_N", "BLOCK_M", "BLOCK_K"), tiles)), warps=warps, stages=2, **HOPPER)
    p = e.spec.compile(target="sm_90a", schedule=schedule, check=False, **e.binding)
    given, want = e.draw(seed=1, m=1000, n=2000, e=512)
    got = p.run(**given)["Y"].astype(np.float64)
    assert np.sqrt(np.mean((got - want["Y"]) ** 2)) < 1e-3 * np.sqrt(np.mean(want["Y"] ** 2))


@pytest.mark.parametrize("split", ["loops", "branch", "none"])
@pytest.mark.parametrize("head, more", [(256, {"epilogue": "quad", "persistent": "none"}), (128, {"hints": True}), (64, {"warps": 4})])
@pytest.mark.parametrize("spec", [backward_queries, backward_keys])
def test_masked_tiles_of_a_stored_operand(spec, head, more, split):
    """Of some tiles products read the slots, of others registers that were taken from them, turned or not. What the mask hides is no number."""
    needs_hopper()
    of_rows, groups = spec is backward_queries, more.get("warps", 8) // 4
    tiles = {"BLOCK_M": 64 * groups if of_rows else 64, "BLOCK_N": 64 if of_rows else 64 * groups}
    schedule = fc.Schedule(tiles=tiles, **{**HOPPER, "warps": 8, "stages": 3, "split": split, "persistent": "dynamic", **more})
    p = spec.compile(target="sm_90a", T=fc.bf16, D=head, mask="causal_bottom_right", schedule=schedule, check=False)
    torch.manual_seed(head)
    for m, n in ((1000, 1000), (136, 2000), (1992, 520)):
        hidden = torch.ones(n, m, device="cuda", dtype=torch.bool).tril(m - n - 1)
        ds = torch.randn(2, 3, n, m, device="cuda").bfloat16().masked_fill(hidden, float("nan"))
        x = torch.randn(2, 3, n if of_rows else m, head, device="cuda").bfloat16()
        y = torch.full((2, 3, m if of_rows else n, head), float("nan"), device="cuda", dtype=torch.bfloat16)
        seen = ds.nan_to_num().double()
        want = (seen.transpose(-1, -2) if of_rows else seen) @ x.double()
        for _ in range(3):
            p(dS=ds, scale=1.0, **({"K": x, "dQ": y} if of_rows else {"Q": x, "dK": y}))
            assert (y.double() - want).norm().item() < 4e-3 * want.norm().item()
            y.fill_(float("nan"))
