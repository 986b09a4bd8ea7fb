# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Five products of different shapes in one loop, each over a grid of warps: right in the simulator, and without spills."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.budget import check_budget
from fcgen.build import compiler
from fcgen.ir.alignment import of_arguments
from fcgen.ir.core import Block, walk, walk_kernel
from fcgen.ir.layout import warp_grid
from fcgen.sim.machine import check

LOG2E = 1.4426950408889634


@fc.kernel
def by_rows(Q: "T[B, H, M, D]", K: "T[B, H, N, D]", V: "T[B, H, N, D]", dO: "T[B, H, M, D]", LSE2: "f32[B, H, M]", Delta: "f32[B, H, M]",
            Sums: "inout f32[B, H, M, D]", dK: "out T[B, H, N, D]", dV: "out T[B, H, N, D]", *, scale: f32 > 0):
    """S and dP as the formulas have them: P and dS are read transposed, from shared memory."""
    b, h, cols = fc.grid(Q.B, Q.H, fc.tile(K.N, "BLOCK_N"))
    k, v = fc.load(K[b, h, cols]), fc.load(V[b, h, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, K.D))
    for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):
        q, do = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows])
        s, dp = fc.dot(q, k.T), fc.dot(do, v.T)
        p = fc.exp2(s * (scale * LOG2E) - fc.load(LSE2[b, h, rows]))
        ds = (p * (dp - fc.load(Delta[b, h, rows]))).to(K.dtype)
        dv <<= dv + fc.dot(p.to(V.dtype).T, do)
        dk <<= dk + fc.dot(ds.T, q)
        dq = fc.dot(ds, k)
        fc.atomic_add(Sums[b, h, rows], dq)
    fc.store(dK[b, h, cols], (dk * scale).to(K.dtype))
    fc.store(dV[b, h, cols], dv.to(V.dtype))


@fc.kernel
def turned(Q: "T[B, H, M, D]", K: "T[B, H, N, D]", V: "T[B, H, N, D]", dO: "T[B, H, M, D]", LSE2: "f32[B, H, M]", Delta: "f32[B, H, M]",
           Sums: "inout f32[B, H, M, D]", dK: "out T[B, H, N, D]", dV: "out T[B, H, N, D]", *, scale: f32 > 0):
    """All products as their transposes, that of dQ too: tiles of rows need be no multiple of 64."""
    b, h, cols = fc.grid(Q.B, Q.H, fc.tile(K.N, "BLOCK_N"))
    k, v = fc.load(K[b, h, cols]), fc.load(V[b, h, cols])
    dk, dv = fc.var(fc.zeros(cols, K.D)), fc.var(fc.zeros(cols, K.D))
    for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):
        q, do = fc.load(Q[b, h, rows]), fc.load(dO[b, h, rows])
        s = fc.dot(k, q.T)
        p = fc.exp2(s * (scale * LOG2E) - fc.load(LSE2[b, h, rows]))
        dv <<= dv + fc.dot(p.to(V.dtype), do)
        dp = fc.dot(v, do.T)
        ds = (p * (dp - fc.load(Delta[b, h, rows]))).to(K.dtype)
        dk <<= dk + fc.dot(ds, q)
        dq = fc.dot(k.T, ds)
        fc.atomic_add(Sums[b, h, rows], dq.T)
    fc.store(dK[b, h, cols], (dk * scale).to(K.dtype))
    fc.store(dV[b, h, cols], dv.to(V.dtype))


@pytest.fixture
def by_columns(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    for module in ("harness", "backward"):
        sys.modules.pop(module, None)
    return importlib.import_module("backward")


def hopper(m, n, groups, **more):
    return fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma",
                       **{"epilogue": "tma", "stages": {"q": 2, "do": 2}, **more})


def ada(m, n, warps, **more):
    return fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=warps, **{"stages": 1, "epilogue": "direct", **more})


