"""Copies of a loop's body that use what is known in them; part of `split_loops`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

from ...ir.core import Block, Op, Value
from ...ir.rewrite import Builder, Env
from ...ir.types import Tile


@dataclass
class Facts:
    """What holds in one copy: conditions with their value, guards (an op, an axis) that are not needed, and absolute values of what is not
    below 0."""

    conditions: dict[Value, bool] = field(default_factory=dict)
    guards: set[tuple[Op, int]] = field(default_factory=set)
    signs: set[Op] = field(default_factory=set)

    def __or__(self, other: Facts) -> Facts:
        return Facts({**self.conditions, **other.conditions}, self.guards | other.guards, self.signs | other.signs)

    def __bool__(self) -> bool:
        return bool(self.conditions or self.guards)


def known(b: Builder, v: Value, truth: bool) -> Value:
    """A condition whose value is known, in its own shape."""
    value = b.emit("const", value=truth, dtype="i1")
    return b.emit("full", value, shape=v.type.shape) if isinstance(v.type, Tile) else value


def specialise(block: Block, env: Env, facts: Facts) -> Block:
    """A copy in which the facts have been used."""
    args = env.anew(block.args)
    b = Builder()
    for op in block.ops:
        b.loc = op.loc
        if len(op.results) == 1 and op.result in facts.conditions:
            env[op.result] = known(b, op.result, facts.conditions[op.result])
            continue
        if op in facts.signs:
            env[op.result] = env[op.operands[0]]
            continue
        attrs = op.attrs
        if "guard" in attrs:
            attrs = {**attrs, "guard": tuple(g and (op, a) not in facts.guards for a, g in enumerate(attrs["guard"]))}
        operands, regions = env.all(op.operands), tuple(specialise(r, env, facts) for r in op.regions)
        b.add(replace(op, operands=operands, attrs=attrs, regions=regions, results=env.anew(op.results)))
    return b.block(args)


def asking(loop: Op, low: Value | None, high: Value | None, masks: dict[Op, bool], apart: Mapping[Value, Value],
           defs: Mapping[Value, Op]) -> Block:
    """A loop's body in which these selects, masks or their opposites, let all of a tile pass while low <= index < high. apart: conditions
    that a scalar decides, which range or none: selects ask for these, and that scalar, by themselves."""
    block = loop.regions[0]
    b, index = Builder(loop.loc), block.args[0]
    tests = ([b.emit("ge", index, low)] if low is not None else []) + ([b.emit("lt", index, high)] if high is not None else [])
    whole = tests[0] if len(tests) == 1 else b.emit("and", *tests)
    for op in block.ops:
        b.loc = op.loc
        if op in masks:
            cond, kind, shape = op.operands[0], "or" if masks[op] else "and", op.operands[0].type.shape
            told = dict.fromkeys(v for v in _conjunction(cond, defs) if v in apart) if masks[op] else {}
            rest = _without(cond, told, defs, b)
            word = b.emit("full", whole if masks[op] else b.emit("not", whole), shape=shape)
            if told and rest is not None:
                x = b.emit("select", b.emit(kind, word, rest), *op.operands[1:], name=op.result.name)
                alone = _without(cond, [v for v in _conjunction(cond, defs) if v not in told], defs, b)
                assert alone is not None
                word = b.emit("full", reduce(lambda p, q: b.emit("and", p, q), dict.fromkeys(apart[v] for v in told)), shape=shape)
                op = replace(op, operands=(b.emit(kind, word, alone), x, op.operands[2]))
            else:
                op = replace(op, operands=(b.emit(kind, word, cond), *op.operands[1:]))
        b.add(op)
    return b.block(block.args)


def _conjunction(v: Value, defs: Mapping[Value, Op]) -> list[Value]:
    """What has to hold, each part in its own shape."""
    op = defs.get(v)
    if op is None or op.kind not in ("and", "broadcast", "transpose", "full"):
        return [v]
    return [x for o in op.operands for x in _conjunction(o, defs)]


def _without(v: Value, left_out: Container[Value], defs: Mapping[Value, Op], b: Builder) -> Value | None:
    """A conjunction without some of its parts; None where nothing is left."""
    op = defs.get(v)
    if v in left_out:
        return None
    if op is None or op.kind not in ("and", "broadcast", "transpose", "full"):
        return v
    parts = [x for o in op.operands if (x := _without(o, left_out, defs, b)) is not None]
    if parts == list(op.operands):
        return v
    if len(parts) < len(op.operands):
        return parts[0] if parts else None
    return b.add(replace(op, operands=tuple(parts), results=(op.result.anew(),))).result
