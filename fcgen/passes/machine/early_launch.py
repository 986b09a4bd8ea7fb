"""early_launch: with `pdl`, a grid begins while the one in front of it on the stream still runs.

In: machine IR with selected instructions. Out: in each role a `grid_wait` in front of its first access of a tensor, so that all before it
(barriers, descriptors, registers moved between roles) overlaps the other grid's end; in the first role `launch_dependents` after it, so
that at most one grid runs ahead.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import FcError
from ...ir.async_ops import reaches_tensors
from ...ir.core import Kernel, Op, Role, walk
from ...ir.schedule import Schedule
from ...ir.target import Target


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not schedule.pdl:
        return kernel
    if "grid_wait" not in target.instrs:
        raise FcError("compile/schedule", f"{target.arch} has no programmatic dependent launch", expected="pdl=False", got="pdl=True",
                      hint="targets from sm_90a on have it")
    roles: list[Role] = []
    for role in kernel.roles:
        ops = list(role.body.ops)
        first = next((n for n, op in enumerate(ops) if any(map(reaches_tensors, walk(op)))), None)
        if first is not None:
            ops[first:first] = [Op("grid_wait"), *([] if roles else [Op("launch_dependents")])]
        roles.append(replace(role, body=replace(role.body, ops=tuple(ops))))
    return replace(kernel, roles=tuple(roles))
