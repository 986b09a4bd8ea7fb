"""Specs of tests: dK as a product of the stored gradient of scores, the sister of `kernels.backward.backward_queries` whose operand is not
turned; and a pass over keys that both leaves gradients of scores and adds to dQ."""

from __future__ import annotations

import functools

import fcgen as fc
from fcgen.kernels.attention import visible
from fcgen.kernels.backward import each_head, of_keys


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


@fc.kernel
def backward_of_both(Q: T[B, H, M, D], K: T[B, G, N, D], V: T[B, G, N, E], dO: T[B, H, M, E], LSE2: f32[B, H, M], Delta: f32[B, H, M],
                     dS: "out T[B, H, N, M]", dQ: "inout f32[B, H, M, D]", dK: "out T[B, G, N, D]", dV: "out T[B, G, N, E]", *, scale: f32):
    of_keys(Q, K, V, dO, LSE2, Delta, dS, dQ, None, dK, dV, scale, True, "none", None, None, None, False, False, False)
