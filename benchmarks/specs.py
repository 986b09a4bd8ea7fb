# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[M, K]")
"""Kernels of many kinds, as people would write them, each with the sizes of a small run: what choices of schedules are tried on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fcgen as fc
from fcgen.kernels.attention import attention

from .schedule_pairs import gated, row_softmax


@dataclass(frozen=True)
class Case:
    """binding: what is bound when the spec is compiled. sizes: of a small run, odd ones. large: those of the work that a schedule is for.
    given: arguments that cannot be drawn. rtol: largest rms error of a machine program beside the tile program."""

    spec: Any
    binding: Mapping[str, Any]
    sizes: Mapping[str, int]
    large: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    rtol: float = 1e-2


@fc.kernel
def gemm_nn(A: "T[M, K]", B: "T[K, N]", C: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[rows, ks]), fc.load(B[ks, cols]))
    fc.store(C[rows, cols], acc.to(C.dtype))


@fc.kernel
def gemm_nt(A: "T[M, K]", B: "T[N, K]", C: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[rows, ks]), fc.load(B[cols, ks]).T)
    fc.store(C[rows, cols], acc.to(C.dtype))


@fc.kernel
def gemm_tn(A: "T[K, M]", B: "T[K, N]", C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[ks, rows]).T, fc.load(B[ks, cols]))
    fc.store(C[rows, cols], acc)


@fc.kernel
def gram(X: "T[M, D]", Z: "T[N, D]", Y: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(Z.N, "BN"))
    fc.store(Y[rows, cols], fc.dot(fc.load(X[rows]), fc.load(Z[cols]).T))


@fc.kernel
def row_norm(X: "T[M, D]", W: "f32[D]", Y: "out T[M, D]", *, eps: "f32 > 0"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[rows]).to(fc.f32)
    centred = x - fc.sum(x, axis=1) / X.D
    fc.store(Y[rows], (centred * fc.rsqrt(fc.sum(centred * centred, axis=1) / X.D + eps) * fc.load(W[:])).to(Y.dtype))


@fc.kernel
def norm_gemm(X: "T[M, K]", G: "f32[K]", W: "T[N, K]", Y: "out T[M, N]"):
    """RMSNorm, then a product: the rows' norms are found beside it."""
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(W.N, "BN"))
    acc, squares = fc.var(fc.zeros(rows, cols)), fc.var(fc.zeros(rows))
    for ks in fc.loop(fc.tile(X.K, "BK")):
        x = fc.load(X[rows, ks]).to(fc.f32)
        acc <<= acc + fc.dot((x * fc.load(G[ks])).to(X.dtype), fc.load(W[cols, ks]).T)
        squares <<= squares + fc.sum(x * x, axis=1)
    fc.store(Y[rows, cols], (acc * fc.rsqrt(squares / X.K.to(fc.f32) + 1e-5)).to(Y.dtype))


@fc.kernel
def norm_gemm_same(X: "T[M, K]", G: "T[K]", W: "T[N, K]", Y: "out T[M, N]"):
    """The same with factors of the tensors' own dtype, as models have them: what is multiplied is rounded once in either."""
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(W.N, "BN"))
    acc, squares = fc.var(fc.zeros(rows, cols)), fc.var(fc.zeros(rows))
    for ks in fc.loop(fc.tile(X.K, "BK")):
        x = fc.load(X[rows, ks])
        acc <<= acc + fc.dot(x * fc.load(G[ks]), fc.load(W[cols, ks]).T)
        squares <<= squares + fc.sum(x.to(fc.f32) * x.to(fc.f32), axis=1)
    fc.store(Y[rows, cols], (acc * fc.rsqrt(squares / X.K.to(fc.f32) + 1e-5)).to(Y.dtype))


@fc.kernel
def swiglu(X: "T[M, K]", W: "T[N, K]", V: "T[N, K]", Y: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(W.N, "BN"))
    gate, up = fc.var(fc.zeros(rows, cols)), fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(X.K, "BK")):
        x = fc.load(X[rows, ks])
        gate <<= gate + fc.dot(x, fc.load(W[cols, ks]).T)
        up <<= up + fc.dot(x, fc.load(V[cols, ks]).T)
    fc.store(Y[rows, cols], (gate * fc.sigmoid(gate) * up).to(Y.dtype))


