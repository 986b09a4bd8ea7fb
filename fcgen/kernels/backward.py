# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Attention backward: the gradients of `kernels.attention`, whatever its functions are.

With x the scaled scores, s = score(x), p = exp(s - LSE), w = weigh(p), O = sum_j w_j v_j:

    dV = w^T dO      dp = weigh'(dO V^T)      ds = p (dp - Delta)      dx = score'(ds)      dQ = dx K scale      dK = dx^T Q scale

where Delta is the row sum of O * dO, less the gradient of the log-sum-exp. The derivatives of score and weigh are made by `fc.vjp`, and so
are the gradients of the tensors that these functions hold (parameters `NAME_grad`). Programs:

`rows_before`: Delta, the log-sum-exp in powers of two (+inf in rows without a key: their weights are then 0), and the gradient of sinks. It
clears the sums of dQ, which `rows_after` scales and rounds.
`backward`: one pass over tiles of rows for each tile of keys. dK and dV stay in registers, over all heads of a group; each program adds its
share of dQ / scale to memory, unless it is left out (100 of 4,400 cycles of a tile of 64 rows were that product; H200, D=128). S and dP
are made as their transposes: P^T and dS^T are left operands as they are.
`backward_in_turn`: the same with all adds to one tile of dQ in one order, by turns that `rows_before` clears: the same bits each time. Of
the tiles of keys that a tile of rows sees (with the masks of `visible` all up to one) the last one has the first turn: where a mask leaves
out tiles, each program begins with rows that the one before it has done a step ago.
`backward_scores`, `backward_queries`: the first leaves dS^T in memory, rounded, instead of adding to dQ; the other makes dQ of it. Five
products and no adds. Tiles that the first skips are not written: the other asks masks again.
`backward_rows`: dQ alone, one pass over tiles of keys for each tile of rows: every sum in one order, the same bits each time. It makes
Delta and LSE2 itself, and leaves them to `backward` where that follows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import fcgen as fc

from .attention import visible

LOG2E = 1.4426950408889634


