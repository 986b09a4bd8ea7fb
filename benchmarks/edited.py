# ruff: noqa: E501
"""What a generated kernel's time goes to: its CUDA text with parts left out or put elsewhere, timed beside the whole.

    python -m benchmarks.edited --json out/edited.json
    python -m benchmarks.edited --compile-only

A variant that leaves work out is wrong by intent, and says so; one that only moves work is compared with float64 as everything else.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import fcgen as fc
from fcgen.passes.machine import carried
from fcgen.runtime import nvrtc

from . import prologues as before
from .ceilings import ceilings
from .environment import facts
from .gemms import CASES, LIMIT, _next, compiled, errors, prepared
from .pool import Made, launcher, write_json
from .timing import Checked, finishes, round_robin

Edit = tuple[str, str]
INT4 = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 128}, warps=4, math=wgmma, copy=tma, stages=4, epilogue=direct, min_blocks=2, pdl=True"
INT4_WIDE = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 256}, warps=8, math=wgmma, copy=tma, stages=5, epilogue=direct, pdl=True"
NORM = "tiles={BK: 64, BM: 128, BN: 256}, warps=8, math=wgmma, copy=tma, stages=3, epilogue=tma, persistent=static, l2=32"
#: no product: its lines are gone
PRODUCTS: Edit = (r"wgmma_m64n16k16_f16_rs<0>\([^;]*;", ";")
#: no unpacking: packed bytes go into the product as they are
UNPACK: list[Edit] = [(r"add_f16x2\(spread_bytes\(w\[word_w\(i\)\], i % 2\) & 0x640f640fu, 0xe408e408u\)", "w[i / 2]"),
                      (r"fma_f16x2\(spread_bytes\(w\[word_w\(i\)\], i % 2\) & 0x64f064f0u, 0x2c002c00u, 0xd480d480u\)", "w[i / 2]")]
#: products of the two blocks of rows take turns
TURNS: list[Edit] = [(r"(for \(int m = 0; m < 2; \+\+m\))\n(\s*#pragma unroll\n\s*)(for \(int k = 0; k < 8; \+\+k\))", r"\3\n\2\1")]
#: no reads of the tile: one word of it
READS: list[Edit] = [(r"const uint32_t lo = ld_shared_b16.*", "const uint32_t lo = i ? w[0] : ld_shared_b16(w_at);"),
                     (r"const uint32_t hi = ld_shared_b16.*", "const uint32_t hi = lo;")]
#: X is neither copied nor waited for
X: list[Edit] = [(r"mbar_expect\(x_tile[^;]*;\n\s*tma_load_3d\(x_tile[^;]*;", ";"), (r"mbar_wait\(x_tile[^;]*;", ";")]


def _flying(slots: int, words: int, unroll: int) -> list[Edit]:
    """The product of an iteration stays in flight while the next one's operand is made in other registers."""
    free = f"__syncwarp(); if (lane == 0) mbar_arrive(w_tile_empty + (w_tile_slot == 0 ? {slots - 1} : w_tile_slot - 1) * 8);"
    return [(r"#pragma unroll 1\n(\s*for \(int ks_tile_2)", rf"uint32_t prev[{words}];\n#pragma unroll\nfor (int i = 0; i < {words}; ++i) "
             rf"prev[i] = 0;\ntouch(acc);\nwgmma_fence();\n#pragma unroll {unroll}\n\1"),
            (r"touch\(acc\);\n(\s*touch_b32\(tmp_3\);\n\s*wgmma_fence)", r"\1"),
            (r"wgmma_wait<0>\(\);\n\s*touch\(acc\);\n\s*touch_b32\(tmp_3\);\n\s*__syncwarp\(\);\n\s*if \(lane == 0\) mbar_arrive\(w_tile_empty [^;]*;",
             rf"wgmma_wait<1>();\ntouch_b32(prev);\n#pragma unroll\nfor (int i = 0; i < {words}; ++i) prev[i] = tmp_3[i];\n"
             rf"if (ks_tile_2 != 0) {{ {free} }}"),
            (r"(// for ks in [^\n]*\n\s*#pragma unroll 1\n\s*for \(int unread)",
             rf"wgmma_wait<0>();\ntouch(acc); touch_b32(prev);\nif (ks_tile_to_2 > 0) {{ {free} }}\n\1")]


