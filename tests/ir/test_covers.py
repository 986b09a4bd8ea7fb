"""Tensors that a program reads at its own place in the grid are as long as the grid, or the call is refused."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.compiler import from_text
from fcgen.errors import FcError
from fcgen.ir.covers import covered
from fcgen.kernels.attention import attention


@fc.kernel
def scaled(X: "f32[H, M, N]", W: "f32[G, M, N]", Y: "out f32[H, M, N]"):
    h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        fc.store(Y[h, rows, cols], fc.load(X[h, rows, cols]) * fc.load(W[h, rows, cols]) + fc.load(W[2, rows, cols]))


def inputs(h, g):
    rng = np.random.default_rng(h)
    return {n: rng.standard_normal((k, 8, 8)).astype(np.float32) for n, k in (("X", h), ("W", g))}


def program(target="sm_89", **fields):
    return scaled.compile(target=target, schedule=fc.Schedule(tiles={"BM": 16, "BN": 16}, **fields), check=False)


@pytest.mark.parametrize("run", ["interpret", "simulate"])
@pytest.mark.parametrize("h, g, want", [(4, 3, "at least 4, the size of H"), (2, 2, "at least 3"), (4, 4, ""), (2, 9, "")])
def test_a_tensor_shorter_than_the_grid_is_refused(run, h, g, want):
    if not want:
        getattr(program(), run)(**inputs(h, g))
        return
    with pytest.raises(FcError, match="axis 0 of argument `W` is too short") as e:
        getattr(program(), run)(**inputs(h, g))
    assert e.value.code == "call/argument" and e.value.expected == want and e.value.got == g


def test_what_stands_under_a_condition_may_be_shorter():
    @fc.kernel
    def spec(X: "f32[H, M]", W: "f32[G, M]", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        x = fc.var(fc.load(X[h, rows]))
        with fc.when(h < W.G):
            x <<= x + fc.load(W[h, rows])
        fc.store(Y[h, rows], x)

    p = spec.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}), check=False)
    assert not covered(p.tile)  # the condition says so
    x, w = np.ones((4, 8), np.float32), np.ones((2, 8), np.float32)
    np.testing.assert_allclose(p.simulate(X=x, W=w)["Y"].sum(axis=1), [16, 16, 8, 8])


def test_what_must_be_as_long_is_a_line_of_the_machine_ir():
    machine = program(persistent="static").machine
    text = str(machine)
    some = ("lt", 0, ("floordiv", ("add", "N", 15), 16))  # where there is a tile of columns
    line = "((W, 0, (at, 0), (lt, 0, (floordiv, (add, N, 15), 16))), (W, 0, 2, (lt, 0, (floordiv, (add, N, 15), 16))))"
    assert f"meta covers = {line}" in text and covered(from_text(text, "a.fc")) == (("W", 0, ("at", 0), some), ("W", 0, 2, some))
    for wrong in ("((W, 3, H),)", "((V, 0, H),)", "((W, 0, Z),)", "((W, 0),)", "((W, 0, (at, 7)),)", "((W, 0, (add, 1)),)", "((W, 0, (exp, 1)),)"):
        with pytest.raises(FcError, match="covers"):
            from_text(text.replace(line, wrong), "a.fc")


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("read, want", [
    (lambda t: lambda s, b, h, i, j: s + t[h, i, j], "at least 4, the size of H"),
    (lambda t: lambda s, b, h, i, j: s + t[0, i, j], ""),
    (lambda t: lambda s, b, h, i, j: s + t[5, i, j], "at least 6"),
])
def test_captured_tensors_that_are_loaded_as_tiles_are_long_enough(target, read, want):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 4, 16, 16)).astype(np.float16) for _ in range(3))
    table = rng.standard_normal((1, 16, 16)).astype(np.float32)
    p = attention.compile(target=target, T=fc.f16, D=16, E=16, mask="none", score=read(table), check=False)
    given = {"Q": q, "K": k, "V": v, "scale": 0.25}
    if want:
        with pytest.raises(FcError, match="is too short") as e:
            p.simulate(**given)
        assert e.value.expected == want
    else:
        np.testing.assert_allclose(p.simulate(**given)["O"].astype(float), p.interpret(**given)["O"].astype(float), atol=2e-3)


def placed(index):
    """Rows of W at a place that is computed from the grid: index(h, i, W, step)."""
    @fc.kernel
    def spec(X: "f32[H, M]", W: "f32[G, M]", step: "i32", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        x = fc.var(fc.load(X[h, rows]))
        for i in fc.loop(W.G):
            x <<= x + fc.load(W[index(h, i, W, step), rows])
        fc.store(Y[h, rows], x)

    return spec.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}), check=False)


@pytest.mark.parametrize("index, heads, rows, step, wrong", [
    (lambda h, i, W, step: h // 2, 6, 3, 0, ""),
    (lambda h, i, W, step: h // 2, 7, 3, 0, "at least 4"),
    (lambda h, i, W, step: h // step, 6, 2, 3, ""),
    (lambda h, i, W, step: h // step, 6, 2, 2, "at least 3"),
    (lambda h, i, W, step: h + step, 2, 3, 1, ""),
    (lambda h, i, W, step: h + step, 2, 3, 2, "at least 4"),
    (lambda h, i, W, step: h + step, 2, 3, -1, "positions from 0 on"),
    (lambda h, i, W, step: h - h // 3 * 3, 9, 3, 0, ""),  # what intervals alone do not know
    (lambda h, i, W, step: h % 4, 9, 3, 0, "at least 4"),
    (lambda h, i, W, step: h % W.G, 9, 3, 0, ""),
    (lambda h, i, W, step: W.G - 1 - i, 2, 3, 0, ""),
    (lambda h, i, W, step: W.G - i, 2, 3, 0, "at least 4"),
    (lambda h, i, W, step: i * 2 - i, 2, 3, 0, ""),
    (lambda h, i, W, step: fc.minimum(h * 3, W.G - 1), 5, 2, 0, ""),
    (lambda h, i, W, step: h * 3 + 5, 0, 2, 0, ""),  # of no programs
    (lambda h, i, W, step: h * 3 + 5 + i, 2, 0, 0, ""),  # of no iterations
    (lambda h, i, W, step: h * 3 + 5, 2, 0, 0, "at least 9"),  # the same in each, so that it is read in front of the loop
])
@pytest.mark.parametrize("run", ["interpret", "simulate"])
def test_places_that_are_computed_lie_inside(run, index, heads, rows, step, wrong):
    p = placed(index)
    given = {"X": np.ones((heads, 8), np.float32), "W": np.ones((rows, 8), np.float32), "step": step}
    if not wrong:
        np.testing.assert_allclose(getattr(p, run)(**given)["Y"], 1 + rows * np.ones((heads, 8)))
        return
    with pytest.raises(FcError) as e:
        getattr(p, run)(**given)
    assert e.value.code == "call/argument" and e.value.expected == wrong and "reaches" in str(e.value)


def test_the_empty_reach_no_place():
    p = program()
    for h, n in ((0, 8), (4, 0)):
        x = {"X": np.ones((h, 8, n), np.float32), "W": np.ones((0, 8, n), np.float32)}
        assert p.interpret(**x)["Y"].size == p.simulate(**x)["Y"].size == 0


@pytest.mark.parametrize("run", ["interpret", "simulate"])
@pytest.mark.parametrize("read, want", [
    (lambda t: lambda s, b, h, i, j: s + t[h], "at least 4, the size of H"), (lambda t: lambda s, b, h, i, j: s + t[h // 2], ""),
    (lambda t: lambda s, b, h, i, j: s + t[h + 1], ""),  # the next one, if there is one
])
def test_one_number_for_each_program_is_there_or_refused(run, read, want):
    """As `fcgen.attention` refuses slopes that are fewer than its heads."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 4, 16, 16)).astype(np.float16) for _ in range(3))
    p = attention.compile(target="sm_89", T=fc.f16, D=16, E=16, mask="none", score=read(np.ones(3, np.float32)), check=False)
    if not want:
        getattr(p, run)(Q=q, K=k, V=v, scale=0.25)
        return
    with pytest.raises(FcError, match="is too short") as e:
        getattr(p, run)(Q=q, K=k, V=v, scale=0.25)
    assert e.value.expected == want


