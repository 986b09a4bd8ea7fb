# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Tangents of attention, whatever its functions are: how outputs move where q, k and v move by tq, tk and tv, and how gradients do.

With the names of `kernels.backward`, and t in front of what moves (lse moves by tlse = sum_j p ts, out of the first program):

    tx = (tq k + q tk) scale      ts = score'(x) tx      tp = p (ts - tlse)      tO = sum_j tw v + w tv
    tdV = tw^T dO + w^T tdO       tdK = (tdx^T q + dx^T tq) scale                tdQ = (tdx k + dx tk) scale

`tangent`: tlse in a first pass over the keys, tO in a second one, so that what is rounded for a product is as small as its weights.
`backward_tangent`, `backward_tangent_rows`: how dK and dV, and dQ, move where dO moves too: `fc.jvp` of what `kernels.backward` does to a
tile. All sums in one order. As second derivatives are symmetric, these are also what a gradient through gradients takes.

Tangents that are left out are zero, and cost nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import fcgen as fc

from .attention import visible
from .backward import derivative, each_head


def part(tensor: Any, *at: Any) -> Any:
    """A tile of a tensor that may be left out."""
    return None if tensor is None else fc.load(tensor[at])


def shown(b: Any, h: Any, rows: Any, cols: Any, sizes: tuple[Any, Any], mask: str, keep: Any) -> Any:
    """Which keys a tile of rows sees."""
    seen = visible(mask, rows, cols, *sizes)
    return seen if keep is None else seen & keep(b, h, rows.index, cols.index)


def product(*pairs: tuple[Any, Any]) -> Any:
    """The sum of products, of those both of whose operands are there; None if there are none."""
    there = [fc.dot(a, b) for a, b in pairs if a is not None and b is not None]
    return None if not there else there[0] if len(there) == 1 else there[0] + there[1]


def flipped(tile: Any) -> Any:
    return None if tile is None else tile.T


def rounded(tile: Any, dtype: Any) -> Any:
    return None if tile is None else tile.to(dtype)


def times(tile: Any, scale: Any) -> Any:
    return None if tile is None else tile * scale


@fc.kernel
def tangent(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], LSE: f32[B, H, M], tQ: "T[B, H, M, D] | None", tK: "T[B, G, N, D] | None",
            tV: "T[B, G, N, E] | None", tO: "out T[B, H, M, E]", tLSE: "out f32[B, H, M]", *,
            scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)
    q, tq, lse = fc.load(Q[b, h, rows]), part(tQ, b, h, rows), fc.load(LSE[b, h, rows])
    lse = fc.where(lse == -fc.inf, fc.inf, lse)  # weights of rows without a key are zero
    tlse, acc = fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))

    live = lambda cols: shown(b, h, rows, cols, (Q.M, K.N), mask, keep)

    def weights(cols):
        """Of a tile of keys, and how its scores move."""
        k, tk = fc.load(K[b, g, cols]), part(tK, b, g, cols)
        s, ts = fc.dot(q, k.T) * scale, times(product((tq, k.T), (q, flipped(tk))), scale)
        if score is not None:
            s, ts = fc.jvp(lambda s: score(s, b, h, rows.index, cols.index), (s,), (ts,))
        seen = live(cols)
        return fc.exp(fc.where(seen, s, -fc.inf) - lse), fc.where(seen, ts, 0.0) if ts is not None else None

    if tQ is not None or tK is not None:
        for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), live=live):
            p, ts = weights(cols)
            tlse <<= tlse + fc.sum(p * ts, axis=1)
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), live=live):
        p, ts = weights(cols)
        w, tw = p, None if ts is None else p * (ts - tlse)
        if weigh is not None:
            w, tw = fc.jvp(lambda p: weigh(p, b, h, rows.index, cols.index), (p,), (tw,))  # noqa: B023  (called at once)
        acc <<= acc + product((rounded(tw, V.dtype), fc.load(V[b, g, cols])), (w.to(V.dtype), part(tV, b, g, cols)))
    fc.store(tO[b, h, rows], acc.to(tO.dtype))
    fc.store(tLSE[b, h, rows], tlse)


