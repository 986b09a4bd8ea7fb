"""The vocabulary of the DSL on values: what a spec calls as `fc.name(...)`, but for control flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..ir.core import Value
from ..ir.types import DType, f32, i1, i32
from .arith import aligned, common, elementwise, lift, spread
from .handles import Handle, NotATile, label_name
from .mistakes import dtype_of
from .ranges import Range
from .tensors import Dim, RunDim, TensorParam, View, tile_type
from .trace import current, mistake

inf = math.inf


# ---- making tiles ----------------------------------------------------------------------------------------------------------


def _axes(where: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    labels: list[Any] = []
    shape: list[int] = []
    for w in where:
        if isinstance(w, Range):
            labels.append(w)
            shape.append(w.size)
        elif isinstance(w, Dim):
            labels.append(w.name)
            shape.append(int(w))
        elif isinstance(w, RunDim):
            raise mistake("trace/static", f"a tile's axis needs a compile-time size, and {w.name} is known only at run time",
                          hint=f'bind it: compile(..., {w.name}=...), or use a range of fc.tile(..., "BLOCK")')
        else:
            raise mistake("trace/usage", "a tile's axis is a range or a tensor's dimension", got=repr(w),
                          expected="fc.zeros(rows) or fc.zeros(rows, V.E)")
    if not 1 <= len(labels) <= 2:
        raise mistake("trace/shape", "a tile has one or two axes", expected="fc.zeros(rows) or fc.zeros(rows, V.E)", got=repr(where),
                      hint="for one number write the number, or fc.var(0.0)" if not labels else None)
    return tuple(labels), tuple(shape)


def full(axes: Any, value: Any, dtype: DType | str | None = None) -> Handle:
    """A tile with one value everywhere. axes: a range or dimension, or a tuple of two. f32 unless the value or `dtype` says otherwise."""
    labels, shape = _axes(axes if isinstance(axes, tuple) else (axes,))
    want = None if dtype is None else dtype_of(dtype)
    x = lift(value, want or (None if isinstance(value, Handle) else f32))
    if x.labels:
        raise mistake("trace/shape", "fc.full makes a tile of one value", expected="a number or a scalar", got=repr(x),
                      hint="a tile meets others axis by axis as it is")
    x = x if want is None else x.to(want)
    return Handle(current().emit("full", x.value, shape=shape), labels)


def zeros(*axes: Any, dtype: DType | str | None = None) -> Handle:
    """A tile of zeros, f32 unless `dtype` says otherwise."""
    return full(axes, 0.0 if dtype is None or dtype_of(dtype).is_float else 0, dtype)


def positive(x: Any) -> Any:
    """Promises that a scalar parameter is above 0, as its annotation "f32 > 0" would. Calls check it; products with it keep
    their order, so that it can be moved out of maxima."""
    h = lift(x, None)
    if h.value not in (*current().params, *current().captures.params):
        raise mistake("trace/usage", "fc.positive is for a parameter", expected="a scalar parameter, or a captured number", got=repr(x))
    current().positive.add(h.value.name)
    return x


# ---- memory ----------------------------------------------------------------------------------------------------------------


def load(view: Any) -> Handle:
    """The elements of a view; positions past the tensor's end, or past a limit of a range, read as zero."""
    if isinstance(view, Handle):
        return view
    if isinstance(view, TensorParam):
        view = View(view, tuple(slice(None) for _ in view._names))
    if not isinstance(view, View):
        raise mistake("trace/usage", "fc.load takes a view of a tensor", expected="fc.load(Q[b, h, rows])", got=repr(view))
    p = view.tensor._param
    view.tensor.check_readable()
    scalars, attrs = view.access(False)
    v = current().emit("load", p, *scalars, type=tile_type(p.type.dtype, view.shape), **attrs)
    return Handle(v, view.labels)


def store(view: Any, value: Any) -> None:
    """Write a tile; positions past the tensor's end, or past a limit of a range, are left alone."""
    _store(view, value, {})


def atomic_add(view: Any, value: Any, turn: tuple[Any, Any] | None = None) -> None:
    """Add a tile to what is there, atomically: programs may meet. Tensors of f16, bf16, f32, f64, i32, u32. turn: (an element of an
    "inout i32" tensor, n): it waits until n stands there and leaves n + 1 there, so that all adds to one place come in one order, and its
    bits are the same each time. The caller clears that tensor. n grows, or falls, along axes of the grid: programs begin in the
    order of their turns."""
    _store(view, value, {"reduce": "add"}, () if turn is None else _turn(*turn))


def _turn(place: Any, number: Any) -> tuple[Value, ...]:
    if not isinstance(place, View) or place.labels or place.tensor.dtype != i32 or "inout" not in place.tensor._flags:
        raise mistake("trace/usage", "a turn is kept in one element of a tensor", got=repr(place),
                      expected='Turns[b, h, rows.start] of an "inout i32" tensor')
    n = lift(number, i32)
    if n.labels or n.dtype != i32:
        raise mistake("trace/usage", "the number of a turn is a whole number", expected="an i32 scalar", got=repr(number))
    current().stored.add(place.tensor._param.name)
    return (place.tensor._param, *place.access(True)[0], n.value)


