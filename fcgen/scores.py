"""What becomes of a score: functions `score_mod(score, b, h, q_idx, kv_idx) -> score`, as FlexAttention has them, ready-made and in a row.

    soft_cap(50.0) + alibi(slopes)        bias(tensor) + temperature(per_head)

`a + b` and `chain(a, b)` apply one after the other. Scores are those of q and k times `scale`, in float32. Everything here is written in
fcgen's language, as a user's own function would be, and what a function holds is read at each call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import fcgen as fc

from .errors import FcError
from .ir.types import f32
from .lang.arith import spread
from .lang.handles import Handle
from .masks import Sizes, _broadcast, _covered, takes, wrong_result

WRITTEN_IN_THE_LANGUAGE = True

ScoreMod = Callable[[Any, Any, Any, Any, Any], Any]


class Score:
    """A score function that combines: `a + b` applies a, then b."""

    def __init__(self, fn: ScoreMod, called: str = "", sizes: Sizes = ()):
        try:
            if not takes(fn, 5):
                inspect.signature(fn).bind(0, 0, 0, 0, 0)
        except (TypeError, ValueError) as e:
            code = getattr(fn, "__code__", None)
            raise FcError("call/argument", "this is not a score function", expected="a function (score, b, h, q_idx, kv_idx) -> score",
                          got=str(e), notes=[f"{code.co_filename}:{code.co_firstlineno}"] if code else []) from None
        self.fn, self.called, self.sizes = fn, called or getattr(fn, "__name__", "score"), sizes

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        out = self.fn(score, b, h, q_idx, kv_idx)
        if not isinstance(out, Handle) or out.dtype != f32:
            raise wrong_result("score", self.fn, "f32 scores", out)
        return spread([score, out])[0][1]  # for every score, its axes in their order, whatever the function named first

    def __add__(self, other: ScoreMod) -> Score:
        return chain(self, other)

    def __radd__(self, other: ScoreMod) -> Score:
        return chain(other, self)

    def __repr__(self) -> str:
        return f"<score {self.called}>"


def chain(*scores: ScoreMod) -> Score:
    """One after the other, the first one first."""
    given = tuple(s if isinstance(s, Score) else Score(s) for s in scores)

    def all_of(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        for s in given:
            score = s(score, b, h, q_idx, kv_idx)
        return score

    return Score(all_of, " + ".join(s.called for s in given), sum([s.sizes for s in given], ()))


def _tensor(name: str, x: Any, *ranks: int) -> Any:
    if not (hasattr(x, "shape") and hasattr(x, "dtype") and len(x.shape) in ranks):
        raise FcError("call/argument", f"argument `{name}` of a score function is no tensor of {' or '.join(map(str, ranks))} axes",
                      got=repr(x)[:80])
    return x


def soft_cap(cap: float, exact: bool = False) -> Score:
    """cap * tanh(score / cap). The tangent is one instruction of the GPU with a relative error up to 2**-11, as FlashAttention-3's is; with
    `exact` it is good to the last places of float32, which takes twice the kernel's time."""
    if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not 2.0**-126 <= cap < 2.0**128:
        raise FcError("call/argument", "argument `cap` of a score function is not a number above 0", got=repr(cap)[:80])
    cap, tanh = float(cap), fc.tanh if exact else fc.tanh_approx
    return Score(lambda score, b, h, q_idx, kv_idx: fc.positive(cap) * tanh(score / cap), "soft_cap")


def alibi(slopes: Any, shift: int = 0) -> Score:
    """score - slope * |i + shift - j|. slopes: f32 tensor [H] or [B, H]; shift: keys - rows where masks are aligned at the end."""
    _tensor("slopes", slopes, 1, 2)
    each = len(slopes.shape) == 2

    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        slope, row = slopes[b, h] if each else slopes[h], q_idx + shift if shift else q_idx
        return score - slope.to(fc.f32) * abs(row - kv_idx).to(fc.f32)

    return Score(biased, "alibi", tuple(("slopes", n, axis) for n, axis in zip(reversed(slopes.shape), (1, 0))))


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of Press et al. (2022) for so many heads."""
    near = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * (n + 1) / near) for n in range(near)]
    return first + [2.0 ** (-4.0 * (2 * n + 1) / near) for n in range(heads - near)]


def relative(table: Any, shift: int = 0) -> Score:
    """score + table[h, clip(j - i - shift, -far, far) + far]. table: tensor [H, 2 * far + 1], or [2 * far + 1] for all heads."""
    _tensor("table", table, 1, 2)
    if table.shape[-1] % 2 == 0:
        raise FcError("call/argument", "a table of distances has one entry for each from -far to far", expected="an odd number",
                      got=table.shape[-1])
    each, far = len(table.shape) == 2, int(table.shape[-1]) // 2

    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        at = fc.minimum(fc.maximum(kv_idx - q_idx - shift, -far), far) + far
        return score + (table[h, at] if each else table[at]).to(fc.f32)

    return Score(biased, "relative", (("table", table.shape[0], 1),) if each else ())


def bias(tensor: Any) -> Score:
    """score + tensor[b, h, i, j], in float32. tensor: [B or 1, H or 1, M or 1, N], or without the first axes."""
    _tensor("tensor", tensor, 1, 2, 3, 4)
    held, at = _broadcast(tensor)
    return Score(lambda score, b, h, q_idx, kv_idx: score + at(held, b, h, q_idx, kv_idx).to(fc.f32), "bias", _covered("tensor", tensor))


def temperature(factors: Any) -> Score:
    """score * factors[h]. factors: tensor [H]."""
    _tensor("factors", factors, 1)
    return Score(lambda score, b, h, q_idx, kv_idx: score * factors[h].to(fc.f32), "temperature",
                 (("factors", factors.shape[0], 1),))


class Sinks:
    """A score for each head that every row has besides those of the keys, and whose value is zero: attention sinks. logits: a number
    (0.0 is the softmax off by one), or a tensor [H]."""

    def __init__(self, logits: Any):
        number = isinstance(logits, (int, float)) and not isinstance(logits, bool)
        self.logits: Any = float(logits) if number else _tensor("sinks", logits, 1)
        self.number = number
        self.sizes: Sizes = () if number else (("sinks", logits.shape[0], 1),)

    def __call__(self, h: Any) -> Any:
        return self.logits if self.number else self.logits[h].to(fc.f32)
