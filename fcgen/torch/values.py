"""Values of a program under torch's names: what a score or mask function that was written for torch's FlexAttention computes with.

Numbers of different kinds meet as torch has it (an index times a slope is a float), `torch.where(...)` and `x.abs()` are what they are
called, and what is read of a tensor at such positions is of this class too. What has no counterpart is refused with the function's line.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import inf, pi
from typing import Any, ClassVar

import torch

import fcgen as fc

from ..errors import FcError
from ..ir.types import DTYPES, DType, f32, i1, i32, i64
from ..lang.arith import elementwise, lift
from ..lang.captured import Point
from ..lang.handles import Handle
from ..lang.mistakes import called
from ..lang.trace import here
from ..runtime.tensors import TORCH_NAMES

_DTYPES = {getattr(torch, theirs): DTYPES[ours] for ours, theirs in TORCH_NAMES.items() if hasattr(torch, theirs)}


def _meet(a: DType, b: DType) -> DType:
    """The dtype in which values of two dtypes meet."""
    if a == b:
        return a
    if a.is_float or b.is_float:
        return f32 if max(a.bits if a.is_float else 0, b.bits if b.is_float else 0) <= 32 else DTYPES["f64"]
    return i64 if i64 in (a, b) else i32


def _promoted(args: tuple[Any, ...], least: DType | None = None) -> list[Any]:
    """Operands of one dtype, as torch finds it. least: they are floats, whatever they were."""
    args = tuple([x.lifted(None) if isinstance(x, Point) else x for x in args])
    handles = [x for x in args if isinstance(x, Handle)]
    dtype = handles[0].dtype
    for h in handles[1:]:
        dtype = _meet(dtype, h.dtype)
    numbers = [x for x in args if not isinstance(x, Handle)]
    if not dtype.is_float and (least is not None or any(isinstance(x, float) for x in numbers)):
        dtype = f32
    if dtype == i1 and any(isinstance(x, int) and not isinstance(x, bool) for x in numbers):
        dtype = i32
    return [_as(x, dtype) if isinstance(x, Handle) else x for x in args]


def _as(x: Handle, dtype: DType) -> Handle:
    return Handle.to(x, dtype)


def _op(name: str, floats: bool = False, swapped: bool = False) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        args = args[::-1] if swapped else args
        return Value.of(elementwise(name, *_promoted(args, f32 if floats else None)))

    return call


def _where(condition: Any, a: Any, b: Any) -> Any:
    some = [x for x in (a, b) if isinstance(x, Handle)]
    return Value.of(fc.where(condition, *(_promoted((a, b)) if some else (a, b))))


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else _op("max")(x, min)
    return x if max is None else _op("min")(x, max)


def _logic(name: str) -> Callable[..., Any]:
    truth = lambda x: x if not isinstance(x, Handle) or x.dtype == i1 else x != 0
    return lambda *args: Value.of(elementwise(name, *[truth(x) for x in args]))


def _activation(fn: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function of torch.nn.functional that may be asked not to write into its argument."""
    def call(x: Any, inplace: bool = False) -> Any:
        if inplace:
            raise FcError("trace/usage", "a value of a kernel is not written to", expected="inplace=False", got="inplace=True", loc=here())
        return fn(Value.of(_promoted((x,), f32)[0]))

    return call


def _gelu(x: Any, approximate: str = "none") -> Any:
    x = Value.of(_promoted((x,), f32)[0])
    inner = NAMES["erf"](x * 0.5**0.5) if approximate == "none" else NAMES["tanh"]((x + 0.044715 * x * x * x) * (2 / pi)**0.5)
    return x * 0.5 * (1.0 + inner)


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    x = Value.of(_promoted((x,), f32)[0]) * beta
    return _where(x > threshold, x, _op("max")(x, 0.0) + NAMES["log"](1.0 + NAMES["exp"](-abs(x)))) / beta


def _filled(x: Any, fill_value: Any) -> Any:
    """As large as x, and of its dtype."""
    number = lift(fill_value, x.dtype)
    return Value.of(fc.where(x == x, number, number))


_BINARY = {"add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul", "floor_divide": "floordiv", "remainder": "mod",
           "lt": "lt", "less": "lt", "le": "le", "less_equal": "le", "gt": "gt", "greater": "gt", "ge": "ge", "greater_equal": "ge",
           "eq": "eq", "ne": "ne", "not_equal": "ne", "maximum": "max", "minimum": "min", "bitwise_and": "and", "bitwise_or": "or",
           "bitwise_xor": "xor", "neg": "neg", "negative": "neg", "abs": "abs", "absolute": "abs", "bitwise_not": "not"}
