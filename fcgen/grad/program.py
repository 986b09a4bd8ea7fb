"""The derivative of a whole kernel: a kernel of the same grid that adds the gradients of tensors that it reads to tensors of their own.

The body runs again, without its stores; then it is walked backwards. Where it stored a tile, the gradient of that output is read; where it
read a tensor, the tile's gradient is added, atomically, at the same places. Loops are walked as `loops` says. Guaranteed: what has no
derivative is FcError "trace/grad" with its line.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import FcError
from ..ir.core import Block, Kernel, Op, Value, walk
from ..ir.rewrite import Builder, remove_dead
from ..ir.types import Tensor, f32, i32
from .activity import spread
from .loops import backwards
from .modes import READS, pull_op
from .writer import Writer


def gradient_of(kernel: Kernel, of: tuple[str, ...]) -> Kernel:
    """of: the tensors whose gradients are computed, all float ones that are read if there are none."""
    outs = [p for p in kernel.params if "out" in kernel.flags.get(p.name, ())]
    read = {op.operands[0] for op in walk(kernel.body) if op.kind in READS}
    for p in outs:
        if p in read:
            first = next(op for op in walk(kernel.body) if op.kind in READS and op.operands[0] is p)
            raise FcError("trace/grad", f"there is no derivative of a kernel that reads what it writes: {p.name}", loc=first.loc)
    _check_stores(kernel)
    inputs = [p for p in kernel.params if p in read and isinstance(p.type, Tensor) and p.type.dtype.is_float]
    if not inputs:
        raise FcError("trace/grad", f"{kernel.name} reads no tensor of floats, and nothing else has a gradient")
    unknown = sorted(set(of) - {p.name for p in inputs})
    if unknown:
        raise FcError("trace/grad", f"{kernel.name} reads no tensor of floats called {', '.join(unknown)}",
                      expected=", ".join(p.name for p in inputs), got=", ".join(unknown))
    inputs = [p for p in inputs if not of or p.name in of]
    named = {p: f"d{p.name}" for p in (*inputs, *outs)}
    taken = {p.name for p in kernel.params} & set(named.values())
    if taken:
        raise FcError("trace/grad", f"the gradient's parameter {', '.join(sorted(taken))} is one of the spec's", hint="rename that one")
    given = {p: Value(p.type, named[p]) for p in outs}
    sums = {p: Value(replace(p.type, dtype=f32), named[p]) for p in inputs}
    walker = _Walker(given, sums)
    b = Builder()
    walker.backwards(Writer(b), list(remove_dead(kernel.body).ops), {})
    params = (*(p for p in kernel.params if p not in outs), *given.values(), *sums.values())
    flags = {n: f for n, f in kernel.flags.items() if n not in {p.name for p in outs}}
    flags |= {p.name: ("out", "kept") for p in sums.values()}
    role = replace(kernel.roles[0], body=remove_dead(Block(kernel.body.args, tuple(b.ops))))
    return replace(kernel, name=f"{kernel.name}_gradient", params=params, flags=flags, roles=(role, *kernel.roles[1:]))


class _Walker:
    """given: output -> the tensor of its gradient; sums: tensor that is read -> the one that its gradient is added to."""

    def __init__(self, given: dict[Value, Value], sums: dict[Value, Value]):
        self.given, self.sums = given, sums
        self.active: set[Value] = set(sums)

    def backwards(self, m: Writer, ops: list[Op], known: dict[Value, Value]) -> dict[Value, Value]:
        """The ops again, and then the walk against them. known: the cotangents of their results; learns those of all that is active."""
        ends = set(known)
        for op in ops:
            if op.kind == "if" and any(x.kind == "store" for r in op.regions for x in walk(r)):
                raise FcError("trace/grad", "there is no derivative through a branch that stores", loc=op.loc,
                              hint="choose with fc.where what is stored")
            if op.kind not in ("store", "yield"):
                m.builder.add(self.forward(op))
            spread((op,), self.active)
        for n, op in reversed(list(enumerate(ops))):
            m.at(op)
            if op.kind == "store":
                self.stored(m, op, known)
            elif op.kind in READS:
                if op.result in known and op.operands[0] in self.sums:
                    self.add(m, op, known[op.result])
            elif op.kind == "for":
                if any(x.kind == "store" for x in walk(op.regions[0])) or any(r in known for r in op.results):
                    backwards(self, m, op, known, ops[n + 1:], ends)
            elif len(op.results) == 1 and op.result in known and op.result in self.active:
                pull_op(m, op, known, self.active)
        return known

    def forward(self, op: Op) -> Op:
        """The op without the stores in it."""
        return op.within(lambda r: Block(r.args, tuple(self.forward(x) for x in r.ops if x.kind != "store")))

    def stored(self, m: Writer, op: Op, known: dict[Value, Value]) -> None:
        to, value, *places = op.operands
        if value not in self.active:
            return
        if "element" in op["index"]:
            raise FcError("trace/grad", "there is no derivative of a store that places each element", loc=op.loc)
        ct = m.wide(m.emit("load", self.given[to], *places, type=value.type, index=op["index"], guard=op["guard"]))
        known[value] = m.add(known[value], ct) if value in known else ct

    def add(self, m: Writer, op: Op, ct: Value) -> None:
        to, places = self.sums[op.operands[0]], op.operands[1:]
        ct = m.cast(ct, f32)
        if op.kind == "load":
            m.builder.do("store", to, ct, *places, index=op["index"], guard=op["guard"], reduce="add")
        elif any(v.type.dtype != i32 for v in places):
            raise FcError("trace/grad", "there is no derivative of what is read at positions of 64 bits", loc=op.loc)
        else:
            m.builder.do("store", to, ct, *places, index=("element",) * len(places), guard=(True,) * len(ct.type.shape), reduce="add")


def _check_stores(kernel: Kernel) -> None:
    """What is written over has no gradient: of a tensor that is not added to, one op stores, at places that each loop around it moves."""
    made = {r: op for op in walk(kernel.body) for r in op.results}
    stored: dict[Value, Op] = {}

    def look(block: Block, around: tuple[Value, ...]) -> None:
        for op in block.ops:
            if op.kind == "store" and op.get("reduce") is None:
                if op.operands[0] in stored:
                    raise FcError("trace/grad", f"there is no derivative of a kernel that stores {op.operands[0].name} twice", loc=op.loc)
                stored[op.operands[0]] = op
                if not all(any(_leads_to(made, v, i) for v in op.operands[2:]) for i in around):
                    raise FcError("trace/grad", "there is no derivative of a loop that stores over what it has stored", loc=op.loc)
            for n, r in enumerate(op.regions):
                look(r, (*around, r.args[0]) if op.kind == "for" and n == 0 else around)

    look(kernel.body, ())


def _leads_to(made: dict[Value, Op], v: Value, arg: Value) -> bool:
    todo, seen = [v], {v}
    while todo:
        op = made.get(todo.pop())
        new = op.reads - seen if op is not None else set()
        todo += new
        seen |= new
    return arg in seen
