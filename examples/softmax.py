"""Row softmax of a matrix, two passes over each row: no matrix product anywhere, the same compiler."""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def softmax(X: "T[M, N]", Y: "out T[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    m, l = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        x = fc.where(cols.valid, fc.load(X[rows, cols]).to(fc.f32), -fc.inf)
        mn = fc.maximum(m, fc.max(x, axis=1))
        l <<= l * fc.exp(m - mn) + fc.sum(fc.exp(x - mn), axis=1)
        m <<= mn
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        x = fc.load(X[rows, cols]).to(fc.f32)
        fc.store(Y[rows, cols], (fc.exp(x - m) / l).to(Y.dtype))


def inputs(rng, m=50, n=456):
    return {"X": 3 * rng.standard_normal((m, n))}


def reference(X):
    e = np.exp(X - X.max(axis=1, keepdims=True))
    return {"Y": e / e.sum(axis=1, keepdims=True)}


example = Example(softmax, inputs, reference, binding={"T": fc.f16},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 256}))

if __name__ == "__main__":
    main(example)
