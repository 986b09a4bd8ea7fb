"""Attention forward on Hopper: fcgen beside FlashAttention-3, cuDNN, PyTorch's flash attention, FlexAttention, Mosaic GPU and Triton.

    python -m benchmarks.hopper_forward --fa3 .peers --json out/forward.json --plots out      all 36 cells, and the small shape
    python -m benchmarks.hopper_forward --cells D128:causal,D64:S16k --peers fcgen,fa3,cudnn --budget-s 120
    python -m benchmarks.hopper_forward --cells D128 --schedule "tiles={BLOCK_M: 128, BLOCK_N: 64}, stages=2"

Every result is compared with float64 first (cells.py), into memory full of NaN, and only right ones get a rate. Within a cell everyone is
timed in turns on a warm board; fcgen's output must still be the same bits after that. FLOPs are 4 B H S S D, half if causal.
Inputs and output of a cell are 256 MB, so that no launch finds much of them in the L2.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import fcgen as fc

from . import peers as peers_of
from .ceilings import ceilings, under_load
from .cells import BAD, DTYPES, Cell, Errors, Inputs, Reference, choose, inputs, length, poison
from .environment import facts
from .peers import BEST, Call, Peer, reason
from .pool import warm_library, write_json
from .timing import Checked, Time, finishes, geomean, graph_times, round_robin

#: milliseconds of work of one candidate in one turn, at TYPICAL FLOP/s
TURN, TYPICAL = 10.0, 5e14
SMALL = Cell(64, 512, False, b=1, h=8)


def launches(cell: Cell) -> int:
    return max(2, min(60, round(TURN * 1e-3 / (cell.flops / TYPICAL))))


@dataclass
class Race:
    """The measurements of one run. table: one row per cell. wrong: what got no rate. left_out: the cells that time did not allow."""

    dtype: str
    peers: dict[str, Peer]
    absent: dict[str, str]
    rounds: int = 9
    schedule: str | None = None
    table: list[dict[str, Any]] = field(default_factory=list)
    small: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    json: str | None = None

    def check(self, cell: Cell, x: Inputs, reference: Reference, name: str) -> tuple[Call, Errors] | None:
        """Bind, run once, compare. None, with a line in `absent` or `wrong`, for what cannot be timed."""
        import torch

        try:
            call = self.peers[name](x)
            poison(x.q)
            out = call.run()
            if not finishes():
                raise Hung("the kernel does not end")
            got = call.output(out)
            torch.cuda.synchronize()
        except Exception as error:  # a peer may say in any way that it does not take this cell; the others go on
            self.failed(cell, name, error)
            return None
        errors = reference.errors(got) if tuple(got.shape) == tuple(x.q.shape) else BAD
        if problem := errors.problem(self.dtype):
            self.wrong.append(f"{cell} {name}: {problem}")
            return None
        return call, errors

    def failed(self, cell: Cell, name: str, error: Exception) -> None:
        """A line about it; raises Hung where nothing can go on after it."""
        if isinstance(error, Hung) or not alive():
            raise Hung(f"{name} {cell}: {reason(error)}") from error
        if name == "fcgen":
            self.wrong.append(f"{cell} fcgen: {reason(error)}")
        else:
            self.absent.setdefault(name, f"{cell}: {reason(error)}")

    def candidates(self, cell: Cell, x: Inputs, names: Sequence[str]) -> tuple[dict[str, Call], dict[str, Errors]]:
        reference = Reference(x)
        found = {n: f for n in names if (f := self.check(cell, x, reference, n)) is not None}
        return {n: f[0] for n, f in found.items()}, {n: f[1] for n, f in found.items()}

    def kept(self, cell: Cell, call: Call | None, before: Any, times: dict[str, Time]) -> None:
        """No rate for fcgen if its output changed between launches on the same inputs."""
        import torch

        if call is not None and not torch.equal(call.output(call.run()), before):
            self.wrong.append(f"{cell} fcgen: other bits after the timing than before it")
            times.pop("fcgen", None)

    def cell(self, cell: Cell) -> None:
        x = inputs(cell, self.dtype)
        calls, errors = self.candidates(cell, x, list(self.peers))
        if not calls:
            return
        mine = calls.get("fcgen")
        before = mine.output(mine.run()).clone() if mine else None
        n = launches(cell)
        ways = [Checked(name, c.run, errors[name].max, errors[name].rms, c.finish) for name, c in calls.items()]
        try:
            times = round_robin(ways, n, self.rounds, warm=max(1, n // 4))
        except RuntimeError as error:  # out of memory, say: the next cells may do
            return self.failed(cell, "fcgen", error)
        self.kept(cell, mine, before, times)
        board = under_load(next(iter(calls.values())).run, 4 * n)
        row: dict[str, Any] = {"d": cell.d, "s": cell.s, "b": cell.batch, "h": cell.heads, "mask": cell.mask, "dtype": self.dtype,
               "board": board, "results": {
            name: {"ms": t.ms, "spread": t.spread, "tflops": cell.flops / t.ms / 1e9, "max_error": errors[name].max,
                   "rms_error": errors[name].rms} for name, t in times.items()}}
        row["ratio"] = ratio(row["results"])
        self.table.append(row)
        print(text_of(row, list(self.peers)), flush=True)

    def small_shape(self) -> None:
        """Microseconds of the small shape, by replays of a CUDA graph."""
        names = [n for n in ("fcgen", "fcgen_serial", *BEST) if n in self.peers]
        for causal in (False, True):
            cell = Cell(SMALL.d, SMALL.s, causal, SMALL.b, SMALL.h)
            calls, errors = self.candidates(cell, inputs(cell, self.dtype), names)
            if not calls:
                continue
            try:
                times = graph_times([Checked(n, c.run, errors[n].max, errors[n].rms) for n, c in calls.items()])
            except RuntimeError as error:  # something that cannot be captured
                self.failed(cell, "fcgen", error)
                continue
            row: dict[str, Any] = {"d": cell.d, "s": cell.s, "b": cell.batch, "h": cell.heads, "mask": cell.mask, "dtype": self.dtype,
                   "us": {n: t.ms * 1e3 for n, t in times.items()}}
            self.small.append(row)
            write_json(self.json, self.to_json())
            print(f"B={cell.batch} H={cell.heads} S={cell.s} D={cell.d} {'causal' if causal else 'full':6} "
                  + "  ".join(f"{n} {us:.1f} us" for n, us in row["us"].items()), flush=True)

    def to_json(self) -> dict[str, Any]:
        return {"part": "hopper_forward", "environment": facts(), "dry": peers_of.STAND_IN, "dtype": self.dtype,
                "ceilings": self.limits, "schedule": self.schedule, "table": self.table, "small": self.small,
                "summary": summary_of(self.table), "spread": spread_of(self.table),
                "absent": self.absent, "problems": self.wrong, "left_out": self.left_out}


class Hung(RuntimeError):
    """A kernel that does not end, or broke the context. The process cannot go on."""


def alive() -> bool:
    """Is the GPU still there for this process?"""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


# ---- what is said about it ---------------------------------------------------------------------------------------------


def ratio(results: dict[str, Any], mine: str = "fcgen") -> float | None:
    """fcgen's rate over that of the faster of FA3 and cuDNN; None where either side has none."""
    best = [results[n]["tflops"] for n in BEST if n in results]
    return results[mine]["tflops"] / max(best) if best and mine in results else None


