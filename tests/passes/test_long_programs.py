"""Programs as long or as nested as a Python loop makes them: they compile, or are refused with words."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.compiler import to_cuda
from fcgen.build.deep import with_room

STEPS = 300


def elements(X: "f32[M]", Y: "out f32[M]", *, k: "i32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[rows])
    for _ in range(STEPS):
        x = x * 1.01 + 0.5
    fc.store(Y[rows], x)


def positions(X: "f32[M]", Y: "out f32[M]", *, k: "i32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    i = rows.index
    for _ in range(STEPS):
        i = (i * 3 + k) % 1000
    fc.store(Y[rows], fc.load(X[rows]) + i.to(fc.f32))


def variables(X: "f32[M]", Y: "out f32[M]", *, k: "i32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    v = fc.var(fc.load(X[rows]))
    for i in range(STEPS // 4):
        with fc.when(k > i):
            v <<= v * 0.5 + 1.0
    fc.store(Y[rows], v)


@pytest.mark.parametrize("body", [elements, positions, variables])
def test_unrolled_steps(body: Callable[..., Any]) -> None:
    program = fc.kernel(body).compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 32}, warps=1))
    inputs = {"X": np.linspace(0, 1, 40, dtype=np.float32), "k": 7}
    np.testing.assert_allclose(program.simulate(**inputs)["Y"], program.interpret(**inputs)["Y"], rtol=1e-4)
    assert "__global__" in to_cuda(program.machine, program.target).text


def squares(x: Any) -> Any:
    """Of which each step reads the one before twice: there are 2**60 ways through them."""
    for _ in range(30):
        x = x * x + x
    return x


@fc.kernel
def operands(A: "f16[M, K]", B: "f16[N, K]", C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(squares(fc.load(A[rows, ks])), squares(fc.load(B[cols, ks])).T)
    fc.store(C[rows, cols], squares(acc))


@fc.kernel
def weights(Q: "f16[M, D]", K: "f16[N, D]", O: "out f32[M, D]"):
    (rows,) = fc.grid(fc.tile(Q.M, "BM"))
    q, acc, l = fc.load(Q[rows]), fc.var(fc.zeros(rows, Q.D)), fc.var(fc.zeros(rows))
    for ns in fc.loop(fc.tile(K.N, "BN")):
        k = fc.load(K[ns])
        p = squares(fc.dot(q, k.T))
        f = squares(l)
        l <<= l * f + fc.sum(p, axis=1)
        acc <<= acc * f + fc.dot(p.to(Q.dtype), k)
    fc.store(O[rows], acc / squares(l))


@fc.kernel
def places(A: "f16[M, K]", B: "f16[N, K]", C: "out f32[M, N]", *, n: "f32"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK"), live=lambda ks: squares(ks.index) <= squares(rows.index)):
        s = fc.dot(fc.load(A[rows, ks]), fc.load(B[cols, ks]).T) * squares(n)
        acc <<= acc + fc.where(squares(rows.index) > cols.index, s, 0.0)
    fc.store(C[rows, cols], acc)


HOPPER = {"math": "wgmma", "copy": "tma", "epilogue": "direct"}


@pytest.mark.parametrize(("spec", "fields", "arch", "binding"), [
    (operands, {}, "sm_89", {}), (operands, {**HOPPER, "makers": 4}, "sm_90a", {}), (weights, {**HOPPER, "late": "acc"}, "sm_90a", {"D": 64}),
    (places, {}, "sm_89", {}), (places, HOPPER, "sm_90a", {})])
def test_values_that_are_read_twice_at_each_step(spec: Any, fields: dict[str, Any], arch: str, binding: dict[str, int]) -> None:
    """Each value is looked at once, however many ways lead to it, and its text is written once."""
    tiles = {"BM": 64, "BN": 64, **({} if spec is weights else {"BK": 64})}
    program = spec.compile(target=arch, schedule=fc.Schedule(tiles=tiles, **fields), check=False, **binding)
    assert len(to_cuda(program.machine, program.target).text) < 100_000


def test_a_schedule_for_values_that_are_read_twice() -> None:
    assert fc.schedule_for(weights, "sm_90a", D=64).tiles


@pytest.mark.parametrize(("kind", "levels"), [("branch", 300), ("loop", 20)])
def test_deep_nests_are_refused(kind: str, levels: int) -> None:
    def spec(X: "f32[M]", Y: "out f32[M]", *, k: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))

        def level(i: int) -> None:
            if i == levels:
                return
            if kind == "branch":
                with fc.when(k > i):  # here
                    level(i + 1)
            else:
                for _ in fc.loop(2):  # here
                    level(i + 1)

        level(0)
        fc.store(Y[rows], fc.load(X[rows]))

    with pytest.raises(fc.FcError, match=f"a {kind} inside") as caught:
        fc.kernel(spec).trace({"BM": 16})
    assert "# here" in caught.value.loc.source_line()


def test_nests_that_are_not_refused() -> None:
    def spec(X: "f32[M]", Y: "out f32[M]", *, k: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        v = fc.var(fc.load(X[rows]))

        def level(i: int) -> None:
            if i == 12:
                v.__ilshift__(v + 1.0)
                return
            with fc.when(k > i):
                level(i + 1)

        level(0)
        fc.store(Y[rows], v)

    program = fc.kernel(spec).compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 32}, warps=1))
    for k in (11, 12):
        np.testing.assert_array_equal(program.simulate(X=np.zeros(32), k=k)["Y"], k == 12)


def test_room_is_made_and_what_has_none_is_told() -> None:
    def down(n: int) -> int:
        return n and 1 + sum(down(n - 1) for _ in range(1))

    limit = sys.getrecursionlimit()
    assert with_room(lambda: down(2000), 3000) == 2000
    assert sys.getrecursionlimit() == limit
    with pytest.raises(fc.FcError, match="longer chains"):
        with_room(lambda: down(10**6), 500)
    with pytest.raises(ZeroDivisionError):
        with_room(lambda: 1 // 0, 500)
    assert with_room(lambda: with_room(lambda: 5, 500), 500) == 5


def test_where_no_thread_can_begin_it_is_said_and_those_of_others_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    limit, size = sys.getrecursionlimit(), threading.stack_size()
    try:
        with pytest.raises(fc.FcError, match="no room for a program of so many operations"):
            with_room(lambda: 5, 5000)
        assert (sys.getrecursionlimit(), threading.stack_size()) == (limit, size)
    finally:
        threading.stack_size(size)
