"""Timing that compares: candidates are measured in turns, in both orders, and only after their results were checked.

In: `Checked` candidates, each with the error that was measured. Out: `Time` per name, in milliseconds per call. Guaranteed: a candidate
whose error is missing or not finite is refused, so that no wrong kernel gets a time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

#: milliseconds that the GPU is held for while a turn's calls are enqueued, the next one where that was too short; its cycles in one
HOLDS, CYCLES = (4.0, 16.0, 64.0, 256.0), 1.9e6


@dataclass(frozen=True)
class Checked:
    """Something to time. run: enqueues one call. max_error, rms_error: against a float64 reference, measured before. finish: for work that
    is not on torch's stream (JAX), waits for what the last `run` returned; such a candidate is timed with the host's clock."""

    name: str
    run: Callable[[], Any]
    max_error: float | None = None
    rms_error: float | None = None
    finish: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Time:
    """Milliseconds per call: the median of the rounds, and (slowest - fastest) / median. host: what enqueuing a call took, where that was
    taken apart."""

    ms: float
    spread: float
    host: float | None = None


def refuse_unchecked(candidates: Iterable[Checked]) -> None:
    for c in candidates:
        for kind, value in (("max", c.max_error), ("rms", c.rms_error)):
            if value is None or not math.isfinite(value):
                raise ValueError(f"{c.name}: its {kind} error is {value}; only what was compared with a reference is timed")


def summary(samples: Sequence[float]) -> Time:
    middle = statistics.median(samples)
    return Time(middle, (max(samples) - min(samples)) / middle)


def geomean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def turned(candidates: Sequence[Checked], n: int) -> list[Checked]:
    """The order of round n: shuffled, the same for everybody, and every other round the last one reversed. On a power-limited board who
    runs behind a frugal kernel finds a higher clock: in a fixed order of five, the second one gained up to 6 %."""
    order = list(candidates)
    Random(n // 2).shuffle(order)
    return order[::-1] if n % 2 else order


def round_robin(candidates: Sequence[Checked], launches: int, rounds: int = 7, preheat_ms: float = 200.0, warm: int = 0) -> dict[str, Time]:
    """Each round times `launches` calls of every candidate between two events, after `warm` calls of it that are not timed."""
    samples = _turns(candidates, lambda c: _sample(c, launches, warm), rounds, preheat_ms)
    return {name: summary(s) for name, s in samples.items()}


def gpu_times(candidates: Sequence[Checked], launches: int, rounds: int = 7, preheat_ms: float = 200.0, warm: int = 1) -> dict[str, Time]:
    """As `round_robin`, but of the GPU alone, whatever the host takes to enqueue a call: the GPU is held until a turn's calls have all been
    enqueued. A turn in which it went on before that does not count: it is taken again, and held for longer."""
    held = {c.name: HOLDS[0] for c in candidates}
    hosts: dict[str, list[float]] = {c.name: [] for c in candidates}

    def sample(c: Checked) -> float:
        for ms in HOLDS:
            if ms >= held[c.name]:
                held[c.name] = ms
                found = _held_sample(c, launches, warm, ms)
                if found is not None:
                    hosts[c.name].append(found[1])
                    return found[0]
        raise RuntimeError(f"{c.name}: {launches} calls are not enqueued in {HOLDS[-1]} ms")

    samples = _turns(candidates, sample, rounds, preheat_ms)
    return {name: replace(summary(s), host=statistics.median(hosts[name])) for name, s in samples.items()}


def _held_sample(c: Checked, launches: int, warm: int, hold: float) -> tuple[float, float] | None:
    """Milliseconds per call, and of the host; None if the GPU was let go before all had been enqueued."""
    import torch

    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(hold * CYCLES))
    begin = time.perf_counter()
    for _ in range(warm):
        c.run()
    start.record()
    for _ in range(launches):
        c.run()
    host = (time.perf_counter() - begin) * 1e3 / (warm + launches)
    stop.record()
    waits = not start.query()
    torch.cuda.synchronize()
    return (start.elapsed_time(stop) / launches, host) if waits else None


def _turns(candidates: Sequence[Checked], sample: Callable[[Checked], float], rounds: int, preheat_ms: float) -> dict[str, list[float]]:
    """Samples of each candidate, one per round."""
    refuse_unchecked(candidates)
    import torch

    for c in candidates:
        c.run()
    torch.cuda.synchronize()
    _preheat(candidates[0].run, preheat_ms)
    samples: dict[str, list[float]] = {c.name: [] for c in candidates}
    for n in range(rounds):
        for c in turned(candidates, n):
            samples[c.name].append(sample(c))
    return samples


def _sample(c: Checked, launches: int, warm: int) -> float:
    """Milliseconds per call."""
    import torch

    last = None
    for _ in range(warm):
        last = c.run()
    if c.finish is not None:
        c.finish(c.run() if last is None else last)
        begin = time.perf_counter()
        for _ in range(launches):
            last = c.run()
        c.finish(last)
        return (time.perf_counter() - begin) * 1e3 / launches
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(launches):
        c.run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / launches


def finishes(seconds: float = 20.0) -> bool:
    """Does what is on torch's stream come to an end in time? A kernel that waits for itself never does, and cannot be stopped."""
    import torch

    event = torch.cuda.Event()
    event.record()
    end = time.monotonic() + seconds
    while not event.query():
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def graph_times(candidates: Sequence[Checked], calls: int = 20, rounds: int = 9, replays: int = 3) -> dict[str, Time]:
    """As `round_robin`, for calls so short that the launch would be measured: `calls` of them in one CUDA graph."""
    refuse_unchecked(candidates)
    graphs = [Checked(c.name, _captured(c.run, calls).replay, c.max_error, c.rms_error) for c in candidates]
    return {name: Time(t.ms / calls, t.spread) for name, t in round_robin(graphs, replays, rounds).items()}


def _captured(run: Callable[[], Any], calls: int) -> Any:
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph


def _preheat(run: Callable[[], Any], ms: float) -> None:
    """Let the clocks settle."""
    import torch

    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    while True:
        for _ in range(10):
            run()
        stop.record()
        torch.cuda.synchronize()
        if start.elapsed_time(stop) >= ms:
            return
