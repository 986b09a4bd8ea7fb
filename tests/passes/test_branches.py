"""Masks under a branch: one loop for whole and masked tiles, the same numbers, and nothing spent on masks of whole tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import Op, walk, walk_kernel
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference
from fcgen.passes import run_passes

HOPPER: dict[str, Any] = {"math": "wgmma", "copy": "tma", "late": "acc", "vote": True}
MASKS = ("none", "causal_top_left", "causal_bottom_right")


def compiled(mask: str = "causal_bottom_right", target: str = "sm_90a", **more: Any) -> Any:
    fields = {"split": "branch", **(HOPPER if target == "sm_90a" else {}), **more}
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 32}, warps=8, **fields)
    return attention.compile(target=target, schedule=schedule, T=fc.f16, D=32, E=32, mask=mask, lazy=2.0)


def masking(ops: Any) -> list[Op]:
    return [o for o in ops if o.kind == "select" and o.result.name == "s"]


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
def test_there_is_one_loop_and_its_masks_stand_under_a_branch(target: str) -> None:
    p = compiled(target=target)
    main = p.machine.roles[-1].body
    loops = [o for o in walk(main) if o.kind == "for" and masking(walk(o.regions[0]))]
    assert len(loops) == 1
    body = loops[0].regions[0]
    assert not masking(body.ops), "no mask is always on"
    (branch,) = [o for o in body.ops if o.kind == "if" and masking(o.regions[0].ops)]
    other = branch.regions[1]
    assert [o.kind for o in other.ops] == ["yield"], "a whole tile passes as it is"
    made = {r for o in branch.regions[0].ops for r in o.results}
    (select,) = masking(branch.regions[0].ops)
    assert select.operands[0] in made, "what the mask is made of is under the branch too"
    assert branch.regions[0].reads


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("more", [{}, {"own_rows": False}, {"persistent": "dynamic", "tokens": True, "ones": "acc"}, {"late": "", "vote": False}],
                         ids=["own_rows", "all_rows", "turns", "plain"])
def test_it_is_silent_and_right(more: dict[str, Any], mask: str) -> None:
    p = compiled(mask, **more)
    rng = np.random.default_rng(0)
    for m, n in ((128, 32), (130, 300), (260, 95), (100, 512)):
        q, k, v = (rng.standard_normal((1, 1, s, 32)).astype(np.float16) for s in (m, n, n))
        want, lse = attention_reference(q, k, v, mask=mask, scale=0.3)
        got = p.simulate(seed=m % 3, Q=q, K=k, V=v, scale=0.3)
        np.testing.assert_allclose(np.asarray(got["O"], np.float64), want, atol=3e-3)
        np.testing.assert_allclose(got["LSE"], lse, atol=5e-4)  # `ones` sums rounded weights


@pytest.mark.parametrize("mask", MASKS)
def test_it_gives_the_same_bits_as_two_loops(mask: str) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, 1, s, 32)).astype(np.float16) for s in (200, 333, 333))
    one, two = (compiled(mask, split=split).simulate(Q=q, K=k, V=v, scale=0.3) for split in ("branch", "loops"))
    for name, x in one.items():
        np.testing.assert_array_equal(x, two[name])


@fc.kernel
def clipped(X: "f32[M, N]", Y: "out f32[M, N]", *, bound: "i32"):  # type: ignore[name-defined]
    """A mask that is where the index is small: the other way round."""
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    total = fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        x = fc.load(X[rows, cols])
        x = fc.where(cols.index < bound, 0.0, x)
        total <<= total + fc.sum(x, axis=1)
        fc.store(Y[rows, cols], x)


def test_masks_that_let_pass_where_their_condition_is_false_work_too() -> None:
    schedule = fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 16}, warps=1, split="branch")
    p = clipped.compile(target="sm_89", schedule=schedule)
    assert any(o.kind == "if" and any(x.kind == "select" for x in o.regions[0].ops) for o in walk_kernel(p.machine))
    x = np.random.default_rng(0).standard_normal((20, 100)).astype(np.float32)
    for bound in (0, 5, 16, 37, 100, 200):
        want = np.where(np.arange(100) < bound, 0, x).astype(np.float32)
        np.testing.assert_array_equal(p.simulate(X=x, bound=bound)["Y"], want)


def test_a_third_of_the_text_goes() -> None:
    one, two = (len(compiled(split=split).cuda.splitlines()) for split in ("branch", "loops"))
    assert one < 0.9 * two


@fc.kernel
def twice(X: "f16[M, N]", W: "f16[N, K]", Y: "out f32[M, K]", Z: "out f32[M]"):  # type: ignore[name-defined]
    """Y = X W below the diagonal, and Z the same sums of rows: only one of the two loops has a dot that runs late."""
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    live = lambda cols: cols.valid & (cols.index <= rows.index)
    acc, total = fc.var(fc.zeros(rows, W.K)), fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N"), live=live):
        x = fc.load(X[rows, cols])
        x = fc.where(live(cols), x, 0.0)
        acc <<= acc + fc.dot(x, fc.load(W[cols]))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N"), live=live):
        x = fc.where(live(cols), fc.load(X[rows, cols]).to(fc.f32), 0.0)
        total <<= total + fc.sum(x, axis=1)
    fc.store(Y[rows], acc)
    fc.store(Z[rows], total)


def test_loops_without_a_late_dot_keep_no_empty_copy() -> None:
    schedule = fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 16}, warps=2, split="branch", late="acc")
    p = twice.compile(target="sm_89", schedule=schedule, K=16)
    loops = [o for o in walk_kernel(run_passes(p.tile, p.schedule, p.target, stop_after="skew")) if o.kind == "for"]
    assert len(loops) == 2 and all(o.operands[0] is not o.operands[1] for o in loops)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((70, 90)).astype(np.float16), rng.standard_normal((90, 16)).astype(np.float16)
    low = np.tril(x.astype(np.float64))
    got = p.simulate(X=x, W=w)
    np.testing.assert_allclose(got["Y"], low @ w.astype(np.float64), atol=1e-2)
    np.testing.assert_allclose(got["Z"], low.sum(axis=1), atol=1e-3)


@fc.kernel
def shifted(X: "f32[M, N]", Y: "out f32[M]"):  # type: ignore[name-defined]
    """What a rare condition leaves as zero is read by the tile that it shifts, and by a row that goes on to the next iteration."""
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    top, total = fc.var(fc.full(rows, -1.0)), fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        x = fc.where(cols.valid, fc.load(X[rows, cols]), 0.0)
        best = fc.maximum(top, fc.max(x, axis=1))
        shift = fc.where(best > 2.0, best, 0.0)
        total <<= total + fc.sum(x - shift, axis=1)
        top <<= fc.maximum(best, shift)
    fc.store(Y[rows], total + top)


def test_what_a_rare_branch_leaves_is_there_for_others() -> None:
    p = shifted.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 64}, vote=True))
    x = np.random.default_rng(0).standard_normal((20, 150)).astype(np.float32)
    np.testing.assert_allclose(p.simulate(X=x)["Y"], p.interpret(X=x)["Y"], rtol=1e-4)


def test_waits_stand_in_front_of_a_rare_branch() -> None:
    """What follows the branch and the product that reads the tile are one piece of straight code, in which the two may be mixed."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, stages=1, ahead=True)
    p = attention.compile(LSE=None, target="sm_90", schedule=schedule, T=fc.bf16, D=64, E=64, mask="none")
    votes = 0
    for loop in (o for o in walk_kernel(p.machine) if o.kind == "for" and not o.get("unroll")):
        rare = {o.result for o in loop.regions[0].ops if o.kind == "vote_any"}
        kinds = ["rare" if o.kind == "if" and o.operands[0] in rare else o.kind for o in loop.regions[0].ops]
        votes += len(rare)
        assert not rare or not {"barrier", "wait_group"} & set(kinds[kinds.index("rare"):])
    assert votes


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
def test_a_side_may_be_one_number_for_the_whole_tile(target: str) -> None:
    fields = {"sm_89": {}, "sm_90a": HOPPER}[target]
    p = attention.compile(target=target, schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, **fields), T=fc.f16, D=32, E=32, lazy=2.0,
                          keep=lambda b, h, i, j: (h == 0) & (j < 70))
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, s, 32)).astype(np.float16) for s in (64, 100, 100))
    got = p.simulate(Q=q, K=k, V=v, scale=0.3)["O"]
    want, _ = attention_reference(q[:, :1], k[:, :1, :70], v[:, :1, :70], scale=0.3)
    np.testing.assert_allclose(np.asarray(got[:, :1], np.float64), want, atol=3e-3)
    assert not np.asarray(got[:, 1]).any()


