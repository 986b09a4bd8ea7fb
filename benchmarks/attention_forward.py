"""Attention forward beside PyTorch's: TFLOP/s and error of the library's mma and WMMA schedules, of SDPA's FlashAttention-2 and of cuDNN.

Every case has 16384 tokens and H = 2048 / D heads in [B, S, H, D] storage. Errors are against float64 on a sample of rows with all their
keys, of the same rows for everyone. `--sweep` times the schedules of SWEEP instead of the library's choice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fcgen as fc
from fcgen.kernels.schedules import pick

from .environment import facts
from .pool import LAZY, Job, Made, build_all, launcher, write_json
from .timing import Checked, geomean, round_robin

TOKENS, WIDTH = 16384, 2048
HEADS, LENGTHS, MASKS = (64, 128), (1024, 4096, 16384), ("none", "causal_top_left")
SPEED = {"mma": 0.9, "wmma": 0.5}
ERROR_RATIO = 1.5
ROWS = 256

#: head size -> (BLOCK_M, BLOCK_N, the rest of the schedule)
SWEEP: dict[int, list[tuple[int, int, dict[str, Any]]]] = {
    64: [(128, 64, {}), (128, 64, {"stages": 3}), (128, 64, {"stages": 1, "ahead": True}), (64, 64, {}), (64, 64, {"stages": 3}),
         (64, 128, {}), (128, 32, {"stages": 3}), (128, 64, {"warps": 8}), (128, 96, {"hold_a": False})],
    128: [(128, 64, {"hold_a": False}), (128, 64, {"warps": 8, "stages": 1, "ahead": True}), (64, 64, {}), (64, 64, {"hold_a": False}),
          (64, 64, {"stages": 1, "ahead": True}), (64, 96, {"hold_a": False}), (64, 128, {"hold_a": False}), (128, 32, {"hold_a": False}),
          (128, 128, {"hold_a": False, "warps": 8})],
}


def jobs(dtype: str, arch: str, sweep: bool, heads: tuple[int, ...] = HEADS) -> dict[str, list[Job]]:
    """name of a candidate -> its kernels, one per head size and mask it is for."""
    out: dict[str, list[Job]] = {}
    for d in heads:
        for mask in MASKS:
            if sweep:
                for m, n, rest in SWEEP[d]:
                    schedule = fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, **rest)
                    out.setdefault(str(schedule), []).append(Job(schedule, d, d, mask, dtype, arch=arch))
                continue
            out.setdefault("mma", []).append(Job(pick(arch, d, mask=mask), d, d, mask, dtype, arch=arch))
            out.setdefault("wmma", []).append(Job(pick(arch, d, "wmma", mask), d, d, mask, dtype, LAZY, arch=arch))
    return out


def flops(b: int, h: int, s: int, d: int, causal: bool) -> float:
    """As FlashAttention's benchmarks count: two products, half of them under a causal mask."""
    return 4.0 * b * h * s * s * d * (0.5 if causal else 1.0)


def sdpa(backend: str, q: Any, k: Any, v: Any, causal: bool) -> Callable[[], Any]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run() -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return run


def reference(q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Callable[[Any], Any]]:
    """float64 result for a sample of rows (first and last batch and head), and the function that takes the sample out of an output."""
    import torch

    s = q.shape[2]
    rows = torch.linspace(0, s - 1, min(s, ROWS), device=q.device).long()
    ends = lambda x: x[[0, -1]][:, [0, -1]]
    sample = lambda x: ends(x)[:, :, rows].double()
    scores = sample(q) @ ends(k).double().transpose(-1, -2) * q.shape[3] ** -0.5
    if causal:
        scores.masked_fill_(torch.arange(s, device=q.device) > rows[:, None], float("-inf"))
    return torch.softmax(scores, -1) @ ends(v).double(), sample


def errors(got: Any, want: Any, sample: Callable[[Any], Any]) -> tuple[float, float]:
    """(max, rms) of the sampled rows; inf where the whole output is not finite."""
    if not got.isfinite().all():
        return float("inf"), float("inf")
    diff = sample(got) - want
    return diff.abs().max().item(), diff.square().mean().sqrt().item()


