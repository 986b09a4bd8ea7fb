"""Turns: a thread that starts bulk stores waits until a number stands in a tensor, and puts the next one there when its stores are done.

Blocks run one after the other, in the order in which a launch begins them. So a block that waits for a later one waits for ever: on a GPU
it might, where that one finds no room beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import FcError
from ..ir.core import Op
from .mbarriers import Blocked

if TYPE_CHECKING:
    from .machine import Simulation
    from .stores import StoreEngine


class _Taken(NamedTuple):
    op: Op
    program: int
    where: str


class Taken:
    """The turns of the tile interpreter's programs, which it runs in no order that counts: at each place all from the number on that stands
    there at first have to be taken, each once, and by one program one after the other."""

    def __init__(self, memory: dict[str, np.ndarray]):
        self.memory = memory
        self.places: dict[tuple[str, tuple[int, ...]], dict[int, _Taken]] = {}

    def take(self, op: Op, tensor: str, place: tuple[int, ...], n: int, program: int, where: str) -> None:
        sizes = self.memory[tensor].shape
        if any(not 0 <= i < size for i, size in zip(place, sizes)):
            raise FcError("sim/bounds", f"{op.kind}: the place of a turn is outside of {tensor}", loc=op.loc, expected=f"inside {sizes}",
                          got=place, notes=[where])
        taken = self.places.setdefault((tensor, place), {})
        last = next(reversed(taken), n - 1)
        if n in taken or (last > n and taken[last].program == program):
            raise FcError("sim/deadlock", f"turn {n} at {tensor}{list(place)} never comes: it is over before it is waited for", loc=op.loc,
                          expected="each turn once, and those of a program one after the other", got=f"{last}, then {n}",
                          notes=[where, f"before: {taken[n if n in taken else last].where}"])
        taken[n] = _Taken(op, program, where)
        self.memory[tensor][place] += 1

    def check(self) -> None:
        """At the end."""
        for (tensor, place), taken in self.places.items():
            first = int(self.memory[tensor][place]) - len(taken)
            missing = next((n for n in range(first, first + len(taken)) if n not in taken), None)
            if missing is not None:
                odd = min((n for n in taken if n > missing), default=min(taken))
                raise FcError("sim/deadlock", f"turn {odd} at {tensor}{list(place)} never comes: nobody has turn {missing}",
                              loc=taken[odd].op.loc, expected=f"all turns from {first} on, which stands there at first",
                              got=", ".join(map(str, sorted(taken)[:8])), notes=[taken[odd].where],
                              hint="count the programs that add there; the caller clears the numbers")


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
