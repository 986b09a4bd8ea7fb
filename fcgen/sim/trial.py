"""A kernel on trial: its machine IR run in the simulator on drawn inputs until all of it has run, and compared with what it should compute.

In: a machine kernel and its target; possibly the program that it should agree with. Out: what was run, and what never did. Guaranteed: in
those runs the simulator had nothing to report, every element of the outputs was written, and the values were the other program's; else the
first report is raised. What text of machine IR says goes through this before it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.core import Kernel, walk_kernel
from ..ir.elementwise import to_dtype
from ..ir.named_barriers import is_one_thread
from ..ir.sizes import is_made
from ..ir.target import Target
from ..ir.types import Buffer, Frag, Mbarrier, Tensor
from .coverage import Coverage, never_ran, one_way, short_rings
from .draw import Draws, Trial, dimensions
from .machine import Result, simulate
from .oracle import Oracle
from .words import describe

#: what seed 0, seed 1 and all others make of the engines
ORDERS = ("as late as they may", "at once", "in any order")
#: trials that always run, those after which a kernel that has run whole may rest, and those that no kernel needs more of
LEAST, ENOUGH, MOST = 14, 18, 60
#: runs without anything new after which what has not run is taken for what cannot
STALE = 8
#: ops of one program that none needs at drawn sizes
ENDLESS = 200_000
#: fragment elements that may be computed, in millions: some seconds of one core
WORK = 500
#: the same for what is compiled: a second or two
QUICK = 200


@dataclass
class Trials:
    """What was run. skipped: drawn inputs that the compared program itself refuses. oracle: what values were compared with."""

    kernel: Kernel
    seeds: int
    ran: list[Trial] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    oracle: Oracle | None = None
    work: float = 0.0

    def gaps(self) -> list[str]:
        """What the trials did not reach, in lines."""
        out = [f"never ran: {describe(op)}" for op in never_ran(self.kernel, self.coverage)]
        out += [f"always {'taken' if way else 'passed by'}: {describe(op)}" for op, way in one_way(self.kernel, self.coverage)]
        return out + [f"never went around: {ring.name}, {ring.type}" for ring in short_rings(self.kernel, self.coverage)]

    @property
    def values(self) -> str:
        return f"those of {self.oracle.name}" if self.oracle else "not compared: nothing says what they should be (--against FILE)"

    def complete(self) -> bool:
        return not (never_ran(self.kernel, self.coverage) or one_way(self.kernel, self.coverage) or short_rings(self.kernel, self.coverage))

    def lines(self) -> list[str]:
        """What was put to the test, for people: roles, rings, orders, inputs, what values were compared with, what never ran."""
        k = self.kernel
        roles = [f"{r.name} of {'one thread' if len(k.roles) > 1 and is_one_thread(r) else f'{r.warps} warps'}" for r in k.roles]
        used = {b for o in walk_kernel(k) for b in o.operands}
        out = [("roles", ", ".join(roles)),
               ("shared", ", ".join(f"{b.name} x{b.type.slots}" for b in k.buffers if isinstance(b.type, Buffer) and b in used)),
               ("engines", ", ".join(ORDERS[:self.seeds]) if any(isinstance(b.type, Mbarrier) for b in k.buffers) else ""),
               ("values", self.values)]
        out += [("" if n else "runs", str(t)) for n, t in enumerate(self.ran)]
        gaps = self.gaps()
        out += [("" if n else "gaps", line) for n, line in enumerate(gaps[:12])]
        out += [("", f"and {len(gaps) - 12} more")] if len(gaps) > 12 else []
        return [f"{head:8} {text}" for head, text in out if text]


def run_trials(kernel: Kernel, target: Target, given: Mapping[str, int] | None = None, seeds: int = 2,
               doing: Callable[[str, Callable[[], Any]], Any] = lambda text, fn: fn(), fixed: Mapping[str, Any] | None = None,
               against: Oracle | None = None, first: int = 0, work: float = QUICK, most: int = MOST) -> Trials:
    """Run a kernel on drawn inputs, in `seeds` orders of its engines, until every op, branch and ring has run and nothing new does, or an
    amount of work is done, which is fixed so that every machine runs the same. given: sizes that stay as they are. fixed: arguments that
    are not drawn. against: what it should compute. first, most: number of the first trial, and how many there may be. Raises the first
    report. doing(text, fn) runs fn."""
    if against is not None:
        against.check_fits(kernel)
    draws = Draws(kernel, given or {}, against.says if against else kernel, seeds)
    out = Trials(kernel, seeds, oracle=against)
    weight, refused = _weight(kernel), None
    seen = news = 0  # the last run in which something ran for the first time


    def attempt(trial: Trial, n: int) -> tuple[Result, FcError | None] | FcError:
        """What came of it, and what is wrong with that; what the compared program says of these inputs where it is not for them."""
        counts = [g.count({**trial.numbers, **trial.sizes}) for g in kernel.grid]
        ends = None if trial.every else list(dict.fromkeys([tuple(0 for _ in counts), tuple(c - 1 for c in counts)]))
        inputs, want = {**draws.inputs(trial, n), **(fixed or {})}, None
        if against is not None:
            try:
                want = against.run(inputs, ends)
            except FcError as e:
                if e.code not in ("sim/bounds", "call/argument", *(["sim/race"] if draws.meaning.moved else [])):
                    raise
                return e
        run = lambda: simulate(kernel, inputs, target, seed=trial.seed, programs=ends, blocks=trial.blocks, coverage=out.coverage,
                               limit=None if given else ENDLESS, excused=draws.meaning.moved)
        result: Result = doing(f"simulating {trial}", run)
        wrong = result.reports[0] if result.reports else \
            against.compare(want, result, inputs, ends) if against is not None and want is not None else None
        return result, wrong

    for n in range(first, first + most):
        trial = draws.trial(n, fixed or {})
        came = attempt(trial, n)
        if isinstance(came, tuple) and came[1] is not None and came[1].code == "sim/unwritten":
            smaller = draws.smaller(trial, came[0].written)
            trial, came = (trial, came) if smaller is None else (smaller, attempt(smaller, n))
        if isinstance(came, FcError):
            refused = came
            continue
        result, wrong = came
        if wrong is not None:
            wrong.notes = (*wrong.notes, f"in the run with {trial}", *draws.together(wrong))
            raise wrong
        out.ran.append(trial)
        out.work += result.steps * weight
        if out.coverage.size() > seen:
            seen, news = out.coverage.size(), len(out.ran)
        rest = news + (0 if out.complete() else STALE)
        if (len(out.ran) >= LEAST and out.work > work) or len(out.ran) >= max(ENOUGH, rest):
            break
    if not out.ran:
        assert refused is not None
        raise refused
    return out


def _weight(kernel: Kernel) -> float:
    """About what an op costs the simulator, in millions of fragment elements of one warp."""
    regs = [getattr(v.type.layout, "regs", 64) for op in walk_kernel(kernel) for v in op.results if isinstance(v.type, Frag)]
    return 32 * (100 + (float(np.mean(regs)) if regs else 0)) / 1e6


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


__all__ = ["Oracle", "Trial", "Trials", "dimensions", "random_inputs", "run_trials"]
