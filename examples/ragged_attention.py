"""Attention over a ragged batch: sequences of any length lie one behind the other in one tensor, and none reaches another's rows."""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def ragged_attention(Q: "T[M, H, D]", K: "T[N, G, D]", V: "T[N, G, E]", Begin: "i32[S]", End: "i32[S]", KBegin: "i32[S]", KEnd: "i32[S]",
                     O: "out T[M, H, E]", *, scale: "f32 > 0"):
    b, h, rows = fc.grid(Begin.S, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g, first, count, queries = h // (Q.H // K.G), KBegin[b], KEnd[b] - KBegin[b], End[b] - Begin[b]
    mine = (rows + Begin[b]).until(End[b])  # this sequence's rows in Q and O
    visible = lambda cols: cols.valid & (cols.index <= rows.index + (count - queries))
    with fc.when(rows.start < queries):
        q = fc.load(Q[mine, h])
        m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))
        for cols in fc.loop(fc.tile(count, "BLOCK_N"), live=visible):
            s = fc.dot(q, fc.load(K[cols + first, g]).T) * scale
            s = fc.where(visible(cols), s, -fc.inf)
            top = fc.maximum(m, fc.max(s, axis=1))
            base = fc.where(top == -fc.inf, 0.0, top)  # rows that have seen no key yet
            p, fade = fc.exp(s - base), fc.exp(m - base)
            l <<= l * fade + fc.sum(p, axis=1)
            acc <<= acc * fade + fc.dot(p.to(V.dtype), fc.load(V[cols + first, g]))
            m <<= top
        fc.store(O[mine, h], fc.where(l == 0.0, 0.0, acc / l).to(O.dtype))


def inputs(rng, queries=(5, 0, 33, 1, 70), keys=(20, 3, 33, 0, 50), h=4, g=2, d=64):
    ends = [np.cumsum([0, *n]).astype(np.int32) for n in (queries, keys)]
    t = lambda n, heads: rng.standard_normal((n, heads, d))
    lies = dict(zip(("Begin", "End", "KBegin", "KEnd"), (e for x in ends for e in (x[:-1], x[1:]))))
    return {"Q": t(sum(queries), h), "K": t(sum(keys), g), "V": t(sum(keys), g), **lies, "scale": d**-0.5}


def reference(Q, K, V, Begin, End, KBegin, KEnd, scale):
    group = Q.shape[1] // K.shape[1]
    K, V = np.repeat(K, group, axis=1), np.repeat(V, group, axis=1)
    O = np.empty((*Q.shape[:2], V.shape[2]))
    for q0, q1, k0, k1 in np.array([Begin, End, KBegin, KEnd], int).T:
        n, c = q1 - q0, k1 - k0
        s = np.einsum("mhd,nhd->hmn", Q[q0:q1], K[k0:k1]) * scale
        s = np.where(np.arange(c) <= np.arange(n)[:, None] + c - n, s, -np.inf)
        top = s.max(-1, keepdims=True, initial=-np.inf)
        e = np.exp(s - np.where(np.isneginf(top), 0, top))
        total = e.sum(-1, keepdims=True)
        O[q0:q1] = np.einsum("hmn,nhe->mhe", e / np.where(total == 0, 1, total), V[k0:k1])
    return {"O": O}


example = Example(ragged_attention, inputs, reference, binding={"T": fc.f16, "D": 64, "E": 64},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}))

if __name__ == "__main__":
    main(example)
