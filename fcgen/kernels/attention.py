# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Attention forward, as FlashAttention-2 (Dao, 2023) computes it: one pass over the keys with a running row maximum and sum.

    O[b, h, i] = sum_j softmax_j(q_i . k_j * scale) v_j        LSE[b, h, i] = log sum_j exp(q_i . k_j * scale)

Heads may be grouped: H is a multiple of G, and head h of Q reads head h // (H / G) of K and V. LSE may be left out.

positive: the scale is above 0, which calls check: it can then be moved behind the maxima.

lazy: the maximum may be so many powers of e too small, which spares most rescaling; the largest weight of a row is then no exact 1.
sums: what a row of O is divided by. "exact": the sum of its weights; "rounded": the sum of the weights as they were rounded for the second
product, so that their rounding cancels; "corrected": the exact sum with the largest weight as it was rounded, which is the one that counts
in a row of few large weights (an exact 1 where nothing is lazy). LSE is always of the exact sum.
"""

from __future__ import annotations

from typing import Any

import fcgen as fc


def visible(mask: str, rows: Any, cols: Any, M: Any, N: Any) -> Any:
    """Which keys a row sees: "none" all, "causal_top_left" j <= i, "causal_bottom_right" j <= i + N - M."""
    if mask == "causal_top_left":
        return cols.valid & (cols.index <= rows.index)
    if mask == "causal_bottom_right":
        return cols.valid & (cols.index <= rows.index + (N - M))
    if mask != "none":
        raise fc.FcError("trace/static", "no such mask", expected="none, causal_top_left, causal_bottom_right", got=mask)
    return cols.valid


class Rows:
    """What is kept of each row of a tile of queries while tiles of keys go by."""

    def __init__(self, rows: Any, V: Any, lazy: float, sums: str, lse: bool):
        m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
        if sums not in ("exact", "rounded", "corrected"):
            raise fc.FcError("trace/static", "no such sums", expected="exact, rounded, corrected", got=sums)
        exact = fc.var(fc.zeros(rows)) if lse and sums == "rounded" else l
        peak = fc.var(fc.zeros(rows)) if sums == "corrected" else None  # the largest score, if it is positive
        self.variables = m, l, acc, exact, peak
        self.lazy, self.sums, self.dtype, self.factor = lazy, sums, V.dtype, None

    def step(self, s: Any, seen: Any, values: Any, weigh: Any, *at: Any) -> None:
        """The next tile of scores. seen: which of them count. values: a view of their values. weigh: a dropout of their weights, at
        `at`; its factor is the whole row's."""
        (m, l, acc, exact, peak), lazy = self.variables, self.lazy
        s = fc.where(seen, s, -fc.inf)
        best = fc.max(s, axis=1)
        top = fc.maximum(m, best)
        moved = top - m > lazy
        if lazy:  # keep a maximum that is only a little too small: then the factors below are exactly one
            top = fc.where(moved, top, m)
        base = fc.where(top == -fc.inf, 0.0, top)
        p, fade = fc.exp(s - base), fc.exp(m - base)
        if lazy:
            fade = fc.where(moved, fade, 1.0)
        weights = p.to(self.dtype)
        l <<= l * fade + fc.sum(weights.to(fc.f32) if self.sums == "rounded" else p, axis=1)
        if exact is not l:
            exact <<= exact * fade + fc.sum(p, axis=1)
        v = fc.load(values)
        if weigh is not None:
            weights, self.factor = fc.where(weigh.kept(*at), p, 0.0).to(self.dtype), weigh.factor
        acc <<= acc * fade + fc.dot(weights, v)
        m <<= top
        if peak is not None:
            peak <<= fc.maximum(peak, best)

    def sink(self, logit: Any) -> None:
        """One more score for each row, whose value is zero."""
        m, l, acc, exact, _ = self.variables
        top = fc.maximum(m, logit)
        base = fc.where(top == -fc.inf, 0.0, top)
        fade, more = fc.exp(m - base), fc.exp(logit - base)
        if exact is not l:
            exact <<= exact * fade + more
        l <<= l * fade + more
        acc <<= acc * fade
        m <<= top

    def out(self) -> Any:
        """The weighted means of the values; 0 in rows that have seen no key."""
        m, l, acc, _, peak = self.variables
        divisor: Any = l
        if peak is not None:
            largest = fc.exp(peak - m)  # with the bits that it had
            divisor = fc.where(peak > 0.0, l + (largest.to(self.dtype).to(fc.f32) - largest), l)
        return fc.where(l == 0.0, 0.0, acc / divisor if self.factor is None else acc / divisor * self.factor)

    def lse(self) -> Any:
        m, _, _, exact, _ = self.variables
        return m + fc.log(exact)


@fc.kernel
def attention(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], O: "out T[B, H, M, E]", LSE: "out f32[B, H, M] | None", *,
              scale: f32, positive=True, mask="none", score=None, lazy=0.0, sums="exact", keep=None, weigh=None, sink=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)
    q = fc.load(Q[b, h, rows])
    state = Rows(rows, V, lazy, sums, LSE is not None)
    m, l, acc, exact, peak = state.variables  # noqa: RUF059 (what schedules and the generated text call them)

    def live(cols):
        seen = visible(mask, rows, cols, Q.M, K.N)
        return seen if keep is None else seen & keep(b, h, rows.index, cols.index)

    def step(cols, seen):
        k = fc.load(K[b, g, cols])
        s = fc.dot(q, k.T) * scale
        if score is not None:
            s = score(s, b, h, rows.index, cols.index)
        state.step(s, seen, V[b, g, cols], weigh, b, h, rows.index, cols.index)

    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):
        step(cols, live(cols))
    if sink is not None:
        state.sink(sink(h))
    fc.store(O[b, h, rows], state.out().to(O.dtype))
    if LSE is not None:
        fc.store(LSE[b, h, rows], state.lse())


#: the ways to compile it: with and without the log-sum-exp, for scales above 0 and for all
VARIANTS: dict[str, dict[str, Any]] = {
    "lse": {}, "plain": {"LSE": None}, "any_scale_lse": {"positive": False}, "any_scale_plain": {"LSE": None, "positive": False}}
