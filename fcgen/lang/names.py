"""The end of a trace: the recorded ops become a kernel whose values carry the spec's variable names."""

from __future__ import annotations

from dataclasses import replace

from ..ir.core import Block, GridAxis, Op, Value, uses
from .trace import Tracer

_STEPS = 8  # how far from its variable a dot may stand


class Finisher:
    """Copies blocks: aliases resolved, spare ops dropped, names given."""

    def __init__(self, t: Tracer, block: Block):
        self.t = t
        self.new: dict[Value, Value] = {}
        self.uses = uses(block)

    def grid(self, args: tuple[Value, ...]) -> tuple[GridAxis, ...]:
        assert self.t.grid is not None
        return tuple(replace(g, name=self.new[a].name) for g, a in zip(self.t.grid, args))

    def block(self, block: Block) -> Block:
        args = tuple(map(self.define, block.args))
        return Block(args, tuple(self.op(op) for op in block.ops if not self.unused(op)))

    def unused(self, op: Op) -> bool:
        return len(op.results) == 1 and op.results[0] in self.t.spare and op.results[0] not in self.uses

    def op(self, op: Op) -> Op:
        operands = tuple(map(self.use, op.operands))
        regions = tuple(map(self.block, op.regions))
        if op.kind == "dot" and not self.name(op.result):
            self.t.names[op.result] = self.dot_name(op.result)
        return replace(op, operands=operands, results=tuple(map(self.define, op.results)), regions=regions)

    def use(self, v: Value) -> Value:
        while v in self.t.alias:
            v = self.t.alias[v]
        return self.new.get(v, v)

    def define(self, v: Value) -> Value:
        self.new[v] = Value(v.type, self.name(v))
        return self.new[v]

    def name(self, v: Value) -> str:
        """The variable that held it first, the var that carries it, or what its op suggests."""
        t = self.t
        return t.names.get(v) or (t.var_values[v].name if v in t.var_values else "") or v.name

    def dot_name(self, v: Value) -> str:
        """`s = fc.dot(q, k.T) * scale`: the product without a name of its own is `s_dot`."""
        for _ in range(_STEPS):
            users = self.uses.get(v, [])
            if not users or len(users[0].results) != 1:
                return ""
            v = users[0].result
            if self.name(v):
                return f"{self.name(v)}_dot"
        return ""
