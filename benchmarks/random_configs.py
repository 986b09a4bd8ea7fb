"""Random attention calls against float64: shapes, dtypes, grouped heads, masks, scales and strides nobody picked by hand.

    python -m benchmarks.random_configs --count 2000 --json out.json
    python -m benchmarks.random_configs --seed 0 --only 137            one of them again
    python -m benchmarks.random_configs --dry --count 6                a few tiny ones on the CPU, in the simulator

Every element has to be as near to float64 as rounding the weights and the result to the inputs' dtype allows (`accuracy.rounding_bound`).
Memory around inputs is NaN, memory around and in the outputs is a marked NaN: what is read or written out of bounds shows. Some
configurations run 100 times and have to give the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fcgen as fc
from fcgen.kernels.schedules import pick

from . import environment
from .accuracy import UNIT, compare, reference, rounding_bound
from .library import LAZY, Caller, Job, precompile, report_failures

CAUSAL = {"none": False, "causal_top_left": "top_left", "causal_bottom_right": "bottom_right"}
LAYOUTS = ("contiguous", "seq_first_heads", "seq_batch_heads", "padded_rows", "padded_heads", "sliced_seq", "every_other", "offset")
#: bits that no kernel writes: quiet NaNs with a payload of their own
MARK = {"f16": 0x7E5A, "bf16": 0x7FDA, "f32": 0x7FC05A5A}
LSE_LIMIT = 2e-4


@dataclass(frozen=True)
class Kernel:
    """What is compiled: everything else in a configuration is an argument. family "": the library's own choice."""

    dtype: str
    d: int
    e: int
    mask: str
    family: str = ""
    positive: bool = True


@dataclass(frozen=True)
class Config:
    number: int
    kernel: Kernel
    b: int
    g: int
    group: int
    m: int
    n: int
    scale: float | None
    layouts: tuple[str, str, str, str]
    public: bool
    spread: float


def draw_kernels(seed: int, count: int) -> list[Kernel]:
    """Each head size at least once, then at random; one in eight a WMMA or multiply-add schedule, one in ten with E != D."""
    rng = random.Random(f"{seed}/kernels")
    sizes = list(range(16, 257, 8))
    order = [*rng.sample(sizes, len(sizes)), *(rng.choice(sizes) for _ in range(max(0, count - len(sizes))))][:count]
    out = []
    for d in order:
        e = rng.choice(sizes) if rng.random() < 0.1 else d
        dtype, mask = rng.choice(["f16", "bf16"]), rng.choice(list(CAUSAL))
        family = rng.choice(["wmma", "wmma", "fma"]) if rng.random() < 0.2 and max(d, e) <= 128 else ""
        out.append(Kernel(dtype, d, e, mask, family, positive=bool(family) or rng.random() > 0.05))
    return list(dict.fromkeys(out))


def _length(rng: random.Random, most: int) -> int:
    kind = rng.randrange(5)
    near = rng.choice([16, 32, 64, 128, 256, 512, 1024]) + rng.choice([-1, 0, 1])
    return min([1, rng.randint(2, 40), rng.randint(41, 300), rng.randint(301, 1100), near][kind], most)


def draw_configs(seed: int, count: int, kernels: Sequence[Kernel], *, most: int = 1100) -> list[Config]:
    """Configuration i depends on the seed, i and the kernels alone."""
    out = []
    for i in range(count):
        rng = random.Random(f"{seed}/{i}")
        kernel = kernels[i] if i < len(kernels) else rng.choice(kernels)
        m, n = _length(rng, most), _length(rng, most)
        if rng.random() < 0.4:
            m = n
        if rng.random() < 0.01:
            n = 0
        scale = rng.choice([None, None, None, 0.02, 1.0 / math.sqrt(kernel.d) * 3]) if kernel.positive else rng.choice([0.0, -0.05])
        public = kernel.family == "" and rng.random() < 0.5
        out.append(Config(i, kernel, rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 1, 2, 3, 4, 8]), m, n, scale,
                          tuple(rng.choice(LAYOUTS) for _ in range(4)), public, rng.choice([1.0, 1.0, 0.1, 3.0])))  # type: ignore[arg-type]
    return out


def schedule_of(kernel: Kernel, arch: str) -> tuple[fc.Schedule | None, float]:
    head = max(kernel.d, kernel.e)
    if kernel.family == "wmma":
        return pick(arch, head, "wmma", kernel.mask), LAZY
    if kernel.family == "fma":
        return fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 32}, math="fma", copy="vector", stages=1), 0.0
    return None, 0.0


def job_of(kernel: Kernel, arch: str) -> Job:
    schedule, lazy = schedule_of(kernel, arch)
    schedule = schedule or pick(arch, max(kernel.d, kernel.e), mask=kernel.mask)
    return Job(kernel.d, kernel.mask, schedule, arch, kernel.dtype, kernel.e, "lse" if kernel.positive else "any_scale", lazy)


# ---- tensors with strides -------------------------------------------------------------------------------------------


