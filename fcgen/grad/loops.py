"""Loops, walked backwards: the loops that a gradient has in the place of one.

Where all that a loop carries, and gradients go through, is one of the forms of `states`, a second loop walks the same tiles: each
addend's gradient is that of its sum. Sums against a reference are computed against its last value there, so nothing is rescaled. A largest
passes its gradient on to what is as large, in equal shares, which a loop of its own counts; it has none where results hang on sums and
reference in ways that make up for each other (`scaling`).

Any other loop is walked from its last iteration to its first, carrying the gradients of its states. The states before an iteration are
computed again from the first one on, by a loop in that loop, as far as the gradient needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import log
from typing import Any

from ..ir.core import Block, Op, Value
from ..ir.rewrite import Builder, Env, copy_block, copy_op
from .scaling import GROWS, Scaling
from .states import States, Sum, states_of
from .writer import Writer

Known = dict[Value, Value]
More = Callable[[Writer], Sequence[tuple[Value, Value, Value]]]


def backwards(walker: Any, m: Writer, op: Op, known: Known, rest: Sequence[Op], ends: set[Value]) -> None:
    """Write the loops behind `op`, whose results have the cotangents `known`; learn those of what it begins with and reads from outside.

    walker: walks the bodies. rest: the ops behind the loop. ends: what has a cotangent from elsewhere."""
    active = [n for n, r in enumerate(op.results) if r in walker.active]
    states = states_of(op, active)
    if states is None:
        _reversed(walker, m, op, known, active)
    else:
        _summed(walker, m, op, known, states, active, rest, ends)


class _Again:
    """A loop over the tiles of `op`, being written: its body as far as `left_out` allows, with `keep` of what it carries."""

    def __init__(self, op: Op, keep: Sequence[int]):
        self.op, self.keep, self.body = op, keep, op.regions[0]
        self.env, self.builder = Env(), Builder(op.loc)
        index, *carried = self.body.args
        self.args = self.env.anew((index, *(carried[n] for n in keep)))

    def copied(self, left_out: set[Op]) -> list[Op]:
        return [copy_op(o, self.env) for o in self.body.ops[:-1] if o not in left_out]

    def close(self, m: Writer, args: Sequence[Value], inits: Sequence[Value], yields: Sequence[Value], **attrs: Any) -> tuple[Value, ...]:
        """The results of further carried values. args, inits, yields: theirs."""
        first = self.op.operands[2:]
        self.builder.do("yield", *(self.env[self.body.yielded[n]] for n in self.keep), *yields)
        regions = (self.builder.block((*self.args, *args)), *(copy_block(r, Env()) for r in self.op.regions[1:]))
        results = tuple(v.anew() for v in (*self.args[1:], *args))
        operands = (*self.op.operands[:2], *(first[n] for n in self.keep), *inits)
        m.builder.add(Op("for", operands, results, {**self.op.attrs, **attrs}, regions, self.op.loc))
        return results[len(self.keep):]


def _outer(walker: Any, body: Block) -> list[Value]:
    """What the body reads from outside of it and has a gradient, in the program's order: a set has another in each process."""
    read: dict[Value, None] = {}

    def look(block: Block) -> None:
        for op in block.ops:
            read.update(dict.fromkeys(v for v in op.operands if v in body.reads))
            for r in op.regions:
                look(r)

    look(body)
    return [v for v in read if v in walker.active and v not in walker.sums]


def _add(m: Writer, known: Known, v: Value, ct: Value | None) -> None:
    if ct is not None:
        known[v] = m.add(known[v], ct) if v in known else ct


def _walk(walker: Any, m: Writer, again: _Again, ops: list[Op], starting: Known, more: More, known: Known,
          **attrs: Any) -> tuple[Value, ...]:
    """The body backwards, its outer values' gradients summed up. more(w): further carried values (argument, first, next), whose last
    values are returned."""
    outer = _outer(walker, again.body)
    zeros = [m.zero(v) for v in outer]
    sums = [Value(z.type, "") for z in zeros]
    w = Writer(again.builder)
    walker.backwards(w, ops, starting)
    carried = [(total, zero, w.add(total, starting[v]) if v in starting else total) for v, total, zero in zip(outer, sums, zeros)]
    carried += more(w)
    results = again.close(m, *([c[k] for c in carried] for k in range(3)), **attrs)
    for v, total in zip(outer, results):
        _add(m, known, v, total)
    return results[len(outer):]


# ---- sums and what they are computed against ------------------------------------------------------------------------------


