"""Random calls of `fcgen.attention`, each compared with float64 on the GPU, its outputs guarded on all sides.

A configuration is a pure function of its seed: `--only SEED` runs one again. Head sizes come from a pool that the first seed chooses, so
that the number of kernels stays bounded; they are compiled in many processes before the first call.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from .environment import facts
from .pool import processes, write_json

LENGTHS = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 200, 255, 256, 257, 333, 511, 513, 777, 1024, 1025)
LAYOUTS = ("plain", "bshd", "padded", "sliced", "broadcast")
#: pointers and strides that 16 bytes do not divide: elements that a view starts after, and that rows are longer by
ODD = {"offset1": (1, 0), "offset2": (2, 0), "offset4": (4, 0), "pitch1": (0, 1), "pitch2": (0, 2), "pitch4": (0, 4), "both": (3, 5)}
#: b, h, g, m, n of views like that: few, since each may need a kernel of its own
ODD_SHAPES = ((1, 2, 1, 63, 200), (2, 2, 2, 129, 65), (1, 1, 1, 8, 1024))
CAUSAL = (False, "top_left", "bottom_right")
GUARD = 4096  # elements on either side of an output
REPEATS = 100


@dataclass(frozen=True)
class Config:
    seed: int
    dtype: str
    b: int
    h: int
    g: int
    m: int
    n: int
    d: int
    e: int
    causal: Any
    scale: float | None
    spread: float  # standard deviation of q and k
    layouts: tuple[str, str, str, str]  # of q, k, v, out

    @property
    def refused(self) -> bool:
        return self.d % 8 != 0 or self.e % 8 != 0

    def kernel(self, arch: str, sms: int = 132) -> tuple[Any, ...]:
        """What is compiled for this call: the arguments of `forward.compiled`."""
        return self._kernel((self.b, self.h, self.m, self.d), self.causal, arch, sms)

    def kernels(self, arch: str, sms: int = 132) -> list[tuple[Any, ...]]:
        """The same, and what `fcgen.attention` runs where grouped heads may be rows of one."""
        if self.refused or any(layout in ODD for layout in self.layouts):
            return []  # none, or one that is compiled at the call
        packed = self._kernel((self.b, self.g, self.h // self.g * self.m, self.d), False, arch, sms)
        return list(dict.fromkeys((self.kernel(arch, sms), *([packed] if not self.causal or self.m == 1 else []))))

    def _kernel(self, q: tuple[int, ...], causal: Any, arch: str, sms: int) -> tuple[Any, ...]:
        from fcgen.kernels.schedules import choose

        mask = {False: "none", "top_left": "causal_top_left", "bottom_right": "causal_bottom_right"}[causal]
        positive = self.scale is None or self.scale >= 2.0**-126  # smaller ones may be 0 to a multiplication
        chosen = choose(arch, q, (self.b, self.g, self.n, self.d), self.e, mask, sms, positive)
        return self.dtype, self.d, self.e, mask, True, arch, chosen.schedule, positive, chosen.lazy, chosen.sums


def head_sizes(first_seed: int, kernels: int) -> list[tuple[int, int]]:
    """(D, E) pairs: D == E, and different ones, from all multiples of 8; the last one is refused: rows that 16 bytes do not divide."""
    rng = random.Random(f"heads {first_seed}")
    sizes = list(range(16, 257, 8))
    pairs = [(64, 64), (128, 128), (16, 16), (256, 256), (192, 128), (72, 40)]
    while len(pairs) < max(6, kernels):
        d = rng.choice(sizes)
        pairs.append((d, d if rng.random() < 0.5 else rng.choice(sizes)))
    return [*pairs[:max(6, kernels) - 1], rng.choice(((20, 20), (64, 12), (100, 100), (68, 64)))]


def draw(seed: int, heads: list[tuple[int, int]]) -> Config:
    rng = random.Random(seed)
    d, e = rng.choice(heads)
    g = rng.choice((1, 1, 2, 3, 4))
    causal = rng.choice(CAUSAL)
    m, n = rng.choice(LENGTHS), rng.choice(LENGTHS)
    if rng.random() < 0.3:
        n = m
    scale = rng.choice((None, None, None, 1.0 / 8, 0.05, 1e-3, 0.3, -0.1))
    spread = rng.choice((0.2, 1.0, 1.0, 3.0))
    dtype = rng.choice(("f16", "bf16"))
    if rng.random() < 0.2:  # scores are sums of D products, and float32 ends at 3.4e38: so far only
        spread = 10 ** rng.uniform(-6, 4 if dtype == "f16" else 14)
    if rng.random() < 0.2:
        scale = rng.choice((1, 1, -1)) * min(10 ** rng.uniform(-46, 12), 1e30 / (spread**2 * d))
    if rng.random() < 0.05:
        b, h, g, m, n = rng.choice(ODD_SHAPES)
        pair, odd = heads[rng.randrange(2)], rng.choice(list(ODD))
        return Config(seed, dtype, b, h, g, m, n, *pair, causal, scale, spread, (odd, odd, odd, "plain"))
    b, h = rng.choice((1, 1, 2, 3)), g * rng.choice((1, 1, 2, 4, 7))
    layouts = (rng.choice(LAYOUTS), rng.choice(LAYOUTS), rng.choice(LAYOUTS), rng.choice(LAYOUTS[:4]))
    return Config(seed, dtype, b, h, g, m, n, d, e, causal, scale, spread, layouts)


# ---- tensors -------------------------------------------------------------------------------------------------------


def place(shape: tuple[int, int, int, int], layout: str, empty: Callable[[tuple[int, ...]], Any]) -> Any:
    """A [B, H, M, D] view, laid out as `layout` says, of what `empty` gives; strides but the last are multiples of 8 elements."""
    b, h, m, d = shape
    if layout in ODD:
        start, more = ODD[layout]
        return empty((b * h * m * (d + more) + 8,))[start:start + b * h * m * (d + more)].view(b, h, m, d + more)[..., :d]
    if layout == "bshd":
        return empty((b, m, h, d)).transpose(1, 2)
    if layout == "padded":
        return empty((b, h, m, d + 24))[..., 8:8 + d]
    if layout == "sliced":
        return empty((2 * b + 1, h, m, d))[1::2]
    if layout == "broadcast":
        return empty((b, 1, m, d)).expand(b, h, m, d)
    return empty(shape)


def torch_dtype(name: str) -> Any:
    import torch

    return {"f16": torch.float16, "bf16": torch.bfloat16}[name]


def inputs(c: Config, device: str = "cuda") -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator(device=device).manual_seed(c.seed)

    def new(shape: tuple[int, int, int, int], layout: str, size: float) -> Any:
        """NaN wherever the tensor is not: what is read there and used shows in the result."""
        def empty(full: tuple[int, ...]) -> Any:
            n = math.prod(full)
            return torch.full((n + 2 * GUARD,), float("nan"), dtype=torch_dtype(c.dtype), device=device)[GUARD:GUARD + n].view(full)

        view = place(shape, layout, empty)
        once = view[:, :1] if layout == "broadcast" else view
        once.copy_(torch.randn(once.shape, generator=generator, device=device) * size)
        return view

    return (new((c.b, c.h, c.m, c.d), c.layouts[0], c.spread), new((c.b, c.g, c.n, c.d), c.layouts[1], c.spread),
            new((c.b, c.g, c.n, c.e), c.layouts[2], 1.0))


class Guarded:
    """A tensor inside a larger buffer of NaN: `damage()` counts what was written outside it."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, layout: str = "plain", device: str = "cuda"):
        import torch

        def empty(full: tuple[int, ...]) -> Any:
            size = math.prod(full)
            self.buffer = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
            return self.buffer[GUARD:GUARD + size].view(full)

        self.tensor = place(shape, layout, empty) if len(shape) == 4 else empty(shape)

    def damage(self) -> int:
        """Elements of the buffer that hold numbers, less those of the tensor that do."""
        return int((~self.buffer.isnan()).sum() - (~self.tensor.isnan()).sum())


