"""Misuse of the DSL: each mistake is an error with its code, the spec's own line, and a hint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk_kernel

TILES = {"BM": 16, "BN": 16}


def trace(spec: Any, **binding: Any) -> Any:
    return spec.trace(TILES, **{"D": 16, **binding})


def refused(body: Any, code: str, *words: str, marker: str = "# here", **binding: Any) -> fc.FcError:
    """Tracing raises `code` on the line that carries the marker, and the text says all words."""
    with pytest.raises(fc.FcError) as caught:
        trace(fc.kernel(body), **binding)
    e = caught.value
    text = str(e)
    assert e.code == code, text
    for w in words:
        assert w in text, text
    if marker:
        assert e.loc is not None and marker in (e.loc.source_line() or ""), text
    return e


def test_python_if_on_a_tile() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        if x > 0:  # here
            x = x + 1
        fc.store(Y[rows], x)

    refused(spec, "trace/python-if", "fc.where", "fc.when")


@pytest.mark.parametrize("expression", ["not x", "x and x", "x if x > 0 else x"])
def test_python_logic_on_a_tile(expression: str) -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        fc.store(Y[rows], eval(expression))

    refused(spec, "trace/python-if", "&, |, ~", marker="")


@pytest.mark.parametrize(("at", "word"), [(-1, "0 or more"), (np.int64(-1), "0 or more"), (np.array(-2), "0 or more"), (16, "0 to 15"),
                                          (np.int32(16), "0 to 15"), (np.bool_(True), "ranges, positions"), (np.float32(1), "ranges, positions")],
                         ids=repr)
def test_positions_outside_of_a_tensor_whoever_counts_them(at: Any, word: str) -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(X[rows, at]))  # here

    refused(spec, "trace/usage", word)


def test_numbers_of_numpy_are_those_of_python() -> None:
    def spec(number: Any, flag: Any) -> Any:
        def body(X: "f32[M, D]", Y: "out f32[M]"):
            (rows,) = fc.grid(fc.tile(X.M, "BM"))
            v = fc.var(fc.zeros(rows))
            for _ in fc.loop(number):
                v <<= v + fc.load(X[rows, number])
            fc.store(Y[rows], fc.where(flag, v, 0.0))

        return trace(fc.kernel(body))

    bare = lambda kernel: [str(op.kind) + str(op.attrs) for op in walk_kernel(kernel)]
    assert bare(spec(np.int64(3), np.bool_(True))) == bare(spec(3, True))


def test_shapes_that_do_not_share_axes() -> None:
    def spec(X: "f32[M, D]", Z: "f32[N]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        for cols in fc.loop(fc.tile(Z.N, "BN")):
            x = fc.load(X[rows]) + fc.load(Z[cols])  # here
        fc.store(Y[rows], x)

    refused(spec, "trace/shape", "axes", "BM", "BN")


def test_dot_contracts_matching_axes() -> None:
    def spec(Q: "f16[M, D]", K: "f16[N, D]", Y: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(Q.M, "BM"), fc.tile(K.N, "BN"))
        fc.store(Y[rows, cols], fc.dot(fc.load(Q[rows]), fc.load(K[cols])))  # here

    refused(spec, "trace/shape", "did you mean .T?")


def test_dot_of_two_dtypes() -> None:
    def spec(Q: "f16[M, D]", K: "bf16[N, D]", Y: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(Q.M, "BM"), fc.tile(K.N, "BN"))
        fc.store(Y[rows, cols], fc.dot(fc.load(Q[rows]), fc.load(K[cols]).T))  # here

    refused(spec, "trace/dtype", "f16", "bf16", ".to(fc.bf16)")


def test_arithmetic_of_two_dtypes() -> None:
    def spec(X: "f16[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        fc.store(Y[rows], x + x.to(fc.f32))  # here

    refused(spec, "trace/dtype", "convert one of them")


@pytest.mark.parametrize(("expression", "word"), [("i + 0.5", "fractional"), ("i / 2", "//"), ("i & x", "conditions")])
def test_integers_stay_integers(expression: str, word: str) -> None:
    def spec(X: "f32[M, D]", Y: "out i32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        i, x = rows.index, fc.sum(fc.load(X[rows]), axis=1)
        fc.store(Y[rows], eval(expression))

    refused(spec, "trace/dtype", word, marker="")


def test_a_var_read_before_it_is_set() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        v = fc.var()
        fc.store(Y[rows], v + 1.0)  # here

    refused(spec, "trace/unset", "v <<=")


def test_a_var_first_set_in_a_loop() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        v = fc.var()
        for _ in fc.loop(3):  # here
            v <<= fc.load(X[rows])
        fc.store(Y[rows], v)

    refused(spec, "trace/unset", "before the loop")


def test_a_loops_value_used_after_it() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        for _ in fc.loop(3):
            x = fc.load(X[rows])
        fc.store(Y[rows], x)  # here

    refused(spec, "trace/unset", "loop", "fc.var")


def test_a_var_keeps_its_axes_and_dtype() -> None:
    def axes(X: "f32[M, D]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        v = fc.var(fc.zeros(rows))
        v <<= fc.load(X[rows])  # here
        fc.store(Y[rows], v)

    def dtype(X: "f16[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        v = fc.var(fc.zeros(rows, X.D))
        v <<= fc.load(X[rows])  # here
        fc.store(Y[rows], v)

    refused(axes, "trace/shape", "keeps its axes")
    refused(dtype, "trace/dtype", ".to(fc.f32)")


def test_leaving_a_loop_early() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        for _ in fc.loop(3):  # here
            x = fc.load(X[rows])
            break
        fc.store(Y[rows], x)

    refused(spec, "trace/usage", "break or return")


def test_a_store_that_every_program_repeats() -> None:
    def spec(X: "f32[H, M, D]", Y: "out f32[M, D]"):
        _, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.zeros(rows, X.D))  # here

    refused(spec, "trace/store", "every grid axis", "fc.atomic_add")


def test_stores_go_to_outputs_and_outputs_are_stored() -> None:
    def wrong(X: "f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(X[rows], fc.zeros(rows, X.D))  # here

    def never(X: "f32[M, D]", Y: "out f32[M, D]"):
        fc.grid(fc.tile(X.M, "BM"))

    refused(wrong, "trace/store", "out")
    refused(never, "trace/store", "never stored", marker="")


def test_grid_is_called_once_and_first() -> None:
    def none(X: "f32[M, D]"):
        fc.load(X[0])

    def twice(X: "f32[M, D]"):
        fc.grid(fc.tile(X.M, "BM"))
        fc.grid(X.M)  # here

    refused(none, "trace/usage", "fc.grid", marker="")
    refused(twice, "trace/usage", "twice")


@pytest.mark.parametrize(("binding", "words"), [
    ({"Dd": 3}, ["no compile-time parameter Dd", "did you mean D?"]), ({"D": 0}, ["positive"]), ({"D": "x"}, ["positive"])])
def test_bindings_are_checked(binding: dict, words: list[str]) -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(X[rows]))

    refused(spec, "trace/static", *words, marker="", **binding)


def test_sizes_and_dtypes_that_are_needed_are_asked_for() -> None:
    def spec(X: "T[M, D, E]", Y: "out T[M, D, E]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows, 0], fc.load(X[rows, 0]))  # here

    refused(spec, "trace/static", "dtype T", marker="")
    refused(spec, "trace/static", "E must be known", T=fc.f16)
    refused(spec, "trace/static", "dtype", marker="", T=3)


def test_unknown_tile_sizes_and_dimensions() -> None:
    def tile(X: "f32[M, D]"):
        fc.grid(fc.tile(X.M, "BLOCK"))  # here

    def dim(X: "f32[M, D]"):
        fc.grid(fc.tile(X.Q, "BM"))  # here

    refused(tile, "trace/static", "tiles=")
    refused(dim, "trace/usage", "no dimension Q", "M, D")


@pytest.mark.parametrize("annotation", ["f33[M, D]x", "T[]", "f32[M-1]", "f99"])
def test_annotations_are_read_strictly(annotation: str) -> None:
    def spec(X, Y: "out f32[M]"):
        pass

    spec.__annotations__["X"] = annotation
    with pytest.raises(fc.FcError) as e:
        fc.kernel(spec)
    assert e.value.code == "trace/usage"


def test_the_dsl_outside_a_spec() -> None:
    with pytest.raises(fc.FcError) as e:
        fc.zeros(3)
    assert e.value.code == "trace/usage"


@pytest.mark.parametrize("expression", ["list(x)", "float(x)", "int(x)", "range(x)"])
def test_tiles_are_not_python_numbers(expression: str) -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        eval(expression)
        fc.store(Y[rows], x)

    refused(spec, "trace/usage", marker="")


@pytest.mark.parametrize(("dtype", "expression", "hint"), [
    ("f32", "x / X.M", "M.to(fc.f32)"), ("f64", "x / X.M", "M.to(fc.f64)"), ("f16", "X.M / x", "M.to(fc.f16)"),
    ("f32", "x ** X.M", "M.to(fc.f32)"), ("i32", "x / X.M", "use // for integers"), ("i32", "fc.exp(x)", "convert: .to(fc.f32)")])
def test_an_integer_where_floats_are_needed(dtype: str, expression: str, hint: str) -> None:
    def spec(X: "T[M, D]", Y: "out T[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        fc.store(Y[rows], eval(expression))

    e = refused(spec, "trace/dtype", hint, marker="", T=getattr(fc, dtype))
    assert dtype not in ("f16", "f64") or dtype in e.expected


@pytest.mark.parametrize(("tiles", "missing", "vain", "hint"), [
    ({"BM": 16, "BQ": 16}, "BN", ["BQ"], '"BN": 64, ...}), in place of BQ'), ({}, "BM, BN", [], '{"BM": 64, "BN": 64, ...}'),
    ({"BM": 16}, "BN", [], '{"BN": 64, ...}'), ({"A": 8, "BM": 16, "BNN": 8}, "BN", ["A", "BNN"], "in place of BNN")])
def test_tile_sizes_that_are_missing_and_those_in_vain(tiles: dict[str, int], missing: str, vain: list[str], hint: str) -> None:
    @fc.kernel
    def spec(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        total = fc.var(fc.zeros(rows))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            total <<= total + fc.sum(fc.load(X[rows, cols]), axis=cols)
        fc.store(Y[rows], total)

    with pytest.raises(fc.FcError) as caught:
        spec.trace(tiles)
    e = caught.value
    assert e.code == "trace/static" and f"given for {missing}" in e.message and hint in e.hint, e
    assert [n.split()[-1] for n in e.notes] == vain and missing.split(",")[0] in e.loc.source_line()


def test_a_missing_tile_size_is_told_before_what_hangs_on_it() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BQ"))  # here
        fc.store(Y[rows], fc.full((rows, rows.again()), 1.0))
        _ = [] [rows.size]  # of the placeholder

    refused(spec, "trace/static", "BQ")


@pytest.mark.parametrize(("view", "whole", "hint"), [
    ("K[page, at, :]", "G", "K[p, s, g, :]"), ("K[page]", "S", "K[p, s, :, :]"), ("K[page, at, 0]", "E", "K[p, s, g, e]")])
def test_an_index_that_was_forgotten(view: str, whole: str, hint: str) -> None:
    def spec(K: "f32[P, S, G, E]", Y: "out f32[P, D]"):
        (page,) = fc.grid(K.P)
        at = 1
        fc.store(Y[page], fc.load(eval(view)))

    refused(spec, "trace/static", f"whole along {whole}", f"compile(..., {whole}=...)", f"or index it: {hint}", marker="")


@pytest.mark.parametrize("axis", ["X.M // X.K", "fc.tile(X.M // X.K, 'BM')", "fc.tile(X.M * 2 // (X.K + 1), 'BM')"])
def test_a_grid_axis_that_is_computed_from_sizes(axis: str) -> None:
    def spec(X: "f32[M, K, D]", Y: "out f32[M, K, D]"):
        (i,) = fc.grid(eval(axis))
        fc.store(Y[i], 1.0)

    refused(spec, "trace/usage", "a grid axis is", "computed from M and K", "compile(..., M=..., K=...)", "an i32 parameter", marker="")


def test_an_operation_in_front_of_the_grid_is_named() -> None:
    def spec(X: "f32[M, K, D]", Y: "out f32[M, K, D]"):
        half = X.M // 2
        (i,) = fc.grid(fc.tile(X.M, "BM"))  # here
        fc.store(Y[i, half, 0], 1.0)

    e = refused(spec, "trace/usage", "fc.grid comes first", "move that behind it")
    assert "at " in str(e.got) and str(e.loc.line - 1) in str(e.got)


def test_a_variable_whose_name_was_given_away() -> None:
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.var(fc.load(X[rows]))
        x = x + 1.0
        x <<= x * 2.0  # here
        fc.store(Y[rows], x)

    e = refused(spec, "trace/usage", "`x` is no variable any more", "write x <<= ... there")
    assert str(e.loc.line - 1) in e.notes[0]