def _pieces(slots: int, steps: int) -> list[Edit]:
    """The operand of 16 columns is made while the products of those before it run."""
    free = f"__syncwarp(); if (lane == 0) mbar_arrive(w_tile_empty + (w_tile_slot == 0 ? {slots - 1} : w_tile_slot - 1) * 8);"
    hold = 'for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(tmp_3[4 * k + j]) :: "memory");\n'
    make = ("for (int j = 0; j < 4; ++j) { const int i = 4 * k + j; "
            "tmp_3[i] = pack_f16(x[2 * i] * tmp_2[col_tmp_3(2 * i)], x[2 * i + 1] * tmp_2[col_tmp_3(2 * i + 1)]); }\n")
    return [(r"#pragma unroll 1\n(\s*for \(int ks_tile_2)", f"uint32_t tmp_3[{4 * steps}];\n#pragma unroll\nfor (int i = 0; i < {4 * steps}; ++i) "
             "tmp_3[i] = 0;\ntouch(acc);\nwgmma_fence();\n#pragma unroll 1\n\\1"),
            (r"uint32_t tmp_3\[\d+\];\n(\s*)#pragma unroll\n\s*for \(int i = 0; i < \d+; \+\+i\)\n\s*tmp_3\[i\] = pack_f16[^;]*;", r"\1;"),
            (r"touch\(acc\);\n\s*touch_b32\(tmp_3\);\n\s*wgmma_fence\(\);\n\s*#pragma unroll\n\s*for \(int k = 0; k < \d+; \+\+k\)\n([^;]*;)\n\s*wgmma_commit\(\);",
             f"#pragma unroll\nfor (int k = 0; k < {steps}; ++k) {{\nwgmma_wait<{steps - 1}>();\n{hold}{make}{hold}wgmma_fence();\n\\1\nwgmma_commit();\n}}\n"
             f"if (ks_tile_2 != 0) {{ {free} }}"),
            (r"wgmma_wait<0>\(\);\n\s*touch\(acc\);\n\s*touch_b32\(tmp_3\);\n\s*__syncwarp\(\);\n\s*if \(lane == 0\) mbar_arrive\(w_tile_empty [^;]*;", ";"),
            (r"(// for ks in [^\n]*\n\s*#pragma unroll 1\n\s*for \(int unread)",
             rf"wgmma_wait<0>();\ntouch(acc); touch_b32(tmp_3);\nif (ks_tile_to_2 > 0) {{ {free} }}\n\1")]


SQUARES: Edit = (r"squares\[i\] = squares\[i\] \+ sum_x_times_x\[i\];", ";")
OPEN: Edit = (r"proxy_fence\(\);(\n\s*__syncwarp\(\);\n\s*if \(lane == 0\) mbar_arrive\([xg]_tile_empty)", r";\1")
ANY_FENCE: Edit = (r"\n\s*proxy_fence\(\);", "")
#: factors are read behind the tile, before anything is computed
FIRST: list[Edit] = [
    (r"(ldmatrix_x4\(&tmp_2[^;]*;)", r"\1\n@@"),
    (r"(\n\s*mbar_wait\(g_tile_full \+ g_tile_slot \* 8, g_tile_parity\);\n\s*float tmp_3\[\d+\];\n[^;]*;\n\s*#pragma unroll\n[^;]*; i < \d+; \+\+i\)\n"
     r"\s*ld_shared_f32x2[^;]*;)", r"//##\1\n//##"),
    (r"@@(.*?)//##(.*?)//##", r"\2\1")]
#: slots are let go behind the product
BEHIND: list[Edit] = [(r"(proxy_fence\(\);\n\s*__syncwarp\(\);\n\s*if \(lane == 0\) mbar_arrive\(x_tile_empty[^;]*;\n[^\n]*\n)(.*?)"
                       r"proxy_fence\(\);\n(\s*__syncwarp\(\);\n\s*if \(lane == 0\) mbar_arrive\(g_tile_empty[^;]*;\n[^\n]*\n)(.*?wgmma_commit\(\);\n)", r"\2\4\1\3")]
