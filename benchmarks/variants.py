"""Masks, scores and packed sequences against the plain kernel, FlexAttention and FlashAttention-3, on one GPU.

    python -m benchmarks.variants --fa3 .peers --flex --json out/variants.json      two minutes, most of it compilations by 12 processes
    python -m benchmarks.variants --only window --search --json out/windows.json     other schedules too: which is the fastest

Each case is checked against float64 (a few rows of one head) before it is timed; fcgen's and what it is compared with run in turns, as CUDA
graphs: what Python needs for a call is the column `host`. `base` is what a variant is held to: the plain kernel of the same shape, the
dense kernel scaled by what is seen, or a padded batch.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fcgen as fc
from benchmarks.environment import facts
from benchmarks.host_time import host_us
from benchmarks.timing import Checked, graph_times
from fcgen import masks, scores

WINDOW = 1024


@dataclass
class Case:
    """run: fcgen's call. seen, score: what it computes, on torch's tensors of positions. base: (call, factor): it is held to factor times
    the call's time. flex: (score_mod, mask_mod). fa3: options of its forward."""

    name: str
    q: Any
    k: Any
    v: Any
    options: dict[str, Any] = field(default_factory=dict)
    seen: Any = None
    score: Any = None
    base: tuple[dict[str, Any], float] | None = None
    flex: tuple[Any, Any] | None = None
    fa3: dict[str, Any] | None = None
    sinks: Any = None

    def run(self, schedule: fc.Schedule | None = None) -> Any:
        return fc.attention(self.q, self.k, self.v, schedule=schedule, **self.options)


def tensors(b: int, h: int, n: int, d: int) -> tuple[Any, Any, Any]:
    import torch

    gen = torch.Generator("cuda").manual_seed(n + d)
    q, k, v = (torch.randn(b, n, h, d, device="cuda", generator=gen).half().transpose(1, 2) for _ in range(3))
    return q, k, v


