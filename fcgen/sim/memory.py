"""Shared memory that remembers: who touched each element last, when, and what had been synchronised by then.

Time is a vector clock per agent (a warp): an access is ordered before another if its time is in what the other's agent has seen.
Barriers join the clocks. Inside a warp, lanes are ordered only by `syncwarp` or a barrier. Copies in flight own their bytes until
they were waited for. Kept per pair of bytes, the smallest element there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..ir.core import Op

NOBODY, SEVERAL = -1, -2
WARP = -3  # as a lane: all lanes of the warp together, as ldmatrix and wmma read


@dataclass
class Conflict:
    """kind: "race", "stale" or "unwritten"; the earlier access's op and agent; where it is; whether only lanes of one warp meet;
    whether the earlier one is a copy in flight."""

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
    ops: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = self.size // 2
        self.bytes = np.full(self.size, 0xFF, np.uint8)  # NaN in every float format
        self.clock = np.zeros((self.agents, self.agents), np.int32)
        np.fill_diagonal(self.clock, 1)
        self.sync = np.ones(self.agents, np.int32)
        self.w_agent = np.full(n, NOBODY, np.int16)
        self.w_time, self.w_sync, self.w_lane, self.w_op = (np.zeros(n, np.int32) for _ in range(4))
        self.r_time, self.r_sync, self.r_lane, self.r_op = (np.zeros((self.agents, n), np.int32) for _ in range(4))
        # the last read by another lane than the last read's: whoever writes, one of the two is by another lane
        self.s_lane, self.s_sync, self.s_op = (np.zeros((self.agents, n), np.int32) for _ in range(3))
        self.scratch = np.zeros(n, np.int32)
        self.flight = np.full(n, NOBODY, np.int32)  # number of the op whose copy is under way
        self.f_agent, self.f_time = np.zeros(n, np.int16), np.zeros(n, np.int32)
        self._numbers: dict[int, int] = {}
        self.readers: set[int] = set()  # agents that ever read
        self.fences: dict[int, list[int]] = {}  # agent -> its time at each proxy fence
        self.generic = self.agents  # agents from this number on are engines, which are of the async proxy

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

    def unfenced(self, engine: int, at: np.ndarray) -> Conflict | None:
        """An element written through the generic proxy that an access of an engine does not see: its writer made no proxy fence after the
        write and before what orders the two."""
        who = self.w_agent[at]
        for a in np.unique(who[(who >= 0) & (who < self.generic)]):
            mine = at[who == a]
            fences = np.array(self.fences.get(int(a), []), np.int64)
            first = np.searchsorted(fences, self.w_time[mine])
            fence = np.append(fences, np.iinfo(np.int64).max)[first]
            bad = fence >= self.clock[engine, a]
            if bad.any():
                g = mine[bad][0]
                return Conflict("proxy", self.ops[self.w_op[g]], int(a), int(g) * 2)
        return None

    def sync_warp(self, agent: int) -> None:
        self.sync[agent] += 1

    # ---- accesses --------------------------------------------------------------------------------------------------

    def read(self, agent: int, at: np.ndarray, lanes: np.ndarray, op: Op) -> Conflict | None:
        """Record reads of half-words `at` (flat), each by a lane; the first conflict, if any."""
        self.readers.add(agent)
        bad = self._against_flight(agent, at, False) or self._against_write(agent, at, lanes)
        if bad is None:
            never = self.w_agent[at] == NOBODY
            if never.any():
                bad = Conflict("unwritten", None, NOBODY, int(at[never][0]) * 2)
        lanes = self._one_lane_each(at, lanes)
        prior = (self.r_time[agent, at] > 0) & (self.r_sync[agent, at] == self.sync[agent]) & (self.r_lane[agent, at] != lanes)
        if prior.any():
            p = at[prior]
            self.s_lane[agent, p], self.s_sync[agent, p], self.s_op[agent, p] = (
                self.r_lane[agent, p], self.r_sync[agent, p], self.r_op[agent, p])
        self.r_lane[agent, at], self.r_time[agent, at] = lanes, self.clock[agent, agent]
        self.r_sync[agent, at], self.r_op[agent, at] = self.sync[agent], self.number(op)
        return bad

    def write(self, agent: int, at: np.ndarray, lanes: np.ndarray, op: Op) -> Conflict | None:
        """Record writes; the first conflict with a write or read that nothing orders before them."""
        bad = self._against_flight(agent, at, True) or self._against_write(agent, at, lanes) or self._against_reads(agent, at, lanes)
        self.w_agent[at], self.w_time[at], self.w_sync[at] = agent, self.clock[agent, agent], self.sync[agent]
        self.w_lane[at], self.w_op[at] = lanes, self.number(op)
        return bad

    def launch(self, agent: int, at: np.ndarray, lanes: np.ndarray, op: Op) -> Conflict | None:
        """A copy starts: its bytes are nobody's until it has landed. agent: who makes it, a warp or an engine."""
        bad = self._against_flight(agent, at, True) or self._against_write(agent, at, lanes) or self._against_reads(agent, at, lanes)
        self.flight[at], self.f_agent[at], self.f_time[at] = self.number(op), agent, self.clock[agent, agent]
        self.bytes.view(np.uint16)[at] = 0xFFFF
        return bad

    def land(self, agent: int, at: np.ndarray, data: np.ndarray, lanes: np.ndarray, op: Op, time: int | None = None) -> None:
        """The copy is seen by its agent; others see it after what orders them. Where another write came in between, it stays.
        time: the agent's at the start of the copy, for an engine that runs many."""
        mine = self.flight[at] == self.number(op)
        at, data, lanes = at[mine], data[mine], lanes[mine]
        self.bytes.view(np.uint16)[at] = data
        self.flight[at] = NOBODY
        self.w_agent[at], self.w_sync[at] = agent, self.sync[agent]
        self.w_time[at] = self.clock[agent, agent] if time is None else time
        self.w_lane[at], self.w_op[at] = lanes, self.number(op)

    def _one_lane_each(self, at: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Lanes, SEVERAL where one access touches an element by more than one of them."""
        self.scratch[at] = lanes
        twice = self.scratch[at] != lanes
        self.scratch[at[twice]] = SEVERAL
        return self.scratch[at]

    # ---- conflicts -------------------------------------------------------------------------------------------------

    def _against_flight(self, agent: int, at: np.ndarray, writes: bool) -> Conflict | None:
        """A read that comes after the start of a copy is stale; one that nothing orders after it, or a write, is a race."""
        flying = self.flight[at] != NOBODY
        if not flying.any():
            return None
        g = at[flying][0]
        owner = int(self.f_agent[g])
        unordered = owner != agent and self.f_time[g] > self.clock[agent, owner]
        return Conflict("race" if writes or unordered else "stale", self.ops[self.flight[g]], owner, int(g) * 2, flying=True)

    def _against_write(self, agent: int, at: np.ndarray, lanes: np.ndarray) -> Conflict | None:
        who = self.w_agent[at]
        other = (who != NOBODY) & (who != agent) & (self.w_time[at] > self.clock[agent, np.maximum(who, 0)])
        lane = (who == agent) & (self.w_sync[at] == self.sync[agent]) & (self.w_lane[at] != lanes)
        bad = other | lane
        if not bad.any():
            return None
        g = at[bad][0]
        return Conflict("race", self.ops[self.w_op[g]], int(self.w_agent[g]), int(g) * 2, not other[bad][0])

    def _against_reads(self, agent: int, at: np.ndarray, lanes: np.ndarray) -> Conflict | None:
        for a in sorted(self.readers):
            time = self.r_time[a, at]
            ops = self.r_op[a, at]
            if a == agent:
                last = (time > 0) & (self.r_sync[a, at] == self.sync[agent]) & (self.r_lane[a, at] != lanes)
                second = (self.s_sync[a, at] == self.sync[agent]) & (self.s_lane[a, at] != lanes)
                bad, ops = last | second, np.where(last, ops, self.s_op[a, at])
            else:
                bad = time > self.clock[agent, a]
            if bad.any():
                return Conflict("race", self.ops[ops[bad][0]], a, int(at[bad][0]) * 2, a == agent)
        return None
