"""Attention forward with a causal mask and grouped heads: the spec that the README shows."""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def attention(Q: "T[B, H, M, D]", K: "T[B, G, N, D]", V: "T[B, G, N, E]", O: "out T[B, H, M, E]", *, scale: "f32 > 0"):
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)  # grouped heads
    visible = lambda cols: cols.valid & (cols.index <= rows.index)
    q = fc.load(Q[b, h, rows])
    m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):
        k = fc.load(K[b, g, cols])
        s = fc.dot(q, k.T) * scale
        s = fc.where(visible(cols), s, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        base = fc.where(top == -fc.inf, 0.0, top)  # rows that have seen no key yet
        p, fade = fc.exp(s - base), fc.exp(m - base)
        l <<= l * fade + fc.sum(p, axis=1)
        v = fc.load(V[b, g, cols])
        acc <<= acc * fade + fc.dot(p.to(V.dtype), v)
        m <<= top
    fc.store(O[b, h, rows], fc.where(l == 0.0, 0.0, acc / l).to(O.dtype))


def inputs(rng, b=1, h=4, g=2, n=150, d=64):
    t = lambda heads: rng.standard_normal((b, heads, n, d))
    return {"Q": t(h), "K": t(g), "V": t(g), "scale": d**-0.5}


def reference(Q, K, V, scale):
    group = Q.shape[1] // K.shape[1]
    K, V = np.repeat(K, group, axis=1), np.repeat(V, group, axis=1)
    n = Q.shape[2]
    s = np.where(np.tri(n, dtype=bool), np.einsum("bhmd,bhnd->bhmn", Q, K) * scale, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return {"O": np.einsum("bhmn,bhne->bhme", e / e.sum(-1, keepdims=True), V)}


example = Example(attention, inputs, reference, binding={"T": fc.f16, "D": 64, "E": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}))

if __name__ == "__main__":
    main(example)
