# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Attention backward: the gradients of `kernels.attention`, whatever its functions are.

With x the scaled scores, s = score(x), p = exp(s - LSE), w = weigh(p), O = sum_j w_j v_j:

    dV = w^T dO      dp = weigh'(dO V^T)      ds = p (dp - Delta)      dx = score'(ds)      dQ = dx K scale      dK = dx^T Q scale

where Delta is the row sum of O * dO, less the gradient of the log-sum-exp. The derivatives of score and weigh are made by `fc.vjp`, and so
are the gradients of the tensors that these functions hold (parameters `NAME_grad`). Programs:

`rows_before`: Delta, the log-sum-exp in powers of two (+inf in rows without a key: their weights are then 0), and the gradient of sinks.
`backward`: one pass over tiles of rows for each tile of keys. dK and dV stay in registers, over all heads of a group; each program adds its
share of dQ to memory, unless it is left out. S and dP are made as their transposes: P^T and dS^T are left operands as they are.
`backward_in_order`: the same with every sum in one order, the same bits each time. A program takes every S-th tile of keys, one after the
other, and adds to the S-th of dQ that nobody else adds to.
`backward_rows`: dQ alone, one pass over tiles of keys for each tile of rows: every sum in one order, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import fcgen as fc

from .attention import visible

LOG2E = 1.4426950408889634


