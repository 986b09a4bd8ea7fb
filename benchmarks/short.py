"""Neighbourhoods with and without what was changed for them, and first keys and a window with other tiles: one GPU, ten seconds.

    python -m benchmarks.short --compile
    python -m benchmarks.short
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fcgen as fc
from benchmarks.timing import Checked, graph_times
from fcgen import masks
from fcgen.attend.forward import compiled
from fcgen.attend.variants import functions
from fcgen.build import compiler
from fcgen.kernels.hopper_schedules import pick
from fcgen.passes.tile import limits

NEAR = masks.neighbourhood((32, 32), 15)
FIRST = (masks.prefix(64) | masks.window(1024, 0)) & masks.causal()
WINDOW = masks.window(1024, 0)


def tried(d: int) -> list[tuple[str, Any, bool, fc.Schedule]]:
    """(case, mask, with the guard, schedule)."""
    part, causal = (pick(d, kind, 8192, 8192, 64, 132).schedule for kind in ("part", "causal"))
    three = replace(part, stages={"q": 2, "k": 3, "v": 3})
    two = replace(part, tiles={"BLOCK_M": 128, "BLOCK_N": 64}, warps=8)
    near = [part, three] if d == 64 else [two, replace(two, stages={"q": 2, "k": 3, "v": 3})]
    out = [("near", NEAR, guard, s) for guard in (True, False) for s in near]
    other = replace(causal, from_end=("rows",), split="loops")
    for name, mask in (("first", FIRST), ("window", WINDOW)):
        out += [(name, mask, True, s) for s in (part, replace(part, split="loops"), other)]
    return out


def made(d: int, mask: Any, guard: bool, schedule: fc.Schedule, plain: Callable[..., None] = limits._guarded) -> tuple[Any, Any]:
    limits._guarded = plain if guard else lambda *_: None
    compiler.NVRTC_OPTIONS = ("-default-device", *([] if guard else ["-DUNGUARDED=1"]))
    program: Any = compiled.__wrapped__("f16", d, d, "none", False, "sm_90a", schedule, True, None, "", False, functions(mask=mask))
    first = program.first
    first.quiet = True
    _ = first.cubin
    return first, program.family.bound({"keep": functions(mask=mask).keep})[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    os.environ["FCGEN_CHECK"] = "0"
    programs: list[tuple[int, str, str, Any, Any]] = []
    for d in (64, 128):
        for name, mask, guard, s in tried(d):
            try:
                told = f"{name} guard {guard} {dict(s.tiles)} {dict(s.stages)} {s.split}"  # type: ignore[call-overload]
                programs.append((d, name, told, *made(d, mask, guard, s)))
            except fc.FcError as e:
                print(d, name, str(e)[:100], flush=True)
    if args.compile:
        print(len(programs))
        return 0
    import torch

    from benchmarks.variants import cases, tensors

    shapes = {"near": lambda d: (16, 2048 // d, 1024), "first": lambda d: (2, 2048 // d, 8192), "window": lambda d: (1, 1024 // d, 32768)}
    for d in (64, 128):
        for name, shape in shapes.items():
            q, k, v = tensors(*shape(d), d)
            o = torch.empty_like(q)
            base = functools.partial(fc.attention, q, k, v, causal=name != "near")
            calls = [Checked("base", base, 0.0, 0.0)]
            for at, which, told, p, values in programs:
                if (at, which) == (d, name):
                    calls.append(Checked(told, functools.partial(p, Q=q, K=k, V=v, O=o, scale=d**-0.5, **values), 0.0, 0.0))
            for told, t in graph_times(calls, 4, 5, 1).items():
                print(f"D={d} {t.ms:.4f} {told}", flush=True)
        case = next(c for c in cases(d) if c.name == "documents, causal")
        calls = [Checked("documents", case.run, 0.0, 0.0),
                 Checked("dense", functools.partial(fc.attention, case.q, case.k, case.v, causal=True), 0.0, 0.0)]
        for told, t in graph_times(calls, 4, 5, 1).items():
            print(f"D={d} {t.ms:.4f} {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
