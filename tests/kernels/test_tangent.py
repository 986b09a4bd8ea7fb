"""Tangents of attention and of its gradients: against differences in float64, and in the simulator with the schedules that are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.budget import check_budget
from fcgen.build.compiler import target
from fcgen.kernels import tangent

B, H, G, M, N, D, E = 1, 2, 1, 21, 37, 16, 24
SCALE, STEP, LOG2E = 0.3, 1e-4, 1.4426950408889634
NAMES = ("Q", "K", "V", "dO")
SHAPES = {"Q": (B, H, M, D), "K": (B, G, N, D), "V": (B, G, N, E), "dO": (B, H, M, E)}


def forward(x, causal, cap):
    k, v = (np.repeat(x[n], H // G, 1) for n in "KV")
    s = x["Q"] @ k.swapaxes(2, 3) * SCALE
    slope = np.ones_like(s)
    if cap:
        s = cap * np.tanh(s / cap)
        slope = 1 - (s / cap) ** 2
    if causal:
        s = np.where(np.tril(np.ones((M, N), bool)), s, -np.inf)
    top = s.max(-1, keepdims=True)
    lse = np.log(np.exp(s - top).sum(-1)) + top[..., 0]
    p = np.exp(s - lse[..., None])
    return p @ v, lse, p, slope, k, v


def backward(x, causal, cap):
    o, _, p, slope, k, v = forward(x, causal, cap)
    ds = p * (x["dO"] @ v.swapaxes(2, 3) - (o * x["dO"]).sum(-1, keepdims=True)) * slope
    group = lambda y: y.reshape(B, G, H // G, N, -1).sum(2)
    return {"tdQ": ds @ k * SCALE, "tdK": group(ds.swapaxes(2, 3) @ x["Q"]) * SCALE, "tdV": group(p.swapaxes(2, 3) @ x["dO"])}


def moved(f, x, t):
    """How results move, by a difference. t: of some operands."""
    up, down = ({n: y + sign * STEP * t[n] if n in t else y for n, y in x.items()} for sign in (1, -1))
    return [(a - b) / (2 * STEP) for a, b in zip(f(up), f(down))]


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(0)
    x, t = ({n: rng.standard_normal(SHAPES[n]).astype(np.float16).astype(np.float64) for n in NAMES} for _ in range(2))
    return x, t


CAP = 2.0
CASES = {"plain": ({}, False, None), "causal": ({"mask": "causal_top_left"}, True, None),
         "a soft cap": ({"score": lambda s, b, h, i, j: CAP * fc.tanh(s * (1 / CAP))}, False, CAP)}
MOVED = {"all": NAMES, "queries": ("Q",), "keys": ("K",), "values": ("V",), "gradients of outputs": ("dO",), "keys and values": ("K", "V")}


def arguments(x, t, causal, cap):
    o, lse, *_ = forward(x, causal, cap)
    to, tlse = moved(lambda y: forward(y, causal, cap)[:2], x, {n: y for n, y in t.items() if n != "dO"})
    rows = lambda a, b: (a * b).sum(-1)
    delta = rows(to, x["dO"]) + (rows(o, t["dO"]) if "dO" in t else 0.0)
    given = {**x, **{f"t{n}": y for n, y in t.items()}, "LSE": lse, "LSE2": lse * LOG2E, "Delta": rows(o, x["dO"]), "tLSE2": tlse * LOG2E,
             "tDelta": delta}
    return {n: np.asarray(y, np.float32) for n, y in given.items()}, {"tO": to, "tLSE": tlse}


def program(spec, options, absent, arch="sm_89", schedule=None, **dims):
    more = {"grouped": True} if spec is tangent.backward_tangent else {}
    return spec.compile(target=arch, schedule=schedule, check=False, **{"T": fc.f16, "D": D, "E": E, **dims}, **options, **more, **dict.fromkeys(absent))


def run(p, given, how):
    return getattr(p, how)(**{n: given[n] for n in (v.name for v in p.params) if n in given}, scale=SCALE)


def agrees(got, want, tolerance=4e-3):
    for n, y in want.items():
        if n in got:
            assert np.abs(got[n] - y).max() <= tolerance * (0.5 + np.abs(y).max()), n


SMALL = fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 16}, warps=2)


@pytest.mark.parametrize("moves", MOVED)
@pytest.mark.parametrize("name", CASES)
def test_values(operands, name, moves) -> None:
    options, causal, cap = CASES[name]
    x, t = operands[0], {n: operands[1][n] for n in MOVED[moves]}
    given, first = arguments(x, t, causal, cap)
    absent = [f"t{n}" for n in NAMES if n not in t]
    want = dict(zip(("tdQ", "tdK", "tdV"), moved(lambda y: backward(y, causal, cap).values(), x, t)))
    for spec in (tangent.tangent, tangent.backward_tangent, tangent.backward_tangent_rows):
        if spec is tangent.tangent and moves == "gradients of outputs":
            continue
        names = absent if spec is not tangent.tangent else [n for n in absent if n != "tdO"]
        agrees(run(program(spec, options, names, schedule=SMALL), given, "interpret"), first if spec is tangent.tangent else want)


@pytest.mark.parametrize("spec", [tangent.tangent, tangent.backward_tangent, tangent.backward_tangent_rows], ids=lambda s: s.name)
def test_the_simulator_agrees(operands, spec) -> None:
    """No race, no stale read."""
    given, first = arguments(*operands, True, None)
    want = dict(zip(("tdQ", "tdK", "tdV"), moved(lambda y: backward(y, True, None).values(), *operands)))
    agrees(run(program(spec, CASES["causal"][0], [], schedule=replace(SMALL, stages=2)), given, "simulate"), {**first, **want})


@pytest.mark.parametrize(("arch", "d"), [("sm_89", 128), ("sm_90", 128)])
def test_a_schedule_is_found(arch, d) -> None:
    """Only loops that wait for each of their tiles fit."""
    p = program(tangent.backward_tangent, {}, [], arch, D=d, E=d)
    assert check_budget(p.machine, target(arch)).fragment_regs < 256
