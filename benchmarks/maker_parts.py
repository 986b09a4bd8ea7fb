# ruff: noqa: E501
"""What the rotary kernel's maker costs: its CUDA text with parts left out or written otherwise, timed beside the plain kernel.

    python -m benchmarks.maker_parts --json out/maker_parts.json
    python -m benchmarks.maker_parts --compile-only

A variant that leaves work out is wrong by intent, and says so; one that only writes it otherwise is compared with float64 first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import fcgen as fc
from fcgen.runtime import nvrtc

from . import prologues as before
from .environment import facts
from .pool import Made, launcher, processes, write_json
from .timing import Checked, finishes, round_robin

PLAIN = "tiles={BLOCK_M: 128, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, epilogue=quad, late=acc"
ROTARY = PLAIN.replace("copy=tma", "copy=tma, stages={c: 0, s: 0}") + ", makers=4"


def once(t: str) -> str:
    """Tables leave nothing in the first cache."""
    asm = ('asm("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "l"(src));')
    return re.sub(r"const uint4 v = \*static_cast<const uint4\*>\(src\);\n[^\n]*", asm, t)


Edits = tuple[Callable[[str], str], ...]
#: spec, schedule, label, is the result right, edits
VARIANTS: list[tuple[str, str, str, bool, Edits]] = [
    ("plain", PLAIN, "plain", True, ()),
    ("rotated", ROTARY, "as it is", True, ()),
    ("rotated", ROTARY, "tables once", True, (once,)),
]


def compiled(spec: str, schedule: str) -> fc.Program:
    return getattr(before.specs, spec).compile(target="sm_90a", schedule=fc.Schedule.parse(schedule), check=False,  # type: ignore[no-any-return]
                                               **before.binding(spec, 128))


def made(variant: tuple[str, str, str, bool, Edits]) -> Made:
    spec, schedule, _, _, edits = variant
    try:
        p = compiled(spec, schedule)
        built, resources = p.built, p.resources
    except fc.FcError as e:
        return Made(error=(str(e).splitlines() or [""])[0])
    text = built.cuda_text
    try:
        for edit in edits:
            new = edit(text)
            if new == text:
                return Made(error=f"{edit.__name__} changes nothing")
            text = new
    except AssertionError as e:
        return Made(error=f"an edit found {e}")
    if not edits:
        return Made(built, resources)
    binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    said = [w for w in binary.warnings if "(C7" in w]
    return Made(error=said[0]) if said else Made(replace(built, cuda_text=text, cubin=binary.cubin), resources)


def made_of(n: int) -> Made:
    return made(VARIANTS[n])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--profile", metavar="LABEL", help="only launch this one, three times")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    if args.profile:
        v = next(v for v in VARIANTS if v[2] == args.profile)
        m, p = made(v), compiled(v[0], v[1])
        launch, call = launcher(m), before.arguments(p, 128)
        for _ in range(3):
            launch(call)
        return 0 if finishes() else 1
    with ProcessPoolExecutor(min(processes(), len(VARIANTS)), mp_context=multiprocessing.get_context("spawn")) as executor:
        all_made = list(executor.map(made_of, range(len(VARIANTS))))
    for v, m in zip(VARIANTS, all_made):
        if m.error or args.compile_only:
            print(f"{v[2]}: {m.error or m.resources}", flush=True)
    if args.compile_only:
        return 0
    ways: list[Checked] = []
    for v, m in zip(VARIANTS, all_made):
        spec, schedule, label, right, _ = v
        if m.error:
            continue
        p = compiled(spec, schedule)
        launch, call = launcher(m), before.arguments(p, 128)
        launch(call)
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        off = error(launch, p, spec) if right else 0.0
        if not off <= before.LIMIT:
            print(f"{label}: rms error {off:.1e}")
            continue
        ways.append(Checked(label, partial(launch, call), off, off))
    times = round_robin(ways, 8, args.rounds, warm=2)
    wrong_on_purpose = {v[2] for v in VARIANTS if not v[3]}
    rows: list[dict[str, Any]] = [{"name": w.name, "ms": times[w.name].ms, "ratio": times[w.name].ms / times["plain"].ms, "rms_error": w.rms_error} for w in ways]
    for r in rows:
        said = "wrong on purpose" if r["name"] in wrong_on_purpose else f"rms error {r['rms_error']:.1e}"
        print(f"{r['ms'] * 1e3:8.1f} us  {r['ratio']:.3f} x plain's time  {said}  {r['name']}")
    write_json(args.json, {"part": "maker_parts", "environment": facts(), "table": rows})
    return 0


def error(launch: Any, program: fc.Program, spec: str) -> float:
    """As prologues.error, of an edited kernel."""
    import numpy as np
    import torch

    held, exact = before.specs.stored(program, before.specs.draw(spec, before.CHECKED, m=before.CHECKED - 7, d=128))
    want = before.specs.reference(spec, exact)["O"]
    call = {n: torch.from_numpy(np.ascontiguousarray(x)).cuda() if isinstance(x, np.ndarray) else x for n, x in held.items()}
    out = torch.zeros(want.shape, dtype=torch.float16, device="cuda")
    launch({**call, "O": out})
    torch.cuda.synchronize()
    got = out.cpu().numpy().astype(np.float64)
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))) if np.isfinite(got).all() else float("inf")


if __name__ == "__main__":
    sys.exit(main())
