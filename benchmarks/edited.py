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
MMA = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 128}, warps=4, math=mma, copy=tma, stages=4, epilogue=direct, min_blocks=2, pdl=True"
RS = MMA.replace("math=mma", "math=wgmma")


def main_of(t: str) -> tuple[str, str]:
    i = t.index("role main")
    return t[:i], t[i:]


def sub(pattern: str, to: Any, t: str, count: int = 1) -> str:
    head, body = main_of(t)
    body, n = re.subn(pattern, to, body, count=count, flags=re.S)
    assert n, pattern
    return head + body


def tiles_ahead(t: str) -> str:
    """What is worked upon is asked for an iteration before what is not: its slots are free earlier."""
    loop = re.search(r"                for \(int ks_tile = 0; ks_tile < ks_tile_to; \+\+ks_tile\) \{\n(\s*const int ks_start = ks_tile \* 64;\n)(.*?)(                    mbar_wait\(w_tile_empty.*?)                \}\n", t, re.S)
    assert loop
    first, made, rest = loop[1], loop[2], loop[3]
    new = "                if (ks_tile_to > 0) {\n                    const int ks_start = 0;\n" + made + "                }\n"
    new += "                #pragma unroll 1\n                for (int ks_tile = 0; ks_tile < ks_tile_to; ++ks_tile) {\n                    if (ks_tile + 1 < ks_tile_to) {\n"
    new += "                    const int ks_start = ks_tile * 64 + 64;\n" + made + "                    }\n" + first + rest + "                }\n"
    return t.replace("                #pragma unroll 1\n" + loop[0], new)


def one_fence(t: str) -> str:
    """The tile and the row are let go together."""
    for x, g in (("x", "g_tile"), ("x_tile", "g_tile")):
        if f"{x}_empty" in main_of(t)[1]:
            gone = rf"proxy_fence\(\);\s*__syncwarp\(\);\s*if \(lane == 0\) mbar_arrive\({x}_empty \+ {x}_slot \* 8\);\s*if \(\+\+{x}_slot == 3\)[^\n]*\n"
            t = sub(gone, "", t)
            put = rf"if \(lane == 0\) mbar_arrive\({g}_empty \+ {g}_slot \* 8\);\n"
            return sub(put, f"if (lane == 0) {{ mbar_arrive({x}_empty + {x}_slot * 8); mbar_arrive({g}_empty + {g}_slot * 8); }}\n"
                       f"                if (++{x}_slot == 3) {{ {x}_slot = 0; {x}_parity ^= 1; }}\n", t)
    raise AssertionError("no tile")


def waits_first(t: str) -> str:
    """The row is waited for with the tile."""
    t = sub(r"mbar_wait\(g_tile_full \+ g_tile_slot \* 8, g_tile_parity\);\n", "", t)
    return sub(r"(mbar_wait\(x(?:_tile)?_full[^\n]*\n)", r"\1                mbar_wait(g_tile_full + g_tile_slot * 8, g_tile_parity);\n", t)


def all_waits_first(t: str) -> str:
    """The tile that is read as it is, too."""
    t = sub(r"                mbar_wait\(w_tile_full \+ w_tile_slot \* 8, w_tile_parity\);\n", "", t)
    return sub(r"(mbar_wait\(g_tile_full[^\n]*\n)", r"\1                mbar_wait(w_tile_full + w_tile_slot * 8, w_tile_parity);\n", t)


def apart(t: str) -> str:
    """The second warpgroup begins each tile half a step later."""
    return sub(r"(float acc\[128\];)", r"if (warp / 4 == 1) __nanosleep(300);\n            \1", t)


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


# ---- int4 ----


def blocks_of_words(t: str) -> str:
    """The bytes are read by ldmatrix, each lane four that lie next to each other: of the right cost, with wrong numbers."""
    loop = re.search(r"for \(int i = 0; i < 32; \+\+i\) \{\s*const uint32_t lo = ld_shared_b16.*?\n            \}", t, re.S)
    assert loop
    t = t.replace(loop[0], "for (int i = 0; i < 8; ++i)\n                ldmatrix_x4(&w[i * 4], (w_at ^ (i % 4 * 32)) + i / 4 * 2048);")
    return t.replace("const uint32_t w_lane = swizzle<0x70>(warp * 4096 + lane / 4 * 128 + lane % 4 * 2);",
                     "const uint32_t w_lane = swizzle<0x70>(warp * 4096 + lane % 16 * 128 + lane / 16 * 16);")


