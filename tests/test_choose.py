"""`fc.schedule_for`: for any spec a schedule that compiles, is right and does not spill, and says why; no table, no NVRTC."""

from __future__ import annotations

import re
from math import prod

import pytest

import fcgen as fc
from benchmarks.gemms import CASES as GEMMS
from benchmarks.random_schedules import Drawn, draw, verdict
from benchmarks.specs import CASES
from fcgen.build import compiler
from fcgen.build.choose import Chooser, choose
from fcgen.build.workload import Probe, Workload
from fcgen.cli.console import report
from fcgen.cli.specs import find
from fcgen.errors import FcError
from fcgen.ir.alignment import of_arguments
from fcgen.ir.core import walk_kernel
from fcgen.kernels.schedules import pick
from tests.sim.cases import sample

EVERY = [(name, target) for name in CASES for target in ("sm_80", "sm_89", "sm_90a")]
#: of the backward pass at D = 128: its two sums of columns alone take 128 registers in each row of 16, whatever the tiles are
TOO_MUCH = {("backward_128", "sm_80"), ("backward_128", "sm_89")}


def chosen(name: str, target: str, **sizes):
    case = CASES[name]
    return choose(case.spec, compiler.target(target), case.binding, sizes or case.large)


@pytest.mark.parametrize(("name", "target"), sample(EVERY, "right", 12))
def test_what_is_chosen_is_right(name, target) -> None:
    kind, said, _ = verdict(Drawn(name, target, "chosen"))
    assert kind == "right", said


@pytest.mark.parametrize(("name", "target"), sample([e for e in EVERY if e not in TOO_MUCH], "spills", 4))
def test_what_is_chosen_does_not_spill(name, target) -> None:
    kind, said, _ = verdict(Drawn(name, target, "chosen"), cubin=True)
    assert kind == "right", said


def test_what_bulk_copies_cannot_move_takes_another_schedule() -> None:
    """Where nobody gave one; the schedule of a caller is kept, and what it cannot do refused."""
    spec, odd = CASES["gemm_nt"].spec, of_arguments(0, (300, 64), (66, 1), 2)
    p = spec.compile(target="sm_90a", T=fc.f16)
    assert p.schedule.copy == "tma"
    other = p.narrowed({"A": odd})
    assert other.schedule.copy != "tma" and not any(o.kind == "tma_load" for o in walk_kernel(other.machine))
    with pytest.raises(FcError, match="more than is promised"):
        _ = spec.compile(target="sm_90a", schedule=p.schedule, T=fc.f16).narrowed({"A": odd}).machine


@pytest.mark.parametrize(("name", "target"), [("gemm_nn", "sm_80"), ("swiglu", "sm_90a"), ("library_causal", "sm_90a"), ("paged", "sm_90a")])
def test_sizes_of_zero_have_a_schedule(name, target) -> None:
    assert chosen(name, target, **dict.fromkeys(CASES[name].large, 0)).schedule.warps


@pytest.mark.parametrize("seed", range(5))
def test_random_schedules_are_right_or_refused(seed) -> None:
    d = draw(seed)
    kind, said, _ = verdict(d)
    assert kind != "bug", f"{d}: {said}"


