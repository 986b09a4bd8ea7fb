"""`fc.online_softmax`: the softmax that a spec would write out, masked where its axis ends and where its loop is not live."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.core import walk, walk_kernel
from fcgen.sim.tile import interpret

TILES = {"BM": 16, "BN": 16}


@fc.kernel
def rows_of(Q: "f16[M, D]", K: "f16[N, D]", V: "f16[N, E]", O: "out f32[M, E]", L: "out f32[M]", *, scale: "f32 > 0", mask="none"):
    (rows,) = fc.grid(fc.tile(Q.M, "BM"))
    q, soft = fc.load(Q[rows]), fc.online_softmax(rows, V.E)
    live = {"none": None, "causal": lambda cols: cols.index <= rows.index, "never": lambda cols: cols.index < 0}[mask]
    for cols in fc.loop(fc.tile(K.N, "BN"), live=live):
        soft.add(fc.dot(q, fc.load(K[cols]).T) * scale, V[cols])
    fc.store(O[rows], soft.out())
    fc.store(L[rows], soft.lse())


@fc.kernel
def by_hand(Q: "f16[M, D]", K: "f16[N, D]", V: "f16[N, E]", O: "out f32[M, E]", L: "out f32[M]", *, scale: "f32 > 0"):
    (rows,) = fc.grid(fc.tile(Q.M, "BM"))
    q = fc.load(Q[rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    live = lambda cols: cols.index <= rows.index
    for cols in fc.loop(fc.tile(K.N, "BN"), live=live):
        s = fc.dot(q, fc.load(K[cols]).T) * scale
        s = fc.where(cols.valid & live(cols), s, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        base = fc.where(top == -fc.inf, 0.0, top)
        p, fade = fc.exp(s - base), fc.exp(m - base)
        l <<= l * fade + fc.sum(p, axis=1)
        v = fc.load(V[cols])
        acc <<= acc * fade + fc.dot(p.to(V.dtype), v)
        m <<= top
    fc.store(O[rows], fc.where(l == 0.0, 0.0, acc / l))
    fc.store(L[rows], m + fc.log(l))


def draw(m: int = 21, n: int = 37, d: int = 16):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((s, d)).astype(np.float16) for s in (m, n, n))
    return {"Q": q, "K": k, "V": v, "scale": 0.25}


def reference(Q, K, V, scale, mask):
    s = Q.astype(np.float64) @ K.astype(np.float64).T * scale
    i, j = np.arange(len(Q))[:, None], np.arange(len(K))
    s = np.where({"none": j >= 0, "causal": j <= i, "never": j < 0}[mask], s, -np.inf)
    top = s.max(1, keepdims=True)
    e = np.exp(s - np.where(np.isinf(top), 0.0, top))
    l = e.sum(1)
    with np.errstate(divide="ignore"):
        return e @ V / np.where(l == 0, 1.0, l)[:, None], np.where(l == 0, -np.inf, top[:, 0] + np.log(l))


@pytest.mark.parametrize("mask", ["none", "causal", "never"])
def test_ends_and_dead_positions_count_nothing(mask) -> None:
    """No mask is written in the spec: the 37 columns end inside a tile of 16."""
    args = draw()
    got = interpret(rows_of.trace(TILES, D=16, E=16, mask=mask), args)
    want, lse = reference(mask=mask, **args)
    np.testing.assert_allclose(got["O"], want, atol=2e-3)
    np.testing.assert_allclose(got["L"], lse, atol=1e-3)


def test_it_is_the_program_that_one_writes_by_hand() -> None:
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 32})
    kinds = []
    for spec, more in ((rows_of, {"mask": "causal"}), (by_hand, {})):
        p = spec.compile(target="sm_89", schedule=schedule, D=64, E=64, **more)
        kinds.append([(op.kind, [str(r.type) for r in op.results]) for op in walk_kernel(p.machine)])
    assert kinds[0] == kinds[1]


def test_its_dots_and_loads_have_names() -> None:
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, math="wgmma", copy="tma", late="acc", stages={"v": 3})
    assert rows_of.compile(target="sm_90a", schedule=schedule, D=64, E=64).machine


def test_two_of_them_and_one_without_values() -> None:
    @fc.kernel
    def two(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        first, second = fc.online_softmax(rows), fc.online_softmax(rows)
        for cols in fc.loop(fc.tile(X.N, "BN")):
            x = fc.load(X[rows, cols])
            first.add(x)
            second.add(-x, where=cols.index != 3)
        fc.store(Y[rows], first.lse() - second.max + second.sum * 0.0)

    x = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    rest = np.delete(x, 3, axis=1)
    np.testing.assert_allclose(interpret(two.trace(TILES), {"X": x})["Y"], np.log(np.exp(x).sum(1)) + rest.min(1), rtol=1e-5)


def test_columns_of_a_known_number_need_no_loop() -> None:
    @fc.kernel
    def whole(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        soft = fc.online_softmax(rows)
        soft.add(fc.load(X[rows]))
        fc.store(Y[rows], soft.lse())

    x = np.random.default_rng(0).standard_normal((20, 24)).astype(np.float32)
    kernel = whole.trace({"BM": 16}, N=24)
    assert not [op for op in walk(kernel.body) if op.kind == "lt"]
    np.testing.assert_allclose(interpret(kernel, {"X": x})["Y"], np.log(np.exp(x).sum(1)), rtol=1e-5)


@pytest.mark.parametrize("use, message", [
    (lambda s, x, v, rows, D: s.add(x[0]), "takes tiles of scores"), (lambda s, x, v, rows, D: s.add(x.to(fc.f16), v), "in float32"),
    (lambda s, x, v, rows, D: s.add(x), "values with every tile"), (lambda s, x, v, rows, D: s + 1.0, "no tile"),
    (lambda s, x, v, rows, D: fc.online_softmax(rows).acc, "sums up no values"),
    (lambda s, x, v, rows, D: fc.online_softmax(x), "range of its"),
    (lambda s, x, v, rows, D: s.add(x, v, where=x), "i1"), (lambda s, x, v, rows, D: s.add(x, x), "contracts")])
def test_mistakes_are_told_at_the_spec_s_line(use, message) -> None:
    @fc.kernel
    def bad(X: "f32[M, N]", V: "f32[N, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        soft = fc.online_softmax(rows, V.D)
        for cols in fc.loop(fc.tile(X.N, "BN")):
            use(soft, fc.load(X[rows, cols]), fc.load(V[cols]), rows, V.D)
        fc.store(Y[rows], soft.out())

    with pytest.raises(FcError, match=message) as e:
        bad.trace(TILES, D=16)
    assert e.value.code.startswith("trace/") and e.value.loc is not None and "test_online.py" in e.value.loc.file
