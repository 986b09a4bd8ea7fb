"""defer: lane sums carried by a loop are finished once, after it.

In: placed machine IR. Out: the same with fewer lane exchanges. A row sum that only ever starts at zero, is scaled by row factors and added
to, `l = l * a + combine(part)`, is linear: the lanes that share a row may each carry their own part, `l = l * a + part`, and one `combine`
where the sum leaves the loops makes it whole. Each lane's parts are added in the order of the loop, so the result is as deterministic as
before.

Which values can stay parts is the greatest set that is closed: zeros, combines of sums, sums of two members, a member times a row factor,
and loop-carried values and results of branches whose sources are all members. A member that anything else reads inside a loop stays whole.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.core import Block, Builder, Env, Kernel, Op, Value, map_bodies, substitute
from ..ir.schedule import Schedule
from ..ir.target import Target
from ..ir.types import Frag


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, _defer) if schedule.defer else kernel


def _defer(block: Block) -> Block:
    for lanes in sorted(_lanes(block)):
        parts = _Parts(block, lanes)
        if parts.members:
            block = _Rewriter(parts, lanes).block(block)
    return block


def _lanes(block: Block) -> set[tuple[int, ...]]:
    out = {tuple(o["lanes"]) for o in block.ops if o.kind == "combine" and o.operands[0].type.partial == "sum"}
    for o in block.ops:
        for r in o.regions:
            out |= _lanes(r)
    return out


class _Parts:
    """members: the values that stay parts of sums over `lanes`."""

    def __init__(self, block: Block, lanes: tuple[int, ...]):
        self.lanes = lanes
        self.defs: dict[Value, Op] = {}
        self.sources: dict[Value, list[Value]] = {}  # carried value, loop result, branch result -> where it comes from
        self.depth: dict[Value, int] = {}
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
                self.index(region, depth + (op.kind == "for"))

    def closed(self) -> set[Value]:
        every = [v for v in {*self.defs, *self.sources} if isinstance(v.type, Frag) and v.type.partial is None and len(v.type.shape) == 1
                 and v.type.dtype.is_float]
        members = set(every)
        while True:
            kept = {v for v in members if self.linear(v, members) and not self.leaks(v, members)}
            if kept == members:  # a square of a sum is not linear
                kept -= {
                    v for v in members if v in self.defs and self.defs[v].kind == "mul" and all(x in members for x in self.defs[v].operands)
                }
                if kept == members:
                    break
            members = kept
        carried = {v for v in members if v in self.sources and v not in self.defs}
        return members if carried and any(self.defs[v].kind == "combine" for v in members if v in self.defs) else set()

    def linear(self, v: Value, members: set[Value]) -> bool:
        if v in self.sources:
            return all(s in members for s in self.sources[v])
        op = self.defs[v]
        if op.kind == "full":
            d = self.defs.get(op.operands[0])
            return d is not None and d.kind == "const" and d["value"] == 0
        if op.kind == "combine":
            return op.operands[0].type.partial == "sum" and tuple(op["lanes"]) == self.lanes
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
            return True  # what it feeds has all of its sources checked
        if op.kind == "for":
            return v not in op.operands[:2]
        return op.kind in ("add", "mul") and op.result in members


class _Rewriter:
    def __init__(self, parts: _Parts, lanes: tuple[int, ...]):
        self.members, self.lanes, self.read_whole = parts.members, lanes, parts.read_whole()
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
                    whole[op.result] = b.emit("combine", self.part[op.result], name=op.result.name, lanes=self.lanes)
                continue
            if op.kind in ("for", "if"):
                b.add(self.region(op))
                for r in op.results:
                    if r in self.read_whole:
                        whole[r] = b.emit("combine", self.part[r], name=r.name, lanes=self.lanes)
                continue
            if op.kind == "yield":
                b.add(op)
                continue
            b.add(replace(op, operands=tuple(whole.get(v, v) for v in op.operands), regions=tuple(self.block(r) for r in op.regions)))
        return [substitute(o, Env(whole)) for o in b.ops] if whole else b.ops

    def member(self, op: Op, b: Builder) -> None:
        v = op.result
        if op.kind == "combine":
            self.part[v] = op.operands[0]
        elif op.kind == "full":
            self.part[v] = b.emit("full", op.operands[0], type=_part(v.type), name=v.name)
        else:
            operands = [self.part.get(x, x) if x in self.members else x for x in op.operands]
            self.part[v] = b.emit(op.kind, *operands, type=_part(v.type), name=v.name, **op.attrs)

    def region(self, op: Op) -> Op:
        first = 2 if op.kind == "for" else 1
        operands = list(op.operands)
        results = list(op.results)
        loops = op.kind == "for"
        args = list(op.regions[0].args)
        for n, r in enumerate(op.results):
            if r in self.members:
                results[n] = self.part[r] = Value(_part(r.type), r.name)
                if loops:
                    operands[first + n] = self.part[operands[first + n]]
                    arg = args[1 + n]
                    args[1 + n] = self.part[arg] = Value(_part(arg.type), arg.name)
        regions = []
        for block in op.regions:
            inner = self.block(block)
            last = inner.ops[-1]
            yields = tuple(self.part[y] if r in self.members else y for y, r in zip(last.operands, op.results))
            regions.append(Block(tuple(args) if loops else block.args, (*inner.ops[:-1], replace(last, operands=yields))))
        return replace(op, operands=tuple(operands), results=tuple(results), regions=tuple(regions))


def _part(t: Frag) -> Frag:
    return replace(t, partial="sum")
