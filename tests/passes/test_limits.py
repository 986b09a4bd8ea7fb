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
