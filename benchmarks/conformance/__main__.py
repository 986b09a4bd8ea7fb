"""`python -m benchmarks.conformance NAME ... --pytorch DIR --flash-attention DIR`: see the package."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from .. import environment
from ..pool import write_json
from . import fleet, verdicts
from .adapters import ADAPTERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("names", nargs="+", choices=ADAPTERS)
    parser.add_argument("--pytorch", type=Path, default=Path("pytorch"), help="where its source lies (%(default)s)")
    parser.add_argument("--flash-attention", type=Path, default=Path("flash-attention"), help="likewise (%(default)s)")
    parser.add_argument("--every", type=int, action="append", default=[], metavar="N",
                        help="one of N tests of each function (1); given several times: of each name in turn")
    parser.add_argument("-k", dest="expression", default="", help="pytest's selection")
    parser.add_argument("--processes", type=int, default=max(1, min(12, len(os.sched_getaffinity(0)) - 2)), help="%(default)s")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="of all tests (%(default)s)")
    parser.add_argument("--test-limit", type=float, default=60.0, metavar="SECONDS", help="of one (%(default)s)")
    parser.add_argument("--originals", type=float, default=0.0, metavar="SECONDS",
                        help="run what failed once more, with the project's own functions, for so long (%(default)s)")
    parser.add_argument("--peers", default="", help="where FlashAttention's own kernels lie: see benchmarks/peers.py")
    parser.add_argument("--json", help="also write the verdicts")
    args = parser.parse_args()
    begin = time.time()
    every = {name: (args.every[n] if n < len(args.every) else (args.every or [1])[-1]) for n, name in enumerate(args.names)}
    record = {"environment": environment.facts(), "every": every, "processes": args.processes, "test_limit": args.test_limit,
              "limit": args.limit}
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        suites = []
        for name in args.names:
            suites += fleet.of_names([name], {"pytorch": args.pytorch, "flash_attention": args.flash_attention}, Path(folder),
                                     every=every[name], expression=args.expression, peers=args.peers, until=begin + args.limit)
        fleet.run(suites, args.processes, args.test_limit, begin + args.limit)
        originals = fleet.with_originals(suites, args.processes, args.test_limit, time.time() + args.originals) if args.originals else {}
        failed = 0
        for suite in suites:
            result = suite.result()
            found, beside = result.pop("found"), result.pop("beside")
            for test, verdict in originals.get(suite.name, {}).items():
                if verdict == "failed":
                    why = found[test][1].splitlines()[0][:100]
                    found[test][:2] = ["not applicable", f"fails with the project's own functions too: {why}"]
            said = verdicts.summary(found, beside)
            failed += said["failed"] + ("problem" in result)
            record[suite.name] = {**result, **said}
            print(f"== {suite.name}: {result}\n{verdicts.table(found, beside)}\n")
    record["seconds"] = round(time.time() - begin, 1)
    write_json(args.json, record)
    print(f"{record['seconds']} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
