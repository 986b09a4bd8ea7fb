"""Random backward passes on the GPU, each compared with float64: `python -m benchmarks.random_gradients --json gradients.json`.

A kind is what programs are compiled for: dtype, head sizes, masks, functions, the interface that is called. Each is drawn from its number,
and each call of a kind from both numbers (`--only KIND.CALL` runs one again): sizes, groups, scales, strides, where gradients are wanted.
Kinds are dealt to processes, which compile and run them. A gradient may be as far from float64 as three times the same formulas in the
tensors' dtype are, or as eight roundings of its largest element; where that is not enough (few elements may be near by chance), as three
times what it moves by when q, k and v, or the output that the backward pass reads, are rounded once more.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

from .pool import processes, write_json
from .random_configs import LAYOUTS, place

LENGTHS = (1, 2, 7, 16, 17, 33, 63, 64, 65, 100, 127, 128, 129, 200, 255, 257, 333, 513)
HEADS = ((64, 64), (128, 128), (64, 64), (128, 128), (16, 16), (32, 32), (80, 80), (96, 96), (192, 128), (256, 256), (40, 72), (8, 64),
         (512, 512), (264, 264))
#: calls of a kind in graphs: each is compiled by torch
IN_GRAPHS = 6
INTERFACES = ("attention", "attention", "attention", "sdpa", "flash", "flex", "varlen", "graph")


@dataclass(frozen=True)
class Kind:
    number: int
    interface: str
    dtype: str
    d: int
    e: int
    causal: str
    grouped: bool
    score: str
    mask: str
    sinks: bool
    deterministic: bool
    positive: bool


@dataclass(frozen=True)
class Config:
    kind: Kind
    number: int
    b: int
    h: int
    g: int
    m: int
    n: int
    scale: float
    layouts: tuple[str, str, str, str]  # of q, k, v and the output's gradient
    wanted: tuple[bool, bool, bool]
    of_lse: bool


def kind(number: int) -> Kind:
    rng = random.Random(f"kind {number}/29")
    interface = INTERFACES[number % len(INTERFACES)]
    d, e = rng.choice(HEADS)
    causal = rng.choice(("none", "none", "top_left", "bottom_right"))
    score, mask, sinks = rng.choice(("none", *SCORES)), rng.choice(("none", "none", *MASKS)), rng.random() < 0.25
    if interface == "sdpa":
        (score, mask), sinks = (("table", "none"), ("none", "some"), ("none", "none"))[number // 8 % 3], False
        causal = "top_left" if score == mask == "none" and rng.random() < 0.6 else "none"
    elif interface == "flash":
        score, mask, sinks = rng.choice(("none", "cap")), rng.choice(("none", "window")), False
        causal = rng.choice(("none", "bottom_right"))
    elif interface == "flex":
        sinks, causal, score = False, "none", rng.choice([*SCORES])
    elif interface == "graph":
        score, mask, sinks = "none", "none", False
    elif interface == "varlen":
        score, mask = rng.choice(("none", "cap", "slopes", "heat")), rng.choice(("none", "window"))
    dtype, grouped = rng.choice(("f16", "bf16")), rng.random() < 0.4
    return Kind(number, interface, dtype, d, e, causal, grouped, score, mask, sinks, rng.random() < 0.25, rng.random() < 0.9)


def draw(k: Kind, number: int) -> Config:
    rng = random.Random(f"call {k.number}.{number}")
    g = rng.choice((1, 2, 3))
    h = g * rng.choice((2, 3, 4)) if k.grouped else g
    m, n = rng.choice(LENGTHS), rng.choice(LENGTHS)
    if rng.random() < 0.3:
        n = m
    scale = rng.choice((k.d**-0.5, k.d**-0.5, 0.05, 0.3 * 8 / math.sqrt(k.d))) * (1 if k.positive else -1)
    wanted = rng.choice(((True, True, True),) * 4 + ((True, False, False), (False, True, True), (False, False, True), (True, True, False)))
    layouts = rng.choice(LAYOUTS[:4]), rng.choice(LAYOUTS[:4]), rng.choice(LAYOUTS[:4]), rng.choice(LAYOUTS)
    of_lse = k.interface in ("attention", "varlen", "flex") and rng.random() < 0.3
    return Config(k, number, rng.choice((1, 1, 2)), h, g, m, n, scale, layouts, wanted, of_lse)


# ---- functions: (shapes of what they hold, (language, held) -> the function); what is written here both languages have ---------------


def _cap(lang: Any, held: Any) -> Callable[..., Any]:
    return lambda s, b, h, i, j: 5.0 * lang.tanh(s / 5.0)


SCORES: dict[str, tuple[Callable[[Config], tuple[Any, ...]], Callable[[Any, Any], Callable[..., Any]]]] = {
    "cap": (lambda c: (), _cap),
    "table": (lambda c: ((c.h, c.m, c.n),), lambda lang, held: lambda s, b, h, i, j: s + held[0][h, i, j]),
    "shared": (lambda c: ((c.h, c.m, c.n),), lambda lang, held: lambda s, b, h, i, j: s + lang.real(held[0][h, i, j])),
    "own": (lambda c: ((c.b, c.h, c.m, c.n),), lambda lang, held: lambda s, b, h, i, j: s + lang.real(held[0][b, h, i, j])),
    "slopes": (lambda c: ((c.h,),), lambda lang, held: lambda s, b, h, i, j: s + held[0][h] * lang.real(j - i) * 0.01),
    "heat": (lambda c: ((1,),), lambda lang, held: lambda s, b, h, i, j: lang.sin(s * held[0][0]) * 2.0),
    "places": (lambda c: ((9,), (c.h, 4)), lambda lang, held: lambda s, b, h, i, j: s * (1.0 + held[0][(i + j) % 9]) + held[1][h, j % 4]),
}
#: of these functions what they hold has the dtype of q
NARROW = ("shared", "own")
MASKS: dict[str, Callable[..., Any]] = {
    "window": lambda b, h, i, j: (j >= i - 70) & (j <= i + 40), "documents": lambda b, h, i, j: i // 37 == j // 37,
    "holes": lambda b, h, i, j: (i * 3 + j) % 5 != 0, "ahead": lambda b, h, i, j: j >= i + 3,
}


class Ours:
    """The language of fcgen, and of torch's functions, under one name each."""

    @staticmethod
    def tanh(x: Any) -> Any:
        import fcgen as fc

        return fc.tanh(x)

    @staticmethod
    def sin(x: Any) -> Any:
        import fcgen as fc

        return fc.sin(x)

    @staticmethod
    def real(x: Any) -> Any:
        import fcgen as fc

        return x.to(fc.f32)


