"""Gradients of whole kernels against numerical ones in float64, for `tests/lang` and others."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

import fcgen as fc

EXAMPLES = Path(__file__).parents[1] / "examples"


def numerical(reference, given, name, cotangents, step=1e-5, places=12):
    """(places, the derivative there) of the weighted sum of the outputs."""
    rng, x = np.random.default_rng(0), given[name]
    at = [tuple(rng.integers(0, n) for n in x.shape) for _ in range(places)]
    out = []
    for place in at:
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            ends.append(sum((reference(**{**given, name: moved})[o] * c).sum() for o, c in cotangents.items()))
        out.append((ends[0] - ends[1]) / (2 * step))
    return at, np.array(out)


def compare(spec, reference, given, binding, schedule, target="sm_89", of=(), runs=("interpret", "simulate"), tolerance=1e-2):
    program = fc.grad(spec, *of).compile(target=target, schedule=schedule, check=False, **binding)
    rng, outs = np.random.default_rng(7), reference(**given)
    cotangents = {n: rng.standard_normal(x.shape).astype(np.float16).astype(float) for n, x in outs.items()}
    sums = [p.name for p in program.params if program.is_output(p.name)]
    zeros = {n: np.zeros(given[n[1:]].shape) for n in sums}
    for how in runs:
        found = getattr(program, how)(**given, **{f"d{n}": c for n, c in cotangents.items()}, **zeros)
        assert set(found) == set(sums)
        for n in sums:
            at, want = numerical(reference, given, n[1:], cotangents)
            got = np.array([found[n][place] for place in at])
            assert np.abs(got - want).max() < tolerance * (1 + np.abs(want).max()), (how, n, got, want)
    return program


def example(name, **sizes):
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    e = importlib.import_module(name).example
    given, _ = e.draw(seed=3, **sizes)
    return e, {n: x.astype(float) if isinstance(x, np.ndarray) else x for n, x in given.items()}
