"""Attention backward in one kernel: five products per pair of tiles, each over warps of its own.

A program keeps the keys' gradients in registers and adds its share of dQ to memory. S and dP are made as their transposes, so that P^T and
dS^T are left operands as they are; dQ reads dS from shared memory, where it is staged once. LSE2 is the log-sum-exp in powers of two, Delta
the row sums of O * dO; both follow from the forward pass.
"""

import numpy as np
from harness import Example, main

import fcgen as fc

LOG2E = 1.4426950408889634


@fc.kernel
def backward(Q: "T[B, H, M, D]", K: "T[B, H, N, D]", V: "T[B, H, N, D]", dO: "T[B, H, M, D]", LSE2: "f32[B, H, M]", Delta: "f32[B, H, M]",
             dQ: "inout f32[B, H, M, D]", dK: "out T[B, H, N, D]", dV: "out T[B, H, N, D]", *,
             scale: "f32 > 0", causal=False, turned=False):
    b, h, cols = fc.grid(Q.B, Q.H, fc.tile(K.N, "BLOCK_N"))
    k, v = fc.load(K[b, h, cols]), fc.load(V[b, h, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, K.D))
    seen = lambda rows: cols.index <= rows.index
    for rows in fc.loop(fc.tile(Q.M, "BLOCK_M"), live=seen if causal else None):
        q, do = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows])
        s, dp = fc.dot(k, q.T) * (scale * LOG2E), fc.dot(v, do.T)
        s = fc.where(seen(rows), s, -fc.inf) if causal else s
        p = fc.exp2(s - fc.load(LSE2[b, h, rows]))
        ds = (p * (dp - fc.load(Delta[b, h, rows]))).to(K.dtype)
        dv <<= dv + fc.dot(p.to(V.dtype), do)
        dq = fc.dot(k.T, ds).T if turned else fc.dot(ds.T, k)
        dk <<= dk + fc.dot(ds, q)
        fc.atomic_add(dQ[b, h, rows], dq * scale)
    fc.store(dK[b, h, cols], (dk * scale).to(K.dtype))
    fc.store(dV[b, h, cols], dv.to(V.dtype))


def inputs(rng, b=1, h=1, m=100, n=90, d=64):
    q, k, v, do = (rng.standard_normal((b, h, s, d)) for s in (m, n, n, m))
    s = q @ k.swapaxes(2, 3) * d**-0.5
    lse = np.log(np.exp(s).sum(-1))
    delta = (np.exp(s - lse[..., None]) @ v * do).sum(-1)
    return {"Q": q, "K": k, "V": v, "dO": do, "LSE2": lse * LOG2E, "Delta": delta, "dQ": np.zeros(q.shape), "scale": d**-0.5}


def reference(Q, K, V, dO, LSE2, Delta, dQ, scale):
    p = np.exp2(Q @ K.swapaxes(2, 3) * scale * LOG2E - LSE2[..., None])
    ds = p * (dO @ V.swapaxes(2, 3) - Delta[..., None])
    return {"dQ": dQ + ds @ K * scale, "dK": ds.swapaxes(2, 3) @ Q * scale, "dV": p.swapaxes(2, 3) @ dO}


example = Example(backward, inputs, reference, binding={"T": fc.f16, "D": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 64}, stages=1, epilogue="direct"))

if __name__ == "__main__":
    main(example)