def words_of_x(t: str) -> str:
    """X is read 8 bytes a lane."""
    def pair(m: re.Match[str]) -> str:
        return (f"#pragma unroll\n                for (int j = 0; j < 2; ++j)\n                    asm volatile(\"ld.shared.v2.b32 {{%0, %1}}, [%2];\" : \"=r\"({m[1]}[j * 2]), "
                f"\"=r\"({m[1]}[j * 2 + 1]) : \"r\"((({m[2]}) ^ ({m[3]} % 4 * 32)) + {m[3]} / 4 * 2048 + j * 1024) : \"memory\");")

    t, n = re.subn(r"ldmatrix_x4\((x_tile(?:_2)?), \((\w+) \^ \((\w+) % 4 \* 32\)\) \+ \w+ / 4 \* 2048\);", pair, t)
    assert n == 2, n
    return t.replace("swizzle<0x70>(lane / 16 * 1024 + lane / 8 % 2 * 16 + lane % 8 * 128)", "swizzle<0x70>(lane / 4 * 128 + lane % 4 * 8)")


def short_unpacking(t: str) -> str:
    """Two numbers by one logical operation, of words whose bytes lie as they are wanted."""
    t = t.replace("add_f16x2(spread_bytes(w[word_w(i)], i % 2) & 0x640f640fu, 0xe408e408u)", "add_f16x2(((i % 2 ? w[i / 2] >> 8 : w[i / 2]) & 0x000f000fu) | 0x64006400u, 0xe408e408u)")
    t = t.replace("fma_f16x2(spread_bytes(w[word_w(i)], i % 2) & 0x64f064f0u, 0x2c002c00u, 0xd480d480u)", "fma_f16x2(((i % 2 ? w[i / 2] >> 8 : w[i / 2]) & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, 0xd480d480u)")
    return t


def interleaved(t: str) -> str:
    """Bytes lie in a word as two of them are wanted."""
    return t.replace("w[i] = lo | hi << 16;", "w[i] = __byte_perm(lo, hi, 0x5140);")


def no_products(t: str) -> str:
    return sub(r"mma_m16n8k16_f16\(&(\w+)\[([^\]]*)\], &(\w+)\[([^\]]*)\], &(\w+)\[([^\]]*)\]\);",
               r"\1[\2] += float(\3[\4] ^ \3[\4 + 1] ^ \3[\4 + 2] ^ \3[\4 + 3] ^ \5[\6] ^ \5[\6 + 1]);", t, 0)


def no_x(t: str) -> str:
    return sub(r"ldmatrix_x4\(x_tile(_2)?, [^;]*;", r"x_tile\1[0] = x_tile\1[1] = x_tile\1[2] = x_tile\1[3] = lane;", t, 0)


def no_reads(t: str) -> str:
    loop = re.search(r"for \(int i = 0; i < 32; \+\+i\) \{\s*const uint32_t lo = ld_shared_b16.*?\n            \}", t, re.S)
    assert loop
    return t.replace(loop[0], "for (int i = 0; i < 32; ++i)\n                w[i] = lane + i + w_slot;")


def no_fences(t: str) -> str:
    head, body = main_of(t)
    return head + body.replace("proxy_fence();", "")


def one_fence_4(t: str) -> str:
    """All three tiles are let go at the end of an iteration."""
    head, body = main_of(t)
    gone = r"            proxy_fence\(\);\s*__syncwarp\(\);\s*if \(lane == 0\) mbar_arrive\((w_empty|x_tile_empty|x_tile_empty_2) \+ (\w+) \* 8\);\s*if \(\+\+\w+ == 4\) [^\n]*\n"
    parts = list(re.finditer(gone, body, re.S))
    assert len(parts) == 3, len(parts)
    end = parts[-1].end()
    tail = "            proxy_fence();\n            __syncwarp();\n            if (lane == 0) { " + " ".join(f"mbar_arrive({p[1]} + {p[2]} * 8);" for p in parts) + " }\n"
    tail += "".join(f"            if (++{p[2]} == 4) {{ {p[2]} = 0; {p[2].replace('slot', 'parity')} ^= 1; }}\n" for p in parts)
    out = body[:parts[0].start()] + body[parts[0].end():parts[1].start()] + body[parts[1].end():parts[2].start()] + tail + body[end:]
    return head + out


