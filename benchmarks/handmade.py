# ruff: noqa: E501
"""Printed kernels changed by hand, timed beside what is printed: what a rule would bring before it is written.

    python -m benchmarks.handmade --json out/handmade.json
    python -m benchmarks.handmade --compile-only
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
from fcgen.build import compiler
from fcgen.passes.memory import pieces, prefetch
from fcgen.runtime import cubin, nvrtc

from . import prologues
from .ceilings import ceilings
from .environment import facts
from .gemms import CALLS, LIMIT, _next, case_of, compiled, errors, recorded
from .pool import Made, launcher, processes, write_json
from .timing import Checked, finishes, round_robin

PLAIN = "tiles={BLOCK_M: 128, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, epilogue=quad, late=acc"
ROTARY = PLAIN.replace("copy=tma", "copy=tma, stages={c: 0, s: 0}") + ", makers=4"
DIRECT = ROTARY.replace("c: 0", "x: 0, y: 0, c: 0")
RS = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 128}, warps=4, math=wgmma, copy=tma, stages=4, epilogue=direct, min_blocks=2, pdl=True"
ONE = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 256}, warps=8, math=wgmma, copy=tma, stages=5, epilogue=direct, pdl=True"

MAKER = """    } else if (group < 2) {  // role make: 4 warps
        setmaxnreg_dec<96>();
        const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0) - 4;
        const int lane = threadIdx.x % 32;
        int slot = 0;
        uint32_t parity = 0;
        const int pieces = (N + 127) / 128 * 8;
        const uint32_t lane_at = swizzle<0x70>(warp * 512 + lane * 16);
        const int row0 = warp * 4 + lane / 8, col0 = lane % 8 * 8;
        const int h = int(blockIdx.x) / ((M + 127) / 128);
        const f16* cp = C_ + (long long)row0 * C_s0 + col0;
        const f16* sp = S + (long long)row0 * S_s0 + col0;
        const f16* xp = K + (long long)h * K_s0 + (long long)row0 * K_s1 + col0;
        const f16* yp = xp + K_s2;
        const long long c_step = 16 * C_s0, s_step = 16 * S_s0, k_step = 16 * K_s1;
        const uint32_t k0_at = smem_base + k0_tile_offset + lane_at, k1_at = smem_base + k1_tile_offset + lane_at;
        const uint32_t e0 = smem_base + k0_tile_empty_offset, f0 = smem_base + k0_tile_full_offset;
        const uint32_t e1 = smem_base + k1_tile_empty_offset, f1 = smem_base + k1_tile_full_offset;
        uint32_t c[DEEP][4], s[DEEP][4], x[DEEP][4], y[DEEP][4];
        #pragma unroll
        for (int p = 0; p < DEEP; ++p) {
            ld_global_b32x4(c[p], cp); ld_global_b32x4(s[p], sp); ld_global_b32x4(x[p], xp); ld_global_b32x4(y[p], yp);
            cp += c_step; sp += s_step; xp += k_step; yp += k_step;
        }
        #pragma unroll 1
        for (int t = 0; t < pieces; t += 8) {
            #pragma unroll
            for (int p = 0; p < 8; ++p) {
                uint32_t k0[4], k1[4];
                #pragma unroll
                for (int i = 0; i < 4; ++i) {
                    k0[i] = sub_f16x2(mul_f16x2(x[p % DEEP][i], c[p % DEEP][i]), mul_f16x2(y[p % DEEP][i], s[p % DEEP][i]));
                    k1[i] = add_f16x2(mul_f16x2(y[p % DEEP][i], c[p % DEEP][i]), mul_f16x2(x[p % DEEP][i], s[p % DEEP][i]));
                }
                if (t + p + DEEP < pieces) {
                    ld_global_b32x4(c[p % DEEP], cp); ld_global_b32x4(s[p % DEEP], sp); ld_global_b32x4(x[p % DEEP], xp); ld_global_b32x4(y[p % DEEP], yp);
                    cp += c_step; sp += s_step; xp += k_step; yp += k_step;
                }
                if (p == 0) { mbar_wait(e0 + slot * 8, parity ^ 1); mbar_wait(e1 + slot * 8, parity ^ 1); }
                st_shared_b32x4(k0_at + slot * 16384 + p * 2048, k0);
                st_shared_b32x4(k1_at + slot * 16384 + p * 2048, k1);
            }
            proxy_fence();
            __syncwarp();
            if (lane == 0) { mbar_arrive(f0 + slot * 8); mbar_arrive(f1 + slot * 8); }
            if (++slot == SLOTS) { slot = 0; parity ^= 1; }
        }