#: spec ("" is the example's), head, schedule, grids that the products have
CASES = {
    "64x128": ("", 128, hopper(64, 128, 2), {(8, 1), (4, 2)}),
    "64x128 direct": ("", 64, hopper(64, 128, 2, epilogue="direct"), {(8, 1), (4, 2)}),
    "64x64, grids": ("", 64, hopper(64, 64, 2, grid={"s": (1, 1), "dp": (1, 1), "dv": (1, 2), "dk": (1, 2), "dq": (1, 2)}), {(4, 1), (4, 2)}),
    "one warpgroup": ("", 64, hopper(64, 64, 1), {(4, 1)}),
    "rows 128x128": ("by_rows", 64, hopper(128, 128, 2), {(8, 1)}),
    "rows 64x128": ("by_rows", 128, hopper(64, 128, 2), {(8, 1), (4, 2)}),
    "turned 80x128": ("turned", 64, hopper(80, 128, 2, grid={"dq": (1, 1)}), {(8, 1), (4, 1)}),
    "128x128": ("", 64, hopper(128, 128, 2), {(8, 1)}),
    "80x128": ("option", 128, hopper(80, 128, 2), {(8, 1)}),
    "96x128": ("option", 64, hopper(96, 128, 2, grid={"dq": (1, 2)}), {(8, 1), (4, 2)}),
    "late": ("", 64, hopper(64, 128, 2, late="dk+dq"), {(8, 1), (4, 2)}),
    "early": ("", 128, hopper(64, 128, 2, early="s"), {(8, 1), (4, 2)}),
    "early, both": ("by_rows", 64, hopper(64, 128, 2, early="s+dp", epilogue="direct"), {(8, 1), (4, 2)}),
    "behind": ("", 64, hopper(64, 128, 2, behind="dq"), {(8, 1), (4, 2)}),
    "behind and early": ("", 64, hopper(64, 128, 2, behind="dq", early="s"), {(8, 1), (4, 2)}),
    "sender": ("", 64, hopper(64, 128, 2, behind="dq", early="s", sender=True), {(8, 1), (4, 2)}),
    "sender, two slots": ("by_rows", 64, hopper(64, 128, 2, sender=True), {(8, 1), (4, 2)}),
    "sender, one part": ("turned", 64, hopper(80, 128, 2, grid={"dq": (1, 1)}, sender=True), {(8, 1), (4, 1)}),
    "sender, tiles in steps": ("", 64, hopper(64, 128, 2, behind="dq", early="s", sender=True, persistent="static"), {(8, 1), (4, 2)}),
    "sender, claimed tiles": ("", 64, hopper(64, 128, 2, sender=True, persistent="dynamic"), {(8, 1), (4, 2)}),
    "held operands": ("", 64, hopper(64, 128, 2, regs_a="s+dp"), {(8, 1), (4, 2)}),
    "ada": ("", 128, ada(32, 64, 8), {(4, 2), (2, 4)}),
    "ada rows": ("by_rows", 64, ada(32, 64, 4), {(4, 1), (2, 2)}),
}


def case(name, by_columns, target, sizes):
    """(program, arguments, gradients)."""
    which, d, schedule, _ = CASES[name]
    spec = {"by_rows": by_rows, "turned": turned}.get(which, by_columns.backward)
    p = spec.compile(target=target, schedule=schedule, T=fc.f16, D=d, **({"turned": True} if which == "option" else {}))
    given = by_columns.inputs(np.random.default_rng(d), m=sizes[0], n=sizes[1], d=d)
    args = {k: x.astype(np.float16 if k in ("Q", "K", "V", "dO") else np.float32) if k != "scale" else x for k, x in given.items()}
    return p, args, by_columns.reference(**{k: np.asarray(x, np.float64) for k, x in args.items()})


@pytest.mark.parametrize("name", CASES)
def test_five_products_in_a_loop(name, by_columns):
    _, _, schedule, grids = CASES[name]
    m, n = dict(schedule.tiles)["BLOCK_M"], dict(schedule.tiles)["BLOCK_N"]
    p, args, want = case(name, by_columns, "sm_90a" if schedule.math == "wgmma" else "sm_89", (2 * m + 9, n + 7))
    got = p.simulate(**args)
    for out in want:
        assert np.abs(got[out] - want[out]).max() < 3e-3, out
    assert {warp_grid(o.result.type.layout) for o in walk_kernel(p.machine) if o.kind in ("wgmma", "mma")} == grids
    assert not p.resources.spills


def iteration(p):
    """The ops of the loop that has the products."""
    loops = [o.regions[0].ops for o in walk_kernel(p.machine) if o.kind == "for" and any(x.kind == "wgmma" for x in o.regions[0].ops)]
    return loops[-1]


