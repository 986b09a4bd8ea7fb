# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Attention over lists of blocks of keys, and the kernels that make them.

For each block of rows, the first `Count` entries of `List` name the blocks of keys that it sees: entry 2 * n is block n, in which the mask
is to be asked, 2 * n + 1 a block that is seen whole and lies inside of the tensor. All other blocks are left out.
"""

from __future__ import annotations

from typing import Any

import fcgen as fc

from ..lang.bounds import Verdict, positions, verdict
from .attention import Rows


@fc.kernel
def listed_attention(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], Count: i32[B, H, R], List: i32[B, H, R, C],
                     O: "out T[B, H, M, E]", LSE: "out f32[B, H, M] | None", *, scale: f32, block=(128, 128), positive=True,
                     shift: "i32 | None", lazy=0.0, sums="exact", score=None, keep=None, weigh=None, sink=None):
    if positive:
        fc.positive(scale)
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g, tiles = h // (Q.H // K.G), fc.tile(K.N, "BLOCK_N")
    if block[0] % rows.size or block[1] % tiles.size:
        raise fc.FcError("compile/schedule", "blocks of lists are cut into whole tiles", expected=f"tiles that divide {block}",
                         got=(rows.size, tiles.size))
    r, each = rows.start // block[0], block[1] // tiles.size
    q = fc.load(Q[b, h, rows])
    state = Rows(rows, V, lazy, sums, LSE is not None)
    m, l, acc, exact, peak = state.variables  # noqa: RUF059 (what schedules and the generated text call them)

    def seen(cols):
        inside = cols.valid if shift is None else cols.valid & (cols.index <= rows.index + shift)
        return inside if keep is None else inside & keep(b, h, rows.index, cols.index)

    for n in fc.loop(Count[b, h, r] * each):
        entry = List[b, h, r, n // each]
        cols = tiles[(entry >> 1) * each + n % each]
        k = fc.load(K[b, g, cols])
        s = fc.dot(q, k.T) * scale
        if score is not None:
            s = score(s, b, h, rows.index, cols.index)
        state.step(s, (entry & 1 == 1) | seen(cols), V[b, g, cols], weigh, b, h, rows.index, cols.index)
    if sink is not None:
        state.sink(sink(h))
    fc.store(O[b, h, rows], state.out().to(O.dtype))
    if LSE is not None:
        fc.store(LSE[b, h, rows], state.lse())


@fc.kernel
def lists_of(Count: "out i32[B, H, R]", List: "inout i32[B, H, R, C]", *, queries: i32, keys: i32, shift: "i32 | None", keep=None):
    """Which blocks of keys each block of rows sees, in ascending order. Rows past the last one, and keys, are nobody's. The mask is asked
    about every element of the blocks that positions alone leave."""
    b, h, rows = fc.grid(Count.B, Count.H, fc.tile(queries, "ROWS"))
    blocks = fc.tile(keys, "KEYS")
    r, found = rows.start // rows.size, fc.var(0)

    def seen(cols):
        inside = cols.valid if shift is None else cols.valid & (cols.index <= rows.index + shift)
        return inside & keep(b, h, rows.index, cols.index)

    for cols in fc.loop(blocks, live=seen):
        each = fc.where(cols.valid, fc.where((rows.index < queries) & seen(cols), 1, 1 << 16), 0)
        each = fc.sum(each, axis=1)  # of a row: how many are seen, how many not
        some, rest = fc.where((each & 0xFFFF) > 0, 1, 0), fc.where(each >= 1 << 16, 1 << 16, 0)
        both = fc.sum(fc.where(rows.index < queries, some + rest, 0), axis=0)
        wanted = (both & 0xFFFF) > 0
        with fc.when(wanted):
            fc.store(List[b, h, r, found], cols.start // cols.size * 2
                     + fc.where((both < 1 << 16) & (cols.start + cols.size <= keys), 1, 0))
        found <<= found + fc.where(wanted, 1, 0)
    fc.store(Count[b, h, r], found)


@fc.kernel
def bounded_lists(Count: "out i32[B, H, R]", List: "inout i32[B, H, R, C]", *, queries: i32, keys: i32, shift: "i32 | None", keep=None,
                  block=(128, 128)):
    """The same of a mask that is asked about whole blocks (`lang.bounds`): blocks that it may see somewhere, in ascending order. No element
    is looked at but those of tensors, each once for a block of rows."""
    b, h, r = fc.grid(Count.B, Count.H, Count.R)
    found = fc.var(0)
    ends = lambda first, n, end, axis: positions(first, fc.minimum(first + (n - 1), end - 1), n, axis)
    rows = ends(r * block[0], block[0], queries, "rows of a block")
    for blocks in fc.loop(fc.tile(List.C, "BLOCKS")):
        first = blocks.index * block[1]
        cols = ends(first, block[1], keys, "keys of a block")
        seen: Any = verdict(keep, b, h, rows, cols)
        if seen is None:
            raise fc.FcError("compile/unsupported", "what this mask says of blocks of positions is not known")
        seen = seen & Verdict(blocks.valid, first + block[1] <= keys)  # one that hangs over is not whole
        seen = seen if shift is None else seen & (cols <= rows + shift)
        some = fc.where(seen.may, 1, 0)
        entries, which = blocks.again(), fc.cumsum(some) - 1 + blocks.start
        one = (which == entries.index) & seen.may
        packed = fc.sum(fc.where(one, blocks.index * 2 + fc.where(seen.must, 1, 0), 0), axis=blocks)
        fc.store(List[b, h, r, (entries + (found - blocks.start)).until(found + fc.sum(some))], packed)
        found <<= found + fc.sum(some)
    fc.store(Count[b, h, r], found)


@fc.kernel
def merged_lists(PartCount: i32[B, H, R], Part: i32[B, H, R, C], WholeCount: "i32[B, H, R] | None", Whole: "i32[B, H, R, W] | None",
                 Count: "out i32[B, H, R]", List: "inout i32[B, H, R, L]"):
    """One list of blocks that are seen in part and blocks that are seen whole."""
    b, h, r = fc.grid(Count.B, Count.H, Count.R)
    part = fc.minimum(fc.cast(PartCount[b, h, r], fc.i32), fc.cast(Part.C, fc.i32))
    for n in fc.loop(part):
        fc.store(List[b, h, r, n], Part[b, h, r, n] * 2)
    count = part
    if WholeCount is not None and Whole is not None:
        count = part + fc.minimum(WholeCount[b, h, r], fc.cast(Whole.W, fc.i32))
        for n in fc.loop(count - part):
            fc.store(List[b, h, r, part + n], Whole[b, h, r, n] * 2 + 1)
    fc.store(Count[b, h, r], count)
