"""Products in roles of different jobs against float64, and the same bits each time: what a slot let go too early would change."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from tests.sim.generated import jobs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("more", [{}, {"stages": 2}, {"stages": 1, "sender": True}, {"sender": True}, {"persistent": "static"}])
def test_products_that_follow_from_another_roles_are_right(more):
    if fc.gpu_target() != "sm_90a":
        pytest.skip("roles are Hopper's")
    case = jobs("gpu", **more)
    for steps in (1, 2, 3, 40):
        arguments, expected = case.draw(steps, steps)
        first = case.program.run(**arguments)
        for name, want in expected.items():
            np.testing.assert_allclose(first[name].astype(np.float64), want, rtol=5e-3, atol=5e-3 * max(1.0, float(np.abs(want).max())))
        for _ in range(5):
            again = case.program.run(**arguments)
            assert all(np.array_equal(first[name], again[name]) for name in expected)
