"""The copy engine of one warp: `cp.async` groups that complete as late as they may (PTX ISA, 'Asynchronous copy operations')."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.alignment import run
from ..ir.core import Op
from ..ir.layout import LANES
from . import registers
from .memory import encode
from .tensors import taken
from .words import describe

if TYPE_CHECKING:
    from .agents import Agent


@dataclass
class _Copy:
    op: Op
    at: np.ndarray
    data: np.ndarray
    lanes: np.ndarray


class CopyEngine:
    """Copies belong to the open group until `commit`; `wait(n)` lands the oldest groups until n are left."""

    def __init__(self, agent: Agent):
        self.agent = agent
        self.open: list[_Copy] = []
        self.groups: list[list[_Copy]] = []

    def start(self, op: Op, args: list[Any]) -> None:
        a, buffer, layout = self.agent, op.operands[-1].type, op["threads"]
        ring, base = args[-1]
        c = registers.coords(layout, a.role.warps, a.warp)
        index, inside = a.rectangle(op, args[0], args, layout, c)
        data = encode(taken(a.sim.memory[args[0]], index, inside), buffer.dtype, a.shared.grain)
        key = ("copy", id(op), a.warp)
        if key not in a.sim.maps:
            i, j = (c[..., 0], c[..., 1]) if c.shape[-1] == 2 else (c[..., 0] * 0, c[..., 0])
            size = buffer.dtype.bytes
            address = np.asarray(buffer.layout.address(buffer.shape, size, i, j))
            vec = run(op)
            width = vec * size
            runs = address.reshape(LANES, -1, vec)
            if (runs[..., 0] % width).any() or (runs - runs[..., :1] != np.arange(0, width, size)).any():
                a.sim.report("sim/bounds", f"cp_async: a run of {width} bytes is not contiguous and aligned in shared memory", op,
                             expected=f"a multiple of {width} bytes", got=buffer.layout, hint="shorter runs, or another padding",
                             key=("runs", id(op)))
            a.sim.maps[key] = a.shared.of(address, size)
        mine = registers.writers(layout, a.role.warps, a.warp)
        a.touch(op, args[0], index, inside & mine[:, None], "read")
        at = (a.sim.maps[key][mine] + base // a.shared.grain).ravel()
        lanes = np.broadcast_to(np.arange(LANES)[:, None, None], data.shape)[mine].ravel()
        bad = a.shared.launch(a.number, at, lanes, op)
        if bad is not None:
            a.sim.conflict(bad, a, op, ring, a.sim.offsets[ring])
        self.open.append(_Copy(op, at, data[mine].ravel(), lanes))

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, n: int) -> None:
        while len(self.groups) > n:
            for copy in self.groups.pop(0):
                self.agent.shared.land(self.agent.number, copy.at, copy.data, copy.lanes, copy.op)
                self.agent.sim.landed(copy.op, self.agent)

    def check_empty(self) -> None:
        for copy in [c for g in [*self.groups, self.open] for c in g]:
            self.agent.sim.report("sim/leftover", "the kernel ends while a copy is in flight", copy.op,
                                  notes=[f"{self.agent.who}: {describe(copy.op)}"], key=("leftover", id(copy.op)))
