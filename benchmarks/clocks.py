"""Where the clocks of a tile of rows go: stamps in the printed text of a window's kernel, by consumer warpgroup. On one GPU.

    python -m benchmarks.clocks --compile
    python -m benchmarks.clocks --json out/clocks.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fcgen as fc
from fcgen import masks
from fcgen.attend.forward import compiled
from fcgen.attend.variants import functions
from fcgen.backends.cuda import printer
from fcgen.build import compiler
from fcgen.kernels.hopper_schedules import pick
from fcgen.runtime import module

KEYS, TILES, POINTS = 32768, 32, 10
NAMES = ("rows begin", "Q there, others' tiles let go", "first scores", "loop begins", "loop ends", "last product", "others' tiles let go",
         "stored", "next rows known")


def stamped(text: str) -> str:
    """Stamps between the parts of the consumers' loop over tiles of rows."""
    begin = text.index("role main")
    head, body = text[:begin], text[begin:]
    stamp = lambda n: f" STAMP({n})"
    body = re.sub(r"(\n *)(while \(go\w*\) \{)", lambda m: f"{m[1]}int tile_no = -1; SPAN(0); {m[2]} ++tile_no;{stamp(0)}", body, count=1)
    end = body.rindex("\n    }\n}")
    body = body[:end] + " SPAN(1);" + body[end:]
    define = (f'extern "C" __device__ unsigned int stamps[132 * 3 * {TILES * POINTS}];\n'
              f"#define STAMP(n) if (threadIdx.x % 128 == 0 && tile_no < {TILES}) "
              f"stamps[((blockIdx.x * 3 + warp / 4) * {TILES} + tile_no) * {POINTS} + n] = clock();\n"
              'extern "C" __device__ unsigned long long spans[132 * 4];\n'
              "#define SPAN(n) if (threadIdx.x % 128 == 0 && warp == 0) { unsigned long long t; "
              'asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); spans[blockIdx.x * 4 + n] = t; '
              "spans[blockIdx.x * 4 + 2 + n] = clock64(); }\n")
    first = head.index('extern "C" __global__')
    head = head[:first] + define + head[first:]
    if "unread" not in body and "masked" not in body:
        return head + body
    body = re.sub(r"(mbar_wait\(q_full[^\n]*)", lambda m: m[1] + stamp(1), body, count=1)
    body = re.sub(r"(wgmma_wait<0>\(\);)", lambda m: m[1] + stamp(2), body, count=1)
    loop = re.search(r"for \(int cols_tile\w* = first\w*", body)
    assert loop is not None
    unroll = body.rindex("#pragma unroll 1", 0, loop.start())
    body = body[:unroll].rstrip(" ") + stamp(3)[1:] + "\n" + body[unroll:]
    at = body.index("mbar_arrive(q_empty")
    at = body.rindex("if (lane == 0)", 0, at)
    body = body[:at] + stamp(4)[1:] + " " + body[at:]
    at = body.index("wgmma_wait<0>();", at) + len("wgmma_wait<0>();")
    drain = re.search(r"for \(int unread_2", body)
    body = body[:at] + stamp(5) + ("" if drain else stamp(6)) + body[at:]
    drain = re.search(r"for \(int unread_2", body)
    if drain:
        end = body.index("\n            }", drain.end()) + len("\n            }")
        body = body[:end] + stamp(6) + body[end:]
    last = body.rindex("mbar_wait(next_full")
    body = body[:last] + stamp(7)[1:] + " " + body[last:]
    at = body.index(";", last + len(stamp(7)) + 4) + 1
    at = body.index("mbar_wait(next_full", last)
    at = body.index(";", at) + 1
    body = body[:at] + stamp(8) + body[at:]
    return head + body


#: what is left out of the text, to see what it costs (results are then wrong)
LEFT_OUT: dict[str, tuple[str, str]] = {
    "": ("", ""), "masks": (r"if \(masked\)", "if (masked && scale == 77.0f)"),
    "stores": (r"(if \(unsigned\(o_pos[^\n]*)\) st_global", r"\1 && scale == 77.0f) st_global")}


