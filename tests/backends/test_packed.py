"""Halves and bytes that are computed on packed: the numbers are those of one after the other."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda.printer import print_cuda
from fcgen.backends.targets.ada import TARGETS

from .host import run_on_host


@fc.kernel
def mixed(X: "f16[M, N]", W: "u8[M, N]", V: "i8[M, N]", R: "f16[M]", Y: "out f16[M, N]", Z: "out f16[M, N]", A: "out f16[M, N]", B: "out u8[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        x, w, v = fc.load(X[rows, cols]), fc.load(W[rows, cols]), fc.load(V[rows, cols])
        fc.store(Y[rows, cols], ((w & 15).to(fc.f16) - 8.0) * x + fc.load(R[rows]))
        fc.store(Z[rows, cols], (w >> 4).to(fc.f16) - ((v ^ 5) & 0x7F).to(fc.f16) * fc.exp(x.to(fc.f32)).to(fc.f16))
        fc.store(A[rows, cols], (w >> 4).to(fc.f16) - 8.0 + ((w >> 2) & 7).to(fc.f16) + (v.to(fc.f16) + 0.5))
        fc.store(B[rows, cols], (~w | 64) ^ (w << 3) ^ (w >> 1))


def test_packed_and_one_by_one_are_the_same(tmp_path) -> None:
    rng = np.random.default_rng(0)
    m, n = 32, 64
    given = {"X": rng.standard_normal((m, n)).astype(np.float16), "W": rng.integers(0, 256, (m, n)).astype(np.uint8),
             "V": rng.integers(-128, 128, (m, n)).astype(np.int8), "R": rng.standard_normal(m).astype(np.float16)}
    p = mixed.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=2), check=False)
    source = print_cuda(p.machine, TARGETS["sm_89"])
    assert all(f in source.text for f in ("add_f16x2(", "sub_f16x2(", "mul_f16x2(", "fma_f16x2(", "& 0x640f640fu", "<< 3) & 0xf8f8f8f8u"))
    out = {"Y": np.zeros((m, n), np.float16), "Z": np.zeros((m, n), np.float16), "A": np.zeros((m, n), np.float16), "B": np.zeros((m, n), np.uint8)}
    run_on_host(source, tmp_path, 1, {**given, **out}, {}, {"M": m, "N": n})
    for name, want in p.interpret(**given).items():
        np.testing.assert_allclose(out[name].astype(np.float32), want.astype(np.float32), rtol=0 if name != "Z" else 2e-3)


@pytest.mark.parametrize("dtype", ["f16", "u8", "i8", "bf16", "f8e4m3"])
def test_a_choice_between_narrow_elements_is_one_between_bits(dtype, tmp_path) -> None:
    """Also of what is turned on the way; zero has a sign."""
    d = getattr(fc, dtype)

    @fc.kernel
    def chosen(X: "T[M, N]", Y: "T[M, N]", A: "out T[M, N]", B: "out T[M, N]", C: "out T[N, M]", *, rest=0.0):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            x, y = fc.load(X[rows, cols]), fc.load(Y[rows, cols])
            seen = cols.index <= rows.index
            fc.store(A[rows, cols], fc.where(seen, x, rest))
            fc.store(B[rows, cols], fc.where(seen, x, y))
            fc.store(C[cols, rows], fc.where(seen, 0.0 if d.is_float else 0, y).T)

    p = chosen.compile(target="sm_89", T=d, rest=-0.0 if d.is_float else 0, schedule=fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=2), check=False)
    assert "mask_x" in p.cuda and not any(f"{w}_{dtype}(" in p.cuda for w in ("at", "pack", "to_f32"))
    m, n = 32, 64
    bits = np.random.default_rng(0).integers(1, 2**d.bits // 4, (2, m, n)).astype(f"u{d.bytes}")
    x, y = (b.view(d.stored) for b in bits)
    out = {"A": np.zeros((m, n), d.stored), "B": np.zeros((m, n), d.stored), "C": np.zeros((n, m), d.stored)}
    run_on_host(print_cuda(p.machine, TARGETS["sm_89"]), tmp_path, 1, {"X": x, "Y": y, **out}, {}, {"M": m, "N": n})
    for name, want in p.interpret(X=x, Y=y).items():
        np.testing.assert_array_equal(out[name].view(bits.dtype), want.astype(d.stored).view(bits.dtype))


@pytest.mark.parametrize("op", [np.add, np.subtract, np.multiply])
def test_rounding_twice_is_rounding_once(op) -> None:
    """What packed instructions round once, floats round to 24 bits on the way to 11."""
    a, b = np.random.default_rng(1).integers(0, 2**16, (2, 200000)).astype(np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        exact = op(a.astype(np.float64), b.astype(np.float64))  # no sum or product of two halves needs more bits
        once, twice = exact.astype(np.float16), op(a.astype(np.float32), b.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(once[~np.isnan(once)], twice[~np.isnan(once)])


def test_a_product_of_halves_is_rounded_once_with_what_is_added() -> None:
    """(1 + 2^-10)^2 - (1 + 2^-9) is 2^-20, and nothing where the product is rounded first."""
    @fc.kernel
    def rest(X: "f16[M]", Y: "f16[M]", Z: "out f16[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        fc.store(Z[rows], x * x - fc.load(Y[rows]))

    p = rest.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 256}, warps=4), check=False)
    x = np.full(256, 1 + 2**-10, np.float16)
    got = p.simulate(X=x, Y=np.full(256, 1 + 2**-9, np.float16))["Z"]
    np.testing.assert_array_equal(got.astype(np.float64), 2.0**-20)
    assert '"mul.f16x2' in p.cuda and '"sub.f16x2' in p.cuda, "with .rn, ptxas keeps them apart"
