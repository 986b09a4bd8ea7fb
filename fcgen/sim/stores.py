"""Bulk stores of one warp: an engine that reads the staged tile as late as its waits permit, and writes the tensor later still.

For the clocks, the stores that one thread starts are one agent. Each knows what the thread knew when it was started. Who waits with
read=true gets to know that the tile has been read; only who waits without knows that the tensor has been written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.core import Op
from ..ir.elementwise import to_dtype
from ..ir.layout import LANES
from . import registers
from .mbarriers import Blocked
from .memory import WARP, decode, encode
from .tensors import Stamp, coordinates, numbers_of, reached
from .words import describe

if TYPE_CHECKING:
    from .agents import Agent




@dataclass
class Store:
    """read, written: the engine's clocks at these moments. data: None until the tile has been read. epoch: how many waits for everything
    came before it."""

    op: Op
    where: np.ndarray
    tensor: str
    index: tuple[np.ndarray, ...]
    inside: np.ndarray
    read: np.ndarray
    written: np.ndarray
    number: int
    epoch: int
    data: np.ndarray | None = None
    done: bool = False
    heard: bool = False


class StoreEngine:
    """Stores belong to the open group until `commit`; `wait` counts groups from the newest."""

    def __init__(self, agent: Agent, owner: int):
        self.agent, self.sim, self.owner = agent, agent.sim, owner
        self.open: list[Store] = []
        self.groups: list[list[Store]] = []
        self.started = self.flies = self.epoch = 0  # flies: how many have not written yet
        self.sim.names[owner] = f"{agent.who}, its bulk store"

    def start(self, op: Op, args: list[Any]) -> None:
        agent, shared, sim = self.agent, self.agent.shared, self.sim
        parts, buffer, (ring, base) = op["parts"], op.operands[-1].type, args[-1]
        rows, cols = buffer.shape
        part = op.get("part", agent.warp * parts // agent.role.warps)
        axis = int(op.get("across", False))
        along = slice(part * buffer.shape[axis] // parts, (part + 1) * buffer.shape[axis] // parts)
        own = (slice(None), along) if axis else (along, slice(None))
        where = sim.bulk.destination(op, buffer, base).reshape(rows, cols, -1)[own].ravel()
        shared.acquire(self.owner, shared.clock[agent.number])
        shared.clock[agent.number, agent.number] += 1  # what the thread does from here on, the store does not know
        read = shared.clock[self.owner].copy()
        read[self.owner] += 1
        written = read.copy()
        written[self.owner] += 1
        shared.clock[self.owner] = written
        bad = shared.unfenced(self.owner, where)
        if bad is not None:
            sim.conflict(bad, agent, op, ring, sim.offsets[ring])
        sim.addresses.check_bulk(agent, op, args[0], args)
        places = list(reached(op, numbers_of(op, args), sim.memory[args[0]].shape, coordinates((rows, cols))))
        index = [np.broadcast_to(i, (rows, cols)) for _, i, _ in places]
        inside = np.logical_and.reduce([np.broadcast_to(ok, (rows, cols)) for *_, ok in places])
        if any(i[own].size and i[own].min() < 0 for i in index):
            sim.report("sim/bounds", f"a bulk store begins in front of {op.operands[0].name}: an illegal instruction (seen on an H200)", op,
                       notes=[agent.who], hint="bulk copies cut off what lies behind the end; in front, only those that load do")
        self.started += 1
        self.flies += 1
        self.open.append(Store(op, where, args[0], tuple(i[own] for i in index), inside[own], read, written, self.started, self.epoch))

    # ---- what the engine does by itself -----------------------------------------------------------------------------

    def take(self, s: Store) -> None:
        """Read the tile, knowing what was known at the start."""
        shared, now = self.agent.shared, self.agent.shared.clock[self.owner].copy()
        buffer, (ring, _) = s.op.operands[-1].type, self.agent.env[s.op.operands[-1]]
        shared.clock[self.owner] = s.read
        bad = shared.read(self.owner, s.where, WARP, s.op)
        shared.clock[self.owner] = now
        if bad is not None:
            self.sim.conflict(bad, self.agent, s.op, ring, self.sim.offsets[ring])
        raw = shared.units[s.where].reshape(*s.inside.shape, -1)
        s.data = decode(raw, buffer.dtype).copy()

    def put(self, s: Store) -> None:
        """Write the tensor."""
        assert s.data is not None
        s.done = True
        self.flies -= 1
        at, add = tuple(i[s.inside] for i in s.index), s.op.get("reduce") == "add"
        history, memory = self.sim.history.get(s.tensor), self.sim.memory[s.tensor]
        if history is not None:
            stamp = Stamp(self.agent.program, self.owner, s.written, s.epoch, s.op, ())
            bad = history.access(stamp, at, np.full(at[0].shape, s.number), "add" if add else "store")
            if bad is not None:
                self.sim.tensor_conflict(bad, self.agent, s.op, s.tensor)
        value = s.data[s.inside]
        memory[at] = to_dtype(memory[at].astype(value.dtype) + value, s.op.operands[-1].type.dtype) if add else value

    def events(self) -> list[Callable[[], None]]:
        """What it may do now."""
        if not self.flies:
            return []
        flying = [s for g in [*self.groups, self.open] for s in g]
        out: list[Callable[[], None]] = [partial(self.take, s) for s in flying if s.data is None]
        return [*out, *(partial(self.put, s) for s in flying if s.data is not None and not s.done)]

    # ---- the thread's side --------------------------------------------------------------------------------------------

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, n: int, read: bool) -> None:
        shared, number = self.agent.shared, self.agent.number
        over = max(0, len(self.groups) - n)
        for s in [s for g in self.groups[:over] for s in g]:
            self.finish(s, not read)
            s.heard = True
            shared.acquire(number, s.read if read else s.written)
        if not read:
            del self.groups[:over]
            self.epoch += not self.groups and not self.open

    def finish(self, s: Store, whole: bool = True) -> None:
        if s.data is None:
            self.take(s)
        if whole and not s.done:
            self.put(s)

    def check_empty(self) -> None:
        """At the thread's end. What was only waited for to be read is written by the end of the kernel."""
        for s in [s for g in [*self.groups, self.open] for s in g]:
            if not s.heard:
                self.sim.report("sim/leftover", "the kernel may end while a bulk store reads its shared memory: nobody waited for it", s.op,
                                notes=[f"{self.agent.who}: {describe(s.op)}"], key=("leftover", id(s.op)),
                                hint="bulk_commit, and bulk_wait 0 (read) before the kernel ends")
            self.finish(s)


