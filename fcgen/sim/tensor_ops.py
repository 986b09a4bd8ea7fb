"""What loads and stores of tensors mean to one warp: where each register's element lies, who may reach it, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.access import Access, along
from ..ir.core import Op
from ..ir.layout import LANES
from ..ir.types import Frag, Scalar
from . import registers
from .memory import WARP, SharedMemory
from .tensors import Stamp, add_at, numbers_of, reached, taken

if TYPE_CHECKING:
    from ..ir.core import Role
    from .machine import Simulation

LANE = np.arange(LANES)


class TensorOps:
    """Part of `Agent`."""

    sim: Simulation
    role: Role
    shared: SharedMemory
    who: Any
    number: int
    warp: int
    rank: int
    program: int

    def coords(self, t: Frag) -> np.ndarray:
        return registers.coords(t.layout, self.role.warps, self.warp)

    def rectangle(self, op: Op, tensor: str, args: list[Any], layout: Any, c: np.ndarray) -> tuple[tuple[Any, ...], np.ndarray]:
        """(index arrays of shape [32, regs], which are inside) for tile coordinates c."""
        data = self.sim.memory[tensor]
        inside = np.ones(c.shape[:-1], bool)
        index, places = [], []
        coords = [c[..., axis] for axis in range(c.shape[-1])]
        access, numbers = Access.of(op), numbers_of(op, args)
        numbers.update({v: numbers[v][:, along(layout, axis)[1]] for v, axis in access.listed.items()})
        axes = [(axis, np.broadcast_to(i, inside.shape), np.broadcast_to(ok, inside.shape))
                for axis, i, ok in reached(op, numbers, data.shape, coords)]
        kept = np.logical_and.reduce([ok for axis, _, ok in axes if axis.guard], initial=True)  # guards keep off the others
        for dim, (axis, i, ok) in enumerate(axes):
            if not axis.guard and (kept & ~ok).any():
                self.sim.report("sim/bounds", f"{op.kind} outside {tensor}", op, expected=f"0..{data.shape[dim] - 1} along axis {dim}",
                                got=f"{i.min()}..{i.max()}", hint="a guard on this axis", notes=[f"{self.who}"])
            inside &= ok
            index.append(np.where(ok, i, 0))
            places.append(i)
        self.sim.addresses.check(self, op, tensor, places, inside)  # type: ignore[arg-type]
        return tuple(index), inside

    def do_ld_global(self, op: Op, args: list[Any]) -> Any:
        index, inside = self.rectangle(op, args[0], args, op.result.type.layout, self.coords(op.result.type))
        self.touch(op, args[0], index, inside, "read")
        return taken(self.sim.memory[args[0]], index, inside)

    def touch(self, op: Op, tensor: str, index: tuple[Any, ...], inside: np.ndarray, kind: str) -> None:
        """Record an access of elements [32, regs] of a tensor, or of one element by the whole warp."""
        history = self.sim.history.get(tensor)
        if history is None:
            return
        lanes = np.broadcast_to(LANE[:, None] if inside.ndim else WARP, inside.shape)[inside]
        who = self.stamp(op)
        bad = history.access(who, tuple(np.broadcast_to(i, inside.shape)[inside] for i in index), lanes, kind)
        if bad is not None:
            self.sim.tensor_conflict(bad, self, op, tensor)  # type: ignore[arg-type]

    def stamp(self, op: Op) -> Stamp:
        shared = self.shared
        return Stamp(self.program, self.number, shared.clock[self.number], int(shared.sync[self.number]), op,
                     self.sim.peers[self.rank, self.role.name])

    def do_gather(self, op: Op, args: list[Any]) -> Any:
        data, index = self.sim.memory[args[0]], np.broadcast_arrays(*args[1:])
        inside = np.logical_and.reduce([np.broadcast_to(ok, index[0].shape)
                                        for *_, ok in reached(op, numbers_of(op, args), data.shape, ())])
        self.touch(op, args[0], tuple(index), inside, "read")
        out = taken(data, tuple(np.where(inside, i, 0) for i in index), inside)
        return out[()] if isinstance(op.result.type, Scalar) else out

    def do_st_global(self, op: Op, args: list[Any]) -> None:
        tensor, t = args[0], op.operands[1].type
        index, inside = self.rectangle(op, tensor, args, t.layout, self.coords(t))
        inside = inside & registers.writers(t.layout, self.role.warps, self.warp)[:, None]
        where, value = tuple(i[inside] for i in index), args[1][inside]
        self.touch(op, tensor, index, inside, "add" if op.get("reduce") else "store")
        if op.get("reduce"):
            add_at(self.sim.memory[tensor], where, value, t.dtype)
        else:
            self.sim.memory[tensor][where] = value
