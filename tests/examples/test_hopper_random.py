"""The examples under random Hopper schedules: each is what the interpreter says, and silent in the simulator, or refused with a reason."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError

from .test_examples import SIZES, load, path  # noqa: F401  (a fixture)

FIELDS: dict[str, tuple[tuple[Any, ...], float]] = {
    "late": (("acc", "acc+acc2"), 0.4), "vote": ((True,), 0.4), "ones": (("acc",), 0.15), "from_end": (("rows",), 0.2),
    "own_rows": ((False,), 0.4), "split": (("none", "branch"), 0.4), "reuse_frags": ((False,), 0.2), "l2": ((32,), 0.4),
    "persistent": (("static", "dynamic"), 0.6), "epilogue": (("quad", "tma", "direct"), 0.7), "cluster": (({"rows": 2}, {"cols": 2}), 0.1),
}


#: sizes of tiles but for BLOCK_M: where a product has rows of them too
SIDES = {"backward": (64, 128)}


#: programs that run, of each example; all six with FCGEN_ALL=1
MOST = 6 if os.environ.get("FCGEN_ALL") == "1" else 2


def drawn(rng: random.Random, default: fc.Schedule, dots: bool, sides: tuple[int, ...] = (16, 32, 64)) -> fc.Schedule:
    groups = rng.choice((1, 1, 2))
    tiles = {k: 64 * groups if k == "BLOCK_M" else rng.choice(sides) for k in dict(default.tiles)}
    fields = {name: rng.choice(values) for name, (values, share) in FIELDS.items() if rng.random() < share}
    if not dots:  # nothing is copied into shared memory: only what hands out tiles is a role of its own
        return fc.Schedule(tiles=tiles, warps=4 * groups, copy="tma", persistent=rng.choice(("static", "dynamic")),
                           epilogue=rng.choice(("direct", "tma")))
    return fc.Schedule(tiles=tiles, warps=4 * groups, math="wgmma", copy="tma", stages=rng.choice((1, 2, 3)), **fields)


@pytest.mark.parametrize("name", SIZES)
def test_an_example_is_right_or_refused_with_a_reason(name: str) -> None:
    example, rng, ran = load(name).example, random.Random(name), 0
    for _ in range(40):
        if ran == MOST:
            break
        schedule = drawn(rng, example.schedule, name != "softmax", SIDES.get(name, (16, 32, 64)))
        p = example.spec.compile(target="sm_90a", schedule=schedule, **example.binding)
        try:
            assert p.cubin, schedule
        except FcError as refused:
            assert refused.code.startswith("compile/"), schedule
            continue
        given = example.inputs(np.random.default_rng(rng.randrange(1 << 30)), **SIZES[name])
        args = {q.name: fc.round_to(np.asarray(given[q.name], np.float32), q.type.dtype) if hasattr(q.type, "dims") else given[q.name]
                for q in p.params if q.name in given}
        want, got = p.interpret(**args), p.simulate(**args)
        for out in want:
            a, b = got[out].astype(np.float64), want[out].astype(np.float64)
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2, err_msg=f"{name}: {schedule}")
        ran += 1
    assert ran >= 2, "some of what is drawn should run"