@pytest.mark.parametrize("name", ["128x128", "80x128", "64x128"])
def test_an_iteration_has_one_barrier_of_all_and_holds_no_rows(name, by_columns):
    """dS lies in two places in turn, so that nobody waits for those who still read the last one; LSE and Delta come and go with dO, are
    read where they are used, and their slots are let go behind the fence that dS needs: an arrival does not wait for loads, and a bulk copy
    of rows outside a tensor is there at once (a GPU showed rows 4 to 7 and 12 to 15 of a warp with the next tile's Delta)."""
    p = case(name, by_columns, "sm_90a", (1, 1))[0]
    ops = iteration(p)
    assert [o.get("parts", 1) for o in ops if o.kind == "barrier"] == [1, 2]
    staged = next(o.operands[1] for o in ops if o.kind == "stmatrix")
    assert next(o for o in ops if staged in o.results).operands[0].type.slots == 2
    reads = [n for n, o in enumerate(ops) if o.kind == "ld_shared"]
    assert len(reads) == 2 and all(ops[n]["few"] for n in reads)
    kinds = [o.kind for o in ops]
    freed = [n for n, o in enumerate(ops) if o.kind == "mbar_arrive"]
    assert {ops[n].operands[0].name for n in freed} == {"q_empty", "do_empty"}
    assert {o.operands[0].name for o in ops if o.kind == "mbar_wait"} == {"q_full", "do_full"}
    assert kinds.count("proxy_fence") == 2 and max(reads) < kinds.index("proxy_fence") < kinds.index("barrier") < min(freed)
    for n in reads:
        assert {"sub", "mul", "exp2", "wgmma_fence"} & set(kinds[n + 1:n + 4]), "or in front of a product, where registers are left"
    assert check_budget(p.machine, p.target).fragment_regs <= 208


def test_no_barrier_keeps_warpgroups_in_step_where_the_product_follows_behind(by_columns):
    """What they store for it goes through a channel, of which nobody waits for the last tile: each has a place to store the next one in."""
    p, args, _ = case("behind", by_columns, "sm_90a", (250, 128))
    ops = iteration(p)
    assert [o["parts"] for o in ops if o.kind == "barrier"] == [2, 2]
    waits = [o for o in ops if o.kind == "mbar_wait" and o.operands[0].name.startswith("ds_tile")]
    stored, product = (next(n for n, o in enumerate(ops) if o.kind == kind) for kind in ("stmatrix", "tma_store"))
    assert [ops.index(w) < stored for w in waits] == [True, False] and ops.index(waits[1]) < product
    for wait in waits:
        kernel = replace(p.machine, roles=tuple(replace(r, body=without(r.body, wait)) for r in p.machine.roles))
        with pytest.raises(fc.FcError, match="sim/"):
            check(kernel, args, p.target)


@pytest.mark.parametrize("name", ["sender", "sender, two slots"])
def test_warps_that_compute_start_no_store_of_a_loop_where_there_is_a_sender(name, by_columns):
    """They meet at no barrier either; each wait and arrival of the channel is one that a race or a deadlock shows to be missing."""
    p, args, _ = case(name, by_columns, "sm_90a", (410, 128))
    send, main = p.machine.roles[1:]
    assert [r.warps for r in p.machine.roles] == [2, 2, 8] and send.name == "send"
    assert not any(o.kind == "tma_store" for loop in walk(main.body) if loop.kind == "for" for o in walk(loop.regions[0]))
    assert "barrier" not in [o.kind for o in iteration(p)] or name != "sender"
    loop = next(o.regions[0].ops for o in walk(send.body) if o.kind == "for")
    faults = [o for o in (*loop, *iteration(p)) if o.kind == "bulk_wait" or (o.kind in ("mbar_wait", "mbar_arrive") and
                                                                           o.operands[0].name.startswith(("dq_tile", "sums_tile")))]
    assert len(faults) == 8
    for fault in faults:
        kernel = replace(p.machine, roles=tuple(replace(r, body=without(r.body, fault)) for r in p.machine.roles))
        with pytest.raises(fc.FcError, match="sim/"):
            check(kernel, args, p.target)


def test_barriers_of_parts_are_read_and_verified(by_columns):
    """One thread says which part it means; warps mean their own. Roles of one thread share a warpgroup, and so its registers."""
    p = case("sender", by_columns, "sm_90a", (1, 1))[0]
    text = str(p.machine)
    assert str(compiler.from_text(text, "send.ir")) == text
    first = "{lag = 0, parts = 2, part = 0}"
    for old, new, why in ((first, "{lag = 0, parts = 2}", "one thread says which part"), (first, "{lag = 0, parts = 2, part = 2}", "one of its parts"),
                          (first, "{lag = 0, parts = 3, part = 0}", "as many slots as there are barriers"),
                          ("{lag = 1, parts = 2}", "{lag = 1, parts = 2, part = 1}", "nobody else does")):
        assert old in text
        with pytest.raises(fc.FcError, match=why):
            compiler.from_text(text.replace(old, new, 1), "send.ir")
    apart = replace(p.machine, roles=tuple(replace(r, regs=32) if r.name == "send" else r for r in p.machine.roles))
    with pytest.raises(fc.FcError, match="share a warpgroup"):
        compiler.to_cuda(apart, p.target)


