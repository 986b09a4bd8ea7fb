"""Random combinations of masks, scores, sinks, dropout, lists and lengths, against an eager reference in float64, with and without a GPU.

    python -m benchmarks.random_masks --count 3000 --part 0/64        the first of 64 parts (or --jobs 64 for all of them)
    python -m benchmarks.random_masks --gpu --count 3200 --calls 10 --jobs 15 --limit 70 --json masks.json

Every case is a call of `fcgen.attention` or `fcgen.attention_varlen`. Without a GPU its programs run in the simulator, on one of both
targets; with one, on the GPU: the programs of its own target, or those of its architecture without its own instructions. A *kind* is what
programs are compiled for; with `--calls` each kind has so many cases, which differ in lengths, heads, strides, numbers and tensors, and in
whether infinities and NaN stand among their elements. Prints a line per failure, with the number that `--only` repeats it by, and a
summary; the exit status is the number of failures, at most 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import fcgen as fc
from benchmarks.eager import eager
from benchmarks.environment import facts
from benchmarks.on_cpu import Array, on_cpu
from benchmarks.pool import write_json
from fcgen import masks, scores

_S = fc.Schedule
_H: dict[str, Any] = {"math": "wgmma", "copy": "tma"}
_TILES = lambda m, n: {"BLOCK_M": m, "BLOCK_N": n}
SMALL = {"sm_80": [_S(tiles=_TILES(32, 32), warps=2), _S(tiles=_TILES(64, 16), ahead=True, stages=1)],
         "sm_90a": [_S(tiles=_TILES(64, 32), warps=4, **_H), _S(tiles=_TILES(128, 64), warps=8, epilogue="tma", **_H),
                    _S(tiles=_TILES(128, 32), warps=8, late="acc", vote=True, persistent="dynamic", **_H)]}
LENGTHS = (1, 7, 16, 33, 63, 65, 100, 127, 129, 200)
LONG = (1000, 4097)
GROUPS = ((1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (7, 1), (8, 1), (8, 2), (6, 2))
HEADS = (8, 16, 24, 32, 40, 64, 72, 96, 128)
#: head sizes of keys and values, on a GPU
LARGE = ((64, 64), (128, 128), (192, 128), (256, 256), (64, 256), (512, 512), (320, 320), (64, 64), (128, 128))
MASKS = ("causal", "window", "left", "prefix", "padding", "left_padding", "documents", "dilated", "neighbours", "blocks", "mine", "heads")
SCORES = ("cap", "alibi", "relative", "bias", "temperature", "mine")
#: what is counted
WORDS = {*MASKS, *SCORES, "varlen", "not", "and", "or", "sinks", "dropout", "scale", "lists", "odd", "turned", "no time", "causal=top_left",
         "causal=bottom_right"}
ATOL = {"f16": 6e-3, "bf16": 4e-2}


class Drawn:
    """One case, drawn by its number. calls: how many cases a kind has. on: "sm_80" or "sm_90a" where it runs on a GPU, as that or the
    other path."""

    def __init__(self, number: int, calls: int = 1, on: str = ""):
        self.kind = kind = np.random.default_rng([20261127, number // calls])
        self.rng = rng = np.random.default_rng([20261127, number, 1])
        pick = lambda xs, rng=rng: xs[int(rng.integers(len(xs)))]
        one = lambda xs: pick(xs, kind)
        target = one(("sm_80", "sm_90a"))
        self.number, self.gpu, self.target, self.dtype = number, bool(on), on or target, one(("f16", "f16", "bf16"))
        self.varlen = kind.random() < 0.25
        self.h, self.g = pick(GROUPS)
        self.d = one(HEADS)
        self.e = self.d if kind.random() < 0.6 else one(HEADS)
        if kind.random() < 0.3 and self.gpu:
            self.d, self.e = one(LARGE)
        self.b = int(rng.integers(1, 3)) if self.h < 4 else 1
        self.m, self.n = pick(LENGTHS), pick(LENGTHS)
        if rng.random() < (0.2 if self.gpu else 0.06):
            self.m, self.n, self.b, (self.h, self.g) = (pick((1, 7)), pick(LONG), 1, pick(((2, 1), (3, 3)))) if rng.random() < 0.5 else \
                (pick((1000, 333)), pick((63, 129, *LONG[:self.gpu])), 1, (2, 1))
        own = kind.random() < 0.8
        self.schedule = one(SMALL[self.target]) if not self.gpu and (own or self.d * self.e > 64 * 64) else None
        self.causal = one((False, False, "top_left", "bottom_right"))
        sign = int(kind.integers(0, 4))  # of the scale: the library's, above 0, any
        self.scale = None if sign < 2 else float(rng.choice([0.3, 1.0, 0.05] if sign < 3 else [-0.2, 0.0, 0.1]))
        self.words: list[str] = []
        self.mask: Any
        self.seen: Any
        self.score: Any
        self.scored: Any
        self.mask, self.seen = self.a_mask(int(kind.integers(0, 3))) if kind.random() < 0.8 else (None, None)
        self.score, self.scored = self.a_score() if kind.random() < 0.5 else (None, None)
        several = kind.random() < 0.7
        self.sinks = None if kind.random() < 0.7 else (rng.standard_normal(self.h) * 3).astype(np.float32) * rng.choice([1.0, 1.0, 10.0]) \
            if several else 0.0
        self.dropout = fc.Dropout(float(rng.choice([0.1, 0.5, 0.9])), int(rng.integers(0, 2**62)), int(rng.integers(0, 2**40))) \
            if kind.random() < 0.25 else None
        self.lists = kind.random() < 0.3 and self.gpu and self.mask is not None and not self.varlen and not self.causal
        self.odd = rng.random() < 0.2  # infinities and NaN among the elements
        self.turned = rng.random() < 0.3  # heads lie within rows

    def __str__(self) -> str:
        more = [w for w, x in (("sinks", self.sinks), ("dropout", self.dropout), ("scale", self.scale), ("lists", self.lists or None),
                               ("odd", self.odd or None), ("turned", self.turned or None)) if x is not None]
        return (f"#{self.number} {self.target} {self.dtype} {'varlen ' if self.varlen else ''}B={self.b} H={self.h}/{self.g} M={self.m} "
                f"N={self.n} D={self.d} E={self.e} causal={self.causal} {' '.join([*self.words, *more])} {self.schedule or 'library'}")

    # ---- masks: (fcgen's, NumPy's) -----------------------------------------------------------------------------------------

    def held(self, x: Any) -> Any:
        """What a function holds."""
        if not self.gpu:
            return x
        import torch

        return torch.from_numpy(x).to("cuda")

    def a_mask(self, depth: int) -> tuple[Any, Any]:
        rng, shape = self.rng, self.kind
        if depth:
            kind = shape.choice(["and", "or", "not"], p=[0.5, 0.35, 0.15])
            (a, x) = self.a_mask(depth - 1)
            if kind == "not":
                self.words.append("not")
                return ~a, lambda b, h, i, j: ~x(b, h, i, j)
            (c, y) = self.a_mask(depth - 1)
            self.words.append(kind)
            return (a & c, lambda b, h, i, j: x(b, h, i, j) & y(b, h, i, j)) if kind == "and" else \
                (a | c, lambda b, h, i, j: x(b, h, i, j) | y(b, h, i, j))
        most, n = self.most(), lambda top: int(rng.integers(0, max(1, top)))
        kind = str(shape.choice(MASKS))
        self.words.append(kind)
        full = lambda x: lambda b, h, i, j: np.broadcast_to(x(b, h, i, j), np.broadcast_shapes(i.shape, j.shape))
        each = shape.random() < 0.4  # a number for each batch
        sizes = lambda top: rng.integers(0, max(1, top), self.batches()).astype(np.int32)
        if kind == "causal":
            shift = sizes(2 * most) - most if each else np.full(self.batches(), n(2 * most) - most)
            return masks.causal(self.held(shift) if each else int(shift[0])), full(lambda b, h, i, j: j <= i + shift[b])
        if kind == "window":
            l, r, s = n(most), n(20), n(40) - 20
            return masks.window(l, r, s), full(lambda b, h, i, j: (j >= i + s - l) & (j <= i + s + r))
        if kind == "left":
            l = n(most)
            return masks.window(l), full(lambda b, h, i, j: j >= i - l)
        if kind == "prefix":
            p = sizes(most) if each else np.full(self.batches(), n(most))
            return masks.prefix(self.held(p) if each else int(p[0])), full(lambda b, h, i, j: j < p[b])
        if kind == "padding":
            k, q = sizes(most + 5), sizes(most + 5)
            return (masks.padding(self.held(k)), full(lambda b, h, i, j: j < k[b])) if each else \
                (masks.padding(self.held(k), self.held(q)), full(lambda b, h, i, j: (j < k[b]) & (i < q[b])))
        if kind == "left_padding":
            k = sizes(most // 2)
            return masks.left_padding(self.held(k)), full(lambda b, h, i, j: j >= k[b])
        if kind == "documents":
            ids, keys = (rng.integers(0, 4, (self.batches(), most)).astype(np.int32) for _ in range(2))
            ids = np.sort(ids) if rng.random() < 0.7 else ids
            keys = keys if each else ids
            return masks.documents(self.held(ids), self.held(keys) if each else None), full(lambda b, h, i, j: ids[b][i] == keys[b][j])
        if kind == "dilated":
            s, l, r = 1 + n(7), n(most), n(most)
            return (masks.dilated(s, l, r), full(lambda b, h, i, j: ((i - j) % s == 0) & (j >= i - l) & (j <= i + r))) if each else \
                (masks.dilated(s), full(lambda b, h, i, j: (i - j) % s == 0))
        if kind == "neighbours":
            w, t, r = 1 + n(20), 1 + n(6), n(4)
            if shape.random() < 0.5:
                return masks.neighbourhood((1000, w), r), full(lambda b, h, i, j: (abs(i // w - j // w) <= r) & (abs(i % w - j % w) <= r))
            return masks.neighbourhood((100, t, w), (r, 1, 2)), full(lambda b, h, i, j: (abs(i // (w * t) - j // (w * t)) <= r) & (
                abs(i // w % t - j // w % t) <= 1) & (abs(i % w - j % w) <= 2))
        if kind == "blocks":
            layout = rng.integers(0, 2, (1 if shape.random() < 0.5 else self.h, most // 16 + 1, most // 32 + 1)).astype(np.int8)
            return masks.block_sparse(self.held(layout), (16, 32)), full(lambda b, h, i, j: layout[h % len(layout)][i // 16, j // 32] != 0)
        if kind == "heads":
            reach = rng.integers(0, most, self.h).astype(np.int32)
            there = self.held(reach)
            return masks.mask(lambda b, h, i, j: i - j < there[h]), full(lambda b, h, i, j: i - j < reach[h])
        x, y = 1 + n(30), n(most)
        mine = lambda b, h, i, j: (i // x == j // x) | (abs(i - j) > y)
        return masks.mask(mine), full(mine)

    def most(self) -> int:
        return max(self.m, self.n)

    def batches(self) -> int:
        return 6 if self.varlen else self.b

    # ---- scores ------------------------------------------------------------------------------------------------------------

    def a_score(self) -> tuple[Any, Any]:
        chain = []
        for kind in self.kind.choice(SCORES, int(self.kind.integers(1, 4)), replace=False):
            self.words.append(str(kind))
            chain.append(getattr(self, f"a_{kind}")())

        def numpy(s: Any, b: int, h: int, i: Any, j: Any) -> Any:
            for _, f in chain:
                s = f(s, b, h, i, j)
            return s

        return scores.chain(*(f for f, _ in chain)), numpy

    def a_cap(self) -> tuple[Any, Any]:
        c = float(self.rng.uniform(0.5, 30))
        return scores.soft_cap(c, exact=bool(self.kind.random() < 0.3)), lambda s, b, h, i, j: c * np.tanh(s / c)

    def a_alibi(self) -> tuple[Any, Any]:
        each, moved = self.kind.random() < 0.3, self.kind.random() < 0.5
        x = self.rng.random((self.batches() if each else 1, self.h)).astype(np.float32)
        shift = int(self.rng.integers(1, 20)) * moved
        return scores.alibi(self.held(x if each else x[0]), shift), lambda s, b, h, i, j: s - x[b % len(x), h] * abs(i + shift - j)

    def a_relative(self) -> tuple[Any, Any]:
        one = self.kind.random() < 0.3
        x = self.rng.standard_normal((self.h, 2 * int(self.rng.integers(0, 20)) + 1)).astype(np.float32)
        x[:] = x[:1] if one else x
        far = x.shape[1] // 2
        return scores.relative(self.held(x[0] if one else x)), lambda s, b, h, i, j: s + x[h][np.clip(j - i, -far, far) + far]

    def a_bias(self) -> tuple[Any, Any]:
        full = (self.batches(), self.h, self.most() if self.varlen else self.m, self.most() if self.varlen else self.n)
        shape = [n if self.kind.random() < 0.5 else 1 for n in full[:3]]
        dtype = np.float32 if self.kind.random() < 0.5 else np.float16
        x = self.rng.standard_normal((*shape, full[3])).astype(dtype)
        wide = np.broadcast_to(x, full).astype(float)
        return scores.bias(self.held(x)), lambda s, b, h, i, j: s + wide[b, h, :s.shape[0], :s.shape[1]]

    def a_temperature(self) -> tuple[Any, Any]:
        x = self.rng.uniform(0.2, 2, self.h).astype(np.float32)
        return scores.temperature(self.held(x)), lambda s, b, h, i, j: s * x[h]

    def a_mine(self) -> tuple[Any, Any]:
        c = float(self.rng.uniform(-1, 1))
        return lambda s, b, h, i, j: fc.where((i + j) % 2 == 0, s, s * c), lambda s, b, h, i, j: np.where((i + j) % 2 == 0, s, s * c)

    # ---- calls -------------------------------------------------------------------------------------------------------------

    def tensor(self, *shape: int) -> np.ndarray:
        x = self.rng.standard_normal(shape).astype(np.float16 if self.dtype == "f16" else ml_dtypes.bfloat16)
        if self.odd and x.size and self.rng.random() < 0.6:
            for _ in range(int(self.rng.integers(1, 4))):
                x[tuple(self.rng.integers(0, n) for n in shape)] = self.rng.choice([np.inf, -np.inf, np.nan])
        return x

    def given(self, x: np.ndarray, heads: int = 1) -> Any:
        """The argument of a call. heads: the axis that they are."""
        if self.turned and x.ndim > 1 and x.size:
            x = np.ascontiguousarray(x.swapaxes(heads, heads + 1 if x.ndim == 4 else 0)).swapaxes(heads, heads + 1 if x.ndim == 4 else 0)
        if not self.gpu:
            return Array(x)
        import torch

        plain = torch.from_numpy(x.view(np.int16) if x.dtype == ml_dtypes.bfloat16 else x).to("cuda")
        return plain.view(torch.bfloat16) if x.dtype == ml_dtypes.bfloat16 else plain

    def got(self, x: Any) -> np.ndarray:
        return x.double().cpu().numpy() if self.gpu else x.array.astype(float)

    def options(self) -> dict[str, Any]:
        sinks = self.held(self.sinks) if isinstance(self.sinks, np.ndarray) else self.sinks
        return {"causal": self.causal, "mask": self.mask, "score": self.score, "sinks": sinks, "dropout": self.dropout,
                "scale": self.scale, "schedule": self.schedule, "return_lse": True}

    def wanted(self, q: Any, k: Any, v: Any, b: int | None = None, plain: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """b: the sequence that it is, of a ragged batch. plain: without dropout."""
        m, n, drop = q.shape[2], k.shape[2], None if plain else self.dropout
        shift = {False: None, "top_left": 0, "bottom_right": n - m}[self.causal]
        at = lambda x: x if b is None else b

        def seen(x: int, h: int, i: Any, j: Any) -> Any:
            out = np.ones((m, n), bool) if shift is None else j <= i + shift
            return out if self.seen is None else out & self.seen(at(x), h, i, j)

        kept = None
        if drop is not None:
            kept = drop.mask(q.shape[0] if b is None else b + 1, self.h, m, n)[0 if b is None else b:]
        score = None if self.scored is None else lambda s, x, h, i, j: self.scored(s, at(x), h, i, j)
        with np.errstate(all="ignore"):
            sinks = None if self.sinks is None else np.broadcast_to(self.sinks, self.h)
            return eager(q, k, v, seen=seen, score=score, sinks=sinks, kept=kept, factor=drop.factor if drop else 1.0, scale=self.scale)

    def run(self) -> None:
        if not self.gpu:
            on_cpu(target=self.target, how="simulate")
        if self.varlen:
            self.run_varlen()
            return
        q = self.tensor(self.b, self.h, self.m, self.d)
        k, v = (self.tensor(self.b, self.g, self.n, width) for width in (self.d, self.e))
        options = self.options()
        if self.lists:
            options["blocks"] = fc.block_lists(self.mask, self.b, self.h, self.m, self.n, self.given(q))
        out, lse = fc.attention(self.given(q), self.given(k), self.given(v), **options)
        self.compare(self.got(out), self.got(lse), q, k, v)

    def run_varlen(self) -> None:
        rows, keys = (self.rng.integers(0, top + 1, self.batches()) * (self.rng.random(self.batches()) < 0.8) for top in (self.m, self.n))
        ends = [np.cumsum([0, *x]).astype(np.int32) for x in (rows, keys)]
        q, k, v = self.tensor(rows.sum(), self.h, self.d), self.tensor(keys.sum(), self.g, self.d), self.tensor(keys.sum(), self.g, self.e)
        out, lse = fc.attention_varlen(*(self.given(x) for x in (q, k, v, *ends)), int(rows.max()), **self.options())
        turn = lambda x, e, n: x[e[n]:e[n + 1]].swapaxes(0, 1)[None]
        for n in range(self.batches()):
            self.compare(turn(self.got(out), ends[0], n), self.got(lse)[None, :, ends[0][n]:ends[0][n + 1]],
                         turn(q, ends[0], n), turn(k, ends[1], n), turn(v, ends[1], n), n)

    def compare(self, out: Any, lse: Any, q: Any, k: Any, v: Any, b: int | None = None) -> None:
        """What is infinite or NaN does to its row, or its column of the values, what it does in torch. Of what a row does not see, or gives
        next to no weight, it may or may not."""
        whole = np.where(np.isfinite(v.astype(float)), v, 0).astype(v.dtype)
        want, sums = self.wanted(q, k, whole, b)
        may = must = np.zeros(want.shape, bool)
        if (whole != v).any():
            with np.errstate(all="ignore"):
                must = self.wanted(q, k, (whole != v).astype(float), b, plain=True)[0] > 1e-3
            may = np.repeat((whole != v).any(2), self.h // self.g, 1)[:, :, None] | must
        assert not np.isfinite(out[must]).any(), "an infinity of the values is lost"
        right = np.isfinite(want) & ~may
        largest = max(1.0, float(np.abs(want[right]).max(initial=0)))
        np.testing.assert_allclose(out[~may], want[~may], atol=ATOL[self.dtype] * largest)
        clean = may & np.isfinite(out)
        np.testing.assert_allclose(out[clean], want[clean], atol=ATOL[self.dtype] * largest)
        known = np.isfinite(sums) | (sums == -np.inf)
        np.testing.assert_allclose(lse[known], sums[known], atol=4e-3, rtol=1e-3)
        assert not np.isfinite(lse[~known]).any(), "an infinity of the scores is lost"


_deadline = 0.0
_calls, _on = 1, ""


def _begin(calls: int, on: str, common: str, deadline: float) -> None:
    global _calls, _on, _deadline
    _calls, _on, _deadline = calls, on, deadline
    if on:
        os.environ["FCGEN_CHECK"] = "0"  # the simulator's turn is without a GPU
    if on == "sm_80":
        from fcgen.attend import blocks, forward, readback, variants

        for module in (blocks, forward, readback, variants):
            module._arch = lambda device, schedule=None: common  # type: ignore[attr-defined, assignment]


def one(number: int) -> tuple[int, str, str, float]:
    """(number, what it is, what went wrong, seconds); "" and no seconds if there was no time for it."""
    start, drawn = time.monotonic(), None
    if _deadline and time.time() > _deadline:
        return number, "", "", 0.0
    try:
        drawn = Drawn(number, _calls, _on)
        drawn.run()
        said = ""
    except Exception as e:
        said = f"{type(e).__name__}: {str(e)[:600]}\n{traceback.format_exc()[-700:]}"
    return number, str(drawn or f"#{number}"), said, time.monotonic() - start


def _several(numbers: list[int]) -> list[tuple[int, str, str, float]]:
    return [one(n) for n in numbers]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--calls", type=int, default=1, help="cases of each kind")
    parser.add_argument("--part", default="0/1", help="i/n: the kinds whose number is i modulo n")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int, help="one case")
    parser.add_argument("--gpu", action="store_true", help="run on the GPU: half of the kinds with its own instructions, half without")
    parser.add_argument("--path", choices=("sm_90a", "sm_80"), help="with --gpu: kinds of one of them alone")
    parser.add_argument("--limit", type=float, default=0, help="begin nothing after so many seconds")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    part, parts = map(int, args.part.split("/"))
    kinds = range(args.first // args.calls + part, (args.first + args.count) // args.calls, parts)
    deals = [[args.only]] if args.only is not None else [list(range(n * args.calls, (n + 1) * args.calls)) for n in kinds]
    own = fc.gpu_target() if args.gpu else ""
    paths = (args.path,) if args.path else ("sm_90a", "sm_80") if own.endswith("a") else ("sm_80",) if own else ("",)
    deadline = time.time() + args.limit if args.limit else 0.0
    failures: list[str] = []
    ran: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    took, jobs = 0.0, max(1, args.jobs // len(paths))
    pools = []
    if args.jobs <= 1 and len(paths) == 1:
        _begin(args.calls, paths[0], own.rstrip("a"), deadline)
        results: list[Iterable[Any]] = [map(_several, deals)]
    else:
        pools = [multiprocessing.get_context("spawn").Pool(jobs, _begin, (args.calls, on, own.rstrip("a"), deadline)) for on in paths]
        results = [pool.imap_unordered(_several, deals[n::len(pools)]) for n, pool in enumerate(pools)]
    for found in results:
        for number, what, said, seconds in (x for cases in found for x in cases):
            took += seconds
            if not what:
                seen["no time"] += 1
                continue
            words = what.split()
            ran.update(words[1:2])
            seen.update(set(words[3:-1]) if len(words) > 3 else ())
            if said:
                failures.append(what)
                print(f"FAILED {what}\n{said}", flush=True)
            elif args.only is not None:
                print(f"right {number}: {what}")
    for pool in pools:
        pool.terminate()
    counts = {w: n for w, n in seen.most_common() if w in WORDS}
    print(f"{sum(ran.values())} cases, {len(failures)} failed, {took:.0f} s of one core; {dict(ran)}; {counts}")
    write_json(args.json, {"part": "random_masks", "environment": facts(), "command": " ".join(sys.argv), "gpu": own,
                           "cases": sum(ran.values()), "failed": len(failures), "failures": failures, "paths": dict(ran), "with": counts})
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
