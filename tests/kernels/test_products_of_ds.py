"""dQ and dK as products of the stored gradient of scores, on both targets: masks, ranges that end inside of tiles, functions that say which
scores count, heads that share keys. What is not to be read is no number."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.backward import backward_keys, backward_queries

TARGETS = {"sm_90a": {"warps": 8, "math": "wgmma", "copy": "tma", "stages": 3}, "sm_89": {"warps": 4, "stages": 2}}
D, H, SCALE = 64, 4, 0.5


def window(b, h, i, j):
    return (j >= i - 20) & (j <= i + 3 + h)


def seen(mask: str, keep: bool, m: int, n: int) -> np.ndarray:
    """[heads, keys, rows]."""
    j, i = np.arange(n)[:, None], np.arange(m)
    causal = np.ones((n, m), bool) if mask == "none" else j <= i + (n - m if mask == "causal_bottom_right" else 0)
    return np.stack([causal & (window(0, h, i, j) if keep else True) for h in range(H)])


def run(of_rows: bool, target: str, mask: str, m: int, n: int, split: str = "loops", keep: bool = False, groups: int = H, **more):
    wide, narrow = (128, 64) if target == "sm_90a" else (64, 32)
    tiles = {"BLOCK_M": wide, "BLOCK_N": narrow} if of_rows else {"BLOCK_M": narrow, "BLOCK_N": wide}
    schedule = fc.Schedule(tiles=tiles, split=split, **{**TARGETS[target], **more})
    spec, facts = (backward_queries, {}) if of_rows else (backward_keys, {"grouped": groups < H})
    p = spec.compile(target=target, schedule=schedule, check=False, T=fc.f16, D=D, mask=mask, keep=window if keep else None, **facts)
    rng, counts = np.random.default_rng(m), seen(mask, keep, m, n)
    ds = rng.standard_normal((1, H, n, m)).astype(np.float16)
    weights = np.where(counts, ds[0], 0).astype(float) * SCALE
    ds[0][~counts] = np.nan
    x = rng.standard_normal((1, groups, n, D) if of_rows else (1, H, m, D)).astype(np.float16)
    if of_rows:
        got, want = p.simulate(dS=ds, K=x, dQ=np.zeros((1, H, m, D), np.float16), scale=SCALE)["dQ"], \
            np.einsum("hnm,hnd->hmd", weights, x[0].astype(float).repeat(H // groups, 0))
    else:
        got, want = p.simulate(dS=ds, Q=x, dK=np.zeros((1, groups, n, D), np.float16), scale=SCALE)["dK"], \
            np.einsum("ghnm,ghmd->gnd", weights.reshape(groups, -1, n, m), x[0].astype(float).reshape(groups, -1, m, D))
    np.testing.assert_allclose(got[0], want, atol=2e-3 * np.abs(want).max())
    return p


@pytest.mark.parametrize("m, n", [(200, 136), (136, 264)])
@pytest.mark.parametrize("mask, split", [("none", "loops"), *((mask, split) for mask in ("causal_top_left", "causal_bottom_right")
                                                              for split in ("loops", "branch", "none"))])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("of_rows", [True, False])
def test_masks(of_rows, target, mask, split, m, n):
    run(of_rows, target, mask, m, n, split)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("of_rows", [True, False])
def test_a_function_says_which_scores_count(of_rows, target):
    run(of_rows, target, "causal_top_left", 200, 200, keep=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("of_rows", [True, False])
def test_heads_that_share_keys(of_rows, target):
    run(of_rows, target, "causal_bottom_right", 72, 136, groups=2)


@pytest.mark.parametrize("of_rows", [True, False])
@pytest.mark.parametrize("more", [{"persistent": "dynamic", "epilogue": "tma"}, {"persistent": "dynamic", "epilogue": "quad", "l2": 24, "hints": True}])
def test_blocks_that_claim_tiles(of_rows, more):
    run(of_rows, "sm_90a", "causal_top_left", 264, 264, **more)
