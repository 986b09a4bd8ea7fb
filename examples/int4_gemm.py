"""A matrix product whose right operand has 4 bits per number: Y = X (S W)^T, two numbers in a byte, 8 stands for zero."""

from harness import Example, main

import fcgen as fc


@fc.kernel
def int4_gemm(X: "T[M, 2, E]", W: "u8[N, E]", S: "f32[N]", Y: "out T[M, N]"):
    cols, rows = fc.grid(fc.tile(W.N, "BLOCK_N"), fc.tile(X.M, "BLOCK_M"))
    acc = fc.var(fc.zeros(cols, rows))
    for depth in fc.loop(fc.tile(W.E, "BLOCK_K")):
        w = fc.load(W[cols, depth])
        for half, bits in enumerate((w & 15, w >> 4)):  # a byte holds numbers j and j + E of a row
            acc <<= acc + fc.dot(bits.to(X.dtype) - 8.0, fc.load(X[rows, half, depth]).T)
    fc.store(Y[rows, cols], (acc * fc.load(S[cols])).to(Y.dtype).T)


def inputs(rng, m=40, n=136, e=96):
    return {"X": rng.standard_normal((m, 2, e)), "W": rng.integers(0, 256, (n, e)), "S": rng.uniform(0.05, 0.1, n)}


def reference(X, W, S):
    low, high = W % 16 - 8, W // 16 - 8
    return {"Y": (X[:, 0] @ low.T + X[:, 1] @ high.T) * S}


example = Example(int4_gemm, inputs, reference, binding={"T": fc.f16},
                  schedule=fc.Schedule(tiles={"BLOCK_N": 64, "BLOCK_M": 16, "BLOCK_K": 32}, stages=3))

if __name__ == "__main__":
    main(example)
