"""What score functions and dropout add to each score: functions of whole tiles in the loop over tiles that no mask touches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen import masks, scores
from fcgen.attend import blocks, forward, variants
from fcgen.attend.forward import compiled
from fcgen.attend.variants import Choice, fitted, functions
from fcgen.build.compiler import target
from fcgen.errors import FcError
from fcgen.ir.core import Kernel, walk, walk_kernel
from fcgen.ir.elementwise import FNS
from fcgen.kernels.schedules import pick
from fcgen.passes import run_passes

SLOPES = np.ones(4, np.float32)


def lowered(causal: bool = False, **options: Any) -> Kernel:
    """The program in front of `place`, with the library's schedule."""
    mask = "causal_top_left" if causal else "none"
    schedule = pick("sm_90a", 128, mask=mask)
    program = compiled.__wrapped__("f16", 128, 128, mask, False, "sm_90a", schedule, True, check=False, functions=functions(**options))
    return run_passes(getattr(program, "first", program).tile, schedule, target("sm_90a"), stop_after="order")


def work(causal: bool = False, loop: int = -1, **options: Any) -> Counter[str]:
    """Of a loop (the last one is that without a mask): functions of tiles with the shape of the scores."""
    kernel = lowered(causal, **options)
    shape = next(op.result.type.shape for op in walk_kernel(kernel) if op.kind == "dot")
    body = [op for op in walk_kernel(kernel) if op.kind == "for" and any(o.kind == "dot" for o in walk(op.regions[0]))][loop].regions[0]
    return Counter(op.kind for op in walk(body) if op.kind in FNS or op.kind in ("cast", "select")
                   for r in op.results if r.type.shape == shape)


def more(causal: bool = False, loop: int = -1, **options: Any) -> dict[str, int]:
    """Than the plain kernel has."""
    return dict(work(causal, loop, **options) - work(causal, loop))


def test_a_cap_is_a_factor_of_no_element() -> None:
    """Known to be positive, it moves behind the maximum and into the exponents."""
    assert more(score=scores.soft_cap(20.0)) == {"mul": 1, "tanh_approx": 1}


def test_a_distance_takes_no_sign_where_its_sign_is_known() -> None:
    """In whole tiles, and in those that a mask goes through: a score of a key that comes behind its row counts nowhere."""
    for loop in (-1, 0):
        assert more(True, loop, score=scores.alibi(SLOPES)) == {"sub": 1, "cast": 1, "mul": 1}


def test_where_a_tensor_ends_is_asked_once_for_a_key() -> None:
    """Not for each element, where numbers of keys are compared with limits anyway."""
    assert more(mask=masks.neighbourhood((32, 32), 3)) == {"gt": 2, "lt": 2, "and": 3, "select": 1}


def test_programs_that_share_a_bias_run_together() -> None:
    """Batches read the same tiles of it, heads and rows other ones."""
    axes = lambda **options: [lowered(**options).grid[a].name for a in lowered(**options).order]
    assert axes(score=scores.bias(np.zeros((1, 4, 64, 64), np.float16)))[0] == "b"
    assert axes(score=scores.bias(np.zeros((2, 1, 64, 64), np.float16)))[0] == "h"
    assert axes() == axes(score=scores.bias(np.zeros((4, 1, 64), np.float16))) == ["rows_tile", "h", "b"]


def test_tiles_outside_of_a_neighbourhood_are_left_out() -> None:
    """Rows and keys meet in quotients by a number that is known when the kernel runs: no part of the mask is found to have no bounds."""
    for shape, radius in (((32, 32), 3), ((8, 8, 8), (1, 2, 3))):
        told = dict(lowered(mask=masks.neighbourhood(shape, radius)).meta.get("remarks", ()))
        assert "live" not in told


