"""Attention shapes beside the grid of hopper_forward, in one run against the better of FA3 and cuDNN.

    python -m benchmarks.shapes --fa3 .peers --json out/shapes.json
    python -m benchmarks.shapes --only mla --candidates schedules.txt       what else the shape could run with, in the same rounds
    python -m benchmarks.shapes --compile-only                              what spills; all else is in the disk cache then. Needs no GPU

A candidate is a line "NAME-PREFIX | sums | schedule": a shape's name or the beginning of it, the spec's option `sums`, and a schedule as
`str(Schedule)` prints it. Every result is compared with float64 before it is timed; outputs are NaN before.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fcgen as fc
from fcgen.kernels.hopper_schedules import LAZY

from . import peers as peers_of
from .cells import DTYPES, LIMIT
from .environment import facts
from .peers import BEST, reason
from .pool import processes, write_json
from .timing import Checked, finishes, geomean, graph_times, round_robin

#: (prefix of a shape's name, the spec's option `sums`, schedule)
Candidate = tuple[str, str, fc.Schedule]
#: (enqueues one call, makes [B, S, H, D] of what that returned)
Way = tuple[Callable[[], Any], Callable[[Any], Any]]
#: FLOP/s that are expected, to choose how many calls to time; milliseconds below which the launch would be: calls of one graph then
RATE, SHORT = 6e14, 0.1


@dataclass(frozen=True)
class Shape:
    """batch, query heads and key heads, rows and keys, head sizes of the key and the value. causal: the last row sees all keys."""

    name: str
    b: int
    h: int
    g: int
    m: int
    n: int
    d: int
    e: int
    causal: bool = False
    dtype: str = "fp16"

    @property
    def flops(self) -> float:
        seen = self.m * self.n - (self.m * (self.m - 1) / 2 if self.causal else 0)
        return 2.0 * self.b * self.h * seen * (self.d + self.e)


SHAPES = (
    Shape("mla 192/128 4k full", 4, 16, 16, 4096, 4096, 192, 128),
    Shape("mla 192/128 4k causal", 4, 16, 16, 4096, 4096, 192, 128, True),
    Shape("mla 192/128 1k full", 16, 16, 16, 1024, 1024, 192, 128),
    Shape("mla 192/128 1k causal", 16, 16, 16, 1024, 1024, 192, 128, True),
    Shape("mla 192/128 16k full", 1, 16, 16, 16384, 16384, 192, 128, False, "bf16"),
    Shape("mla 192/128 16k causal", 1, 16, 16, 16384, 16384, 192, 128, True, "bf16"),
    Shape("gqa 16/8 D=256 4k causal", 4, 16, 8, 4096, 4096, 256, 256, True, "bf16"),
    Shape("gqa 16/8 D=256 1k causal", 16, 16, 8, 1024, 1024, 256, 256, True),
    Shape("gqa 16/8 D=256 16k causal", 1, 16, 8, 16384, 16384, 256, 256, True),
    Shape("gqa 16/8 D=256 4k full", 4, 16, 8, 4096, 4096, 256, 256, False, "bf16"),
    Shape("chunk 512 on 16k D=128", 1, 32, 8, 512, 16384, 128, 128, True, "bf16"),
    Shape("chunk 512 on 16k x4 D=128", 4, 32, 8, 512, 16384, 128, 128, True, "bf16"),
    Shape("llama 64/8 D=128 4k causal", 2, 64, 8, 4096, 4096, 128, 128, True, "bf16"),
    Shape("llama 64/8 D=128 4k full", 2, 64, 8, 4096, 4096, 128, 128, False, "bf16"),
    Shape("llama 64/8 D=128 16k causal", 1, 64, 8, 16384, 16384, 128, 128, True, "bf16"),
    Shape("chunk 1k on 8k x4 D=64", 4, 16, 4, 1024, 8192, 64, 64, True, "bf16"),
    Shape("chunk 1k on 8k x4 192/128", 4, 16, 16, 1024, 8192, 192, 128, True, "bf16"),
    Shape("few heads 2k D=128 full", 1, 8, 8, 2048, 2048, 128, 128),
    Shape("few heads 2k D=128 causal", 1, 8, 8, 2048, 2048, 128, 128, True),
    Shape("few heads 2k D=64 full", 1, 8, 8, 2048, 2048, 64, 64),
    Shape("few heads 2k D=64 causal", 1, 8, 8, 2048, 2048, 64, 64, True),
    Shape("few heads 4k D=128 full", 1, 6, 6, 4096, 4096, 128, 128),
    Shape("few heads 4k D=64 causal", 1, 6, 6, 4096, 4096, 64, 64, True),
    Shape("small 512 D=64 full", 1, 8, 8, 512, 512, 64, 64),
    Shape("small 512 D=64 causal", 1, 8, 8, 512, 512, 64, 64, True),
    Shape("small 1k D=64 causal", 1, 4, 4, 1024, 1024, 64, 64, True),
    Shape("small 1k D=128 causal", 1, 4, 4, 1024, 1024, 128, 128, True),
    Shape("small 512 D=128 causal", 1, 8, 8, 512, 512, 128, 128, True),
    Shape("small 512 D=256 causal", 1, 8, 8, 512, 512, 256, 256, True),
)


@dataclass
class Problem:
    """One input, [B, S, H, D] each, and slices of the exact result."""

    shape: Shape

    def __post_init__(self) -> None:
        import torch

        s, kind = self.shape, {"fp16": torch.float16, "bf16": torch.bfloat16}[self.shape.dtype]
        torch.manual_seed(sum(map(ord, s.name)))
        make = lambda *size: torch.randn(size, device="cuda").to(kind)
        self.q, self.k, self.v = make(s.b, s.m, s.h, s.d), make(s.b, s.n, s.g, s.d), make(s.b, s.n, s.g, s.e)
        self.scale = s.d**-0.5
        self.want = {(b, h): self.exact(b, h) for b, h in {(0, 0), (s.b - 1, s.h - 1), (s.b // 2, s.h // 2)}}

    def exact(self, b: int, h: int, rows: int = 2048) -> Any:
        """One head in float64."""
        import torch

        s, g = self.shape, h * self.shape.g // self.shape.h
        q, k, v = self.q[b, :, h].double(), self.k[b, :, g].double(), self.v[b, :, g].double()
        out = torch.empty(s.m, s.e, dtype=torch.float64, device=q.device)
        keys = torch.arange(s.n, device=q.device)
        for at in range(0, s.m, rows):
            score = q[at:at + rows] @ k.T * self.scale
            if s.causal:
                last = torch.arange(at, at + score.shape[0], device=q.device) + (s.n - s.m)
                score.masked_fill_(keys[None] > last[:, None], -math.inf)
            out[at:at + rows] = score.softmax(-1) @ v
        return out

    def errors(self, got: Any) -> tuple[float, float] | None:
        """(largest, rms over the reference's rms) of a result [B, S, H, D]; None where not all of it is finite."""
        if not bool(got.isfinite().all()):
            return None
        worst, square, total = 0.0, 0.0, 0.0
        for (b, h), want in self.want.items():
            off = got[b, :, h].double() - want
            worst = max(worst, off.abs().max().item())
            square += off.square().sum().item()
            total += want.square().sum().item()
        return worst, math.sqrt(square / total)


def compiled(s: Shape, way: tuple[str, fc.Schedule] | None, arch: str) -> Any:
    """The program that a shape runs with a candidate, or None: with the library's choice."""
    from fcgen.attend import forward
    from fcgen.kernels.schedules import choose

    kind = "none" if not s.causal else "causal_top_left" if s.m == s.n else "causal_bottom_right"
    if way is None:
        chosen, lazy, sums = choose(arch, (s.b, s.h, s.m, s.d), (s.b, s.g, s.n, s.d), s.e, kind, 132)
    else:
        sums, chosen = way
        lazy = LAZY if chosen.vote else 0.0
    program = forward.compiled(DTYPES[s.dtype], s.d, s.e, kind, False, arch, chosen, True, lazy, sums, False)
    if program.resources.spills:
        raise fc.FcError("compile/budget", "it spills", got=program.resources.spill_stores)
    return program


def _compiled(job: tuple[Shape, tuple[str, fc.Schedule] | None]) -> str:
    try:
        return f"{compiled(*job, 'sm_90a').resources.registers} registers"
    except fc.FcError as error:
        return reason(error)


def ways(p: Problem, fa3: str, candidates: Sequence[Candidate]) -> dict[str, Way]:
    """All that can run this problem."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from fcgen.attend import forward

    s = p.shape
    q, k, v = (x.transpose(1, 2) for x in (p.q, p.k, p.v))
    mask: Any = s.causal if s.m == s.n else "bottom_right" if s.causal else False
    found: dict[str, Way] = {}

    def mine(schedule: tuple[str, fc.Schedule] | None) -> Callable[[], Any]:
        out = torch.full((s.b, s.m, s.h, s.e), math.nan, device="cuda", dtype=p.q.dtype)
        into = out.transpose(1, 2)
        if schedule is None:
            return lambda: fc.attention(q, k, v, causal=mask, scale=p.scale, out=into).transpose(1, 2)
        program = compiled(s, schedule, forward._arch(0, schedule[1]))

        def run() -> Any:
            program(q, k, v, into, p.scale)
            return out

        return run

    def cudnn() -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(q, k, v, is_causal=s.causal, scale=p.scale, enable_gqa=s.h != s.g)

    found["fcgen"] = (mine(None), peers_of.same)
    for name, sums, schedule in candidates:
        if s.name.startswith(name):
            try:
                found[f"{sums} | {schedule}"] = (mine((sums, schedule)), peers_of.same)
            except fc.FcError as error:
                print(f"    left out: {reason(error)}   {schedule}", flush=True)
    try:
        peers_of.fa3(fa3)  # loads its operators
        found["fa3"] = (lambda: torch.ops.flash_attn_3.fwd(p.q, p.k, p.v, softmax_scale=p.scale, is_causal=s.causal)[0], peers_of.same)
    except peers_of.Absent as error:
        print(f"    without fa3: {reason(error)}", flush=True)
    if s.m == s.n or not s.causal:  # torch's causal mask begins at the first key
        found["cudnn"] = (cudnn, peers_of.swap)
    return found


def race(shape: Shape, fa3: str, candidates: Sequence[Candidate], rounds: int) -> dict[str, Any]:
    p = Problem(shape)
    checked: list[Checked] = []
    for name, (run, output) in ways(p, fa3, candidates).items():
        try:
            got = output(run())
        except (fc.FcError, RuntimeError) as error:
            print(f"    without {name}: {reason(error)}", flush=True)
            continue
        if not finishes():
            raise SystemExit(f"{name}: the kernel does not end")
        errors = p.errors(got)
        if errors is None or errors[1] > LIMIT[shape.dtype]:
            print(f"    WRONG {name}: {errors}", flush=True)
            continue
        checked.append(Checked(name, run, *errors))
    ms = shape.flops / RATE * 1e3
    times = graph_times(checked, rounds=rounds) if ms < SHORT else round_robin(checked, max(2, int(30 / ms)), rounds, warm=2)
    results: dict[str, dict[str, float]] = {}
    for c in checked:
        results[c.name] = {"ms": times[c.name].ms, "spread": times[c.name].spread, "tflops": shape.flops / times[c.name].ms / 1e9,
                           "max_error": c.max_error or 0.0, "rms_error": c.rms_error or 0.0}
    best = min((results[n]["ms"] for n in BEST if n in results), default=None)
    row = {"shape": shape.__dict__, "results": results, "ratio": best / results["fcgen"]["ms"] if best and "fcgen" in results else None}
    print(f"{shape.name:28} " + (f"{row['ratio']:.3f}" if row["ratio"] else "   - "), flush=True)
    for name, r in sorted(results.items(), key=lambda kv: kv[1]["ms"]):
        rate = f"{r['ms'] * 1e3:9.2f} us {r['tflops']:6.0f} TFLOP/s"
        print(f"    {best / r['ms'] if best else 0:.3f}  {rate}  rms {r['rms_error']:.1e}  {name}", flush=True)
    return row


def read(path: str | None) -> list[Candidate]:
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    parts = [[x.strip() for x in line.split("|", 2)] for line in lines if line.strip() and not line.startswith("#")]
    return [(name, sums, fc.Schedule.parse(text)) for name, sums, text in parts]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="shapes whose name begins so; several with commas")
    parser.add_argument("--candidates", metavar="FILE")
    parser.add_argument("--compile-only", action="store_true", help="for sm_90a; needs no GPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fa3", metavar="FOLDER", default=os.environ.get("FCGEN_PEERS", ".peers"))
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    wanted = [s for s in SHAPES if any(s.name.startswith(x) for x in args.only.split(","))]
    if not wanted:
        parser.error(f"no such shape: {args.only}; there are {', '.join(s.name for s in SHAPES)}")
    candidates = read(args.candidates)
    if args.compile_only:
        jobs = [(s, way) for s in wanted for way in (None, *(c[1:] for c in candidates if s.name.startswith(c[0])))]
        with ProcessPoolExecutor(min(processes(), len(jobs)), mp_context=multiprocessing.get_context("spawn")) as executor:
            for (s, way), said in zip(jobs, executor.map(_compiled, jobs)):
                print(f"{s.name}: {said}   {f'{way[0]} | {way[1]}' if way else 'as chosen'}")
        return 0
    rows: list[dict[str, Any]] = []
    for shape in wanted:
        rows.append(race(shape, args.fa3, candidates, args.rounds))
        ratios = [r["ratio"] for r in rows if r["ratio"]]
        write_json(args.json, {"part": "shapes", "environment": facts(), "geomean": geomean(ratios) if ratios else None, "table": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
