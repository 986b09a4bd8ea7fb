"""What a tile of rows costs besides its keys: a window's time by its width, with many schedules, on one GPU.

    python -m benchmarks.windows --compile                       into the cache on disk (no GPU)
    python -m benchmarks.windows --json out/windows.json

Per schedule: milliseconds at each width; from these, by a straight line, how many steps of 64 keys are what a tile of rows costs beside
them (`start`), and how long a step of all multiprocessors takes. `ideal` is the dense causal kernel's time, scaled by what is seen.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fcgen as fc
from benchmarks.candidates import FEW
from benchmarks.environment import facts
from benchmarks.pool import why_not
from benchmarks.timing import Checked, graph_times
from benchmarks.variants import Case, error, tensors
from fcgen import masks
from fcgen.attend.forward import compiled
from fcgen.attend.variants import Choice, functions
from fcgen.kernels.hopper_schedules import pick

KEYS = 32768
WIDTHS = (512, 1024, 2048)


def ways(d: int) -> Iterator[fc.Schedule]:
    base = pick(d, "part", KEYS, KEYS, 1024 // d, 132).schedule
    rings = ((2, 3), (2, 4), (2, 6), (1, 6), (2, 8)) if d == 64 else ((2, 3), (2, 4), (1, 4), (1, 5))
    with_tiles = lambda m, n, q, k, **more: replace(base, tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=m // 16,
                                                    stages={"q": q, "k": k, "v": k}, **more)
    for q, k in rings:
        yield with_tiles(192, 64, q, k)
        yield with_tiles(192, 64, q, k, split="loops")
    changes: tuple[dict[str, Any], ...] = (
        {"own_rows": False}, {"epilogue": "tma"}, {"tokens": True}, {"persistent": "static"}, {"l2": 0}, {"l2": 8}, {"from_end": ()},
        {"ones": ()}, {"late": (), "ones": ()}, {"hints": True})
    for change in changes:
        yield with_tiles(192, 64, *rings[2], **change)
    for n in (32, 48, 80, 96, 128):
        yield with_tiles(192, n, 2 if d == 64 else 1, 4 if d == 64 and n > 64 else 6 if n < 64 else 3)
    turns: tuple[dict[str, Any], ...] = ({}, {"tokens": True}, {"tokens": True, "split": "loops"})
    for n in (64, 96, 128):
        for change in turns:
            yield with_tiles(128, n, 2, 6 if d == 64 and n < 128 else 5 if n <= 64 and d == 128 else 3 if d == 64 else 2, **change)
    for n in (32, 64):
        yield with_tiles(128, n, 1, 4 if d == 64 else 2, min_blocks=2, ones=())
        yield with_tiles(64, n, 1, 4 if d == 64 else 2, min_blocks=3 if d == 64 else 2)


def fits(job: tuple[int, str]) -> tuple[int, str, str]:
    """Why a schedule's program does not compile without spills, or nothing. It is in the cache on disk then."""
    os.environ["FCGEN_CHECK"] = "0"
    d, text = job
    choice = Choice("sm_90a", fc.Schedule.parse(text), True, None, "")
    given = functions(mask=masks.window(1024, 0))
    return (*job, why_not(lambda: compiled.__wrapped__("f16", d, d, "none", False, *choice, False, given), FEW))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ["FCGEN_CHECK"] = "0"
    jobs = [(d, str(s)) for d in map(int, args.heads.split(",")) for s in ways(d)]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        found = pool.map(fits, jobs, chunksize=1)
    if args.compile:
        for d, text, why in found:
            print(f"{d} {why or 'fits':50.90} {text}", flush=True)
        return 0
    table: dict[str, Any] = {"environment": facts()}
    for d in dict.fromkeys(d for d, _ in jobs):
        table[f"D={d}"] = race(d, [text for at, text, why in found if at == d and not why])
        if args.json:
            Path(args.json).write_text(json.dumps(table, indent=1))
    return 0


def race(d: int, wanted: list[str], most: int = 25) -> dict[str, Any]:
    x = tensors(1, 1024 // d, KEYS, d)
    calls, good = [Checked("dense", functools.partial(fc.attention, *x, causal=True), 0.0, 0.0)], []
    for name in ("the library's", *wanted):
        schedule = fc.Schedule.parse(name) if name in wanted else None
        runs = {w: functools.partial(fc.attention, *x, mask=masks.window(w, 0), schedule=schedule) for w in WIDTHS}
        try:
            worst = error(Case("", *x, seen=lambda b, h, i, j: (j <= i) & (j >= i - 1024)), runs[1024]())
        except fc.FcError as e:
            print(f"D={d} {name}: {str(e)[:160]}", flush=True)
            continue
        if not worst < 1e-2:
            print(f"WRONG D={d} {name} {worst}", flush=True)
            continue
        calls += [Checked(f"{w}/{name}", run, worst, worst) for w, run in runs.items()]
        good.append(name)
    samples = {n: t.ms for n, t in graph_times(calls, 3, 5, 1).items()}
    ideals = [samples["dense"] * (w + 1) / (KEYS / 2) for w in WIDTHS]
    print(f"D={d}: dense causal {samples['dense']:.3f} ms; ideal at {WIDTHS}: {' '.join(f'{t:.4f}' for t in ideals)}", flush=True)
    out = {}
    for n, name in enumerate(sorted(good, key=lambda n: samples[f"1024/{n}"])):
        ms = [samples[f"{w}/{name}"] for w in WIDTHS]
        step = (ms[2] - ms[0]) / (WIDTHS[2] - WIDTHS[0]) * 64
        out[name] = {"ms": ms, "step": step, "start": ms[1] / step - 1025 / 64, "ratio": ms[1] / ideals[1]}
        if n < most or name == "the library's":
            print(f"{' '.join(f'{t:.4f}' for t in ms)}  ratio {ms[1] / ideals[1]:.3f} step {step * 1e3:5.2f} us "
                  f"start {out[name]['start']:5.2f}  {short(name)}", flush=True)
    return {"dense": samples["dense"], "found": out}


def short(name: str) -> str:
    for word in ("math=wgmma, copy=tma, ", "compare_bits=True, ", "vote=True, ", "BLOCK_", ", pdl=True", "late=acc, "):
        name = name.replace(word, "")
    return name


if __name__ == "__main__":
    sys.exit(main())
