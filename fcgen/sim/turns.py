"""Turns: a thread that starts bulk stores waits until a number stands in a tensor, and puts the next one there when its stores are done.

Blocks run one after the other, in the order in which a launch begins them. So a block that waits for a later one waits for ever: on a GPU
it might, where that one finds no room beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..ir.core import Op
from .mbarriers import Blocked

if TYPE_CHECKING:
    from .machine import Simulation
    from .stores import StoreEngine


class TurnOps:
    """Part of `Agent`. turns: what it has awaited and not ended -> how many stores it had started by then."""

    sim: Simulation
    stores: StoreEngine | None
    turns: dict[tuple[str, tuple[int, ...], int], int]

    def turn_of(self, op: Op, args: list[Any]) -> tuple[str, tuple[int, ...], int] | None:
        agent: Any = self
        tensor, *at, n = args
        sizes = self.sim.memory[tensor].shape
        place = tuple(map(int, at))
        if any(not 0 <= i < size for i, size in zip(place, sizes)):
            self.sim.report("sim/bounds", f"{op.kind}: a place outside of {tensor}", op, expected=f"inside {sizes}", got=place,
                            notes=[agent.who])
            return None
        return tensor, place, int(n)

    def await_turn(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        turn = self.turn_of(op, args)
        if turn is None:
            return
        tensor, place, n = turn
        stands = lambda: int(self.sim.memory[tensor][place])
        if stands() != n:
            yield Blocked(op, lambda: stands() == n, lambda: f"for {n} at {tensor}{list(place)}, where {stands()} stands")
        self.turns[turn] = self.stores.started if self.stores is not None else 0

    def end_turn(self, op: Op, args: list[Any]) -> Iterator[Blocked | None]:
        agent: Any = self
        turn = self.turn_of(op, args)
        if turn is None:
            return
        begun = self.turns.pop(turn, None)
        if begun is None:
            self.sim.report("sim/protocol", "end_turn of a turn that this thread has not awaited", op, notes=[agent.who],
                            key=("turn", op), hint="await_turn before its bulk stores, with the same place and number")
        if self.stores is not None:
            if begun == self.stores.started:
                self.sim.report("sim/protocol", "a turn in which nothing was stored", op, notes=[agent.who], key=("turn", op),
                                hint="the bulk stores stand between await_turn and end_turn")
            self.stores.wait(0, False)
        tensor, place, n = turn
        self.sim.memory[tensor][place] = n + 1
        yield None

    def check_turns(self) -> None:
        """At the thread's end."""
        agent: Any = self
        for tensor, place, n in self.turns:
            self.sim.report("sim/leftover", f"turn {n} at {tensor}{list(place)} is awaited and never ended: who comes next waits for ever",
                            agent.at, notes=[agent.who], key=("leftover", "turn"), hint="end_turn")

    #: ops at which the agent may stop
    PAUSES: dict[str, Callable[..., Iterator[Blocked | None]]] = {"await_turn": await_turn, "end_turn": end_turn}
