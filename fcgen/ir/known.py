"""What is known of a value by how it is made, whatever the sizes are: a number, a multiple of one, what a function makes of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import gcd, isfinite
from typing import Any

import numpy as np

from .core import Op, Value
from .elementwise import apply, to_dtype


def const_of(v: Value, defs: Mapping[Value, Op]) -> Any:
    """The number that the scalar, or every element of the tile, is known to be; else None."""
    op = defs.get(v)
    while op is not None and op.kind in ("full", "broadcast"):
        op = defs.get(op.operands[0])
    return op["value"] if op is not None and op.kind == "const" else None


def number_of(op: Op, numbers: Sequence[Any]) -> Any:
    """What an elementwise op makes of numbers. None where one of them is not known, and of what is NaN, divides by zero, or is no number
    of the dtype that it is converted to."""
    if any(x is None for x in numbers):
        return None
    dtype, to = op.operands[0].type.dtype, op.result.type.dtype
    if (op.kind in ("floordiv", "mod") and numbers[1] == 0) or (op.kind == "cast" and not to.is_float and not isfinite(numbers[0])):
        return None
    if op.kind == "select":
        out = numbers[1] if numbers[0] else numbers[2]
    else:
        args = [np.asarray(x, dtype.np_dtype) for x in numbers]
        out = (to_dtype(args[0], to) if op.kind == "cast" else apply(op.kind, dtype, *args)).item()
    return out if out == out else None


def multiple(v: Value | None, defs: Mapping[Value, Op]) -> int:
    """A number that the scalar is a multiple of; 0 for one that is 0."""
    @cache
    def of(v: Value | None) -> int:
        op = defs.get(v) if v is not None else None
        if op is None or op.regions:
            return 1
        if op.kind == "const":
            return abs(int(op["value"]))
        xs = [of(x) for x in op.operands[1 if op.kind == "select" else 0:]]
        if op.kind == "mul":
            return xs[0] * xs[1]
        return gcd(*xs) if op.kind in ("add", "sub", "max", "min", "select", "neg", "cast", "narrow") else 1

    return of(v)
