"""`python -m benchmarks.conformance NAME ... --pytorch DIR --flash-attention DIR`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .. import environment
from ..pool import write_json
from . import fleet, verdicts
from .adapters import ADAPTERS

#: the GPU that tests ask about where there is none
PRETENDED = {"name": "NVIDIA H200", "capability": [9, 0], "memory": 140 << 30}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("names", nargs="+", choices=ADAPTERS)
    parser.add_argument("--pytorch", type=Path, default=Path("pytorch"), help="where its source lies (%(default)s)")
    parser.add_argument("--flash-attention", type=Path, default=Path("flash-attention"), help="likewise (%(default)s)")
    parser.add_argument("--every", type=int, action="append", default=[], metavar="N",
                        help="one of N tests of each function (1); given several times: of each name in turn")
    parser.add_argument("-k", dest="expression", default="", help="pytest's selection")
    parser.add_argument("--processes", type=int, default=max(1, min(12, len(os.sched_getaffinity(0)) - 2)),
                        help="%(default)s; 0: run none, and tell what --done has")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="of all tests (%(default)s)")
    parser.add_argument("--test-limit", type=float, default=60.0, metavar="SECONDS", help="of one (%(default)s)")
    parser.add_argument("--originals", type=float, default=0.0, metavar="SECONDS",
                        help="run what failed once more, with the project's own functions, for so long (%(default)s)")
    parser.add_argument("--peers", default="", help="where FlashAttention's own kernels lie: see benchmarks/peers.py")
    parser.add_argument("--done", metavar="FILE", help="verdicts of earlier runs: what passed or is not applicable there is not run again")
    parser.add_argument("--keep", metavar="FILE", help="write those verdicts and this run's, for the next run's --done")
    parser.add_argument("--mended", action="append", default=[], metavar="TEST",
                        help="with --processes 0: failed, and is mended since: it counts as not reached")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with kernels that are interpreted (needs small cases: see -k)")
    parser.add_argument("--apart", action="store_true", help="each process collects the tests, instead of one that forks the others")
    parser.add_argument("--json", help="also write the verdicts")
    args = parser.parse_args()
    for name, least, value in (*(("every", 1, n) for n in args.every), ("processes", 0, args.processes), ("limit", 1, args.limit),
                               ("test-limit", 1, args.test_limit), ("originals", 0, args.originals)):
        if not least <= value < float("inf"):  # nor what is no number
            parser.error(f"argument --{name}: {value} is not a number of at least {least}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begin = time.time()
    cards = fleet.gpus()
    every = {name: (args.every[n] if n < len(args.every) else (args.every or [1])[-1]) for n, name in enumerate(args.names)}
    record: dict[str, Any] = {"environment": environment.facts(), "every": every, "processes": args.processes, "gpus": len(cards),
                              "limit": args.limit, "test_limit": args.test_limit}
    forks = (cards or args.dry or not args.processes) and not args.apart
    facts = {"serve": {**(cards or [PRETENDED])[0], "cudnn": record["environment"]["cudnn"]}} if forks else {}
    for checkout in (args.pytorch, args.flash_attention):
        if (checkout / "SOURCES").is_file():
            record.setdefault("sources", []).extend((checkout / "SOURCES").read_text("utf-8").splitlines())
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as folder:
        suites = []
        for name in args.names:
            checkouts = {"pytorch": args.pytorch, "flash_attention": args.flash_attention}
            suites += fleet.of_names([name], checkouts, Path(folder), every=every[name], expression=args.expression, peers=args.peers,
                                     until=begin + args.limit, done=args.done, dry=args.dry,
                                     gathers=not args.processes, mended=args.mended,
                                     cards={str(n): card["index"] for n, card in enumerate(cards)},
                                     **facts)
        try:
            fleet.run(suites, args.processes, args.test_limit, begin + args.limit, len(cards) or 1)
        finally:  # stopped from outside too: what was found until then
            record["seconds"] = round(time.time() - begin, 1)
            failed = said(record, suites, {}, args)
        if failed and args.originals:
            until = time.time() + args.originals
            failed = said(record, suites, fleet.with_originals(suites, args.processes, args.test_limit, until, len(cards) or 1), args)
    for suite in suites:
        r = record[suite.name]
        print(f"== {suite.name}: {r['collected']} collected, {r['chosen']} chosen {r.get('problem', '')}\n{r['table']}\n")
    print(f"{record['seconds']} s, {failed} failed")
    return 1 if failed else 0


def said(record: dict[str, Any], suites: list[fleet.Suite], originals: dict[str, dict[str, str]], args: Any) -> int:
    """Write what was found; how many tests failed. originals: what became of those with the projects' own functions."""
    run = {name: record[name] for name in ("environment", "processes", "gpus", "limit", "test_limit", "seconds")}
    lines: list[dict[str, Any]] = []
    for suite in suites:
        result = suite.result()
        found, beside, ran = result.pop("found"), result.pop("beside"), result.pop("ran")
        for test, verdict in originals.get(suite.name, {}).items():
            if verdict == "failed":
                why = found[test][1].splitlines()[0][:100]
                found[test][:2] = ["not applicable", f"fails with the project's own functions too: {why}"]
        if originals.get(suite.name):
            result["with_its_own_functions"] = originals[suite.name]
        lines += [{"suite": suite.name, "run": run["environment"]["date"], **line, "verdict": found[line["test"]][0],
                   "why": found[line["test"]][1]} for line in ran]
        record[suite.name] = {**result, **verdicts.summary(found, beside), "time": verdicts.times(ran),
                              "table": verdicts.table(found, beside)}
    runs = {line["ran"]["environment"]["date"]: line["ran"] for line in verdicts.kept(args.done) if "ran" in line}
    runs[run["environment"]["date"]] = run
    tests = Counter(line["run"] for line in lines)
    if not args.processes:  # what is told is not of this machine
        record.update({"gathered": run["environment"], **list(runs.values())[-2]})
    record["runs"] = [{**x, "tests": tests[date]} for date, x in sorted(runs.items()) if tests[date]]
    if args.keep:
        here = {(line["suite"], line["test"]) for line in lines}
        others = [line for line in verdicts.kept(args.done) if "suite" in line and (line["suite"], line["test"]) not in here]
        whole = [*({"ran": x} for x in runs.values()), *others, *lines]
        Path(args.keep).write_text("".join(json.dumps(line) + "\n" for line in whole), "utf-8")
    write_json(args.json, {k: {n: x for n, x in v.items() if n != "table"} if isinstance(v, dict) else v for k, v in record.items()})
    return sum(record[s.name]["failed"] + ("problem" in record[s.name]) for s in suites)


if __name__ == "__main__":
    raise SystemExit(main())