"""


def maker(t: str, deep: int, slots: int = 2) -> str:
    """The maker written by hand: it reads keys and tables straight from the tensors, so many pieces ahead, past the end of a tile too."""
    i, j = t.index("    } else if (group < 2) {  // role make"), t.index("    } else {  // role main")
    head, main = t[:i].replace("setmaxnreg_dec<24>", "setmaxnreg_dec<32>"), t[j:]
    if slots > 2:
        assert slots == 3
        head, n = re.subn(r"i < 2; \+\+i\) mbar_init\(smem_base \+ (k[01]_tile)", r"i < 3; ++i) mbar_init(smem_base + \1", head)
        assert n == 4, "barriers"
        main, n = re.subn(r"\+\+(k[01]_tile)_slot == 2", r"++\1_slot == 3", main)
        assert n >= 4, "slots"
        at = {"v": 0, "k0_tile": 65536, "k1_tile": 114688, "q0_tile": 163840, "q1_tile": 180224}
        bars = ("v_full", "v_empty", "k0_tile_full", "k0_tile_empty", "k1_tile_full", "k1_tile_empty")
        at |= {b: 196608 + 24 * n for n, b in enumerate(bars)}
        for name, offset in at.items():
            head, n = re.subn(rf"(constexpr uint32_t {name}_offset = )\d+", rf"\g<1>{offset}", head)
            assert n == 1, name
    t = head + MAKER + main
    at_ = t.index('extern "C" __global__')
    return t[:at_] + f"#define DEEP {deep}\n#define SLOTS {slots}\n" + t[at_:]


# ---- int4


def later(t: str) -> str:
    """The last products of an iteration run while the next one's bytes are read and unpacked."""
    i = t.index("role main")
    head, m = t[:i], t[i:]
    m = m.replace("            uint32_t bits_minus_8_2[64];\n", "", 1)
    m, n = re.subn(r"( +)(#pragma unroll 1\n +for \(int depth_tile_2)", r"\1uint32_t bits_minus_8_2[64];\n\1#pragma unroll\n\1for (int i = 0; i < 64; ++i) bits_minus_8_2[i] = 0;\n\1\2", m, count=1)
    assert n, "loop"
    wait = """            wgmma_wait<0>();
            touch(acc);
            touch_b32(bits_minus_8_2);
            if (depth_tile_2 > 0) {
                __syncwarp();
                if (lane == 0) mbar_arrive(x_tile_empty_2 + (x_tile_slot_2 == 0 ? SLOTS - 1 : x_tile_slot_2 - 1) * 8);
            }
            mbar_wait(x_tile_full +""".replace("SLOTS", re.search(r"\+\+x_tile_slot_2 == (\d+)", t)[1])  # type: ignore[index]
    m = m.replace("            mbar_wait(x_tile_full +", wait, 1)
    old = """            wgmma_wait<0>();
            touch(acc);
            touch_b32(bits_minus_8_2);
            touch_b32(bits_minus_8);
"""
    assert m.count(old) == 1, "end"
    m = m.replace(old, "            wgmma_wait<1>();\n            touch_b32(bits_minus_8);\n")
    m, n = re.subn(r" +__syncwarp\(\);\n +if \(lane == 0\) mbar_arrive\(x_tile_empty_2 \+ x_tile_slot_2 \* 8\);\n", "", m)
    assert n == 1, "arrival"
    m, n = re.subn(r"(x_tile_parity_2 \^= 1; \}\n        \})", r"\1\n        wgmma_wait<0>();\n        touch(acc);\n        touch_b32(bits_minus_8_2);", m)
    assert n == 1, "behind"
    return head + m


def fewer(k: int) -> Callable[[str], str]:
    def go(t: str) -> str:
        return re.sub(r"for \(int k = 0; k < 8; \+\+k\)", f"for (int k = 0; k < {k}; ++k)", t)

    go.__name__ = f"products of {k} of 8"
    return go


def copies_alone(t: str) -> str:
    t = fewer(0)(t)
    loop = re.search(r"for \(int i = 0; i < 32; \+\+i\) \{\s*const uint32_t lo = ld_shared_b16.*?\n            \}", t, re.S)
    assert loop, "reads"
    t = t.replace(loop[0], "for (int i = 0; i < 32; ++i)\n                w[i] = lane + i + w_slot;")
    t, n = re.subn(r"bits_minus_8(_2)?\[i\] = [^;]*;", r"bits_minus_8\1[i] = w[i / 2];", t)
    assert n, "unpacking"
    return t



