"""What is known about integers inside one loop: linear forms in the loop index, and the tiles of the loop for which a condition
holds.

A `Form` is `step * i + sum(coefficient * scalar) + const`. A tile of integers is seen as two forms, a lower and an upper bound
of its elements. A condition is a tree of and / or / not over comparisons; of each comparison follows
  may   an interval of i outside of which it is false everywhere in the tile, and
  must  an interval of i inside of which it is true everywhere in the tile.
What is not understood may always be true and must never be. Interval ends are run-time scalars: they are built, before the
loop, from `floordiv`, which rounds down for negative numbers too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from ...ir.core import GridAxis, Op, Value
from ...ir.elementwise import INVERSE, MIRROR
from ...ir.rewrite import Builder
from ...ir.types import Scalar, i1, i32, i64
from .forms import ALL, BIG, EMPTY, NO_TERMS, Form, Range, Rows, Span, number, symbol
from .quotients import compared, distance, divided, divisor, quotient


class Affine:
    """Questions about the values of one loop. New scalars are appended to `b`, which stands before the loop."""

    def __init__(self, index: Value, inside: set[Value], defs: Mapping[Value, Op], b: Builder, rows: Rows | None = None,
                 positive: frozenset[Value] = frozenset(), grid: Mapping[Value, GridAxis] | None = None):
        """rows: ask about a part of the rows of 2-d tiles only. positive: scalars that are known to be. grid: the program's indices."""
        self.positive, self.grid = positive, grid or {}
        self.index, self.inside, self.defs, self.b = index, inside, defs, b
        self.rows, self.down_rows = rows, False  # down_rows: what is asked about runs down the rows of a 2-d tile
        self.spans: dict[tuple[Value, bool], Span | None] = {}
        self.scalars: dict[object, Form] = {}
        self.flags: dict[object, Value] = {}
        self.open: list[Value] = []  # conditions that `may` could say nothing about
        self.gaps = 0  # of how many hulls the two ranges may lie apart, or be no ranges
        self.order: dict[Value, int] = {}  # in which order scalars were met: equal programs get equal text

    # ---- scalars before the loop -------------------------------------------------------------------------------------

    def symbol(self, v: Value) -> Form:
        self.order.setdefault(v, len(self.order))
        return symbol(v)

    def size(self, dim: str | int) -> Form:
        if isinstance(dim, int):
            return number(dim)
        return self.once(("size", dim), lambda: self.b.emit("size", dim=dim))

    def once(self, key: object, make: Callable[[], Value]) -> Form:
        if key not in self.scalars:
            self.scalars[key] = self.symbol(make())
        return self.scalars[key]

    def flag(self, key: object, make: Callable[[], Value]) -> Value:
        if key not in self.flags:
            self.flags[key] = make()
        return self.flags[key]

    def value(self, f: Form) -> Value:
        """The form as a scalar before the loop."""
        assert f.step == 0
        out: Value | None = None
        for v, n in sorted(f.terms, key=lambda t: (t[1] < 0, self.order[t[0]])):
            if out is None:
                out = v if n == 1 else self.b.emit("mul", v, self.b.const(n))
            elif n == -1:
                out = self.b.emit("sub", out, v)
            else:
                out = self.b.emit("add", out, v if n == 1 else self.b.emit("mul", v, self.b.const(n)))
        if out is None:
            return self.b.const(f.const)
        return self.b.emit("add", out, self.b.const(f.const)) if f.const else out

    def floordiv(self, f: Form, d: int) -> Form | None:
        """floor(f / d), d > 0: what d divides comes out, the rest becomes one scalar."""
        if f.step % d:
            return None
        q, r = divmod(f.const, d)
        whole = Form(f.step // d, frozenset((v, n // d) for v, n in f.terms if n % d == 0), q)
        rest = Form(0, frozenset((v, n) for v, n in f.terms if n % d), r)
        if not rest.terms:
            return whole
        return whole + self.once(("floordiv", rest, d), lambda: self.b.emit("floordiv", self.value(rest), self.b.const(d)))

    def extreme(self, kind: str, a: Form, b: Form, name: str = "") -> Form:
        """max or min of two scalars; of two that differ by a known number, the right one."""
        gap = (a - b).known
        if gap is not None:
            return a if (gap >= 0) == (kind == "max") else b
        key = (kind, frozenset((a, b)))
        return self.once(key, lambda: self.b.emit(kind, self.value(a), self.value(b), name=name))

    def switch(self, cond: Value) -> Range:
        """Everything or nothing, by a scalar condition."""
        make = lambda: self.b.emit("select", cond, self.b.const(BIG), self.b.const(-BIG))
        return Range(None, self.once(("switch", cond), make))

    def switched(self, r: Range) -> Value | None:
        """The condition of a `switch`."""
        whole = (cond for key, f in self.scalars.items() if isinstance(key, tuple) and key[0] == "switch" and f == r.hi for cond in key[1:])
        return None if r.lo is not None or r.hi is None else next(whole, None)

    # ---- integers ----------------------------------------------------------------------------------------------------

    def exact(self, v: Value) -> Form | None:
        s = self.span(v)
        return s.lo if s is not None and s.lo == s.hi else None

    def span(self, v: Value) -> Span | None:
        key = (v, self.down_rows)
        if key not in self.spans:
            self.spans[key] = self.find_span(v)
        return self.spans[key]

    def through(self, op: Op, ask: Callable[[Value], Any]) -> Any:
        """`ask` about the operand of a broadcast, transpose, full or cast."""
        before = self.down_rows
        if op.kind == "broadcast" and len(op.result.type.shape) == 2:
            self.down_rows = tuple(op["axes"]) == (0,)
        out = ask(op.operands[0])
        self.down_rows = before
        return out

    def find_span(self, v: Value) -> Span | None:
        if v is self.index:
            return _point(Form(1, NO_TERMS, 0))
        if v.type.dtype not in (i32, i64):  # others wrap
            return None
        op = self.defs.get(v)
        found = self.op_span(op) if op is not None and len(op.results) == 1 else None
        if found is None and v not in self.inside and v.type == Scalar(i32):
            found = _point(self.symbol(v))
        return found

    def op_span(self, op: Op) -> Span | None:
        kind = op.kind
        if kind == "const":
            return _point(number(op["value"]))
        if kind == "iota" and self.rows is not None and self.down_rows and op["shape"][0] == self.rows.count:
            first = self.symbol(self.rows.part) * self.rows.each
            return Span(first, first.shift(self.rows.each - 1))
        if kind == "iota":
            return Span(number(0), number(op["shape"][0] - 1))
        if kind == "size":
            key = ("size", op["dim"])
            if key not in self.scalars and op.result not in self.inside:
                self.scalars[key] = self.symbol(op.result)
            return _point(self.size(op["dim"]))
        if kind in ("full", "broadcast", "transpose", "cast"):
            return self.through(op, self.span)
        if kind in ("floordiv", "mod"):
            return self.quotient(op, *op.operands)
        spans = [self.span(x) for x in op.operands] if kind in SPANS else [None]
        return None if None in spans else SPANS[kind](self, *spans)

    def quotient(self, op: Op, x: Value, y: Value) -> Span | None:
        """Of a `floordiv`, or the rest of it (`mod`)."""
        by = self.exact(y)
        k, d = by.known if by is not None else None, divisor(y, self)
        if op.kind == "mod" and (d is not None or (k is not None and k > 0 and self.span(x) is not None)):
            return Span(number(0), (self.symbol(d) if d is not None else number(k or 0)).shift(-1))
        a = self.span(x)
        if op.kind == "mod" or a is None:
            return None
        if k is None and d is not None and not a.moves:
            return Span(divided(a.lo, d, self), divided(a.hi, d, self))
        return self.divided(op, a, k) if k is not None and k > 0 else None

    def product(self, a: Span, b: Span) -> Span | None:
        for x, y in ((a, b), (b, a)):
            if y.lo == y.hi and (k := y.lo.known) is not None:
                return Span(x.lo * k, x.hi * k) if k >= 0 else Span(x.hi * k, x.lo * k)
        return None

    def size_of(self, a: Span) -> Span | None:
        """Of an absolute value; of one that changes in the loop, `comparison` asks about each of the two signs."""
        least = lambda: self.extreme("max", self.extreme("max", a.lo, a.hi * -1), number(0))
        return None if a.moves else Span(least(), self.extreme("max", a.hi, a.lo * -1))

    def extremes(self, kind: str, a: Span, b: Span) -> Span | None:
        return None if a.moves or b.moves else Span(self.extreme(kind, a.lo, b.lo), self.extreme(kind, a.hi, b.hi))

    def divided(self, op: Op, a: Span, d: int) -> Span | None:
        if a.lo == a.hi and not a.lo.step and op.result not in self.inside and op.result.type == Scalar(i32):
            q, r = divmod(a.lo.const, d)
            rest = Form(0, a.lo.terms, r)
            if q == 0 and all(n % d for _, n in rest.terms):
                self.scalars.setdefault(("floordiv", rest, d), self.symbol(op.result))  # no need to make it again
        lo, hi = self.floordiv(a.lo, d), self.floordiv(a.hi, d)
        return None if lo is None or hi is None else Span(lo, hi)

    # ---- conditions --------------------------------------------------------------------------------------------------

    def at_least_zero(self, f: Form) -> Range:
        """The i with f(i) >= 0."""
        if f.step > 0:
            low = self.floordiv(Form(0, f.terms, f.const), f.step)
            assert low is not None
            return Range(low * -1, None)
        if f.step < 0:
            high = self.floordiv(Form(0, f.terms, f.const), -f.step)
            assert high is not None
            return Range(None, high.shift(1))
        if f.known is not None:
            return ALL if f.known >= 0 else EMPTY
        if any((rest := self.left(v, n, f)) is not None and rest >= 0 for v, n in f.terms):
            return ALL
        return self.switch(self.flag(("ge", f), lambda: self.b.emit("ge", self.value(f), self.b.const(0))))

    def left(self, v: Value, n: int, f: Form) -> int | None:
        """What a form comes to at the least, if it is a number and what is left of an axis of the grid behind the first place of a tile:
        each tile has one."""
        axis = self.grid.get(v)
        return (f - self.size(axis.dim) + symbol(v) * axis.tile).shift(1).known if axis is not None and n == -axis.tile else None

    def both(self, a: Range, b: Range) -> Range:
        if a.is_empty or b.is_empty:
            return EMPTY
        lo = b.lo if a.lo is None else a.lo if b.lo is None else self.extreme("max", a.lo, b.lo)
        hi = b.hi if a.hi is None else a.hi if b.hi is None else self.extreme("min", a.hi, b.hi)
        return Range(lo, hi, a.gap or b.gap)

    def hull(self, a: Range, b: Range) -> Range:
        if a.is_empty or b.is_empty:
            return b if a.is_empty else a
        apart = a.is_all or b.is_all or not ((a.lo is None and b.lo is None) or (a.hi is None and b.hi is None))
        self.gaps += apart
        lo = None if a.lo is None or b.lo is None else self.extreme("min", a.lo, b.lo)
        hi = None if a.hi is None or b.hi is None else self.extreme("max", a.hi, b.hi)
        return Range(lo, hi, self.between(a, b) if apart else None)

    def between(self, a: Range, b: Range) -> Range | None:
        """What lies between two ranges, if they are apart."""
        lows = [r.lo for r in (a, b) if r.lo is not None]
        # (one that ends before it begins is empty where it begins)
        highs = [r.hi if r.lo is None else self.extreme("max", r.hi, r.lo) for r in (a, b) if r.hi is not None]
        if a.is_all or b.is_all or not lows or not highs:
            return None
        return Range(reduce(lambda x, y: self.extreme("min", x, y), highs), reduce(lambda x, y: self.extreme("max", x, y), lows))

    def either(self, a: Range, b: Range, whole: Range) -> Range:
        """An interval inside the union of two: the union where it is surely one, else the longer of the two."""
        if a.is_empty or b.is_empty:
            return b if a.is_empty else a
        if a.is_all or b.is_all:
            return ALL
        if (a.lo is None and b.lo is None) or (a.hi is None and b.hi is None):
            return self.hull(a, b)
        if whole.lo is None or whole.hi is None:
            return a
        a, b = self.both(a, whole), self.both(b, whole)
        if a.lo is None or a.hi is None or b.lo is None or b.hi is None:
            return EMPTY
        longer = self.b.emit("ge", self.value(a.hi - a.lo), self.value(b.hi - b.lo))
        pick = lambda x, y: self.symbol(self.b.emit("select", longer, self.value(x), self.value(y)))
        return Range(pick(a.lo, b.lo), pick(a.hi, b.hi))

    def joined(self, a: Range, b: Range, must: bool, whole: Range) -> Range:
        """Where one of two conditions holds, or may hold."""
        return self.either(a, b, whole) if must else self.hull(a, b)

    def may(self, cond: Value, negated: bool = False) -> Range:
        return self.tree(cond, negated, False, ALL)

    def must(self, cond: Value, whole: Range, negated: bool = False) -> Range:
        return self.tree(cond, negated, True, whole)

    def tree(self, v: Value, negated: bool, must: bool, whole: Range) -> Range:
        op = self.defs.get(v)
        kind = op.kind if op is not None else ""
        if op is not None and kind in ("broadcast", "full", "transpose"):
            return self.through(op, lambda x: self.tree(x, negated, must, whole))
        if op is not None and kind == "not":
            return self.tree(op.operands[0], not negated, must, whole)
        if op is not None and kind == "const":
            return ALL if bool(op["value"]) != negated else EMPTY
        if op is not None and kind in ("and", "or"):
            a, b = (self.tree(x, negated, must, whole) for x in op.operands)
            return self.both(a, b) if (kind == "and") != negated else self.joined(a, b, must, whole)
        if op is not None and kind in INVERSE:
            x, y = op.operands
            found = self.comparison(INVERSE[kind] if negated else kind, x, y, must, whole)
            if found is not None:
                return found
        if v.type == Scalar(i1) and v not in self.inside:
            if negated:
                return self.switch(self.flag(("not", v), lambda: self.b.emit("not", v)))
            return self.switch(v)
        if not must:
            self.open.append(v)
        return EMPTY if must else ALL

    def comparison(self, kind: str, x: Value, y: Value, must: bool, whole: Range) -> Range | None:
        if kind in ("eq", "ne"):
            a, b = (self.comparison(k, x, y, must, whole) for k in (("ge", "le") if kind == "eq" else ("gt", "lt")))
            if a is None or b is None:
                return None
            return self.both(a, b) if kind == "eq" else self.joined(a, b, must, whole)
        for k, left, right in ((kind, x, y), (MIRROR[kind], y, x)):
            q, s = quotient(left, self), self.span(right)
            if q is not None and s is not None and not s.moves:
                return compared(k, *q, s, self, must)
            found = distance(k, left, s, self, must) if s is not None else None
            if found is not None:
                return found
        xs, ys = self.signs(x), self.signs(y)
        if xs is None or ys is None:
            return None
        return self.largest(kind, xs, ys, must, whole)

    def signs(self, v: Value) -> list[Span] | None:
        """Spans of which the value is the largest: of an `abs` in the loop, one for each sign."""
        op = self.defs.get(v)
        if op is not None and op.kind in ("broadcast", "transpose"):
            return self.through(op, self.signs)
        s = self.span(v)
        if s is not None or op is None or op.kind != "abs":
            return None if s is None else [s]
        inner = self.span(op.operands[0])
        return None if inner is None else [inner, Span(inner.hi * -1, inner.lo * -1)]

    def largest(self, kind: str, xs: list[Span], ys: list[Span], must: bool, whole: Range) -> Range:
        """max(xs) kind max(ys)."""
        if kind in ("lt", "le"):
            kind, xs, ys = MIRROR[kind], ys, xs
        join = lambda a, b: self.joined(a, b, must, whole)
        return reduce(join, [reduce(self.both, [self.compare(kind, a, b, must) for b in ys]) for a in xs])

    def compare(self, kind: str, a: Span, b: Span, must: bool) -> Range:
        if kind in ("lt", "le"):
            kind, a, b = MIRROR[kind], b, a
        over = (a.lo - b.hi) if must else (a.hi - b.lo)  # a - b, seen from the side that decides
        return self.at_least_zero(over.shift(-1) if kind == "gt" else over)


def _point(f: Form) -> Span:
    return Span(f, f)


#: op -> the span of its result, of those of its operands
SPANS: dict[str, Callable[..., Span | None]] = {
    "neg": lambda s, a: Span(a.hi * -1, a.lo * -1), "abs": Affine.size_of, "mul": Affine.product,
    "add": lambda s, a, b: Span(a.lo + b.lo, a.hi + b.hi), "sub": lambda s, a, b: Span(a.lo - b.hi, a.hi - b.lo),
    "max": lambda s, a, b: s.extremes("max", a, b), "min": lambda s, a, b: s.extremes("min", a, b)}
