"""Trials: what is drawn, what of a kernel has run, and what a kernel's outputs are compared with."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.compiler import from_text
from fcgen.errors import FcError
from fcgen.ir.core import walk_kernel
from fcgen.kernels import hopper_schedules
from fcgen.kernels.attention import attention
from fcgen.sim.coverage import Coverage, never_ran, never_taken, one_way, short_rings
from fcgen.sim.draw import Draws, Trial, meaning
from fcgen.sim.machine import simulate
from fcgen.sim.trial import Oracle, run_trials

SMALL = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, stages=2)


@fc.kernel
def windowed(Q: "T[B, H, M, D]", K: "T[B, G, N, D]", V: "T[B, G, N, D]", O: "out T[B, H, M, D]", *, window: "i32"):  # type: ignore[name-defined]
    """Every row adds up the values of the `window` columns before it, weighted."""
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))
    g = h // (Q.H // K.G)
    q, acc = fc.load(Q[b, h, rows]), fc.var(fc.zeros(rows, V.D))
    live = lambda cols: cols.valid & (cols.index <= rows.index) & (rows.index - cols.index < window)
    for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), live=live):
        s = fc.where(live(cols), fc.dot(q, fc.load(K[b, g, cols]).T), 0.0)
        acc <<= acc + fc.dot(s.to(V.dtype), fc.load(V[b, g, cols]))
    fc.store(O[b, h, rows], acc.to(O.dtype))


@fc.kernel
def picked(X: "f16[P, N]", at: "i32[M]", length: "i32[M]", Y: "out f16[M, N]"):  # type: ignore
    """A row that another tensor chooses, cut off where a third one says."""
    row, cols = fc.grid(Y.M, fc.tile(Y.N, "BLOCK_N"))
    x = fc.load(X[fc.load(at[row]), cols])
    fc.store(Y[row, cols], fc.where(cols.index < fc.load(length[row]), x, 0.0))


@pytest.fixture(scope="module")
def program() -> Any:
    return windowed.compile(target="sm_89", schedule=SMALL, T=fc.f16, D=32)


def lines_without(text: str, pattern: str, which: int = 0) -> str:
    lines = text.splitlines(keepends=True)
    at = [n for n, line in enumerate(lines) if re.search(pattern, line)][which]
    return "".join(lines[:at] + lines[at + 1:])


# ---- what is drawn -------------------------------------------------------------------------------------------------------


def test_sizes_differ_and_go_around_every_ring(program: Any) -> None:
    draws = Draws(program.machine, {}, program.tile, 3)
    planned = [draws.trial(n) for n in range(30)]
    gap = {(t.sizes["N"] - t.sizes["M"]) % 32 for t in planned}
    assert len(gap) > 10 and 0 < sum(t.sizes["M"] > t.sizes["N"] for t in planned) < len(planned)
    assert {0, 1} < {t.sizes["N"] % 32 for t in planned} and any(t.sizes["M"] % 64 in range(1, 33) for t in planned)
    assert any(t.sizes["H"] > t.sizes["G"] > 0 for t in planned) and all(t.sizes["H"] % t.sizes["G"] == 0 for t in planned)
    assert max(-(-t.sizes["N"] // 32) for t in planned) >= 2 * 2 + 1 and {t.kind for t in planned} > {"loud", "normal"}
    assert {t.seed for t in planned} > {0, 1} and planned[:2] == [draws.trial(0), draws.trial(1)]
    assert sorted({t.numbers["window"] for t in planned})[0] < 32 < max(t.numbers["window"] for t in planned)


def test_among_the_first_trials_are_more_heads_than_a_tile_has_elements_and_one_row_of_whole_tiles(program: Any) -> None:
    """A number of tiles that is computed from the wrong size, and a copy that is left out where nothing is masked, show only there."""
    draws = Draws(program.machine, {}, program.tile, 3)
    planned = [draws.trial(n).sizes for n in range(9)]
    assert any(t["H"] // t["G"] > 2 * 64 for t in planned) and all(t["H"] % t["G"] == 0 for t in planned)
    assert any(t["M"] == 1 and t["N"] % 32 == 0 for t in planned)
    assert any(t["M"] > 2 * 64 and t["N"] > 3 * 32 for t in planned)  # each part of a loop that is split takes several steps


def test_rows_are_huge_and_small_by_turns_and_sums_change_their_sign(program: Any) -> None:
    """What a rare branch of one step decides for the next shows where steps differ."""
    draws = Draws(program.machine, {}, program.tile, 3)
    drawn = {t.kind: draws.inputs(t, n) for n in range(9) for t in [draws.trial(n)]}
    rows = np.abs(drawn["mixed"]["K"].astype(np.float32)).max(-1)[0, 0]
    assert (rows > 1e4).any() and (rows < 10).any()
    q, k = (drawn["drifting"][n].astype(np.float32)[0, 0] for n in "QK")
    tops = [(q @ tile.T).max(1) for tile in np.array_split(k, 4)]
    assert any(((a < -5) & (b > a + 5)).any() for a in tops for b in tops)
    level = drawn["level"]
    assert np.ptp(level["K"].astype(np.float32), axis=-2).max() == 0 < np.ptp(level["V"].astype(np.float32), axis=-2).max()


def test_a_count_of_tiles_from_the_wrong_size_is_reported(program: Any) -> None:
    """(N + 31) // (H // G): as good with few heads, too little with many."""
    heads = re.search(r"(%\w+) = floordiv %H, %G", str(program.machine))
    tiles = re.search(r"= floordiv (%\w+), (%\w+) : i32", str(program.machine).split("%N, ", 1)[1])
    assert heads is not None and tiles is not None
    text = str(program.machine).replace(tiles[0], tiles[0].replace(tiles[2] + " ", heads[1] + " "))
    assert text != str(program.machine)
    with pytest.raises(FcError) as e:
        run_trials(from_text(text, "edited.fc"), program.target, against=Oracle(program.tile, program.target))
    assert e.value.code in ("sim/value", "sim/stale", "sim/bounds")


