"""Derivatives of the ops that move, add up and multiply tiles: a record each, with the rule of either mode.

push: (writer, op, tangents) -> the result's tangent, of operands that have none None. pull: (writer, op, cotangent, wanted) -> a cotangent
for each operand that is wanted, None for others. Of a maximum along an axis, elements that are equally large share the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.core import Op, Value
from ..ir.types import DType, bf16
from .writer import Writer

Tangents = Sequence[Value | None]


@dataclass(frozen=True)
class Rule:
    push: Callable[[Writer, Op, Tangents], Value]
    pull: Callable[[Writer, Op, Value, Sequence[bool]], list[Value | None]]


def _linear(pull: Callable[[Writer, Op, Value], Value]) -> Rule:
    """An op of one operand that is linear in it: its tangent is the same op."""

    def push(m: Writer, op: Op, ts: Tangents) -> Value:
        assert ts[0] is not None
        return m.emit(op.kind, ts[0], **op.attrs)

    return Rule(push, lambda m, op, ct, wanted: [pull(m, op, ct)])


def _unbroadcast(m: Writer, op: Op, ct: Value) -> Value:
    axes = tuple(op["axes"])
    for axis in reversed([a for a in range(len(ct.type.shape)) if a not in axes]):
        ct = m.sum(ct, axis)
    return m.emit("transpose", ct) if list(axes) != sorted(axes) else ct


def _push_cast(m: Writer, op: Op, ts: Tangents) -> Value:
    assert ts[0] is not None
    return m.cast(ts[0], op.result.type.dtype.computed)


def _pull_cast(m: Writer, op: Op, ct: Value, wanted: Sequence[bool]) -> list[Value | None]:
    return [m.cast(ct, op.operands[0].type.dtype.computed)]


def _push_select(m: Writer, op: Op, ts: Tangents) -> Value:
    return m.select(op.operands[0], *(0.0 if t is None else t for t in ts[1:]))


def _pull_select(m: Writer, op: Op, ct: Value, wanted: Sequence[bool]) -> list[Value | None]:
    c = op.operands[0]
    return [None, m.select(c, ct, 0.0) if wanted[1] else None, m.select(c, 0.0, ct) if wanted[2] else None]


def _largest(m: Writer, op: Op) -> tuple[Value, Value]:
    """(which elements are the largest, or smallest; 1 over how many there are)"""
    x, axis = op.operands[0], op["axis"]
    best = m.call("eq", x, m.along(op.result, axis, x))
    dtype = x.type.dtype.computed
    count = m.sum(m.emit("cast", best, to=dtype.name), axis)
    return best, m.div(1.0, count)


def _push_reduce(m: Writer, op: Op, ts: Tangents) -> Value:
    (t,) = ts
    assert t is not None
    if op["fn"] == "sum":
        return m.sum(t, op["axis"])
    best, share = _largest(m, op)
    return m.mul(m.sum(m.select(best, t, 0.0), op["axis"]), share)


def _pull_reduce(m: Writer, op: Op, ct: Value, wanted: Sequence[bool]) -> list[Value | None]:
    x, axis = op.operands[0], op["axis"]
    if op["fn"] == "sum":
        return [m.along(ct, axis, x)]
    best, share = _largest(m, op)
    return [m.select(best, m.along(m.mul(ct, share), axis, x), 0.0)]


def _pull_cumsum(m: Writer, op: Op, ct: Value) -> Value:
    """The sum of each element and those behind it: all, less those before it."""
    before = m.sub(m.emit("cumsum", ct, axis=op["axis"]), ct)
    return m.sub(m.along(m.sum(ct, op["axis"]), op["axis"], ct), before)


def _factor(dtype: DType) -> DType:
    """What a derivative is rounded to where it meets an operand of a product: that operand's dtype, but for 8 bits, which it overflows."""
    return dtype if dtype.bits > 8 else bf16


def _push_dot(m: Writer, op: Op, ts: Tangents) -> Value:
    a, b = op.operands[:2]
    low = _factor(a.type.dtype)
    ta, tb, *rest = ts
    out = rest[0] if rest else None
    for x, y in ((ta, b), (a, tb)):
        if x is not None and y is not None:
            product = m.emit("dot", m.cast(x, low), m.cast(y, low))
            out = product if out is None else m.add(out, product)
    assert out is not None
    return out


def _pull_dot(m: Writer, op: Op, ct: Value, wanted: Sequence[bool]) -> list[Value | None]:
    assert not any(op.get(word) for word in ("ta", "tb", "ones")), "a dot as it is traced"
    a, b = op.operands[:2]
    low = _factor(a.type.dtype)
    turned = lambda v: m.emit("transpose", m.cast(v, low))
    c = m.cast(ct, low)
    da = m.emit("dot", c, turned(b)) if wanted[0] else None
    db = m.emit("dot", turned(a), c) if wanted[1] else None
    return [da, db, *[ct] * (len(op.operands) - 2)]


RULES: dict[str, Rule] = {
    "cast": Rule(_push_cast, _pull_cast), "select": Rule(_push_select, _pull_select), "reduce": Rule(_push_reduce, _pull_reduce),
    "dot": Rule(_push_dot, _pull_dot), "full": _linear(lambda m, op, ct: m.fit(ct, op.operands[0])), "broadcast": _linear(_unbroadcast),
    "transpose": _linear(lambda m, op, ct: m.emit("transpose", ct)), "cumsum": _linear(_pull_cumsum)}
