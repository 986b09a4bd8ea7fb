"""Masks that unsigned and narrow numbers decide: no pass may take them for positions, which do not wrap."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.types import DTYPES

from .specs import M0, W0

MASKS = {
    "segments": lambda rows, cols, a, b: a == b,
    "below": lambda rows, cols, a, b: b < a,
    "at most": lambda rows, cols, a, b: b <= a,
    "shifted": lambda rows, cols, a, b: b + 3 < a,
    "wrapped positions": lambda rows, cols, a, b: cols.index.to(fc.u32) - 5 < 20,
    "wrapped rows": lambda rows, cols, a, b: cols.index.to(fc.u32) - rows.index.to(fc.u32) < 9,
    "bytes of positions": lambda rows, cols, a, b: cols.index.to(fc.u8) <= rows.index.to(fc.u8),
}
NUMPY = {
    "segments": lambda r, c, a, b: a == b, "below": lambda r, c, a, b: b < a, "at most": lambda r, c, a, b: b <= a,
    "shifted": lambda r, c, a, b: b + b.dtype.type(3) < a,
    "wrapped positions": lambda r, c, a, b: c.astype(np.uint32) - np.uint32(5) < 20,
    "wrapped rows": lambda r, c, a, b: c.astype(np.uint32) - r.astype(np.uint32) < 9,
    "bytes of positions": lambda r, c, a, b: c.astype(np.uint8) <= r.astype(np.uint8),
}


@fc.kernel
def masked(A: "T[M]", B: "T[N]", X: "f16[M, N]", V: "f16[N, E]", Y: "out f32[M, E]", *, mask: str):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    acc = fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        keep = MASKS[mask](rows, cols, fc.load(A[rows]), fc.load(B[cols]))
        x = fc.where(keep & cols.valid, fc.load(X[rows, cols]).to(fc.f32), 0.0)
        acc <<= fc.dot(x.to(fc.f16), fc.load(V[cols]), acc)
    fc.store(Y[rows], acc)


@pytest.mark.parametrize(("name", "mask"), [("u8", m) for m in MASKS] + [("i32", "below"), ("i32", "at most"), ("i32", "shifted"), ("u32", "shifted"), ("i8", "at most")])
def test_each_means_what_it_says(name: str, mask: str) -> None:
    """Numbers near the ends of their range, where moving a term to the other side would wrap."""
    rng, dtype = np.random.default_rng(0), DTYPES[name]
    low, high = dtype.range
    draw = lambda n: rng.choice([low, low + 1, low + 4, high - 4, high - 1, high], n).astype(dtype.stored)
    a, b, x, v = draw(70), draw(90), rng.standard_normal((70, 90)).astype(np.float16), rng.standard_normal((90, 32)).astype(np.float16)
    r, c = np.arange(70)[:, None], np.arange(90)[None]
    with np.errstate(all="ignore"):
        keep = NUMPY[mask](r, c, a[:, None], b[None])
    want = np.where(keep, x, 0).astype(np.float64) @ v.astype(np.float64)
    program = masked.compile(target="sm_80", schedule=fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=2), T=dtype, E=32, mask=mask)
    for run in (program.interpret, program.simulate):
        np.testing.assert_allclose(run(A=a, B=b, X=x, V=v)["Y"], want, rtol=1e-3, atol=2e-2)


@fc.kernel
def dropped(X: "f32[M, N]", Y: "out f32[M, N]", *, key: "u32", below: "u32"):
    """Elements stay whose random number, which follows from their place alone, is below a bound."""
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
    x = fc.load(X[rows, cols])
    at = rows.index.to(fc.u32) * 0x10001 + cols.index.to(fc.u32)
    c0, c1 = at, at * 0 + key
    for n in range(7):
        c0, c1 = fc.mulhi(c0, M0) ^ (key + (W0 * n & 0xFFFFFFFF)) ^ c1, c0 * M0
    fc.store(Y[rows, cols], fc.where(c0 < below, x * 2.0, 0.0))


def test_random_numbers_of_a_tile() -> None:
    x, key, mask = np.random.default_rng(0).standard_normal((50, 70)).astype(np.float32), 123456789, np.uint64(2**32 - 1)
    c0 = (np.arange(50, dtype=np.uint64)[:, None] * np.uint64(0x10001) + np.arange(70, dtype=np.uint64)[None]) & mask
    c1 = np.full_like(c0, key)
    for n in range(7):
        product = c0 * np.uint64(M0)
        c0, c1 = (product >> np.uint64(32)) ^ np.uint64((key + (W0 * n & 0xFFFFFFFF)) & 0xFFFFFFFF) ^ c1, product & mask
    want = np.where(c0 < 2**31, x * 2, 0)
    program = dropped.compile(target="sm_90a", schedule=fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=2))
    for run in (program.interpret, program.simulate):
        assert (run(X=x, key=key, below=2**31)["Y"] == want).all()
    assert 0.4 < (want != 0).mean() < 0.6 and program.cubin
