"""Adds that have turns: one order whatever comes first, kept by the thread that sends; what is wrong about them is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.compiler import target
from fcgen.ir.covers import covered
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel
from fcgen.sim.machine import simulate
from fcgen.sim.trial import run_trials


@fc.kernel
def summed(X: f16[M, D], Y: f16[N, D], Out: "inout f32[M, D]", Turns: "inout i32[M]", *, turn=lambda n, tiles: n):
    (cols,) = fc.grid(fc.tile(Y.N, "BLOCK_N"))
    y = fc.load(Y[cols])
    for rows in fc.loop(fc.tile(X.M, "BLOCK_M")):
        s = fc.dot(fc.load(X[rows]), y.T)
        n = turn(cols.start // cols.size, (Y.N + cols.size - 1) // cols.size)
        fc.atomic_add(Out[rows], fc.dot(s.to(fc.f16), y), turn=(Turns[rows.start], n))


SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, math="wgmma", copy="tma", epilogue="tma", stages=2, sender=True)


def arguments(m=160, n=192):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((s, 64)).astype(np.float16) for s in (m, n))
    return {"X": x, "Y": y, "Out": np.zeros((m, 64), np.float32), "Turns": np.zeros(m, np.int32)}


def machine(edit):
    """The kernel with its text changed, by `edit` of its lines."""
    lines = print_kernel(summed.compile(target="sm_90a", schedule=SCHEDULE, D=64).machine).splitlines()
    changed = edit(lines)
    assert changed != lines
    return parse_kernel("\n".join(changed))


def without(kind):
    return lambda lines: [x for x in lines if f" {kind} " not in x]


def later(lines):
    """Turns are awaited behind the stores."""
    out = []
    for x in lines:
        if " await_turn " in x:
            held = x
        elif " end_turn " in x:
            out += [held, x]
        else:
            out.append(x)
    return out


def test_a_sum_in_turn_is_right_in_both_machines():
    """And every tile of rows has had three turns."""
    program, given = summed.compile(target="sm_90a", schedule=SCHEDULE, D=64), arguments()
    x, y = (given[n].astype(float) for n in ("X", "Y"))
    for got in (program.interpret(**given), program.simulate(**given)):
        np.testing.assert_allclose(got["Out"], x @ y.T @ y, atol=0.5)
        assert got["Turns"].tolist() == [3 if at % 64 == 0 else 0 for at in range(160)]


@pytest.mark.parametrize("edit, code", [(without("await_turn"), "sim/protocol"), (without("end_turn"), "sim/deadlock"), (later, "sim/protocol")])
def test_turns_that_are_broken_are_reported(edit, code):
    kernel = machine(edit)
    found = simulate(kernel, arguments(), target("sm_90a"))
    assert code in {r.code for r in found.reports}


def test_programs_begin_in_the_order_of_their_turns():
    """The last tile of columns has the first turn, and begins first. What is no order is refused: who waits for a program that has not begun
    may wait for ever."""
    program, given = summed.compile(target="sm_90a", schedule=SCHEDULE, D=64, turn=lambda n, tiles: tiles - 1 - n), arguments()
    assert program.machine.grid[0].reverse and program.simulate(**given)["Turns"][64] == 3
    with pytest.raises(fc.FcError, match="along cols_tile cannot be told") as caught:
        summed.compile(target="sm_90a", schedule=SCHEDULE, D=64, turn=lambda n, tiles: n + 1 - n % 2 * 2).machine  # noqa: B018
    assert caught.value.code == "compile/unsupported"


@pytest.mark.parametrize("turn", [lambda n, tiles: fc.where(n < 2, n + 1, n - 2), lambda n, tiles: n // -1 + tiles - 1])
def test_an_order_that_only_looks_like_one_is_refused(turn):
    """A condition that follows from the place may swap halves, and a divisor below zero turns the order around."""
    with pytest.raises(fc.FcError, match="along cols_tile cannot be told") as caught:
        summed.compile(target="sm_90a", schedule=SCHEDULE, D=64, turn=turn).machine  # noqa: B018
    assert caught.value.code == "compile/unsupported"


@fc.kernel
def elsewhere(X: f16[M, D], Y: f16[N, D], Out: "inout f32[M, D]", Turns: "inout i32[P]", *, by_loop=False):
    (cols,) = fc.grid(fc.tile(Y.N, "BLOCK_N"))
    y, n = fc.load(Y[cols]), fc.var(cols.start // cols.size)
    if by_loop:
        n = fc.var(0)
        for at in fc.loop(2):
            n <<= n + fc.where(at < cols.start // cols.size, 1, 0)
    for rows in fc.loop(fc.tile(X.M, "BLOCK_M")):
        s = fc.dot(fc.load(X[rows]), y.T)
        fc.atomic_add(Out[rows], fc.dot(s.to(fc.f16), y), turn=(Turns[rows.start + 32], n + 0))


def test_a_number_that_a_loop_finds_is_no_order():
    with pytest.raises(fc.FcError, match="along cols_tile cannot be told"):
        elsewhere.compile(target="sm_90a", schedule=SCHEDULE, D=64, by_loop=True).machine  # noqa: B018


@pytest.mark.parametrize("turn, words", [(lambda n, tiles: 2 * n, "turn 2 at Turns.* never comes: nobody has turn 1"),
                                         (lambda n, tiles: fc.minimum(n, 1), "turn 1 at Turns.* is over before"),
                                         (lambda n, tiles: n + 1, "nobody has turn 0")])
def test_the_interpreter_finds_turns_that_never_come(turn, words):
    """On any target, in whatever order it runs programs."""
    program = summed.compile(target="sm_90a", schedule=SCHEDULE, D=64, turn=turn)
    with pytest.raises(fc.FcError, match=words) as caught:
        program.interpret(**arguments())
    assert caught.value.code == "sim/deadlock"


def test_places_of_turns_are_asked_for_as_all_others():
    """A launch would wait for what lies behind the tensor. The first position of a tile needs no check."""
    program = elsewhere.compile(target="sm_90a", schedule=SCHEDULE, D=64)
    assert covered(program.tile) and not covered(summed.compile(target="sm_90a", schedule=SCHEDULE, D=64).tile)
    program.interpret(**arguments() | {"Turns": np.zeros(161, np.int32)})
    with pytest.raises(fc.FcError, match="Turns") as caught:
        program.interpret(**arguments() | {"Turns": np.zeros(160, np.int32)})
    assert caught.value.code == "call/argument"


def test_the_interpreter_finds_numbers_that_nobody_cleared():
    program = elsewhere.compile(target="sm_90a", schedule=SCHEDULE, D=64)
    with pytest.raises(fc.FcError, match=r"turn 0 at Turns.* never comes: nobody has turn 3") as caught:
        program.interpret(**arguments() | {"Turns": np.ones(192, np.int32)})
    assert caught.value.code == "sim/deadlock"


def test_trials_begin_where_nobody_has_had_a_turn():
    program = summed.compile(target="sm_90a", schedule=SCHEDULE, D=64)
    assert len(run_trials(program.machine, program.target).ran) > 9


@pytest.mark.parametrize("schedule, arch", [(replace(SCHEDULE, sender=False), "sm_90a"), (replace(SCHEDULE, sender=False, epilogue="direct"), "sm_90a"),
                                            (fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4), "sm_89")])
def test_turns_take_a_thread_that_sends(schedule, arch):
    with pytest.raises(fc.FcError, match="have turns") as caught:
        summed.compile(target=arch, schedule=schedule, D=64).machine  # noqa: B018
    assert caught.value.code == "compile/unsupported" and "sender=True" in str(caught.value)


@pytest.mark.parametrize("turn, words", [(lambda T, rows: (T[rows], 0), "one element"), (lambda T, rows: (3, 0), "one element"),
                                         (lambda T, rows: (T[rows.start], rows.index), "whole number")])
def test_what_is_no_turn_is_told(turn, words):
    @fc.kernel
    def spec(X: f32[M, 64], Out: "inout f32[M, 64]", T: "inout i32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK"))
        fc.atomic_add(Out[rows], fc.load(X[rows]), turn=turn(T, rows))

    with pytest.raises(fc.FcError, match=words):
        spec.trace({"BLOCK": 16})