FACTORS: Edit = (r"ld_shared_f32x2\(&(tmp_\d)\[i \* 2\], g_tile_at[^;]*;", r"\1[2 * i] = \1[2 * i + 1] = 1.0f + lane;")
CAST: Edit = (r"pack_f16\(x\[2 \* i\] \* tmp_\d\[[^;]*;", r"__float_as_uint(x[2 * i]);")
LEFT: Edit = (r"ldmatrix_x4\(&(tmp\w*)\[i \* 4\], x_tile_at[^;]*;", r"\1[4 * i] = \1[4 * i + 1] = \1[4 * i + 2] = \1[4 * i + 3] = lane + i;")
_MMA = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 128}, warps=4, math=mma, copy=tma, stages=4, epilogue=direct, min_blocks=2, pdl=True"
MMA = [_MMA, _MMA.replace("stages=4", "stages=3"), _MMA.replace("warps=4", "warps=8"), _MMA.replace("BLOCK_K: 128", "BLOCK_K: 64").replace("stages=4", "stages=8"),
       _MMA.replace("N: 128", "N: 64").replace("s=2", "s=4").replace("stages=4", "stages=3"), _MMA.replace("N: 128", "N: 64").replace("s=2", "s=3"),
       _MMA.replace("K: 128", "K: 256").replace("stages=4", "stages=2"), _MMA.replace("N: 128", "N: 256").replace("warps=4", "warps=8").replace(", min_blocks=2", ""),
       _MMA.replace("N: 128", "N: 64").replace("K: 128", "K: 256").replace("stages=4", "stages=3"), _MMA.replace(", pdl=True", "")]
def _turns(late: bool, flying: bool = False) -> list[Edit]:
    """Warpgroups issue their products one after the other. late: the turn is over when they are done, not when they are issued."""
    give = 'asm volatile("bar.arrive %0, 256;" :: "r"(6 - warp / 4) : "memory");'
    first = r"(touch_b32\(tmp_4\);\n\s*wgmma_fence)" if flying else r"(touch\(acc\);\n\s*touch_b32\(tmp_3\);\n\s*wgmma_fence)"
    return [(r"(\n\s*while \(go_2\))", f'if (warp / 4 == 1) {{ {give.replace("6 - warp / 4", "5")} }}\\1'),
            (first, r'asm volatile("bar.sync %0, 256;" :: "r"(5 + warp / 4) : "memory");\n\1'),
            (r"(wgmma_wait<0>\(\);\n\s*touch\(acc\);\n\s*touch_b32\(tmp_3\);)", rf"\1\n{give}") if late else
            (r"(wgmma_commit\(\);)", rf"\1\n{give}")]


