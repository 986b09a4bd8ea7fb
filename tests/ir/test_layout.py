"""Layouts by enumeration: every claim about a map is compared with the map itself."""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgen.ir.layout import (
    LANES,
    Factor,
    RegLayout,
    SmemLayout,
    blocked,
    mma_a,
    mma_b,
    mma_c,
    native_smem,
    rowwise,
)

from . import strategies

quick = settings(max_examples=60, deadline=None)


def counts(layout: RegLayout) -> np.ndarray:
    """How many (warp, lane, register) hold each element."""
    c = layout.coords().reshape(-1, len(layout.axes))
    out = np.zeros(layout.shape, int)
    np.add.at(out, tuple(c.T), 1)
    return out


@quick
@given(strategies.mma_layouts())
def test_mma_fragments_hold_each_element_equally_often(layout):
    n = counts(layout)
    copies = layout.warps * LANES * layout.regs // prod(layout.shape)
    assert (n == copies).all() and layout.problem is None


@quick
@given(st.sampled_from([16, 32, 64, 128]), st.sampled_from([16, 32, 64, 80]), st.sampled_from([1, 2, 4]))
def test_accumulators_are_bijective(rows, cols, warps):
    layout = mma_c(max(rows, 16 * warps), cols, (warps, 1))
    assert (counts(layout) == 1).all()


@quick
@given(st.sampled_from([16, 64, 128]), st.integers(1, 9), st.integers(1, 9))
def test_a_part_keeps_each_threads_own_registers(rows, blocks, more):
    whole = mma_c(rows, 8 * (blocks + more), (1, 1))
    part = whole.part_of(1, 8 * blocks)
    assert part == mma_c(rows, 8 * blocks, (1, 1))
    assert {tuple(x) for x in part.coords()[0, 5]} <= {tuple(x) for x in whole.coords()[0, 5]}
    assert whole.part_of(1, 4) is None and rowwise(16, 32, 1, 32).part_of(1, 8) is None


@quick
@given(strategies.row_layouts())
def test_row_layouts_cover_with_exact_copies(layout):
    n = counts(layout)
    assert n.min() >= 1 and n.min() == n.max() and layout.problem is None


