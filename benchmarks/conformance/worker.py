"""Runs a share of one project's tests: pytest, with this as its plugin. `fleet` starts it, and reads what it writes.

Tests that seem to need the same kernels (by their names: an adapter's `alike`) are a group. Groups take turns, so that what a limit of time
cuts off is a sample of all; a few tests of a group make a unit, which one process runs one after the other, with the kernels that the first
of them made. Each process takes the next unit that nobody has: who makes the file of its number has it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from . import adapters, server, verdicts
from .adapters import ADAPTERS

#: so many tests of a function are run at any rate; so many of a group make a unit
LEAST, UNIT = 2, 4
#: of functions whose tests want a GPU of their own, which takes them seconds each, no more than one of so many is run
DEAR = 8
#: torch's helpers of tests ask them for GPUs, which takes seconds and memory in each process
UNASKED = ("jax", "numba", "cupy")
#: memory that torch keeps is given back beyond this, after each test: processes share a GPU
KEPT = 1 << 30


def order(tests: list[tuple[str, str]], every: int, alike: Callable[[str], str] = lambda name: name,
          alone: tuple[str, ...] = ()) -> list[list[tuple[str, str]]]:
    """Units of one of each `every` tests of each function, of all its groups in turn, and those of all functions mixed; which tests, and
    in which order, only hangs on their names. tests: (name, function); alone: functions whose tests want a GPU of their own."""
    of: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    mixed = lambda name: zlib.crc32(name.encode())
    for name, function in sorted(tests, key=lambda t: (mixed(t[0]), t[0])):
        of[function][alike(name)].append((name, function))
    places = []
    for function, groups in of.items():
        one_of = max(every, DEAR) if function in alone else every
        turns = sorted([(n, mixed(group), group, t) for group, some in groups.items() for n, t in enumerate(some)])
        chosen = turns[:max(math.ceil(len(turns) / one_of), LEAST)]
        units: dict[tuple[int, int, str], list[tuple[str, str]]] = defaultdict(list)
        for n, at, group, t in chosen:
            units[n // UNIT, at, group].append(t)
        begun = 0
        for _, unit in sorted(units.items()):
            places.append((begun / len(chosen), unit))
            begun += len(unit)
    return [unit for _, unit in sorted(places)]


def function_of(item: Any) -> str:
    """A test's function under the name that it is written with, whatever parameters torch has added to that."""
    code = getattr(inspect.unwrap(item.function), "__code__", None)
    return code.co_name if code is not None and code.co_name.startswith("test") else str(getattr(item, "originalname", item.name))