def test_a_condition_of_all_tiles_or_none_is_asked_by_itself() -> None:
    """Neighbours on a grid: columns are near in all tiles or in none, lines in a range of tiles. Most tiles ask about columns alone."""
    def program(mask: Any, split: str) -> Any:
        schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, warps=4, **HOPPER, split=split)
        return attention.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=32, E=32, keep=mask, lazy=2.0, LSE=None)

    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 1, 200, 32)).astype(np.float16) for _ in range(3))
    i, j = np.arange(200)[:, None], np.arange(200)
    for radius in ((2, 3), (3, 20), (20, 4), (30, 30)):
        mask = fc.masks.neighbourhood((13, 16), radius)
        one, two = (program(mask, split) for split in ("branch", "loops"))
        main = one.first.machine.roles[-1].body
        (loop,) = [o for o in walk(main) if o.kind == "for" and masking(walk(o.regions[0]))]
        tests = [sum(x.kind in ("lt", "gt") and len(x.result.type.shape) == 2 for x in o.regions[0].ops)
                 for o in loop.regions[0].ops if o.kind == "if" and masking(o.regions[0].ops)]
        assert tests == [2, 2]
        held = lambda p, mask=mask: p.family.bound({"keep": mask})[1]
        seen = (abs(i // 16 - j // 16) <= radius[0]) & (abs(i % 16 - j % 16) <= radius[1])
        s = np.where(seen, np.einsum("id,jd->ij", q[0, 0].astype(float), k[0, 0].astype(float)) * 0.3, -np.inf)
        w = np.exp(s - s.max(1, keepdims=True))
        out = one.first.simulate(Q=q, K=k, V=v, scale=0.3, **held(one))["O"]
        np.testing.assert_allclose(out[0, 0].astype(float), w / w.sum(1, keepdims=True) @ v[0, 0], atol=3e-3)
        np.testing.assert_array_equal(out, two.first.simulate(Q=q, K=k, V=v, scale=0.3, **held(two))["O"])
