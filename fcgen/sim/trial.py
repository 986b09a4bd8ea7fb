"""A kernel on trial: its machine IR run in the simulator on random inputs, at sizes that take its loops through all their states.

In: a machine kernel and its target. Out: what was run. Guaranteed: at those sizes and in those orders the simulator had nothing to report;
else its first report is raised. What text of machine IR says goes through this before it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.core import Kernel, walk, walk_kernel
from ..ir.elementwise import to_dtype
from ..ir.sizes import is_made
from ..ir.target import Target
from ..ir.types import Buffer, Mbarrier, Tensor
from .async_agents import is_one_thread
from .machine import check

#: what seed 0, seed 1 and all others make of the engines
ORDERS = ("as late as they may", "at once", "in any order")


@dataclass(frozen=True)
class Trial:
    """One choice of sizes, and how much of the grid was run."""

    sizes: Mapping[str, int]
    programs: str

    def __str__(self) -> str:
        return f"{', '.join(f'{d}={n}' for d, n in self.sizes.items() if n > 1)}: {self.programs}"


def dimensions(kernel: Kernel) -> list[str]:
    """The sizes that a kernel takes at run time, in the order of its parameters."""
    return list(dict.fromkeys(d for p in kernel.params for d in getattr(p.type, "dims", ()) if isinstance(d, str)))


def random_inputs(kernel: Kernel, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Random inputs for a kernel: normal tensors of the given sizes (small ones where none is given), 1/8 for a float, 1 for a number."""
    rng = np.random.default_rng(seed)
    out: dict[str, Any] = {}
    known = dict(sizes)
    for p in kernel.params:
        if isinstance(p.type, Tensor):
            if is_made(kernel, p.name):
                continue
            shape = [d if isinstance(d, int) else known.setdefault(d, 2 if d in ("B", "H", "G") else 100) for d in p.type.dims]
            x = rng.standard_normal(shape) if p.type.dtype.is_float else rng.integers(0, 4, shape)
            out[p.name] = to_dtype(x, p.type.dtype)
        else:
            out[p.name] = 0.125 if p.type.dtype.is_float else 1
    return out


def trials(kernel: Kernel, given: Mapping[str, int]) -> list[Trial]:
    """Trip counts 1 to 2 x stages + 1 of the loops, with a last tile that is not whole; where blocks take several tiles there
    are four and more, so that rings go on from one tile to the next."""
    tile = max([o["tile"] for o in walk_kernel(kernel) if o.kind == "for" and o.get("tile")], default=16)
    ring = max([b.type.slots for b in kernel.buffers], default=1)
    persistent = kernel.meta.get("persistent", "none") != "none"
    plain = {g.dim for g in kernel.grid if g.tile == 1}
    tiled = {g.dim: g.tile for g in kernel.grid if g.tile > 1}
    out = []
    for n in range(1, 2 * ring + 2):
        sizes = {}
        for d in dimensions(kernel):
            steps = n * tile - 3
            if d in tiled and persistent:
                steps = max(steps, 3 * tiled[d] + min(steps, tiled[d]))
            sizes[d] = given.get(d, 1 if d in plain or _groups(d, kernel) else steps)
        counts = [g.count(sizes) for g in kernel.grid]
        total = int(np.prod(counts, dtype=int))
        every = persistent or total <= 2
        out.append(Trial(sizes, f"{total} program{'s' * (total > 1)}" if every else f"the first and the last of {total} programs"))
    return out


def run_trials(kernel: Kernel, target: Target, given: Mapping[str, int] | None = None, seeds: int = 1,
               doing: Callable[[str, Callable[[], Any]], Any] = lambda text, fn: fn(),
               fixed: Mapping[str, Any] | None = None) -> list[Trial]:
    """Run a kernel at all its trial sizes: the first and the last program of the grid (all, where blocks take several), several inputs and
    orders. Raises the first report. doing(text, fn) runs fn. fixed: arguments that are not drawn."""
    todo = trials(kernel, given or {})
    for trial in todo:
        counts = [g.count(trial.sizes) for g in kernel.grid]
        ends = dict.fromkeys([tuple(0 for _ in counts), tuple(c - 1 for c in counts)])
        for seed in range(seeds):
            inputs = {**random_inputs(kernel, trial.sizes, seed), **(fixed or {})}
            doing(f"simulating {trial}", lambda i=inputs, s=seed, e=ends: check(kernel, i, target, seed=s, programs=e))  # type: ignore[misc]
    return todo


def summary(kernel: Kernel, seeds: int) -> list[str]:
    """What of a kernel the trials put to the test, in lines: its roles, rings, and the orders that were tried."""
    roles = [f"{r.name} of {'one thread' if len(kernel.roles) > 1 and is_one_thread(r) else f'{r.warps} warps'}" for r in kernel.roles]
    used = {b for o in walk_kernel(kernel) for b in o.operands}
    rings = [f"{b.name} x{b.type.slots}" for b in kernel.buffers if isinstance(b.type, Buffer) and b in used]
    out = [f"roles    {', '.join(roles)}"]
    if rings:
        out.append(f"shared   {', '.join(rings)}")
    if any(isinstance(b.type, Mbarrier) for b in kernel.buffers):
        out.append(f"engines  {', '.join(ORDERS[:seeds])}")
    return out


def _groups(dim: str, kernel: Kernel) -> bool:
    """A dimension that is only ever a position (a head that others share), never an axis of a tile."""
    for role in kernel.roles:
        for op in walk(role.body):
            if op.get("index") and op.operands and isinstance(op.operands[0].type, Tensor):
                for d, word in zip(op.operands[0].type.dims, op["index"]):
                    if d == dim and word != "at":
                        return False
    return True
