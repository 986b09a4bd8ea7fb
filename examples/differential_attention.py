"""Differential attention (Ye et al., 2024): one softmax map minus a learned share of another, applied to the same values.

Both maps run through one pass over the keys; each keeps its own running maximum, sum and accumulator.
"""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def differential_attention(Q1: "T[B, H, M, D]", K1: "T[B, H, N, D]", Q2: "T[B, H, M, D]", K2: "T[B, H, N, D]",
                           V: "T[B, H, N, E]", lam: "f32[H]", O: "out T[B, H, M, E]", *, scale: "f32 > 0"):
    b, h, rows = fc.grid(Q1.B, Q1.H, fc.tile(Q1.M, "BLOCK_M"))
    maps = [(fc.load(Q[b, h, rows]), K, fc.online_softmax(rows, V.E)) for Q, K in ((Q1, K1), (Q2, K2))]  # Python, while tracing
    for cols in fc.loop(fc.tile(V.N, "BLOCK_N")):
        v = fc.load(V[b, h, cols])
        for q, K, soft in maps:
            s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale
            soft.add(s, v)
    (_, _, first), (_, _, second) = maps
    fc.store(O[b, h, rows], (first.out() - lam[h] * second.out()).to(O.dtype))


def inputs(rng, b=1, h=2, m=100, n=136, d=64, e=64):
    t = lambda s, w: rng.standard_normal((b, h, s, w))
    return {"Q1": t(m, d), "K1": t(n, d), "Q2": t(m, d), "K2": t(n, d), "V": t(n, e), "lam": rng.uniform(0.2, 0.8, h), "scale": d**-0.5}


def reference(Q1, K1, Q2, K2, V, lam, scale):
    def map_(q, k):
        s = np.einsum("bhmd,bhnd->bhmn", q, k) * scale
        e = np.exp(s - s.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    return {"O": np.einsum("bhmn,bhne->bhme", map_(Q1, K1) - lam[None, :, None, None] * map_(Q2, K2), V)}


example = Example(differential_attention, inputs, reference, binding={"T": fc.f16, "D": 64, "E": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}))

if __name__ == "__main__":
    main(example)
