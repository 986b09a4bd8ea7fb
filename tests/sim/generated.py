"""Kernels of asynchronous engines as the passes write them, with inputs and what should come out: what faults are planted into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fcgen as fc
from fcgen.kernels import attention as library
from fcgen.kernels.reference import attention_reference

from .cases import Compiled

Run = tuple[dict[str, Any], dict[str, np.ndarray]]


@fc.kernel
def halved(A: "T[M, K]", B: "T[K, N]", C: "out f32[M, N]"):  # type: ignore[name-defined]
    """C = A (B / 2): what is computed for a right operand goes to the tensor core through shared memory."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        a, b = fc.load(A[rows, depth]), fc.load(B[depth, cols])
        acc <<= acc + fc.dot(a, (b * 0.5).to(B.dtype))
    fc.store(C[rows, cols], acc)


@fc.kernel
def product(A: "T[M, K]", B: "T[N, K]", C: "out f32[M, N]"):  # type: ignore[name-defined]
    """C = A B^T: the accumulator is carried in flight."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc)


@fc.kernel
def doubled(A: "T[M, K]", B: "T[N, K]", C: "out f32[M, N]"):  # type: ignore[name-defined]
    """C = (2 A) B^T: two iterations' left operands are in registers, and the accumulator in flight."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]) * 2.0, fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc)


@fc.kernel
def chained(A: "T[M, K]", B: "T[N, K]", V: "T[N, E]", P: "out T[M, N]", C: "out f32[M, E]", D: "out f32[M, E]"):  # type: ignore[name-defined]
    """P = relu(A B^T), C = P V, D = P^2 V: one role makes the tiles that the products of another read, and a bulk store too."""
    (rows,) = fc.grid(fc.tile(A.M, "BLOCK_M"))
    a, c, d = fc.load(A[rows]), fc.var(fc.zeros(rows, V.E)), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(B.N, "BLOCK_N")):
        s = fc.maximum(fc.dot(a, fc.load(B[cols]).T), 0.0)
        p, squares, v = s.to(P.dtype), (s * s).to(P.dtype), fc.load(V[cols])
        c <<= c + fc.dot(p, v)
        d <<= d + fc.dot(squares, v)
        fc.store(P[rows, cols], p)
    fc.store(C[rows], c)
    fc.store(D[rows], d)


@fc.kernel
def kept(A: "T[M, K]", B: "T[N, K]", S: "out T[M, N]", C: "out f32[N, K]"):  # type: ignore[name-defined]
    """S = A B^T, C = S^T A: what is staged for a product is stored from where it lies."""
    (cols,) = fc.grid(fc.tile(B.N, "BLOCK_N"))
    b, acc = fc.load(B[cols, :]), fc.var(fc.zeros(cols, B.K))
    for rows in fc.loop(fc.tile(A.M, "BLOCK_M")):
        a = fc.load(A[rows, :])
        s = fc.dot(a, b.T)
        w = s.to(A.dtype)
        acc <<= acc + fc.dot(w.T, a)
        fc.store(S[rows, cols], w)
    fc.store(C[cols, :], acc)


@fc.kernel
def scores(A: "T[M, K]", B: "T[N, K]", S: "out T[M, N]"):  # type: ignore[name-defined]
    """S = A B^T: tiles that a loop stages for nothing but their store."""
    (cols,) = fc.grid(fc.tile(B.N, "BLOCK_N"))
    b = fc.load(B[cols, :])
    for rows in fc.loop(fc.tile(A.M, "BLOCK_M")):
        s = fc.dot(fc.load(A[rows, :]), b.T)
        fc.store(S[rows, cols], s.to(A.dtype))


@dataclass(frozen=True)
class Generated(Compiled):
    """compile() -> the program; draw(seed, steps) -> (arguments, expected); counts: steps of the loop, those that show most faults first."""

    name: str
    compile: Callable[[], Any]
    draw: Callable[[int, int], Run]
    counts: tuple[int, ...]


