# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Keys in pages of 16, found by a table, beside the same keys in a row: what rows that a vector lists cost, by how far ahead copies run.

    python -m benchmarks.listed --json out/listed.json
    python -m benchmarks.listed --compile-only

Each kernel is compared with float64 before it is timed, in turns with the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import fcgen as fc

from .environment import facts
from .pool import write_json
from .timing import Checked, round_robin

M, N, H, G, D, PAGE = 4096, 4096, 16, 4, 128, 16
LIMIT = 4e-3


def attend(Q: Any, O: Any, scale: Any, n: Any, k_of: Any, v_of: Any) -> None:
    h, rows = fc.grid(Q.H, fc.tile(Q.M, "BM"))
    q, (m, l, acc) = fc.load(Q[rows, h]), (fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, O.D)))
    for cols in fc.loop(fc.tile(n, "BN")):
        s = fc.where(cols.valid, fc.dot(q, k_of(cols, h).T) * scale, -fc.inf)
        top = fc.maximum(m, fc.max(s, axis=1))
        p, fade = fc.exp(s - top), fc.exp(m - top)
        l <<= l * fade + fc.sum(p, axis=1)
        acc <<= acc * fade + fc.dot(p.to(Q.dtype), v_of(cols, h))
        m <<= top
    fc.store(O[rows, h], (acc / l).to(O.dtype))


@fc.kernel
def in_pages(Q: "f16[M, H, D]", K: "f16[P, S, G, D]", V: "f16[P, S, G, D]", table: "i32[W]", O: "out f16[M, H, D]", *, scale: "f32 > 0",
             n: "i32"):
    at = lambda X: lambda cols, h: fc.load(X[fc.where(cols.valid, table[cols.index // K.S], -1), cols.index % K.S, h // (Q.H // K.G), :])
    attend(Q, O, scale, n, at(K), at(V))


@fc.kernel
def in_a_row(Q: "f16[M, H, D]", K: "f16[N, G, D]", V: "f16[N, G, D]", O: "out f16[M, H, D]", *, scale: "f32 > 0"):
    at = lambda X: lambda cols, h: fc.load(X[cols, h // (Q.H // K.G)])
    attend(Q, O, scale, K.N, at(K), at(V))


def candidates(target: str) -> list[tuple[fc.Kernel, fc.Schedule]]:
    """With bulk copies and without, how many slots."""
    tiles = lambda m, n: {"BM": m, "BN": n}
    out = []
    for spec in (in_a_row, in_pages):
        for stages in (1, 2, 3):
            if target == "sm_90a":
                wide = fc.Schedule(warps=8, math="wgmma", copy="tma", stages=stages, epilogue="quad")
                out += [(spec, replace(wide, tiles=tiles(128, n))) for n in (64, 128)]
            if stages < 3:
                out.append((spec, fc.Schedule(tiles=tiles(64, 64), stages=stages, hold_a=False)))
    return out


def built(spec: fc.Kernel, schedule: fc.Schedule, target: str) -> Any:
    try:
        p = spec.compile(target=target, schedule=schedule, check=False, D=D)
        return p if p.resources.spill_stores == 0 else "spills"
    except fc.FcError as e:
        return str(e).splitlines()[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", help="the GPU's own; on Hopper sm_90a")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--compile-only", action="store_true")
    args = parser.parse_args(argv)
    target = args.target or ("sm_90a" if args.compile_only else fc.gpu_target())
    pairs = candidates(target)
    with ThreadPoolExecutor(12) as pool:
        programs = list(pool.map(lambda c: built(c[0], c[1], target), pairs))
    named = [(f"{spec.name}, {s}", p) for (spec, s), p in zip(pairs, programs)]
    rows: list[dict[str, Any]] = [{"spec": name, "wrong": p} for name, p in named if isinstance(p, str)]
    if not args.compile_only:
        rows += timed([(name, p) for name, p in named if not isinstance(p, str)])
        write_json(args.json, {"part": "listed", "environment": facts(), "rows": rows})
    for r in rows:
        print(f"{r.get('tflops', 0):8.1f} {r.get('rms', 0):.1e}  {r['spec']}  {r.get('wrong', '')}")
    return 0


def timed(programs: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    import torch

    torch.manual_seed(0)
    q, k, v = (torch.randn(n, h, D, device="cuda", dtype=torch.float16) for n, h in ((M, H), (N, G), (N, G)))
    table = torch.randperm(N // PAGE, device="cuda").to(torch.int32)
    paged = lambda x: torch.empty(N // PAGE, PAGE, G, D, device="cuda", dtype=x.dtype).index_copy_(0, table.long(), x.view(-1, PAGE, G, D))
    o, some = torch.empty_like(q), slice(0, M, 61)
    wide = lambda x: x.double().repeat_interleave(H // G, 1)
    s = torch.einsum("mhd,nhd->hmn", q[some].double(), wide(k)) * D**-0.5
    want = torch.einsum("hmn,nhd->mhd", s.softmax(-1), wide(v))
    rows, ways = [], []
    for name, p in programs:
        call = {"Q": q, "O": o, "scale": D**-0.5}
        call |= {"K": paged(k), "V": paged(v), "table": table, "n": N} if name.startswith("in_pages") else {"K": k, "V": v}
        run = lambda p=p, call=call: p.launcher(call)
        o.fill_(float("nan"))
        run()
        torch.cuda.synchronize()
        rms = float(((o[some].double() - want).square().mean() / want.square().mean()).sqrt())
        if rms <= LIMIT:
            ways.append(Checked(name, run, rms, rms))
        else:
            rows.append({"spec": name, "wrong": f"rms error {rms:.1e}"})
    work = 4.0 * H * M * N * D
    times = round_robin(ways, 5, 7, warm=1) if ways else {}
    return rows + [{"spec": w.name, "ms": t.ms, "spread": t.spread, "tflops": work / t.ms / 1e9, "rms": w.rms_error}
                   for w in ways for t in [times[w.name]]]


if __name__ == "__main__":
    sys.exit(main())