def header(names: Sequence[str]) -> str:
    return f"{'D':>4} {'S':>5} {'mask':6} " + " ".join(f"{n:>7}" for n in names) + "   fcgen / best of " + ", ".join(BEST)


def text_of(row: dict[str, Any], names: Sequence[str]) -> str:
    rates = " ".join(f"{row['results'][n]['tflops']:7.0f}" if n in row["results"] else f"{'-':>7}" for n in names)
    spread = max(r["spread"] for r in row["results"].values()) if row["results"] else 0.0
    board = f"  {row['board']['mhz']} MHz {row['board']['watts']} W" if row["board"] else ""
    found = f"{row['ratio']:.3f}" if row["ratio"] is not None else "  -  "
    mask = "causal" if row["mask"] != "none" else "full"
    return f"{row['d']:>4} {length(row['s']):>5} {mask:6} {rates}   {found}  (spread {spread:.0%}){board}"


def summary_of(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean of the ratios, of all cells, by head size and by mask, and the worst cell."""
    rated = [r for r in table if r["ratio"] is not None]
    if not rated:
        return {}
    mean = lambda rows: geomean(r["ratio"] for r in rows)
    worst = min(rated, key=lambda r: r["ratio"])
    serial = [x for r in table if (x := ratio(r["results"], "fcgen_serial")) is not None]
    alone = {"geomean_serial": geomean(serial), "worst_serial": min(serial)} if serial else {}
    return {"cells": len(rated), "geomean": mean(rated), **alone, "worst": {k: worst[k] for k in ("d", "s", "mask", "ratio")},
            "by_d": {d: mean([r for r in rated if r["d"] == d]) for d in sorted({r["d"] for r in rated})},
            "by_mask": {m: mean([r for r in rated if r["mask"] == m]) for m in sorted({r["mask"] for r in rated})}}


def spread_of(table: Sequence[dict[str, Any]], mine: str = "fcgen") -> dict[str, Any]:
    """(slowest - fastest) / median over the rounds of each cell: the median and the largest over cells, and where it is."""
    found = [(r["results"][mine]["spread"], str(Cell(r["d"], r["s"], r["mask"] != "none"))) for r in table if mine in r["results"]]
    if not found:
        return {}
    largest, at = max(found)
    return {"median": statistics.median(s for s, _ in found), "largest": largest, "at": at}


def print_summary(race: Race) -> None:
    for name, why in race.absent.items():
        print(f"without {name}: {why}")
    if s := summary_of(race.table):
        by = ", ".join([f"D={d} {m:.3f}" for d, m in s["by_d"].items()] + [f"{m} {r:.3f}" for m, r in s["by_mask"].items()])
        w = s["worst"]
        print(f"geometric mean of fcgen / best of {', '.join(BEST)}: {s['geomean']:.3f} over {s['cells']} cells ({by})\n"
              f"worst cell: D={w['d']} S={w['s']} {w['mask']} {w['ratio']:.3f}")
        if "geomean_serial" in s:
            print(f"without programmatic dependent launch: {s['geomean_serial']:.3f}, worst {s['worst_serial']:.3f}")
    if spread := spread_of(race.table):
        print(f"spread over rounds, fcgen: median {spread['median']:.1%}, largest {spread['largest']:.1%} at {spread['at']}")
    if race.left_out:
        print("no time for: " + ", ".join(race.left_out))
    print("\n".join(race.wrong) or "all that was timed was right")


def print_environment(found: dict[str, Any], limits: dict[str, float]) -> None:
    gpu = found["gpu"]
    print(f"{gpu.get('name', 'no GPU')}, driver {gpu.get('driver_version')}, {gpu.get('clocks.sm')} of {gpu.get('clocks.max.sm')}, "
          f"{gpu.get('power.draw')} of {gpu.get('power.limit')}; torch {found['torch']}, cuDNN {found['cudnn']}, NVRTC {found['nvrtc']}; "
          f"{found['date']}, commit {str(found['commit'])[:10]}{' and changes' if found['dirty'] else ''}")
    print("in this run: " + ", ".join(f"{k} {v:.0f}" for k, v in limits.items()), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", metavar="PATTERNS", help="D64, S16k, causal, full, joined by colons; several with commas (all)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--peers", default=",".join(peers_of.NAMES), help="%(default)s")
    parser.add_argument("--fa3", metavar="FOLDER", default=os.environ.get("FCGEN_PEERS", ".peers"), help="where get_fa3.sh put its files")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget-s", "--seconds", type=float, default=float("inf"), help="stop before a cell that would not end by then")
    parser.add_argument("--schedule", metavar="TEXT", help="this one instead of the library's choice, in every cell")
    parser.add_argument("--no-small", action="store_true", help="without the small shape")
    parser.add_argument("--json", metavar="PATH", help="written after every cell")
    parser.add_argument("--plots", metavar="FOLDER", help="rates by length, and a roofline, as PNG and SVG")
    args = parser.parse_args(argv)

    begin = time.monotonic()
    cells = choose(args.cells)
    schedule = fc.Schedule.parse(args.schedule) if args.schedule else None
    names = [n.strip() for n in args.peers.split(",")]
    race = Race(args.dtype, *peers_of.load(names, args.fa3, schedule), rounds=args.rounds, schedule=args.schedule, json=args.json)
    if "fcgen" in race.peers:
        heads = sorted({(c.d, c.mask) for c in cells} | (set() if args.no_small else {(SMALL.d, m) for m in ("none", "causal_top_left")}))
        failed = warm_library(heads, DTYPES[args.dtype], schedule, serial="fcgen_serial" in race.peers)
        race.wrong += failed
        print(f"{len(heads)} kernels in {time.monotonic() - begin:.0f} s, {len(failed)} of them refused", flush=True)
    race.limits = ceilings(args.dtype)
    print_environment(facts(), race.limits)
    if peers_of.STAND_IN:
        print("dry run: PyTorch on the CPU stands for FA3 and cuDNN, and no number here means anything")
    print(header(list(race.peers)), flush=True)
    slowest = 0.0
    try:
        for n, cell in enumerate(cells):
            start = time.monotonic()
            if start - begin + slowest > args.budget_s:
                race.left_out = [str(c) for c in cells[n:]]
                break
            race.cell(cell)
            slowest = max(slowest, time.monotonic() - start)
            write_json(args.json, race.to_json())
        if not args.no_small and time.monotonic() - begin <= args.budget_s:
            race.small_shape()
    except Hung as error:
        race.wrong.append(f"{error}; nothing was measured after it")
        write_json(args.json, race.to_json())
        print_summary(race)
        sys.stdout.flush()
        os._exit(3)
    print_summary(race)
    write_json(args.json, race.to_json())
    if args.plots and race.table:
        from .roofline import pictures

        print(pictures(race.to_json(), args.plots))
    return bool(race.wrong)


if __name__ == "__main__":
    sys.exit(main())
