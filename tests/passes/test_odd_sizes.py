"""Axes of one, or of any odd number of elements, with every family of matrix instructions; parts too small for a swizzle."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.schedule_pairs import row_softmax
from fcgen.build import compiler
from fcgen.ir.core import walk_kernel
from fcgen.ir.schedule import Schedule
from fcgen.kernels.attention import attention
from fcgen.sim.trial import random_inputs

FAMILIES = {"mma": {}, "fma": {"math": "fma"}, "wmma": {"math": "wmma"}, "tma": {"copy": "tma"}, "wgmma": {"math": "wgmma", "copy": "tma"}}


def same(program: fc.Program, **sizes: int) -> None:
    """It prints, and the machine program computes what the tile program does."""
    assert compiler.to_cuda(program.machine, program.target).text
    inputs = random_inputs(program.machine, sizes)
    for name, want in program.interpret(**inputs).items():
        got = np.asarray(program.simulate(**inputs)[name], np.float64)
        np.testing.assert_allclose(got, np.asarray(want, np.float64), atol=2e-2)


@pytest.mark.parametrize("d, e", [(1, 1), (1, 24), (24, 1), (7, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_any_depth_and_width(family: str, d: int, e: int) -> None:
    """An axis of one element was left as it is, and no matrix instruction takes it: an internal error, or a refusal."""
    target = "sm_90a" if "tma" in family or family == "wgmma" else "sm_89"
    schedule = Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, **FAMILIES[family])
    same(attention.compile(LSE=None, target=target, schedule=schedule, T=fc.f16, D=d, E=e, mask="none"), B=1, H=1, G=1, M=20, N=40)


@pytest.mark.parametrize("bm, d", [(4, 64), (4, 40), (2, 256), (4, 512), (8, 64)])
def test_bulk_stores_of_few_rows(bm: int, d: int) -> None:
    """Rows that are no whole periods of a swizzle are staged without one."""
    program = row_softmax.compile(target="sm_90a", schedule=Schedule(tiles={"BM": bm}, epilogue="tma"), T=fc.f16, D=d)
    same(program, M=bm + 1)
    (staged,) = {o.operands[-1].type for o in walk_kernel(program.machine) if o.kind == "tma_store"}
    assert bool(staged.layout.swizzle) == (bm % 8 == 0)
