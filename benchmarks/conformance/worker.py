"""A process that runs a share of one project's tests: pytest, with this as its plugin. `fleet` starts it, and reads what it writes.

All processes of a suite collect the same tests and put them in the same order, in which each function's tests are spread evenly: what a
limit of time cuts off is a sample of all. Each takes the next test that nobody has: who makes the file of its number has it.
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
from pathlib import Path
from typing import Any

import pytest

from . import adapters, verdicts
from .adapters import ADAPTERS

#: so many tests of a function are run at any rate
LEAST = 2


def order(tests: list[tuple[str, str]], every: int) -> list[tuple[str, str]]:
    """One of each `every` tests of each function, and those of all functions mixed, by their names' hashes. tests: (name, function)."""
    of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for test in tests:
        of[test[1]].append(test)
    places = []
    for some in of.values():
        mixed = sorted(some, key=lambda t: zlib.crc32(t[0].encode()))
        chosen = mixed[:max(math.ceil(len(some) / every), LEAST)]
        places += [((n + 0.5) / len(chosen), t) for n, t in enumerate(chosen)]
    return [t for _, t in sorted(places)]


def function_of(item: Any) -> str:
    """A test's function under the name that it is written with, whatever parameters torch has added to that."""
    code = getattr(inspect.unwrap(item.function), "__code__", None)
    return code.co_name if code is not None and code.co_name.startswith("test") else str(getattr(item, "originalname", item.name))


class Worker:
    """job: name, folder, number (0: the first), every, until (seconds since the epoch). only: tests that failed, which now run with the
    project's own functions."""

    def __init__(self, job: dict[str, Any]):
        self.job, self.adapter = job, ADAPTERS[job["name"]]
        self.folder = Path(job["folder"])
        self.log = open(self.folder / f"{job['number']}.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (until the end)
        self.count, self.undo = verdicts.launches()
        self.last: Any = (None, None)
        self.alone: set[str] = set()

    def write(self, **line: Any) -> None:
        self.log.write(json.dumps(line) + "\n")

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
        chosen = order(tests, self.job["every"])
        at, self.alone = {item.nodeid: item for item in items}, {name for name, function in chosen if function in self.adapter.alone}
        if self.job["number"] == 0:
            self.write(collected=len(items), chosen=chosen, beside=[[*key, n] for key, n in beside.items()])
        items[:] = [at[name] for name, _ in chosen]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for n, item in enumerate(session.items):
            if item.nodeid in self.alone and self.job["number"]:
                continue
            if time.time() > self.job["until"]:
                break
            if self.takes(n):
                self.one(item)
        return True

    def takes(self, n: int) -> bool:
        try:
            os.close(os.open(self.folder / f"taken-{n}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def one(self, item: pytest.Item) -> None:
        self.count[0], self.last = 0, (None, None)
        adapters.calls.clear()
        adapters.partly.clear()
        adapters._here[0] = item.name
        begin = time.time()
        self.write(begin=item.nodeid, at=begin)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        report, info = self.last
        verdict, why = verdicts.judged(report, info, self.count[0])
        if self.job["only"]:  # of the project's own functions: did what they computed fail, or did they not run?
            verdict, why = report.outcome, info.type.__name__ if info else ""
        self.write(test=item.nodeid, verdict=verdict, why=why, seconds=round(time.time() - begin, 2))
        if verdict in ("failed", "not reached"):
            self.still_works()

    def still_works(self) -> None:
        """After an error in a kernel nothing works in this process any more: another one goes on."""
        import torch

        if torch.cuda.is_available():
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
    if job["only"]:
        ADAPTERS[job["name"]].original(checkout, job["peers"])
    else:
        ADAPTERS[job["name"]].install(checkout)
    worker = Worker(job)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, f"--rootdir={checkout}", "--no-header", "--tb=short",
               "-W", "ignore", *(["-k", job["expression"]] if job["expression"] else [])]
    try:
        pytest.main([*[str(checkout / f) for f in ADAPTERS[job["name"]].files], *options], plugins=[worker])
    finally:
        for module, name, theirs in worker.undo:
            setattr(module, name, theirs)
        worker.log.close()
    return worker


if __name__ == "__main__":
    from benchmarks.conformance import worker as this  # one module, by one name

    this.run(json.loads(sys.argv[1]))
