"""Backward passes of `fcgen.attention` beside cuDNN's, FlashAttention-3's and FlexAttention's: TFLOP/s of five products (2.5 times the
forward's), whole calls of autograd, FlashAttention-3's by its own call.

    python -m benchmarks.training --fa3 .peers --json out/race.json                     all cells: head sizes, lengths, masks, dtypes
    python -m benchmarks.training --heads 64,128 --lengths 4k --dtypes fp16
    python -m benchmarks.training --variants --flex --lengths 4k --heads 64,128         grouped heads, soft-cap, window, bias, ... instead
    python -m benchmarks.training --variants --flex --prepare                        compile all that it runs, side by side, no more
    python -m benchmarks.training --lengths 1k --parts                               what each kernel of a pass takes, too

Gradients of the first heads are compared with float64 before anything is timed; "deterministic" adds up that of q in one order. Times are
the GPU's alone: it is held until all calls of a turn have been enqueued; what a call costs the host stands beside them.
A ratio is that to the better of cuDNN and FlashAttention-3; of the variants also that to FlexAttention.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import fcgen as fc
from fcgen.kernels.backward_schedules import Way
from fcgen.kernels.backward_schedules import ways as ways_of

from .backward import _fa3
from .cells import length, number
from .environment import facts
from .peers import reason
from .pool import processes, warm_library, write_json
from .timing import Checked, finishes, geomean, gpu_times

#: rms error over the gradient's rms; of gradients of what is learned so many times as much
LIMIT = {"fp16": 3e-3, "bf16": 2.4e-2}
LEARNED = 10
KINDS = {"fp16": "float16", "bf16": "bfloat16"}
#: batch x length, heads x head size
TOKENS, WIDTH = 16384, 2048
WINDOW, CAP = 1024, 20.0
FA3 = "fa3"
GRADIENTS = "dQ", "dK", "dV"
#: times FlashAttention-3's errors that ours may have: (largest, rms)
MORE = 1.5, 1.1
#: milliseconds of work of one candidate in one turn
TURN = 8e-3


@dataclass(frozen=True)
class Variant:
    """score, seen: what it computes, on torch's tensors (also FlexAttention's). options: of fcgen.attention, of the tensors that learn.
    learns: their shapes, of heads and length. fa3: options of its backward, where it has the variant."""

    name: str = ""
    causal: bool = False
    score: Callable[..., Any] | None = None
    seen: Callable[..., Any] | None = None
    options: Callable[..., dict[str, Any]] = lambda *learned: {}
    learns: Callable[[int, int], tuple[tuple[int, ...], ...]] = lambda heads, n: ()
    fa3: dict[str, Any] | None = None
    flex: bool = True
    groups: int = 1
    heads: int | None = None
    head: int | None = None
    values: int | None = None
    batch: int | None = None
    share: float = 1.0


def lower(b: Any, h: Any, i: Any, j: Any) -> Any:
    return j <= i


def inside(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (j <= i) & (j >= i - WINDOW)


def capped(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    import torch

    return CAP * torch.tanh(s / CAP)


def plain(causal: bool) -> Variant:
    return Variant("causal" if causal else "full", causal, None, lower if causal else None, share=0.5 if causal else 1.0,
                   fa3={"is_causal": causal})


def variants(n: int) -> list[Variant]:
    from fcgen import masks, scores

    slope = lambda heads, n: ((heads,),)
    return [plain(False), plain(True),
            Variant("grouped 8 to 1, 64 heads", fa3={}, groups=8, heads=64),
            Variant("grouped 8 to 1, 64 heads, causal", True, None, lower, share=0.5, fa3={"is_causal": True}, groups=8, heads=64),
            Variant("grouped 4 to 1, one sequence, causal", True, None, lower, share=0.5, fa3={"is_causal": True}, groups=4, heads=32,
                    batch=1),
            Variant("192 and values of 128", fa3={}, head=192, values=128, heads=16),
            Variant("192 and values of 128, causal", True, None, lower, share=0.5, fa3={"is_causal": True}, head=192, values=128, heads=16),
            Variant("soft-cap", False, capped, None, lambda: {"score": scores.soft_cap(CAP)}, fa3={"softcap": CAP}),
            Variant("soft-cap, causal", True, capped, lower, lambda: {"score": scores.soft_cap(CAP)}, share=0.5,
                    fa3={"softcap": CAP, "is_causal": True}),
            Variant("window", False, None, inside, lambda: {"mask": masks.window(WINDOW, 0)}, share=min(1.0, WINDOW / n),
                    fa3={"window_size_left": WINDOW, "window_size_right": 0}),
            Variant("alibi, causal", True, lambda s, b, h, i, j, slopes: s - slopes[h] * (i - j), lower,
                    lambda slopes: {"score": scores.alibi(slopes)}, slope, share=0.5),
            Variant("bias", False, lambda s, b, h, i, j, bias: s + bias[h, i, j], None, lambda bias: {"score": scores.bias(bias)},
                    lambda heads, n: ((heads, n, n),)),
            Variant("sinks, causal", True, None, lower, lambda sinks: {"sinks": sinks}, slope, share=0.5, flex=False),
            Variant("dropout", options=lambda: {"dropout": fc.Dropout(0.1, 1)}, flex=False)]


def chosen(v: Variant, only: str | None) -> bool:
    return only is None or any(part in v.name for part in only.split(","))


class Cell:
    def __init__(self, n: int, d: int, dtype: str, variant: Variant, exact: bool = True):
        import torch

        torch.manual_seed(0)
        d = variant.head or d
        heads, batch, e = variant.heads or max(1, WIDTH // d), variant.batch or max(1, TOKENS // n), variant.values or d
        draw = lambda h, w: torch.randn(batch, n, h, w, device="cuda", dtype=getattr(torch, KINDS[dtype]))
        kv = heads // variant.groups
        self.stored = [draw(heads, d), draw(kv, d), draw(kv, e)]
        self.inputs = [x.transpose(1, 2).requires_grad_() for x in self.stored]
        self.learned = [torch.randn(*s, device="cuda").mul_(0.1).to(torch.float32 if len(s) == 1 else self.stored[0].dtype).requires_grad_()
                        for s in variant.learns(heads, n)]
        self.into = draw(heads, e)
        self.g, self.n, self.d, self.dtype, self.variant, self.scale = self.into.transpose(1, 2), n, d, dtype, variant, d**-0.5
        self.work = 2.5 * 2 * batch * heads * n**2 * (d + e) * variant.share
        self.exact = [self._exact(h) for h in range(min(2, kv))] if exact else []
        #: way -> gradient -> its largest error, and rms error over the gradient's rms
        self.errors: dict[str, dict[str, tuple[float, float]]] = {}

    def _exact(self, group: int) -> list[Any]:
        """Gradients of one head of keys of the first batch and of its group's rows; of what is learned, of these heads and every batch."""
        import torch

        v, rows = self.variant, range(group * self.variant.groups, (group + 1) * self.variant.groups)
        leaves = [x.detach().double().requires_grad_() for x in self.learned]
        found: list[Any] = []
        i, j = (torch.arange(self.n, device="cuda") for _ in range(2))
        for b in range(self.g.shape[0] if self.learned else 1):
            at = slice(rows.start, rows.stop), group, group
            q, k, w = (x.detach()[b, heads].double().requires_grad_() for x, heads in zip(self.inputs, at))
            out = []
            for m, h in enumerate(rows):
                s = q[m] @ k.T * self.scale
                s = s if v.score is None else v.score(s, b, h, i[:, None], j[None], *leaves)
                s = s if v.seen is None else s.masked_fill(~v.seen(b, h, i[:, None], j[None]), -torch.inf)
                top = s.logsumexp(-1, keepdim=True)
                if "sinks" in v.name:
                    top = torch.logaddexp(top, leaves[0][h])
                p = torch.exp(s - top)
                if "dropout" in v.name:
                    drop = v.options()["dropout"]
                    p = p * fc.dropout_mask(drop, b + 1, h + 1, self.n, self.n, self.stored[0])[b, h].double() * drop.factor
                out.append(p @ w)
            grads = torch.autograd.grad(torch.stack(out), (q, k, w, *leaves), self.g[b, rows.start:rows.stop].double())
            found = list(grads) if not found else [*found[:3], *(x + y for x, y in zip(found[3:], grads[3:]))]
        return [*found[:3], *(x[rows.start:rows.stop] for x in found[3:])]

    def way(self, name: str, run: Callable[[], Any], learned: bool = True) -> Checked:
        """run: gradients of q, k, v [B, H, S, D] and, where it has them, of what is learned (sums of rounded numbers of both signs)."""
        got = run()
        if not finishes():
            raise SystemExit(f"{name}: a kernel does not end")
        size, found = self.variant.groups, dict[str, tuple[float, float]]()
        for group, exact in enumerate(self.exact):
            rows = slice(group * size, (group + 1) * size)
            mine = [got[0][0, rows], got[1][0, group], got[2][0, group], *(x[rows] for x in got[3:])]
            for n, (x, want) in enumerate(zip(mine, exact)):
                diff, of = x.double() - want, GRADIENTS[n] if n < 3 else f"learned {n - 3}"
                most, rms = found.get(of, (0.0, 0.0))
                found[of] = max(most, diff.abs().max().item()), max(rms, (diff.norm() / want.norm()).item())
        self.errors[name] = found
        most = max((m for m, _ in found.values()), default=0.0)
        rms = max((r / (1 if of in GRADIENTS else LEARNED) for of, (_, r) in found.items()), default=0.0)
        return Checked(name, run, most, rms if all(bool(x.isfinite().all()) for x in got) else float("inf"))

    def autograd(self, name: str, call: Callable[..., Any]) -> Checked:
        """The backward pass of a forward call that was made once."""
        import torch

        out = call(*self.inputs)
        wanted = [*self.inputs, *self.learned]
        return self.way(name, functools.partial(torch.autograd.grad, out, wanted, self.g, retain_graph=True))

    def fa3(self, folder: str) -> Checked:
        q, k, v = self.stored
        back, options = _fa3(folder), dict(self.variant.fa3 or {})
        import torch

        out, lse = torch.ops.flash_attn_3.fwd(q, k, v, softmax_scale=self.scale, **options)[:2]
        run = functools.partial(back, self.into, q, k, v, out, lse, softmax_scale=self.scale, **options)
        found = self.way(FA3, lambda: [x.transpose(1, 2) for x in run()[:3]])
        return Checked(FA3, run, found.max_error, found.rms_error)


