"""The library's backward programs against float64, interpreted and simulated: score functions of any arithmetic and the gradients of what
they hold, masks, dropout, grouped heads, sinks, the gradient of the log-sum-exp, rows that see no key."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.budget import check_budget
from fcgen.ir.async_ops import accumulator
from fcgen.ir.core import walk_kernel
from fcgen.kernels.backward import backward, backward_rows, rows_before
from fcgen.kernels.backward_schedules import candidates

SCHEDULES = {
    "sm_89": fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=4, stages=1, epilogue="direct"),
    "sm_90a": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, math="wgmma", copy="tma", epilogue="tma",
                          stages={"q": 2, "do": 2})}
B, H, M, N, D = 1, 2, 70, 40, 32
RNG = np.random.default_rng(11)
BIAS, SLOPES, TABLE, HEAT = (RNG.standard_normal(s).astype(np.float32) for s in ((H, M, N), H, 9, 1))
HALF = RNG.standard_normal((H, M, 48)).astype(np.float16)  # (rows of 16 bytes)
EVERY_SCORE = RNG.standard_normal((B, H, M, 48)).astype(np.float16)


def softcap(s, b, h, i, j):
    return 1.5 * fc.tanh(s / 1.5)


def biased(s, b, h, i, j):
    return s + BIAS[h, i, j]


def biased_in_16_bits(s, b, h, i, j):
    return s + HALF[h, i, j].to(fc.f32)


def biased_everywhere(s, b, h, i, j):
    return s + EVERY_SCORE[b, h, i, j].to(fc.f32)


def alibi(s, b, h, i, j):
    return s + SLOPES[h] * (j - i).to(fc.f32) * 0.05


def hot(s, b, h, i, j):
    return fc.sin(s * HEAT[0]) * 2.0


def table(s, b, h, i, j):
    return s * (1.0 + TABLE[(j - i) // 8 + 4])


def window(b, h, i, j):
    return (j >= i - 20) & (j <= i + 3)


def dropped(p, b, h, i, j):
    return fc.where((i * 7 + j * 3 + h) % 4 == 0, 0.0, p * (4.0 / 3.0))


I, J = np.arange(M)[:, None], np.arange(N)
AT = (J - I) // 8 + 4
INSIDE = (AT >= 0) & (AT < 9)
ENTRY = np.where(INSIDE, TABLE[np.clip(AT, 0, 8)], 0.0).astype(float)


def _slopes(x, g):
    return {"score_0_grad": (g * (J - I) * 0.05).sum((0, 2, 3))}


def _table(x, g):
    out = np.zeros(9)
    np.add.at(out, np.broadcast_to(AT, x.shape)[np.broadcast_to(INSIDE, x.shape)], (g * x)[np.broadcast_to(INSIDE, x.shape)])
    return {"score_0_grad": out}


@dataclass
class Case:
    """score: of NumPy, x -> (s, ds/dx). held: (x, gradient of s) -> gradients of what it holds. seen: which scores count."""

    more: dict[str, Any]
    score: Any = lambda x: (x, 1.0)
    held: Any = lambda x, g: {}
    seen: Any = True
    kept: Any = 1.0
    groups: int = H
    e: int = D
    dlse: bool = False
    scale: float = 0.125


CASES = {
    "plain": Case({}), "top_left": Case({"mask": "causal_top_left"}, seen=J <= I), "dlse": Case({}, dlse=True),
    "bottom_right": Case({"mask": "causal_bottom_right"}, seen=J <= I + N - M),
    "softcap": Case({"score": softcap}, lambda x: (1.5 * np.tanh(x / 1.5), 1 - np.tanh(x / 1.5) ** 2)),
    "bias": Case({"score": biased}, lambda x: (x + BIAS, 1.0), lambda x, g: {"score_0_grad": g[0]}),
    "bias_of_few": Case({"score": biased_in_16_bits, "held": "few"}, lambda x: (x + HALF[..., :N].astype(float), 1.0),
                        lambda x, g: {"score_0_grad": np.pad(g[0], ((0, 0), (0, 0), (0, 8)))}),
    "bias_of_one": Case({"score": biased_everywhere}, lambda x: (x + EVERY_SCORE[..., :N].astype(float), 1.0),
                        lambda x, g: {"score_0_grad": np.pad(g, ((0, 0), (0, 0), (0, 0), (0, 8)))}),
    "alibi": Case({"score": alibi, "mask": "causal_top_left"}, lambda x: (x + SLOPES[:, None, None] * (J - I) * 0.05, 1.0), _slopes, J <= I),
    "temperature": Case({"score": hot}, lambda x: (2 * np.sin(x * HEAT[0]), 2 * np.cos(x * HEAT[0]) * HEAT[0]),
                        lambda x, g: {"score_0_grad": (g * 2 * np.cos(x * HEAT[0]) * x).sum()[None]}),
    "table": Case({"score": table}, lambda x: (x * (1 + ENTRY), 1 + ENTRY), _table),
    "window": Case({"keep": window}, seen=(J >= I - 20) & (J <= I + 3)),
    "no_key": Case({"keep": lambda b, h, i, j: i >= j + 5, "score": softcap}, lambda x: (1.5 * np.tanh(x / 1.5), 1 - np.tanh(x / 1.5) ** 2),
                   seen=I >= J + 5),
    "dropout": Case({"weigh": dropped}, kept=np.stack([(I * 7 + J * 3 + h) % 4 != 0 for h in range(H)]) * 4 / 3),
    "grouped": Case({"grouped": True}, groups=1), "negative": Case({"positive": False}, scale=-0.1),
    "wide_values": Case({"score": softcap}, lambda x: (1.5 * np.tanh(x / 1.5), 1 - np.tanh(x / 1.5) ** 2), e=128),
}


def expected(case, q, k, v, do, dlse):
    """(O, log-sum-exp, gradients) in float64."""
    k, v = (np.repeat(x, H // case.groups, axis=1) for x in (k, v))
    x = q @ k.swapaxes(2, 3) * case.scale
    s, slope = case.score(x)
    s = np.where(case.seen, s, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        top = np.maximum(s.max(-1, keepdims=True), -1e30)
        lse = np.log(np.exp(s - top).sum(-1)) + top[..., 0]
        p = np.where(np.isfinite(s), np.exp(s - np.where(np.isfinite(lse), lse, 0.0)[..., None]), 0.0)
    w = p * case.kept
    o = w @ v
    ds = p * (do @ v.swapaxes(2, 3) * case.kept - ((o * do).sum(-1) - dlse)[..., None])
    dx = ds * slope * case.scale
    group = lambda g: g.reshape(B, case.groups, H // case.groups, *g.shape[2:]).sum(2)
    return o, lse, {"dQ": dx @ k, "dK": group(dx.swapaxes(2, 3) @ q), "dV": group(w.swapaxes(2, 3) @ do), **case.held(x, ds)}


def close(got, want, name):
    size = np.abs(want).max() + 1e-3
    assert np.isfinite(got).all() and np.abs(got - want).max() < 6e-3 * size, (name, np.abs(got - want).max(), size)


def inputs(case):
    rng = np.random.default_rng(5)
    q, k, v, do = (rng.standard_normal(s).astype(np.float16).astype(float) for s in (
        (B, H, M, D), (B, case.groups, N, D), (B, case.groups, N, case.e), (B, H, M, case.e)))
    dlse = rng.standard_normal((B, H, M)) if case.dlse else np.zeros((B, H, M))
    return q, k, v, do, dlse


EVERY = [(name, target) for name in CASES for target in SCHEDULES]
#: each case on one target; all on both with FCGEN_ALL=1
SOME = EVERY if os.environ.get("FCGEN_ALL") == "1" else [(n, "sm_89" if n in ("plain", "table", "dropout") else "sm_90a") for n in CASES]


@pytest.mark.parametrize("name, target", SOME)
def test_gradients(name, target) -> None:
    case, schedule = CASES[name], SCHEDULES[target]
    q, k, v, do, dlse = inputs(case)
    o, lse, want = expected(case, q, k, v, do, dlse)
    before = rows_before.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_M": 32}), T=fc.f16, E=case.e, Sums=None, Turns=None,
                                 **({} if case.dlse else {"dLSE": None}))
    rows = before.interpret(O=o, dO=do, LSE=lse, **({"dLSE": dlse} if case.dlse else {}))
    given = {"Q": q, "K": k, "V": v, "dO": do, "scale": case.scale, **rows}
    bound = {"T": fc.f16, "D": D, "E": case.e, **case.more}
    program = backward.compile(target=target, schedule=schedule, **bound)
    zeros = {n: np.zeros(x.shape) for n, x in want.items() if n not in ("dK", "dV")}
    for got in (program.interpret(**given, **zeros), program.simulate(**given, **zeros)):
        for n, x in want.items():
            close(got[n] * (case.scale if n == "dQ" else 1), x, n)  # `rows_after` scales sums
    bound.pop("grouped", None)
    bound.pop("held", None)
    again = backward_rows.compile(target=target, schedule=schedule, **bound, **({} if case.dlse else {"dLSE": None}))
    how = again.simulate if name in ("bottom_right", "table") else again.interpret
    found = how(**{n: x for n, x in given.items() if n not in rows}, O=o, LSE=lse, **({"dLSE": dlse} if case.dlse else {}))
    close(found["dQ"], want["dQ"], "dQ alone")
    for n, x in rows.items():
        np.testing.assert_allclose(found[n], x, atol=1e-3, err_msg=n)


@pytest.mark.parametrize("m, n, mask", [(7, 256, "causal_top_left"), (70, 200, "causal_top_left"), (384, 31, "causal_bottom_right")])
def test_keys_that_no_row_sees_where_nothing_is_stored_in_the_loop(m, n, mask) -> None:
    """Each group of warps has a range of its own then, and of tiles behind the last row none: a range that ends before it begins, that of
    all or of one group."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 128}, warps=8, math="wgmma", copy="tma", epilogue="tma",
                           stages={"q": 2, "do": 2}, split="branch")
    program = backward.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=D, E=D, mask=mask, dQ=None)
    rng = np.random.default_rng(3)
    q, k, v, do = (rng.standard_normal((1, 1, s, D)) for s in (m, n, n, m))
    args = {"Q": q, "K": k, "V": v, "dO": do, "LSE2": np.full((1, 1, m), 2.0), "Delta": np.zeros((1, 1, m)), "scale": 0.1}
    want, got = program.interpret(**args), program.simulate(**args)
    assert mask != "causal_top_left" or not want["dK"][:, :, m:].any()
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, atol=2e-2)


