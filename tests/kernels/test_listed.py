"""Tiles whose rows lie anywhere: found by vectors of positions, or by a page that a table names. Each is a spec of at most 30 lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.core import walk_kernel
from fcgen.ir.parse import parse_kernel

D = 16


def hopper(m: int = 64, n: int = 16, groups: int = 1, **more: Any) -> fc.Schedule:
    return fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", **more)


ADA = fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 16}, warps=2)
SCHEDULES = {
    "ada": ("sm_89", ADA),
    "ada_deep": ("sm_89", fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 16}, warps=2, stages=3)),
    "ada_vector": ("sm_89", fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 16}, warps=2, copy="vector", stages=1)),
    "hopper": ("sm_90a", hopper()),
    "hopper_dynamic": ("sm_90a", hopper(128, 16, 2, late="acc", epilogue="direct", persistent="dynamic")),
}


@fc.kernel
def paged(Q: "T[M, H, D]", K: "T[Pages, P, G, D]", V: "T[Pages, P, G, D]", Table: "i32[W]", O: "out T[M, H, D]", *, scale: "f32 > 0",
          count: "i32"):
    """Pages of any size, smaller than a tile too: every key by its page and its place there."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BLOCK_M"))
    g, q = h // (Q.H // K.G), fc.load(Q[rows, h])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.D))
    for cols in fc.loop(fc.tile(count, "BLOCK_N")):
        page, at = fc.where(cols.valid, Table[cols.index // K.P], -1), cols.index % K.P
        s = fc.where(cols.valid, fc.dot(q, fc.load(K[page, at, g, :]).T) * scale, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        p, fade = fc.exp(s - top), fc.exp(m - top)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(V.dtype), fc.load(V[page, at, g, :]))
        m <<= top
    fc.store(O[rows, h], (acc / l).to(O.dtype))


@fc.kernel
def whole_pages(Q: "T[M, H, D]", K: "T[N, G, D]", V: "T[N, G, D]", Table: "i32[W]", O: "out T[M, H, D]", *, scale: "f32 > 0",
                count: "i32", page: "i32 > 0"):
    """Pages of a tile, or of several: a tile is a run of rows, and the engine copies it."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BLOCK_M"))
    g, q = h // (Q.H // K.G), fc.load(Q[rows, h])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.D))
    for cols in fc.loop(fc.tile(count, "BLOCK_N")):
        n = cols.start // page
        there = cols + (Table[n] - n) * page
        s = fc.where(cols.valid, fc.dot(q, fc.load(K[there, g]).T) * scale, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        p, fade = fc.exp(s - top), fc.exp(m - top)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(V.dtype), fc.load(V[there, g]))
        m <<= top
    fc.store(O[rows, h], (acc / l).to(O.dtype))


def pages(count: int, size: int, total: int = 12) -> tuple[dict[str, Any], np.ndarray]:
    rng = np.random.default_rng(count)
    t = lambda *shape: rng.standard_normal(shape).astype(np.float16)
    table = rng.permutation(total).astype(np.int32)
    args = {"Q": t(20, 2, D), "K": t(total, size, 1, D), "V": t(total, size, 1, D), "Table": table, "scale": 0.3, "count": count}
    k, v = (args[x].astype(float)[table].reshape(-1, D)[:count] for x in "KV")
    e = np.exp(np.einsum("mhd,nd->hmn", args["Q"].astype(float), k) * 0.3)
    want = np.einsum("hmn,nd->mhd", e / e.sum(-1, keepdims=True), v)
    for x in "KV":  # nobody reads what no key lies in
        flat = args[x].reshape(-1, D)
        used = (table[:, None] * size + np.arange(size)).ravel()[:count]
        flat[np.setdiff1d(np.arange(len(flat)), used)] = np.nan
    return args, want


@pytest.mark.parametrize(("count", "size"), [(40, 8), (17, 4), (70, 16), (33, 32), (12, 5), (1, 1)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_pages_of_any_size(name: str, count: int, size: int) -> None:
    target, schedule = SCHEDULES[name]
    p = paged.compile(target=target, schedule=schedule, T=fc.f16, D=D)
    args, want = pages(count, size, -(-count // size) + 2)
    for got in (p.interpret(**args)["O"], p.simulate(**args)["O"]):
        np.testing.assert_allclose(got.astype(float), want, atol=3e-3)


@pytest.mark.parametrize(("count", "size"), [(40, 16), (70, 32), (100, 48), (1, 16)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_pages_of_whole_tiles(name: str, count: int, size: int) -> None:
    target, schedule = SCHEDULES[name]
    p = whole_pages.compile(target=target, schedule=schedule, T=fc.f16, D=D)
    args, want = pages(count, size, -(-count // size) + 2)
    args = {k: x.reshape(-1, 1, D) if k in "KV" else x for k, x in args.items()} | {"page": size}
    for got in (p.interpret(**args)["O"], p.simulate(**args)["O"]):
        np.testing.assert_allclose(got.astype(float), want, atol=3e-3)
    assert target != "sm_90a" or sum(op.kind == "tma_load" for op in walk_kernel(p.machine)) >= 3


@fc.kernel
def grouped(Q: "T[M, H, D]", K: "T[N, G, D]", V: "T[N, G, E]", Rows: "i32[R]", O: "out T[M, H, E]", LSE: "out f32[M, H]", *,
            scale: "f32 > 0"):
    """A tile's rows are tokens with all heads of a group, whose size is known at the call: keys are read once for all of them."""
    g, rows = fc.grid(K.G, fc.tile(Rows.R, "BLOCK_M"))
    size = Q.H // K.G
    token, head = rows.index // size, g * size + rows.index % size
    visible = lambda cols: cols.valid & (cols.index <= token + (K.N - Q.M))
    q = fc.load(Q[token, head, :])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), live=visible):
        s = fc.where(visible(cols), fc.dot(q, fc.load(K[cols, g]).T) * scale, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        base = fc.where(top == -fc.inf, 0.0, top)
        p, fade = fc.exp(s - base), fc.exp(m - base)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(V.dtype), fc.load(V[cols, g]))
        m <<= top
    fc.store(O[token, head, :], fc.where(l == 0.0, 0.0, acc / l).to(O.dtype))
    fc.store(LSE[token, head], m + fc.log(l))


