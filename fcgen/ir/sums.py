"""Loops that add up: what they carry is a sum, and nothing reads it before it is whole."""

from __future__ import annotations

from collections.abc import Mapping

from .core import Block, Op, Value, definitions, uses

#: what is added to a sum: a value, or the operands of a product that adds to it
Addend = Value | tuple[Value, ...]


class NoSum(Exception):
    """op: where what is carried is more than a sum; None where it is not there at all."""

    def __init__(self, op: Op | None):
        super().__init__(op)
        self.op = op


def sum_of(body: Block, arg: Value, y: Value) -> tuple[set[Op], list[Addend]]:
    """(the ops that add to what a loop carries as `arg` and yields as `y`, what they add). Raises NoSum where it is no sum."""
    made, used = definitions(body), uses(body)
    chain: set[Op] = set()
    addends: list[Addend] = []
    v, after = y, body.ops[-1]
    while True:
        readers = [o for o in used.get(v, []) if o is not after and o is not body.ops[-1]]
        if readers:  # what is summed up so far is part of something else
            raise NoSum(readers[0])
        if v is arg:
            return chain, addends
        op = made.get(v)
        before = [x for x in op.operands if leads_to(made, x, arg)] if op is not None and op.kind in ("add", "dot") else []
        if op is None or len(before) != 1 or (op.kind == "dot" and before[0] is not op.operands[-1]):
            raise NoSum(op)
        chain.add(op)
        addends.append(op.operands[:2] if op.kind == "dot" else next(o for o in op.operands if o is not before[0]))
        v, after = before[0], op


def leads_to(made: Mapping[Value, Op], v: Value, arg: Value) -> bool:
    """Whether v is arg, or follows from it."""
    op = made.get(v)
    return v is arg or (op is not None and any(leads_to(made, x, arg) for x in (*op.operands, *(o for r in op.regions for o in r.reads))))
