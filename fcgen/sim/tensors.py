"""Tensors that a kernel writes, with their history: who wrote and read each element, and what orders the two.

Programs of one launch are never ordered; warps of one program are by barriers (a barrier orders global memory too), lanes of one warp
also by `syncwarp`. Atomic adds never race with each other. Inputs have no history: nobody writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.access import Access, Axis
from ..ir.core import Op, Value
from ..ir.elementwise import convert, evaluate
from ..ir.types import DType
from .memory import NOBODY, SEVERAL, count


def coordinates(shape: tuple[int, ...]) -> list[np.ndarray]:
    """0, 1, ... along each axis of a tile: what `reached` takes."""
    return [np.arange(n).reshape([-1 if a == axis else 1 for a in range(len(shape))]) for axis, n in enumerate(shape)]


def numbers_of(op: Op, args: Sequence[Any]) -> dict[Value, Any]:
    """The values of an op's operands, by operand."""
    return dict(zip(op.operands, args))


def reached(op: Op, numbers: Mapping[Value, Any], sizes: Sequence[int], coords: Sequence[Any]) -> Iterator[tuple[Axis, Any, Any]]:
    """(dimension, positions, which of them count) of an access of a tensor of these sizes, for coordinates along each axis of the tile.
    numbers: the scalars; of a vector, what it holds at each of the coordinates."""
    for axis, n in zip(Access.of(op).axes, sizes):
        first = np.asarray(numbers[axis.start], np.int64) if axis.start is not None else 0
        at = np.asarray(first if axis.along is None or axis.is_listed else first + coords[axis.along])
        end = n if axis.limit is None else min(n, int(numbers[axis.limit]))
        yield axis, at, (at >= 0) & (at < end)


def add_at(memory: np.ndarray, where: tuple[Any, ...], value: np.ndarray, dtype: DType) -> None:
    """Add to elements of a tensor; one that stands there several times gets as many shares."""
    if not where or len(value) < 2 or len(np.unique(np.ravel_multi_index(where, memory.shape))) == len(value):
        memory[where] = evaluate("add", dtype, memory[where], value)
        return
    np.add.at(memory, where, value)
    memory[where] = convert(memory[where], dtype)


@dataclass(frozen=True)
class Stamp:
    """Who accesses, and when: program and agent numbers, the vector clock of the agent, its count of warp syncs, the op, the agents of the
    same role: who "several warps" are."""

    program: int
    agent: int
    clock: np.ndarray
    sync: int
    op: Op
    peers: tuple[int, ...]


@dataclass(frozen=True)
class TensorConflict:
    """kind: "race" or "unwritten". place: of the first element. op, program, agent: the earlier access, SEVERAL where more than one."""

    kind: str
    place: tuple[int, ...]
    op: Op | None = None
    program: int = NOBODY
    agent: int = NOBODY


def taken(data: np.ndarray, index: tuple[Any, ...], inside: np.ndarray) -> np.ndarray:
    """Elements of a tensor, zero where they are not inside; a tensor without elements has none inside."""
    zero = np.zeros((), data.dtype)
    return np.where(inside, data[index], zero) if data.size else np.full(inside.shape, zero)


class Marks:
    """The last accesses of one kind, per element. Accesses that nothing orders among themselves are kept as SEVERAL."""

    def __init__(self, n: int):
        self.program, self.agent, self.lane = (np.full(n, NOBODY, np.int32) for _ in range(3))
        self.time, self.sync, self.op = (np.zeros(n, np.int32) for _ in range(3))

    def unordered(self, who: Stamp, at: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """bool per access: nothing orders the marks at these elements before it."""
        program, agent, time = self.program[at], self.agent[at], self.time[at]
        here = program == who.program
        others = who.clock[[p for p in who.peers if p != who.agent]]
        seen = np.where(agent == SEVERAL, others.min() if len(others) else 0, who.clock[np.maximum(agent, 0)])
        alone = here & (agent == who.agent)
        lane = alone & (self.sync[at] == who.sync) & ((self.lane[at] != lanes) | (lanes == SEVERAL))
        return ((program != NOBODY) & ~here) | (here & ~alone & (time > seen)) | lane

    def record(self, who: Stamp, at: np.ndarray, lanes: np.ndarray, number: int, join: bool) -> None:
        """join: what is not ordered before this access stays marked with it; else this access takes its place."""
        clash = self.unordered(who, at, lanes) if join else np.zeros(at.shape, bool)
        program = np.where(clash & (self.program[at] != who.program), SEVERAL, who.program)
        agent = np.where(clash & ((self.agent[at] != who.agent) | (program == SEVERAL)), SEVERAL, who.agent)
        self.lane[at] = lane = np.where(clash, SEVERAL, lanes)
        again = self.lane[at] != lane  # one element, several lanes of this very access
        self.lane[at[again]] = SEVERAL
        self.program[at], self.agent[at] = program, agent
        self.time[at], self.sync[at], self.op[at] = who.clock[who.agent], who.sync, number


AGAINST = {"read": ("store", "add"), "add": ("store", "read"), "store": ("store", "add", "read")}


class TensorHistory:
    """One output tensor. given: its first content is the caller's, so that reading it is no mistake."""

    def __init__(self, shape: tuple[int, ...], given: bool):
        self.shape, self.given = shape, given
        self.marks: dict[str, Marks] = {}  # by kind of access, made when there is one
        self.ops: list[Op] = []
        self.numbers: dict[int, int] = {}

    def written(self) -> np.ndarray:
        """bool per element: it was stored or added to, or came from the caller."""
        out = np.full(self.shape, self.given)
        for kind in ("store", "add"):
            if kind in self.marks:
                out |= (self.marks[kind].program != NOBODY).reshape(self.shape)
        return out

    def access(self, who: Stamp, index: tuple[Any, ...], lanes: np.ndarray, kind: str) -> TensorConflict | None:
        """Record a "read", "store" or "add" of elements `index` (an array per axis), each by a lane; the first conflict, if any."""
        at = np.ravel_multi_index(index, self.shape)
        if not at.size:
            return None
        number = self.numbers.setdefault(id(who.op), len(self.ops))
        if number == len(self.ops):
            self.ops.append(who.op)
        bad = self._race(who, at, lanes, kind)
        if bad is None and kind != "store" and not self.given:
            never = self.marks["store"].program[at] == NOBODY if "store" in self.marks else np.ones(at.shape, bool)
            if count(never):
                bad = self._at("unwritten", int(at[never][0]))
        self.marks.setdefault(kind, Marks(int(np.prod(self.shape)))).record(who, at, lanes, number, join=kind != "store")
        return bad

    def _race(self, who: Stamp, at: np.ndarray, lanes: np.ndarray, kind: str) -> TensorConflict | None:
        for other in AGAINST[kind]:
            if other in self.marks:
                m = self.marks[other]
                bad = m.unordered(who, at, lanes)
                if count(bad):
                    g = int(at[bad][0])
                    return self._at("race", g, self.ops[m.op[g]], int(m.program[g]), int(m.agent[g]))
        if kind == "store" and len(ordered := np.sort(at)) > 1 and (same := ordered[1:] == ordered[:-1]).any():
            return self._at("race", int(ordered[1:][same][0]), who.op, who.program, who.agent)
        return None

    def _at(self, kind: str, element: int, op: Op | None = None, program: int = NOBODY, agent: int = NOBODY) -> TensorConflict:
        return TensorConflict(kind, tuple(int(i) for i in np.unravel_index(element, self.shape)), op, program, agent)
