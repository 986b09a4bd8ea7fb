# ruff: noqa: E501, UP031
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
from fcgen.passes.memory import pieces
from fcgen.runtime import nvrtc

from . import prologues as before
from .environment import facts
from .pool import Made, launcher, processes, write_json
from .timing import Checked, finishes, round_robin

PLAIN = "tiles={BLOCK_M: 128, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, epilogue=quad, late=acc"
ROTARY = PLAIN.replace("copy=tma", "copy=tma, stages={c: 0, s: 0}") + ", makers=4"


def fma(t: str) -> str:
    """A product of halves and what it is added to are one instruction."""
    return re.sub(r"(mul|add|sub)\.rn\.f16x2", r"\1.f16x2", t)


def _in_maker(t: str, change: Callable[[str], str]) -> str:
    i, j = t.index("role make"), t.index("role main")
    return t[:i] + change(t[i:j]) + t[j:]


def pointers(t: str) -> str:
    """Rows of a tensor are found from those before them."""
    def change(m: str) -> str:
        out: list[str] = []
        first: dict[str, str] = {}
        for line in m.split("\n"):
            a = re.match(r"(\s*const f16\* )(([cs])_ptr(?:_\d+)?) = [cs]_base \+ \(long long\)(\w+) \* ([CS]_s0);", line)
            if a:
                k = re.match(r"cols_start_plus_(\d+)", a[4])
                more = int(k[1]) if k else int(a[4]) if a[4].isdigit() else 0
                if more and a[3] in first:
                    line = f"{a[1]}{a[2]} = {first[a[3]]} + (long long){more} * {a[5]};"
                elif not more:
                    first[a[3]] = a[2]
            if "for (int cols_tile" in line:
                first = {}
            out.append(line)
        return "\n".join(out)

    return _in_maker(t, change)


def fences(t: str) -> str:
    """One fence for all arrivals of an iteration."""
    def change(m: str) -> str:
        for first, second in (("x", "y"), ("k0_tile", "k1_tile")):
            p = re.compile(r"[ \t]*proxy_fence\(\);\n\s*__syncwarp\(\);\n(\s*if \(lane == 0\) mbar_arrive\(%s_(?:empty|full)[^\n]*\n\s*if \(\+\+%s_slot[^\n]*\n)"
                           r"(.*?proxy_fence\(\);\n\s*__syncwarp\(\);\n)(?=\s*if \(lane == 0\) mbar_arrive\(%s_)" % (first, first, second), re.S)
            m, n = p.subn(lambda k: k[2] + k[1], m)
            assert n == 3, n
        p = re.compile(r"[ \t]*proxy_fence\(\);\n\s*__syncwarp\(\);\n((?:\s*if \(lane == 0\) mbar_arrive\(\w+_empty[^\n]*\n\s*if \(\+\+\w+_slot[^\n]*\n)+)"
                       r"(.*?proxy_fence\(\);\n\s*__syncwarp\(\);\n)", re.S)
        m, n = p.subn(lambda k: k[2] + k[1], m)
        assert n == 3, n
        return m

    return _in_maker(t, change)


def no_fence(t: str) -> str:
    return _in_maker(t, lambda m: m.replace("proxy_fence();", ";"))


def no_math(t: str) -> str:
    return re.sub(r"= (sub|add)_f16x2\(mul_f16x2\(([xy](_\d+)?\[i\]), c[^;]*;", r"= \2;", t)


def no_stores(t: str) -> str:
    return re.sub(r"st_shared_b32x4\(k[01]_tile[^;]*;", ";", t)


def no_tables(t: str) -> str:
    return re.sub(r"(?:if \([^()]*\) )?ld_global_b32x4\(([cs](?:_\d+)?), [^;]*;", r"\1[0] = \1[1] = \1[2] = \1[3] = 0x3c003800u;", _in_maker(t, lambda m: m))


def registers(make: int, main: int) -> Callable[[str], str]:
    def change(t: str) -> str:
        t, n = re.subn(r"(role make: [^\n]*\n\s*)setmaxnreg_(dec|inc)<\d+>", rf"\1setmaxnreg_dec<{make}>", t)
        t, k = re.subn(r"(role main: [^\n]*\n\s*)setmaxnreg_(dec|inc)<\d+>", rf"\1setmaxnreg_inc<{main}>", t)
        assert n == k == 1
        return t

    return change