def _summed(walker: Any, m: Writer, op: Op, known: Known, states: States, active: Sequence[int], rest: Sequence[Op],
            ends: set[Value]) -> None:
    inits = op.operands[2:]
    kept = [n for n in range(len(op.results)) if n not in states.handled]
    bases = {n: _base(m, op, states, n) for n in states.largest}
    starts: list[tuple[tuple[Value, ...], Value]] = []  # an addend, the cotangent of it
    for n, x in states.sums.items():
        ct = known.get(op.results[n]) if n in active else None
        if ct is None:
            continue
        if x.reference is not None:  # nothing has been added up where the reference is infinite, and nothing is divided by it
            none = m.call("eq", op.results[x.reference], float("-inf"))
            ct = m.select(_along(m, none, x, ct), 0.0, ct)
        starts += [(v, ct if sign > 0 else m.call("neg", ct)) for v, sign in x.addends]
        _of_first(walker, m, op, known, states, n, ct)
    shares = {n: ct for n in states.largest if n in active and (ct := _of_largest(m, op, known, states, n, rest, ends)) is not None}
    counts = _counts(m, op, states, shares, kept)
    again = _Again(op, kept)
    for n, base in bases.items():
        if states.largest[n].base is not None:
            again.env[states.largest[n].base] = base
    ops, starting = again.copied(states.spent), Known()
    behind = Builder(op.loc)  # ops like these, which the walk begins with
    w = Writer(behind)
    for vs, ct in starts:
        v = again.env[vs[0]] if len(vs) == 1 else w.emit("dot", *again.env.all(vs))
        _add(w, starting, v, ct)
    for n, ct in shares.items():
        share = m.div(ct, counts[n])
        if inits[n] in walker.active:
            _add(m, known, inits[n], m.select(m.call("eq", inits[n], op.results[n]), share, 0.0))
        for f in map(again.env.__getitem__, states.largest[n].of):
            _add(w, starting, f, w.fit(w.select(w.call("eq", f, op.results[n]), share, 0.0), f))
    _walk(walker, m, again, [*ops, *behind.ops], starting, lambda w: [], known)


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


def _along(m: Writer, v: Value, x: Sum, like: Value) -> Value:
    return v if x.axes is None else m.spread(v, x.axes, like)


def _of_first(walker: Any, m: Writer, op: Op, known: Known, states: States, n: int, ct: Value) -> None:
    """What a sum, and the reference that it is computed against, begin with."""
    x, inits = states.sums[n], op.operands[2:]
    k = x.reference
    if k is not None:
        m.at(op)
        left = m.call(states.largest[k].fn, m.sub(inits[k], _base(m, op, states, k)))
        ct = m.mul(ct, _along(m, left, x, ct))
        if inits[k] in walker.active:
            part = _rows(m, m.mul(ct, inits[n]), x)
            _add(m, known, inits[k], part if states.largest[k].fn == "exp" else m.mul(part, log(2)))
    if inits[n] in walker.active:
        _add(m, known, inits[n], ct)


def _rows(m: Writer, v: Value, x: Sum) -> Value:
    """Of a value like the sum, what adds up for each element of its reference."""
    for axis in reversed([a for a in range(len(v.type.shape)) if x.axes is not None and a not in x.axes]):
        v = m.sum(v, axis)
    return v


def _of_largest(m: Writer, op: Op, known: Known, states: States, n: int, rest: Sequence[Op], ends: set[Value]) -> Value | None:
    """The gradient of a largest value, less that of the sums against it, which would be larger were it smaller."""
    ct = known.get(op.results[n])
    against = [k for k, x in states.sums.items() if x.reference == n]
    if against:
        moved = {op.results[n]: GROWS, **{op.results[k]: ("scaled", Fraction(-1)) for k in against}}
        scaling = Scaling(moved, states.largest[n].fn)
        if scaling.run(rest) and not any(scaling.moves(v) for v in ends):
            return None
    for k in against:
        own = known.get(op.results[k])
        if own is not None:
            part = _rows(m, m.mul(own, op.results[k]), states.sums[k])
            part = part if states.largest[n].fn == "exp" else m.mul(part, log(2))
            ct = m.call("neg", part) if ct is None else m.sub(ct, part)
    return ct


def _counts(m: Writer, op: Op, states: States, shares: Known, kept: Sequence[int]) -> Known:
    """How many values are as large as the largest."""
    if not shares:
        return {}
    again = _Again(op, kept)
    ops, w = again.copied(states.spent), Writer(again.builder)
    for o in ops:
        again.builder.add(o)
    args, inits, yields = [], [], []
    for n in shares:
        equal = lambda v, w, n=n: w.cast(w.call("eq", v, op.results[n]), op.results[n].type.dtype)
        inits.append(equal(op.operands[2 + n], m))
        args.append(Value(inits[-1].type, ""))
        total: Value = args[-1]
        for f in states.largest[n].of:
            total = w.add(total, equal(again.env[f], w))
        yields.append(total)
    return dict(zip(shares, again.close(m, args, inits, yields)))


# ---- any state --------------------------------------------------------------------------------------------------------------


def _reversed(walker: Any, m: Writer, op: Op, known: Known, active: Sequence[int]) -> None:
    body, inits, down = op.regions[0], op.operands[2:], bool(op.get("descending"))
    again = _Again(op, ())
    w = Writer(again.builder)
    at = again.args[0]
    low, high = (w.add(at, 1), op.operands[1]) if down else (op.operands[0], at)
    states = copy_op(walker.forward(replace(op, operands=(low, high, *inits))), Env())
    again.builder.add(states)
    for n, (arg, state) in enumerate(zip(body.args[1:], states.results)):
        again.env[arg] = state
        if n in active:
            walker.active.add(state)
    ops = again.copied(set())
    starting: Known = {}
    adjoint = {n: m.wide(m.zero(op.results[n])) for n in active}
    for n in active:
        if op.results[n] in known:
            adjoint[n] = known[op.results[n]]
    args = {n: Value(v.type, "") for n, v in adjoint.items()}
    for n in active:
        _add(w, starting, again.env[body.yielded[n]], args[n])

    def more(w: Writer) -> list[tuple[Value, Value, Value]]:
        return [(args[n], adjoint[n], starting[s] if (s := states.results[n]) in starting else w.zero(s)) for n in active]

    for n, ct in zip(active, _walk(walker, m, again, ops, starting, more, known, descending=not down)):
        if inits[n] in walker.active:
            _add(m, known, inits[n], ct)
