"""The machine IR in a simulator: every warp an agent with its own registers, shared memory with a history, copies that land late.

`simulate` runs programs of the grid one after the other, those of a cluster together; inside one, warps run in an order drawn from the
seed, each up to its next barrier. The shared memory of a cluster is one array, a stretch of it per block. Whether a kernel is found wrong
does not depend on that order: races are found by vector clocks. `check` raises the first report.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import FcError, Loc
from ..ir.core import Block, Kernel, Op, Value, walk, walk_kernel
from ..ir.fits import check_fits
from ..ir.memory_map import shared_bytes
from ..ir.named_barriers import is_one_thread
from ..ir.target import Target
from ..ir.types import Buffer, Mbarrier, Tensor
from ..ir.verify import verify
from .addresses import Addresses
from .agents import Agent
from .bulk import BulkEngine
from .cluster import Reach
from .coverage import Coverage
from .mbarriers import Barriers, Blocked, crowd
from .memory import SEVERAL, Conflict, SharedMemory
from .steps import Step, contracted
from .stores import StoreEngine
from .tensorcore import TensorCore
from .tensors import TensorConflict, TensorHistory
from .tile import bind, unwritten
from .words import describe

HINTS = {
    "sim/race": "a barrier (or, within one warp, a syncwarp) between the two accesses",
    "sim/stale": "wait_group before the read, and a barrier if another warp made the copy",
    "sim/proxy": "proxy_fence after the stores, and a barrier if other warps made them",
    "unread": "proxy_fence after the reads and before the arrival: an arrival does not wait for plain loads",
    "store": "proxy_fence by those who stage a tile, and a barrier before its bulk store; bulk_wait by who started it, and a barrier after",
    "engine": "an mbarrier: who reads waits for `full`; who fills waits for `empty`, on which readers arrive when all reads have completed",
    "sim/protocol": "each phase gets as many arrivals as its barrier counts and as many bytes as it was told",
    "sim/register": "wgmma_fence after the last access and before the wgmma",
    "sim/deadlock": "every warp must reach the same barriers: none inside a branch that only some take",
    "sim/align": "fewer elements per access; or launches that check more (`meta aligned`), and tensors that keep it",
    "sim/leftover": "wait_group 0 before the kernel ends",
}


#: kernel, which is verified -> what launches of it have found out that had nothing to report
_found: WeakKeyDictionary[Kernel, tuple[dict[Any, Any], dict[Block, list[Step]]]] = WeakKeyDictionary()


@dataclass
class Result:
    """outputs: by name. reports: races, stale reads, deadlocks, each once per pair of ops. steps: ops run. written: bool per element of
    each output. stores: by output, the ops that wrote it."""

    outputs: dict[str, np.ndarray]
    reports: list[FcError] = field(default_factory=list)
    steps: int = 0
    written: dict[str, np.ndarray] = field(default_factory=dict)
    stores: dict[str, list[Op]] = field(default_factory=dict)


def simulate(kernel: Kernel, arguments: Mapping[str, Any], target: Target, *, seed: int = 0,
             programs: Iterable[tuple[int, ...]] | None = None, blocks: int | None = None, coverage: Coverage | None = None,
             limit: int | None = None, excused: Collection[str] = ()) -> Result:
    """Run a machine kernel. programs: which grid points (all if None). blocks: of a kernel whose blocks take several tiles (few enough for
    that if None). coverage: learns what ran. limit: a kernel that has not ended after so many ops is reported. excused: outputs that
    are written where drawn arguments say, possibly nowhere or by two programs. Raises FcError only for wrong arguments."""
    if kernel.level != "machine":
        raise FcError("compile/unsupported", "the simulator runs machine IR", got=kernel.level, hint="the tile interpreter runs tile IR")
    check_fits(kernel if kernel in _found else verify(kernel), target)
    memory, sizes = bind(kernel, arguments)
    s = Simulation(kernel, target, memory, sizes, arguments, np.random.default_rng(seed), coverage)
    s.limit, s.excused = limit, frozenset(excused)
    s.order = {0: "late", 1: "eager"}.get(seed, "any")
    with np.errstate(all="ignore"):  # poison is NaN
        s.launch(seed, programs, blocks)
    if not s.reports:
        _found[kernel] = s.maps, s.code
    if programs is None and not s.reports:
        faults = (unwritten(kernel, n, history.written()) for n, history in s.history.items() if not history.given and n not in s.excused)
        s.reports += [fault for fault in faults if fault is not None]
    outputs = {n: memory[n] for n, flags in kernel.flags.items() if "out" in flags and n in memory}
    return Result(outputs, s.reports, s.steps, {n: h.written() for n, h in s.history.items()}, {n: h.ops for n, h in s.history.items()})


def check(kernel: Kernel, arguments: Mapping[str, Any], target: Target, *, seed: int = 0,
          programs: Iterable[tuple[int, ...]] | None = None) -> Result:
    """`simulate`, raising the first report."""
    result = simulate(kernel, arguments, target, seed=seed, programs=programs)
    if result.reports:
        raise result.reports[0]
    return result


class Simulation:
    """One launch. Agents report through `report`."""

    def __init__(self, kernel: Kernel, target: Target, memory: dict[str, Any], sizes: dict[str, int], given: Mapping[str, Any],
                 rng: np.random.Generator, coverage: Coverage | None = None):
        self.coverage = coverage or Coverage()
        self.kernel, self.target, self.memory, self.sizes, self.rng = kernel, target, memory, sizes, rng
        self.addresses = Addresses(kernel, given, memory)
        self.reports: list[FcError] = []
        self.seen: set[tuple[Any, ...]] = set()
        self.unwritten: dict[Op, tuple[str, Agent]] = {}
        self.excused: frozenset[str] = frozenset()
        self.early: list[tuple[Conflict, Agent, Op, str, int]] = []  # reads under another warp's copy, and when
        self.steps = 0
        #: addresses by op, warp and position, and blocks as they are run: the same in every program, and in every launch without reports
        self.maps, self.code = _found.get(kernel) or (dict[Any, Any](), dict[Block, list[Step]]())
        self.offsets = dict(zip(kernel.buffers, self._offsets()))
        #: bytes of the smallest element in shared memory: what it remembers of is as fine as that
        self.grain = min([2, *(b.type.dtype.bytes for b in kernel.buffers if isinstance(b.type, Buffer))])
        size = max([kernel.meta.get("smem_bytes", 0)] + [o + b.type.bytes for b, o in self.offsets.items()])
        self.stretch = size if kernel.cluster == 1 else -(-size // 1024) * 1024  # bytes of one block
        self.history = {n: TensorHistory(memory[n].shape, n in given)
                        for n, flags in kernel.flags.items() if "out" in flags and n in memory}
        self.places: list[tuple[int, ...]] = []
        self.order = "late"  # when engines act: as late as may be, at once ("eager"), or as the dice say ("any")
        self.block_count, self.claimed = 1, 1
        self.persistent = kernel.meta.get("persistent", "none") != "none"
        self.contracted = contracted(kernel)
        self.limit: int | None = None
        self.patience = 1000  # rounds of a `while`
        self.retired: set[int] = set()  # blocks that said claim_done
        self.early_launch = any(op.kind == "grid_wait" for op in walk_kernel(kernel))

    def _offsets(self) -> tuple[int, ...]:
        """Where each buffer starts: as allocated, or one after the other."""
        given = self.kernel.meta.get("smem_offsets")
        if given is not None:
            return tuple(given)
        out, at = [], 0
        for b in self.kernel.buffers:
            out.append(at)
            at += -(-b.type.bytes // 1024) * 1024
        return tuple(out)

    def launch(self, seed: int, programs: Iterable[tuple[int, ...]] | None, blocks: int | None) -> None:
        counts, size = [axis.count(self.sizes) for axis in self.kernel.grid], self.kernel.cluster
        total = prod(axis.clusters(self.sizes) for axis in self.kernel.grid) * size
        if self.persistent:
            few = max(1, min(2 + seed % 2, total // (3 * size))) * size  # so few that each gets several tiles
            self.block_count = min(total, blocks or few)
            every: Iterable[tuple[int, ...]] = map(self.place, range(self.block_count))
        else:
            self.block_count = total
            every = itertools.product(*map(range, counts)) if programs is None else programs
        self.claimed, self.patience = self.block_count, 100 + 2 * total
        if size > 1:
            self.clusters(None if programs is None else set(programs))
        else:
            for n, place in enumerate(every):
                self.run([(place, n if self.persistent or not counts else int(np.ravel_multi_index(place, counts)))])
        role, claim = next(((r, op) for r in self.kernel.roles for op in walk(r.body) if op.kind == "claim"), (None, None))
        if role is not None and claim is not None and len(self.retired) != self.block_count:
            self.report("sim/leftover", "a block claims tiles and never says claim_done: the counter is wrong for the next launch", claim,
                        notes=[f"role {role.name}: {len(self.retired)} of {self.block_count} blocks said it"], key=("leftover", "claim"),
                        hint="claim_done once per block, after its last claim")

    def clusters(self, programs: set[tuple[int, ...]] | None) -> None:
        """Run the blocks of each cluster that has one of the programs."""
        size = self.kernel.cluster
        for first in range(0, self.block_count, size):
            blocks = [(self.place(n), n) for n in range(first, first + size)]
            if programs is None or self.persistent or any(place in programs for place, _ in blocks):
                self.run(blocks)

    def place(self, block: int) -> tuple[int, ...]:
        """The program of a block: its place in its cluster, then the axes in the kernel's order."""
        grid = self.kernel.grid
        left, out = block // self.kernel.cluster, [0] * len(grid)
        for a in self.kernel.order or range(len(grid)):
            count = grid[a].clusters(self.sizes)
            at = left % count
            out[a] = (count - 1 - at if grid[a].reverse else at) * grid[a].cluster + (block % grid[a].cluster)
            left //= count
        return tuple(out)

    def run(self, blocks: list[tuple[tuple[int, ...], int]]) -> None:
        """One cluster, or a block of its own: (program, number) of each block."""
        agents = self.make_agents(blocks)
        self.play(agents)
        self.flush()

    def play(self, agents: list[Agent]) -> None:
        waiting: dict[Agent, Blocked] = {}
        running: dict[Agent, Iterator[Blocked | None]] = {a: a.run() for a in agents}
        done: list[Agent] = []
        while running:
            free = [a for a in running if a not in waiting or (waiting[a].ready is not None and waiting[a].ready())]
            events = [] if self.order == "late" and free else self.events(agents)
            if self.order == "eager" and events:
                free = []
            if not free and not events:
                if self.release(waiting):
                    continue
                self.deadlock(agents, waiting, done)
                return
            n = int(self.rng.integers(len(free) + len(events)))
            if n >= len(free):
                events[n - len(free)]()
                continue
            agent = free[n]
            waiting.pop(agent, None)
            try:
                stop = next(running[agent])
            except StopIteration:
                del running[agent]
                done.append(agent)
                agent.finish()
                self.reach.finished(agent)
                continue
            if stop is not None:
                waiting[agent] = stop
            if self.limit is not None and self.steps > self.limit:
                self.report("sim/deadlock", f"the kernel has not ended after {self.steps} ops: a loop that goes on for too long", agent.at,
                            notes=[f"{agent.who} is in it"], key=("endless",), hint="the bounds of the loops, and what a `while` waits for")
                return
        self.bulk.check_idle()
        for barriers in self.barriers:
            barriers.check_idle()
        self.reach.check()

    def make_agents(self, blocks: list[tuple[tuple[int, ...], int]]) -> list[Agent]:
        """The blocks' agents, and behind their numbers those of the engines: a tensor core per warp, a TMA engine per mbarrier and block
        that copies."""
        roles = self.kernel.roles
        counts = [1 if len(roles) > 1 and is_one_thread(role) else role.warps for role in roles]
        cores = [role.warps if any(op.kind == "wgmma" for op in walk(role.body)) else 0 for role in roles]
        first = sum(counts) * len(blocks)
        objects = sum(b.type.slots for b in self.kernel.buffers if isinstance(b.type, Mbarrier)) * len(blocks) ** 2
        storing = [role.warps if any(op.kind == "tma_store" for op in walk(role.body)) else 0 for role in roles]
        store = first + sum(cores) * len(blocks)
        engines = store + sum(storing) * len(blocks)
        self.shared = SharedMemory(self.stretch * len(blocks), engines + objects, self.grain)
        self.shared.generic = first
        self.names: dict[int, str] = {}
        self.peers: dict[tuple[int, str], tuple[int, ...]] = {}
        self.barriers = [Barriers(self, rank) for rank in range(len(blocks))]
        self.bulk = BulkEngine(self, engines)
        self.reach = Reach(self, len(blocks))
        agents: list[Agent] = []
        for rank, (place, number) in enumerate(blocks):
            self.places.append(tuple(place))
            for role, count, core, stores in zip(roles, counts, cores, storing):
                self.peers[rank, role.name] = tuple(range(len(agents), len(agents) + count))
                for w in range(count):
                    env: dict[Value, Any] = {p: (p.name if isinstance(p.type, Tensor) else self.memory[p.name])
                                             for p in self.kernel.params}
                    env.update({b: (b, self.offsets[b] + rank * self.stretch) for b in self.kernel.buffers})
                    env.update(zip(role.body.args, (np.int32(i) for i in place)))
                    agent = Agent(self, role, len(agents), w, env, alone=count < role.warps)
                    agent.rank, agent.block_index, agent.program = rank, number, len(self.places) - 1
                    self.names[agent.number] = agent.who
                    if core:
                        agent.core = TensorCore(agent, first)
                        first += 1
                    if stores:
                        agent.stores = StoreEngine(agent, store)
                        store += 1
                    agents.append(agent)
        return agents

    def events(self, agents: list[Agent]) -> list[Callable[[], None]]:
        """What an engine may do now."""
        out: list[Callable[[], None]] = [partial(self.bulk.land, load) for load in self.bulk.flying]
        if self.order != "late":  # else a wgmma runs, and a store reads and writes, when it is waited for
            out += [a.core.run_next for a in agents if a.core is not None and a.core.waiting]
            out += [event for a in agents if a.stores is not None for event in a.stores.events()]
        return out

    def release(self, waiting: dict[Agent, Blocked]) -> bool:
        """Let those go who have all come to one barrier: the warps of a role, or, where nothing counted orders roles, of the block."""
        counted = any(isinstance(b.type, Mbarrier) for b in self.kernel.buffers)
        groups = list(self.peers.values()) if counted else \
            [tuple(n for (r, _), members in self.peers.items() if r == rank for n in members) for rank in range(len(self.barriers))]
        moved = False
        parts = {a: waiting[a].op.get("parts", 1) for a in waiting if waiting[a].ready is None and waiting[a].op.kind == "barrier"}
        own = [members[k * len(members) // n:(k + 1) * len(members) // n] for members in self.peers.values()
               for n in {parts[a] for a in parts if a.number in members and parts[a] > 1} for k in range(n)]
        for members in [*groups, *own]:
            here = [a for a in parts if a in waiting and a.number in members and (parts[a] > 1) == (members in own)]
            if len(here) == len(members) and len({id(waiting[a].op) for a in here}) == len({a.role.name for a in here}):
                self.shared.join(list(members))
                for a in here:
                    del waiting[a]
                moved = True
        return moved or self.reach.release(waiting)

    def deadlock(self, agents: list[Agent], waiting: dict[Agent, Blocked], done: list[Agent]) -> None:
        same: dict[tuple[str, ...], list[Agent]] = {}
        for a in agents:
            stop = waiting.get(a)
            what = "has finished" if stop is None else f"waits at {describe(stop.op)}" + (f" {stop.why()}" if stop.why is not None else "")
            same.setdefault((a.where + a.role.name, what), []).append(a)
        lines = [f"{crowd(who)}: {what}" for (_, what), who in same.items()]
        stop = next(waiting[a] for a in agents if a in waiting)
        counted = any(w.ready is not None for w in waiting.values())
        self.report("sim/deadlock", "roles wait for each other" if counted else "warps wait for each other at different places", stop.op,
                    notes=lines, key=("deadlock", id(stop.op)),
                    hint="somebody must make the arrivals, or bring the bytes, that each barrier still waits for" if counted else None)

    # ---- reports ---------------------------------------------------------------------------------------------------

    def conflict(self, c: Conflict, agent: Agent, op: Op, ring: Value, offset: int) -> None:
        where = self.locate(ring, c.byte % self.stretch - offset)
        if c.kind == "unwritten":
            self.unwritten.setdefault(op, (where, agent))
            return
        if c.kind == "stale" and c.agent != agent.number and c.agent < self.shared.generic:
            self.early.append((c, agent, op, where, int(self.shared.clock[agent.number, agent.number])))
            return
        self.tell(c, agent, op, where)

    def landed(self, copy: Op, owner: Agent) -> None:
        """A copy is complete. Who read under it either raced with that moment or, if ordered before it, was too early in any case."""
        for entry in [e for e in self.early if e[0].op is copy and e[0].agent == owner.number]:
            c, reader, op, where, time = entry
            self.early.remove(entry)
            race = time > self.shared.clock[owner.number, reader.number]
            self.tell(replace(c, kind="race" if race else "stale"), reader, op, where)

    def tell(self, c: Conflict, agent: Agent, op: Op, where: str) -> None:
        code = "sim/proxy" if c.kind == "unread" else f"sim/{c.kind}"
        other = self._who(c.agent)
        pair = "lanes of one warp" if c.lanes else "agents" if c.agent >= self.shared.generic else "warps"
        message = (f"{op.kind} reaches {where} through the async proxy, and its writer made no proxy fence" if c.kind == "proxy" else
                   f"{op.kind} may overwrite {where} before it has been read: its reader made no proxy fence" if c.kind == "unread" else
                   f"{op.kind} touches {where} while its copy is in flight" if c.flying else
                   f"two {pair} touch {where}, and nothing orders them")
        assert c.op is not None
        self.unwritten.pop(c.op, None)
        notes = [f"earlier: {other}: {describe(c.op)}", f"later:   {agent.who}: {describe(op)}", *self.overlap(c.op, op)]
        self.report(code, message, op, notes=notes, key=(code, id(c.op), id(op)), hint=self.advice(c, op))

    def overlap(self, a: Op, b: Op) -> list[str]:
        """A line that says so where two ops meet because their buffers share bytes."""
        left, right = ({self.rings.get(v, v) for v in op.operands if isinstance(v.type, Buffer)} for op in (a, b))
        if left & right:
            return []
        pairs = [(x, y, shared_bytes(self.kernel, x, y)) for x in left for y in right]
        return [f"{x.name} and {y.name} share bytes {at[0]} to {at[-1]} of shared memory (meta smem_offsets)" for x, y, at in pairs if at]

    @cached_property
    def rings(self) -> dict[Value, Value]:
        """View -> the ring that it is a slot of."""
        return {op.result: op.operands[0] for op in walk_kernel(self.kernel) if op.kind == "slot"}

    @cached_property
    def channels(self) -> dict[Value, Loc]:
        """mbarriers -> the place of the copies that they go with: those they count, and those whose cursor they are waited for with."""
        copies = [op for op in walk_kernel(self.kernel) if op.kind == "tma_load" and (op.place or op.loc)]
        found = {op.operands[-2]: op.place or op.loc for op in copies}
        at = {op.operands[-1]: op.place or op.loc for op in copies}
        for op in walk_kernel(self.kernel):
            if op.kind == "mbar_wait" and op.operands[-1] in at:
                found.setdefault(op.operands[-2], at[op.operands[-1]])
        return found  # type: ignore[return-value]

    def advice(self, c: Conflict, op: Op) -> str | None:
        if "tma_store" in (op.kind, c.op.kind if c.op is not None else ""):
            return HINTS["store"]
        if c.agent >= self.shared.generic or op.kind in ("tma_load", "wgmma"):
            return HINTS[{"proxy": "sim/proxy", "unread": "unread"}.get(c.kind, "engine")]
        return HINTS["sim/stale"] if c.flying else None

    def tensor_conflict(self, c: TensorConflict, agent: Agent, op: Op, tensor: str) -> None:
        where = f"{tensor}[{', '.join(map(str, c.place))}]"
        if c.kind == "unwritten":
            self.unwritten.setdefault(op, (where, agent))
            return
        assert c.op is not None
        self.unwritten.pop(c.op, None)
        apart = c.program != agent.program
        if apart and tensor in self.excused:
            return
        place = "" if len(self.kernel.grid) == 0 or not apart else \
            "several programs, " if c.program == SEVERAL else f"program {self.places[c.program]}, "
        other = "several warps" if c.agent == SEVERAL else self._who(c.agent)
        what = "two programs" if apart else "two lanes of one warp" if c.agent == agent.number else "two warps"
        self.report("sim/race", f"{what} touch {where}, and nothing orders them", op, key=("sim/race", id(c.op), id(op)),
                    notes=[f"earlier: {place}{other}: {describe(c.op)}",
                           f"later:   {f'program {self.places[agent.program]}, ' if apart else ''}{agent.who}: {describe(op)}"],
                    hint="programs run in any order: each element of an output belongs to one program, or is only added to"
                    if apart else None)

    def flush(self) -> None:
        """Report the reads of what nothing had written, but for those that race with a write that came later: which of these comes first is
        the seed's doing. And reads under copies of other warps that did not land: they were not waited for."""
        for c, agent, op, where, _ in self.early:
            self.tell(c, agent, op, where)
        self.early.clear()
        for op, (where, agent) in self.unwritten.items():
            self.report("sim/stale", f"{op.kind} reads {where}, which nothing has written", op, notes=[f"{agent.who}: {describe(op)}"],
                        key=("unwritten", id(op)), hint="a copy or store before it, and what orders the two")
        self.unwritten.clear()

    def report(self, code: str, message: str, op: Op, *, notes: list[str] | None = None, key: tuple[Any, ...] | None = None,
               hint: str | None = None, expected: Any = None, got: Any = None) -> None:
        key = key or (code, id(op))
        if key not in self.seen:
            self.seen.add(key)
            notes = list(notes or [])
            if op.place is not None and op.loc is not None and op.loc.file != op.place.file:
                notes.append(f"which comes from {op.loc}: {(op.loc.source_line() or '').strip()}".rstrip(": "))
            channel = next((self.channels[v] for v in op.operands if v in self.channels), None)
            if op.loc is None and channel is not None:
                notes.append(f"its channel is filled at {channel}: {(channel.source_line() or '').strip()}".rstrip(": "))
            self.reports.append(FcError(code, message, expected=expected, got=got, loc=op.place or op.loc or channel, notes=notes,
                                        hint=hint or HINTS.get(code)))

    def _who(self, number: int) -> str:
        return self.names.get(number, "?")

    def locate(self, ring: Value, byte: int) -> str:
        """`k[slot 1] row 3, column 16`: an element of a ring, by its byte."""
        t: Buffer = ring.type
        slot, inner = divmod(max(byte, 0), t.slot_bytes)
        name = f"{ring.name or 'a buffer'}" + (f"[slot {slot}]" if t.slots > 1 else "")
        rows, cols = t.shape if len(t.shape) == 2 else (1, t.shape[0])
        i, j = np.divmod(np.arange(rows * cols), cols)
        hit = np.nonzero(t.layout.address(t.shape, t.dtype.bytes, i, j) // t.dtype.bytes == inner // t.dtype.bytes)[0]
        return f"{name} row {hit[0] // cols}, column {hit[0] % cols}" if len(hit) else f"{name} (byte {byte})"
