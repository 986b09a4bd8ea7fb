"""What a spec's function works with: tiles and scalars, and variables.

Every tile axis carries a label: the `Range` (`ranges`) that it runs over, or the name of the tensor dimension that it is. Operations align
their operands by label, so `[rows, cols] - [rows]` needs no reshaping and can never pick the wrong axis of a square tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import FcError
from ..ir.core import Value
from ..ir.types import DType, i1
from .mistakes import Traced, called, dtype_of, refuses
from .trace import Named, Scope, current, mistake

Label = Any  # Range | str | int


#: what `arith`, which makes handles itself, gives their operators: "elementwise" and "lift"
ARITHMETIC: dict[str, Callable[..., Handle]] = {}


def elementwise(name: str, *args: Any) -> Handle:
    return ARITHMETIC["elementwise"](name, *args)


def lift(x: Any, dtype: DType | None) -> Handle:
    return ARITHMETIC["lift"](x, dtype)


class NotATile(Traced):
    """What a spec holds besides values: arithmetic with it is a mistake, and the message says what to write instead."""

    __slots__ = ()

    def mistaken(self) -> FcError:
        """What to write instead. Kinds that know better say so."""
        return mistake("trace/static", f"a {type(self).__name__} is no tile", expected="a tile or a number")

    def _mistaken(self, *_: Any) -> Any:
        raise self.mistaken()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _mistaken
    __mod__ = __rmod__ = __pow__ = __rpow__ = __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __abs__ = __and__ = __or__ = _mistaken


Operator = Callable[["Handle", Any], "Handle"]


def _sides(name: str) -> tuple[Operator, Operator]:
    """A function of the elementwise table as an operator: with the handle on its left, and on its right."""
    return (lambda self, other: elementwise(name, self, other)), (lambda self, other: elementwise(name, other, self))


@called("value")
class Handle(Named, Traced):
    """A tile or a scalar of the program. Python operators are elementwise; `bool()` is refused, since no value is known yet."""

    __slots__ = ("_value", "labels", "scope")
    PUBLIC: ClassVar[tuple[str, ...]] = ("T", "dtype", "shape", "to")
    __hash__ = object.__hash__

    def __init__(self, value: Value, labels: tuple[Label, ...] = ()):
        self._value: Value | None = value
        self.labels = labels
        t = current()
        self.scope: Scope | None = t.scope
        if labels:
            t.labels[value] = labels

    @property
    def value(self) -> Value:
        if self._value is None:
            raise mistake("trace/unset", "this variable has not been set", hint="assign it first: v <<= ...")
        self.check_scope()
        return self._value

    def check_scope(self) -> None:
        t = current()
        assert self.scope is not None
        if not self.scope.encloses(t.scope):
            t.check_loops()
            kind = self.scope.kind
            if kind == "kernel":
                raise mistake("trace/unset", "a value of another trace is read", got=repr(self),
                              hint="handles live as long as one trace: make the value inside this spec")
            raise mistake("trace/unset", f"a value made inside a {kind} is read outside of it",
                          hint=f"carry it out in a variable: v = fc.var(...) before the {kind}, v <<= value inside, v after it")

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.type.shape

    def __repr__(self) -> str:
        if self._value is None:
            return "<unset variable>"
        t = self._value.type
        axes = ", ".join(str(n) if (name := label_name(l)) == str(n) else f"{name}: {n}" for l, n in zip(self.labels, t.shape))
        return f"<{t.dtype} [{axes}]>" if axes else f"<{t.dtype} scalar>"

    def to(self, dtype: DType | str) -> Handle:
        """Converted to another dtype (round to nearest even)."""
        d = dtype_of(dtype)
        if d == i1 != self.dtype:
            raise mistake("trace/dtype", "a number is not converted to a condition", got=repr(self), hint="compare it: x != 0")
        return self if d == self.dtype else Handle(current().emit("cast", self.value, to=d.name), self.labels)

    def made(self, h: Handle) -> Handle:
        """A value that is read at this position: of the position's kind, where that has a vocabulary of its own."""
        return h

    @property
    def T(self) -> Handle:
        """The transposed view of a 2-d tile."""
        if len(self.shape) != 2:
            raise mistake("trace/shape", ".T is for 2-d tiles", got=repr(self))
        return Handle(current().emit("transpose", self.value), self.labels[::-1])

    __bool__ = refuses("a value of the program has no truth value while it is traced",
                       "choose with fc.where(cond, a, b), fc.maximum or fc.minimum, or branch on a scalar with `with fc.when(cond):`; "
                       "`and`, `or`, `not` are &, |, ~, and a < x < b is (a < x) & (x < b)", "trace/python-if")
    __iter__ = refuses("a tile cannot be iterated over",
                       "loop over a range: fc.loop(...); Python's sum, max and min are fc.sum, fc.max and fc.min of one axis")
    __index__ = refuses("a value of the program is not a Python integer", "sizes that Python needs must be bound when the spec is compiled")
    __float__ = refuses("a value of the program is not a Python number",
                        "functions of the program are fcgen's: fc.exp, fc.sqrt, fc.floor; a float of it is x.to(fc.f32)")
    __int__ = refuses("a value of the program is not a Python integer", "an integer of the program is x.to(fc.i32)")

    def __copy__(self) -> Handle:
        return Handle(self.value, self.labels)  # of a variable: what it holds now

    def __deepcopy__(self, memo: Any) -> Handle:
        return self.__copy__()

    # ---- operators: elementwise ----

    __add__, __radd__ = _sides("add")
    __sub__, __rsub__ = _sides("sub")
    __mul__, __rmul__ = _sides("mul")
    __truediv__, __rtruediv__ = _sides("div")
    __floordiv__, __rfloordiv__ = _sides("floordiv")
    __mod__, __rmod__ = _sides("mod")
    __pow__, __rpow__ = _sides("pow")
    __and__, __rand__ = _sides("and")
    __or__, __ror__ = _sides("or")
    __xor__, __rxor__ = _sides("xor")
    __lshift__, __rlshift__ = _sides("shl")
    __rshift__, __rrshift__ = _sides("shr")
    __lt__, __gt__ = _sides("lt")[0], _sides("gt")[0]
    __le__, __ge__ = _sides("le")[0], _sides("ge")[0]
    __eq__, __ne__ = _sides("eq")[0], _sides("ne")[0]  # type: ignore[assignment]

    def __neg__(self) -> Handle:
        return elementwise("neg", self)

    def __abs__(self) -> Handle:
        return elementwise("abs", self)

    def __invert__(self) -> Handle:
        return elementwise("not", self)

    def __ilshift__(self, other: Any) -> Any:
        t, name = current(), self._lost()
        if name:
            made = next((op.loc for op in reversed(t.scope.builder.ops) if self._value in op.results), None)
            raise mistake("trace/usage", f"`{name}` is no variable any more: `=` gave its name to another value", got=repr(self),
                          notes=[f"that value was made at {made}"] if made else [], hint=f"write {name} <<= ... there")
        raise mistake("trace/usage", "`<<=` assigns to a variable, and this is none", got=repr(self),
                      hint="make it one before: v = fc.var(init)")

    def _lost(self) -> str | None:
        """The local name that holds this value, and held a variable before."""
        t = current()
        mine = {name for frame in t.frames for name, x in frame.f_locals.items() if x is self}
        return next((name for v in t.variables for name in (v.name, t.names.get(v._value)) if name in mine), None)


