"""The campaign of random edits, in small: every kind has a place, an edit is the same twice, and a few of each kernel family run to a verdict."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.alike import alike
from benchmarks.edits import EDITS
from benchmarks.random_edits import edited, keep, kept, program, reason, run, shipped, sound, summary
from benchmarks.same_values import only_numbers, same_values
from fcgen.build.compiler import from_text
from fcgen.errors import FcError
from fcgen.kernels.hopper_schedules import ROWS
from fcgen.sim.trial import run_trials

#: between them they have something of every kind; of the library's, one whose warpgroups take turns
TURNS = next(f"sm_90a ROWS {n}" for n, row in enumerate(ROWS) if row.schedule.tokens)
KERNELS = ("sm_90a ROWS 0", TURNS, "sm_89 wmma 0", "example gemm")


def test_every_kind_has_a_place_and_is_an_edit() -> None:
    assert len(EDITS) >= 36
    machines = {name: program(name)[0].machine for name in KERNELS}
    nowhere = [kind for kind, make in EDITS.items() if all(make(m, np.random.default_rng(5)) is None for m in machines.values())]
    assert nowhere in ([], ["cluster"], ["multicast"])  # the library's kernels have no clusters
    for kind in list(EDITS)[::8]:
        made = next(m for m in (EDITS[kind](machine, np.random.default_rng(5)) for machine in machines.values()) if m is not None)
        with contextlib.suppress(FcError):  # refused is an answer
            from_text(str(made[0]), "edited.fc")


def test_an_edit_is_a_function_of_kernel_seed_and_number() -> None:
    first, again = edited("example gemm", 3, 4), edited("example gemm", 3, 4)
    assert first is not None and again is not None
    assert first[:2] == again[:2] and str(first[2]) == str(again[2]) != str(program("example gemm")[0].machine)
    assert len({edited("example gemm", 3, n)[0] for n in range(20)}) > 10  # type: ignore[index]


@pytest.mark.parametrize("kernel", ["example gemm", "sm_90a SMALL 0"])
def test_a_few_edits_come_to_a_verdict(kernel: str) -> None:
    outcomes = [run(kernel, 11, n) for n in range(3)]
    assert {o.verdict for o in outcomes} <= {"refused", "reported", "silent", "no edit"}, outcomes
    assert all(o.code for o in outcomes if o.verdict in ("refused", "reported")) and all(o.kind in EDITS for o in outcomes)


def test_kernels_as_they_are_have_nothing_to_report() -> None:
    assert len(shipped()) > 40
    assert sound("sm_89 mma 0", 2) == sound("example softmax", 4) == []


def test_a_harmless_edit_has_a_reason_or_none() -> None:
    assert reason("double an op that orders", "main: wait_group 3 () -> gone") and reason("count", "k_full") is None


TEXT = str(program("sm_89 mma 0")[0].machine)


@pytest.mark.parametrize(("old", "new", "same"), [
    ("commit_group ", "commit_group ", True),
    ("= max %", "= max %", True),
    (r"guard = (true, false)", "guard = (true, true)", True),  # the axis is as wide as its tile
    (r"guard = (true, false)", "guard = (false, false)", False),  # the other one is not
    ("barrier ", "barrier {parts = 1} ", True),
    ("ahead = 1", "ahead = 0", False),
    ("wait_group {n = 1}", "wait_group {n = 0}", True),  # waits for more than it must
    ("wait_group {n = 0}", "wait_group {n = 1}", False),
])
def test_kernels_that_take_the_same_steps(old: str, new: str, same: bool) -> None:
    assert old in TEXT
    a, b = (from_text(t, "edited.fc") for t in (TEXT, TEXT.replace(old, new, 1)))
    assert alike(a, b, every=19) == same


def test_whole_numbers_that_are_other_do_no_harm_where_the_values_are_the_same() -> None:
    p, oracle = program("sm_89 mma 0")
    more, fewer = (re.sub(r"(%whole_to = )max (%\w+), (%\w+)", text, TEXT) for text in (r"\1min \2, \3", r"\1add \2, \2"))
    swapped = re.sub(r"sub (%\w+), (%\w+) : frag", r"sub \2, \1 : frag", TEXT, count=1)
    assert len({TEXT, more, fewer, swapped}) == 4
    assert not only_numbers(p.machine, from_text(swapped, "edited.fc"))
    assert all(only_numbers(p.machine, from_text(text, "edited.fc")) for text in (more, fewer))
    assert same_values(p.machine, from_text(more, "edited.fc"), p.target, oracle, 9, 2)  # more tiles are masked
    with pytest.raises(FcError):
        same_values(p.machine, from_text(fewer, "edited.fc"), p.target, oracle, 5, 12)


def test_results_go_on_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    outcome = {"kernel": "k", "number": 1, "kind": "grid", "site": "", "verdict": "silent", "code": "", "seconds": 1.5, "why": ""}
    keep(path, outcome)
    with path.open("a") as f:
        f.write('{"kernel": "k", "num')
    keep(path, {**outcome, "number": 2, "verdict": "reported"})
    assert [o["number"] for o in kept(path)] == [1, 2]
    lines = summary(kept(path))
    assert {"edits             2", "reported          1", "silent, unjudged  1", "traceback         0", "seconds           3"} <= set(lines)
    assert lines[-1] == "  silent: k:1 grid | "


@pytest.mark.parametrize(("kernel", "old", "new", "trial"), [
    ("sm_90a CHUNK 0", "= if %any_far.4 {", "= if %any_moved {", 4),  # far rows that this tile does not move
    ("sm_90a FINE 3", r"yield (%m.2, %acc.3), %\d+, %any_far.3", r"yield \1, %m.2, %any_far.3", 12),  # where no row of a warp is moved
    ("sm_90a FINE 2", "value = 63,", "value = 64,", 8),  # a tile more than are copied, where 128 rows end with it
    ("sm_80 mma 6", "= floordiv %H, %G", "= floordiv %G, %H", 11),  # several heads in several groups
    ("sm_89 mma 4", "yield %78, %72, %m.4", "yield %79, %72, %m.4", 2),  # rows whose sums are a little below zero
    ("example softmax", "yield %top, %l", "yield %base, %l", 2),  # a row that begins with minus infinities
])
def test_edits_that_rare_inputs_show_are_reported(kernel: str, old: str, new: str, trial: int) -> None:
    p, oracle = program(kernel)
    text = re.sub(old, new, str(p.machine), count=1) if "\\" in old else str(p.machine).replace(old, new, 1)
    assert text != str(p.machine)
    run_trials(p.machine, p.target, seeds=3, against=oracle, first=trial, most=1)
    with pytest.raises(FcError):
        run_trials(from_text(text, "edited.fc"), p.target, seeds=3, against=oracle, first=trial, most=1)
