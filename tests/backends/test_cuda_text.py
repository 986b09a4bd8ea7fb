"""Closed forms, expressions and names."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.backends.cuda.text import ADD, MUL, X, add, binary, closed_form, digits, literal
from fcgen.ir.layout import blocked, mma_a, mma_b, mma_c
from fcgen.ir.types import f32, i32, i64

LAYOUTS = [
    mma_c(128, 64),
    mma_c(64, 128, (2, 2)),
    mma_a(128, 64),
    mma_a(64, 128, (2, 2)),
    blocked(64, 64, 4, 8),
    blocked(32, 128, 8, 4),
    mma_b(64, 64),
    mma_c(192, 48),
]


def value(text: str, n: int) -> np.ndarray:
    return np.broadcast_to(eval(text.replace("/", "//"), {"i": np.arange(n)}), (n,))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_closed_form_of_drop_map(layout, axis):
    table = layout.drop_map(axis)
    form = closed_form(table, X("i"))
    assert form is not None
    assert (value(form.text, len(table)) == table).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_closed_form_of_coordinates(layout):
    for axis in (0, 1):
        for unit, n in (("l", 32), ("w", layout.warps), ("r", layout.regs)):
            table = layout.part(axis, unit, np.arange(n))
            form = closed_form(table, X("i"))
            assert form is not None and (value(form.text, n) == table).all()


def test_irregular_tables_have_no_form():
    assert digits(np.array([0, 1, 3, 7])) is None
    assert digits(np.array([0, 5, 0, 5])) == (0, [(1, 2, 5)])
    assert closed_form(np.array([3, 4, 5, 13, 14, 15]), X("i")).text == "i / 3 * 10 + i % 3 + 3"


def test_expressions_bracket_what_must_be():
    a, b, c = X("a"), X("b"), X("c")
    assert str(binary("*", binary("+", a, b), c)) == "(a + b) * c"
    assert str(binary("-", a, binary("-", b, c))) == "a - (b - c)"
    assert str(binary("+", a, binary("+", b, c))) == "a + (b + c)"  # floats are not associative
    assert str(add(a, add(b, X("-3", 90)))) == "a + b - 3"
    assert str(binary("^", add(a, b), c)) == "(a + b) ^ c"
    assert str(binary("<", binary("*", a, b), c)) == "a * b < c" and ADD < MUL


def test_literals():
    assert [str(literal(v, f32)) for v in (0, -1.5, float("inf"), float("-inf"), 1e30, 0.1)] == [
        "0.0f",
        "-1.5f",
        "INF",
        "-INF",
        "1.0e+30f",
        "0.1f",
    ]
    assert str(literal(3, i64)) == "3LL" and str(literal(-3, i32)) == "-3"
    for x in np.random.default_rng(0).standard_normal(100).astype(np.float32) * 10.0 ** np.arange(-50, 50).clip(-30, 30):
        assert np.float32(str(literal(float(x), f32))[:-1]) == np.float32(x)