def test_blocks_that_take_several_tiles_take_as_many_as_their_rings_have_slots_twice_over() -> None:
    row = hopper_schedules.ROWS[2]
    machine = attention.compile(LSE=None, target="sm_90a", schedule=row.schedule, T=fc.f16, D=64, E=64,
                                     lazy=hopper_schedules.LAZY, sums=row.sums).machine
    planned = [Draws(machine, {}, machine, 3).trial(n) for n in range(12)]
    assert any(t.blocks == 1 and t.total >= 5 for t in planned) and {t.blocks for t in planned} == {1, 2, 3}
    assert {min(t.seed, 2) for t in planned if t.blocks == 1} == {0, 1, 2}


def test_numbers_that_are_positions_are_drawn_inside_and_others_are_not() -> None:
    p = picked.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_N": 64}))
    assert meaning(p.tile).inside == {"at": {"P"}} and meaning(p.machine).inside == {"at": {"P"}}
    draws = Draws(p.machine, {}, p.tile, 2)
    drawn = [(t, draws.inputs(t, n)) for n in range(12) for t in [draws.trial(n)]]
    assert all(x["at"].max(initial=0) < t.sizes["P"] for t, x in drawn) and max(x["length"].max(initial=0) for _, x in drawn) > 64
    assert run_trials(p.machine, p.target, against=Oracle(p.tile, p.target)).complete()


def test_sizes_that_are_given_stay(program: Any) -> None:
    draws = Draws(program.machine, {"M": 70, "N": 90, "H": 3}, program.tile, 2)
    assert all((t.sizes["M"], t.sizes["N"], t.sizes["H"]) == (70, 90, 3) for t in map(draws.trial, range(12)))


# ---- what has run --------------------------------------------------------------------------------------------------------


def test_what_did_not_run_is_said(program: Any) -> None:
    seen, draws = Coverage(), Draws(program.machine, {"M": 5, "N": 5}, program.tile, 2)
    trial = draws.trial(0)
    simulate(program.machine, draws.inputs(trial, 0), program.target, coverage=seen)
    assert never_ran(program.machine, seen) and one_way(program.machine, seen) and short_rings(program.machine, seen)
    assert seen.ran < set(walk_kernel(program.machine))
    tried = run_trials(program.machine, program.target, {"M": 5, "N": 5})
    assert any(line.startswith("never ran: ") and "test_trial.py:" in line for line in tried.gaps()) and not tried.complete()
    assert any(line.startswith("gaps ") for line in tried.lines())


def test_a_window_of_several_tiles_is_among_the_numbers(program: Any) -> None:
    """A dropped wait shows only where a window reaches over more tiles than one."""
    broken = from_text(lines_without(str(program.machine), r"^    wait_group", 1), "edited.fc")
    with pytest.raises(FcError, match="copy is in flight"):
        run_trials(broken, program.target)
    arguments = {n: np.zeros((1, 1, 100, 32), np.float16) for n in "QKV"}
    assert not simulate(broken, {**arguments, "window": 1}, program.target).reports


