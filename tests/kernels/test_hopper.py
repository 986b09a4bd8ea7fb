"""Attention on Hopper without a GPU: every schedule field runs in the simulator, silently and with the right numbers, at trip counts around
the depth of its rings; the library's schedules compile without spills or serialised products."""

from dataclasses import replace

import numpy as np
import pytest

from fcgen.build.compiler import refuse_serialised
from fcgen.errors import FcError
from fcgen.ir.core import Block, walk, walk_kernel
from fcgen.ir.schedule import Schedule
from fcgen.ir.types import DTYPES
from fcgen.kernels import hopper_schedules
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.sim.machine import check


def schedule(m, n, groups, stages=2, **more):
    return Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", stages=stages,
                    **{"late": "acc", "vote": True, "epilogue": "quad", **more})


SCHEDULES = {
    "one_group": schedule(64, 16, 1),
    "plain": schedule(128, 16, 2, late="", vote=False, own_rows=False, epilogue="smem"),
    "dynamic": schedule(128, 16, 2, persistent="dynamic", compare_bits=True, l2=32),
    "turns": schedule(192, 16, 3, {"q": 2, "k": 3, "v": 3}, persistent="dynamic", tokens=True, l2=32, hints=True, ones="acc"),
    "static": schedule(128, 16, 2, {"q": 1, "k": 1, "v": 1}, persistent="static", epilogue="direct", regs_a="s"),
    "not_split": schedule(128, 16, 2, split="none", defer=False),
    "ones": schedule(64, 32, 1, late="", vote=False, ones="acc", persistent="static"),
}


def compiled(s, mask="none", d=16, e=16, spec="lse", lazy=2.0, dtype="f16", sums="rounded"):
    return attention.compile(**VARIANTS[spec], target="sm_90a", schedule=s, T=DTYPES[dtype], D=d, E=e, mask=mask, lazy=lazy, sums=sums)


