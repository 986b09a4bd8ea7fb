"""The elementwise functions of both levels: one table with dtype rules, NumPy meaning and cost.

Arithmetic on floats of less than 32 bits is defined as: widen to float32, compute, round to nearest even. Integers wrap: results are taken
modulo 2 ** bits. Bits that are shifted further than there are bits are gone; >> of a negative number moves ones in. The interpreters do
exactly that and the CUDA printer emits it, so all three agree up to the accuracy of the special functions.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .types import DType


@dataclass(frozen=True)
class Fn:
    """name; arity; `kind` of dtype rule: "arith" (same in, same out), "float" (floats only), "int", "word" (integers of 32 bits),
    "compare" (same in, i1 out), "logic" (i1, or integers bitwise); NumPy meaning on float32/int/bool arrays."""

    name: str
    arity: int
    kind: str
    numpy: Callable[..., np.ndarray]
    symbol: str = ""
    commutative: bool = False


def _erf(x: np.ndarray) -> np.ndarray:
    """In float64, rounded to what x is."""
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(np.asarray(x).dtype)


def _mulhi(a, b):
    wide = np.asarray(a).astype(np.int64) * np.asarray(b).astype(np.int64) if np.asarray(a).dtype == np.int32 else \
        np.asarray(a).astype(np.uint64) * np.asarray(b).astype(np.uint64)
    return (wide >> wide.dtype.type(32)).astype(np.asarray(a).dtype)


FNS: dict[str, Fn] = {f.name: f for f in [
    Fn("add", 2, "arith", operator.add, "+", True), Fn("sub", 2, "arith", operator.sub, "-"),
    Fn("mul", 2, "arith", operator.mul, "*", True), Fn("div", 2, "float", operator.truediv, "/"),
    Fn("max", 2, "arith", np.maximum, "", True), Fn("min", 2, "arith", np.minimum, "", True),
    Fn("pow", 2, "float", np.power), Fn("floordiv", 2, "int", np.floor_divide), Fn("mod", 2, "int", np.mod),
    Fn("shl", 2, "int", np.left_shift, "<<"), Fn("shr", 2, "int", np.right_shift, ">>"),
    Fn("mulhi", 2, "word", _mulhi, "", True),
    Fn("lt", 2, "compare", operator.lt, "<"), Fn("le", 2, "compare", operator.le, "<="),
    Fn("gt", 2, "compare", operator.gt, ">"), Fn("ge", 2, "compare", operator.ge, ">="),
    Fn("eq", 2, "compare", operator.eq, "==", True), Fn("ne", 2, "compare", operator.ne, "!=", True),
    Fn("and", 2, "logic", operator.and_, "&", True), Fn("or", 2, "logic", operator.or_, "|", True),
    Fn("xor", 2, "logic", operator.xor, "^", True), Fn("not", 1, "logic", np.invert, "!"),
    Fn("neg", 1, "arith", np.negative, "-"), Fn("abs", 1, "arith", np.abs),
    Fn("exp", 1, "float", np.exp), Fn("exp2", 1, "float", np.exp2), Fn("log", 1, "float", np.log),
    Fn("log2", 1, "float", np.log2), Fn("sqrt", 1, "float", np.sqrt),
    Fn("rsqrt", 1, "float", lambda x: 1.0 / np.sqrt(x)), Fn("rcp", 1, "float", lambda x: 1.0 / x),
    Fn("sin", 1, "float", np.sin), Fn("cos", 1, "float", np.cos), Fn("tanh", 1, "float", np.tanh),
    Fn("tanh_approx", 1, "float", np.tanh),
    Fn("sigmoid", 1, "float", lambda x: 0.5 * (1.0 + np.tanh(0.5 * x))), Fn("erf", 1, "float", _erf),
    Fn("floor", 1, "float", np.floor), Fn("ceil", 1, "float", np.ceil),
    # the bit pattern of a float as an integer: of two that are at least 0, the larger has the larger pattern
    Fn("bits", 1, "bits", lambda x: np.asarray(x, np.float32).view(np.int32)),
    Fn("from_bits", 1, "from_bits", lambda x: np.asarray(x, np.int32).view(np.float32)),
    # a * b + c with one rounding; NumPy has none, float64 then one rounding is the same to within half an ulp
    Fn("fma", 3, "float", lambda a, b, c: (np.asarray(a, np.float64) * b + c).astype(np.float32)),
]}

#: comparison -> the one that says the same of swapped operands; the one that says the opposite (of floats that are no NaN)
MIRROR = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}
INVERSE = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}

REDUCTIONS: dict[str, tuple[Callable[..., np.ndarray], str, float]] = {
    # kind -> (NumPy reduce, the binary function it folds, its neutral element)
    "sum": (np.add.reduce, "add", 0.0), "max": (np.maximum.reduce, "max", -np.inf), "min": (np.minimum.reduce, "min", np.inf)}


def convert(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Round or convert to `dtype` in the representation `DType.np_dtype`; NumPy may warn of what overflows. Floats round to nearest even,
    those of 8 bits to the largest finite number where that is exceeded (PTX, `.satfinite`); of floats, integers are the nearest one towards
    zero that there is, and 0 of NaN; integers wrap."""
    x = np.asarray(x)
    if dtype.np_dtype != dtype.stored:
        x = x.astype(np.float32)
        x = np.clip(x, -dtype.largest, dtype.largest) if dtype.bits == 8 else x
        return x.astype(dtype.stored).astype(np.float32)
    if dtype.is_int and x.dtype.kind in "fV":
        low, high = dtype.range
        wide = np.where(np.isnan(x), 0.0, np.trunc(x.astype(np.float64)))
        inside = np.where(np.abs(wide) < 2.0**63, wide, 0.0).astype(np.int64)
        return np.where(wide >= high, high, np.where(wide <= low, low, inside)).astype(dtype.np_dtype)
    return x.astype(dtype.np_dtype)


def to_dtype(x: np.ndarray, dtype: DType) -> np.ndarray:
    """`convert` without warnings."""
    with np.errstate(all="ignore"):
        return convert(x, dtype)


@functools.cache
def meaning(name: str, dtype: DType) -> Callable[..., Any]:
    """The NumPy meaning of one function at operand dtype `dtype` (see the module docstring for narrow types)."""
    fn, own, wide = FNS[name].numpy, dtype.np_dtype, dtype.computed.np_dtype
    same = FNS[name].kind in ("compare", "bits", "from_bits")  # the result is right as it is
    narrow = wide is not own or own is not dtype.stored

    def run(*args: Any) -> Any:
        out = fn(*[a if getattr(a, "dtype", None) is wide else np.asarray(a, wide) for a in args])
        return out if same or (out.dtype is own and not narrow) else convert(out, dtype)

    return run


def evaluate(name: str, dtype: DType, *args: Any) -> Any:
    return meaning(name, dtype)(*args)


def apply(name: str, dtype: DType, *args: np.ndarray) -> np.ndarray:
    """`evaluate` without warnings."""
    with np.errstate(all="ignore"):
        return evaluate(name, dtype, *args)
