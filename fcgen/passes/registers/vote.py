"""vote: what hangs on a row condition that is rarely true is done under one branch per warp.

In: placed machine IR. Out: where a row condition selects between new and old row values, `n = select(c, new, old)`, between a factor
and one, `f = select(c, factor, 1)`, or a shift and zero, `d = select(c, shift, 0)`, the selects and every `x * f` and `x - d` become one
`if` on a vote of the warp. The other branch is the program with the condition false: n is old, x * f and x - d are x, nothing is computed.
Conditions of selects that say `rare` are always voted on, all others with `schedule.vote`.

Where the condition is a threshold on a row maximum, `max(old, row) - old > t`, a lane does not need the whole row's maximum to vote: the
condition grows with the maximum, so it holds for the row exactly if it holds for some lane's part. The exchange between lanes moves into
the branch too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...ir.core import Block, Kernel, Op, Value, definitions, uses, walk_kernel
from ...ir.depends import followed
from ...ir.known import const_of
from ...ir.op_table import having
from ...ir.rewrite import Builder, Env, branch, copy_op, map_bodies, remove_dead, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag, Scalar
from ..facts.common import positive, promised_positive, without_effect

#: grow with their first operand; max and add with either
MONOTONE = {"max", "add", "sub", "mul", "gt", "ge"}
#: what a branch may take with it if nothing else reads it
ROW_WORK = having("elementwise") | {"combine", "broadcast", "full"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    kernel = _voted(kernel, schedule)
    if schedule.compare_bits and not any(o.kind == "bits" for o in walk_kernel(kernel)):
        raise without_effect("compare_bits", "no maximum of a row is carried that it could keep as bits",
                             expected="vote, with a threshold on a row maximum, or defer, with a maximum that starts at 0 or above")
    return kernel


def _voted(kernel: Kernel, schedule: Schedule) -> Kernel:
    told, found = promised_positive(kernel), list[Op]()
    voted = map_bodies(kernel, lambda block: remove_dead(_block(block, definitions(block), told, schedule, found)))
    if schedule.vote and all(o.get("rare") for o in found):
        raise without_effect("vote", "no row condition decides about work on a tile",
                             expected="a program that selects by a row condition: new row values or old ones, a factor or one")
    return voted


def _block(block: Block, defs: dict[Value, Op], told: frozenset[Value], schedule: Schedule, found: list[Op]) -> Block:
    block = Block(block.args, tuple(o.within(lambda r: _block(r, defs, told, schedule, found)) for o in block.ops))
    tried: set[Value] = set()
    while True:
        conditions = [o for o in block.ops if o.kind == "select" and _is_row(o.operands[0]) and o.operands[0] not in tried
                      and (schedule.vote or o.attrs.get("rare"))]
        if not conditions:
            return block
        tried.add(conditions[0].operands[0])
        after = _Vote(block, conditions[0], defs, told, schedule.compare_bits).result()
        if after is not None:
            found.append(conditions[0])
            block = after


def _is_row(v: Value) -> bool:
    return isinstance(v.type, Frag) and len(v.type.shape) == 1


def is_row_work(op: Op) -> bool:
    """What reads rows and scalars alone."""
    return op.kind in ROW_WORK and all(_is_row(v) or isinstance(v.type, Scalar) for v in op.operands)


class _Vote:
    """One condition of one block."""

    def __init__(self, block: Block, choice: Op, defs: dict[Value, Op], told: frozenset[Value], bits: bool):
        self.block, self.condition, self.defs, self.positive = block, choice.operands[0], defs, told
        self.rare: dict[str, Any] = {"rare": True} if choice.get("rare") else {}
        self.compare_bits = bits
        self.local = block.made
        self.place = {o: n for n, o in enumerate(block.ops)}
        self.users = uses(block)
        self.same: dict[Value, Value] = {}  # value -> what it is where the condition is false everywhere
        self.neutral: dict[Value, float] = {}  # value -> the constant that it is there: 1 or 0

    def result(self) -> Block | None:
        self.idle_values()
        outputs = self.outputs()
        if not outputs or not any(len(v.type.shape) == 2 for v in outputs) or self.condition not in self.local:
            return None
        at = min(self.first_use(v) for v in outputs)
        inside = self.inside(outputs)
        operands = {v for o in inside for v in o.operands} | {self.same[v] for v in outputs}
        made = {r for o in inside for r in o.results}
        if any(self.position(v) >= at for v in operands - made if v in self.local):
            return None
        return self.rewrite(outputs, inside, at)

    # ---- what the false condition leaves ----

    def idle_values(self) -> None:
        for op in self.block.ops:
            if len(op.results) != 1:
                continue
            v = op.result
            if op.kind == "select" and op.operands[0] is self.condition:
                other = op.operands[2]
                constant = self.one_or_zero(other)
                if constant is not None:
                    self.neutral[v] = constant
                elif other in self.defs and self.defs[other].kind == "full":  # a start value, which hardly stays
                    self.same.clear()
                    return
                elif isinstance(other.type, Frag):
                    self.same[v] = self.same.get(other, other)
            elif op.kind == "broadcast" and op.operands[0] in self.neutral:
                self.neutral[v] = self.neutral[op.operands[0]]
            elif op.kind in ("mul", "sub"):
                pairs = (op.operands, op.operands[::-1]) if op.kind == "mul" else (op.operands,)
                for x, f in pairs:
                    if self.neutral.get(f) == (1.0 if op.kind == "mul" else 0.0) and isinstance(x.type, Frag) and x.type == v.type:
                        self.same[v] = self.same.get(x, x)

    def one_or_zero(self, v: Value) -> float | None:
        x = const_of(v, self.defs)
        return x if v.type.dtype.is_float and x in (0.0, 1.0) else None

    # ---- what goes into the branch ----

    def outputs(self) -> list[Value]:
        """Values that are read outside of what the branch covers."""
        return [v for v in self.same if any(not (o.results and (o.results[0] in self.same or o.results[0] in self.neutral))
                                            for o in self.users.get(v, ()))]

    def first_use(self, v: Value) -> int:
        spots = [self.place[o] for o in self.users[v] if o in self.place
                 and not (o.results and (o.results[0] in self.same or o.results[0] in self.neutral))]
        nested = [n for n, o in enumerate(self.block.ops) if o.regions and v in o.reads - set(o.operands)]
        return min([*spots, *nested], default=len(self.block.ops) - 1)

    def position(self, v: Value) -> int:
        return self.place[self.local[v]]

    def inside(self, outputs: list[Value]) -> list[Op]:
        """The ops that make the outputs, as far as they hang on the condition or serve nothing else."""
        hangs: set[Value] = {self.condition}
        for o in self.block.ops:
            if any(v in hangs for v in o.operands):
                hangs |= set(o.results)
        need = followed(outputs, {r: o for o in self.block.ops if not o.regions and hangs & set(o.results) for r in o.results}) or {}
        stays = {self.same[v] for v in outputs}
        changed = True
        while changed:  # ops that turned out to serve only the branch
            changed = False
            for o in self.block.ops:
                if o not in need and (is_row_work(o) or (o.kind == "reduce" and self.threshold() is not None)) \
                        and o.result not in self.same and o.result not in stays and self.users.get(o.result) \
                        and all(u in need for u in self.users.get(o.result, ())):
                    need[o] = None
                    changed = True
        return [o for o in self.block.ops if o in need]

    # ---- writing ----

    def rewrite(self, outputs: list[Value], inside: list[Op], at: int) -> Block:
        covered = set(inside)
        read = [v for o in self.block.ops if o not in covered for v in o.reads]
        # what ops outside read stays for them too, unless the branch gives it
        covered -= set(followed(read, {r: o for o in inside for r in o.results if r not in outputs}) or ())
        b, env = Builder(), Env()
        for n, op in enumerate(self.block.ops):
            if n == at:
                self.branch(outputs, inside, b, env)
            if op not in covered:
                b.add(substitute(op, env))
        return b.block(self.block.args)

    def branch(self, outputs: list[Value], inside: list[Op], b: Builder, env: Env) -> None:
        b.loc = self.local[self.condition].loc
        made = {r: o for o in inside for r in o.results}
        test = self.bit_condition(b, made, env) or self.lane_condition(b, made) or copy_slice(self.condition, made, b, Env())
        some = b.emit("vote_any", test, name=f"any_{self.condition.name}" if self.condition.name else "any", **self.rare)
        then, inner = Builder(b.loc), Env()
        for o in inside:
            then.add(copy_op(o, inner))
        b.add(branch(some, then, [inner[v] for v in outputs], [self.same[v] for v in outputs], env.anew(outputs)))

    def threshold(self) -> tuple[Op, Value, Value | None, Value] | None:
        """(reduce, old, scale, t) where the condition is (max(old, row maximum) - old) [* scale] > t with scale and t positive."""
        if not self.compare_bits:
            return None
        op = self.local.get(self.condition)
        if op is None or op.kind != "gt" or not self.is_positive(op.operands[1]):
            return None
        t, v, scale = op.operands[1], op.operands[0], None
        op = self.local.get(v)
        if op is not None and op.kind == "mul":
            sides = [n for n, x in enumerate(op.operands) if isinstance(x.type, Scalar) and self.is_positive(x)]
            if not sides:
                return None
            scale, op = op.operands[sides[0]], self.local.get(op.operands[1 - sides[0]])
        if op is None or op.kind != "sub":
            return None
        top, old = self.local.get(op.operands[0]), op.operands[1]
        if top is None or top.kind != "max" or old not in top.operands:
            return None
        row = self.local.get(next(x for x in top.operands if x is not old)) if top.operands.count(old) == 1 else None
        if row is None or row.kind != "combine" or row.operands[0] not in self.local:
            return None
        reduce = self.local[row.operands[0]]
        fits = reduce.kind == "reduce" and reduce["fn"] == "max" and reduce.result.type.dtype.name == "f32"
        return (reduce, old, scale, t) if fits else None

    def bit_condition(self, b: Builder, made: Mapping[Value, Op], later: Env) -> Value | None:
        """The condition as one comparison of bit patterns. Patterns of floats from 0 on order like the floats; with 0 as the least,
        negative elements drop out. Where the threshold itself is negative its pattern is a negative number, and the branch is taken: it
        decides."""
        found = self.threshold()
        if found is None:
            return None
        reduce, old, scale, t = found
        old = copy_slice(old, made, b, Env())
        limit = b.emit("add", old, t if scale is None else b.emit("div", t, scale), name="limit")
        most = self.most_bits(reduce, b, later)
        most = b.emit("max", most, b.const(0), name="most")
        return b.emit("gt", most, b.emit("bits", limit), name="moved")

    def most_bits(self, reduce: Op, b: Builder, later: Env) -> Value:
        """The largest pattern of each lane's part of the rows. A running maximum of patterns may ask for it too, and finds it here."""
        most = b.emit("reduce", b.emit("bits", reduce.operands[0]), **reduce.attrs)
        for op in self.block.ops:
            if op.kind == "reduce" and op.attrs == reduce.attrs and op.result.type == most.type:
                source = self.local.get(op.operands[0])
                if source is not None and source.kind == "bits" and source.operands[0] is reduce.operands[0]:
                    later[op.result] = most
        return most

    def lane_condition(self, b: Builder, made: Mapping[Value, Op]) -> Value | None:
        """The condition on each lane's own part of the row maximum that it is a threshold on."""
        chain: list[tuple[Op, int]] = []
        v = self.condition
        while True:
            op = self.local.get(v)
            if op is None:
                return None
            if op.kind == "combine" and op.operands[0].type.partial == "max":
                break
            if op.kind not in MONOTONE:
                return None
            sides = [n for n, x in enumerate(op.operands) if self.from_combine(x)]
            if len(sides) != 1 or (op.kind in ("sub", "gt", "ge") and sides[0] != 0):
                return None
            if op.kind == "mul" and not self.is_positive(op.operands[1 - sides[0]]):
                return None
            chain.append((op, sides[0]))
            v = op.operands[sides[0]]
        part = op.operands[0]
        env = Env()
        for link, side in reversed(chain):
            operands = tuple(part if n == side else copy_slice(x, made, b, env) for n, x in enumerate(link.operands))
            part = b.emit(link.kind, *operands, name=link.result.name, **link.attrs)
        return part

    def from_combine(self, v: Value) -> bool:
        chain = followed([v], {r: o for r, o in self.local.items() if o.kind == "combine" or o.kind in MONOTONE}) or ()
        return any(o.kind == "combine" for o in chain)

    def is_positive(self, v: Value) -> bool:
        return positive(v, self.positive, self.defs)


def copy_slice(v: Value, made: Mapping[Value, Op], b: Builder, env: Env) -> Value:
    """`v` computed here from copies of the ops that the branch takes with it."""
    op = made.get(v)
    if op is None or isinstance(v.type, Scalar) or v in env.map:
        return env[v]
    for x in op.operands:
        copy_slice(x, made, b, env)
    b.add(copy_op(op, env))
    return env[v]
