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
        self.sync = np.zeros(self.agents, np.int32)
        self.w_agent = np.full(n, NOBODY, np.int16)
        self.w_time, self.w_sync, self.w_lane, self.w_op = (np.zeros(n, np.int32) for _ in range(4))
        self.r_time, self.r_sync, self.r_lane, self.r_op = (np.zeros((self.agents, n), np.int32) for _ in range(4))
        self.flight = np.full(n, NOBODY, np.int32)  # number of the op whose copy is under way
        self.f_agent = np.zeros(n, np.int16)
        self._numbers: dict[int, int] = {}

    def number(self, op: Op) -> int:
        if id(op) not in self._numbers:
            self._numbers[id(op)] = len(self.ops)
            self.ops.append(op)
        return self._numbers[id(op)]

    # ---- synchronisation -------------------------------------------------------------------------------------------

    def join_all(self) -> None:
        """A barrier of all agents."""
        self.clock[:] = self.clock.max(axis=0)
        self.clock[np.diag_indices(self.agents)] += 1
        self.sync += 1

    def sync_warp(self, agent: int) -> None:
        self.sync[agent] += 1

    # ---- accesses --------------------------------------------------------------------------------------------------

    def read(self, agent: int, at: np.ndarray, lanes: np.ndarray, op: Op) -> Conflict | None:
        """Record reads of half-words `at` (flat), each by a lane; the first conflict, if any."""
        bad = self._against_flight(at, op) or self._against_write(agent, at, lanes)
        if bad is None:
            never = self.w_agent[at] == NOBODY
            if never.any():
                bad = Conflict("unwritten", None, NOBODY, int(at[never][0]) * 2)
        known = self.r_sync[agent, at] == self.sync[agent]
        lane = np.where(known & (self.r_time[agent, at] > 0) & (self.r_lane[agent, at] != lanes), SEVERAL, lanes)
        self.r_lane[agent, at] = lane
        twice = self.r_lane[agent, at] != lane  # read by several lanes at once
        self.r_lane[agent, at[twice]] = SEVERAL
        self.r_time[agent, at] = self.clock[agent, agent]
        self.r_sync[agent, at] = self.sync[agent]
        self.r_op[agent, at] = self.number(op)
        return bad

    def write(self, agent: int, at: np.ndarray, lanes: np.ndarray, op: Op) -> Conflict | None:
        """Record writes; the first conflict with a write or read that nothing orders before them."""
        bad = self._against_flight(at, op, "race") or self._against_write(agent, at, lanes) or self._against_reads(agent, at, lanes)
        self.w_agent[at], self.w_time[at], self.w_sync[at] = agent, self.clock[agent, agent], self.sync[agent]
        self.w_lane[at], self.w_op[at] = lanes, self.number(op)
        return bad

    def launch(self, agent: int, at: np.ndarray, lanes: np.ndarray, op: Op) -> Conflict | None:
        """A copy starts: its bytes are nobody's until it has landed."""
        bad = self._against_flight(at, op, "race") or self._against_write(agent, at, lanes) or self._against_reads(agent, at, lanes)
        self.flight[at], self.f_agent[at] = self.number(op), agent
        self.bytes.view(np.uint16)[at] = 0xFFFF
        return bad

    def land(self, agent: int, at: np.ndarray, data: np.ndarray, lanes: np.ndarray, op: Op) -> None:
        """The copy is seen by its agent; others see it after the next barrier. Where another write came in between, it stays."""
        mine = self.flight[at] == self.number(op)
        at, data, lanes = at[mine], data[mine], lanes[mine]
        self.bytes.view(np.uint16)[at] = data
        self.flight[at] = NOBODY
        self.w_agent[at], self.w_time[at], self.w_sync[at] = agent, self.clock[agent, agent], self.sync[agent]
        self.w_lane[at], self.w_op[at] = lanes, self.number(op)

    # ---- conflicts -------------------------------------------------------------------------------------------------

    def _against_flight(self, at: np.ndarray, op: Op, kind: str = "stale") -> Conflict | None:
        flying = self.flight[at] != NOBODY
        if not flying.any():
            return None
        g = at[flying][0]
        return Conflict(kind, self.ops[self.flight[g]], int(self.f_agent[g]), int(g) * 2, flying=True)

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
        for a in range(self.agents):
            time = self.r_time[a, at]
            if a == agent:
                bad = (time > 0) & (self.r_sync[a, at] == self.sync[agent]) & (self.r_lane[a, at] != lanes)
            else:
                bad = time > self.clock[agent, a]
            if bad.any():
                g = at[bad][0]
                return Conflict("race", self.ops[self.r_op[a, g]], a, int(g) * 2, a == agent)
        return None
