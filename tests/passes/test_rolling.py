# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Products that begin with a part of their left operand; products that loops carry in flight; rows that come and go with a tile; staged
tiles that meet in no bank."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda.smem import passes
from fcgen.ir.core import walk_kernel
from fcgen.ir.layout import native_smem, wgmma_c
from fcgen.ir.types import Buffer, f32
from fcgen.kernels.backward import backward
from fcgen.kernels.backward_schedules import candidates

FACTS = {"target": "sm_90a", "check": False, "T": fc.f16, "mask": "none"}


def compiled(head: int = 128, **fields):
    tiles = {"BLOCK_M": 64, "BLOCK_N": 128}
    schedule = fc.Schedule(**{"tiles": tiles, "warps": 8, "math": "wgmma", "copy": "tma", "epilogue": "tma", "split": "branch",
                              "stages": {"q": 2, "do": 2}, **fields})
    return backward.compile(schedule=schedule, D=head, E=head, **FACTS)


def loop_of(text: str) -> str:
    """The loop of the role that computes."""
    return text[text.rindex("#pragma unroll 1"):]


@pytest.mark.parametrize("name, left", [("dv", "w"), ("dk", "ds")])
def test_a_rolling_product_multiplies_each_part_of_its_left_operand_while_the_next_is_computed(name, left):
    text = loop_of(compiled(rolling=name, early="s").cuda)
    part = text[text.index("for (int part = 0; part < 4; ++part) {"):]
    part = part[:part.index("wgmma_commit")]
    order = [part.index(what) for what in (f"{left}[i] =", "pin_b32(", "wgmma_fence();", f"_rs<1>({name}, ")]
    assert order == sorted(order) and "for (int k = part * 1; k < (part + 1) * 1; ++k)" in part
    assert part.count("touch") == 0, "nothing in a part waits for the whole operand"


def test_what_a_rolling_product_is_made_of_is_computed_once():
    plain, rolling = (loop_of(compiled(rolling=r, early="s").cuda) for r in ((), "dv+dk"))
    for what in (r"exp2_approx\(", r"stmatrix_x4\(", r"_rs(?:<1>|_x\d+)\("):
        assert len(re.findall(what, plain)) == len(re.findall(what, rolling)), what


@pytest.mark.parametrize("name, why", [("s", "no element work makes the left operand of %s"), ("dq", "no element work makes the left operand"),
                                       ("nobody", "nobody")])
def test_a_product_that_cannot_roll_is_named(name, why):
    with pytest.raises(fc.FcError, match=why):
        compiled(rolling=name).cuda  # noqa: B018


def test_a_product_of_several_instructions_a_step_does_not_roll():
    with pytest.raises(fc.FcError, match="more than 64 rows"):
        compiled(64, rolling="dv", tiles={"BLOCK_M": 64, "BLOCK_N": 128}, warps=4).cuda  # noqa: B018


def test_a_loop_carries_what_it_issues_for_its_next_iteration():
    """Scores run on across the end of an iteration: the wait for them stands behind the next one's wait for its tile."""
    text = loop_of(compiled(early="s", stages={"q": 3, "do": 2}).cuda)
    body = text[:text.index("// for rows in")] if "// for rows in" in text else text
    waits = [m.group() for m in re.finditer(r"mbar_wait\(do_full|wgmma_wait<\d>|bulk_commit\(\)", body)]
    assert waits[:2] == ["mbar_wait(do_full", "wgmma_wait<0>"] and waits[waits.index("bulk_commit()") - 1] != "wgmma_wait<0>"


def test_a_row_is_read_in_front_of_products_where_registers_are_left():
    """What products read from shared memory keeps other reads waiting (H200: 5 % of the time of D=128 at the first of them)."""
    text = loop_of(compiled(early="s", stages={"q": 3, "do": 2}).cuda)
    assert text.index("ld_shared_f32x2(&lse2") < text.index("wgmma_wait<0>") < text.index("wgmma_m64n64k16")
    full = loop_of(compiled(64, tiles={"BLOCK_M": 128, "BLOCK_N": 128}).cuda)
    assert full.index("wgmma_m64n128k16") < full.index("ld_shared_f32x2(&lse2"), "224 registers are taken there"


