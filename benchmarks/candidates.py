"""Other schedules for variants of attention: which compile without spills (no GPU), and which is the fastest (on one).

    python -m benchmarks.candidates --only alibi,bias --heads 64 --fits out/fits.json              compile them, by --jobs processes
    python -m benchmarks.candidates --only alibi,bias --heads 64 --fits out/fits.json --json out/candidates.json     time those that fit

Each is checked against float64 before it is timed, beside what the library chooses.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import fcgen as fc
from benchmarks.timing import Checked, graph_times
from benchmarks.variants import WINDOW, Case, cases, error, latest
from fcgen import masks, scores
from fcgen.attend.forward import compiled
from fcgen.attend.variants import Choice, functions
from fcgen.kernels.hopper_schedules import pick

#: bytes of a few spilled values beside the loops do no harm
FEW = 48


def held(d: int) -> dict[str, dict[str, Any]]:
    """What `benchmarks.variants` calls with, on NumPy arrays: name -> options of `functions`, and the mask kind."""
    h = 2048 // d
    causal = {"kind": "causal_top_left"}
    return {
        "plain": {}, "causal": causal, "soft-cap": {"score": scores.soft_cap(20.0)},
        "alibi, causal": {"score": scores.alibi(np.ones(h, np.float32)), **causal},
        "bias per head": {"score": scores.bias(np.zeros((1, h, 4096, 4096), np.float16))},
        "dropout": {"dropout": fc.Dropout(0.1, 1)}, "window at 32k": {"mask": masks.window(WINDOW, 0), "table": "part"},
        "prefix": {"mask": masks.prefix(1000) | masks.causal(), "table": "causal"},
        "first keys and a window": {"mask": (masks.prefix(64) | masks.window(WINDOW, 0)) & masks.causal(), "table": "part"},
        "temperature per head": {"score": scores.temperature(np.ones(h, np.float32))},
        "relative table": {"score": scores.relative(np.ones((h, 257), np.float32))},
        **{f"neighbours within {r}": {"mask": masks.neighbourhood((32, 32), r), "table": "part"} for r in (1, 3, 7, 15)}}


def schedules(d: int, name: str) -> Iterator[fc.Schedule]:
    """Tiles, rings and ways of a case, none twice."""
    options = held(d)[name]
    kind = options.get("table", options.get("kind", "none"))
    base = pick(d, "causal" if kind.startswith("causal") else kind, 4096, 4096, 64, 132).schedule
    three = [(192, n) for n in ((64, 96, 128) if d == 64 else (64, 80))]
    two = [(128, n) for n in ((64, 96, 128, 176) if d == 64 else (64, 80, 128, 160, 176))]
    ways: tuple[dict[str, Any], ...] = ({}, {"tokens": True}, {"tokens": True, "ones": ("acc",)}, {"ones": ()}, {"epilogue": "tma"},
                                        {"split": "branch"}, {"late": (), "tokens": False, "ones": ()})
    seen: dict[fc.Schedule, None] = {}
    for m, n in (*three, *two):
        for q, k in ((2, 3), (1, 3), (2, 2), (1, 2)):
            for change in ways if (q, k) == (2, 3) else ways[:2]:
                more = {"split": "loops", "epilogue": "quad", **change}
                one = replace(base, tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=m // 16, stages={"q": q, "k": k, "v": k}, **more)
                seen[one] = None
    yield from seen


def fits(job: tuple[int, str, str]) -> tuple[int, str, str, int]:
    """Bytes that a schedule's program loads of spilled values, or -1 where it does not compile. It is in the cache on disk then."""
    d, name, text = job
    options = dict(held(d)[name])
    kind = options.pop("kind", "none")
    options.pop("table", None)
    given, schedule = functions(**options), fc.Schedule.parse(text)
    choice = Choice("sm_90a", schedule, True, None, "")
    try:
        program = compiled.__wrapped__("f16", d, d, kind, False, *choice, False, given)
        found = getattr(program, "first", program).resources
        return (*job, FEW * found.spills if found.spill_loads is None else found.spill_loads)  # some toolkits say only that there are
    except fc.FcError:
        return (*job, -1)


def prepare(heads: list[int], names: list[str], args: argparse.Namespace) -> None:
    if args.lines:
        lines = [line.split(" | ") for line in Path(args.lines).read_text().splitlines() if line]
        jobs = [(int(d), name, text) for d, name, text in lines if int(d) in heads and name in names]
    else:
        jobs = [(d, name, str(s)) for d in heads for name in names for s in schedules(d, name)]
    begin = time.time()
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        found = pool.map(fits, jobs, chunksize=2)
    good = [x for x in found if 0 <= x[3] < FEW]
    Path(args.fits).parent.mkdir(parents=True, exist_ok=True)
    Path(args.fits).write_text(json.dumps(good))
    print(f"{len(jobs)} schedules, {len(good)} fit, {time.time() - begin:.0f} s", flush=True)


