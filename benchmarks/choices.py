"""What `fc.schedule_for` chooses for attention's forward pass, beside the library's tuned schedules: rates, and what the model says.

    python -m benchmarks.choices --json out/choices.json
    python -m benchmarks.choices --cells sm_90a:128:causal:4k --more 8      with the 8 next best of the model
    python -m benchmarks.choices --compile-only                            which compile without spills; needs no GPU

Every kernel is compared with float64 before it is timed, all of a cell in turns. `model` is the tuned schedule's cycles over the
candidate's as the model has them: where that and the ratio of the rates differ, `backends/targets/rates.py` or `build/choose.py` is wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import fcgen as fc
from fcgen.build import compiler
from fcgen.build.choose import Chooser, Plan
from fcgen.build.workload import Probe, Workload
from fcgen.ir.types import DTYPES as TYPES
from fcgen.kernels.attention import VARIANTS, attention

from .cells import DTYPES, Cell, Inputs, length, number
from .environment import facts
from .peers import Call, swap
from .pool import LAZY, Job, build_all, processes, write_json
from .search_schedules import Search, refusal, shipped
from .timing import geomean

CELLS = ",".join([f"sm_90a:{d}:{mask}:4k" for d in (64, 128, 256) for mask in ("full", "causal")]
                 + ["sm_90a:64:full:1k", "sm_90a:128:causal:1k", "sm_90a:512:full:4k", "sm_90a:512:causal:4k"]
                 + [f"sm_90:{d}:{mask}:4k" for d in (64, 128, 256) for mask in ("full", "causal")])


class Where(NamedTuple):
    arch: str
    cell: Cell

    @classmethod
    def parse(cls, text: str) -> Where:
        arch, d, mask, s = text.split(":")
        return cls(arch, Cell(int(d), number(s), {"full": False, "causal": True}[mask]))

    def __str__(self) -> str:
        return f"{self.arch} {self.cell}"


def chooser(w: Where) -> Chooser:
    """The search for a cell."""
    c = w.cell
    binding = {**VARIANTS["plain"], "T": TYPES["f16"], "D": c.d, "E": c.d, "mask": c.mask, "lazy": LAZY}
    sizes = {"B": c.batch, "H": c.heads, "G": c.heads, "M": c.s, "N": c.s}
    probe = Probe({c.d})
    return Chooser(Workload(attention.trace(probe, **binding), dict(probe), sizes), compiler.target(w.arch),
                   lambda tiles: attention.trace(tiles, **binding))


def plan_of(s: fc.Schedule, names: Sequence[str]) -> Plan:
    """How the model sees a schedule."""
    return Plan(tuple((n, s.tile(n) or 0) for n in names), s.warps, s.slots, s.math if isinstance(s.math, str) else "mma", s.hold_a)


def candidates(w: Where, more: int, given: Sequence[str]) -> dict[str, tuple[str, float]]:
    """schedule -> (what it is, the model's cycles)."""
    search = chooser(w)
    names = list(search.load.names)
    cycles = lambda s: search.estimate(plan_of(s, names)).cycles
    out: dict[str, tuple[str, float]] = {}
    mine = [fc.Schedule.parse(text) for d, _, text in (t.partition(":") for t in given) if int(d) == w.cell.d]
    mine = [s for s in mine if s.math != "wgmma" or search.rates.wgmma]
    for kind, s in [("tuned", shipped(w.arch, w.cell.d, w.cell.mask)), ("chosen", search.choose()[0]), *(("given", s) for s in mine)]:
        out.setdefault(str(s), (kind, cycles(s)))
    near = sorted((p for p in search.plans() if search._fits(p)), key=lambda p: search.estimate(p).cycles)
    kinds = {(p.tiles, p.warps, p.math) for t in out for p in [plan_of(fc.Schedule.parse(t), names)]}
    for p in near:
        if more and (p.tiles, p.warps, p.math) not in kinds:
            kinds.add((p.tiles, p.warps, p.math))
            try:
                s, _ = search.lowered(p)
            except fc.FcError:
                continue
            out.setdefault(str(s), ("next", search.estimate(p).cycles))
            more -= 1
    return out


def jobs_of(w: Where, found: Sequence[str], dtype: str) -> dict[str, Job]:
    schedules = {t: fc.Schedule.parse(t) for t in found}
    return {t: Job(s, w.cell.d, w.cell.d, w.cell.mask, DTYPES[dtype], LAZY if s.vote or s.skip_ones else 0.0, "plain", w.arch)
            for t, s in schedules.items()}


def sdpa(x: Inputs) -> Call:
    """What PyTorch chooses."""
    import torch

    q, k, v = x.bhsd
    return Call(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=x.causal, scale=x.scale), swap)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=CELLS, help="arch:head size:full or causal:length, with commas between")
    parser.add_argument("--more", type=int, default=3, help="how many others of the model's best to time")
    parser.add_argument("--schedule", action="append", default=[], metavar="D: TEXT", help="one more candidate for a head size")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    table: list[dict[str, Any]] = []
    problems: list[str] = []
    cells = [Where.parse(text) for text in args.cells.split(",")]
    with ProcessPoolExecutor(processes(), mp_context=multiprocessing.get_context("spawn")) as executor:
        every = list(executor.map(candidates, cells, [args.more] * len(cells), [args.schedule] * len(cells)))
    jobs = [jobs_of(w, list(found), args.dtype) for w, found in zip(cells, every)]
    made = build_all(j for of in jobs for j in of.values())
    for w, found, of in zip(cells, every, jobs):
        search = Search(w.cell.d, w.cell.causal, [w.cell.s], w.arch, args.dtype, args.rounds)
        said = {t: refusal(made[j]) for t, j in of.items()}
        search.good = {t: made[j] for t, j in of.items() if said[t] is None}
        problems += [f"{w}: {t}: {said[t]}" for t, (kind, _) in found.items() if said[t] and kind in ("tuned", "chosen")]
        if args.compile_only:
            print(*(f"{w!s:28} {kind:7} {cycles:10.0f} cycles  {said[t] or ''} {t}" for t, (kind, cycles) in found.items()), sep="\n")
            continue
        search.race(w.cell.s, list(search.good), {"sdpa": sdpa} if w.cell.d > 256 else {})  # FA3 and cuDNN end there
        rate = {r["name"]: r["tflops"] for r in search.rows}
        first = next(iter(found))
        if "sdpa" in rate:
            print(f"{w!s:28} {'PyTorch':7} {rate['sdpa']:6.0f} TFLOP/s")
        for t, (kind, cycles) in found.items():
            if t in rate:
                ratio, model = rate[t] / rate.get(first, rate[t]), found[first][1] / cycles
                table.append({"cell": str(w), "kind": kind, "schedule": t, "tflops": rate[t], "ratio": ratio, "model": model,
                              "cycles": cycles})
                print(f"{w!s:28} {kind:7} {rate[t]:6.0f} TFLOP/s  {ratio:.3f}  model {model:.3f}  {t}", flush=True)
    ratios = [r["ratio"] for r in table if r["kind"] == "chosen" and r["ratio"] != 1.0]
    print(f"chosen over tuned: geometric mean {geomean(ratios):.3f}, least {min(ratios):.3f}" if ratios else "nothing was timed")
    print("\n".join(problems) or "all that was chosen compiles and is right")
    write_json(args.json, {"part": "choices", "environment": facts(), "table": table, "problems": problems, "length": length(4096)})
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
