"""What a spec's function works with: tiles and scalars, variables, and the ranges that label their axes.

Every tile axis carries a label: the `Range` that it runs over, or the name of the tensor dimension that it is. Operations align their
operands by label, so `[rows, cols] - [rows]` needs no reshaping and can never pick the wrong axis of a square tile.
"""

from __future__ import annotations

from typing import Any

from ..errors import FcError, did_you_mean
from ..ir.core import Value
from ..ir.types import DType, i1, i32
from .mistakes import Traced, called, dtype_of
from .trace import Scope, current, here

Label = Any  # Range | str


def elementwise(name: str, *args: Any) -> Handle:
    from . import arith

    return arith.elementwise(name, *args)


def lift(x: Any, dtype: DType | None) -> Handle:
    from . import arith

    return arith.lift(x, dtype)


class NotATile(Traced):
    """What a spec holds besides values: arithmetic with it is a mistake, and the message says what to write instead."""

    __slots__ = ()

    def mistaken(self) -> FcError:
        """What to write instead. Kinds that know better say so."""
        return FcError("trace/static", f"a {type(self).__name__} is no tile", expected="a tile or a number", loc=here())

    def _mistaken(self, *_: Any) -> Any:
        raise self.mistaken()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _mistaken
    __mod__ = __rmod__ = __pow__ = __rpow__ = __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __abs__ = __and__ = __or__ = _mistaken