class Theirs:
    @staticmethod
    def tanh(x: Any) -> Any:
        return x.tanh()

    @staticmethod
    def sin(x: Any) -> Any:
        return x.sin()

    @staticmethod
    def real(x: Any) -> Any:
        return x * 1.0


# ---- one call --------------------------------------------------------------------------------------------------------------------------


class Case:
    """The tensors of a call: q, k, v, what the score function holds, sinks, the gradients of the output and of the log-sum-exp."""

    def __init__(self, c: Config, device: str = "cuda"):
        import torch

        self.c, self.device, t = c, device, c.kind
        self.dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[t.dtype]
        self.generator = torch.Generator(device).manual_seed(t.number * 100003 + c.number)
        self.ends = self._ends() if t.interface == "varlen" else None
        rows, keys = (c.m, c.n) if self.ends is None else (self.ends[0][-1], self.ends[1][-1])
        shapes = (c.h, rows, t.d), (c.g, keys, t.d), (c.g, keys, t.e), (c.h, rows, t.e)
        b = 1 if self.ends else c.b
        self.q, self.k, self.v, self.do = (self._new((b, *shape), layout) for shape, layout in zip(shapes, c.layouts))
        self.held = [self._random(shape) for shape in SCORES[t.score][0](c)] if t.score != "none" else []
        if t.interface == "sdpa" and t.score == "table":
            self.held = [self._random((random.Random(c.number).choice((1, c.b)), *self.held[0].shape))]
        if t.score in NARROW or (t.interface == "sdpa" and c.number % 2):
            self.held = [x.to(self.dtype) for x in self.held]
        self.sinks = self._random((c.h,)) if t.sinks else None
        self.dlse = self._random((b, c.h, rows)) if c.of_lse else None
        self.some = (self._random((c.m, c.n)) > -0.5) if t.mask == "some" else None

    def _ends(self) -> tuple[list[int], list[int]]:
        rng = random.Random(f"ends {self.c.number}")
        m, n = self.c.m, self.c.n
        lengths = [(0, 0), *((rng.choice((0, 1, m, m // 2)), rng.choice((0, 1, n))) for _ in range(3)), (m, n)]
        return [*itertools.accumulate(a for a, _ in lengths)], [*itertools.accumulate(b for _, b in lengths)]

    def _random(self, shape: tuple[int, ...]) -> Any:
        import torch

        return torch.randn(shape, generator=self.generator, device=self.device)

    def _new(self, shape: tuple[int, ...], layout: str) -> Any:
        import torch

        view = place(shape, layout, lambda full: torch.full(full, float("nan"), dtype=self.dtype, device=self.device))  # type: ignore[arg-type]
        once = view[:, :1] if layout == "broadcast" else view
        once.copy_(self._random(tuple(once.shape)))
        return view

    def leaves(self, dtype: Any = None) -> list[Any]:
        """q, k, v, what is held, sinks: those that are wanted require a gradient. dtype: of copies."""
        wanted = [*self.c.wanted, *[True] * (len(self.held) + (self.sinks is not None))]
        every = [self.q, self.k, self.v, *self.held, *([self.sinks] if self.sinks is not None else [])]
        return [(x.detach() if dtype is None else x.detach().to(dtype)).requires_grad_(w) for x, w in zip(every, wanted)]

    def rounded(self, number: int, u: float) -> list[Any]:
        """Leaves in float64, q, k and v moved by a rounding."""
        import torch

        draw = torch.Generator(self.device).manual_seed(number)
        xs = self.leaves(torch.float64)
        for x in xs[:3]:
            x.data += x.data * u * (torch.rand(x.shape, generator=draw, device=self.device) * 2 - 1)
        return xs

    def parts(self, xs: list[Any]) -> tuple[Any, Any, Any, list[Any], Any]:
        q, k, v, *rest = xs
        return q, k, v, rest[:len(self.held)], rest[-1] if self.sinks is not None else None

    # ---- fcgen ----

    def ours(self, xs: list[Any]) -> tuple[Any, Any]:
        """(out, log-sum-exp or None) through the interface."""
        import torch

        import fcgen as fc
        from fcgen import masks

        (q, k, v, held, sinks), c, t = self.parts(xs), self.c, self.c.kind
        score = SCORES[t.score][1](Ours, held) if t.score != "none" else None
        mask = masks.Mask(MASKS[t.mask], t.mask) if t.mask in MASKS else None
        causal: Any = False if t.causal == "none" else t.causal
        if t.interface == "attention":
            both = fc.attention(q, k, v, causal=causal, scale=c.scale, return_lse=True, score=score, mask=mask, sinks=sinks)
            return both[0], both[1]
        if t.interface == "graph":
            torch._dynamo.reset()
            call = torch.compile(lambda q, k, v: fc.attention(q, k, v, causal=causal, scale=c.scale, return_lse=True), backend="aot_eager",
                                 fullgraph=True)
            both = call(q, k, v)
            return both[0], both[1]
        if t.interface == "sdpa":
            table = held[0] if held else self.some
            return fc.scaled_dot_product_attention(q, k, v, table, 0.0, bool(causal), c.scale, enable_gqa=True), None
        if t.interface == "flash":
            from fcgen.compat.flash_attn_interface import flash_attn_func

            window, cap = (70, 40) if t.mask != "none" else (-1, -1), 5.0 if t.score == "cap" else 0.0
            rows, keys, values = (x.transpose(1, 2) for x in (q, k, v))
            out = flash_attn_func(rows, keys, values, c.scale, bool(causal), window_size=window, softcap=cap, deterministic=t.deterministic)
            return out.transpose(1, 2), None
        if t.interface == "flex":
            from torch.nn.attention.flex_attention import create_block_mask

            block = None if mask is None else create_block_mask(MASKS[t.mask], None, None, c.m, c.n, device=self.device)
            both = fc.flex_attention(q, k, v, SCORES[t.score][1](Theirs, held), block, c.scale, True, True)
            return both[0], both[1]
        ends = [torch.tensor(e, device=self.device, dtype=torch.int32) for e in self.ends or ()]
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        out, lse = fc.attention_varlen(q, k, v, *ends, causal=causal, scale=c.scale, return_lse=True, score=score, mask=mask, sinks=sinks)
        return out.transpose(0, 1)[None], lse[None]

    # ---- torch ----

    def exactly(self, xs: list[Any]) -> tuple[Any, Any]:
        """The same in torch's functions, in the dtype of its arguments."""
        import torch

        q, k, v, held, sinks = self.parts(xs)
        if self.ends is None:
            return self._dense(q, k, v, held, sinks)
        outs, lses = [q.new_zeros(1, self.c.h, 0, self.c.kind.e)], [q.new_zeros(1, self.c.h, 0)]
        for (a, b), (x, y) in zip(itertools.pairwise(self.ends[0]), itertools.pairwise(self.ends[1])):
            out, lse = self._dense(q[:, :, a:b], k[:, :, x:y], v[:, :, x:y], held, sinks)
            outs.append(out)
            lses.append(lse)
        return torch.cat(outs, 2), torch.cat(lses, 2)

    def _dense(self, q: Any, k: Any, v: Any, held: list[Any], sinks: Any) -> tuple[Any, Any]:
        import torch

        (b, h, m, _), n, t = q.shape, k.shape[2], self.c.kind
        k, v = (x.repeat_interleave(h // x.shape[1], 1) for x in (k, v))
        along = lambda axis: [-1 if a == axis else 1 for a in range(4)]
        at = [torch.arange(size, device=q.device).view(along(axis)) for axis, size in enumerate((b, h, m, n))]
        s = q @ k.transpose(2, 3) * self.c.scale
        if t.score == "table" and t.interface == "sdpa":
            s = s + held[0]
        elif t.score != "none":
            s = SCORES[t.score][1](Theirs, held)(s, *at).to(q.dtype)
        seen = torch.ones(1, 1, m, n, dtype=torch.bool, device=q.device)
        if t.causal != "none":
            seen = seen & (at[3] <= at[2] + (n - m if t.causal == "bottom_right" else 0))
        if self.some is not None:
            seen = seen & self.some
        elif t.mask != "none":
            shift = n - m if t.interface == "flash" else 0  # windows of FlashAttention end bottom right
            seen = seen & MASKS[t.mask](*at[:2], at[2] + shift, at[3])
        s = torch.where(seen, s, -torch.inf)
        every = s if sinks is None else torch.cat([s, sinks[None, :, None, None].to(s.dtype).expand(b, h, m, 1)], -1)
        lse = torch.logsumexp(every, -1) if every.shape[-1] else every.new_full(every.shape[:-1], -torch.inf)
        return torch.where(lse.isneginf()[..., None], 0.0, torch.exp(s - torch.where(lse.isneginf(), 0.0, lse)[..., None])) @ v, lse


def run(c: Config, device: str = "cuda") -> tuple[float, list[str]]:
    """(largest error in units of what is allowed, what is wrong)"""
    import torch

    case = Case(c, device)
    torch.use_deterministic_algorithms(c.kind.deterministic and c.kind.interface != "flash", warn_only=True)
    try:
        xs = case.leaves()
        if not any(x.requires_grad for x in xs):
            return 0.0, []
        found = _backward(case, xs, case.ours(xs))
    finally:
        torch.use_deterministic_algorithms(False)
    exact, rough = (_backward(case, ys, case.exactly(ys)) for ys in (case.leaves(torch.float64), case.leaves(case.dtype)))
    u, worst, wrong = 2.0**-11 if c.kind.dtype == "f16" else 2.0**-8, 0.0, []
    moves: list[list[Any]] = []
    for at, (name, x, got, want, near) in enumerate(zip(_names(case), xs, found, exact, rough)):
        if want is None:
            if got is not None:
                wrong.append(f"{name}: a gradient that nobody wants")
            continue
        if got is None or got.dtype != x.dtype or got.shape != x.shape:
            wrong.append(f"{name}: {'no gradient' if got is None else (got.dtype, tuple(got.shape))}")
            continue
        if not want.numel():
            continue
        # (where its own roundings overflow, the formulas in the dtype say nothing)
        slack = (near.double() - want).abs().max().nan_to_num(0.0, 0.0).item() if near is not None else 0.0
        allowed = max(3 * slack, 8 * u * want.abs().max().item()) + 8 * u * 1e-2
        share = (got.double() - want).abs().max().item() / allowed
        if 1.0 < share < 8.0:
            moves = moves or [_backward(case, ys, case.exactly(ys), u) for ys in (case.rounded(n, u) for n in range(5))]
            moved = max((m[at] - want).abs().max().item() for m in moves)
            share = min(share, (got.double() - want).abs().max().item() / max(allowed, 3 * moved))
        worst = max(worst, share) if share == share else math.inf
        if not share <= 1.0:
            wrong.append(f"{name}: error {share:.3g} times what is allowed, {int(got.isnan().sum())} NaN, of {want.abs().max().item():.3g}")
    return worst, wrong


def _names(case: Case) -> Iterator[str]:
    return itertools.chain(("dQ", "dK", "dV"), (f"held {n}" for n in range(len(case.held))), ("sinks",))


def _backward(case: Case, xs: list[Any], results: tuple[Any, Any], u: float = 0.0) -> list[Any]:
    """u: as where the row sums of the output and its gradient are those of an output that was rounded by so much of each element before it
    was kept. What they are off by is a gradient of the log-sum-exp."""
    import torch

    (out, lse), learnt = results, [x for x in xs if x.requires_grad]
    of, grads = [out], [case.do.to(out.dtype)]
    of_lse = 0.0 if case.dlse is None else case.dlse.to(lse.dtype)
    if u:
        noise = torch.rand(out.shape, generator=case.generator, device=case.device) * 2 - 1
        of_lse = of_lse - (out * u * noise * grads[0]).sum(-1).detach()
    if case.dlse is not None or u:
        of, grads = [*of, lse], [*grads, torch.where(lse.detach().isneginf(), 0.0, of_lse)]
    pairs = [(x, g) for x, g in zip(of, grads) if x.requires_grad]
    found = iter(torch.autograd.grad([x for x, _ in pairs], learnt, [g for _, g in pairs], allow_unused=True))
    every = [next(found) if x.requires_grad else None for x in xs]
    return [torch.zeros_like(x) if g is None and x.requires_grad else g for x, g in zip(xs, every)]


def one_kind(number: int, calls: int, until: float) -> dict[str, Any]:
    """All calls of a kind, in this process."""
    import torch

    torch.cuda.set_device(number % torch.cuda.device_count())
    k = kind(number)
    found: dict[str, Any] = {"kind": number, "ran": 0, "worst": 0.0, "failures": []}
    for n in range(min(calls, IN_GRAPHS) if k.interface == "graph" else calls):
        if time.time() > until:
            break
        c = draw(k, n)
        try:
            share, wrong = run(c)
        except Exception as error:
            share, wrong = 0.0, [f"{type(error).__name__}: {error}"[:600]]
        found["ran"] += 1
        found["worst"] = max(found["worst"], share)
        if wrong:
            found["failures"].append({"call": f"{number}.{n}", "config": asdict(c), "wrong": wrong})
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", type=int, default=48)
    parser.add_argument("--count", type=int, default=2000, help="calls of all kinds")
    parser.add_argument("--only", metavar="KIND.CALL", help="run one call again")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no new call after that long")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--dry-run", action="store_true", help="print the kinds, run nothing")
    args = parser.parse_args(argv)
    if args.dry_run:
        print("\n".join(map(str, map(kind, range(args.kinds)))))
        return 0
    if args.only:
        number, call = map(int, args.only.split("."))
        share, wrong = run(draw(kind(number), call))
        print(draw(kind(number), call), f"\nerror {share:.3f} of what is allowed", *wrong, sep="\n  ")
        return bool(wrong)
    from .environment import facts

    start, graphs = time.time(), sum(kind(n).interface == "graph" for n in range(args.kinds))
    each = -(-(args.count - graphs * IN_GRAPHS) // (args.kinds - graphs))
    results = []
    with ProcessPoolExecutor(processes(), mp_context=multiprocessing.get_context("spawn")) as executor:
        for done in as_completed([executor.submit(one_kind, n, each, start + args.seconds) for n in range(args.kinds)]):
            results.append(done.result())
            for f in results[-1]["failures"][:3]:
                print(f"FAILED {f['call']}  {f['config']}\n  " + "\n  ".join(f["wrong"]), flush=True)
    failures = [f for r in results for f in r["failures"]]
    ran, worst = sum(r["ran"] for r in results), max(r["worst"] for r in results)
    print(f"{ran} backward passes of {args.kinds} kinds, {len(failures)} failures, largest error {worst:.2f} of what is allowed, "
          f"{time.time() - start:.0f} s")
    names = "interface", "dtype", "d", "causal", "score", "mask"
    drawn = {name: dict(Counter(str(getattr(kind(r["kind"]), name)) for r in results)) for name in names}
    write_json(args.json, {"part": "random gradients", "environment": facts(), "count": ran, "kinds": args.kinds, "failures": failures,
                           "largest_error": worst, "drawn": drawn, "problems": [str(f) for f in failures]})
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
