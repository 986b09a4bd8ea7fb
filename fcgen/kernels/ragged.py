# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Attention over a ragged batch: the rows of sequences of any length lie one behind the other in one tensor, and none reaches another's.

The grid runs over tiles of rows: number t is tile Number[t] of sequence Sequence[t], none where that is below 0. Sequence b has the rows
Begin[b] to End[b] of Q and O and the keys KBegin[b] to KEnd[b] of K and V; of these it uses the first Used[b] and KUsed[b], where given.
Positions are counted from the beginning of the sequence. Row i sees the keys from i + shift - left to i + shift + right; shift is 0 (align
"top") or the sequence's keys less its rows ("bottom").
"""

from __future__ import annotations

import fcgen as fc

from .attention import Rows


@fc.kernel
def ragged_attention(Q: T[M, H, D], K: T[N, G, D], V: T[N, G, E], Sequence: i32[P], Number: i32[P], Begin: i32[S], End: i32[S],
                     KBegin: i32[S], KEnd: i32[S], Used: "i32[S] | None", KUsed: "i32[S] | None", O: "out T[M, H, E]",
                     LSE: "out f32[H, M] | None", *, scale: f32, left: "i32 | None", right: "i32 | None", positive=True, align="bottom",
                     causal=False, lazy=0.0, sums="exact", score=None, keep=None, weigh=None, sink=None):
    if positive:
        fc.positive(scale)
    t, h = fc.grid(Sequence.P, Q.H)
    g, b = h // (Q.H // K.G), Sequence[t]
    first, start = KBegin[b], Begin[b]
    there, n = End[b] - start, Number[t]
    rows = fc.tile(there, "BLOCK_M")[n]
    begin, stop, i = start, there, rows.index
    if weigh is None:  # the ragged tile is the first one, whose rows see the fewest keys; random numbers are shared by rows of whole tiles
        whole = (there + (rows.size - 1)) // rows.size * rows.size
        rows, stop = fc.tile(whole, "BLOCK_M")[n], (n + 1) * rows.size - (whole - there)
        ahead = fc.where(n > 0, whole - there, 0)
        begin, i = start - ahead, rows.index - ahead
    queries = there if Used is None else fc.minimum(Used[b], there)
    count = KEnd[b] - first if KUsed is None else fc.minimum(KUsed[b], KEnd[b] - first)
    mine = (rows + begin).until(start + fc.minimum(queries, stop))

    def live(cols):
        seen, at = cols.valid, i if align == "top" else i + (count - queries)
        if causal:
            seen = seen & (cols.index <= at)
        elif right is not None:
            seen = seen & (cols.index <= at + right)
        if left is not None:
            seen = seen & (cols.index >= at - left)
        return seen if keep is None else seen & keep(b, h, i, cols.index)

    with fc.when(b >= 0):
        q = fc.load(Q[mine, h])
        state = Rows(rows, V, lazy, sums, LSE is not None)
        m, l, acc, exact, peak = state.variables  # noqa: RUF059 (what schedules and the generated text call them)
        for cols in fc.loop(fc.tile(count, "BLOCK_N"), descending=True, live=live):
            k = fc.load(K[cols + first, g])
            s = fc.dot(q, k.T) * scale
            if score is not None:
                s = score(s, b, h, i, cols.index)
            state.step(s, live(cols), V[cols + first, g], weigh, b, h, i, cols.index)
        if sink is not None:
            state.sink(sink(h))
        out, lse, to = state.out(), state.lse(), mine
        if Used is not None:  # rows that are not used are zero
            used, to = i < queries, (rows + begin).until(start + stop)
            out, lse = fc.where(used, out, 0.0), fc.where(used, lse, -fc.inf)
        fc.store(O[to, h], out.to(O.dtype))
        if LSE is not None:
            fc.store(LSE[h, to], lse)


@fc.kernel
def tiles_of_sequences(Begin: i32[S], End: i32[S], Sequence: "inout i32[P]", Number: "inout i32[P]", *, each: i32):
    """Which tiles of `each` rows there are: those of the longest sequences first, and of each sequence the last ones. P is at least their
    number; what is left over is of no sequence."""
    (b,) = fc.grid(Begin.S)
    mine, before, total = (End[b] - Begin[b] + (each - 1)) // each, fc.var(0), fc.var(0)
    for others in fc.loop(fc.tile(Begin.S, "SEQUENCES")):
        tiles = (fc.load(End[others]) - fc.load(Begin[others]) + (each - 1)) // each
        ahead = (tiles > mine) | ((tiles == mine) & (others.index < b))
        before <<= before + fc.sum(fc.where(ahead, tiles, 0), axis=0)
        total <<= total + fc.sum(tiles, axis=0)
    for n in fc.loop(mine):
        fc.store(Sequence[before + n], b)
        fc.store(Number[before + n], mine - 1 - n)
    with fc.when(b == 0):
        for n in fc.loop(fc.cast(Sequence.P, fc.i32) - total):
            fc.store(Sequence[total + n], -1)
            fc.store(Number[total + n], 0)