@pytest.mark.parametrize("head, mask", [(64, "none"), (64, "causal_top_left"), (128, "none"), (128, "causal_top_left")])
def test_rows_of_shipped_schedules_come_and_go_with_a_tile(head, mask):
    schedule = candidates("backward", "sm_90a", head, True, mask != "none")[0]
    machine = backward.compile(schedule=schedule, D=head, E=head, **{**FACTS, "mask": mask},
                               **({"turned": True} if dict(schedule.tiles)["BLOCK_M"] % 64 else {})).machine
    rings = {o.operands[0].name for o in walk_kernel(machine) if o.kind == "mbar_wait"}
    assert not any("lse2" in n or "delta" in n for n in rings)
    sums = {o["bytes"] for o in walk_kernel(machine) if o.kind == "mbar_expect"}
    rows = dict(schedule.tiles)["BLOCK_M"]
    assert rows * head * 2 + 2 * rows * 4 in sums, "one barrier counts the tile and both rows"


def test_halves_of_a_warp_that_store_pairs_of_f32_meet_in_no_bank():
    """An accumulator in rows of 128 bytes: rows 2n and 2n + 1 of a column group lie in the same 32 bytes of the swizzle."""
    layout = wgmma_c(64, 64, 1)
    t = Buffer(f32, (64, 64), native_smem(64, 4, layout))
    coords = layout.coords(4)[0, :, ::2]
    addr = np.asarray(t.layout.address(t.shape, 4, coords[..., 0], coords[..., 1]))
    assert passes(addr, 2) == 2 * 2 * addr.shape[1], "as they lie: two passes for each half"
    text = loop_of(compiled(early="s").cuda)
    run = re.search(r"const float run\[2\] = \{(\w+) \? (\w+)\[\(i \^ (\d+)\) \* 2\]", text)
    base = re.search(r"_crossed = \w+ \^ \(lane & (\d+)\) \* (\d+)", compiled(early="s").cuda)
    bit, swap = int(base[1]), int(run[3])
    lanes, n = np.arange(32)[:, None], np.arange(addr.shape[1])
    crossed = addr[lanes, np.where(lanes & bit, n ^ swap, n)]
    assert passes(crossed, 2) == 2 * addr.shape[1] and np.array_equal(np.sort(crossed, axis=None), np.sort(addr, axis=None))
    turned = np.where(lanes & bit, addr[:, n ^ swap] ^ addr, 0)
    assert set(turned.ravel()) == {0, bit * int(base[2])}, "the printed base has the bits that change"


@fc.kernel
def carried_weights(X: "f16[M, D]", W: "f16[L, E, D]", Y: "out f32[M, D]", *, own=False):
    """A left operand of what the loop carries, which is set anew between it and its product."""
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    t = fc.var(fc.dot(fc.load(X[rows]), fc.load(W[0]).T))
    acc = fc.var(fc.zeros(rows, W.D))
    for n in fc.loop(W.L):
        w = ((acc if own else t) * 0.5).to(fc.f16)
        t <<= t * 2.0 + 1.0
        acc <<= acc + fc.dot(w, fc.load(W[n]))
    fc.store(Y[rows], acc + fc.sum(t, axis=1))


@pytest.mark.parametrize("own", [False, True])
def test_a_left_operand_of_what_changes_in_between_is_computed_in_front(own):
    p = carried_weights.compile(target="sm_90a", D=64, E=64, own=own, check=False, schedule=fc.Schedule(
        tiles={"BM": 64}, math="wgmma", copy="tma", stages=2, warps=4, rolling="acc"))
    text = p.cuda[p.cuda.index("n < "):]
    made, product = text.index("pack_f16("), text.index("_rs<1>(")
    assert made < (product if own else text.index("t[i] = t[i] * 2.0f"))
    assert "pack_f16(" not in text[text.index("for (int part"):product] if "for (int part" in text[:product] else own
