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
from fcgen.runtime import cubin, nvrtc

from . import prologues
from .ceilings import ceilings
from .environment import facts
from .gemms import CALLS, LIMIT, _next, case_of, compiled, errors, recorded
from .pool import Made, launcher, processes, write_json
from .timing import Checked, finishes, round_robin

PLAIN = "tiles={BLOCK_M: 128, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, epilogue=quad, late=acc"
ROTARY = PLAIN.replace("copy=tma", "copy=tma, stages={c: 0, s: 0}") + ", makers=4"
RS = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 128}, warps=4, math=wgmma, copy=tma, stages=4, epilogue=direct, min_blocks=2, pdl=True"
MMA8 = RS.replace("math=wgmma", "math=mma").replace("warps=4", "warps=8")
ONE = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 256}, warps=8, math=wgmma, copy=tma, stages=5, epilogue=direct, pdl=True"
SPLIT = "tiles={BLOCK_K: 128, BLOCK_M: 16, BLOCK_N: 64}, warps=4, math=mma, copy=tma, stages=4, epilogue=direct, min_blocks=4, parts=2, pdl=True"

PRELUDE = """
__device__ __forceinline__ uint32_t peer_of(uint32_t a, uint32_t rank) {
    uint32_t y; asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(rank)); return y;
}
__device__ __forceinline__ void st_async4(uint32_t dst, const uint32_t* v, uint32_t bar) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" :: "r"(dst), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(bar) : "memory");
}
__device__ __forceinline__ void st_remote4(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" :: "r"(dst), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}
__device__ __forceinline__ void arrive_peer(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void arrive_release(uint32_t bar) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void whole_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }
__device__ __forceinline__ void cluster_all() {
    asm volatile("barrier.cluster.arrive.release.aligned;\\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_cluster(uint32_t bar, uint32_t parity) {
    asm volatile("{\\n.reg .pred p;\\nWAIT:\\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\\n@p bra DONE;\\nbra WAIT;\\nDONE:\\n}"
             :: "r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ uint32_t mad_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t y; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c)); return y;
}
"""

