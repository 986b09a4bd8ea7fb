"""Blocks of one role that work through the tiles of a grid: in fixed steps, or as one thread claims them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.core import Kernel, walk, walk_kernel
from fcgen.ir.parse import parse_kernel
from fcgen.kernels.attention import attention
from fcgen.sim.machine import simulate
from tests.kernels.test_listed import paged, pages

SCHEDULES: dict[str, dict[str, Any]] = {
    "rings": {}, "deep": {"stages": 3, "epilogue": "direct"}, "turns": {"stages": 1, "ahead": True}, "registers": {"copy": "vector", "stages": 1},
    "one_warp": {"tiles": {"BLOCK_M": 16, "BLOCK_N": 16}, "warps": 1}, "wmma": {"math": "wmma", "stages": 1}, "fma": {"math": "fma"},
    "not_held": {"hold_a": False, "reuse_frags": False}, "in_l2": {"l2": 1},
}


def compiled(target: str = "sm_89", mask: str = "causal_bottom_right", **fields: Any) -> Any:
    fields = {"tiles": {"BLOCK_M": 32, "BLOCK_N": 16}, "warps": 2, **fields}
    return attention.compile(target=target, schedule=fc.Schedule(**fields), T=fc.f16, D=16, E=16, mask=mask)


def draw(m: int, n: int) -> dict[str, Any]:
    rng = np.random.default_rng(m)
    return {x: rng.standard_normal((1, h, s, 16)).astype(np.float16) for x, h, s in (("Q", 2, m), ("K", 1, n), ("V", 1, n))} | {"scale": 0.4}


def agree(p: Any, args: dict[str, Any], **how: Any) -> None:
    want, result = p.interpret(**args), simulate(p.machine, args, p.target, **how)
    assert not result.reports, result.reports[0]
    for name, w in want.items():
        np.testing.assert_allclose(result.outputs[name].astype(float), w.astype(float), atol=3e-3)


@pytest.mark.parametrize("how", ["static", "dynamic"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_blocks_take_several_tiles(name: str, how: str) -> None:
    """Loops of no, one and many tiles; more tiles than blocks, as many, fewer, and none."""
    p = compiled(persistent=how, **SCHEDULES[name])
    for m, n, blocks in [(100, 50, None), (70, 1, 9)] if how == "dynamic" else [(40, 17, 1), (100, 40, 3)]:
        agree(p, draw(m, n), seed=m, blocks=blocks)


@pytest.mark.parametrize("target, how", [("sm_80", "dynamic"), ("sm_90", "static"), ("sm_90a", "dynamic")])
def test_every_target_has_them(target: str, how: str) -> None:
    p = compiled(target, persistent=how, mask="none")
    agree(p, draw(200, 40))
    assert ("int* counter" in p.cuda) == (how == "dynamic") and p.built.facts.persistent == how


@pytest.mark.parametrize("longest", [True, False])
def test_the_longest_tiles_are_claimed_first(longest: bool) -> None:
    """Later rows see more columns: tile numbers count them from the end."""
    p = compiled(persistent="dynamic", longest_first=longest)
    (loop,) = [o for o in walk_kernel(p.machine) if o.kind == "while"]
    made = {r: o for o in walk(loop.regions[0]) for r in o.results}
    rows = next(o for o in made.values() if o.kind == "mul" and o.result.name == "rows_start").operands[0]
    assert made[rows].kind == ("sub" if longest else "mod")
    agree(p, draw(100, 100), blocks=2)


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_pages_are_read_ahead_in_each_tile(how: str) -> None:
    for target in ("sm_89", "sm_90a"):
        more = {"warps": 4, "math": "wgmma", "copy": "tma"} if target == "sm_90a" else {"warps": 2}
        rows = 64 if target == "sm_90a" else 32
        p = paged.compile(target=target, schedule=fc.Schedule(tiles={"BLOCK_M": rows, "BLOCK_N": 16}, persistent=how, stages=3, **more), T=fc.f16, D=16)
        args, want = pages(50, 8, 9)
        args["Q"] = np.concatenate([args["Q"]] * 5)
        result = simulate(p.machine, args, p.target, blocks=2)
        assert not result.reports, result.reports[0]
        np.testing.assert_allclose(result.outputs["O"].astype(float), np.concatenate([want] * 5), atol=3e-3)
        rings = {b.name: b.type.slots for b in p.machine.buffers if b.name in ("k_tile", "v_tile")}
        assert rings == {"k_tile": 3, "v_tile": 3} and sum(o.kind == "cp_async" for o in walk_kernel(p.machine)) >= 4


def without(kernel: Kernel, word: str, behind: str) -> Kernel:
    text = str(kernel).splitlines()
    start = next(n for n, t in enumerate(text) if behind in t)
    at = next(n for n, t in enumerate(text) if n > start and t.strip().startswith(word))
    return parse_kernel("\n".join([*text[:at], *text[at + 1:]]))


def test_what_orders_a_claim_is_missed_where_it_is_left_out() -> None:
    p = compiled(persistent="dynamic", epilogue="direct")
    for word, behind, code in (("barrier", " post ", "sim/race"), ("post", "claim", "sim/stale"), ("claim_done", "while", "sim/leftover")):
        found = simulate(without(p.machine, word, behind), draw(100, 20), p.target, blocks=2).reports
        assert any(e.code == code for e in found), (word, found)
    text = str(p.machine)
    used = next(t for t in text.splitlines() if " = fetch " in t)
    with pytest.raises(FcError, match="claim belongs to one thread"):
        simulate(parse_kernel(text.replace(used, used.split("=")[0] + "= claim : i32")), draw(100, 20), p.target, blocks=2)


@fc.kernel
def mixed(X: "inout f16[M, D]", B: "f16[N, D]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x, acc = fc.load(X[rows]), fc.var(fc.zeros(rows, X.D))
    for cols in fc.loop(fc.tile(B.N, "BN")):
        b = fc.load(B[cols])
        acc <<= acc + fc.dot(fc.dot(x, b.T).to(fc.f16), b)
    fc.store(X[rows], acc.to(fc.f16))


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_a_tensor_that_is_read_and_written(how: str) -> None:
    p = mixed.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 32, "BN": 16}, warps=2, persistent=how), D=16)
    rng = np.random.default_rng(0)
    agree(p, {x: (rng.standard_normal((n, 16)) / 4).astype(np.float16) for x, n in (("X", 100), ("B", 40))}, blocks=2)