def test_lists_are_for_masks_that_leave_gaps() -> None:
    """Of two conditions that both end at some key, or begin at one, a loop needs no list; nor between two ranges, over which it jumps."""
    everywhere = lambda b, h, i, j: (j // 64) % 4 == 0
    for mask, gaps in ((masks.prefix(1000) | masks.causal(), False), (masks.prefix(64) | masks.window(100, 0), False),
                       (masks.prefix(64) | masks.window(100, 0) | masks.window(-1000, 1100), True),
                       (masks.causal() & (masks.window(100, None) | everywhere), True), (masks.neighbourhood((32, 32), 3), False)):
        assert reads(mask).holes == gaps


def test_masks_that_leave_out_keys_in_front_take_other_tiles() -> None:
    for mask, front in ((masks.prefix(1000) | masks.causal(), False), (masks.window(100, 0), True), (masks.padding(900), False),
                        (masks.window(100, None), True), (masks.prefix(64) | masks.window(100, 0), True), (masks.neighbourhood((32, 32), 3), True)):
        assert reads(mask).front == front


def reads(mask: Any) -> blocks.Reads:
    return blocks._reads_of(functions(mask=mask), "sm_90a", (128, 128), None)


def test_what_smaller_tiles_refuse_the_table_does_without() -> None:
    """Odd tiles are passed over before they are lowered: that their order has no effect is told by those that are tried after them."""
    wide = pick("sm_90a", 512)
    table = np.zeros((2, 16, 16), np.float16)
    given = functions(score=lambda s, b, h, i, j: s + table[h, i, j].to(fc.f32))
    make = lambda c: compiled.__wrapped__("f16", 512, 512, "none", False, *c, False, given)
    program = fitted(Choice("sm_90a", replace(wide, l2=32), True, None, ""), given, False, make, lambda: pytest.fail("the model is asked"))
    chosen = getattr(program, "first", program).schedule
    assert (dict(chosen.tiles)["BLOCK_N"], chosen.l2) == (64, 0)


def test_scores_are_masked_under_a_branch_where_no_sign_hangs_on_it() -> None:
    """Where whole tiles know the sign of a distance and the others do not, they have a loop of their own. So they have where warpgroups take
    turns: if positions enter the arithmetic, and no special function."""
    schedule = pick("sm_90a", 64, mask="causal_top_left")
    squared = lambda s, b, h, i, j: (lambda d: s - d * d)(abs(i - j).to(fc.f32))  # of two readers
    for score, split, turns in ((scores.alibi(SLOPES), "loops", True), (squared, "loops", True), (scores.soft_cap(9.0), "branch", False),
                                (scores.temperature(SLOPES), "branch", False)):
        given = functions(score=score)
        make = lambda c, given=given: compiled.__wrapped__("f16", 64, 64, "causal_top_left", False, *c, False, given)
        program = fitted(Choice("sm_90a", schedule, True, None, ""), given, False, make, lambda: schedule)
        chosen = getattr(program, "first", program).schedule
        assert (chosen.split, chosen.tokens) == (split, turns)


def test_a_schedule_without_registers_gives_way_to_a_smaller_one() -> None:
    """Also where a pass refuses it (D = 512 under a soft cap, ALiBi, a table and documents: 240 live registers of 232)."""
    given, tried = functions(score=scores.soft_cap(9.0)), []

    def make(choice: Choice) -> Any:
        tried.append(choice.schedule)
        if len(tried) < 3:
            raise FcError("compile/budget", "the fragments do not fit the registers of a thread")
        return compiled.__wrapped__("f16", 64, 64, "none", False, *choice, False, given)

    first = pick("sm_90a", 64, mask="none")
    program = fitted(Choice("sm_90a", first, True, None, ""), given, False, make, lambda: first)
    assert getattr(program, "first", program).schedule == tried[-1] != first


def test_numbers_of_keys_are_tiles_that_are_loaded() -> None:
    """As keys are, ahead of their use, and only where a mask is asked; those that do not begin on 16 bytes are read one by one."""
    ids = np.zeros(8192 + 4, np.int32)
    first = -(ids.__array_interface__["data"][0] // 4) % 4
    for start, kind in ((first, "load"), (first + 1, "gather")):
        kernel = lowered(mask=masks.documents(ids[start:start + 8192]))
        loop = next(op for op in walk_kernel(kernel) if op.kind == "for")
        rows = [o.kind for o in walk(loop.regions[0]) if o.results and o.result.type.shape == (loop["tile"],) and o.kind in ("load", "gather")]
        assert set(rows) == {kind}


def test_functions_of_one_text_that_hold_other_functions_have_schedules_of_their_own(monkeypatch: Any) -> None:
    """A wrapper's text says nothing of what it wraps. (Each interface that takes another library's functions wraps them all alike.)"""
    monkeypatch.setattr(variants, "_kept", {})
    monkeypatch.setattr(variants, "_fits", lambda program: bool(program.machine))
    wrapped = lambda f: functions(mask=lambda b, h, i, j: f(i, j))
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, math="wgmma", copy="tma", stages=4, epilogue="tma", late="acc", vote=True, l2=32)
    choice = Choice("sm_90a", schedule, True, 2.0, "exact")
    facts = "f16", 16, 16, "none", False
    found = {}
    for name, f in (("causal", lambda i, j: i >= j), ("rows", lambda i, j: i < 9), ("causal again", lambda i, j: i >= j)):
        given = wrapped(f)
        program, _, _ = forward._family(facts, choice, given, None).find(given.given())
        assert program.machine
        found[name] = program
    assert found["causal"].schedule.l2 and not found["rows"].schedule.l2  # which asks for work that differs along an axis
    assert found["causal again"] is found["causal"]
    assert len(variants._kept) == 1
