"""Tensors: indexing, load, store, gather."""

from __future__ import annotations

import numbers
from typing import Any

from ..ir.types import Scalar, Tile, i32, i64
from .arith import as_operand, constant, fill, is_number, spread
from .axes import DimAxis, Label, Range, Tiling, meet, record, shape_of, show
from .handles import Expr, Operators, RunSize, TensorHandle, View, as_expr
from .trace import Tracer, current


def index_tensor(tensor: TensorHandle, index: tuple[Any, ...]) -> View | Expr:
    """`Q[b, h, rows]`: a number or scalar picks one position, a range a run of them, `:` or nothing the whole dimension. An integer tile
    makes it a gather of single elements."""
    t = current(f"indexing {tensor.name}")
    names = tensor._names
    if len(index) > len(names):
        raise t.error("trace/shape", f"{tensor.name} is indexed with more positions than it has dimensions", expected=len(names), got=len(index))
    items = [_item(t, tensor, i, x) for i, x in enumerate(index)]
    if any(isinstance(x, Expr) and x.axes for x in items):
        if len(items) < len(names) or any(x is None for x in items):
            raise t.error("trace/shape", f"{tensor.name} is indexed with an integer tile, so every dimension needs a position",
                          expected=", ".join(map(str, names)), got=f"{sum(x is not None for x in items)} positions",
                          hint="fc.arange(V.E) makes the positions of a whole dimension")
        return gather(tensor, *(x.index if isinstance(x, Range) else x for x in items))
    words: list[str] = []
    scalars: list[Expr] = []
    axes: list[Label] = []
    guard: list[bool] = []
    for i, name in enumerate(names):
        x = items[i] if i < len(items) else None
        if isinstance(x, Range):
            words.append("tile")
            scalars.append(as_expr(x.start))
            axes.append(x.axis)
            guard.append(True)
        elif isinstance(x, Expr):
            words.append("at")
            scalars.append(x)
        else:
            size = tensor._size(name)
            if isinstance(size, RunSize):
                raise t.error("trace/static", f"dimension {name} of {tensor.name} is used whole, so its size must be known at compile time",
                              hint=f"bind it when compiling: {name}=64; or index it with a range of fc.tile({tensor.name}.{name}, \"BLOCK\")")
            words.append("all")
            axes.append(DimAxis(str(name), int(size)))
            guard.append(False)
    view = View(tensor, tuple(words), tuple(scalars), tuple(axes), tuple(guard))
    if not axes and tensor._role == "in":
        view.element.value  # noqa: B018  read where it is written, once; dropped if only fc.load uses the view
    return view


def _item(t: Tracer, tensor: TensorHandle, i: int, x: Any) -> Range | Expr | None:
    """An index as a range, an integer value, or None for all of a dimension."""
    if isinstance(x, Range):
        as_expr(x.start)
        return x
    if isinstance(x, slice):
        if x != slice(None):
            raise t.error("trace/usage", "a part of a dimension is a range, not a slice", got=f"{x.start}:{x.stop}",
                          hint=f"fc.span(start, size, {tensor.name}.{tensor._names[i]}), or a range of fc.grid or fc.loop")
        return None
    if isinstance(x, Tiling):
        raise t.error("trace/usage", "fc.tile describes a cut; its ranges come from fc.grid and fc.loop", hint="for x in fc.loop(fc.tile(...))")
    if isinstance(x, numbers.Integral) and not isinstance(x, bool):
        if int(x) < 0:
            raise t.error("trace/usage", "positions count from the start of a dimension", expected="0 or more", got=int(x))
        return constant(t, int(x), i32)
    e = as_expr(x)
    if e.dtype not in (i32, i64):
        raise t.error("trace/dtype", f"a position in {tensor.name} is a whole number", expected="i32 or i64", got=e)
    return e


