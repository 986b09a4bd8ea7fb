"""defer: lane sums and running maxima carried by a loop are finished once, after it.

In: placed machine IR. Out: the same with fewer lane exchanges. A row sum that only ever starts at zero, is scaled by row factors and added
to, `l = l * a + combine(part)`, is linear: the lanes that share a row may each carry their own part, `l = l * a + part`, and one `combine`
where the sum leaves the loops makes it whole. Each lane's parts are added in the order of the loop, so the result is as deterministic as
before.

Which values can stay parts is the greatest set that is closed: zeros, combines of sums, sums of two members, a member times a row factor,
and loop-carried values and results of branches whose sources are all members. A member that anything else reads inside a loop stays whole.

A running maximum, `top = max(top, combine(part))`, that only the loop's end reads stays a part in the same way: constants, and maxima of
members and combines. One that starts at 0 or above is kept as a bit pattern with `compare_bits`: patterns of floats from 0 on order like
the floats, and integers have a maximum of three.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...ir.core import Block, Kernel, Op, Value, walk
from ...ir.known import const_of
from ...ir.op_table import having
from ...ir.rewrite import Builder, Env, map_bodies, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag, f32, i32

COMBINES = having("finishes")


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, lambda body: _defer(body, schedule.compare_bits)) if schedule.defer else kernel


def _defer(block: Block, bits: bool) -> Block:
    for kind in (_Sums, _Maxima):
        for like in _combines(block, kind.fn).values():
            parts = kind(block, like, bits)
            if parts.members:
                block = _Rewriter(parts).block(block)
    return block


def _combines(block: Block, fn: str) -> dict[str, Op]:
    """One of each kind: over which lanes, and warps."""
    found = {str((o.kind, o.attrs)): o for o in walk(block) if o.kind in COMBINES and o.operands[0].type.partial == fn}
    return dict(sorted(found.items()))


class _Sums:
    """members: the values that stay parts of sums over the lanes and warps of `like`."""

    fn = "sum"
    kinds: tuple[str, ...] = ("add", "mul")  # ops that make members of members
    bits = False  # members are kept as bit patterns

    def __init__(self, block: Block, like: Op, bits: bool):
        self.like = like
        self.defs: dict[Value, Op] = {}
        self.sources: dict[Value, list[Value]] = {}  # carried value, loop result, branch result -> where it comes from
        self.depth: dict[Value, int] = {}
        self.fed: dict[Op, tuple[Value, ...]] = {}  # yield -> the results that it feeds
        self.users: dict[Value, list[tuple[Op, int]]] = {}
        self.index(block, 0)
        self.members = self.closed()

    def index(self, block: Block, depth: int) -> None:
        for op in block.ops:
            for v in op.operands:
                self.users.setdefault(v, []).append((op, depth))
            for r in op.results:
                self.defs[r], self.depth[r] = op, depth
            if op.kind == "for":
                body = op.regions[0]
                for arg, init, y, res in zip(body.args[1:], op.operands[2:], body.yielded, op.results):
                    self.sources[arg], self.sources[res] = [init, y], [arg]
                    self.depth[arg] = depth + 1
            elif op.kind == "if":
                for n, res in enumerate(op.results):
                    self.sources[res] = [r.yielded[n] for r in op.regions]
            for region in op.regions:
                self.fed[region.ops[-1]] = op.results
                self.index(region, depth + (op.kind == "for"))

    def closed(self) -> set[Value]:
        every = [v for v in {*self.defs, *self.sources} if isinstance(v.type, Frag) and v.type.partial is None and len(v.type.shape) == 1
                 and v.type.dtype.is_float]
        members = set(every)
        while True:
            kept = {v for v in members if self.linear(v, members) and not self.leaks(v, members)}
            if kept == members:  # a square of a sum is not linear
                kept -= {v for v in members if v in self.defs and self.defs[v].kind == "mul" and members.issuperset(self.defs[v].operands)}
                if kept == members:
                    break
            members = kept
        carried = {v for v in members if v in self.sources and v not in self.defs}
        return members if carried and any(self.starts(self.defs[v]) for v in members if v in self.defs) else set()

    def starts(self, op: Op) -> bool:
        """Whether a member takes in what lanes hold parts of."""
        return op.kind in COMBINES

    def atom(self, v: Value) -> bool:
        op = self.defs.get(v)
        return op is not None and (op.kind, op.attrs) == (self.like.kind, self.like.attrs) and op.operands[0].type.partial == self.fn

    def linear(self, v: Value, members: set[Value]) -> bool:
        if v in self.sources:
            return all(s in members for s in self.sources[v])
        op = self.defs[v]
        if op.kind == "full":
            return (x := const_of(v, self.defs)) is not None and self.may_start(x)
        return self.step(op, members)

    def may_start(self, x: float) -> bool:
        return x == 0

    def step(self, op: Op, members: set[Value]) -> bool:
        """Whether an op makes a member of members."""
        if op.kind in COMBINES:
            return self.atom(op.result)
        if op.kind == "add":
            return all(x in members for x in op.operands)
        return op.kind == "mul" and any(x in members for x in op.operands)

    def leaks(self, v: Value, members: set[Value]) -> bool:
        """Whether something else reads the value inside a loop. Zeros are made again for whoever else wants them."""
        if v in self.defs and self.defs[v].kind == "full":
            return False
        return any(depth > 0 and not self.carries(op, v, members) for op, depth in self.users.get(v, ()))

    def read_whole(self) -> set[Value]:
        """Members that something else reads, outside of loops."""
        return {v for v in self.members if not (v in self.defs and self.defs[v].kind == "full")
                and any(not self.carries(op, v, self.members) for op, _ in self.users.get(v, ()))}

    def carries(self, op: Op, v: Value, members: set[Value]) -> bool:
        if op.kind == "yield":
            return all(r in members for y, r in zip(op.operands, self.fed.get(op, ())) if y is v)
        if op.kind == "for":
            return v not in op.operands[:2] and all(r in members for x, r in zip(op.operands[2:], op.results) if x is v)
        return op.kind in self.kinds and op.result in members


class _Maxima(_Sums):
    """members: the values that stay parts of maxima, likewise. Whoever else reads a tile's maximum finds it as it was."""

    fn = "max"
    kinds = ("max",)

    def __init__(self, block: Block, like: Op, bits: bool):
        super().__init__(block, like, bits)
        self.members = self.carried()
        starts = [x for v in self.members if (x := const_of(v, self.defs)) is not None]
        self.bits = bits and all(v.type.dtype == f32 for v in self.members) and all(x >= 0 for x in starts)

    def carried(self) -> set[Value]:
        """The members that a loop carries, what they come from and what comes from them: a maximum of its own outside stays whole."""
        feeds = lambda v: self.sources[v] if v in self.sources else self.defs[v].operands
        come = {v: [x for x in feeds(v) if x in self.members] for v in self.members}
        out = {v for v in self.members if v in self.sources and v not in self.defs}
        while True:
            more = {x for v in out for x in come[v]} | {v for v in self.members if any(x in out for x in come[v]) and v not in out}
            if more <= out:
                return out
            out |= more

    def starts(self, op: Op) -> bool:
        return op.kind == "max" and any(self.atom(x) for x in op.operands)

    def may_start(self, x: float) -> bool:
        return True  # each lane may start with it: a maximum takes it in once, however often

    def step(self, op: Op, members: set[Value]) -> bool:
        return op.kind == "max" and all(x in members or self.atom(x) for x in op.operands)


