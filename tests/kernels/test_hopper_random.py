"""Schedules drawn at random from all of Hopper's fields: each is right, and silent in the simulator, or refused with a reason."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.types import DTYPES
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.kernels.reference import attention_reference
from fcgen.sim.machine import simulate

#: field -> its values besides the default, and how often one of them is drawn
FIELDS: dict[str, tuple[tuple[Any, ...], float]] = {
    "late": (("acc",), 0.7), "vote": ((True,), 0.5), "compare_bits": ((True,), 0.5), "tokens": ((True,), 0.3), "ones": (("acc",), 0.4),
    "regs_a": (("s",), 0.3), "from_end": (("rows",), 0.3), "own_rows": ((False,), 0.3), "split": (("none", "branch"), 0.4), "defer": ((False,), 0.2),
    "reuse_frags": ((False,), 0.2), "skip_ones": ((True,), 0.2), "hints": ((True,), 0.2), "l2": ((32,), 0.4),
    "persistent": (("static", "dynamic"), 0.6), "epilogue": (("quad", "tma", "direct"), 0.7), "cluster": (({"rows": 2},), 0.15),
    "pdl": ((True,), 0.3),
}
SUMS = ("exact", "rounded", "corrected")
MASKS = ("none", "causal_top_left", "causal_bottom_right")


def drawn(rng: random.Random, mask: str, lazy: float) -> fc.Schedule:
    """Mostly one whose fields find something to do."""
    groups = rng.choice((1, 1, 2, 3))
    fields = {name: rng.choice(values) for name, (values, share) in FIELDS.items() if rng.random() < share}
    idle = {"l2": mask == "none", "vote": not lazy, "compare_bits": not lazy or "vote" not in fields,
            "tokens": groups == 1 or "late" not in fields}
    fields = {name: x for name, x in fields.items() if not idle.get(name) or rng.random() < 0.05}
    stages = rng.choice((1, 2, 3, {"q": 2, "k": 2, "v": 3}, {"q": 1, "k": 3, "v": 2}))
    tiles = {"BLOCK_M": 64 * groups, "BLOCK_N": rng.choice((16, 32, 48))}
    return fc.Schedule(tiles=tiles, warps=4 * groups, math="wgmma", copy="tma", stages=stages, **fields)


@pytest.mark.parametrize("seed", range(6 if os.environ.get("FCGEN_ALL") == "1" else 2))
def test_a_schedule_is_right_or_refused_with_a_reason(seed: int) -> None:
    rng, ran = random.Random(seed), 0
    for _ in range(12):
        spec, dtype = rng.choice(tuple(VARIANTS)), DTYPES[rng.choice(("f16", "bf16"))]
        d, e, mask, lazy, sums = (rng.choice(x) for x in ((16, 24, 64), (16, 40, 64, 80), MASKS, (0.0, 2.0, 5.5), SUMS))
        schedule = drawn(rng, mask, lazy)
        m, n = rng.choice((1, 64, 65, 130, 200)), rng.choice((1, 15, 16, 33, 70, 150))
        p = attention.compile(**VARIANTS[spec], target="sm_90a", schedule=schedule, T=dtype, D=d, E=e, mask=mask, lazy=lazy, sums=sums)
        what = f"{schedule}; {spec} {dtype} d={d} e={e} {mask} lazy={lazy} {sums} m={m} n={n}"
        try:
            assert p.cubin, what
        except FcError as refused:
            assert refused.code.startswith("compile/"), what
            continue
        data = np.random.default_rng(rng.randrange(1 << 30))
        q, k, v = (fc.round_to(data.standard_normal(s).astype(np.float32), dtype) for s in ((1, 2, m, d), (1, 1, n, d), (1, 1, n, e)))
        result = simulate(p.machine, {"Q": q, "K": k, "V": v, "scale": 0.3}, p.target, seed=rng.randrange(4))
        assert not result.reports, f"{what}\n{result.reports[0]}"
        want, _ = attention_reference(q, k, v, mask=mask, scale=0.3)
        np.testing.assert_allclose(np.asarray(result.outputs["O"], np.float64), want, atol=5e-3 if dtype == fc.f16 else 3e-2, err_msg=what)
        ran += 1
    assert ran >= 3, "most of what is drawn should run"


@pytest.mark.parametrize("fields, message", [
    ({"late": "s"}, "cannot run late: its own iteration reads the result"),
    ({"tokens": True}, "take turns at dots that run late, and none does"),
    ({"reuse_frags": False, "own_rows": False, "late": "acc", "tokens": True}, "take turns in this loop, and it needs a barrier of them all"),
    ({"ones": "s"}, "which no row sum goes with"),
    ({"regs_a": "acc"}, "not loaded as it is read"),
    ({"regs_a": "x"}, "no dot is called so"),
    ({"from_end": "b"}, "no axis of the grid with tiles"),
    ({"from_end": "rows", "epilogue": "tma"}, "may begin in front of O, where a bulk store is an illegal instruction"),
])
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 32}, warps=8, math="wgmma", copy="tma", **fields)
    with pytest.raises(FcError, match=message):
        _ = attention.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=32, E=32, mask="causal_top_left").machine


@pytest.mark.parametrize("dtype, two", [(fc.f16, "0x3c003c00u"), (fc.bf16, "0x3f803f80u")], ids=str)
def test_ones_compile_for_both_types(dtype: Any, two: str) -> None:
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, math="wgmma", copy="tma", ones="acc")
    p = attention.compile(target="sm_90a", schedule=schedule, T=dtype, D=64, E=64, lazy=5.5, sums="rounded")
    assert f"one[i] = {two};" in p.cuda and p.resources.spill_stores == 0


@pytest.mark.parametrize("mask", MASKS)
def test_a_loop_that_stages_a_tile_of_all_rows_is_walked_by_all_together(mask: str) -> None:
    """Its barriers are of all warps: no warpgroup may leave tiles out that only others need."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 32}, warps=8, math="wgmma", copy="tma", reuse_frags=False)
    p = attention.compile(target="sm_90a", schedule=schedule, T=fc.f16, D=32, E=32, mask=mask)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, n, 32)).astype(np.float16) for n in (200, 150, 150))
    result = simulate(p.machine, {"Q": q, "K": k, "V": v, "scale": 0.2}, p.target, seed=0)
    assert not result.reports
    np.testing.assert_allclose(np.asarray(result.outputs["O"], np.float64), attention_reference(q, k, v, mask=mask, scale=0.2)[0], atol=4e-3)
