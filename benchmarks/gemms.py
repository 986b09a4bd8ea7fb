"""Matrix products with something in front of them or behind them, beside cuBLAS's rate for the same products, and a copy's: plain, with
bias and GELU, SwiGLU (two products), RMSNorm in front (factors in f32, and in the tensors' own dtype), and a right operand of 4 bits for
few rows (timed in graphs) and for many. With `--only shapes`, plain products of many shapes.

    python -m benchmarks.gemms --json out/gemms.json                        schedule_for's own choices, and what was found to be better
    python -m benchmarks.gemms --candidates schedules.txt --only swiglu     lines of "case: schedule"; # starts a comment
    python -m benchmarks.gemms --compile-only                               which compile without spills; needs no GPU

Outputs start as NaN; a sample of rows and one of columns is compared with float64 before anything is timed. All ways of a case run in
turns. TFLOP/s count products alone; GB/s what must be read and written at least.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import fcgen as fc

from .ceilings import ceilings, under_load
from .cells import DTYPES
from .environment import facts
from .pool import Made, launcher, processes, write_json
from .search_schedules import refusal
from .specs import example, gemm_nt, norm_gemm, norm_gemm_same, swiglu
from .timing import Checked, finishes, round_robin

SIZE, WIDE, FEW, MANY = 8192, 28672, 16, 4096
#: rows, columns and depth of products that no schedule was searched for; those of at most SKINNY rows read weights that are in no cache
SHAPES = ("4096x11008x4096", "4096x4096x11008", "2048x2048x2048", "1024x1024x1024", "16384x1024x4096", "8192x512x8192", "512x8192x8192",
          "3000x5000x1024", *(f"{m}x{n}" for m in (1, 16, 64) for n in ("8192x8192", "4096x11008", "11008x4096", "4096x4096")))
SKINNY = 64
#: FLOP below which calls are timed as a graph: the host needs longer for them
SHORT = 1e11
SAMPLE = 128
LIMIT = {"fp16": 1e-3, "bf16": 8e-3}
#: weights that a call of few rows finds in no cache: as many sets, in turns
SETS = 4
#: calls of few rows in one graph: each set of weights as often as the others
CALLS = 5 * SETS


@dataclass(frozen=True)
class Problem:
    """calls: arguments, output left out; one after the other. out: its name, of this shape. exact(rows, columns): that part in float64.
    library: name -> what PyTorch needs for the same products. products: FLOP. moved: bytes."""

    calls: list[dict[str, Any]]
    out: str
    shape: tuple[int, int]
    exact: Callable[[Any, Any], Any]
    library: dict[str, Callable[[], Any]]
    products: float
    moved: float


@dataclass(frozen=True)
class Case:
    """spec, and how a `Problem` of it is made. sizes: its dimensions, for `schedule_for`. tuned: what was found to be good on an H200."""

    spec: Any
    make: Callable[[Any, dict[str, int]], Problem]
    sizes: Callable[[], dict[str, int]]
    tuned: Sequence[str] = field(default=())


def drawn(kind: Any, *shape: int) -> Any:
    """Entries whose products over the last axis are N(0, 1): no function behind them is flat there."""
    import torch

    return torch.randn(shape, device="cuda").mul_(prod(shape[1:]) ** -0.25).to(kind)


def square() -> dict[str, int]:
    return {"M": SIZE, "N": SIZE, "K": SIZE}


def _bytes(*tensors: Any, out: int) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors) + 2 * out)


def product(kind: Any, n: dict[str, int]) -> Problem:
    a, every = drawn(kind, n["M"], n["K"]), [drawn(kind, n["N"], n["K"]) for _ in range(SETS if n["M"] <= SKINNY else 1)]
    turn = itertools.cycle(every)
    exact = lambda r, c: a[r].double() @ every[0][c].double().T
    return Problem([{"A": a, "B": b} for b in every], "C", (n["M"], n["N"]), exact, {"cuBLAS": lambda: a @ next(turn).T},
                   2.0 * prod(n.values()), _bytes(a, every[0], out=n["M"] * n["N"]))


def with_gelu(kind: Any, n: dict[str, int]) -> Problem:
    import torch

    plain, bias = product(kind, n), torch.randn(n["N"], device="cuda")
    gelu, (a, b) = torch.nn.functional.gelu, plain.calls[0].values()
    return Problem([{"A": a, "B": b, "bias": bias}], "C", plain.shape, lambda r, c: gelu(plain.exact(r, c) + bias[c].double()),
                   {**plain.library, "cuBLAS, then the rest": lambda: gelu((a @ b.T) + bias.to(kind))}, plain.products, plain.moved)


def gated(kind: Any, n: dict[str, int]) -> Problem:
    import torch

    x, both = drawn(kind, n["M"], n["K"]), drawn(kind, 2 * n["N"], n["K"])
    w, v = both.chunk(2)
    silu = torch.nn.functional.silu
    exact = lambda r, c: silu(x[r].double() @ w[c].double().T) * (x[r].double() @ v[c].double().T)

    def whole() -> Any:
        gate, up = (x @ both.T).chunk(2, dim=1)
        return silu(gate) * up

    return Problem([{"X": x, "W": w, "V": v}], "Y", (n["M"], n["N"]), exact, {"cuBLAS": lambda: x @ both.T, "cuBLAS, then the rest": whole},
                   4.0 * prod(n.values()), _bytes(x, both, out=n["M"] * n["N"]))


def normed(kind: Any, n: dict[str, int], same: bool = False) -> Problem:
    """same: the factors have the tensors' dtype."""
    import torch

    x, w, g = drawn(kind, n["M"], n["K"]) * 3, drawn(kind, n["N"], n["K"]), torch.rand(n["K"], device="cuda") + 0.5
    g = g.to(kind) if same else g
    rms = lambda y: torch.rsqrt((y * y).mean(1, keepdim=True) + 1e-5)
    exact = lambda r, c: (x[r].double() * g.double()) @ w[c].double().T * rms(x[r].double())
    whole = lambda: torch.nn.functional.rms_norm(x, (n["K"],), g.to(kind), 1e-5) @ w.T
    return Problem([{"X": x, "G": g, "W": w}], "Y", (n["M"], n["N"]), exact, {"cuBLAS": lambda: x @ w.T, "a norm, then cuBLAS": whole},
                   2.0 * prod(n.values()), _bytes(x, w, out=n["M"] * n["N"]))


