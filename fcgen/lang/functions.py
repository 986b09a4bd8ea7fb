"""Functions of the DSL on values: math, reductions, matrix product, tiles from nothing."""

from __future__ import annotations

from typing import Any

from ..ir.types import DType, f32, i1
from .arith import as_operand, cast, elementwise, emit, where
from .axes import Axis, DimAxis, Label, Range, Size, record, shape_of, show
from .handles import Expr, RunSize, as_expr
from .trace import Tracer, current

__all__ = ["abs", "arange", "cast", "ceil", "cos", "dot", "erf", "exp", "exp2", "floor", "full", "inf", "log", "log2", "max", "maximum",
           "min", "minimum", "rsqrt", "sigmoid", "sin", "sqrt", "sum", "tanh", "transpose", "where", "zeros"]

inf = float("inf")


def exp(x: Any) -> Expr:
    return elementwise("exp", (x,))


def exp2(x: Any) -> Expr:
    return elementwise("exp2", (x,))


def log(x: Any) -> Expr:
    return elementwise("log", (x,))


def log2(x: Any) -> Expr:
    return elementwise("log2", (x,))


def sqrt(x: Any) -> Expr:
    return elementwise("sqrt", (x,))


def rsqrt(x: Any) -> Expr:
    return elementwise("rsqrt", (x,))


def tanh(x: Any) -> Expr:
    return elementwise("tanh", (x,))


def sigmoid(x: Any) -> Expr:
    return elementwise("sigmoid", (x,))


def erf(x: Any) -> Expr:
    return elementwise("erf", (x,))


def sin(x: Any) -> Expr:
    return elementwise("sin", (x,))


def cos(x: Any) -> Expr:
    return elementwise("cos", (x,))


def floor(x: Any) -> Expr:
    return elementwise("floor", (x,))


def ceil(x: Any) -> Expr:
    return elementwise("ceil", (x,))


def abs(x: Any) -> Expr:
    return elementwise("abs", (x,))


def maximum(a: Any, b: Any) -> Expr:
    """The larger of two values, element by element."""
    return elementwise("max", (a, b))


def minimum(a: Any, b: Any) -> Expr:
    return elementwise("min", (a, b))


def max(x: Any, axis: Any = None) -> Expr:
    """The largest element along an axis (a number, a range or a dimension)."""
    return _reduce("max", x, axis)


def min(x: Any, axis: Any = None) -> Expr:
    return _reduce("min", x, axis)


def sum(x: Any, axis: Any = None) -> Expr:
    return _reduce("sum", x, axis)


def _reduce(fn: str, x: Any, axis: Any) -> Expr:
    t = current(f"fc.{fn}")
    e = as_expr(x)
    n = _axis_number(t, fn, e, axis)
    if e.dtype == i1:
        raise t.error("trace/dtype", f"fc.{fn} folds numbers, not conditions", got=e, hint="convert: c.to(fc.i32)")
    return t.wrap(t.emit("reduce", e.value, fn=fn, axis=n), e.axes[:n] + e.axes[n + 1:])


def _axis_number(t: Tracer, fn: str, e: Expr, axis: Any) -> int:
    if isinstance(axis, Expr):
        raise t.error("trace/usage", f"fc.{fn} folds one tile along an axis", got="two values",
                      hint=f"element by element it is fc.{fn}imum(a, b)" if fn != "sum" else "element by element it is a + b")
    label: Any = axis.axis if isinstance(axis, (Range, Size)) else None
    if label is not None:
        if e.axes.count(label) == 1:
            return e.axes.index(label)
    elif axis is None and len(e.axes) == 1:
        return 0
    elif isinstance(axis, int) and -len(e.axes) <= axis < len(e.axes):
        return axis % len(e.axes)
    raise t.error("trace/shape", f"fc.{fn}: {'the tile has no such axis' if axis is not None else 'which axis is folded?'}",
                  expected=f"one of {show(e.axes)}, by number or name" if e.axes else "a tile",
                  got=e if axis is None else label if label is not None else axis, hint=f"for example fc.{fn}(x, axis=1)" if axis is None else None)


def transpose(x: Any) -> Expr:
    """The two axes swapped: `x.T`."""
    t = current(".T")
    e = as_expr(x)
    if len(e.axes) != 2:
        raise t.error("trace/shape", ".T swaps the axes of a two-dimensional tile", expected="2 axes", got=e,
                      hint="a one-dimensional tile needs none: it meets others by its axis, as a row or a column")
    return t.wrap(t.emit("transpose", e.value), e.axes[::-1])


