# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Reductions of a tile whose result hangs on the tile size are told at their line, and no others."""

from __future__ import annotations

import warnings

import pytest

import fcgen as fc


@fc.kernel
def of_the_grid(X: f32[M, N], Y: "out f32[M, N]", P: "out f32[T, N]", S: "inout f32[N]", *, kind):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
    x = fc.load(X[rows, cols])
    total = fc.sum(x, axis=0)
    fc.atomic_add(S[cols], total)
    fc.store(P[rows.start // rows.size, cols], total if kind == "kept" else total * 0.0)
    fc.store(Y[rows, cols], x - total if kind == "used" else x)


@fc.kernel
def of_a_loop(X: f32[M, N], Y: "out f32[M, N]", S: "out f32[M]", *, kind):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    s = fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        x = fc.load(X[rows, cols])
        total = fc.sum(x, axis=1)
        s <<= s + total
        fc.store(Y[rows, cols], x / total if kind == "used" else x)
    fc.store(S[rows], s)


@fc.kernel
def of_all(X: f32[M, 16], Y: "out f32[M, 16]", *, kind):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(16, "BN"))
    x = fc.load(X[rows, cols])
    fc.store(Y[rows, cols], x - fc.max(x, axis=1))


@pytest.mark.parametrize("spec, kind, tile", [(of_the_grid, "used", "BM"), (of_the_grid, "kept", ""), (of_the_grid, "added", ""),
                                              (of_a_loop, "used", "BN"), (of_a_loop, "summed", ""), (of_all, "", "")])
def test_what_hangs_on_the_tile_size_is_told(spec, kind, tile):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        spec.compile(target="sm_89", kind=kind, schedule=fc.Schedule(tiles={"BM": 16, "BN": 16}), check=False)
    assert [f"depend on {tile}, now 16" in str(w.message) for w in told] == [True] * bool(tile)
    for w in told:
        assert w.category is fc.FcWarning and w.filename.endswith("test_partial.py")
        with open(w.filename, encoding="utf-8") as f:
            assert "fc.sum" in f.readlines()[w.lineno - 1]
