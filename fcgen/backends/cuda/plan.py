"""What the printer decides before it writes: which values are only expressions, and which fragments share one array.

In: a machine kernel. Out: a `Plan`. A value that is not an expression is *stored*: it has an array of its own, or shares one with
values that are never live together with it (a loop's carried value with what is yielded for it, an accumulator with the sum).
Sharing is decided on an interference graph from exact liveness over the structured program, so it is right by construction;
where two values that would like to share cannot, the printer copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...ir.core import Block, Kernel, Op, Value, blocks, walk
from ...ir.known import const_of
from ...ir.layout import OpaqueLayout
from ...ir.op_table import OPS, having
from ...ir.registers import frag_words
from ...ir.types import Frag, Pending, Scalar, Tensor

#: ops whose result is a function of the same register of their operands (or of nothing but the register's number)
CHEAP = having("cheap")
POINTWISE = having("elementwise") | CHEAP
VIEWS = having("view")
#: one instruction: may be computed once more
AGAIN = {"add", "sub", "mul", "max", "min"}
#: products whose third operand is the accumulator, in the result's registers
ACCUMULATE = having("product")
#: no stride or tile size is so large: who multiplies by it wants the lower bits
HASH = 1 << 16
#: consumers that evaluate an expression register by register, and those that can evaluate one into an array they own
_EVALUATE = POINTWISE | {"reduce", "vote_any", "gather"}
_COPY_IN = ACCUMULATE | {"for", "yield", "pend"}


@dataclass
class Plan:
    """fused: fragment values that are expressions. root: stored value -> the value whose array it lives in, and group: the
    other way round. live_regs: the most 32-bit registers that fragments need at one point, and `live_at` the op there."""

    kernel: Kernel
    users: dict[Value, list[tuple[Op, Block]]] = field(default_factory=dict)
    maker: dict[Value, Op] = field(default_factory=dict)
    home: dict[Value, Block] = field(default_factory=dict)
    fused: dict[Value, Op] = field(default_factory=dict)
    near: dict[Value, set[Value]] = field(default_factory=dict)
    parent: dict[Value, Value] = field(default_factory=dict)
    group: dict[Value, list[Value]] = field(default_factory=dict)
    carried: dict[Value, tuple[Value, ...]] = field(default_factory=dict)
    loose: dict[Value, bool] = field(default_factory=dict)
    taken: dict[Value, int] = field(default_factory=dict)
    live_regs: int = 0
    live_at: Op | None = None

    def words(self, v: Value) -> int:
        """The 32-bit registers that a fragment needs while it lives."""
        if v not in self.taken:
            self.taken[v] = 0 if v in self.maker and self.maker[v].get("few") else frag_words(v.type)
        return self.taken[v]

    def root(self, v: Value) -> Value:
        while self.parent.get(v, v) is not v:
            v = self.parent[v]
        return v

    def base(self, v: Value) -> Value:
        """The stored value that a view looks into."""
        while (op := self.maker.get(v)) is not None and op.kind in VIEWS:
            v = op.operands[0]
        return v

    def unturned(self, v: Value) -> Value:
        """The value that has the same registers, in the same order: v without its transposes."""
        while (op := self.maker.get(v)) is not None and op.kind == "transpose":
            v = op.operands[0]
        return v

    def wraps(self, v: Value) -> bool:
        """Whether a signed integer follows from numbers in memory or from a hash: its arithmetic may overflow, which C++ leaves undefined.
        Positions are known not to (`ir.ranges`)."""
        if v not in self.loose:
            self.loose[v] = False  # what a loop carries
            op = self.maker.get(v)
            from_ = self.carried.get(v) or (op.operands if op is not None else ())
            self.loose[v] = (op is not None and _any_number(op, self.maker)) or any([self.wraps(x) for x in from_])
        return self.loose[v]

    def leaves(self, v: Value, direct: bool = True) -> Iterator[tuple[Value, bool]]:
        """Stored fragments read by evaluating `v`, and whether at the same register that is being computed. Each of both once."""
        todo, seen = [(v, direct)], set[tuple[Value, bool]]()
        while todo:
            v, direct = todo.pop()
            if isinstance(v.type, Scalar) or (v, direct) in seen:
                continue
            seen.add((v, direct))
            if v in self.fused:
                op = self.maker[v]
                todo += [(o, direct and op.kind != "broadcast") for o in reversed(op.operands)]
            elif isinstance(v.type, (Frag, Pending)):
                b = self.base(v)
                yield b, direct and b is v

    def reads(self, op: Op) -> list[tuple[Value, bool]]:
        """Stored fragments that the op reads where it is printed."""
        if (op.results and op.results[0] in self.fused) or op.kind in VIEWS:
            return []
        same = op.kind in POINTWISE or op.kind in ("combine", "apart", "gather", "for", "yield", "pend")
        late = op.kind == "settle"
        out: list[tuple[Value, bool]] = []
        for n, o in enumerate(op.operands):
            if isinstance(o.type, (Frag, Pending)):
                here = same or (op.kind in ACCUMULATE and n == 2) or (late and isinstance(o.type, Pending))
                out += list(self.leaves(o, here and op.kind != "broadcast"))
        return out


def _any_number(op: Op, maker: dict[Value, Op]) -> bool:
    """Whether the op's result may be any number of its dtype."""
    if op.kind == "cast":
        return op.operands[0].type.dtype.is_float or not op.operands[0].type.dtype.signed
    if op.kind == "mul":
        return any(abs(const_of(v, maker) or 0) >= HASH for v in op.operands)
    return op.kind in ("ld_global", "ld_shared", "gather", "bits")