class _Rewriter:
    def __init__(self, parts: _Sums):
        self.parts, self.members, self.read_whole = parts, parts.members, parts.read_whole()
        self.part: dict[Value, Value] = {}  # member -> its lanes' parts

    def block(self, block: Block) -> Block:
        return Block(block.args, tuple(self.ops(block.ops)))

    def ops(self, ops: tuple[Op, ...]) -> list[Op]:
        b = Builder()
        whole: dict[Value, Value] = {}
        for op in ops:
            b.loc = op.loc
            if op.results and len(op.results) == 1 and op.result in self.members and not op.regions:
                self.member(op, b)
                if op.kind == "full":
                    b.add(op)  # whoever reads the whole zero finds it
                elif op.result in self.read_whole:
                    whole[op.result] = self.whole(op.result, b)
                continue
            if op.kind in ("for", "if"):
                b.add(self.region(op))
                for r in op.results:
                    if r in self.read_whole:
                        whole[r] = self.whole(r, b)
                continue
            b.add(op if op.kind == "yield" else replace(op.within(self.block), operands=tuple(whole.get(v, v) for v in op.operands)))
        return [substitute(o, Env(whole)) for o in b.ops] if whole else b.ops

    def whole(self, v: Value, b: Builder) -> Value:
        out = b.emit(self.parts.like.kind, self.part[v], name=v.name, **self.parts.like.attrs)
        return b.emit("from_bits", out, name=v.name) if self.parts.bits else out

    def member(self, op: Op, b: Builder) -> None:
        v = op.result
        if op.kind in COMBINES:
            self.part[v] = op.operands[0]
        elif op.kind == "full":
            start = op.operands[0]
            if self.parts.bits:
                start = b.emit("const", value=int(np.float32(self.parts.defs[start]["value"]).view(np.int32)), dtype="i32")
            self.part[v] = b.emit("full", start, type=self.type(v), name=v.name)
        else:
            operands = [self.part[x] if x in self.members else self.part_of(x, b) for x in op.operands]
            self.part[v] = b.emit(op.kind, *operands, type=self.type(v), name=v.name, **op.attrs)

    def part_of(self, v: Value, b: Builder) -> Value:
        """A factor as it is; of a combine that is no member, its lanes' parts."""
        if not self.parts.atom(v):
            return v
        part = self.parts.defs[v].operands[0]
        if not self.parts.bits:
            return part
        reduce = self.parts.defs[part]
        return b.emit("reduce", b.emit("bits", reduce.operands[0]), **reduce.attrs)

    def type(self, v: Value) -> Frag:
        return replace(v.type, partial=self.parts.fn, dtype=i32 if self.parts.bits else v.type.dtype)

    def region(self, op: Op) -> Op:
        first = 2 if op.kind == "for" else 1
        operands = list(op.operands)
        results = list(op.results)
        loops = op.kind == "for"
        args = list(op.regions[0].args)
        for n, r in enumerate(op.results):
            if r in self.members:
                results[n] = self.part[r] = Value(self.type(r), r.name)
                if loops:
                    operands[first + n] = self.part[operands[first + n]]
                    arg = args[1 + n]
                    args[1 + n] = self.part[arg] = Value(self.type(arg), arg.name)
        regions = []
        for block in op.regions:
            inner = self.block(block)
            last = inner.ops[-1]
            yields = tuple(self.part[y] if r in self.members else read for y, read, r in zip(block.yielded, last.operands, op.results))
            regions.append(Block(tuple(args) if loops else block.args, (*inner.ops[:-1], replace(last, operands=yields))))
        return replace(op, operands=tuple(operands), results=tuple(results), regions=tuple(regions))
