"""Loops that a gradient has over the tiles of another one: copies of its body, and sums of what values from outside of it get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ir.core import Block, Op, Value
from ..ir.rewrite import Builder, Env, copy_block, copy_op
from .writer import Writer

Known = dict[Value, Value]
#: what a loop carries: its argument, its first value, its next one
Carried = tuple[Value, Value, Value]


class Again:
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


def add(m: Writer, known: Known, v: Value, ct: Value | None) -> None:
    if ct is not None:
        known[v] = m.add(known[v], ct) if v in known else ct


def walk(walker: Any, m: Writer, again: Again, starting: Known, run: Callable[[Writer], Sequence[Carried]], known: Known,
         **attrs: Any) -> tuple[Value, ...]:
    """The body backwards, and what its outer values get of that summed up.

    run: writes the body and walks it, from the cotangents that `starting` has, and learns there those of the outer values; says what else
    the loop carries, whose last values are returned."""
    outer = _outer(walker, again.body)
    zeros = [m.zero(v) for v in outer]
    sums = [Value(z.type, "") for z in zeros]
    w = Writer(again.builder)
    more = run(w)
    carried = [(total, zero, w.add(total, starting[v]) if v in starting else total) for v, total, zero in zip(outer, sums, zeros)]
    results = again.close(m, *([c[k] for c in [*carried, *more]] for k in range(3)), **attrs)
    for v, total in zip(outer, results):
        add(m, known, v, total)
    return results[len(outer):]