@functools.cache
def cases(d: int) -> list[Case]:
    import torch

    h = 2048 // d
    x4, x8, grid, far = (tensors(*shape, d) for shape in ((4, h, 4096), (2, h, 8192), (16, h, 1024), (1, h // 2, 32768)))
    slopes = (2.0 ** -torch.arange(1, h + 1, device="cuda") * 8 / h).float()
    bias = torch.randn(1, h, 4096, 4096, device="cuda").half()
    ids = torch.sort(torch.randint(0, 8, (8192,), device="cuda")).values.int()
    sinks, factors, far_table = torch.randn(h, device="cuda"), torch.rand(h, device="cuda") + 0.5, torch.randn(h, 257, device="cuda")
    by_distance = lambda s, b, h, i, j: s + far_table[h, (j - i).clamp(-128, 128) + 128]
    causal = lambda b, h, i, j: j <= i
    plain: tuple[dict[str, Any], float] = ({}, 1.0)
    lower: tuple[dict[str, Any], float] = ({"causal": True}, 1.0)
    inside = lambda b, h, i, j: (j <= i) & (j >= i - WINDOW)
    near = lambda r: lambda b, h, i, j: ((i // 32 - j // 32).abs() <= r) & ((i % 32 - j % 32).abs() <= r)
    docs = lambda b, h, i, j: (ids[i] == ids[j]) & (j <= i)
    area = (WINDOW + 1) / (32768 / 2)
    return [
        Case("soft-cap", *x4, {"score": scores.soft_cap(20.0)}, score=lambda s, b, h, i, j: 20 * torch.tanh(s / 20), base=plain,
             flex=(lambda s, b, h, i, j: 20 * torch.tanh(s / 20), None), fa3={"softcap": 20.0}),
        Case("half of the scores", *x4, {"score": lambda s, b, h, i, j: s * 0.5}, score=lambda s, b, h, i, j: s * 0.5, base=plain),
        Case("alibi, causal", *x4, {"score": scores.alibi(slopes), "causal": True}, causal,
             lambda s, b, h, i, j: s - slopes[h] * (i - j).abs(), lower, (lambda s, b, h, i, j: s - slopes[h] * (i - j), causal)),
        Case("bias per head", *x4, {"score": scores.bias(bias)}, score=lambda s, b, h, i, j: s + bias[0, h, i, j], base=plain,
             flex=(lambda s, b, h, i, j: s + bias[0, h, i, j], None)),
        Case("temperature per head", *x4, {"score": scores.temperature(factors)}, score=lambda s, b, h, i, j: s * factors[h], base=plain),
        Case("relative table", *x4, {"score": scores.relative(far_table)}, score=by_distance, base=plain, flex=(by_distance, None)),
        Case("off by one, causal", *x4, {"sinks": 0.0, "causal": True}, causal, base=lower, sinks=torch.zeros(h, device="cuda")),
        Case("sinks, causal", *x4, {"sinks": sinks, "causal": True}, causal, base=lower, sinks=sinks),
        Case("dropout", *x4, {"dropout": fc.Dropout(0.1, 1)}, base=plain),
        Case("window at 32k", *far, {"mask": masks.window(WINDOW, 0)}, inside, base=({"causal": True}, area), flex=(None, inside),
             fa3={"is_causal": False, "window_size_left": WINDOW, "window_size_right": 0}),
        Case("documents, causal", *x8, {"mask": masks.documents(ids), "causal": True}, docs, base=lower, flex=(None, docs)),
        Case("prefix", *x8, {"mask": masks.prefix(1000) | masks.causal()}, lambda b, h, i, j: (j < 1000) | (j <= i), base=lower,
             flex=(None, lambda b, h, i, j: (j < 1000) | (j <= i))),
        Case("first keys and a window", *x8, {"mask": (masks.prefix(64) | masks.window(WINDOW, 0)) & masks.causal()},
             lambda b, h, i, j: (j <= i) & ((j < 64) | (j >= i - WINDOW)), base=lower,
             flex=(None, lambda b, h, i, j: (j <= i) & ((j < 64) | (j >= i - WINDOW)))),
        *(Case(f"neighbours within {r}", *grid, {"mask": masks.neighbourhood((32, 32), r)}, near(r), base=plain, flex=(None, near(r)))
          for r in (1, 3, 7, 15)),
    ]


def error(case: Case, out: Any, rows: int = 64) -> float:
    """The largest difference of some rows of one head."""
    import torch

    b, h = case.q.shape[0] - 1, case.q.shape[1] - 1
    m, n = case.q.shape[2], case.k.shape[2]
    at = torch.arange(0, m, max(1, m // rows), device="cuda")
    i, j = at[:, None], torch.arange(n, device="cuda")[None]
    s = case.q[b, h, at].double() @ case.k[b, h].double().T * case.q.shape[3] ** -0.5
    s = s if case.score is None else case.score(s, b, h, i, j)
    s = s if case.seen is None else s.masked_fill(~case.seen(b, h, i, j), -torch.inf)
    total = s.logsumexp(-1, keepdim=True)
    if case.sinks is not None:
        total = torch.logaddexp(total, case.sinks[h].double())
    p = torch.exp(s - total)
    drop = case.options.get("dropout")
    if drop is not None:
        p = p * fc.dropout_mask(drop, b + 1, h + 1, m, n, case.q)[b, h, at].double() * drop.factor
    return float((p @ case.v[b, h].double() - out[b, h, at].double()).abs().max())


def packed(d: int, lengths: list[int], fa3: Any) -> dict[str, Any]:
    """Packed sequences, causal: fcgen's, a padded batch of as many (equal lengths only), FlashAttention-3's."""
    import torch

    h, total = 2048 // d, sum(lengths)
    q, k, v = (torch.randn(total, h, d, device="cuda").half() for _ in range(3))
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    run = lambda: fc.attention_varlen(q, k, v, ends, ends, max(lengths), causal=True)
    got = run()
    worst = 0.0
    for n in (0, len(lengths) - 1):
        part = slice(int(ends[n]), int(ends[n + 1]))
        mine, keys, values = (x[part].transpose(0, 1)[None] for x in (q, k, v))
        case = Case("", mine, keys, values, seen=lambda b, h, i, j: j <= i)
        worst = max(worst, error(case, got[part].transpose(0, 1)[None]))
    calls = {"fcgen": Checked("fcgen", run, worst, worst)}
    if len(set(lengths)) == 1:
        x = [t.reshape(len(lengths), lengths[0], h, d).transpose(1, 2) for t in (q, k, v)]
        same = float((fc.attention(*x, causal=True).transpose(1, 2).reshape(q.shape) - got).abs().max())
        calls["padded"] = Checked("padded", lambda: fc.attention(*x, causal=True), same, same)
    if fa3 is not None:
        theirs = lambda: fa3(q, k, v, cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=max(lengths), max_seqlen_k=max(lengths),
                             softmax_scale=d**-0.5, is_causal=True, num_splits=1)[0]
        try:
            same = float((theirs() - got).abs().max())
            calls["fa3"] = Checked("fa3", theirs, same, same)
        except Exception as e:
            print(f"FlashAttention-3 packed: {type(e).__name__} {str(e)[:200]}")
    return {"error": worst, **timed(list(calls.values()))}


def timed(calls: list[Checked]) -> dict[str, Any]:
    """Milliseconds of a call by the GPU, and what a call of ours costs the host in microseconds."""
    times: dict[str, Any] = {n: t.ms for n, t in graph_times(calls, 4, 7, 2).items()}
    return {"times": times, "host": host_us(calls[0].run, 40, 3)}


def latest() -> Any:
    """The program of the last new kind of call with functions."""
    from fcgen.attend import variants

    programs = (family._known[0][1] for family in reversed(variants._kept.values()))
    return next(p for p in programs if p.name.endswith("attention"))


def others(base: fc.Schedule) -> Iterator[fc.Schedule]:
    """Other tiles and ways of a schedule."""
    for m, n in ((192, 64), (192, 80), (192, 96), (192, 128), (128, 64), (128, 80), (128, 96), (128, 128), (128, 160), (128, 176)):
        for slots in (2, 3):
            for change in ({}, {"tokens": True}, {"split": "branch"}, {"ones": ()}, {"epilogue": "tma"}, {"epilogue": "direct"},
                           {"cluster": {"rows": 2}, "persistent": "static", "l2": 0, "epilogue": "tma"}):
                more: dict[str, Any] = {"ones": base.ones, "tokens": False, "split": "loops", "epilogue": "quad", **change}
                tiles = {"BLOCK_M": m, "BLOCK_N": n}
                yield replace(base, tiles=tiles, warps=m // 16, stages={"q": 1, "k": slots, "v": slots}, **more)


def tried(job: tuple[int, int, str]) -> tuple[int, int, str, bool]:
    """Does a case compile with a schedule, without spills? It is in the cache on disk then."""
    d, n, text = job
    os.environ["FCGEN_CHECK"] = "0"
    try:
        case = cases(d)[n]
        case.run(fc.Schedule.parse(text))
        return (*job, latest().resources.spill_loads < 40)  # a few beside its loops do no harm
    except fc.FcError:
        return (*job, False)


def search(case: Case, texts: list[str], most: int = 6) -> dict[str, float]:
    """Milliseconds with each schedule, the fastest ones first: all once, the best again in turns."""
    calls = []
    for text in texts:
        schedule = fc.Schedule.parse(text)
        worst = error(case, case.run(schedule))
        if worst < 1e-2:
            calls.append(Checked(text, lambda s=schedule: case.run(s), worst, worst))  # type: ignore[misc]
    first = {n: t.ms for n, t in graph_times(calls, 2, 3, 1).items()}
    best = sorted(first, key=first.__getitem__)[:most]
    again = {n: t.ms for n, t in graph_times([c for c in calls if c.name in best], 4, 7, 2).items()}
    return {n: again.get(n, first[n]) for n in sorted(first, key=lambda n: again.get(n, first[n]))}


def load_fa3(folder: str | None) -> Any:
    if folder is None:
        return None
    import ctypes

    import torch

    from benchmarks.peers import _unpacked

    library = _unpacked(Path(folder).resolve())
    ctypes.CDLL(f"{Path(folder).resolve()}/libcudart.so.12", mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(str(library))
    return torch.ops.flash_attn_3.fwd


def race(case: Case, d: int, flex: bool, fa3: Any) -> dict[str, Any]:
    import torch

    out, schedule = case.run(), str(latest().schedule)
    worst = error(case, out)
    if not worst < 1e-2:
        return {"error": worst, "wrong": True}
    calls = [Checked("fcgen", case.run, worst, worst)]
    assert case.base is not None
    calls.append(Checked("base", lambda: fc.attention(case.q, case.k, case.v, **case.base[0]), 0.0, 0.0))  # type: ignore[index]
    others: dict[str, Callable[[], Any]] = {}
    if flex and case.flex is not None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        score, mask = case.flex
        sizes = case.q.shape[2], case.k.shape[2]
        blocks = None if mask is None else create_block_mask(mask, None, None, *sizes, device="cuda", _compile=True)
        q, k, v = (t.contiguous() for t in (case.q, case.k, case.v))
        others["flex"] = lambda: compiled(q, k, v, score_mod=score, block_mask=blocks)
    if fa3 is not None and case.fa3 is not None:
        x = [t.transpose(1, 2) for t in (case.q, case.k, case.v)]
        given = {"softmax_scale": d**-0.5, "num_splits": 1, "is_causal": False, **case.fa3}
        others["fa3"] = lambda: fa3(*x, **given)[0].transpose(1, 2)
    for name, run in others.items():
        try:
            off = error(case, run())
            calls.append(Checked(name, run, off, off))
        except Exception as e:
            print(f"{name}, {case.name}: {type(e).__name__} {str(e)[:200]}", flush=True)
    found = {"error": worst, "seen": case.base[1], "schedule": schedule, **timed(calls)}
    found["times"]["base"] *= case.base[1]
    return found


def prepare(job: tuple[int, int]) -> tuple[int, int, str]:
    """Compile what a case needs, into the cache on disk; the schedule that it takes."""
    os.environ["FCGEN_CHECK"] = "0"
    d, n = job
    try:
        if n < 0:
            packed(d, [128] * 2, None)
        else:
            case = cases(d)[n]
            case.run()
            schedule = str(latest().schedule)
            fc.attention(case.q, case.k, case.v, **case.base[0])  # type: ignore[index]
            return d, n, schedule
    except Exception as e:  # the race says what is wrong
        print(f"D={d} case {n}: {type(e).__name__} {str(e)[:300]}", flush=True)
    return d, n, ""


def races(d: int, wanted: list[int], args: Any, fits: list[tuple[int, int, str, bool]], fa3: Any) -> Iterator[tuple[str, Any]]:
    """Names of cases, and what times one."""
    def one(n: int, case: Case) -> dict[str, Any]:
        found = race(case, d, args.flex, fa3)
        texts = [text for at, which, text, good in fits if good and (at, which) == (d, n)]
        return {**found, "search": search(case, texts)} if texts else found

    yield from ((cases(d)[n].name, functools.partial(one, n, cases(d)[n])) for n in wanted)
    if args.only is None or "packed" in args.only.split(","):
        kinds = {"equal lengths": [4096] * 4, "one long, many short": [8192, *[128] * 64],
                 "all kinds": [16, 4000, 257, 1, 1024, 2048, 77, 3000, 512, 900, 4096, 455]}
        yield from ((f"packed, {name}", functools.partial(packed, d, lengths, fa3)) for name, lengths in kinds.items())


def show(name: str, f: dict[str, Any]) -> None:
    """One line of the table."""
    t = f.get("times", {})
    cell = lambda x, w=8: f"{x:{w}.3f}" if x else " " * (w - 1) + "-"
    base = t.get("base", t.get("padded"))
    ratios = "".join(cell(x / t["fcgen"] if x and t else None, 12) for x in (base, t.get("flex"), t.get("fa3")))
    times = f"{cell(t.get('fcgen'), 10)}{cell(base)}{cell(t.get('flex'))}{cell(t.get('fa3'))}"
    print(f"{name:34}{times}{ratios}{f.get('host', 0.0):9.0f}   error {f['error']:.1e}", flush=True)
    for text, ms in list(f.get("search", {}).items())[:5]:
        print(f"{ms:44.3f}   {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128")
    parser.add_argument("--fa3", help="the folder with FlashAttention-3")
    parser.add_argument("--flex", action="store_true", help="compile and race FlexAttention (5 to 10 s a case)")
    parser.add_argument("--only", help="cases with one of these words in their names: window,soft-cap,packed")
    parser.add_argument("--search", action="store_true", help="time the cases with other schedules too")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ["FCGEN_CHECK"] = "0"
    heads = [int(d) for d in args.heads.split(",")]
    wanted = [n for n, case in enumerate(cases(heads[0])) if args.only is None or any(w in case.name for w in args.only.split(","))]
    fits: list[tuple[int, int, str, bool]] = []
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        bases = pool.map(prepare, [(d, n) for d in heads for n in (-1, *wanted)], chunksize=1)
        if args.search:
            jobs = [(d, n, str(s)) for d, n, base in bases if base for s in dict.fromkeys(others(fc.Schedule.parse(base)))]
            fits = pool.map(tried, jobs, chunksize=1)
    fa3, around, table, bad = load_fa3(args.fa3), facts(), {}, 0
    print(f"{'':34}{'fcgen ms':>10}{'base':>8}{'flex':>8}{'fa3':>8}   base/fcgen  flex/fcgen  fa3/fcgen  host us", flush=True)
    for d in heads:
        for name, run in races(d, wanted, args, fits, fa3):
            f = table[f"D={d} {name}"] = run()
            bad += bool(f.get("wrong"))
            show(f"D={d} {name}", f)
            if args.json:  # what is known so far, whatever happens to the next case
                Path(args.json).parent.mkdir(parents=True, exist_ok=True)
                Path(args.json).write_text(json.dumps({"environment": around, "cases": table}, indent=1))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
