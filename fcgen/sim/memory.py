"""Shared memory that remembers: who touched each element last, when, and what had been synchronised by then.

Time is a vector clock per agent (a warp): an access is ordered before another if its time is in what the other's agent has seen.
Barriers join the clocks. Inside a warp, lanes are ordered only by `syncwarp` or a barrier. Copies in flight own their bytes until
they were waited for. Kept per *unit*, as many bytes as the smallest element that a kernel has in shared memory (`grain`).

Units are named by an index array, or by a slice where they lie side by side: a tile that an engine reads is a few runs of thousands.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from ..ir.core import Op
from ..ir.types import DType

NOBODY, SEVERAL = -1, -2
WARP = -3  # as a lane: all lanes of the warp together, as ldmatrix and wmma read
Where = np.ndarray | slice


#: whether anything is true: it costs a quarter of what `any` does; and what `min` and `max` come to
count, smallest, largest = np.count_nonzero, np.minimum.reduce, np.maximum.reduce


def runs(at: np.ndarray) -> list[Where]:
    """The distinct units among `at`, in a few slices where that is what they are."""
    if not at.size:
        return []
    flat = np.sort(at, axis=None)
    flat = flat[np.append(True, flat[1:] != flat[:-1])]
    ends = np.flatnonzero(np.diff(flat) != 1) + 1
    if len(ends) >= 16:
        return [flat]
    return [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(flat, ends)]


def _first(at: Where, bad: np.ndarray) -> tuple[int, int]:
    """(position among `at`, unit) of the first that is bad."""
    n = int(np.argmax(bad))
    return n, int(at.start + n if isinstance(at, slice) else at[n])


class Reads:
    """One agent's last reads, per unit. Of a warp also by which lane: `s_...` is the last read by another lane than the last read's,
    so that whoever writes, one of the two is by another lane. An engine has no lanes. (Syncs count from 1: 0 is before all reads.)"""

    def __init__(self, n: int, lanes: bool):
        self.time, self.op = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self.lanes = lanes
        if lanes:
            self.sync, self.lane, self.s_lane, self.s_sync, self.s_op = (np.zeros(n, np.int32) for _ in range(5))


@dataclass
class Conflict:
    """kind: "race", "stale", "unwritten", "proxy" or "unread"; the earlier access's op and agent; where it is; whether only lanes of one
    warp meet; whether the earlier one is a copy in flight."""

    kind: str
    op: Op | None
    agent: int
    byte: int
    lanes: bool = False
    flying: bool = False


@dataclass
class SharedMemory:
    size: int
    agents: int
    grain: int = 2
    ops: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = self.size // self.grain
        self.bytes = np.full(self.size, 0xFF, np.uint8)  # NaN in every float format
        self.units = self.bytes.view({1: np.uint8, 2: np.uint16}[self.grain])
        self.clock = np.zeros((self.agents, self.agents), np.int32)
        np.fill_diagonal(self.clock, 1)
        self.sync = np.ones(self.agents, np.int32)
        self.w_agent = np.full(n, NOBODY, np.int16)
        self.w_time, self.w_sync, self.w_lane, self.w_op = (np.zeros(n, np.int32) for _ in range(4))
        self.reads: dict[int, Reads] = {}  # of agents that ever read
        self.scratch = np.zeros(n, np.int32)
        self.flight = np.full(n, NOBODY, np.int32)  # number of the op whose copy is under way
        self.f_agent, self.f_time = np.zeros(n, np.int16), np.zeros(n, np.int32)
        self._numbers: dict[int, int] = {}
        self.fences: dict[int, list[int]] = {}  # agent -> its time at each proxy fence
        self.generic = self.agents  # agents from this number on are engines, which are of the async proxy

    def of(self, address: np.ndarray, size: int) -> np.ndarray:
        """Units of elements of `size` bytes at addresses: [..., units of an element]."""
        return (address // self.grain)[..., None] + np.arange(size // self.grain)

    def number(self, op: Op) -> int:
        if id(op) not in self._numbers:
            self._numbers[id(op)] = len(self.ops)
            self.ops.append(op)
        return self._numbers[id(op)]

    # ---- synchronisation -------------------------------------------------------------------------------------------

    def join(self, agents: list[int]) -> None:
        """A barrier of some agents."""
        self.clock[agents] = self.clock[agents].max(axis=0)
        self.clock[agents, agents] += 1
        self.sync[agents] += 1

    def acquire(self, agent: int, clock: np.ndarray) -> None:
        """The agent gets to know what a clock knows."""
        np.maximum(self.clock[agent], clock, out=self.clock[agent])

    def proxy_fence(self, agent: int) -> None:
        self.fences.setdefault(agent, []).append(int(self.clock[agent, agent]))
        self.clock[agent, agent] += 1

    def unfenced(self, engine: int, at: Where) -> Conflict | None:
        """An element written through the generic proxy that an access of an engine does not see: its writer made no proxy fence after the
        write and before what orders the two."""
        who = self.w_agent[at]
        least, most = (int(smallest(who)), int(largest(who))) if who.size else (NOBODY, NOBODY)
        if most < 0 or least >= self.generic:
            return None
        for a in [least] if least == most else np.unique(who[(who >= 0) & (who < self.generic)]):
            fences = self.fences.get(int(a), [])  # in order; the last one that the engine knows of
            n = bisect_left(fences, int(self.clock[engine, a]))
            bad = (who == a) & (self.w_time[at] > (fences[n - 1] if n else 0))
            if count(bad):
                _, g = _first(at, bad)
                return Conflict("proxy", self.ops[self.w_op[g]], int(a), g * self.grain)
        return None

    def unfenced_read(self, engine: int, at: Where) -> Conflict | None:
        """An element that an engine is about to write, and that may not yet have been read: what its reader did after the read waits for no
        load, but for a proxy fence between the two."""
        for a, r in sorted(self.reads.items()):
            if a >= self.generic:
                continue
            fences = self.fences.get(a, [])
            n = bisect_left(fences, int(self.clock[engine, a]))
            bad = r.time[at] > (fences[n - 1] if n else 0)
            if count(bad):
                _, g = _first(at, bad)
                return Conflict("unread", self.ops[r.op[g]], a, g * self.grain)
        return None

    def sync_warp(self, agent: int) -> None:
        self.sync[agent] += 1

    # ---- accesses --------------------------------------------------------------------------------------------------

    def read(self, agent: int, at: Where, lanes: np.ndarray | int, op: Op) -> Conflict | None:
        """Record reads of units `at` (flat), each by a lane, or all by one; the first conflict, if any."""
        mine = self.reads.get(agent)
        if mine is None:
            mine = self.reads[agent] = Reads(len(self.w_agent), lanes=agent < self.generic)
        bad = self._against_flight(agent, at, False) or self._against_write(agent, at, lanes)
        if bad is None:
            never = self.w_agent[at] == NOBODY
            if count(never):
                bad = Conflict("unwritten", None, NOBODY, _first(at, never)[1] * self.grain)
        if mine.lanes:
            now = self.sync[agent]
            if not isinstance(lanes, int):
                assert isinstance(at, np.ndarray)
                lanes = self._one_lane_each(at, lanes)
            prior = (mine.sync[at] == now) & (mine.lane[at] != lanes)
            if count(prior):
                p = at[prior]  # type: ignore[index]
                mine.s_lane[p], mine.s_sync[p], mine.s_op[p] = mine.lane[p], mine.sync[p], mine.op[p]
            mine.lane[at], mine.sync[at] = lanes, now
        mine.time[at], mine.op[at] = self.clock[agent, agent], self.number(op)
        return bad

    def write(self, agent: int, at: np.ndarray, lanes: np.ndarray, op: Op) -> Conflict | None:
        """Record writes; the first conflict with a write or read that nothing orders before them."""
        bad = self._against_flight(agent, at, True) or self._against_write(agent, at, lanes) or self._against_reads(agent, at, lanes)
        self.w_agent[at], self.w_time[at], self.w_sync[at] = agent, self.clock[agent, agent], self.sync[agent]
        self.w_lane[at], self.w_op[at] = lanes, self.number(op)
        return bad

    def launch(self, agent: int, at: Where, lanes: np.ndarray | int, op: Op) -> Conflict | None:
        """A copy starts: its bytes are nobody's until it has landed. agent: who makes it, a warp or an engine."""
        bad = self._against_flight(agent, at, True) or self._against_write(agent, at, lanes) or self._against_reads(agent, at, lanes)
        self.flight[at], self.f_agent[at], self.f_time[at] = self.number(op), agent, self.clock[agent, agent]
        self.units[at] = 0xFF if self.grain == 1 else 0xFFFF
        return bad

    def land(self, agent: int, at: np.ndarray, data: np.ndarray, lanes: np.ndarray, op: Op, time: int | None = None) -> None:
        """The copy is seen by its agent; others see it after what orders them. Where another write came in between, it stays.
        time: the agent's at the start of the copy, for an engine that runs many."""
        mine = self.flight[at] == self.number(op)
        at, data, lanes = at[mine], data[mine], lanes[mine]
        self.units[at] = data
        self.flight[at] = NOBODY
        self.w_agent[at], self.w_sync[at] = agent, self.sync[agent]
        self.w_time[at] = self.clock[agent, agent] if time is None else time
        self.w_lane[at], self.w_op[at] = lanes, self.number(op)

    def land_whole(self, agent: int, at: np.ndarray, stretches: list[Where], data: np.ndarray, op: Op, time: int) -> None:
        """As `land`, of an engine's copy, whose units are also given in order: quick where no other write came in between."""
        number = self.number(op)
        if any(count(self.flight[part] != number) for part in stretches):
            self.land(agent, at, data, np.full(at.shape, WARP), op, time)
            return
        self.units[at] = data
        for part in stretches:
            self.flight[part], self.w_agent[part], self.w_sync[part] = NOBODY, agent, self.sync[agent]
            self.w_time[part], self.w_lane[part], self.w_op[part] = time, WARP, number

    def _one_lane_each(self, at: np.ndarray, lanes: np.ndarray | int) -> np.ndarray:
        """Lanes, SEVERAL where one access touches an element by more than one of them."""
        self.scratch[at] = lanes
        twice = self.scratch[at] != lanes
        self.scratch[at[twice]] = SEVERAL
        return self.scratch[at]

    # ---- conflicts -------------------------------------------------------------------------------------------------

    def _against_flight(self, agent: int, at: Where, writes: bool) -> Conflict | None:
        """A read that comes after the start of a copy is stale; one that nothing orders after it, or a write, is a race."""
        flying = self.flight[at] != NOBODY
        if not count(flying):
            return None
        _, g = _first(at, flying)
        owner = int(self.f_agent[g])
        unordered = owner != agent and self.f_time[g] > self.clock[agent, owner]
        return Conflict("race" if writes or unordered else "stale", self.ops[self.flight[g]], owner, g * self.grain, flying=True)

    def _against_write(self, agent: int, at: Where, lanes: np.ndarray | int) -> Conflict | None:
        who, time = self.w_agent[at], self.w_time[at]
        if not who.size:
            return None
        one = int(who[0])
        if one != agent and not count(who != one) and (one == NOBODY or largest(time) <= self.clock[agent, one]):
            return None  # one writer, and its last write is known: by far the most frequent case
        other = (who != NOBODY) & (who != agent) & (time > self.clock[agent, np.maximum(who, 0)])
        lane = (who == agent) & (self.w_sync[at] == self.sync[agent]) & (self.w_lane[at] != lanes)
        bad = other | lane
        if not count(bad):
            return None
        n, g = _first(at, bad)
        return Conflict("race", self.ops[self.w_op[g]], int(self.w_agent[g]), g * self.grain, not other[n])

    def _against_reads(self, agent: int, at: Where, lanes: np.ndarray | int) -> Conflict | None:
        for a, r in sorted(self.reads.items()):
            ops = r.op
            if a != agent:
                bad = r.time[at] > self.clock[agent, a]
            elif r.lanes:
                last = (r.sync[at] == self.sync[agent]) & (r.lane[at] != lanes)
                bad = last | (r.s_sync[at] == self.sync[agent]) & (r.s_lane[at] != lanes)
                ops = r.op if not count(bad) or last[np.argmax(bad)] else r.s_op
            else:
                continue
            if count(bad):
                _, g = _first(at, bad)
                return Conflict("race", self.ops[ops[g]], a, g * self.grain, a == agent)
        return None


def encode(x: np.ndarray, dtype: DType, grain: int) -> np.ndarray:
    """Values -> units of memory [..., units of an element], as they lie there."""
    unit = {1: np.uint8, 2: np.uint16}[grain]
    return np.ascontiguousarray(x).astype(dtype.stored)[..., None].view(unit)


def decode(raw: np.ndarray, dtype: DType) -> np.ndarray:
    """Units [..., units of an element] -> values."""
    return np.ascontiguousarray(raw).view(dtype.stored)[..., 0].astype(dtype.np_dtype, copy=False)
