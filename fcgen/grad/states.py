"""What a loop does to the values that it carries, where more is known of that than that it is computed.

A *sum*: `x <<= x + f`, where f does not hang on what is carried. A *largest* (or smallest): `m <<= max(m, f)`. A *sum against a reference*:
`x <<= x * exp(m - base) + f(base)`, where m is a largest, base is the new one, and f(base) is exp(d) times as small where base is d more:
exp(u - base), of u that m is a largest of, and what is linear in that. Its last value is the sum of f(the last base), so that the gradient
of each addend is that of the sum. Guaranteed: `states_of` finds these forms only where the loop uses what it carries for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from ..ir.core import Op, Value, definitions
from .scaling import INVERSE, Scaling, grows, shrinks

#: what is added to a sum: a value, or the operands of a product that adds to it; and its sign
Addend = tuple[tuple[Value, ...], int]


@dataclass(frozen=True)
class Sum:
    addends: tuple[Addend, ...]
    reference: int | None = None  # which carried value it is computed against
    axes: tuple[int, ...] | None = None  # the axes of x that the reference runs along, None for all


@dataclass(frozen=True)
class Largest:
    of: tuple[Value, ...]
    fn: str  # exp or exp2, which sums against it are made with; "" where there is none
    base: Value | None = None  # what those are computed against, in place of the value itself
    guard: tuple[Op, ...] = ()  # the ops that make it of the value


@dataclass(frozen=True)
class Faded:
    """x <<= x * factor + the addends, where nothing else that is carried hangs on x. axes: those of x that the factor runs along."""

    addends: tuple[Addend, ...]
    factor: Value
    axes: tuple[int, ...] | None


@dataclass
class States:
    """sums, largest: by number of the carried value. spent: the ops of the body that make them, and nothing else."""

    sums: dict[int, Sum] = field(default_factory=dict)
    largest: dict[int, Largest] = field(default_factory=dict)
    spent: set[Op] = field(default_factory=set)

    @property
    def handled(self) -> set[int]:
        return {*self.sums, *self.largest}


class _Body:
    def __init__(self, loop: Op):
        self.block = loop.regions[0]
        self.args = self.block.args[1:]
        self.made = definitions(self.block)
        self.leading: dict[Value, frozenset[Value]] = {}
        of_args = set(self.args)
        for op in self.block.ops:
            from_ = frozenset(v for v in op.reads if v in of_args).union(*(self.leading.get(v, frozenset()) for v in op.reads))
            self.leading.update(dict.fromkeys(op.results, from_))

    def leads(self, v: Value, arg: Value) -> bool:
        return v is arg or arg in self.leading.get(v, ())

    def chain(self, n: int, kinds: tuple[str, ...]) -> list[tuple[Op, int]] | None:
        """The ops of these kinds, the last one first, that make what is yielded of what is carried, each with the operand it goes on
        through."""
        out: list[tuple[Op, int]] = []
        v = self.block.yielded[n]
        while v is not self.args[n]:
            op = self.made.get(v)
            through = [] if op is None or op.kind not in kinds else [k for k, x in enumerate(op.operands) if self.leads(x, self.args[n])]
            if op is None or len(through) != 1:
                return None
            out.append((op, through[0]))
            v = op.operands[through[0]]
        return out

    def number(self, v: Value) -> float | None:
        op = self.made.get(v)
        while op is not None and op.kind in ("full", "broadcast", "cast"):
            op = self.made.get(op.operands[0])
        return op["value"] if op is not None and op.kind == "const" else None


def states_of(loop: Op, active: Iterable[int]) -> States | None:
    """The carried values that are asked for, and those they are computed against; None where one has no such form."""
    body, out = _Body(loop), States()
    for n in active:
        if not (_as_sum(body, n, out) or _as_largest(body, n, out)):
            return None
    return out if _alone(body, out) else None


def _alone(body: _Body, out: States) -> bool:
    """Whether the loop uses what it carries, and what sums are computed against, for these states only."""
    ops, bases = body.block.ops[:-1], {m.base for m in out.largest.values()}
    moving = {body.args[n] for n in out.handled}
    for op in ops:
        if any(v in moving for v in op.reads):
            if op not in out.spent:
                return False
            moving |= {r for r in op.results if r not in bases}
    parts = [v for x in out.sums.values() for operands, _ in x.addends for v in operands] + [v for m in out.largest.values() for v in m.of]
    others = [y for n, y in enumerate(body.block.yielded) if n not in out.handled]
    return not any(v in moving or v in bases for v in (*parts, *others)) and \
        all(_against(body, n, m, out, others) for n, m in out.largest.items() if m.base is not None)


def faded(loop: Op, n: int) -> Faded | None:
    """What is carried as number n, if it is that."""
    body = _Body(loop)
    addends, factor, spent = _affine(body, n) or ((), None, set())
    if factor is None:
        return None
    moving = {body.args[n]}
    for op in body.block.ops[:-1]:
        if op not in spent and any(v in moving for v in op.reads):
            moving |= set(op.results)
    if any(v in moving for v in (*body.block.yielded, factor, *(v for vs, _ in addends for v in vs))):
        return None
    value, axes, _ = _unspread(body, factor)
    return Faded(addends, value, axes if value is not factor or factor.type.shape else ())


def _affine(body: _Body, n: int) -> tuple[tuple[Addend, ...], Value | None, set[Op]] | None:
    """(what is added to a carried value, what it is multiplied by before, the ops that do)"""
    chain = body.chain(n, ("add", "sub", "dot", "mul"))
    if not chain or any((op.kind == "sub" and k != 0) or (op.kind == "dot" and k != 2) for op, k in chain):
        return None
    spent = {op for op, _ in chain}
    op, k = chain[-1]
    factor = op.operands[1 - k] if op.kind == "mul" else None
    if factor is not None:
        chain.pop()
    if any(op.kind == "mul" for op, _ in chain):
        return None
    addends = [(op.operands[:2] if op.kind == "dot" else (op.operands[1 - k],), -1 if op.kind == "sub" else 1) for op, k in chain]
    return tuple(addends), factor, spent


def _unspread(body: _Body, v: Value) -> tuple[Value, tuple[int, ...] | None, list[Op]]:
    """(what a value is along some axes, those axes, the ops in between)"""
    op = body.made.get(v)
    if op is None or op.kind not in ("broadcast", "full") or list(op.get("axes", ())) != sorted(op.get("axes", ())):
        return v, None, []
    return op.operands[0], tuple(op.get("axes", ())), [op]


def _as_sum(body: _Body, n: int, out: States) -> bool:
    found = _affine(body, n)
    if found is None:
        return False
    addends, factor, spent = found
    reference, axes = None, None
    if factor is not None:
        against = _reference(body, factor, out)
        if against is None:
            return False
        reference, axes, made = against
        spent |= set(made)
    out.sums[n] = Sum(addends, reference, axes)
    out.spent |= spent
    return True


def _reference(body: _Body, factor: Value, out: States) -> tuple[int, tuple[int, ...] | None, list[Op]] | None:
    """(the largest that a factor exp(m - base) is made of, the axes that it runs along, the ops that make it)"""
    value, axes, ops = _unspread(body, factor)
    op = body.made.get(value)
    if op is None or op.kind not in INVERSE:
        return None
    apart = body.made.get(op.operands[0])
    if apart is None or apart.kind != "sub" or apart.operands[0] not in body.args:
        return None
    n = body.args.index(apart.operands[0])
    if not _as_largest(body, n, out, op.kind, apart.operands[1]):
        return None
    return n, axes, [*ops, op, apart]


def _as_largest(body: _Body, n: int, out: States, fn: str = "", base: Value | None = None) -> bool:
    """fn, base: of sums that are computed against it."""
    before = out.largest.get(n)
    if before is not None and (not fn or (before.fn, before.base) == (fn, base)):
        return True
    if before is not None and before.fn:
        return False
    chain = body.chain(n, ("max",) if fn else ("max", "min"))
    if not chain or len({op.kind for op, _ in chain}) > 1:
        return False
    guard = () if base is None else _guard(body, base, body.block.yielded[n])
    if guard is None:
        return False
    out.largest[n] = Largest(tuple(op.operands[1 - k] for op, k in chain), fn, base, guard)
    out.spent |= {*(op for op, _ in chain), *guard}
    return True


def _guard(body: _Body, base: Value, new: Value) -> tuple[Op, ...] | None:
    """The ops that put a number in the place of an infinite value."""
    if base is new:
        return ()
    op = body.made.get(base)
    if op is None or op.kind != "select" or op.operands[2] is not new or body.number(op.operands[1]) in (None, inf, -inf):
        return None
    eq = body.made.get(op.operands[0])
    if eq is None or eq.kind != "eq" or new not in eq.operands or body.number(eq.operands[1 - eq.operands.index(new)]) != -inf:
        return None
    return eq, op


def _against(body: _Body, n: int, m: Largest, out: States, others: list[Value]) -> bool:
    """Whether what is added to the sums against a largest, and nothing else, hangs on its base, and is exp(d) times as small where that is
    d more; and nothing where there was no number yet."""
    assert m.base is not None
    scaling = Scaling({m.base: grows(m.base)}, m.fn)
    ops = [op for op in body.block.ops[:-1] if op not in out.spent]
    if not scaling.run(ops) or any(scaling.moves(v) for v in (*others, *(v for x in out.largest.values() for v in x.of))):
        return False
    for x in out.sums.values():
        small = shrinks(m.base, x.axes)
        for operands, _ in x.addends:
            moving = [(axis, v) for axis, v in enumerate(operands) if scaling.moves(v)]
            if len(moving) != (x.reference == n) or any(scaling[v] != small or (len(operands) > 1 and scaling[v].along not in ((), (axis,)))
                                                        for axis, v in moving):
                return False
    for op in ops:
        grow = [scaling[v].how == "grows" and scaling.moves(v) for v in op.operands]
        if any(grow) and op.kind not in ("broadcast", "full", m.fn) and not (
                op.kind == "sub" and grow == [False, True] and _below(body, op.operands[0], m, scaling[op.operands[1]].along)):
            return False
    return True


def _below(body: _Body, u: Value, m: Largest, along: tuple[int, ...]) -> bool:
    """Whether m is a largest of u. along: the axes of u that m runs along."""
    made = [body.made.get(f) for f in m.of]
    return u in m.of or any(op is not None and op.kind == "reduce" and op["fn"] == "max" and op.operands[0] is u and op["axis"] not in along
                            for op in made)
