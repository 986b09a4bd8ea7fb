"""`fc.online_softmax`: softmax over an axis that a loop walks tile by tile, and the sums that it weighs.

Plain DSL, written once: what a spec would otherwise repeat for each kernel. For every row it keeps the largest score so far, the sum of the
weights exp(score - largest), and the sum of weights * values; what was added up under a smaller maximum is scaled down when a larger one
comes. Scores past the end of their axis, and those that the loop's `live` leaves out, count as -inf without being masked by hand.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import FcError
from ..ir.types import f32, i1
from .arith import aligned, lift
from .control import var
from .functions import dot, exp, full, load, log, maximum, where, zeros
from .functions import max as max_of
from .functions import sum as sum_of
from .handles import Handle, NotATile, Var, label_name
from .mistakes import called
from .ranges import Range
from .tensors import View
from .trace import current, mistake


def online_softmax(rows: Any, values: Any = None) -> OnlineSoftmax:
    """The state of a softmax over the rows of score tiles [rows, columns] that come one after the other.

    rows: the range of the rows. values: the width of what the weights are summed over (`V.E`); none, and only the largest score and the sum
    are kept. `state.add(scores, V[b, h, cols])` takes the next tile; `state.out()` is the weighted mean of the values (0 in rows without a
    score), `state.lse()` the logarithm of the sum of exp(score). `state.max`, `state.sum` and `state.acc` are its variables.
    """
    return OnlineSoftmax(rows, values)


@called("softmax")
class OnlineSoftmax(NotATile):
    """What `fc.online_softmax` returns."""

    __slots__ = ("_acc", "max", "rows", "sum")
    PUBLIC = ("acc", "add", "lse", "max", "out", "sum")

    def __init__(self, rows: Any, values: Any):
        if not isinstance(rows, Range):
            raise mistake("trace/usage", "fc.online_softmax takes the range of its rows", expected="fc.online_softmax(rows, V.E)",
                          got=repr(rows)[:80])
        self.rows = rows
        self.max: Var = _variable("m", full(rows, -math.inf))
        self.sum: Var = _variable("l", zeros(rows))
        self._acc: Var | None = None if values is None else _variable("acc", zeros(rows, values))

    def __repr__(self) -> str:
        return f"<online softmax over rows of {self.rows!r}>"

    def mistaken(self) -> FcError:
        return mistake("trace/usage", "an online softmax is no tile", got=repr(self),
                       hint="its result is .out(), the logarithm of its sum .lse()")

    @property
    def acc(self) -> Var:
        """The sum of weights * values, before it is divided by the sum of weights."""
        if self._acc is None:
            raise mistake("trace/usage", "this softmax sums up no values", hint="give it their width: fc.online_softmax(rows, V.E)")
        return self._acc

    def add(self, scores: Any, values: Any = None, where: Any = None) -> None:
        """Take the next tile of scores, f32 [rows, columns], and the values of its columns: a tile [columns, width], or a view, which is
        then loaded as late as it can be. where: which scores count, beside the axis' end and the loop's `live`."""
        if not isinstance(scores, Handle) or len(scores.labels) != 2 or self.rows not in scores.labels:
            raise mistake("trace/shape", "an online softmax takes tiles of scores with its rows", got=repr(scores)[:80],
                          expected=f"f32 [{label_name(self.rows)}, columns]")
        if scores.dtype != f32:
            raise mistake("trace/dtype", "scores are added up in float32", expected="f32", got=scores.dtype, hint=".to(fc.f32)")
        if (values is None) != (self._acc is None):
            raise mistake("trace/usage", "an online softmax takes values with every tile of scores, or with none", got=repr(values)[:80],
                          expected="state.add(s)" if self._acc is None else "state.add(s, V[b, h, cols])",
                          hint="fc.online_softmax(rows, V.E) sums up values of that width" if self._acc is None else None)
        cols = scores.labels[1 if scores.labels[0] is self.rows else 0]
        s = _called("s", _masked(aligned(scores, (self.rows, cols)), cols, where))
        m, l = self.max, self.sum
        top = _called("top", maximum(m, max_of(s, axis=1)))
        base = _called("base", _where(top == -math.inf, 0.0, top))  # rows that have seen no score yet
        p, fade = _called("p", exp(s - base)), _called("fade", exp(m - base))
        l <<= l * fade + sum_of(p, axis=1)
        if self._acc is not None:
            acc, v = self._acc, _called("v", load(values)) if isinstance(values, View) else values
            acc <<= acc * fade + dot(p.to(v.dtype) if isinstance(v, Handle) else p, v)
            _called("acc", acc)
        m <<= top
        _called("l", l)

    def out(self) -> Handle:
        """The mean of the values by their weights, f32 [rows, width]; 0 where no score counted."""
        return _where(self.sum == 0.0, 0.0, self.acc / self.sum)

    def lse(self) -> Handle:
        """The logarithm of the sum of exp(score), f32 [rows]; -inf where no score counted."""
        return self.max + log(self.sum)


_where = where


def _masked(s: Handle, cols: Any, more: Any) -> Handle:
    """-inf where a score does not count."""
    conditions = []
    if isinstance(cols, Range):
        conditions = [cols.valid, *([cols.matters] if cols.matters is not None else [])]
    if more is not None:
        conditions.append(lift(more, i1))
    for c in conditions[1:]:
        conditions[0] = conditions[0] & c
    return _where(conditions[0], s, -math.inf) if conditions else s


def _variable(word: str, init: Handle) -> Var:
    v = var(_called(word, init))
    v.name = word
    return v


def _called(word: str, x: Any) -> Any:
    """The value goes by this word, unless the spec calls it something."""
    current().names.setdefault(x.value, word)
    return x
