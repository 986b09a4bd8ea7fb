# mypy: disable-error-code="name-defined, valid-type, syntax"
"""`totals`: what a loop adds to one place of memory is added once behind it, and nothing else is moved."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk
from fcgen.passes.tile import simplify, totals
from fcgen.sim.tile import interpret


@fc.kernel
def sums(X: "f32[M, N]", Whole: "inout f32[K]", Rows: "inout f32[M]", Each: "inout f32[N]", Read: "inout f32[M]",
         Some: "inout f32[K]", Y: "out f32[M]", *, limit: "i32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        x = fc.load(X[rows, cols])
        fc.atomic_add(Whole[2], fc.sum(x, axis=None))
        fc.atomic_add(Rows[rows], fc.sum(x, axis=cols))
        fc.atomic_add(Each[cols], fc.sum(x, axis=rows))  # moves along
        fc.atomic_add(Read[rows], fc.sum(x * x, axis=cols))
        top = fc.max(x, axis=None)
        with fc.when(limit > 1):
            fc.atomic_add(Some[0], top)
        with fc.when(cols.start < limit):  # hangs on the loop
            fc.atomic_add(Some[1], top)
    fc.store(Y[rows], fc.load(Read[rows]))


def traced():
    return simplify.run(sums.trace({"BM": 8, "BN": 4}), None, None)  # type: ignore[arg-type]


def adds(block):
    return [op.operands[0].name for op in walk(block) if op.kind == "store" and op.get("reduce")]


def test_what_stays_and_what_is_moved() -> None:
    kernel = totals.run(traced(), None, None)  # type: ignore[arg-type]
    (loop,) = [op for op in kernel.body.ops if op.kind == "for"]
    assert adds(loop.regions[0]) == ["Each", "Read", "Some"]
    behind = kernel.body.ops[kernel.body.ops.index(loop) + 1:]
    assert [adds(type(kernel.body)((), (op,))) for op in behind if adds(type(kernel.body)((), (op,)))] == [["Whole"], ["Rows"], ["Some"]]
    assert {str(v.type) for v in loop.results} == {"f32[8]", "f32"}, "a sum of all elements is carried as a row of them"


@pytest.mark.parametrize("n", [0, 1, 4, 11])
@pytest.mark.parametrize("limit", [0, 5])
def test_the_sums_are_the_same(n, limit) -> None:
    rng = np.random.default_rng(n)
    zeros = {name: np.ones(k) for name, k in (("Whole", 3), ("Rows", 21), ("Each", n), ("Read", 21), ("Some", 3))}
    args = {"X": rng.integers(-8, 8, (21, n)), "limit": limit, **zeros}
    want = interpret(traced(), args)
    got = interpret(totals.run(traced(), None, None), args)  # type: ignore[arg-type]
    for name, x in want.items():
        np.testing.assert_array_equal(got[name], x, name)


@pytest.mark.parametrize("target, schedule", [("sm_89", fc.Schedule(tiles={"BM": 16, "BN": 8}, warps=2)),
                                              ("sm_90a", fc.Schedule(tiles={"BM": 64, "BN": 16}, warps=4))])
def test_in_a_whole_kernel(target, schedule) -> None:
    rng = np.random.default_rng(1)
    zeros = {name: np.zeros(k) for name, k in (("Whole", 3), ("Rows", 50), ("Each", 37), ("Read", 50), ("Some", 3))}
    args = {"X": rng.integers(-8, 8, (50, 37)), "limit": 5, **zeros}
    program = sums.compile(target=target, schedule=schedule)
    want, got = program.interpret(**args), program.simulate(**args)
    for name, x in want.items():
        np.testing.assert_array_equal(got[name], x, name)
