"""Element work that hangs on no product stands in front of the wait for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import Block, Op, blocks


def mixed(x: Any, rounds: int) -> Any:
    for n in range(rounds):
        x = fc.mulhi(x, 0xD256D193) ^ (x * 0xD256D193 + n)
    return x


@fc.kernel
def noisy(X: T[M, D], W: T[V, D], U: T[V, E], Y: "out f32[M, E]", *, rounds: int, apart: int):
    """Half of the scores count, by random numbers of their places; rows and columns `apart` share one."""
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    x, acc = fc.load(X[rows]), fc.var(fc.zeros(rows, U.E))
    for words in fc.loop(fc.tile(W.V, "BLOCK_V")):
        s = fc.dot(x, fc.load(W[words]).T)
        noise = mixed((words.index & ~apart).to(fc.u32) * 40503 ^ (rows.index & ~apart).to(fc.u32), rounds)
        acc <<= acc + fc.dot(fc.where(noise >= fc.cast(-(2**31), fc.i32).to(fc.u32), s, 0.0).to(U.dtype), fc.load(U[words]))
    fc.store(Y[rows], acc)


def program(rounds: int, apart: int = 0, width: int = 32, e: int = 16, **more: Any) -> fc.Program:
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_V": width}, math="wgmma", copy="tma", **more)
    return noisy.compile(target="sm_90a", T=fc.f16, D=16, E=e, rounds=rounds, apart=apart, check=False, schedule=schedule)


def found(p: fc.Program) -> list[tuple[Block, Op]]:
    return [(b, o) for role in p.machine.roles for b in blocks(role.body) for o in b.ops if o.kind == "ready"]


@pytest.mark.parametrize(("apart", "words"), [(0, 16), (8, 4), (9, 2)])
def test_what_takes_long_is_ready_before_a_product_is_waited_for(apart: int, words: int) -> None:
    """Registers with the same number in all lanes are one."""
    p = program(5, apart)
    for block, op in (it := found(p)):
        kinds = [o.kind for o in block.ops]
        assert kinds.index("wgmma") < kinds.index("ready") < kinds.index("settle") and op["words"] == words
    assert it
    rng = np.random.default_rng(apart)
    args = {n: rng.standard_normal((s, 16)).astype(np.float16) for n, s in (("X", 70), ("W", 75), ("U", 75))}
    np.testing.assert_allclose(p.simulate(**args)["Y"], p.interpret(**args)["Y"], atol=2e-2)
    assert "keep_b32(" in p.cuda


def test_short_work_and_work_without_registers_stay() -> None:
    assert not found(program(1))
    assert found(program(5, 8, 256)) and not found(program(5, 8, 256, 128, min_blocks=2))
