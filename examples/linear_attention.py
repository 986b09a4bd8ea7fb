"""Linear attention with a decay per head, in chunks: o_i = sum_{j <= i} decay^(i-j) (q_i . k_j) v_j.

One program walks the chunks of a head in order and carries the state S = sum_j decay^(end-j) k_j^T v_j in registers: inside a chunk the
product is a masked matrix, across chunks it goes through the state.
"""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def linear_attention(Q: "T[B, H, M, D]", K: "T[B, H, M, D]", V: "T[B, H, M, E]", log_decay: "f32[H]", O: "out T[B, H, M, E]"):
    b, h = fc.grid(Q.B, Q.H)
    w = log_decay[h]
    state = fc.var(fc.zeros(K.D, V.E))
    for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):
        cols = rows.again()  # the chunk once more, as the axis of its keys
        q, k, v = fc.load(Q[b, h, rows]), fc.load(K[b, h, cols]), fc.load(V[b, h, cols])
        i, j = (rows.index - rows.start).to(fc.f32), (cols.index - cols.start).to(fc.f32)
        inside = fc.dot(q, k.T) * fc.exp(fc.where(i >= j, (i - j) * w, -fc.inf))  # inf nowhere, so that it has a gradient everywhere
        across = fc.dot(q, state.to(V.dtype)) * fc.exp((i + 1.0) * w)
        fc.store(O[b, h, rows], (across + fc.dot(inside.to(V.dtype), v)).to(O.dtype))
        fade = fc.exp((float(rows.size) - 1.0 - j) * w)
        state <<= state * fc.exp(w * float(rows.size)) + fc.dot((k.to(fc.f32) * fade).to(K.dtype).T, v)


def inputs(rng, b=2, h=2, m=200, d=64, e=64):
    t = lambda w: rng.standard_normal((b, h, m, w))
    return {"Q": t(d) * d**-0.5, "K": t(d), "V": t(e), "log_decay": np.log(rng.uniform(0.9, 0.99, h))}


def reference(Q, K, V, log_decay):
    m = Q.shape[2]
    d = np.subtract.outer(np.arange(m), np.arange(m))
    weight = np.where(d >= 0, np.exp(d[None] * log_decay[:, None, None]), 0.0)
    return {"O": np.einsum("bhmn,bhne->bhme", np.einsum("bhmd,bhnd->bhmn", Q, K) * weight[None], V)}


example = Example(linear_attention, inputs, reference, binding={"T": fc.f16, "D": 64, "E": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 64}))

if __name__ == "__main__":
    main(example)
