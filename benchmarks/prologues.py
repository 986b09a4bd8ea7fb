"""What stands between a load and its product, beside the same kernel without it: rotary on both operands of the first product, a tile and a
row that are added to it, and five products per step. TFLOP/s of the products alone, at 4096 positions.

    python -m benchmarks.prologues --json out/prologues.json
    python -m benchmarks.prologues --only rotary --schedule "tiles={BLOCK_M: 128, BLOCK_N: 64}, warps=8, math=wgmma, copy=tma, late=acc"

Each kernel is first compared with float64 at a length that no tile divides; only then it is timed, in turns with the others of its shape.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

import fcgen as fc

from . import prologue_specs as specs
from .environment import facts
from .pool import processes, write_json
from .timing import Checked, finishes, round_robin

LENGTH, HEADS, CHECKED = 4096, 32, 488  # rows of as many numbers lie on 16 bytes, as those that are timed do
LIMIT = 8e-3
#: case -> head size, products per pair of positions, names of specs
CASES = {"rotary": (128, 2, ("plain", "rotary", "rotated")), "bias": (128, 2, ("plain", "biased")), "norm": (128, 2, ("plain", "normed")),
         "backward-64": (64, 5, ("backward",)), "backward-128": (128, 5, ("backward",))}
ATTENTION = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 128}, warps=8, math="wgmma", copy="tma", late="acc", epilogue="quad")
MADE, FIXED = replace(ATTENTION, makers=4), replace(ATTENTION, persistent="static")
#: the first of those of `plain` is what the others are compared with
HOPPER = {"backward": [fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, math="wgmma", copy="tma")],
          "plain": [ATTENTION, FIXED],
          "rotary": [ATTENTION, MADE], "rotated": [ATTENTION, MADE, replace(MADE, stages={"c": 0, "s": 0})],
          "normed": [ATTENTION, MADE, replace(MADE, stages={"k_tile": 0})], "biased": [ATTENTION, FIXED]}
ADA = {"backward": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64})}
SMALL = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32})


def schedules(target: str, name: str) -> list[fc.Schedule]:
    return HOPPER[name] if target == "sm_90a" else [ADA.get(name, SMALL)]


def build(one: tuple[str, int, str, fc.Schedule]) -> fc.Program | str:
    name, d, target, s = one
    try:
        return getattr(specs, name).compile(target=target, schedule=s, check=False, **binding(name, d))
    except fc.FcError as e:
        return (str(e).splitlines() or [""])[0]


def warm(jobs: list[tuple[str, int, str, fc.Schedule]]) -> None:
    """Compile in several processes at once, into the cache."""
    with ProcessPoolExecutor(min(processes(), len(jobs)), mp_context=multiprocessing.get_context("spawn")) as executor:
        list(executor.map(_built, jobs))


def _built(one: tuple[str, int, str, fc.Schedule]) -> None:
    build(one)


def binding(name: str, d: int) -> dict[str, Any]:
    return {"T": fc.f16, "D": d // 2 if name in ("plain", "rotary", "rotated") else d, "E": d}


def error(program: fc.Program, name: str, d: int) -> float:
    """The largest rms error of an output over the reference's rms, at a small size."""
    held, exact = specs.stored(program, specs.draw(name, CHECKED, m=CHECKED - 7, d=d))
    want, got = specs.reference(name, exact), program.run(**held)
    rms = lambda x: float(np.sqrt(np.mean(np.square(x))))
    return max(rms(got[n].astype(np.float64) - want[n]) / rms(want[n]) if np.isfinite(got[n].astype(np.float64)).all() else float("inf")
               for n in want)


def arguments(program: fc.Program, d: int) -> dict[str, Any]:
    """Inputs of the size that is timed, on the GPU."""
    import torch

    sizes = {"H": HEADS, "M": LENGTH, "N": LENGTH, "P": LENGTH}
    types = {"f16": torch.float16, "f32": torch.float32, "i32": torch.int32}
    out: dict[str, Any] = {}
    for p in program.params:
        dims = getattr(p.type, "dims", None)
        if dims is None:
            out[p.name] = 1e-5 if p.name == "eps" else d**-0.5
        else:
            shape = [sizes[n] if isinstance(n, str) else n for n in dims]
            small = 0.0 if p.name in ("L", "F") else 1.0  # so that no power overflows
            out[p.name] = torch.randn(shape, device="cuda").mul_(small).to(types[p.type.dtype.name])
    if "L" in out:
        out["L"] += 12.0
    return out


def measure(case: str, target: str, given: Sequence[fc.Schedule], rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(one row per kernel, what was wrong)."""
    import torch

    torch.manual_seed(0)
    d, products, names = CASES[case]
    ways, wrong = [], []
    for name in names:
        for s in given or schedules(target, name):
            label = f"{name}, {s}"
            program = build((name, d, target, s))
            if isinstance(program, str):
                wrong.append(f"{label}: {program}")
                continue
            try:
                off = error(program, name, d)
                if not off <= LIMIT:
                    wrong.append(f"{label}: rms error {off:.1e}, at most {LIMIT:.1e}")
                    continue
                call = arguments(program, d)
                run = lambda program=program, call=call: program.launcher(call)
                run()
            except fc.FcError as e:
                wrong.append(f"{label}: {(str(e).splitlines() or [''])[0]}")
                continue
            if not finishes():
                raise SystemExit(f"{label}: the kernel does not end")
            ways.append((name, Checked(label, run, off, off)))
    if not ways:
        return [], wrong
    work = 2.0 * products * HEADS * LENGTH**2 * d
    times = round_robin([w for _, w in ways], max(2, round(10e-3 / (work / 4e14))), rounds, warm=2)
    first = next((times[w.name].ms for name, w in ways if name == names[0]), float("nan"))
    rows = [(name, w, times[w.name]) for name, w in ways]
    return [{"case": case, "spec": name, "name": w.name, "ms": t.ms, "spread": t.spread, "tflops": work / t.ms / 1e9, "ratio": t.ms / first,
             "rms_error": w.rms_error} for name, w, t in rows], wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(CASES))
    parser.add_argument("--schedule", action="append", metavar="TEXT", help="instead of those here; may be given again")
    parser.add_argument("--target", help="the GPU's own; on Hopper sm_90a")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    target = args.target or fc.gpu_target()
    given = [fc.Schedule.parse(t) for t in args.schedule or ()]
    warm([(name, d, target, s) for d, _, names in map(CASES.__getitem__, args.only or CASES) for name in names
          for s in given or schedules(target, name)])
    table: list[Any] = []
    wrong: list[Any] = []
    for case in args.only or CASES:
        rows, more = measure(case, target, given, args.rounds)
        for r in rows:
            print(f"{r['tflops']:7.0f} TFLOP/s  {r['ratio']:.3f} x the first's time  rms error {r['rms_error']:.1e}  {case}: {r['name']}")
        table, wrong = table + rows, wrong + more
    print("\n".join(wrong) or "all that was timed was right")
    write_json(args.json, {"part": "prologues", "environment": facts(), "length": LENGTH, "heads": HEADS, "table": table,
                           "problems": wrong})
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
