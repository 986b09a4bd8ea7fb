"""prefetch: what a loop reads from tensors into registers is read an iteration before it is used.

In: machine IR with its rings. Out: the same, where of each loop that issues products or copies the reads (`gather`, and loads that no ring
took) whose places follow from the loop's index are made for the next iteration and carried to it. A read whose place another read decides,
an entry of a table of tables, needs that one's result when it is issued: the other is made one more iteration ahead, so that no read waits
for a read. Tiles and rows are read where they are used if the loop has no registers left to hold them for so long. Guaranteed: reads past
the loop's end stay inside of their tensors, or make zeros that nobody uses.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

from ...ir.access import Access
from ...ir.core import Block, Kernel, Op, Value, walk, walk_kernel
from ...ir.depends import sources
from ...ir.layout import RegLayout
from ...ir.op_table import having
from ...ir.registers import frag_words, least, limit_of
from ...ir.rewrite import Builder, Env, copy_op, edited, map_bodies, remove_dead, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag, Scalar
from ..facts.common import ELEMENTWISE

ENGINES = having("fills") | {"dot"}
#: what may stand between the index and a place that is read
PLACES = ELEMENTWISE | having("cheap") | {"size", "transpose"}
#: registers of a thread that what is read ahead may take, each read by itself; those that addresses, counters and narrow operands take
MOST, OTHERS = 16, 40


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    written = {o.operands[0] for o in walk_kernel(kernel) if o.kind == "store"}
    found: list[_Read] = []
    regs = limit_of(kernel, target) - OTHERS

    def ahead(op: Op) -> Op | list[Op]:
        if op.kind != "for" or op.get("unroll") or not any(o.kind in ENGINES for o in walk(op.regions[0])):
            return op
        reads = _reads(op.regions[0], written, regs - least(op.regions[0]))
        found.extend(reads)
        return _Ahead(op, reads).ops() if reads else op

    after = map_bodies(kernel, lambda body: edited(body, ahead))
    return map_bodies(after, remove_dead) if found else after


@dataclass
class _Read:
    """A read of a loop's body: the ops that its place follows from, in order, without other reads and what those follow from; how many
    iterations before its use it is made."""

    op: Op
    places: list[Op]
    ahead: int = 1


def _reads(body: Block, written: set[Value], spare: int) -> list[_Read]:
    """In order. One that is too large, or whose place follows from anything but the index, is left where it is. spare: registers for this
    iteration's and the next one's."""
    found: dict[Value, _Read] = {}
    for op in body.ops:
        if op.kind in ("gather", "load") and op.operands[0] not in written and _small(op.result) and guarded(op, body.made):
            places = sources(op.operands, body, lambda o: o.kind in PLACES, found)
            words = 2 * frag_words(op.result.type)
            if places is None or not (places or any(v is body.args[0] or v in found for v in op.operands)) or words > max(spare, 0):
                continue
            found[op.result], spare = _Read(op, places), spare - words
    for read in reversed(found.values()):
        for v in {v for o in (read.op, *read.places) for v in o.operands if v in found}:
            found[v].ahead = max(found[v].ahead, read.ahead + 1)
    return list(found.values())


def _small(v: Value) -> bool:
    t = v.type
    return isinstance(t, Scalar) or (isinstance(t, Frag) and isinstance(t.layout, RegLayout) and t.layout.regs * t.dtype.bytes <= 4 * MOST)


def guarded(op: Op, made: Container[Value]) -> bool:
    """Whether the read may be made for an index past the loop's end, and where there is no iteration: a gather reads zeros outside, a load
    where it can have a guard."""
    if op.kind == "gather":
        return True
    access = Access.of(op)
    return (not access.listed and not any(a.along is None and a.start in made for a in access.axes)
            and (op.get("leaves") != 0 or any(a.is_run for a in access.axes)))


def with_guards(op: Op, loop: Op | None = None, b: Builder | None = None) -> Op:
    """A load of a tile that the tensor may end in front of. loop: of which it is the first read, made in front of it by b: where it has no
    iteration, and only these are known to be inside, all lies past a limit."""
    if op.kind != "load":
        return op
    axes = Access.of(op).axes
    runs = [a.is_run for a in axes if a.along is not None]
    op = op.with_attrs(guard=tuple(g or run for g, run in zip(op["guard"], runs)))
    if loop is None or b is None or op.get("leaves") is None:
        return op
    if op["leaves"] or not any(a.start is not None and a.along is None for a in axes):
        return op.with_attrs(leaves=max(op["leaves"] - 1, 0))
    n = next(n for n, a in enumerate(axes) if a.is_run)
    most = axes[n].limit or b.const(2**31 - 1)
    limit = b.emit("select", b.emit("lt", *loop.operands[:2]), most, b.const(0))
    scalars = [v for k, a in enumerate(axes) for v in (a.start, limit if k == n else a.limit) if v is not None]
    return replace(op, operands=(op.operands[0], *scalars)).with_attrs(
        index=tuple("until" if k == n else a.word for k, a in enumerate(axes)))


class _Ahead:
    """held: for each read what the loop carries of it, for this iteration and those that follow."""

    def __init__(self, loop: Op, reads: list[_Read]):
        self.op, self.reads, self.body = loop, reads, loop.regions[0]
        self.held = {r.op.result: [r.op.result.anew() for _ in range(r.ahead)] for r in reads}

    def ops(self) -> list[Op]:
        """The first reads, and the loop."""
        op, body, before = self.op, self.body, Builder(self.op.loc)
        down = bool(op.get("descending"))
        one = before.const(1)
        start = before.emit("sub", op.operands[1], one) if down else op.operands[0]
        first: dict[Value, list[Value]] = {r.op.result: [] for r in self.reads}
        for r in self.reads:
            for n in range(r.ahead):
                first[r.op.result].append(self.made(r, n, start, down, first, before, op))
        inner, env = Builder(op.loc), Env({v: held[0] for v, held in self.held.items()})
        new = {r.op.result: self.made(r, r.ahead, body.args[0], down, self.held, inner) for r in self.reads}
        gone = {r.op for r in self.reads}
        inner.ops += [substitute(o, env) for o in body.ops[:-1] if o not in gone]
        carried = [x for v, held in self.held.items() for x in (*held[1:], new[v])]
        last = substitute(body.ops[-1], env)
        inner.add(replace(last, operands=(*last.operands, *carried)))
        args = [a for held in self.held.values() for a in held]
        before.add(replace(op, operands=(*op.operands, *(x for xs in first.values() for x in xs)),
                           results=(*op.results, *(a.anew() for a in args)), regions=(inner.block((*body.args, *args)),)))
        return before.ops

    def made(self, r: _Read, ahead: int, index: Value, down: bool, known: dict[Value, list[Value]], b: Builder,
             first: Op | None = None) -> Value:
        """The read for so many iterations after an index; `known` has the reads that its place follows from. first: the loop that
        it stands in front of."""
        b.loc = r.op.loc
        at = index
        if ahead:
            at = b.emit("sub" if down else "add", index, b.const(ahead), name="after")
        env = Env({self.body.args[0]: at, **{v: xs[ahead] for v, xs in known.items() if len(xs) > ahead}})
        for o in r.places:
            b.add(copy_op(o, env))
        return b.add(with_guards(copy_op(r.op, env), first, b)).result