def test_a_loop_inside_of_another_one_has_one_range_for_all_warps() -> None:
    """Two heads of one group: tiles that a group of warps does not need are let go of for each of them."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 128}, warps=8, math="wgmma", copy="tma", epilogue="tma",
                           stages={"q": 2, "do": 2}, split="branch")
    program = backward.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=D, E=D, mask="causal_top_left", dQ=None, grouped=True)
    rng = np.random.default_rng(3)
    q, do, k, v = (rng.standard_normal((1, h, s, D)) for h, s in ((2, 130), (2, 130), (1, 64), (1, 64)))
    args = {"Q": q, "K": k, "V": v, "dO": do, "LSE2": np.full((1, 2, 130), 2.0), "Delta": np.zeros((1, 2, 130)), "scale": 0.1}
    want, got = program.interpret(**args), program.simulate(**args)
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, atol=2e-2)


@pytest.mark.parametrize("d, e", [(80, 80), (40, 72), (104, 104), (136, 136), (248, 248)])
def test_head_sizes_that_eight_warps_do_not_divide_have_a_schedule(d, e) -> None:
    """With a function of many values."""
    nine, four = np.zeros(9, np.float32), np.zeros((H, 4), np.float32)

    def heavy(s, b, h, i, j):
        return s * (1.0 + nine[(i + j) % 9]) + four[h, j % 4]

    for schedule in candidates("backward", "sm_90", max(d, e)):
        try:
            program = backward.compile(target="sm_90", schedule=schedule, check=False, T=fc.f16, D=d, E=e, score=heavy, keep=window)
            check_budget(program.machine, program.target)
            return
        except fc.FcError as error:
            assert error.code.startswith("compile/")
    raise AssertionError("none of them can be")


@pytest.mark.parametrize("target, spec", [("sm_90", backward), ("sm_90a", backward_rows)])
def test_schedules_of_large_heads_in_the_simulator(target, spec) -> None:
    """Of those that fit the target, at a head size that they are padded to: rows and keys in whole tiles, and not."""
    rng = np.random.default_rng(4)
    ran = 0
    for schedule in candidates(spec.name, target, 512):
        program = spec.compile(target=target, schedule=schedule, check=False, T=fc.f16, D=288, E=288, mask="causal_bottom_right")
        q, do, k, v = (rng.standard_normal((1, 1, s, 288)) for s in (41, 41, 50, 50))
        args = {"Q": q, "K": k, "V": v, "dO": do, "scale": 0.06}
        high, none = np.full((1, 1, 41), 9.0), np.zeros((1, 1, 41))
        args |= {"LSE2": high, "Delta": none, "dQ": np.zeros(q.shape)} if spec is backward else {"O": q, "LSE": high, "dLSE": none}
        try:
            got = program.simulate(**args)
        except fc.FcError as e:
            assert e.code == "compile/budget"
            continue
        ran += 1
        for name, x in program.interpret(**args).items():
            close(got[name], x, name)
    assert ran


def test_products_that_run_ahead_start_from_nothing() -> None:
    """What a score adds of positions stands behind them: their accumulators are taken an iteration earlier."""
    schedule = next(s for s in candidates("backward", "sm_90a", 128) if s.early and s.tile("BLOCK_M") == 64)
    program = backward.compile(target="sm_90a", schedule=schedule, check=False, T=fc.f16, D=64, E=64, score=alibi, grouped=False)
    ahead = [o for o in walk_kernel(program.machine) if o.kind == "wgmma" and "early" in o.attrs]
    assert ahead and all(accumulator(o) is None for o in ahead)


@pytest.mark.parametrize("score, held, how, dtype", [(biased_in_16_bits, True, "add", "f32"), (biased_in_16_bits, "few", "add", "f16"),
                                                     (biased_everywhere, True, None, "f16"), (alibi, "few", "add", "f32")])
def test_what_each_element_of_a_gradient_is_added_to(score, held, how, dtype):
    """One place is stored, in the tensor's dtype; few are added up in it; others in f32. A bulk store in a loop waits for no other one."""
    schedule = replace(SCHEDULES["sm_90a"], split="branch")
    program = backward.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=D, E=D, score=score, held=held)
    stores = [o for o in walk_kernel(program.machine) if o.kind in ("st_global", "tma_store") and o.operands[0].name == "score_0_grad"]
    assert {(o.get("reduce"), o.operands[0].type.dtype.name) for o in stores} == {(how, dtype)}
    loops = [o for o in walk_kernel(program.machine) if o.kind == "for" and any(o.kind == "tma_store" for o in o.regions[0].ops)]
    assert all(o["read"] for loop in loops for o in loop.regions[0].ops if o.kind == "bulk_wait")
