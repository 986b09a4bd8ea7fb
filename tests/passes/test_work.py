"""Which programs of a grid have the most work, and so run first."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import fcgen as fc
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.kernels.backward import backward
from fcgen.passes.facts.work import works

HOPPER = {"target": "sm_90a", "check": False, "T": fc.f16, "D": 64, "E": 64}
SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 128}, warps=8, math="wgmma", copy="tma", epilogue="tma", split="branch")


def ordered(spec, mask, split="branch", **more):
    facts = {**VARIANTS["plain"], "lazy": 0.0, "sums": "rounded"} if spec is attention else {}
    program = spec.compile(schedule=replace(SCHEDULE, split=split), mask=mask, **facts, **HOPPER, **more)
    return program.stages()["order"]


@pytest.mark.parametrize("split", ["branch", "loops"])
@pytest.mark.parametrize("spec, axis, mask, grows", [
    (attention, 2, "none", 0), (attention, 2, "causal_top_left", 1), (attention, 2, "causal_bottom_right", 1), (attention, 1, "causal_top_left", 0),
    (backward, 2, "none", 0), (backward, 2, "causal_top_left", -1), (backward, 2, "causal_bottom_right", -1),
    (backward, 0, "causal_top_left", 0)])
def test_work_along_an_axis(spec, axis, mask, grows, split):
    """Of copies of a loop, where the first begins and the last ends."""
    kernel = ordered(spec, mask, split)
    assert works(kernel, axis) == grows and kernel.grid[axis].reverse == (grows > 0)


def test_the_longest_tiles_of_all_heads_run_first():
    """One sequence of 8 heads of keys: one head's tiles after the other's kept 0.63 of 132 multiprocessors at work (the last head's longest
    tiles began when all others had ended)."""
    text = backward.compile(schedule=replace(SCHEDULE, l2=32), mask="causal_top_left", grouped=True, **HOPPER).cuda
    assert "cols_tile = floor_div(in_group, members)" in text and "cols_tile_tiles - 1 -" not in text


def test_what_a_loop_adds_to_counts_among_what_lies_in_l2():
    """Q, dO and the sums of dQ: 40 MiB have two heads of 16k rows of 128 (H200, D=128, 16k: three heads side by side sent additions to memory)."""
    text = backward.compile(schedule=replace(SCHEDULE, l2=40), mask="causal_top_left", **HOPPER).cuda
    assert re.search(r"sum = M_times_\d+ \+ M_times_\d+ \+ M_times_4 \+ M_times_4 \+ \d+ \* M;", text)
