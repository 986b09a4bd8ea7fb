# mypy: disable-error-code="name-defined, valid-type, syntax"
"""A reduction or product that counts what a tile holds past the end of its range is told at its line: and then results do hang on the tile
size. What is masked, or neutral there, is not told, and then they do not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import fcgen as fc
from fcgen.sim.tile import interpret

START = {"sum": 0.0, "max": -fc.inf, "min": fc.inf}
FOLD = {"sum": lambda a, b: a + b, "max": fc.maximum, "min": fc.minimum}
X = np.random.default_rng(0).standard_normal((9, 13)).astype(np.float32) - 4.0


@fc.kernel
def folds(X: f32[M, K], Y: "out f32[M]", *, fn, f):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    total = fc.var(fc.full(rows, START[fn]))
    for ks in fc.loop(fc.tile(X.K, "BK")):
        x = f(fc.load(X[rows, ks]), rows, ks)
        total <<= FOLD[fn](total, getattr(fc, fn)(x, axis=ks))
    fc.store(Y[rows], total)


@fc.kernel
def products(X: f32[M, K], W: f32[K, N], Y: "out f32[M, N]", *, f):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    acc = fc.var(fc.zeros(rows, W.N))
    for ks in fc.loop(fc.tile(X.K, "BK")):
        acc <<= acc + fc.dot(*f(fc.load(X[rows, ks]), fc.load(W[ks, :]), ks))
    fc.store(Y[rows, :], acc)


WRONG = {
    "shifted": ("sum", lambda x, rows, ks: x - 1.0), "squares of it": ("sum", lambda x, rows, ks: (x - 1.0) * (x - 1.0)),
    "exp": ("sum", lambda x, rows, ks: fc.exp(x)), "ones": ("sum", lambda x, rows, ks: fc.full((rows, ks), 1.0)),
    "positions": ("sum", lambda x, rows, ks: ks.index.to(fc.f32) + fc.zeros(rows, ks)),
    "max": ("max", lambda x, rows, ks: x), "max of more": ("max", lambda x, rows, ks: fc.minimum(x, 1.0) - 2.0),
    "min": ("min", lambda x, rows, ks: fc.abs(x)), "the wrong side": ("sum", lambda x, rows, ks: fc.where(ks.valid, 0.0, x + 1.0)),
    "a later end": ("sum", lambda x, rows, ks: fc.where(ks.index <= ks_end(ks), x + 1.0, 0.0)),
    "either": ("sum", lambda x, rows, ks: fc.where(ks.valid | (x > -1.0), x + 1.0, 0.0)),
}
RIGHT = {
    "read": ("sum", lambda x, rows, ks: x), "squares": ("sum", lambda x, rows, ks: x * x * 3.0),
    "odd functions": ("sum", lambda x, rows, ks: fc.tanh(x) + fc.sin(x) / 2.0 + fc.abs(x)),
    "masked": ("sum", lambda x, rows, ks: fc.where(ks.valid, x - 1.0, 0.0)),
    "masked by more": ("sum", lambda x, rows, ks: fc.where((x > -4.0) & ks.valid, x + 1.0, 0.0)),
    "masked the other way": ("sum", lambda x, rows, ks: fc.where(~ks.valid | (x > -4.0), 0.0, x + 1.0)),
    "times a mask": ("sum", lambda x, rows, ks: ks.valid.to(fc.f32) * fc.exp(x)),
    "masked by positions": ("sum", lambda x, rows, ks: fc.where(ks_end(ks) * 2 - 2 >= 2 * ks.index, x + 1.0, 0.0)),
    "far below": ("sum", lambda x, rows, ks: fc.exp(fc.where(ks.valid, x, -1e30) * 2.0 - fc.sum(x * x, axis=ks))),
    "infinitely below": ("sum", lambda x, rows, ks: fc.exp(fc.where(ks.valid, x, -fc.inf) - 2.0)),
    "max of what is positive": ("max", lambda x, rows, ks: fc.abs(x)),
    "max masked": ("max", lambda x, rows, ks: fc.where(ks.valid, x, -fc.inf)),
    "min masked": ("min", lambda x, rows, ks: fc.where(ks.valid, x + 9.0, 1e9)),
    "max of what is the same": ("max", lambda x, rows, ks: fc.zeros(rows, ks) + 3.0),
}


def ks_end(ks):
    """The size that a range ends at, as a number or a scalar of the program."""
    from fcgen.lang.ranges import dim_size

    return dim_size(ks.dim)


def tried(spec, **binding):
    """(warnings with tiles of 8, whether results are the same with whole tiles)"""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        spec.scheduled({"BM": 16, "BK": 8}, **binding)
    given = {"X": X, "W": X[:, :8].repeat(2, 0)[:13]} if spec is products else {"X": X}
    some, other = (interpret(spec.trace({"BM": 16, "BK": n}, **binding), given)["Y"] for n in (8, 13))
    return told, np.allclose(some, other, rtol=1e-4)


@pytest.mark.parametrize("size", [{}, {"K": 13}], ids=["", "bound"])
@pytest.mark.parametrize("word", WRONG)
def test_a_reduction_that_counts_padding_is_told(word, size) -> None:
    fn, f = WRONG[word]
    told, same = tried(folds, fn=fn, f=f, **size)
    (w,) = told
    assert w.category is fc.FcWarning and f"this {fn} counts" in str(w.message) and "depend on BK, now 8" in str(w.message)
    with open(w.filename, encoding="utf-8") as file:
        assert "axis=ks" in file.readlines()[w.lineno - 1]
    assert not same


@pytest.mark.parametrize("size", [{}, {"K": 13}], ids=["", "bound"])
@pytest.mark.parametrize("word", RIGHT)
def test_a_reduction_that_counts_no_padding_is_not(word, size) -> None:
    fn, f = RIGHT[word]
    told, same = tried(folds, fn=fn, f=f, **size)
    assert not [str(w.message) for w in told if "counts" in str(w.message)]
    assert same or word == "far below"  # what it subtracts is a sum of one tile


@pytest.mark.parametrize("f, fine", [(lambda x, w, ks: (x + 1.0, w - 1.0), False), (lambda x, w, ks: (x, w + 1.0), True),
                                     (lambda x, w, ks: (x + 1.0, w), True), (lambda x, w, ks: (x + 1.0, fc.where(ks.valid, w - 1.0, 0.0)), True)])
def test_one_operand_of_a_product_is_enough(f, fine) -> None:
    told, same = tried(products, f=f, N=8)
    assert bool(told) is not fine and same is fine


def test_whole_tiles_have_no_end_to_count() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        folds.scheduled({"BM": 16, "BK": 8}, fn="sum", f=lambda x, rows, ks: x + 1.0, K=16)
    assert not told


@fc.kernel
def masked_by_order(X: f32[N, D], Y: "out f32[N, D]", *, less):
    (rows,) = fc.grid(fc.tile(X.N, "BM"))
    acc = fc.var(fc.zeros(rows, X.D))
    for cols in fc.loop(fc.tile(X.N, "BK")):
        s = fc.exp(fc.where(rows.index >= cols.index - less, 0.0, -fc.inf))
        acc <<= acc + fc.dot(s, fc.load(X[cols, :]) + 1.0)
    fc.store(Y[rows, :], acc)


@fc.kernel
def in_pieces(X: f32[N], start: i32[B], Y: "out f32[B]"):
    (b,) = fc.grid(start.B)
    first = start[b]
    count = fc.where(b + 1 < start.B, start[fc.minimum(b + 1, start.B - 1)], X.N) - first
    total = fc.var(fc.cast(0.0, fc.f32))
    for part in fc.loop(fc.tile(count, "BK")):
        total <<= total + fc.sum(fc.where(part.index + first < first + count, fc.exp(fc.load(X[part + first])), 0.0), axis=part)
    fc.store(Y[b], total)


@pytest.mark.parametrize("spec, binding, fine", [(masked_by_order, {"less": 0, "D": 8}, True), (masked_by_order, {"less": 1, "D": 8}, False),
                                                 (in_pieces, {}, True)])
def test_masks_by_positions_are_understood(spec, binding, fine) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        spec.scheduled({t: 16 for t in ("BM", "BK") if spec is not in_pieces or t == "BK"}, **binding)
    assert bool(told) is not fine
