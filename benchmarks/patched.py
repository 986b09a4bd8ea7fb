"""What parts of the backward kernels cost: printed CUDA with parts changed by hand, checked, and timed in turns beside FlashAttention-3.

    python -m benchmarks.patched --prepare
    python -m benchmarks.patched --fa3 .peers --json out/patched.json

A variant that leaves something out is timed without being right ("*"): it says what that part costs.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import multiprocessing
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fcgen as fc

from . import backward as back
from .cells import Cell
from .environment import facts
from .hopper_forward import launches
from .pool import Job, processes, program, write_json
from .timing import Checked, finishes, round_robin

FOLDER = Path(tempfile.gettempdir()) / f"fcgen-patched-{os.getuid()}"
Patch = Callable[[str], str]


def sub(pattern: str, to: str | Callable[[Any], str], text: str, least: int = 1, flags: int = 0) -> str:
    out, n = re.subn(pattern, to, text, flags=flags)
    if n < least:
        raise ValueError(f"{n} of {pattern!r}")
    return out


def cut(text: str, begin: str, lines: int, before: str) -> str:
    """Each block of so many lines that begins with a line like `begin` goes in front of the last line like `before` above it."""
    rows = text.split("\n")
    at, moved = 0, 0
    while at < len(rows):
        if re.match(begin, rows[at].strip()):
            to = next((i for i in range(at - 1, -1, -1) if re.match(before, rows[i].strip())), None)
            if to is not None:
                block = rows[at:at + lines]
                del rows[at:at + lines]
                rows[to:to] = block
                moved += 1
        at += 1
    if not moved:
        raise ValueError(begin)
    return "\n".join(rows)


def warp(text: str) -> str:
    """Each warp stages and adds its own rows."""
    text = sub(r"bulk_wait_read<0>\(\);\n(\s+)bar_sync\(8 \+ warp / 4, 128\);\n((?:\s+#pragma unroll\n)\s+for [^\n]*\n\s+st_shared_f32x2[^\n]*\n)"
               r"\s+proxy_fence\(\);\n\s+bar_sync\(8 \+ warp / 4, 128\);\n\s+if \(warp % 4 == 0 && lane == 0\) \{",
               r"bulk_wait_read<0>();\n\1__syncwarp();\n\2\1proxy_fence();\n\1__syncwarp();\n\1if (lane == 0) {", text)

    def one(m: Any) -> str:
        args = [a.strip() for a in m[1].split(", ")]
        args[2] += " + warp % 4 * 16"
        args[-1] += " + warp % 4 * 2048"
        return f"tma_add_4d({', '.join(args)});"
    return sub(r"tma_add_4d\((dq_map[^;]*)\);", one, text)


def spread(text: str) -> str:
    """No two rows of half a warp in one bank: odd rows store another column group."""
    return sub(r"st_shared_f32x2\(\((dq_tile_at) \^ \(i / 2 % 4 \* 32\)\) \+ ([^,]*), &(\w+)\[i \* 2\]\);",
               r"{ const int odd = lane / 4 % 2; const float pair[2] = {odd ? \3[(i ^ 4) * 2] : \3[i * 2], odd ? \3[(i ^ 4) * 2 + 1] : "
               r"\3[i * 2 + 1]}; st_shared_f32x2((\1 ^ (i / 2 % 4 * 32) ^ (odd * 64)) + \2, pair); }", text)


def reads(text: str) -> str:
    """Rows are read before what they meet is waited for."""
    if "// s, dp" in text and re.search(r"touch\(s\);\n\s+\}", text):
        text = cut(text, r"float lse2(_\d+)?\[", 5, r"float dp(_\d+)?\[")
    else:
        text = cut(text, r"float lse2(_\d+)?\[", 5, r"wgmma_wait<1>")
    return cut(text, r"float delta(_\d+)?\[", 5, r"wgmma_wait<1>")


def merged(text: str) -> str:
    """LSE and Delta come with dO."""
    text = sub(r"\n\s+mbar_wait\((lse2|delta)_full[^\n]*", "", text)
    text = sub(r"\n\s+mbar_wait\((lse2|delta)_empty[^\n]*", "", text)
    text = sub(r"\n\s+mbar_expect\((lse2|delta)_full[^\n]*", "", text)
    text = sub(r"\n\s+__syncwarp\(\);\n\s+if \(lane == 0\) mbar_arrive\((lse2|delta)_empty[^\n]*", "", text)
    text = sub(r"\n\s+if \(\+\+(lse2|delta)_slot[^\n]*", "", text)
    size = int(re.search(r"mbar_expect\(do_full \+ do_slot \* 8, (\d+)\)", text)[1])  # type: ignore[index]
    rows = int(re.search(r"lse2_slot \* (\d+)", text)[1])  # type: ignore[index]
    text = text.replace(f"mbar_expect(do_full + do_slot * 8, {size})", f"mbar_expect(do_full + do_slot * 8, {size + 2 * rows})")
    text = re.sub(r"(lse2|delta)_full \+ (lse2|delta)_slot", "do_full + do_slot", text)
    text = re.sub(r"(lse2|delta)_slot \* ", "do_slot * ", text)
    # the producer's slot goes on behind the last of them
    step = re.search(r"\n\s+if \(\+\+do_slot[^\n]*", text)[0]  # type: ignore[index]
    text = text.replace(step, "", 1)
    return sub(r"(\n\s+tma_load_3d\(delta_smem[^\n]*)", lambda m: m[1] + step, text)


def pieces(count: int) -> Patch:
    """The products of the weights begin when a part of them is there."""
    def patch(text: str) -> str:
        def one(m: Any) -> str:
            w, n, expr, w2, half, acc, steps, product, pad = (m["w"], int(m["n"]), m["expr"], m["w2"], int(m["half"]), m["acc"], int(m["k"]),
                                                              m["product"], m["pad"])
            zero = m["zero"] or ""
            return (f"{pad}float {w}[{n}];\n{pad}uint32_t {w2}[{half}];\n{zero}{pad}touch({acc});\n{pad}#pragma unroll\n"
                    f"{pad}for (int piece = 0; piece < {count}; ++piece) {{\n"
                    f"{pad}#pragma unroll\n{pad}for (int i = piece * {n // count}; i < (piece + 1) * {n // count}; ++i)\n{pad}    {w}[i] = {expr}\n"
                    f"{pad}#pragma unroll\n{pad}for (int i = piece * {half // count}; i < (piece + 1) * {half // count}; ++i) {{\n"
                    f"{pad}    {w2}[i] = pack_f16({w}[2 * i], {w}[2 * i + 1]);\n{pad}    asm volatile(\"\" : \"+r\"({w2}[i]) :: \"memory\");\n{pad}}}\n"
                    f"{pad}wgmma_fence();\n{pad}#pragma unroll\n"
                    f"{pad}for (int k = piece * {steps // count}; k < (piece + 1) * {steps // count}; ++k)\n{pad}    {product}\n{pad}}}\n")
        return sub(r"(?P<pad>[ ]+)float (?P<w>w\w*)\[(?P<n>\d+)\];\n\s+#pragma unroll\n\s+for [^\n]*\n\s+w\w*\[i\] = (?P<expr>[^\n]*)\n"
                   r"(?:\s+//[^\n]*\n)*\s+uint32_t (?P<w2>w\w*)\[(?P<half>\d+)\];\n\s+#pragma unroll\n\s+for [^\n]*\n[^\n]*pack_f16[^\n]*\n"
                   r"(?P<zero>(?:\s+//[^\n]*\n)?\s+#pragma unroll\n\s+for [^\n]*\n\s+dv\[i\] = 0.0f;\n)?"
                   r"\s+touch\((?P<acc>dv)\);\n\s+touch_b32\(w\w*\);\n\s+wgmma_fence\(\);\n\s+#pragma unroll\n\s+for \(int k = 0; k < (?P<k>\d+); \+\+k\)\n"
                   r"\s+(?P<product>[^\n]*)\n", one, text)
    return patch


def first(text: str) -> str:
    """dQ in front of dK (in the loop): both dK and the next S run while dQ is stored."""
    begin = text.index("#pragma unroll 1\n            for (int rows_tile_2")
    head, body = text[:begin], text[begin:]
    end = body.index("touch(s);\n            }")
    loop, tail = body[:end], body[end:]
    dk = re.search(r"\s+// dk <<= dk[^\n]*\n\s+touch\(dk\);\n.*?wgmma_commit\(\);\n", loop, re.S)
    assert dk
    loop = loop.replace(dk[0], "\n", 1)
    loop = sub(r"(wgmma_m64n\d+k16_f16<1, 1>\(dq, [^\n]*\n\s+wgmma_commit\(\);\n)", lambda m: m[1] + dk[0].lstrip("\n"), loop)
    loop = sub(r"wgmma_wait<1>\(\);\n\s+touch\(dk\);\n\s+touch_b32\(ds\);\n\s+__syncwarp\(\);\n\s+if \(lane == 0\) mbar_arrive\(q_empty[^\n]*\n",
               "const int q_old = q_slot;\n", loop)
    loop = sub(r"wgmma_wait<1>\(\);\n(\s+)touch\(dq\);", r"wgmma_wait<2>();\n\1touch(dq);", loop)
    loop = sub(r"(bulk_commit\(\);[^\n]*\n)", r"\1 wgmma_wait<1>(); touch(dk); touch_b32(ds); __syncwarp(); if (lane == 0) "
               r"mbar_arrive(q_empty + q_old * 8);" + "\n", loop)
    return head + loop + tail


def beside(n: int) -> Patch:
    """So many heads run side by side."""
    return lambda text: sub(r"(const int most_beside\w* = )min\(max\([^;]*;", rf"\g<1>min({n}, G * B);", text)


def unscaled(text: str) -> str:
    return sub(r"= dq(\w*)\[i\] \* scale;", r"= dq\1[i];", text)


def unadded(text: str) -> str:
    return sub(r"\n\s+tma_add_4d\(dq_map[^\n]*", "", text)


def unstaged(text: str) -> str:
    """Not even stored to shared memory; the products stay."""
    text = unadded(text)
    return sub(r"\n\s+#pragma unroll\n\s+for [^\n]*\n(\s+)st_shared_f32x2\((?:\(dq_tile_at[^;]*), &(\w+)\[i \* 2\]\);",
               r"\n\1float any_\2 = 0; for (int i = 0; i < int(sizeof(\2) / 4); ++i) any_\2 += \2[i]; if (any_\2 == 1.2345e30f) "
               r"st_shared_f32x2(dq_tile_at, \2);", text)


def hoisted(text: str) -> str:
    """What comes with dO is waited for beside the products of the iteration before."""
    wait = "mbar_wait(do_full + do_slot * 8, do_parity);"
    begin = text.index("#pragma unroll 1\n            for (int rows_tile_2")
    head, body = text[:begin], text[begin:]
    body = body.replace(wait, "", 2)
    at = "wgmma_wait<0>();\n                touch(s);"
    assert at in body
    return head + wait + "\n" + body.replace(at, wait + "\n" + at, 1)


POINTER = "DQ_POINTER"


def staged(text: str, to: Callable[[str, str, str, str, str], str]) -> str:
    """The whole of the staging, from the wait to the copies, by other means. to: of (array, row, column of the warpgroup's part, h, b)."""
    def one(m: Any) -> str:
        col, row, h, b = (a.strip() for a in m["args"].split(", ")[:4])
        return to(m["v"], row, col, h, b)
    return sub(r"bulk_wait_read<0>\(\);\n\s+bar_sync\(8 \+ warp / 4, 128\);\n\s+#pragma unroll\n\s+for [^\n]*\n\s+st_shared_f32x2\([^\n]*&(?P<v>\w+)\[i \* 2\]\);\n"
               r"\s+proxy_fence\(\);\n\s+bar_sync\(8 \+ warp / 4, 128\);\n\s+if \(warp % 4 == 0 && lane == 0\) \{\n\s+tma_add_4d\(dq_map, (?P<args>[^\n]*)\);\n[^\n]*\n\s+\}",
               one, text)


def head_of(text: str) -> int:
    return 64 if "{panel 64 swizzle 128}" in text and "f32[128,64]" in text else 128


def red(text: str) -> str:
    """Added from registers: quads of lanes have 32 bytes of a row."""
    d = head_of(text)
    return staged(text, lambda v, row, col, h, b: (
        f"{{ float* at = (float*){POINTER}ULL + ((size_t)({b} * H + {h}) * M + {row} + warp % 4 * 16 + lane / 4) * {d} + {col} + lane % 4 * 2;\n"
        f"#pragma unroll\nfor (int i = 0; i < 16; ++i) asm volatile(\"red.global.add.v2.f32 [%0], {{%1, %2}};\" :: \"l\"(at + i % 2 * 8 * {d} + i / 2 * 8), "
        f"\"f\"({v}[2 * i]), \"f\"({v}[2 * i + 1]) : \"memory\"); }}"))


def linear(warps: int) -> Patch:
    """Staged and added as the registers lie: 16 bytes per lane, one copy by so many warps."""
    def patch(text: str) -> str:
        d = head_of(text)
        wait, bar = ("__syncwarp();",) * 2 if warps == 1 else ("bar_sync(8 + warp / 4, 128);",) * 2
        first = "lane == 0" if warps == 1 else "warp % 4 == 0 && lane == 0"
        part = f"warp / {warps}" if warps > 1 else "warp"
        return staged(text, lambda v, row, col, h, b: (
            f"bulk_wait_read<0>(); {wait}\n"
            f"#pragma unroll\nfor (int i = 0; i < 8; ++i) asm volatile(\"st.shared.v4.f32 [%0], {{%1, %2, %3, %4}};\" :: \"r\"(dq_tile_smem + warp * 4096 + i * 512 + lane * 16), "
            f"\"f\"({v}[4 * i]), \"f\"({v}[4 * i + 1]), \"f\"({v}[4 * i + 2]), \"f\"({v}[4 * i + 3]) : \"memory\");\n"
            f"proxy_fence(); {bar}\nif ({first}) asm volatile(\"cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\" :: "
            f"\"l\"((float*){POINTER}ULL + ((size_t)({b} * H + {h}) * M + ({row}) / {64 if d == 128 else 128} * {64 if d == 128 else 128}) * {d} + {part} * {1024 * warps}), "
            f"\"r\"(dq_tile_smem + {part} * {4096 * warps}), \"r\"({4096 * warps}) : \"memory\");"))
    return patch


def turns(text: str) -> str:
    """Blocks begin at different rows (full, whole tiles)."""
    text = sub(r"const int rows_start = rows_tile \* 64;", "const int rows_start = (rows_tile + cols_tile * 37) % (M / 64) * 64;", text)
    text = sub(r"const int rows_start_2 = rows_tile_2 \* 64;", "const int rows_start_2 = (rows_tile_2 + cols_tile_2 * 37) % (M / 64) * 64;", text, 0)
    text = sub(r"rows_tile_2 \* 64", "(rows_tile_2 + cols_tile_2 * 37) % (M / 64) * 64", text, 0)
    return sub(r"rows_tile_to_2 \* 64", "(rows_tile_to_2 + cols_tile_2 * 37) % (M / 64) * 64", text)


def pairs(text: str) -> str:
    """Turned dQ: the two warps that share a panel store it alone."""
    text = sub(r"bar_sync\(8 \+ warp / 4, 128\);(?=\n(?:\s+#pragma unroll\n)\s+for [^\n]*\n\s+st_shared_f32x1)", "bar_sync(8 + warp / 2, 64);", text)
    return sub(r"bar_sync\(8 \+ warp / 4, 128\);\n(\s+)if \(warp % 4 == 0 && lane == 0\) \{\n\s+tma_add_4d\(dq_map, warp / 4 \* 64, ([^\n]*), dq_tile_smem"
               r" \+ warp / 4 \* 20480\);\n[^\n]*\n", r"bar_sync(8 + warp / 2, 64);\n\1if (warp % 2 == 0 && lane == 0) {\n\1    tma_add_4d(dq_map, "
               r"warp / 2 * 32, \2, dq_tile_smem + warp / 2 * 10240);\n", text)


H = "warps=8, math=wgmma, copy=tma, split=branch, epilogue=tma"
S128 = f"tiles={{BLOCK_M: 64, BLOCK_N: 128}}, stages={{do: 2, q: 3}}, early=s, {H}"
S80 = f"tiles={{BLOCK_M: 80, BLOCK_N: 128}}, stages={{do: 2, q: 2}}, early=s, {H}"
S64 = f"tiles={{BLOCK_M: 128, BLOCK_N: 128}}, stages={{do: 2, q: 2}}, behind=dq, {H}"
#: (head, causal, name) -> (schedule, patches, whether it is right)
MOST: list[tuple[str, list[Patch], bool]] = [
    ("printed", [], True), ("warp", [warp], True), ("spread", [spread], True), ("warp spread", [warp, spread], True),
    ("merged", [merged], True), ("spread merged", [spread, merged], True), ("pieces4", [pieces(4)], True),
    ("spread pieces4", [spread, pieces(4)], True), ("spread merged pieces2", [spread, merged, pieces(2)], True),
    ("spread merged pieces4", [spread, merged, pieces(4)], True), ("warp spread merged pieces4", [warp, spread, merged, pieces(4)], True),
    ("warp spread merged pieces2", [warp, spread, merged, pieces(2)], True),
    ("red", [red], True), ("red merged pieces4", [red, merged, pieces(4)], True), ("linear1 merged pieces4", [linear(1), merged, pieces(4)], False),
    ("linear4 merged pieces4", [linear(4), merged, pieces(4)], False), ("linear4", [linear(4)], False),
    ("unadded", [unadded], False), ("unstaged", [unstaged], False), ("unstaged merged pieces4", [unstaged, merged, pieces(4)], False),
    ("unscaled", [unscaled], False)]
FIRST: list[tuple[str, list[Patch], bool]] = [
    ("spread reads merged", [spread, reads, merged], True), ("spread reads merged pieces4", [spread, reads, merged, pieces(4)], True),
    ("warp spread reads merged pieces4", [warp, spread, reads, merged, pieces(4)], True),
    ("spread reads merged hoisted pieces4", [spread, reads, merged, hoisted, pieces(4)], True),
    ("first spread merged pieces4", [first, spread, merged, pieces(4)], True),
    ("first spread reads merged pieces4", [first, spread, reads, merged, pieces(4)], True)]
SIDE: list[tuple[str, list[Patch], bool]] = [(f"beside {n}", [beside(n)], True) for n in (1, 2, 4)]
EIGHTY: list[tuple[str, list[Patch]]] = [("", []), ("pairs", [pairs]), ("pieces", [pieces(5)]), ("pairs pieces", [pairs, pieces(5)])]
WORK: dict[tuple[int, bool], list[tuple[str, str, list[Patch], bool]]] = {
    (128, True): [(n, S128 + ", l2=32", p, r) for n, p, r in [v for v in MOST + FIRST if "printed" in v[0] or "pieces4" in v[0] and "linear" not in v[0]] + SIDE] + [
        (f"80 {n}", S80 + ", l2=32", p, True) for n, p in [("", []), ("pairs", [pairs]), ("pairs beside 2", [pairs, beside(2)])]],
    (128, False): [(n, S128, p, r) for n, p, r in MOST + FIRST + [("turns", [turns], True)]] + [(f"80 {n}", S80, p, True) for n, p in EIGHTY],
    (64, False): [(n, S64, p, r) for n, p, r in MOST] + [("early " + n, S64 + ", early=s", p, r) for n, p, r in MOST if n in (
        "printed", "spread merged pieces4", "spread merged", "warp spread merged pieces4", "red merged pieces4", "pieces4")]}


def made(work: tuple[int, bool, str, str, list[Patch]], pointer: int = 0) -> Any:
    from fcgen.runtime.nvrtc import compile_cuda

    d, causal, _, text, patches = work
    built = program(Job(fc.Schedule.parse(text), d, d, "causal_top_left" if causal else "none", spec="backward", arch="sm_90a")).built
    cuda = built.cuda_text
    for p in patches:
        cuda = p(cuda)
    cuda = cuda.replace(POINTER, hex(pointer))
    file = FOLDER / hashlib.sha256(cuda.encode()).hexdigest()
    flat = built.facts.flat
    if warp in patches:
        flat = tuple((*f[:3], (1, 1, 16, 32, 128)) if f[:2] == ("map", "dQ") else f for f in flat)
    if file.exists():
        cubin, log, res = pickle.loads(file.read_bytes())
    else:
        b = compile_cuda(cuda, "sm_90a", name=built.facts.name)
        cubin, log, res = b.cubin, b.log, next(iter(b.resources().values()))
        FOLDER.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps((cubin, log, res)))
    notes = sorted({*re.findall(r"C75\d\d", log)})
    return replace(built, cubin=cubin, cuda_text=cuda, facts=replace(built.facts, flat=flat)), res, notes