MAKER = """    } else if (group < 2) {  // role make: 4 warps
        setmaxnreg_dec<96>();
        const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0) - 4;
        const int lane = threadIdx.x % 32;
        const uint32_t rank = RANKED ? blockIdx.x & 1 : 0;
        int slot = 0;
        uint32_t parity = 0;
        const int tiles = (N + 127) / 128;
        const uint32_t lane_at = swizzle<0x70>(warp * 512 + lane * 16);
        const int row0 = rank * 64 + warp * 4 + lane / 8;
        const f16* cp = C_ + (long long)row0 * C_s0 + lane % 8 * 8;
        const f16* sp = S + (long long)row0 * S_s0 + lane % 8 * 8;
        const uint32_t x_from = smem_base + x_offset + lane_at + (HALF ? 0 : rank * 8192), y_from = smem_base + y_offset + lane_at + (HALF ? 0 : rank * 8192);
        const uint32_t k0_at = smem_base + k0_tile_offset + lane_at + rank * 8192, k1_at = smem_base + k1_tile_offset + lane_at + rank * 8192;
        const uint32_t xf = smem_base + x_full_offset, yf = smem_base + y_full_offset, xe = smem_base + x_empty_offset, ye = smem_base + y_empty_offset;
        const uint32_t e0 = smem_base + k0_tile_empty_offset, f0 = smem_base + k0_tile_full_offset;
        const uint32_t f1 = smem_base + k1_tile_full_offset;
        const uint32_t k0_there = peer_of(k0_at, rank ^ 1), k1_there = peer_of(k1_at, rank ^ 1), f0_there = peer_of(f0, rank ^ 1), f1_there = peer_of(f1, rank ^ 1);
        uint32_t c[4][4], s[4][4], x[2][4], y[2][4];
        #pragma unroll
        for (int p = 0; p < 4; ++p) {
            ld_global_b32x4(c[p], cp + (long long)(p * 16) * C_s0);
            ld_global_b32x4(s[p], sp + (long long)(p * 16) * S_s0);
        }
        #pragma unroll 1
        for (int t = 0; t < tiles; ++t) {
            mbar_wait(xf + slot * 8, parity);
            mbar_wait(yf + slot * 8, parity);
            #pragma unroll
            for (int part = 0; part < (RANKED ? 1 : 2); ++part) {
                #pragma unroll
                for (int p = 0; p < 2; ++p) {
                    ld_shared_b32x4(x[p], x_from + slot * 16384 + part * 8192 + p * 2048);
                    ld_shared_b32x4(y[p], y_from + slot * 16384 + part * 8192 + p * 2048);
                }
                if (part == 0) mbar_wait(e0 + slot * 8, parity ^ 1);
                #pragma unroll
                for (int p = 0; p < 4; ++p) {
                    uint32_t k0[4], k1[4];
                    #pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        k0[i] = FUSED ? mad_f16x2(x[p & 1][i], c[p][i], mul_f16x2(y[p & 1][i], s[p][i]) ^ 0x80008000u) : sub_f16x2(mul_f16x2(x[p & 1][i], c[p][i]), mul_f16x2(y[p & 1][i], s[p][i]));
                        k1[i] = FUSED ? mad_f16x2(y[p & 1][i], c[p][i], mul_f16x2(x[p & 1][i], s[p][i])) : add_f16x2(mul_f16x2(y[p & 1][i], c[p][i]), mul_f16x2(x[p & 1][i], s[p][i]));
                    }
                    st_shared_b32x4(k0_at + slot * 16384 + part * 8192 + p * 2048, k0);
                    st_shared_b32x4(k1_at + slot * 16384 + part * 8192 + p * 2048, k1);
                    if (p < 2) {
                        ld_shared_b32x4(x[p], x_from + slot * 16384 + part * 8192 + (p + 2) * 2048);
                        ld_shared_b32x4(y[p], y_from + slot * 16384 + part * 8192 + (p + 2) * 2048);
                    }
                    if (RANKED == 1) {
                        st_async4(k0_there + slot * 16384 + p * 2048, k0, f0_there + slot * 8);
                        st_async4(k1_there + slot * 16384 + p * 2048, k1, f0_there + slot * 8);
                    }
                    if (RANKED == 2) {
                        st_remote4(k0_there + slot * 16384 + p * 2048, k0);
                        st_remote4(k1_there + slot * 16384 + p * 2048, k1);
                    }
                }
                const int next = RANKED ? (t + 1 < tiles ? (t + 1) * 128 : 0) : part == 0 ? t * 128 + 64 : (t + 1 < tiles ? (t + 1) * 128 : 0);
                #pragma unroll
                for (int p = 0; p < 4; ++p) {
                    ld_global_b32x4(c[p], cp + (long long)(next + p * 16) * C_s0);
                    ld_global_b32x4(s[p], sp + (long long)(next + p * 16) * S_s0);
                }
            }
            if (RANKED == 2) whole_fence(); else proxy_fence();
            __syncwarp();
            if (lane == 0) {
                if (RANKED == 1 && warp == 0) mbar_expect(f0 + slot * 8, 16384); else mbar_arrive(f0 + slot * 8);
                if (RANKED == 2) arrive_release(f0_there + slot * 8);
                mbar_arrive(xe + slot * 8);
                mbar_arrive(ye + slot * 8);
            }
            if (++slot == 2) { slot = 0; parity ^= 1; }
        }
"""


def _defines(**kw: int) -> str:
    return "".join(f"#define {k} {v}\n" for k, v in kw.items())


