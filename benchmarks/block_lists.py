"""Masks that go by lists of blocks, with other blocks and other kernels that make the lists: the call, the lists alone, the dense kernel.

    python -m benchmarks.block_lists --compile      into the cache on disk
    python -m benchmarks.block_lists --json out/block_lists.json
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import fcgen as fc
from benchmarks.timing import Checked, graph_times
from benchmarks.variants import Case, cases, error
from fcgen import masks
from fcgen.attend import blocks, calls, variants
from fcgen.errors import FcError

NAMES = ("documents, causal", "first keys and a window")
#: rows and keys of a block, warps of the kernel that finds them, into how many parts the keys fall
WAYS = [((128, 128), warps, parts) for warps in (4, 8) for parts in (4, 8, 16)]


def with_way(block: tuple[int, int], warps: int, parts: int) -> None:
    """From here on calls have such blocks, and lists are made by so many warps for so many parts."""
    tiles = fc.Schedule(tiles={"ROWS": block[0], "KEYS": block[1]}, warps=warps)
    blocks._own = lambda _: tiles  # type: ignore[assignment]
    blocks._block = lambda _: block  # type: ignore[assignment]
    blocks.PARTS = parts
    variants._kept.clear()
    calls.kinds.clear()
    calls.last = None


def compile_one(job: tuple[int, str, tuple[int, int], int, int]) -> str:
    d, name, block, warps, parts = job
    os.environ["FCGEN_CHECK"] = "0"
    with_way(block, warps, parts)
    case = next(c for c in cases(d) if c.name == name)
    try:
        case.run()
        lists(case, block)
    except FcError as e:
        return f"{job}: {str(e)[:200]}"
    return ""


def lists(case: Case, block: tuple[int, int]) -> Any:
    mask = case.options["mask"]
    n = case.q.shape[2]
    return fc.block_lists(mask & masks.causal() if case.options.get("causal") else mask, 1, 1, n, n, case.q, block=block)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ["FCGEN_CHECK"] = "0"
    jobs = [(d, name, *way) for d in (64, 128) for name in NAMES for way in WAYS]
    if args.compile:
        with multiprocessing.get_context("spawn").Pool(8) as pool:
            print("\n".join(filter(None, pool.map(compile_one, jobs, chunksize=1))), flush=True)
        return 0
    table: dict[str, dict[str, float]] = {}
    for d, name, block, warps, parts in jobs:
        case = next(c for c in cases(d) if c.name == name)
        with_way(block, warps, parts)
        try:
            worst = error(case, case.run())
            if not worst < 1e-2:
                print(f"WRONG {d} {name} {block} {warps}: {worst}", flush=True)
                continue
            dense = functools.partial(fc.attention, case.q, case.k, case.v, causal=True)
            timed = [Checked("call", case.run, worst, worst), Checked("lists", functools.partial(lists, case, block), 0.0, 0.0),
                     Checked("dense", dense, 0.0, 0.0)]
            times = {n: t.ms for n, t in graph_times(timed, 2, 5, 1).items()}
        except FcError as e:
            print(f"D={d} {name} {block} {warps}: {str(e)[:160]}", flush=True)
            continue
        table[f"D={d} {name}, {block[0]} x {block[1]}, {warps} warps, {parts} parts"] = times
        told = " ".join(f"{n} {ms:.4f}" for n, ms in times.items())
        print(f"D={d} {name:24} {block} {warps:2} warps {parts:2} parts: {told}", flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