def test_loops_without_iterations_around_places_of_unknown_ends_reach_nothing():
    @fc.kernel
    def spec(X: "f32[H, M]", W: "f32[G, M]", step: "i32", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        x = fc.var(fc.load(X[h, rows]))
        for i in fc.loop(step, start=step + 1):
            for j in fc.loop(step // 1, start=h % -3):
                x <<= x + fc.load(W[fc.where(fc.maximum(i, step) < W.G, 1, j % 3), rows])
        fc.store(Y[h, rows], x)

    p = spec.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}), check=False)
    for run in (p.interpret, p.simulate):
        assert run(X=np.ones((2, 2), np.float32), W=np.ones((8, 2), np.float32), step=3)["Y"].sum() == 4


@pytest.mark.parametrize("branch, index", [
    (branch, index) for branch in (lambda h, I: h >= 0, lambda h, I: I[h] > 5) for index in (
        lambda h, i, I: i * 0 + h, lambda h, i, I: i % 1 + h, lambda h, i, I: I[h] + i * 0, lambda h, i, I: I[h])
] + [(lambda h, I: I[h] > 5, lambda h, i, I: h)])
def test_what_only_iterations_read_is_not_read_without_any(branch, index):
    """Places that are folded, or hang on what tensors hold, or stand in a branch: no line answers for them in front of the loop."""
    @fc.kernel
    def spec(X: "f32[H, M]", W: "f32[G, M]", I: "i32[H]", n: "i32", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        x = fc.var(fc.load(X[h, rows]))
        with fc.when(branch(h, I)):
            for j in fc.loop(2):
                for i in fc.loop(n + j, start=j):
                    x <<= x + fc.load(W[index(h, i, I), rows])
        fc.store(Y[h, rows], x)

    p = spec.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}), check=False)
    short, away = {"X": np.ones((4, 8), np.float32), "W": np.ones((2, 8), np.float32)}, np.full(4, 100, np.int32)
    for run in (p.interpret, p.simulate):
        assert run(**short, I=away, n=0)["Y"].sum() == 32


