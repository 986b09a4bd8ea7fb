"""Every example, interpreted and simulated in each instruction family, against its float64 reference; named values of attention
against NumPy."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import attention

EXAMPLES = Path(__file__).parents[2] / "examples"

#: example -> small sizes
SIZES = {
    "attention": {},
    "gemm": {"m": 140, "n": 40, "k": 72},
    "int4_gemm": {},
    "linear_attention": {"b": 1, "h": 1, "m": 100},
    "sigmoid_attention": {"b": 1, "h": 1, "m": 50, "n": 90},
    "differential_attention": {"b": 1, "h": 1, "n": 90},
    "variants": {"h": 2, "n": 100},
    "softmax": {"m": 20, "n": 300},
    "backward": {"m": 50, "n": 70},
    "ragged_attention": {},
}


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def load(name):
    return importlib.import_module(name)


def small(name):
    """(example, arguments, expected)."""
    example = load(name).example
    return (example, *example.draw(seed=3, **SIZES[name]))


def compare(example, got, want):
    error = sys.modules["harness"].error
    assert want
    for name, reference in want.items():
        assert error(np.asarray(got[name], np.float64), reference) < example.rtol, name


def test_all_are_here():
    assert {p.stem for p in EXAMPLES.glob("*.py")} - {"harness", "ladder", "train"} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_interpreted(name):
    example, arguments, want = small(name)
    compare(example, example.compile().interpret(**arguments), want)


@pytest.mark.parametrize("name, math", [(n, m) for n in SIZES for m in ("mma", "wmma", "fma") if n != "softmax" or m == "mma"])
def test_simulated(name, math):
    example, arguments, want = small(name)
    program = example.compile(schedule=replace(example.schedule, math=math))
    compare(example, program.simulate(**arguments), want)


@pytest.mark.parametrize("way", ["interpret", "simulate"])
@pytest.mark.parametrize("name", SIZES)
def test_a_nan_stays_one(name, way):
    """Rows that see nothing are 0; a row that saw a NaN is not one of them."""
    example, arguments, _ = small(name)
    first = next(iter(arguments))
    arguments[first] = np.array(arguments[first])
    arguments[first][..., 1, 1] = np.nan
    with np.errstate(all="ignore"):
        want = example.reference(**arguments)
    for output, got in getattr(example.compile(), way)(**arguments).items():
        assert np.isnan(want[output]).any() and (np.isnan(got) == np.isnan(want[output])).all()


@pytest.mark.parametrize("mask", ["none", "causal_top_left"])
def test_until(mask):
    """`until` writes out a value of every iteration: scores, their exponentials and the running maximum."""
    n, block = 40, 16
    rng = np.random.default_rng(0)
    q, k, v = (fc.round_to(rng.standard_normal((1, 1, n, 16)), fc.f16) for _ in range(3))
    binding = {"T": fc.f16, "D": 16, "E": 16, "mask": mask}
    schedule = fc.Schedule(tiles={"BLOCK_M": block, "BLOCK_N": block})
    tiles = -(-n // block)
    shape = (1, 1, tiles, tiles, block, block)

    pad = tiles * block
    s = np.full((pad, pad), -np.inf)
    s[:, :n] = 0.0
    s[:n, :n] = np.einsum("id,jd->ij", q[0, 0].astype(float), k[0, 0].astype(float)) * 0.25
    if mask != "none":
        s[np.arange(pad)[None] > np.arange(pad)[:, None]] = -np.inf
    cut = s.reshape(tiles, block, tiles, block).transpose(0, 2, 1, 3)
    tops = np.maximum.accumulate(cut.max(-1)[:, ::-1], axis=1)[:, ::-1]  # the keys are walked from the last
    base = np.where(np.isinf(tops), 0.0, tops)
    with np.errstate(all="ignore"):
        p = np.exp(cut - base[..., None])

    def value(name, as_shape):
        program = attention.until(name).compile(target="sm_89", schedule=schedule, **binding)
        (got,) = program.interpret(Q=q, K=k, V=v, scale=0.25, UNTIL=np.full(as_shape, np.nan, np.float32)).values()
        return got

    np.testing.assert_allclose(value("s", shape)[0, 0], cut, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value("p", shape)[0, 0], p, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value("top", shape[:-1])[0, 0], tops, rtol=1e-4, atol=1e-5)
