# ruff: noqa: E501
"""What a split of int4_gemm's depth over several programs would bring, and what is left without its products: the CUDA text of shipped
schedules, edited, and timed. Temporary.

    python -m benchmarks.gemm_parts --json $OUT/parts.json
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import fcgen as fc
from fcgen.runtime import nvrtc

from .ceilings import ceilings
from .gemms import CASES, FEW, _next, compiled, errors, of_4_bits, recorded
from .pool import Made, launcher, processes, write_json
from .timing import Checked, finishes, round_robin

Edit = tuple[str, str]
BASE = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 128}, warps=4, math=wgmma, copy=tma, stages=4, epilogue=direct, min_blocks=2, pdl=True"
WIDE = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 256}, warps=8, math=wgmma, copy=tma, stages=5, epilogue=direct, pdl=True"
K64 = BASE.replace("K: 128", "K: 64").replace("stages=4", "stages=8")
LONG = BASE.replace("K: 128", "K: 256").replace("N: 128", "N: 64")
NARROW = BASE.replace("N: 128", "N: 64").replace("s=2", "s=3").replace("stages=4", "stages=5")
FOUR = BASE.replace("N: 128", "N: 64").replace("s=2", "s=4").replace("stages=4", "stages=3")
MMA = WIDE.replace("math=wgmma", "math=mma").replace("stages=5", "stages=4")
MMA2 = BASE.replace("math=wgmma", "math=mma")
#: no product, no unpacking, no reads
ALONE: list[Edit] = [(r"wgmma_m64n16k16_f16_rs<0>\([^;]*;", ";"),
                     (r"add_f16x2\(spread_bytes\(w\[word_w\(i\)\], i % 2\) & 0x640f640fu, 0xe408e408u\)", "w[i / 2]"),
                     (r"fma_f16x2\(spread_bytes\(w\[word_w\(i\)\], i % 2\) & 0x64f064f0u, 0x2c002c00u, 0xd480d480u\)", "w[i / 2]"),
                     (r"const uint32_t lo = ld_shared_b16.*", "const uint32_t lo = i ? w[0] : ld_shared_b16(w_at);"),
                     (r"const uint32_t hi = ld_shared_b16.*", "const uint32_t hi = lo;")]


def parts(n: int) -> list[Edit]:
    """Programs along the rows of X take a part of the depth each, all for the first 16 rows."""
    return [(r"for \(int (depth_tile\w*) = 0; \1 < (depth_tile_to\w*);", rf"for (int \1 = \2 * part / {n}; \1 < \2 * (part + 1) / {n};"),
            (r"(const int rows_tile_tiles\w* = [^;]*;)", r"\1\nint part = 0;"),
            (r"(const int (cols_start\w*) = int\(blockIdx\.x\) / (rows_tile_tiles\w*)[^;]*;)", r"part = int(blockIdx.x) % \3;\n\1"),
            (r"const int rows_start = [^;]*;", "const int rows_start = 0;")]


#: mma: bytes are read with ldmatrix, a word of a row by each lane, and X as what belongs to them
LDM: list[Edit] = [
    (r"uint32_t (w_?\d*)\[32\];\n(\s*)const uint32_t (w_at) = (.*) \+ w_lane;\n(?:.*\n){6}",
     r"uint32_t \1[32];\n\2const uint32_t \3 = \4 + w_row;\n#pragma unroll\nfor (int i = 0; i < 8; ++i) ldmatrix_x4(&\1[i * 4], (\3 ^ (i % 4 * 32)) + i / 4 * 2048);\n"),
    (r"const uint32_t w_lane = swizzle<0x70>\(([^;]*)lane / 4 \* 128 \+ lane % 4 \* 2\);",
     r"const uint32_t w_row = swizzle<0x70>(\1lane % 16 * 128 + lane / 16 * 16);"),
    (r"word_w(_\d+)?\(int i\) \{ return i / 2; \}", r"word_w\1(int i) { return i / 4 * 2 + i % 2; }"),
    (r"spread_bytes\((w_?\d*)\[word_w(_\d+)?\(i\)\], i % 2\)", r"spread_bytes(\1[word_w\2(i)], i / 2 % 2)"),
    (r"ldmatrix_x4\((x_tile_\d+), \((x_tile_at\w*) \^ \((k\w*) % 4 \* 32\)\) \+ \3 / 4 \* 2048\);",
     r'for (int ni = 0; ni < 2; ++ni) asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(\1[ni * 2]), "=r"(\1[ni * 2 + 1]) : "r"((\2 ^ (\3 % 4 * 32)) + \3 / 4 * 2048 + ni * 1024) : "memory");'),
    (r"const uint32_t x_tile_lane = swizzle<0x70>\([^;]*;", "const uint32_t x_tile_lane = swizzle<0x70>(lane / 4 * 128 + lane % 4 * 8);")]
VARIANTS: list[tuple[str, str, int, bool, list[Edit]]] = [
    ("whole, two of 128", BASE, 1, True, []), ("alone, two of 128", BASE, 1, False, ALONE),
    *((f"whole, two of 128, {n} parts", BASE, n, True, parts(n)) for n in (2, 4, 7, 8)),
    *((f"alone, two of 128, {n} parts", BASE, n, False, parts(n) + ALONE) for n in (4, 7)),
    ("whole, one of 256", WIDE, 1, True, []), *((f"whole, one of 256, {n} parts", WIDE, n, True, parts(n)) for n in (4, 7, 8)),
    *((f"whole, two of 128, depth 64, {n} parts", K64, n, True, parts(n)) for n in (4, 7)),
    ("whole, three of 64", NARROW, 1, True, []), ("whole, three of 64, 4 parts", NARROW, 4, True, parts(4)),
    ("whole, depth 256, two of 64, 4 parts", LONG, 4, True, parts(4)),
    ("alone, depth 256, two of 64", LONG, 1, False, ALONE), ("alone, depth 256, two of 64, 4 parts", LONG, 4, False, parts(4) + ALONE),
    ("mma, one of 256", MMA, 1, True, []), ("mma, one of 256, ldmatrix", MMA, 1, True, LDM),
    ("mma, one of 256, ldmatrix, 4 parts", MMA, 4, True, parts(4) + LDM),
    ("mma, two of 128, ldmatrix", MMA2, 1, True, LDM), ("mma, two of 128, ldmatrix, 4 parts", MMA2, 4, True, parts(4) + LDM),
]


def made(v: tuple[str, str, int, bool, list[Edit]]) -> Made:
    _, m = compiled(("int4-16", v[1], "sm_90a", "fp16"))
    if m.error or not v[4]:
        return m
    text = m.built.cuda_text
    for old, new in v[4]:
        text, n = re.subn(old, new, text)
        if not n:
            return Made(error=f"nothing in the text is {old}")
    try:
        binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    except fc.FcError as e:
        return Made(error=str(e)[:2000])
    said = [w for w in binary.warnings if "(C7" in w]
    return Made(error=said[0]) if said else Made(replace(m.built, cuda_text=text, cubin=binary.cubin), m.resources)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    chosen = [v for v in VARIANTS if args.only in v[0]]
    with ProcessPoolExecutor(processes()) as executor:
        every = list(executor.map(made, chosen))
    for v, m in zip(chosen, every):
        if m.error or args.compile_only:
            print(f"{v[0]}: {m.error or 'compiles'}", flush=True)
    if args.compile_only:
        return 0
    import torch

    board = ceilings("fp16")
    torch.manual_seed(0)
    problem = of_4_bits(torch.float16, CASES["int4-16"].sizes())
    ways = []
    for v, m in zip(chosen, every):
        if m.error:
            continue
        n = v[2]
        out = torch.full((n * FEW, problem.shape[1]), float("nan"), device="cuda", dtype=torch.float16)
        given = []
        for call in problem.calls:
            x = torch.zeros((n * FEW, *call["X"].shape[1:]), device="cuda", dtype=torch.float16)
            x[:FEW] = call["X"]
            given.append({**call, "X": x, "Y": out})
        launch = launcher(m)
        launch(given[0])
        if not finishes():
            raise SystemExit(f"{v[0]}: the kernel does not end")
        off = errors(problem, out.view(n, FEW, -1).float().sum(0)) if v[3] else (0.0, 0.0)
        if not off[1] <= 2e-3:
            print(f"{v[0]}: rms error {off[1]:.1e}")
            continue
        ways.append(Checked(v[0], recorded(partial(_next, launch, itertools.cycle(given)), 20), *off))
    times = round_robin(ways, 10, args.rounds, warm=2)
    table = [{"name": w.name, "us": times[w.name].ms * 50, "of_copy": problem.moved / times[w.name].ms / 0.05 / 1e6 / board["copy_gbps"]} for w in ways]
    print(f"a copy {board['copy_gbps']:.0f} GB/s")
    for r in table:
        print(f"{r['us']:7.1f} us  {r['of_copy']:.3f} of a copy  {r['name']}")
    write_json(args.json, {"ceilings": board, "table": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
