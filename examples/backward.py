"""Attention backward: one kernel of five products per pair of tiles, each over warps of its own, between two that pass once over memory.

`backward` keeps the keys' gradients in registers and adds its share of dQ, scale aside, to memory. S and dP are made as their transposes,
so that P^T and dS^T are left operands as they are; dQ reads dS from shared memory, where it is staged once, and is made as its transpose
where `turned`, so that tiles of rows need be no multiple of 64. LSE2 is the log-sum-exp in powers of two, Delta the row sums of O * dO:
`prepare` makes them and clears the sums that `finish` scales and rounds.
"""

import numpy as np
from harness import Example, main

import fcgen as fc

LOG2E = 1.4426950408889634


@fc.kernel
def backward(Q: "T[B, H, M, D]", K: "T[B, H, N, D]", V: "T[B, H, N, D]", dO: "T[B, H, M, D]", LSE2: "f32[B, H, M]", Delta: "f32[B, H, M]",
             Sums: "inout f32[B, H, M, D]", dK: "out T[B, H, N, D]", dV: "out T[B, H, N, D]", *,
             scale: "f32 > 0", causal=False, turned=False):
    b, h, cols = fc.grid(Q.B, Q.H, fc.tile(K.N, "BLOCK_N"))
    k, v = fc.load(K[b, h, cols]), fc.load(V[b, h, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, K.D))
    seen = lambda rows: cols.index <= rows.index
    for rows in fc.loop(fc.tile(Q.M, "BLOCK_M"), live=seen if causal else None):
        q, do = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows])
        s, dp = fc.dot(k, q.T) * (scale * LOG2E), fc.dot(v, do.T)
        p = fc.exp2(s - fc.load(LSE2[b, h, rows]))
        p = fc.where(seen(rows), p, 0.0) if causal else p
        ds = (p * (dp - fc.load(Delta[b, h, rows]))).to(K.dtype)
        dv <<= dv + fc.dot(p.to(V.dtype), do)
        dq = fc.dot(k.T, ds) if turned else fc.dot(ds.T, k)
        dk <<= dk + fc.dot(ds, q)
        fc.atomic_add(Sums[b, h, rows], dq.T if turned else dq)
    fc.store(dK[b, h, cols], (dk * scale).to(K.dtype))
    fc.store(dV[b, h, cols], dv.to(V.dtype))


@fc.kernel
def prepare(O: "T[B, H, M, D]", dO: "T[B, H, M, D]", LSE: "f32[B, H, M]", LSE2: "out f32[B, H, M]", Delta: "out f32[B, H, M]",
            Sums: "out f32[B, H, M, D]"):
    b, h, rows = fc.grid(O.B, O.H, fc.tile(O.M, "ROWS"))
    o, do = fc.load(O[b, h, rows]).to(fc.f32), fc.load(dO[b, h, rows]).to(fc.f32)
    fc.store(Delta[b, h, rows], fc.sum(o * do, axis=1))
    fc.store(LSE2[b, h, rows], fc.load(LSE[b, h, rows]) * LOG2E)
    fc.store(Sums[b, h, rows], fc.zeros(rows, O.D))


@fc.kernel
def finish(Sums: "f32[B, H, M, D]", dQ: "out T[B, H, M, D]", *, scale: "f32"):
    b, h, rows = fc.grid(Sums.B, Sums.H, fc.tile(Sums.M, "ROWS"))
    fc.store(dQ[b, h, rows], (fc.load(Sums[b, h, rows]) * scale).to(dQ.dtype))


def inputs(rng, b=1, h=1, m=100, n=90, d=64, causal=False):
    q, k, v, do = (rng.standard_normal((b, h, s, d)) for s in (m, n, n, m))
    s = masked(q @ k.swapaxes(2, 3) * d**-0.5, causal)
    lse = np.log(np.exp(s).sum(-1))
    delta = (np.exp(s - lse[..., None]) @ v * do).sum(-1)
    return {"Q": q, "K": k, "V": v, "dO": do, "LSE2": lse * LOG2E, "Delta": delta, "Sums": np.zeros(q.shape), "scale": d**-0.5}


def reference(Q, K, V, dO, LSE2, Delta, Sums, scale, causal=False):
    p = np.exp2(masked(Q @ K.swapaxes(2, 3) * scale * LOG2E, causal) - LSE2[..., None])
    ds = p * (dO @ V.swapaxes(2, 3) - Delta[..., None])
    return {"Sums": Sums + ds @ K, "dK": ds.swapaxes(2, 3) @ Q * scale, "dV": p.swapaxes(2, 3) @ dO}


def masked(s, causal):
    return np.where(np.tri(*s.shape[2:], dtype=bool), s, -np.inf) if causal else s


example = Example(backward, inputs, reference, binding={"T": fc.f16, "D": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 64}, stages=1, epilogue="direct"))

if __name__ == "__main__":
    main(example)
