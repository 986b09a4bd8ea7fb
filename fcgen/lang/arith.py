"""Elementwise arithmetic on handles: Python numbers take the other operand's dtype, tiles meet by axis labels."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from ..errors import FcError
from ..ir.core import Value
from ..ir.elementwise import FNS
from ..ir.types import DTYPES, DType, f32, i1, i32
from .axes import Label, meet, shape_of, show
from .handles import Expr, Operators, as_expr
from .trace import Tracer, current

SYMBOLS = {f.name: f.symbol for f in FNS.values()} | {"floordiv": "//", "mod": "%", "pow": "**", "max": "maximum", "min": "minimum",
                                                       "not": "~"}


def title(fn: str) -> str:
    return f"`{SYMBOLS.get(fn) or fn}`"


def is_number(x: Any) -> bool:
    return isinstance(x, (bool, numbers.Real)) and not isinstance(x, Operators)


def binary(fn: str, a: Any, b: Any) -> Expr:
    if fn == "pow" and isinstance(b, int) and b == 2 and not is_number(a):
        a = as_expr(a)
        return elementwise("mul", (a, a))
    return elementwise(fn, (a, b))


def elementwise(fn: str, args: Sequence[Any]) -> Expr:
    """One op of the elementwise table."""
    t = current(title(fn))
    xs = coerce(t, title(fn), args, FNS[fn].kind == "float")
    check_kind(t, fn, xs[0].dtype)
    axes = meet(t, title(fn), [x.axes for x in xs])
    return t.wrap(emit(t, fn, *(spread(t, x, axes) for x in xs)), axes)


def emit(t: Tracer, kind: str, *values: Value, **attrs: Any) -> Value:
    try:
        return t.emit(kind, *values, **attrs)
    except FcError as e:
        if e.code != "ir/verify":
            raise
        raise t.error("trace/dtype", e.message, expected=e.expected, got=e.got, hint=e.hint) from None


def check_kind(t: Tracer, fn: str, dtype: DType) -> None:
    kind, hint = FNS[fn].kind, None
    if kind == "float" and not dtype.is_float:
        hint = "use // for whole numbers, or x.to(fc.f32) first" if fn == "div" else "convert it: x.to(fc.f32)"
        if fn == "pow" and dtype.is_int:
            hint = "multiply it out, or x.to(fc.f32) first"
        raise t.error("trace/dtype", f"{title(fn)} is for floats", expected="f16, bf16 or f32", got=dtype, hint=hint)
    if kind == "int" and not dtype.is_int:
        hint = {"floordiv": "write fc.floor(a / b)", "mod": "write a - fc.floor(a / b) * b"}.get(fn) if dtype.is_float else None
        raise t.error("trace/dtype", f"{title(fn)} is for whole numbers", expected="i32 or i64", got=dtype, hint=hint)
    if kind == "logic" and dtype.is_float:
        raise t.error("trace/dtype", f"{title(fn)} is for conditions and whole numbers", expected="i1, i32 or i64", got=dtype,
                      hint="compare first: x > 0")
    if kind == "arith" and dtype == i1:
        raise t.error("trace/dtype", f"{title(fn)} is not defined on conditions", expected="a number", got=dtype,
                      hint="combine conditions with & | ~, or count them: c.to(fc.i32)")


def coerce(t: Tracer, what: str, args: Sequence[Any], floats: bool = False) -> list[Expr]:
    """The operands as values of one dtype. floats: two Python numbers make f32."""
    xs = [a if is_number(a) else as_expr(a) for a in args]
    dtypes = list(dict.fromkeys(x.dtype for x in xs if isinstance(x, Expr)))
    if len(dtypes) > 1:
        a, b = dtypes[:2]
        to = "bring both to one dtype: x.to(fc.f32)" if a.is_float and b.is_float else (
            f"convert one of them: x.to(fc.{a if a.is_float else b if b.is_float else 'i64' if i1 not in dtypes else 'i32'})")
        raise t.error("trace/dtype", f"{what}: the operands have different dtypes", expected=a, got=b, hint=to)
    if dtypes:
        dtype = dtypes[0]
    elif all(isinstance(x, bool) for x in xs):
        dtype = i1
    else:
        dtype = i32 if not floats and all(isinstance(x, numbers.Integral) for x in xs) else f32
    return [x if isinstance(x, Expr) else constant(t, x, dtype, what) for x in xs]


def constant(t: Tracer, x: Any, dtype: DType, what: str = "a constant") -> Expr:
    """A Python number as a scalar of the given dtype."""
    whole = isinstance(x, numbers.Integral)
    if dtype == i1 and not isinstance(x, bool):
        raise t.error("trace/dtype", f"{what}: a number meets a condition", expected="a condition", got=x,
                      hint="convert the condition: c.to(fc.i32), or choose with fc.where(c, a, b)")
    if dtype != i1 and isinstance(x, bool):
        raise t.error("trace/dtype", f"{what}: True or False meets a number", expected=dtype, got=x)
    if dtype.is_int and not whole:
        raise t.error("trace/dtype", f"{what}: a fraction meets whole numbers", expected=dtype, got=x,
                      hint="write a whole number, or convert the other side: x.to(fc.f32)")
    if dtype.is_int and not -(2 ** (dtype.bits - 1)) <= int(x) < 2 ** (dtype.bits - 1):
        raise t.error("trace/dtype", f"{what}: the number does not fit {dtype}", expected=dtype, got=x)
    value = bool(x) if dtype == i1 else int(x) if dtype.is_int else float(x)
    return t.wrap(t.const(value, dtype))


def spread(t: Tracer, x: Expr, axes: tuple[Label, ...]) -> Value:
    """The value with these axes: broadcast where it lacks some. Scalars stay scalars."""
    if not x.axes or x.axes == axes:
        return x.value
    places = tuple(axes.index(a) for a in x.axes)
    if len(set(places)) != len(places) or len(set(axes)) != len(axes):
        raise t.error("trace/shape", "a tile has one axis twice, so broadcasting along it is ambiguous", expected=show(axes), got=show(x.axes),
                      hint="give one of them its own label: cols = fc.same(rows)")
    return t.emit("broadcast", x.value, axes=places, shape=shape_of(axes))


def fill(t: Tracer, x: Expr, axes: tuple[Label, ...], what: str) -> Expr:
    """The value with exactly these axes."""
    if x.axes == axes:
        return x
    if not x.axes:
        return t.wrap(t.emit("full", x.value, shape=shape_of(axes)), axes)
    if not set(x.axes) <= set(axes) or [a for a in axes if a in x.axes] != list(x.axes):
        hint = "transpose it: x.T" if set(x.axes) == set(axes) and len(axes) == 2 else None
        raise t.error("trace/shape", f"{what}: the axes do not match", expected=show(axes), got=show(x.axes), hint=hint)
    return t.wrap(spread(t, x, axes), axes)


def where(condition: Any, a: Any, b: Any) -> Expr:
    t = current("fc.where")
    if isinstance(condition, bool):
        return as_operand(t, a if condition else b)
    c = as_expr(condition)
    if c.dtype != i1:
        raise t.error("trace/dtype", "fc.where: the first argument is a condition", expected="i1", got=c, hint="compare it: x != 0")
    x, y = coerce(t, "fc.where", (a, b))
    axes = meet(t, "fc.where", [c.axes, x.axes, y.axes])
    return t.wrap(emit(t, "select", *(spread(t, v, axes) for v in (c, x, y))), axes)


def as_operand(t: Tracer, x: Any, dtype: DType | None = None) -> Expr:
    """A handle or a Python number (f32, or i32 for whole ones) as a value."""
    if is_number(x):
        return constant(t, x, dtype or (i1 if isinstance(x, bool) else i32 if isinstance(x, numbers.Integral) else f32))
    return as_expr(x)


def cast(x: Any, dtype: Any) -> Expr:
    t = current("a cast")
    dtype = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, DType):
        raise t.error("trace/usage", "a cast names a dtype", expected="fc.f16, fc.bf16, fc.f32, fc.i32 or fc.i64", got=repr(dtype))
    e = as_operand(t, x, dtype if is_number(x) and dtype.is_float else None)
    if e.dtype == dtype:
        return e
    if dtype == i1:
        raise t.error("trace/dtype", "a number is not converted to a condition", got=e, hint="compare it: x != 0")
    return t.wrap(t.emit("cast", e.value, to=dtype.name), e.axes)