@pytest.mark.parametrize("name", ["sender, tiles in steps", "sender, claimed tiles"])
def test_a_sender_hears_of_a_blocks_tiles_as_the_others_do(name, by_columns):
    """Each of its waits and arrivals of what it hears is one that a race or a deadlock shows to be missing."""
    p, args, _ = case(name, by_columns, "sm_90a", (70, 300))
    send = p.machine.roles[1]
    faults = [o for o in walk(send.body) if o.kind in ("mbar_wait", "mbar_arrive") and o.operands[0].name.startswith("next")]
    assert [o.kind for o in faults] == ["mbar_wait", "mbar_arrive"] * 2
    assert next(v.type.count for v in p.machine.buffers if v.name == "next_empty") == 8 + 1
    assert "ld_shared_i32x1(&" in p.cuda, "one thread asks no others"
    for fault in faults:
        kernel = replace(p.machine, roles=tuple(replace(r, body=without(r.body, fault)) for r in p.machine.roles))
        with pytest.raises(fc.FcError, match="sim/"):
            check(kernel, args, p.target)


def test_adds_that_have_turns_are_sent_for_one_tile_of_the_grid():
    from fcgen.kernels.backward import backward_in_turn
    p = backward_in_turn.compile(target="sm_90a", T=fc.f16, D=64, E=64, check=False,
                                 schedule=hopper(64, 128, 2, sender=True, persistent="static"))
    with pytest.raises(fc.FcError, match="for one tile of the grid"):
        p.machine  # noqa: B018


def test_copies_of_a_loop_have_the_channel_of_what_follows_behind_in_common(by_columns):
    schedule = hopper(64, 128, 2, behind="dq", early="s", sender=True, split="loops")
    from fcgen.kernels.backward import backward
    p = backward.compile(target="sm_90a", schedule=schedule, check=False, T=fc.f16, D=64, E=64, mask="causal_top_left")
    assert [v.name for v in p.machine.buffers].count("ds_tile") == 1
    given = by_columns.inputs(np.random.default_rng(1), m=330, n=200, d=64)
    args = {k: x.astype(np.float16 if k in ("Q", "K", "V", "dO") else np.float32) if k != "scale" else x for k, x in given.items()}
    args = {{"Sums": "dQ"}.get(k, k): x for k, x in args.items()}
    got, want = p.simulate(**args), p.interpret(**args)
    assert all(np.abs(np.asarray(got[k], np.float64) - np.asarray(want[k], np.float64)).max() < 4e-3 for k in want)


@pytest.mark.parametrize("more, why", [({"epilogue": "quad"}, "goes with other fields"), ({"epilogue": "tma", "spec": "rows"}, "no loop stores")])
def test_a_sender_that_has_nothing_to_send_is_refused(more, why, by_columns):
    from fcgen.kernels.backward import backward
    more = dict(more)
    absent = {"dQ": None} if more.pop("spec", None) else {}
    with pytest.raises(fc.FcError, match=why):
        backward.compile(target="sm_90a", T=fc.f16, D=64, E=64, schedule=hopper(64, 128, 2, sender=True, **more), **absent).machine  # noqa: B018


def without(block, op):
    return Block(block.args, tuple(replace(o, regions=tuple(without(r, op) for r in o.regions)) for o in block.ops if o is not op))


@pytest.mark.parametrize("field, name, why", [
    ("behind", "s", "it reads no tile that its iteration stages"), ("behind", "dk", "it reads no tile"), ("early", "dv", "its own iteration"),
    ("early", "dq", "its own iteration")])
def test_products_that_cannot_move_are_named(field, name, why, by_columns):
    with pytest.raises(fc.FcError, match=why):
        by_columns.backward.compile(target="sm_90a", T=fc.f16, D=64, schedule=hopper(64, 128, 2, **{field: name})).machine  # noqa: B018


def test_the_simulator_sees_a_slot_that_is_let_go_in_front_of_the_fence(by_columns):
    """As above, with the arrivals for LSE and Delta, which have rings of their own here, right behind the element work."""
    _, args, _ = case("128x128", by_columns, "sm_90a", (250, 128))
    schedule = hopper(64, 128, 2, stages={"q": 3, "do": 3})
    p = by_columns.backward.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=64)
    rows = ("lse2_tile_empty", "delta_tile_empty")

    def early(block):
        ops = [replace(o, regions=tuple(map(early, o.regions))) if o.regions else o for o in block.ops]
        moved = [o for o in ops if o.kind == "mbar_arrive" and o.operands[0].name in rows]
        if moved:
            ops = [o for o in ops if o not in moved]
            at = next(n for n, o in enumerate(ops) if o.kind == "slot" and o.operands[0].name == "ds_tile")
            ops[at:at] = moved
        return Block(block.args, tuple(ops))

    kernel = replace(p.machine, roles=tuple(replace(r, body=early(r.body)) for r in p.machine.roles))
    with pytest.raises(fc.FcError, match="sim/proxy"):
        check(kernel, args, p.target)
    check(p.machine, args, p.target)