def test_a_loop_that_goes_on_for_too_long_is_reported(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcgen.sim.trial.ENDLESS", 100)
    with pytest.raises(FcError, match="has not ended after") as e:
        run_trials(program.machine, program.target)
    assert e.value.code == "sim/deadlock"


def test_a_grid_of_many_programs_is_no_endless_loop(program: Any) -> None:
    inputs = {n: np.zeros((1, 4, 64, 32), np.float16) for n in "QKV"} | {"window": 1}
    whole = simulate(program.machine, inputs, program.target).steps
    assert not simulate(program.machine, inputs, program.target, limit=whole // 3).reports
    assert simulate(program.machine, inputs, program.target, limit=whole // 100, stop=True).reports


def test_a_live_that_leaves_out_what_counts_is_reported_with_a_hint() -> None:
    @fc.kernel
    def sums(X: "f32[M, N]", Y: "out f32[M]"):  # type: ignore
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        total = fc.var(fc.zeros(rows))
        for cols in fc.loop(fc.tile(X.N, "BN"), live=lambda cols: cols.index <= rows.index):
            total <<= total + fc.sum(fc.load(X[rows, cols]), axis=cols)
        fc.store(Y[rows], total)

    program = sums.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16, "BN": 16}))
    with pytest.raises(FcError, match="`live` masks nothing") as e:
        run_trials(program.machine, program.target, against=Oracle(program.tile, program.target))
    assert e.value.code == "sim/value" and "fc.store(Y[rows], total)" in str(e.value)


# ---- what it is compared with ----------------------------------------------------------------------------------------------


EDITS = {
    "another bound": (lambda t: re.sub(r"= gt (%\w+, %\w+ : frag i1\[64,32\])", r"= ge \1", t), "sim/value"),
    "another position": (lambda t: re.sub(r"(cp_async %V, %b, %\w+, )%\w+,", r"\1%rows_tile,", t, count=1), "sim/value"),
    "a store left out": (lambda t: lines_without(t, r"^ *st_global %O"), "sim/unwritten"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_wrong_numbers_and_missing_ones_are_reported(edit: str, program: Any) -> None:
    change, code = EDITS[edit]
    text = str(program.machine)
    edited = change(text)
    assert edited != text
    machine = from_text(edited, "edited.fc")
    for says in (program.tile, program.machine):
        with pytest.raises(FcError) as e:
            run_trials(machine, program.target, against=Oracle(says, program.target))
        assert e.value.code == code and "in the run with " in str(e.value)
    if code == "sim/unwritten":  # seen without anything to compare with
        with pytest.raises(FcError, match=r"nothing writes \d+ of the \d+ elements of O"):
            run_trials(machine, program.target)
    else:
        assert run_trials(machine, program.target, {"M": 70, "N": 70}).values.startswith("not compared")


def test_rounding_is_not_a_difference(program: Any) -> None:
    """Sums in another order, of f16 that is rounded in between: as far apart as the program's own outputs if its inputs are rounded again."""
    other = windowed.compile(target="sm_89", schedule=replace(SMALL, tiles={"BLOCK_M": 64, "BLOCK_N": 64}), T=fc.f16, D=32)
    assert run_trials(other.machine, other.target, against=Oracle(program.tile, program.target)).ran


def test_a_program_with_other_arguments_is_refused(program: Any) -> None:
    other = picked.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_N": 64}))
    with pytest.raises(FcError, match="takes other arguments"):
        run_trials(program.machine, program.target, against=Oracle(other.tile, other.target))


def test_outputs_that_are_read_come_from_the_caller() -> None:
    @fc.kernel
    def total(X: "f32[M, N]", S: "inout f32[M]"):  # type: ignore
        rows, cols = fc.grid(fc.tile(X.M, "BLOCK_M"), fc.tile(X.N, "BLOCK_N"))
        fc.atomic_add(S[rows], fc.sum(fc.load(X[rows, cols]), axis=1))

    p = total.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 32}))
    assert run_trials(p.machine, p.target, against=Oracle(p.tile, p.target)).complete()
    text = str(p.machine)
    edited = from_text(re.sub(r"(combine .*lanes = \()\d+, ", r"\1", text), "edited.fc")
    assert str(edited) != text
    with pytest.raises(FcError, match="computes something else"):
        run_trials(edited, p.target, against=Oracle(p.tile, p.target))


