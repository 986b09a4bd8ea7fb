"""Keys and values of 8 and 4 bits with a scale per key, in the loop that dequantises them."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.types import DTYPES

D = 64


@fc.kernel
def eight(Q: "f16[H, M, D]", K: "TK[H, N, D]", KS: "f32[H, N]", V: "TK[H, N, D]", VS: "f32[H, N]", O: "out f16[H, M, D]"):
    """A scale goes with each key, and with each value."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BM"))
    q = fc.load(Q[h, rows])
    top, total, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, Q.D))
    for cols in fc.loop(fc.tile(K.N, "BN")):
        s = fc.dot(q, fc.load(K[h, cols]).to(fc.f16).T) * fc.load(KS[h, cols]) * 0.125
        s = fc.where(cols.valid, s, -fc.inf)
        new = fc.maximum(top, fc.max(s, axis=1))
        p, old = fc.exp(s - new), fc.exp(top - new)
        total <<= total * old + fc.sum(p, axis=1)
        acc <<= acc * old + fc.dot((p * fc.load(VS[h, cols])).to(fc.f16), fc.load(V[h, cols]).to(fc.f16))
        top <<= new
    fc.store(O[h, rows], (acc / total).to(fc.f16))


@fc.kernel
def four(Q: "f16[H, M, 2, E]", K: "TK[H, N, E]", KS: "f32[H, N]", S: "out f32[H, M, N]"):
    """Two numbers of 4 bits lie in a byte: element j in the lower half, element j + E in the upper one; 8 stands for zero."""
    h, rows, cols = fc.grid(Q.H, fc.tile(Q.M, "BM"), fc.tile(K.N, "BN"))
    k = fc.load(K[h, cols])
    low, high = ((x & 15).to(fc.f16) - 8.0 for x in (k, k >> 4))
    s = fc.dot(fc.load(Q[h, rows, 1]), high.T, fc.dot(fc.load(Q[h, rows, 0]), low.T))
    fc.store(S[h, rows, cols], s * fc.load(KS[h, cols]))


@fc.kernel
def eight_in_words(Q: "f16[M, 8, W]", K: "u32[N, W]", S: "out f32[M, N]"):
    """Eight numbers of 4 bits in a word."""
    rows, cols = fc.grid(fc.tile(Q.M, "BM"), fc.tile(K.N, "BN"))
    k, s = fc.load(K[cols]), fc.var(fc.zeros(rows, cols))
    for n in range(8):
        s <<= fc.dot(fc.load(Q[rows, n]), ((k >> 4 * n & 15).to(fc.f16) - 8.0).T, s)
    fc.store(S[rows, cols], s)


def scaled(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    low, high = (-448, 448) if DTYPES[name].is_float else DTYPES[name].range
    x = DTYPES[name].stored.type(1) * 0 + rng.uniform(low, high, shape)
    return x.astype(DTYPES[name].stored), (rng.uniform(0.5, 2, shape[:-1]) / high).astype(np.float32)


@pytest.mark.parametrize(("name", "target"), [("i8", "sm_80"), ("i8", "sm_90a"), ("f8e4m3", "sm_80"), ("f8e4m3", "sm_89"), ("f8e5m2", "sm_90a")])
def test_keys_of_8_bits(name: str, target: str) -> None:
    rng = np.random.default_rng(0)
    program = eight.compile(target=target, schedule=fc.Schedule(tiles={"BM": 64, "BN": 32}, warps=4), TK=DTYPES[name], D=D)
    q = rng.standard_normal((2, 70, D)).astype(np.float16)
    (k, ks), (v, vs) = (scaled(rng, name, (2, 90, D)) for _ in range(2))
    given = {"Q": q, "K": k, "KS": ks, "V": v, "VS": vs}
    s = np.einsum("hmd,hnd->hmn", q.astype(np.float64), k.astype(np.float64) * ks[..., None]) * 0.125
    p = np.exp(s - s.max(2, keepdims=True))
    want = np.einsum("hmn,hnd->hmd", p / p.sum(2, keepdims=True), v.astype(np.float64) * vs[..., None])
    for got in (program.interpret(**given)["O"], program.simulate(**given)["O"]):
        assert np.abs(got - want).max() < 4e-3 * np.abs(want).max()
    assert program.cubin


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_keys_of_4_bits(target: str) -> None:
    rng = np.random.default_rng(0)
    program = four.compile(target=target, schedule=fc.Schedule(tiles={"BM": 64, "BN": 32}, warps=4), TK=fc.u8, E=32)
    q = rng.standard_normal((1, 70, 2, 32)).astype(np.float16)
    k, ks = scaled(rng, "u8", (1, 50, 32))
    whole = np.concatenate([k & 15, k >> 4], axis=2).astype(np.float64) - 8
    want = np.einsum("hmd,hnd->hmn", q.reshape(1, 70, 64).astype(np.float64), whole * ks[..., None])
    for got in (program.interpret(Q=q, K=k, KS=ks)["S"], program.simulate(Q=q, K=k, KS=ks)["S"]):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert program.cubin


def test_words_of_8_numbers() -> None:
    rng = np.random.default_rng(0)
    program = eight_in_words.compile(target="sm_80", schedule=fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=2), W=16)
    q, k = rng.standard_normal((40, 8, 16)).astype(np.float16), rng.integers(0, 2**32, (33, 16), dtype=np.uint32)
    want = sum(q[:, n].astype(np.float64) @ ((k >> 4 * n & 15).astype(np.float64) - 8).T for n in range(8))
    for got in (program.interpret(Q=q, K=k)["S"], program.simulate(Q=q, K=k)["S"]):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
