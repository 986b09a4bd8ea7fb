"""Processes that share the GPUs, and what they found."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..environment import ROOT
from . import verdicts
from .adapters import ADAPTERS

TICK, SAID = 0.3, 10.0
#: seconds that collecting tests may take; so many processes or tests without CUDA say that forking does not work
LONG, VAIN = 100.0, 4
#: a process of many has one core; what the simulator finds is not asked for here
ALONE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "FCGEN_CHECK": "0", "PYTHONUNBUFFERED": "1"}
COMMAND = [sys.executable, "-m", "benchmarks.conformance.worker"]
LATE = ["not reached", "the limit of all tests"]


def gpus() -> list[dict[str, Any]]:
    """What `nvidia-smi` says of each that CUDA_VISIBLE_DEVICES lets programs see; empty where there is none."""
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=index,name,compute_cap,memory.total", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in said.splitlines()]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(row[0] for row in rows)).split(",")
    return [{"index": index, "name": name, "capability": [int(n) for n in capability.split(".")], "memory": int(memory) << 20}
            for index, name, capability, memory in rows if index in seen]


class Log:
    """What a process writes, read as it grows."""

    def __init__(self, path: Path):
        self.path, self.at, self.rest = path, 0, ""
        self.lines: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """The lines that are new."""
        if not self.path.exists():
            return []
        with open(self.path, encoding="utf-8") as file:
            file.seek(self.at)
            text = self.rest + file.read()
            self.at = file.tell()
        *whole, self.rest = text.split("\n")
        new = [json.loads(line) for line in whole]
        self.lines += new
        return new


class Suite:
    """One project's tests. name; job: what its processes are told; server: the process that forks the others (None: each begins by itself,
    and collects the tests too)."""

    def __init__(self, name: str, job: dict[str, Any], folder: Path):
        self.name, self.folder = name, folder
        self.job = {**job, "name": name, "folder": str(folder)}
        self.server: subprocess.Popen[bytes] | None = None
        self.running: dict[int, tuple[int, bool]] = {}  # number -> GPU, takes tests that are alone
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.logs: dict[Any, Log] = {}
        self.since = time.time()
        self.head: dict[str, Any] | None = None  # what was collected; None: that is not known yet
        self.taken = {True: 0, False: 0}  # units, of tests that want to be alone and others
        self.vain = 0  # processes that ended, and tests that ended, without CUDA
        self.spent = 0.0  # seconds, on tests that have ended
        self.over: dict[int, int] = {}  # what forked processes ended with
        self.stopped: dict[str, list[str]] = {}
        self.left_behind: list[str] = []
        folder.mkdir(parents=True)
        if "serve" in self.job:
            self.server = self._process("server", stdin=subprocess.PIPE)

    def _process(self, number: Any, **more: Any) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.logs[number] = Log(self.folder / f"{number}.jsonl")
        job = {**self.job, "number": number, **more.pop("order", {})}
        with open(self.folder / f"{number}.out", "wb") as out:
            return subprocess.Popen([*COMMAND, json.dumps(job)], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                    env={**os.environ, "PYTHONPATH": path, **ALONE, **more.pop("env", {})}, **more)

    @property
    def begun(self) -> int:
        return sum(number != "server" for number in self.logs)

    def start(self, gpu: int = 0) -> None:
        number = self.begun
        alone = not self.has_alone(gpu)
        card = self.job.get("cards", {}).get(str(gpu), gpu)
        order = {"number": number, "gpu": card, "also": self.left_behind, "alone": alone}
        self.left_behind = []
        self.running[number] = gpu, alone
        if self.server is not None:
            self.logs[number] = Log(self.folder / f"{number}.jsonl")
            assert self.server.stdin is not None
            self.server.stdin.write(json.dumps(order).encode() + b"\n")
            self.server.stdin.flush()
        else:
            env = {"CUDA_VISIBLE_DEVICES": str(card)} if self.job.get("cards") else {}
            self.processes[number] = self._process(number, order=order, env=env)

    def read(self) -> None:
        for log in self.logs.values():
            for line in log.read():
                if "unit" in line:
                    self.taken[line["alone"]] += 1
                elif "chosen" in line and self.head is None:
                    self.head = line
                elif "test" in line:
                    self.spent += line["seconds"]
                    self.vain += line["why"].startswith(verdicts.NO_CUDA)
                elif "ended" in line:
                    self.over[line["ended"]] = line["code"]

    def ended(self, number: int) -> int | None:
        """What a process ended with; None: it runs."""
        return self.processes[number].poll() if number in self.processes else self.over.get(number)

    def kill(self, number: int) -> None:
        """(Nobody waits for its end: one that the GPU holds may take its time.)"""
        if number in self.processes:
            self.processes[number].kill()
        elif pid := next((line["pid"] for line in self.logs[number].lines if "pid" in line), 0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def watch(self, limit: float, until: float) -> None:
        """Ends processes at a limit; notes what they were at, and what they leave behind."""
        self._without_server()
        over = {number: self.ended(number) for number in self.running}  # before what they wrote last is read
        self.read()
        for number in list(self.running):
            lines, ended, now = self.logs[number].lines, over[number] is not None, time.time()
            at = lines[-1] if lines and "begin" in lines[-1] else None
            if not ended and now <= until and (at is None or now - at["at"] <= limit):
                continue
            if not ended:
                self.kill(number)
            if at is not None:
                verdict = ["stopped", f"took more than {limit:g} s"] if now - at["at"] > limit else LATE
                died = ["failed", f"its process ended with {over[number]}: {self.tail(number)}"]
                self.stopped[at["begin"]] = died if ended else verdict
            self.vain += over[number] not in (None, 0) and not any("begin" in line for line in lines)
            unit: list[str] = next((line["tests"] for line in reversed(lines) if "unit" in line), [])
            tried = {line["begin"] for line in lines if "begin" in line}
            self.left_behind += [test for test in unit if test not in tried]
            del self.running[number]

    def _without_server(self) -> None:
        """Where the server ended, takes long, or forks processes that cannot use CUDA, each process begins by itself from here on."""
        if self.server is None:
            return
        late = self.head is None and time.time() > self.since + LONG
        if self.server.poll() is not None or late or self.vain >= VAIN:
            self.server.kill()
            for number in self.running:
                self.kill(number)
            self.running, self.left_behind, self.server, self.head, self.vain = {}, [], None, None, 0
            self.job = {k: x for k, x in self.job.items() if k != "serve"}
            self.start()

    def tail(self, number: Any) -> str:
        path = self.folder / f"{number}.out"
        return path.read_text("utf-8", errors="replace")[-300:] if path.exists() else ""

    def left(self) -> tuple[int, int]:
        """Units that nobody has taken, and of those the ones that want to be alone; nothing where that is not known yet."""
        if self.head is None:
            return 0, 0
        return self.head["units"] - sum(self.taken.values()) + bool(self.left_behind), self.head["alone"] - self.taken[True]

    def has_alone(self, gpu: int) -> bool:
        """Does a process of this GPU take tests that want to be alone?"""
        return any(takes and on == gpu for on, takes in self.running.values())

    def wants(self, gpu: int) -> bool:
        """Would one more process on this GPU find something to do?"""
        left, alone = self.left()
        return (left - alone > 0 or (alone > 0 and not self.has_alone(gpu))) and self.vain < 4 * VAIN

    def need(self) -> float:
        """Seconds that one more process would have to do, if all units were like those so far."""
        begun = sum(self.taken.values())
        return self.left()[0] * (self.spent / begun if self.spent else 1.0) / (len(self.running) + 1)

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()  # and with it those that it has forked and that nobody has ended
            for number in self.running:
                self.kill(number)

    def result(self) -> dict[str, Any]:
        """collected, chosen: how many; found: test -> verdict, reason, function; beside: function, reason, how many tests that have nothing
        for fcgen; ran: of the tests that ran here what their processes wrote."""
        self.read()
        lines, head = [line for log in self.logs.values() for line in log.lines], self.head
        if head is None or not head["collected"]:
            return {"collected": 0, "chosen": 0, "found": {}, "beside": [], "ran": [],
                    "problem": f"nothing was collected: {self.tail('server') or self.tail(0)}"}
        ran = {line["test"]: line for line in lines if "test" in line}
        earlier = {} if self.job["only"] else verdicts.settled(self.job.get("done"), self.name, self.job.get("gathers", False))
        if self.job.get("gathers"):
            earlier = {**verdicts.amiss(self.job["done"], self.name), **earlier}
        for name in set(self.job.get("mended", ())) & set(earlier):
            why = f"failed, is mended, and was not run again: {earlier[name]['why']}"
            earlier[name] = {**earlier[name], "verdict": "not reached", "why": why}
        said = {name: [line["verdict"], line["why"]] for name, line in (*earlier.items(), *ran.items())}
        found = {name: [*said.get(name, self.stopped.get(name, LATE)), function] for name, function in head["chosen"]}
        return {"collected": head["collected"], "chosen": len(head["chosen"]), "found": found, "beside": head["beside"],
                "ran": [{**earlier.get(name, {}), **ran.get(name, {})} for name in found if name in ran or name in earlier],
                "dead": [line["dead"] for line in lines if "dead" in line], "forked": self.server is not None,
                "touched_by": [name for line in lines for name in line.get("touched", ())]}


def run(suites: list[Suite], processes: int, test_limit: float, until: float, cards: int = 1) -> None:
    """Until all tests have run, or it is late."""
    said = time.time()
    for n in range(processes):  # where nothing forks, all begin at once and share what the first of them collects
        if suites[n % len(suites)].server is None:
            suites[n % len(suites)].start(n % cards)
    try:
        while True:
            time.sleep(TICK)
            if time.time() > said + SAID:
                said = time.time()
                left = {s.name: s.left()[0] if s.head else "?" for s in suites}
                print("; ".join(f"{s.name}: {len(s.running)} processes, {left[s.name]} units left" for s in suites), flush=True)
            for suite in suites:
                suite.watch(test_limit, until)
            late = time.time() > until - 5
            collecting = any(s.server is not None and s.head is None for s in suites) and time.time() < until
            for _ in range(processes - sum(len(suite.running) for suite in suites)):
                on = Counter(gpu for s in suites for gpu, _ in s.running.values())
                gpu = min(range(cards), key=lambda n: on[n])
                there = {s.name: sum(g == gpu for g, _ in s.running.values()) for s in suites}
                share = processes if not collecting else math.ceil(processes / len(suites))  # what others will ask for
                waiting = [s for s in suites if s.wants(gpu) and there[s.name] < ADAPTERS[s.name].most and len(s.running) < share]
                if not waiting or late:
                    break
                max(waiting, key=lambda s: (not s.running, s.need())).start(gpu)  # a few tests do not wait for many others
            wanted = processes and not late and any(s.wants(gpu) for s in suites for gpu in range(cards))
            if not (collecting or any(s.running for s in suites) or wanted):
                break
    finally:
        for suite in suites:
            suite.close()


def with_originals(suites: list[Suite], processes: int, test_limit: float, until: float, cards: int = 1) -> dict[str, dict[str, str]]:
    """Of the tests that failed: what became of each with the project's own functions ("failed": their results did)."""
    again = {}
    for suite in suites:
        failed = [test for test, (verdict, *_) in suite.result()["found"].items() if verdict == "failed"]
        if failed:
            job = {**suite.job, "only": failed, "every": 1, "until": until, "done": None}
            again[suite.name] = Suite(suite.name, job, suite.folder / "originals")
    if again:
        run(list(again.values()), min(processes, 2 * len(again)), test_limit, until, cards)
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