def maps_ahead(t: str) -> str:
    """Tensor maps are fetched while barriers are set up."""
    names = re.findall(r"const __grid_constant__ TensorMap (\w+)", t)
    at = t.index("{", t.index("if (threadIdx.x == 0)")) + 1
    return t[:at] + "".join(f'\n        asm volatile("prefetch.tensormap [%0];" :: "l"(&{n}) : "memory");' for n in names) + t[at:]


def scales_early(t: str) -> str:
    """What the result is multiplied by is loaded in front of the loop."""
    head, body = main_of(t)
    found = re.search(r"        grid_wait\(\);[^\n]*\n(?:        //[^\n]*\n)?        float s\[4\];.*?: 0\.0f;\n", body, re.S)
    assert found
    body = body.replace(found[0], "", 1)
    at = body.index("        float acc[")
    return head + body[:at] + found[0] + body[at:]


Edits = tuple[Callable[[str], str], ...]
BOTH = (one_fence, waits_first)
VARIANTS: dict[str, list[tuple[str, str, bool, Edits]]] = {
    "norm-same": [(NORM, "as it is", True, ()), (NORM, "one fence, waits first", True, BOTH), (NORM, "waits first", True, (waits_first,)),
                  (NORM, "all waits first", True, (*BOTH, all_waits_first)), (NORM, "one fence, waits first, again", True, BOTH),
                  (NORM, "all waits first, squares first", True, (*BOTH, all_waits_first, squares_first)),
                  (NORM, "all waits first, four chains", True, (*BOTH, all_waits_first, four_chains)),
                  (NORM, "one fence, waits first, squares later", True, (*BOTH, squares_later)),
                  (NORM, "all waits first, squares later", True, (*BOTH, all_waits_first, squares_later)),
                  (NORM, "one fence, waits first, apart", True, (*BOTH, apart)), (NORM, "as it is, apart", True, (apart,)),
                  (NORM, "no squares", False, (*BOTH, no_squares)), (NORM, "as it is, again", True, ())],
    "norm": [(NORM, "as it is", True, ()), (NORM, "one fence, waits first", True, BOTH), (NORM, "waits first", True, (waits_first,)), (NORM, "one fence", True, (one_fence,)),
             (NORM, "all waits first", True, (*BOTH, all_waits_first)), (NORM, "all waits first, squares later", True, (*BOTH, all_waits_first, squares_later)),
             (NORM, "one fence, waits first, squares later", True, (*BOTH, squares_later)),
             (NORM, "all waits first, four chains", True, (*BOTH, all_waits_first, four_chains)), (NORM, "one fence, waits first, apart", True, (*BOTH, apart)),
             (NORM, "squares later", True, (squares_later,)), (NORM, "no squares", False, (*BOTH, no_squares))],
    "int4-16": [(RS, "as printed", True, ()), (MMA, "mma", True, ()), (MMA, "mma, one fence", True, (one_fence_4,)), (RS, "wgmma, short", True, (short_unpacking, interleaved)),
                (MMA, "mma, ldmatrix, short, one fence", False, (blocks_of_words, short_unpacking, one_fence_4)),
                (MMA, "mma, no reads", False, (no_reads,)), (MMA, "mma, no products", False, (no_products,)), (MMA, "mma, no X", False, (no_x,)),
                (MMA, "mma, no fences", True, (no_fences,)),
                (RS, "maps ahead", True, (maps_ahead,)), (RS, "scales early", True, (scales_early,)), (RS, "maps ahead, scales early", True, (maps_ahead, scales_early))],
    **{shape: [("", "as it is", True, ()), ("", "maps ahead", True, (maps_ahead,))] for shape in ("16x8192x8192", "1024x1024x1024")},
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
