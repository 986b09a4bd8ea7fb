"""Which schedule is fastest for a head size and a mask: many are compiled, checked and timed in turns beside FlashAttention-2.

    python -m benchmarks.sweep --json sweep.json                  mma, D 64 and 128, full and causal
    python -m benchmarks.sweep --family wmma --heads 64
    python -m benchmarks.sweep --grids --causal yes               how blocks come to their tiles, with the library's schedules
    python -m benchmarks.sweep --compile-only --arch sm_90        which of them fit, and spill; needs no GPU
    python -m benchmarks.sweep --dry-run --heads 64               all of it, tiny, on the CPU with the simulator and a host clock

Three steps per head size and mask: all candidates at one length, variations of the best, the best of both at every length. What spills is
left out, what is wrong is named and left out, and nothing is timed before its result was compared with float64 in this run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import fcgen as fc
from fcgen.kernels.schedules import pick

from .attention_forward import TOKENS, WIDTH, errors, flops, reference, sdpa
from .environment import facts
from .pool import LAZY, Job, Made, build_all, launcher, write_json
from .timing import Checked, Time, geomean, round_robin, summary

BASE = "fa2"
#: candidates whose largest error is more than this many times FlashAttention-2's are wrong
WRONG = 4.0
#: candidates of one round robin, so that a turn comes back while the board is in the same state
HEAT = 24

Candidate = tuple[fc.Schedule, float]


def candidates(family: str) -> list[Candidate]:
    """Schedules with their lazy threshold: tile sizes, warps, pipelining, and where the left operand lives. What does not fit is refused
    while compiling, before NVRTC."""
    out: list[Candidate] = []
    for m, warps in ((64, 2), (64, 4), (128, 4), (128, 8)):
        for n in (32, 48, 64, 96, 128):
            for stages, ahead in ((1, False), (1, True), (2, False), (3, False)):
                base = fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=warps, math=family, stages=stages, ahead=ahead)
                if family == "wmma":
                    out.append((replace(base, skip_ones=True), LAZY))
                else:
                    out += [(base, 0.0), (replace(base, hold_a=False), 0.0)]
    return out


def variations(schedule: fc.Schedule, lazy: float) -> list[Candidate]:
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


def grids(schedule: fc.Schedule, lazy: float) -> list[Candidate]:
    """How blocks come to their tiles, and how many there are on a multiprocessor."""
    ways = [("none", 1), *((how, blocks) for how in ("static", "dynamic") for blocks in (1, 2))]
    return [(replace(schedule, persistent=how, min_blocks=blocks, epilogue=e), lazy) for how, blocks in ways for e in ("smem", "direct")]


# ---- where it runs --------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """The GPU; or, for a dry run, the CPU with tiny tensors, the simulator, and times that mean nothing."""

    dry: bool = False
    tokens: int = TOKENS
    width: int = WIDTH

    def tensors(self, d: int, s: int, dtype: str) -> tuple[Any, Any, Any]:
        import torch

        torch.manual_seed(0)
        kind = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        shape = (max(1, self.tokens // s), s, max(1, self.width // d), d)
        made = [torch.randn(shape, device="cpu" if self.dry else "cuda").to(kind).transpose(1, 2) for _ in range(3)]
        return made[0], made[1], made[2]

    def bind(self, made: Made, job: Job, call: dict[str, Any]) -> Callable[[], Any]:
        if not self.dry:
            launch = launcher(made)
            return lambda: launch(call)
        return lambda: simulate(job, call)

    def base(self, q: Any, k: Any, v: Any, causal: bool) -> Callable[[], Any]:
        return sdpa("MATH" if self.dry else "FLASH_ATTENTION", q, k, v, causal)

    def sync(self) -> None:
        import torch

        if not self.dry:
            torch.cuda.synchronize()

    def times(self, checked: Sequence[Checked], launches: int, rounds: int) -> dict[str, Time]:
        if not self.dry:
            return round_robin(checked, launches, rounds)
        out = {}
        for c in checked:
            start = time.perf_counter()
            c.run()
            out[c.name] = summary([(time.perf_counter() - start) * 1e3])
        return out


def simulate(job: Job, call: dict[str, Any]) -> None:
    """A job on torch tensors of the CPU."""
    from .pool import program

    import torch  # isort: skip

    p = program(job)
    inputs = {n: x.float().numpy().astype("float16" if job.dtype == "f16" else "float32") if isinstance(x, torch.Tensor) else x
              for n, x in call.items() if "out" not in p.tile.flags.get(n, ())}
    for name, value in p.simulate(**inputs).items():
        call[name].copy_(torch.from_numpy(value.astype("float32")).to(call[name].dtype))


# ---- the sweep -------------------------------------------------------------------------------------------------------


@dataclass
class Sweep:
    """family, dtype, arch: what is compiled. keep: how many are timed at all lengths. best[d, mask]: (geometric mean, {S: ratio}, job)."""

    family: str
    arch: str
    machine: Machine
    dtype: str = "f16"
    heads: Sequence[int] = (64, 128)
    masks: Sequence[str] = ("none", "causal_top_left")
    lengths: Sequence[int] = (1024, 4096, 16384)
    keep: int = 8
    rounds: int = 7
    limit: int | None = None
    grids: bool = False
    built: dict[Job, Made] = field(default_factory=dict)
    compiled: list[dict[str, Any]] = field(default_factory=list)
    timed: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    best: dict[tuple[int, str], list[tuple[float, dict[int, float], Job]]] = field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[int, str]]:
        return [(d, mask) for d in self.heads for mask in self.masks]

    def jobs(self, group: tuple[int, str], pairs: Iterable[Candidate]) -> list[Job]:
        d, mask = group
        return list(dict.fromkeys(Job(s, d, d, mask, self.dtype, lazy, arch=self.arch) for s, lazy in pairs))

    def first(self, group: tuple[int, str]) -> list[Job]:
        """What the library runs now, and the candidates."""
        now = (pick(self.arch, group[0], self.family, group[1]), LAZY if self.family == "wmma" else 0.0)
        return self.jobs(group, [now, *(grids(*now) if self.grids else candidates(self.family))[:self.limit]])

    def compile(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that have a kernel which does not spill."""
        start = time.time()
        if fresh := [j for j in jobs if j not in self.built]:
            self.built.update(build_all(fresh))
        good = []
        for j in fresh:
            made = self.built[j]
            r = made.resources
            self.compiled.append({"d": j.d, "mask": j.mask, "schedule": str(j.schedule), "lazy": j.lazy, "error": made.error,
                                  **({"registers": r.registers, "spilled_bytes": r.spill_stores,
                                      "smem_bytes": made.built.facts.smem_bytes} if r else {})})
        good = [j for j in jobs if (r := self.built[j].resources) is not None and not r.spills]
        refused = [c for c in self.compiled[len(self.compiled) - len(fresh):] if c["error"]]
        print(f"{len(fresh)} kernels in {time.time() - start:.0f} s: {len(refused)} refused, "
              f"{len(jobs) - len(good) - len(refused)} spill, {len(good)} to time", flush=True)
        return good

    def race(self, group: tuple[int, str], s: int, jobs: Sequence[Job], rounds: int) -> dict[Job, float]:
        """FlashAttention-2's time over each right one's, `HEAT` of them in turns at a time."""
        d, mask = group
        q, k, v = self.machine.tensors(d, s, self.dtype)
        causal = mask != "none"
        want, sample = reference(q, k, v, causal)
        run = self.machine.base(q, k, v, causal)
        base = Checked(BASE, run, *errors(run(), want, sample))
        work = flops(q.shape[0], q.shape[1], s, d, causal)
        import torch

        o, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=q.device)
        call = {"Q": q, "K": k, "V": v, "O": o, "LSE": lse, "scale": d**-0.5}
        named: dict[str, Job] = {}
        checked = []
        for job in jobs:
            o.fill_(float("nan"))
            run = self.machine.bind(self.built[job], job, call)
            name = f"{job.schedule}, lazy={job.lazy:.3g}"
            try:
                run()
                self.machine.sync()
            except RuntimeError as error:  # the GPU may be lost to this process: say whose fault it is
                raise RuntimeError(f"D={d} S={s} {mask}: {name}") from error
            c = Checked(name, run, *errors(o, want, sample))
            if c.max_error is None or base.max_error is None or not c.max_error <= WRONG * base.max_error:
                self.wrong.append(f"D={d} S={s} {mask}: max error {c.max_error:.1e}, FA2's {base.max_error:.1e}: {c.name}")
                print("WRONG", self.wrong[-1], flush=True)
                continue
            named[c.name] = job
            checked.append(c)
        ratios: dict[Job, float] = {}
        launches = max(1, int(1e-3 / (work / 2.5e14)))
        for at in range(0, len(checked), HEAT):
            heat = checked[at:at + HEAT]
            times = self.machine.times([base, *heat], launches, rounds)
            for c in heat:
                job = named[c.name]
                ratios[job] = times[BASE].ms / times[c.name].ms
                self.timed.append({"d": d, "s": s, "mask": mask, "schedule": str(job.schedule), "lazy": job.lazy, "ms": times[c.name].ms,
                                   "spread": times[c.name].spread, "speed": ratios[job], "tflops": work / times[c.name].ms / 1e9,
                                   "max_error": c.max_error, "error_ratio": (c.max_error or 0.0) / (base.max_error or 1.0)})
        return ratios

    def run(self, save: Callable[[], None]) -> None:
        usable = set(self.compile([j for g in self.groups for j in self.first(g)]))
        save()
        tune = min(self.lengths, key=lambda s: abs(s - 4096))
        found = {g: dict.fromkeys([j for j in self.first(g) if j in usable], 0.0) for g in self.groups}
        if self.grids:
            self.finish(found, save)
            return
        for g in self.groups:
            found[g] = self.race(g, tune, list(found[g]), 3)
            save()
        top = lambda g, n: sorted(found[g], key=lambda j: -found[g][j])[:n]
        more = {g: [v for t in top(g, 3) for v in self.jobs(g, variations(t.schedule, t.lazy)) if v not in found[g]] for g in self.groups}
        usable = set(self.compile(list(dict.fromkeys(j for g in self.groups for j in more[g]))))
        for g in self.groups:
            found[g].update(self.race(g, tune, [j for j in dict.fromkeys([*top(g, 3), *more[g]]) if j in usable or j in found[g]], 5))
            save()
        self.finish({g: {j: found[g][j] for j in top(g, self.keep)} for g in self.groups}, save)

    def finish(self, found: dict[tuple[int, str], dict[Job, float]], save: Callable[[], None]) -> None:
        """What was found, at every length."""
        for g in self.groups:
            finals = {s: self.race(g, s, list(found[g]), self.rounds) for s in self.lengths}
            everywhere = [j for j in found[g] if all(j in r for r in finals.values())]
            self.best[g] = sorted(((geomean(r[j] for r in finals.values()), {s: r[j] for s, r in finals.items()}, j) for j in everywhere),
                                  key=lambda b: -b[0])
            show(g, self.family, self.lengths, self.best[g], pick(self.arch, g[0], self.family, g[1]))
            save()

    def to_json(self) -> dict[str, Any]:
        best = [{"d": g[0], "mask": g[1], "geomean": mean, "speed": ratios, "schedule": str(j.schedule), "fields": asdict(j.schedule),
                 "lazy": j.lazy} for g, rows in self.best.items() for mean, ratios, j in rows]
        return {"part": "sweep", "family": self.family, "arch": self.arch, "environment": facts(), "compiled": self.compiled,
                "timed": self.timed, "best": best, "wrong": self.wrong}