@quick
@given(st.integers(1, 96), st.integers(1, 96), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
def test_blocked_has_the_shape_it_was_asked_for(rows, cols, warps, vec):
    layout = blocked(rows, cols, warps, vec)
    assert layout.shape == (rows, cols)
    if cols % vec == 0:
        assert layout.vector() % vec == 0


@quick
@given(strategies.reg_layouts)
def test_parts_sum_to_coordinates(layout):
    c = layout.coords()
    w, l, r = np.ogrid[: layout.warps, :LANES, : layout.regs]
    for axis in range(len(layout.axes)):
        total = layout.part(axis, "w", w) + layout.part(axis, "l", l) + layout.part(axis, "r", r)
        assert (total == c[..., axis]).all()
    assert c.max(initial=0) < max(layout.shape)


@quick
@given(strategies.reg_layouts, st.integers(0, 1))
def test_dropping_an_axis_keeps_the_other_coordinate(layout, axis):
    small, where = layout.drop(axis), layout.drop_map(axis)
    assert small.shape == (layout.shape[1 - axis],) and where.shape == (layout.regs,) and small.problem is None
    assert sorted(set(where.tolist())) == list(range(small.regs)), "every register of the small one is reached"
    big, kept = layout.coords(), small.coords(layout.warps)
    assert (big[..., 1 - axis] == kept[:, :, where, 0]).all()


@quick
@given(strategies.mma_layouts(), st.integers(0, 1))
def test_a_butterfly_over_the_named_strides_reaches_every_copy(layout, axis):
    lanes, warps = layout.reduces_over(axis)
    lane = np.arange(LANES)
    small = layout.drop(axis).coords(layout.warps)
    reached = {0}
    for s in lanes:
        reached |= {x ^ s for x in reached}
    for x in reached:
        assert (small[:, lane, :, 0] == small[:, lane ^ x, :, 0]).all()
    whole = {int(c) for c in layout.part(axis, "l", np.array([0 ^ x for x in reached]))}
    assert whole == {int(c) for c in layout.part(axis, "l", lane)}
    assert warps.axes[0] == tuple(f for f in layout.axes[axis] if f.unit == "w") or warps.shape[0] > 1


@quick
@given(strategies.reg_layouts)
def test_transpose(layout):
    assert (layout.transpose().coords(layout.warps)[..., ::-1] == layout.coords()).all()
    assert layout.transpose().transpose() == layout


@quick
@given(strategies.reg_layouts)
def test_vector_is_a_run_of_the_last_axis(layout):
    n = layout.vector()
    c = layout.coords()
    runs = c[..., 1].reshape(layout.warps, LANES, layout.regs // n, n)
    assert (np.diff(runs, axis=-1) == 1).all() and (runs[..., 0] % n == 0).all()


@quick
@given(st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 8))
def test_one_warp_column_of_a_is_the_accumulator(warps, m, k):
    """Why the result of one product is the left operand of the next without moving anything."""
    assert mma_a(16 * m * warps, 16 * k, (warps, 1)) == mma_c(16 * m * warps, 16 * k, (warps, 1))


def test_fragments_follow_the_ptx_tables():
    """PTX ISA, 'Matrix Fragments for mma.m16n8k16': spelled as the manual spells them."""
    a, b, c = mma_a(16, 16, (1, 1)).coords(), mma_b(16, 8, (1, 1)).coords(), mma_c(16, 8, (1, 1)).coords()
    for lane in range(LANES):
        group, thread = lane >> 2, lane % 4
        for i in range(8):
            row = group if i % 4 < 2 else group + 8
            assert tuple(a[0, lane, i]) == (row, thread * 2 + (i & 1) + (8 if i >= 4 else 0))
        for i in range(4):
            assert tuple(b[0, lane, i]) == (thread * 2 + (i & 1) + (8 if i >= 2 else 0), group)
            assert tuple(c[0, lane, i]) == (group if i < 2 else group + 8, thread * 2 + (i & 1))


def test_equal_maps_are_equal_values():
    assert RegLayout(((Factor("r", 2, 4), Factor("r", 4, 1)),)) == RegLayout(((Factor("r", 8, 1), Factor("l", 1, 3)),))
    assert str(RegLayout(((), (Factor("l", 32, 1),)))) == "{1 | l32@1}"


@pytest.mark.parametrize("digits, problem", [
    ([("r", 4, 3)], "registers 1 to 2 hold nothing of their own: r4@3 starts late"),
    ([("r", 4, 1), ("r", 4, 2)], "register digit r4@2 overlaps a smaller one"),
    ([("l", 8, 1), ("l", 8, 4)], "lane digit l8@4 overlaps a smaller one"),
    ([("l", 64, 1)], "a warp has 32 lanes, these digits count 64"),
    ([("l", 8, 4), ("w", 3, 1), ("r", 5, 1)], None)])
def test_problems(digits, problem):
    assert RegLayout((tuple(Factor(*d) for d in digits),)).problem == problem


# ---- shared memory -------------------------------------------------------------------------------------------------------


@quick
@given(strategies.smem_layouts, st.integers(1, 64), st.integers(1, 4), st.sampled_from([1, 2, 4]))
def test_addresses_are_injective_and_inside_the_slot(layout, rows, panels, size):
    shape = (rows, layout.panel * panels)
    i, j = np.mgrid[:rows, : shape[1]]
    address = layout.address(shape, size, i, j)
    assert len(np.unique(address)) == address.size
    assert address.min() >= 0 and address.max() + size <= layout.slot_bytes(shape, size)
    assert layout.slot_bytes(shape, size) % (1024 if layout.swizzle else 128) == 0


@quick
@given(strategies.smem_layouts, st.integers(0, 1 << 16))
def test_a_swizzle_is_its_own_inverse_and_keeps_16_byte_chunks(layout, address):
    there = layout.swizzled(address)
    assert layout.swizzled(there) == address and there % 16 == address % 16 and there // 1024 == address // 1024


def conflicts(layout: SmemLayout, shape, size, rows, cols, width):
    """Bank conflict degree of one warp access: element (rows[l], cols[l]) per lane, `width` bytes each. 1 is none.

    Accesses wider than 4 bytes are served in phases of 128 bytes (8 lanes of 16 bytes, 16 of 8)."""
    addr = np.asarray(layout.address(shape, size, np.asarray(rows), np.asarray(cols)))
    per_phase, worst = max(1, 128 // max(4, width)), 1
    for p in range(0, len(addr), per_phase):
        words = {(int(a) + b) // 4 for a in addr[p: p + per_phase] for b in range(0, max(4, width), 4)}
        worst = max(worst, *Counter(w % 32 for w in words).values())
    return worst


def ldmatrix(layout: SmemLayout, shape, row, col, matrices="down"):
    """The addresses of ldmatrix.x4: lane l supplies row l of four 8 x 8 blocks of 16-bit elements (PTX ISA, 'ldmatrix')."""
    lane = np.arange(LANES)
    block, r = lane // 8, lane % 8
    down, right = (block % 2, block // 2) if matrices == "down" else (block // 2, block % 2)
    return conflicts(layout, shape, 2, row + down * 8 + r, col + right * 8, 16)


@pytest.mark.parametrize("cols", [16, 32, 48, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("matrices", ["down", "right"], ids=["plain", "trans"])
def test_native_layouts_have_no_conflicts(cols, matrices):
    """Plain reads walk the blocks down the rows; reads with .trans of a stored transpose walk them along the columns."""
    layout, shape = native_smem(cols, 2), (64, cols)
    for row in range(0, 64, 16):
        for col in range(0, cols - 15, 16):
            assert ldmatrix(layout, shape, row, col, matrices) == 1


def test_conflicts_are_found():
    assert ldmatrix(SmemLayout(64), (64, 64), 0, 0) == 8, "rows of 128 bytes without swizzle fall on one bank group"
    assert ldmatrix(SmemLayout(64, 8), (64, 64), 0, 0) == 1, "padding moves them apart"
    lane = np.arange(LANES)
    assert conflicts(SmemLayout(64), (64, 64), 2, lane * 0, lane * 0, 2) == 1, "one word for all is a broadcast"
    assert conflicts(SmemLayout(32), (32, 32), 4, lane, lane * 0, 4) == 32


@quick
@given(st.integers(1, 512), st.sampled_from([1, 2, 4]))
def test_native_layouts_hold_whole_rows(cols, size):
    layout = native_smem(cols, size)
    assert cols % layout.panel == 0 and layout.panel * size <= max(128, cols * size)


def test_a_panel_that_suits_no_warps_columns_stays_one_that_can_be_swizzled():
    """48 columns over two warps are 24 each: panels of 24 could not be swizzled, and a wgmma could not read them."""
    assert native_smem(48, 2, mma_c(64, 48, (4, 2))) == native_smem(48, 2) == SmemLayout(16, 0, 32)
    assert native_smem(96, 2, mma_c(64, 96, (4, 2))) == SmemLayout(16, 0, 32)