@pytest.mark.parametrize("persistent", ["static", "dynamic"])
def test_a_barrier_in_front_of_a_loop_spares_one_in_each_iteration(persistent, by_columns):
    """Of blocks that take many tiles: the next tile's first store meets the last one's readers."""
    schedule = hopper(64, 128, 2, persistent=persistent)
    p = by_columns.backward.compile(target="sm_90a", T=fc.f16, D=64, schedule=schedule)
    assert [o.get("parts", 1) for o in iteration(p) if o.kind == "barrier"] == [1, 2]
    given = by_columns.inputs(np.random.default_rng(5), m=190, n=400)
    args = {k: x.astype(np.float16 if k in ("Q", "K", "V", "dO") else np.float32) if k != "scale" else x for k, x in given.items()}
    got, want = p.simulate(**args), by_columns.reference(**{k: np.asarray(x, np.float64) for k, x in args.items()})
    for out in want:
        assert np.abs(got[out] - want[out]).max() < 5e-3, out


def test_where_there_is_no_room_for_two_there_is_one(by_columns):
    p = by_columns.backward.compile(target="sm_90a", T=fc.f16, D=128, schedule=hopper(64, 128, 2, stages={"q": 4, "do": 3}))
    ops = iteration(p)
    assert [o.get("parts", 1) for o in ops if o.kind == "barrier"].count(1) == 2
    assert p.machine.meta["smem_bytes"] <= p.target.smem_per_block


@pytest.mark.parametrize(("turned", "split"), [(False, "loops"), (True, "loops"), (False, "branch")])
def test_dead_tiles_are_skipped_and_copies_of_the_loop_stage_in_one_place(turned, split, by_columns):
    """Causal, in the simulator; barriers are those of one loop, whichever copy runs."""
    p = by_columns.backward.compile(target="sm_90a", T=fc.f16, D=64, schedule=hopper(64, 128, 2, split=split), causal=True, turned=turned)
    given = by_columns.inputs(np.random.default_rng(3), m=300, n=300, causal=True)
    args = {k: x.astype(np.float16 if k in ("Q", "K", "V", "dO") else np.float32) if k != "scale" else x for k, x in given.items()}
    got, want = p.simulate(**args), by_columns.reference(**{k: np.asarray(x, np.float64) for k, x in args.items()}, causal=True)
    for out in want:
        assert np.abs(got[out] - want[out]).max() < 1e-2, out
    assert [o.get("parts", 1) for o in iteration(p) if o.kind == "barrier"] == [1, 2]


def test_what_is_chosen_is_what_is_known_to_be_fast(by_columns):
    """The tiles of the fastest that was measured, and a ring for each load: nobody needs to write a schedule."""
    for d, m in ((64, 128), (128, 64)):
        for causal in (False, True):
            s = fc.schedule_for(by_columns.backward, "sm_90a", T=fc.f16, D=d, B=4, H=2048 // d, M=4096, N=4096, causal=causal)
            assert dict(s.tiles) == {"BLOCK_M": m, "BLOCK_N": 128} and s.warps == 8 and s.epilogue == "tma" and s.slots == 2, s
            assert s.split == ("branch" if causal else "loops"), s


def test_rows_travel_through_rings_and_where_none_can_be_are_not_held_for_an_iteration(by_columns):
    """The two sums take 128 registers and the products 64 and 80: there are none for rows that wait. What bulk stores read shares bytes, or
    else there would be no room for the rings; rows of 71 numbers are not on 16 bytes."""
    p = case("64x128", by_columns, "sm_90a", (137, 135))[0]
    reads = lambda p: [o.kind for o in walk_kernel(p.machine) if o.kind in ("ld_global", "tma_load") and o.operands[0].name in ("LSE2", "Delta")]
    carried = lambda p: [v for o in walk_kernel(p.machine) if o.kind == "for" for v in o.results if getattr(v.type, "shape", ()) == (64,)]
    assert reads(p) == ["tma_load"] * 2
    odd = p.narrowed({name: of_arguments(0, (2, 2, 71), (142, 71, 1), 4) for name in ("LSE2", "Delta")})
    assert reads(odd) == ["ld_global"] * 2 and not carried(odd)
    check_budget(odd.machine, odd.target)
