"""Where compile time goes: every schedule the library ships for Hopper, each mask, from the spec to the loaded cubin, nothing cached.

    python -m benchmarks.compile_stages [--dtypes f16,bf16] [--lse both] [--repeats 5] [--seconds 120] [--json FILE]
    python -m benchmarks.compile_stages --pass backward       the kernel that training runs with these heads and masks

One row per kernel: the fastest of `--repeats` compilations in a process that has compiled before, in milliseconds of wall clock and of CPU,
split into tracing, every pass, verification (after each pass), the CUDA text, and NVRTC's own three parts (its `--time` option). With a GPU
the cubin is loaded as well. What the first kernel of a process costs on top (imports, loading NVRTC) is compile_time.py's `cold`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fcgen as fc
from fcgen.backends.budget import check_budget
from fcgen.backends.cuda.printer import print_cuda
from fcgen.build import compiler
from fcgen.errors import FcError
from fcgen.ir.core import Kernel
from fcgen.ir.text import print_kernel
from fcgen.ir.types import DTYPES
from fcgen.ir.verify import Known, verify
from fcgen.kernels import backward
from fcgen.kernels.attention import VARIANTS, attention
from fcgen.kernels.backward_schedules import candidates, turned
from fcgen.kernels.hopper_schedules import LAZY, ROWS, SMALL
from fcgen.passes import PIPELINE
from fcgen.runtime import nvrtc

from .environment import facts
from .pool import write_json

ARCH = "sm_90a"
MASKS = ("none", "causal_top_left", "causal_bottom_right")
#: seconds from spec to loaded cubin that we allow ourselves, by head size
LIMITS = {128: 0.8, 256: 1.0, 512: 1.5}
BACKWARD = 1.5
#: NVRTC's names for its parts -> ours
PARTS = {"CUDA C++ Frontend": "frontend", "NVVM Optimizer": "optimizer", "PTX Translation": "ptxas"}


@dataclass(frozen=True)
class Case:
    head: int
    schedule: fc.Schedule
    mask: str
    dtype: str = "f16"
    lse: bool = False
    sums: str = "corrected"
    backward: bool = False
    value: int = 0  # the value's head size, where it is another

    def __str__(self) -> str:
        m, n = (dict(self.schedule.tiles)[k] for k in ("BLOCK_M", "BLOCK_N"))
        return f"D={self.head} {m}x{n} {self.mask} {self.dtype}{' lse' if self.lse else ''}{' backward' if self.backward else ''}"

    @property
    def limit(self) -> float:
        return BACKWARD if self.backward else next(s for head, s in LIMITS.items() if self.head <= head)

    def trace(self) -> Kernel:
        facts = {"T": DTYPES[self.dtype], "D": self.head, "E": self.value or self.head, "mask": self.mask}
        if self.backward:
            return backward.backward.trace(dict(self.schedule.tiles), **facts, **turned(self.schedule))
        return attention.trace(dict(self.schedule.tiles), **VARIANTS["lse" if self.lse else "plain"], **facts, lazy=LAZY, sums=self.sums)


def cases(dtypes: tuple[str, ...], lse: tuple[bool, ...]) -> Iterator[Case]:
    """Each row of the tables at its largest head sizes, with the masks that it is for."""
    for dtype in dtypes:
        for with_lse in lse:
            for row in (*ROWS, *SMALL):
                for mask in MASKS:
                    if row.masks == "any" or row.masks == ("none" if mask == "none" else "causal"):
                        yield Case(row.head, row.schedule, mask, dtype, with_lse, row.sums, value=min(row.head, row.value))


def backward_cases(dtypes: tuple[str, ...]) -> Iterator[Case]:
    """The first of the schedules that training tries for its own kernel."""
    for dtype in dtypes:
        for head in (64, 128):
            for mask in MASKS[:2]:
                yield Case(head, candidates("backward", ARCH, head, uneven=mask != "none")[0], mask, dtype, backward=True)


class Watch:
    """Milliseconds of wall clock and CPU since the last `lap`, summed by name."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._at = (time.perf_counter(), time.process_time())

    def lap(self, name: str) -> None:
        now = (time.perf_counter(), time.process_time())
        for sums, a, b in ((self.wall, self._at[0], now[0]), (self.cpu, self._at[1], now[1])):
            sums[name] = sums.get(name, 0.0) + (b - a) * 1e3
        self._at = now


def compile_once(case: Case, folder: str) -> tuple[Watch, dict[str, int], dict[str, float]]:
    """(times by step, sizes, NVRTC's parts)."""
    to, schedule = compiler.target(ARCH), case.schedule
    watch = Watch()
    kernel = case.trace()
    watch.lap("trace")
    print_kernel(kernel)  # the cache's key
    watch.lap("IR text")
    known: Known = {}
    for p in PIPELINE:
        before, kernel = kernel, p.run(kernel, schedule, to)
        watch.lap(p.name)
        if kernel is not before:
            verify(kernel, known=known)
        watch.lap("verify")
    check_budget(kernel, to)
    cuda = print_cuda(kernel, to)
    watch.lap("CUDA text")
    print_kernel(kernel)
    watch.lap("IR text")
    binary, parts = _nvrtc(cuda, folder)
    watch.lap("NVRTC")
    if fc.gpu_available():
        from fcgen.runtime import module

        module.load(binary.cubin, cuda.name, cuda.smem_bytes, 0)
        watch.lap("load")
    return watch, {"cuda_lines": cuda.text.count("\n"), "cubin_bytes": len(binary.cubin)}, parts


