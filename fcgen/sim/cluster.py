"""What the blocks of a cluster are to each other: barriers of all of them, and that none ends while another one may still reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..ir.core import Op
from .words import describe

if TYPE_CHECKING:
    from .agents import Agent
    from .machine import Simulation
    from .mbarriers import Blocked


@dataclass(frozen=True)
class Touch:
    """An agent or engine reaches into another block: which one, at which of its times, which block."""

    agent: int
    time: int
    rank: int
    op: Op
    who: str


class Reach:
    """Of one cluster. exits: what the agents of a block knew when they ended."""

    def __init__(self, sim: Simulation, blocks: int):
        self.sim = sim
        self.exits = [np.zeros(sim.shared.agents, np.int32) for _ in range(blocks)]
        self.ended: set[int] = set()
        self.touched: list[Touch] = []

    def touches(self, agent: Agent, rank: int, op: Op) -> None:
        if rank != agent.rank:
            self.touched.append(Touch(agent.number, int(self.sim.shared.clock[agent.number, agent.number]), rank, op, agent.who))

    def finished(self, agent: Agent) -> None:
        self.ended.add(agent.number)
        np.maximum(self.exits[agent.rank], self.sim.shared.clock[agent.number], out=self.exits[agent.rank])

    def release(self, waiting: dict[Agent, Blocked]) -> bool:
        """Let those go who wait for the whole cluster, if all agents do that have not ended."""
        here = [a for a, stop in waiting.items() if stop.op.kind == "cluster_sync"]
        alive = sum(map(len, self.sim.peers.values())) - len(self.ended)
        if not here or len(here) < alive:
            return False
        self.sim.shared.join([a.number for a in here])
        for a in here:
            del waiting[a]
        return True

    def check(self) -> None:
        """At the end: what a block knew when it ended includes everything that others did to it."""
        for t in self.touched:
            if self.exits[t.rank][t.agent] < t.time:
                self.sim.report("sim/leftover", f"block {t.rank} of a cluster may have ended when {t.op.kind} reaches it", t.op,
                                notes=[f"{t.who}: {describe(t.op)}"], key=("leftover", "cluster", id(t.op)),
                                hint="cluster_sync at the end, of a role that reaches other blocks and of one in the block that is reached")
