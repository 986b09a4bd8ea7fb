"""What a spec's function works with: tiles and scalars, variables, and the ranges that label their axes.

Every tile axis carries a label: the `Range` that it runs over, or the name of the tensor dimension that it is. Operations align their
operands by label, so `[rows, cols] - [rows]` needs no reshaping and can never pick the wrong axis of a square tile.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import FcError
from ..ir.core import Value
from ..ir.types import DType, f32, i32
from .trace import Scope, current, here

Label = Any  # Range | str


class Handle:
    """A tile or a scalar of the program. Python operators are elementwise; `bool()` is refused, since no value is known yet."""

    __array_priority__ = 1000
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
            raise FcError("trace/unset", f"a value made inside a {self.scope.kind} is read outside of it", loc=here(),
                          hint="carry it out in a variable: v = fc.var(...) before the loop, v <<= value inside, v after it")

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
        from .annotations import as_dtype

        d = as_dtype(dtype, "dtype")
        return self if d == self.dtype else Handle(current().emit("cast", self.value, to=d.name), self.labels)

    @property
    def T(self) -> Handle:
        """The transposed view of a 2-d tile."""
        if len(self.shape) != 2:
            raise FcError("trace/shape", ".T is for 2-d tiles", got=repr(self), loc=here())
        return Handle(current().emit("transpose", self.value), self.labels[::-1])

    def __bool__(self) -> bool:
        raise FcError("trace/python-if", "a value of the program has no truth value while it is traced", got=repr(self), loc=here(),
                      hint="choose with fc.where(cond, a, b), or branch on a scalar with `with fc.when(cond):`; "
                           "`and`, `or`, `not` are &, |, ~")

    def __iter__(self) -> Any:
        raise FcError("trace/usage", "a tile cannot be iterated over", got=repr(self), loc=here(), hint="loop over a range: fc.loop(...)")

    def __index__(self) -> int:
        raise FcError("trace/usage", "a value of the program is not a Python integer", got=repr(self), loc=here(),
                      hint="sizes that Python needs must be bound when the spec is compiled")

    def __float__(self) -> float:
        raise FcError("trace/usage", "a value of the program is not a Python number", got=repr(self), loc=here())

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
        return elementwise("div", self._dividable(), other)

    def __rtruediv__(self, other: Any) -> Handle:
        return elementwise("div", other, self._dividable())

    def _dividable(self) -> Handle:
        if not self.dtype.is_float:
            raise FcError("trace/dtype", "/ is for floats", got=repr(self), loc=here(), hint="use // for integers, or .to(fc.f32)")
        return self

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



class Var(Handle):
    """A variable: reads as its current value; `v <<= x` assigns. What a loop's body assigns is carried from iteration to iteration."""

    def __init__(self, init: Handle | None):
        self._value = None if init is None else init.value
        self.labels = () if init is None else init.labels
        self.scope = current().scope
        self.name = ""
        current().variables.append(self)

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
            x = aligned(x, self.labels)
        self._value = x.value
        return self


class Range:
    """A run of positions along a dimension: what `fc.tile` of a grid or loop axis yields, and an axis label of what it indexes."""

    count = 0

    def __init__(self, block: str, size: int, start: Value, dim: str | int):
        self.block, self.size, self.dim = block, size, dim
        self.scope = current().scope
        self._start = start
        Range.count += 1
        self.number = Range.count

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

    def again(self) -> Range:
        """The same positions as an axis of its own, for products of a chunk with itself."""
        twin = Range(self.block, self.size, self.start.value, self.dim)
        return twin

    def _scoped(self, h: Handle) -> Handle:
        h.scope = self.scope
        h.check_scope()
        return h

    def __iter__(self) -> Any:
        raise FcError(
            "trace/usage", "a range is not a loop", got=repr(self), loc=here(), hint="for cols in fc.loop(fc.tile(K.N, 'BLOCK_N')):"
        )


class TiledSize:
    """`fc.tile(size, "BLOCK")`: a dimension cut into blocks. An axis of the grid, or what a loop runs over."""

    def __init__(self, dim: str | int, block: str):
        self.dim, self.block = dim, block
        t = current()
        if block not in t.tiles:
            raise FcError("trace/static", f"no tile size is given for {block}", loc=here(), got=", ".join(t.tiles) or "no tile sizes",
                          hint=f'Schedule(tiles={{"{block}": 64, ...}})')
        self.size = t.tiles[block]
        t.used_tiles.add(block)


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


