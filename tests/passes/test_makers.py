"""Operands that loops compute from loads alone are made by a role of their own: it reads what bulk copies brought, and fills a ring."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks import prologue_specs as specs
from benchmarks.prologues import MADE, binding
from fcgen.ir.core import walk
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel
from tests.passes.test_prologues import EVERY, agrees, compiled, steady

NAMES = ["rotary", "normed", "quantised", "scaled"]


@pytest.mark.parametrize(("name", "stages"), [(n, s) for k, n in enumerate(NAMES) for s in (1, 2, 3) if EVERY or s == 1 + k % 3])
def test_specs_are_right_around_the_depth_of_their_rings(name, stages):
    p = compiled(name, "sm_90a", stages=stages, makers=4)
    assert [(r.name, r.warps) for r in p.machine.roles] == [("load", 4), ("make", 4), ("main", 4)]
    for trips in range(1, 2 * stages + 2) if EVERY else (1, 2, 2 * stages + 1):
        agrees(p, name, 16 * trips - 5 * (trips % 2), seed=trips)


WAYS = {"late": {"late": "acc"}, "dynamic": {"late": "acc", "persistent": "dynamic", "hints": True, "pdl": True},
        "two_groups": {"warps": 8, "late": "acc", "tokens": True}, "static": {"persistent": "static"},
        "three_groups": {"warps": 12, "late": "acc", "epilogue": "tma", "persistent": "static"},
        "branch": {"split": "branch", "own_rows": False}, "one_loop": {"split": "none", "late": "acc", "stages": 1},
        "cluster": {"warps": 8, "cluster": {"rows": 2}, "late": "acc"}}


@pytest.mark.parametrize(("name", "way"), [(n, w) for i, n in enumerate(["rotary", "scaled", "normed"]) for k, w in enumerate(WAYS)
                                           if (EVERY or k % 3 == i) and (n, w) != ("rotary", "cluster")])
def test_other_fields_of_a_schedule_go_with_it(name, way):
    more = WAYS[way]
    p = compiled(name, "sm_90a", tiles={"BLOCK_M": 16 * more.get("warps", 4)}, **{k: v for k, v in more.items() if k != "tiles"}, makers=4)
    for trips in (1, 2, 3, 4) if EVERY else (1, 4):
        agrees(p, name, 16 * trips - 5 * (trips % 2), seed=trips)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_for_the_products_is_the_loop_of_a_plain_kernel(name):
    """No tile is computed, stored or waited for with a barrier beside the products; each raw tile is read by the makers alone."""
    p = compiled(name, "sm_90a", makers=4, **({"late": "acc"} if name != "quantised" else {}))
    for ops in steady(p):
        assert not any(o.kind in ("st_shared", "stmatrix", "barrier") for o in ops)
    make = p.machine.roles[1]
    assert not any(o.kind in ("barrier", "wgmma", "ldmatrix") for o in walk(make.body))
    assert parse_kernel(text := print_kernel(p.machine)) and print_kernel(parse_kernel(text)) == text


def test_the_makers_take_the_tile_a_few_rows_at_a_time():
    p = specs.rotary.compile(target="sm_90a", schedule=MADE, check=False, **binding("rotary", 128))
    most = max(v.type.layout.regs for o in walk(p.machine.roles[1].body) for v in o.results if getattr(v.type, "layout", None) is not None
               and len(getattr(v.type, "shape", ())) == 2 and o.kind == "ld_shared")
    assert most == 8 and not p.built.remarks, "nothing spills"
    assert sum(r.warps * r.regs for r in p.machine.roles) * 32 <= 65536


def test_arrivals_that_stand_close_share_a_fence():
    """Two tiles are read and two are made in a step: a fence waits for all that was read and stored, and there is one."""
    p = specs.rotated.compile(target="sm_90a", schedule=MADE, check=False, **binding("rotated", 128))
    steps = [[o.kind for o in b.ops] for b in blocks(p.machine.roles[1].body) if any(o.kind == "st_shared" for o in b.ops)]
    assert len(steps) == 3
    for kinds in steps:
        assert kinds.count("proxy_fence") == 1 and kinds.count("mbar_arrive") == 4
        assert "mbar_arrive" not in kinds[:kinds.index("proxy_fence")] and "st_shared" not in kinds[kinds.index("proxy_fence"):]


def blocks(block):
    yield block
    for o in block.ops:
        for r in o.regions:
            yield from blocks(r)


@fc.kernel
def bent(A: "f16[M, K]", B: "f16[K, N]", C: "out f32[M, N]"):
    """The right operand follows from the product before it."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        top = fc.max(fc.max(acc, axis=1), axis=0)
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), (fc.load(B[depth, cols]).to(fc.f32) * top).to(A.dtype))
    fc.store(C[rows, cols], acc)


