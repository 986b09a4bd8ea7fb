# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""What a dropout keeps, and what a mask shows, as tensors."""

from __future__ import annotations

import fcgen as fc


@fc.kernel
def kept_weights(Kept: "inout i8[B, H, M, N]", *, dropout=None):
    b, h, rows, cols = fc.grid(Kept.B, Kept.H, fc.tile(Kept.M, "ROWS"), fc.tile(Kept.N, "KEYS"))
    stays = dropout.kept(b, h, rows.index, cols.index)
    fc.store(Kept[b, h, rows, cols], fc.where(stays, 1, 0).to(fc.i8))


@fc.kernel
def shown(Seen: "inout i8[M, N]", *, b: i32, h: i32, keep=None):
    rows, cols = fc.grid(fc.tile(Seen.M, "ROWS"), fc.tile(Seen.N, "KEYS"))
    inside = rows.valid & cols.valid  # a mask may have one axis, or none
    fc.store(Seen[rows, cols], fc.where(inside & keep(b, h, rows.index, cols.index), 1, 0).to(fc.i8))
