"""A spec of tests: dK as a product of the stored gradient of scores, the sister of `kernels.backward.backward_queries` whose operand is not
turned."""

from __future__ import annotations

import functools

import fcgen as fc
from fcgen.kernels.attention import visible
from fcgen.kernels.backward import each_head


@fc.kernel
def backward_keys(dS: T[B, H, N, M], Q: T[B, H, M, D], dK: "out T[B, G, N, D]", *, scale: f32, mask="none", keep=None, grouped=False):
    b, g, cols = fc.grid(dK.B, dK.G, fc.tile(dK.N, "BLOCK_N"))
    dk = fc.var(fc.zeros(cols, dK.D))

    def live(h, rows):
        seen = visible(mask, rows, cols, Q.M, dK.N)
        return seen if keep is None else seen & keep(b, h, rows.index, cols.index)

    def product(h, rows, dk):
        ds = fc.load(dS[b, h, cols, rows])
        if mask != "none" or keep is not None:
            ds = fc.where(live(h, rows), ds, 0.0)
        dk <<= dk + fc.dot(ds, fc.load(Q[b, h, rows]))

    def head(h):
        for rows in fc.loop(fc.tile(Q.M, "BLOCK_M"), live=functools.partial(live, h)):
            product(h, rows, dk)

    each_head(head, g, Q.H // dK.G, grouped)
    fc.store(dK[b, g, cols], (dk * scale).to(dK.dtype))
