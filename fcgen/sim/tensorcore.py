"""The tensor core as one warp sees it: wgmmas that run at any time between their issue and the `settle` that covers their group.

Each warp of a warpgroup gets its own 16 rows of every block of 64; that the four issue together is not taken for granted. For the clocks
the engine is an agent of its own, whose time is the number of the group: its reads are over for whoever has settled that group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FcError
from ..ir.async_ops import accumulator
from ..ir.core import Op, Value
from ..ir.layout import RegLayout, mma_a, mma_c, warp_grid
from ..ir.types import Buffer, Frag, Pending
from . import descriptor, registers
from .memory import WARP, Where, decode, runs
from .product import product
from .tile import poison
from .words import describe

if TYPE_CHECKING:
    from .agents import Agent

REGISTER = "sim/register"
BLOCK = 64  # rows of one instruction


@dataclass
class Job:
    """One wgmma op of one warp. group: its number once it is issued; the group is in flight until settled. lefts: the operands in registers
    of it and of what it accumulates onto."""

    op: Op
    group: int
    acc: Any  # a Job, an array, or None
    left: np.ndarray | None
    a_at: np.ndarray
    b_at: np.ndarray
    lefts: list[np.ndarray] = field(default_factory=list)
    value: np.ndarray | None = None  # float64 [32, regs]


class TensorCore:
    """Of one warp. engine: its agent number."""

    def __init__(self, agent: Agent, engine: int):
        self.agent, self.sim, self.engine = agent, agent.sim, engine
        self.sim.names[engine] = f"{agent.who}, its wgmma"
        self.commits, self.settled = 0, 0  # groups closed, groups waited for
        self.jobs: list[Job] = []  # issued, not settled
        self.waiting: list[Job] = []  # not yet run
        self.fenced = False
        self.touched: dict[int, np.ndarray] = {}  # registers that ordinary instructions accessed since the last wgmma_fence
        self.accumulators: dict[int, np.ndarray] = {}  # results of settle

    # ---- registers ---------------------------------------------------------------------------------------------------

    def touch(self, op: Op, read: tuple[Value, ...], written: tuple[Value, ...], env: dict[Any, Any]) -> None:
        """An ordinary instruction reads and writes registers. (Those of an accumulator that is read again are copied for a wgmma, in front
        of its fence: that one works on registers of its own.)"""
        for v in read:
            self.touched[id(env[v])] = env[v]
        for v in written:
            self.touched[id(env[v])] = env[v]

    def fence(self) -> None:
        self.fenced = True
        self.touched.clear()

    def fault(self, op: Op, message: str, key: str, hint: str | None = None) -> None:
        self.sim.report(REGISTER, message, op, notes=[f"{self.agent.who}: {describe(op)}"], key=(REGISTER, key, id(op)), hint=hint)

    def check_fence(self, op: Op, acc: Any, left: np.ndarray | None) -> None:
        if not self.fenced:
            self.fault(op, "wgmma without a wgmma_fence before the first one", "first")
        elif isinstance(acc, np.ndarray) and id(acc) in self.touched:
            self.fault(op, "wgmma accumulates onto registers that were touched since the last wgmma_fence", "acc")
        elif left is not None and id(left) in self.touched:
            self.fault(op, "wgmma reads a left operand from registers that were touched since the last wgmma_fence", "left")
        elif acc is None and any(i in self.accumulators for i in self.touched):
            self.fault(op, "wgmma makes an accumulator, and accumulators were touched since the last wgmma_fence", "new")

    # ---- issue -------------------------------------------------------------------------------------------------------

    def issue(self, op: Op, args: list[Any]) -> Job:
        agent, shared = self.agent, self.agent.shared
        acc = args[2] if accumulator(op) is not None else None
        left = None if isinstance(op.operands[0].type, Buffer) else args[0]
        self.check_fence(op, acc, left)
        shared.acquire(self.engine, shared.clock[agent.number])
        shared.clock[self.engine, self.engine] = self.commits + 1
        a_at, b_at, parts = self.operands(op, args)
        for view, part in zip((*args[:2], args[-1]), parts):
            self.read(op, view, part)
        job = Job(op, self.commits + 1, acc, left, a_at, b_at)
        job.lefts = ([left] if left is not None else []) + (acc.lefts if isinstance(acc, Job) else [])
        self.jobs.append(job)
        self.waiting.append(job)
        return job

    def read(self, op: Op, view: Any, parts: list[Where]) -> None:
        shared, sim = self.agent.shared, self.sim
        for at in parts:
            bad = shared.read(self.engine, at, WARP, op) or shared.unfenced(self.engine, at)
            if bad is not None:
                sim.conflict(bad, self.agent, op, view[0], sim.offsets[view[0]])

    def operands(self, op: Op, args: list[Any]) -> tuple[np.ndarray, np.ndarray, tuple[list[Where], ...]]:
        """Units as descriptors find them: of this warp's rows of a, [rows, depth, units], and of b, [cols, depth, units]; and all
        that the instruction may read of a, of b and of the ones beside b, whichever warp it is for."""
        a, b, out = op.operands[0].type, op.operands[1].type, op.result.type
        maps, beside = self.sim.maps, args[-1][1] if op.get("ones") else None
        depth = b.shape[1] if op["tb"] else b.shape[0]
        own, read = np.zeros((0, depth, 1), int), list[Where]()
        if isinstance(a, Buffer):
            key: tuple[Any, ...] = ("wgmma a", id(op), self.agent.warp, args[0][1])
            if key not in maps:
                blocks = [self.tile(op, a, args[0][1], BLOCK, row, depth, "MN" if op["ta"] else "K") for row in self.blocks(op)]
                first = 16 * (self.agent.warp % 4)
                maps[key] = np.concatenate([at[first:first + 16] for at in blocks]), [part for at in blocks for part in runs(at)]
            own, read = maps[key]
        width = out.shape[1] // warp_grid(out.layout)[1]
        left = registers.first_column(out.layout, self.agent.role.warps, self.agent.warp)
        key = ("wgmma b", id(op), args[1][1], beside, left)
        if key not in maps:
            before = b.shape[1] - b.layout.panel if op.get("first") else 0  # columns of an instruction of their own
            at = self.tile(op, b, args[1][1], width - before, left + before, depth, "K" if op["tb"] else "MN", beside)
            if before:
                at = np.concatenate([self.tile(op, b, args[1][1], before, 0, depth, "MN"), at])
            wide = b.shape[0 if op["tb"] else 1]
            maps[key] = at, runs(at[:wide]), runs(at[wide:])
        at, of_b, of_ones = maps[key]
        return own, at, (read, of_b, of_ones)

    def tile(self, op: Op, t: Buffer, start: int, rows: int, row: int, depth: int, major: str, beside: int | None = None) -> np.ndarray:
        base = self.agent.rank * self.sim.stretch  # descriptors hold addresses within the block's own shared memory
        start -= base
        if start % (8 * t.layout.swizzle):
            self.sim.report("sim/bounds", f"wgmma: a tile starts on 8 rows of its swizzle, {8 * t.layout.swizzle} bytes", op, got=start,
                            key=("align", id(op)))
            start -= start % (8 * t.layout.swizzle)
        at = descriptor.tile(t.layout, (t.shape[0], t.shape[1]), t.dtype.bytes, major, start, row, rows, depth,
                             None if beside is None else beside - base)
        size = t.dtype.bytes
        if at.max() + size > self.sim.stretch:
            self.sim.report("sim/bounds", "wgmma reads outside of shared memory", op, got=int(at.max()), key=("outside", id(op)))
            at = np.minimum(at, self.sim.stretch - size)
        return self.agent.shared.of(at + base, size)

    def unit(self, op: Op) -> tuple[RegLayout, RegLayout]:
        """What one warp holds of an instruction's accumulator and of a left operand in registers (PTX ISA, wgmma)."""
        known = self.sim.maps.get(("unit", id(op)))
        if known is not None:
            return known
        cols, size = 0, op.operands[1].type.dtype.bytes
        for instr in (op.get("first"), op["instr"]):
            m = re.search(rf"m64n(\d+)k{32 // size}_", instr or f"m64n0k{32 // size}_")
            if m is None:
                raise FcError("compile/unsupported", f"the simulator does not know {instr}", loc=op.loc, expected=f"m64nNk{32 // size}")
            cols += int(m[1])
        return self.sim.maps.setdefault(("unit", id(op)), (mma_c(16, cols, (1, 1)), mma_a(16, 32 // size, (1, 1), size)))

    def blocks(self, op: Op) -> list[int]:
        """First row of each block of 64 rows that this warp's warpgroup works on."""
        agent, t = self.agent, op.result.type
        unit = self.unit(op)[0]
        have = registers.coords(t.layout, agent.role.warps, agent.warp)
        rows = sorted({int(have[0, b, 0]) - 16 * (agent.warp % 4) for b in range(0, have.shape[1], unit.regs)})
        if any(r % BLOCK for r in rows):
            self.sim.report("sim/bounds", "wgmma: the accumulator's rows are not those of warpgroups", op, got=t.layout,
                            key=("rows", id(op)))
            rows = [r - r % BLOCK for r in rows]
        return rows

    # ---- completion --------------------------------------------------------------------------------------------------

    def run_next(self) -> None:
        """The oldest wgmma that has not run reads its operands now."""
        job = self.waiting.pop(0)
        op, agent = job.op, self.agent
        t = op.result.type
        acc_unit, left_unit = self.unit(op)
        lanes, regs, _ = registers.operand_map(t.layout, acc_unit, agent.role.warps, agent.warp)
        b = self.fetch(job.b_at, op.operands[1].type)
        if job.left is None:
            a = self.fetch(job.a_at, op.operands[0].type)
        else:
            la, ra, _ = registers.operand_map(op.operands[0].type.layout, left_unit, agent.role.warps, agent.warp)
            a = job.left[la, ra].astype(np.float64)
        out = np.full((32, t.layout.regs), np.nan)
        out[lanes, regs] = product(b, a.T).T
        if isinstance(job.acc, Job):
            assert job.acc.value is not None
            out = out + job.acc.value
        elif job.acc is not None:
            out = out + job.acc
        job.value = out

    def fetch(self, at: np.ndarray, t: Buffer) -> np.ndarray:
        return decode(self.agent.shared.units[at], t.dtype).astype(np.float64)

    def commit(self) -> None:
        self.commits += 1

    def wait(self, left: int) -> int:
        """At most `left` groups stay in flight; returns how many are done."""
        groups = self.commits - left
        while self.waiting and self.waiting[0].group <= groups:
            self.run_next()
        self.jobs = [j for j in self.jobs if j.group > groups]
        if groups > self.settled:
            self.settled = groups
            clock = self.agent.shared.clock
            clock[self.agent.number, self.engine] = max(clock[self.agent.number, self.engine], groups)
        return groups

    def release(self, op: Op, lefts: list[np.ndarray]) -> None:
        """Wait, and let go of the listed left operands of what is done: their registers need not be kept for a `settle`."""
        groups = self.wait(op["groups"])
        reading = {id(j.left) for j in self.jobs if j.group > groups}
        if any(id(x) in reading for x in lefts):
            self.fault(op, "wgmma_wait lets go of a left operand that a wgmma in flight may still read", "kept")
        free = {id(x) for x in lefts} - reading
        for job in self.jobs:
            job.lefts = [x for x in job.lefts if id(x) not in free]

    def settle(self, op: Op, args: list[Any]) -> tuple[np.ndarray, ...]:
        groups = self.wait(op["groups"])
        listed = {id(x) for v, x in zip(op.operands, args) if isinstance(v.type, Frag)}
        out = []
        for v, job in zip(op.operands, args):
            if isinstance(v.type, Pending) and isinstance(job, np.ndarray):  # no product was added to it
                out.append(job)
            elif isinstance(v.type, Pending):
                out.append(self.result(op, v, job, groups))
                if any(id(x) not in listed for x in job.lefts):
                    self.fault(op, f"settle of {v.name or 'a result'} does not list a left operand, whose registers may be overwritten",
                               "listed", "list the fragments that the wgmmas read")
        return tuple(out)

    def result(self, op: Op, v: Any, job: Job, groups: int) -> np.ndarray:
        if job.group > groups:
            left = "in a group that was never committed" if job.group > self.commits else \
                f"in one of the {op['groups']} groups that may still be in flight"
            self.sim.report("sim/stale", f"settle does not wait for {v.name or 'its accumulator'}: its wgmma is {left}", op,
                            notes=[f"{self.agent.who}: {describe(job.op)}", f"{self.agent.who}: {describe(op)}"],
                            key=("settle", id(op), id(job.op)), hint="groups = how many were committed after the one that is waited for")
            value = poison((32, v.type.layout.regs), v.type.dtype)
        else:
            assert job.value is not None
            value = (job.value if v.type.dtype.is_float else job.value.astype(np.int64)).astype(v.type.dtype.np_dtype)
        self.accumulators[id(value)] = value
        if len(self.accumulators) > 64:  # only those touched since the last fence matter
            self.accumulators = {i: x for i, x in self.accumulators.items() if i in self.touched or x is value}
        return value

    def check_empty(self) -> None:
        for job in self.jobs:
            what = "was never committed" if job.group > self.commits else "nobody waited for"
            self.sim.report("sim/leftover", f"the kernel ends with a wgmma that {what}", job.op,
                            notes=[f"{self.agent.who}: {describe(job.op)}"], key=("leftover", id(job.op)), hint="wgmma_commit, and settle")
