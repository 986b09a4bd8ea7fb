"""Products of tiles whose factors are known at different times, and masks that two choices share."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk_kernel
from fcgen.passes import run_passes

SCHEDULES = {"sm_89": fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=4, stages=1, epilogue="direct"),
             "sm_90a": fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, stages=2, math="wgmma", copy="tma", epilogue="direct",
                                   split="branch")}


@fc.kernel
def product(X: T[M, D], Y: T[N, D], Z: T[N, D], O: "out f32[M, D]", *, a: f32, early=True):
    """The sum over columns of p (x z^T - 1) (1 - t^2) a z, with t and p functions of x y^T; `early` is whether there is 1 - t^2."""
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x, out = fc.load(X[rows]), fc.var(fc.zeros(rows, X.D))
    seen = lambda cols: (cols.index <= rows.index) & cols.valid
    for cols in fc.loop(fc.tile(Y.N, "BN"), live=seen):
        z = fc.load(Z[cols])
        s, late = fc.dot(x, fc.load(Y[cols]).T), fc.dot(x, z.T)
        t = fc.tanh(s)
        p = fc.exp(fc.where(seen(cols), t, -fc.inf))
        d = p * (late - 1.0)
        d = d * a * (1.0 - t * t) if early else d * a
        out <<= out + fc.dot(fc.where(seen(cols), d, 0.0).to(Z.dtype), z)
    fc.store(O[rows], out)


def compiled(target, **more):
    return product.compile(target=target, schedule=SCHEDULES[target], T=fc.f16, D=16, **more)


def products(program, stage):
    """For each product of tiles, whether it waits for the second dot; in order."""
    kernel = run_passes(program.tile, program.schedule, program.target, stop_after=stage)
    late: set = set()
    out = []
    for op in walk_kernel(kernel):
        dots = sum(o.kind == "dot" for o in walk_kernel(kernel) if o.kind == "dot" and o.get("site") == "late")
        if dots and (op.get("site") == "late" or any(v in late for v in op.operands)):
            late |= set(op.results)
        if op.kind == "mul" and len(getattr(op.result.type, "shape", ())) == 2:
            out.append(op.result in late)
    return out


def test_one_tile_waits_for_the_late_factor():
    program = compiled("sm_90a")
    before, after = products(program, "limits"), products(program, "factors")
    assert before.count(True) == 3 and after.count(True) == 1 and len(after) <= len(before)


def test_a_product_with_one_early_tile_stays():
    program = compiled("sm_90a", early=False)
    assert products(program, "limits") == products(program, "factors")


@pytest.mark.parametrize("target", SCHEDULES)
def test_the_numbers_are_the_same(target):
    rng = np.random.default_rng(0)
    x, y, z = (rng.standard_normal((n, 16)).astype(np.float16).astype(float) * 0.5 for n in (100, 70, 70))
    t = np.tanh(x @ y.T)
    p = np.where(np.tri(100, 70, dtype=bool), np.exp(t), 0.0)
    want = (p * (x @ z.T - 1) * (1 - t * t) * 0.7) @ z
    for got in (compiled(target).interpret(X=x, Y=y, Z=z, a=0.7), compiled(target).simulate(X=x, Y=y, Z=z, a=0.7)):
        assert np.abs(got["O"] - want).max() < 5e-3 * np.abs(want).max()


def test_what_two_masks_are_made_of_is_made_where_each_is_used():
    kernel = run_passes(compiled("sm_90a").tile, SCHEDULES["sm_90a"], compiled("sm_90a").target, stop_after="branches")
    branches = [op for op in walk_kernel(kernel) if op.kind == "if" and any(o.kind == "select" for o in op.regions[0].ops)]
    assert len(branches) == 2 and all(any(o.kind == "iota" for o in op.regions[0].ops) for op in branches)


@fc.kernel
def scaled(X: T[M, D], Y: T[N, D], Z: T[N, D], O: "out f32[M, D]"):
    """`product` by a number that is known behind the second dot, and one that is made behind the last early tile."""
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x, out, fade = fc.load(X[rows]), fc.var(fc.zeros(rows, X.D)), fc.var(1.0)
    for cols in fc.loop(fc.tile(Y.N, "BN")):
        z = fc.load(Z[cols])
        s, late = fc.dot(x, fc.load(Y[cols]).T), fc.dot(x, z.T)
        t = fc.tanh(s)
        d = fc.exp(fc.where(cols.valid, t, -fc.inf)) * (late - 1.0)
        most = fc.max(fc.max(fc.where(cols.valid, late, -100.0), axis=cols), axis=rows)
        d = d * most * fc.exp(fade) * (1.0 - t * t)
        out <<= out + fc.dot(fc.where(cols.valid, d, 0.0).to(Z.dtype), z)
        fade <<= fade * 0.5
    fc.store(O[rows], out)


@pytest.mark.filterwarnings("ignore:this max is of one tile")
@pytest.mark.parametrize("target", SCHEDULES)
def test_numbers_that_are_known_late_stay_where_they_are(target):
    program = scaled.compile(target=target, schedule=SCHEDULES[target], T=fc.f16, D=16)
    x, y, z = ((np.random.default_rng(n).standard_normal((70, 16)) / 4).astype(np.float16) for n in range(3))
    got, want = (run(X=x, Y=y, Z=z)["O"] for run in (program.simulate, program.interpret))
    assert np.abs(got - want).max() < 5e-3 * np.abs(want).max()