def place(layout: str, shape: tuple[int, int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(strides, extent of the memory around, offset of the first element) of a [B, H, S, D] view. Multiples of 8 elements throughout, as
    16-byte rows need."""
    b, h, s, d = shape
    row = -(-d // 8) * 8
    if layout == "seq_first_heads":  # [B, S, H, D]
        strides, size = (s * h * row, row, h * row, 1), b * s * h * row
    elif layout == "seq_batch_heads":  # [S, B, H, D]
        strides, size = (h * row, row, b * h * row, 1), b * s * h * row
    elif layout == "padded_rows":
        wide = row + 24
        strides, size = (h * s * wide, s * wide, wide, 1), b * h * s * wide
    elif layout == "padded_heads":  # one of three tensors packed along the heads of [B, S, 3 H, D]
        strides, size = (s * 3 * h * row, row, 3 * h * row, 1), b * s * 3 * h * row
    elif layout == "sliced_seq":
        strides, size = (h * (s + 9) * row, (s + 9) * row, row, 1), b * h * (s + 9) * row
    elif layout == "every_other":
        strides, size = (h * 2 * s * row, 2 * s * row, 2 * row, 1), b * h * 2 * s * row
    else:
        strides, size = (h * s * row, s * row, row, 1), b * h * s * row
    return strides, size, 8 * 37 if layout in ("offset", "padded_heads") else 0


class Guarded:
    """A view inside memory full of marked NaNs."""

    def __init__(self, layout: str, shape: tuple[int, int, int, int], dtype: str, device: str, values: Any = None):
        import torch

        self.strides, size, offset = place(layout, shape)
        border = 8 * 128
        self.mark = MARK[dtype]
        self._bits = torch.full((size + offset + 2 * border,), self.mark, dtype=torch.int32 if dtype == "f32" else torch.int16, device=device)
        kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
        self._where = (shape, self.strides, border + offset)
        self.view = self._bits.view(kind).as_strided(*self._where)
        if values is not None:
            self.view.copy_(values)

    def outside_written(self) -> int:
        """How many elements around the view have changed."""
        import torch

        changed = self._bits != self.mark
        changed.as_strided(*self._where).fill_(False)
        return int(torch.count_nonzero(changed))

    def unwritten(self) -> int:
        """How many elements of the view still have the mark."""
        return int((self._bits.as_strided(*self._where) == self.mark).sum())


# ---- one configuration ----------------------------------------------------------------------------------------------


def run_config(config: Config, caller: Caller, arch: str, repeats: int = 0) -> dict[str, Any]:
    """The outcome as plain data; `problems` is empty where all is well."""
    import torch

    c, k = config, config.kernel
    kind = torch.float16 if k.dtype == "f16" else torch.bfloat16
    source = torch.Generator(device=caller.device).manual_seed(c.number)
    draw = lambda h, s, w: (torch.randn(c.b, h, s, w, generator=source, device=caller.device) * c.spread).to(kind)
    h = c.g * c.group
    q, key, v = (Guarded(layout, tuple(x.shape), k.dtype, caller.device, x) for layout, x in
                 zip(c.layouts, (draw(h, c.m, k.d), draw(c.g, c.n, k.d), draw(c.g, c.n, k.e))))
    scale = k.d**-0.5 if c.scale is None else c.scale
    ref = reference(q.view, key.view, v.view, mask=k.mask, scale=scale, detail=True)
    job = job_of(k, arch)

    def call() -> tuple[Any, Any, Any, Any]:
        out = Guarded(c.layouts[3], (c.b, h, c.m, k.e), k.dtype, caller.device)
        lse = Guarded("contiguous", (c.b, h, 1, c.m), "f32", caller.device)
        if c.public and not caller.dry:
            _, got = fc.attention(q.view, key.view, v.view, causal=CAUSAL[k.mask], scale=c.scale, return_lse=True, out=out.view)
            return out, None, out.view, got
        row = lse.view[:, :, 0]
        caller.bind(job.program(), Q=q.view, K=key.view, V=v.view, O=out.view, LSE=row, scale=scale)()
        return out, lse, out.view, row

    out, lse, got, got_lse = call()
    problems = []
    error, lse_error = compare(got, ref.out), compare(got_lse, ref.lse)
    worst = 0.0
    if got.numel():
        bound = rounding_bound(ref, key.view, v.view, k.dtype)
        over = torch.where(torch.isfinite(got), (got.double() - ref.out).abs() / bound, math.inf)
        worst = over.max().item()
        if not worst <= 1.0:
            at = tuple(int(i) for i in torch.unravel_index(over.argmax(), over.shape))
            problems.append(f"element {at} is {worst:.3g} x as far from float64 as rounding allows: {got[at].item()!r}, "
                            f"not {ref.out[at].item()!r}")
        ideal = compare(ref.ideal, ref.out).rms
        size = ref.out.square().mean().sqrt().item()
        if got.numel() >= 4096 and error.rms > 1.5 * ideal + 0.1 * UNIT[k.dtype] * size:
            problems.append(f"rms error {error.rms:.3g}; exact arithmetic rounded once would give {ideal:.3g}")
        if not lse_error.max_abs <= LSE_LIMIT * max(1.0, ref.largest_score / 16):
            problems.append(f"log-sum-exp is off by {lse_error.max_abs:.3g}")
    for name, guard in (("O", out), ("LSE", lse), ("Q", q), ("K", key), ("V", v)):
        if guard is not None and guard.outside_written():
            problems.append(f"{guard.outside_written()} elements around {name} were written")
    for name, guard in (("O", out), ("LSE", lse)):
        if guard is not None and guard.unwritten():
            problems.append(f"{guard.unwritten()} elements of {name} were not written")
    for r in range(repeats):
        _, _, again, again_lse = call()
        if not (torch.equal(again, got) and torch.equal(again_lse, got_lse)):
            problems.append(f"run {r + 2} gave other bits than the first")
            break
    return {"config": asdict(c), "worst": worst, "max_abs": error.max_abs, "relative": error.relative, "lse": lse_error.max_abs,
            "repeats": repeats, "problems": problems}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="benchmarks.random_configs", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--kernels", type=int, default=160, help="how many different kernels are compiled")
    p.add_argument("--only", type=int, help="the number of one configuration")
    p.add_argument("--repeat-count", type=int, default=20, help="configurations that run again and again")
    p.add_argument("--repeats", type=int, default=100)
    p.add_argument("--workers", type=int)
    p.add_argument("--arch")
    p.add_argument("--json", type=Path)
    p.add_argument("--dry", action="store_true")
    return p.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    a = parse(argv)
    caller = Caller(a.dry)
    arch = caller.arch(a.arch)
    start = time.time()
    kernels = draw_kernels(a.seed, a.kernels)
    configs = draw_configs(a.seed, a.count if a.only is None else a.only + 1, kernels, most=40 if a.dry else 1100)
    if a.only is not None:
        configs = configs[-1:]
    jobs = {c.kernel: job_of(c.kernel, arch) for c in configs}
    reports = {} if a.dry else precompile(jobs.values(), a.workers)
    if reports:
        print("\n".join(report_failures(reports)), flush=True)
    compiled = time.time() - start
    chosen = set(random.Random(a.seed).sample(range(len(configs)), min(a.repeat_count, len(configs))))
    failures, outcomes, skipped = [], [], Counter()
    for i, config in enumerate(configs):
        found = reports.get(jobs[config.kernel])
        again = f"python -m benchmarks.random_configs --seed {a.seed} --kernels {a.kernels} --only {config.number}"
        if found is not None and found.error:
            skipped[found.error] += 1
            failures.append({"config": asdict(config), "problems": [found.error], "again": again})
            continue
        repeats = (2 if a.dry else a.repeats) if i in chosen or a.only is not None else 0
        try:
            outcome = run_config(config, caller, arch, repeats)
        except fc.FcError as error:
            outcome = {"config": asdict(config), "worst": math.inf, "problems": [str(error)[:1000]], "repeats": repeats}
        outcomes.append(outcome)
        if outcome["problems"]:
            failures.append({**outcome, "again": again})
            if len(failures) <= 20:
                print(f"FAILED {config}\n  " + "\n  ".join(outcome["problems"]) + f"\n  {again}", flush=True)
        if a.json and i % 250 == 249:
            _save(a, outcomes, failures, compiled, start)
    result = _save(a, outcomes, failures, compiled, start)
    for text, n in skipped.most_common(10):
        print(f"{n} configurations had no kernel: {text}")
    print(f"{len(configs)} configurations, {len(configs) - len(failures)} passed, {len(failures)} failed; {result['kernels']} kernels; "
          f"worst {result['worst']:.2f} of what rounding allows; {result['repeated']} configurations ran {a.repeats} times more; "
          f"{result['seconds']:.0f} s, {compiled:.0f} of them compiling")
    return 1 if failures else 0


def _save(a: argparse.Namespace, outcomes: list[dict[str, Any]], failures: list[dict[str, Any]], compiled: float,
          start: float) -> dict[str, Any]:
    kernels = {json.dumps(o["config"]["kernel"], sort_keys=True) for o in outcomes}
    result = {"benchmark": "random_configs", "dry": a.dry, "seed": a.seed, "environment": environment.describe(), "count": len(outcomes),
              "failed": len(failures), "failures": failures[:50], "kernels": len(kernels), "compile_seconds": compiled,
              "worst": max((o["worst"] for o in outcomes), default=0.0), "repeated": sum(o["repeats"] > 0 for o in outcomes),
              "seconds": time.time() - start, "seen": seen(outcomes)}
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps(result, indent=1))
    return result


def seen(outcomes: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each kind of thing came up."""
    kernel = lambda key: Counter(str(o["config"]["kernel"][key]) for o in outcomes)
    return {"dtype": kernel("dtype"), "mask": kernel("mask"), "family": kernel("family"),
            "group": Counter(str(o["config"]["group"]) for o in outcomes),
            "layout": Counter(x for o in outcomes for x in o["config"]["layouts"])}


if __name__ == "__main__":
    sys.exit(main())
