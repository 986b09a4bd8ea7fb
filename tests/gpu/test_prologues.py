"""What stands between loads and products, and beside them, against float64: rings that registers are read from, tables, rows of one axis."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks import prologue_specs as specs
from tests.passes.test_prologues import NAMES, STEP, compiled

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n", [200, 203])
@pytest.mark.parametrize("name", NAMES)
def test_a_spec_is_right(name, n):
    """203: rows that no bulk copy can move."""
    target = fc.gpu_target()
    if target == "sm_90a" and n == 203 and name in ("quantised",):
        pytest.skip("its left operand is read by products alone, and lies in such rows")
    agrees(compiled(name, target, d=64, n=64), name, n // 8 if STEP.get(name) == 1 else n)


@pytest.mark.parametrize("more", [{}, {"warps": 8, "tiles": {"BLOCK_M": 128}, "late": "acc"}, {"persistent": "dynamic", "late": "acc"}])
@pytest.mark.parametrize("name", ["rotary", "rotated", "normed", "scaled"])
def test_operands_that_a_role_of_its_own_makes_are_right(name, more):
    if fc.gpu_target() != "sm_90a":
        pytest.skip("roles are Hopper's")
    agrees(compiled(name, "sm_90a", d=64, n=64, makers=4, **more), name, 200)


def agrees(p, name, length):
    held, exact = specs.stored(p, specs.draw(name, length, m=130, d=64, page=64))
    want = specs.reference(name, exact)
    for got in (p.run(**held), p.run(**held)):
        for key in want:
            size = max(1.0, np.abs(want[key]).max())
            np.testing.assert_allclose(got[key].astype(np.float64) / size, want[key] / size, atol=6e-3, err_msg=key)
