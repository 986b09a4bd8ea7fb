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
    assert not covered(p.tile)
    x, w = np.ones((4, 8), np.float32), np.ones((2, 8), np.float32)
    np.testing.assert_allclose(p.simulate(X=x, W=w)["Y"].sum(axis=1), [16, 16, 8, 8])


def test_what_must_be_as_long_is_a_line_of_the_machine_ir():
    machine = program(persistent="static").machine
    text = str(machine)
    assert "meta covers = ((W, 0, H), (W, 0, 3))" in text and covered(from_text(text, "a.fc")) == (("W", 0, "H"), ("W", 0, 3))
    for line in ("((W, 3, H), (W, 0, 3))", "((V, 0, H),)", "((W, 0, G),)", "((W, 0),)"):
        with pytest.raises(FcError, match="covers"):
            from_text(text.replace("((W, 0, H), (W, 0, 3))", line), "a.fc")


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