def _nvrtc(cuda: Any, folder: str) -> tuple[nvrtc.Binary, dict[str, float]]:
    """NVRTC appends a line per part to the file it is told, and keeps what it compiled unless told not to (beside a driver, since 12.9);
    older ones do not know the options."""
    file = Path(folder) / "parts.csv"
    for options in ((f"--time={file}", "--no-cache"), (f"--time={file}",), ()):
        file.write_text("")
        try:
            binary = nvrtc.compile_cuda(cuda.text, ARCH, name=cuda.name, options=(*compiler.NVRTC_OPTIONS, *options))
        except FcError as error:
            if error.code != "compile/toolchain" or not options:
                raise
            continue
        rows = [line.split(",") for line in file.read_text().splitlines()]
        return binary, {PARTS[r[1].strip()]: float(r[2]) for r in rows if len(r) > 2 and r[1].strip() in PARTS}
    raise AssertionError("the last one has no options to be refused")


def measure(case: Case, repeats: int, folder: str) -> dict[str, Any]:
    runs = [compile_once(case, folder) for _ in range(repeats)]
    watch, sizes, parts = min(runs, key=lambda r: sum(r[0].wall.values()))
    total = {"wall": sum(watch.wall.values()), "cpu": min(sum(r[0].cpu.values()) for r in runs)}
    return {"d": case.head, "tiles": dict(case.schedule.tiles), "mask": case.mask, "dtype": case.dtype, "lse": case.lse,
            "pass": "backward" if case.backward else "forward", "wall_ms": total["wall"], "cpu_ms": total["cpu"],
            "limit_ms": case.limit * 1e3, **sizes,
            "steps_wall_ms": _rounded(watch.wall), "steps_cpu_ms": _rounded(watch.cpu), "nvrtc_parts_ms": parts}


def _rounded(times: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 2) for k, v in times.items()}


def cpu() -> str:
    """The processor's model, as Linux names it."""
    found = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{found[0]}, {len(found)} cores" if found else ""


def head_line() -> str:
    return (f"{'milliseconds':38} {'wall':>5} {'CPU':>5} | {'trace':>5} {'passes':>6} {'verify':>6} {'text':>5} | "
            f"{'NVRTC':>5} (front, optimizer, ptxas)")


def line(case: Case, row: dict[str, Any]) -> str:
    t = row["steps_cpu_ms"]
    passes = sum(t[p.name] for p in PIPELINE)
    parts = ", ".join(f"{v:.0f}" for v in row["nvrtc_parts_ms"].values())
    slow = f"   over {row['limit_ms']:.0f}" if row["wall_ms"] > row["limit_ms"] else ""
    return (f"{case!s:38} {row['wall_ms']:5.0f} {row['cpu_ms']:5.0f} | {t['trace']:5.1f} {passes:6.1f} {t['verify']:6.1f} "
            f"{t['CUDA text'] + t['IR text']:5.1f} | {t['NVRTC']:5.0f} ({parts}){slow}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="f16", help="f16, bf16 or both with a comma (%(default)s)")
    parser.add_argument("--lse", choices=("no", "yes", "both"), default="no", help="with the log-sum-exp (%(default)s)")
    parser.add_argument("--pass", dest="of", choices=("forward", "backward"), default="forward", help="which kernels (%(default)s)")
    parser.add_argument("--heads", help="only these head sizes, with commas between")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new row after that long")
    parser.add_argument("--json", metavar="PATH", help="written after every row")
    args = parser.parse_args(argv)

    begin, table, left_out = time.monotonic(), [], []
    said = {"part": "compile_stages", "cpu": cpu(), "busy": os.getloadavg()[0], "environment": facts(), "repeats": args.repeats,
            "loaded": fc.gpu_available()}
    wanted = {"no": (False,), "yes": (True,), "both": (False, True)}[args.lse]
    print(head_line())
    with tempfile.TemporaryDirectory() as folder:
        dtypes = tuple(args.dtypes.split(","))
        every = backward_cases(dtypes) if args.of == "backward" else cases(dtypes, wanted)
        for n, case in enumerate(c for c in every if not args.heads or str(c.head) in args.heads.split(",")):
            if time.monotonic() - begin > args.seconds:
                left_out.append(str(case))
                continue
            if n == 0:
                compile_once(case, folder)  # imports and tables of the first kernel
            table.append(measure(case, args.repeats, folder))
            print(line(case, table[-1]), flush=True)
            write_json(args.json, {**said, "table": table, "left_out": left_out})
    for limit in dict.fromkeys(r["limit_ms"] for r in table):
        slowest = max((r for r in table if r["limit_ms"] == limit), key=lambda r: r["wall_ms"])
        print(f"slowest of those that may take {limit:.0f} ms: {slowest['wall_ms']:.0f} ms, D={slowest['d']} {slowest['mask']}")
    if left_out:
        print(f"no time for {len(left_out)} kernels")
    write_json(args.json, {**said, "table": table, "left_out": left_out})
    return 0


if __name__ == "__main__":
    sys.exit(main())