def show(group: tuple[int, str], family: str, lengths: Sequence[int], best: Sequence[tuple[float, dict[int, float], Job]],
         now: fc.Schedule) -> None:
    print(f"\nD={group[0]} {group[1]} {family}: speed over FA2's, geometric mean and at S = {', '.join(map(str, lengths))}")
    for mean, ratios, j in best:
        print(f"  {mean:.3f}   " + " ".join(f"{r:.3f}" for r in ratios.values()) + f"   {j.schedule}"
              + (f", lazy={j.lazy:.3g}" if j.lazy else "") + ("   <- the library's" if j.schedule == now else ""), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    numbers = lambda text: [int(x) for x in text.split(",")]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--family", choices=("mma", "wmma"), default="mma")
    parser.add_argument("--dtype", choices=("f16", "bf16"), default="f16")
    parser.add_argument("--heads", type=numbers, default=[64, 128])
    parser.add_argument("--lengths", type=numbers, default=[1024, 4096, 16384])
    parser.add_argument("--causal", choices=("both", "no", "yes"), default="both")
    parser.add_argument("--keep", type=int, default=8, help="schedules that are timed at all lengths")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=int, help="only the first candidates")
    parser.add_argument("--grids", action="store_true", help="how blocks come to their tiles, instead of tile sizes")
    parser.add_argument("--arch", help="target (the GPU's own)")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    args = parser.parse_args(argv)

    masks = {"both": ["none", "causal_top_left"], "no": ["none"], "yes": ["causal_top_left"]}[args.causal]
    machine = Machine(True, 32, 64) if args.dry_run else Machine()
    if args.dry_run:
        args.lengths, args.limit, args.keep = [16, 32], min(args.limit or 2, 2), 2
    arch = args.arch or ("sm_90" if args.dry_run or args.compile_only else fc.gpu_target())
    sweep = Sweep(args.family, arch, machine, args.dtype, args.heads, masks, args.lengths, args.keep, args.rounds, args.limit, args.grids)
    save = lambda: write_json(args.json, sweep.to_json())
    if args.compile_only:
        sweep.compile([j for g in sweep.groups for j in sweep.first(g)])
        for c in sweep.compiled:
            needs = c["error"] or f"{c['registers']} registers, {c['spilled_bytes']} bytes spilled, {c['smem_bytes']} bytes smem"
            print(f"D={c['d']:<4} {c['mask']:16} {needs[:90]}   {c['schedule']}")
    else:
        sweep.run(save)
    save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
