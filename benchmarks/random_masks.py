"""Random combinations of masks, scores, sinks, dropout and lengths, against an eager reference in float64, without a GPU.

    python -m benchmarks.random_masks --count 3000 --part 0/64        the first of 64 parts (or --jobs 64 for all of them)

Every case is a call of `fcgen.attention` or `fcgen.attention_varlen` whose programs run in the simulator, on one of both targets. Prints a
line per failure, with the number that `--only` repeats it by, and a summary; the exit status is the number of failures, at most 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np

import fcgen as fc
from benchmarks.eager import eager
from benchmarks.on_cpu import Array, on_cpu
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
ATOL = {"f16": 6e-3, "bf16": 4e-2}


class Drawn:
    """One case, drawn by its number."""

    def __init__(self, number: int):
        self.rng = rng = np.random.default_rng([20261127, number])
        pick = lambda xs: xs[int(rng.integers(len(xs)))]
        self.number, self.target, self.dtype = number, pick(("sm_80", "sm_90a")), pick(("f16", "f16", "bf16"))
        self.varlen = rng.random() < 0.25
        self.h, self.g = pick(GROUPS)
        self.d = pick(HEADS)
        self.e = self.d if rng.random() < 0.6 else pick(HEADS)
        self.b = int(rng.integers(1, 3)) if self.h < 4 else 1
        self.m, self.n = pick(LENGTHS), pick(LENGTHS)
        if rng.random() < 0.06:
            self.m, self.n, self.b, (self.h, self.g) = (pick((1, 7)), pick(LONG), 1, pick(((2, 1), (3, 3)))) if rng.random() < 0.5 else \
                (pick((1000, 333)), pick((63, 129)), 1, (2, 1))
        self.schedule = pick(SMALL[self.target]) if rng.random() < 0.8 or self.d * self.e > 64 * 64 else None
        self.causal = pick((False, False, "top_left", "bottom_right"))
        self.scale = None if rng.random() < 0.6 else float(rng.choice([0.3, 1.0, 0.05, -0.2, 0.0]))
        self.words: list[str] = []
        self.mask: Any
        self.seen: Any
        self.score: Any
        self.scored: Any
        self.mask, self.seen = self.a_mask(int(rng.integers(0, 3))) if rng.random() < 0.8 else (None, None)
        self.score, self.scored = self.a_score() if rng.random() < 0.5 else (None, None)
        self.sinks = None if rng.random() < 0.7 else 0.0 if rng.random() < 0.3 else \
            (rng.standard_normal(self.h) * 3).astype(np.float32) * rng.choice([1.0, 1.0, 10.0])
        self.dropout = fc.Dropout(float(rng.choice([0.1, 0.5, 0.9])), int(rng.integers(0, 2**62)), int(rng.integers(0, 2**40))) \
            if rng.random() < 0.25 else None

    def __str__(self) -> str:
        more = [w for w, x in (("sinks", self.sinks), ("dropout", self.dropout), ("scale", self.scale)) if x is not None]
        return (f"#{self.number} {self.target} {self.dtype} {'varlen ' if self.varlen else ''}B={self.b} H={self.h}/{self.g} M={self.m} "
                f"N={self.n} D={self.d} E={self.e} causal={self.causal} {' '.join([*self.words, *more])} {self.schedule or 'library'}")

    # ---- masks: (fcgen's, NumPy's) -----------------------------------------------------------------------------------------

    def a_mask(self, depth: int) -> tuple[Any, Any]:
        rng = self.rng
        if depth:
            kind = rng.choice(["and", "or", "not"], p=[0.5, 0.35, 0.15])
            (a, x) = self.a_mask(depth - 1)
            if kind == "not":
                self.words.append("not")
                return ~a, lambda b, h, i, j: ~x(b, h, i, j)
            (c, y) = self.a_mask(depth - 1)
            self.words.append(kind)
            return (a & c, lambda b, h, i, j: x(b, h, i, j) & y(b, h, i, j)) if kind == "and" else \
                (a | c, lambda b, h, i, j: x(b, h, i, j) | y(b, h, i, j))
        most, n = self.most(), lambda top: int(rng.integers(0, max(1, top)))
        kinds = ["causal", "window", "left", "prefix", "padding", "documents", "dilated", "neighbours", "blocks", "mine", "heads"]
        kind = str(rng.choice(kinds))
        self.words.append(kind)
        full = lambda x: lambda b, h, i, j: np.broadcast_to(x(b, h, i, j), np.broadcast_shapes(i.shape, j.shape))
        if kind == "causal":
            s = n(2 * most) - most
            return masks.causal(s), full(lambda b, h, i, j: j <= i + s)
        if kind == "window":
            l, r, s = n(most), n(20), n(40) - 20
            return masks.window(l, r, s), full(lambda b, h, i, j: (j >= i + s - l) & (j <= i + s + r))
        if kind == "left":
            l = n(most)
            return masks.window(l), full(lambda b, h, i, j: j >= i - l)
        if kind == "prefix":
            p = n(most)
            return masks.prefix(p), full(lambda b, h, i, j: j < p)
        if kind == "padding":
            k, q = (rng.integers(0, most + 5, self.batches()).astype(np.int32) for _ in range(2))
            return masks.padding(k, q), full(lambda b, h, i, j: (j < k[b]) & (i < q[b]))
        if kind == "documents":
            ids = rng.integers(0, 4, (self.batches(), most)).astype(np.int32)
            ids = np.sort(ids) if rng.random() < 0.7 else ids
            return masks.documents(ids), full(lambda b, h, i, j: ids[b][i] == ids[b][j])
        if kind == "dilated":
            s = 1 + n(7)
            return masks.dilated(s), full(lambda b, h, i, j: (i - j) % s == 0)
        if kind == "neighbours":
            w, t, r = 1 + n(20), 1 + n(6), n(4)
            if rng.random() < 0.5:
                return masks.neighbourhood((1000, w), r), full(lambda b, h, i, j: (abs(i // w - j // w) <= r) & (abs(i % w - j % w) <= r))
            return masks.neighbourhood((100, t, w), (r, 1, 2)), full(lambda b, h, i, j: (abs(i // (w * t) - j // (w * t)) <= r) & (
                abs(i // w % t - j // w % t) <= 1) & (abs(i % w - j % w) <= 2))
        if kind == "blocks":
            layout = rng.integers(0, 2, (1 if rng.random() < 0.5 else self.h, most // 16 + 1, most // 32 + 1)).astype(np.int8)
            return masks.block_sparse(layout, (16, 32)), full(lambda b, h, i, j: layout[h % len(layout)][i // 16, j // 32] != 0)
        if kind == "heads":
            reach = rng.integers(0, most, self.h).astype(np.int32)
            return masks.mask(lambda b, h, i, j: i - j < reach[h]), full(lambda b, h, i, j: i - j < reach[h])
        x, y = 1 + n(30), n(most)
        mine = lambda b, h, i, j: (i // x == j // x) | (abs(i - j) > y)
        return masks.mask(mine), full(mine)

    def most(self) -> int:
        return max(self.m, self.n)

    def batches(self) -> int:
        return 6 if self.varlen else self.b

    # ---- scores ------------------------------------------------------------------------------------------------------------

    def a_score(self) -> tuple[Any, Any]:
        rng, chain = self.rng, []
        for kind in rng.choice(["cap", "alibi", "relative", "bias", "temperature", "mine"], int(rng.integers(1, 4)), replace=False):
            self.words.append(str(kind))
            chain.append(getattr(self, f"a_{kind}")())

        def numpy(s: Any, b: int, h: int, i: Any, j: Any) -> Any:
            for _, f in chain:
                s = f(s, b, h, i, j)
            return s

        return scores.chain(*(f for f, _ in chain)), numpy

    def a_cap(self) -> tuple[Any, Any]:
        c = float(self.rng.uniform(0.5, 30))
        return scores.soft_cap(c), lambda s, b, h, i, j: c * np.tanh(s / c)

    def a_alibi(self) -> tuple[Any, Any]:
        x, shift = self.rng.random(self.h).astype(np.float32), int(self.rng.integers(-20, 20))
        return scores.alibi(x, shift), lambda s, b, h, i, j: s - x[h] * abs(i + shift - j)

    def a_relative(self) -> tuple[Any, Any]:
        x = self.rng.standard_normal((self.h, 2 * int(self.rng.integers(0, 20)) + 1)).astype(np.float32)
        far = x.shape[1] // 2
        return scores.relative(x), lambda s, b, h, i, j: s + x[h][np.clip(j - i, -far, far) + far]

    def a_bias(self) -> tuple[Any, Any]:
        full = (self.batches(), self.h, self.most() if self.varlen else self.m, self.most() if self.varlen else self.n)
        shape = [n if self.rng.random() < 0.5 else 1 for n in full[:3]]
        x = self.rng.standard_normal((*shape, full[3])).astype(np.float32 if self.rng.random() < 0.5 else np.float16)
        wide = np.broadcast_to(x, full).astype(float)
        return scores.bias(x), lambda s, b, h, i, j: s + wide[b, h, :s.shape[0], :s.shape[1]]

    def a_temperature(self) -> tuple[Any, Any]:
        x = self.rng.uniform(0.2, 2, self.h).astype(np.float32)
        return scores.temperature(x), lambda s, b, h, i, j: s * x[h]

    def a_mine(self) -> tuple[Any, Any]:
        c = float(self.rng.uniform(-1, 1))
        return lambda s, b, h, i, j: fc.where((i + j) % 2 == 0, s, s * c), lambda s, b, h, i, j: np.where((i + j) % 2 == 0, s, s * c)

    # ---- calls -------------------------------------------------------------------------------------------------------------

    def tensor(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float16 if self.dtype == "f16" else ml_dtypes.bfloat16)

    def options(self) -> dict[str, Any]:
        return {"causal": self.causal, "mask": self.mask, "score": self.score, "sinks": self.sinks, "dropout": self.dropout,
                "scale": self.scale, "schedule": self.schedule, "return_lse": True}

    def wanted(self, q: Any, k: Any, v: Any, b: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """b: the sequence that it is, of a ragged batch."""
        m, n, drop = q.shape[2], k.shape[2], self.dropout
        shift = {False: None, "top_left": 0, "bottom_right": n - m}[self.causal]
        at = lambda x: x if b is None else b

        def seen(x: int, h: int, i: Any, j: Any) -> Any:
            out = np.ones((m, n), bool) if shift is None else j <= i + shift
            return out if self.seen is None else out & self.seen(at(x), h, i, j)

        kept = None
        if drop is not None:
            kept = drop.mask(q.shape[0] if b is None else b + 1, self.h, m, n)[0 if b is None else b:]
        score = None if self.scored is None else lambda s, x, h, i, j: self.scored(s, at(x), h, i, j)
        return eager(q, k, v, seen=seen, score=score, sinks=None if self.sinks is None else np.broadcast_to(self.sinks, self.h), kept=kept,
                     factor=drop.factor if drop else 1.0, scale=self.scale)

    def run(self) -> None:
        on_cpu(target=self.target, how="simulate")
        if self.varlen:
            self.run_varlen()
            return
        q = self.tensor(self.b, self.h, self.m, self.d)
        k, v = (self.tensor(self.b, self.g, self.n, width) for width in (self.d, self.e))
        out, lse = fc.attention(Array(q), Array(k), Array(v), **self.options())
        self.compare(out.array, lse.array, *self.wanted(q, k, v))

    def run_varlen(self) -> None:
        rows, keys = (self.rng.integers(0, top + 1, self.batches()) * (self.rng.random(self.batches()) < 0.8) for top in (self.m, self.n))
        ends = [np.cumsum([0, *x]).astype(np.int32) for x in (rows, keys)]
        q, k, v = self.tensor(rows.sum(), self.h, self.d), self.tensor(keys.sum(), self.g, self.d), self.tensor(keys.sum(), self.g, self.e)
        out, lse = fc.attention_varlen(Array(q), Array(k), Array(v), Array(ends[0]), Array(ends[1]), int(rows.max()), **self.options())
        turn = lambda x, e, n: x[e[n]:e[n + 1]].swapaxes(0, 1)[None]
        for n in range(self.batches()):
            want = self.wanted(turn(q, ends[0], n), turn(k, ends[1], n), turn(v, ends[1], n), n)
            part = slice(ends[0][n], ends[0][n + 1])
            self.compare(out.array[part].swapaxes(0, 1)[None], lse.array[None, :, part], *want)

    def compare(self, out: Any, lse: Any, want: Any, sums: Any) -> None:
        largest = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(out.astype(float), want, atol=ATOL[self.dtype] * largest)
        np.testing.assert_allclose(lse.astype(float), sums, atol=4e-3, rtol=1e-3)


def one(number: int) -> tuple[int, str, str, float]:
    """(number, what it is, what went wrong, seconds)"""
    start, drawn = time.monotonic(), None
    try:
        drawn = Drawn(number)
        drawn.run()
        said = ""
    except Exception as e:
        said = f"{type(e).__name__}: {str(e)[:600]}\n{traceback.format_exc()[-700:]}"
    return number, str(drawn), said, time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--part", default="0/1", help="i/n: the cases whose number is i modulo n")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int, help="one case")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    numbers = [args.only] if args.only is not None else range(part, args.count, parts)
    failed, took = 0, 0.0
    kinds: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(args.jobs) if args.jobs > 1 else multiprocessing.dummy.Pool(1) as pool:
        for number, what, said, seconds in pool.imap_unordered(one, numbers):
            took, failed = took + seconds, failed + bool(said)
            kinds.update(what.split()[1:2])
            if said:
                print(f"FAILED {what}\n{said}", flush=True)
            elif args.only is not None:
                print(f"right {number}: {what}")
    print(f"{len(numbers)} cases, {failed} failed, {took:.0f} s of one core; {dict(kinds)}")
    return int(failed > 0)


if __name__ == "__main__":
    import multiprocessing.dummy

    sys.exit(main())
