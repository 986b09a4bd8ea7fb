"""Cursors as values: a channel's position, written as one name that `advance` changes, becomes a value per step, carried through loops
and branches.

In: a block in which a `Value` of type `Cursor` stands for each channel and `advance` has no result. Out: the same with a `cursor` op per
channel at the top and every step a value of its own.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.core import Block, Op, Value, made_within, walk
from ...ir.rewrite import Builder
from ...ir.types import Cursor


def thread_cursors(block: Block) -> Block:
    """`block` is a role's whole body."""
    b = Builder()
    now: dict[Value, Value] = {}
    given = made_within(block)
    for v in dict.fromkeys(v for o in walk(block) for v in o.operands if isinstance(v.type, Cursor) and v not in given):
        now[v] = b.emit("cursor", slots=v.type.slots, name=f"{v.name}_at")
    ops, _ = _ops(block.ops, now)
    return Block(block.args, (*b.ops, *ops))


def _moved(blocks: tuple[Block, ...]) -> list[Value]:
    return list(dict.fromkeys(o.operands[0] for r in blocks for o in walk(r) if o.kind == "advance" and not o.results))


def _ops(ops: tuple[Op, ...], now: dict[Value, Value]) -> tuple[list[Op], dict[Value, Value]]:
    out: list[Op] = []
    now = dict(now)
    for op in ops:
        operands = tuple(now.get(v, v) for v in op.operands)
        if op.kind == "advance" and not op.results:
            v = op.operands[0]
            new = Value(v.type, f"{v.name}_at")
            out.append(replace(op, operands=operands, results=(new,)))
            now[v] = new
            continue
        if not op.regions:
            out.append(op.reading(operands))
            continue
        moved = _moved(op.regions)
        loop = op.kind in ("for", "while")
        results = tuple(Value(v.type, f"{v.name}_at") for v in moved)
        regions = []
        for r in op.regions:
            args = tuple(Value(v.type, f"{v.name}_at") for v in moved) if loop else ()
            inner, end = _ops(r.ops, {**now, **dict(zip(moved, args))} if loop else now)
            last = inner[-1]
            inner[-1] = replace(last, operands=(*last.operands, *(end[v] for v in moved)))
            regions.append(Block((*r.args, *args), tuple(inner)))
        extra = tuple(now[v] for v in moved) if loop else ()
        out.append(replace(op, operands=(*operands, *extra), regions=tuple(regions), results=(*op.results, *results)))
        now.update(zip(moved, results))
    return out, now
