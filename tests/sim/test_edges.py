"""The simulator where memory ends: outputs and their history, addresses that the hardware refuses, barriers of several roles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fcgen.build.compiler import target
from fcgen.errors import FcError
from fcgen.ir.core import Role
from fcgen.ir.parse import parse_kernel
from fcgen.sim.machine import simulate

from .test_machine import COLS1, COPY, HEAD, LOAD, READ, ROWS1, ROWS2, STORE, WHOLE, kernel, line_of, run

MIXED2 = "{r16@1 w2@1 | l32@1}"
FILL = "st_shared %x, %s, %0, %0"
OUT = STORE.replace("%y", "%x")
ADD = OUT.replace("vec = 1", "vec = 1, reduce = add")
SQUARE = "%y = mul %q, %q : frag f32[32,32]"
GIVEN = {"Y": np.ones((32, 32), np.float32)}


def back(layout):
    """Read the output."""
    return f"%q = ld_global %Y, %0 {{{WHOLE}, vec = 1}} : frag f32[32,32]{layout}"


# ---- outputs -------------------------------------------------------------------------------------------------------------


def test_output_read_before_it_is_written():
    lines = [back(ROWS1), SQUARE + ROWS1, STORE]
    (e,) = run(kernel(*lines))[1].reports
    assert e.code == "sim/stale" and "ld_global reads Y[0, 0], which nothing has written" in e.message
    assert not run(kernel(*lines), **GIVEN)[1].reports  # the caller's content


def test_added_to_before_it_is_written():
    (e,) = run(kernel(LOAD + ROWS1, ADD))[1].reports
    assert e.code == "sim/stale" and "Y[0, 0]" in e.message
    x, r = run(kernel(LOAD + ROWS1, OUT, ADD))
    assert not r.reports
    np.testing.assert_array_equal(r.outputs["Y"], 2 * x)


@pytest.mark.parametrize(("between", "ok"), [([], False), (["syncwarp"], True), (["barrier"], True)])
def test_lanes_meet_in_an_output(between, ok):
    lines = [LOAD + ROWS1, OUT, *between, back(COLS1), SQUARE + COLS1]
    _, r = run(kernel(*lines))
    assert [e.code for e in r.reports] == ([] if ok else ["sim/race"])
    if not ok:
        e = r.reports[0]
        assert "two lanes of one warp touch Y[" in e.message and e.loc.line == line_of(lines, "%q = ld_global")
        assert "st_global Y" in e.notes[0] and "q = ld_global Y" in e.notes[1]


@pytest.mark.parametrize(("between", "ok"), [([], False), (["syncwarp"], False), (["barrier"], True)])
@pytest.mark.parametrize("seed", range(3))
def test_warps_meet_in_an_output(between, ok, seed):
    for first, second in ((OUT, back(MIXED2)), (back(MIXED2), OUT), (ADD, back(MIXED2)), (back(MIXED2), ADD)):
        _, r = run(kernel(LOAD + ROWS2, first, *between, second, warps=2), seed=seed, **GIVEN)
        assert {e.code for e in r.reports} == (set() if ok else {"sim/race"})


def test_programs_meet_in_an_output():
    for lines in ([OUT], [back(ROWS1), OUT], [ADD, back(ROWS1)], [ADD, "barrier", OUT]):
        r = run(kernel(LOAD + ROWS1, *lines, grid="2"), **GIVEN)[1]
        assert r.reports and all(e.code == "sim/race" for e in r.reports)
        e = r.reports[0]
        assert "two programs touch Y[0, 0]" in e.message and "program (0,), role main, warp 0" in e.notes[0]
        assert "program (1,), role main, warp 0" in e.notes[1] and "programs run in any order" in e.hint
    assert not run(kernel(LOAD + ROWS1, ADD, "barrier", ADD, grid="2"), **GIVEN)[1].reports


def test_copy_from_an_output():
    lines = [COPY.replace("%X", "%Y"), "commit_group", "wait_group {n = 0}"]
    (e,) = run(kernel(*lines))[1].reports
    assert e.code == "sim/stale" and "cp_async reads Y[0, 0]" in e.message
    assert not run(kernel(*lines), **GIVEN)[1].reports


def test_an_element_stored_by_two_lanes_in_turn():
    e, *_ = run(kernel(LOAD + ROWS1, OUT, LOAD.replace("%x", "%q") + COLS1, STORE.replace("%y", "%q")))[1].reports
    assert e.code == "sim/race" and "two lanes of one warp touch Y[" in e.message


# ---- shared memory -------------------------------------------------------------------------------------------------------


def halves(*lines):
    """Kernels of f16[32,8] tiles: a row is what one lane gives ldmatrix the address of."""
    head = HEAD.replace("tensor f32[M, 32]", "tensor f16[M, 8]").replace("f32[32,32]{{panel 32}}", "f16[32,8]{{panel 8}}")
    return parse_kernel(head.format(warps=1, slots="", grid="1") + "".join(f"  {x}\n" for x in lines) + "}\n", "t.fcir", locate=True)


@pytest.mark.parametrize(("between", "codes"), [([], ["sim/race"]), (["syncwarp"], [])])
@pytest.mark.parametrize("reads_first", [False, True])
def test_ldmatrix_reads_as_a_warp(between, codes, reads_first):
    """Lane l stores row l and gives its address; but what it receives are parts of other rows."""
    load = f"%x = ld_global %X, %0 {{{WHOLE}, vec = 8}} : frag f16[32,8]{{l32@1 | r8@1}}"
    read = "%y = ldmatrix %s, %0, %0 {transposed = false, trans = false} : frag f16[32,8]{r4@2 l8@4 | l4@1 r2@1}"
    lines = [load, FILL, "syncwarp", read, *between, FILL, STORE] if reads_first else [load, FILL, *between, read, STORE]
    x = np.arange(256, dtype=np.float16).reshape(32, 8)
    r = simulate(halves(*lines), {"X": x}, target("sm_89"))
    assert [e.code for e in r.reports] == codes
    np.testing.assert_array_equal(r.outputs["Y"], x)


def test_the_reader_that_is_named():
    """Two lanes have read an element; the writer is the second of them, so the race is with the first."""
    read = "ld_shared %s, %0, %0 : frag f32[32,32]"
    lines = [LOAD + ROWS1, FILL, "syncwarp", f"%a = {read}{COLS1}", f"%b = {read}{ROWS1}", FILL]
    (e,) = run(kernel(*lines))[1].reports
    assert "a = ld_shared s" in e.notes[0] and f"t.fcir:{line_of(lines, '%a =')}" in e.notes[0]


@pytest.mark.parametrize(("offset", "size"), [(0, 4096), (4096, 8192)])
def test_buffer_in_place(offset, size):
    assert not run(kernel(LOAD + ROWS1, FILL, READ, STORE).with_meta(smem_offsets=(offset,), smem_bytes=size))[1].reports


@pytest.mark.parametrize(("offset", "size"), [(0, 4095), (16, 4096), (-16, 4096), (8, 8192)])
def test_buffer_out_of_place(offset, size):
    with pytest.raises(FcError, match=r"smem_offsets|%s (lies|starts)") as e:
        run(kernel(LOAD + ROWS1, FILL, READ, STORE).with_meta(smem_offsets=(offset,), smem_bytes=size))
    assert e.value.code == "ir/verify"


def test_one_offset_per_buffer():
    with pytest.raises(FcError) as e:
        run(kernel(LOAD + ROWS1, FILL).with_meta(smem_offsets=(0, 4096), smem_bytes=8192))
    assert e.value.code == "ir/verify" and "one number per buffer" in e.value.message


@pytest.mark.parametrize(("layout", "fits"), [("{panel 32}", True), ("{panel 32 pad 4}", True), ("{panel 32 pad 2}", False), ("{panel 2}", False)])
def test_copies_land_on_their_own_size(layout, fits):
    text = HEAD.replace("{{panel 32}}", layout.replace("{", "{{").replace("}", "}}")).format(warps=1, slots="", grid="1")
    made = lambda: parse_kernel(text + f"  {COPY}\n  commit_group\n  wait_group {{n = 0}}\n}}\n", "t.fcir", locate=True)
    if fits:
        assert [e.code for e in run(made())[1].reports] == ["sim/unwritten"]
        return
    with pytest.raises(FcError, match="rows of the stored tile are made of aligned runs of 16 bytes") as e:
        made()
    assert e.value.code == "ir/verify"


def test_wmma_blocks_start_on_32_bytes():
    text = HEAD.replace("f32[32,32]{{panel 32}}", "f32[32,36]{{panel 36}}").format(warps=1, slots="", grid="1")
    lines = ["%one = const {value = 1.0, dtype = f32} : f32", "%n = const {value = 4, dtype = i32} : i32",
             "%a = full %one : frag f32[32,32]{wmma acc 1x1}", "wmma_store %a, %s, %0, %n"]
    at = lambda n: parse_kernel(text + "".join(f"  {x}\n" for x in lines).replace("value = 4", f"value = {n}") + "}\n", "t", locate=True)
    assert [e.code for e in run(at(0))[1].reports] == ["sim/unwritten"]  # and nothing of the blocks
    with pytest.raises(FcError, match="start on 32 bytes") as e:
        run(at(4))
    assert e.value.code == "compile/unsupported"


# ---- roles ---------------------------------------------------------------------------------------------------------------


def test_a_barrier_of_two_roles():
    """Every role has a barrier of its own in the text; they meet at it."""
    one = kernel(LOAD + ROWS1, FILL, "barrier")
    two = parse_kernel((HEAD.format(warps=1, slots="", grid="1") + f"  barrier\n  {READ}\n  {STORE}\n}}\n").replace("main", "second"), "t")
    uses = dict(zip([*two.params, *two.buffers], [*one.params, *one.buffers]))

    def body(ops):
        return tuple(replace(o, operands=tuple(uses.get(v, v) for v in o.operands)) for o in ops)

    second = Role("second", 1, replace(two.body, ops=body(two.body.ops)))
    x, r = run(replace(one, roles=(*one.roles, second)))
    assert not r.reports
    np.testing.assert_array_equal(r.outputs["Y"], x)
    without = replace(second, body=replace(second.body, ops=tuple(o for o in second.body.ops if o.kind != "barrier")))
    (e,) = [e for e in run(replace(one, roles=(*one.roles, without)))[1].reports if e.code == "sim/deadlock"]
    assert any("role main, warp 0: waits at barrier" in n for n in e.notes) and any("role second" in n for n in e.notes)
