"""Sigmoid attention (Ramapuram et al., 2024): every weight is sigmoid(q k^T * scale + bias); rows are not normalised."""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def sigmoid_attention(Q: "T[B, H, M, D]", K: "T[B, H, N, D]", V: "T[B, H, N, E]", O: "out T[B, H, M, E]", *,
                      scale: "f32", bias: "f32"):
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    q = fc.load(Q[b, h, rows])
    acc = fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):
        s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale + bias
        p = fc.where(cols.valid, fc.sigmoid(s), 0.0)
        acc <<= acc + fc.dot(p.to(V.dtype), fc.load(V[b, h, cols]))
    fc.store(O[b, h, rows], acc.to(O.dtype))


def inputs(rng, b=2, h=2, m=100, n=136, d=64):
    shape = lambda s: rng.standard_normal((b, h, s, d))
    return {"Q": shape(m), "K": shape(n), "V": shape(n), "scale": d**-0.5, "bias": -float(np.log(n))}


def reference(Q, K, V, scale, bias):
    s = np.einsum("bhmd,bhnd->bhmn", Q, K) * scale + bias
    return {"O": np.einsum("bhmn,bhne->bhme", 1 / (1 + np.exp(-s)), V)}


example = Example(sigmoid_attention, inputs, reference, binding={"T": fc.f16, "D": 64, "E": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}))

if __name__ == "__main__":
    main(example)
