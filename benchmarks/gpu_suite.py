"""All tests that need a GPU, in several processes that share it, or those there are; one JSON record of what they said.

    python -m benchmarks.gpu_suite --json out/gpu_suite.json            everything marked `gpu`
    python -m benchmarks.gpu_suite --processes 4 tests/gpu/test_clusters.py

Most of the time is compilation and simulation, so processes help although there is one GPU. Tests are dealt out; those marked
`alone` (they look at when things happen) run afterwards in one process. A process that dies, or is stopped at the limit, leaves its tests
`not_run`, which is a failure like any other. Needs pytest, not pytest-xdist.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .environment import ROOT, facts, gpus
from .pool import write_json

#: "2/8 PATH" tells a process of pytest which share of the tests is its own (the third of eight) and where it writes what happens
SHARE = "FCGEN_GPU_SUITE"
SLOWEST = 20


# ---- in a process of pytest, as its plugin --------------------------------------------------------------------------------


def _log(**line: Any) -> None:
    with open(os.environ[SHARE].split(" ", 1)[1], "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def pytest_configure(config: Any) -> None:
    for marker in ("gpu", "alone"):
        config.addinivalue_line("markers", f"{marker}: see pyproject.toml")


def pytest_collection_finish(session: Any) -> None:
    """After every choice by marker: this process's share."""
    number, _, count = os.environ[SHARE].split(" ", 1)[0].partition("/")
    dealt = list(range(len(session.items)))
    random.Random(0).shuffle(dealt)  # by turns: cases of one size would come to one process, where their number divides the processes'
    session.items[:] = [session.items[n] for n in sorted(dealt[int(number)::int(count)])]
    _log(chosen=[item.nodeid for item in session.items])


def pytest_runtest_logreport(report: Any) -> None:
    text = report.longreprtext if report.failed else ""
    _log(test=report.nodeid, when=report.when, outcome=report.outcome, seconds=report.duration, text=text)


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _log(test=report.nodeid or "collection", when="teardown", outcome="failed", seconds=0.0, text=report.longreprtext)


# ---- the process that starts them -----------------------------------------------------------------------------------------


def start(marks: str, share: str, log: Path, paths: list[str], gpu: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-m", marks, "-p", "benchmarks.gpu_suite", "-p", "no:cacheprovider", "-q", *paths]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(command, cwd=ROOT, stdout=open(log.with_suffix(".out"), "wb"), stderr=subprocess.STDOUT,
                            env={**os.environ, SHARE: f"{share} {log}", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": gpu})


def wait(processes: list[subprocess.Popen[bytes]], until: float) -> None:
    for process in processes:
        try:
            process.wait(max(0.0, until - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def summary(logs: list[Path]) -> dict[str, Any]:
    """What the processes said, as counts, failures and the slowest tests."""
    chosen: list[str] = []
    outcome: dict[str, str] = {}
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    ended = set()
    for log in logs:
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
            said = json.loads(line)
            chosen += said.get("chosen", [])
            if "test" in said:
                name = said["test"]
                seconds[name] = seconds.get(name, 0.0) + said["seconds"]
                # set up, called, torn down: the worst of them counts
                outcome[name] = max(outcome.get(name, ""), said["outcome"], key=["", "passed", "skipped", "failed"].index)
                ended |= {name} if said["when"] == "teardown" else set()
                if said["text"]:
                    failures[name] = (failures.get(name, "") + said["text"])[-2000:]
    counts = {kind: sum(outcome[n] == kind for n in ended) for kind in ("passed", "failed", "skipped")}
    slowest = sorted(ended, key=lambda n: -seconds[n])[:SLOWEST]
    return {**counts, "not_run": [n for n in chosen if n not in ended], "slowest": {n: round(seconds[n], 2) for n in slowest},
            "failures": failures}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="files or folders of tests; all that have the marker, if none are given")
    parser.add_argument("--json", metavar="PATH", help="where the record goes")
    parser.add_argument("--processes", type=int, default=max(1, min(8, len(os.sched_getaffinity(0)) - 1)), help="%(default)s")
    parser.add_argument("--limit", type=float, default=540.0, metavar="SECONDS", help="what runs by then is stopped (%(default)s)")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("pytest") is None:
        parser.error("pytest is not installed: pip install pytest hypothesis")

    marked = (p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text("utf-8"))
    paths = args.paths or sorted(str(p.relative_to(ROOT)) for p in marked)
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix="gpu-suite-") as folder:
        logs = [Path(folder, f"{n}.jsonl") for n in range(args.processes + 1)]
        among = gpus() or [""]
        parallel = [start("gpu and not alone", f"{n}/{args.processes}", log, paths, among[n % len(among)])
                    for n, log in enumerate(logs[:-1])]
        wait(parallel, begin + args.limit)
        alone = start("gpu and alone", "0/1", logs[-1], paths, among[0])
        wait([alone], max(begin + args.limit, time.time() + 60))
        said = summary(logs)
        broken = {str(n): log.with_suffix(".out").read_text(errors="replace")[-2000:]
                  for n, (p, log) in enumerate(zip([*parallel, alone], logs)) if p.returncode not in (0, 1, 5)}  # 5: nothing chosen
    seconds = round(time.time() - begin, 1)
    problems = [*said["failures"], *(f"not run: {n}" for n in said["not_run"]), *(f"process {n} ended badly" for n in broken)]
    if not said["passed"]:
        problems.append("no test ran: is there a GPU, and torch?")
    record = {"part": "tests", "environment": facts(), "seconds": seconds, "processes": args.processes, "gpus": len(among), **said,
              "broken": broken, "problems": problems}
    write_json(args.json, record)
    for name, text in said["failures"].items():
        print(f"FAILED {name}\n{text}\n")
    for n, text in broken.items():
        print(f"process {n} ended badly\n{text}\n")
    print(f"{said['passed']} passed, {said['failed']} failed, {said['skipped']} skipped, {len(said['not_run'])} not run in {seconds} s "
          f"with {args.processes} processes")
    for name, t in said["slowest"].items():
        print(f"  {t:7.2f} s  {name}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