@fc.kernel
def paged(Q: "T[B, H, D]", K: "T[P, 64, G, D]", V: "T[P, 64, G, D]", table: "i32[B, W]", lengths: "i32[B]", O: "out T[B, H, D]", *,
          scale: "f32 > 0"):
    """One row of queries per head of a sequence, on keys in pages that a table names."""
    b, heads = fc.grid(Q.B, fc.tile(Q.H, "BH"))
    q, n = fc.load(Q[b, heads]), lengths[b]
    m, l, acc = fc.var(fc.full(heads, -fc.inf)), fc.var(fc.zeros(heads)), fc.var(fc.zeros(heads, V.D))
    for i in fc.loop((n + 63) // 64):
        page = table[b, i]
        s = fc.dot(q, fc.load(K[page, :, 0]).T) * scale
        top = fc.maximum(m, fc.max(s, axis=1))
        p, fade = fc.exp(s - top), fc.exp(m - top)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(V.dtype), fc.load(V[page, :, 0]))
        m <<= top
    fc.store(O[b, heads], (acc / l).to(O.dtype))


@fc.kernel
def split_keys(Q: "T[H, M, D]", K: "T[H, N, D]", V: "T[H, N, D]", O: "out f32[S, H, M, D]", L: "out f32[S, H, M]", *, scale: "f32 > 0"):
    """Each program takes a part of the keys; the parts are to be joined by their sums."""
    part, h, rows = fc.grid(O.S, Q.H, fc.tile(Q.M, "BM"))
    q = fc.load(Q[h, rows])
    tiles = fc.tile(K.N, "BN")
    each = ((K.N + tiles.size - 1) // tiles.size + O.S - 1) // O.S
    last = fc.minimum((part + 1) * each, (K.N + tiles.size - 1) // tiles.size)
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.D))
    for cols in fc.loop(tiles, part * each, last):
        s = fc.where(cols.valid, fc.dot(q, fc.load(K[h, cols]).T) * scale, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        p, fade = fc.exp(s - top), fc.exp(m - top)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(V.dtype), fc.load(V[h, cols]))
        m <<= top
    fc.store(O[part, h, rows], fc.where(l == 0.0, 0.0, acc / l))
    fc.store(L[part, h, rows], fc.where(l == 0.0, -1e30, m + fc.log(l)))


@fc.kernel
def backward(Q: "T[H, M, D]", K: "T[H, N, D]", V: "T[H, N, D]", G: "T[H, M, D]", L: "f32[H, M]", R: "f32[H, M]",
             DK: "out T[H, N, D]", DV: "out T[H, N, D]", DQ: "inout f32[H, M, D]", *, scale: "f32 > 0"):
    """Five products per step, one of them added to an output that all programs share."""
    h, cols = fc.grid(K.H, fc.tile(K.N, "BN"))
    k, v = fc.load(K[h, cols]), fc.load(V[h, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, V.D))
    for rows in fc.loop(fc.tile(Q.M, "BM")):
        q, g = fc.load(Q[h, rows]), fc.load(G[h, rows])
        st = fc.dot(k, q.T) * scale
        pt = fc.where(cols.valid & rows.valid, fc.exp(st - fc.load(L[h, rows])), 0.0)
        dv <<= dv + fc.dot(pt.to(G.dtype), g)
        dpt = fc.dot(v, g.T)
        dst = (pt * (dpt - fc.load(R[h, rows])) * scale).to(Q.dtype)
        dk <<= dk + fc.dot(dst, q)
        fc.atomic_add(DQ[h, rows], fc.dot(dst.T, k))
    fc.store(DK[h, cols], dk.to(DK.dtype))
    fc.store(DV[h, cols], dv.to(DV.dtype))


@fc.kernel
def windowed(Q: "T[B, H, M, D]", K: "T[B, G, N, D]", V: "T[B, G, N, D]", O: "out T[B, H, M, D]", *, window: "i32"):
    """Every row adds up the values of the `window` columns before it, weighted."""
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BM"))
    g = h // (Q.H // K.G)
    q, acc = fc.load(Q[b, h, rows]), fc.var(fc.zeros(rows, V.D))
    live = lambda cols: cols.valid & (cols.index <= rows.index) & (rows.index - cols.index < window)
    for cols in fc.loop(fc.tile(K.N, "BN"), live=live):
        s = fc.where(live(cols), fc.dot(q, fc.load(K[b, g, cols]).T), 0.0)
        acc <<= acc + fc.dot(s.to(V.dtype), fc.load(V[b, g, cols]))
    fc.store(O[b, h, rows], acc.to(O.dtype))


@fc.kernel
def totals(X: "T[M, N]", S: "inout f32[N]"):
    """Sums of columns, added up by all programs."""
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
    fc.atomic_add(S[cols], fc.sum(fc.load(X[rows, cols]).to(fc.f32), axis=0))


@fc.kernel
def turned(X: "T[M, N]", Y: "out T[N, M]"):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
    fc.store(Y[cols, rows], fc.load(X[rows, cols]))


