"""Loops that only run another one, and divisions of an index that are counted along."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk, walk_kernel
from fcgen.passes import run_passes


@fc.kernel
def nested(X: T[S, M, D], W: T[N, D], Y: "out f32[N, D]", *, triangle=False, growing=False):
    """The sum over all s of (W X_s^T) X_s, of rows that lie behind the program's columns if that is asked for."""
    (cols,) = fc.grid(fc.tile(W.N, "BLOCK_N"))
    w, acc = fc.load(W[cols]), fc.var(fc.zeros(cols, W.D))
    seen = lambda rows: cols.index <= rows.index if triangle else cols.valid
    for s in fc.loop(X.S):
        for rows in fc.loop(fc.tile(fc.minimum(X.M, s * 16) if growing else X.M, "BLOCK_M"), live=seen):
            x = fc.load(X[s, rows])
            acc <<= acc + fc.dot(fc.where(seen(rows), fc.dot(w, x.T), 0.0).to(X.dtype), x)
    fc.store(Y[cols], acc)


SCHEDULES = {"sm_89": fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 64}, warps=4, stages=2, split="branch"),
             "sm_90a": fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 64}, warps=4, stages=2, split="branch", math="wgmma", copy="tma",
                                   epilogue="direct")}


def loops(kernel):
    return [op for op in walk_kernel(kernel) if op.kind == "for" and not op.get("unroll")]


def after(program, stage):
    return run_passes(program.tile, program.schedule, program.target, stop_after=stage)


@pytest.mark.parametrize("target", SCHEDULES)
@pytest.mark.parametrize("triangle", [False, True])
def test_one_loop_takes_the_tiles_of_both_in_their_order(triangle, target):
    program = nested.compile(target=target, schedule=SCHEDULES[target], T=fc.f16, D=16, triangle=triangle)
    assert len(loops(after(program, "limits"))) == 2 and len(loops(after(program, "flatten"))) == 1
    rng = np.random.default_rng(0)
    for s, m, n in ((3, 70, 130), (1, 16, 64), (2, 8, 100), (0, 32, 64), (3, 0, 64)):
        x, w = rng.standard_normal((s, m, 16)), rng.standard_normal((n, 16))
        x, w = (v.astype(np.float16).astype(float) for v in (x, w))
        keep = np.arange(n)[:, None] <= np.arange(m) if triangle else np.ones((n, m))
        want = sum(((w @ x[i].T * keep) @ x[i] for i in range(s)), np.zeros((n, 16)))
        got = program.simulate(X=x, W=w)["Y"]
        assert np.abs(got - want).max(initial=0.0) < 2e-2 * max(1.0, np.abs(want).max(initial=0.0)), (s, m, n)


@fc.kernel
def fading(X: T[S, M, D], W: T[N, D], Y: "out f32[N, D]"):
    """As `nested`, each s by a weight that follows from what the inner loop before has carried."""
    (cols,) = fc.grid(fc.tile(W.N, "BLOCK_N"))
    w, acc, weight = fc.load(W[cols]), fc.var(fc.zeros(cols, W.D)), fc.var(1.0)
    for s in fc.loop(X.S):
        now = weight * 3.0
        for rows in fc.loop(fc.tile(X.M, "BLOCK_M")):
            x = fc.load(X[s, rows])
            acc <<= acc + fc.dot((fc.dot(w, x.T) * now).to(X.dtype), x)
            weight <<= weight * 0.5
    fc.store(Y[cols], acc)


@pytest.mark.parametrize("target", SCHEDULES)
def test_what_is_in_front_of_the_inner_loop_is_not_computed_in_it(target):
    schedule = replace(SCHEDULES[target], split=fc.Schedule().split)  # there are no masks
    program = fading.compile(target=target, schedule=schedule, T=fc.f16, D=16)
    x, w = (np.random.default_rng(0).standard_normal(shape).astype(np.float16) for shape in ((3, 70, 16), (64, 16)))
    got, want = (run(X=x, W=w)["Y"] for run in (program.simulate, program.interpret))
    assert np.abs(got - want).max() < 5e-3 * np.abs(want).max()


def test_a_range_that_changes_in_the_outer_loop_keeps_both():
    program = nested.compile(target="sm_89", schedule=SCHEDULES["sm_89"], T=fc.f16, D=16, growing=True)
    assert len(loops(after(program, "flatten"))) == 2


@pytest.mark.parametrize("target", SCHEDULES)
def test_no_iteration_divides(target):
    program = nested.compile(target=target, schedule=SCHEDULES[target], T=fc.f16, D=16)
    divides = lambda kernel: [op.kind for loop in loops(kernel) for op in walk(loop.regions[0]) if op.kind in ("floordiv", "mod")]
    assert divides(after(program, "at_use")) and not divides(after(program, "counted"))