def measure(heads: list[int], names: list[str], args: argparse.Namespace) -> None:
    fitting: dict[tuple[int, str], list[str]] = {}
    for d, name, text, _ in json.loads(Path(args.fits).read_text()):
        fitting.setdefault((d, name), []).append(text)
    table = {}
    for d in heads:
        for case in [c for c in cases(d) if c.name in names]:
            texts = fitting.get((d, case.name), [])
            Random(0).shuffle(texts)
            table[f"D={d} {case.name}"] = found = raced(case, texts, args.seconds)
            print(f"D={d} {case.name}: base {found['base']:.4f}, {len(found['first'])} of {len(texts)} tried in {found['seconds']:.1f} s")
            print(f"  the library's: {found['chosen']}")
            for n, ms in found["again"].items():
                print(f"  {ms:.4f} {ms / found['base']:.3f}  {n}", flush=True)
            if args.json:
                Path(args.json).write_text(json.dumps(table, indent=1))


def raced(case: Case, texts: list[str], seconds: float) -> dict[str, Any]:
    """Milliseconds with each schedule, as many as there is time for; of the best, again, in turns with what the case is held to."""
    assert case.base is not None
    (options, factor), begin, calls = case.base, time.time(), list[Checked]()
    chosen = ""
    for text in ("", *texts):
        run = functools.partial(case.run, fc.Schedule.parse(text) if text else None)
        worst = error(case, run())
        chosen = chosen or str(latest().schedule)
        if not worst < 1e-2:
            print(f"WRONG {case.name} {text} {worst}", flush=True)
        else:
            calls.append(Checked(text or "the library's", run, worst, worst))
        if time.time() - begin > seconds:
            break
    first = {n: t.ms for n, t in graph_times(calls, 1, 3, 1).items()}
    best = {*sorted(first, key=first.__getitem__)[:6], "the library's"}
    base = Checked("base", lambda: fc.attention(case.q, case.k, case.v, **options), 0.0, 0.0)
    again = {n: t.ms for n, t in graph_times([*(c for c in calls if c.name in best), base], 3, 7, 1).items()}
    held_to = again.pop("base") * factor
    again = {n: again[n] for n in sorted(again, key=again.__getitem__)}
    return {"base": held_to, "chosen": chosen, "first": first, "again": again, "seconds": time.time() - begin}


def packed_schedules(d: int) -> list[str]:
    """For packed sequences, causal."""
    base = replace(pick(d, "causal", 16384, 4096, 2048 // d, 132).schedule, from_end=(), l2=0)
    k = dict(base.stages)["k"] if not isinstance(base.stages, int) else 2
    changes: list[dict[str, Any]] = [{"stages": {"q": q, "k": n, "v": n}, "epilogue": e, "split": s}
                                     for q, n in ((2, k), (1, k), (2, 2)) for e in ("quad", "tma") for s in ("loops", "branch")]
    changes += [{"stages": {"q": q, "k": k, "v": k}, "persistent": "static"} for q in (1, 2)]
    return [str(replace(base, **c)) for c in changes]


def packed_fits(job: tuple[int, str]) -> tuple[int, str, int]:
    from fcgen.attend import varlen

    d, text = job
    facts = varlen.Facts("f16", d, d, False, "bottom", True, ("Used", "KUsed", "left", "right"))
    try:
        return d, text, varlen.compiled(facts, Choice("sm_90a", fc.Schedule.parse(text), True, None, "")).resources.spill_loads
    except fc.FcError:
        return d, text, -1


def packed(heads: list[int], args: argparse.Namespace) -> None:
    """Equal lengths, against a padded batch."""
    jobs = [(d, text) for d in heads for text in packed_schedules(d)]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        found = pool.map(packed_fits, jobs, chunksize=1)
    if args.prepare:
        return
    import torch

    for d in heads:
        h, lengths = 2048 // d, [4096] * 4
        q, k, v = (torch.randn(sum(lengths), h, d, device="cuda").half() for _ in range(3))
        ends = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
        x = [t.reshape(4, 4096, h, d).transpose(1, 2) for t in (q, k, v)]
        padded = functools.partial(fc.attention, *x, causal=True)
        want, spills = padded().transpose(1, 2).reshape(q.shape), {text: n for at, text, n in found if at == d}
        calls = [Checked("padded", padded, 0.0, 0.0)]
        for text in ("", *(t for t, n in spills.items() if n >= 0)):
            run = functools.partial(fc.attention_varlen, q, k, v, ends, ends, 4096, causal=True,
                                    schedule=fc.Schedule.parse(text) if text else None)
            worst = float((run() - want).abs().max())
            if worst < 1e-2:
                calls.append(Checked(text or "the library's", run, worst, worst))
            else:
                print(f"WRONG packed {text} {worst}", flush=True)
        times = {n: t.ms for n, t in graph_times(calls, 3, 7, 1).items()}
        for n in sorted(times, key=times.__getitem__):
            print(f"D={d} packed {times[n]:.4f} {times[n] / times['padded']:.3f} spills {spills.get(n, 0):4}  {n[:190]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="64,128")
    parser.add_argument("--only", default="alibi,bias,soft-cap,dropout,window")
    parser.add_argument("--fits", default="fits.json")
    parser.add_argument("--json")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--lines", help="schedules to compile, a line each: 64 | window at 32k | tiles=...")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0, help="until no more schedules of a case are tried")
    args = parser.parse_args()
    os.environ["FCGEN_CHECK"] = "0"
    heads = [int(d) for d in args.heads.split(",")]
    if args.only == "packed":
        packed(heads, args)
        return 0
    names = [n for n in held(heads[0]) if any(w in n for w in args.only.split(","))]
    (prepare if args.prepare else measure)(heads, names, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
