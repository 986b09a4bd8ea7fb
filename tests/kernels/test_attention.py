"""The library's attention spec, interpreted and simulated, against float64: shapes, masks, grouped heads, rows that see nothing."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference

SMALL = fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=2)


def inputs(dtype: fc.ir.types.DType, b: int, h: int, g: int, m: int, n: int, d: int, e: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(fc.round_to(rng.standard_normal(s).astype(np.float32), dtype) for s in ((b, h, m, d), (b, g, n, d), (b, g, n, e)))


def compare(got: np.ndarray, want: np.ndarray, atol: float) -> None:
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=atol)


@pytest.mark.parametrize("mask", ["none", "causal_top_left", "causal_bottom_right"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 70), (70, 1), (33, 65), (64, 32), (45, 100)])
@pytest.mark.parametrize("dtype", [fc.f16, fc.bf16], ids=str)
def test_lengths_and_masks(mask: str, m: int, n: int, dtype: fc.ir.types.DType) -> None:
    q, k, v = inputs(dtype, 1, 2, 1, m, n, 32, 32)
    p = attention.compile(target="sm_89", schedule=SMALL, T=dtype, D=32, E=32, mask=mask)
    want, lse = attention_reference(q, k, v, mask=mask)
    for run in (p.interpret, p.simulate):
        got = run(Q=q, K=k, V=v, scale=32**-0.5)
        compare(got["O"], want, 2e-3 if dtype == fc.f16 else 2e-2)
        compare(got["LSE"], lse, 1e-5)


@pytest.mark.parametrize(("d", "e"), [(16, 16), (24, 24), (40, 40), (80, 64), (64, 128), (136, 136)])
def test_head_sizes_are_padded_without_a_trace(d: int, e: int) -> None:
    q, k, v = inputs(fc.f16, 1, 1, 1, 40, 50, d, e)
    p = attention.compile(target="sm_89", schedule=SMALL, T=fc.f16, D=d, E=e, mask="causal_bottom_right")
    want, lse = attention_reference(q, k, v, mask="causal_bottom_right")
    got = p.simulate(Q=q, K=k, V=v, scale=d**-0.5)
    compare(got["O"], want, 2e-3)
    compare(got["LSE"], lse, 1e-5)


@pytest.mark.parametrize(("h", "g"), [(4, 4), (4, 2), (6, 1)])
def test_grouped_heads(h: int, g: int) -> None:
    q, k, v = inputs(fc.f16, 2, h, g, 20, 40, 16, 16)
    p = attention.compile(target="sm_89", schedule=SMALL, T=fc.f16, D=16, E=16)
    compare(p.simulate(Q=q, K=k, V=v, scale=0.25)["O"], attention_reference(q, k, v)[0], 2e-3)


def test_rows_that_see_no_key_give_zero_and_minus_infinity() -> None:
    q, k, v = inputs(fc.f16, 1, 1, 1, 80, 20, 32, 32)
    p = attention.compile(target="sm_89", schedule=SMALL, T=fc.f16, D=32, E=32, mask="causal_bottom_right")
    got = p.simulate(Q=q, K=k, V=v, scale=0.2)
    assert (got["O"][0, 0, :60] == 0).all() and np.isneginf(got["LSE"][0, 0, :60]).all()
    assert np.isfinite(got["LSE"][0, 0, 60:]).all()


@pytest.mark.parametrize("math", ["mma", "wmma", "fma"])
@pytest.mark.parametrize("lazy", [0.0, 2.77])
def test_families_agree_with_a_stale_maximum_too(math: str, lazy: float) -> None:
    q, k, v = inputs(fc.f16, 1, 1, 1, 40, 90, 32, 32)
    schedule = fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=2, math=math, skip_ones=True)
    p = attention.compile(target="sm_89", schedule=schedule, T=fc.f16, D=32, E=32, lazy=lazy)
    got = p.simulate(Q=4 * q, K=k, V=v, scale=0.2)
    want, lse = attention_reference(4 * q, k, v, scale=0.2)
    compare(got["O"], want, 4e-3)
    compare(got["LSE"], lse, 1e-5)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_any_scale(scale: float) -> None:
    q, k, v = inputs(fc.f16, 1, 1, 1, 20, 40, 16, 16)
    p = attention.compile(positive=False, target="sm_89", schedule=SMALL, T=fc.f16, D=16, E=16)
    compare(p.simulate(Q=q, K=k, V=v, scale=scale)["O"], attention_reference(q, k, v, scale=scale)[0], 2e-3)
    positive = attention.compile(target="sm_89", schedule=SMALL, T=fc.f16, D=16, E=16)
    with pytest.raises(fc.FcError) as error:
        positive.simulate(Q=q, K=k, V=v, scale=scale)
    assert error.value.code == "call/argument"


def test_a_score_function_is_traced_into_the_loop() -> None:
    q, k, v = inputs(fc.f16, 1, 2, 2, 20, 40, 16, 16)
    cap = lambda s, b, h, i, j: 2.0 * fc.tanh(s / 2.0)
    p = attention.compile(LSE=None, target="sm_89", schedule=SMALL, T=fc.f16, D=16, E=16, score=cap)
    s = 2 * np.tanh(np.einsum("bhmd,bhnd->bhmn", q.astype(np.float64), k.astype(np.float64)) * 0.25 / 2)
    w = np.exp(s - s.max(-1, keepdims=True))
    compare(
        p.simulate(Q=q, K=k, V=v, scale=0.25)["O"], np.einsum("bhmn,bhne->bhme", w / w.sum(-1, keepdims=True), v.astype(np.float64)), 2e-3
    )


@pytest.mark.parametrize(("sums", "most"), [("exact", 1.4), ("rounded", 1.14), ("corrected", 1.14)])
def test_a_stale_maximum_costs_accuracy_only_where_the_sum_does_not_know_of_the_rounding(sums: str, most: float) -> None:
    """Few large weights per row: with an exact maximum the largest is exactly 1, with a stale one it is rounded like any other."""
    q, k, v = inputs(fc.f16, 1, 1, 1, 96, 640, 32, 32)
    q = fc.round_to(q * 4, fc.f16)
    want, lse = attention_reference(q, k, v)

    def error(lazy: float, sums: str) -> float:
        got = attention.compile(target="sm_89", schedule=SMALL, T=fc.f16, D=32, E=32, lazy=lazy, sums=sums).interpret(
            Q=q, K=k, V=v, scale=32**-0.5)
        compare(got["LSE"], lse, 1e-5)
        return float(np.sqrt(np.mean((got["O"].astype(np.float64) - want) ** 2)))

    ratio = error(5.5, sums) / error(0.0, "exact")
    assert ratio < most
    assert sums != "exact" or ratio > 1.2, "the case is not hard any more"


def test_a_sum_that_the_spec_does_not_know_is_refused() -> None:
    with pytest.raises(fc.FcError, match="no such sums"):
        attention.compile(target="sm_89", schedule=SMALL, T=fc.f16, D=32, E=32, sums="kahan").tile  # noqa: B018


@pytest.mark.parametrize("schedule", ["sm_89", "sm_90a"])
@pytest.mark.parametrize(("dtype", "d", "n", "x"), [(fc.bf16, 64, 1, 133120.0), (fc.bf16, 128, 40, 133120.0), (fc.f16, 128, 40, 10000.0)], ids=str)
def test_scores_of_any_size(schedule: str, dtype: fc.ir.types.DType, d: int, n: int, x: float) -> None:
    """Equal scores weigh the same however large they are; rows of other sizes are beside them in the same tile."""
    from fcgen.kernels.hopper_schedules import LAZY, pick

    q, k, v = inputs(dtype, 1, 1, 1, 20, n, d, d)
    q[..., ::2, :], k[...] = x, x
    how, lazy = (SMALL, 0.0) if schedule == "sm_89" else (pick(d, "none", 1024, 1024, 1, 132).schedule, LAZY)
    p = attention.compile(target=schedule, schedule=how, T=dtype, D=d, E=d, lazy=lazy)
    want, lse = attention_reference(q, k, v)
    got = p.simulate(Q=q, K=k, V=v, scale=d**-0.5)
    compare(got["O"], want, 2e-3 if dtype == fc.f16 else 2e-2)
    np.testing.assert_allclose(got["LSE"], lse, rtol=1e-5)