class Worker:
    """job: name, folder, number (0: the first), every, until (seconds since the epoch), done (a file of verdicts: those tests are not run
    again), serve (facts of a GPU: processes are forked where the tests are collected), dry (kernels are interpreted, on the CPU).
    only: tests that failed, which now run with the project's own functions."""

    def __init__(self, job: dict[str, Any]):
        self.job, self.adapter = job, ADAPTERS[job["name"]]
        self.folder = Path(job["folder"])
        self.open(str(job["number"]))
        self.meter = verdicts.Meter()
        self.last: Any = (None, None)
        self.units: list[list[pytest.Item]] = []
        self.alone: set[int] = set()
        self.collected = lambda: None

    def open(self, number: str) -> None:
        self.log = open(self.folder / f"{number}.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (until the end)
        self.write(pid=os.getpid())

    def write(self, **line: Any) -> None:
        self.log.write(json.dumps(line) + "\n")

    @pytest.hookimpl(trylast=True)  # behind what -k leaves out
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for module in {item.module for item in items}:  # type: ignore[attr-defined]
            self.adapter.collected(module)
        beside: Counter[tuple[str, str]] = Counter()
        tests = []
        if self.job["only"]:
            items[:] = [item for item in items if item.nodeid in self.job["only"]]
        for item in items:
            function, why = function_of(item), self.adapter.beside(item.nodeid)
            if why is None:
                tests.append((item.nodeid, function))
            else:
                beside[function, why] += 1
        at, done = {item.nodeid: item for item in items}, verdicts.settled(self.job.get("done"), self.job["name"])
        chosen = order(tests, self.job["every"], self.adapter.alike, self.adapter.alone)
        left = [some for unit in chosen if (some := [t for t in unit if t[0] not in done])]
        self.alone = {n for n, unit in enumerate(left) if unit[0][1] in self.adapter.alone}
        self.units = [[at[name] for name, _ in unit] for unit in left]
        self.write(collected=len(items), chosen=[t for unit in chosen for t in unit], units=len(left), alone=len(self.alone),
                   beside=[[*key, n] for key, n in beside.items()])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for name in UNASKED:  # tests may look whether these are imported, and then use them
            if sys.modules.get(name, self) is None:
                del sys.modules[name]
        if "serve" in self.job:
            self.collected()
            server.serve(self.write, self.folder, self.child)
        else:
            self.takes_part(self.job.get("also", ()), self.job.get("alone", self.job["number"] == 0))
        return True

    def child(self, order: dict[str, Any]) -> None:
        """A forked process. order: number, gpu, also (tests that a process left behind), alone (may it take tests that want to be)."""
        self.log.close()
        self.open(str(order["number"]))
        if self.job.get("dry"):
            adapters.without_gpu()
        else:
            import torch

            torch.cuda.init()
        self.takes_part(order["also"], order["alone"])

    def takes_part(self, also: Iterable[str], alone: bool) -> None:
        left = set(also)
        self.all_of([item for unit in self.units for item in unit if item.nodeid in left])
        for n in sorted(range(len(self.units)), key=lambda n: n not in self.alone):  # those that few processes may take first
            unit = self.units[n]
            if time.time() > self.job["until"]:
                break
            if (alone or n not in self.alone) and self.takes(n):
                self.write(unit=n, tests=[item.nodeid for item in unit], alone=n in self.alone)
                self.all_of(unit)

    def all_of(self, items: list[pytest.Item]) -> None:
        for item in items:
            if time.time() > self.job["until"]:
                break
            if self.one(item) and (why := self.one(item)):  # once more where there was no memory
                self.write(test=item.nodeid, verdict="not reached", why=why, seconds=0.0)

    def takes(self, n: int) -> bool:
        try:
            os.close(os.open(self.folder / f"taken-{n}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def one(self, item: pytest.Item) -> str:
        """Run a test; where it was not reached no verdict, and why."""
        self.meter.reset()
        self.last = (None, None)
        adapters.calls.clear()
        adapters.partly.clear()
        adapters._here[0] = item.name
        begin = time.time()
        self.write(begin=item.nodeid, at=begin)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        report, info = self.last
        verdict, why = verdicts.judged(report, info, self.meter.launched)
        if self.job["only"]:  # of the project's own functions: did what they computed fail, or did they not run?
            verdict, why = report.outcome, info.type.__name__ if info else ""
        if verdict != "not reached":
            self.write(test=item.nodeid, verdict=verdict, why=why, seconds=round(time.time() - begin, 2), **self.meter.facts())
        self.last = (None, None)  # which holds its tensors
        self.still_works(verdict in ("failed", "not reached"))
        return why if verdict == "not reached" else ""

    def still_works(self, doubtful: bool) -> None:
        """After an error in a kernel nothing works in this process any more: another one goes on. Memory is left to the other processes."""
        import torch

        if torch.cuda.is_available() and (doubtful or torch.cuda.memory_reserved() > KEPT):
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as e:
                self.write(dead=str(e)[:200])
                os._exit(3)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Any:
        report = yield
        if self.last[0] is None or (report.outcome == "failed" and self.last[0].outcome != "failed"):
            if report.when == "call" or report.outcome != "passed":
                self.last = report, call.excinfo
        return report


def run(job: dict[str, Any]) -> Worker:
    """In this process. job: see Worker; also checkout, expression."""
    checkout = Path(job["checkout"])
    sys.modules.update({name: None for name in UNASKED if name not in sys.modules})  # type: ignore[misc]
    with contextlib.ExitStack() as pretence:
        if "serve" in job:
            pretence.enter_context(server.collecting(job["serve"]))
        if job["only"]:
            ADAPTERS[job["name"]].original(checkout, job["peers"])
        else:
            ADAPTERS[job["name"]].install(checkout)
        worker = Worker(job)

        def collected() -> None:
            pretence.close()
            if server.touched():
                worker.write(touched=[name for name in (*UNASKED, "pynvml", "cuda", "triton.runtime.driver") if sys.modules.get(name)])
                os._exit(4)

        worker.collected = collected
        options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, f"--rootdir={checkout}", "--no-header",
                   "--tb=short", "-W", "ignore", *(["-k", job["expression"]] if job["expression"] else [])]
        try:
            pytest.main([*[str(checkout / f) for f in ADAPTERS[job["name"]].files], *options], plugins=[worker])
        finally:
            worker.meter.undo()
            worker.log.close()
    return worker


if __name__ == "__main__":
    from benchmarks.conformance import worker as this  # one module, by one name

    this.run(json.loads(sys.argv[1]))
