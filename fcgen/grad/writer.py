"""What derivative rules build programs with: arithmetic on values of the tile IR.

A *derivative* (a tangent or a cotangent) of a value has the value's shape, and the dtype that its functions are computed in: gradients of
16-bit floats are f32, and are rounded nowhere on their way but where a matrix product takes them.
"""

from __future__ import annotations

from typing import Any

from ..ir.core import Op, Value
from ..ir.rewrite import Builder
from ..ir.types import DType, i1


class Writer:
    """Appends ops to a builder; numbers take the dtype of what they meet."""

    def __init__(self, builder: Builder):
        self.builder = builder

    def emit(self, kind: str, *operands: Value, type: Any = None, **attrs: Any) -> Value:
        return self.builder.emit(kind, *operands, type=type, **attrs)

    def number(self, x: float, dtype: DType) -> Value:
        return self.emit("const", value=x if dtype.is_float else int(x), dtype=dtype.name)

    def call(self, kind: str, *args: Value | float) -> Value:
        """An elementwise op."""
        dtypes = [a.type.dtype for a in args if isinstance(a, Value)]
        dtype = next((d for d in dtypes if d != i1), i1)
        return self.emit(kind, *[a if isinstance(a, Value) else self.number(a, dtype) for a in args])

    def add(self, a: Value | float, b: Value | float) -> Value:
        return self.call("add", a, b)

    def sub(self, a: Value | float, b: Value | float) -> Value:
        return self.call("sub", a, b)

    def mul(self, a: Value | float, b: Value | float) -> Value:
        return self.call("mul", a, b)

    def div(self, a: Value | float, b: Value | float) -> Value:
        return self.call("div", a, b)

    def select(self, c: Value, a: Value | float, b: Value | float) -> Value:
        return self.call("select", c, a, b)

    def cast(self, v: Value, dtype: DType) -> Value:
        return v if v.type.dtype == dtype else self.emit("cast", v, to=dtype.name)

    def wide(self, v: Value) -> Value:
        """The value in the dtype that it is computed in."""
        return self.cast(v, v.type.dtype.computed)

    def sum(self, v: Value, axis: int) -> Value:
        return self.emit("reduce", v, fn="sum", axis=axis)

    def along(self, v: Value, axis: int, like: Value) -> Value:
        """What a reduction of `like` along an axis gives, everywhere along that axis again."""
        return self.spread(v, tuple(a for a in range(len(like.type.shape)) if a != axis), like)

    def spread(self, v: Value, axes: tuple[int, ...], like: Value) -> Value:
        shape = like.type.shape
        if not v.type.shape:
            return self.emit("full", v, shape=shape) if shape else v
        return self.emit("broadcast", v, axes=axes, shape=shape)

    def along_axes(self, v: Value, axes: tuple[int, ...] | None, like: Value) -> Value:
        """A value along these axes of a tile, None for all of them, everywhere along the others."""
        return v if axes is None else self.spread(v, axes, like)

    def sum_to(self, v: Value, axes: tuple[int, ...] | None) -> Value:
        """The sums over all other axes."""
        for axis in reversed([a for a in range(len(v.type.shape)) if axes is not None and a not in axes]):
            v = self.sum(v, axis)
        return v

    def fit(self, v: Value, like: Value) -> Value:
        """A derivative in the shape of its value: what a scalar gets of a tile is summed up, what a tile has of a scalar is everywhere."""
        if v.type.shape and not like.type.shape:
            for axis in reversed(range(len(v.type.shape))):
                v = self.sum(v, axis)
            return v
        return self.spread(v, (), like) if not v.type.shape else v

    def zero(self, like: Value) -> Value:
        return self.fit(self.number(0.0, like.type.dtype.computed), like)

    def at(self, op: Op) -> Writer:
        """What is written from here on comes from the line of `op`."""
        self.builder.loc = op.loc
        return self
