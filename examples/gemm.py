"""GEMM with a bias and GELU epilogue: C = gelu(A B^T + bias)."""

import numpy as np
from harness import Example, main

import fcgen as fc


@fc.kernel
def gemm_bias_gelu(A: "T[M, K]", B: "T[N, K]", bias: "f32[N]", C: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    x = acc + fc.load(bias[cols])
    fc.store(C[rows, cols], (0.5 * x * (1.0 + fc.erf(x * 0.7071067811865476))).to(C.dtype))


def inputs(rng, m=200, n=136, k=168):
    return {"A": rng.standard_normal((m, k)), "B": rng.standard_normal((n, k)), "bias": rng.standard_normal(n)}


def reference(A, B, bias):
    from math import erf

    x = A @ B.T + bias
    return {"C": 0.5 * x * (1 + np.vectorize(erf, [float])(x / np.sqrt(2)))}


example = Example(gemm_bias_gelu, inputs, reference, binding={"T": fc.f16},
                  schedule=fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32}, stages=3))

if __name__ == "__main__":
    main(example)
