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
    target = {"sm_90": "sm_90a"}.get(own := fc.gpu_target(), own)
    if target == "sm_90a" and n == 203 and name in ("quantised",):
        pytest.skip("its left operand is read by products alone, and lies in such rows")
    p = compiled(name, target, d=64, n=64)
    length = n // 8 if STEP.get(name) == 1 else n
    held, exact = specs.stored(p, specs.draw(name, length, m=130, d=64, page=64))
    want = specs.reference(name, exact)
    for got in (p.run(**held), p.run(**held)):
        for key in want:
            size = max(1.0, np.abs(want[key]).max())
            np.testing.assert_allclose(got[key].astype(np.float64) / size, want[key] / size, atol=6e-3, err_msg=key)
