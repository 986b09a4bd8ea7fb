"""Parts of one run -> one file: `python -m benchmarks.merge FOLDER` reads FOLDER/parts/*.json and writes FOLDER/<date>-<gpu>.json.

Each part says what is wrong with it in `problems`; a step that failed without writing one is listed by `--failed`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .environment import facts
from .pool import write_json


def merge(parts: Iterable[dict[str, Any]], environment: dict[str, Any], failed: Iterable[str] = ()) -> dict[str, Any]:
    """{"environment", "parts": name -> part without its own environment, "failed": names}. A part with problems has failed."""
    by_name = {p["part"]: {k: v for k, v in p.items() if k not in ("part", "environment")} for p in parts}
    bad = {n for n, p in by_name.items() if p.get("problems")} | set(failed)
    return {"environment": environment, "parts": by_name, "failed": sorted(bad)}


def file_name(environment: dict[str, Any]) -> str:
    """2026-01-31-nvidia-h200.json"""
    gpu = environment["gpu"].get("name") or "no-gpu"
    return f"{environment['date'][:10]}-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--failed", nargs="*", default=[], metavar="STEP")
    args = parser.parse_args(argv)
    parts = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((args.folder / "parts").glob("*.json"))]
    environment = facts()
    merged = merge(parts, environment, args.failed)
    path = args.folder / file_name(environment)
    write_json(str(path), merged)
    print(f"{path}: {', '.join(merged['parts']) or 'nothing'}; failed: {', '.join(merged['failed']) or 'none'}")
    return bool(merged["failed"])


if __name__ == "__main__":
    sys.exit(main())
