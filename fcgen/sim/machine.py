"""The machine IR in a simulator: every warp an agent with its own registers, shared memory with a history, copies that land late.

`simulate` runs programs of the grid one after the other; inside one, warps run in an order drawn from the seed, each up to its next
barrier. What is reported does not depend on that order: races are found by vector clocks. `check` raises the first report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.core import Kernel, Op, Value
from ..ir.target import Target
from ..ir.types import Buffer, Tensor
from .agents import Agent
from .memory import Conflict, SharedMemory
from .tile import bind

HINTS = {
    "sim/race": "a barrier (or, within one warp, a syncwarp) between the two accesses",
    "sim/stale": "wait_group before the read, and a barrier if another warp made the copy",
    "sim/deadlock": "every warp must reach the same barriers: none inside a branch that only some take",
    "sim/leftover": "wait_group 0 before the kernel ends",
}


@dataclass
class Result:
    """outputs: by name. reports: races, stale reads, deadlocks, each once per pair of ops. steps: ops run."""

    outputs: dict[str, np.ndarray]
    reports: list[FcError] = field(default_factory=list)
    steps: int = 0


def simulate(kernel: Kernel, arguments: Mapping[str, Any], target: Target, *, seed: int = 0,
             programs: Iterable[tuple[int, ...]] | None = None) -> Result:
    """Run a machine kernel. programs: which grid points (all if None). Raises FcError only for wrong arguments."""
    if kernel.level != "machine":
        raise FcError("compile/unsupported", "the simulator runs machine IR", got=kernel.level, hint="the tile interpreter runs tile IR")
    memory, sizes = bind(kernel, arguments)
    s = Simulation(kernel, target, memory, sizes, np.random.default_rng(seed))
    every = itertools.product(*[range(axis.count(sizes)) for axis in kernel.grid])
    for place in programs if programs is not None else every:
        s.program(place)
    outputs = {n: memory[n] for n, flags in kernel.flags.items() if "out" in flags and n in memory}
    return Result(outputs, s.reports, s.steps)


def check(kernel: Kernel, arguments: Mapping[str, Any], target: Target, *, seed: int = 0,
          programs: Iterable[tuple[int, ...]] | None = None) -> Result:
    """`simulate`, raising the first report."""
    result = simulate(kernel, arguments, target, seed=seed, programs=programs)
    if result.reports:
        raise result.reports[0]
    return result


class Simulation:
    """One launch. Agents report through `report`."""

    def __init__(self, kernel: Kernel, target: Target, memory: dict[str, Any], sizes: dict[str, int], rng: np.random.Generator):
        self.kernel, self.target, self.memory, self.sizes, self.rng = kernel, target, memory, sizes, rng
        self.reports: list[FcError] = []
        self.seen: set[tuple[Any, ...]] = set()
        self.unwritten: dict[Op, tuple[str, Agent]] = {}
        self.steps = 0
        self.maps: dict[Any, Any] = {}  # addresses by op, warp and position: the same in every program
        self.offsets = dict(zip(kernel.buffers, self._offsets()))
        self.writer = {n: np.full(memory[n].shape, -1) for n, flags in kernel.flags.items() if "out" in flags and n in memory}
        self.number = -1

    def _offsets(self) -> tuple[int, ...]:
        given = self.kernel.meta.get("smem_offsets")
        if given is not None:
            return tuple(given)
        out, at = [], 0
        for b in self.kernel.buffers:
            out.append(at)
            at += -(-b.type.bytes // 1024) * 1024
        return tuple(out)

    def program(self, place: tuple[int, ...]) -> None:
        self.number += 1
        self.run(place)
        self.flush()

    def run(self, place: tuple[int, ...]) -> None:
        size = max([self.kernel.meta.get("smem_bytes", 0)] + [o + b.type.bytes for b, o in self.offsets.items()])
        self.shared = SharedMemory(size, self.kernel.warps)
        agents: list[Agent] = []
        for role in self.kernel.roles:
            for w in range(role.warps):
                env: dict[Value, Any] = {p: (p.name if isinstance(p.type, Tensor) else self.memory[p.name]) for p in self.kernel.params}
                env.update({b: (b, self.offsets[b]) for b in self.kernel.buffers})
                env.update(zip(role.body.args, (np.int32(i) for i in place)))
                agents.append(Agent(self, role, len(agents), w, env))
        waiting: dict[Agent, Op] = {}
        running: dict[Agent, Iterator[Op]] = {a: a.run() for a in agents}
        done: list[Agent] = []
        while running:
            free = [a for a in running if a not in waiting]
            if not free:
                if len(waiting) == len(agents) and len({id(op) for op in waiting.values()}) == 1:
                    self.shared.join_all()
                    waiting.clear()
                    continue
                self.deadlock(agents, waiting, done)
                return
            agent = free[int(self.rng.integers(len(free)))]
            op = next(running[agent], None)
            if op is None:
                del running[agent]
                done.append(agent)
                agent.finish()
            else:
                waiting[agent] = op

    def deadlock(self, agents: list[Agent], waiting: dict[Agent, Op], done: list[Agent]) -> None:
        op = next(iter(waiting.values()))
        lines = [
            f"{a.who}: " + (f"waits at {describe(waiting[a])}" if a in waiting else "has finished" if a in done else "runs") for a in agents
        ]
        self.report("sim/deadlock", "warps wait for each other at different places", op, notes=lines, key=("deadlock", id(op)))

    # ---- reports ---------------------------------------------------------------------------------------------------

    def conflict(self, c: Conflict, agent: Agent, op: Op, ring: Value, offset: int) -> None:
        where = self.locate(ring, c.byte - offset)
        code = "sim/race" if c.kind == "race" else "sim/stale"
        if c.kind == "unwritten":
            self.unwritten.setdefault(op, (where, agent))
            return
        other = self._who(c.agent)
        message = (f"{op.kind} touches {where} while its copy is in flight" if c.flying
                   else f"two {'lanes of one warp' if c.lanes else 'warps'} touch {where}, and nothing orders them")
        assert c.op is not None
        self.unwritten.pop(c.op, None)
        self.report(code, message, op, notes=[f"earlier: {other}: {describe(c.op)}", f"later:   {agent.who}: {describe(op)}"],
                    key=(code, id(c.op), id(op)), hint=HINTS["sim/stale"] if c.flying else None)

    def flush(self) -> None:
        """Report the reads of what nothing had written, but for those that race with a write that came later: which of these comes first is
        the seed's doing."""
        for op, (where, agent) in self.unwritten.items():
            self.report("sim/stale", f"{op.kind} reads {where}, which nothing has written", op, notes=[f"{agent.who}: {describe(op)}"],
                        key=("unwritten", id(op)), hint="a copy or store before it, and what orders the two")
        self.unwritten.clear()

    def report(self, code: str, message: str, op: Op, *, notes: list[str] | None = None, key: tuple[Any, ...] | None = None,
               hint: str | None = None, expected: Any = None, got: Any = None) -> None:
        key = key or (code, id(op))
        if key not in self.seen:
            self.seen.add(key)
            self.reports.append(
                FcError(code, message, expected=expected, got=got, loc=op.loc, notes=notes or [], hint=hint or HINTS.get(code))
            )

    def _who(self, number: int) -> str:
        for role in self.kernel.roles:
            if number < role.warps:
                return f"role {role.name}, warp {number}"
            number -= role.warps
        return "?"

    def locate(self, ring: Value, byte: int) -> str:
        """`k[slot 1] row 3, column 16`: an element of a ring, by its byte."""
        t: Buffer = ring.type
        slot, inner = divmod(max(byte, 0), t.slot_bytes)
        name = f"{ring.name or 'a buffer'}" + (f"[slot {slot}]" if t.slots > 1 else "")
        rows, cols = t.shape if len(t.shape) == 2 else (1, t.shape[0])
        i, j = np.divmod(np.arange(rows * cols), cols)
        hit = np.nonzero(t.layout.address(t.shape, t.dtype.bytes, i, j) // t.dtype.bytes == inner // t.dtype.bytes)[0]
        return f"{name} row {hit[0] // cols}, column {hit[0] % cols}" if len(hit) else f"{name} (byte {byte})"


def describe(op: Op) -> str:
    """One op in a line: kind, what it works on, and its place."""
    names = ", ".join(v.name for v in op.operands if v.name)
    made = f"{op.results[0].name} = " if op.results and op.results[0].name else ""
    return f"{made}{op.kind} {names}".rstrip() + (f"  ({op.loc.short})" if op.loc else "")
