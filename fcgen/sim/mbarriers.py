"""Barriers that are counted: mbarriers in shared memory with their full phase numbers, and named barriers that carry a token.

Hardware keeps one bit of an mbarrier's phase. Here the number is kept, so that a wait which the bit would let through, or hold back, for
the wrong reason is a report and not a hang.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.core import Op, Value
from .words import describe

if TYPE_CHECKING:
    from .agents import Agent
    from .machine import Simulation

PROTOCOL = "sim/protocol"


def crowd(agents: Iterable[Agent]) -> str:
    """Agents in words: `role load`, or `role main, warps 0, 1`."""
    roles: dict[str, list[Agent]] = {}
    for a in agents:
        roles.setdefault(f"{a.where}role {a.role.name}", []).append(a)
    return "; ".join(who[0].who if len(who) == 1 else f"{role}, warps {', '.join(str(a.warp) for a in who)}" for role, who in roles.items())


@dataclass
class Blocked:
    """What an agent waits for. ready: None for a barrier of the role. why: the state of the thing, in words."""

    op: Op
    ready: Any = None
    why: Any = None


class PhaseBarrier:
    """One mbarrier object. phase: the number of the phase that is open."""

    def __init__(self, sim: Simulation, bars: Value, slot: int, rank: int):
        self.sim, self.bars, self.slot, self.rank = sim, bars, slot, rank
        self.count = bars.type.count
        self.phase, self.pending, self.bytes = 0, self.count, 0
        self.clock = np.zeros(sim.shared.agents, np.int32)
        self.ended: list[np.ndarray] = []  # what a waiter for each phase gets to know
        self.waits: dict[int, dict[int, tuple[int, Op, str]]] = {}  # phase -> agent -> its time at its wait
        self.last: tuple[Op, str] | None = None  # what happened to it last, and who did it
        self.here: list[Agent] = []  # who has arrived in the open phase
        self.heard: set[int] = set()  # phases that somebody waited for

    @property
    def name(self) -> str:
        return self.sim.called.get(self.bars, "mbarrier") + (f"[slot {self.slot}]" if self.bars.type.slots > 1 else "") + \
            (f" of block {self.rank}" if len(self.sim.barriers) > 1 else "")

    def state(self) -> str:
        lacks = [f"{self.pending} of its {self.count} arrivals"] if self.pending else []
        lacks += [f"{self.bytes} bytes"] if self.bytes > 0 else []
        more = f" and has {-self.bytes} bytes more than it was told of" if self.bytes < 0 else ""
        came = f" ({crowd(sorted(self.here, key=lambda a: a.number))} came)" if self.here else ""
        return f"{self.name} is in phase {self.phase} and lacks {' and '.join(lacks) or 'nothing'}{more}{came}"

    def fault(self, op: Op, who: str, message: str, key: str) -> None:
        self.sim.report(PROTOCOL, message, op, notes=[f"{who}: {describe(op)}", self.state()], key=(PROTOCOL, key, id(op)))

    # ---- arriving ----------------------------------------------------------------------------------------------------

    def arrive(self, agent: Agent, op: Op, phase: int, expect: int = 0) -> None:
        if phase != self.phase:
            self.fault(op, agent.who, f"{op.kind} is meant for phase {phase} of {self.name}, which is in phase {self.phase}", "phase")
        elif not self.knows(agent, phase - 1):
            self.fault(op, agent.who, f"{op.kind} is meant for phase {phase} of {self.name}, and may come before phase {phase - 1} ends",
                       "phase")
        if self.pending == 0:
            self.fault(op, agent.who, f"one arrival more than {self.name} counts", "over")
            return
        self.bytes += expect
        self.release(agent.shared.clock[agent.number])
        agent.shared.clock[agent.number, agent.number] += 1
        self.pending -= 1
        self.here.append(agent)
        self.last = op, agent.who
        if self.pending == 0 and self.bytes < 0:
            self.fault(op, agent.who, f"copies brought {-self.bytes} bytes more to {self.name} than were announced", "bytes")
        self.end_if_complete()

    def complete(self, count: int, clock: np.ndarray, op: Op, who: str, phase: int) -> None:
        """The bytes of a copy have landed. They may come before they are announced, as long as an arrival is to come that may announce them
        (PTX ISA, 'mbarrier': the phase ends when no arrival is pending and the tx-count is zero)."""
        if phase != self.phase:
            self.fault(op, who, f"{op.kind} lands in phase {self.phase} of {self.name}, and was started for phase {phase}", "late")
        elif self.bytes < count and not self.pending:
            self.fault(op, who, f"{op.kind} brings {count} bytes, and {self.name} expects {self.bytes} more", "bytes")
        self.release(clock)
        self.bytes -= count
        self.last = op, who
        self.end_if_complete()

    def release(self, clock: np.ndarray) -> None:
        np.maximum(self.clock, clock, out=self.clock)

    def end_if_complete(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            for number, (time, op, who) in self.waits.pop(self.phase - 1, {}).items():
                if self.clock[number] < time:
                    self.fault(op, who, f"{self.name} may run two phases ahead: this wait would see the wrong parity", "ahead")
            self.ended.append(self.clock.copy())
            self.phase, self.pending, self.here = self.phase + 1, self.count, []

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def passes(self, phase: int) -> bool:
        """The wait is over, rightly or not."""
        return self.phase != phase

    def knows(self, agent: Agent, phase: int) -> bool:
        """The end of a phase comes before what the agent does now, in whatever order things happen."""
        return not 0 <= phase < len(self.ended) or bool((self.ended[phase] <= agent.shared.clock[agent.number]).all())

    def waited(self, agent: Agent, op: Op, phase: int) -> None:
        if self.phase > phase + 1:
            self.fault(op, agent.who, f"{self.name} ran {self.phase - phase} phases ahead: this wait would see the wrong parity", "ahead")
        elif self.phase < phase or not self.knows(agent, phase - 1):
            self.fault(op, agent.who, f"{op.kind} for phase {phase} of {self.name} before phase {phase - 1} has ended: this wait would see "
                                      "the wrong parity", "behind")
        self.heard.add(phase)
        self.waits.setdefault(phase, {})[agent.number] = int(agent.shared.clock[agent.number, agent.number]), op, agent.who
        if 0 <= phase < len(self.ended):
            agent.shared.acquire(agent.number, self.ended[phase])

    def check_idle(self) -> None:
        if self.pending != self.count or self.bytes:
            assert self.last is not None
            op, who = self.last
            self.sim.report("sim/leftover", f"the kernel ends in the middle of a phase: {self.state()}", op,
                            notes=[f"last:    {who}: {describe(op)}"], key=("leftover", self.bars, op),
                            hint="every phase that begins is completed and waited for")


@dataclass
class NamedBarrier:
    """A hardware barrier for two warpgroups: four warps wait, four only arrive (bar.sync and bar.arrive with 256 threads)."""

    number: int
    size: int
    arrived: dict[int, tuple[Op, str]] = field(default_factory=dict)  # agent -> op that gave
    waiting: dict[int, Op] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)
    clock: np.ndarray | None = None
    ended: np.ndarray | None = None  # what is known at the end of the last turn

    def give(self, agent: Agent, op: Op) -> None:
        if agent.number in self.arrived:
            agent.sim.report(PROTOCOL, f"{agent.who} arrives twice at named barrier {self.number} before anyone took the token", op,
                             notes=[f"earlier: {describe(self.arrived[agent.number][0])}", f"later:   {agent.who}: {describe(op)}"],
                             key=(PROTOCOL, "token", id(op)))
            return
        if self.ended is not None and (self.ended > agent.shared.clock[agent.number]).any():
            agent.sim.report(PROTOCOL, f"{agent.who} may arrive at named barrier {self.number} before its last turn is over", op,
                             notes=[f"{agent.who}: {describe(op)}", self.state()], key=(PROTOCOL, "token", id(op)))
        agent.shared.sync_warp(agent.number)
        self.arrived[agent.number] = (op, agent.who)
        self.join(agent)
        agent.shared.clock[agent.number, agent.number] += 1

    def take(self, agent: Agent, op: Op) -> None:
        self.waiting[agent.number] = op
        self.join(agent)

    def join(self, agent: Agent) -> None:
        clock = agent.shared.clock[agent.number]
        self.clock = clock.copy() if self.clock is None else np.maximum(self.clock, clock)
        if len(self.arrived) + len(self.waiting) == self.size:
            for number in self.waiting:
                agent.shared.acquire(number, self.clock)
                agent.shared.clock[number, number] += 1
                agent.shared.sync_warp(number)
            self.passed |= set(self.waiting)
            self.ended = self.clock
            self.arrived, self.waiting, self.clock = {}, {}, None

    def state(self) -> str:
        return f"named barrier {self.number} has {len(self.arrived)} of {self.size // 2} warps that give and {len(self.waiting)} that take"


class Barriers:
    """All counted barriers of one block. rank: its place in its cluster."""

    def __init__(self, sim: Simulation, rank: int):
        self.sim, self.rank = sim, rank
        self.phases: dict[tuple[Value, int], PhaseBarrier] = {}
        self.named: dict[int, NamedBarrier] = {}

    def phase(self, bars: Value, cursor: int, parts: int = 1, part: int = 0) -> tuple[PhaseBarrier, int]:
        """(barrier of the slot that a cursor is in, of one of its parts; number of its phase)."""
        slots = bars.type.slots // parts
        round_, slot = divmod(cursor, slots)
        slot += part * slots
        self.sim.coverage.passed(bars, cursor + 1)
        if (bars, slot) not in self.phases:
            self.phases[bars, slot] = PhaseBarrier(self.sim, bars, slot, self.rank)
        return self.phases[bars, slot], round_

    def token(self, number: int) -> NamedBarrier:
        return self.named.setdefault(number, NamedBarrier(number, 8))

    def check_idle(self) -> None:
        for b in self.phases.values():
            b.check_idle()
        # a token rests somewhere when all are done: one whole one is no leftover
        whole = [n for n in self.named.values() if len(n.arrived) == n.size // 2 and not n.waiting]
        for n in self.named.values():
            if (n.arrived or n.waiting) and not (n in whole and len(whole) == 1):
                op = next(iter([o for o, _ in n.arrived.values()] + list(n.waiting.values())))
                self.sim.report("sim/leftover", f"the kernel ends with unmatched arrivals: {n.state()}", op,
                                key=("leftover", "named", n.number), hint="one token goes around; each give is matched by a take")
