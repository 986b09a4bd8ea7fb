"""`python -m benchmarks.conformance NAME --checkout DIR`: see the package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from .. import environment
from .adapters import ADAPTERS
from .verdicts import Verdicts


def run(name: str, checkout: Path, every: int = 1, expression: str = "", more: tuple[str, ...] = ()) -> Verdicts:
    """The verdicts of a project's tests."""
    adapter = ADAPTERS[name]
    files = [checkout / f for f in adapter.files]
    for file in files:
        if not file.is_file():
            raise SystemExit(f"{file} is not there: --checkout names a checkout of the project that has it")
    verdicts = Verdicts(every)
    adapter.install(checkout)
    verdicts.count_launches()
    try:
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null", f"--rootdir={checkout}", "--no-header",
                   "--tb=short", "-W", "ignore"]
        pytest.main([*map(str, files), *options, *(["-k", expression] if expression else []), *more], plugins=[verdicts])
    finally:
        verdicts.restore()
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("name", choices=ADAPTERS)
    parser.add_argument("--checkout", type=Path, required=True, help="where the project's source lies")
    parser.add_argument("--every", type=int, default=1, help="run each n-th test")
    parser.add_argument("-k", dest="expression", default="", help="pytest's selection")
    parser.add_argument("--json", type=Path, help="also write the verdicts")
    args = parser.parse_args()
    verdicts = run(args.name, args.checkout.resolve(), args.every, args.expression)
    print(verdicts.table())
    if args.json:
        said = {"facts": environment.facts(), "name": args.name, "every": args.every, "found": verdicts.found}
        args.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
