"""Row softmax of a matrix, two passes over each row: no matrix product anywhere, the same compiler."""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def softmax(X: "T[M, N]", Y: "out T[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    soft = fc.online_softmax(rows)
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        soft.add(fc.load(X[rows, cols]).to(fc.f32))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        x = fc.load(X[rows, cols]).to(fc.f32)
        fc.store(Y[rows, cols], (fc.exp(x - soft.max) / soft.sum).to(Y.dtype))


def inputs(rng, m=50, n=456):
    return {"X": 3 * rng.standard_normal((m, n))}


def reference(X):
    e = np.exp(X - X.max(axis=1, keepdims=True))
    return {"Y": e / e.sum(axis=1, keepdims=True)}


example = Example(softmax, inputs, reference, binding={"T": fc.f16},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 256}))

if __name__ == "__main__":
    main(example)
