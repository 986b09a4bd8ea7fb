"""Processes that share one GPU, and what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..environment import ROOT
from .adapters import ADAPTERS

TICK, SAID = 0.3, 10.0
#: a process of many has one core
ALONE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
COMMAND = [sys.executable, "-m", "benchmarks.conformance.worker"]
LATE = ["not reached", "the limit of all tests"]


class Suite:
    """One project's tests. name; job: what its processes are told."""

    def __init__(self, name: str, job: dict[str, Any], folder: Path):
        self.name, self.folder = name, folder
        self.job = {**job, "name": name, "folder": str(folder)}
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.begun = 0
        self.chosen: int | None = None
        self.stopped: dict[str, list[str]] = {}
        folder.mkdir(parents=True)

    def start(self) -> None:
        number, self.begun = self.begun, self.begun + 1
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with open(self.folder / f"{number}.out", "wb") as out:
            self.running[number] = subprocess.Popen(
                [*COMMAND, json.dumps({**self.job, "number": number})], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **ALONE})

    def lines(self, number: int | None = None) -> list[dict[str, Any]]:
        logs = [self.folder / f"{n}.jsonl" for n in (range(self.begun) if number is None else [number])]
        return [json.loads(line) for log in logs if log.exists() for line in log.read_text("utf-8").splitlines() if line.endswith("}")]

    def watch(self, limit: float, until: float) -> None:
        """Ends processes at a limit; notes what they were at."""
        for number, process in list(self.running.items()):
            ended, now = process.poll() is not None, time.time()
            at = self.at(number)
            if not ended and now <= until and (at is None or now - at["at"] <= limit):
                continue
            process.kill()  # (nobody waits for its end: one that the GPU holds may take its time)
            if at is not None:
                verdict = ["stopped", f"took more than {limit:g} s"] if now - at["at"] > limit else LATE
                died = ["failed", f"its process ended with {process.returncode}: {self.tail(number)}"]
                self.stopped[at["begin"]] = died if ended else verdict
            del self.running[number]

    def at(self, number: int) -> dict[str, Any] | None:
        """The test that a process is at."""
        lines = self.lines(number)
        return lines[-1] if lines and "begin" in lines[-1] else None

    def tail(self, number: int) -> str:
        return (self.folder / f"{number}.out").read_text("utf-8", errors="replace")[-300:]

    def left(self) -> int:
        """How many tests nobody has taken; -1: not known yet."""
        if self.chosen is None:
            self.chosen = next((len(line["chosen"]) for line in self.lines(0) if "chosen" in line), None)
        return self.chosen - sum(x.name.startswith("taken-") for x in os.scandir(self.folder)) if self.chosen is not None else -1

    def result(self) -> dict[str, Any]:
        """collected, chosen: how many; found: test -> verdict, reason, function; beside: function, reason, how many tests that have nothing
        for fcgen."""
        lines = self.lines()
        head = next((line for line in lines if "chosen" in line), None)
        if head is None:
            return {"collected": 0, "chosen": 0, "found": {}, "beside": [], "problem": f"nothing was collected: {self.tail(0)}"}
        ran = {line["test"]: [line["verdict"], line["why"]] for line in lines if "test" in line}
        found = {name: [*ran.get(name, self.stopped.get(name, LATE)), function]
                 for name, function in head["chosen"]}
        slowest = sorted([(line["seconds"], line["test"]) for line in lines if "test" in line])[-5:]
        return {"collected": head["collected"], "chosen": len(head["chosen"]), "found": found, "beside": head["beside"], "slowest": slowest,
                "dead": [line["dead"] for line in lines if "dead" in line]}


def run(suites: list[Suite], processes: int, test_limit: float, until: float) -> None:
    """Until all tests have run, or it is late."""
    for n in range(processes):
        suites[n % len(suites)].start()
    said = time.time()
    while any(suite.running for suite in suites):
        time.sleep(TICK)
        if time.time() > said + SAID:
            said = time.time()
            print("; ".join(f"{s.name}: {len(s.running)} processes, {s.left()} tests left" for s in suites), flush=True)
        for suite in suites:
            suite.watch(test_limit, until)
        free = processes - sum(len(suite.running) for suite in suites)
        waiting = [s for s in suites if s.left() > len(s.running) or (s.left() > 0 and not s.running)]
        for _ in range(free):
            if waiting and time.time() < until - 5:
                max(waiting, key=lambda s: s.left() / (len(s.running) + 1)).start()


def with_originals(suites: list[Suite], processes: int, test_limit: float, until: float) -> dict[str, dict[str, str]]:
    """Of the tests that failed: what became of each with the project's own functions ("failed": their results did)."""
    again = {}
    for suite in suites:
        failed = [test for test, (verdict, *_) in suite.result()["found"].items() if verdict == "failed"]
        if failed:
            job = {**suite.job, "only": failed, "every": 1, "until": until}
            again[suite.name] = Suite(suite.name, job, suite.folder / "originals")
    if again:
        run(list(again.values()), min(processes, 2 * len(again)), test_limit, until)
    return {name: {test: verdict if verdict != "failed" or why == "AssertionError" else "did not run"
                   for test, (verdict, why, _) in suite.result()["found"].items()} for name, suite in again.items()}


def of_names(names: list[str], checkouts: dict[str, Path], folder: Path, **job: Any) -> list[Suite]:
    out = []
    for name in names:
        adapter = ADAPTERS[name]
        checkout = checkouts[adapter.project].resolve()
        for file in adapter.files:
            if not (checkout / file).is_file():
                raise SystemExit(f"{checkout / file} is not there: --{adapter.project.replace('_', '-')} names a checkout that has it")
        out.append(Suite(name, {"only": [], "peers": "", **job, "checkout": str(checkout)}, folder / name))
    return out
