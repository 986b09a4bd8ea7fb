"""Softmax attention, one tile of query rows per program, walking the keys once (FlashAttention-2; Dao, 2023).

Masks say which keys a query sees: "none" (all), "causal_top_left" (key j if j <= i), "causal_bottom_right" (key j if
j <= i + N - M: the last query sees every key), or a function (b, h, query index, key index) -> condition. score: a function (score, b, h,
query index, key index) -> score, before the mask. Rows that see no key give O = 0 and LSE = -inf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fcgen as fc

MASKS = ("none", "causal_top_left", "causal_bottom_right")
#: compile-time choice -> (b, h, i, j, M, N) -> condition
_VISIBLE: dict[str, Callable[..., Any]] = {
    "causal_top_left": lambda b, h, i, j, M, N: j <= i,
    "causal_bottom_right": lambda b, h, i, j, M, N: j <= i + (N - M),
}


@fc.kernel
def attention(Q: "T[B, H, M, D]", K: "T[B, Hk, N, D]", V: "T[B, Hk, N, E]", O: "out T[B, H, M, E]", LSE: "out f32[B, H, M] if lse",
              *, scale: "f32 > 0", mask="none", score=None, lse=True):
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.Hk)

    def live(cols):
        if mask == "none":
            return cols.valid
        if callable(mask):
            return cols.valid & mask(b, h, rows.index, cols.index)
        return cols.valid & _VISIBLE[mask](b, h, rows.index, cols.index, Q.M, K.N)

    q = fc.load(Q[b, h, rows])
    m, l = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows))
    acc = fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):
        k = fc.load(K[b, g, cols])
        s = fc.dot(q, k.T) * scale
        if score is not None:
            s = score(s, b, h, rows.index, cols.index)
        s = fc.where(live(cols), s, -fc.inf)
        mn = fc.maximum(m, fc.max(s, axis=1))
        base = fc.where(mn == -fc.inf, 0.0, mn)
        p, a = fc.exp(s - base), fc.exp(m - base)
        v = fc.load(V[b, g, cols])
        l <<= l * a + fc.sum(p, axis=1)
        acc <<= acc * a + fc.dot(p.to(V.dtype), v)
        m <<= mn
    fc.store(O[b, h, rows], fc.where(l > 0, acc / l, 0.0).to(O.dtype))
    if lse:
        fc.store(LSE[b, h, rows], m + fc.log(l))


#: the same for scales of any sign
attention_any_scale = attention.annotated(scale="f32")
