# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Attention over lists of blocks of keys, and the kernel that makes the lists of a mask.

For each block of rows, `Part` names the blocks of keys in which the mask holds in part, `Whole` those in which it holds everywhere, and
which lie inside of the tensor; of both the first so many as the count says. All other blocks are left out.
"""

from __future__ import annotations

import fcgen as fc

from .attention import Rows


@fc.kernel
def listed_attention(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], PartCount: i32[B, H, R], Part: i32[B, H, R, C],
                     WholeCount: "i32[B, H, R] | None", Whole: "i32[B, H, R, W] | None", O: "out T[B, H, M, E]",
                     LSE: "out f32[B, H, M] | None", *, scale: f32, block=(128, 128), positive=True, shift: "i32 | None", lazy=0.0,
                     sums="exact", score=None, keep=None, weigh=None, sink=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g, tiles = h // (Q.H // K.G), fc.tile(K.N, "BLOCK_N")
    if block[0] % rows.size or block[1] % tiles.size:
        raise fc.FcError("trace/static", "blocks of lists are cut into whole tiles", expected=f"tiles that divide {block}",
                         got=(rows.size, tiles.size))
    r, each = rows.start // block[0], block[1] // tiles.size
    q = fc.load(Q[b, h, rows])
    state = Rows(rows, V, lazy, sums, LSE is not None)
    m, l, acc, exact, peak = state.variables  # noqa: RUF059 (what schedules and the generated text call them)

    def seen(cols):
        inside = cols.valid if shift is None else cols.valid & (cols.index <= rows.index + shift)
        return inside if keep is None else inside & keep(b, h, rows.index, cols.index)

    part = PartCount[b, h, r] * each
    for n in fc.loop(part if WholeCount is None else part + WholeCount[b, h, r] * each):
        tile = Part[b, h, r, n // each] * each + n % each
        if Whole is not None and WholeCount is not None:
            whole, at = n >= part, n - part
            tile = fc.where(whole, Whole[b, h, r, at // each] * each + at % each, tile)
        cols = tiles[tile]
        k = fc.load(K[b, g, cols])
        s = fc.dot(q, k.T) * scale
        if score is not None:
            s = score(s, b, h, rows.index, cols.index)
        inside = seen(cols) if Whole is None else whole | seen(cols)
        state.step(s, inside, V[b, g, cols], weigh, b, h, rows.index, cols.index)
    if sink is not None:
        state.sink(sink(h))
    fc.store(O[b, h, rows], state.out().to(O.dtype))
    if LSE is not None:
        fc.store(LSE[b, h, rows], state.lse())


@fc.kernel
def lists_of(PartCount: "out i32[B, H, R]", Part: "inout i32[B, H, R, C]", WholeCount: "out i32[B, H, R]", Whole: "inout i32[B, H, R, C]",
             *, queries: i32, keys: i32, shift: "i32 | None", keep=None):
    """Which blocks of keys each block of rows sees, in ascending order. Rows past the last one, and keys, are nobody's."""
    b, h, rows = fc.grid(PartCount.B, PartCount.H, fc.tile(queries, "ROWS"))
    some, all_of = fc.var(0), fc.var(0)

    def seen(cols):
        inside = cols.valid if shift is None else cols.valid & (cols.index <= rows.index + shift)
        return inside & keep(b, h, rows.index, cols.index)

    for cols in fc.loop(fc.tile(keys, "KEYS"), live=seen):
        hits = fc.max(fc.where((rows.index < queries) & seen(cols), 1, 0), axis=None)
        misses = fc.max(fc.where((rows.index < queries) & ~seen(cols), 1, 0), axis=None)
        n = cols.start // cols.size
        r = rows.start // rows.size
        with fc.when((hits > 0) & (misses > 0)):
            fc.store(Part[b, h, r, some], n)
        with fc.when((hits > 0) & (misses == 0)):
            fc.store(Whole[b, h, r, all_of], n)
        some <<= some + hits * misses
        all_of <<= all_of + hits * (1 - misses)
    fc.store(PartCount[b, h, rows.start // rows.size], some)
    fc.store(WholeCount[b, h, rows.start // rows.size], all_of)
