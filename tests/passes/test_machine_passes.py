"""The passes from `place` to `sync`, by what they leave in the program. That it still computes the same is the simulator's to say."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from fcgen.errors import FcError
from fcgen.ir.core import Kernel, Op, definitions, walk
from fcgen.ir.layout import OpaqueLayout, RegLayout
from fcgen.ir.parse import parse_kernel
from fcgen.ir.schedule import Schedule
from fcgen.ir.target import Instr, Target
from fcgen.ir.types import Buffer, Frag
from fcgen.passes import PIPELINE, run_passes

from . import programs

TARGET = Target("sm_89", 89, 99 * 1024, 100 * 1024,
                instrs={"mma_m16n8k16_f16": Instr("mma_m16n8k16_f16", "", "", "", shape=(16, 8, 16), dtype="f16")})


def lowered(kernel: Kernel | None = None, stop_after: str | None = None, **schedule: Any) -> Kernel:
    kernel = kernel or programs.attention(d=64, e=64, bm=64, bn=64, descending=True, mask=lambda t, p, r, c: c <= r)
    return run_passes(kernel, Schedule(**schedule), TARGET, stop_after=stop_after)


def loops(kernel: Kernel) -> list[Op]:
    return [o for o in kernel.body.ops if o.kind == "for"]


def kinds(op: Op) -> list[str]:
    return [o.kind for o in walk(op.regions[0])]


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_ring_waits_once_per_iteration_and_leaves_the_younger_groups_in_flight(stages: int) -> None:
    for loop in loops(lowered(stages=stages)):
        assert kinds(loop).count("barrier") == 1
        assert [o["n"] for o in walk(loop.regions[0]) if o.kind == "wait_group"] == [stages - 2]


def test_loops_of_a_chain_share_rings_and_have_one_prologue() -> None:
    kernel = lowered(stages=3)
    masked, full = loops(kernel)
    assert masked["part"] == "masked" and full["part"] == "full"
    rings = lambda loop: {o.operands[0] for o in walk(loop.regions[0]) if o.kind == "slot"}
    assert rings(masked) == rings(full) and len(rings(full)) == 2
    before = kernel.body.ops[:kernel.body.ops.index(masked)]
    assert sum(o.kind == "if" for o in before) == 2  # stages - 1 tiles are started ahead
    assert not any(o.kind in ("cp_async", "if") for o in kernel.body.ops[kernel.body.ops.index(masked) + 1:])


def test_the_full_copy_has_no_masks() -> None:
    _, full = loops(lowered())
    selects = [o for o in walk(full.regions[0]) if o.kind == "select" and len(o.result.type.shape) == 2]
    assert not selects and "iota" not in kinds(full)


@pytest.mark.parametrize("hold", [True, False])
def test_hold_a_fetches_a_loop_invariant_left_operand_once(hold: bool) -> None:
    kernel = lowered(hold_a=hold)
    in_loops = [o for loop in loops(kernel) for o in walk(loop.regions[0]) if o.kind == "ldmatrix" and o.operands[0].name == "q"]
    assert bool(in_loops) is not hold


def test_a_tile_filled_inside_the_loop_is_never_held() -> None:
    kernel = lowered(programs.gemm(bm=64, bn=32, bk=32), stages=1, hold_a=True)
    assert all(o.kind != "ldmatrix" for o in kernel.body.ops)


def test_turns_refill_each_slot_while_the_other_tile_is_used() -> None:
    kernel = lowered(stages=1, ahead=True)
    assert all(b.type.slots == 1 for b in kernel.buffers)
    for loop in loops(kernel):
        order = [o.kind for o in walk(loop.regions[0]) if o.kind in ("barrier", "cp_async", "for")]
        assert order == ["barrier", "cp_async", "for", "barrier", "cp_async", "for"]


def test_a_carried_row_sum_is_combined_once_after_the_last_loop() -> None:
    sums = lambda k: [o for o in walk(k.body) if o.kind == "combine" and o.operands[0].type.partial == "sum"]
    deferred, direct = lowered(defer=True), lowered(defer=False)
    assert [o in deferred.body.ops for o in sums(deferred)] == [True]
    assert len(sums(direct)) == 2 and not any(o in direct.body.ops for o in sums(direct))


def test_an_accumulator_feeds_the_next_product_from_registers() -> None:
    kernel = lowered()
    assert not any(o.kind == "st_shared" for loop in loops(kernel) for o in walk(loop.regions[0]))


def test_without_reuse_it_goes_through_shared_memory() -> None:
    kernel = lowered(reuse_frags=False)
    for loop in loops(kernel):
        assert "st_shared" in kinds(loop) and "syncwarp" in kinds(loop)


def test_wmma_fragments_are_staged_within_the_warp() -> None:
    kernel = lowered(math="wmma", copy="vector", skip_ones=True)
    opaque = [o for o in walk(kernel.body) for r in o.results if isinstance(r.type, Frag) and isinstance(r.type.layout, OpaqueLayout)]
    assert opaque
    for op in walk(kernel.body):
        if op.kind in ("reduce", "broadcast", "exp2"):
            assert all(isinstance(v.type.layout, RegLayout) for v in op.operands if isinstance(v.type, Frag))
    votes = [o for o in walk(kernel.body) if o.kind == "if" and definitions(kernel.body)[o.operands[0]].kind == "vote_any"]
    assert votes and not any(o.kind == "barrier" for v in votes for o in walk(v.regions[0]))


@pytest.mark.parametrize("schedule", [{}, {"stages": 3}, {"math": "wmma"}, {"math": "fma", "copy": "vector"},
                                      {"math": {"s": "wmma", "dot": "fma"}}, {"epilogue": "direct"}], ids=str)
def test_buffers_in_use_together_do_not_overlap(schedule: dict) -> None:
    kernel = lowered(**schedule)
    from fcgen.ir.lifetimes import spans as lifetimes

    spans = lifetimes(kernel.body, set(kernel.buffers))
    where = dict(zip(kernel.buffers, kernel.meta["smem_offsets"]))
    for a, b in itertools.combinations(kernel.buffers, 2):
        together = spans[a][0] <= spans[b][1] and spans[b][0] <= spans[a][1]
        apart = where[a] + a.type.bytes <= where[b] or where[b] + b.type.bytes <= where[a]
        assert apart or not together, (a, b)
    assert all(o % 1024 == 0 for o in where.values())


def test_the_epilogue_reuses_the_bytes_of_the_rings() -> None:
    kernel = lowered()
    total = sum(b.type.bytes for b in kernel.buffers)
    assert kernel.meta["smem_bytes"] < total


def test_too_much_shared_memory_is_refused_by_name() -> None:
    with pytest.raises(FcError) as e:
        lowered(stages=8)
    assert e.value.code == "compile/budget" and "stages" in (e.value.hint or "") and "k: " in str(e.value)
    parts = [re.fullmatch(r"(\S+): (\d+) bytes from (\d+) on(?:, shared with (.*))?", n) for n in e.value.notes]
    assert all(parts) and any(p[4] for p in parts if p)
    places = {p[1]: range(int(p[3]), int(p[3]) + int(p[2])) for p in parts if p}
    assert str(max(r.stop for r in places.values())) in str(e.value.got), "the parts explain the whole"
    assert all(set(places[p[1]]) & set(places[o]) for p in parts if p and p[4] for o in p[4].split(", "))


def test_a_tile_that_does_not_divide_over_the_warps_is_refused() -> None:
    with pytest.raises(FcError) as e:
        lowered(warps=12)
    assert e.value.code == "compile/schedule" and "warps" in (e.value.hint or "")


SPECS = {"gemm": lambda: programs.gemm(bm=64, bn=32, bk=32), "sigmoid_rows": lambda: programs.sigmoid_rows(bm=64, bn=32, d=64, e=64),
         "linear": lambda: programs.linear(d=64, e=64, bn=64), "row_norm": lambda: programs.row_norm(bm=16, d=64)}
WAYS: list[dict] = [{}, {"stages": 1, "ahead": True}, {"math": "fma", "copy": "scalar"}, {"math": "wmma", "copy": "vector"}]


@pytest.mark.parametrize("program, schedule", [*((SPECS[name], way) for name in list(SPECS)[:3] for way in WAYS
                                                 if name == "sigmoid_rows" or "ahead" not in way),
                                               (SPECS["row_norm"], {}), (SPECS["row_norm"], {"copy": "scalar"})])
def test_any_program_lowers_at_every_pass_and_prints_the_same_after_parsing(program: Any, schedule: dict) -> None:
    def check(name: str, kernel: Kernel) -> None:
        assert str(parse_kernel(str(kernel))) == str(kernel), name

    kernel = run_passes(program(), Schedule(**schedule), TARGET, trace=check)
    assert not any(o.kind in ("dot", "load", "store", "stage", "unstage", "acquire") for o in walk(kernel.body))
    assert all(isinstance(b.type, Buffer) for b in kernel.buffers)


def test_every_pass_has_a_name_and_a_sentence() -> None:
    assert len({p.name for p in PIPELINE}) == len(PIPELINE) and all(p.doc for p in PIPELINE)


@pytest.mark.parametrize("bits", [False, True])
def test_a_running_maximum_that_nothing_reads_in_the_loop_is_kept_by_lanes(bits: bool) -> None:
    from fcgen.ir.types import f16
    from fcgen.kernels.attention import attention

    schedule = Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, compare_bits=bits)
    tile = attention.compile(LSE=None, target="sm_89", schedule=schedule, T=f16, D=64, E=64, lazy=2.0, sums="corrected").tile
    kernel = run_passes(tile, schedule, TARGET, stop_after="defer")
    *_, loop = loops(kernel)
    peak = next(a for a in loop.regions[0].args if a.name == "peak")
    assert peak.type.partial == "max" and peak.type.dtype.name == ("i32" if bits else "f32")
    after = [o for o in kernel.body.ops if o.kind == "combine" and o.result.name == "peak"]
    assert len(after) == 1 and ("from_bits" in [o.kind for o in kernel.body.ops]) is bits
    assert any(o.kind == "combine" for o in walk(loop.regions[0])), "the maximum that is read stays whole"