Edits = tuple[Callable[[str], str], ...]
#: label, spec and schedule, does it compute what it should, edits
ROTARIES: list[tuple[str, str, str, bool, Edits]] = [
    ("plain", "plain", PLAIN, True, ()), ("plain, static", "plain", PLAIN + ", persistent=static", True, ()),
    ("plain, dynamic", "plain", PLAIN + ", persistent=dynamic", True, ()),
    ("as it is", "rotated", ROTARY, True, ()), ("static", "rotated", ROTARY + ", persistent=static", True, ()),
    ("dynamic", "rotated", ROTARY + ", persistent=dynamic", True, ()), ("first tile 3", "rotated", ROTARY, True, ()), ("first tile 6", "rotated", ROTARY, True, ()), ("pdl", "rotated", ROTARY + ", pdl=True", True, ()),
    ("straight, 1 ahead", "rotated", DIRECT, True, (partial(maker, deep=1),)),
    ("straight, 2 ahead", "rotated", DIRECT, True, (partial(maker, deep=2),)),
    ("straight, 4 ahead", "rotated", DIRECT, True, (partial(maker, deep=4),)),
    ("straight, 1 ahead, 3 slots", "rotated", DIRECT, True, (partial(maker, deep=1, slots=3),)),
    ("straight, 2 ahead, 3 slots", "rotated", DIRECT, True, (partial(maker, deep=2, slots=3),)),
]
INT4: list[tuple[str, str, str, bool, Edits]] = [
    ("as it is", "", RS, True, ()), ("scales late", "", RS, True, ()), ("products later", "", RS, True, (later,)), ("as it is, again", "", RS, True, ()),
    ("products of 4 of 8", "", RS, False, (fewer(4),)), ("copies alone", "", RS, False, (copies_alone,)),
    ("one block", "", ONE, True, ()), ("one block, products later", "", ONE, True, (later,)), ("one block, 16 warps", "", ONE.replace("warps=8", "warps=16"), True, ()),
    ("5 slots", "", RS.replace("stages=4", "stages={w: 5, x_tile: 3}"), True, ()),
]


def edited(m: Made, edits: Edits) -> Made:
    if m.error or not edits:
        return m
    text = m.built.cuda_text
    try:
        for edit in edits:
            new = edit(text)
            if new == text:
                return Made(error=f"{edit} changes nothing")
            text = new
    except AssertionError as e:
        return Made(error=f"an edit found no {e}")
    try:
        binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    except fc.FcError as e:
        return Made(error=str(e)[:900])
    said = [w for w in binary.warnings if "(C7" in w]
    stack = next(iter(cubin.resources(binary.cubin).values())).stack_bytes
    if said or stack > 48:  # by hand, the one thread that copies may keep a few words in memory
        return Made(error=said[0] if said else f"spills {stack} bytes")
    more = 196608 + 1024 if "#define SLOTS 3" in text else 0
    new = replace(m.built.facts, smem_bytes=max(more, m.built.facts.smem_bytes))
    return Made(replace(m.built, cuda_text=text, cubin=binary.cubin, facts=new), m.resources)


def made(job: tuple[str, int]) -> Made:
    kind, n = job
    if kind == "int4" and INT4[n][0] == "scales late":  # compiled anew, without the rule
        prefetch._in_front = lambda block, written, regs: block  # type: ignore[assignment]
        case = case_of("int4-16")
        r = case.spec.compile(target="sm_90a", schedule=fc.Schedule.parse(INT4[n][2]), check=False, T=fc.f16)
        return Made(compiler.build(r._source, r.schedule, r.target, check=False, cache=False))
    if kind == "int4":
        return edited(compiled(("int4-16", INT4[n][2], "sm_90a", "fp16"))[1], INT4[n][4])
    label, spec, schedule, _, edits = ROTARIES[n]
    if label.startswith("first tile"):  # compiled anew, with another constant
        pieces.FIRST.update(load=int(label.split()[-1]))
        q = getattr(prologues.specs, spec).compile(target="sm_90a", schedule=fc.Schedule.parse(schedule), check=False,
                                                   **prologues.binding(spec, 128))
        return Made(compiler.build(q._source, q.schedule, q.target, check=False, cache=False))
    p = prologues.build((spec, 128, "sm_90a", fc.Schedule.parse(schedule)))
    return Made(error=p) if isinstance(p, str) else edited(Made(p.built, p.resources), edits)