def ways(cell: Cell, flex: bool, folder: str | None, log: Callable[[str], None]) -> list[Checked]:
    """folder: FlashAttention-3's; None leaves out it and cuDNN."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    v = cell.variant
    ours = lambda q, k, w: fc.attention(q, k, w, causal=v.causal, **v.options(*cell.learned))

    def in_order() -> Checked:
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return cell.autograd("fcgen, deterministic", ours)
        finally:
            torch.use_deterministic_algorithms(False)

    def cudnn(q: Any, k: Any, w: Any) -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, w, is_causal=v.causal, enable_gqa=v.groups > 1)

    def flexed() -> Checked:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.reset()
        mask = None if v.seen is None else create_block_mask(v.seen, None, None, cell.n, cell.n)
        score, compiled = v.score, torch.compile(flex_attention, dynamic=False)
        mod = None if score is None else lambda s, b, h, i, j: score(s, b, h, i, j, *cell.learned)
        return cell.autograd("flex", lambda q, k, w: compiled(q, k, w, score_mod=mod, block_mask=mask, enable_gqa=v.groups > 1))

    every: dict[str, Callable[[], Checked]] = {"fcgen": lambda: cell.autograd("fcgen", ours)}
    if v.name in ("full", "causal"):
        every["fcgen, deterministic"] = in_order
    if folder and v.score is None and not cell.learned and v.name not in ("window", "dropout"):
        every["cudnn"] = lambda: cell.autograd("cudnn", cudnn)
    if folder and v.fa3 is not None:
        every[FA3] = lambda: cell.fa3(folder)
    if flex and v.flex:
        every["flex"] = flexed
    out = []
    for name, make in every.items():
        try:
            out.append(make())
        except fc.FcError:
            raise
        except Exception as error:  # in whatever way a library says that it cannot
            log(f"without {name}: {reason(error)}")
    return out


#: what the race launches: which program, and what more it is compiled for
PROGRAMS: tuple[tuple[str, dict[str, Any]], ...] = (("before", {"dLSE": None, "Turns": None}), ("keys", {}), ("after", {}),
                                                    ("rows", {"dLSE": None}), ("keys", {"dQ": None}), ("before", {"dLSE": None}),
                                                    ("in_turn", {}), ("scores", {}), ("queries", {}))


def compiled(job: tuple[int, int, str, bool]) -> None:
    """One of the race's backward programs, in the cache on disk."""
    from fcgen.attend import training
    from fcgen.ir.types import DTYPES

    n, d, dtype, causal = job
    which, more = PROGRAMS[n]
    known = {"T": DTYPES[{"fp16": "f16", "bf16": "bf16"}[dtype]], "D": d, "E": d, "mask": "causal_top_left" if causal else "none",
             "grouped": False, **more}
    arch = "sm_90" if which in ("before", "after") else "sm_90a"
    training._ready(getattr(training.DENSE, which), arch, known, {}, []).make().built  # noqa: B018