@fc.kernel
def entropy(X: "T[M, N]", label: "i32[M]", loss: "out f32[M]", dX: "out T[M, N]", *, weight: "f32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    y, soft = fc.load(label[rows]), fc.online_softmax(rows)
    for cols in fc.loop(fc.tile(X.N, "BN")):
        soft.add(fc.load(X[rows, cols]).to(fc.f32))
    lse = soft.lse()
    fc.store(loss[rows], lse - fc.gather(X, rows.index, y).to(fc.f32))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        p = fc.exp(fc.load(X[rows, cols]).to(fc.f32) - lse)
        fc.store(dX[rows, cols], (weight * (p - fc.where(cols.index == y, 1.0, 0.0))).to(dX.dtype))


def test_lanes_hold_no_copies_of_a_tile_that_is_loaded() -> None:
    p = entropy.compile(target="sm_89", T=fc.f16)
    layouts = {o.result.type.layout for o in walk_kernel(p.machine) if o.kind == "ld_global" and len(o.result.type.shape) == 2}
    assert layouts and all(prod(f.size for axis in layout.axes for f in axis if f.unit == "l") == 32 for layout in layouts)


def test_it_is_quick() -> None:
    """A few kernels are lowered, of hundreds of candidates."""
    case = CASES["library"]
    probe = Probe({128})
    c = Chooser(Workload(case.spec.trace(probe, **case.binding), dict(probe), case.large), compiler.target("sm_90a"),
                lambda tiles: case.spec.trace(tiles, **case.binding))
    c.choose()
    assert len(list(c.plans())) > 300 and c.lowerings <= 12


@pytest.mark.parametrize(("name", "head", "target"), [
    ("library_causal", 64, "sm_90a"), ("library", 128, "sm_90a"), ("library_256", 256, "sm_90a"), ("library_causal", 64, "sm_89"),
    ("library", 128, "sm_80")])
def test_it_is_near_what_was_tuned(name, head, target) -> None:
    """The same instructions, and work per block within a factor of two of the library's own tables."""
    mine, tuned = chosen(name, target).schedule, pick(target, head, mask="causal" if "causal" in name else "none")
    area = lambda s: s.tile("BLOCK_M") * s.tile("BLOCK_N")
    assert (mine.math, mine.copy) == (tuned.math, tuned.copy) and 0.5 <= area(mine) / area(tuned) <= 2.0
    assert mine.late == tuned.late


@pytest.mark.parametrize(("name", "measured"), [
    ("norm", "tiles={BK: 64, BM: 128, BN: 256}, warps=8, math=wgmma, copy=tma, stages=3, epilogue=tma, persistent=static, l2=32"),
    ("norm-same", "tiles={BK: 64, BM: 128, BN: 256}, warps=8, math=wgmma, copy=tma, stages=3, epilogue=tma, persistent=static, l2=32"),
    ("int4-16", "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 128}, warps=4, math=wgmma, copy=tma, stages=4, epilogue=direct, min_blocks=2, pdl=True"),
    ("int4-4096", "tiles={BLOCK_K: 64, BLOCK_M: 256, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, stages=2, epilogue=tma, persistent=static, l2=32"),
])
def test_products_of_computed_operands_get_what_was_measured_to_be_good(name, measured) -> None:
    """On an H200: a ring of one slot for what the operand is made of halves the rate (0.56 of cuBLAS with three slots of 128 columns for
    the other one), small matrix instructions take 1.1 times as long for 16 rows."""
    case = GEMMS[name]
    assert str(fc.schedule_for(case.spec, "sm_90a", **case.sizes(), T=fc.f16)) == measured


def test_small_grids_get_small_tiles() -> None:
    tiles = lambda **sizes: chosen("gemm_nt", "sm_90a", **sizes).schedule
    small, large = tiles(M=512, N=512, K=4096), tiles(M=8192, N=8192, K=4096)
    area = lambda s: s.tile("BM") * s.tile("BN")
    assert area(small) <= area(large) / 4


def test_rows_that_no_bulk_copy_can_read_get_none() -> None:
    assert fc.schedule_for(CASES["gram"].spec, "sm_90a", T=fc.f16, D=64).copy == "tma"
    assert fc.schedule_for(CASES["gram"].spec, "sm_90a", T=fc.f16, D=20).copy == "cp_async"
    assert fc.schedule_for(CASES["gemm_nt"].spec, "sm_90a", T=fc.f16, K=100).copy == "cp_async"


def test_sizes_that_a_spec_binds_and_sizes_that_it_is_called_with() -> None:
    s = fc.schedule_for(CASES["split_keys"].spec, "sm_89", T=fc.f16, D=64, S=4, N=4096, H=8, M=64)
    assert {n for n, _ in s.tiles} == {"BM", "BN"}
    for wrong, match in (({"Q": 3}, "no compile-time parameter Q"), ({"T": fc.f16, "N": 0}, "positive"), ({}, "is not bound")):
        with pytest.raises(FcError, match=match):
            fc.schedule_for(CASES["gram"].spec, "sm_89", **wrong)
    with pytest.raises(FcError, match="takes a spec"):
        fc.schedule_for(lambda X: X, "sm_89")


def test_compile_uses_it_and_says_why() -> None:
    p = CASES["gram"].spec.compile(target="sm_89", T=fc.f16, D=64, check=False)
    assert p.schedule == fc.schedule_for(CASES["gram"].spec, "sm_89", T=fc.f16, D=64) and len(p.why) >= 2
    assert all(line in report(p) for line in p.why) and str(p.schedule) in report(p)
    given = CASES["gram"].spec.compile(target="sm_89", T=fc.f16, D=64, schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}))
    assert given.why == ()


def test_tile_ir_keeps_its_tiles(tmp_path) -> None:
    file = tmp_path / "g.tile.fc"
    file.write_text(str(CASES["gram"].spec.trace({"BM": 128, "BN": 32}, T=fc.f16, D=64)))
    p = find(str(file)).program("sm_90a", (), None)
    assert p.schedule.tiles == () and p.why and p.machine


