"""Masks that go by lists of blocks, with other blocks, tiles and rings: the call, the lists alone, the dense kernel.

    python -m benchmarks.block_lists --compile      into the cache on disk
    python -m benchmarks.block_lists --json out/block_lists.json
    python -m benchmarks.block_lists --elements     masks that are asked about every element: their lists, by so many warps, and the call
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

import numpy as np

import fcgen as fc
from benchmarks.pool import why_not
from benchmarks.timing import Checked, graph_times
from benchmarks.variants import cases, error
from fcgen import masks
from fcgen.attend import blocks, calls, variants
from fcgen.attend.variants import Choice, functions
from fcgen.errors import FcError
from fcgen.kernels.hopper_schedules import pick

NAME = "documents, causal"


def schedules(d: int) -> Iterator[fc.Schedule]:
    """Tiles are the blocks of the lists."""
    base = replace(pick(d, "part", 8192, 8192, 4096 // d, 132).schedule, from_end=(), split="loops")
    for m, n, q, k, change in (
            (128, 128, 2, 3, {}), (128, 128, 2, 3, {"tokens": True}), (128, 128, 1, 2, {"tokens": True}), (128, 64, 2, 5, {}),
            (128, 64, 2, 5, {"tokens": True}), (128, 64, 2, 3, {"l2": 0}), (192, 64, 2, 3, {}), (192, 64, 2, 5, {}), (192, 128, 2, 3, {}),
            (64, 64, 1, 4, {"min_blocks": 3 if d == 64 else 2}), (64, 128, 1, 2, {"min_blocks": 2})):
        yield replace(base, tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=m // 16, stages={"q": q, "k": k, "v": k}, **change)  # type: ignore[arg-type]


def block_of(schedule: fc.Schedule) -> tuple[int, int]:
    tiles = dict(schedule.tiles)
    return tiles["BLOCK_M"], tiles["BLOCK_N"]


def fits(job: tuple[int, str]) -> tuple[int, str, str]:
    """Why a schedule's program does not compile with few spills, or nothing. It is in the cache on disk then."""
    os.environ["FCGEN_CHECK"] = "0"
    d, text = job
    schedule, ids = fc.Schedule.parse(text), np.zeros(8192 + 4, np.int32)
    first = -(ids.__array_interface__["data"][0] // 4) % 4
    given = functions(mask=masks.documents(ids[first:first + 8192]))
    facts = "f16", d, d, "causal_top_left", False
    choice = Choice("sm_90a", schedule, True, None, "")
    return (*job, why_not(lambda: blocks._over_lists(facts, given, choice, True, block_of(schedule), ("LSE",)), 60))


def elements(json_file: str | None) -> int:
    """Lists that are checked against the mask, of 8192 rows and keys."""
    import torch

    n, block, table = 8192, (128, 128), dict[str, float]()
    q, k, v = (torch.randn(1, 16, n, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    some = (torch.rand(64, 64, device="cuda") < 0.3).repeat_interleave(128, 0).repeat_interleave(128, 1).to(torch.int8)
    i, j = torch.arange(n, device="cuda")[:, None], torch.arange(n, device="cuda")
    of: dict[str, tuple[Any, Any]] = {
        "a tensor of both": (lambda b, h, i, j: some[i, j] == 1, some == 1),
        "a tensor of both, causal": (lambda b, h, i, j: (some[i, j] == 1) & (j <= i), (some == 1) & (j <= i)),
        "bits of both": (lambda b, h, i, j: ((i ^ j) & 1024 == 0) & (some[0, j] >= 0), (i ^ j) & 1024 == 0)}
    own, arch = blocks._own, variants._arch(0)
    for name, (mask, seen) in of.items():
        calls_of: list[Checked] = []
        tiles = seen.reshape(64, 128, 64, 128).transpose(1, 2)
        some_seen, all_seen = tiles.any(-1).any(-1), tiles.all(-1).all(-1)
        for warps in (4, 8, 16):
            blocks._own = lambda b, warps=warps: replace(own(b), warps=warps)  # type: ignore[assignment, misc]
            variants._kept.clear()
            given = functions(mask=mask)
            run = functools.partial(blocks._made, blocks._exact(given, arch, block, None), given, arch, (1, 1, n, n), q, block, None)
            lists = run()  # compiled with these warps
            for r in range(64):
                want = [2 * c + int(all_seen[r, c]) for c in range(64) if some_seen[r, c]]
                assert lists.entries[0, 0, r, :int(lists.counts[0, 0, r])].tolist() == want, (name, warps, r)
            calls_of.append(Checked(f"lists, {warps} warps", run, 0.0, 0.0))
        blocks._own = own
        call = functools.partial(fc.attention, q, k, v, mask=mask)
        want = torch.nn.functional.scaled_dot_product_attention(*(x[:, :1].double() for x in (q, k, v)), attn_mask=seen)
        wrong = float((torch.nan_to_num(want) - call()[:, :1].double()).abs().max())
        assert wrong < 4e-3, (name, wrong)
        calls_of += [Checked("the call", call, wrong, wrong),
                     Checked("dense", functools.partial(fc.attention, q, k, v), 0.0, 0.0)]
        for what, t in graph_times(calls_of, 3, 7, 1).items():
            table[f"{name}: {what}"] = t.ms
            print(f"{name:28} {what:18} {t.ms * 1e3:8.1f} us", flush=True)
    if json_file:
        Path(json_file).write_text(json.dumps(table, indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--json")
    parser.add_argument("--elements", action="store_true")
    args = parser.parse_args()
    os.environ["FCGEN_CHECK"] = "0"
    if args.elements:
        return elements(args.json)
    jobs = [(d, str(s)) for d in (64, 128) for s in schedules(d)]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        found = pool.map(fits, jobs, chunksize=1)
    if args.compile:
        for d, text, why in found:
            print(f"{d} {why or 'fits':50.90} {text}", flush=True)
        return 0
    own = blocks._block
    table: dict[str, float] = {}
    for d in (64, 128):
        case = next(c for c in cases(d) if c.name == NAME)
        n, calls_of = case.q.shape[2], []
        for text in ("", *(t for at, t, why in found if at == d and not why)):
            schedule = fc.Schedule.parse(text) if text else None
            blocks._block = own if schedule is None else functools.partial(lambda b, *_: b, block_of(schedule))
            variants._kept.clear()
            calls.kinds.clear()
            calls.last = None
            try:
                run = functools.partial(case.run, schedule)
                worst = error(case, run())
                if not worst < 1e-2:
                    print(f"WRONG {d} {text}: {worst}", flush=True)
                    continue
                one = graph_times([Checked("", run, worst, worst)], 2, 3, 1)[""].ms
                calls_of.append((one, text))
            except (FcError, AssertionError) as e:
                print(f"D={d} {text}: {str(e)[:160]}", flush=True)
        blocks._block = own
        mask = case.options["mask"] & masks.causal()
        lists = functools.partial(fc.block_lists, mask, 1, 1, n, n, case.q)
        dense = functools.partial(fc.attention, case.q, case.k, case.v, causal=True)
        times = {k: t.ms for k, t in graph_times([Checked("lists of every element", lists, 0.0, 0.0), Checked("dense", dense, 0.0, 0.0)],
                                                 2, 5, 1).items()}
        print(f"D={d} {' '.join(f'{k} {ms:.4f}' for k, ms in times.items())}", flush=True)
        for ms, text in sorted(calls_of)[:14] + [(ms, "the library's") for ms, text in calls_of if not text]:
            print(f"D={d} {ms:.4f}  {text}", flush=True)
        table |= {f"D={d} {text or 'the library'}": ms for ms, text in calls_of}
        if args.json:
            Path(args.json).write_text(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