def _store(view: Any, value: Any, attrs: dict[str, Any], turn: tuple[Value, ...] = ()) -> None:
    if not isinstance(view, View):
        raise mistake("trace/usage", "a store names a rectangle or one element of an output", expected="fc.store(O[b, h, rows], tile)",
                      got=repr(view), hint='is the tensor annotated as an output: "out f32[...]"?' if isinstance(view, Handle) else None)
    t, p = current(), view.tensor._param
    if not view.tensor.written:
        raise mistake("trace/store", f"{p.name} is not an output", hint=f'annotate it: {p.name}: "out {p.type.dtype}[...]"')
    if attrs:
        view.tensor.check_readable()
        if p.type.dtype.bits <= 8 or p.type.dtype.name == "i64":
            raise mistake("trace/dtype", f"memory has no atomic add of {p.type.dtype}", got=f"fc.atomic_add to {p.name}",
                          expected="f32, i32, u32, f16, bf16, f64", hint="add in a tensor of f32 or i32")
    view.check_covers()
    x = lift(value, p.type.dtype)
    if x.dtype != p.type.dtype:
        raise mistake("trace/dtype", f"{p.name} holds another dtype", expected=p.type.dtype, got=x.dtype,
                      hint=f"convert: .to({p.name}.dtype)")
    if not x.labels and view.labels:
        x = Handle(t.emit("full", x.value, shape=view.shape), view.labels)
    if not set(x.labels) <= set(view.labels):
        raise mistake("trace/shape", f"the tile's axes are not those of the view of {p.name}",
                      expected=", ".join(map(label_name, view.labels)), got=", ".join(map(label_name, x.labels)),
                      hint="axes are told apart by the range they run over; each call of again() makes another one: keep it in a variable")
    x = aligned(x, view.labels, dict(zip(view.labels, view.shape)))
    t.stored.add(p.name)
    scalars, where = view.access(True)
    more = {"turn": len(turn)} if turn else {}
    t.do("store", p, x.value, *scalars, *turn, **where, **attrs, **more)


def gather(tensor: TensorParam, *index: Any) -> Handle:
    """One element per position: `tensor[i, j, ...]` with integer tiles and scalars. Positions outside read as zero."""
    if isinstance(tensor, (Handle, View)):
        raise mistake("trace/usage", "fc.gather takes a tensor and one position for each of its dimensions", got=repr(tensor),
                      expected="fc.gather(Bias, h, at)", hint="Bias[h, at] with a tile of positions reads the elements by itself")
    if not isinstance(tensor, TensorParam):
        raise mistake("trace/usage", "fc.gather takes a tensor", expected="fc.gather(Bias, h, at)", got=repr(tensor)[:80])
    return tensor._gather(index)


# ---- elementwise, reductions, products -------------------------------------------------------------------------------------


def _unary(name: str, doc: str) -> Callable[[Any], Handle]:
    def fn(x: Any) -> Handle:
        return elementwise(name, x)

    fn.__name__, fn.__doc__ = name, doc
    return fn


exp = _unary("exp", "e ** x")
exp2 = _unary("exp2", "2 ** x")
log = _unary("log", "Natural logarithm.")
log2 = _unary("log2", "Logarithm to base 2.")
sqrt = _unary("sqrt", "Square root.")
rsqrt = _unary("rsqrt", "1 / sqrt(x)")
tanh = _unary("tanh", "Hyperbolic tangent.")
tanh_approx = _unary("tanh_approx", "Hyperbolic tangent by one instruction of the GPU, with a relative error up to 2**-11.")
sigmoid = _unary("sigmoid", "1 / (1 + exp(-x))")
erf = _unary("erf", "Error function.")
sin = _unary("sin", "Sine of radians.")
cos = _unary("cos", "Cosine of radians.")
floor = _unary("floor", "Largest whole number not above x.")
ceil = _unary("ceil", "Smallest whole number not below x.")
abs = _unary("abs", "Absolute value.")


def maximum(a: Any, b: Any) -> Handle:
    """The larger of two, elementwise."""
    return elementwise("max", a, b)


def mulhi(a: Any, b: Any) -> Handle:
    """The upper 32 bits of the 64-bit product of two i32 or u32."""
    return elementwise("mulhi", a, b)


def minimum(a: Any, b: Any) -> Handle:
    """The smaller of two, elementwise."""
    return elementwise("min", a, b)


def where(condition: Any, a: Any, b: Any) -> Handle:
    """a where the condition holds, b elsewhere. (What is chosen says in which order the axes of the result are, before the condition.)"""
    c = lift(condition, None)
    if c.dtype != i1:
        raise mistake("trace/dtype", "the condition of fc.where is not a truth value", expected="i1", got=repr(c), hint="compare: x > 0")
    whole = all(isinstance(x, int) for x in (a, b))
    known = next((x.dtype for x in (a, b) if isinstance(x, Handle)), i32 if whole else f32)
    x, y = common("fc.where", (a, b), known)
    (x, y, c), labels = spread([x, y, c])
    return Handle(current().emit("select", c.value, x.value, y.value), labels)


