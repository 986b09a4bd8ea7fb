"""Specs with narrow and unsigned elements, and what NumPy makes of them: for the simulators here, and for a GPU."""

from __future__ import annotations

import numpy as np

import fcgen as fc
from fcgen.ir.elementwise import to_dtype
from fcgen.ir.types import DTYPES


@fc.kernel
def convert(X: "TI[M, N]", Y: "out TO[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        fc.store(Y[rows, cols], fc.load(X[rows, cols]).to(Y.dtype))


def numbers(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng, dtype = np.random.default_rng(seed), DTYPES[name]
    if not dtype.is_float:
        return rng.integers(*dtype.range, shape, endpoint=True).astype(dtype.np_dtype)
    x = to_dtype(rng.standard_normal(shape) * rng.choice([1e-3, 1.0, 60.0, 1e3], shape), dtype)
    ends = [np.nan, 448.0, -0.0, np.inf, -np.inf, 464.0, 465.0, 57344.0, 61440.0, 1e-9]
    if dtype.bits > 8 and x.size > 600:  # ties of the floats of 8 bits, which round to even
        for d in (DTYPES["f8e4m3"], DTYPES["f8e5m2"]):
            all_ = np.arange(256, dtype=np.uint8).view(d.stored).astype(np.float32)
            known = np.sort(all_[np.isfinite(all_)])
            ends += [*(known[1:] / 2 + known[:-1] / 2)]
    x.flat[:len(ends)] = to_dtype(np.array(ends[:x.size]), dtype)
    return x


M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85


@fc.kernel
def philox(X: "out u32[M, 4]", *, key: "u32", offset: "u32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    c = [rows.index.to(fc.u32), fc.full(rows, offset), fc.zeros(rows, dtype=fc.u32), fc.zeros(rows, dtype=fc.u32)]
    k0, k1 = key, key ^ 0x5BD1E995
    for _ in range(10):
        c = [fc.mulhi(c[2], M1) ^ c[1] ^ k0, c[2] * M1, fc.mulhi(c[0], M0) ^ c[3] ^ k1, c[0] * M0]
        k0, k1 = k0 + W0, k1 + W1
    for n, x in enumerate(c):
        fc.store(X[rows, n], x)


def philox_of_numpy(m: int, key: int, offset: int) -> np.ndarray:
    c, mask = np.zeros((4, m), np.uint64), np.uint64(2**32 - 1)
    c[0], c[1] = np.arange(m), offset
    k0, k1 = np.uint64(key), np.uint64(key ^ 0x5BD1E995)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(M0), c[2] * np.uint64(M1)
        c = np.stack([(p1 >> np.uint64(32)) ^ c[1] ^ k0, p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ k1, p0 & mask])
        k0, k1 = (k0 + np.uint64(W0)) & mask, (k1 + np.uint64(W1)) & mask
    return c.T.astype(np.uint32)


OPS = {"shl": lambda a, n: a << n, "shr": lambda a, n: a >> n, "and": lambda a, n: a & n, "or": lambda a, n: a | n, "xor": lambda a, n: a ^ n,
       "not": lambda a, n: ~a, "mul": lambda a, n: a * n, "sub": lambda a, n: a - n, "five": lambda a, n: (a >> 5) + (a << 5),
       "nibbles": lambda a, n: (a & 15) | (a >> 4 & 15) << 4, "max": fc.maximum, "less": lambda a, n: fc.where(a < n, a, n),
       "scaled": lambda a, n: a * 64 // 64, "rest": lambda a, n: (a + 100) + 100, "div": lambda a, n: a // 7, "mod": lambda a, n: a % 7}


@fc.kernel
def integer(A: "T[M]", B: "T[M]", Y: "out T[K, M]", *, fns: tuple):
    (rows,) = fc.grid(fc.tile(A.M, "BM"))
    for n, fn in enumerate(fns):
        fc.store(Y[n, rows], fn(fc.load(A[rows]), fc.load(B[rows])))


def meaning(fn: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        if fn == "max":
            return np.maximum(a, b)
        return np.minimum(a, b) if fn == "less" else OPS[fn](a, b).astype(a.dtype)


@fc.kernel
def sums(X: "T[G, R, C]", Rows: "out T[G, R]", Most: "out T[G]", All: "out T[G]", Along: "out T[G, R, C]", *, axis: int):
    (g,) = fc.grid(X.G)
    x = fc.load(X[g])
    fc.store(Rows[g], fc.sum(x))
    fc.store(Most[g], fc.max(x, axis=None))
    fc.store(All[g], fc.sum(fc.sum(x, axis=0)))
    fc.store(Along[g], fc.cumsum(x, axis))


def expected(x: np.ndarray, name: str, axis: int) -> dict[str, np.ndarray]:
    d = DTYPES[name]
    wide = x.astype(np.float64 if d.is_float else np.int64)
    once = lambda y: to_dtype(y, d)
    return {"Rows": once(wide.sum(2)), "Most": once(wide.max((1, 2))), "All": once(once(wide.sum(1)).astype(wide.dtype).sum(1)),
            "Along": once(np.cumsum(wide, axis + 1))}


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


@fc.kernel
def product(A: "T[M, K]", B: "T[N, K]", C: "out S[M, N]"):
    """Both operands lie along the depth, as instructions for elements of 8 bits want them."""
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols, dtype=C.dtype))
    for deep in fc.loop(fc.tile(A.K, "BK")):
        acc <<= fc.dot(fc.load(A[rows, deep]), fc.load(B[cols, deep]).T, acc)
    fc.store(C[rows, cols], acc)


def operands(name: str, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, their product in float64)."""
    rng, dtype = np.random.default_rng(0), DTYPES[name]
    draw = lambda s: to_dtype(rng.standard_normal(s) if dtype.is_float else rng.integers(*dtype.range, s, endpoint=True), dtype)
    a, b = draw((m, k)), draw((n, k))
    return a, b, a.astype(np.float64) @ b.astype(np.float64).T


@fc.kernel
def whole_f8(Q: "T[H, M, D]", K: "T[H, N, D]", VT: "T[H, D, N]", O: "out f16[H, M, D]"):
    """Both products of 8 bits: values are kept transposed, and weights are rounded between the products."""
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BM"))
    q = fc.load(Q[h, rows])
    top, total, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, Q.D))
    for cols in fc.loop(fc.tile(K.N, "BN")):
        s = fc.where(cols.valid, fc.dot(q, fc.load(K[h, cols]).T) * 0.125, -fc.inf)
        new = fc.maximum(top, fc.max(s, axis=1))
        p, old = fc.exp(s - new), fc.exp(top - new)
        total <<= total * old + fc.sum(p, axis=1)
        acc <<= acc * old + fc.dot(p.to(Q.dtype), fc.load(VT[h, :, cols]).T)
        top <<= new
    fc.store(O[h, rows], (acc / total).to(fc.f16))


def whole_f8_case(m: int, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(inputs, the output in float64 without rounding in between)."""
    rng, d = np.random.default_rng(0), DTYPES["f8e4m3"]
    q, k, vt = (to_dtype(rng.standard_normal(s), d) for s in ((2, m, 64), (2, n, 64), (2, 64, n)))
    s = np.einsum("hmd,hnd->hmn", q.astype(np.float64), k) * 0.125
    p = np.exp(s - s.max(2, keepdims=True))
    return {"Q": q, "K": k, "VT": vt}, np.einsum("hmn,hdn->hmd", p / p.sum(2, keepdims=True), vt)


@fc.kernel
def requantised(A: "T[M, K]", B: "T[N, K]", S: "f32[M]", C: "out TO[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols, dtype=fc.f32 if A.dtype.is_float else fc.i32))
    for deep in fc.loop(fc.tile(A.K, "BK")):
        acc <<= fc.dot(fc.load(A[rows, deep]), fc.load(B[cols, deep]).T, acc)
    fc.store(C[rows, cols], (acc.to(fc.f32) * fc.load(S[rows])).to(C.dtype))


TO = ("f32", "f16", "i8", "u8", "f8e4m3", "f8e5m2", "i32", "u32")


@fc.kernel
def to_all(X: "T[M, N]", Y0: "out f32[M, N]", Y1: "out f16[M, N]", Y2: "out i8[M, N]", Y3: "out u8[M, N]", Y4: "out f8e4m3[M, N]",
           Y5: "out f8e5m2[M, N]", Y6: "out i32[M, N]", Y7: "out u32[M, N]"):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
    x = fc.load(X[rows, cols])
    for y in (Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7):
        fc.store(y[rows, cols], x.to(y.dtype))