@called("variable")
class Var(Handle):
    """A variable: reads as its current value; `v <<= x` assigns. What a loop's body assigns is carried from iteration to iteration."""

    __slots__ = ("closed", "name", "told")

    def __init__(self, init: Handle | None):
        self._value = None if init is None else init.value
        self.labels = () if init is None else init.labels
        self.scope = current().scope
        self.name = ""
        self.told = False  # `fc.name` gave the name
        self.closed: str | None = None  # why it cannot be read just now
        current().variables.append(self)

    @property
    def value(self) -> Value:
        if self.closed is not None:
            raise mistake("trace/usage", f"variable {self.name or 'v'} {self.closed}",
                          hint="`live` sees what is known before the loop: ranges, sizes, and variables that the loop does not assign")
        return super().value

    def __ilshift__(self, other: Any) -> Var:
        self.check_scope()
        if self._value is None:
            x = lift(other, None)
            self.labels = x.labels
        else:
            x = lift(other, self._value.type.dtype)
            if x.value.type.dtype != self._value.type.dtype:
                raise mistake("trace/dtype", "a variable keeps its dtype", expected=self._value.type.dtype, got=x.value.type.dtype,
                              hint=f"convert: .to(fc.{self._value.type.dtype})")
            if set(x.labels) != set(self.labels) or len(x.labels) != len(self.labels):
                raise mistake("trace/shape", "a variable keeps its axes", expected=repr(self), got=repr(x))
            if x.labels != self.labels:
                x = x.T
        self._value = x.value
        if self.told:
            current().told.setdefault(x.value, self.name)
            current().names.setdefault(x.value, self.name)
        return self


def label_name(label: Label) -> str:
    return str(label) if isinstance(label, (str, int)) else str(label.block)
