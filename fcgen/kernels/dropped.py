# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[B, H, M, D]")
"""Which weights of attention a dropout keeps."""

from __future__ import annotations

import fcgen as fc


@fc.kernel
def kept_weights(Kept: "inout i8[B, H, M, N]", *, dropout=None):
    b, h, rows, cols = fc.grid(Kept.B, Kept.H, fc.tile(Kept.M, "ROWS"), fc.tile(Kept.N, "KEYS"))
    stays = dropout.kept(b, h, rows.index, cols.index)
    fc.store(Kept[b, h, rows, cols], fc.where(stays, 1, 0).to(fc.i8))