@called("value")
class Handle(Traced):
    """A tile or a scalar of the program. Python operators are elementwise; `bool()` is refused, since no value is known yet."""

    __slots__ = ("_value", "labels", "scope")
    PUBLIC = ("T", "dtype", "shape", "to")
    __hash__ = object.__hash__

    def __init__(self, value: Value, labels: tuple[Label, ...] = ()):
        self._value: Value | None = value
        self.labels = labels
        self.scope: Scope | None = current().scope

    @property
    def value(self) -> Value:
        if self._value is None:
            raise FcError("trace/unset", "this variable has not been set", loc=here(), hint="assign it first: v <<= ...")
        self.check_scope()
        return self._value

    def check_scope(self) -> None:
        t = current()
        assert self.scope is not None
        if not self.scope.encloses(t.scope):
            t.check_loops()
            kind = self.scope.kind
            if kind == "kernel":
                raise FcError("trace/unset", "a value of another trace is read", got=repr(self), loc=here(),
                              hint="handles live as long as one trace: make the value inside this spec")
            raise FcError("trace/unset", f"a value made inside a {kind} is read outside of it", loc=here(),
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
        axes = ", ".join(f"{label_name(l)}: {n}" for l, n in zip(self.labels, t.shape))
        return f"<{t.dtype} [{axes}]>" if axes else f"<{t.dtype} scalar>"

    def to(self, dtype: DType | str) -> Handle:
        """Converted to another dtype (round to nearest even)."""
        d = dtype_of(dtype)
        if d == i1 != self.dtype:
            raise FcError("trace/dtype", "a number is not converted to a condition", got=repr(self), loc=here(), hint="compare it: x != 0")
        return self if d == self.dtype else Handle(current().emit("cast", self.value, to=d.name), self.labels)

    @property
    def T(self) -> Handle:
        """The transposed view of a 2-d tile."""
        if len(self.shape) != 2:
            raise FcError("trace/shape", ".T is for 2-d tiles", got=repr(self), loc=here())
        return Handle(current().emit("transpose", self.value), self.labels[::-1])

    def __bool__(self) -> bool:
        raise FcError("trace/python-if", "a value of the program has no truth value while it is traced", got=repr(self), loc=here(),
                      hint="choose with fc.where(cond, a, b), fc.maximum or fc.minimum, or branch on a scalar with `with fc.when(cond):`; "
                           "`and`, `or`, `not` are &, |, ~, and a < x < b is (a < x) & (x < b)")

    def __iter__(self) -> Any:
        raise FcError("trace/usage", "a tile cannot be iterated over", got=repr(self), loc=here(),
                      hint="loop over a range: fc.loop(...); Python's sum, max and min are fc.sum, fc.max and fc.min of one axis")

    def __index__(self) -> int:
        raise FcError("trace/usage", "a value of the program is not a Python integer", got=repr(self), loc=here(),
                      hint="sizes that Python needs must be bound when the spec is compiled")

    def __float__(self) -> float:
        raise FcError("trace/usage", "a value of the program is not a Python number", got=repr(self), loc=here(),
                      hint="functions of the program are fcgen's: fc.exp, fc.sqrt, fc.floor; a float of it is x.to(fc.f32)")

    def __int__(self) -> int:
        raise FcError("trace/usage", "a value of the program is not a Python integer", got=repr(self), loc=here(),
                      hint="an integer of the program is x.to(fc.i32)")

    def __copy__(self) -> Handle:
        return Handle(self.value, self.labels)  # of a variable: what it holds now

    def __deepcopy__(self, memo: Any) -> Handle:
        return self.__copy__()

    # ---- operators: elementwise ----

    def __add__(self, other: Any) -> Handle:
        return elementwise("add", self, other)

    def __radd__(self, other: Any) -> Handle:
        return elementwise("add", other, self)

    def __sub__(self, other: Any) -> Handle:
        return elementwise("sub", self, other)

    def __rsub__(self, other: Any) -> Handle:
        return elementwise("sub", other, self)

    def __mul__(self, other: Any) -> Handle:
        return elementwise("mul", self, other)

    def __rmul__(self, other: Any) -> Handle:
        return elementwise("mul", other, self)

    def __floordiv__(self, other: Any) -> Handle:
        return elementwise("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Handle:
        return elementwise("floordiv", other, self)

    def __mod__(self, other: Any) -> Handle:
        return elementwise("mod", self, other)

    def __rmod__(self, other: Any) -> Handle:
        return elementwise("mod", other, self)

    def __pow__(self, other: Any) -> Handle:
        return elementwise("pow", self, other)

    def __rpow__(self, other: Any) -> Handle:
        return elementwise("pow", other, self)

    def __and__(self, other: Any) -> Handle:
        return elementwise("and", self, other)

    def __rand__(self, other: Any) -> Handle:
        return elementwise("and", other, self)

    def __or__(self, other: Any) -> Handle:
        return elementwise("or", self, other)

    def __ror__(self, other: Any) -> Handle:
        return elementwise("or", other, self)

    def __xor__(self, other: Any) -> Handle:
        return elementwise("xor", self, other)

    def __rxor__(self, other: Any) -> Handle:
        return elementwise("xor", other, self)

    def __lshift__(self, other: Any) -> Handle:
        return elementwise("shl", self, other)

    def __rlshift__(self, other: Any) -> Handle:
        return elementwise("shl", other, self)

    def __rshift__(self, other: Any) -> Handle:
        return elementwise("shr", self, other)

    def __rrshift__(self, other: Any) -> Handle:
        return elementwise("shr", other, self)

    def __truediv__(self, other: Any) -> Handle:
        return elementwise("div", self, other)

    def __rtruediv__(self, other: Any) -> Handle:
        return elementwise("div", other, self)

    def __lt__(self, other: Any) -> Handle:
        return elementwise("lt", self, other)

    def __le__(self, other: Any) -> Handle:
        return elementwise("le", self, other)

    def __gt__(self, other: Any) -> Handle:
        return elementwise("gt", self, other)

    def __ge__(self, other: Any) -> Handle:
        return elementwise("ge", self, other)

    def __eq__(self, other: Any) -> Handle:  # type: ignore[override]
        return elementwise("eq", self, other)

    def __ne__(self, other: Any) -> Handle:  # type: ignore[override]
        return elementwise("ne", self, other)

    def __neg__(self) -> Handle:
        return elementwise("neg", self)

    def __abs__(self) -> Handle:
        return elementwise("abs", self)

    def __invert__(self) -> Handle:
        return elementwise("not", self)

    def __ilshift__(self, other: Any) -> Any:
        raise FcError("trace/usage", "`<<=` assigns to a variable, and this is none", got=repr(self), loc=here(),
                      hint="make it one before: v = fc.var(init)")


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
            raise FcError("trace/usage", f"variable {self.name or 'v'} {self.closed}", loc=here(),
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
                raise FcError("trace/dtype", "a variable keeps its dtype", expected=self._value.type.dtype, got=x.value.type.dtype,
                              loc=here(), hint=f"convert: .to(fc.{self._value.type.dtype})")
            if set(x.labels) != set(self.labels) or len(x.labels) != len(self.labels):
                raise FcError("trace/shape", "a variable keeps its axes", expected=repr(self), got=repr(x), loc=here())
            if x.labels != self.labels:
                x = x.T
        self._value = x.value
        if self.told:
            current().told.setdefault(x.value, self.name)
            current().names.setdefault(x.value, self.name)
        return self


@called("range")
class Range(NotATile):
    """A run of positions along a dimension: what `fc.tile` of a grid or loop axis yields, and an axis label of what it indexes."""

    __slots__ = ("_live", "_start", "_tile", "block", "dim", "number", "scope", "size")
    PUBLIC = ("again", "index", "matters", "size", "start", "valid")

    count = 0

    def __init__(self, block: str, size: int, start: Value, dim: str | int, tile: Value | None = None):
        self.block, self.size, self.dim = block, size, dim
        self.scope = current().scope
        self._start, self._tile = start, tile
        self._live: Any = None  # of the loop that it comes from
        Range.count += 1
        self.number = Range.count

    def mistaken(self) -> FcError:
        return FcError("trace/usage", "a range is not a tile", got=repr(self), loc=here(),
                       hint="its positions are .index, the first one is .start")

    def __bool__(self) -> bool:
        raise FcError("trace/python-if", "a range has no truth value", got=repr(self), loc=here(),
                      hint="its positions are .index; choose with fc.where")

    def __repr__(self) -> str:
        return f"<range {self.block} of {self.size} along {self.dim}>"

    @property
    def start(self) -> Handle:
        """The first position, an i32 scalar."""
        return self._scoped(Handle(self._start))

    @property
    def index(self) -> Handle:
        """The positions, i32 [self]."""
        t = current()
        return Handle(t.emit("add", t.emit("iota", shape=(self.size,)), self.start.value), (self,))

    @property
    def valid(self) -> Handle:
        """Which positions lie inside the dimension, i1 [self]."""
        return elementwise("lt", self.index, dim_size(self.dim))

    @property
    def matters(self) -> Handle | None:
        """Where the loop that the range comes from is live, i1; None where it says nothing."""
        return None if self._live is None else lift(self._live(self), i1)

    def again(self) -> Range:
        """The same positions as an axis of its own, for products of a chunk with itself."""
        return Range(self.block, self.size, self.start.value, self.dim, self._tile)

    def _scoped(self, h: Handle) -> Handle:
        h.scope = self.scope
        h.check_scope()
        return h

    def __iter__(self) -> Any:
        raise FcError(
            "trace/usage", "a range is not a loop", got=repr(self), loc=here(), hint="for cols in fc.loop(fc.tile(K.N, 'BLOCK_N')):"
        )


@called("tiling")
class TiledSize(NotATile):
    """`fc.tile(size, "BLOCK")`: a dimension cut into blocks. An axis of the grid, or what a loop runs over."""

    __slots__ = ("block", "dim", "size")

    def __init__(self, dim: str | int, block: str):
        self.dim, self.block = dim, block
        t = current()
        if not isinstance(block, str):
            raise FcError("trace/usage", "fc.tile names its block size, and the schedule says how large it is", expected='"BLOCK_M"',
                          got=block, loc=here(), hint='Schedule(tiles={"BLOCK_M": 64, ...})')
        if block not in t.tiles:
            raise FcError("trace/static", f"no tile size is given for {block}", loc=here(), got=", ".join(t.tiles) or "no tile sizes",
                          hint=did_you_mean(block, t.tiles, f'Schedule(tiles={{"{block}": 64, ...}})'))
        self.size = t.tiles[block]
        t.used_tiles.add(block)

    def __repr__(self) -> str:
        return f"<fc.tile of {self.dim} into {self.block}>"

    def mistaken(self) -> FcError:
        return FcError("trace/usage", "fc.tile(...) is a way to cut a dimension, not a tile", loc=here(),
                       hint="fc.grid and fc.loop take it and hand out ranges")

    def __iter__(self) -> Any:
        raise FcError("trace/usage", "fc.tile(...) is not a loop yet", got=repr(self), loc=here(),
                      hint="for cols in fc.loop(fc.tile(K.N, \"BLOCK_N\")):")


def label_name(label: Label) -> str:
    return label.block if isinstance(label, Range) else str(label)


def dim_size(dim: str | int) -> Handle:
    t = current()
    if isinstance(dim, int):
        return lift(dim, i32)
    h = Handle(t.size(dim))
    while h.scope is not None and h.scope.parent is not None and h.scope.parent.parent is not None:
        h.scope = h.scope.parent  # it stands at the top of the kernel
    return h
