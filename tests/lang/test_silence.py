"""Nothing is accepted and then ignored: outputs that are written in part, arguments that nobody knows, numbers that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.parse import parse_kernel
from fcgen.ir.sizes import number
from fcgen.sim.machine import check
from fcgen.sim.tile import interpret

SCHEDULE = fc.Schedule(tiles={"BM": 16, "BN": 16}, warps=1)
TILES = dict(SCHEDULE.tiles)


def refused(code: str, *words: str, body: Any = None, call: Any = None) -> None:
    with pytest.raises(fc.FcError) as caught:
        fc.kernel(body).trace(TILES) if body is not None else call()
    e = caught.value
    assert e.code == code and all(w in str(e) for w in words), str(e)
    assert body is None or (e.loc is not None and "# here" in (e.loc.source_line() or "")), str(e)


# ---- outputs that are never written, or in part ----------------------------------------------------------------------------


def test_axes_are_covered_by_what_runs_over_them() -> None:
    def swapped(X: "f32[M, N]", Y: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
        fc.store(Y[cols, rows], fc.load(X[rows, cols]))  # here

    def plain(X: "f32[B, H, M]", Y: "out f32[B, H, M]"):
        b, h, rows = fc.grid(X.B, X.H, fc.tile(X.M, "BM"))
        fc.store(Y[h, b, rows], fc.load(X[b, h, rows]))  # here

    def number_of_programs(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(64, "BM"))
        fc.store(Y[rows], fc.load(X[rows]))  # here

    def looped(X: "f32[M, N]", Y: "out f32[M, N]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        for cols in fc.loop(fc.tile(X.M, "BN")):
            fc.store(Y[rows, cols], fc.load(X[rows, cols]))  # here

    refused("trace/store", "axis M of Y", "runs over N", "inout", body=swapped)
    refused("trace/store", "axis B of Y", "runs over H", body=plain)
    refused("trace/store", "axis M of Y", "runs over 64", body=number_of_programs)
    refused("trace/store", "axis N of Y", "runs over M", body=looped)


@fc.kernel
def first_block(X: "f32[M, N]", Y: "out f32[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN"), stop=1):
        x = fc.load(X[rows, cols])
        fc.store(Y[rows, cols], x)  # the place


@fc.kernel
def kept_block(X: "f32[M, N]", Y: "inout f32[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN"), stop=1):
        fc.store(Y[rows, cols], fc.load(X[rows, cols]))


@pytest.mark.parametrize("way", ["interpret", "simulate"])
def test_elements_that_nothing_writes_are_reported(way: str) -> None:
    x = np.ones((16, 20), np.float32)
    run = getattr(first_block.compile(target="sm_89", schedule=SCHEDULE), way)
    np.testing.assert_array_equal(run(X=x[:, :16])["Y"], 1)
    with pytest.raises(fc.FcError) as caught:
        run(X=x)
    e = caught.value
    assert e.code == "sim/unwritten" and "64 of the 320 elements of Y" in str(e) and "[0, 16]" in str(e) and "inout" in str(e)
    assert "# the place" in e.loc.source_line()


@pytest.mark.parametrize("way", ["interpret", "simulate"])
def test_an_inout_tensor_keeps_the_rest_and_is_asked_for(way: str) -> None:
    program = kept_block.compile(target="sm_89", schedule=SCHEDULE)
    assert "kept" in str(program.machine) and str(parse_kernel(str(program.tile))) == str(program.tile)
    x, y = np.ones((16, 20), np.float32), np.full((16, 20), 7, np.float32)
    got = getattr(program, way)(X=x, Y=y)["Y"]
    assert (got[:, :16] == 1).all() and (got[:, 16:] == 7).all()
    refused("call/argument", "`Y` is missing", call=lambda: getattr(program, way)(X=x))


# ---- arguments -------------------------------------------------------------------------------------------------------------


@fc.kernel
def scaled(X: "f32[M]", I: "i32[M]", Y: "out f32[M]", *, scale: "f32 > 0", n: "i32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    fc.store(Y[rows], fc.load(X[rows]) * scale + (fc.load(I[rows]) + n).to(fc.f32))


ROWS = fc.Schedule(tiles={"BM": 16}, warps=1)
GIVEN = {"X": np.ones(20, np.float32), "I": np.arange(20), "scale": 0.5, "n": 3}


@pytest.mark.parametrize(("given", "words"), [
    ({"scal": 1.0}, ["no parameter `scal`", "did you mean scale?"]), ({"n": 3.5}, ["not a number"]), ({"n": 3.0}, ["write 3"]),
    ({"n": "3"}, ["not a number"]), ({"n": True}, ["not a number"]), ({"n": None}, ["not a number"]), ({"n": 2**31}, ["out of range", "2147483647"]),
    ({"scale": "1"}, ["not a number"]), ({"scale": True}, ["not a number"]), ({"scale": 1j}, ["not a number"]), ({"scale": [1.0]}, ["number"]),
    ({"scale": np.ones(2)}, ["not a number"]), ({"scale": 1e39}, ["does not fit f32"]), ({"scale": 1e-46}, ["must be positive"]),
    ({"scale": 10**400}, ["does not fit f32"]), ({"scale": float("nan")}, ["must be positive"]), ({"scale": -1}, ["must be positive"]),
    ({"I": np.ones(20)}, ["not an array of i32", "rint"]), ({"I": np.full(20, 2**40)}, ["do not fit i32"]), ({"I": ["a"] * 20}, ["array"]),
    ({"X": np.ones(20, complex)}, ["not an array of f32"]), ({"X": np.ones(20, bool)}, ["not an array of f32"]), ({"X": None}, ["array"]),
    ({"X": [{}] * 20}, ["array"])])
@pytest.mark.parametrize("way", ["interpret", "simulate"])
def test_arguments_of_a_run(way: str, given: dict[str, Any], words: list[str]) -> None:
    program = scaled.compile(target="sm_89", schedule=ROWS)
    refused("call/argument", *words, call=lambda: getattr(program, way)(**{**GIVEN, **given}))


def test_numbers_of_other_libraries_are_numbers() -> None:
    program = scaled.compile(target="sm_89", schedule=ROWS)
    for scale, n in [(np.float32(0.5), np.int64(3)), (np.array(0.5), np.array(3)), (np.float64(0.5), 3), (0.5, -(2**31))]:
        got = program.interpret(**{**GIVEN, "scale": scale, "n": n})["Y"]
        np.testing.assert_allclose(got, 0.5 + np.arange(20) + int(n))
    assert number("x", fc.f32, (), float("inf")) == float("inf") and number("x", fc.f32, (), 2) == 2.0


def test_calls_know_their_arguments() -> None:
    program = scaled.compile(target="sm_89", schedule=ROWS)
    x = GIVEN["X"]
    refused("call/argument", "no parameter `scal`", "did you mean scale?", call=lambda: program(x, x, x, scal=1.0, n=3))
    refused("call/argument", "given twice", call=lambda: program(x, x, x, 1.0, 3, scale=1.0))
    refused("call/argument", "takes 5 arguments", call=lambda: program(x, x, x, 1.0, 3, 4))
    refused("call/argument", "no parameter `scal`", "did you mean scale?", call=lambda: scaled(x, x, x, scal=1.0, n=3))
    refused("call/argument", "given twice", call=lambda: scaled(x, x, x, 1.0, 3, X=x))
    refused("call/argument", "takes 5 arguments", call=lambda: scaled(x, x, x, 1.0, 3, 4))


def test_what_a_text_cannot_take() -> None:
    program = scaled.compile(target="sm_89", schedule=ROWS)
    refused("compile/schedule", "machine IR", call=lambda: fc.program_from_text(str(program.machine), schedule=SCHEDULE))
    for schedule in ("tiles={BM: 16}", {"tiles": {"BM": 16}}):
        refused("compile/schedule", "Schedule", call=lambda s=schedule: scaled.compile(target="sm_89", schedule=s))
    refused("trace/usage", "a spec", call=lambda: fc.compile(lambda X: X, target="sm_89"))
    refused("trace/static", "did you mean schedule?", call=lambda: scaled.compile(target="sm_89", sched=SCHEDULE))
    for target in ("sm_98", "sm89", 89, "hopper"):
        refused("compile/unsupported", "sm_89, sm_90", call=lambda t=target: scaled.compile(target=t, schedule=ROWS))
    refused("compile/unsupported", "did you mean sm_89?", call=lambda: scaled.compile(target="sm89", schedule=ROWS))


def test_a_partly_run_grid_is_no_mistake() -> None:
    program = scaled.compile(target="sm_89", schedule=ROWS)
    check(program.machine, GIVEN, program.target, programs=[(1,)])
    got = interpret(kept_block.until("rows_start").trace(TILES), {"X": np.ones((16, 20))})
    assert list(got) == ["UNTIL"]
