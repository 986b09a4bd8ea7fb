"""The gradient of a loop whose states are sums and what is largest (`states`): a second loop over the same tiles.

Each addend's gradient is that of its sum. Sums against a reference are computed against its last value there, so nothing is rescaled. A
largest passes its gradient on to what is as large (but for a few roundings), in equal shares, which a loop of its own counts; it has none
where results hang on sums and reference in ways that make up for each other (`scaling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from typing import Any

from ..ir.core import Op, Value
from ..ir.rewrite import Builder, Env, copy_op
from .again import Again, Carried, Known, add, walk
from .scaling import Scaling, grows, shrinks
from .states import States
from .writer import Writer


def through_sums(walker: Any, m: Writer, op: Op, known: Known, states: States, active: Sequence[int], rest: Sequence[Op],
            ends: set[Value]) -> None:
    inits = op.operands[2:]
    kept = [n for n in range(len(op.results)) if n not in states.handled]
    starts: list[tuple[tuple[Value, ...], Value]] = []  # an addend, the cotangent of it
    for n, x in states.sums.items():
        ct = known.get(op.results[n]) if n in active else None
        if ct is None:
            continue
        if x.reference is not None:  # nothing has been added up where the reference is infinite, and nothing is divided by it
            none = m.call("eq", op.results[x.reference], -inf)
            ct = m.select(m.along_axes(none, x.axes, ct), 0.0, ct)
        starts += [(v, ct if sign > 0 else m.call("neg", ct)) for v, sign in x.addends]
        _of_first(walker, m, op, known, states, n, ct)
    shares = {n: ct for n in states.largest if n in active and (ct := _of_largest(m, op, known, states, n, rest, ends)) is not None}
    counts = _counts(m, op, states, shares, kept)
    again = Again(op, kept)
    for n, largest in states.largest.items():
        if largest.base is not None:
            again.env[largest.base] = _base(m, op, states, n)
    ops, starting = again.copied(states.spent), Known()
    behind = Builder(op.loc)  # ops like these, which the walk begins with
    w = Writer(behind)
    for vs, ct in starts:
        v = again.env[vs[0]] if len(vs) == 1 else w.emit("dot", *again.env.all(vs))
        add(w, starting, v, ct)
    for n, ct in shares.items():
        share = m.div(ct, counts[n])
        if inits[n] in walker.active:
            add(m, known, inits[n], m.select(_equal(m, inits[n], op.results[n]), share, 0.0))
        for f in map(again.env.__getitem__, states.largest[n].of):
            add(w, starting, f, w.fit(w.select(_equal(w, f, op.results[n]), share, 0.0), f))
    ops += behind.ops

    def run(w: Writer) -> list[Carried]:
        walker.backwards(w, ops, starting)
        return []

    walk(walker, m, again, starting, run, known)


def _base(m: Writer, op: Op, states: States, n: int) -> Value:
    """What sums against the largest value number n would be computed against, were it known from the first tile on."""
    x, body = states.largest[n], op.regions[0]
    env = Env({body.yielded[n]: op.results[n]})
    made = {v: o for o in body.ops for v in o.results}
    for o in x.guard:
        for v in o.operands:
            _constant(m, made, v, env)
        m.builder.add(copy_op(o, env))
    return env[x.base] if x.base is not None else op.results[n]


def _constant(m: Writer, made: dict[Value, Op], v: Value, env: Env) -> None:
    if v in made and v not in env.map:
        for x in made[v].operands:
            _constant(m, made, x, env)
        m.builder.add(copy_op(made[v], env))


def _of_first(walker: Any, m: Writer, op: Op, known: Known, states: States, n: int, ct: Value) -> None:
    """What a sum, and the reference that it is computed against, begin with."""
    x, inits = states.sums[n], op.operands[2:]
    k = x.reference
    if k is not None:
        m.at(op)
        left = m.call(states.largest[k].fn, m.sub(inits[k], _base(m, op, states, k)))
        ct = m.mul(ct, m.along_axes(m.wide(left), x.axes, ct))
        if inits[k] in walker.active:
            part = m.sum_to(m.mul(ct, m.wide(inits[n])), x.axes)
            add(m, known, inits[k], part if states.largest[k].fn == "exp" else m.mul(part, log(2)))
    if inits[n] in walker.active:
        add(m, known, inits[n], ct)


def _of_largest(m: Writer, op: Op, known: Known, states: States, n: int, rest: Sequence[Op], ends: set[Value]) -> Value | None:
    """The gradient of a largest value, less that of the sums against it, which would be larger were it smaller."""
    ct = known.get(op.results[n])
    against = [k for k, x in states.sums.items() if x.reference == n]
    if against:
        reference = op.results[n]
        moved = {reference: grows(reference), **{op.results[k]: shrinks(reference, states.sums[k].axes) for k in against}}
        scaling = Scaling(moved, states.largest[n].fn)
        if scaling.run(rest) and not any(scaling.moves(v) for v in ends):
            return None
    for k in against:
        own = known.get(op.results[k])
        if own is not None:
            part = m.sum_to(m.mul(own, m.wide(op.results[k])), states.sums[k].axes)
            part = part if states.largest[n].fn == "exp" else m.mul(part, log(2))
            ct = m.call("neg", part) if ct is None else m.sub(ct, part)
    return ct


def _equal(m: Writer, f: Value, largest: Value) -> Value:
    """Whether a value is the largest: what a pass makes of one loop may round in another place than what it makes of the next."""
    if largest.type.dtype.bits < 32:
        return m.call("eq", f, largest)
    near = m.call("le", m.call("abs", m.sub(f, largest)), m.mul(m.call("abs", largest), 2.0**-21))
    return m.call("or", m.call("eq", f, largest), near)


def _counts(m: Writer, op: Op, states: States, shares: dict[int, Value], kept: Sequence[int]) -> dict[int, Value]:
    """How many values are as large as the largest."""
    if not shares:
        return {}
    again = Again(op, kept)
    ops, w = again.copied(states.spent), Writer(again.builder)
    for o in ops:
        again.builder.add(o)
    args, inits, yields = [], [], []
    for n in shares:
        r = op.results[n]
        counted = r.type.dtype.computed
        inits.append(m.cast(_equal(m, op.operands[2 + n], r), counted))
        args.append(Value(inits[-1].type, ""))
        total: Value = args[-1]
        for f in states.largest[n].of:
            total = w.add(total, w.cast(_equal(w, again.env[f], r), counted))
        yields.append(total)
    return dict(zip(shares, again.close(m, args, inits, yields)))
