"""limits: masks on positions become one comparison per element, with a limit that is known per row.

In: tile IR with its loops split. Out: the same masks, written with less per element. For positions x along one axis of a tile and bounds
along the other or none, `x < a and x <= b` is `x < min(a, b + 1)`, however the conditions are nested, and where x is a scalar further on
than plain positions the scalar goes to the other side. `ranges` sees to it that nothing overflows. This comes after `split_loops`, which
asks about each bound on its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..ir.core import Builder, Env, Kernel, Op, Value, definitions, map_bodies, remove_dead, rewrite
from ..ir.schedule import Schedule
from ..ir.target import Target
from ..ir.types import Scalar, Tile, i1

#: comparison -> (operands change sides, what makes it a strict "less than" its bound)
ORDER = {"lt": (False, 0), "le": (False, 1), "gt": (True, 0), "ge": (True, 1)}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    def body(block):
        defs = definitions(block)

        def rule(op: Op, b: Builder, env: Env) -> bool:
            if op.kind != "and" or not isinstance(op.result.type, Tile) or len(op.result.type.shape) != 2:
                return False
            parts = [(v, _below(v, defs)) for v in _conjunction(op.result, defs)]
            alike: dict[tuple[int, Value], list[_Below]] = {}
            for _, x in parts:
                if x is not None:
                    alike.setdefault((x.axis, x.position), []).append(x)
            joined = {key: group for key, group in alike.items() if len(group) > 1}
            if not joined:
                return False
            out = [_write(group, op, b, env) for group in joined.values()]
            out += [env[v] for v, x in parts if x is None or (x.axis, x.position) not in joined]
            env[op.result] = functools.reduce(lambda left, right: b.emit("and", left, right), out)
            return True

        return remove_dead(rewrite(block, rule))

    return map_bodies(kernel, body)


def _conjunction(v: Value, defs: dict[Value, Op]) -> list[Value]:
    """The conditions that all have to hold, each once."""
    out: list[Value] = []
    todo, seen = [v], {v}
    while todo:
        x = todo.pop()
        op = defs.get(x)
        if op is None or op.kind != "and":
            out.append(x)
            continue
        new = [o for o in op.operands[::-1] if o not in seen]
        seen.update(new)
        todo += new
    return out


@dataclass(frozen=True)
class _Below:
    """position + shift < bound + extra for every element: position is a vector along `axis` of the tile, bound a vector along the other
    axis or a scalar."""

    position: Value
    shift: Value | None
    axis: int
    bound: Value
    extra: int


def _below(v: Value, defs: dict[Value, Op]) -> _Below | None:
    op = defs.get(v)
    if op is None:
        return None
    if op.kind == "broadcast" and len(op.operands[0].type.shape) == 1:  # a comparison of vectors, spread
        inner = defs.get(op.operands[0])
        if inner is None or inner.kind not in ORDER:
            return None
        turned, extra = ORDER[inner.kind]
        x, y = inner.operands[::-1] if turned else inner.operands
        if not isinstance(y.type, Scalar) or isinstance(x.type, Scalar) or not x.type.dtype.is_int:
            return None
        return _Below(*_plain(x, defs), op["axes"][0], y, extra)
    if op.kind not in ORDER or not op.operands[0].type.dtype.is_int:
        return None
    turned, extra = ORDER[op.kind]
    left, right = (defs.get(o) for o in (op.operands[::-1] if turned else op.operands))
    if left is None or left.kind != "broadcast" or len(left.operands[0].type.shape) != 1:
        return None
    axis = left["axes"][0]
    if right is None or right.kind != "broadcast" or tuple(right["axes"]) != (1 - axis,):
        return None
    return _Below(*_plain(left.operands[0], defs), axis, right.operands[0], extra)


def _plain(x: Value, defs: dict[Value, Op]) -> tuple[Value, Value | None]:
    """A vector of positions without the scalar that is added to it."""
    op = defs.get(x)
    if op is not None and op.kind == "add":
        for a, s in (op.operands, op.operands[::-1]):
            if isinstance(s.type, Scalar):
                return a, s
    return x, None


def _write(below: list[_Below], op: Op, b: Builder, env: Env) -> Value:
    first, shape = below[0], op.result.type.shape
    limit: Value | None = None
    for part in sorted(below, key=lambda p: isinstance(p.bound.type, Tile)):  # scalars first: they are computed once
        bound = env[part.bound]
        if part.extra:
            bound = b.emit("add", bound, b.emit("const", value=part.extra, dtype="i32"))
        if part.shift is not None:
            bound = b.emit("sub", bound, env[part.shift])
        limit = bound if limit is None else b.emit("min", bound, limit, name="limit")
    assert limit is not None
    x = b.emit("broadcast", env[first.position], axes=(first.axis,), shape=shape)
    if isinstance(limit.type, Scalar):
        return b.emit("lt", x, limit)
    out = b.emit("lt", x, b.emit("broadcast", limit, axes=(1 - first.axis,), shape=shape))
    assert out.type.dtype == i1
    return out
