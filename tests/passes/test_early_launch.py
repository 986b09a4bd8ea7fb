"""Launches that begin early: every role waits before it touches a tensor, and the launch says so to the driver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.async_ops import reaches_tensors
from fcgen.ir.core import Kernel, Op, walk
from fcgen.kernels import attention as library
from fcgen.sim.machine import simulate
from tests.kernels.test_stores import product

HOPPER: dict[str, Any] = {"math": "wgmma", "copy": "tma", "pdl": True}
TILES = {"BLOCK_M": 64, "BLOCK_N": 32}


def attention(**more: Any) -> Any:
    return library.attention.compile(target="sm_90a", schedule=fc.Schedule(tiles=TILES, **{**HOPPER, **more}), T=fc.f16, D=32, E=32, mask="none")


def top_level(role: Any) -> list[str]:
    """"grid_wait", "launch_dependents", and "tensor" for each op that reaches one, itself or inside."""
    out = []
    for op in role.body.ops:
        inside = [op, *(o for r in op.regions for o in walk(r))]
        if op.kind in ("grid_wait", "launch_dependents"):
            out.append(op.kind)
        elif any(map(reaches_tensors, inside)):
            out.append("tensor")
    return out


@pytest.mark.parametrize("persistent", ["none", "static", "dynamic"])
def test_each_role_waits_before_it_first_touches_a_tensor_and_the_first_lets_the_next_grid_begin(persistent: str) -> None:
    load, main = map(top_level, attention(persistent=persistent).machine.roles)
    assert load[:3] == ["grid_wait", "launch_dependents", "tensor"] and main[:2] == ["grid_wait", "tensor"]
    assert (load + main).count("grid_wait") == 2 and (load + main).count("launch_dependents") == 1


def test_a_block_with_one_tile_multiplies_before_its_storing_role_waits() -> None:
    """Loads have been waited for by the role that makes them: `main` only waits before it stores."""
    kinds = [op.kind for op in attention().machine.roles[1].body.ops]
    assert kinds.index("for") < kinds.index("grid_wait") < kinds.index("st_global")


def test_kernels_with_one_role_wait_too() -> None:
    p = product.compile(target="sm_90a", T=fc.f16, S=fc.f16, schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, pdl=True))
    (main,) = p.machine.roles
    assert top_level(main)[:3] == ["grid_wait", "launch_dependents", "tensor"]


@pytest.mark.parametrize("pdl", [False, True])
def test_the_launch_is_told(pdl: bool) -> None:
    p = attention(pdl=pdl)
    assert ("griddepcontrol.wait" in p.cuda) == ("griddepcontrol.launch_dependents" in p.cuda) == pdl == p.built.facts.pdl


def test_targets_without_it_refuse() -> None:
    with pytest.raises(FcError, match="sm_89 has no programmatic dependent launch"):
        _ = library.attention.compile(target="sm_89", schedule=fc.Schedule(tiles=TILES, pdl=True), T=fc.f16, D=32, E=32, mask="none").machine


def without(kernel: Kernel, role: int, kind: str) -> Kernel:
    roles = list(kernel.roles)
    body = roles[role].body
    roles[role] = replace(roles[role], body=replace(body, ops=tuple(o for o in body.ops if o.kind != kind)))
    return replace(kernel, roles=tuple(roles))


@pytest.mark.parametrize("role, op", [(0, "tma_load"), (1, "st_global")])
def test_a_role_that_forgets_to_wait_is_reported(role: int, op: str) -> None:
    p = attention()
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, 64, 32)).astype(np.float16) for _ in range(3))
    arguments = {"Q": q, "K": k, "V": v, "scale": 0.2}
    assert not simulate(p.machine, arguments, p.target).reports
    (report,) = simulate(without(p.machine, role, "grid_wait"), arguments, p.target).reports
    assert report.code == "sim/launch" and report.message.startswith(op) and f"role {p.machine.roles[role].name}" in str(report)


def test_an_op_reaches_tensors_if_it_names_one_or_counts_tiles() -> None:
    p = attention(persistent="dynamic")
    kinds = {o.kind for r in p.machine.roles for o in walk(r.body) if reaches_tensors(o)}
    assert {"tma_load", "st_global", "claim", "claim_done"} <= kinds and not kinds & {"wgmma", "mbar_wait", "size", "for", "while"}
    assert not reaches_tensors(Op("grid_wait"))