def gather(tensor: TensorHandle, *index: Any) -> Expr:
    """One element per position. Integer tiles and scalars, one per dimension; positions outside the tensor read as zero."""
    t = current("fc.gather")
    if not isinstance(tensor, TensorHandle):
        raise t.error("trace/usage", "fc.gather reads a tensor parameter", got=repr(tensor)[:60])
    check_readable(t, tensor)
    if len(index) != len(tensor._names):
        raise t.error("trace/shape", f"{tensor.name} needs one position per dimension", expected=", ".join(map(str, tensor._names)), got=len(index))
    xs = [constant(t, x, i32) if is_number(x) else as_expr(x.index if isinstance(x, Range) else x) for x in index]
    for x in xs:
        if x.dtype not in (i32, i64):
            raise t.error("trace/dtype", f"a position in {tensor.name} is a whole number", expected="i32 or i64", got=x)
    axes = meet(t, f"indices of {tensor.name}", [x.axes for x in xs])
    out = t.emit("gather", tensor._value, *(spread(t, x, axes) for x in xs), name=tensor.name.lower())
    t.spare.add(out)
    return t.wrap(out, axes)


def check_readable(t: Tracer, tensor: TensorHandle) -> None:
    if tensor._role == "out":
        raise t.error("trace/usage", f"{tensor.name} is marked `out`: what it holds before the kernel is not read",
                      hint="mark it `inout` if the kernel reads it too")


def load(view: Any) -> Expr:
    """The tile at `view`. Positions past the end of the tensor read as zero."""
    t = current("fc.load")
    v = _view(t, view, "fc.load")
    tensor = v.tensor
    check_readable(t, tensor)
    shape = shape_of(v.axes)
    typ = Tile(tensor.dtype, shape) if shape else Scalar(tensor.dtype)
    record(t, v.axes)
    out = t.emit("load", tensor._value, *(as_expr(s).value for s in v.scalars), type=typ, name=tensor.name.lower(), index=v.words, guard=v.guard)
    return t.wrap(out, v.axes)


def store(view: Any, value: Any) -> None:
    """Write a tile (or one number everywhere) to `view`; positions past the end of the tensor are left alone."""
    _store(current("fc.store"), "fc.store", view, value)


def atomic_add(view: Any, value: Any) -> None:
    """Add a tile to `view`, element by element, in no particular order among programs."""
    _store(current("fc.atomic_add"), "fc.atomic_add", view, value, reduce="add")


def _store(t: Tracer, what: str, view: Any, value: Any, **attrs: Any) -> None:
    v = _view(t, view, what)
    tensor = v.tensor
    if tensor._role == "in":
        raise t.error("trace/store", f"{tensor.name} is an input", expected=f'`{tensor.name}: "out ..."`', got="a store to it",
                      hint="mark it in the signature: out (written only) or inout (read and written)")
    x = as_operand(t, value, tensor.dtype)
    if x.dtype != tensor.dtype:
        raise t.error("trace/dtype", f"{what}: the tile has not the tensor's dtype", expected=tensor.dtype, got=x,
                      hint=f"convert it: x.to({tensor.name}.dtype)")
    x = fill(t, x, v.axes, what) if v.axes or x.axes else x
    if "reduce" in attrs:
        check_readable(t, tensor)
    else:
        _check_owned(t, v)
    t.written.add(tensor.name)
    t.do("store", tensor._value, x.value, *(as_expr(s).value for s in v.scalars), index=v.words, guard=v.guard, **attrs)


def _check_owned(t: Tracer, v: View) -> None:
    """Two programs must not write one place: every grid axis shows in the position, or in a condition around the store."""
    used = t.union(s.value for s in v.scalars).union(*(s.depends for s in t.scopes))
    for i, axis in enumerate(t.grid or ()):
        if i not in used and not (isinstance(axis.dim, int) and axis.count({}) <= 1):
            name = t.grid_name(i)
            raise t.error("trace/store", f"the position in {v.tensor.name} does not depend on `{name}` of fc.grid: several programs write it",
                          expected=f"an index made from `{name}`", got=f"{v.tensor.name}{show(v.axes)}",
                          hint="index with every axis of fc.grid, or add up with fc.atomic_add")


def _view(t: Tracer, view: Any, what: str) -> View:
    if isinstance(view, TensorHandle):
        view = index_tensor(view, ())
    if isinstance(view, Expr) or not isinstance(view, View):
        raise t.error("trace/usage", f"{what} takes a rectangle of a tensor, such as Q[b, h, rows]",
                      got=view.describe() if isinstance(view, Operators) else repr(view)[:60],
                      hint="indexing with integer tiles has loaded already" if isinstance(view, Expr) else None)
    return view
