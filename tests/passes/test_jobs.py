# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Products in roles of different jobs: one warpgroup's lead to tiles that the products of others read, through rings in shared memory."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk
from fcgen.ir.memory_map import shared_bytes
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel
from fcgen.kernels.backward import backward, backward_scores
from fcgen.sim.machine import simulate
from tests.sim.async_faults import ASYNC_FAULTS
from tests.sim.faults import FAULTS
from tests.sim.generated import chained, jobs

JOBS = {"makers": 4, "made": "s+dp"}


def right(case, counts, seeds=(0, 1)):
    for steps in counts:
        for seed in seeds:
            arguments, expected = case.draw(seed, steps)
            result = simulate(case.program.machine, arguments, case.program.target, seed=seed)
            assert not result.reports, "\n".join(map(str, result.reports))
            for name, want in expected.items():
                np.testing.assert_allclose(result.outputs[name].astype(np.float64), want, rtol=5e-3, atol=5e-3)


WAYS = {"one_slot": {"stages": 1}, "two": {"stages": 2}, "one_group": {"warps": 4}, "direct": {"epilogue": "direct"},
        "smem": {"tiles": {"BLOCK_M": 64, "BLOCK_N": 64}, "epilogue": "quad"}, "static": {"persistent": "static"},
        "dynamic": {"persistent": "dynamic", "hints": True, "pdl": True}, "one_loop": {"split": "none"}, "held": {"regs_a": "s"},
        "more": {"made": "s+c"}, "cluster": {"made": "s+c", "cluster": {"rows": 2}},
        "rows": {"tiles": {"BLOCK_M": 128, "BLOCK_N": 32}, "grid": {"c": (1, 2), "d": (2, 1)}},
        "blocks": {"min_blocks": 2}}


@pytest.mark.parametrize("way", WAYS)
def test_they_are_right_around_the_depth_of_their_rings(way):
    right(jobs(way, **WAYS[way]), (1, 2, 3, 6))


def loops(role):
    return [o.regions[0] for o in walk(role.body) if o.kind == "for" and any(x.kind == "wgmma" for x in o.regions[0].ops)]


def test_each_role_has_its_own_products_and_nothing_of_the_others():
    p = jobs("roles").program
    load, make, main = p.machine.roles
    assert [(r.name, r.warps) for r in (load, make, main)] == [("load", 4), ("make", 4), ("main", 8)]
    made, rest = loops(make), loops(main)
    assert [o.operands[0].name for b in made for o in b.ops if o.kind == "wgmma"] == ["a"]
    assert [o.operands[0].name for b in rest for o in b.ops if o.kind == "wgmma"] == ["p_tile", "squares_tile"]
    for ops in (b.ops for b in (*made, *rest)):
        assert not any(o.kind in ("barrier", "ld_shared") for o in ops)
    assert all(o.kind != "stmatrix" for b in rest for o in b.ops) and all(o.kind != "tma_store" for b in made for o in b.ops)
    assert parse_kernel(text := print_kernel(p.machine)) and print_kernel(parse_kernel(text)) == text


def test_a_tile_that_is_stored_too_is_stored_from_its_slot():
    """No other place holds it; the slot is free when the engine has read it."""
    p = jobs("stored").program
    (ops,) = [b.ops for b in loops(p.machine.roles[-1])]
    kinds = [o.kind for o in ops]
    assert not any(v.name == "p_tile" and v.type.slots == 1 for v in p.machine.buffers)
    assert next(o for o in ops if o.kind == "tma_store").operands[-1].name == "p_tile"
    freed = next(n for n, o in enumerate(ops) if o.kind == "mbar_arrive" and o.operands[0].name == "p_tile_empty")
    assert kinds.index("tma_store") < kinds.index("bulk_wait") < freed


def test_a_sender_reads_the_channel_beside_the_products():
    """It starts the store when the makers have made the tile, and is one more that the slot waits for; no warp that computes waits."""
    p = jobs("sent", sender=True).program
    _, send, _, main = p.machine.roles
    (ops,) = [o.regions[0].ops for o in walk(send.body) if o.kind == "for"]
    assert [o.kind for o in ops if o.kind not in ("slot", "const", "mul", "advance", "yield")] == [
        "mbar_wait", "tma_store", "bulk_commit", "bulk_wait", "mbar_arrive"]
    assert all(o.kind not in ("tma_store", "bulk_wait") for b in loops(main) for o in b.ops)
    counts = {v.name: v.type.count for v in p.machine.buffers if v.name.endswith("_empty")}
    assert counts["p_tile_empty"] == main.warps + 1 and counts["squares_tile_empty"] == main.warps
    right(jobs("sent", sender=True), (1, 2, 3, 6))