def maker(t: str, ranked: int = 0, half: int = 0, fused: int = 0) -> str:
    """The maker written by hand; one barrier for both tiles. ranked: blocks of a cluster of two make a half each."""
    i, j = t.index("    } else if (group < 2) {  // role make"), t.index("    } else {  // role main")
    main = t[j:]
    main, n = re.subn(r"\n *mbar_wait\(k1_tile_full[^\n]*", "", main)
    assert n, "k1 full"
    main, n = re.subn(r"\n *if \(lane == 0\) mbar_arrive\(k1_tile_empty \+ [^\n]*", "", main)
    assert n, "k1 empty"
    t = t[:i].replace("setmaxnreg_dec<24>", "setmaxnreg_dec<32>") + MAKER + main
    t = re.sub(r"setmaxnreg_dec<104>", "setmaxnreg_dec<96>", t)
    if ranked:
        t = re.sub(r"if \(lane == 0\) mbar_arrive\(k0_tile_empty \+ k0_tile_slot \* 8\);",
                   "{ if (lane == 0) mbar_arrive(k0_tile_empty + k0_tile_slot * 8); if (lane == 1) arrive_peer(peer_of(k0_tile_empty + k0_tile_slot * 8, (blockIdx.x & 1) ^ 1)); }", t)
        t, n = re.subn(r"mbar_wait\(k0_tile_full", "wait_cluster(k0_tile_full", t)
        assert n, "k0 full"
        t = t.replace("mbar_init(smem_base + k0_tile_empty_offset + 8 * i, 8)", "mbar_init(smem_base + k0_tile_empty_offset + 8 * i, 16)")
        if ranked == 2:
            t = t.replace("mbar_init(smem_base + k0_tile_full_offset + 8 * i, 4)", "mbar_init(smem_base + k0_tile_full_offset + 8 * i, 8)")
        t = t.replace("    __syncthreads();\n    if (group < 1)", "    cluster_all();\n    if (group < 1)", 1)
        end = t.rindex("}", 0, t.rindex("}"))
        t = t[:end] + "}\n    __syncwarp();\n    cluster_all();\n}\n"
        t = t.replace("__global__ void __launch_bounds__", "__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__")
    if half:
        t, n = re.subn(r"mbar_expect\(([xy])_full \+ \w+ \* 8, 16384\)", r"mbar_expect(\1_full + \1_slot * 8, 8192)", t)
        assert n == 6, "expects"
        t, n = re.subn(r"(tma_load_4d\([xy]_smem[^;]*, 0, [01], )(\w+), h\)", r"\1\2 + int(blockIdx.x & 1) * 64, h)", t)
        assert n == 6, "copies"
    at = t.index('extern "C" __global__')
    return t[:at] + PRELUDE + _defines(RANKED=ranked, HALF=half, FUSED=fused) + t[at:]


def fma(t: str) -> str:
    t, n = re.subn(r"sub_f16x2\(mul_f16x2\(([^,]*), ([^)]*)\), (mul_f16x2\([^)]*\))\)", r"mad_f16x2(\1, \2, \3 ^ 0x80008000u)", t)
    t, m = re.subn(r"add_f16x2\(mul_f16x2\(([^,]*), ([^)]*)\), (mul_f16x2\([^)]*\))\)", r"mad_f16x2(\1, \2, \3)", t)
    assert n and m, "fma"
    at = t.index('extern "C" __global__')
    return t[:at] + PRELUDE + t[at:]


# ---- int4


def l2_ahead(t: str) -> str:
    """What the first turns of the ring ask for goes to L2 while the kernel in front ends."""
    slots = int(re.search(r"\+\+w_slot == (\d+)", t)[1])  # type: ignore[index]
    got = re.search(r"tma_load_2d\(w_smem[^;]*, w_map, [^;]*, depth_start, (\w+)\);", t)
    assert got, "the copy"
    wait = t.index("            grid_wait();")
    loop = f"""            for (int i = 0; i < {slots}; ++i)
                asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {{%1, %2}}];" :: "l"(&w_map), "r"(i * 128), "r"({got[1]}) : "memory");
"""
    return t[:wait] + loop + t[wait:]


def l2_far(t: str) -> str:
    """In every turn, what is asked for two turns of the ring later goes to L2."""
    return re.sub(r"(tma_load_2d\(w_smem[^;]*, w_map, [^;]*, depth_start, (\w+)\);)",
                  r"""\1
                asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" :: "l"(&w_map), "r"(depth_start + 1024), "r"(\2) : "memory");""", t)


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


def no_membar(t: str) -> str:
    i = t.index("role main")
    return t[:i] + t[i:].replace("proxy_fence();", "")


