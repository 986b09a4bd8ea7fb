"""What a launch is found to do wrong: who met whom where, said once for each pair of ops, at the user's line.

Reads of what nothing had written, and reads under another warp's copy, are kept until it is known what they are: see `flush` and `landed`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FcError, Loc
from ..ir.core import Kernel, Op, Value, walk_kernel
from ..ir.memory_map import shared_bytes
from ..ir.text import value_names
from ..ir.types import Buffer
from .mbarriers import Blocked, crowd
from .memory import SEVERAL, Conflict, SharedMemory
from .tensors import TensorConflict
from .words import describe

if TYPE_CHECKING:
    from .agents import Agent

HINTS = {
    "sim/race": "a barrier (or, within one warp, a syncwarp) between the two accesses",
    "sim/stale": "wait_group before the read, and a barrier if another warp made the copy",
    "rewritten": "wait_group before it is written again, and a barrier if another warp made the copy",
    "overlap": "bytes of their own (meta smem_offsets); or, where one is used after the other, a wait for its copies and a barrier between",
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


class Reports:
    """Part of `Simulation`. excused: tensors that several programs may write. names: of agents, and of the engines that act for them."""

    shared: SharedMemory
    stretch: int
    names: dict[int, str]

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.reports: list[FcError] = []
        self.seen: set[tuple[Any, ...]] = set()
        self.unwritten: dict[Op, tuple[str, Agent]] = {}
        self.excused: frozenset[str] = frozenset()
        self.early: list[tuple[Conflict, Agent, Op, str, int]] = []  # reads under another warp's copy, and when
        self.places: list[tuple[int, ...]] = []

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
        overlap = self.overlap(c.op, op) if c.op is not None else []
        message = (f"{op.kind} reaches {where} through the async proxy, and its writer made no proxy fence" if c.kind == "proxy" else
                   f"{op.kind} may overwrite {where} before it has been read: its reader made no proxy fence" if c.kind == "unread" else
                   f"{op.kind} touches {where} while {'a copy of another tile' if overlap else 'its copy'} is in flight" if c.flying else
                   f"two {pair} touch {where}, and nothing orders them")
        assert c.op is not None
        self.unwritten.pop(c.op, None)
        notes = [f"earlier: {other}: {describe(c.op)}", f"later:   {agent.who}: {describe(op)}", *overlap]
        self.report(code, message, op, notes=notes, key=(code, id(c.op), id(op)), hint=HINTS["overlap"] if overlap else self.advice(c, op))

    def overlap(self, a: Op, b: Op) -> list[str]:
        """A line that says so where two ops meet because their buffers share bytes."""
        left, right = ({self.rings.get(v, v) for v in op.operands if isinstance(v.type, Buffer)} for op in (a, b))
        if left & right:
            return []
        pairs = [(x, y, shared_bytes(self.kernel, x, y)) for x in left for y in right]
        return [f"{self.called[x]} and {self.called[y]} share bytes {at[0]} to {at[-1]} of shared memory (meta smem_offsets)"
                for x, y, at in pairs if at]

    @cached_property
    def called(self) -> dict[Value, str]:
        """What the kernel's text calls a value: where two have one name, that is `tile` and `tile.1`."""
        return value_names(self.kernel)

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
        return HINTS["sim/stale" if op.results else "rewritten"] if c.flying else None

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
        name = self.called.get(ring, "a buffer") + (f"[slot {slot}]" if t.slots > 1 else "")
        rows, cols = t.shape if len(t.shape) == 2 else (1, t.shape[0])
        i, j = np.divmod(np.arange(rows * cols), cols)
        hit = np.nonzero(t.layout.address(t.shape, t.dtype.bytes, i, j) // t.dtype.bytes == inner // t.dtype.bytes)[0]
        return f"{name} row {hit[0] // cols}, column {hit[0] % cols}" if len(hit) else f"{name} (byte {byte})"