_FLOAT = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf", "floor", "ceil")
#: torch's functions and methods, by their names
NAMES: dict[str, Callable[..., Any]] = {
    **{name: _op(ours) for name, ours in _BINARY.items()},
    **{name: (lambda fn: lambda x: Value.of(fn(_promoted((x,), f32)[0])))(getattr(fc, name)) for name in _FLOAT},
    "div": _op("div", True), "divide": _op("div", True), "true_divide": _op("div", True), "pow": _op("pow"),
    "where": _where, "clamp": _clamp, "clip": _clamp, "square": lambda x: x * x, "reciprocal": lambda x: _op("div", True)(1.0, x),
    "relu": _activation(lambda x: _op("max")(x, 0.0)), "silu": _activation(lambda x: x * NAMES["sigmoid"](x)),
    "tan": lambda x: NAMES["sin"](x) / NAMES["cos"](x), "gelu": _gelu, "softplus": _softplus,
    "zeros_like": lambda x: _filled(x, 0), "ones_like": lambda x: _filled(x, 1), "full_like": _filled,
    "isnan": lambda x: x != x, "isinf": lambda x: abs(x) == inf,
    "log1p": lambda x: NAMES["log"](x + 1.0), "expm1": lambda x: NAMES["exp"](x) - 1.0,
    "logical_and": _logic("and"), "logical_or": _logic("or"), "logical_xor": _logic("xor"), "logical_not": _logic("not")}
#: conversions
_CASTS = {"float": f32, "half": DTYPES["f16"], "bfloat16": DTYPES["bf16"], "double": DTYPES["f64"], "int": i32, "long": i64}


@called("value")
class Value(Handle):
    """A tile or a scalar, with torch's methods."""

    __slots__ = ()
    __hash__ = Handle.__hash__
    PUBLIC: ClassVar[tuple[str, ...]] = (*Handle.PUBLIC, *NAMES, *_CASTS, "bool")

    @classmethod
    def of(cls, h: Handle) -> Value:
        return cls(h.value, h.labels)

    def made(self, h: Handle) -> Handle:
        return Value.of(h)

    def to(self, dtype: Any) -> Value:  # type: ignore[override]
        dtype = _DTYPES.get(dtype, dtype)
        if dtype == i1:
            return self.bool()  # type: ignore[no-any-return]
        return Value.of(Handle.to(self, dtype))

    def counted(self, size: Any) -> Value:
        """As a position of torch's: below 0 it is counted from the end."""
        return _where(self < 0, self + lift(size, None), self)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name in _CASTS:
            return lambda: self.to(_CASTS[name])
        if name == "bool":
            return lambda: self if self.dtype == i1 else self != 0
        if name in NAMES:
            return lambda *args, **named: NAMES[name](self, *args, **named)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute {name!r}", name=name, obj=self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func)).strip("_")
        swapped = name[1:] if name.startswith("r") and name[1:] in NAMES and name not in NAMES else None
        if name not in NAMES and swapped is None:
            raise FcError("trace/usage", "this function of torch has no counterpart in a kernel", got=f"torch.{name}", loc=here(),
                          expected=", ".join(sorted({n for n in NAMES if hasattr(torch, n)})))
        args = tuple(x.item() if isinstance(x, torch.Tensor) and not x.shape and not x.is_cuda else x for x in args)
        return NAMES[swapped](*args[::-1]) if swapped else NAMES[name](*args, **(kwargs or {}))


for _name, _ours in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "floordiv": "floordiv", "mod": "mod", "pow": "pow",
                     "and": "and", "or": "or", "xor": "xor", "lshift": "shl", "rshift": "shr"}.items():
    setattr(Value, f"__{_name}__", _op(_ours, _name == "truediv"))
    setattr(Value, f"__r{_name}__", _op(_ours, _name == "truediv", True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "abs"):
    assert hasattr(operator, _name)
    setattr(Value, f"__{_name}__", _op(_name))
setattr(Value, "__invert__", _op("not"))  # noqa: B010 (as the others)


def values(*args: Any) -> list[Value]:
    """Handles under torch's names."""
    return [Value.of(lift(x, None)) for x in args]


def plain(x: Any, dtype: DType) -> Handle:
    """What a function of torch's gave, as the spec takes it."""
    h = lift(x, None if dtype == i1 else dtype)
    if dtype == i1 and h.dtype != i1:
        raise FcError("trace/dtype", "a mask function gives no condition", expected="i1", got=repr(h), loc=here(), hint="compare: x != 0")
    h = Handle(h.value, h.labels)
    return h if h.dtype == dtype else h.to(dtype)