def moved(products: tuple[Any, Any], tangents: tuple[Any, Any], lines: tuple[Any, ...], seen: Any, at: tuple[Any, ...], score: Any,
          weigh: Any) -> Any:
    """((weights, gradient of scores), their tangents). products: scaled scores and gradient of the weights; lines: LSE2, Delta, and their
    tangents; the rest: what `derivative` takes."""
    return fc.jvp(lambda x, dw, lse2, delta: derivative(x, dw, lse2, delta, seen, at, score, weigh, False), (*products, *lines[:2]),
                  (*tangents, *lines[2:]))


@fc.kernel
def backward_tangent(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
                     tQ: "T[B, H, M, D] | None", tK: "T[B, G, N, D] | None", tV: "T[B, G, N, E] | None", tdO: "T[B, H, M, E] | None",
                     tLSE2: f32[B, H, M], tDelta: f32[B, H, M], tdK: "out T[B, G, N, D]", tdV: "out T[B, G, N, E]", *,
                     scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None, grouped=False):
    if positive:
        fc.positive(scale)
    b, g, cols = fc.grid(Q.B, K.G, fc.tile(K.N, "BLOCK_N"))
    k, v, tk, tv = fc.load(K[b, g, cols]), fc.load(V[b, g, cols]), part(tK, b, g, cols), part(tV, b, g, cols)
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, V.E))

    def head(dk, dv, h):
        live = lambda rows: shown(b, h, rows, cols, (Q.M, K.N), mask, keep) & rows.valid
        for rows in fc.loop(fc.tile(Q.M, "BLOCK_M"), live=live):
            q, do, tq, tdo = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows]), part(tQ, b, h, rows), part(tdO, b, h, rows)
            ends = tuple(fc.load(t[b, h, rows]) for t in (LSE2, Delta, tLSE2, tDelta))
            x, dp = fc.dot(k, q.T) * scale, fc.dot(v, do.T)
            tx, tdp = times(product((k, flipped(tq)), (tk, q.T)), scale), product((v, flipped(tdo)), (tv, do.T))
            (w, ds), (tw, tds) = moved((x, dp), (tx, tdp), ends, live(rows), (b, h, rows.index, cols.index), score, weigh)
            dv <<= dv + product((tw.to(v.dtype), do), (w.to(v.dtype), tdo))
            dk <<= dk + product((tds.to(k.dtype), q), (ds.to(k.dtype), tq))

    each_head(functools.partial(head, dk, dv), g, Q.H // K.G, grouped)
    fc.store(tdK[b, g, cols], (dk * scale).to(K.dtype))
    fc.store(tdV[b, g, cols], dv.to(V.dtype))


@fc.kernel
def backward_tangent_rows(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
                          tQ: "T[B, H, M, D] | None", tK: "T[B, G, N, D] | None", tV: "T[B, G, N, E] | None", tdO: "T[B, H, M, E] | None",
                          tLSE2: f32[B, H, M], tDelta: f32[B, H, M], tdQ: "out T[B, H, M, D]", *,
                          scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)
    q, do, tq, tdo = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows]), part(tQ, b, h, rows), part(tdO, b, h, rows)
    ends = tuple(fc.load(t[b, h, rows]) for t in (LSE2, Delta, tLSE2, tDelta))
    dq = fc.var(fc.zeros(rows, Q.D))

    live = lambda cols: shown(b, h, rows, cols, (Q.M, K.N), mask, keep) & rows.valid
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), live=live):
        k, v, tk, tv = fc.load(K[b, g, cols]), fc.load(V[b, g, cols]), part(tK, b, g, cols), part(tV, b, g, cols)
        x, dp = fc.dot(q, k.T) * scale, fc.dot(do, v.T)
        tx, tdp = times(product((tq, k.T), (q, flipped(tk))), scale), product((tdo, v.T), (do, flipped(tv)))
        (_, ds), (_, tds) = moved((x, dp), (tx, tdp), ends, live(cols), (b, h, rows.index, cols.index), score, weigh)
        dq <<= dq + product((tds.to(K.dtype), k), (ds.to(K.dtype), tk))
    fc.store(tdQ[b, h, rows], (dq * scale).to(Q.dtype))
