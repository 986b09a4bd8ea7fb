"""Attention forward against PyTorch's FlashAttention-2 backend: speed in one run, in turns, and error against float64.

    python -m benchmarks.attention_forward --json out.json             fp16, D 64 and 128, S 1k 4k 16k, causal and not
    python -m benchmarks.attention_forward --dtypes f16,bf16 --cudnn   more of it
    python -m benchmarks.attention_forward --sweep --json sweep.json   time many schedules, print the best
    python -m benchmarks.attention_forward --sweep --compile-only      which of them compile, and spill; needs no GPU
    python -m benchmarks.attention_forward --dry                       tiny, on the CPU, with the simulator: does the script work

16384 tokens in total (B = 16384 / S), H = 2048 / D heads, tensors stored [B, S, H, D]. FLOPs are 4 B H S^2 D, half of it when causal.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fcgen as fc

from . import environment
from .accuracy import compare, reference, sample_rows
from .library import LAZY, MASKS, Caller, Job, Report, library_job, precompile, report_failures
from .timing import Contest, CudaClock, HostClock, Plan, geomean

#: name -> instruction family. The schedule is the library's, unless SCHEDULES has one for (name, D, causal).
WAYS = {"mma": "mma", "wmma": "wmma"}
SCHEDULES: dict[tuple[str, int, bool], tuple[fc.Schedule, float]] = {}
BASE = "FA2"
#: name -> lowest geometric mean of FA2's time over its own; and how much larger than FA2's its largest error may be
REQUIRED = {"mma": 0.9, "wmma": 0.5}
ERROR_RATIO = 1.5
#: relative rms error above which a result is wrong, and not timed
LIMIT = {"f16": 2e-3, "bf16": 1.5e-2}
#: elements of score matrices in float64 beyond which a sample of rows is checked
CHECKED = 1 << 31


@dataclass(frozen=True)
class Shape:
    d: int
    s: int
    causal: bool
    dtype: str = "f16"
    tokens: int = 16384
    width: int = 2048

    @property
    def b(self) -> int:
        return max(1, self.tokens // self.s)

    @property
    def h(self) -> int:
        return max(1, self.width // self.d)

    @property
    def flops(self) -> float:
        return 4.0 * self.b * self.h * self.s**2 * self.d * (0.5 if self.causal else 1.0)

    @property
    def label(self) -> str:
        return f"D={self.d} S={self.s} {'causal' if self.causal else 'full'} {self.dtype}"


def job_of(name: str, shape: Shape, arch: str) -> Job:
    special = SCHEDULES.get((name, shape.d, shape.causal))
    if special is None:
        return library_job(WAYS[name], shape.d, shape.causal, arch, shape.dtype)
    return Job(shape.d, MASKS[shape.causal], special[0], arch, shape.dtype, lazy=special[1])


# ---- one shape -----------------------------------------------------------------------------------------------------


class Arena:
    """The tensors of one shape, their float64 reference, and a contest of ways to compute it. `check` runs a way on a poisoned output and
    compares; only what passes can be timed."""

    def __init__(self, shape: Shape, caller: Caller, plan: Plan, seed: int = 0, checked: int = CHECKED):
        import torch

        self.shape, self.caller = shape, caller
        dtype = torch.float16 if shape.dtype == "f16" else torch.bfloat16
        source = torch.Generator(device=caller.device).manual_seed(seed)
        stored = (shape.b, shape.s, shape.h, shape.d)
        self.q, self.k, self.v = (torch.randn(stored, generator=source, device=caller.device).to(dtype).transpose(1, 2) for _ in range(3))
        self.out = torch.empty_like(self.q)
        self.scale = shape.d**-0.5
        count = max(2, checked // (shape.b * shape.h * shape.s))
        self.ref = reference(self.q, self.k, self.v, mask=MASKS[shape.causal], rows=sample_rows(shape.s, count, seed))
        self.contest = Contest(HostClock() if caller.dry else CudaClock(), plan)

    @property
    def rows_checked(self) -> int:
        return int(self.ref.out.shape[2])

    def try_program(self, name: str, program: Any) -> bool:
        """Run a program of ours, check it, and enter it. False: its result is wrong."""
        run = self.caller.bind(program, Q=self.q, K=self.k, V=self.v, O=self.out, scale=self.scale)
        self.out.fill_(math.nan)
        run()
        return self._enter(name, run, self.out)

    def try_torch(self, name: str, backend: str) -> bool:
        import torch.nn.functional as F
        from torch.nn.attention import SDPBackend, sdpa_kernel

        which = SDPBackend.MATH if self.caller.dry else getattr(SDPBackend, backend)

        def run() -> Any:
            with sdpa_kernel(which):
                return F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.shape.causal, scale=self.scale)

        return self._enter(name, run, run())

    def _enter(self, name: str, run: Any, result: Any) -> bool:
        self.contest.add(name, run)
        error = compare(self.ref.take(result), self.ref.out)
        if not bool(result.isfinite().all()):  # also the rows that the reference was not computed for
            error = replace(error, max_abs=math.inf, rms=math.inf, relative=math.inf)
        ok = self.contest.check(name, error, LIMIT[self.shape.dtype])
        if not ok:
            self.contest.drop(name)
        return ok


def measure(shape: Shape, jobs: Mapping[str, Job], reports: Mapping[Job, Report], caller: Caller, plan: Plan, *,
            cudnn: bool = False) -> dict[str, Any]:
    """One row of the table. Ways that are wrong or have no kernel appear with their `error` and without a time."""
    arena = Arena(shape, caller, plan)
    row: dict[str, Any] = {**asdict(shape), "b": shape.b, "h": shape.h, "flops": shape.flops, "rows_checked": arena.rows_checked,
                           "ways": {}}
    arena.try_torch(BASE, "FLASH_ATTENTION")
    if cudnn:
        try:
            arena.try_torch("cuDNN", "CUDNN_ATTENTION")
        except RuntimeError as error:
            row["ways"]["cuDNN"] = {"error": str(error).split("\n")[0]}
    for name, job in jobs.items():
        found = reports[job]
        row["ways"][name] = {"schedule": str(job.schedule), "lazy": job.lazy, **found.to_json()}
        if not found.error:
            arena.try_program(name, job.program())
    times = arena.contest.times()
    for name, error in arena.contest.errors.items():
        way = row["ways"].setdefault(name, {"error": ""})
        way.update(max_abs=error.max_abs, rms=error.rms, relative=error.relative)
        if name in times:
            way.update(times[name].to_json(), tflops=shape.flops / times[name].median / 1e12)
        else:
            way["error"] = way.get("error") or "wrong result"
    for way in row["ways"].values():
        if "us" in way and BASE in times:
            way["ratio"] = times[BASE].median / (way["us"] * 1e-6)
            way["error_ratio"] = way["max_abs"] / max(1e-30, row["ways"][BASE]["max_abs"])
    return row


# ---- tables --------------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """way -> geometric mean of the speed ratio, its lowest, the largest error ratio; and whether it holds what REQUIRED says."""
    out: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(n for r in rows for n in r["ways"]):
        found = [r["ways"].get(name, {}) for r in rows]
        timed = [w for w in found if "ratio" in w]
        entry: dict[str, Any] = {"shapes": len(timed), "missing": len(found) - len(timed), "geomean": geomean(w["ratio"] for w in timed),
                                 "lowest": min((w["ratio"] for w in timed), default=math.nan),
                                 "error_ratio": max((w["error_ratio"] for w in timed), default=math.nan)}
        if name in REQUIRED:
            entry["required"] = REQUIRED[name]
            fast = bool(timed) and not entry["missing"] and entry["geomean"] >= REQUIRED[name]
            entry["holds"] = fast and entry["error_ratio"] <= ERROR_RATIO
        out[name] = entry
    return out


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(n for r in rows for n in r["ways"]))
    head = f"{'shape':28}" + "".join(f"{n:>28}" for n in names)
    lines = [head, f"{'':28}" + "".join(f"{'TFLOP/s  ratio  max err  +-':>28}" for _ in names)]
    for r in rows:
        cells = []
        for n in names:
            w = r["ways"].get(n, {})
            cells.append(f"{w['tflops']:7.1f} {w.get('ratio', math.nan):6.3f} {w['max_abs']:8.1e} {w['spread']:4.0%}" if "tflops" in w
                         else (w.get("error") or "-")[:26])
        shape = Shape(r["d"], r["s"], r["causal"], r["dtype"])
        lines.append(f"{shape.label:28}" + "".join(f"{c:>28}" for c in cells))
    for n, e in summarise(rows).items():
        verdict = "" if "holds" not in e else f"   required {e['required']}: " + ("holds" if e["holds"] else "FAILS")
        missing = f", {e['missing']} missing" if e["missing"] else ""
        lines.append(f"{n:8} geometric mean {e['geomean']:.3f} x {BASE}, lowest {e['lowest']:.3f}, "
                     f"largest error {e['error_ratio']:.2f} x {BASE}'s over {e['shapes']} shapes{missing}{verdict}")
    return "\n".join(lines)


# ---- sweep ---------------------------------------------------------------------------------------------------------


def candidates(family: str) -> list[tuple[fc.Schedule, float]]:
    """Schedules of one family, each with its lazy threshold: tile sizes, warps, pipelining, and where the left operand lives. What does
    not fit is refused while compiling, before NVRTC."""
    out = []
    for m, warps in ((64, 2), (64, 4), (128, 4), (128, 8)):
        for n in (32, 48, 64, 96, 128):
            for flow in ({"stages": 1}, {"stages": 1, "ahead": True}, {"stages": 2}, {"stages": 3}):
                base = fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=warps, math=family, **flow)
                if family == "wmma":
                    out.append((replace(base, skip_ones=True), LAZY))
                else:
                    out += [(base, 0.0), (replace(base, hold_a=False), 0.0)]
    return out


def variations(schedule: fc.Schedule, lazy: float) -> list[tuple[fc.Schedule, float]]:
    """What else could make a good schedule better, one thing at a time."""
    out = [(replace(schedule, epilogue="direct" if schedule.epilogue == "smem" else "smem"), lazy),
           (replace(schedule, longest_first=not schedule.longest_first), lazy), (replace(schedule, defer=not schedule.defer), lazy),
           (replace(schedule, hold_a=not schedule.hold_a), lazy)]
    out += [(replace(schedule, min_blocks=n), lazy) for n in (2, 3, 4)]
    if lazy:
        out += [(replace(schedule, skip_ones=False), 0.0), (schedule, LAZY / 2)]
    else:
        out += [(replace(schedule, skip_ones=True), LAZY), (replace(schedule, skip_ones=True), 0.0)]
    return out


@dataclass
class Sweep:
    """Three rounds per head size and mask: all candidates at one length, variations of the best, the best of both at all lengths."""

    family: str
    heads: Sequence[int]
    masks: Sequence[bool]
    seqs: Sequence[int]
    dtype: str
    arch: str
    caller: Caller
    plan: Plan
    keep: int
    limit: int | None
    workers: int | None
    tokens: int
    width: int

    def jobs(self, d: int, causal: bool, pairs: Iterable[tuple[fc.Schedule, float]]) -> list[Job]:
        return list(dict.fromkeys(Job(d, MASKS[causal], s, self.arch, self.dtype, lazy=lazy) for s, lazy in pairs))

    def compile(self, jobs: Sequence[Job], result: dict[str, Any]) -> list[Job]:
        reports = precompile(jobs, self.workers)
        lines = report_failures(reports)
        print("\n".join([*lines[:41], *([f"  and {len(lines) - 41} more"] if len(lines) > 41 else [])]), flush=True)
        result["compiled"] += [{"d": j.d, "mask": j.mask, "schedule": str(j.schedule), "lazy": j.lazy, **r.to_json()}
                               for j, r in reports.items()]
        return [j for j in jobs if reports[j].usable]

    def race(self, shape: Shape, jobs: Sequence[Job], plan: Plan, rounds: int, result: dict[str, Any]) -> dict[Job, float]:
        """Speed ratios to FA2 of those that are right."""
        arena = Arena(shape, self.caller, plan)
        arena.try_torch(BASE, "FLASH_ATTENTION")
        names = {f"#{i}": j for i, j in enumerate(jobs)}
        for name, job in names.items():
            if not arena.try_program(name, job.program()):
                print(f"  WRONG {job.label}: {arena.contest.errors[name]}", flush=True)
        times = arena.contest.times(rounds=rounds)
        base = times.pop(BASE).median
        ratios = {}
        for name, t in times.items():
            job = names[name]
            ratios[job] = base / t.median
            result["timed"].append({**asdict(shape), "schedule": str(job.schedule), "lazy": job.lazy, "ratio": ratios[job],
                                    "tflops": shape.flops / t.median / 1e12, "relative": arena.contest.errors[name].relative,
                                    "error_ratio": arena.contest.errors[name].max_abs / max(1e-30, arena.contest.errors[BASE].max_abs),
                                    **t.to_json()})
        return ratios

    def run(self, compile_only: bool, save: Any) -> dict[str, Any]:
        result: dict[str, Any] = {"family": self.family, "compiled": [], "timed": [], "best": []}
        groups = [(d, c) for d in self.heads for c in self.masks]
        first = {g: self.jobs(*g, candidates(self.family)[:self.limit]) for g in groups}
        # what the library runs now always takes part
        for g in groups:
            first[g] = list(dict.fromkeys([library_job(self.family, *g, self.arch, self.dtype), *first[g]]))
        usable = set(self.compile([j for g in groups for j in first[g]], result))
        save(result)
        if compile_only:
            return result
        tune = min(self.seqs, key=lambda s: abs(s - 4096))
        quick = replace(self.plan, turn_s=self.plan.turn_s / 3)
        shape = lambda g, s: Shape(g[0], s, g[1], self.dtype, self.tokens, self.width)
        found: dict[Any, dict[Job, float]] = {}
        for g in groups:
            found[g] = self.race(shape(g, tune), [j for j in first[g] if j in usable], quick, 2, result)
            save(result)
        top = lambda g, n: sorted(found[g], key=lambda j: -found[g][j])[:n]
        more = {g: [j for t in top(g, 3) for j in self.jobs(*g, variations(t.schedule, t.lazy)) if j not in found[g]] for g in groups}
        usable = set(self.compile([j for g in groups for j in more[g]], result))
        for g in groups:
            again = [*top(g, 3), *(j for j in dict.fromkeys(more[g]) if j in usable)]
            found[g].update(self.race(shape(g, tune), again, quick, 3, result))
            save(result)
        for g in groups:
            final = {s: self.race(shape(g, s), top(g, self.keep), self.plan, self.plan.rounds, result) for s in self.seqs}
            ranked = sorted({j for r in final.values() for j in r}, key=lambda j: -geomean(r.get(j, 1e-9) for r in final.values()))
            print(f"\n## D={g[0]} {'causal' if g[1] else 'full'} {self.family}: geometric mean; x {BASE} at S = "
                  + ", ".join(map(str, self.seqs)))
            for j in ranked:
                mean = geomean(r.get(j, 1e-9) for r in final.values())
                print(f"  {mean:.3f}  " + " ".join(f"{r.get(j, math.nan):.3f}" for r in final.values()) + f"  {j.schedule}"
                      + (f", lazy={j.lazy:.3g}" if j.lazy else ""), flush=True)
                result["best"].append({"d": g[0], "causal": g[1], "schedule": str(j.schedule), "lazy": j.lazy, "geomean": mean,
                                       "ratios": {str(s): r.get(j) for s, r in final.items()}})
            save(result)
        return result


# ---- command -------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    numbers = lambda text: [int(x) for x in text.split(",")]
    p = argparse.ArgumentParser(prog="benchmarks.attention_forward", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--heads", type=numbers, default=[64, 128], help="head sizes")
    p.add_argument("--seqs", type=numbers, default=[1024, 4096, 16384])
    p.add_argument("--causal", choices=["both", "no", "yes"], default="both")
    p.add_argument("--dtypes", type=lambda t: t.split(","), default=["f16"])
    p.add_argument("--ways", type=lambda t: t.split(","), default=list(WAYS))
    p.add_argument("--tokens", type=int, default=16384)
    p.add_argument("--width", type=int, default=2048, help="heads x head size")
    p.add_argument("--cudnn", action="store_true")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--turn-ms", type=float, default=30.0)
    p.add_argument("--arch")
    p.add_argument("--workers", type=int)
    p.add_argument("--json", type=Path)
    p.add_argument("--require", action="store_true", help="exit code 1 where a required ratio or error does not hold")
    p.add_argument("--sweep", action="store_true")
    p.add_argument("--family", choices=["mma", "wmma"], default="mma", help="of the sweep")
    p.add_argument("--keep", type=int, default=8, help="schedules of a sweep that are timed at all lengths")
    p.add_argument("--limit", type=int, help="only the first candidates of a sweep")
    p.add_argument("--compile-only", action="store_true")
    p.add_argument("--dry", action="store_true", help="tiny, on the CPU, in the simulator")
    a = p.parse_args(argv)
    a.masks = {"both": [False, True], "no": [False], "yes": [True]}[a.causal]
    unknown = [w for w in a.ways if w not in WAYS] + [t for t in a.dtypes if t not in LIMIT]
    if unknown:
        p.error(f"unknown: {', '.join(unknown)}")
    if a.dry:
        a.seqs, a.tokens, a.width = [s // 128 for s in a.seqs[:2]], 32, max(a.heads)
        a.limit = min(a.limit or 3, 3)
    return a


def save_to(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    a = parse(argv)
    caller = Caller(a.dry or a.compile_only)
    arch = caller.arch(a.arch)
    plan = Plan.dry() if a.dry else Plan(rounds=a.rounds, turn_s=a.turn_ms / 1e3)
    result: dict[str, Any] = {"benchmark": "attention_sweep" if a.sweep else "attention_forward", "dry": a.dry, "arch": arch,
                              "before": environment.describe()}
    if a.sweep:
        sweep = Sweep(a.family, a.heads, a.masks, a.seqs, a.dtypes[0], arch, caller, plan, a.keep, a.limit, a.workers, a.tokens, a.width)
        found = sweep.run(a.compile_only, lambda part: save_to(a.json, {**result, **part}))
        save_to(a.json, {**result, **found, "after": environment.describe()})
        return 0
    shapes = [Shape(d, s, c, t, a.tokens, a.width) for t in a.dtypes for d in a.heads for c in a.masks for s in a.seqs]
    jobs = {shape: {name: job_of(name, shape, arch) for name in a.ways} for shape in shapes}
    reports = precompile([j for per in jobs.values() for j in per.values()], a.workers)
    print("\n".join(report_failures(reports)), flush=True)
    result["rows"] = []
    if not a.compile_only:
        for shape in shapes:
            result["rows"].append(measure(shape, jobs[shape], reports, caller, plan, cudnn=a.cudnn))
            save_to(a.json, result)
        print(table(result["rows"]))
    result.update(summary=summarise(result["rows"]), after=environment.describe())
    save_to(a.json, result)
    failed = [n for n, e in result["summary"].items() if not e.get("holds", True)]
    return 1 if a.require and failed and not a.dry else 0


if __name__ == "__main__":
    sys.exit(main())