# ---- one call ------------------------------------------------------------------------------------------------------


def reference(c: Config, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any, Any]:
    """(output, log-sum-exp, sum of weight * |v|, largest |score|) in float64."""
    import torch

    q, k, v = q.double(), k.double().repeat_interleave(c.h // c.g, 1), v.double().repeat_interleave(c.h // c.g, 1)
    s = q @ k.transpose(-1, -2) * (c.d**-0.5 if c.scale is None else torch.tensor(c.scale, dtype=torch.float32).double().item())
    size = s.abs().max()
    if c.causal:
        i, j = torch.arange(c.m, device=q.device)[:, None], torch.arange(c.n, device=q.device)
        s.masked_fill_(j > i + (c.n - c.m if c.causal == "bottom_right" else 0), float("-inf"))
    lse = torch.logsumexp(s, -1)
    p = torch.exp(s - torch.where(lse == float("-inf"), 0.0, lse)[..., None])  # rows without keys: all zero
    return p @ v, lse, p @ v.abs(), size


def verdict(c: Config, got: tuple[Any, Any], want: tuple[Any, Any, Any, Any]) -> tuple[float, list[str]]:
    """(largest error in units of what is allowed, what is wrong).

    Allowed for an output: its own rounding and that of the weights, at most u * sum(weight * |v|) each (u: half of the dtype's step at 1),
    and half as much again; then float32's error in the scores, which are sums of D products. For the log-sum-exp: that error too, 2^-20 of
    the largest score, and 2^-16.
    """
    (o, lse), (want_o, want_lse, weight, size) = got, want
    u = 2.0**-11 if c.dtype == "f16" else 2.0**-8
    scores = 2.0**-21 * size * math.sqrt(c.d)
    allowed = weight * (3 * u + 4 * scores) + 1e-6
    wrong = []
    share = ((o.double() - want_o).abs() / allowed).max().item()
    if not share <= 1.0:
        wrong.append(f"output: error {share:.3g} times what is allowed, {int(o.isnan().sum())} NaN")
    seen = want_lse > float("-inf")
    if not (lse[~seen] == float("-inf")).all() or not (o[~seen] == 0).all():
        wrong.append("a row without keys does not give 0 and -inf")
    off = ((lse[seen].double() - want_lse[seen]).abs() / (2.0**-16 + 2.0**-20 * size + scores)).max().item() if seen.any() else 0.0
    if not off <= 1.0:
        wrong.append(f"log-sum-exp: error {off:.3g} times what is allowed")
    return max(share, off), wrong


def run(c: Config, repeats: int = 0) -> tuple[float, list[str]]:
    import torch

    from fcgen.attend.forward import compiled
    from fcgen.errors import FcError

    q, k, v = inputs(c)
    if c.refused:
        try:
            function(c, q, k, v)
        except FcError as error:
            return 0.0, [] if error.code == "call/argument" else [f"refused with {error.code}"]
        return 0.0, ["not refused"]
    want = reference(c, q, k, v)
    if any(layout in ODD for layout in c.layouts):
        return verdict(c, function(c, q, k, v), want)
    out = Guarded((c.b, c.h, c.m, c.e), q.dtype, c.layouts[3])
    lse = Guarded((c.b, c.h, c.m), torch.float32)
    program = compiled(*c.kernel(target()))
    scale = c.d**-0.5 if c.scale is None else c.scale
    program(Q=q, K=k, V=v, O=out.tensor, LSE=lse.tensor, scale=scale)
    torch.cuda.synchronize()
    share, wrong = verdict(c, (out.tensor, lse.tensor), want)
    for name, guarded in (("output", out), ("log-sum-exp", lse)):
        if n := guarded.damage():
            wrong.append(f"{name}: {n} elements written outside it")
    through, through_wrong = verdict(c, function(c, q, k, v), want)
    share = max(share, through)
    wrong += [f"fcgen.attention: {w}" for w in through_wrong]
    first = out.tensor.clone(), lse.tensor.clone()
    for n in range(repeats):
        program(Q=q, K=k, V=v, O=out.tensor, LSE=lse.tensor, scale=scale)
        if not (torch.equal(first[0], out.tensor) and torch.equal(first[1], lse.tensor)):
            wrong.append(f"repeat {n} differs from the first run")
            break
    return share, wrong


def target() -> str:
    """The target whose kernels `fcgen.attention` runs on this GPU."""
    from fcgen.attend.forward import _arch

    return _arch(0)


def function(c: Config, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    from fcgen.attend.forward import attention

    return attention(q, k, v, causal=c.causal, scale=c.scale, return_lse=True)


def compile_one(kernel: tuple[Any, ...]) -> str | None:
    """Into the disk cache, from any process. Returns what went wrong."""
    from fcgen.attend.forward import compiled

    try:
        compiled(*kernel).built  # noqa: B018
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def compile_all(configs: list[Config], arch: str) -> dict[tuple[Any, ...], str]:
    kernels = list(dict.fromkeys(k for c in configs for k in c.kernels(arch)))
    with ProcessPoolExecutor(processes(), mp_context=multiprocessing.get_context("spawn")) as executor:
        said = list(executor.map(compile_one, kernels))
    print(f"{len(kernels)} kernels for {arch}", flush=True)
    return {k: s for k, s in zip(kernels, said) if s}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; configuration i has seed + i")
    parser.add_argument("--only", type=int, metavar="SEED", help="run one configuration of the same run again")
    parser.add_argument("--heads", type=int, default=24, help="how many (D, E) pairs")
    parser.add_argument("--repeat-every", type=int, default=400, help=f"every so many configurations, {REPEATS} runs must be bit-identical")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--dry-run", action="store_true", help="print the configurations, run nothing")
    parser.add_argument("--arch", default="sm_90a", help="of the kernels that a dry run counts (%(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no new configuration after that long")
    args = parser.parse_args(argv)

    heads = head_sizes(args.seed, args.heads)
    seeds = [args.only] if args.only is not None else range(args.seed, args.seed + args.count)
    configs = [draw(s, heads) for s in seeds]
    if args.dry_run:
        print("\n".join(map(str, configs)), f"\n{len({k for c in configs for k in c.kernels(args.arch)})} kernels")
        return 0
    start = time.time()
    arch = target()
    broken = compile_all(configs, arch)
    print(f"compiled in {time.time() - start:.0f} s", flush=True)
    failures: list[dict[str, Any]] = [{"config": None, "wrong": [f"{k}: {s}"]} for k, s in broken.items()]
    worst, repeated = 0.0, 0
    for n, c in enumerate(configs):
        if any(k in broken for k in c.kernels(arch)):
            continue
        if time.time() - start > args.seconds:
            print(f"no time for {len(configs) - n} of them")
            configs = configs[:n]
            break
        again = n % args.repeat_every == 0
        share, wrong = run(c, REPEATS if again else 0)
        repeated += again
        worst = max(worst, share)
        if wrong:
            failures.append({"config": asdict(c), "wrong": wrong})
            print(f"FAILED seed {c.seed} (again: --seed {args.seed} --heads {args.heads} --only {c.seed})\n  {c}\n  " + "\n  ".join(wrong),
                  flush=True)
    for f in failures[:len(broken)]:
        print("FAILED to compile", f["wrong"][0])
    print(f"{len(configs)} configurations, {len(failures)} failures, largest error {worst:.2f} of what is allowed, {repeated} repeated "
          f"{REPEATS} times, {time.time() - start:.0f} s")
    counts = {k: dict(Counter(str(getattr(c, k)) for c in configs)) for k in ("dtype", "d", "e", "causal", "b", "g")}
    write_json(args.json, {"part": "random", "environment": facts(), "count": len(configs), "seed": args.seed, "heads": heads,
                           "failures": failures, "refused": sum(c.refused for c in configs),
                           "odd": sum(c.layouts[0] in ODD for c in configs), "largest_error": worst, "repeated": repeated, "drawn": counts,
                           "problems": [str(f) for f in failures]})
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
