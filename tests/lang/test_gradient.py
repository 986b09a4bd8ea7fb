"""`fc.grad(spec)`: gradients of whole kernels against numerical ones in float64, interpreted, simulated; what has none is told with its line."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from tests.gradients import compare, example

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("target, schedule", [
    ("sm_89", fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}, stages=2)),
    ("sm_90a", fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}, warps=4, math="wgmma", copy="tma"))])
def test_a_product_with_an_epilogue(target, schedule) -> None:
    e, given = example("gemm", m=100, n=72, k=88)
    program = compare(e.spec, e.reference, given, e.binding, schedule, target)
    assert [p.name for p in program.params] == ["A", "B", "bias", "dC", "dA", "dB", "dbias"]


def test_sigmoid_attention() -> None:
    e, given = example("sigmoid_attention", b=1, h=2, m=50, n=70, d=32)
    compare(e.spec, e.reference, given, {"T": fc.f16, "D": 32, "E": 32}, fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}))


def test_of_the_tensors_that_are_named() -> None:
    e, given = example("gemm", m=40, n=40, k=40)
    program = compare(e.spec, e.reference, given, e.binding, fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}), of=("bias",), runs=("interpret",))
    assert "dA" not in [p.name for p in program.params] and str(program.tile).count("reduce = add") == 1
    with pytest.raises(fc.FcError, match="reads no tensor of floats called C"):
        fc.grad(e.spec, "C").trace({"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}, **e.binding)


@fc.kernel
def polynomial(X: "f32[M, N]", W: "f32[N]", V: "f32[R]", Y: "out f32[M, N]", Z: "out f32[M]"):
    """Two outputs, a loop that stores, a loop in a loop, places that a table says, a product that adds to its sum."""
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    total = fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        x, w = fc.load(X[rows, cols]), fc.load(W[cols])
        inner = fc.var(fc.zeros(rows, cols))
        for n in fc.loop(3):
            inner <<= x * V[n] + inner
        y = inner * w + fc.exp(x * 0.1) * V[rows.index % 5]
        total <<= total + fc.sum(fc.where(cols.valid, y * y, 0.0), axis=1)
        fc.store(Y[rows, cols], y)
    fc.store(Z[rows], total * 0.5)


def test_loops_that_store_loops_in_loops_and_places_of_a_table() -> None:
    def reference(X, W, V):
        y = X * V[:3].sum() * W + np.exp(X * 0.1) * V[np.arange(len(X)) % 5][:, None]
        return {"Y": y, "Z": 0.5 * (y * y).sum(1)}

    rng = np.random.default_rng(1)
    given = {"X": rng.standard_normal((20, 44)), "W": rng.standard_normal(44), "V": rng.standard_normal(5)}
    given = {n: x.astype(np.float32).astype(float) for n, x in given.items()}
    compare(polynomial, reference, given, {}, fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 32}), tolerance=1e-3)


def traced(fn):
    return fc.grad(fc.kernel(fn)).trace({"BM": 16, "BN": 16})


def test_what_is_stored_over_or_read_back_is_refused() -> None:
    def twice(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        fc.store(Y[rows], x)
        fc.store(Y[rows], x * 2.0)

    def last(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            fc.store(Y[rows], fc.sum(fc.load(X[rows, cols]), axis=1))

    def back(X: "f32[M]", Y: "inout f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(X[rows]) * fc.load(Y[rows]))

    def named(X: "f32[M]", dX: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(X[rows]) * fc.load(dX[rows]))

    for fn, said in ((twice, "stores Y twice"), (last, "stores over"), (back, "reads what it writes: Y"), (named, "dX is one of the spec's")):
        with pytest.raises(fc.FcError, match=said) as e:
            traced(fn)
        assert e.value.code == "trace/grad"


def test_a_spec_that_reads_no_floats_has_no_gradient() -> None:
    def counts(X: "i32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(X[rows]).to(fc.f32))

    with pytest.raises(fc.FcError, match="reads no tensor of floats"):
        traced(counts)


def test_it_is_of_a_spec_and_compiled_before_it_is_called() -> None:
    spec = importlib.import_module("gemm").gemm_bias_gelu
    for wrong, said in ((lambda: fc.grad(3), "takes a spec"), (lambda: fc.grad(fc.grad(spec)), "no gradient"), (lambda: fc.grad(spec.until("acc")), "takes a spec"), (lambda: fc.grad(spec, 3), "takes names"),
                        (lambda: fc.grad(spec)(1), "compiled before"), (lambda: fc.grad(spec).until("x"), "not stopped")):
        with pytest.raises(fc.FcError, match=said):
            wrong()


def test_a_schedule_is_found_for_it() -> None:
    e, given = example("gemm", m=70, n=50, k=40)
    compare(e.spec, e.reference, given, e.binding, None, "sm_89", runs=("interpret",))