def test_rows_of_which_a_tile_holds_few() -> None:
    """More than a tile can hold with the sizes that tell axes apart at first."""
    s = fc.schedule_for(CASES["row_softmax"].spec, "sm_89", T=fc.f16, D=5120)
    assert s.tile("BM") == s.warps  # each warp has a row


def test_what_nothing_can_be_chosen_for_is_refused_with_a_code() -> None:
    with pytest.raises(FcError) as e:
        fc.schedule_for(CASES["row_norm"].spec, "sm_89", T=fc.f16, D=20000)
    assert e.value.code == "compile/budget" and e.value.hint


@fc.kernel
def turned(X: "f32[M, N]", Y: "out f32[M, N]", *, sum):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
    x = fc.load(X[rows, cols])
    fc.store(Y[rows, cols], fc.dot(x, x) if sum else x.to(fc.f64))


def test_errors_without_a_schedule_name_tiles_and_say_what_was_tried() -> None:
    """Nobody wrote the sizes that a search draws."""
    with pytest.raises(FcError) as e:
        turned.compile(target="sm_89", sum=True)
    assert "[BM, BN]" in str(e.value) and not re.search(r"\d{3}", str(e.value).split(" at ")[0])
    with pytest.raises(FcError) as e:
        fc.schedule_for(CASES["row_norm"].spec, "sm_89", T=fc.f16, D=20000)
    assert any(n.startswith("nobody gave a schedule; this is of one that was tried: ") for n in e.value.notes)


def test_accumulators_of_more_columns_than_a_warpgroup_holds() -> None:
    """Two warpgroups have half of the columns each; both make the whole tile whose rows are reduced."""
    s = fc.schedule_for(CASES["library"].spec, "sm_90a", T=fc.f16, D=512, E=512, M=4096, N=4096, B=4, H=4, G=4)
    assert s.math == "wgmma" and dict(s.grid) == {"s": (1, 1)} and s.warps == 8


@pytest.mark.parametrize("name", ["gemm_nt", "swiglu"])
def test_products_in_flight_have_slots_to_come(name) -> None:
    """A loop that carries its products reads two slots at a time."""
    s = chosen(name, "sm_90a").schedule
    assert s.slots >= 3 and s.epilogue == "tma" and s.persistent == "static"


def test_blocks_that_all_run_at_once_take_one_tile_each() -> None:
    s = fc.schedule_for(CASES["gemm_nt"].spec, "sm_90a", T=fc.bf16, M=1024, N=1024, K=4096)
    assert s.math == "wgmma" and s.persistent == "none"


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(("cols", "depth"), [(8192, 8192), (4096, 11008), (11008, 4096), (4096, 4096), (28672, 8192)])
def test_few_rows_keep_all_multiprocessors_reading(rows, cols, depth) -> None:
    """As many blocks as multiprocessors, or nearly, each with several tiles under way; no tile is mostly rows that are not there. Two blocks
    share a loop at most."""
    s = chosen("gemm_nt", "sm_90a", M=rows, N=cols, K=depth).schedule
    assert s.copy == "tma" and s.pdl and s.slots >= 4 and s.tile("BM") == max(rows, 16)
    blocks = -(-cols // s.tile("BN")) * s.parts
    assert blocks >= 110 and (s.parts == 1 or blocks <= 132 * s.min_blocks)


@pytest.mark.parametrize(("rows", "cols", "depth"), [(24, 1536, 8960), (20, 2048, 7168), (30, 12288, 4096)])
def test_the_memory_sends_a_large_operand_once(rows, cols, depth) -> None:
    """One tile of 32 rows, not two of 16 that each read all columns: 0.81 of cuBLAS with two, 1.08 with one (24 x 1536 x 8960, H200)."""
    assert chosen("gemm_nt", "sm_90a", M=rows, N=cols, K=depth).schedule.tile("BM") == 32


@pytest.mark.parametrize(("rows", "cols", "depth", "cluster"), [
    (8192, 512, 8192, {"rows": 2}), (512, 8192, 8192, {"rows": 2}), (300, 4096, 4096, {"cols": 4}), (96, 8192, 8192, {"rows": 2}),
    (128, 4096, 14336, {"rows": 2}), (1024, 1024, 1024, {}), (2048, 2048, 2048, {}), (8192, 8192, 8192, {})])
def test_grids_that_run_all_at_once_share_what_blocks_of_a_cluster_read(rows, cols, depth, cluster) -> None:
    """Not large ones, whose blocks meet in the second level, and not short ones. Of cuBLAS on an H200, with and without: 0.91 and 0.74 for
    96 rows, 0.85 and 0.76 for 300, 0.93 and 1.12 for 1024 x 1024 x 1024."""
    assert dict(chosen("gemm_nt", "sm_90a", M=rows, N=cols, K=depth).schedule.cluster) == cluster