def arguments(m, n, d=16, e=16, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda h, s, w: rng.standard_normal((1, h, s, w)).astype(np.float16)
    return {"Q": draw(2, m, d), "K": draw(1, n, d), "V": draw(1, n, e), "scale": 0.4}


@pytest.mark.parametrize("mask", ["none", "causal_top_left", "causal_bottom_right"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_simulator_is_silent_and_agrees_with_the_tile_program(name, mask):
    p = compiled(replace(SCHEDULES[name], l2=0) if mask == "none" else SCHEDULES[name], mask)
    for trips in (0, 1, 2, 3, 7):
        args = arguments(70, max(1, 16 * trips - 5), seed=trips)
        got, want = p.simulate(seed=trips, **args), p.interpret(**args)
        for key in want:
            a, b = got[key].astype(np.float32), want[key].astype(np.float32)
            assert (np.isinf(a) == np.isinf(b)).all()
            assert np.abs(np.where(np.isinf(b), 0, a - np.where(np.isinf(b), 0, b))[~np.isinf(b)]).max(initial=0) < 2e-3


@pytest.mark.parametrize("sums", ["exact", "corrected"])
@pytest.mark.parametrize("name", ["plain", "dynamic", "not_split"])
def test_every_kind_of_sum_runs_silently(name, sums):
    """A running maximum is kept by lanes, as floats or as bit patterns; it starts at 0, and here most scores are negative."""
    p = compiled(SCHEDULES[name], "causal_bottom_right", sums=sums)
    args = arguments(70, 75)
    args["K"] = -np.abs(args["K"]) + 0.3
    args["Q"] = np.abs(args["Q"]) * 3
    got, want = p.simulate(**args), p.interpret(**args)
    for key in want:
        np.testing.assert_allclose(got[key].astype(np.float32), want[key].astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("m, n", [(200, 33), (33, 200), (300, 1)])
def test_rows_without_keys_and_groups_without_rows_stop_nobody(m, n):
    """More rows than keys: whole warpgroups see no key, and ranges are empty, even negative."""
    for name in ("dynamic", "turns"):
        got = compiled(SCHEDULES[name], "causal_bottom_right").simulate(**arguments(m, n))
        assert np.isfinite(got["O"].astype(np.float32)).all()


@pytest.mark.parametrize("kind", ["mbar_arrive", "mbar_wait", "wgmma_fence", "settle"])
def test_a_missing_op_is_reported(kind):
    """The protocol that `roles`, `overlap` and `sync` wrote, with one op taken out of `main`'s loop."""
    p = compiled(SCHEDULES["one_group"])
    role = p.machine.roles[1]
    loop = next(o for o in walk(role.body) if o.kind == "for" and any(x.kind == "wgmma" for x in walk(o.regions[0])))
    victim = next(o for o in loop.regions[0].ops if o.kind == kind)
    if kind == "settle":
        broken = replace(victim, attrs={"groups": victim["groups"] + 1})

    def without(block):
        return Block(block.args, tuple(
            (broken if kind == "settle" else None) if o is victim else replace(o, regions=tuple(map(without, o.regions))) if o.regions else o
            for o in block.ops if o is not victim or kind == "settle"))

    kernel = replace(p.machine, roles=(p.machine.roles[0], replace(role, body=without(role.body))))
    with pytest.raises(FcError) as e:
        check(kernel, arguments(64, 200), p.target)
    assert e.value.code.startswith("sim/")


def neither_spills_nor_serialises(p):
    assert p.resources.spill_stores <= 4  # a number that a role reads once a tile
    assert "C75" not in p.built.log


@pytest.mark.parametrize(("d", "mask"), [(16, "causal_top_left"), (72, "none"), (192, "none"), (256, "causal_top_left"),
                                           *((d, m) for d in (64, 128) for m in ("none", "causal_top_left"))])
def test_no_library_schedule_spills_or_serialises(d, mask):
    for length, tiles in ((512, 1 << 20), (4096, 1 << 20), (512, 2)):
        schedule, lazy, sums = hopper_schedules.pick(d, mask, length, length, tiles, 132)
        p = compiled(schedule, mask, d, d, lazy=lazy, sums=sums)
        neither_spills_nor_serialises(p)


NARROW = [row for row in hopper_schedules.rows()
          if row.value < row.head or row in (*hopper_schedules.FINE, *hopper_schedules.ALONE, *hopper_schedules.CHUNK)]


@pytest.mark.parametrize("row", NARROW, ids=lambda row: f"{row.head}-{row.masks}-{row.keys}")
def test_nor_does_one_for_few_tiles_or_a_narrow_value(row):
    p = compiled(row.schedule, "none" if row.masks == "none" else "causal_bottom_right", row.head, min(row.head, row.value),
                 lazy=hopper_schedules.LAZY, sums=row.sums)
    neither_spills_nor_serialises(p)


@pytest.mark.parametrize(("rows", "keys", "heads", "tile"), [
    (4096, 4096, 6, 192), (2048, 2048, 8, 128), (4096, 4096, 64, 192), (512, 16384, 32, 128), (512, 16384, 128, 192), (512, 512, 8, 64)])
def test_tiles_are_chosen_by_how_they_fill_the_multiprocessors(rows, keys, heads, tile):
    """132 of them: 6 heads of 22 tiles of 192 rows are one whole wave, 8 heads of 11 are two thirds of one."""
    assert dict(hopper_schedules.pick(128, "none", rows, keys, heads, 132).schedule.tiles)["BLOCK_M"] == tile


@pytest.mark.parametrize(("heads", "claims"), [(32, "none"), (34, "dynamic")])
def test_tiles_that_all_run_at_once_are_not_claimed(heads, claims):
    """32 heads of 4 tiles of 128 rows are 128 blocks, on 132 multiprocessors."""
    s = hopper_schedules.pick(128, "causal_bottom_right", 512, 16384, heads, 132).schedule
    assert s.persistent == claims


@pytest.mark.parametrize("d", [16, 64, 128, 256])
def test_nor_does_one_for_a_scale_that_may_be_negative(d):
    for tiles in (1 << 20, 2):
        schedule, lazy, sums = hopper_schedules.pick(d, "causal_top_left", *((4096, 4096) if tiles > 2 else (512, 512)), tiles, 132, positive=False)
        p = compiled(schedule, "causal_top_left", d, d, spec="any_scale_lse", lazy=lazy, sums=sums)
        neither_spills_nor_serialises(p)


@pytest.mark.parametrize("run", ["interpreted", "simulated"])
def test_the_largest_weight_is_corrected_by_the_rounding_that_it_had(run):
    """Scores around 1300; the first tile's maximum is some 4 powers of e too small, so that the one weight that counts is no exact 1. Of values
    that are all 1, rows give 1, if what is computed twice, the weight and its rounding, is the same bits."""
    rows, keys = np.arange(128), 200
    q, k = np.zeros((1, 1, 128, 16), np.float16), np.zeros((1, 1, keys, 16), np.float16)
    q[0, 0, :, 0], q[0, 0, :, 1] = 32 + rows / 32, 1 + rows / 1024
    k[0, 0, :, 0], k[0, 0, :, 1] = 31.25, -20
    k[0, 0, keys - 1, 1], k[0, 0, 5, 1] = 0, 3
    p = compiled(schedule(128, 32, 2), lazy=5.5, sums="corrected")
    given = {"Q": q, "K": k, "V": np.ones((1, 1, keys, 16), np.float16), "scale": 1.3}
    o = p.interpret(**given)["O"] if run == "interpreted" else p.simulate(**given)["O"]
    np.testing.assert_array_equal(o, 1.0)


def test_two_dots_are_in_flight_together():
    p = compiled(replace(SCHEDULES["dynamic"], l2=0))
    groups = [o["groups"] for o in walk_kernel(p.machine) if o.kind == "settle"]
    assert 1 in groups and 0 in groups


def test_a_tile_that_does_not_divide_over_the_warpgroups_is_refused():
    with pytest.raises(FcError, match="does not divide into wgmma instructions"):
        _ = compiled(schedule(64, 16, 2)).machine


def test_a_note_of_ptxas_on_serialised_products_fails_the_build_at_the_products_line():
    machine = compiled(SCHEDULES["one_group"]).machine
    refuse_serialised("ptxas info : Used 128 registers", machine)
    note = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..."
    with pytest.raises(FcError, match="serialised") as e:
        refuse_serialised(note, machine)
    assert e.value.code == "compile/ptxas" and e.value.loc is not None and "attention.py" in e.value.loc.file


def test_an_arrival_after_plain_loads_waits_for_the_whole_warp():
    p = compiled(schedule(64, 16, 1, epilogue="smem"))
    before = [a for a, b in zip(p.cuda.splitlines(), p.cuda.splitlines()[1:]) if "if (lane == 0) mbar_arrive(" in b]
    assert before and all("__syncwarp();" in line for line in before)