def ways(d: int) -> list[fc.Schedule | None]:
    """None: the dense kernel."""
    base = pick(d, "part", KEYS, KEYS, 1024 // d, 132).schedule
    deep = {"q": 2, "k": 6, "v": 6} if d == 64 else {"q": 2, "k": 4, "v": 4}
    return [None, replace(base, stages=deep), base, replace(base, own_rows=False), replace(base, stages=deep, own_rows=False)]


def made(d: int, schedule: fc.Schedule | None) -> Any:
    if schedule is None:
        schedule = pick(d, "causal", KEYS, KEYS, 1024 // d, 132).schedule
        program = compiled.__wrapped__("f16", d, d, "causal_top_left", False, "sm_90a", schedule, True, None, "", False, functions())
        _ = program.cubin
        return program
    program = compiled.__wrapped__("f16", d, d, "none", False, "sm_90a", schedule, True, None, "", False,
                                   functions(mask=masks.window(1024, 0)))
    program = getattr(program, "first", program)
    _ = program.cubin
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ["FCGEN_CHECK"] = "0"
    plain = printer.print_cuda
    programs = []
    for word, (old, new) in LEFT_OUT.items():
        change = lambda c, old=old, new=new: replace(c, text=re.sub(old, new, stamped(c.text)) if old else stamped(c.text))
        printer.print_cuda = lambda *a, change=change, **k: change(plain(*a, **k))  # type: ignore[assignment]
        compiler.NVRTC_OPTIONS = ("-default-device", f"-DSTAMPED={len(word) + 1}")
        programs += [(d, word, s, made(d, s)) for d in (64, 128) for s in (ways(d)[1:2] if word else ways(d))]
    if args.compile:
        for d, word, s, p in programs:
            print(d, word, p.resources, str(s)[:80])
        return 0
    import numpy as np
    import torch

    load, loaded = module.load, []
    module.load = lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1]  # type: ignore[func-returns-value]
    from cuda.bindings import driver

    from benchmarks.variants import tensors
    table: dict[str, Any] = {}
    for d, word, s, p in programs:
        q, k, v = tensors(1, 1024 // d, KEYS, d)
        o = torch.empty_like(q)
        p.quiet = True
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for n in range(60):
            if n == 40:
                begin.record()
            p(Q=q, K=k, V=v, O=o, scale=d**-0.5, **({} if s is None else {"keep_0": 0, "keep_1": 1024, "keep_2": 0}))
        end.record()
        torch.cuda.synchronize()
        ms = begin.elapsed_time(end) / 20

        def read(name: bytes, dtype: Any) -> Any:
            status, pointer, size = driver.cuModuleGetGlobal(loaded[-1]._module, name)
            raw = np.empty(size // np.dtype(dtype).itemsize, dtype)
            assert int(status) == 0 and int(driver.cuMemcpyDtoH(raw.ctypes.data, pointer, size)[0]) == 0
            return raw

        span = read(b"spans", np.uint64).astype(np.int64).reshape(132, 4)
        ghz = float(np.median((span[:, 3] - span[:, 2]) / (span[:, 1] - span[:, 0])))
        first, last = span[:, 0].min(), span[:, 1].max()
        what = f"D={d} " + (f"own rows {s.own_rows} {dict(s.stages)} without {word or 'nothing'}" if s else "dense")  # type: ignore[call-overload]
        begun, ended = (span[:, 0].max() - first) / 1e3, (last - span[:, 1]) / 1e3
        print(f"{what}: {ms:.4f} ms a launch, {(last - first) / 1e6:.4f} in its blocks, which begin within {begun:.1f} us and end within "
              f"{ended.max():.1f} (mean {ended.mean():.1f}), {ghz:.3f} GHz", flush=True)
        found: dict[str, Any] = {"ms": ms, "ghz": ghz, "blocks": float(last - first)}
        table[f"{d} {s} {word}"] = found
        if s is None:
            steps = KEYS / 2 / 64 * KEYS / 192 * (1024 // d) / 132
            print(f"  clocks for 64 keys of 192 rows: {np.median(span[:, 3] - span[:, 2]) / steps:.0f}")
            continue
        x = read(b"stamps", np.uint32).reshape(132, 3, TILES, POINTS).astype(np.int64)
        tiles = min(KEYS // 192 * (1024 // d) // 132, TILES) - 1
        each = [float(np.median((x[:, :, n, 8] - x[:, :, n, 0]) % 2**32)) for n in range(tiles + 1)]
        print(f"  clocks of each tile of rows: {' '.join(f'{t:.0f}' for t in each)}")
        x = x[:, :, 1:tiles]
        steps = (x[..., 1:9] - x[..., :8]) % 2**32
        for n, name in enumerate(NAMES[1:]):
            found[name] = [float(np.median(steps[:, w, :, n])) for w in range(3)]
            print(f"  {name:32} {' '.join(f'{t:7.0f}' for t in found[name])}", flush=True)
        for n in (0, 2, 4):  # how far apart the groups are
            apart = [float(np.median((x[:, w, :, n] - x[:, 0, :, n]).astype(np.int32))) for w in range(3)]
            print(f"  {NAMES[n]:24} after group 0 {' '.join(f'{t:7.0f}' for t in apart)}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
