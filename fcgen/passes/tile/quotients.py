"""What interval analysis (`affine`) knows of quotients by a number that is only known to be positive when the kernel runs.

In a tile, x // d is no linear form of the loop index, but comparing it with a scalar y is: for d > 0, x // d >= y is x >= y * d. The
product is made so that it cannot overflow: positions are below `MOST`, so beyond it all products compare alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.core import Op, Value
from ...ir.types import Scalar, i32
from .forms import Form, Range, Span

if TYPE_CHECKING:
    from .affine import Affine

MOST = 2**30


def divisor(v: Value, affine: Affine) -> Value | None:
    """The positive scalar from outside the loop that a value, or all of a tile, is."""
    op = affine.defs.get(v)
    while op is not None and op.kind in ("full", "broadcast"):
        v = op.operands[0]
        op = affine.defs.get(v)
    if v.type != Scalar(i32) or v in affine.inside:
        return None
    return v if v in affine.positive or (op is not None and op.kind == "size") else None


def bounded(d: Value, affine: Affine) -> Value:
    """The divisor, at least 1 (a size may be 0) and below `MOST`."""
    b, lit = affine.b, affine.b.const
    return affine.flag(("divisor", d), lambda: b.emit("max", b.emit("min", d, lit(MOST - 1)), lit(1)))


def divided(f: Form, d: Value, affine: Affine) -> Form:
    """floor(f / d) of a form without the index, as a scalar before the loop."""
    return affine.once(("quotient", f, d), lambda: affine.b.emit("floordiv", affine.value(f), bounded(d, affine)))


def times(f: Form, d: Value, affine: Affine) -> Form:
    """f * d as a scalar before the loop; where that is past `MOST`, a number past it on the same side."""
    b, lit = affine.b, affine.b.const

    def make() -> Value:
        by = bounded(d, affine)
        most = b.emit("floordiv", lit(MOST), by)  # (most + 1) * by < 2**31
        y = b.emit("min", affine.value(f), b.emit("add", most, lit(1)))
        y = b.emit("max", y, b.emit("sub", lit(-1), most))
        return b.emit("max", b.emit("min", b.emit("mul", y, by), lit(MOST)), lit(-MOST))

    return f if f.known == 0 else affine.once(("product", f, d), make)


def quotient(v: Value, affine: Affine) -> tuple[Span, Value] | None:
    """(x, d) where the value is x // d and x depends on the index."""
    op: Op | None = affine.defs.get(v)
    if op is not None and op.kind in ("broadcast", "transpose"):
        return affine.through(op, lambda x: quotient(x, affine))
    if op is None or op.kind != "floordiv":
        return None
    d, x = divisor(op.operands[1], affine), affine.span(op.operands[0])
    return (x, d) if d is not None and x is not None and x.moves else None


def compared(kind: str, x: Span, d: Value, y: Span, affine: Affine, must: bool) -> Range:
    """The range of `x // d kind y`."""
    if kind in ("ge", "lt"):
        return affine.compare(kind, x, Span(times(y.lo, d, affine), times(y.hi, d, affine)), must)
    past = Span(times(y.lo.shift(1), d, affine), times(y.hi.shift(1), d, affine))
    return affine.compare("ge" if kind == "gt" else "lt", x, past, must)


def distance(kind: str, v: Value, most: Span, affine: Affine, must: bool) -> Range | None:
    """The range of `abs(a - x // d) kind most`, where a and most do not depend on the index: a quotient between two ends."""
    op = affine.defs.get(v)
    if op is not None and op.kind in ("broadcast", "transpose"):
        return affine.through(op, lambda x: distance(kind, x, most, affine, must))
    inner = affine.defs.get(op.operands[0]) if op is not None and op.kind == "abs" else None
    if kind not in ("lt", "le") or inner is None or inner.kind != "sub":
        return None
    for x, y in (inner.operands, inner.operands[::-1]):
        q, a = quotient(x, affine), affine.span(y)
        if q is not None and a is not None and not any(f.step for f in (a.lo, a.hi, most.lo, most.hi)):
            above, below = Span(a.lo + most.lo, a.hi + most.hi), Span(a.lo - most.hi, a.hi - most.lo)
            return affine.both(compared(kind, *q, above, affine, must),
                               compared("ge" if kind == "le" else "gt", *q, below, affine, must))
    return None
