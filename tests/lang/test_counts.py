"""Scalars of a launch, and elements of tensors, say how many tiles loops and the grid have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.sim.oracle import Oracle
from fcgen.sim.trial import run_trials

ADA = fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=2)
HOPPER = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, math="wgmma", copy="tma", warps=4)
TARGETS = {"sm_89": ADA, "sm_90a": HOPPER}


def softmax_rows(s: Any, cols: Any, m: Any, l: Any) -> tuple[Any, Any, Any]:
    top = fc.maximum(m, fc.max(s, axis=1))
    base = fc.where(top == -fc.inf, 0.0, top)
    p, fade = fc.exp(s - base), fc.exp(m - base)
    return p, fade, top


@fc.kernel
def seen_keys(Q: "f16[B, M, D]", K: "f16[B, N, D]", V: "f16[B, N, D]", Lens: "i32[B]", O: "out f16[B, M, D]", *, n: "i32", by="n"):
    b, rows = fc.grid(Q.B, fc.tile(Q.M, "BLOCK_M"))
    end = n if by == "n" else Lens[b]
    q = fc.load(Q[b, rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.D))
    for cols in fc.loop(fc.tile(end, "BLOCK_N")):
        s = fc.where(cols.valid & (cols.index < K.N), fc.dot(q, fc.load(K[b, cols]).T) * 0.25, -fc.inf)
        p, fade, top = softmax_rows(s, cols, m, l)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(fc.f16), fc.load(V[b, cols]))
        m <<= top
    fc.store(O[b, rows], fc.where(l == 0.0, 0.0, acc / l).to(O.dtype))


def wanted(q: np.ndarray, k: np.ndarray, v: np.ndarray, lens: list[int]) -> np.ndarray:
    out = np.zeros(q.shape)
    for b, n in enumerate(lens):
        if n > 0:
            s = np.einsum("md,nd->mn", q[b].astype(float), k[b, :n].astype(float)) * 0.25
            w = np.exp(s - s.max(1, keepdims=True))
            out[b] = w @ v[b, :n].astype(float) / w.sum(1, keepdims=True)
    return out


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("by", ["n", "element"])
def test_a_loop_over_as_many_keys_as_a_scalar_says(target: str, by: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, m, 32)).astype(np.float16) for m in (40, 130, 130))
    p = seen_keys.compile(target=target, schedule=TARGETS[target], D=32, by=by)
    for n, lens in ((0, [0, 1, 64]), (70, [130, 97, 5]), (-3, [-7, 200, 32]), (130, [33, 32, 31])):
        given = {"Q": q, "K": k, "V": v, "Lens": np.array(lens, np.int32), "n": n}
        want = wanted(q, k, v, lens if by == "element" else [n] * 3)
        np.testing.assert_allclose(p.interpret(**given)["O"], want, atol=2e-3)
        np.testing.assert_allclose(p.simulate(**given)["O"], want, atol=2e-3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("by", ["n", "element"])
def test_trials_take_such_a_loop_through_its_states(target: str, by: str) -> None:
    p = seen_keys.compile(target=target, schedule=TARGETS[target], D=32, by=by)
    done = run_trials(p.machine, p.target, against=Oracle(p.tile, p.target))
    drawn = {t.numbers["n"] for t in done.ran}
    assert by != "n" or (0 in drawn and any(n and n % 32 == 0 for n in drawn) and any(n > 64 and n % 32 for n in drawn))
    gaps = [line for line in done.gaps() if "mma" in line or ("went around" in line and "q_" not in line)]
    assert not gaps, gaps


@fc.kernel
def first(X: "f32[M, D]", Y: "inout f32[M, D]", *, n: "i32"):
    (i,) = fc.grid(n)
    fc.store(Y[i], fc.load(X[i]) * 2.0)


@pytest.mark.parametrize("schedule", [fc.Schedule(warps=1)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 20])
def test_a_grid_of_as_many_programs_as_a_scalar_says(schedule: fc.Schedule, n: int) -> None:
    x = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    p = first.compile(target="sm_89", schedule=schedule, D=32)
    want = np.concatenate([x[:n] * 2, x[n:]])
    for run in (p.interpret, p.simulate):
        np.testing.assert_array_equal(run(X=x, Y=x, n=n)["Y"], want)
    with pytest.raises(fc.FcError, match="out of range"):
        p.interpret(X=x, Y=x, n=-1)
    assert p.built.facts.grid[0][1] == "n"


@fc.kernel
def tiled(X: "f16[M, D]", W: "f16[D, D]", Y: "inout f32[D]", *, n: "i32"):
    (rows,) = fc.grid(fc.tile(n, "BLOCK_M"))
    x = fc.where(rows.valid, fc.load(X[rows]), 0.0)
    fc.atomic_add(Y[:], fc.sum(fc.dot(x, fc.load(W[:, :])), axis=0))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("persistent", ["none", "static"])
def test_a_grid_of_tiles_of_a_scalar(target: str, persistent: str) -> None:
    if persistent != "none" and target != "sm_90a":
        pytest.skip("persistence is Hopper's")
    from dataclasses import replace

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((m, 64)).astype(np.float16) for m in (300, 64))
    schedule = replace(TARGETS[target], tiles={"BLOCK_M": 64}, persistent=persistent)
    p = tiled.compile(target=target, schedule=schedule, D=64)
    for n in (0, 10, 64, 200):
        want = (x[:n].astype(float) @ w.astype(float)).sum(0)
        for run in (p.interpret, p.simulate):
            np.testing.assert_allclose(run(X=x, W=w, Y=np.zeros(64, np.float32), n=n)["Y"], want, atol=0.2)
    run_trials(p.machine, p.target, against=Oracle(p.tile, p.target))


@fc.kernel
def doubled(X: "f16[M, D]", Y: "inout f16[M, D]", *, n: "i32"):
    (rows,) = fc.grid(fc.tile(n, "BLOCK_M"))
    fc.store(Y[rows], fc.load(X[rows]) * 2.0)


@pytest.mark.parametrize(("target", "how"), [("sm_89", {"epilogue": "direct"}), ("sm_90a", {"epilogue": "tma"})])
def test_tiles_of_a_scalar_end_where_it_says(target: str, how: dict[str, str]) -> None:
    from dataclasses import replace

    x, y = (np.random.default_rng(s).standard_normal((150, 64)).astype(np.float16) for s in (0, 1))
    p = doubled.compile(target=target, schedule=replace(ADA, tiles={"BLOCK_M": 64}, **how), D=64)
    for n in (0, 1, 64, 100, 150, 170):
        for run in (p.interpret, p.simulate):
            np.testing.assert_array_equal(run(X=x, Y=y, n=n)["Y"], np.concatenate([2 * x[:n], y[n:]]))


def test_a_grid_is_sized_by_what_a_launch_knows() -> None:
    @fc.kernel
    def computed(X: "f32[M]", Y: "out f32[M]", *, n: "i32"):
        fc.grid(n + 1)

    with pytest.raises(fc.FcError, match="has to know it: make it a dimension of a tensor, or an i32 parameter"):
        computed.trace({})

    @fc.kernel
    def of_a_float(X: "f32[M]", Y: "out f32[M]", *, n: "f32"):
        fc.grid(n)

    with pytest.raises(fc.FcError, match="has to know it"):
        of_a_float.trace({})

    @fc.kernel
    def covered(X: "f32[M]", Y: "out f32[M]", *, n: "i32"):
        (i,) = fc.grid(n)
        fc.store(Y[i], X[i])

    with pytest.raises(fc.FcError, match="runs over n"):
        covered.trace({})


def test_a_captured_number_says_how_often() -> None:
    @fc.kernel
    def repeated(X: "f32[M]", Y: "out f32[M]", *, times):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        y = fc.var(fc.load(X[rows]))
        for _ in fc.loop(times()):
            y <<= y * 2.0
        fc.store(Y[rows], y)

    n = 3
    p = repeated.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_M": 32}, warps=1), times=lambda: n)
    x = np.arange(40, dtype=np.float32)
    for n in (3, 0, 5):
        np.testing.assert_array_equal(p.interpret(X=x)["Y"], x * 2**n)
        np.testing.assert_array_equal(p.simulate(X=x)["Y"], x * 2**n)
    assert len(p.family._known) == 1
