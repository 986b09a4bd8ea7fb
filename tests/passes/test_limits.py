"""Masks of two ends: one comparison of a column with what its row knows, for each end."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk_kernel
from fcgen.passes import run_passes


@fc.kernel
def banded(X: "f32[M, N]", Y: "out f32[M]", *, w: "i32", wide: bool):  # type: ignore[name-defined, valid-type]
    """Sums of a band below the diagonal."""
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    total = fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        near = rows.index - cols.index < w if wide else rows.index - w < cols.index
        x = fc.where(cols.valid & near & (cols.index <= rows.index), fc.load(X[rows, cols]), 0.0)
        total <<= total + fc.sum(x, axis=1)
    fc.store(Y[rows], total)


@pytest.mark.parametrize("wide", [False, True], ids=["row", "distance"])
def test_both_ends_of_a_band_are_known_per_row(wide: bool) -> None:
    p = banded.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16, "BN": 32}), wide=wide)
    ops = [o for o in walk_kernel(run_passes(p.tile, p.schedule, p.target, stop_after="limits"))
           if o.results and len(getattr(o.result.type, "shape", ())) == 2]
    assert {o.kind for o in ops if o.kind in ("lt", "le", "gt", "ge", "sub", "add")} == {"gt", "lt"}
    x = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    apart = np.arange(40)[:, None] - np.arange(50)
    for w in (-5, 0, 1, 21, 40, 2**31 - 1, -(2**31)):
        want = np.where((apart >= 0) & (apart < w), x, 0).sum(1)
        np.testing.assert_allclose(p.simulate(X=x, w=w)["Y"], want, atol=1e-4)


@fc.kernel
def grid_band(X: "f32[M, N]", Y: "out f32[M]", *, n: "i32", r: "i32", w: "i32"):  # type: ignore[name-defined, valid-type]
    """Sums of the columns whose quotient and rest are near the row's."""
    fc.positive(n)
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    total = fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        i, j = rows.index, cols.index
        near = (abs(i // n - j // n) <= r) & (abs(j % n - i % n) < w)
        total <<= total + fc.sum(fc.where(cols.valid & near, fc.load(X[rows, cols]), 0.0), axis=1)
    fc.store(Y[rows], total)


def test_a_distance_of_positions_is_two_limits_per_row() -> None:
    p = grid_band.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16, "BN": 32}))
    ops = [o for o in walk_kernel(run_passes(p.tile, p.schedule, p.target, stop_after="limits"))
           if o.results and len(getattr(o.result.type, "shape", ())) == 2]
    assert not {o.kind for o in ops} & {"abs", "sub", "le", "ge"}
    x = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    i, j = np.arange(40, dtype=np.int64)[:, None], np.arange(50, dtype=np.int64)
    for n, r, w in ((1, 3, 1), (8, 1, 3), (8, 0, 2**29), (7, 2**29, 2), (7, -1, 4), (7, 2, -(2**29)), (100, 0, 5), (2**29, 0, 9)):
        want = np.where((abs(i // n - j // n) <= r) & (abs(j % n - i % n) < w), x, 0).sum(1)
        np.testing.assert_allclose(p.simulate(X=x, n=n, r=r, w=w)["Y"], want, atol=1e-4)