Edits = tuple[Callable[[str], str], ...]
#: label, spec and schedule, does it compute what it should, edits
ROTARIES: list[tuple[str, str, str, bool, Edits]] = [
    ("plain", "plain", PLAIN, True, ()), ("plain, static", "plain", PLAIN + ", persistent=static", True, ()),
    ("as it is", "rotated", ROTARY, True, ()), ("fma", "rotated", ROTARY, True, (fma,)),
    ("by hand", "rotated", ROTARY, True, (maker,)), ("by hand, fma", "rotated", ROTARY, True, (partial(maker, fused=1),)),
    ("halves, st.async", "rotated", ROTARY, True, (partial(maker, ranked=1),)),
    ("halves, st.async, fma", "rotated", ROTARY, True, (partial(maker, ranked=1, fused=1),)),
    ("halves, st.async, half copied", "rotated", ROTARY, True, (partial(maker, ranked=1, half=1),)),
    ("halves, st.async, half copied, fma", "rotated", ROTARY, True, (partial(maker, ranked=1, half=1, fused=1),)),
    ("halves, remote stores, half copied", "rotated", ROTARY, True, (partial(maker, ranked=2, half=1),)),
]
INT4: list[tuple[str, str, str, bool, Edits]] = [
    ("as it is", "", RS, True, ()), ("L2 ahead", "", RS, True, (l2_ahead,)), ("L2 far", "", RS, True, (l2_far,)), ("L2 ahead and far", "", RS, True, (l2_ahead, l2_far)),
    ("products of 4 of 8", "", RS, False, (fewer(4),)), ("products of 2 of 8", "", RS, False, (fewer(2),)), ("no fences", "", RS, True, (no_membar,)),
    ("copies alone", "", RS, False, (copies_alone,)), ("copies alone, L2 ahead", "", RS, False, (copies_alone, l2_ahead)),
    ("one block", "", ONE, True, ()), ("one block, L2 ahead", "", ONE, True, (l2_ahead,)),
    ("8 warps mma", "", MMA8, True, ()), ("8 warps mma, L2 ahead", "", MMA8, True, (l2_ahead,)), ("4 blocks of 64 in parts", "", SPLIT, True, ()),
]


def edited(m: Made, edits: Edits) -> Made:
    if m.error or not edits:
        return m
    text = m.built.cuda_text
    facts_of = m.built.facts
    try:
        for edit in edits:
            new = edit(text)
            if new == text:
                return Made(error=f"{edit} changes nothing")
            text = new
            if getattr(edit, "keywords", {}).get("half"):
                flat = tuple((a, b, c, (1, 64, 1, 64, 128)) if (a, b) == ("map", "K") else (a, b, c, d) for a, b, c, d in facts_of.flat)
                facts_of = replace(facts_of, flat=flat)
    except AssertionError as e:
        return Made(error=f"an edit found no {e}")
    try:
        binary = nvrtc.compile_cuda(text, "sm_90a", name="edited")
    except fc.FcError as e:
        return Made(error=str(e)[:900])
    said = [w for w in binary.warnings if "(C7" in w]
    stack = next(iter(cubin.resources(binary.cubin).values())).stack_bytes
    if said or stack > (48 if "role make" in text else 0):  # by hand, the one thread that copies may keep a few words in memory
        return Made(error=said[0] if said else f"spills {stack} bytes")
    return Made(replace(m.built, cuda_text=text, cubin=binary.cubin, facts=facts_of), m.resources)


def made(job: tuple[str, int]) -> Made:
    kind, n = job
    if kind == "int4":
        return edited(compiled(("int4-16", INT4[n][2], "sm_90a", "fp16"))[1], INT4[n][4])
    _, spec, schedule, _, edits = ROTARIES[n]
    p = prologues.build((spec, 128, "sm_90a", fc.Schedule.parse(schedule)))
    return Made(error=p) if isinstance(p, str) else edited(Made(p.built, p.resources), edits)


def rotary(all_made: list[Made], rounds: int) -> list[dict[str, Any]]:
    """All are compared with the first of their spec that is printed, on the size that is timed; `benchmarks.prologues` compares that with float64."""
    import torch

    torch.manual_seed(0)
    ways, want = [], {}
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
