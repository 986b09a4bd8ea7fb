"""Rules of the DSL at their edges: what must be refused rather than compiled into something else, and what must not be refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.text import value_names
from fcgen.sim.tile import interpret

TILES = {"BM": 16, "BN": 16}
X20 = np.arange(20, dtype=np.float32)


def run(body: Any, args: dict[str, Any], **binding: Any) -> dict[str, np.ndarray]:
    return interpret(fc.kernel(body).trace(TILES, **binding), args)


def refused(body: Any, code: str, *words: str, marker: str = "# here", **binding: Any) -> fc.FcError:
    """Tracing raises `code` on the line that carries the marker, and the text says all words."""
    with pytest.raises(fc.FcError) as caught:
        fc.kernel(body).trace(TILES, **binding)
    e = caught.value
    assert e.code == code and all(w in str(e) for w in words), str(e)
    assert not marker or (e.loc is not None and marker in (e.loc.source_line() or "")), str(e)
    return e


# ---- numbers and dtypes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expression", "words"), [
    ("x % 2.0", ["integers", "fc.floor"]), ("x // 2.0", ["integers", "fc.floor(a / b)"]), ("fc.exp(i)", ["floats", ".to(fc.f32)"]),
    ("i ** 2", ["floats", "multiply"]), ("2 / i", ["floats", "//"]), ("(x > 0) + (x > 1)", ["conditions", "& |"]),
    ("(x > 0) == 1", ["condition", "fc.where"]), ("fc.sum(x > 0)", ["conditions", ".to(fc.i32)"]), ("x & (x > 0)", ["conditions", "x > 0"]),
    ("x.to(fc.i1)", ["condition", "x != 0"]), ("i < 2**40", ["does not fit i32", ".to(fc.i64)"]), ("i + fc.inf", ["integers", ".to(fc.f32)"]),
    ("fc.where(x, 1.0, 0.0)", ["truth value", "compare"]), ("fc.where(i > 0, x, i)", ["fc.where of two dtypes", ".to(fc.f32)"]),
    ("x * i", ["two dtypes", ".to(fc.f32)"]), ("fc.load(Z[x])", ["whole number", ".to(fc.i32)"])])
def test_dtype_rules(expression: str, words: list[str]) -> None:
    def spec(X: "f32[M]", Z: "f32[N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x, i = fc.load(X[rows]), rows.index
        eval(expression, {"fc": fc}, {"x": x, "i": i, "Z": Z})
        fc.store(Y[rows], x)

    refused(spec, "trace/dtype", *words, marker="")


def test_numbers_take_the_dtype_they_meet() -> None:
    def spec(X: "f16[M]", Y: "out f16[M]", Z: "out i64[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        fc.store(Y[rows], 1 - x * 2 + np.float32(0.5) + np.int64(1))
        fc.store(Z[rows], rows.index.to(fc.i64) + 2**40)

    got = run(spec, {"X": X20})
    np.testing.assert_array_equal(got["Y"], (2.5 - 2 * X20).astype(np.float16))
    np.testing.assert_array_equal(got["Z"], np.arange(20) + 2**40)


# ---- axes ------------------------------------------------------------------------------------------------------------------


def test_a_tile_with_one_axis_twice_meets_only_its_like() -> None:
    def fine(X: "f32[D, D]", Y: "out f32[D, D]"):
        fc.grid(1)
        x = fc.load(X[:, :])
        fc.store(Y[:, :], fc.exp(x) + x.T * 2.0)

    def unclear(X: "f32[D, D]", Y: "out f32[D, D]"):
        fc.grid(1)
        x = fc.load(X[:, :])
        fc.store(Y[:, :], x - fc.max(x, axis=1))  # here

    x = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    np.testing.assert_allclose(run(fine, {"X": x}, D=16)["Y"], np.exp(x) + 2 * x.T, rtol=1e-6)
    refused(unclear, "trace/shape", "both axes", "run over D", D=16)


def test_the_accumulator_of_a_dot_has_the_axes_of_the_product() -> None:
    def spec(A: "f16[M, D]", B: "f16[N, D]", C: "f32[M, D]", Y: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
        c = fc.load(C[rows])  # as large as the product, along another axis
        fc.store(Y[rows, cols], fc.dot(fc.load(A[rows]), fc.load(B[cols]).T, c))  # here

    refused(spec, "trace/shape", "product's axes", "BM, BN", "D: 16", D=16)


def test_numbered_dimensions_are_axes_too() -> None:
    def spec(X: "f32[M, 16]", W: "f32[D, 16]", Y: "out f32[M, 16]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.dot(fc.load(X[rows]), fc.load(W[:, :]))  # 16 against D, both whole
        fc.store(Y[rows], x - fc.max(x, axis=1))

    x = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
    np.testing.assert_allclose(run(spec, {"X": x, "W": np.eye(16)}, D=16)["Y"], x - x.max(1, keepdims=True), rtol=1e-6)


def test_an_axis_may_be_named_by_its_dimension() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.sum(fc.load(X[rows]), axis=X.D))

    np.testing.assert_allclose(run(spec, {"X": np.ones((20, 16))}, D=16)["Y"], 16)


# ---- variables, loops, conditions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["rows.index", "fc.zeros(rows)"])
def test_assigning_to_what_is_no_variable(init: str) -> None:
    def spec(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        total = eval(init)
        for _ in fc.loop(3):
            total <<= total + total  # here
        fc.store(Y[rows], total)

    refused(spec, "trace/usage", "fc.var(init)")


def test_live_knows_only_what_is_known_before_the_loop() -> None:
    def reads(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        s, n = fc.var(fc.zeros(rows)), fc.var(0)
        for cols in fc.loop(fc.tile(X.N, "BN"), live=lambda c: c.index > n):  # noqa: B023  # here
            s <<= s + fc.sum(fc.load(X[rows, cols]), axis=1)
            n <<= n + 1
        fc.store(Y[rows], s)

    def assigns(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        n = fc.var(0)

        def live(c):
            n.__ilshift__(1)
            return c.valid

        for cols in fc.loop(fc.tile(X.N, "BN"), live=live):  # here
            fc.store(Y[rows], fc.sum(fc.load(X[rows, cols]), axis=1))

    def constant(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        s, low = fc.var(fc.zeros(rows)), fc.var(16)
        for cols in fc.loop(fc.tile(X.N, "BN"), live=lambda c: c.index >= low):
            s <<= s + fc.sum(fc.where(cols.index >= low, fc.load(X[rows, cols]), 0.0), axis=1)
        fc.store(Y[rows], s)

    refused(reads, "trace/usage", "n changes in the loop")
    refused(assigns, "trace/usage", "assigns")
    np.testing.assert_allclose(run(constant, {"X": np.ones((20, 40))})["Y"], 24)


def test_loops_count_in_i32() -> None:
    def spec(X: "f32[M]", Y: "out f32[M]", *, n: "f32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        for _ in fc.loop(n):  # here
            fc.store(Y[rows], fc.load(X[rows]))

    refused(spec, "trace/dtype", "counts in i32")


def test_a_branch_keeps_its_values() -> None:
    def spec(X: "f32[M]", Y: "out f32[M]", *, n: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        with fc.when(n > 1):
            x = fc.load(X[rows])
        fc.store(Y[rows], x)  # here

    refused(spec, "trace/unset", "inside a branch", "before the branch")


def test_values_of_another_trace() -> None:
    kept: list[Any] = []

    def spec(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        kept.append(fc.load(X[rows]))
        fc.store(Y[rows], kept[0] + 1.0)  # here

    fc.kernel(spec).trace(TILES)
    refused(spec, "trace/unset", "another trace")


# ---- memory ----------------------------------------------------------------------------------------------------------------


def test_what_an_output_held_before_is_not_read() -> None:
    def load(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(Y[rows]) + 1.0)  # here

    def add(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.atomic_add(Y[rows], fc.load(X[rows]))  # here

    def fine(X: "f32[M]", Y: "inout f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(Y[rows]) + fc.load(X[rows]))

    refused(load, "trace/usage", "inout")
    refused(add, "trace/usage", "inout")
    np.testing.assert_array_equal(run(fine, {"X": X20, "Y": X20})["Y"], 2 * X20)


def test_one_element_per_program() -> None:
    def spec(X: "f32[H, M]", Y: "out f32[H]", n: "inout i32[H]"):
        (h,) = fc.grid(X.H)
        s = fc.var(0.0)
        for rows in fc.loop(fc.tile(X.M, "BM")):
            s <<= s + fc.sum(fc.load(X[h, rows]))
        fc.store(Y[h], s)
        fc.store(n[h], fc.load(n[h]) + 1)

    x = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)
    got = run(spec, {"X": x, "n": np.array([5, 6, 7])})
    np.testing.assert_allclose(got["Y"], x.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(got["n"], [6, 7, 8])


def test_ownership_follows_conditions_and_variables() -> None:
    def condition(X: "f32[H, M]", Y: "out f32[M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        with fc.when(h == 1):
            fc.store(Y[rows], fc.load(X[h, rows]))

    def variable(X: "f32[H, M]", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        at, before = fc.var(0), fc.var(h * 1)
        for _ in fc.loop(1):
            at <<= before + 0
            fc.store(Y[at, rows], fc.load(X[h, rows]))

    def every(X: "f32[H, M]", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        at = fc.var(0)
        for i in fc.loop(2):
            at <<= at + i
            fc.store(Y[at, rows], fc.load(X[h, rows]))  # here

    x = np.arange(60, dtype=np.float32).reshape(3, 20)
    np.testing.assert_array_equal(run(condition, {"X": x})["Y"], x[1])
    np.testing.assert_array_equal(run(variable, {"X": x})["Y"], x)
    refused(every, "trace/store", "every program along h")


@pytest.mark.parametrize(("expression", "words"), [
    ("X + 1.0", ["is a tensor", "fc.load(X[...])"]), ("X[rows] * 2.0", ["not a tile yet", "fc.load"]), ("2 * rows", [".index", ".start"]), ("(1 + rows) * 2.0", ["rows.index + start"]),
    ("fc.exp(X)", ["is a tensor"]), ("fc.sum(X[rows])", ["not a tile yet"]), ("fc.load(X[rows]) + fc.tile(X.M, 'BM')", ["fc.loop"]),
    ("X[-1]", ["from the start"]), ("X[0:4]", ["slice"]), ("fc.tile(X.M, 16)", ["names its block size"]), ("fc.exp(None)", ["not a value"])])
def test_what_is_not_a_tile(expression: str, words: list[str]) -> None:
    def spec(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        eval(expression, {"fc": fc}, {"X": X, "rows": rows})
        fc.store(Y[rows], 0.0)

    refused(spec, "trace/usage", *words, marker="")


def test_the_grid_comes_first() -> None:
    def spec(X: "f32[M]", w: "f32[H]", Y: "out f32[M]"):
        first = w[0]
        (rows,) = fc.grid(fc.tile(X.M, "BM"))  # here
        fc.store(Y[rows], fc.load(X[rows]) * first)

    refused(spec, "trace/usage", "comes first")


# ---- signatures, places, until ---------------------------------------------------------------------------------------------


def test_types_of_compile_time_values_stay_types() -> None:
    """In this file annotations are source text: those in quotes are ours, and so is what looks like a tensor of no known type."""

    @fc.kernel
    def spec(X: "f32[M]", Z: f16[M], Y: "out f32[M]", *, mask: Callable[..., Any] | None = None, sizes: list[int] = (), n: int = 3,
             pairs: Sequence[int] = (), other: Optional[int] = None,  # noqa: UP045
             late: Missing[..., int] = None, scale: f32 > 0):
        pass

    kinds = {p.name: p.kind for p in spec.signature.params}
    assert kinds == {"X": "tensor", "Z": "tensor", "Y": "tensor", "mask": "static", "sizes": "static", "n": "static", "pairs": "static",
                     "other": "static", "late": "static", "scale": "scalar"}


def test_the_caret_counts_characters() -> None:
    def spec(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        größe = fc.load(X[rows]); fc.store(Y[rows], größe % 2.0)  # noqa: E702  here

    e = refused(spec, "trace/dtype", marker="here")
    assert e.loc is not None
    line = e.loc.source_line()
    assert line is not None and (e.loc.col < 0 or line[e.loc.col: e.loc.end_col] == "größe % 2.0")


def test_until_reaches_every_value() -> None:
    @fc.kernel
    def spec(X: "f32[H, M]", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        twice = h * 2
        s = fc.load(X[h, rows])
        s = s + 1.0
        s = s * 2.0
        top = fc.max(s)
        high = top > 50.0
        fc.store(Y[h, rows], fc.where(high, s, top))

    x = np.arange(40, dtype=np.float32).reshape(2, 20)
    value = lambda name: interpret(spec.until(name).trace(TILES), {"X": x})["UNTIL"]
    padded = np.pad(x, ((0, 0), (0, 12))).reshape(2, 2, 16)
    np.testing.assert_array_equal(value("s.0"), padded)
    np.testing.assert_array_equal(value("s.1"), padded + 1)
    np.testing.assert_array_equal(value("s"), 2 * padded + 2)
    np.testing.assert_array_equal(value("s.2"), value("s"))
    np.testing.assert_array_equal(value("top"), (2 * padded + 2).max(-1))
    np.testing.assert_array_equal(value("high"), (2 * padded + 2).max(-1) > 50)
    np.testing.assert_array_equal(value("twice"), [[0, 0], [2, 2]])
    kernel = spec.trace(TILES)
    assert all(f"%{n} " in str(kernel) or f"%{n}," in str(kernel) or f"%{n}:" in str(kernel) for n in value_names(kernel).values())
    with pytest.raises(fc.FcError) as e:
        spec.until("nothing").trace(TILES)
    assert e.value.code == "trace/usage" and "s, s.1, s.2, top" in str(e.value.expected)