@pytest.mark.parametrize("where", ["tensor", "grid"])
def test_what_is_read_ahead_is_not_read_where_there_is_no_iteration(where):
    @fc.kernel
    def spec(X: "f16[M, D]", W: "f16[N, D]", B: "f32[G, N]", I: "i32[Z]", J: "i32[Z]", n: "i32", times: "i32", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x, acc = fc.load(X[rows, :]), fc.var(fc.zeros(rows, X.D))
        for _ in fc.loop(times):  # two loops, each of which would read ahead of itself
            for cols in fc.loop(fc.tile(n if where == "tensor" else J[0], "BN")):
                b = fc.load(B[I[0] if where == "tensor" else rows.start // 64 + 3, cols])
                s = fc.dot(x, fc.load(W[cols, :]).T) + b
                acc <<= acc + fc.dot(fc.where(cols.valid, s, 0.0).to(fc.f16), fc.load(W[cols, :]))
        fc.store(Y[rows, :], acc)

    p = spec.compile(target="sm_89", D=16, schedule=fc.Schedule(tiles={"BM": 64, "BN": 16}, stages={"b": 0}), check=False)
    given = {"X": np.ones((8, 16), np.float16), "W": np.ones((8, 16), np.float16), "B": np.ones((2, 8), np.float32)}
    for n, times in ((0, 2), (8, 0), (0, 0)) if where == "tensor" else ((8, 0), (0, 0)):
        assert p.simulate(**given, I=np.full(1, 100, np.int32), J=np.full(1, n, np.int32), n=n, times=times)["Y"].sum() == 0
    given["B"] = np.ones((4, 8), np.float32)
    assert p.simulate(**given, I=np.full(1, 1, np.int32), J=np.full(1, 8, np.int32), n=8, times=1)["Y"].sum() == 8 * 16 * 8 * 17


@pytest.mark.parametrize("run", ["interpret", "simulate"])
def test_what_a_loop_adds_to_one_place_is_there_even_if_it_has_no_iterations(run):
    """It is added once, behind the loop."""
    @fc.kernel
    def spec(X: "f32[M, N]", S: "inout f32[P]", C: "inout f32[P]", *, few: "i32"):
        (m,) = fc.grid(X.M)
        for ns in fc.loop(fc.tile(X.N, "BN")):
            fc.atomic_add(S[m], fc.sum(fc.load(X[m, ns])))
            with fc.when(m < few):
                fc.atomic_add(C[m], 1.0)

    p = spec.compile(target="sm_89", schedule=fc.Schedule(tiles={"BN": 16}), check=False)
    given = {"X": np.zeros((5, 0), np.float32), "few": 2}
    with pytest.raises(FcError, match="axis 0 of argument `S` is too short") as e:
        getattr(p, run)(**given, S=np.zeros(2, np.float32), C=np.zeros(2, np.float32))
    assert e.value.expected.startswith("at least 5")
    getattr(p, run)(**given, S=np.zeros(5, np.float32), C=np.zeros(5, np.float32))


@pytest.mark.parametrize("index, where", [(lambda i, I: i * 0 + 5, 0), (lambda i, I: I[0], 0), (lambda i, I: 5, 99)])
def test_what_only_iterations_add_is_not_added_without_any(index, where):
    @fc.kernel
    def spec(X: "f32[M, N]", S: "inout f32[P]", I: "i32[Z]", *, few: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows, :])
        with fc.when(I[0] > where):
            for i in fc.loop(few):
                fc.atomic_add(S[index(i, I)], fc.sum(fc.sum(x, axis=1), axis=0) * i.to(fc.f32))

    p = spec.compile(target="sm_89", N=16, schedule=fc.Schedule(tiles={"BM": 16}), check=False)
    for run in (p.interpret, p.simulate):
        assert not run(X=np.ones((16, 16), np.float32), S=np.zeros(2, np.float32), I=np.full(1, 100, np.int32), few=0)["S"].any()
