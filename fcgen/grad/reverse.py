"""The gradient of a loop with any states: from its last iteration to its first, carrying the gradients of the states.

The states before an iteration are needed for what is no linear function of them. Where going from one iteration to the one before it needs
none, there are two loops. One goes forwards, computes the states once more, and walks back from what each iteration stores. The other
goes backwards without any state, and walks back from the states' gradients. So it is for a state that fades, `x <<= a * x + b`, that is
read on the way, linearly. The gradient of a factor a is then dx times x, which neither loop has both of; but

    (dx x) before an iteration = (dx x) behind it - dx b + (what is stored there, times x)      and      a da = (dx x) behind it - dx b

so that each loop sums up one of the two terms. a must be a function f of which f'(x) / f(x) is known (`RELATIVE`): nothing is divided by
what may be 0. Elsewhere the states are computed again for each iteration, from the first one on, by a loop in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from typing import Any

from ..ir.core import Block, Op, Value, definitions
from ..ir.rewrite import Builder, Env, copy_op, remove_dead
from .activity import within
from .again import Again, Carried, Known, add, walk
from .states import Faded, faded
from .writer import Writer

#: a function -> its derivative over its value, times t
RELATIVE: dict[str, Callable[[Writer, Value, Value], Value]] = {
    "exp": lambda m, t, out: t, "exp2": lambda m, t, out: m.mul(t, log(2)), "sigmoid": lambda m, t, out: m.mul(t, m.sub(1.0, out))}


def through_states(walker: Any, m: Writer, op: Op, known: Known, active: Sequence[int]) -> None:
    if not _apart(walker, m, op, known, active):
        _recomputed(walker, m, op, known, active)


def _adjoints(m: Writer, op: Op, known: Known, active: Sequence[int]) -> dict[int, Value]:
    """The gradients that the walk begins with."""
    return {n: known[op.results[n]] if op.results[n] in known else m.wide(m.zero(op.results[n])) for n in active}


def _backwards(op: Op) -> dict[str, Any]:
    return {"descending": not op.get("descending")}


def _recomputed(walker: Any, m: Writer, op: Op, known: Known, active: Sequence[int]) -> None:
    body, inits = op.regions[0], op.operands[2:]
    again = Again(op, ())
    w, at = Writer(again.builder), again.args[0]
    low, high = (w.add(at, 1), op.operands[1]) if op.get("descending") else (op.operands[0], at)
    states = copy_op(walker.forward(replace(op, operands=(low, high, *inits))), Env())
    again.builder.add(states)
    again.env.map.update(zip(body.args[1:], states.results))
    walker.active |= {states.results[n] for n in active}
    first, starting = _adjoints(m, op, known, active), Known()
    args = {n: Value(v.type, "") for n, v in first.items()}
    ops = again.copied(set())
    for n in active:
        add(w, starting, again.env[body.yielded[n]], args[n])

    def run(w: Writer) -> list[Carried]:
        walker.backwards(w, ops, starting)
        return [(args[n], first[n], starting.get(s) or w.zero(s)) for n in active if (s := states.results[n])]

    for n, ct in zip(active, walk(walker, m, again, starting, run, known, **_backwards(op))):
        if inits[n] in walker.active:
            add(m, known, inits[n], ct)


# ---- two loops ------------------------------------------------------------------------------------------------------------------


def _apart(walker: Any, m: Writer, op: Op, known: Known, active: Sequence[int]) -> bool:
    """Write the two loops, if the second needs no states."""
    made, inside = definitions(op.regions[0]), within(op, walker.active)
    exact = [n for n in active if op.results[n].type.dtype.bits >= 32]  # what is rounded at each step would add up
    factors = {n: x for n in exact if (x := faded(op, n)) is not None and x.factor in inside and
               x.factor in made and made[x.factor].kind in RELATIVE}
    first = _adjoints(m, op, known, active)
    held, b = set(walker.active), Builder(op.loc)
    learnt = dict(known)
    stored = _of_what_is_stored(walker, Writer(b), op, learnt, active, factors)
    for n, x in factors.items():
        if op.results[n] in known:
            stored[n] = Writer(b).add(stored[n], m.sum_to(m.mul(first[n], m.wide(op.results[n])), x.axes))
    states = _of_states(walker, Writer(b), op, learnt, active, factors, first, stored)
    ops = remove_dead(Block((), tuple(b.ops)), {*learnt.values(), *b.ops[-1].results}).ops
    if any(v in states for o in ops for v in o.reads):
        walker.active = held
        return False
    m.builder.ops += ops
    known.update(learnt)
    return True


def _of_what_is_stored(walker: Any, m: Writer, op: Op, known: Known, active: Sequence[int], factors: dict[int, Faded]) -> dict[int, Value]:
    """The loop forwards. Returns, of each state that fades, the sum of its values times the gradients that they get of what is stored."""
    again, starting = Again(op, range(len(op.results))), Known()
    states = again.args[1:]
    walker.active |= {states[n] for n in active}

    def run(w: Writer) -> list[Carried]:
        walker.backwards(w, again.copied(set()), starting)
        out: list[Carried] = []
        for n, x in factors.items():
            s = states[n]
            share = m.sum_to(m.zero(s), x.axes)
            so_far = Value(share.type, "")
            total = w.add(so_far, w.sum_to(w.mul(starting[s], w.wide(s)), x.axes)) if s in starting else so_far
            out.append((so_far, share, total))
        ops, behind = again.copied(set()), Builder(op.loc)
        for x, (_, _, total) in zip(factors.values(), out):
            _of_factor(Writer(behind), starting, again, x.factor, Writer(behind).call("neg", total))
        walker.backwards(w, [*_without_stores(walker, ops), *behind.ops], starting)
        return out

    return dict(zip(factors, walk(walker, m, again, starting, run, known)))


def _of_states(walker: Any, m: Writer, op: Op, known: Known, active: Sequence[int], factors: dict[int, Faded], first: dict[int, Value],
               stored: dict[int, Value]) -> set[Value]:
    """The loop backwards. Returns values that stand for the states before an iteration, which it has not."""
    body, inits = op.regions[0], op.operands[2:]
    again, starting = Again(op, ()), Known()
    states = again.env.anew(body.args[1:])
    args = {n: Value(v.type, "") for n, v in first.items()}

    def run(w: Writer) -> list[Carried]:
        held, walker.active = walker.active, {states[n] for n in active}
        walker.backwards(w, again.copied(set()), starting)  # what is stored, as far as it hangs on the states
        walker.active = held | {states[n] for n in active}
        ops, behind = again.copied(set()), Builder(op.loc)
        b, sums = Writer(behind), list[Carried]()
        for n in active:
            if n not in factors:
                add(b, starting, again.env[body.yielded[n]], args[n])
                continue
            x = factors[n]
            zero = m.sum_to(m.zero(states[n]), x.axes)
            so_far = total = Value(zero.type, "")
            for vs, sign in x.addends:
                v = again.env[vs[0]] if len(vs) == 1 else b.emit("dot", *again.env.all(vs))
                ct = args[n] if sign > 0 else b.call("neg", args[n])
                total = b.add(total, b.sum_to(b.mul(ct, b.wide(v)), x.axes))
                add(b, starting, v, ct)
            sums.append((so_far, zero, total))
            add(b, starting, states[n], b.mul(args[n], b.along_axes(b.wide(again.env[x.factor]), x.axes, args[n])))
            _of_factor(b, starting, again, x.factor, b.sub(stored[n], total))
        walker.backwards(w, [*_without_stores(walker, ops), *behind.ops], starting)
        return [*((args[n], first[n], starting.get(states[n]) or w.zero(states[n])) for n in active), *sums]

    for n, ct in zip(active, walk(walker, m, again, starting, run, known, **_backwards(op))):
        if inits[n] in walker.active:
            add(m, known, inits[n], ct)
    return set(states)


def _of_factor(m: Writer, starting: Known, again: Again, factor: Value, share: Value) -> None:
    """What a factor is made of gets its part. share: the gradient of the factor times the factor."""
    maker = definitions(again.body)[factor]
    add(m, starting, again.env[maker.operands[0]], RELATIVE[maker.kind](m, share, m.wide(again.env[factor])))


def _without_stores(walker: Any, ops: Sequence[Op]) -> list[Op]:
    return [walker.forward(op) for op in ops if op.kind != "store"]
