# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""The gradients of `kernels.ragged`: as `kernels.backward` has them, for sequences that lie one behind the other.

Gradients of rows and keys that are not used are zero. Of what lies in no sequence nothing is written.
"""

from __future__ import annotations

import functools
from typing import Any

import fcgen as fc

from .backward import LOG2E, Rows, each_head, step, weights


def window(rows: Any, cols: Any, queries: Any, count: Any, align: str, causal: bool, left: Any, right: Any) -> Any:
    """Which keys of a sequence a row sees: those that are used, from so many on the left to so many on the right."""
    seen, at = cols.index < count, rows.index if align == "top" else rows.index + (count - queries)
    if causal:
        seen = seen & (cols.index <= at)
    elif right is not None:
        seen = seen & (cols.index <= at + right)
    return seen if left is None else seen & (cols.index >= at - left)


@fc.kernel
def ragged_rows_before(O: T[M, H, E], dO: T[M, H, E], LSE: f32[H, M], dLSE: "f32[H, M] | None", Begin: i32[S], End: i32[S],
                       Delta: "out f32[H, M]", LSE2: "out f32[H, M]", *, longest: i32, sink=None):
    b, h, rows = fc.grid(Begin.S, O.H, fc.tile(longest, "BLOCK_M"))
    start = Begin[b]
    with fc.when(rows.start < End[b] - start):
        mine = (rows + start).until(End[b])
        lse = fc.load(LSE[h, mine])
        delta = fc.sum(fc.load(O[mine, h]).to(fc.f32) * fc.load(dO[mine, h]).to(fc.f32), axis=1)
        if dLSE is not None:
            delta = delta - fc.load(dLSE[h, mine])
        fc.store(Delta[h, mine], delta)
        fc.store(LSE2[h, mine], fc.where(lse == -fc.inf, fc.inf, lse * LOG2E))
        if sink is not None:
            logit, into = fc.vjp(lambda: fc.cast(sink(h), fc.f32), captured=True)
            real = (rows.index < End[b] - start) & (lse != -fc.inf)
            into(-fc.sum(fc.where(real, fc.exp(logit - lse) * delta, 0.0)))


@fc.kernel
def ragged_backward(Q: T[M, H, D], K: T[N, G, D], V: T[N, G, E], dO: T[M, H, E], LSE2: f32[H, M], Delta: f32[H, M], Begin: i32[S],
                    End: i32[S], KBegin: i32[S], KEnd: i32[S], Used: "i32[S] | None", KUsed: "i32[S] | None",
                    dQ: "inout f32[M, H, D] | None", dK: "out T[N, G, D]", dV: "out T[N, G, E]", *, scale: f32, longest_k: i32,
                    left: "i32 | None", right: "i32 | None", positive=True, align="bottom", causal=False, score=None, keep=None, weigh=None,
                    grouped=False, turned=False):
    if positive:
        fc.positive(scale)
    b, g, cols = fc.grid(Begin.S, K.G, fc.tile(longest_k, "BLOCK_N"))
    start, first = Begin[b], KBegin[b]
    there, held = End[b] - start, KEnd[b] - first
    queries = there if Used is None else fc.minimum(Used[b], there)
    count = held if KUsed is None else fc.minimum(KUsed[b], held)

    def live(h, rows):
        seen = window(rows, cols, queries, count, align, causal, left, right)
        if keep is not None:
            seen = seen & keep(b, h, rows.index, cols.index)
        return seen if score is None and weigh is None else seen & rows.valid

    def head(h):
        for rows in fc.loop(fc.tile(queries, "BLOCK_M"), live=lambda rows: live(h, rows)):
            at = rows + start
            mine = Rows(Q[at, h], dO[at, h], LSE2[h, at], Delta[h, at], None, None if dQ is None else dQ[at, h])
            step(mine, k, v, dk, dv, scale, turned, functools.partial(live, h, rows), (b, h, rows.index, cols.index), score, weigh, True)

    with fc.when(cols.start < held):
        used = (cols + first).until(first + count)
        k, v = fc.load(K[used, g]), fc.load(V[used, g])
        dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, V.E))
        each_head(head, g, Q.H // K.G, grouped)
        fc.store(dK[(cols + first).until(KEnd[b]), g], (dk * scale).to(K.dtype))
        fc.store(dV[(cols + first).until(KEnd[b]), g], dv.to(V.dtype))


@fc.kernel
def ragged_backward_rows(Q: T[M, H, D], K: T[N, G, D], V: T[N, G, E], dO: T[M, H, E], LSE2: f32[H, M], Delta: f32[H, M], Begin: i32[S],
                         End: i32[S], KBegin: i32[S], KEnd: i32[S], Used: "i32[S] | None", KUsed: "i32[S] | None",
                         dQ: "out T[M, H, D]", *, scale: f32, longest: i32, left: "i32 | None", right: "i32 | None", positive=True,
                         align="bottom", causal=False, score=None, keep=None, weigh=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Begin.S, Q.H, fc.tile(longest, "BLOCK_M"))
    g, start, first = h // (Q.H // K.G), Begin[b], KBegin[b]
    there, held = End[b] - start, KEnd[b] - first
    queries = there if Used is None else fc.minimum(Used[b], there)
    count = held if KUsed is None else fc.minimum(KUsed[b], held)

    def live(cols):
        seen = window(rows, cols, queries, count, align, causal, left, right)
        if keep is not None:
            seen = seen & keep(b, h, rows.index, cols.index)
        return seen if score is None and weigh is None else seen & (rows.index < queries)

    with fc.when(rows.start < there):
        mine = (rows + start).until(start + queries)
        q, do = fc.load(Q[mine, h]), fc.load(dO[mine, h])
        lse2, delta = fc.load(LSE2[h, mine]), fc.load(Delta[h, mine])
        dq = fc.var(fc.zeros(rows, Q.D))
        for cols in fc.loop(fc.tile(count, "BLOCK_N"), live=live):
            k, v = fc.load(K[cols + first, g]), fc.load(V[cols + first, g])
            s, dp = fc.dot(q, k.T), fc.dot(do, v.T)
            _, gradient = weights(s * scale, lse2, live(cols), (b, h, rows.index, cols.index), score, weigh, False)
            dq <<= dq + fc.dot(gradient(dp, delta).to(K.dtype), k)
        fc.store(dQ[(rows + start).until(End[b]), h], (dq * scale).to(Q.dtype))
