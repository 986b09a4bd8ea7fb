"""limits: masks on positions become one comparison per element, with a limit that is known per row.

In: tile IR with its loops split. Out: the same masks, written with less per element. For positions x along one axis of a tile and bounds
along the other or none, `x < a and x <= b` is `x < min(a, b + 1)`, whatever else is in the conjunction, and where x is a scalar further
on than plain positions the scalar goes to the other side. A limit of columns from below (`row - w < column`, `row - column < w`) beside one
from above becomes `column > row - w`, so that the row's part is known per row too, and a distance of the two at most w is both limits.
A condition on one axis alone goes into numbers along that axis. `ranges` sees to it that nothing overflows. This comes after `split_loops`,
which asks about each bound on its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ...ir.core import Kernel, Op, Value, definitions
from ...ir.rewrite import Builder, Env, map_bodies, remove_dead, rewrite
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar, Tile, i1, i32
from ..facts.common import is_position

#: comparison -> (operands change sides, what makes it a strict "less than" its bound)
ORDER = {"lt": (False, 0), "le": (False, 1), "gt": (True, 0), "ge": (True, 1)}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    def body(block):
        defs = definitions(block)

        def rule(op: Op, b: Builder, env: Env) -> bool:
            if op.kind not in ("and", *ORDER) or not isinstance(op.result.type, Tile) or len(op.result.type.shape) != 2:
                return False
            terms: list[Value] = []
            if op.kind in ORDER and (upper := _near(op.result, op, defs, b, env, terms)) is not None:
                env[op.result] = b.emit("and", _write([upper], op, b, env), *terms)
            if op.kind != "and":
                return bool(terms)
            parts = [(v, _near(v, op, defs, b, env, terms) or _below(v, defs)) for v in _conjunction(op.result, defs)]
            keys = [(x.axis, x.position) if x is not None and x.less is None else None for _, x in parts]
            count, done, near = Counter(k for k in keys if k), set[Any](), bool(terms)
            for (v, x), key in zip(parts, keys):
                if key in done:
                    continue
                if key and (count[key] > 1 or (x is not None and x.made)):
                    done.add(key)
                    terms.append(_write([y for (_, y), k in zip(parts, keys) if y is not None and k == key], op, b, env))
                else:
                    terms.append(_turned(x, count, op, defs, b, env) or env[v])
            if not near and len(terms) == len(parts) and all(t is env[v] for t, (v, _) in zip(terms, parts)):
                return False
            _guarded(terms, {**defs, **definitions(b.block())}, b)
            env[op.result] = reduce(lambda all_of, term: b.emit("and", all_of, term), terms)
            return True

        return remove_dead(rewrite(block, rule))

    return map_bodies(kernel, body)


def _turned(x: _Below | None, groups: Mapping[Any, int], op: Op, defs: dict[Value, Op], b: Builder, env: Env) -> Value | None:
    """A bound on rows by columns that are limited from above too: a limit of the columns from below, known per row."""
    if x is None or x.axis or not isinstance(x.bound.type, Tile):
        return None
    position, shift = _plain(x.bound, defs)
    if (1, position) not in groups:
        return None
    limit = env[x.position]
    for kind, v in (("sub", x.less), ("add", x.shift), ("sub", shift)):
        limit = b.emit(kind, limit, env[v]) if v is not None else limit
    limit = b.emit("sub", limit, b.const(x.extra), name="start") if x.extra else limit
    spread = lambda v, axis: b.emit("broadcast", v, axes=(axis,), shape=op.result.type.shape)
    return b.emit("gt", spread(env[position], 1), spread(limit, 0))


def _guarded(terms: list[Value], defs: Mapping[Value, Op], b: Builder) -> None:
    """A condition on the positions of one axis goes into numbers of that axis which are compared with limits anyway: where it does not hold
    they are beyond all of these. That is done once for a position, and no element asks."""
    for t in [t for t in terms if (o := defs.get(t)) is not None and o.kind == "broadcast"]:
        held = defs[t]
        tests: dict[Value, list[int]] = {}  # vectors of such numbers -> the terms that compare them with limits along the other axis
        for n, op in enumerate(map(defs.get, terms)):
            x, y = map(defs.get, op.operands) if op is not None and op.kind in ("lt", "gt") else (None, None)
            spread = x is not None and y is not None and x.kind == y.kind == "broadcast" and y["axes"] != x["axes"] == held["axes"]
            if x is not None and spread and x.operands[0].type == Tile(i32, held.operands[0].type.shape):
                tests.setdefault(x.operands[0], []).append(n)
        for v, at in list(tests.items())[:1]:
            beyond = b.const(i32.range[defs[terms[at[0]]].kind == "lt"])  # of the first one; the others may say what they like
            guarded = b.emit("select", held.operands[0], v, b.emit("full", beyond, shape=v.type.shape))
            one = b.emit("broadcast", guarded, axes=held["axes"], shape=t.type.shape)
            for n in at:
                terms[n] = b.emit(defs[terms[n]].kind, one, defs[terms[n]].operands[1])
            terms.remove(t)


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
    less: Value | None = None  # a scalar that is taken from the position
    made: bool = False  # the bound is new


def _near(v: Value, op: Op, defs: dict[Value, Op], b: Builder, env: Env, terms: list[Value]) -> _Below | None:
    """The upper limit of columns at most (or less than) so far from rows; the lower one is a term."""
    test = defs.get(v)
    if test is None or test.kind not in ORDER or not isinstance(test.result.type, Tile):
        return None
    turned, extra = ORDER[test.kind]
    distance, most = test.operands[::-1] if turned else test.operands
    size = defs.get(distance)
    apart = defs.get(size.operands[0]) if size is not None and size.kind == "abs" else None
    if apart is None or apart.kind != "sub" or not isinstance(most.type, Scalar):
        return None
    spread = {o["axes"][0]: o.operands[0] for o in map(defs.get, apart.operands)
              if o is not None and o.kind == "broadcast" and len(o["axes"]) == 1 and _is_row(o.operands[0], defs)}
    if len(spread) != 2:
        return None
    row, col = env[spread[0]], spread[1]
    far = b.emit("add", env[most], b.const(extra), name="far") if extra else env[most]
    as_tile = lambda x, axis: b.emit("broadcast", x, axes=(axis,), shape=op.result.type.shape)
    terms.append(b.emit("gt", as_tile(env[col], 1), as_tile(b.emit("sub", row, far, name="start"), 0)))
    return _Below(*_plain(col, defs), 1, b.emit("add", row, far, name="limit"), 0, made=True)


def _below(v: Value, defs: dict[Value, Op]) -> _Below | None:
    op = defs.get(v)
    if op is None:
        return None
    if op.kind == "broadcast" and len(op.operands[0].type.shape) == 1:  # a comparison of vectors, spread
        inner = defs.get(op.operands[0])
        if inner is None or inner.kind not in ORDER:
            return None
        x, y, extra = _sides(inner)
        if not isinstance(y.type, Scalar) or isinstance(x.type, Scalar) or not _is_row(x, defs):
            return None
        return _Below(*_plain(x, defs), op["axes"][0], y, extra)
    if op.kind not in ORDER:
        return None
    x, y, extra = _sides(op)
    left, right = defs.get(x), defs.get(y)
    apart: Value | None = None
    if left is not None and left.kind == "sub" and isinstance(y.type, Scalar):  # a distance of two positions
        (left, right), apart = map(defs.get, left.operands), y
    if left is None or left.kind != "broadcast" or len(left.operands[0].type.shape) != 1:
        return None
    axis = left["axes"][0]
    if not _is_row(left.operands[0], defs) or right is None or right.kind != "broadcast" or tuple(right["axes"]) != (1 - axis,):
        return None
    return _Below(*_plain(left.operands[0], defs), axis, right.operands[0], extra, apart)


def _sides(op: Op) -> tuple[Value, Value, int]:
    """(x, y, n) where a comparison says x < y + n."""
    turned, extra = ORDER[op.kind]
    return (*reversed(op.operands), extra) if turned else (*op.operands, extra)  # type: ignore[return-value]


def _is_row(x: Value, defs: dict[Value, Op]) -> bool:
    """Whether a vector is positions: what is moved to the other side of a comparison of other numbers might wrap there."""
    return x.type.dtype == i32 and is_position(x, defs, lambda v: isinstance(v.type, Scalar))


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
            bound = b.emit("add", bound, b.const(part.extra))
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