#: case, schedule, what is done, is the result right, edits
VARIANTS: list[tuple[str, str, str, bool, list[Edit]]] = [
    ("int4-16", INT4, "two blocks of 128", True, []), ("int4-16", INT4, "two blocks of 128, no fences", True, [ANY_FENCE]),
    ("int4-16", INT4_WIDE, "one block of 256, no fences", True, [ANY_FENCE]),
    ("int4-16", INT4.replace("BLOCK_K: 128", "BLOCK_K: 64").replace("stages=4", "stages=8"), "steps of 64", True, []),
    ("int4-16", INT4.replace("BLOCK_K: 128", "BLOCK_K: 64").replace("stages=4", "stages=8"), "steps of 64, no fences", True, [ANY_FENCE]),
    ("int4-16", _MMA, "mma", True, []), ("int4-16", _MMA, "mma, no fences", True, [ANY_FENCE]),
    ("int4-16", MMA[2], "mma, 8 warps, no fences", True, [ANY_FENCE]), ("int4-16", MMA[7], "mma, one block of 256, no fences", True, [ANY_FENCE]),
    ("int4-16", MMA[3], "mma, steps of 64, no fences", True, [ANY_FENCE]),
    ("int4-16", MMA[4], "mma, four blocks of 64, no fences", True, [ANY_FENCE]),
    ("int4-16", _MMA, "mma, no fences, no products", False, [ANY_FENCE, (r"mma_m16n8k16_f16\(&acc[^;]*;", ";")]),
    ("int4-16", _MMA, "mma, no fences, no X", False, [ANY_FENCE, (r"ldmatrix_x4\((x_tile\w*), [^;]*;", r"\1[0] = \1[1] = \1[2] = \1[3] = lane;")]),
    ("int4-16", _MMA, "mma, no fences, no reads", False, [ANY_FENCE, *READS]),
    *((case, t, f"as it is: {t[:50]} {'cluster' if 'cluster' in t else ''}", True, []) for case in ("norm", "norm-same") for t in (
        NORM, NORM.replace("BK: 64", "BK: 32").replace("stages=3", "stages=6"), NORM + ", cluster={rows: 2}",
        NORM.replace("BK: 64", "BK: 128").replace("stages=3", "stages=2").replace("BN: 256", "BN: 192"),
        NORM.replace("BN: 256", "BN: 240"))),
    ("norm-same", NORM.replace("BM: 128", "BM: 256").replace("BN: 256", "BN: 128"), "as it is: 256 x 128", True, []),
]

ROTARY = "tiles={BLOCK_M: 128, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, stages={c: 0, s: 0}, epilogue=quad, late=acc, makers=4"
TABLES: list[Edit] = [(r"if \([^()]*\) ld_global_b32x4\([cs](_\d+)?, [^;]*;", ";")]
TILES: list[Edit] = [(r"ld_shared_b32x4\(([xy](_\d+)?), [^;]*;", r"\1[0] = \1[1] = \1[2] = \1[3] = lane;")]
MATH: list[Edit] = [(r"= (sub|add)_f16x2\(mul_f16x2\(([xy](_\d+)?\[i\]), c[^;]*;", r"= \2;")]
STORES: list[Edit] = [(r"st_shared_b32x4\(k[01]_tile[^;]*;", ";")]
FENCES: list[Edit] = [(r"proxy_fence\(\);(\n\s*__syncwarp\(\);\n\s*if \(lane == 0\) mbar_arrive\([xy]_empty)", r";\1")]
FENCES_OF_MADE: list[Edit] = [(r"proxy_fence\(\);(\n\s*__syncwarp\(\);\n\s*if \(lane == 0\) mbar_arrive\(k[01]_tile_full)", r";\1")]
#: spec, schedule, what is done, edits
BEFORE: list[tuple[str, str, str, list[Edit]]] = [
    ("plain", ROTARY.replace("stages={c: 0, s: 0}, ", "").replace(", makers=4", ""), "plain", []),
    ("rotated", ROTARY, "whole", []),
]


def prologues(rounds: int, compile_only: bool) -> list[dict[str, Any]]:
    """Times beside the plain kernel's."""
    ways = []
    for spec, schedule, label, edits in BEFORE:
        p = before.build((spec, 128, "sm_90a", fc.Schedule.parse(schedule)))
        m = Made(error=p) if isinstance(p, str) else edited(Made(p.built, p.resources), edits)
        print(f"rotary, {label}: {m.error or m.resources}") if m.error or compile_only else None
        if m.error or compile_only:
            continue
        off = before.error(p, spec, 128) if not edits else 0.0
        if not off <= before.LIMIT:
            print(f"{label}: rms error {off:.1e}")
            continue
        launch, call = launcher(m), before.arguments(p, 128)
        launch(call)
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        ways.append(Checked(label, partial(launch, call), off, off))
    times = round_robin(ways, 8, rounds, warm=2) if ways else {}
    for w in ways:
        print(f"{times[w.name].ms * 1e3:8.1f} us  {times[w.name].ms / times['plain'].ms:.3f} x plain's time  rotary: {w.name}")
    return [{"case": "rotary", "name": w.name, "ms": times[w.name].ms, "ratio": times[w.name].ms / times["plain"].ms} for w in ways]


