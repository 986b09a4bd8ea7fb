"""What stands between a load and its product, and what is added beside it, is in flight while the products before it run."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from benchmarks import prologue_specs as prologues
from fcgen.ir.core import walk

NAMES = ["rotary", "normed", "quantised", "scaled", "biased", "backward", "paged", "gathered"]
ADA = fc.Schedule(tiles={"BLOCK_M": 64})
HOPPER = replace(ADA, math="wgmma", copy="tma")


#: all of what follows with FCGEN_ALL=1; else each spec on each target, each number of stages and each way a few times
EVERY = os.environ.get("FCGEN_ALL") == "1"
CASES = [(n, t, s) for i, n in enumerate(NAMES) for k, t in enumerate(("sm_89", "sm_90a")) for s in (1, 2, 3) if EVERY or s == 1 + (i + k) % 3]
STEP = {"backward": 64, "paged": 1}  # positions per iteration of a loop, where they are not 16


def compiled(name, target, d=32, n=16, **more):
    schedule = replace(ADA if target == "sm_89" else HOPPER, **more)
    binding = {"T": fc.f16, "D": d, "E": d}
    tiles = {"BLOCK_N": n, **dict(schedule.tiles)}
    if name == "quantised":
        binding, tiles = {"T": fc.f16}, {**tiles, "BLOCK_K": n, "BLOCK_N": 48}
    if name == "backward":
        tiles = {"BLOCK_M": max(n, 64), "BLOCK_N": 64}
    if name in ("plain", "rotary", "rotated"):
        binding["D"] = d // 2
    if name == "paged":
        binding["N"] = tiles.pop("BLOCK_N")
    return getattr(prologues, name).compile(target=target, schedule=replace(schedule, tiles=tuple(sorted(tiles.items()))), **binding)


def agrees(p, name, length, seed=0, atol=6e-3):
    held, exact = prologues.stored(p, prologues.draw(name, length, seed=seed))
    want = prologues.reference(name, exact)
    for got in (p.interpret(**held), p.simulate(seed=seed, **held)):
        for key in want:
            size = max(1.0, np.abs(want[key]).max(initial=0))
            np.testing.assert_allclose(got[key].astype(np.float64) / size, want[key] / size, atol=atol, err_msg=key)


@pytest.mark.parametrize(("name", "target", "stages"), CASES)
def test_specs_with_prologues_are_right_around_the_depth_of_their_rings(name, target, stages):
    p = compiled(name, target, stages=stages)
    for trips in range(1, 2 * stages + 2):
        step = STEP.get(name, 16)
        agrees(p, name, step * trips - 5 * (trips % 2) * (step > 1), seed=trips)


ATTENTION = ["rotary", "normed", "scaled", "biased", "paged", "gathered"]
WAYS = {"late": {"late": "acc"}, "dynamic": {"late": "acc", "persistent": "dynamic", "hints": True}, "two_groups": {"warps": 8, "late": "acc"},
        "tma": {"epilogue": "tma", "persistent": "static"}, "one_loop": {"split": "none", "late": "acc", "stages": 1},
        "branch": {"split": "branch", "own_rows": False}, "narrow": {"warps": 8, "reuse_frags": False}}


@pytest.mark.parametrize(("name", "way"), [(n, w) for i, n in enumerate(ATTENTION) for k, w in enumerate(WAYS) if EVERY or k % 5 == i % 5])
def test_other_fields_of_a_schedule_go_with_it(name, way):
    more = dict(WAYS[way])
    if way == "branch" and name == "paged":
        more.pop("split")  # it has no masks
    p = compiled(name, "sm_90a", **({"tiles": {"BLOCK_M": 128}} if more.get("warps") == 8 else {}), **more)
    for trips in (1, 2, 4) if EVERY else (1, 3):
        agrees(p, name, STEP.get(name, 16) * trips - 5 * (trips % 2) * (name != "paged"), seed=trips)


# ---- what the machine program says -------------------------------------------------------------------------------------


def steady(p):
    """Ops of the loops of the role that computes, in order; regions inside included."""
    loops = [o for o in walk(p.machine.roles[-1].body) if o.kind == "for" and not o.get("unroll")]
    return [[x for x in walk(o.regions[0])] for o in loops]


RINGS = {"rotary": "xyttv", "normed": "kv", "quantised": "abz", "scaled": "kvss", "biased": "kbrv", "backward": "qglf"}


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("name", RINGS)
def test_all_that_a_loop_reads_is_copied_ahead_by_an_engine(name, target):
    p = compiled(name, target, stages=3)
    for ops in steady(p):
        assert not any(o.kind in ("ld_global", "gather") for o in ops)
        waits = [o["n"] for o in ops if o.kind == "wait_group"]
        assert waits == ([1] if target == "sm_89" else []), "one wait, which leaves the tiles after the next one in flight"
    rings = [b for b in p.machine.buffers if getattr(b.type, "dtype", None) is not None and b.type.slots == 3]
    assert sorted(b.name[0] for b in rings) == sorted(RINGS[name])


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("name, staged", [("rotary", 2), ("normed", 1), ("quantised", 1), ("biased", 0)])
def test_what_is_computed_from_a_tile_is_staged_once_where_it_is_made(name, staged, target):
    """The left operand, which no loop changes, in front of them; it was staged again in each iteration."""
    for ops in steady(compiled(name, target)):
        stored = [o for o in ops if o.kind == "st_shared"]
        assert len(stored) == staged and not any(o.operands[1].name.startswith("q") for o in stored)


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("name, tables", [("paged", {"TABLE", "R"}), ("gathered", {"AT", "B"})])
def test_tables_are_read_an_iteration_ahead_and_never_wait_for_each_other(name, tables, target):
    """What is read in an iteration is used in the next ones alone: it is only yielded. The tile of distances is too large for that."""
    p = compiled(name, target, n=64)
    for role in p.machine.roles:
        for loop in (o for o in walk(role.body) if o.kind == "for" and not o.get("unroll")):
            body = loop.regions[0]
            reads = [o for o in body.ops if o.kind in ("gather", "ld_global") and not (o.result.type.shape and len(o.result.type.shape) > 1)]
            ahead = {o.result for o in reads}
            assert ahead <= set(body.yielded) and not any(ahead & set(o.operands) for o in body.ops if o.kind != "yield")
            if role.name == "main":
                assert {o.operands[0].name for o in reads} == tables


def test_rings_that_registers_are_read_from_take_the_room_that_there_is():
    """Rows come first, then small tiles; what does not fit is read as it was."""
    names = lambda p: {b.name for b in p.machine.buffers if getattr(b.type, "slots", 1) > 1}
    tight = compiled("biased", "sm_89", d=128, n=64, tiles={"BLOCK_M": 128}, warps=8)
    assert "r_tile" in names(tight) and "b_tile" not in names(tight)
    assert any(o.kind == "ld_global" for ops in steady(tight) for o in ops)
    assert "b_tile" in names(compiled("biased", "sm_89", d=128, n=32))


@pytest.mark.parametrize("more", [{"late": "acc"}, {}])
def test_a_tile_that_is_added_to_a_product_is_read_while_it_runs(more):
    """It is waited for behind the products, which do not wait for it, and read in front of the first use of what they make."""
    p = compiled("biased", "sm_90a", **more)
    for ops in steady(p):
        kinds = [o.kind for o in ops]
        waits = [n for n, o in enumerate(ops) if o.kind == "mbar_wait" and o.operands[0].name == "b_tile_full"]
        reads = [n for n, o in enumerate(ops) if o.kind == "ldmatrix" and o.operands[0].name.startswith("b_tile")]
        assert len(waits) == len(reads) == 1 and kinds.index("wgmma") < waits[0] < reads[0] < kinds.index("settle")
    agrees(p, "biased", 59, seed=1)


@pytest.mark.parametrize("n", [70, 71])
def test_rows_that_no_bulk_copy_can_move_are_read_ahead_into_registers(n):
    """L and F of 70 numbers a head are not on 16 bytes: such tensors take the kernel without their channels."""
    from fcgen.ir.alignment import of_arguments

    p = compiled("backward", "sm_90a")
    have = {name: of_arguments(0, (2, n), (n, 1), 4) for name in ("L", "F")}
    narrow = p.narrowed(have)
    copied = {o.operands[0].name for r in narrow.machine.roles for o in walk(r.body) if o.kind == "tma_load"}
    assert copied == {"Q", "K", "V", "G"}
    agrees(narrow, "backward", n)
