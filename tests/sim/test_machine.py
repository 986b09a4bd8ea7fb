"""The machine simulator on kernels small enough to see what is wrong with each."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.compiler import target
from fcgen.errors import FcError
from fcgen.ir.core import walk_kernel
from fcgen.ir.parse import parse_kernel
from fcgen.ir.rewrite import map_bodies, rewrite
from fcgen.kernels.attention import attention
from fcgen.sim.machine import check, simulate

HEAD = """machine kernel t
param %X: tensor f32[M, 32]
param %Y: tensor f32[M, 32] out
grid %i: {grid}
smem %s: f32[32,32]{{panel 32}}{slots}
role main warps {warps} {{
  %0 = const {{value = 0, dtype = i32}} : i32
"""
WHOLE = "index = (tile, all), guard = (true, false)"
LOAD = f"%x = ld_global %X, %0 {{{WHOLE}, vec = 1}} : frag f32[32,32]"
STORE = f"st_global %Y, %y, %0 {{{WHOLE}, vec = 1}}"
ROWS1, COLS1 = "{r32@1 | l32@1}", "{l32@1 | r32@1}"  # one warp: a lane holds a column, or a row
ROWS2, MIXED2 = "{w2@1 r16@1 | l32@1}", "{r16@1 w2@1 | l32@1}"  # two warps: halves, or every other row
THREADS = "{r8@4 l4@8 | l8@1 r4@1}"
COPY = f"cp_async %X, %0, %s {{{WHOLE}, threads = {THREADS}}}"
READ = "%y = ld_shared %s, %0, %0 : frag f32[32,32]" + ROWS1


def kernel(*lines, warps=1, slots="", grid="1"):
    return parse_kernel(
        HEAD.format(warps=warps, slots=slots, grid=grid) + "".join(f"  {x}\n" for x in lines) + "}\n", "t.fcir", locate=True
    )


def run(k, rows=32, seed=0, **more):
    x = np.arange(rows * 32, dtype=np.float32).reshape(rows, 32)
    return x, simulate(k, {"X": x, **more}, target("sm_89"), seed=seed)


def line_of(k, text):
    """The line of the kernel's text that holds an op: kernels are built from lines, so it follows from their order."""
    return next(n + HEAD.count("\n") + 1 for n, line in enumerate(k) if text in line)


def lane_kernel(between):
    return [LOAD + ROWS1, "st_shared %x, %s, %0, %0", *between, "%y = ld_shared %s, %0, %0 : frag f32[32,32]" + COLS1, STORE]


@pytest.mark.parametrize("between", [["syncwarp"], ["barrier"]])
def test_lanes_in_order(between):
    x, r = run(kernel(*lane_kernel(between)))
    assert not r.reports
    np.testing.assert_array_equal(r.outputs["Y"], x)


def test_race_of_lanes():
    lines = lane_kernel([])
    _, r = run(kernel(*lines))
    (e,) = r.reports
    assert e.code == "sim/race" and "two lanes of one warp touch s row" in e.message and "syncwarp" in e.hint
    earlier, later = e.notes
    assert "earlier: role main, warp 0: st_shared x, s" in earlier and f"t.fcir:{line_of(lines, 'st_shared')}" in earlier
    assert "later:   role main, warp 0: y = ld_shared s" in later and f"t.fcir:{line_of(lines, 'ld_shared')}" in later
    assert e.loc.line == line_of(lines, "ld_shared")


def test_own_elements_need_nothing():
    """A lane that reads what it wrote itself, and writes what it read, is in order."""
    _, r = run(kernel(LOAD + ROWS1, "st_shared %x, %s, %0, %0", READ, "st_shared %y, %s, %0, %0", STORE))
    assert not r.reports


def test_read_by_many_lanes_then_written_by_one():
    """All lanes read one row; the store after it races with 31 of them, whichever the simulator looked at last."""
    for lane_of in ("{r32@1 | l32@1}", "{l32@1 | r32@1}"):
        _, r = run(
            kernel(
                LOAD + lane_of,
                "st_shared %x, %s, %0, %0",
                "barrier",
                "%z = ld_shared %s, %0, %0 {along = 1} : frag f32[32]{r32@1}",
                "st_shared %x, %s, %0, %0",
                "%y = mul %x, %x : frag f32[32,32]" + lane_of,
                STORE,
            )
        )
        assert [e.code for e in r.reports] == ["sim/race"]


def warp_kernel(between):
    return [LOAD + ROWS2, "st_shared %x, %s, %0, %0", *between, "%y = ld_shared %s, %0, %0 : frag f32[32,32]" + MIXED2, STORE]


@pytest.mark.parametrize("between", [[], ["syncwarp"]])
@pytest.mark.parametrize("seed", range(6))
def test_race_of_warps(between, seed):
    """Found whichever warp comes first: the numbers may be right, the order is not."""
    lines = warp_kernel(between)
    _, r = run(kernel(*lines, warps=2), seed=seed)
    assert {e.code for e in r.reports} == {"sim/race"}
    e = r.reports[0]
    assert "two warps touch s row" in e.message and "barrier" in e.hint
    text = "\n".join(e.notes)
    assert "warp 0" in text and "warp 1" in text
    assert f"t.fcir:{line_of(lines, 'st_shared')}" in text and f"t.fcir:{line_of(lines, 'ld_shared')}" in text


def test_warps_in_order():
    x, r = run(kernel(*warp_kernel(["barrier"]), warps=2))
    assert not r.reports
    np.testing.assert_array_equal(r.outputs["Y"], x)


def test_race_is_told_once():
    """Once for two ops, not once for each element, warp and iteration."""
    k = kernel(
        LOAD + ROWS2,
        "%n = const {value = 5, dtype = i32} : i32",
        "for %0, %n (%j: i32) {",
        "  barrier",
        "  st_shared %x, %s, %0, %0",
        "  %y = ld_shared %s, %0, %0 : frag f32[32,32]" + MIXED2,
        "  yield",
        "}",
        "%y = mul %x, %x : frag f32[32,32]" + ROWS2,
        STORE,
        warps=2,
    )
    _, r = run(k)
    pairs = [tuple(n.split(": ")[-1] for n in e.notes) for e in r.reports]
    assert 1 <= len(pairs) <= 2 and len(set(pairs)) == len(pairs)  # read after write, write after read


@pytest.mark.parametrize(("between", "codes"), [
    (["commit_group", "wait_group {n = 0}", "syncwarp"], set()),
    (["commit_group", "wait_group {n = 0}"], {"sim/race"}),
    (["commit_group", "wait_group {n = 1}", "syncwarp"], {"sim/stale", "sim/leftover"}),
    (["wait_group {n = 0}", "syncwarp"], {"sim/stale", "sim/leftover"}),
    (["commit_group", "syncwarp"], {"sim/stale", "sim/leftover"}),
    (["commit_group", "commit_group", "wait_group {n = 1}", "syncwarp"], set()),
])
def test_copy(between, codes):
    lines = [COPY, *between, READ, STORE]
    x, r = run(kernel(*lines))
    assert {e.code for e in r.reports} == codes
    if not codes:
        np.testing.assert_array_equal(r.outputs["Y"], x)
    if "sim/stale" in codes:
        e = next(e for e in r.reports if e.code == "sim/stale")
        assert "while its copy is in flight" in e.message and "wait_group" in e.hint
        assert "cp_async X, s" in e.notes[0] and f"t.fcir:{line_of(lines, 'cp_async')}" in e.notes[0]
        assert "ld_shared s" in e.notes[1]
        assert np.isnan(r.outputs["Y"]).any()  # and the numbers are not the old ones by chance
    if "sim/leftover" in codes:
        e = next(e for e in r.reports if e.code == "sim/leftover")
        assert e.loc.line == line_of(lines, "cp_async") and "wait_group 0" in e.hint


def test_a_copy_over_a_copy_in_flight_waits_before_it_writes():
    (e,) = (e for e in run(kernel(COPY, COPY, "commit_group", "wait_group {n = 0}", "syncwarp", READ, STORE))[1].reports if "flight" in e.message)
    assert e.code == "sim/race" and e.hint.startswith("wait_group before it is written again")


def test_copy_of_another_warp_needs_a_barrier():
    threads = "{w2@1 r4@4 l4@8 | l8@1 r4@1}"
    copy = [f"cp_async %X, %0, %s {{{WHOLE}, threads = {threads}}}", "commit_group", "wait_group {n = 0}"]
    read = "%y = ld_shared %s, %0, %0 : frag f32[32,32]" + MIXED2
    assert {e.code for e in run(kernel(*copy, "syncwarp", read, STORE, warps=2))[1].reports} & {"sim/race", "sim/stale"}
    assert not run(kernel(*copy, "barrier", read, STORE, warps=2))[1].reports


def test_store_under_a_copy():
    """Whichever lands last wins: a race, not a stale read."""
    _, r = run(kernel(LOAD + ROWS1, COPY, "commit_group", "st_shared %x, %s, %0, %0", "wait_group {n = 0}", "syncwarp", READ, STORE))
    assert (
        r.reports[0].code == "sim/race"
        and "wait_group" in r.reports[0].hint
        and "st_shared touches s row 0, column 0" in r.reports[0].message
    )


def test_copy_over_readers():
    _, r = run(kernel(LOAD + ROWS1, "st_shared %x, %s, %0, %0", "syncwarp", READ, COPY, "commit_group", "wait_group {n = 0}", STORE))
    assert {e.code for e in r.reports} == {"sim/race"} and "ld_shared" in " ".join(n for e in r.reports for n in e.notes)


def test_slots_are_apart():
    slot = "= slot %s, %0 {{ahead = {}}} : smem f32[32,32]{{panel 32}}"
    lines = [LOAD + ROWS1, f"%a {slot.format(0)}", f"%b {slot.format(1)}", f"%c {slot.format(2)}", "st_shared %x, %a, %0, %0",
             "%y = ld_shared %{}, %0, %0 : frag f32[32,32]" + ROWS1, STORE]
    at = lambda name: kernel(*[x.replace("%{}", "%" + name) for x in lines], slots=" x2")
    assert not run(at("c"))[1].reports  # two slots on from the first is the first
    (e,) = run(at("b"))[1].reports
    assert e.code == "sim/stale" and "reads s[slot 1] row 0, column 0, which nothing has written" in e.message


def test_nothing_has_written():
    (e,) = run(kernel(READ, STORE))[1].reports
    assert e.code == "sim/stale" and "ld_shared reads s row 0, column 0, which nothing has written" in e.message
    assert "role main, warp 0" in e.notes[0]


def test_divergent_barrier():
    """A branch that one warp takes holds a barrier."""
    lines = [
        LOAD + ROWS2,
        "%n = const {value = 16, dtype = i32} : i32",
        "%r = iota : frag i32[32]{w2@1 r16@1}",
        "%low = lt %r, %n : frag i1[32]{w2@1 r16@1}",
        "%some = vote_any %low : i1",
        "if %some {",
        "  barrier",
        "  yield",
        "} else {",
        "  yield",
        "}",
        "%y = mul %x, %x : frag f32[32,32]" + ROWS2,
        STORE,
    ]
    for seed in range(4):
        (e,) = run(kernel(*lines, warps=2), seed=seed)[1].reports
        assert e.code == "sim/deadlock" and e.loc.line == line_of(lines, "barrier")
        assert any("warp 0: waits at barrier" in n and f"t.fcir:{line_of(lines, 'barrier')}" in n for n in e.notes)
        assert any("warp 1: has finished" in n for n in e.notes)


def test_two_barriers_are_not_one():
    lines = [
        "%n = const {value = 16, dtype = i32} : i32",
        "%r = iota : frag i32[32]{w2@1 r16@1}",
        "%low = lt %r, %n : frag i1[32]{w2@1 r16@1}",
        "%some = vote_any %low : i1",
        "if %some {",
        "  barrier",
        "  yield",
        "} else {",
        "  barrier",
        "  yield",
        "}",
    ]
    (e,) = run(kernel(*lines, warps=2))[1].reports
    assert e.code == "sim/deadlock" and sum("waits at barrier" in n for n in e.notes) == 2


@pytest.mark.parametrize("op", ["ld_global", "st_global", "cp_async"])
def test_outside_a_tensor(op):
    bad = WHOLE.replace("true", "false")
    load = (LOAD + ROWS1).replace(WHOLE, bad if op == "ld_global" else WHOLE)
    store = "st_global %Y, %x, %0 {" + (bad if op == "st_global" else WHOLE) + ", vec = 1}"
    copy = [COPY.replace(WHOLE, bad), "commit_group", "wait_group {n = 0}"] if op == "cp_async" else []
    k = kernel(load, store, *copy)
    assert not run(k, rows=32)[1].reports
    (e,) = run(k, rows=20)[1].reports
    assert e.code == "sim/bounds" and f"{op} outside" in e.message and e.expected == "0..19 along axis 0" and e.got == "0..31"


@pytest.mark.parametrize("first", [-16, -1, 0, 16, 17, 32])
def test_a_slice_begins_inside_its_tile(first):
    """Also where it begins is known only when the kernel runs."""
    cut = "{r32@1 | l32@1}"
    lines = [
        LOAD + cut,
        "%unit = const {value = 1, dtype = i32} : i32",
        f"%begin = const {{value = {first}, dtype = i32}} : i32",
        "%stop = add %begin, %unit : i32",
        "%y = for %begin, %stop, %x (%turn: i32, %before: frag f32[32,32]" + cut + ") {",
        "  %half = slice %x, %turn {axis = 0} : frag f32[16,32]" + cut.replace("r32", "r16"),
        "  yield %before",
        "} : frag f32[32,32]" + cut,
        STORE,
    ]
    reports = run(kernel(*lines))[1].reports
    assert [(e.code, e.expected, e.got) for e in reports] == ([] if 0 <= first <= 16 else [("sim/bounds", "0 to 16", first)])


def test_outside_a_tile():
    (e, *_) = run(
        kernel(
            LOAD + ROWS1,
            "%n = const {value = 8, dtype = i32} : i32",
            "st_shared %x, %s, %n, %0",
            "%y = mul %x, %x : frag f32[32,32]" + ROWS1,
            STORE,
        )
    )[1].reports
    assert e.code == "sim/bounds" and "st_shared outside its tile" in e.message and "row 39" in e.got


def test_guarded_elements():
    x, r = run(
        kernel(LOAD + ROWS1, "%one = const {value = 1.0, dtype = f32} : f32", "%y = add %x, %one : frag f32[32,32]" + ROWS1, STORE), rows=20
    )
    assert not r.reports
    np.testing.assert_array_equal(r.outputs["Y"], x + 1)


def test_two_programs_write_one_element():
    (e,) = run(kernel(LOAD + ROWS1, STORE.replace("%y", "%x"), grid="2"))[1].reports
    assert e.code == "sim/race" and "two programs touch Y[0, 0]" in e.message and "program (0,), role main, warp 0" in e.notes[0]


def test_two_programs_add_to_one_element():
    add = STORE.replace("%y", "%x").replace("vec = 1", 'vec = 1, reduce = add')
    x, r = run(kernel(LOAD + ROWS1, add, grid="3"), Y=np.ones((32, 32), np.float32))
    assert not r.reports
    np.testing.assert_array_equal(r.outputs["Y"], 1 + 3 * x)


def test_some_programs():
    k = kernel(LOAD + ROWS1, STORE.replace("%y", "%x"), grid="2")
    x = np.ones((32, 32), np.float32)
    assert not simulate(k, {"X": x}, target("sm_89"), programs=[(1,)]).reports
    assert simulate(k, {"X": x}, target("sm_89"), programs=[]).steps == 0


def test_check_raises_the_first_report():
    with pytest.raises(FcError) as e:
        check(kernel(*lane_kernel([])), {"X": np.ones((32, 32))}, target("sm_89"))
    assert e.value.code == "sim/race" and "earlier:" in str(e.value) and "later:" in str(e.value)


def test_reports_do_not_depend_on_the_seed():
    """Also where the reader may come first and find nothing written."""
    k = kernel(*warp_kernel([]), warps=2)
    assert {frozenset(e.code for e in run(k, seed=s)[1].reports) for s in range(8)} == {frozenset({"sim/race"})}


def test_a_part_of_an_accumulator_begins_inside_it():
    """`mma` with a first column that is past the accumulator's last."""
    program = attention.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 32}, warps=1, hold_a=False), T=fc.f16, D=256, E=256)

    def moved(op, b, env):
        if op.kind != "mma" or len(op.operands) != 4:
            return False
        far = b.emit("const", value=op.operands[2].type.shape[1], dtype="i32")
        env[op.result] = b.emit("mma", *op.operands[:3], far, type=op.result.type, instr=op["instr"])
        return True

    wrong = map_bodies(program.machine, lambda body: rewrite(body, moved))
    assert any(op.kind == "mma" and len(op.operands) == 4 for op in walk_kernel(wrong))
    x = np.zeros((1, 1, 16, 256), np.float16)
    reports = simulate(wrong, {"Q": x, "K": x, "V": x, "scale": 1.0}, program.target).reports
    assert {(e.code, e.message) for e in reports} == {("sim/bounds", "a part of an accumulator begins outside of its tile")}
