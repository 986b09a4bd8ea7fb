"""Sums and extrema of narrow tiles, of all elements of a tile, and along an axis."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda.printer import print_cuda
from fcgen.ir.elementwise import to_dtype
from fcgen.ir.types import DTYPES

from ..backends.host import run_on_host
from .specs import expected, sums


@pytest.mark.parametrize(("name", "shape", "axis", "warps"), [
    ("f16", (32, 64), 1, 4), ("f32", (32, 64), 0, 4), ("bf16", (16, 48), 1, 1), ("i32", (64, 32), 0, 2), ("u32", (8, 96), 1, 4),
    ("i8", (16, 64), 1, 2), ("u8", (48, 16), 0, 4), ("f8e4m3", (16, 32), 1, 1)])
def test_each_dtype(name: str, shape: tuple[int, int], axis: int, warps: int, tmp_path) -> None:
    dtype, rng = DTYPES[name], np.random.default_rng(0)
    x = rng.standard_normal((3, *shape)) if dtype.is_float else rng.integers(*dtype.range, (3, *shape), endpoint=True)
    x = to_dtype(x, dtype)
    program = sums.compile(target="sm_80", schedule=fc.Schedule(warps=warps), T=dtype, R=shape[0], C=shape[1], axis=axis)
    want = expected(x, name, axis)
    on_host = {n: np.zeros(w.shape, dtype.stored) for n, w in want.items()}
    run_on_host(print_cuda(program.machine, program.target), tmp_path, 3, {"X": x.astype(dtype.stored), **on_host}, {}, {"G": 3})
    near = {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2, "f8e4m3": 0.13}.get(name, 0)
    for got in (program.interpret(X=x), program.simulate(X=x), on_host):
        for n, w in want.items():
            np.testing.assert_allclose(got[n].astype(float), w.astype(float), rtol=near, atol=4 * near, err_msg=n)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_they_compile(target: str) -> None:
    for name in ("f16", "u32"):
        assert sums.compile(target=target, schedule=fc.Schedule(warps=4), T=DTYPES[name], R=32, C=64, axis=1).cubin


def test_a_number_steers_the_program() -> None:
    """The sum of a tile decides a branch and bounds a loop."""
    @fc.kernel
    def spec(X: "i32[M]", Y: "out i32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        most, y = fc.max(x), fc.var(x)
        with fc.when(fc.sum(x, axis=None) > 0):
            y <<= y * most
        fc.store(Y[rows], y)

    x = np.random.default_rng(0).integers(-5, 5, 200).astype(np.int32)
    program = spec.compile(target="sm_80", schedule=fc.Schedule(tiles={"BM": 64}, warps=2))
    want = np.concatenate([t * t.max() if t.sum() > 0 else t for t in (x[i:i + 64] for i in range(0, 200, 64))])
    padded = [np.append(t, np.zeros(64 - len(t), np.int32)) for t in (x[192:],)]
    want[192:] = x[192:] * padded[0].max() if x[192:].sum() > 0 else x[192:]
    assert (program.interpret(X=x)["Y"] == want).all() and (program.simulate(X=x)["Y"] == want).all()


def test_copies_do_not_follow_from_tiles() -> None:
    """The role that copies is one thread: it cannot add up a tile."""
    @fc.kernel
    def spec(F: "i32[M]", A: "f16[M, D]", B: "f16[N, D]", C: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
        c = fc.var(fc.zeros(rows, cols))
        with fc.when(fc.sum(fc.load(F[rows]), axis=None) > 0):
            c <<= fc.dot(fc.load(A[rows]), fc.load(B[cols]).T)
        fc.store(C[rows, cols], c)

    tiles = {"BM": 64, "BN": 64}
    assert spec.compile(target="sm_90a", schedule=fc.Schedule(tiles=tiles, warps=4), D=64).machine
    with pytest.raises(fc.FcError, match="follows from another tile") as caught:
        _ = spec.compile(target="sm_90a", schedule=fc.Schedule(tiles=tiles, warps=4, math="wgmma", copy="tma"), D=64).machine
    assert "cp_async" in caught.value.hint


def test_cumsum_is_for_tiles() -> None:
    for make in (lambda x, r: fc.cumsum(r), lambda x, r: fc.cumsum(x > 0), lambda x, r: fc.cumsum(x, 3), lambda x, r: fc.cumsum(2.0)):
        def spec(X: "f32[M]", Y: "out f32[M]", *, make: object = make):
            (rows,) = fc.grid(fc.tile(X.M, "BM"))
            fc.store(Y[rows], make(fc.load(X[rows]), rows))

        with pytest.raises(fc.FcError):
            fc.kernel(spec).trace({"BM": 16})