Edits = tuple[Callable[[str], str], ...]
ALL: Edits = (fma, pointers, fences)
#: spec, schedule, pieces read ahead, label, is the result right, edits
VARIANTS: list[tuple[str, str, dict[str, int], str, bool, Edits]] = [
    ("plain", PLAIN, {}, "plain", True, ()),
    ("rotated", ROTARY, {}, "whole", True, ()),
    ("rotated", ROTARY, {}, "fma", True, (fma,)),
    ("rotated", ROTARY, {}, "pointers", True, (pointers,)),
    ("rotated", ROTARY, {}, "fences", True, (fences,)),
    ("rotated", ROTARY, {}, "fma, pointers", True, (fma, pointers)),
    ("rotated", ROTARY, {}, "all three", True, ALL),
    ("rotated", ROTARY, {"unstage": 2, "load": 4}, "all three, further ahead", True, ALL),
    ("rotated", ROTARY, {"unstage": 1, "load": 2}, "all three, less ahead", True, ALL),
    ("rotated", ROTARY, {}, "all three, no fence at all", False, (fma, pointers, no_fence)),
    ("rotated", ROTARY, {}, "all three, no math", False, (no_math, pointers, fences)),
    ("rotated", ROTARY, {}, "all three, no tables", False, (*ALL, no_tables)),
    ("rotated", ROTARY, {}, "all three, no tables, no math", False, (no_math, no_tables, fences)),
    ("rotated", ROTARY, {}, "all three, no stores", False, (*ALL, no_stores)),
    ("rotated", ROTARY + ", persistent=static", {}, "static, all three", True, ALL),
    ("rotated", ROTARY + ", tokens=true", {}, "tokens, all three", True, ALL),
    ("plain", PLAIN + ", tokens=true", {}, "plain, tokens", True, ()),
    ("rotary", PLAIN.replace("copy=tma", "copy=tma, stages={t: 0}") + ", makers=4", {}, "in floats, whole", True, ()),
    ("rotary", PLAIN.replace("copy=tma", "copy=tma, stages={t: 0}") + ", makers=4", {}, "in floats, pointers, fences", True, (pointers, fences)),
]


def made(variant: tuple[str, str, dict[str, int], str, bool, Edits]) -> tuple[Made, Any]:
    spec, schedule, ahead, _, _, edits = variant
    usual = dict(pieces.AHEAD)
    pieces.AHEAD.update(ahead)
    try:
        p = getattr(before.specs, spec).compile(target="sm_90a", schedule=fc.Schedule.parse(schedule), check=False, **before.binding(spec, 128))
        built, resources = p.built, p.resources
    except fc.FcError as e:
        return Made(error=(str(e).splitlines() or [""])[0]), None
    finally:
        pieces.AHEAD.update(usual)
    text = built.cuda_text
    try:
        for edit in edits:
            new = edit(text)
            if new == text:
                return Made(error=f"{edit.__name__} changes nothing"), None
            text = new
    except AssertionError as e:
        return Made(error=f"an edit found {e}"), None
    if not edits and not ahead:
        return Made(built, resources), p
    binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    said = [w for w in binary.warnings if "(C7" in w]
    return (Made(error=said[0]) if said else Made(replace(built, cuda_text=text, cubin=binary.cubin), resources)), p


def _cubin(n: int) -> tuple[str | None, bytes, str]:
    m, _ = made(VARIANTS[n])
    return m.error, m.built.cubin if m.built else b"", m.built.cuda_text if m.built else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    with ProcessPoolExecutor(min(processes(), len(VARIANTS)), mp_context=multiprocessing.get_context("spawn")) as executor:
        cubins = list(executor.map(_cubin, range(len(VARIANTS))))
    for v, (wrong, _, _) in zip(VARIANTS, cubins):
        if wrong or args.compile_only:
            print(f"{v[3]}: {wrong or 'compiles'}", flush=True)
    if args.compile_only:
        return 0
    ways: list[Checked] = []
    for v, (wrong, cubin, text) in zip(VARIANTS, cubins):
        spec, schedule, _, label, right, _ = v
        if wrong:
            continue
        p = before.build((spec, 128, "sm_90a", fc.Schedule.parse(schedule)))
        assert not isinstance(p, str)
        built = replace(p.built, cuda_text=text, cubin=cubin)
        launch, call = launcher(Made(built, None)), before.arguments(p, 128)
        launch(call)
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        off = error(launch, p, spec) if right else 0.0
        if not off <= before.LIMIT:
            print(f"{label}: rms error {off:.1e}")
            continue
        ways.append(Checked(label, partial(launch, call), off, off))
    times = round_robin(ways, 8, args.rounds, warm=2)
    wrong_on_purpose = {v[3] for v in VARIANTS if not v[4]}
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