def weights(x: Any, lse2: Any, seen: Any, at: tuple[Any, ...], score: Any, weigh: Any,
            held: bool | str) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Weights of values of a tile of scaled scores x, and what makes the gradient of x from theirs and Delta.

    seen: which scores count. at: batch, head, and positions of rows and keys. held: what score and weigh hold gets its gradient as well;
    "few": as `fc.vjp` says."""
    s, into = (x, None) if score is None else fc.vjp(lambda x: score(x, *at), x, captured=held, places=at if held else ())
    p = fc.exp2(fc.where(seen, s * LOG2E, -fc.inf) - lse2)
    w, back = (p, None) if weigh is None else fc.vjp(lambda p: weigh(p, *at), p, captured=bool(held))

    def gradient(dw: Any, delta: Any) -> Any:
        ds = p * ((dw if back is None else back(dw)) - delta)
        return ds if into is None else fc.where(seen, into(ds), 0.0)  # slopes may be infinite where nothing is seen

    return w, gradient


def derivative(x: Any, dw: Any, lse2: Any, delta: Any, *what: Any) -> tuple[Any, Any]:
    """(weights of values, gradient of the scaled scores x) from the gradient of the weights. what: the rest of what `weights` takes."""
    w, gradient = weights(x, lse2, *what)
    return w, gradient(dw, delta)


class Rows(NamedTuple):
    """A tile of rows in memory: its parts of Q, dO, LSE2, Delta, and of what it gives: dS for some keys, dQ. turn: of its adds to dQ."""

    q: Any
    do: Any
    lse2: Any
    delta: Any
    ds: Any = None
    dq: Any = None
    turn: Any = None


def step(rows: Rows, k: Any, v: Any, dk: Any, dv: Any, scale: Any, turned: bool, seen: Callable[[], Any], *functions: Any) -> None:
    """A tile of rows adds to dk and dv, and its share of dQ / scale where that is asked for, and leaves dS where that is. turned: the share
    is made as its transpose, so that rows are the columns of every product, and a tile has any multiple of 8 of them. seen, functions: what
    `weights` takes."""
    q, do = fc.load(rows.q), fc.load(rows.do)
    s, dp = fc.dot(k, q.T), fc.dot(v, do.T)
    w, gradient = weights(s * scale, fc.load(rows.lse2), seen(), *functions)
    dv <<= dv + fc.dot(w.to(v.dtype), do)
    ds = gradient(dp, fc.load(rows.delta)).to(k.dtype)
    dk <<= dk + fc.dot(ds, q)
    if rows.ds is not None:
        fc.store(rows.ds, ds)
    if rows.dq is not None:
        dq = fc.dot(k.T, ds) if turned else fc.dot(ds.T, k)
        fc.atomic_add(rows.dq, dq.T if turned else dq, turn=rows.turn)


def each_head(head: Callable[[Any], None], g: Any, size: Any, grouped: bool) -> None:
    """What the heads of group g do, one after the other."""
    if grouped:
        for n in fc.loop(size):
            head(g * size + n)
    else:
        head(g * size)


def facts_of_rows(b: Any, h: Any, rows: Any, do: Any, O: Any, LSE: Any, dLSE: Any, Delta: Any, LSE2: Any, sink: Any) -> tuple[Any, Any]:
    """(LSE2, Delta) of a tile of rows, also in memory where there is a place for them; and what the rows add to the gradient of a sink."""
    o, lse = fc.load(O[b, h, rows]), fc.load(LSE[b, h, rows])
    delta, lse2 = fc.sum(o.to(fc.f32) * do.to(fc.f32), axis=1), fc.where(lse == -fc.inf, fc.inf, lse * LOG2E)
    if dLSE is not None:
        delta = delta - fc.load(dLSE[b, h, rows])
    if Delta is not None:
        fc.store(Delta[b, h, rows], delta)
        fc.store(LSE2[b, h, rows], lse2)
    if sink is not None:
        logit, into = fc.vjp(lambda: fc.cast(sink(h), fc.f32), captured=True)
        into(-fc.sum(fc.where(rows.valid & (lse != -fc.inf), fc.exp(logit - lse) * delta, 0.0)))
    return lse2, delta


@fc.kernel
def rows_before(O: T[B, H, M, E], dO: T[B, H, M, E], LSE: f32[B, H, M], dLSE: "f32[B, H, M] | None", Delta: "out f32[B, H, M]",
                LSE2: "out f32[B, H, M]", Sums: "out f32[B, H, M, D] | None", Turns: "out i32[B, H, M] | None", *, sink=None):
    b, h, rows = fc.grid(O.B, O.H, fc.tile(O.M, "BLOCK_M"))
    if Sums is not None:
        fc.store(Sums[b, h, rows], fc.zeros(rows, Sums.D))
    if Turns is not None:
        fc.store(Turns[b, h, rows], fc.zeros(rows, dtype=fc.i32))
    facts_of_rows(b, h, rows, fc.load(dO[b, h, rows]), O, LSE, dLSE, Delta, LSE2, sink)


@fc.kernel
def rows_after(Sums: f32[B, H, M, D], dQ: "out T[B, H, M, D]", *, scale: f32):
    b, h, rows = fc.grid(dQ.B, dQ.H, fc.tile(dQ.M, "BLOCK_M"))
    fc.store(dQ[b, h, rows], (fc.load(Sums[b, h, rows]) * scale).to(dQ.dtype))


def last_seen(mask: str, rows: Any, M: Any, N: Any) -> Any:
    """The last key that some row of a tile sees, if it sees any (by `visible`)."""
    if mask == "none":
        return N - 1
    return fc.minimum(N - 1, rows.start + (rows.size - 1) + (N - M if mask == "causal_bottom_right" else 0))


def of_keys(Q: Any, K: Any, V: Any, dO: Any, LSE2: Any, Delta: Any, dS: Any, dQ: Any, Turns: Any, dK: Any, dV: Any, scale: Any,
            positive: bool, mask: str, score: Any, keep: Any, weigh: Any, grouped: bool, held: bool | str, turned: bool) -> None:
    """The body of `backward`, `backward_in_turn` and `backward_scores`."""
    if positive:
        fc.positive(scale)
    b, g, cols = fc.grid(Q.B, K.G, fc.tile(K.N, "BLOCK_N"))
    k, v = fc.load(K[b, g, cols]), fc.load(V[b, g, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, V.E))

    def live(h, rows):
        seen = visible(mask, rows, cols, Q.M, K.N)
        if keep is not None:
            seen = seen & keep(b, h, rows.index, cols.index)
        return seen if score is None and weigh is None else seen & rows.valid

    def head(h):
        for rows in fc.loop(fc.tile(Q.M, "BLOCK_M"), live=functools.partial(live, h)):
            turn = None
            if Turns is not None:
                turn = Turns[b, h, rows.start], last_seen(mask, rows, Q.M, K.N) // cols.size - cols.start // cols.size
            mine = Rows(Q[b, h, rows], dO[b, h, rows], LSE2[b, h, rows], Delta[b, h, rows], None if dS is None else dS[b, h, cols, rows],
                        None if dQ is None else dQ[b, h, rows], turn)
            step(mine, k, v, dk, dv, scale, turned, functools.partial(live, h, rows), (b, h, rows.index, cols.index), score, weigh, held)

    each_head(head, g, Q.H // K.G, grouped)
    fc.store(dK[b, g, cols], (dk * scale).to(K.dtype))
    fc.store(dV[b, g, cols], dv.to(V.dtype))


@fc.kernel
def backward(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
             dQ: "inout f32[B, H, M, D] | None", dK: "out T[B, G, N, D]", dV: "out T[B, G, N, E]", *,
             scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None, grouped=False, held=True, turned=False):
    of_keys(Q, K, V, dO, LSE2, Delta, None, dQ, None, dK, dV, scale, positive, mask, score, keep, weigh, grouped, held, turned)


@fc.kernel
def backward_in_turn(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
                     dQ: "inout f32[B, H, M, D]", Turns: "inout i32[B, H, M]", dK: "out T[B, G, N, D]", dV: "out T[B, G, N, E]", *,
                     scale: f32, positive=True, mask="none", score=None, weigh=None, grouped=False, held=True, turned=False):
    of_keys(Q, K, V, dO, LSE2, Delta, None, dQ, Turns, dK, dV, scale, positive, mask, score, None, weigh, grouped, held, turned)


@fc.kernel
def backward_scores(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
                    dS: "out T[B, H, N, M]", dK: "out T[B, G, N, D]", dV: "out T[B, G, N, E]", *,
                    scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None, grouped=False, held=True):
    of_keys(Q, K, V, dO, LSE2, Delta, dS, None, None, dK, dV, scale, positive, mask, score, keep, weigh, grouped, held, False)


@fc.kernel
def backward_queries(dS: T[B, H, N, M], K: T[B, G, N, D], dQ: "out T[B, H, M, D]", *, scale: f32, mask="none", keep=None):
    b, h, rows = fc.grid(dQ.B, dQ.H, fc.tile(dQ.M, "BLOCK_M"))
    g = h // (dQ.H // K.G)
    dq = fc.var(fc.zeros(rows, dQ.D))

    def live(cols):
        seen = visible(mask, rows, cols, dQ.M, K.N)
        return seen if keep is None else seen & keep(b, h, rows.index, cols.index)

    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), live=live):
        ds = fc.load(dS[b, h, cols, rows]).T
        if mask != "none" or keep is not None:
            ds = fc.where(live(cols), ds, 0.0)
        dq <<= dq + fc.dot(ds, fc.load(K[b, g, cols]))
    fc.store(dQ[b, h, rows], (dq * scale).to(dQ.dtype))


@fc.kernel
def backward_rows(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], O: T[B, H, M, E], LSE: f32[B, H, M],
                  dLSE: "f32[B, H, M] | None", dQ: "out T[B, H, M, D]", Delta: "out f32[B, H, M] | None", LSE2: "out f32[B, H, M] | None",
                  *, scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None, sink=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)
    q, do = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows])
    lse2, delta = facts_of_rows(b, h, rows, do, O, LSE, dLSE, Delta, LSE2, sink)
    dq = fc.var(fc.zeros(rows, Q.D))

    def live(cols):
        seen = visible(mask, rows, cols, Q.M, K.N)
        if keep is not None:
            seen = seen & keep(b, h, rows.index, cols.index)
        return seen if score is None and weigh is None else seen & rows.valid

    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), live=live):
        k, v = fc.load(K[b, g, cols]), fc.load(V[b, g, cols])
        s, dp = fc.dot(q, k.T), fc.dot(do, v.T)
        _, gradient = weights(s * scale, lse2, live(cols), (b, h, rows.index, cols.index), score, weigh, False)
        dq <<= dq + fc.dot(gradient(dp, delta).to(K.dtype), k)
    fc.store(dQ[b, h, rows], (dq * scale).to(Q.dtype))
