"""Values that stand in front of a loop, or that it carries, where products meet them."""

import numpy as np
import pytest

import fcgen as fc
from tests.passes.test_in_flight import from_one
from tests.passes.test_skew import carrying
from tests.types.test_tiles_through_shared_memory import scaled

pytestmark = pytest.mark.gpu
HOPPER = {"warps": 4, "math": "wgmma", "copy": "tma"}


def hopper() -> None:
    if not fc.gpu_target().endswith("a"):
        pytest.skip("warpgroup instructions")


def halves(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, d)).astype(np.float16) for n, d in sizes]


@pytest.mark.parametrize("kind", ["tile", "number", "older"])
def test_late_products_meet_the_values_of_their_own_iteration(kind):
    hopper()
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_V": 16}, late="acc", stages=2, **HOPPER)
    p = carrying.compile(T=fc.f16, D=16, E=16, kind=kind, schedule=schedule)
    for words in (1, 17, 200):
        x, w, u = halves((64, 16), (words, 16), (words, 16))
        given = {"X": x, "W": w, "U": u, "scale": 0.5}
        np.testing.assert_allclose(p.run(**given)["Y"], p.interpret(**given)["Y"], rtol=2e-3, atol=2e-3)


def test_two_products_start_from_one_tile_that_is_read_meanwhile():
    hopper()
    p = from_one.compile(T=fc.f16, D=64, schedule=fc.Schedule(tiles={"BM": 64, "BV": 64}, **HOPPER))
    x, w, u = halves((200, 64), (130, 64), (130, 64))
    got, want = p.run(X=x, W=w, U=u), p.interpret(X=x, W=w, U=u)
    for name in "YZO":
        np.testing.assert_allclose(got[name], want[name], atol=4e-3)


@pytest.mark.parametrize("rarely", [False, True])
def test_a_row_in_front_of_the_loop_is_read_by_all_of_it(rarely):
    fields = HOPPER if fc.gpu_target().endswith("a") else {"warps": 4}
    p = scaled.compile(T=fc.f16, D=64, rarely=rarely, schedule=fc.Schedule(tiles={"BM": 64, "BV": 64}, **fields))
    x, w = halves((200, 64), (1000, 64))
    np.testing.assert_allclose(p.run(X=x, W=w)["Y"], p.interpret(X=x, W=w)["Y"], rtol=2e-3, atol=2e-2)