def edited(made: Made, edits: list[Edit]) -> Made:
    text = made.built.cuda_text
    for old, new in edits:
        text, n = re.subn(old, new, text, count=old.startswith(('@@', '(proxy')), flags=re.DOTALL * old.startswith(('@@', '(proxy')))
        if not n:
            return Made(error=f"nothing in the text is {old}")
    if not edits:
        return made
    binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    said = [w for w in binary.warnings if "(C7" in w]
    return Made(error=said[0]) if said else Made(replace(made.built, cuda_text=text, cubin=binary.cubin), made.resources)


def settled(case: str, schedule: str) -> Made:
    """Compiled with each product waited for in its iteration."""
    room, carried.APART = carried.APART, 1 << 20
    with tempfile.TemporaryDirectory() as folder:
        before, os.environ["FCGEN_CACHE_DIR"] = os.environ.get("FCGEN_CACHE_DIR", ""), folder
        try:
            return compiled((case, schedule, "sm_90a", "fp16"))[1]
        finally:
            carried.APART = room
            os.environ["FCGEN_CACHE_DIR"] = before
            if not before:
                del os.environ["FCGEN_CACHE_DIR"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=(*CASES, "rotary"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    chosen = [v for v in VARIANTS if not args.only or v[0] in args.only]
    texts = list(dict.fromkeys((case, s, "sm_90a", "fp16") for case, s, *_ in chosen))
    of = dict(zip(texts, (m for _, m in prepared(texts))))
    made = [of[case, s, "sm_90a", "fp16"] if not case.startswith("norm") or label.startswith("as it is") else settled(case, s) for case, s, label, *_ in chosen]
    made = [m if m.error else edited(m, v[4]) for m, v in zip(made, chosen)]
    for m, v in zip(made, chosen):
        if m.error or args.compile_only:
            print(f"{v[0]}, {v[2]}: {m.error or 'compiles'}", flush=True)
    table: list[dict[str, Any]] = prologues(args.rounds, args.compile_only) if not args.only or "rotary" in args.only else []
    if args.compile_only:
        return 0
    import torch

    board = ceilings("fp16")
    print(f"cuBLAS {board['gemm_tflops']:.0f} TFLOP/s, a copy {board['copy_gbps']:.0f} GB/s")
    for name in dict.fromkeys(v[0] for v in chosen):
        torch.manual_seed(0)
        problem = CASES[name].make(torch.float16, CASES[name].sizes())
        ways = [Checked(n, run, 0.0, 0.0) for n, run in problem.library.items()]
        for m, (case, _, label, right, _) in zip(made, chosen):
            if case != name or m.error:
                continue
            out = torch.full(problem.shape, float("nan"), device="cuda", dtype=torch.float16)
            launch, given = launcher(m), [{**call, problem.out: out} for call in problem.calls]
            launch(given[0])
            if not finishes():
                raise SystemExit(f"{label}: the kernel does not end")
            off = errors(problem, out) if right else (0.0, 0.0)
            if not off[1] <= LIMIT["fp16"]:
                print(f"{name}, {label}: rms error {off[1]:.1e}")
                continue
            ways.append(Checked(label, partial(_next, launch, itertools.cycle(given)), *off))
        few = problem.shape[0] <= 16
        times = round_robin(ways, 200 if few else 8, args.rounds, warm=2)
        for w in ways:
            ms = times[w.name].ms
            row: dict[str, Any] = {"case": name, "name": w.name, "ms": ms, "tflops": problem.products / ms / 1e9,
                                   "gbps": problem.moved / ms / 1e6, "of_cublas": times[ways[0].name].ms / ms}
            print(f"{ms * 1e3:8.1f} us  {row['tflops']:5.0f} TFLOP/s  {row['of_cublas']:.3f} of cuBLAS  {row['gbps'] / board['copy_gbps']:.3f} of a copy"
                  f"  {name}: {w.name}", flush=True)
            table.append(row)
    write_json(args.json, {"part": "edited", "environment": facts(), "ceilings": board, "table": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
