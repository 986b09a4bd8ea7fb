"""Tiles that are read of one place of a tensor: a branch, one number on one side, and the same result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen import scores
from fcgen.ir.core import walk
from fcgen.ir.types import Scalar
from fcgen.kernels.attention import attention

HOPPER = "tiles={BLOCK_M: 64, BLOCK_N: 32}, warps=4, math=wgmma, copy=tma, stages=2, late=acc"
AMPERE = "tiles={BLOCK_M: 32, BLOCK_N: 32}, warps=2, math=mma, copy=cp_async, stages=2"
TABLE = np.random.default_rng(1).standard_normal((2, 41)).astype(np.float32)
LINES = np.random.default_rng(2).standard_normal(9).astype(np.float32)
SHIFT = 3


def sides(p: Any) -> list[tuple[int, int]]:
    """Numbers, and tiles, that are read on the two sides of each branch that reads."""
    read = lambda block, scalar: sum(o.kind == "gather" and isinstance(o.result.type, Scalar) == scalar for o in block.ops)
    return [(read(o.regions[0], True), read(o.regions[1], False)) for o in walk(p.first.machine.roles[-1].body)
            if o.kind == "if" and read(o.regions[1], False)]


@pytest.mark.parametrize("schedule, target", [(HOPPER, "sm_90a"), (AMPERE, "sm_89")])
@pytest.mark.parametrize("name", ["distances", "lines", "both"])
def test_the_result_is_the_same_and_most_tiles_read_one_number(name: str, schedule: str, target: str) -> None:
    lines = lambda s, b, h, i, j: s + LINES[(i // 32 - j // 32).to(fc.i32) + 4] * 2.0
    score = {"distances": scores.relative(TABLE, SHIFT), "lines": lines, "both": scores.chain(lines, scores.relative(TABLE, SHIFT))}[name]
    p = attention.compile(target=target, schedule=fc.Schedule.parse(schedule), T=fc.f16, D=32, E=32, score=score, LSE=None)
    assert sides(p) and set(sides(p)) == {(1, 1)}
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, n, 32)).astype(np.float16) for n in (140, 150, 150))
    i, j = np.arange(140)[:, None], np.arange(150)
    s = np.einsum("bhid,bhjd->bhij", q.astype(float), k.astype(float)) * 0.2
    s += 2 * LINES[i // 32 - j // 32 + 4] if name != "distances" else 0
    s += TABLE[:, np.clip(j - i - SHIFT, -20, 20) + 20] if name != "lines" else 0
    w = np.exp(s - s.max(-1, keepdims=True))
    out = p.first.simulate(Q=q, K=k, V=v, scale=0.2, **p.family.bound({"score": score})[1])["O"]
    np.testing.assert_allclose(out.astype(float), np.einsum("bhij,bhjd->bhid", w / w.sum(-1, keepdims=True), v.astype(float)), atol=4e-3)


def test_what_tensors_hold_is_no_position() -> None:
    held = np.arange(200, dtype=np.int32)
    score = lambda s, b, h, i, j: s + LINES[fc.minimum(abs(held[i] - j), 8)]
    p = attention.compile(target="sm_90a", schedule=fc.Schedule.parse(HOPPER), T=fc.f16, D=32, E=32, score=score, LSE=None)
    assert sides(p) == []
