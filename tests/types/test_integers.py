"""Integer arithmetic: shifts, bits, high products, wrapping; a counter-based random number as NumPy computes it."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda.printer import print_cuda
from fcgen.ir.types import DTYPES

from ..backends.host import run_on_host
from .specs import OPS, integer, meaning, philox, philox_of_numpy


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
    assert "mul_wide_u32" in philox.compile(target="sm_90a", schedule=fc.Schedule(tiles={"BM": 64}, warps=2)).cuda


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
