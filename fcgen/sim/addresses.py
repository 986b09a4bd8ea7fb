"""Where the tensors of a launch lie in global memory, and which accesses start where the hardware cannot make them.

Pointers and strides are multiples of what the kernel's launches check, and of no more; but where the caller's array is a view with rows
that are further apart, its own strides are taken if a launch would. A kernel that says nothing (text by hand) gets pointers on 16 bytes,
and strides as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.access import Access
from ..ir.alignment import WIDEST, Promise, nothing, of_arguments, promised, run
from ..ir.core import Kernel, Op
from ..ir.types import Tensor
from .tensors import numbers_of

if TYPE_CHECKING:
    from .agents import Agent


def row_strides(x: Any) -> tuple[int, ...] | None:
    """An array's strides in elements, if its rows are contiguous; of anything else None."""
    if not isinstance(x, np.ndarray) or (x.ndim and x.shape[-1] > 1 and x.strides[-1] != x.itemsize):
        return None
    return tuple(s // x.itemsize for s in x.strides)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1:]) for axis in range(len(shape)))


def pitched(t: Tensor, shape: Sequence[int], want: Promise) -> tuple[int, ...]:
    """Strides, in elements, of a tensor that keeps a promise and no more: odd multiples of what is promised."""
    out, step = [1], 1
    for axis in range(len(shape) - 2, -1, -1):
        unit = want.strides[axis] // t.dtype.bytes
        step = (-(-step * max(shape[axis + 1], 1) // unit) | 1) * unit
        out.append(step)
    return tuple(reversed(out)) if shape else ()


class Addresses:
    """base, steps: each tensor's pointer, and its strides in bytes."""

    def __init__(self, kernel: Kernel, arguments: Mapping[str, Any], memory: Mapping[str, Any]):
        self.base: dict[str, int] = {}
        self.steps: dict[str, tuple[int, ...]] = {}
        self.runs: dict[Op, int] = {}
        said = promised(kernel)
        for p in kernel.params:
            if not isinstance(p.type, Tensor):
                continue
            want = said[p.name] if said is not None else Promise(WIDEST, nothing(p.type).strides)
            shape, item = memory[p.name].shape, p.type.dtype.bytes
            given: Any = arguments.get(p.name)
            strides = row_strides(given)
            if said is None:
                strides = strides or row_major(shape)
            elif strides is None or given is None or given.flags.c_contiguous or not of_arguments(0, shape, strides, item).covers(want):
                strides = pitched(p.type, shape, want)
            self.base[p.name] = want.pointer
            self.steps[p.name] = tuple(s * item if n > 1 else 0 for n, s in zip(shape, strides))

    def check(self, agent: Agent, op: Op, tensor: str, positions: list[np.ndarray], inside: np.ndarray) -> None:
        """Report the first access of [32, registers] elements that is not a multiple of its size. `cp_async` computes with the addresses of
        what lies outside too."""
        if op not in self.runs:
            self.runs[op] = run(op)
        vec = self.runs[op]
        if vec == 1:
            return
        size = vec * op.operands[0].type.dtype.bytes
        at = sum((p[..., ::vec].astype(np.int64) * s for p, s in zip(positions, self.steps[tensor])), start=np.int64(self.base[tensor]))
        bad = (at % size != 0) & (inside[..., ::vec] | (op.kind == "cp_async"))
        if bad.any():
            first = tuple(np.argwhere(bad)[0])
            self.report(agent, op, tensor, tuple(int(p[..., ::vec][first]) for p in positions), size, int(at[first]) % size)

    def check_bulk(self, agent: Agent, op: Op, tensor: str, args: Sequence[Any]) -> None:
        """The same for a bulk copy of rows from a column on: pointer, strides and the column in units of 16 bytes."""
        steps, item, first = self.steps[tensor][:-1], op.operands[0].type.dtype.bytes, Access.of(op).axes[-1].start
        column = int(numbers_of(op, args)[first]) if first is not None else 0
        for n in (self.base[tensor], *steps, column * item):
            if n % WIDEST:
                self.report(agent, op, tensor, (*["..."] * len(steps), column), WIDEST, n % WIDEST)

    def report(self, agent: Agent, op: Op, tensor: str, place: tuple[Any, ...], size: int, rest: int) -> None:
        steps = self.steps[tensor][:-1]
        where = f"{tensor}[{', '.join(map(str, place))}]"
        lies = f"the pointer of {tensor} is a multiple of {self.base[tensor]} bytes"
        lies += f", its strides are {', '.join(map(str, steps))} bytes" if steps else ""
        agent.sim.report("sim/align", f"{op.kind} moves {size} bytes at {where}, which does not start on as many", op,
                         expected=f"a multiple of {size} bytes", got=f"{rest} bytes past one", notes=[agent.who, lies])