@fc.kernel
def scaled_rows(A: "f16[M, K]", B: "i32[N, K]", S: "f32[N]", C: "out f32[M, N]"):
    """The factors are loaded in front of the loop: the makers have theirs as they want them."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        b = (fc.load(B[cols, depth]).to(fc.f32) * (fc.load(S[cols]) + 1.0)).to(A.dtype)
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), b.T)
    fc.store(C[rows, cols], acc)


@pytest.mark.parametrize("warps", [4, 8])
def test_what_no_loop_changes_is_read_by_the_makers_as_they_want_it(warps):
    tiles = {"BLOCK_M": 16 * warps, "BLOCK_N": 64, "BLOCK_K": 32}
    p = scaled_rows.compile(target="sm_90a", schedule=fc.Schedule(tiles=tiles, warps=warps, math="wgmma", copy="tma", makers=4))
    rng = np.random.default_rng(0)
    a, b, s = rng.standard_normal((70, 90)).astype(np.float16), rng.integers(-9, 9, (80, 90), np.int32), rng.uniform(0, 1, 80).astype(np.float32)
    got = p.simulate(A=np.ascontiguousarray(np.pad(a, ((0, 0), (0, 6)))), B=np.pad(b, ((0, 0), (0, 6))), S=s)["C"]
    np.testing.assert_allclose(got, a.astype(np.float64) @ (b * (s[:, None] + 1.0)).T, rtol=1e-2, atol=0.1)


def test_tables_may_come_straight_to_the_makers_registers():
    """A few rows at a time, three pieces ahead: no ring, and no piece of another tile beside it."""
    p = compiled("rotary", "sm_90a", n=64, stages={"t": 0}, makers=4)
    reads = [o for o in walk(p.machine.roles[1].body) if o.kind == "ld_global"]
    assert reads and not any(b.name in ("t", "t_full") for b in p.machine.buffers)
    assert all(o.result.type.layout.regs <= 16 for o in reads)
    for trips in (1, 3):
        agrees(p, "rotary", 64 * trips - 5, seed=trips)


@pytest.mark.parametrize(("stages", "words"), [(0, "1 to 8"), ({"v": 0}, "an operand of a dot as it is"), ({"x": 0, "y": 0}, "")])
def test_no_ring_is_for_tiles_that_could_have_one(stages, words):
    make = lambda: compiled("rotary", "sm_90a", stages=stages, makers=4).machine
    if not words:
        assert not any(b.name in ("x", "y") for b in make().buffers)
        return
    with pytest.raises(fc.FcError, match=words):
        make()


@pytest.mark.parametrize(("more", "words"), [
    ({"makers": 4, "copy": "cp_async", "math": "mma"}, 'copy="tma"'), ({"makers": 4, "warps": 16}, "warps=4, 8 or 12"),
    ({"makers": 3}, "0 or 4")])
def test_makers_where_there_can_be_none_are_refused(more, words):
    with pytest.raises(fc.FcError, match=r"makers") as e:
        assert compiled("rotary", "sm_90a", **more).machine
    assert words in str(e.value)


def test_makers_without_anything_to_make_are_refused():
    with pytest.raises(fc.FcError, match=r"Schedule.makers has no effect"):
        assert compiled("plain", "sm_90a", makers=4).machine
    tiles = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
    with pytest.raises(fc.FcError, match=r"Schedule.makers has no effect"):
        assert bent.compile(target="sm_90a", schedule=fc.Schedule(tiles=tiles, math="wgmma", copy="tma", makers=4)).machine


def test_what_makers_work_upon_in_one_copy_of_a_loop_takes_no_slots_of_the_other():
    """Products of whole tiles read what is copied, those of masked ones what makers made: of these, the tensor's tile."""
    @fc.kernel
    def spec(A: "f16[M, K]", B: "f16[K, N]", C: "out f32[M, N]"):
        (rows,) = fc.grid(fc.tile(A.M, "BM"))
        acc = fc.var(fc.zeros(rows, B.N))
        for ks in fc.loop(fc.tile(A.K, "BK"), live=lambda ks: ks.index >= rows.start):
            acc <<= acc + fc.dot(fc.load(A[rows, ks]), fc.where(ks.index >= rows.start + 5, fc.load(B[ks]), 0.0))
        fc.store(C[rows], acc)

    schedule = fc.Schedule(tiles={"BM": 64, "BK": 64}, math="wgmma", copy="tma", makers=4)
    p = spec.compile(target="sm_90a", N=64, schedule=schedule)
    rng = np.random.default_rng(7)
    given = {"A": rng.standard_normal((128, 200)).astype(np.float16), "B": rng.standard_normal((200, 64)).astype(np.float16)}
    np.testing.assert_allclose(p.simulate(**given)["C"], p.interpret(**given)["C"], atol=1e-2)
