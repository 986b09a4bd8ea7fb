"""What rounding may do to a program: each result of its tile program moved by about one rounding, up or down as the dice say.

Sums in another order move by a rounding of all that they add up; a function by one of its result; what selects, compares, or only moves
values by none, and neither does what has no rounding: a sum that is exact in every order, a product or a difference that float32 knows.
The program's own inputs are what they are: both programs see the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.core import Op
from ..ir.elementwise import FNS, convert
from ..ir.types import Scalar, Tile
from .product import product

#: half a unit in the last place, relative; of f32 a few, for functions that the hardware approximates and factors that passes move
STEP = {"f16": 2.0**-11, "bf16": 2.0**-9, "f32": 2.0**-22, "f64": 2.0**-22, "f8e4m3": 2.0**-4, "f8e5m2": 2.0**-3}
#: float functions without a rounding
EXACT = frozenset(("max", "min", "neg", "abs", "floor", "ceil", "round", "trunc"))
#: those that float64 does without one on what float32 holds, or with a much smaller one
ARITHMETIC = frozenset(("add", "sub", "mul"))
#: a float32 holds every multiple of a unit up to so many of them
FITS = 2.0**24


def grain(x: np.ndarray, axis: int) -> np.ndarray:
    """The largest power of two that all elements along an axis are multiples of; infinite where all are zero."""
    mantissa, exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    return np.where(whole == 0, np.inf, np.ldexp((whole & -whole).astype(np.float64), exponent - 53)).min(axis=axis, initial=np.inf)


class Shaking:
    """For `interpret`, as `shaken`. Seed 0 and every other one move each element as it likes; the others all of a tile in one direction, as
    a factor does that is rounded once."""

    def __init__(self, seed: int):
        self.rng, self.apart = np.random.default_rng(seed), seed % 2 == 0

    def __call__(self, op: Op, args: list[Any], out: Any) -> Any:
        t = op.result.type
        if not isinstance(t, (Tile, Scalar)) or not t.dtype.is_float:
            return out
        x = np.asarray(out, np.float64)
        if op.kind == "dot":
            a, b = (np.abs(np.asarray(v, np.float64)) for v in args[:2])
            b = np.concatenate([b, np.ones((len(b), op["ones"]))], axis=1) if op.get("ones") else b
            terms = product(a, b)
            far = np.where(terms < FITS * np.multiply.outer(grain(a, 1), grain(b, 0)), 0.0, terms + np.abs(x))
        elif op.kind == "reduce" and op["fn"] == "sum":
            terms = np.abs(np.asarray(args[0], np.float64))
            far = terms.sum(axis=op["axis"])
            far = np.where(far < FITS * grain(terms, op["axis"]), 0.0, far)
        elif op.kind == "cumsum":
            far = np.abs(np.asarray(args[0], np.float64)).cumsum(axis=op["axis"])
        elif op.kind == "cast":
            far = np.where(np.asarray(args[0], np.float64) == x, 0.0, np.abs(x))
        elif op.kind in ARITHMETIC and t.dtype.bits <= 32:
            with np.errstate(all="ignore"):
                far = np.where(FNS[op.kind].numpy(*(np.asarray(v, np.float64) for v in args)) == x, 0.0, np.abs(x))
        elif op.kind in FNS and op.kind not in EXACT:
            far = np.abs(x)
        else:
            return out
        way = self.rng.integers(0, 2, x.shape if self.apart else (), np.int8) * 2.02 - 1.01  # past a tie
        return convert(np.where(np.isfinite(x), x + way * STEP[t.dtype.name] * far, x), t.dtype)[()]
