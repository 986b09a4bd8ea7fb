# ruff: noqa: E501
"""Kernels whose printed text is changed by hand, timed beside what is printed: what an order or a part costs. Variants that leave work out
are wrong by intent and say so; all others are compared with float64 first.

    python -m benchmarks.edited --only norm-same --json out/edited.json
    python -m benchmarks.edited --compile-only
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import fcgen as fc
from fcgen.runtime import cubin, nvrtc

from .environment import facts
from .gemms import CALLS, LIMIT, SHORT, _next, case_of, compiled, errors, recorded
from .pool import Made, launcher, processes, write_json
from .timing import Checked, finishes, round_robin

NORM = "tiles={BK: 64, BM: 128, BN: 256}, warps=8, math=wgmma, copy=tma, stages=3, epilogue=tma, persistent=static, l2=32"


def main_of(t: str) -> tuple[str, str]:
    i = t.index("role main")
    return t[:i], t[i:]


def sub(pattern: str, to: Any, t: str, count: int = 1) -> str:
    head, body = main_of(t)
    body, n = re.subn(pattern, to, body, count=count, flags=re.S)
    assert n, pattern
    return head + body


def waits_apart(t: str) -> str:
    """The row is waited for where it is read."""
    t = sub(r"mbar_wait\(g_tile_full \+ g_tile_slot \* 8, g_tile_parity\);\n", "", t)
    return sub(r"(                (?:uint32_t|float) tmp_\d+\[\d+\];\n                const uint32_t g_tile_at)", r"                mbar_wait(g_tile_full + g_tile_slot * 8, g_tile_parity);\n\1", t)


def halves(t: str) -> str:
    """The first half of the operand is multiplied while the second is made."""
    head, body = main_of(t)
    made = re.search(r"touch_b32\((tmp_\d+)\);\n                wgmma_fence", body)[1]  # type: ignore[index]
    first = re.search(r"                #pragma unroll\n                for \(int i = 0; i < 16; \+\+i\)\n                    " + made + r"\[i\] = [^\n]*\n", body)
    product = re.search(r"                mbar_wait\(w_tile_full[^\n]*\n                touch_b32.*?wgmma_commit\(\);\n", body, re.S)
    release = re.search(r"                proxy_fence\(\);\n                __syncwarp.*?(?=                mbar_wait\(w_tile_full)", body, re.S)
    assert first and product and release
    touch = lambda a, b: f"                #pragma unroll\n                for (int i = {a}; i < {b}; ++i) asm volatile(\"\" : \"+r\"({made}[i]) :: \"memory\");\n"
    gemm = re.search(r"                #pragma unroll\n                for \(int k = 0; k < 4; \+\+k\)\n[^\n]*\n", product[0])
    wait = product[0].split("\n", 1)[0] + "\n"
    assert gemm
    half = lambda a, b: touch(8 * a, 8 * b) + "                wgmma_fence();\n" + gemm[0].replace("k = 0; k < 4", f"k = {2 * a}; k < {2 * b}") + "                wgmma_commit();\n"
    new = first[0].replace("i < 16", "i < 8") + wait + half(0, 1) + first[0].replace("i = 0", "i = 8") + release[0] + half(1, 2)
    body = body.replace(product[0], "", 1).replace(release[0], "", 1).replace(first[0], new, 1)
    return head + body.replace("wgmma_wait<1>();", "wgmma_wait<2>();", 1)


def squares_later(t: str) -> str:
    """The squares are added behind the wait for the product before."""
    head, body = main_of(t)
    found = re.search(r"                // squares <<=.*?squares\[i\] = squares\[i\] \+ sum_x_times_x\[i\];\n", body, re.S)
    assert found
    body = body.replace(found[0], "", 1)
    at = body.index("if (++w_tile_slot == 3)")
    at = body.rindex("\n", 0, at) + 1
    return head + body[:at] + found[0] + body[at:]


def four_chains(t: str) -> str:
    """Sums of squares of a row in four parts."""
    t = sub(r"float part\[2\];", "float part[4];", t)
    t = sub(r"part\[i % 2\] = i < 2 \? ([^:]*) : part\[i % 2\] \+", r"part[i % 4] = i < 4 ? \1 : part[i % 4] +", t)
    return sub(r"= part\[0\] \+ part\[1\];", "= (part[0] + part[1]) + (part[2] + part[3]);", t)


def squares_first(t: str) -> str:
    """The squares are added before the product is issued."""
    head, body = main_of(t)
    found = re.search(r"                // squares <<=.*?squares\[i\] = squares\[i\] \+ sum_x_times_x\[i\];\n", body, re.S)
    assert found
    body = body.replace(found[0], "", 1)
    at = body.index("wgmma_fence();")
    at = body.rindex("\n", 0, at) + 1
    return head + body[:at] + found[0] + body[at:]


def no_row(t: str) -> str:
    """The row of factors is read once."""
    if "ld_shared_f32x2(&" in main_of(t)[1]:
        return sub(r"ld_shared_f32x2\(&(\w+)\[i \* 2\], g_tile_at \+ i \* 32\);", r"\1[i * 2] = \1[i * 2 + 1] = 1.0f + float(g_tile_slot);", t)
    return sub(r"ld_shared_b32x1\(&(\w+)\[i\], g_tile_at \+ i \* 16\);", r"\1[i] = 0x3c003c00u + g_tile_slot;", t)


def no_squares(t: str) -> str:
    return sub(r"squares\[i\] = squares\[i\] \+ sum_x_times_x\[i\];", ";", t)


Edits = tuple[Callable[[str], str], ...]
VARIANTS: dict[str, list[tuple[str, str, bool, Edits]]] = {
    "norm-same": [(NORM, "as it is", True, ()), (NORM, "squares first", True, (squares_first,)), (NORM, "squares later", True, (squares_later,)),
                  (NORM, "halves", True, (halves,)), (NORM, "halves, squares later", True, (halves, squares_later)),
                  (NORM, "waits apart", True, (waits_apart,)), (NORM, "four chains", True, (four_chains,)), (NORM + ", cluster={cols: 2}", "cluster", True, ()),
                  (NORM, "no row", False, (no_row,))],
    "norm": [(NORM, "as it is", True, ()), (NORM, "waits apart", True, (waits_apart,)), (NORM, "waits apart, squares first", True, (waits_apart, squares_first)),
             (NORM, "waits apart, squares later", True, (waits_apart, squares_later)), (NORM, "halves", True, (halves,)),
             (NORM, "halves, waits apart", True, (waits_apart, halves)), (NORM, "halves, squares later", True, (halves, squares_later)),
             (NORM, "halves, waits apart, squares later", True, (waits_apart, halves, squares_later)), (NORM, "squares first", True, (squares_first,)),
             (NORM, "waits apart, four chains", True, (waits_apart, four_chains)), (NORM, "no row", False, (no_row,)),
             (NORM, "waits apart, no row", False, (waits_apart, no_row)), (NORM, "waits apart, no squares", False, (waits_apart, no_squares))],
}


def made(job: tuple[str, int]) -> Made:
    case, n = job
    schedule, _, _, edits = VARIANTS[case][n]
    m = compiled((case, schedule, "sm_90a", "fp16"))[1]
    if m.error:
        return m
    text = m.built.cuda_text
    try:
        for edit in edits:
            new = edit(text)
            if new == text:
                return Made(error=f"{edit.__name__} changes nothing")
            text = new
    except AssertionError as e:
        return Made(error=f"an edit found no {e}")
    if not edits:
        return m
    try:
        binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    except fc.FcError as e:
        return Made(error=str(e)[:600])
    said = [w for w in binary.warnings if "(C7" in w]
    stack = next(iter(cubin.resources(binary.cubin).values())).stack_bytes
    return Made(error=said[0] if said else f"spills {stack} bytes") if said or stack else Made(replace(m.built, cuda_text=text, cubin=binary.cubin), m.resources)


def measure(case: str, all_made: list[Made], rounds: int) -> list[dict[str, Any]]:
    import torch

    torch.manual_seed(0)
    problem = case_of(case).make(torch.float16, case_of(case).sizes())
    plain = next(iter(problem.library.values()))()
    ways = [Checked(n, run, 0.0, 0.0) for n, run in problem.library.items()]
    for (_, label, right, _), m in zip(VARIANTS[case], all_made):
        if m.error:
            print(f"    without {label}: {m.error}")
            continue
        out = torch.full(problem.shape, float("nan"), device="cuda", dtype=plain.dtype)
        launch, given = launcher(m), [{**call, problem.out: out} for call in problem.calls]
        launch(given[0])
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        off = errors(problem, out)
        if right and not off[1] <= LIMIT["fp16"]:
            print(f"    WRONG {label}: {off}")
            continue
        ways.append(Checked(label if right else f"{label} (wrong by intent)", partial(_next, launch, itertools.cycle(given)), 0.0, 0.0))
    calls = 1 if problem.products > SHORT else CALLS
    kept = ways if calls == 1 else [replace(w, run=recorded(w.run, calls)) for w in ways]
    times = round_robin(kept, max(6, round(10e-3 / (problem.products / 6e14))) if calls == 1 else 10, rounds, warm=2)
    rows = []
    for w in ways:
        ms = times[w.name].ms / calls
        rows.append({"case": case, "name": w.name, "ms": ms, "of_cublas": times[ways[0].name].ms / calls / ms, "gbps": problem.moved / ms / 1e6, "spread": times[w.name].spread})
        print(f"{ms * 1e3:9.1f} us  {rows[-1]['of_cublas']:.3f} of cuBLAS  {rows[-1]['gbps']:5.0f} GB/s  +-{times[w.name].spread:.3f}  {case}: {w.name}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    cases = args.only or list(VARIANTS)
    jobs = [(case, n) for case in cases for n in range(len(VARIANTS[case]))]
    with ProcessPoolExecutor(min(processes(), len(jobs)), mp_context=get_context("spawn")) as executor:
        done = dict(zip(jobs, executor.map(made, jobs)))
    if args.compile_only:
        for case, n in jobs:
            m = done[case, n]
            print(f"{case}: {VARIANTS[case][n][1]}: {m.error or m.resources}")
        return 0
    table = [row for case in cases for row in measure(case, [done[case, n] for n in range(len(VARIANTS[case]))], args.rounds)]
    write_json(args.json, {"part": "edited", "environment": facts(), "table": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