@pytest.mark.parametrize(("total", "blocks", "words"), [(0, 0, "0 programs in 0 blocks"), (1, 1, "1 program in 1 block"),
                                                        (2, 2, "2 programs in 2 blocks")])
def test_a_run_says_how_much_of_it_there_is(total: int, blocks: int, words: str) -> None:
    assert str(Trial({"M": 0}, {}, "normal", 0, blocks, total, True)) == f"M=0, normal: {words}"


@fc.kernel
def in_groups(X: "f32[H]", W: "f32[G]", Y: "out f32[H]", *, group: "i32"):
    g, rows = fc.grid(W.G, fc.tile(group, "BM"))
    mine = (rows + g * group).until(g * group + group)
    fc.store(Y[mine], fc.load(X[mine]) * W[g])


@pytest.mark.parametrize("compared", [False, True])
def test_sizes_that_go_with_numbers_are_made_to(compared: bool) -> None:
    """H is G * group, and no IR says so: where it is drawn larger, what no program writes is left away; where it was given, that is told."""
    p = in_groups.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}, warps=1))
    against = Oracle(p.tile, p.target) if compared else None
    tried = run_trials(p.machine, p.target, against=against)
    assert tried.complete() and any(t.sizes["H"] == t.sizes["G"] * t.numbers["group"] > 16 for t in tried.ran)
    assert run_trials(p.machine, p.target, {"H": 8, "G": 2}, fixed={"group": 4}, against=against).ran
    with pytest.raises(FcError) as e:
        run_trials(p.machine, p.target, {"H": 9, "G": 2}, fixed={"group": 4}, against=against)
    assert e.value.code == "sim/unwritten" and "H and group go together: give them both" in e.value.notes[-1]


def test_a_tail_that_no_number_explains_is_still_missed() -> None:
    @fc.kernel
    def tail(X: "f32[H]", Y: "out f32[H]", *, n: "f32"):
        (rows,) = fc.grid(fc.tile(X.H, "BM"))
        there = (rows + 0).until(X.H - 1)
        fc.store(Y[there], fc.load(X[there]) * n)

    p = tail.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}, warps=1))
    with pytest.raises(FcError) as e:
        run_trials(p.machine, p.target)
    assert e.value.code == "sim/unwritten" and not any("go together" in n for n in e.value.notes)


LOOP = """machine kernel f
param %X: tensor f32[M]
grid %i: 1
meta stage = placed
role main warps 1 {
  %0 = const {value = 0, dtype = i32} : i32
  %1 = const {value = 1, dtype = i32} : i32
  %32 = const {value = 32, dtype = i32} : i32
  %31 = const {value = 31, dtype = i32} : i32
  %n = size {dim = M} : i32
  %low = floordiv %n, %32 : i32
  %up = add %n, %31 : i32
  %high = floordiv %up, %32 : i32
  LINES
  for %from, %high (%j: i32) {
    %next = add %j, %1 : i32
    %more = lt %next, %high : i1
    if %more {
      %a = mul %next, %next : i32
      yield
    } else {
      yield
    }
    yield
  }
}
"""


@pytest.mark.parametrize(("lines", "never"), [
    ("%from = max %low, %0 : i32", True), ("%m = min %high, %low : i32\n  %from = max %m, %0 : i32", True), ("%from = min %low, %high : i32", True),
    ("%from = sub %high, %1 : i32", True), ("%from = add %low, %0 : i32", True), ("%from = max %0, %1 : i32", False),
    ("%from = sub %low, %1 : i32", False), ("%from = min %low, %1 : i32", False), ("%s = add %n, %1 : i32\n  %from = floordiv %s, %31 : i32", False)])
def test_a_branch_that_no_sizes_take_is_no_gap(lines: str, never: bool) -> None:
    kernel = from_text(LOOP.replace("LINES", lines), "f.fc")
    (branch,) = (op for op in walk_kernel(kernel) if op.kind == "if")
    assert never_taken(kernel) == (frozenset([branch]) if never else frozenset())
    seen = Coverage(ran={op for op in walk_kernel(kernel) if op.kind != "mul"}, ways={(branch, False)})
    assert (never_ran(kernel, seen) == [] and one_way(kernel, seen) == []) is never
    taken = lambda n, low: any(j + 1 < -(-n // 32) for j in range(low, -(-n // 32)))
    bounds = {"max %low, %0": lambda n: max(n // 32, 0), "sub %low, %1": lambda n: n // 32 - 1}
    for text, low in bounds.items():
        assert text not in lines or any(taken(n, low(n)) for n in range(200)) is not never
