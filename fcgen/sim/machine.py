"""The machine IR in a simulator: every warp an agent with its own registers, shared memory with a history, copies that land late.

`simulate` runs programs of the grid one after the other, those of a cluster together; inside one, warps run in an order drawn from the
seed, each up to its next barrier. The shared memory of a cluster is one array, a stretch of it per block. Whether a kernel is found wrong
does not depend on that order: races are found by vector clocks. `check` raises the first report.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf, prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import FcError
from ..ir.core import Block, Kernel, Op, Value, walk, walk_kernel
from ..ir.fits import check_fits
from ..ir.named_barriers import is_one_thread
from ..ir.target import Target
from ..ir.types import Buffer, Mbarrier, Tensor
from ..ir.verify import verify
from .addresses import Addresses
from .agents import Agent
from .bulk import BulkEngine
from .cluster import Reach
from .coverage import Coverage
from .mbarriers import Barriers, Blocked
from .memory import SharedMemory
from .reports import Reports
from .steps import Step, contracted
from .stores import StoreEngine
from .tensorcore import TensorCore
from .tensors import TensorHistory
from .tile import bind, unwritten

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
             limit: int | None = None, excused: Collection[str] = (), stop: bool = False) -> Result:
    """Run a machine kernel. programs: which grid points (all if None). blocks: of a kernel whose blocks take several tiles (few enough for
    that if None). coverage: learns what ran. limit: a program that has not ended after so many ops is reported. excused: outputs that
    are written where drawn arguments say, possibly nowhere or by two programs. stop: end with the first report. Raises FcError only for
    wrong arguments."""
    if kernel.level != "machine":
        raise FcError("compile/unsupported", "the simulator runs machine IR", got=kernel.level, hint="the tile interpreter runs tile IR")
    check_fits(kernel if kernel in _found else verify(kernel), target)
    memory, sizes = bind(kernel, arguments)
    s = Simulation(kernel, target, memory, sizes, arguments, np.random.default_rng(seed), coverage)
    s.limit, s.excused, s.stop = limit, frozenset(excused), stop
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
    result = simulate(kernel, arguments, target, seed=seed, programs=programs, stop=True)
    if result.reports:
        raise result.reports[0]
    return result


class Simulation(Reports):
    """One launch. Agents report through `report`."""

    def __init__(self, kernel: Kernel, target: Target, memory: dict[str, Any], sizes: dict[str, int], given: Mapping[str, Any],
                 rng: np.random.Generator, coverage: Coverage | None = None):
        super().__init__(kernel)
        self.coverage = coverage or Coverage()
        self.target, self.memory, self.sizes, self.rng = target, memory, sizes, rng
        self.addresses = Addresses(kernel, given, memory)
        self.steps = 0
        self.limit: int | None = None
        self.last = inf  # the op at which the programs that run now are said to be endless
        #: addresses by op, warp and position, and blocks as they are run: the same in every program, and in every launch without reports
        self.maps, self.code = _found.get(kernel) or (dict[Any, Any](), dict[Block, list[Step]]())
        self.offsets = dict(zip(kernel.buffers, self._offsets()))
        #: bytes of the smallest element in shared memory: what it remembers of is as fine as that
        self.grain = min([2, *(b.type.dtype.bytes for b in kernel.buffers if isinstance(b.type, Buffer))])
        size = max([kernel.meta.get("smem_bytes", 0)] + [o + b.type.bytes for b, o in self.offsets.items()])
        self.stretch = size if kernel.cluster == 1 else -(-size // 1024) * 1024  # bytes of one block
        self.history = {n: TensorHistory(memory[n].shape, n in given)
                        for n, flags in kernel.flags.items() if "out" in flags and n in memory}
        self.order = "late"  # when engines act: as late as may be, at once ("eager"), or as the dice say ("any")
        self.block_count, self.claimed = 1, 1
        self.persistent = kernel.meta.get("persistent", "none") != "none"
        self.contracted = contracted(kernel)
        self.stop = False
        self.patience = 1000  # rounds of a `while`
        self.retired: set[int] = set()  # blocks that said claim_done
        #: blocks wait for what others do, and their places are no number's: they run in the order in which a launch begins them
        self.in_turn = {"await_turn"} == {op.kind for op in walk_kernel(kernel)} & {"await_turn", "block_index"}
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
            begun = map(self.place, range(total)) if self.in_turn else itertools.product(*map(range, counts))
            every = begun if programs is None else programs
        self.claimed, self.patience = self.block_count, 100 + 2 * total
        if size > 1:
            self.clusters(None if programs is None else set(programs))
        else:
            for n, place in enumerate(every):
                if self.stopped:
                    return
                self.run([(place, n if self.persistent or not counts else int(np.ravel_multi_index(place, counts)))])
        role, claim = next(((r, op) for r in self.kernel.roles for op in walk(r.body) if op.kind == "claim"), (None, None))
        if role is not None and claim is not None and not self.stopped and len(self.retired) != self.block_count:
            self.report("sim/leftover", "a block claims tiles and never says claim_done: the counter is wrong for the next launch", claim,
                        notes=[f"role {role.name}: {len(self.retired)} of {self.block_count} blocks said it"], key=("leftover", "claim"),
                        hint="claim_done once per block, after its last claim")

    def clusters(self, programs: set[tuple[int, ...]] | None) -> None:
        """Run the blocks of each cluster that has one of the programs."""
        size = self.kernel.cluster
        for first in range(0, self.block_count, size):
            blocks = [(self.place(n), n) for n in range(first, first + size)]
            if self.stopped:
                return
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
        if self.limit is not None:
            tiles = prod(axis.clusters(self.sizes) for axis in self.kernel.grid) * self.kernel.cluster
            self.last = self.steps + self.limit * -(-tiles // self.block_count) * len(blocks)
        self.play(agents)
        if not self.stopped:
            self.flush()

    @property
    def stopped(self) -> bool:
        return self.stop and bool(self.reports)

    def play(self, agents: list[Agent]) -> None:
        waiting: dict[Agent, Blocked] = {}
        running: dict[Agent, Iterator[Blocked | None]] = {a: a.run() for a in agents}
        done: list[Agent] = []
        while running:
            if self.stopped:
                return
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
            if self.steps > self.last:
                self.report("sim/deadlock", f"a program has not ended after {self.limit} ops: a loop that goes on for too long", agent.at,
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