def dot(a: Any, b: Any, acc: Any = None) -> Expr:
    """Matrix product a[M, K] b[K, N] in float32, added to `acc` if given."""
    t = current("fc.dot")
    x, y = as_expr(a), as_expr(b)
    for e in (x, y):
        if len(e.axes) != 2:
            raise t.error("trace/shape", "fc.dot takes two-dimensional tiles", expected="2 axes", got=e,
                          hint="a product with a vector is fc.sum(x * v, axis=1)")
    if x.dtype != y.dtype or x.dtype not in _dot_dtypes():
        raise t.error("trace/dtype", "fc.dot: both operands have one of the dtypes f16, bf16, f32",
                      expected=x.dtype if x.dtype in _dot_dtypes() else "f16, bf16 or f32", got=y.dtype if x.dtype in _dot_dtypes() else x.dtype,
                      hint="convert one of them: x.to(V.dtype)")
    inner, other = x.axes[1], y.axes[0]
    if inner != other and not (isinstance(inner, DimAxis) and isinstance(other, DimAxis) and inner.size == other.size):
        turned = [n for n, (p, q) in {"b": (inner, y.axes[1]), "a": (x.axes[0], other)}.items() if p == q]
        raise t.error("trace/shape", "fc.dot: the inner axes differ", expected=f"b[{inner!r}, ...] for a{show(x.axes)}", got=f"b{show(y.axes)}",
                      hint=f"transpose {turned[0]}: .T" if turned else "both must run over the same range or dimension")
    axes = (x.axes[0], y.axes[1])
    values = [x.value, y.value]
    if acc is not None:
        c = as_expr(acc)
        if c.axes != axes or c.dtype != f32:
            raise t.error("trace/shape", "fc.dot: the accumulator has the type of the result", expected=f"f32{show(axes)}", got=c)
        values.append(c.value)
    record(t, axes)
    return t.wrap(emit(t, "dot", *values), axes)


def _dot_dtypes() -> tuple[DType, ...]:
    from ..ir.types import bf16, f16

    return (f16, bf16, f32)


def axis_label(t: Tracer, a: Any, what: str) -> Label:
    """The label behind what a spec writes for an axis: a range, a bound dimension or a number."""
    if isinstance(a, Range):
        return a.axis
    if isinstance(a, Size):
        return a.axis
    if isinstance(a, (Axis, DimAxis)):
        return a
    if isinstance(a, int) and not isinstance(a, bool) and a > 0:
        return DimAxis(str(a), a)
    if isinstance(a, RunSize):
        raise t.error("trace/static", f"{what}: dimension {a.name} is an axis of a tile, so its size must be known at compile time",
                      hint=f"bind it when compiling: {a.name}=64; or walk over it in tiles with fc.tile")
    raise t.error("trace/usage", f"{what}: an axis is a range, a dimension such as V.E, or a number",
                  got=a.describe() if hasattr(a, "describe") else repr(a)[:60])


def full(axes: Any, value: Any, dtype: DType | None = None) -> Expr:
    """A tile with `value` everywhere. axes: a range or dimension, or a tuple of them. dtype: f32 for Python numbers."""
    t = current("fc.full")
    labels = tuple(axis_label(t, a, "fc.full") for a in (axes if isinstance(axes, (tuple, list)) else (axes,)))
    e = as_operand(t, value, dtype or (i1 if isinstance(value, bool) else f32))
    if e.axes:
        raise t.error("trace/shape", "fc.full fills a tile with one scalar", expected="a scalar", got=e)
    e = e if dtype is None else cast(e, dtype)
    record(t, labels)
    return t.wrap(t.emit("full", e.value, shape=shape_of(labels)), labels) if labels else e


def zeros(*axes: Any, dtype: DType = f32) -> Expr:
    return full(axes[0] if len(axes) == 1 and isinstance(axes[0], tuple) else axes, 0, dtype)


def arange(axis: Any) -> Expr:
    """0, 1, ... along an axis, as i32 (a range's positions in the tensor are its `.index`)."""
    t = current("fc.arange")
    label = axis_label(t, axis, "fc.arange")
    return t.wrap(t.emit("iota", shape=(label.size,)), (label,))