@cache
def gradients(d, mask="none", grouped=False, store=False, **fields):
    schedule = fc.Schedule(**{"tiles": {"BLOCK_M": 64, "BLOCK_N": 64}, "warps": 8, "math": "wgmma", "copy": "tma", "split": "branch",
                              "epilogue": "tma", "stages": {"q": 2, "do": 2}, **dict(fields)})
    spec, absent = (backward_scores, {}) if store else (backward, {"dQ": None})
    return spec.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=d, E=d, mask=mask, grouped=grouped, check=False, **absent)


def agrees(p, d, m, n, heads=(1, 1), causal=False, seed=0):
    h, g = heads
    rng = np.random.default_rng(seed)
    q, do, k, v = (rng.standard_normal((1, x, y, d)).astype(np.float16) for x, y in ((h, m), (h, m), (g, n), (g, n)))
    wide = lambda x: np.repeat(x.astype(np.float64), h // g, 1)
    s = wide(k) @ q.astype(np.float64).transpose(0, 1, 3, 2) / math.sqrt(d)
    seen = np.arange(n)[:, None] <= np.arange(m) if causal else np.ones((n, m), bool)
    weights = np.where(seen, np.exp(s), 0)
    weights, lse = weights / weights.sum(2, keepdims=True), np.log(weights.sum(2))
    dp = wide(v) @ do.astype(np.float64).transpose(0, 1, 3, 2)
    delta = (weights * dp).sum(2)
    ds = weights * (dp - delta[:, :, None])
    each = lambda x: x.reshape(1, g, h // g, n, d).sum(2)
    out = p.simulate(Q=q, K=k, V=v, dO=do, LSE2=(lse * math.log2(math.e)).astype(np.float32), Delta=delta.astype(np.float32),
                     scale=1 / math.sqrt(d), seed=seed)
    np.testing.assert_allclose(out["dV"], each(weights @ do), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(out["dK"], each(ds @ q / math.sqrt(d)), rtol=0.02, atol=0.02)
    if "dS" in out:
        np.testing.assert_allclose(out["dS"], ds, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("fields", "mask", "grouped"), [
    ({}, "none", False), ({}, "causal_top_left", True), ({"split": "loops"}, "causal_top_left", False), ({"warps": 4}, "none", False),
    ({"epilogue": "quad", "persistent": "static"}, "none", True), ({"made": "s+dp+dk"}, "none", False), ({"late": "dv"}, "none", False)])
def test_gradients_of_attention_are_right_with_scores_made_apart(fields, mask, grouped):
    p = gradients(64, mask, grouped, **{**JOBS, **fields})
    agrees(p, 64, 200, 136, (2, 1) if grouped else (1, 1), mask != "none", seed=len(fields))


@pytest.mark.parametrize("more", [{}, {"cluster": (("cols", 2),)}, {"sender": True}])
def test_gradients_of_scores_go_to_memory_from_the_ring(more):
    agrees(gradients(64, store=True, **JOBS, **more), 64, 200, 136)


def test_what_lies_over_a_ring_is_stored_when_the_sender_has_read_it_too():
    p = gradients(256, store=True, sender=True, **JOBS)
    ring, last = (next(v for v in p.machine.buffers if v.name == name) for name in ("ds_tile", "dk_tile"))
    assert shared_bytes(p.machine, ring, last)
    agrees(p, 256, 136, 72)
    *_, last_wait = [m for m in ASYNC_FAULTS["drop-phase-wait"].mutants(p.machine) if "ds_tile_empty" in m.site]
    assert races(last_wait.kernel, p.target, 136, 72) and not races(p.machine, p.target, 136, 72)


def test_rows_that_one_role_reads_come_with_a_tile_that_both_do():
    names = {v.name for v in gradients(64, **JOBS).machine.buffers}
    assert {"lse2", "delta", "do_full"} <= names and not {"lse2_full", "delta_full"} & names


def test_roles_share_out_registers_by_what_their_loops_hold():
    p = gradients(256, **JOBS)
    load, make, main = (r.regs for r in p.machine.roles)
    assert main > make > load and load + make + 2 * main <= 512
    assert not p.built.remarks, "nothing spills, and no product waits for another"


def races(kernel, target, m, n):
    """Whether the simulator says that what is stored at last races with a ring."""
    rng = np.random.default_rng(0)
    one = lambda n: rng.standard_normal((1, 1, n, 256)).astype(np.float16)
    rows = np.zeros((1, 1, m), np.float32)
    result = simulate(kernel, {"Q": one(m), "K": one(n), "V": one(n), "dO": one(m), "LSE2": rows, "Delta": rows, "scale": 0.1}, target, seed=0)
    return any(e.code == "sim/race" and "dk_tile" in str(e) for e in result.reports)


def test_a_ring_shares_bytes_with_what_its_reader_stores_at_last_and_a_barrier_orders_them():
    """Heads of 256: rings of weights and of their gradients leave no room for what is stored at last."""
    p = gradients(256, **JOBS)
    ring, last = (next(v for v in p.machine.buffers if v.name == name) for name in ("ds_tile", "dk_tile"))
    assert shared_bytes(p.machine, ring, last)
    agrees(p, 256, 130, 70)
    faults = {**FAULTS, **ASYNC_FAULTS}
    assert races(next(m for m in faults["drop-store-barrier"].mutants(p.machine) if "dk_tile" in m.site).kernel, p.target, 130, 70)


@fc.kernel
def normed(A: "T[M, K]", B: "T[N, K]", V: "T[N, E]", C: "out f32[M, E]"):
    """What is multiplied follows from a carried row, which the other product's result is scaled with."""
    (rows,) = fc.grid(fc.tile(A.M, "BLOCK_M"))
    a, acc, top = fc.load(A[rows]), fc.var(fc.zeros(rows, V.E)), fc.var(fc.full(rows, 0.0))
    for cols in fc.loop(fc.tile(B.N, "BLOCK_N")):
        s = fc.dot(a, fc.load(B[cols]).T)
        new = fc.maximum(top, fc.max(s, axis=1))
        acc <<= acc * (top - new) + fc.dot((s - new).to(V.dtype), fc.load(V[cols]))
        top <<= new
    fc.store(C[rows], acc)


BASE = {"tiles": {"BLOCK_M": 64, "BLOCK_N": 32}, "warps": 8, "math": "wgmma", "copy": "tma", "makers": 4, "made": "s"}


@pytest.mark.parametrize(("spec", "fields", "words"), [
    (chained, {"makers": 0}, "makers=4"), (chained, {"made": "x"}, "no dot is called so"), (chained, {"early": "s"}, "the makers', whose tiles"),
    (chained, {"made": "c"}, "no product of the other warps reads"), (chained, {"epilogue": "smem"}, "over more warps than the makers are"),
    (chained, {"made": "s+c+d"}, "no product of the other warps reads"),
    (chained, {"math": {"s": "mma", "c": "wgmma", "d": "wgmma"}}, "is no product of a warpgroup"),
    (chained, {"grid": {"s": (1, 2)}}, "not spread over so many"), (normed, {}, "needed by the other warps in registers"),
    (normed, {"made": "acc"}, "no product of the other warps")])
def test_what_cannot_be_made_apart_is_refused(spec, fields, words):
    with pytest.raises(fc.FcError) as e:
        assert spec.compile(target="sm_90a", schedule=fc.Schedule(**{**BASE, **fields}), T=fc.f16, K=32, E=64, check=False).machine
    assert words in str(e.value) and e.value.code in ("compile/schedule", "compile/unsupported")


def test_products_that_lead_to_made_ones_are_the_makers_too():
    with pytest.raises(fc.FcError, match="follows from a product of the other warps") as e:
        assert gradients(64, **{**JOBS, "made": "dp"}).machine
    assert "name it in Schedule.made too" in str(e.value)


@fc.kernel
def stored_at_times(A: "T[M, K]", B: "T[N, K]", V: "T[N, E]", P: "inout T[M, N]", S: "out T[M, N]", C: "out f32[M, E]"):
    """One tile is stored to two tensors, to one of them in a branch."""
    (rows,) = fc.grid(fc.tile(A.M, "BLOCK_M"))
    a, c = fc.load(A[rows]), fc.var(fc.zeros(rows, V.E))
    for cols in fc.loop(fc.tile(B.N, "BLOCK_N")):
        s = fc.dot(a, fc.load(B[cols]).T)
        p = s.to(P.dtype)
        fc.store(S[rows, cols], p)
        c <<= c + fc.dot(p, fc.load(V[cols]))
        with fc.when(cols.start % 64 == 0):
            fc.store(P[rows, cols], p)
    fc.store(C[rows], c)


@pytest.mark.parametrize("sender", [False, True])
@pytest.mark.parametrize("stages", [1, 3])
def test_a_slot_is_let_go_once_however_often_it_is_stored(sender, stages):
    schedule = fc.Schedule(**BASE, epilogue="tma", sender=sender, stages=stages)
    p = stored_at_times.compile(target="sm_90a", schedule=schedule, T=fc.f16, K=32, E=64, check=False)
    rng = np.random.default_rng(0)
    for n in (24, 152):
        a, b, v = ((rng.standard_normal(s) / 4).astype(np.float16) for s in ((100, 32), (n, 32), (n, 64)))
        out, s = p.simulate(A=a, B=b, V=v, P=np.full((100, n), 7, np.float16)), a.astype(float) @ b.astype(float).T
        for got, want in ((out["S"], s), (out["P"], np.where(np.arange(n) // 32 % 2 == 0, s, 7)), (out["C"], s @ v)):
            np.testing.assert_allclose(got.astype(float), want, rtol=5e-3, atol=5e-3)