def safely(work: Any) -> Any:
    head = work[:3]
    try:
        d, causal, name = head
        text, patches = next((t, p) for n, t, p, _ in WORK[d, causal] if n == name)
        return head, made((d, causal, name, text, patches))
    except Exception as error:
        return head, f"{type(error).__name__}: {str(error)[:200]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--fa3")
    parser.add_argument("--json")
    parser.add_argument("--only", help="d128, d64: a head size alone")
    parser.add_argument("--names", help="substring of variants")
    parser.add_argument("--cells", default="128f4096,64f4096,128c16384")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="each kernel once, for a profiler that counts cycles")
    args = parser.parse_args(argv)
    work = [(d, causal, n) for (d, causal), vs in WORK.items() for n, *_ in vs
            if (not args.only or f"d{d}" == args.only) and (not args.names or args.names in n or n in args.names.split("="))]
    with ProcessPoolExecutor(processes(), mp_context=multiprocessing.get_context("spawn")) as pool:
        kernels = dict(pool.map(safely, work))
    for k, v in kernels.items():
        if isinstance(v, str):
            print(k, v)
        elif v[1].spills or v[2] or args.prepare:
            print(k, f"spills {v[1].spill_stores}/{v[1].spill_loads}", *v[2])
    if args.prepare:
        return 0
    import torch

    from fcgen.launch import Launcher

    rows = []
    for text in args.cells.split(","):
        d, causal, s = re.fullmatch(r"(\d+)([cf])(\d+)", text).groups()  # type: ignore[union-attr]
        d, causal, s = int(d), causal == "c", int(s)
        c = Cell(d, s, causal)
        x = back.Cell(c.batch, s, c.heads, d, causal)
        todo = []
        if args.fa3:
            call = back.fa3_call(args.fa3, x)
            call.run()
            todo.append(Checked("fa3", call.run, 0.0, 0.0))
        right = {n: r for n, _, _, r in WORK[d, causal]}
        for (dd, cc, name), v in kernels.items():
            if (dd, cc) != (d, causal) or isinstance(v, str):
                continue
            arguments, into = x.arguments("backward")
            text, patches = next((t, p) for n, t, p, _ in WORK[d, causal] if n == name)
            if any(p is red or p.__qualname__.startswith("linear") for p in patches):
                v = made((d, causal, name, text, patches), arguments["dQ"].data_ptr())
            launch = Launcher(v[0])
            if args.once:
                launch(arguments)
                torch.cuda.synchronize()
                rows.append({"head": d, "causal": causal, "length": s, "name": name, "flops": 2.5 * c.flops})
                continue
            launch(arguments)
            if not finishes():
                print(f"{name}: does not end")
                return 1
            e = x.error(into["dQ"], into["dK"], into["dV"])
            if not (e[1] < 2e-3) and right[name]:
                print(f"WRONG {d} {causal} {name}: {e}")
                continue
            run = lambda launch=launch, arguments=arguments: launch(arguments)
            todo.append(Checked(name, run, *(e if math.isfinite(e[1]) else (0.0, 0.0))))
        if args.once:
            continue
        times = round_robin(todo, max(2, round(launches(c) / 2.5)), args.rounds, warm=1)
        rates = {n: 2.5 * c.flops / t.ms / 1e9 for n, t in times.items()}
        print(f"D={d} {'causal' if causal else 'full'} {s}: " + "; ".join(
            f"{n}{'' if right.get(n, True) else '*'} {r:.0f}" for n, r in sorted(rates.items(), key=lambda kv: -kv[1])), flush=True)
        rows += [{"head": d, "causal": causal, "length": s, "name": n, "tflops": r, "right": right.get(n, True)} for n, r in rates.items()]
        del x, todo
        torch.cuda.empty_cache()
    write_json(args.json, {"environment": facts(), "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
