"""counted: quotients and remainders of a loop's index are counted along.

In: selected machine IR. Out: the same, where a loop that counts upwards divides its index, or that plus a number, by a scalar from outside
which is at least 1 by what it is made of: quotient and remainder are carried, and divided once in front of the loop. Guaranteed: the same
numbers. A division takes some thirty instructions one after the other, in every iteration, of all that need one place in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...ir.core import Block, Kernel, Op, Value, definitions, made_within, walk
from ...ir.known import const_of
from ...ir.rewrite import Builder, edited, map_bodies
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar, i32


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    def body(block: Block) -> Block:
        defs = definitions(block)
        return edited(block, lambda op: _loop(op, defs) if op.kind == "for" and not op.get("unroll") and not op.get("descending") else op)

    return map_bodies(kernel, body)


def _loop(loop: Op, defs: Mapping[Value, Op]) -> Op | Sequence[Op]:
    body = loop.regions[0]
    inside = made_within(body)
    found: dict[Value, dict[Value, int]] = {}
    for op in walk(body):
        if op.kind in ("floordiv", "mod") and op.result.type == Scalar(i32) and op.operands[1] not in inside:
            ahead = _ahead(op.operands[0], body.args[0], defs)
            if ahead is not None and _positive(op.operands[1], defs):
                found.setdefault(op.operands[1], {})[op.result] = ahead
    if not found:
        return loop
    before, step = Builder(loop.loc), Builder(loop.loc)
    states: dict[tuple[Value, int], tuple[Value, Value]] = {}
    inits, args, nexts = list[Value](), list[Value](), list[Value]()
    for by, uses in found.items():
        for ahead in sorted(set(uses.values()), key=abs):
            if not any((by, ahead + n) in states for n in (-1, 1)):
                first = before.emit("add", loop.operands[0], before.const(ahead))
                inits += [before.emit("floordiv", first, by), before.emit("mod", first, by)]
                states[by, ahead] = Value(Scalar(i32), "quotient"), Value(Scalar(i32), "rest")
                args += states[by, ahead]
                nexts += _moved(step, *states[by, ahead], by, 1)

    def used(op: Op) -> Op | Sequence[Op]:
        """What a division is, beside the one that is counted along."""
        if op.kind not in ("floordiv", "mod") or (ahead := found.get(op.operands[1], {}).get(op.result)) is None:
            return op
        by, b = op.operands[1], Builder(op.loc)
        near = next(n for n in (0, -1, 1) if (by, ahead - n) in states)
        out = _moved(b, *states[by, ahead - near], by, near) if near else states[by, ahead]
        return [*b.ops, Op("add", (out[op.kind == "mod"], zero), op.results, {}, (), op.loc)]

    zero = before.const(0)
    *kept, last = edited(body, used).ops
    ops = (*kept, *step.ops, replace(last, operands=(*last.operands, *nexts)))
    return [*before.ops, replace(loop, operands=(*loop.operands, *inits), results=(*loop.results, *(v.anew() for v in args)),
                                 regions=(Block((*body.args, *args), ops), *loop.regions[1:]))]


def _moved(b: Builder, q: Value, r: Value, by: Value, n: int) -> tuple[Value, Value]:
    """Quotient and rest of the number behind (1), or before (-1)."""
    one, zero = b.const(1), b.const(0)
    if n > 0:
        more = b.emit("add", r, one)
        over = b.emit("ge", more, by)
        return b.emit("select", over, b.emit("add", q, one), q), b.emit("select", over, zero, more)
    over = b.emit("eq", r, zero)
    return (b.emit("select", over, b.emit("sub", q, one), q),
            b.emit("select", over, b.emit("sub", by, one), b.emit("sub", r, one)))


def _ahead(v: Value, index: Value, defs: Mapping[Value, Op]) -> int | None:
    """c where v is index + c."""
    if v is index:
        return 0
    op = defs.get(v)
    if op is None or op.kind not in ("add", "sub"):
        return None
    a, b = op.operands
    if b is index and op.kind == "add":
        a, b = b, a
    c = const_of(b, defs)
    return None if a is not index or not isinstance(c, int) else c if op.kind == "add" else -c


def _positive(v: Value, defs: Mapping[Value, Op]) -> bool:
    op = defs.get(v)
    return op is not None and op.kind == "max" and any((const_of(x, defs) or 0) >= 1 for x in op.operands)
