"""The TMA engine: bulk copies that start at their `tma_load` and land whenever the launch's order of events says so.

For the clocks, all copies of a block that complete on one mbarrier are one agent: it knows what the issuing thread knew, and whoever waits
for the barrier's phase gets to know it. Its writes go through the async proxy. A copy to all blocks of a cluster is as many copies, each of
which lands when it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.async_ops import share
from ..ir.core import Op, Value
from .cluster import Touch
from .mbarriers import PhaseBarrier
from .memory import WARP, Where, encode, runs
from .tensors import coordinates, numbers_of, reached, taken
from .words import describe

if TYPE_CHECKING:
    from .agents import Agent
    from .machine import Simulation


@dataclass
class Load:
    op: Op
    who: str
    owner: int
    time: int
    at: np.ndarray
    runs: list[Where]  # the same units, in order
    data: np.ndarray
    barrier: PhaseBarrier
    phase: int
    bytes: int
    clock: np.ndarray
    rank: int  # of the block that issued it


class BulkEngine:
    """Copies in flight of one cluster. first: the number of the first engine agent; one for each mbarrier object in use, and for each block
    that copies to it."""

    def __init__(self, sim: Simulation, first: int):
        self.sim, self.first = sim, first
        self.flying: list[Load] = []
        self.landed: dict[tuple[PhaseBarrier, int], Load] = {}  # the last one of each phase
        self.owners: dict[tuple[Value, int, int, int], int] = {}

    def owner(self, barrier: PhaseBarrier, rank: int, who: str) -> int:
        key = (barrier.bars, barrier.slot, barrier.rank, rank)
        if key not in self.owners:
            self.owners[key] = self.first + len(self.owners)
        self.sim.names[self.owners[key]] = f"{who}, its TMA copy"
        return self.owners[key]

    def start(self, agent: Agent, op: Op, args: list[Any]) -> None:
        view = args[-3]
        buffer = op.operands[-3].type
        data = self.source(agent, op, args, buffer)
        blocks = op.get("multicast") or 1
        part = self.part(op, buffer, agent.rank, blocks)
        for rank in range(blocks) if blocks > 1 else [agent.rank]:
            there = view[0], view[1] + (rank - agent.rank) * self.sim.stretch
            self.launch(agent, op, there, rank, args[-2][0], args[-1], part, data[part])

    def part(self, op: Op, buffer: Any, rank: int, blocks: int) -> Where:
        """Units that a block copies of a tile which so many share, as `destination` counts them."""
        if blocks == 1:
            return slice(None)
        key = ("part", id(op), rank)
        if key not in self.sim.maps:
            self.sim.maps[key] = self.shared_part(buffer, rank, blocks)
        return self.sim.maps[key]

    def shared_part(self, buffer: Any, rank: int, blocks: int) -> np.ndarray:
        rows, cols = buffer.shape if len(buffer.shape) == 2 else (1, buffer.shape[0])
        units = buffer.dtype.bytes // self.sim.grain
        i, j = np.divmod(np.arange(rows * cols), cols)
        found = share(buffer, blocks)
        assert found is not None, "verified"
        mine = i // found[0] == rank if found[0] < rows else j // (found[1] * buffer.layout.panel) == rank
        return np.flatnonzero(np.repeat(mine, units))

    def launch(self, agent: Agent, op: Op, view: tuple[Value, int], rank: int, bars: Value, cursor: int, part: Where,
               data: np.ndarray) -> None:
        """To one block: `part` of a slot, and its barrier."""
        shared, sim, (ring, base) = agent.shared, self.sim, view
        buffer = op.operands[-3].type
        barrier, phase = sim.barriers[rank].phase(bars, cursor)
        owner = self.owner(barrier, agent.rank, agent.who)
        shared.acquire(owner, shared.clock[agent.number])
        shared.clock[agent.number, agent.number] += 1  # what the thread does from here on, the copy does not know
        shared.clock[owner, owner] += 1
        time = int(shared.clock[owner, owner])
        if rank != agent.rank:
            sim.reach.touched.append(Touch(owner, time, rank, op, agent.who))

        where, stretches = self.places(op, buffer, base, part, agent.rank)
        for at in stretches:
            for bad in (shared.unfenced(owner, at), shared.launch(owner, at, WARP, op) or shared.unfenced_read(owner, at)):
                if bad is not None:
                    sim.conflict(bad, agent, op, ring, sim.offsets[ring])
        if phase != barrier.phase:
            barrier.fault(op, agent.who,
                          f"{op.kind} starts for phase {phase} of {barrier.name}, which is in phase {barrier.phase}", "start")
        self.flying.append(Load(op, agent.who, owner, time, where, stretches, data, barrier, phase, sim.grain * len(where),
                                shared.clock[owner].copy(), agent.rank))

    def places(self, op: Op, buffer: Any, base: int, part: Where, rank: int) -> tuple[np.ndarray, list[Where]]:
        """Units of the part of a tile that a block copies; also in order, as `runs` gives them."""
        key = ("places", id(op), base, rank)
        if key not in self.sim.maps:
            at = self.destination(op, buffer, base)[part]
            self.sim.maps[key] = at, runs(at)
        return self.sim.maps[key]

    def destination(self, op: Op, buffer: Any, base: int) -> np.ndarray:
        """Units of the tile's elements, row by row: boxes of one panel each, swizzled on absolute address bits."""
        size, layout = buffer.dtype.bytes, buffer.layout
        rows, cols = buffer.shape if len(buffer.shape) == 2 else (1, buffer.shape[0])
        align = 8 * layout.swizzle if layout.swizzle else 128
        if base % align:
            self.sim.report("sim/bounds", f"{op.kind}: the slot does not start on {align} bytes", op, got=base, key=("align", id(op)))
        if layout.panel * size % 16 or (layout.swizzle and layout.panel * size > layout.swizzle):
            self.sim.report("sim/bounds", f"{op.kind}: a box's rows are whole runs of 16 bytes, within the swizzle's span", op, got=layout,
                            key=("box", id(op)))
        key = ("bulk", id(op), base)
        if key not in self.sim.maps:
            i, j = np.divmod(np.arange(rows * cols), cols)
            span = layout.panel * size
            linear = base + j // layout.panel * (rows * span) + i * span + j % layout.panel * size
            mask = {0: 0, 32: 1, 64: 3, 128: 7}[layout.swizzle]
            address = linear ^ (linear >> 7 & mask) << 4
            self.sim.maps[key] = self.sim.shared.of(address, size).ravel()
        return self.sim.maps[key]

    def source(self, agent: Agent, op: Op, args: list[Any], buffer: Any) -> np.ndarray:
        """The rectangle as units, zero outside of the tensor."""
        tensor, shape = args[0], buffer.shape
        data, inside, index = self.sim.memory[tensor], np.ones(shape, bool), []
        agent.sim.addresses.check_bulk(agent, op, tensor, args)
        for axis, i, ok in reached(op, numbers_of(op, args), data.shape, coordinates(shape)):
            if axis.limit is not None and i.min() < 0:
                agent.sim.report("sim/bounds", f"a bulk copy with a limit begins in front of {tensor}, and brings nothing", op,
                                 notes=[agent.who], hint='a start that is never below 0, or copy="cp_async"')
            inside &= ok
            index.append(np.broadcast_to(np.where(ok, i, 0), shape))
        history = self.sim.history.get(tensor)
        if history is not None:
            bad = history.access(agent.stamp(op), tuple(i[inside] for i in index), np.full(int(inside.sum()), WARP), "read")
            if bad is not None:
                self.sim.tensor_conflict(bad, agent, op, tensor)
        return encode(taken(data, tuple(index), inside), buffer.dtype, self.sim.grain).ravel()

    def land(self, load: Load) -> None:
        self.flying.remove(load)
        shared = self.sim.shared
        self.landed[load.barrier, load.phase] = load
        shared.land_whole(load.owner, load.at, load.runs, load.data, load.op, load.time)
        load.barrier.complete(load.bytes, load.clock, load.op, load.who, load.phase)

    def check_idle(self) -> None:
        """At the end: somebody waited for every phase that copies landed in, whenever they did land."""
        late = list(self.flying) + [x for (barrier, phase), x in self.landed.items() if phase not in barrier.heard]
        for load in late:
            self.sim.report("sim/leftover", "the kernel may end while a copy is in flight: nobody waited for it", load.op,
                            notes=[f"{load.who}: {describe(load.op)}"], key=("leftover", id(load.op)),
                            hint="somebody waits for every copy before the kernel ends")
        for load in list(self.flying):
            self.land(load)
