# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own: "T[M, K]")
"""A matrix product of ten lines, and the example's with bias and GELU, beside cuBLAS's product: TFLOP/s at 8192 x 8192 x 8192.

    python -m benchmarks.hopper_gemm --json out/gemm.json
    python -m benchmarks.hopper_gemm --schedule "tiles={BLOCK_M: 128, BLOCK_N: 128, BLOCK_K: 64}, stages=3" --schedule "..."

Each schedule runs on both. Its output starts as NaN; a sample of rows is compared with float64 and every element with cuBLAS's product
under the same epilogue in float32. cuBLAS is also timed with the epilogue as PyTorch runs it (separate kernels), for who needs that.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fcgen as fc

from .ceilings import under_load
from .cells import DTYPES
from .environment import facts
from .pool import write_json
from .timing import Checked, finishes, round_robin

SIZE = 8192
ROWS = 128
LIMIT = {"fp16": 1e-3, "bf16": 8e-3}
HOPPER = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}, warps=8, math="wgmma", copy="tma", stages=3,
                     persistent="static", epilogue="tma", l2=32)


@fc.kernel
def product(A: "T[M, K]", B: "T[N, K]", C: "out T[M, N]"):
    """C = A B^T."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc.to(C.dtype))


def example() -> Any:
    """examples/gemm.py's Example."""
    folder = str(Path(__file__).resolve().parent.parent / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("gemm").example


def exact(a: Any, b: Any, bias: Any, rows: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(a[rows].double() @ b.double().T + bias.double())


def worst(got: Any, want: Any) -> tuple[float, float]:
    """(largest error, rms error over the reference's rms); inf where it is not finite."""
    if not bool(got.isfinite().all()):
        return float("inf"), float("inf")
    diff = got.double() - want
    return diff.abs().max().item(), (diff.norm() / want.norm()).item()


def measure(programs: dict[str, Any], dtype: str, rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(one row per candidate, what was wrong)."""
    import torch

    torch.manual_seed(0)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    # entries of the product are N(0, 1): GELU is not flat there
    a, b = (torch.randn(SIZE, SIZE, device="cuda").mul_(SIZE**-0.25).to(kind) for _ in range(2))
    bias = torch.randn(SIZE, device="cuda")
    rows = torch.linspace(0, SIZE - 1, min(SIZE, ROWS), device="cuda").long()
    want = exact(a, b, bias, rows)
    whole = torch.nn.functional.gelu((a @ b.T).float() + bias)
    with_epilogue = lambda: torch.nn.functional.gelu((a @ b.T) + bias.to(kind))
    alone = a[rows].double() @ b.double().T
    ways = [Checked("cublas", lambda: a @ b.T, *worst((a @ b.T)[rows], alone)),
            Checked("cublas+gelu", with_epilogue, *worst(with_epilogue()[rows], want))]
    wrong: list[str] = []
    outputs: dict[str, Any] = {}
    for name, program in programs.items():
        c = torch.full((SIZE, SIZE), float("nan"), device="cuda", dtype=kind)
        plain = "bias" not in [p.name for p in program.params]
        call = {"A": a, "B": b, "C": c, **({} if plain else {"bias": bias})}
        run = lambda program=program, call=call: program.launcher(call)
        run()
        if not finishes():
            raise SystemExit(f"{name}: the kernel does not end")
        errors = worst(c[rows], alone if plain else want)
        full = (a @ b.T).float() if plain else whole
        everywhere = (c.float() - full).norm().item() / full.norm().item() if bool(c.isfinite().all()) else float("inf")
        if not max(errors[1], everywhere) <= LIMIT[dtype]:
            wrong.append(f"{name}: rms error {errors[1]:.1e} in the sample, {everywhere:.1e} everywhere, at most {LIMIT[dtype]:.1e}")
            continue
        outputs[name] = c.clone()
        ways.append(Checked(name, run, *errors))
    work = 2.0 * SIZE**3
    times = round_robin(ways, max(2, round(10e-3 / (work / 6e14))), rounds, warm=2)
    table = []
    for w in ways:
        t = times[w.name]
        table.append({"name": w.name, "ms": t.ms, "spread": t.spread, "tflops": work / t.ms / 1e9, "ratio": times["cublas"].ms / t.ms,
                      "max_error": w.max_error, "rms_error": w.rms_error, "board": under_load(w.run, 8)})
    return table, wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--schedule", action="append", metavar="TEXT", help="instead of the tuned one; may be given again")
    parser.add_argument("--target", help="the GPU's own; on Hopper sm_90a")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    found = example()
    target = args.target or {"sm_90": "sm_90a"}.get(own := fc.gpu_target(), own)
    schedules = [fc.Schedule.parse(t) for t in args.schedule or ()] or [HOPPER if target == "sm_90a" else found.schedule]
    binding = {**found.binding, "T": {"fp16": fc.f16, "bf16": fc.bf16}[args.dtype]}
    programs, wrong = {}, []
    for s in schedules:
        for name, spec in (("product", product), ("bias and GELU", found.spec)):
            try:
                program = spec.compile(target=target, schedule=s, check=False, **binding)
                program.built  # noqa: B018  (compiled before anything is timed)
                programs[f"fcgen {name}, {s}"] = program
            except fc.FcError as error:
                wrong.append(f"{name}, {s}: {(str(error).splitlines() or [''])[0]}")
    table, more = measure(programs, args.dtype, args.rounds)
    for row in table:
        print(f"{row['tflops']:7.0f} TFLOP/s  {row['ratio']:.3f} of cuBLAS  rms error {row['rms_error']:.1e}  {row['name']}")
    wrong += more
    print("\n".join(wrong) or "all that was timed was right")
    write_json(args.json, {"part": "hopper_gemm", "environment": facts(), "size": SIZE, "dtype": args.dtype, "table": table,
                           "problems": wrong})
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
