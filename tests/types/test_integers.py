"""Integer arithmetic: shifts, bits, high products, wrapping; a counter-based random number as NumPy computes it."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda import print_cuda
from fcgen.ir.types import DTYPES

from ..backends.host import run_on_host

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


def test_philox_bit_by_bit(tmp_path) -> None:
    program, given = philox.compile(target="sm_80", schedule=fc.Schedule(tiles={"BM": 64}, warps=2)), {"key": 0xDEADBEEF, "offset": 7}
    want = philox_of_numpy(150, **given)
    empty = np.zeros((150, 4), np.uint32)
    assert (program.interpret(X=empty, **given)["X"] == want).all() and (program.simulate(X=empty, **given)["X"] == want).all()
    x = empty.copy()
    run_on_host(print_cuda(program.machine, program.target), tmp_path, 3, {"X": x}, given, {"M": 150})
    assert (x == want).all()


def test_philox_compiles() -> None:
    """Its outputs' sizes follow from no input: trials give them."""
    assert "__umulhi" in philox.compile(target="sm_90a", schedule=fc.Schedule(tiles={"BM": 64}, warps=2)).cuda


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


@pytest.mark.parametrize("name", ["i8", "u8", "i32", "u32"])
def test_each_wraps_like_numpy(name: str, tmp_path) -> None:
    """Also shifts by as many bits as there are and by more; also after the passes have folded what they can."""
    rng, dtype = np.random.default_rng(0), DTYPES[name]
    a = rng.integers(*dtype.range, 100, endpoint=True).astype(dtype.stored)
    b = np.where(rng.random(100) < 0.7, rng.integers(0, 40, 100), a[::-1]).astype(dtype.stored)
    program = integer.compile(target="sm_80", schedule=fc.Schedule(tiles={"BM": 64}, warps=1), T=dtype, K=len(OPS), fns=tuple(OPS.values()))
    want = np.stack([meaning(fn, a, b) for fn in OPS])
    y = np.zeros_like(want)
    run_on_host(print_cuda(program.machine, program.target), tmp_path, 2, {"A": a, "B": b, "Y": y}, {}, {"M": 100})
    for got in (program.interpret(A=a, B=b)["Y"], program.simulate(A=a, B=b)["Y"], y):
        for n, fn in enumerate(OPS):
            assert (got[n] == want[n]).all(), fn


def test_a_high_product_is_for_words() -> None:
    for name, fn, words in (("i8", fc.mulhi, "32 bits"), ("u32", lambda a, b: abs(a), "signed")):
        with pytest.raises(fc.FcError, match=words):
            integer.trace({"BM": 16}, T=DTYPES[name], K=1, fns=(fn,))


def test_bytes_are_not_added_atomically() -> None:
    @fc.kernel
    def spec(X: "i8[M]", Y: "inout i8[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.atomic_add(Y[rows], fc.load(X[rows]))

    with pytest.raises(fc.FcError, match="atomic"):
        spec.trace({"BM": 16})
