"""scale: multiplications by a positive scalar move to where they cost least.

In: a simplified tile program. Out: an equal one (up to rounding) with fewer per-element multiplications, or the same one.

A value v has the factor c when v = c * x for a value x that can be had instead of it and a scalar c > 0 (a parameter flagged
"positive", a positive constant, products of these, ...). Factors start at `x * c` and pass through what commutes with a
positive scale: max, min, reductions, select, broadcast, transpose, neg, abs, sums of two such values, with 0 and the infinities
counting as c * themselves; and through values carried by a loop, if what they start from and what the body yields have the
factor too. A comparison of two such values needs no factor at all, and a later `v * k` becomes `x * (c * k)`: there the
multiplication has gone. To a dot with a factor may be added any `z * k`, which is c * (z * (k / c)); the dot then starts from that. Where
k / c is infinite and k is not, k stands for it: it may be the least number that there is, for what a mask leaves out. So it is for dots
that all others of their block follow from: accumulators are not touched while other products are in flight. A tile that is loaded stays
behind the dot, which would have to wait for it. (A bias per head, of the plain kernel's time: D = 128 1.30 so, behind the dot 1.21; at
D = 64, where it leaves registers for tiles of 192 x 128, it would be 1.21, and is 1.28. H200, 2026-11-28.)

For every c in turn the program is rewritten this way and kept if it got cheaper. Each factored v stays available as `x * c`
right where it was made, for readers that need it; what nobody reads is dropped before costs are compared.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf, prod
from typing import Any

from ...ir.core import Block, Kernel, Op, Value, blocks, definitions, walk, walk_kernel
from ...ir.depends import depending
from ...ir.elementwise import FNS
from ...ir.known import const_of
from ...ir.rewrite import map_bodies, remove_dead
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar, f32, i1
from ..facts.common import COMPARISONS, positive, promised_positive, rank, scale_free

LOOP_WEIGHT = 16
SMALL = 2.0**64
FEW_DOTS = 8
MAX_FACTORS = 8
EVERY = ("max", "min", "add", "sub")  # each operand has the factor, or is scale-free
THROUGH = ("reduce", "broadcast", "transpose", "neg", "abs")  # the one operand has the factor


def run(kernel: Kernel, schedule: Schedule, target: Target | None) -> Kernel:
    best = cost(kernel)
    for c in candidates(kernel)[:MAX_FACTORS]:
        tried = map_bodies(kernel, lambda b, c=c, k=kernel: remove_dead(Factor(c, b, k).body()))  # type: ignore[misc]
        price = cost(tried)
        if price < best:
            kernel, best = tried, price
    return kernel


def candidates(kernel: Kernel) -> list[Value]:
    """The positive scalars that tiles are multiplied by."""
    out: dict[Value, None] = {}
    told = promised_positive(kernel)
    for role in kernel.roles:
        defs = definitions(role.body)
        for op in walk(role.body):
            if is_root(op) and op.operands[1] not in out and positive(op.operands[1], told, defs):
                out[op.operands[1]] = None
    return list(out)


def is_root(op: Op) -> bool:
    return op.kind == "mul" and op.result.type.dtype == f32 and rank(op.result) > 0 and isinstance(op.operands[1].type, Scalar)


def cost(kernel: Kernel) -> int:
    """Elementwise float work. A sum has one product of its own for nothing (one multiply-add), and is nothing itself where a dot starts
    from what is added."""
    return sum(block_cost(role.body) for role in kernel.roles)


def block_cost(block: Block) -> int:
    reads = Counter(v for op in walk(block) for v in op.operands)
    made = {r: op.kind for op in walk(block) for r in op.results}
    free: set[Value] = set()
    for op in walk(block):
        own = {made.get(v): v for v in op.operands if reads[v] == 1} if op.kind in ("add", "sub") else {}
        if "dot" in own and own["dot"] is op.operands[0]:
            free.add(op.result)
        elif "mul" in own:
            free.add(own["mul"])
    return _cost(block, free)


def _cost(block: Block, free: set[Value]) -> int:
    total = 0
    for op in block.ops:
        if op.kind in FNS and op.result.type.dtype.is_float and op.result not in free:
            total += prod(op.result.type.shape)
        if op.regions:
            total += _cost(op.regions[0], free) * (LOOP_WEIGHT if op.kind == "for" else 1)
            total += _cost(op.regions[1], free) if op.kind == "if" else 0
    return total


class Factor:
    """One rewriting of a body for one factor c. `of[v] = x` says v = c * x."""

    def __init__(self, c: Value, block: Block, kernel: Kernel):
        self.c, self.block = c, block
        self.defs = {r: o for o in walk_kernel(kernel) for r in o.results}
        self.of: dict[Value, Value] = {}
        self.seen: set[Value] = set(kernel.params)

    def body(self) -> Block:
        return Block(self.block.args, self.ops(self.block))

    def ops(self, block: Block) -> tuple[Op, ...]:
        self.seen.update(block.args)
        out: list[Op] = []
        for op in block.ops:
            if op.kind == "for":
                self.loop(op, out)
            elif op.regions:
                out.append(op.within(lambda r: Block(r.args, self.ops(r))))
            else:
                self.op(op, out)
            self.seen.update(op.results)
        return tuple(out)

    def unscaled(self, v: Value) -> Value | None:
        return self.of.get(v) or (v if scale_free(const_of(v, self.defs)) else None)

    def comes_first(self, v: Value) -> bool:
        """Whether v is a dot that all others of its block follow from, and that runs in its own iteration."""
        op = self.defs.get(v)
        if op is None or op.kind != "dot" or op.get("early") or op.get("behind"):
            return False
        body = next(b for b in blocks(self.block) if op in b.ops)
        dots = [o for o in body.ops if o.kind == "dot" and o is not op]
        return len(dots) < FEW_DOTS and depending(body, v).issuperset(o.result for o in dots)

    def divided(self, v: Value, out: list[Op]) -> Value | None:
        """v / c, for a v = z * k: as far from overflowing as v is."""
        op = self.defs.get(v)
        if op is None or not is_root(op):
            return None

        def make(kind: str, *operands: Value, to: Any = f32, **attrs: Any) -> Value:
            out.append(Op(kind, operands, (Value(Scalar(to)),), attrs, (), op.loc))
            return out[-1].result

        x, k = op.operands
        by = make("div", k, self.c)
        known = const_of(k, self.defs)
        if known is None or not abs(known) <= SMALL:
            by = make("select", make("eq", make("abs", by), make("const", value=inf, dtype="f32"), to=i1), k, by)
        out.append(replace(op, operands=(x, by), results=(v.anew(),)))
        return out[-1].result

    def op(self, op: Op, out: list[Op]) -> None:
        if is_root(op) and op.operands[1] is self.c:
            self.of[op.result] = op.operands[0]
            out.append(op)
            return
        if not any(v in self.of for v in op.operands):
            out.append(op)
            return
        kind = op.kind
        if kind == "mul" and op.operands[0] in self.of and rank(op.operands[1]) == 0 and op.operands[1] not in self.of:
            both = Value(op.operands[1].type)
            out.append(Op("mul", (self.c, op.operands[1]), (both,), {}, (), op.loc))
            out.append(replace(op, operands=(self.of[op.operands[0]], both)))
            return
        start = 1 if kind == "select" else 0
        more: list[Op] = []
        dot = kind in ("add", "sub") and any(v in self.of and self.comes_first(self.of[v]) for v in op.operands)
        values = [self.unscaled(v) or (self.divided(v, more) if dot else None) for v in op.operands[start:]]
        usable = kind in EVERY or kind in THROUGH or kind == "select" or kind in COMPARISONS
        if not usable or any(v is None for v in values):
            out.append(op)
            return
        out += more
        operands = (*op.operands[:start], *(v for v in values if v is not None))
        if kind in COMPARISONS:
            out.append(replace(op, operands=operands))
            return
        x = Value(op.result.type, op.result.name)
        out.append(replace(op, operands=operands, results=(x,)))
        self.factored(op.result, x, op, out)

    def factored(self, v: Value, x: Value, op: Op, out: list[Op]) -> None:
        self.of[v] = x
        out.append(Op("mul", (x, self.c), (v,), {}, (), op.loc))

    def loop(self, op: Op, out: list[Op]) -> None:
        body, inits = op.regions[0], op.operands[2:]
        assumed = {i for i, v in enumerate(inits) if v.type.dtype == f32 and self.c in self.seen and self.unscaled(v) is not None}
        before = dict(self.of)
        while True:
            self.of = dict(before)
            top: list[Op] = []
            args = list(body.args)
            for i in sorted(assumed):
                old = args[1 + i]
                args[1 + i] = old.anew()
                self.factored(old, args[1 + i], op, top)
            ops = [*top, *self.ops(body)]
            wrong = {i for i in assumed if self.unscaled(body.yielded[i]) is None}
            if not wrong:
                break
            assumed -= wrong
        last = ops[-1]
        yields = [self.unscaled(v) if i in assumed else v for i, v in enumerate(last.operands)]
        ops[-1] = replace(last, operands=tuple(v for v in yields if v is not None))
        starts = [self.unscaled(v) if i in assumed else v for i, v in enumerate(inits)]
        results = [r.anew() if i in assumed else r for i, r in enumerate(op.results)]
        rest = tuple(Block(r.args, self.ops(r)) for r in op.regions[1:])
        out.append(replace(op, operands=(*op.operands[:2], *(v for v in starts if v is not None)), results=tuple(results),
                           regions=(Block(tuple(args), tuple(ops)), *rest)))
        self.of = {v: x for v, x in self.of.items() if v in before}
        for i in sorted(assumed):
            self.factored(op.results[i], results[i], op, out)