def make_plan(kernel: Kernel) -> Plan:
    plan = Plan(kernel)
    for role in kernel.roles:
        _index(plan, role.body)
    for role in kernel.roles:
        _choose_fused(plan, role.body)
    for v in [*plan.maker, *(a for role in kernel.roles for b in blocks(role.body) for a in b.args)]:
        if isinstance(v.type, (Frag, Pending)) and v not in plan.fused and not (v in plan.maker and plan.maker[v].kind in VIEWS):
            plan.parent[v] = v
            plan.group[v] = [v]
            plan.near.setdefault(v, set())
    for role in kernel.roles:
        _liveness(plan, role.body, set())
    for role in kernel.roles:
        _share(plan, role.body)
    return plan


def _index(plan: Plan, block: Block) -> None:
    for a in block.args:
        plan.home[a] = block
    for op in block.ops:
        for o in op.operands:
            plan.users.setdefault(o, []).append((op, block))
        for r in op.results:
            plan.maker[r] = op
            plan.home[r] = block
        if op.kind == "for":
            for a, r, *ends in zip(op.regions[0].args[1:], op.results, op.operands[2:], op.regions[0].yielded):
                plan.carried[a] = plan.carried[r] = tuple(ends)
        elif op.kind == "if":
            plan.carried.update(zip(op.results, zip(*(r.yielded for r in op.regions))))
        for reg in op.regions:
            _index(plan, reg)


# ---- expressions -----------------------------------------------------------------------------------------------------


def _choose_fused(plan: Plan, block: Block) -> None:
    """A pointwise value is an expression if everything that reads it evaluates it in one and the same loop over registers; so is a tile
    that is read element by element, of a tensor that nobody writes: its registers would be as many as those of what it meets.
    Those that cost nothing (iota, full, broadcast) are expressions wherever nobody needs their array. Users come first, so
    the block is walked backwards; `sink[v]` is the stored op in whose loop v is computed."""
    sink: dict[Value, Op] = {}
    written = {v for o in walk(block) if OPS[o.kind].effect == "write" for v in o.operands if isinstance(v.type, Tensor)}

    def visit(b: Block) -> None:
        for op in reversed(b.ops):
            for r in reversed(op.regions):
                visit(r)
            read = op.kind == "gather" and op.operands[0] not in written and bool(op.result.type.shape[1:])
            if not (op.kind in POINTWISE or read) or not op.results or not isinstance(op.result.type, Frag):
                continue
            v, users = op.result, plan.users.get(op.result, [])
            counted = op.kind not in CHEAP and len(v.type.shape) == 1 and _counts(plan, v)
            if isinstance(v.type.layout, OpaqueLayout) and op.kind != "full":
                continue
            if op.kind in CHEAP or counted:
                if all(u.kind in _EVALUATE or (u.kind in _COPY_IN and _copied_in(u, v)) for u, _ in users):
                    plan.fused[v] = op
                continue
            spread = users and all(u.kind == "broadcast" and u.result in plan.fused for u, _ in users)
            if spread and op.kind in AGAIN and all(_repeats(v, u.result) <= 2 for u, _ in users):
                plan.fused[v] = op  # computing it for each of two registers is cheaper than keeping it
                continue
            if not users or not all(where is b and u.kind in _EVALUATE and u.kind != "broadcast" for u, where in users):
                continue
            sinks = {sink.get(u.result, u) for u, _ in users}
            if len(sinks) == 1:
                (end,) = sinks
                if _domain(end) == v.type.layout:
                    plan.fused[v] = op
                    sink[v] = end

    visit(block)


def _repeats(small: Value, large: Value) -> int:
    """How many registers of the large fragment have one element of the small one."""
    return large.type.layout.regs // small.type.layout.regs


