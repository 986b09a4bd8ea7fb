"""Adds that have turns: one order whatever comes first, kept by the thread that sends; what is wrong about them is told."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk_kernel
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel

@fc.kernel
def summed(X: f16[M, D], Y: f16[N, D], Out: "inout f32[M, D]", Turns: "inout i32[M]"):
    (cols,) = fc.grid(fc.tile(Y.N, "BLOCK_N"))
    y = fc.load(Y[cols])
    for rows in fc.loop(fc.tile(X.M, "BLOCK_M")):
        s = fc.dot(fc.load(X[rows]), y.T)
        fc.atomic_add(Out[rows], fc.dot(s.to(fc.f16), y), turn=(Turns[rows.start], cols.start // cols.size))


SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, math="wgmma", copy="tma", epilogue="tma", stages=2, sender=True)


def arguments(m=160, n=192):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((s, 64)).astype(np.float16) for s in (m, n))
    return {"X": x, "Y": y, "Out": np.zeros((m, 64), np.float32), "Turns": np.zeros(m, np.int32)}


def machine(edit=lambda lines: lines):
    text = print_kernel(summed.compile(target="sm_90a", schedule=SCHEDULE, D=64).machine)
    lines = edit(text.splitlines())
    assert lines != text.splitlines() or edit(["x"]) == ["x"]
    return parse_kernel("\n".join(lines))


def test_a_sum_in_turn_is_right_in_both_machines():
    program, given = summed.compile(target="sm_90a", schedule=SCHEDULE, D=64), arguments()
    x, y = (given[n].astype(float) for n in ("X", "Y"))
    for got in (program.interpret(**given), program.simulate(**given)):
        np.testing.assert_allclose(got["Out"], x @ y.T @ y, atol=0.5)
        assert got["Turns"].tolist() == [3 if at % 64 == 0 else 0 for at in range(160)]