@fc.kernel
def picked(X: "T[P, N]", at: "i32[M]", Y: "out T[M, N]"):
    """Rows that another tensor chooses."""
    row, cols = fc.grid(Y.M, fc.tile(Y.N, "BN"))
    fc.store(Y[row, cols], fc.load(X[fc.load(at[row]), cols]))


def example(name: str) -> Any:
    """What `examples/NAME.py` is about."""
    folder = str(Path(__file__).resolve().parent.parent / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name).example


def _cases() -> dict[str, Case]:
    heads = {"B": 1, "H": 2, "G": 1, "M": 70, "N": 100}
    long = {"B": 4, "H": 16, "G": 16, "M": 4096, "N": 4096}
    half, wide = {"T": fc.f16}, {"T": fc.f32}
    product, square = {"M": 72, "N": 88, "K": 104}, {"M": 8192, "N": 8192, "K": 8192}
    rows = {"H": 2, "M": 70, "N": 100}
    sums = {"L": np.full((2, 70), 3.0, np.float32), "scale": 0.1}
    table = {"table": np.array([[1, 3, 0], [2, 4, 1]], np.int32), "lengths": np.array([130, 192], np.int32), "scale": 0.125}
    out = {
        "gemm_nn": Case(gemm_nn, half, product, square), "gemm_nt": Case(gemm_nt, {"T": fc.bf16}, product, square),
        "gemm_tn": Case(gemm_tn, half, product, square), "gemm_f32": Case(gemm_nt, wide, product, square),
        "gram": Case(gram, {**half, "D": 64}, {"M": 70, "N": 67}, {"M": 8192, "N": 8192}),
        "gram_odd": Case(gram, {**half, "D": 20}, {"M": 70, "N": 67}, {"M": 8192, "N": 8192}),
        "row_softmax": Case(row_softmax, {"T": fc.bf16, "D": 1000}, {"M": 37}, {"M": 16384}),
        "row_norm": Case(row_norm, {"T": fc.f16, "D": 1024}, {"M": 37}, {"M": 16384}),
        "norm_gemm": Case(norm_gemm, half, product, square), "norm_gemm_same": Case(norm_gemm_same, half, product, square),
        "swiglu": Case(swiglu, half, product, square),
        "gated": Case(gated, {"T": fc.bf16, "D": 64, "E": 64}, {"M": 70, "N": 100}, {"M": 8192, "N": 8192}),
        "paged": Case(paged, {**half, "D": 128}, {"B": 2, "H": 24, "P": 5, "G": 1, "W": 3}, {"B": 64, "H": 16, "P": 4096, "W": 64}, table),
        "split_keys": Case(split_keys, {**half, "D": 64, "S": 4}, rows, {"H": 16, "M": 128, "N": 16384}),
        "backward": Case(backward, {**half, "D": 64}, rows, {"H": 64, "M": 4096, "N": 4096}, sums),
        "backward_128": Case(backward, {**half, "D": 128}, rows, {"H": 64, "M": 4096, "N": 4096}, sums),
        "windowed": Case(windowed, {**half, "D": 64}, heads, long), "totals": Case(totals, half, {"M": 70, "N": 100}, square),
        "turned": Case(turned, half, {"M": 70, "N": 100}, square),
        "picked": Case(picked, half, {"P": 9, "M": 20, "N": 100}, {"P": 8192, "M": 8192, "N": 4096}),
        "library": Case(attention, {**half, "D": 128, "E": 128}, heads, long),
        "library_causal": Case(attention, {"LSE": None, "T": fc.bf16, "D": 64, "E": 64, "mask": "causal_bottom_right"}, heads, long),
        "library_256": Case(attention, {"LSE": None, **half, "D": 256, "E": 256}, {**heads, "M": 40, "N": 50}, long),
    }
    for name in ("attention", "variants", "sigmoid_attention", "differential_attention", "linear_attention", "gemm", "int4_gemm",
                 "softmax"):
        e = example(name)
        dims = {d for p in e.spec.signature.tensors for d in p.dims if isinstance(d, str)} - set(e.binding)
        sizes = {**heads, "K": 88, "E": 96, **({"M": 100} if name == "linear_attention" else {})}
        out[name] = Case(e.spec, e.binding, {d: sizes[d] for d in sorted(dims)},
                         {d: {**square, **long, "E": 4096}[d] for d in sorted(dims)},
                         {"log_decay": np.log(np.linspace(0.9, 0.99, sizes["H"])).astype(np.float32)} if name == "linear_attention" else {})
    return out


CASES: dict[str, Case] = _cases()