# ---- numbers, alignment, elementwise ---------------------------------------------------------------------------------------


def lift(x: Any, dtype: DType | None) -> Handle:
    """A handle for a Python number; its dtype is that of what it meets."""
    if isinstance(x, Handle):
        return x
    if isinstance(x, bool):
        return Handle(current().emit("const", value=x, dtype="i1"))
    if hasattr(x, "item") and not isinstance(x, (int, float)) and getattr(x, "shape", None) == ():
        x = x.item()
    if not isinstance(x, (int, float)):
        hint = "load it first: fc.load(T[...])" if type(x).__name__ in ("View", "TensorParam") else None
        raise FcError("trace/usage", "this is not a value of the program", got=repr(x), loc=here(), hint=hint)
    if dtype is None:
        dtype = i32 if isinstance(x, int) else f32
    if dtype.is_float:
        return Handle(current().emit("const", value=float(x), dtype=dtype.name))
    if isinstance(x, float) and (not x.is_integer() or math.isinf(x)):
        raise FcError(
            "trace/dtype", "a fractional number meets integers", expected=dtype, got=x, loc=here(), hint="convert the tile: .to(fc.f32)"
        )
    if isinstance(x, float):
        raise FcError(
            "trace/dtype", "a float meets integers", expected=dtype, got=x, loc=here(), hint=f"write {int(x)}, or convert: .to(fc.f32)"
        )
    return Handle(current().emit("const", value=int(x), dtype=dtype.name))


def joint_labels(handles: list[Handle]) -> tuple[Label, ...]:
    """The axes of an elementwise result: those of the operand that has them all, else all of them, ranges in the order they were made."""
    every = list(dict.fromkeys(l for h in handles for l in h.labels))
    for h in handles:
        if len(h.labels) == len(every):
            return h.labels
    ranges = sorted((l for l in every if isinstance(l, Range)), key=lambda r: r.number)
    return (*ranges, *(l for l in every if not isinstance(l, Range)))


def aligned(h: Handle, labels: tuple[Label, ...], sizes: dict[Label, int] | None = None) -> Handle:
    """`h` with exactly these axes in this order."""
    if h.labels == labels or not h.labels:
        return h
    t = current()
    if len(h.labels) == len(labels):
        return Handle(t.emit("transpose", h.value), labels)
    if len(h.labels) == 2 and [l for l in labels if l in h.labels] != list(h.labels):
        h = h.T
    assert sizes is not None
    axes = tuple(labels.index(l) for l in h.labels)
    return Handle(t.emit("broadcast", h.value, axes=axes, shape=tuple(sizes[l] for l in labels)), labels)


def spread(handles: list[Handle]) -> tuple[list[Handle], tuple[Label, ...]]:
    """Operands brought to their joint axes; scalars stay scalars."""
    labels = joint_labels(handles)
    sizes: dict[Label, int] = {}
    for h in handles:
        for l, n in zip(h.labels, h.shape):
            if sizes.setdefault(l, n) != n:
                raise FcError("trace/shape", f"two axes called {label_name(l)} differ in size", expected=sizes[l], got=n, loc=here())
    if len(labels) > 2:
        raise FcError("trace/shape", "these operands do not share their axes, and together have more than two",
                      expected="one or two axes in all", got="; ".join(map(repr, handles)), loc=here(),
                      hint="axes are told apart by the range or dimension they run over")
    return [aligned(h, labels, sizes) for h in handles], labels


def elementwise(name: str, *args: Any) -> Handle:
    known = [a for a in args if isinstance(a, Handle)]
    dtype = next((h.dtype for h in known if h.labels), known[0].dtype if known else None)
    if name in ("and", "or", "xor", "not") and dtype is not None and dtype.is_float:
        raise FcError("trace/dtype", "&, |, ^ and ~ are for conditions and integers", got=repr(known[0]), loc=here())
    handles = [lift(a, dtype) for a in args]
    dtypes = list(dict.fromkeys(h.dtype for h in handles))
    if len(dtypes) > 1:
        a, b = (next(h for h in handles if h.dtype == d) for d in dtypes[:2])
        raise FcError("trace/dtype", f"{name} of two dtypes", expected=repr(a), got=repr(b), loc=here(),
                      hint=f"convert one of them: .to(fc.{dtypes[0]})")
    handles, labels = spread(handles)
    return Handle(current().emit(name, *[h.value for h in handles]), labels)