class StoreOps:
    """Part of `Agent`."""

    stores: StoreEngine | None = None

    def tma_store(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        agent: Any = self
        if op.get("part") is not None or agent.warp * op["parts"] % agent.role.warps < op["parts"]:  # the first warp of its part
            agent.stores.start(op, args)
        yield None

    def do_bulk_commit(self, op: Op, args: list[Any]) -> None:
        if self.stores is not None:
            self.stores.commit()

    def do_bulk_wait(self, op: Op, args: list[Any]) -> None:
        if self.stores is not None:
            self.stores.wait(op["n"], op["read"])

    def do_stmatrix(self, op: Op, args: list[Any]) -> None:
        """PTX ISA, stmatrix: lane l supplies the address of row l % 8 of its block, and the elements of row l / 4, columns 2 (l % 4) +
        {0, 1}, or with .trans those of the transposed block."""
        agent: Any = self
        t, buffer, row, col = op.operands[0].type, op.operands[1].type, int(args[2]), int(args[3])
        key = ("stmatrix", id(op), agent.warp, row, col)
        if key not in agent.sim.maps:
            origin = registers.matrix_origins(t.layout, agent.role.warps, agent.warp, False) + np.array([row, col])
            i, j = origin[:, 0, None, None] + np.arange(8)[:, None], origin[:, 1, None, None] + np.arange(8)
            if min(i.min(), j.min()) < 0 or i.max() >= buffer.shape[0] or j.max() >= buffer.shape[1]:
                agent.sim.report("sim/bounds", "stmatrix outside its tile", op, expected=f"{buffer.shape}",
                                 got=f"row {i.max()}, column {j.max()}")
                i, j = np.clip(i, 0, buffer.shape[0] - 1), np.clip(j, 0, buffer.shape[1] - 1)
            address = np.asarray(buffer.layout.address(buffer.shape, 2, i, j))
            if (address[..., 0] % 16).any() or (address - address[..., :1] != 2 * np.arange(8)).any():
                agent.sim.report("sim/bounds", "stmatrix: a row of a block is not 16 aligned bytes in shared memory", op, got=buffer.layout)
            agent.sim.maps[key] = agent.shared.of(address, 2)
        raw = encode(args[0], t.dtype, agent.shared.grain)
        pairs = raw.reshape(LANES, -1, 2, raw.shape[-1])  # [lane, block, element, unit]
        blocks = np.zeros((pairs.shape[1], 8, 8, raw.shape[-1]), raw.dtype)
        lane, e = np.arange(LANES)[:, None], np.arange(2)
        i, j = (2 * (lane % 4) + e, lane // 4) if op["trans"] else (lane // 4, 2 * (lane % 4) + e)
        blocks[:, i, j] = pairs.transpose(1, 0, 2, 3)
        agent.put(op, args[1], agent.sim.maps[key], blocks, np.full((1, 1, 1), WARP))

    #: ops at which the agent may stop
    PAUSES: dict[str, Callable[..., Iterator[Blocked | None]]] = {"tma_store": tma_store}
