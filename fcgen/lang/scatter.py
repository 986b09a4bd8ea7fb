"""Where the gradient of what was read from a tensor goes: the places that it was read from.

It is added there, or stored where each place is one element's alone. A load's are the rectangle that it read. A gather's are a rectangle
too where each of its positions is one scalar or runs along an axis of the tile, as in `bias[h, rows.index, cols.index]`; else each element
has a place of its own. What lies outside of the tensor goes nowhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..grad.writer import Writer
from ..ir.core import Block, Op, Value
from ..ir.rewrite import Builder
from ..ir.types import i32
from .captures import FEW, STORED, SUM
from .trace import Scope, current


def how_together(reads: Sequence[Op], places: Sequence[Value], few: bool) -> str:
    """How the gradient of a tensor comes together that these ops read. places: positions that no two elements of all programs have in
    common. few: so that few of them have the same where some are left out."""
    op, defs = reads[0], _definitions()
    if len(reads) > 1 or op.operands[0].type.dtype.bits not in (16, 32) or not places:
        return SUM
    words = op["index"] if op.kind == "load" else tuple("element" for _ in op.operands[1:])
    at = [(v, bool(v.type.shape) or word == "tile") for v, word in zip((_first(v, defs) for v in op.operands[1:]), words)]
    known = [(_first(p, defs), bool(p.type.shape)) for p in places]
    if len(words) == len(at) == len(known) and all(v is p and run == along for (v, run), (p, along) in zip(at, known)):
        return STORED
    along = {v for v, run in known if run}
    return FEW if few and along == {v for v, run in at if run} else SUM


def _first(v: Value, defs: Mapping[Value, Op]) -> Value:
    """Where positions begin that run along an axis; others as they are, without axes along which they are the same."""
    while (op := defs.get(v)) is not None and op.kind == "broadcast":
        v = op.operands[0]
    if op is not None and op.kind == "add" and (a := defs.get(op.operands[0])) is not None and a.kind == "iota":
        return op.operands[1]
    return v


def add_to_tensor(m: Writer, op: Op, ct: Value, to: Value, stored: bool = False) -> None:
    """Add `ct`, the cotangent of what `op` reads, to the tensor `to` at the same places; stored: or store it there."""
    how: dict[str, Any] = {} if stored else {"reduce": "add"}
    ct = m.cast(ct, to.type.dtype)
    if op.kind == "load":
        m.builder.do("store", to, ct, *op.operands[1:], index=op["index"], guard=op["guard"], **how)
        return
    defs, shape = _definitions(), ct.type.shape
    places = [_narrow(m, v, to, axis) for axis, v in enumerate(op.operands[1:])]
    runs = {n: r for n, v in enumerate(places) if v.type.shape and (r := _run(m, v, defs)) is not None}
    axes, guard = [axis for axis, _ in runs.values()], (True,) * len(shape)
    if len(runs) < sum(bool(v.type.shape) for v in places) or sorted(axes) != list(range(len(shape))):
        m.builder.do("store", to, ct, *places, index=("element",) * len(places), guard=guard, **how)
        return
    at = [runs[n][1] if n in runs else v for n, v in enumerate(places)]
    inner = Builder(m.builder.loc)  # scalar positions have no guard
    turned = inner.emit("transpose", ct) if axes == [1, 0] else ct
    words = tuple("tile" if n in runs else "at" for n in range(len(places)))
    inner.do("store", to, turned, *at, index=words, guard=guard, **how)
    scalars = [n for n in range(len(places)) if n not in runs]
    if not scalars:
        m.builder.ops.extend(inner.ops)
        return
    inside = functools.reduce(lambda a, b: m.call("and", a, b), [_inside(m, at[n], to, n) for n in scalars])
    inner.do("yield")
    m.builder.do("if", inside, regions=(inner.block(), Block((), (Op("yield", loc=m.builder.loc),))))


def _size(tensor: Value, axis: int) -> Value:
    dim = tensor.type.dims[axis]
    return current().emit("const", value=dim, dtype="i32") if isinstance(dim, int) else current().size(dim)


def _inside(m: Writer, v: Value, to: Value, axis: int) -> Value:
    size = m.cast(_size(to, axis), v.type.dtype)
    return m.call("and", m.call("ge", v, 0), m.call("lt", v, size))


def _narrow(m: Writer, v: Value, to: Value, axis: int) -> Value:
    """Positions as i32: of those that take more, none is inside."""
    return v if v.type.dtype == i32 else m.cast(m.select(_inside(m, v, to, axis), v, -1), i32)


def _run(m: Writer, v: Value, defs: Mapping[Value, Op]) -> tuple[int, Value] | None:
    """(the axis that positions run along, the first one) where they are first, first + 1, ..."""
    op = defs.get(v)
    if op is None:
        return None
    if op.kind == "broadcast" and len(op["axes"]) == 1:
        inner = _run(m, op.operands[0], defs)
        return (op["axes"][0], inner[1]) if inner is not None else None
    if op.kind == "iota":
        return 0, m.number(0, i32)
    if op.kind in ("add", "sub") and v.type.dtype == i32:
        a, b = op.operands
        if not b.type.shape and (r := _run(m, a, defs)) is not None:
            return r[0], m.call(op.kind, r[1], b)
        if op.kind == "add" and not a.type.shape and (r := _run(m, b, defs)) is not None:
            return r[0], m.call("add", a, r[1])
    return None


def _definitions() -> dict[Value, Op]:
    """What stands in the open blocks."""
    scope: Scope | None = current().scope
    out: dict[Value, Op] = {}
    while scope is not None:
        out.update({r: op for op in scope.builder.ops for r in op.results})
        scope = scope.parent
    return out
