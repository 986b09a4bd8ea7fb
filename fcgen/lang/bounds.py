"""What a function of positions can be in a whole block of them: its arithmetic on least and largest values instead of elements.

A `Bounds` stands for some positions, or for what follows from them; a comparison of two is a `Verdict`: whether it may hold somewhere, and
whether it must hold everywhere. Guaranteed: a value lies between its bounds, a condition that may not hold holds nowhere, one that must
holds everywhere. Bounds may be wider than what they stand for. What follows from the positions of one axis alone, such as what tensors hold
there, is computed for each of them, whatever it is, and bounds are taken of the results where it meets the other axis. What has no rule
here raises FcError, as any mistake in a spec does.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from ..errors import FcError
from ..ir.ranges import FLOOR, ROOM
from ..ir.types import DType, f32, i1, i32, i64
from .arith import elementwise, lift
from .functions import max as largest
from .functions import maximum, minimum, where
from .functions import min as least
from .handles import Handle
from .mistakes import dtype_of
from .trace import current, mistake

Each = Callable[[], Handle]
Ends = tuple[Any, Any]


class _Blocks(Handle):
    """Not a value of the program, but what is known of many."""

    __slots__ = ()

    def _no_value(self) -> Any:
        raise mistake("trace/usage", "of these positions only the ends are known", expected="+, -, *, //, %, comparisons, &, |, ~",
                      got=type(self).__name__)

    value = T = property(_no_value)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()}>"


class Verdict(_Blocks):
    """may: it can hold somewhere; must: it holds everywhere."""

    __slots__ = ("may", "must")

    def __init__(self, may: Any, must: Any):
        super().__init__(None, ())  # type: ignore[arg-type]
        self.may, self.must = may, must

    @staticmethod
    def of(x: Any) -> Verdict:
        return x if isinstance(x, Verdict) else Verdict(lift(x, None), lift(x, None))

    @property
    def dtype(self) -> DType:
        return i1

    def to(self, dtype: Any) -> Any:
        return self._no_value()

    def among(self, name: str, args: tuple[Any, ...]) -> Verdict:
        """A function of conditions."""
        if name not in ("and", "or", "not") or any(isinstance(x, Bounds) for x in args):
            self._no_value()
        xs = [Verdict.of(x) for x in args]
        if name == "not":
            return Verdict(~self.must, ~self.may)
        return Verdict(elementwise(name, *[x.may for x in xs]), elementwise(name, *[x.must for x in xs]))


class Bounds(_Blocks):
    """ends: lo <= x <= hi, where they are known. axis: whose positions alone it follows from (None: from none; "": from more than one's);
    each: makes its elements, where it follows from one. held: it may be anything, and a sum of its ends may wrap where an element's does
    not. most: how far from 0 it can be where positions and numbers are up to `FLOOR`; a launch sees to it that what stays in 32 bits there
    does so always. fixed: a number that is known."""

    __slots__ = ("axis", "each", "ends", "fixed", "held", "kind", "most")

    def __init__(self, kind: DType, ends: Ends | None, axis: str | None, each: Each | None, held: bool = False, most: int = FLOOR,
                 fixed: bool = False):
        super().__init__(None, ())  # type: ignore[arg-type]
        self.kind, self.ends, self.axis, self.each, self.held, self.most, self.fixed = kind, ends, axis, each, held, most, fixed

    @property
    def dtype(self) -> DType:
        return self.kind

    def of(self, x: Any) -> Bounds:
        """What these meet: a number is one of their dtype."""
        if isinstance(x, Bounds):
            return x
        h = lift(x, self.kind)
        if isinstance(x, Verdict) or h.labels:
            self._no_value()
        return Bounds(h.dtype, (h, h), None, lambda: h, False, *((abs(x), True) if type(x) is int else ()))

    def to(self, dtype: Any) -> Any:
        d, each = dtype_of(dtype), self.each
        keeps = d.is_float or d in (i32, i64)  # the order of all positions; narrower and unsigned numbers wrap
        known = (self.ends[0].to(d), self.ends[1].to(d)) if self.ends is not None and not self.held and keeps else None
        if known is None and each is None:
            self._no_value()
        return Bounds(d, known, self.axis, (lambda: each().to(d)) if each is not None else None, True)

    def among(self, name: str, args: tuple[Any, ...]) -> Any:
        """A function of such values."""
        if any(isinstance(x, Verdict) for x in args):
            self._no_value()
        xs = [self.of(x) for x in args]
        axes = {x.axis for x in xs} - {None}
        most = MOST[name](*[x.most for x in xs]) if name in MOST else 0
        known = all(x.ends is not None and not x.held for x in xs) and most <= ROOM
        known = known and (name != "mul" or (len(axes) < 2 and any(x.fixed for x in xs)))
        every: list[Each] = [x.each for x in xs if x.each is not None]
        each = (lambda: elementwise(name, *[make() for make in every])) if len(axes) < 2 and len(every) == len(xs) else None
        if name in COMPARED:
            return self.of_each(each(), axes.pop()) if each and axes and not known else COMPARED[name](*xs)  # type: ignore[arg-type]
        rule = RULES.get(name) if known and self.kind.is_int else None
        found = rule(*xs) if rule else None
        if found is None and each is None:
            self._no_value()
        kind = self.kind if found or each is None else each().dtype
        return Bounds(kind, found, axes.pop() if len(axes) == 1 else "" if axes else None, each, found is None, most)

    def of_each(self, c: Handle, axis: Any) -> Verdict:
        counted = where(c, 1, 0)
        return Verdict(largest(counted, axis) > 0, least(counted, axis) > 0)

    def span(self) -> tuple[Handle, Handle, Any]:
        """Least and largest, in 32 bits at least, and whether all are numbers: those that are not lie between no bounds."""
        if self.ends is None:
            assert self.each is not None
            x = _wide(self.each())
            if not x.dtype.is_float:
                return least(x, self.axis), largest(x, self.axis), True
            number = x == x
            all_are = least(where(number, 1, 0), self.axis) > 0
            return least(where(number, x, inf), self.axis), largest(where(number, x, -inf), self.axis), all_are
        lo, hi = map(_wide, self.ends)
        return lo, hi, (lo == lo) & (hi == hi) if lo.dtype.is_float else True

    def read(self, tensor: Any, index: tuple[Any, ...]) -> Any:
        """A tensor's elements at these positions, which are of one axis."""
        if any(isinstance(i, Verdict) or (isinstance(i, Bounds) and (i.each is None or i.axis != self.axis)) for i in index):
            self._no_value()
        found = tensor._gather(tuple(i.each() if isinstance(i, Bounds) and i.each is not None else i for i in index))
        if found.dtype == i1:
            return self.of_each(found, self.axis)
        if found.dtype.bits < 8:
            self._no_value()
        return Bounds(found.dtype, None, self.axis, lambda: found, True)


def positions(lo: Handle, hi: Handle, width: int, axis: str) -> Bounds:
    """Those from lo to hi, at most so many, of an axis."""
    return Bounds(i32, (lo, hi), axis, lambda: minimum(lo + Handle(current().emit("iota", shape=(width,)), (axis,)), hi))


def _wide(h: Handle) -> Handle:
    return h if h.dtype.bits >= 32 else h.to(f32 if h.dtype.is_float else i32)


def _below(how: str) -> Callable[[Bounds, Bounds], Verdict]:
    def compare(a: Bounds, b: Bounds) -> Verdict:
        (a_lo, a_hi, a_all), (b_lo, b_hi, b_all) = a.span(), b.span()
        must = elementwise(how, a_hi, b_lo)
        return Verdict(elementwise(how, a_lo, b_hi), must if a_all is True and b_all is True else must & a_all & b_all)

    return compare


_lt, _le = _below("lt"), _below("le")


def _eq(a: Bounds, b: Bounds) -> Verdict:
    return _le(a, b) & _le(b, a)  # type: ignore[return-value]


COMPARED: dict[str, Callable[[Bounds, Bounds], Any]] = {
    "lt": _lt, "le": _le, "gt": lambda a, b: _lt(b, a), "ge": lambda a, b: _le(b, a), "eq": _eq, "ne": lambda a, b: ~_eq(a, b)}


def _products(a: Bounds, b: Bounds) -> Ends:
    every = [x * y for x in a.ends for y in (b.ends if b.axis is not None else b.ends[:1])]  # type: ignore[index, union-attr]
    low, high = every[0], every[0]
    for x in every[1:]:
        low, high = minimum(low, x), maximum(high, x)
    return low, high


def _quotients(a: Bounds, b: Bounds) -> Ends | None:
    """By one number, of either sign."""
    if b.axis is not None:
        return None
    x, y = (e // b.ends[0] for e in a.ends)  # type: ignore[index, union-attr]
    return minimum(x, y), maximum(x, y)


def _remainders(a: Bounds, b: Bounds) -> Ends | None:
    """By one number, of either sign; exact where no multiple of it lies between the ends."""
    if b.axis is not None:
        return None
    (lo, hi), n = a.ends, b.ends[0]  # type: ignore[index, misc]
    one = lo // n == hi // n
    return where(one, lo % n, minimum(n + 1, 0)), where(one, hi % n, maximum(n - 1, 0))


def _rule(fn: Callable[..., Ends | None]) -> Callable[..., Ends | None]:
    """Of the ends alone."""
    return lambda *xs: fn(*[e for x in xs for e in x.ends])


RULES: dict[str, Callable[..., Ends | None]] = {
    "add": _rule(lambda a, b, c, d: (a + c, b + d)), "sub": _rule(lambda a, b, c, d: (a - d, b - c)), "neg": _rule(lambda a, b: (-b, -a)),
    "abs": _rule(lambda a, b: (maximum(maximum(a, -b), 0), maximum(b, -a))),
    "min": _rule(lambda a, b, c, d: (minimum(a, c), minimum(b, d))),
    "max": _rule(lambda a, b, c, d: (maximum(a, c), maximum(b, d))),
    "mul": _products, "floordiv": _quotients, "mod": _remainders}


#: `Bounds.most` of what a function makes
MOST: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a + b, "mul": lambda a, b: a * b, "neg": abs, "abs": abs, "min": max, "max": max,
    "floordiv": lambda a, b: max(a, 1), "mod": lambda a, b: b}


def verdict(condition: Callable[..., Any], *where_: Any) -> Verdict | None:
    """What a function of positions says of blocks of them; None where it does what there is no rule for."""
    try:
        return Verdict.of(condition(*where_))
    except FcError:
        return None
