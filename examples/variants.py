"""Soft-cap, ALiBi and a sliding window at once: three more lines in the spec, nothing else."""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def variant_attention(Q: "T[B, H, M, D]", K: "T[B, H, N, D]", V: "T[B, H, N, E]", slopes: "f32[H]", O: "out T[B, H, M, E]", *,
                      scale: "f32 > 0", cap: "f32 > 0", window: "i32"):
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    visible = lambda cols: (rows.index >= cols.index) & (rows.index - cols.index < window)
    q, slope = fc.load(Q[b, h, rows]), slopes[h]
    soft = fc.online_softmax(rows, V.E)
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):
        s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale
        s = cap * fc.tanh(s / cap)
        s = s + slope * (cols.index - rows.index).to(fc.f32)
        soft.add(s, V[b, h, cols])
    fc.store(O[b, h, rows], soft.out().to(O.dtype))


def inputs(rng, b=1, h=4, n=250, d=64):
    t = lambda: rng.standard_normal((b, h, n, d))
    return {"Q": t(), "K": t(), "V": t(), "slopes": 2.0 ** -np.arange(1, h + 1), "scale": d**-0.5, "cap": 5.0, "window": 100}


def reference(Q, K, V, slopes, scale, cap, window):
    n = Q.shape[2]
    d = np.subtract.outer(np.arange(n), np.arange(n))
    s = cap * np.tanh(np.einsum("bhmd,bhnd->bhmn", Q, K) * scale / cap) - slopes[None, :, None, None] * d
    s = np.where((d >= 0) & (d < window), s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return {"O": np.einsum("bhmn,bhne->bhme", e / e.sum(-1, keepdims=True), V)}


example = Example(variant_attention, inputs, reference, binding={"T": fc.f16, "D": 64, "E": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}))

if __name__ == "__main__":
    main(example)