def attention(name: str, mask: str = "causal_bottom_right", **fields: Any) -> Generated:
    """Two warpgroups. Bottom-right causal: row tiles that see no key, that see part, and, with enough keys, that are whole."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 16}, warps=8, math="wgmma", copy="tma", late="acc", vote=True,
                           **{"stages": 2, "compare_bits": True, **fields})

    def draw(seed: int, steps: int) -> Run:
        rng = np.random.default_rng(seed)
        q, k, v = (rng.standard_normal((1, h, n, 16)).astype(np.float16) for h, n in ((2, 260), (1, 16 * steps - 5), (1, 16 * steps - 5)))
        o, lse = attention_reference(q, k, v, mask=mask, scale=0.3)
        return {"Q": q, "K": k, "V": v, "scale": 0.3}, {"O": o, "LSE": lse}

    options = {"T": fc.f16, "D": 16, "E": 16, "mask": mask, "lazy": 2.0}
    return Generated(name, lambda: library.attention.compile(target="sm_90a", schedule=schedule, **options), draw, (3, 10, 1, 2, 4, 5))


def gemm(name: str, spec: Any, transposed: bool, scale: float, **fields: Any) -> Generated:
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64}, warps=8, math="wgmma", copy="tma", **{"stages": 2, **fields})

    def draw(seed: int, steps: int) -> Run:
        rng, depth = np.random.default_rng(seed), 64 * steps - 5
        a, b = ((rng.standard_normal(s) / 4).astype(np.float16) for s in ((260, depth), (depth, 70)))
        return {"A": a, "B": b.T.copy() if transposed else b}, {"C": scale * (a.astype(np.float64) @ b.astype(np.float64))}

    return Generated(name, lambda: spec.compile(target="sm_90a", schedule=schedule, T=fc.f16), draw, (3, 1, 2, 4, 5))


def jobs(name: str, **fields: Any) -> Generated:
    """Products of a warpgroup of their own, in front of those of two others."""
    schedule = fc.Schedule(**{"tiles": {"BLOCK_M": 64, "BLOCK_N": 32}, "warps": 8, "math": "wgmma", "copy": "tma", "makers": 4, "made": "s",
                              "epilogue": "tma", "stages": 3, **fields})

    def draw(seed: int, steps: int) -> Run:
        rng, n = np.random.default_rng(seed), 32 * steps - 8
        a, b, v = ((rng.standard_normal(s) / 4).astype(np.float16) for s in ((100, 32), (n, 32), (n, 64)))
        p = np.maximum(a.astype(np.float64) @ b.astype(np.float64).T, 0)
        return {"A": a, "B": b, "V": v}, {"P": p, "C": p @ v, "D": p * p @ v}

    return Generated(name, lambda: chained.compile(target="sm_90a", schedule=schedule, T=fc.f16, K=32, E=64), draw, (5, 3, 1, 2, 4, 7))


def rows(name: str, spec: Any, **fields: Any) -> Generated:
    """A loop over rows, which stores a tile in each iteration."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, math="wgmma", copy="tma", epilogue="tma", stages=2, **fields)

    def draw(seed: int, steps: int) -> Run:
        rng = np.random.default_rng(seed)
        a, b = ((rng.standard_normal((n, 64)) / 8).astype(np.float16) for n in (128 * steps - 5, 72))
        s = a.astype(np.float64) @ b.astype(np.float64).T
        return {"A": a, "B": b}, {"S": s, "C": s.T @ a.astype(np.float64)} if spec is kept else {"S": s}

    return Generated(name, lambda: spec.compile(target="sm_90a", schedule=schedule, T=fc.f16, K=64), draw, (3, 5, 1, 2, 4))


CASES = {c.name: c for c in (
    attention("claims", stages={"q": 2, "k": 2, "v": 2}, persistent="dynamic", tokens=True, epilogue="quad", l2=32, pdl=True),
    attention("programs", persistent="none", epilogue="smem", pdl=True),
    attention("stores", stages={"q": 2, "k": 2, "v": 2}, persistent="dynamic", epilogue="tma", ones="acc", l2=32),
    attention("cluster", "none", stages={"q": 2, "k": 2, "v": 2}, persistent="static", epilogue="quad", cluster={"rows": 2}),
    gemm("staged", halved, False, 0.5),
    gemm("made", halved, False, 0.5, makers=4, persistent="static", stages={"a": 4}),
    jobs("jobs"),
    jobs("sent", sender=True),
    gemm("carried", product, True, 1.0, persistent="static"),
    gemm("registers", doubled, True, 2.0, stages={"b_tile": 3}),
    rows("kept", kept),
    rows("ahead", kept, early="s"),
    rows("in turn", scores, early="s"),
)}
