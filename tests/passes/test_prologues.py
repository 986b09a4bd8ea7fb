"""What stands between a load and its product, and what is added beside it, is in flight while the products before it run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk

from . import prologues

NAMES = ["rotary", "normed", "quantised", "biased", "backward", "paged", "gathered"]
ADA = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 16})
HOPPER = replace(ADA, math="wgmma", copy="tma")


STEP = {"backward": 64, "paged": 1}  # positions per iteration of a loop, where they are not 16


def compiled(name, target, d=32, n=16, **more):
    schedule = replace(ADA if target == "sm_89" else HOPPER, **more)
    binding = {"T": fc.f16, "D": d, "E": d}
    tiles = dict(schedule.tiles)
    if name == "quantised":
        binding, tiles = {"T": fc.f16}, {**tiles, "BLOCK_K": n, "BLOCK_N": 48}
    if name == "backward":
        tiles = {"BLOCK_M": max(n, 64), "BLOCK_N": 64}
    if name in ("plain", "rotary"):
        binding["D"] = d // 2
    if name == "paged":
        binding["N"] = tiles.pop("BLOCK_N")
    return getattr(prologues, name).compile(target=target, schedule=replace(schedule, tiles=tuple(sorted(tiles.items()))), **binding)


def agrees(p, name, length, seed=0, atol=6e-3):
    held, exact = prologues.stored(p, prologues.draw(name, length, seed=seed))
    want = prologues.reference(name, exact)
    for got in (p.interpret(**held), p.simulate(seed=seed, **held)):
        for key in want:
            size = max(1.0, np.abs(want[key]).max(initial=0))
            np.testing.assert_allclose(got[key].astype(np.float64) / size, want[key] / size, atol=atol, err_msg=key)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("name", NAMES)
def test_specs_with_prologues_are_right_around_the_depth_of_their_rings(name, target, stages):
    p = compiled(name, target, stages=stages)
    for trips in range(1, 2 * stages + 2):
        step = STEP.get(name, 16)
        agrees(p, name, step * trips - 5 * (trips % 2) * (step > 1), seed=trips)
