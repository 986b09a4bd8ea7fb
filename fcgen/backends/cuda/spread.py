"""Positions in a fragment, and what follows from them alone, as what all registers have in common and a number for each.

What they have in common is computed once, and the number is a constant of an unrolled loop: registers with equal numbers have equal values,
which ptxas then computes once. It finds neither by itself: not that float(x + 8) is float(x) + 8, nor that x + 8 without bit 3 is x.
A float of a sum is written as the sum of two floats: the same up to 2**24, and off by as little past it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...ir.core import Op, Value
from ...ir.elementwise import FNS
from ...ir.known import multiple
from ...ir.types import DType, Scalar, i32
from .emit import Emitter
from .text import X, add, binary, call, literal

#: functions whose results are worth it
GAINS = ("cast", "mul", "and")
#: bits that are followed; those above may always be set
FOLLOWED = (1 << 16) - 1


@dataclass(frozen=True)
class Spread:
    """base + at[n] * factor at register n of a loop; a factor of None is 1. ones: of the lowest bits of an integer base, those that may be
    set."""

    base: X
    at: np.ndarray
    ones: int = FOLLOWED
    factor: X | None = None

    def value(self, em: Emitter, i: X, dtype: DType) -> X:
        """At register i. (The multiply-add is named: NVVM would hold the products through loops, in a register each.)"""
        x = em.form(self.at, i, "step")
        if dtype == i32:
            return add(self.base, x)
        x = call("float", x)
        return binary("+", self.base, x) if self.factor is None else call("fmaf", x, self.factor, self.base)


def spread(em: Emitter, v: Value, table: np.ndarray, here: bool = False) -> Spread | None:
    """Value v at registers table[i], if it is made of positions and scalars. here: it is what is being computed."""
    dtype, op = v.type.dtype, em.plan.maker.get(v)
    if isinstance(v.type, Scalar):
        return _scalar(em, v, table) if dtype == i32 else None
    if op is None or not (here or v in em.plan.fused) or (dtype == i32 and em.plan.wraps(v)):
        return None
    if op.kind == "broadcast":
        return spread(em, op.operands[0], broadcast_map(op)[table])
    make = OF.get((op.kind, dtype.name))
    return None if make is None else make(em, op, table)


def _scalar(em: Emitter, v: Value, table: np.ndarray) -> Spread:
    n = multiple(v, em.plan.maker)
    return Spread(em.scalar(v), np.zeros(len(table), np.int64), FOLLOWED & -(n & -n))


def _iota(em: Emitter, op: Op, table: np.ndarray) -> Spread:
    layout = op.result.type.layout
    parts = {kind: np.asarray(layout.part(0, kind, np.arange(n))) for kind, n in (("r", layout.regs), ("l", 32), ("w", em.kernel.warps))}
    ones = np.bitwise_or.reduce(np.add.outer(parts["l"], parts["w"]), axis=None)
    return Spread(em.thread_part(layout, 0, f"{op.result.name or 'pos'}0"), parts["r"][table], int(ones) & FOLLOWED)


def _sum(em: Emitter, op: Op, table: np.ndarray) -> Spread | None:
    a, b = (spread(em, o, table) for o in op.operands)
    if a is None or b is None:
        return None
    either, both = a.ones | b.ones, a.ones & b.ones
    if op.kind == "sub":
        both = either
    low = both & -both  # from here on there may be carries
    ones = either & low - 1 | FOLLOWED & -low if low else either
    return Spread(binary(FNS[op.kind].symbol, a.base, b.base), FNS[op.kind].numpy(a.at, b.at), ones)


def _and(em: Emitter, op: Op, table: np.ndarray) -> Spread | None:
    """(base + at) & c, where the bits that c tells apart are set in the base or in a register's number, never in both."""
    a, c = spread(em, op.operands[0], table), em.fold(op.operands[1])
    if a is None or c is None:
        return None
    bits = int(c if c >= 0 else ~c).bit_length()
    low = a.at & (1 << bits) - 1
    if 1 << bits > FOLLOWED or (low & a.ones).any():
        return None
    base = literal(0, i32) if not a.ones & c & FOLLOWED and c >= 0 else binary("&", a.base, literal(c, i32))
    return Spread(base, (low & c) + (a.at - low if c < 0 else 0), a.ones & c & FOLLOWED)


def _float(em: Emitter, op: Op, table: np.ndarray) -> Spread | None:
    a = spread(em, op.operands[0], table) if op.operands[0].type.dtype == i32 else None
    return None if a is None else Spread(call("float", a.base), a.at)


def _multiple(em: Emitter, op: Op, table: np.ndarray) -> Spread | None:
    if not isinstance(op.operands[1].type, Scalar):
        return None
    a, k = spread(em, op.operands[0], table), em.scalar(op.operands[1])
    return None if a is None or a.factor is not None else Spread(binary("*", a.base, k), a.at, factor=k)


OF: dict[tuple[str, str], Callable[[Emitter, Op, np.ndarray], Spread | None]] = {
    ("full", "i32"): lambda em, op, table: spread(em, op.operands[0], table), ("iota", "i32"): _iota, ("add", "i32"): _sum,
    ("sub", "i32"): _sum, ("and", "i32"): _and, ("cast", "f32"): _float, ("mul", "f32"): _multiple}


def broadcast_map(op: Op) -> np.ndarray:
    """int [registers of the result]: the source's register that holds the same element."""
    t, axes = op.result.type, op["axes"]
    layout, index = t.layout, np.arange(t.layout.regs)
    assert list(axes) == sorted(axes), "broadcast keeps the order of the axes"
    for a in sorted(set(range(len(t.shape))) - set(axes), reverse=True):
        index = layout.drop_map(a)[index]
        layout = layout.drop(a)
    return index