def rotary(all_made: list[Made], rounds: int) -> list[dict[str, Any]]:
    """All are compared with the first of their spec that is printed, on the size that is timed; `benchmarks.prologues` compares that with float64."""
    import torch

    torch.manual_seed(0)
    ways: list[Checked] = []
    want: dict[str, Any] = {}
    p = prologues.build(("rotated", 128, "sm_90a", fc.Schedule.parse(ROTARY)))
    q = prologues.build(("plain", 128, "sm_90a", fc.Schedule.parse(PLAIN)))
    assert not isinstance(p, str) and not isinstance(q, str)
    print("against float64:", prologues.error(p, "rotated", 128), prologues.error(q, "plain", 128))
    given = {"rotated": prologues.arguments(p, 128), "plain": prologues.arguments(q, 128)}
    for (label, spec, _, _, _), m in zip(ROTARIES, all_made):
        if m.error:
            print(f"    without {label}: {m.error}")
            continue
        call = {**given[spec], "O": torch.full_like(given[spec]["O"], float("nan"))}
        launch = launcher(m)
        launch(call)
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        got = call["O"].double()
        ref = want.setdefault(spec, got)
        off = ((got - ref).norm() / ref.norm()).item()
        for _ in range(20):
            launch(call)
        torch.cuda.synchronize()
        again = ((call["O"].double() - got).abs().max()).item()
        if not (off <= 1e-3 and again == 0.0):
            print(f"    WRONG {label}: {off} {again}")
            continue
        ways.append(Checked(label, partial(launch, call), off, off))
    times = round_robin(ways, 8, rounds, warm=2)
    rows = []
    for w in ways:
        t = times[w.name]
        rows.append({"case": "rotary", "name": w.name, "ms": t.ms, "spread": t.spread, "ratio": t.ms / times["plain"].ms, "off": w.rms_error})
        print(f"{t.ms * 1e3:8.1f} us  {rows[-1]['ratio']:.3f} x plain's time  +-{t.spread:.3f}  off {w.rms_error:.1e}  {w.name}", flush=True)
    return rows


def int4(all_made: list[Made], rounds: int) -> list[dict[str, Any]]:
    import torch

    torch.manual_seed(0)
    copy = ceilings("fp16")["copy_gbps"]
    problem = case_of("int4-16").make(torch.float16, case_of("int4-16").sizes())
    ways = []
    for (label, _, _, right, _), m in zip(INT4, all_made):
        if m.error:
            print(f"    without {label}: {m.error}")
            continue
        out = torch.full(problem.shape, float("nan"), device="cuda", dtype=torch.float16)
        launch, given = launcher(m), [{**call, problem.out: out} for call in problem.calls]
        launch(given[0])
        if not finishes():
            raise SystemExit(f"{label}: the kernel does not end")
        off = errors(problem, out)
        if right and not off[1] <= LIMIT["fp16"]:
            print(f"    WRONG {label}: {off}")
            continue
        ways.append(Checked(label if right else f"{label} (wrong by intent)", partial(_next, launch, itertools.cycle(given)), 0.0, 0.0))
    times = round_robin([replace(w, run=recorded(w.run, CALLS)) for w in ways], 10, rounds, warm=2)
    rows = []
    for w in ways:
        ms = times[w.name].ms / CALLS
        rows.append({"case": "int4-16", "name": w.name, "ms": ms, "of_copy": problem.moved / ms / 1e6 / copy})
        print(f"{ms * 1e3:8.1f} us  {rows[-1]['of_copy']:.3f} of a copy ({copy:.0f} GB/s)  {w.name}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=("rotary", "int4"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    lists = {"int4": INT4, "rotary": ROTARIES}
    jobs = [(kind, n) for kind in args.only or lists for n in range(len(lists[kind]))]
    with ProcessPoolExecutor(min(processes(), len(jobs)), mp_context=get_context("spawn")) as executor:
        done = dict(zip(jobs, executor.map(made, jobs)))
    if args.compile_only:
        for kind, n in jobs:
            print(f"{kind}: {lists[kind][n][0]}: {done[kind, n].error or 'compiles'}")
        return 0
    table: list[dict[str, Any]] = []
    for kind in args.only or lists:
        table += {"int4": int4, "rotary": rotary}[kind]([done[kind, n] for n in range(len(lists[kind]))], args.rounds)
    write_json(args.json, {"part": "handmade", "environment": facts(), "table": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