def groups(m: int, n: int, h: int, g: int, d: int = D) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m)
    t = lambda *shape: rng.standard_normal(shape).astype(np.float16)
    args = {"Q": t(m, h, d), "K": t(n, g, d), "V": t(n, g, d), "Rows": np.zeros(m * h // g, np.int32), "scale": 0.3}
    q, k, v = (args[x].astype(float) for x in "QKV")
    s = np.einsum("mhd,nhd->hmn", q, np.repeat(k, h // g, 1)) * 0.3
    e = np.exp(np.where(np.arange(n) <= np.arange(m)[:, None] + n - m, s, -np.inf))
    total = e.sum(-1, keepdims=True)
    return args, np.einsum("hmn,nhd->mhd", e / total, np.repeat(v, h // g, 1)), np.log(total[..., 0]).T


@pytest.mark.parametrize("sizes", [(10, 40, 6, 2), (1, 17, 8, 1), (33, 33, 5, 1), (64, 70, 2, 2)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rows_of_tokens_and_heads(name: str, sizes: tuple[int, int, int, int]) -> None:
    target, schedule = SCHEDULES[name]
    p = grouped.compile(target=target, schedule=schedule, T=fc.f16, D=D, E=D)
    args, want, lse = groups(*sizes)
    for got in (p.interpret(**args), p.simulate(**args)):
        np.testing.assert_allclose(got["O"].astype(float), want, atol=3e-3)
        np.testing.assert_allclose(got["LSE"].astype(float), lse, atol=3e-3)


@fc.kernel
def scattered(X: "T[M, D]", At: "i32[M]", Y: "inout T[N, D]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    fc.store(Y[fc.where(rows.valid, fc.load(At[rows]), -1), :], fc.load(X[rows]))


@pytest.mark.parametrize("dtype", [fc.f16, fc.f32])
def test_rows_are_written_where_a_vector_says_and_nowhere_else(dtype: Any) -> None:
    p = scattered.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}, warps=2), T=dtype, D=24)
    at = np.array([*range(5, 25), -3, 99, 2], np.int32)
    x = np.arange(at.size * 24).reshape(-1, 24) % 97
    want = np.full((30, 24), -1)
    inside = (at >= 0) & (at < 30)
    want[at[inside]] = x[inside]
    for run in (p.interpret, p.simulate):
        got = run(X=x.astype(dtype.np_dtype), At=at, Y=np.full((30, 24), -1, dtype.np_dtype))["Y"]
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("body", "words"), [
    ("X[rows.index.to(fc.i64), :]", ["vector of positions", "i32 [rows]"]),
    ("X[at + rows.again().index, :]", ["vector of positions"]), ("Z[at, rows.again().index, :]", ["different axes"]),
    ("X[0.5 * at.to(fc.f32), :]", ["whole number"]), ("X[at, 0:4]", ["slice"]),
])
def test_mistakes_are_told(body: str, words: list[str]) -> None:
    def spec(X: "f32[M, 8]", Z: "f32[M, M, 8]", O: "out f32[M, 8]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(O[rows], fc.load(eval(body, {"fc": fc}, {"X": X, "Z": Z, "rows": rows, "at": rows.index})))

    with pytest.raises(FcError) as caught:
        fc.kernel(spec).trace({"BM": 16})
    assert all(w in str(caught.value) for w in words), caught.value


@pytest.mark.parametrize("name", ["ada", "hopper"])
@pytest.mark.parametrize("spec", [paged, whole_pages, grouped])
def test_trials_run(spec: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCGEN_CHECK", "1")
    target, schedule = SCHEDULES[name]
    binding = {"E": D} if spec is grouped else {}
    assert spec.compile(target=target, schedule=schedule, T=fc.f16, D=D, **binding).cubin


BIG = {"sm_89": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, stages=1, ahead=True),
       "sm_90a": hopper(128, 64, 2, late="acc", epilogue="quad", persistent="dynamic")}


@pytest.mark.parametrize("target", BIG)
@pytest.mark.parametrize("spec", [paged, whole_pages, grouped])
def test_nothing_spills(spec: Any, target: str) -> None:
    p = spec.compile(target=target, schedule=BIG[target], T=fc.f16, D=128, **({"E": 128} if spec is grouped else {}))
    assert not p.resources.spills


@pytest.mark.parametrize("spec", [paged, whole_pages, grouped])
@pytest.mark.parametrize("name", ["ada", "hopper"])
def test_text_comes_back(spec: Any, name: str) -> None:
    target, schedule = SCHEDULES[name]
    p = spec.compile(target=target, schedule=schedule, T=fc.f16, D=D, **({"E": D} if spec is grouped else {}))
    for kernel in (p.tile, p.machine):
        assert str(parse_kernel(str(kernel))) == str(kernel)