def weights(x: Any, lse2: Any, seen: Any, at: tuple[Any, ...], score: Any, weigh: Any, held: bool) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Weights of values of a tile of scaled scores x, and what makes the gradient of x from theirs and Delta.

    seen: which scores count. at: batch, head, and positions of rows and keys. held: what score and weigh hold gets its gradient as well."""
    s, into = (x, None) if score is None else fc.vjp(lambda x: score(x, *at), x, captured=held)
    p = fc.exp2(fc.where(seen, s * LOG2E, -fc.inf) - lse2)
    w, back = (p, None) if weigh is None else fc.vjp(lambda p: weigh(p, *at), p, captured=held)

    def gradient(dw: Any, delta: Any) -> Any:
        ds = p * ((dw if back is None else back(dw)) - delta)
        return ds if into is None else fc.where(seen, into(ds), 0.0)  # slopes may be infinite where nothing is seen

    return w, gradient


def derivative(x: Any, dw: Any, lse2: Any, delta: Any, *what: Any) -> tuple[Any, Any]:
    """(weights of values, gradient of the scaled scores x) from the gradient of the weights. what: the rest of what `weights` takes."""
    w, gradient = weights(x, lse2, *what)
    return w, gradient(dw, delta)


def step(rows: Sequence[Any], k: Any, v: Any, dk: Any, dv: Any, scale: Any, turned: bool, seen: Callable[[], Any], *functions: Any) -> None:
    """A tile of rows adds to dk and dv, and its share of dQ where that is asked for. rows: its parts of Q, dO, LSE2, Delta and dQ. turned:
    that share is made as its transpose, so that rows are the columns of every product, and a tile has any multiple of 8 of them. seen,
    functions: what `weights` takes."""
    q, do = fc.load(rows[0]), fc.load(rows[1])
    s, dp = fc.dot(k, q.T), fc.dot(v, do.T)
    w, gradient = weights(s * scale, fc.load(rows[2]), seen(), *functions)
    dv <<= dv + fc.dot(w.to(v.dtype), do)
    ds = gradient(dp, fc.load(rows[3])).to(k.dtype)
    dk <<= dk + fc.dot(ds, q)
    if rows[4] is not None:
        dq = fc.dot(k.T, ds) if turned else fc.dot(ds.T, k)
        fc.atomic_add(rows[4], (dq.T if turned else dq) * scale)


def each_head(head: Callable[[Any], None], g: Any, size: Any, grouped: bool) -> None:
    """What the heads of group g do, one after the other."""
    if grouped:
        for n in fc.loop(size):
            head(g * size + n)
    else:
        head(g * size)


@fc.kernel
def rows_before(O: T[B, H, M, E], dO: T[B, H, M, E], LSE: f32[B, H, M], dLSE: "f32[B, H, M] | None", Delta: "out f32[B, H, M]",
                LSE2: "out f32[B, H, M]", *, sink=None):
    b, h, rows = fc.grid(O.B, O.H, fc.tile(O.M, "BLOCK_M"))
    o, do, lse = fc.load(O[b, h, rows]), fc.load(dO[b, h, rows]), fc.load(LSE[b, h, rows])
    delta = fc.sum(o.to(fc.f32) * do.to(fc.f32), axis=1)
    if dLSE is not None:
        delta = delta - fc.load(dLSE[b, h, rows])
    fc.store(Delta[b, h, rows], delta)
    fc.store(LSE2[b, h, rows], fc.where(lse == -fc.inf, fc.inf, lse * LOG2E))
    if sink is not None:
        logit, into = fc.vjp(lambda: fc.cast(sink(h), fc.f32), captured=True)
        into(-fc.sum(fc.where(rows.valid & (lse != -fc.inf), fc.exp(logit - lse) * delta, 0.0)))


def gradients_of_keys(b: Any, g: Any, cols: Any, tensors: tuple[Any, ...], heads: Any, dq: Callable[[Any, Any], Any], scale: Any,
                      mask: Any, score: Any, keep: Any, weigh: Any, grouped: bool, held: bool, turned: bool) -> None:
    """A tile of keys: its own gradients, of all rows of the heads that share it, and its share of dQ. heads: how many there are. dq(head,
    rows): where that share is added to, or None."""
    Q, K, V, dO, LSE2, Delta, dK, dV = tensors
    k, v = fc.load(K[b, g, cols]), fc.load(V[b, g, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, V.E))

    def live(h, rows):
        seen = visible(mask, rows, cols, Q.M, K.N)
        if keep is not None:
            seen = seen & keep(b, h, rows.index, cols.index)
        return seen if score is None and weigh is None else seen & rows.valid

    def head(h):
        for rows in fc.loop(fc.tile(Q.M, "BLOCK_M"), live=functools.partial(live, h)):
            mine = [*(t[b, h, rows] for t in (Q, dO, LSE2, Delta)), dq(h, rows)]
            step(mine, k, v, dk, dv, scale, turned, functools.partial(live, h, rows), (b, h, rows.index, cols.index), score, weigh, held)

    each_head(head, g, heads, grouped)
    fc.store(dK[b, g, cols], (dk * scale).to(K.dtype))
    fc.store(dV[b, g, cols], dv.to(V.dtype))


@fc.kernel
def backward(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
             dQ: "inout f32[B, H, M, D] | None", dK: "out T[B, G, N, D]", dV: "out T[B, G, N, E]", *,
             scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None, grouped=False, held=True, turned=False):
    if positive:
        fc.positive(scale)
    b, g, cols = fc.grid(Q.B, K.G, fc.tile(K.N, "BLOCK_N"))
    dq = lambda h, rows: None if dQ is None else dQ[b, h, rows]
    tensors = Q, K, V, dO, LSE2, Delta, dK, dV
    gradients_of_keys(b, g, cols, tensors, Q.H // K.G, dq, scale, mask, score, keep, weigh, grouped, held, turned)


@fc.kernel
def backward_in_order(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
                      dQ: "inout f32[S, B, H, M, D]", dK: "out T[B, G, N, D]", dV: "out T[B, G, N, E]", *,
                      scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None, grouped=False, held=True, turned=False):
    if positive:
        fc.positive(scale)
    b, g, c = fc.grid(Q.B, K.G, dQ.S)
    tiles = fc.tile(K.N, "BLOCK_N")
    count = (K.N + (tiles.size - 1)) // tiles.size
    place = lambda n: fc.where(n % 2 == 0, c, dQ.S - 1 - c)  # there and back: tiles have more work than those behind them, or less
    for n in fc.loop(count // dQ.S + fc.where(place(count // dQ.S) < count % dQ.S, 1, 0)):
        gradients_of_keys(b, g, tiles[n * dQ.S + place(n)], (Q, K, V, dO, LSE2, Delta, dK, dV), Q.H // K.G,
                          lambda h, rows: dQ[c, b, h, rows], scale, mask, score, keep, weigh, grouped, held, turned)


@fc.kernel
def backward_rows(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
                  dQ: "out T[B, H, M, D]", *, scale: f32, positive=True, mask="none", score=None, keep=None, weigh=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)
    q, do = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows])
    lse2, delta = fc.load(LSE2[b, h, rows]), fc.load(Delta[b, h, rows])
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
