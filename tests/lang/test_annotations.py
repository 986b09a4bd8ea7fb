"""Annotations: what is no dtype of fcgen is refused where it stands, and only a capital word can be a dtype that is bound later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fcgen as fc
from fcgen.ir.types import ELSEWHERE


def annotated(annotation: Any, **more: Any) -> fc.Spec:
    def spec(X: Any, Y: "out f32[M]"):
        pass

    spec.__annotations__ |= {"X": annotation, **more}
    return fc.kernel(spec)


def refused(annotation: Any, *words: str, **more: Any) -> fc.FcError:
    with pytest.raises(fc.FcError) as caught:
        annotated(annotation, **more)
    assert caught.value.code == "trace/usage" and all(w in str(caught.value) for w in words), str(caught.value)
    return caught.value


@pytest.mark.parametrize(("word", "meant"), [*ELSEWHERE.items(), ("F16", "f16"), ("BF16", "bf16"), ("Float32", "f32"), ("HALF", "f16"),
                                             ("f33", "f32"), ("I32", "i32"), ("I8", "i8"), ("F8E4M3", "f8e4m3")])
def test_a_dtype_that_is_called_otherwise(word: str, meant: str) -> None:
    for annotation in (f"{word}[M, D]", f"out {word}[M]", f"'inout {word}[M]'"):
        refused(annotation, "dtype of tensor `X`", f"did you mean {meant}?")


@pytest.mark.parametrize("word", ["f8", "F8", "U64", "i16", "u16", "uint64", "float8_e4m3fnuz", "tensor", "t", "q"])
def test_a_dtype_that_there_is_not(word: str) -> None:
    e = refused(f"{word}[M, D]", "f16, bf16, f32, f64, f8e4m3, f8e5m2, i1, i8, u8, i32, u32, i64", "capital word")
    assert "did you mean" not in str(e) or word in ("t", "q", "tensor")


@pytest.mark.parametrize("word", ["T", "TQ", "T_k", "Element", "DTYPE", "K2"])
def test_a_capital_word_is_bound_later(word: str) -> None:
    assert annotated(f"{word}[M, D]").signature.dtype_names == (word,)


@pytest.mark.parametrize(("annotation", "hint"), [
    ("'int32'", "did you mean i32?"), ("'half'", "i32"), ("'fp32 > 0'", "did you mean f32?"), ("'f32 >= 0'", "f32"), ("'f32 > 1'", "f32"),
    ("'f16'", "f32"), ("'i8'", "i32"), ("f99", "f32"), ("fc.f32", "did you mean f32?"), ("'causal or none'", "compile-time value"),
    ("'outt f32[M]'", "out"), ("'f32[M - 1]'", "dimension"), ("'f32[M, N'", "brackets"), ("'f32[0]'", "dimension"), (fc.f32, "quote it")])
def test_other_slips(annotation: Any, hint: str) -> None:
    refused(annotation, hint)


def test_a_scalar_of_a_bound_dtype() -> None:
    refused("T", "is no tensor", "f32", Y="out T[M]")


@pytest.mark.parametrize("annotation", [int, list[int], Callable[..., Any], Any, "int", "'list[int]'", "Callable[..., Any] | None", "Missing.Type"])
def test_types_are_compile_time_values(annotation: Any) -> None:
    assert annotated(annotation).signature["X"].kind == "static"


def test_the_place_is_the_parameter() -> None:
    with pytest.raises(fc.FcError) as caught:
        @fc.kernel
        def spec(X: "f32[M]",
                 größe: "int32", Z: "u8[M]",
                 Y: "out f32[M]"):
            pass

    e = caught.value
    line = e.loc.source_line()
    assert line.strip().startswith("größe") and line[e.loc.col:e.loc.end_col] == 'größe: "int32"'

    def silent(X: "f32[M]",
               Y: "out f32[M]"):
        fc.grid(fc.tile(X.M, "BM"))

    with pytest.raises(fc.FcError, match="never stored") as caught:
        fc.kernel(silent).trace({"BM": 16})
    assert caught.value.loc.source_line().strip().startswith("Y:")


@pytest.mark.parametrize("word", [*ELSEWHERE, "i16", "x", 3, None, int])
def test_a_binding_that_is_no_dtype(word: Any) -> None:
    def spec(X: "T[M]", Y: "out T[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(X[rows]))

    with pytest.raises(fc.FcError, match="T must be a dtype of fcgen") as caught:
        fc.kernel(spec).trace({"BM": 16}, T=word)
    assert word not in ELSEWHERE or f"fc.{ELSEWHERE[word]}" in caught.value.hint
