"""What a function of positions can be in a whole block of them: its arithmetic on least and largest values instead of elements.

A `Bounds` stands for some positions, or for what is read there; a comparison of two is a `Verdict`: whether it may hold somewhere, and
whether it must hold everywhere. Guaranteed: a value lies between its bounds, a condition that may not hold holds nowhere, one that must
holds everywhere. Bounds may be wider than what they stand for. What has no rule here raises FcError, as any mistake in a spec does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import FcError
from .arith import elementwise, lift
from .functions import max as largest
from .functions import maximum, minimum
from .functions import min as least
from .handles import Handle
from .trace import current, mistake


class _Blocks(Handle):
    """Not a value of the program, but what is known of many."""

    __slots__ = ()

    def _no_value(self) -> Any:
        raise mistake("trace/usage", "of these positions only the ends are known", expected="+, -, //, comparisons, &, |, ~",
                      got=type(self).__name__)

    value = property(_no_value)  # type: ignore[assignment]
    to = T = property(_no_value)  # type: ignore[assignment]

    def _refused(self, *_: Any) -> Any:
        return self._no_value()

    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _refused
    __xor__ = __rxor__ = __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _refused
    __and__ = __rand__ = __or__ = __ror__ = __invert__ = _refused
    __add__ = __radd__ = __sub__ = __rsub__ = __floordiv__ = __neg__ = __abs__ = _refused
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refused  # type: ignore[assignment]
    __hash__ = object.__hash__

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
    def dtype(self) -> Any:
        return self.may.dtype

    def __and__(self, other: Any) -> Verdict:
        other = Verdict.of(other)
        return Verdict(self.may & other.may, self.must & other.must)

    def __or__(self, other: Any) -> Verdict:
        other = Verdict.of(other)
        return Verdict(self.may | other.may, self.must | other.must)

    def __invert__(self) -> Verdict:
        return Verdict(~self.must, ~self.may)

    __rand__, __ror__ = __and__, __or__


Compare = Callable[["Bounds", Any], Verdict]


def _below(a: Bounds, b: Bounds, how: str) -> Verdict:
    return Verdict(elementwise(how, a.lo, b.hi), elementwise(how, a.hi, b.lo))


class Bounds(_Blocks):
    """lo <= x <= hi. width: at most so many positions lie between them, where positions are what they are."""

    __slots__ = ("hi", "lo", "width")

    def __init__(self, lo: Handle, hi: Handle, width: int | None = None):
        super().__init__(None, ())  # type: ignore[arg-type]
        self.lo, self.hi, self.width = lo, hi, width

    def of(self, x: Any) -> Bounds:
        """What these meet: a number is one of their dtype."""
        if isinstance(x, Bounds):
            return x
        h = lift(x, self.dtype)
        return Bounds(h, h, 1)

    @property
    def dtype(self) -> Any:
        return self.lo.dtype

    def met(self, other: Any) -> Bounds:
        """The other one of a sum. What tensors hold may be anything, and a sum of its ends may wrap where an element's does not."""
        other = self.of(other)
        if isinstance(self, Elements) or isinstance(other, Elements):
            self._no_value()
        return other

    def _wide(self, other: Bounds) -> int | None:
        return None if self.width is None or other.width is None else self.width + other.width - 1

    def __add__(self, other: Any) -> Bounds:
        other = self.met(other)
        return Bounds(self.lo + other.lo, self.hi + other.hi, self._wide(other))

    def __sub__(self, other: Any) -> Bounds:
        other = self.met(other)
        return Bounds(self.lo - other.hi, self.hi - other.lo, self._wide(other))

    def __rsub__(self, other: Any) -> Bounds:
        return self.of(other) - self

    def __neg__(self) -> Bounds:
        self.met(0)
        return Bounds(-self.hi, -self.lo, self.width)

    def __abs__(self) -> Bounds:
        self.met(0)
        return Bounds(maximum(maximum(self.lo, -self.hi), 0), maximum(self.hi, -self.lo), self.width)

    def __floordiv__(self, other: Any) -> Bounds:
        """By one number, of either sign."""
        self.met(0)
        by = lift(other, self.dtype)
        a, b = self.lo // by, self.hi // by
        return Bounds(minimum(a, b), maximum(a, b), self.width)

    def __lt__(self, other: Any) -> Verdict:
        return _below(self, self.of(other), "lt")

    def __le__(self, other: Any) -> Verdict:
        return _below(self, self.of(other), "le")

    def __gt__(self, other: Any) -> Verdict:
        return _below(self.of(other), self, "lt")

    def __ge__(self, other: Any) -> Verdict:
        return _below(self.of(other), self, "le")

    def __eq__(self, other: Any) -> Verdict:  # type: ignore[override]
        a, b = self <= other, self >= other
        return a & b

    def __ne__(self, other: Any) -> Verdict:  # type: ignore[override]
        return ~(self == other)

    __hash__ = object.__hash__
    __radd__ = __add__

    def read(self, tensor: Any, index: tuple[Any, ...]) -> Bounds:
        """Of a tensor's elements at these positions, which are this one's along one axis."""
        axis = "along"
        if any(i is not self and isinstance(i, _Blocks) for i in index) or self.width is None:
            self._no_value()
        run = Handle(current().emit("iota", shape=(self.width,)), (axis,))
        at = [minimum(self.lo + run, self.hi) if i is self else i for i in index]
        found = tensor._gather(tuple(at))
        if found.dtype.is_float or found.dtype.bits < 8:  # NaN lies between no bounds
            self._no_value()
        found = found if found.dtype.bits >= 32 else found.to("i32")
        return Elements(least(found, axis), largest(found, axis))


class Elements(Bounds):
    """Of what a tensor holds: it is compared, and nothing else."""

    __slots__ = ()


def verdict(condition: Callable[..., Any], *positions: Any) -> Verdict | None:
    """What a function of positions says of blocks of them; None where it does what there is no rule for."""
    try:
        return Verdict.of(condition(*positions))
    except FcError:
        return None
