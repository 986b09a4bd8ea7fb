"""How far apart two scalars can be at most, whatever the sizes are: `at_most(high, low, gap, defs)` is true only if high <= low + gap.

Scalars are read as sums of what they are made of. A minimum is below each of its operands, a maximum above; a choice is one of two, the
same one wherever its condition decides. Quotients by one number differ by at most the quotient of what they are taken of, and by less
where remainders are known: what is 1 past a multiple of 64 leaves 1 or 65 of 128.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import gcd

from ...ir.core import Op, Value
from ...ir.known import const_of
from .forms import Form, number, symbol

#: conditions that are tried both ways
CASES = 3


def at_most(high: Value, low: Value, gap: int, defs: Mapping[Value, Op]) -> bool:
    conditions = _conditions([high, low], defs)
    if len(conditions) > CASES:
        return False
    return all(_Case(defs, dict(zip(conditions, case))).at_most(high, low, gap) for case in product((True, False), repeat=len(conditions)))


def _conditions(values: list[Value], defs: Mapping[Value, Op]) -> list[Value]:
    """What decides the choices that scalars are made of."""
    out: dict[Value, None] = {}
    seen: set[Value] = set()
    while values:
        v = values.pop()
        op = defs.get(v)
        if op is None or v in seen:
            continue
        seen.add(v)
        if op.kind == "select":
            out[op.operands[0]] = None
        if op.kind in ("select", "min", "max", "add", "sub", "mul", "floordiv"):
            values += op.operands[op.kind == "select":]
    return list(out)


class _Case:
    """With the conditions of all choices decided."""

    def __init__(self, defs: Mapping[Value, Op], truth: Mapping[Value, bool]):
        self.defs, self.truth = defs, truth
        self.known: dict[tuple[Value, Value, int], bool] = {}

    def chosen(self, v: Value) -> Value:
        while (d := self.defs.get(v)) is not None and d.kind == "select":
            v = d.operands[1 if self.truth[d.operands[0]] else 2]
        return v

    def op(self, v: Value) -> tuple[str, tuple[Value, ...]]:
        d = self.defs.get(v)
        return ("", ()) if d is None else (d.kind, d.operands)

    def at_most(self, high: Value, low: Value, gap: int) -> bool:
        high, low = self.chosen(high), self.chosen(low)
        key = (high, low, gap)
        if key not in self.known:
            (a, xs), (b, ys) = self.op(high), self.op(low)
            self.known[key] = (
                self.differ(high, low, gap)
                or (a == "max" and all(self.at_most(x, low, gap) for x in xs))
                or (b == "min" and all(self.at_most(high, y, gap) for y in ys))
                or (a == "min" and any(self.at_most(x, low, gap) for x in xs))
                or (b == "max" and any(self.at_most(high, y, gap) for y in ys)))
        return self.known[key]

    def differ(self, high: Value, low: Value, gap: int) -> bool:
        """Whether the sums differ by that much at most: in a number, and in pairs of quotients."""
        apart = self.sum(high) - self.sum(low)
        down, rest = {t: n for t, n in apart.terms if n < 0}, apart.const
        for t, n in ((t, n) for t, n in apart.terms if n > 0):
            found = next(((o, most) for o, m in down.items() if m == -n and (most := _quotients(t, o)) is not None), None)
            if found is None:
                return False
            del down[found[0]]
            rest += n * found[1]
        return not down and rest <= gap

    def sum(self, v: Value) -> Form:
        """Of values, and of (numerator, n) for quotients."""
        v = self.chosen(v)
        constant = const_of(v, self.defs)
        if isinstance(constant, int):
            return number(constant)
        kind, xs = self.op(v)
        if kind in ("add", "sub"):
            a, b = map(self.sum, xs)
            return a + b if kind == "add" else a - b
        n = const_of(xs[1], self.defs) if kind in ("mul", "floordiv") else None
        if isinstance(n, int) and kind == "mul":
            return self.sum(xs[0]) * n
        return symbol((self.sum(xs[0]), n) if isinstance(n, int) and kind == "floordiv" and n > 0 else v)


def _quotients(high: object, low: object) -> int | None:
    """The most that x // n can be above y // n, where x - y is a number."""
    if not (isinstance(high, tuple) and isinstance(low, tuple)) or high[1] != low[1]:
        return None
    (x, n), (y, _) = high, low
    apart = (x - y).known
    if apart is None:
        return None
    step = gcd(n, *(k for _, k in y.terms))
    return max((y.const + step * i) % n + apart for i in range(n // step)) // n
