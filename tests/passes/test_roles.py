"""Roles: what a bulk copy cannot do is refused where the spec asks for it."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fcgen as fc
from fcgen.build import compiler
from fcgen.errors import FcError
from fcgen.ir.core import walk
from fcgen.ir.parse import parse_kernel
from fcgen.kernels.attention import attention
from fcgen.passes import run_passes


@fc.kernel
def product(A: T[M, K], B: T[N, K], C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc)


def lowered(k, edit=lambda text: text):
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": k}, math="wgmma", copy="tma")
    p = product.compile(target="sm_90a", T=fc.f16, schedule=schedule)
    return run_passes(parse_kernel(edit(str(p.tile))), schedule, p.target, stop_after="roles")


@pytest.mark.parametrize("k, copied", [(4, False), (8, True), (16, True), (64, True)])
def test_tiles_whose_rows_are_no_whole_16_bytes_go_through_registers(k, copied):
    assert any(o.kind == "tma_load" for r in lowered(k).roles for o in walk(r.body)) is copied


def test_copies_that_would_start_inside_16_bytes_are_refused():
    def shifted(text):
        line = re.search(r"( *)%depth_start = (mul (%depth_tile), .*)", text)
        return text.replace(line[0], f"{line[1]}%mine = {line[2]}\n{line[1]}%depth_start = add %mine, {line[3]} : i32")

    with pytest.raises(FcError, match="may start inside 16 bytes of a row"):
        lowered(16, shifted)


def test_tiles_that_are_larger_than_a_bulk_copy_come_in_several() -> None:
    schedule = fc.Schedule(tiles={"BLOCK_M": 384, "BLOCK_N": 32, "BLOCK_K": 32}, warps=12, math="wgmma", copy="tma")
    p = product.compile(target="sm_90a", schedule=schedule, T=fc.f16)
    assert len(re.findall(r"^ *tma_load_2d\(a_tile", p.cuda, re.M)) == 2 and len(re.findall(r"^ *tma_load_2d\(b_tile", p.cuda, re.M)) == 1
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, 64)).astype(np.float16) for n in (400, 40))
    assert np.abs(p.simulate(A=a, B=b)["C"] - a.astype(float) @ b.astype(float).T).max() < 1e-2


@pytest.mark.parametrize(("target", "fields"), [("sm_89", {"warps": 4}), ("sm_90a", {"warps": 12, "math": "wgmma", "copy": "tma"}),
                                                ("sm_90a", {"warps": 8, "math": "wgmma", "copy": "tma", "own_rows": False})])
def test_ranges_of_groups_of_warps_hang_on_no_other_schedule(target, fields):
    """IR in which two groups have their own ranges is lowered for another number of them."""
    tiles = {"BLOCK_M": 384, "BLOCK_N": 64}
    traced = attention.trace(tiles, T=fc.f16, D=64, E=64, mask="causal_bottom_right", LSE=None)
    hopper = fc.Schedule(warps=8, math="wgmma", copy="tma")
    text = str(run_passes(traced, hopper, compiler.target("sm_90a"), stop_after="split_loops"))
    assert "narrow" in text and "row_part {parts = 2}" in text
    out = run_passes(parse_kernel(text), fc.Schedule(**fields), compiler.target(target), stop_after="place")
    assert {op["parts"] for op in walk(out.body) if op.kind == "row_part"} <= {fields["warps"] // 4 if fields.get("own_rows", True) else 1}


@fc.kernel
def two_products(A: T[M, K], B: T[K, N], W: T[M, D], V: T[D, N], C: "out f32[M, N]"):
    (rows,) = fc.grid(fc.tile(A.M, "BLOCK_M"))
    acc = fc.var(fc.dot(fc.load(W[rows]), fc.load(V[:])))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[depth]))
    fc.store(C[rows], acc)


def test_l2_keeps_what_other_programs_read_too():
    """In a loop or not: the tiles of A and W are each program's own, those of B and V are everyone's."""
    p = two_products.compile(target="sm_90a", T=fc.f16, N=64, D=64, check=False, schedule=fc.Schedule(
        tiles={"BLOCK_M": 64, "BLOCK_K": 64}, math="wgmma", copy="tma", hints=True))
    copies = {(o.operands[0].name, o["hint"]) for r in p.machine.roles for o in walk(r.body) if o.kind == "tma_load"}
    assert copies == {("A", "evict_first"), ("W", "evict_first"), ("B", "evict_last"), ("V", "evict_last")}