def cast(x: Any, dtype: DType | str) -> Handle:
    """x.to(dtype)"""
    return lift(x, None).to(dtype)


def _check_folded(name: str, x: Any, axis: Any, hint: str | None = None) -> None:
    if isinstance(x, NotATile):
        raise x.mistaken()
    if not isinstance(x, Handle) or not x.labels or isinstance(axis, Handle):
        raise mistake("trace/shape", f"fc.{name} {'adds along an axis of' if hint is None else 'reduces'} a tile", got=repr(x), hint=hint)
    if x.dtype == i1:
        raise mistake("trace/dtype", f"fc.{name} folds numbers, not conditions", got=repr(x), hint="convert: c.to(fc.i32)")


def _reduction(name: str) -> Callable[..., Handle]:
    def fn(x: Handle, axis: Any = -1) -> Handle:
        _check_folded(name, x, axis, "for two values: " + ("a + b" if name == "sum" else f"fc.{name}imum(a, b)"))
        if axis is None:
            for _ in x.labels:
                x = fn(x, -1)
            return x
        axis = _axis_of(x, axis)
        labels = tuple(l for i, l in enumerate(x.labels) if i != axis)
        out = Handle(current().emit("reduce", x.value, fn=name, axis=axis), labels)
        if isinstance(along := x.labels[axis], Range):
            current().folded[out.value] = along
        return out

    fn.__name__ = name
    fn.__doc__ = f"The {name} along one axis (a number, or the range that the axis runs over); of axis=None, of all elements: a number."
    return fn


def _axis_of(x: Handle, axis: Any) -> int:
    if isinstance(axis, (Range, str, Dim)):
        label = axis.name if isinstance(axis, Dim) else axis
        if x.labels.count(label) != 1:
            raise mistake("trace/shape", f"the tile has {'two axes' if label in x.labels else 'no axis'} {label_name(label)}", got=repr(x),
                          hint="name the axis by its number: 0 or 1")
        axis = x.labels.index(label)
    if not isinstance(axis, int) or isinstance(axis, bool) or not -len(x.labels) <= axis < len(x.labels):
        raise mistake("trace/shape", "no such axis", expected=f"0 to {len(x.labels) - 1}, or a range", got=repr(axis),
                      hint="one axis, or all of them: axis=None" if isinstance(axis, (tuple, list)) else None)
    return axis % len(x.labels)


max = _reduction("max")
min = _reduction("min")
sum = _reduction("sum")


def cumsum(x: Handle, axis: Any = -1) -> Handle:
    """The sum of each element of an axis (a number, or the range that it runs over) and those before it. Of what lies past the end of a
    tensor, zeros are added."""
    _check_folded("cumsum", x, axis)
    return Handle(current().emit("cumsum", x.value, axis=_axis_of(x, axis)), x.labels)


def dot(a: Any, b: Any, acc: Any = None) -> Handle:
    """Matrix product a [M, K] b [K, N] (+ acc) in f32, of integers of 8 bits in i32; a and b of one dtype."""
    for x, what in ((a, "left"), (b, "right")):
        if not isinstance(x, Handle) or len(x.labels) != 2:
            raise mistake("trace/shape", f"the {what} operand of fc.dot is a 2-d tile", got=repr(x),
                          hint="load views first: fc.load(K[b, h, cols])" if isinstance(x, View) else None)
    if a.dtype != b.dtype:
        raise mistake("trace/dtype", "fc.dot of two dtypes", expected=a.dtype, got=b.dtype, hint=f"convert one: .to(fc.{b.dtype})")
    inner_a, inner_b = a.labels[1], b.labels[0]
    names = not isinstance(inner_a, Range) and not isinstance(inner_b, Range)
    if (inner_a != inner_b and not names) or a.shape[1] != b.shape[0]:
        flip = " (did you mean .T?)" if b.labels[1] == inner_a else ""
        raise mistake("trace/shape", f"fc.dot contracts the last axis of a with the first of b{flip}",
                      expected=f"b [{label_name(inner_a)}: {a.shape[1]}, ...]", got=repr(b))
    if a.labels[0] == b.labels[1] and isinstance(a.labels[0], Range):
        raise mistake("trace/shape", "both axes of the product would be the same range", got=repr(a),
                      hint="give one side an axis of its own: cols = rows.again()")
    labels = (a.labels[0], b.labels[1])
    more = () if acc is None else (_accumulator(acc, labels, a.dtype.computed).value,)
    out = Handle(current().emit("dot", a.value, b.value, *more), labels)
    if isinstance(inner_a, Range):
        current().folded[out.value] = inner_a
    return out


def _accumulator(acc: Any, labels: tuple[Any, ...], dtype: DType) -> Handle:
    x = lift(acc, dtype)
    if x.dtype != dtype or set(x.labels) != set(labels):
        raise mistake("trace/shape" if x.dtype == dtype else "trace/dtype", f"fc.dot adds to a tile with the product's axes, in {dtype}",
                      expected=f"{dtype} [{', '.join(map(label_name, labels))}]", got=repr(x))
    return aligned(x, labels)