def prepare(heads: Sequence[int], dtypes: Sequence[str]) -> None:
    ordered = lambda d, c: {ways_of(d, c, False, rows, True, True, room) for rows in (1 << 10, 1 << 14) for room in (False, True)}
    needs = {"in_turn": Way.TURNS, "scores": Way.SCORES, "queries": Way.SCORES}
    jobs = [(n, d, t, c) for n, (which, _) in enumerate(PROGRAMS) for d in heads for t in dtypes for c in (False, True)
            if which not in needs or needs[which] in ordered(d, c)]
    with ProcessPoolExecutor(min(processes(), len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compiled, jobs))


def compiled_variant(job: tuple[int, int, str, str, bool]) -> str:
    """A variant's programs, ours and FlexAttention's, in their caches on disk; what could not be compiled."""
    n, d, dtype, name, flex = job
    said: list[str] = []
    variant = next(v for v in variants(n) if v.name == name)
    ways(Cell(n, d, dtype, variant, exact=False), flex, None, said.append)
    return "; ".join(said)


def prepare_variants(cells: Sequence[tuple[int, int, str]], only: str | None, flex: bool) -> None:
    jobs = [(n, d, t, v.name, flex) for n, d, t in cells for v in variants(n) if chosen(v, only)]
    with ProcessPoolExecutor(min(processes(), 12, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        for job, said in zip(jobs, pool.map(compiled_variant, jobs)):
            if said:
                print(job, said, flush=True)


def parts(run: Callable[[], Any], calls: int = 5) -> list[tuple[str, int, float]]:
    """What the kernels of a pass take: (name, how many of them in a call, microseconds of a call), the longest first. None where torch has
    no profiler for the GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(calls):
                run()
            torch.cuda.synchronize()
    except (AssertionError, RuntimeError) as error:
        print(f"    no parts: {reason(error)}")
        return []
    found = [(e.key, e.count // calls, e.device_time_total / calls) for e in seen.key_averages() if e.device_time_total]
    return sorted(found, key=lambda p: -p[2])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128,256", help="head sizes (%(default)s); heads x size is 2048")
    parser.add_argument("--lengths", default="1k,4k,16k", help="%(default)s; batch x length is 16384")
    parser.add_argument("--dtypes", default="fp16,bf16")
    parser.add_argument("--variants", action="store_true", help="masks, scores, grouped heads, instead of the plain cells")
    parser.add_argument("--only", help="variants whose names have one of these (a,b,c) in them")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too, which takes a while to compile")
    parser.add_argument("--fa3", default=".peers", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help="also what each kernel takes, by torch's profiler")
    parser.add_argument("--prepare", action="store_true", help="only compile")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    heads, dtypes = list(map(int, args.heads.split(","))), args.dtypes.split(",")
    cells = [(number(s), d, t) for t in dtypes for d in heads for s in args.lengths.split(",")]
    if not args.variants:
        prepare(heads, dtypes)
    if args.prepare:
        if args.variants:
            prepare_variants(cells, args.only, args.flex)
        for dtype in dtypes[:0 if args.variants else None]:
            warm_library([(d, m) for d in heads for m in ("none", "causal_top_left")], dtype)
        return 0
    table: list[dict[str, Any]] = []
    wrong: list[str] = []
    for n, d, dtype in cells:
        for v in variants(n) if args.variants else [plain(False), plain(True)]:
            if chosen(v, args.only):
                table += measured(Cell(n, d, dtype, v), f"{dtype} D={d} {length(n)} {v.name}", args, wrong)
                write_json(args.json, {"part": "training", "environment": facts(), "table": table, "problems": wrong})
    for to in ("ratio", "over_flex"):
        ratios = [r[to] for r in table if r["name"] == "fcgen" and r[to]]
        if ratios:
            print(f"{to}: geometric mean {geomean(ratios):.3f}, worst {min(ratios):.3f} of {len(ratios)} cells")
    errors = [(max(x[n] for x in r["over_fa3"].values()), n) for r in table if r.get("over_fa3") for n in (0, 1)]
    for n, what in enumerate(("largest", "rms")):
        if errors:
            found = [x for x, m in errors if m == n]
            print(f"{what} error of dQ, dK, dV over FlashAttention-3's: at most {max(found):.3f} of {len(found)} cells, allowed {MORE[n]}")
    print("\n".join(wrong) or "all that was timed was right")
    return bool(wrong)


def measured(cell: Cell, called: str, args: argparse.Namespace, wrong: list[str]) -> list[dict[str, Any]]:
    """A row for each way; wrong: receives what is not right, and is not timed."""
    dtype, v = cell.dtype, cell.variant
    every = ways(cell, args.flex, args.fa3, lambda said: print(f"{called}: {said}", flush=True))
    wrong += [f"{called} {w.name}: rms error {w.rms_error:.1e}" for w in every if not (w.rms_error or 0) <= LIMIT[dtype]]
    right = [w for w in every if (w.rms_error or 0) <= LIMIT[dtype]]
    times = gpu_times(right, max(2, round(TURN / (cell.work / 4e14))), args.rounds, preheat_ms=50.0) if right else {}
    rates = {w.name: cell.work / times[w.name].ms / 1e9 for w in right}
    best = max((x for name, x in rates.items() if name in ("cudnn", FA3)), default=None)
    table: list[dict[str, Any]] = []
    for w in right:
        t = times[w.name]
        table.append({"dtype": dtype, "head": cell.d, "length": cell.n, "causal": v.causal, "variant": v.name, "name": w.name, "ms": t.ms,
                      "spread": t.spread, "host_ms": t.host, "tflops": rates[w.name], "ratio": rates[w.name] / best if best else None,
                      "over_flex": rates[w.name] / rates["flex"] if "flex" in rates else None,
                      "max_error": w.max_error, "rms_error": w.rms_error, "errors": cell.errors.get(w.name),
                      "parts": parts(w.run) if args.parts else None})
        for name, count, us in table[-1]["parts"] or ():
            print(f"    {w.name:21} {us:8.1f} us  {count} x {name[:90]}")
    ours = next((r for r in table if r["name"] == "fcgen"), None)
    if ours and FA3 in cell.errors:
        theirs = cell.errors[FA3]
        ours["over_fa3"] = {of: [x / y for x, y in zip(cell.errors["fcgen"][of], theirs[of])] for of in theirs}
    said = "".join(f"{ours[to]:.3f} of {whose} " for to, whose in (("ratio", "the best"), ("over_flex", "flex")) if ours and ours[to])
    each = (f"{name} {x:.0f} (host {times[name].host or 0:.2f} of {times[name].ms:.2f} ms)" for name, x in rates.items())
    print(f"{called:40} {said:18}" + "; ".join(each), flush=True)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
