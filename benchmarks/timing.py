"""Timing of several ways to compute one thing, in one process and in turns.

A GPU under load sits at its power limit: its clock depends on what ran just before, and the first kernel after a pause gains up to a
tenth. So everything that is compared runs hot and in turns, the order changes every round, and medians are reported. A way whose result
was not compared with float64 in this very run has no time: `Contest.times` raises.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .accuracy import Error
from .environment import Board


class Unchecked(RuntimeError):
    """A time was asked for whose result nobody has checked, or which is wrong."""


class Clock(Protocol):
    """measure(run, launches, samples): seconds per launch, one number per sample."""

    def measure(self, run: Callable[[], Any], launches: int, samples: int) -> list[float]: ...

    def sync(self) -> None: ...


class CudaClock:
    """CUDA events around groups of launches; nothing waits inside."""

    def measure(self, run: Callable[[], Any], launches: int, samples: int) -> list[float]:
        import torch

        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(samples)]
        for start, end in pairs:
            start.record()
            for _ in range(launches):
                run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 / launches for start, end in pairs]

    def sync(self) -> None:
        import torch

        torch.cuda.synchronize()


class HostClock:
    """The host's clock, for dry runs on the CPU: the numbers mean nothing."""

    def measure(self, run: Callable[[], Any], launches: int, samples: int) -> list[float]:
        out = []
        for _ in range(samples):
            start = time.perf_counter()
            for _ in range(launches):
                run()
            out.append(max(1e-9, (time.perf_counter() - start) / launches))
        return out

    def sync(self) -> None:
        pass


@dataclass(frozen=True)
class Plan:
    """sample_s: shortest stretch between two events; turn_s: how long one way runs before the next one's turn."""

    preheat_s: float = 0.3
    rounds: int = 5
    turn_s: float = 0.03
    warm_s: float = 0.003
    sample_s: float = 0.0004
    most_samples: int = 50

    @staticmethod
    def dry() -> Plan:
        return Plan(preheat_s=0.0, rounds=2, turn_s=0.0, warm_s=0.0, sample_s=0.0, most_samples=2)


@dataclass
class Times:
    """Seconds per launch. median over all samples; rounds: each round's own median; spread: (p90 - p10) / median over all samples."""

    median: float
    best: float
    spread: float
    rounds: list[float]
    samples: int
    board: dict[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"us": self.median * 1e6, "best_us": self.best * 1e6, "spread": self.spread, "rounds_us": [x * 1e6 for x in self.rounds],
                "samples": self.samples, **self.board}


def summarise(rounds: Sequence[Sequence[float]], board: Mapping[str, float | None] | None = None) -> Times:
    every = sorted(x for r in rounds for x in r)
    at = lambda share: every[min(len(every) - 1, int(share * len(every)))]
    median = statistics.median(every)
    return Times(median, every[0], (at(0.9) - at(0.1)) / median, [statistics.median(r) for r in rounds], len(every), dict(board or {}))


def geomean(values: Iterable[float]) -> float:
    """The geometric mean; nan of nothing or of something that is not positive."""
    logs = [math.log(v) if v > 0 else math.nan for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of every round: each starts elsewhere, every other one runs backwards."""
    out = []
    for r in range(rounds):
        shift = (r * (len(names) // 2 + 1)) % len(names) if names else 0
        order = [*names[shift:], *names[:shift]]
        out.append(order[::-1] if r % 2 else order)
    return out


class Contest:
    """Ways to compute one thing, by name. add, check, then times."""

    def __init__(self, clock: Clock, plan: Plan | None = None):
        self.clock, self.plan = clock, plan or Plan()
        self.ways: dict[str, Callable[[], Any]] = {}
        self.calls: dict[str, int] = {}
        self.errors: dict[str, Error] = {}
        self._right: set[str] = set()
        self._board = Board()

    def add(self, name: str, run: Callable[[], Any], calls: int = 1) -> None:
        """calls: how many launches one `run` makes (a graph's replay makes many)."""
        self.ways[name], self.calls[name] = run, calls

    def drop(self, name: str) -> None:
        for table in (self.ways, self.calls):
            table.pop(name, None)
        self._right.discard(name)

    def check(self, name: str, error: Error, limit: float) -> bool:
        """Note a way's error against float64; it may be timed if its relative rms error is finite and at most `limit`."""
        self.errors[name] = error
        if error.finite and error.relative <= limit:
            self._right.add(name)
        else:
            self._right.discard(name)
        return name in self._right

    def times(self, names: Sequence[str] | None = None, rounds: int | None = None) -> dict[str, Times]:
        """Each way's times. Raises Unchecked before anything is timed if one of them is unchecked or wrong."""
        names = list(names if names is not None else self.ways)
        for name in names:
            if name not in self.errors:
                raise Unchecked(f"{name}: its result was not compared with float64 in this run")
            if name not in self._right:
                raise Unchecked(f"{name}: its result is wrong ({self.errors[name]})")
        if not names:
            return {}
        p = self.plan
        each = {name: self._estimate(name) for name in names}
        self._preheat(names, each)
        samples: dict[str, list[list[float]]] = {name: [] for name in names}
        board: dict[str, list[dict[str, float | None]]] = {name: [] for name in names}
        for order in turns(names, rounds or p.rounds):
            for name in order:
                launches = max(1, math.ceil(p.sample_s / each[name]))
                count = min(p.most_samples, max(2, math.ceil(p.turn_s / (launches * each[name]))))
                self._warm(name, each[name])
                found = self.clock.measure(self.ways[name], launches, count)
                board[name].append(self._board.now())
                samples[name].append([x / self.calls[name] for x in found])
        return {name: summarise(samples[name], _mean(board[name])) for name in names}

    def _estimate(self, name: str) -> float:
        """Seconds of one run, roughly: the second of two short measurements."""
        self.clock.measure(self.ways[name], 1, 1)
        return max(1e-7, min(self.clock.measure(self.ways[name], 2, 2)))

    def _warm(self, name: str, each: float) -> None:
        for _ in range(min(200, math.ceil(self.plan.warm_s / each))):
            self.ways[name]()

    def _preheat(self, names: Sequence[str], each: Mapping[str, float]) -> None:
        """All ways in turn until the board is hot; the host waits after each so that the queue stays short."""
        end = time.perf_counter() + self.plan.preheat_s
        while time.perf_counter() < end:
            for name in names:
                for _ in range(min(100, max(1, math.ceil(0.005 / each[name])))):
                    self.ways[name]()
                self.clock.sync()


def _mean(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for key in rows[0] if rows else ():
        known = [x for r in rows if (x := r[key]) is not None]
        out[key] = statistics.mean(known) if known else None
    return out


def graph_of(run: Callable[[], Any], calls: int = 20) -> Callable[[], None]:
    """A CUDA graph of `calls` runs in a row, as something to call. What a run allocates stays allocated."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay
