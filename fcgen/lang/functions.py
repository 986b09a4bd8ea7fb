"""The vocabulary of the DSL: everything a spec calls as `fc.name(...)`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..errors import FcError
from ..ir.core import Block, GridAxis, Op, Value
from ..ir.types import DType, Scalar, f32, i1, i32
from .handles import Handle, Range, TiledSize, Var, aligned, elementwise, label_name, lift, spread
from .tensors import Dim, RunDim, TensorParam, View, tile_type
from .trace import current, here

inf = math.inf


def tile(size: Any, block: str) -> TiledSize:
    """A dimension (`Q.M`) cut into blocks whose size the schedule gives under the name `block`."""
    if isinstance(size, (Dim, RunDim)):
        return TiledSize(int(size) if isinstance(size, Dim) else size.name, block)
    if isinstance(size, int):
        return TiledSize(size, block)
    raise FcError("trace/usage", "fc.tile takes a tensor's dimension", expected='fc.tile(Q.M, "BLOCK_M")', got=repr(size), loc=here())


def grid(*axes: Any) -> tuple[Any, ...]:
    """The program's place in the launch: a scalar per dimension, a `Range` per tiled one. Called once, before anything else."""
    t = current()
    if t.grid:
        raise FcError("trace/usage", "fc.grid is called twice", loc=here())
    if not axes:
        raise FcError("trace/usage", "fc.grid needs at least one axis", loc=here())
    out: list[Any] = []
    for n, axis in enumerate(axes):
        i = Value(Scalar(i32), "")
        t.ids.append(i)
        if isinstance(axis, TiledSize):
            t.grid.append(GridAxis(f"i{n}", axis.dim, axis.size))
            start = t.emit("mul", i, t.emit("const", value=axis.size, dtype="i32"))
            out.append(Range(axis.block, axis.size, start, axis.dim))
        elif isinstance(axis, (RunDim, int)):
            t.grid.append(GridAxis(f"i{n}", axis.name if isinstance(axis, RunDim) else int(axis)))
            out.append(Handle(i))
        else:
            raise FcError(
                "trace/usage", "a grid axis is a tensor's dimension, a number, or fc.tile(...) of one", got=repr(axis), loc=here()
            )
    return tuple(out)


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
            raise FcError("trace/static", f"a tile's axis needs a compile-time size, and {w.name} is known only at run time", loc=here(),
                          hint=f"bind it: compile(..., {w.name}=64)")
        else:
            raise FcError("trace/usage", "a tile's axis is a range or a tensor's dimension", got=repr(w), loc=here())
    return tuple(labels), tuple(shape)


def full(axes: Any, value: Any, dtype: DType | None = None) -> Handle:
    """A tile with one value everywhere. axes: a range or dimension, or a tuple of two. f32 unless the value or `dtype` says otherwise."""
    labels, shape = _axes(axes if isinstance(axes, tuple) else (axes,))
    x = lift(value, dtype or (None if isinstance(value, Handle) else f32))
    return Handle(current().emit("full", x.value, shape=shape), labels)


def zeros(*axes: Any, dtype: DType | None = None) -> Handle:
    """A tile of zeros, f32 unless `dtype` says otherwise."""
    return full(axes, 0.0 if dtype is None or dtype.is_float else 0, dtype)


def var(init: Any = None) -> Var:
    """A variable. `v <<= x` assigns it; without `init` it must be assigned before it is read."""
    return Var(None if init is None else lift(init, None))


# ---- memory ----------------------------------------------------------------------------------------------------------------


def load(view: Any) -> Handle:
    """The elements of a view; positions past the tensor's end read as zero."""
    if isinstance(view, Handle):
        return view
    if isinstance(view, TensorParam):
        view = View(view, tuple(slice(None) for _ in view._names))
    if not isinstance(view, View):
        raise FcError("trace/usage", "fc.load takes a view of a tensor", expected="fc.load(Q[b, h, rows])", got=repr(view), loc=here())
    p = view.tensor._param
    v = current().emit("load", p, *view.scalars, type=tile_type(p.type.dtype, view.shape), index=view.index, guard=view.guard)
    return Handle(v, view.labels)


def store(view: Any, value: Any) -> None:
    """Write a tile; positions past the tensor's end are left alone."""
    _store(view, value, {})


def atomic_add(view: Any, value: Any) -> None:
    """Add a tile to what is there, atomically: programs may meet. f32 tensors."""
    _store(view, value, {"reduce": "add"})


def _store(view: Any, value: Any, attrs: dict[str, Any]) -> None:
    if not isinstance(view, View):
        raise FcError(
            "trace/usage",
            "a store names a rectangle of a tensor by at least one range",
            expected="fc.store(O[b, h, rows], tile)",
            got=repr(view),
            loc=here(),
        )
    t, p = current(), view.tensor._param
    if not any(f in ("out", "inout") for f in view.tensor._flags):
        raise FcError("trace/store", f"{p.name} is not an output", loc=here(), hint=f'annotate it: {p.name}: "out {p.type.dtype}[...]"')
    x = lift(value, p.type.dtype)
    if x.dtype != p.type.dtype:
        raise FcError("trace/dtype", f"{p.name} holds another dtype", expected=p.type.dtype, got=x.dtype, loc=here(),
                      hint=f"convert: .to({p.name}.dtype)")
    if not x.labels:
        x = Handle(t.emit("full", x.value, shape=view.shape), view.labels)
    if set(x.labels) - set(view.labels) or (len(x.labels) < len(view.labels) and not set(x.labels) <= set(view.labels)):
        raise FcError("trace/shape", f"the tile's axes are not those of the view of {p.name}",
                      expected=", ".join(map(label_name, view.labels)), got=", ".join(map(label_name, x.labels)), loc=here())
    x = aligned(x, view.labels, dict(zip(view.labels, view.shape)))
    t.stored.add(p.name)
    t.do("store", p, x.value, *view.scalars, index=view.index, guard=view.guard, **attrs)


def gather(tensor: TensorParam, *index: Any) -> Handle:
    """One element per position: `tensor[i, j, ...]` with integer tiles and scalars. Positions outside read as zero."""
    return tensor._gather(index)


# ---- elementwise, reductions, products -------------------------------------------------------------------------------------


def _unary(name: str, doc: str) -> Callable[[Any], Handle]:
    def fn(x: Any) -> Handle:
        return elementwise(name, lift(x, None))

    fn.__name__, fn.__doc__ = name, doc
    return fn


exp = _unary("exp", "e ** x")
exp2 = _unary("exp2", "2 ** x")
log = _unary("log", "Natural logarithm.")
log2 = _unary("log2", "Logarithm to base 2.")
sqrt = _unary("sqrt", "Square root.")
rsqrt = _unary("rsqrt", "1 / sqrt(x)")
tanh = _unary("tanh", "Hyperbolic tangent.")
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


def minimum(a: Any, b: Any) -> Handle:
    """The smaller of two, elementwise."""
    return elementwise("min", a, b)


def where(condition: Any, a: Any, b: Any) -> Handle:
    """a where the condition holds, b elsewhere."""
    c = lift(condition, None)
    if c.dtype != i1:
        raise FcError("trace/dtype", "the condition of fc.where is not a truth value", expected="i1", got=repr(c), loc=here(),
                      hint="compare: x > 0")
    whole = all(isinstance(x, int) for x in (a, b))
    known = next((x.dtype for x in (a, b) if isinstance(x, Handle)), i32 if whole else f32)
    x, y = lift(a, known), lift(b, known)
    if x.dtype != y.dtype:
        raise FcError("trace/dtype", "the two values of fc.where have different dtypes", expected=x.dtype, got=y.dtype, loc=here(),
                      hint=f"convert one: .to(fc.{x.dtype})")
    (c, x, y), labels = spread([c, x, y])
    return Handle(current().emit("select", c.value, x.value, y.value), labels)


def cast(x: Handle, dtype: DType) -> Handle:
    """x.to(dtype)"""
    return x.to(dtype)


def _reduction(name: str) -> Callable[..., Handle]:
    def fn(x: Handle, axis: Any = -1) -> Handle:
        if not isinstance(x, Handle) or not x.labels:
            raise FcError("trace/shape", f"fc.{name} reduces a tile", got=repr(x), loc=here(), hint=f"for two values: fc.{name}imum(a, b)")
        if isinstance(axis, (Range, str)):
            if axis not in x.labels:
                raise FcError("trace/shape", f"the tile has no axis {label_name(axis)}", got=repr(x), loc=here())
            axis = x.labels.index(axis)
        if not isinstance(axis, int) or not -len(x.labels) <= axis < len(x.labels):
            raise FcError("trace/shape", "no such axis", expected=f"0 to {len(x.labels) - 1}, or a range", got=axis, loc=here())
        axis %= len(x.labels)
        labels = tuple(l for i, l in enumerate(x.labels) if i != axis)
        return Handle(current().emit("reduce", x.value, fn=name, axis=axis), labels)

    fn.__name__, fn.__doc__ = name, f"The {name} along one axis (a number, or the range that the axis runs over)."
    return fn


max = _reduction("max")
min = _reduction("min")
sum = _reduction("sum")


def dot(a: Any, b: Any, acc: Any = None) -> Handle:
    """Matrix product a [M, K] b [K, N] (+ acc) in float32; a and b of one dtype."""
    for x, what in ((a, "left"), (b, "right")):
        if not isinstance(x, Handle) or len(x.labels) != 2:
            raise FcError("trace/shape", f"the {what} operand of fc.dot is a 2-d tile", got=repr(x), loc=here(),
                          hint="load views first: fc.load(K[b, h, cols])" if isinstance(x, View) else None)
    if a.dtype != b.dtype:
        raise FcError(
            "trace/dtype", "fc.dot of two dtypes", expected=a.dtype, got=b.dtype, loc=here(), hint=f"convert one: .to(fc.{b.dtype})"
        )
    inner_a, inner_b = a.labels[1], b.labels[0]
    names = isinstance(inner_a, str) and isinstance(inner_b, str)
    if (inner_a != inner_b and not names) or a.shape[1] != b.shape[0]:
        flip = " (did you mean .T?)" if b.labels[1] == inner_a else ""
        raise FcError("trace/shape", f"fc.dot contracts the last axis of a with the first of b{flip}",
                      expected=f"b [{label_name(inner_a)}: {a.shape[1]}, ...]", got=repr(b), loc=here())
    if a.labels[0] == b.labels[1]:
        raise FcError("trace/shape", "both axes of the product would be the same range", got=repr(a), loc=here(),
                      hint="give one side an axis of its own: cols = rows.again()")
    labels = (a.labels[0], b.labels[1])
    more = () if acc is None else (aligned(lift(acc, f32), labels).value,)
    return Handle(current().emit("dot", a.value, b.value, *more), labels)


# ---- control flow ----------------------------------------------------------------------------------------------------------


def loop(
    over: Any, start: Any = None, stop: Any = None, *, descending: bool = False, live: Callable[[Any], Handle] | None = None
) -> Iterator[Any]:
    """`for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):` runs the body for every block, as a loop of the program.

    over: a tiled dimension (yields a `Range`), or a count (yields an i32 scalar). start, stop: in blocks. descending: from the last to
    the first. live: a function of the range that says which elements matter; blocks where it is false everywhere may be left out.
    The body is traced once; variables that it assigns are carried.
    """
    t = current()
    if not t.grid:
        raise FcError("trace/usage", "call fc.grid before the first loop", loc=here())
    tiled = isinstance(over, TiledSize)
    one = lambda n: t.emit("const", value=n, dtype="i32")
    if tiled:
        size = one(over.dim) if isinstance(over.dim, int) else t.size(over.dim)
        count = t.emit("floordiv", t.emit("add", size, one(over.size - 1)), one(over.size))
    elif isinstance(over, (int, Handle)):
        count = lift(over, i32).value
    else:
        raise FcError("trace/usage", "fc.loop runs over a tiled dimension or a count", got=repr(over), loc=here())
    low = one(0) if start is None else lift(start, i32).value
    high = count if stop is None else lift(stop, i32).value
    where = here()
    t.sweep_names()
    name_variables()

    def item(index: Value) -> Any:
        if not tiled:
            return Handle(index)
        first = t.emit("mul", index, one(over.size))
        return Range(over.block, over.size, first, over.dim)

    carried = [v for v in t.variables if v._value is not None and v.scope.encloses(t.scope)]
    before = [v._value for v in carried]
    args = [Value(v._value.type, v.name) for v in carried]
    index = Value(Scalar(i32), "")
    left = True
    outer = t.scope
    try:
        with t.block("loop") as scope:
            for v, a in zip(carried, args):
                v._value = a
            yield item(index)
            left = False
            t.sweep_names()
            name_variables()
            fresh = [v for v in t.variables if v.scope.encloses(outer) and v._value is not None and not any(v is c for c in carried)]
            if fresh:
                raise FcError("trace/unset", "a variable is set for the first time inside a loop that may run no iteration", loc=where,
                              hint="give it a value before the loop: fc.var(init)")
            changed = [i for i, v in enumerate(carried) if v._value is not args[i]]
            ops = [*scope.builder.ops, Op("yield", tuple(carried[i]._value for i in changed), loc=where)]
    except GeneratorExit:
        t.broken = where
        raise
    assert not left
    same = {a: b for i, (a, b) in enumerate(zip(args, before)) if i not in changed}
    body = _replaced(Block((index, *(args[i] for i in changed)), tuple(ops)), same)
    regions = [body]
    if live is not None:
        j = Value(Scalar(i32), "")
        with t.block("live region") as scope:
            x = live(item(j))
            if not isinstance(x, Handle) or x.dtype != i1:
                raise FcError("trace/dtype", "`live` returns a condition", expected="i1", got=repr(x), loc=where)
            ops = [*scope.builder.ops, Op("yield", (x.value,), loc=where)]
        regions.append(Block((j,), tuple(ops)))
    results = [Value(args[i].type, carried[i].name) for i in changed]
    attrs: dict[str, Any] = {"descending": True} if descending else {}
    if tiled:
        attrs |= {"tile": over.size, "label": over.block}
    t.scope.builder.add(Op("for", (low, high, *(before[i] for i in changed)), tuple(results), attrs, tuple(regions), where))
    for v, b in zip(carried, before):
        v._value = b
    for i, r in zip(changed, results):
        carried[i]._value = r
    if tiled:
        t.names.setdefault(index, "j")


@contextlib.contextmanager
def when(condition: Any) -> Iterator[None]:
    """`with fc.when(cond):` runs the block only where a scalar condition holds; variables assigned inside keep their old value
    otherwise."""
    t = current()
    c = lift(condition, None)
    if c.labels or c.dtype != i1:
        raise FcError("trace/python-if", "fc.when branches on one condition for the whole program", expected="an i1 scalar", got=repr(c),
                      loc=here(), hint="for tiles use fc.where")
    where = here()
    t.sweep_names()
    name_variables()
    seen = [v for v in t.variables if v.scope.encloses(t.scope)]
    before = [v._value for v in seen]
    with t.block("branch") as scope:
        yield
        t.sweep_names()
        changed = [i for i, v in enumerate(seen) if v._value is not before[i]]
        if any(before[i] is None for i in changed):
            raise FcError("trace/unset", "a variable is set for the first time in a branch that may not run", loc=where,
                          hint="give it a value before: fc.var(init)")
        ops = (*scope.builder.ops, Op("yield", tuple(seen[i]._value for i in changed), loc=where))  # type: ignore[misc]
    other = Block((), (Op("yield", tuple(before[i] for i in changed), loc=where),))  # type: ignore[misc]
    results = [Value(before[i].type, seen[i].name) for i in changed]  # type: ignore[union-attr]
    t.scope.builder.add(Op("if", (c.value,), tuple(results), {}, (Block((), ops), other), where))
    for i, r in zip(changed, results):
        seen[i]._value = r


def name_variables() -> None:
    """Variables learn the names of the locals that hold them."""
    for frame in current().frames:
        for name, x in list(frame.f_locals.items()):
            if isinstance(x, Var) and not x.name:
                x.name = name


def _replaced(block: Block, mapping: dict[Value, Value]) -> Block:
    """The block with values replaced, everything else as it is."""
    if not mapping:
        return block
    def new(v: Value) -> Value:
        return mapping.get(v, v)

    return Block(block.args, tuple(replace(o, operands=tuple(map(new, o.operands)), regions=tuple(_replaced(r, mapping) for r in o.regions))
                                   for o in block.ops))