def cases(dtype: str, lengths: tuple[int, ...] = LENGTHS) -> Iterator[tuple[int, int, str, tuple[Any, Any, Any]]]:
    import torch

    torch.manual_seed(0)
    kind = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for d in HEADS:
        for s in lengths:
            make = lambda d=d, s=s: torch.randn(TOKENS // s, s, WIDTH // d, d, device="cuda", dtype=kind).transpose(1, 2)
            q, k, v = make(), make(), make()
            for mask in MASKS:
                yield d, s, mask, (q, k, v)


Kernels = dict[str, dict[tuple[int, str], Made]]


def candidates(made: Kernels, d: int, mask: str, qkv: tuple[Any, Any, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, run, the output that run writes or None where it returns it)."""
    import torch

    q, k, v = qkv
    for name, kernels in made.items():
        if (d, mask) not in kernels:
            continue
        o, lse = torch.full_like(q, float("nan")), torch.full(q.shape[:3], float("nan"), device="cuda")
        call = {"Q": q, "K": k, "V": v, "O": o, "LSE": lse, "scale": d**-0.5}
        yield name, partial(launcher(kernels[d, mask]), call), o
    yield "fa2", sdpa("FLASH_ATTENTION", q, k, v, mask != "none"), None
    yield "cudnn", sdpa("CUDNN_ATTENTION", q, k, v, mask != "none"), None


def measure(made: Kernels, dtype: str, rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    import torch

    table, wrong = [], []
    for d, s, mask, qkv in cases(dtype):
        causal = mask != "none"
        want, sample = reference(*qkv, causal)
        checked = []
        for name, run, out in candidates(made, d, mask, qkv):
            try:
                returned = run()
                torch.cuda.synchronize()
            except RuntimeError as error:
                if name == "cudnn":  # an extra column, not in every build
                    continue
                raise RuntimeError(f"{name}, D={d} S={s} {mask}") from error
            checked.append(Checked(name, run, *errors(returned if out is None else out, want, sample)))
        found = {c.name: (c.max_error or 0.0, c.rms_error or 0.0) for c in checked}
        most, rms = found["fa2"]
        good = [c for c in checked if found[c.name][0] <= 4 * most]
        wrong += [f"D={d} S={s} {mask} {c.name}: max error {c.max_error:.1e}, FA2's {most:.1e}" for c in checked if c not in good]
        work = flops(TOKENS // s, WIDTH // d, s, d, causal)
        times = round_robin(good, max(1, int(2e-3 / (work / 3e14))), rounds)
        row = {"d": d, "s": s, "mask": mask, "dtype": dtype, "results": {
            c.name: {"ms": times[c.name].ms, "spread": times[c.name].spread, "tflops": work / times[c.name].ms / 1e9,
                     "speed": times["fa2"].ms / times[c.name].ms, "max_error": c.max_error, "rms_error": c.rms_error,
                     "error_ratio": max(found[c.name][0] / most, found[c.name][1] / rms)} for c in good}}
        table.append(row)
        print_row(row)
    return table, wrong


def print_row(row: dict[str, Any]) -> None:
    found = sorted(row["results"].items(), key=lambda r: -r[1]["tflops"])
    text = " | ".join(f"{n} {r['tflops']:.0f} ({r['speed']:.2f}x, err {r['error_ratio']:.2f})" for n, r in found)
    print(f"D={row['d']:<4} S={row['s']:<6} {row['mask']:16} {text}", flush=True)


def geomeans(table: list[dict[str, Any]]) -> dict[str, float]:
    """name -> geometric mean of its speed over FlashAttention-2's, over the rows that have it."""
    names = dict.fromkeys(n for row in table for n in row["results"])
    return {n: geomean(row["results"][n]["speed"] for row in table if n in row["results"]) for n in names}


def problems(table: list[dict[str, Any]], means: dict[str, float], strict: bool) -> list[str]:
    out = [f"D={r['d']} S={r['s']} {r['mask']} {n}: error {x['error_ratio']:.2f} times FA2's, target {ERROR_RATIO}"
           for r in table for n, x in r["results"].items() if n not in ("fa2", "cudnn") and x["error_ratio"] > ERROR_RATIO]
    return out + [f"{n}: {means[n]:.3f} of FA2's speed, target {t}" for n, t in SPEED.items() if strict and n in means and means[n] < t]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("f16", "bf16"), default="f16")
    parser.add_argument("--sweep", action="store_true", help="time the schedules of SWEEP")
    parser.add_argument("--strict", action="store_true", help="a missed speed target is a failure too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--dry-run", action="store_true", help="only compile (for --arch), and print registers and spills")
    parser.add_argument("--arch", help="target (the GPU's own)")
    args = parser.parse_args(argv)

    arch = args.arch or ("sm_90" if args.dry_run else fc.gpu_target())
    named = jobs(args.dtype, arch, args.sweep)
    built = build_all(j for js in named.values() for j in js)
    failed = [f"{j}: {built[j].error}" for j in built if built[j].error]
    for name, js in named.items():
        for j in js:
            if r := built[j].resources:
                print(f"{name:6} D={j.d:<4} {j.mask:16} {r.registers} registers, {r.spill_stores} bytes spilled   {j.schedule}")
    if args.dry_run:
        print("\n".join(failed))
        return bool(failed)
    made = {name: {(j.d, j.mask): built[j] for j in js if built[j].built} for name, js in named.items()}
    table, wrong = measure(made, args.dtype, args.rounds)
    means = geomeans(table)
    for name, mean in sorted(means.items(), key=lambda x: -x[1]):
        print(f"geomean {name}/fa2 {mean:.3f}" + (f"  (target {SPEED[name]})" if name in SPEED else ""))
    found = failed + wrong + ([] if args.sweep else problems(table, means, args.strict))
    print("\n".join(found) or "all errors within the target")
    schedules = {name: {f"{j.d} {j.mask}": str(j.schedule) for j in js} for name, js in named.items()}
    write_json(args.json, {"part": "forward", "environment": facts(), "table": table, "geomeans": means, "schedules": schedules,
                           "targets": {**SPEED, "error_ratio": ERROR_RATIO}, "problems": found})
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