def of_4_bits(kind: Any, n: dict[str, int]) -> Problem:
    import torch

    m, cols, e = n["M"], n["N"], n["E"]
    sets = SETS if m == FEW else 1
    x, s = drawn(kind, m, 2 * e), torch.rand(cols, device="cuda") * 0.02 + 0.02
    packed = [torch.randint(0, 256, (cols, e), device="cuda", dtype=torch.uint8) for _ in range(sets)]
    whole = lambda w: torch.cat([(w & 15).to(kind) - 8, (w >> 4).to(kind) - 8], 1)
    exact = lambda r, c: x[r].double() @ whole(packed[0][c]).double().T * s[c].double()
    wide = [whole(w) for w in packed]
    turn = itertools.cycle(wide)
    return Problem([{"X": x.view(m, 2, e), "W": w, "S": s} for w in packed], "Y", (m, cols), exact, {"cuBLAS": lambda: x @ next(turn).T},
                   4.0 * m * cols * e, _bytes(x, packed[0], s, out=m * cols))


def _sizes(shape: str) -> dict[str, int]:
    return dict(zip("MNK", map(int, shape.split("x"))))


def _of(rows: int) -> Callable[[], dict[str, int]]:
    return lambda: {"M": {16: FEW, 4096: MANY}[rows], "N": WIDE, "E": SIZE // 2}


CASES: dict[str, Case] = {
    "product": Case(gemm_nt, product, square), "gelu": Case(example("gemm").spec, with_gelu, square),
    "swiglu": Case(swiglu, gated, square), "norm": Case(norm_gemm, normed, square),
    "norm-same": Case(norm_gemm_same, partial(normed, same=True), square),
    "int4-16": Case(example("int4_gemm").spec, of_4_bits, _of(16)), "int4-4096": Case(example("int4_gemm").spec, of_4_bits, _of(4096)),
    **{shape: Case(gemm_nt, product, partial(_sizes, shape)) for shape in SHAPES},
}


# ---- compiling ---------------------------------------------------------------------------------------------------------


def compiled(job: tuple[str, str, str, str]) -> tuple[str, Made]:
    """(the schedule, what came of it) for a case, a schedule ("" for `schedule_for`'s), a target and a dtype."""
    name, text, target, dtype = job
    case, types = CASES[name], {"T": {"fp16": fc.f16, "bf16": fc.bf16}[dtype]}
    try:
        s = fc.Schedule.parse(text) if text else fc.schedule_for(case.spec, target, **case.sizes(), **types)
        p = case.spec.compile(target=target, schedule=s, check=False, **types)
        return str(s), Made(p.built, p.resources)
    except Exception as error:  # it is reported with the job, the other jobs go on
        return text, Made(error=f"{type(error).__name__}: {error}")


def prepared(jobs: list[tuple[str, str, str, str]]) -> list[tuple[str, Made]]:
    if len(jobs) < 8 or processes() < 2:
        return [compiled(j) for j in jobs]
    with ProcessPoolExecutor(min(processes(), len(jobs)), mp_context=multiprocessing.get_context("spawn")) as executor:
        return list(executor.map(compiled, jobs))


def candidates(path: str | None) -> dict[str, list[str]]:
    """case -> schedules: those of the file, else what is kept here."""
    if path is None:
        return {name: list(case.tuned) for name, case in CASES.items()}
    out: dict[str, list[str]] = {name: [] for name in CASES}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\s*([\w-]+)\s*:\s*([^#]+)", line):
            out[found[1]].append(found[2].strip())
    return out


# ---- timing ------------------------------------------------------------------------------------------------------------


def errors(problem: Problem, out: Any) -> tuple[float, float]:
    """(largest error, rms error over the reference's rms) of a sample of rows and one of columns; inf where anything is not finite."""
    import torch

    if not bool(out.isfinite().all()):
        return float("inf"), float("inf")
    pick = lambda n: torch.linspace(0, n - 1, min(n, SAMPLE), device="cuda").long()
    every = slice(None)
    largest, rms = 0.0, 0.0
    for r, c in ((pick(problem.shape[0]), every), (every, pick(problem.shape[1]))):
        want = problem.exact(r, c)
        diff = out[r][:, c].double() - want
        largest, rms = max(largest, diff.abs().max().item()), max(rms, (diff.norm() / want.norm()).item())
    return largest, rms


def _next(launch: Callable[[Any], Any], turn: Iterator[Any]) -> Any:
    return launch(next(turn))


def recorded(run: Callable[[], Any], calls: int) -> Callable[[], None]:
    """So many calls as one graph: a call of few rows ends before the host has made the next one."""
    import torch

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            run()
    return graph.replay


def measure(name: str, made: list[tuple[str, Made]], dtype: str, rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(one row for each way, what was wrong)."""
    import torch

    torch.manual_seed(0)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    problem = CASES[name].make(kind, CASES[name].sizes())
    plain = next(iter(problem.library.values()))()
    ways = [Checked(n, run, 0.0, 0.0) for n, run in problem.library.items()]
    wrong: list[str] = []
    for n, (text, m) in enumerate(made):
        label = f"{name}, {'chosen: ' if n == 0 else ''}{text}"
        if (said := refusal(m)) is not None:
            wrong.append(f"{label}: {said}")
            continue
        out = torch.full(problem.shape, float("nan"), device="cuda", dtype=plain.dtype)
        launch, given = launcher(m), [{**call, problem.out: out} for call in problem.calls]
        launch(given[0])
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        off = errors(problem, out)
        if not off[1] <= LIMIT[dtype]:
            wrong.append(f"{label}: rms error {off[1]:.1e}, at most {LIMIT[dtype]:.1e}")
            continue
        ways.append(Checked(label, partial(_next, launch, itertools.cycle(given)), *off))
    calls = 1 if problem.products > SHORT else CALLS
    kept = ways if calls == 1 else [replace(w, run=recorded(w.run, calls)) for w in ways]
    times = round_robin(kept, max(8, round(10e-3 / (problem.products / 6e14))) if calls == 1 else 10, rounds, warm=2)
    table = []
    for w in ways:
        t = replace(times[w.name], ms=times[w.name].ms / calls)
        table.append({"case": name, "name": w.name, "ms": t.ms, "spread": t.spread, "tflops": problem.products / t.ms / 1e9,
                      "gbps": problem.moved / t.ms / 1e6, "ratio": times[ways[0].name].ms / calls / t.ms, "max_error": w.max_error,
                      "rms_error": w.rms_error, "board": under_load(w.run, 8)})
    return table, wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=(*CASES, "shapes"),
                        help="shapes: all products that no schedule was searched for")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--candidates", metavar="FILE", help='lines of "case: schedule", timed beside the chosen ones')
    parser.add_argument("--target", help="the GPU's own; on Hopper sm_90a")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile-only", action="store_true", help="print registers and spills; needs no GPU")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    target = args.target or ("sm_90a" if args.compile_only else fc.gpu_target())
    names = [n for asked in args.only or (n for n in CASES if n not in SHAPES) for n in (SHAPES if asked == "shapes" else (asked,))]
    more = candidates(args.candidates)
    jobs = [(name, text, target, args.dtype) for name in names for text in ("", *more[name])]
    made = prepared(jobs)
    of = {name: [m for j, m in zip(jobs, made) if j[0] == name] for name in names}
    if args.compile_only:
        for name in names:
            for text, m in of[name]:
                print(f"{name}: {text}\n    {refusal(m) or f'{m.resources.registers} registers'}")
        return 0
    table: list[dict[str, Any]] = []
    wrong: list[str] = []
    board = ceilings(args.dtype)
    print(f"cuBLAS {board['gemm_tflops']:.0f} TFLOP/s, a copy {board['copy_gbps']:.0f} GB/s")
    for name in names:
        rows, said = measure(name, of[name], args.dtype, args.rounds)
        for r in rows:
            print(f"{r['tflops']:7.0f} TFLOP/s  {r['ratio']:.3f} of cuBLAS  {r['gbps']:6.0f} GB/s"
                  f"  {r['gbps'] / board['copy_gbps']:.3f} of a copy  rms error {r['rms_error']:.1e}  {r['name']}", flush=True)
        table, wrong = table + rows, wrong + said
    print("\n".join(wrong) or "all that was timed was right")
    write_json(args.json, {"part": "gemms", "environment": facts(), "ceilings": board, "dtype": args.dtype, "table": table,
                           "problems": wrong})
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
