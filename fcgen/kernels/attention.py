# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Attention forward, as FlashAttention-2 (Dao, 2023) computes it: one pass over the keys with a running row maximum and sum.

    O[b, h, i] = sum_j softmax_j(q_i . k_j * scale) v_j        LSE[b, h, i] = log sum_j exp(q_i . k_j * scale)

Heads may be grouped: H is a multiple of G, and head h of Q reads head h // (H / G) of K and V.

lazy: the maximum may be so many powers of e too small, which spares most rescaling; the largest weight of a row is then no exact 1.
sum_rounded: a row of O is divided by the sum of its weights as they were rounded for the second product, so that a row with few large
weights does not feel their rounding; LSE is still of the exact sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fcgen as fc
from fcgen.lang.spec import Spec


def visible(mask: str, rows: Any, cols: Any, M: Any, N: Any) -> Any:
    """Which keys a row sees: "none" all, "causal_top_left" j <= i, "causal_bottom_right" j <= i + N - M."""
    if mask == "causal_top_left":
        return cols.valid & (cols.index <= rows.index)
    if mask == "causal_bottom_right":
        return cols.valid & (cols.index <= rows.index + (N - M))
    if mask != "none":
        raise fc.FcError("trace/static", "no such mask", expected="none, causal_top_left, causal_bottom_right", got=mask)
    return cols.valid


def _body(
    Q: Any, K: Any, V: Any, O: Any, LSE: Any, scale: Any, mask: str, score: Callable[..., Any] | None, lse: bool, lazy: float,
    sum_rounded: bool,
) -> None:
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)
    q = fc.load(Q[b, h, rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    exact = fc.var(fc.zeros(rows)) if lse and sum_rounded else l
    live = lambda cols: visible(mask, rows, cols, Q.M, K.N)
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):
        k = fc.load(K[b, g, cols])
        s = fc.dot(q, k.T) * scale
        if score is not None:
            s = score(s, b, h, rows.index, cols.index)
        s = fc.where(live(cols), s, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        moved = top - m > lazy
        if lazy:  # keep a maximum that is only a little too small: then the factors below are exactly one
            top = fc.where(moved, top, m)
        base = fc.where(top == -fc.inf, 0.0, top)
        p, fade = fc.exp(s - base), fc.exp(m - base)
        if lazy:
            fade = fc.where(moved, fade, 1.0)
        weights = p.to(V.dtype)
        l <<= l * fade + fc.sum(weights.to(fc.f32) if sum_rounded else p, axis=1)
        if exact is not l:
            exact <<= exact * fade + fc.sum(p, axis=1)
        v = fc.load(V[b, g, cols])
        acc <<= acc * fade + fc.dot(weights, v)
        m <<= top
    fc.store(O[b, h, rows], fc.where(l == 0.0, 0.0, acc / l).to(O.dtype))
    if lse:
        fc.store(LSE[b, h, rows], m + fc.log(exact))


@fc.kernel
def attention(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], O: "out T[B, H, M, E]", LSE: "out f32[B, H, M]", *,
              scale: f32 > 0, mask="none", score=None, lazy=0.0, sum_rounded=False):
    _body(Q, K, V, O, LSE, scale, mask, score, True, lazy, sum_rounded)


@fc.kernel
def attention_no_lse(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], O: "out T[B, H, M, E]", *,
                     scale: f32 > 0, mask="none", score=None, lazy=0.0, sum_rounded=False):
    _body(Q, K, V, O, None, scale, mask, score, False, lazy, sum_rounded)


@fc.kernel
def attention_any_scale(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], O: "out T[B, H, M, E]", LSE: "out f32[B, H, M]", *,
                        scale: f32, mask="none", score=None, lazy=0.0, sum_rounded=False):
    _body(Q, K, V, O, LSE, scale, mask, score, True, lazy, sum_rounded)


@fc.kernel
def attention_any_scale_no_lse(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], O: "out T[B, H, M, E]", *,
                               scale: f32, mask="none", score=None, lazy=0.0, sum_rounded=False):
    _body(Q, K, V, O, None, scale, mask, score, False, lazy, sum_rounded)


SPECS: dict[str, Spec] = {"lse": attention, "plain": attention_no_lse, "any_scale_lse": attention_any_scale,
                          "any_scale_plain": attention_any_scale_no_lse}