def _counts(plan: Plan, v: Value, fuel: int = 6) -> bool:
    """Whether a vector is a position or a test of one: cheaper to compute again than to keep."""
    if isinstance(v.type, Scalar):
        return True
    op = plan.maker.get(v)
    if op is None or fuel == 0:
        return False
    if op.kind in ("iota", "full"):
        return True
    return op.kind in ("add", "sub", "lt", "le", "gt", "ge") and op.operands[0].type.dtype.is_int \
        and all(_counts(plan, o, fuel - 1) for o in op.operands)


def _domain(sink: Op) -> object:
    """The layout over whose registers the op's loop runs."""
    t = sink.operands[0].type if sink.kind in ("reduce", "vote_any") else sink.result.type
    return getattr(t, "layout", None)


def _copied_in(user: Op, v: Value) -> bool:
    """Whether the user can evaluate v into an array that it owns."""
    if user.kind in ACCUMULATE:
        return len(user.operands) > 2 and v is user.operands[2] and v is not user.operands[0] and v is not user.operands[1]
    return True


# ---- liveness --------------------------------------------------------------------------------------------------------


def _conflict(plan: Plan, a: Value, b: Value) -> None:
    if a is not b and a in plan.parent and b in plan.parent:
        plan.near[a].add(b)
        plan.near[b].add(a)


def _define(plan: Plan, defs: list[Value], live: set[Value]) -> None:
    for d in defs:
        for v in (*live, *defs):
            _conflict(plan, d, v)


def _liveness(plan: Plan, block: Block, live_out: set[Value]) -> set[Value]:
    """Values live before the block, given those live after it; records conflicts at each definition."""
    live = set(live_out)
    for op in reversed(block.ops):
        reads = plan.reads(op)
        defs = [r for r in op.results if r in plan.parent]
        _define(plan, defs, live)
        words = sum(map(plan.words, live.union(defs)))
        if words > plan.live_regs:
            plan.live_regs, plan.live_at = words, op
        after = live - set(defs)
        if op.kind in ("for", "while"):
            body = op.regions[0]
            args = [a for a in body.args if a in plan.parent]
            around = set(after)
            while True:
                inside = _liveness(plan, body, around)
                grown = around | (inside - set(args))
                if grown == around:
                    break
                around = grown
            _define(plan, args, inside)
            _define(plan, defs, around)
            live = around
        elif op.regions:
            live = set(after)
            for r in op.regions:
                live |= _liveness(plan, r, after)
        else:
            for d in defs:
                for v, direct in reads:
                    if not direct:
                        _conflict(plan, d, v)
            live = after
        live = live | {v for v, _ in reads}
    return live


# ---- sharing ---------------------------------------------------------------------------------------------------------


def _same_storage(a: Value, b: Value) -> bool:
    s, t = a.type, b.type
    kinds = (Frag, Pending)
    return isinstance(s, kinds) and isinstance(t, kinds) and (s.dtype, s.layout) == (t.dtype, t.layout)


def _merge(plan: Plan, a: Value, b: Value, force: bool = False) -> None:
    if a not in plan.parent or b not in plan.parent or not _same_storage(a, b):
        return
    ra, rb = plan.root(a), plan.root(b)
    if ra is rb:
        return
    others = plan.group[rb]
    if not force and any(not plan.near[m].isdisjoint(others) for m in plan.group[ra]):
        return
    plan.parent[rb] = ra
    plan.group[ra] += plan.group.pop(rb)


def _share(plan: Plan, block: Block) -> None:
    """What must be one array comes first: what may be one then sees all that it would share with."""
    for op in walk(block):
        if op.kind == "for":
            for arg, out in zip(op.regions[0].args[1:], op.results):
                _merge(plan, arg, out, force=True)
        elif op.kind == "settle":
            for v, settled in zip([o for o in op.operands if isinstance(o.type, Pending)], op.results):
                _merge(plan, v, settled, force=True)
    _merge_loops(plan, block)


def _merge_loops(plan: Plan, block: Block) -> None:
    """Outer loops first: their carried arrays are the ones that must not be copied."""
    for op in block.ops:
        if op.kind == "for":
            body = op.regions[0]
            for arg, y in zip(body.args[1:], body.yielded):
                _merge(plan, arg, y)
            for arg, init in zip(body.args[1:], op.operands[2:]):
                _merge(plan, arg, init)
        elif op.kind == "if":
            for r in op.regions:
                for out, y in zip(op.results, r.yielded):
                    _merge(plan, out, y)
        elif op.kind in ACCUMULATE and len(op.operands) > 2:
            _merge(plan, op.operands[2], op.result)
        elif op.kind in ("combine", "apart", "pend"):
            _merge(plan, op.result, op.operands[0])
        for r in op.regions:
            _merge_loops(plan, r)
