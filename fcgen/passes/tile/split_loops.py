"""split_loops: loops run only where something is left to do, and without masks where masks change nothing.

In: a tile program. Out: an equal one in which, for every loop,
  - the bounds are shrunk to the iterations whose `live` tile can be true somewhere (that is what `live` allows), and the `live`
    region is gone;
  - where two ranges of iterations can be live that lie apart, no iteration lies between them: a loop counts those that are left, and its
    body asks at which one it is (`hole`);
  - if `schedule.split` is not "none" and the loop has no loop inside: there is a copy (part="full") for the iterations in which the
    conditions of its selects are decided everywhere in the tile and its guarded runs of positions lie inside their tensors. In
    that copy those conditions are constants and those guards are off, and integers that follow to be no less than 0 are their own
    absolute values. Iterations before and after it run in copies that keep
    both (part="masked"). The copies stand one after the other in the loop's own direction, share a `chain` number and hand the
    carried values on. A copy that is empty for all sizes is left out; a loop that is whole everywhere is only relieved of
    masks; a loop with dots and no masks keeps its guards, since its tiles are read ahead from every copy of the loop.
  - with split="branch", there is one loop instead, whose selects ask where the index is: `select(whole or mask, x, y)`, of which
    `branches` makes a branch. Parts of a condition that hold in all tiles or in none, as a scalar says, are selected by apart from those
    that hold in a range of tiles.

Which iterations these are follows from interval analysis (`affine`) on comparisons of affine integer expressions. Rows of the
program's own tile that hang over the end of a tensor count as real: then more iterations are masked than need be, never fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce

from ...ir.access import Access
from ...ir.core import Block, GridAxis, Kernel, Op, Value, definitions, made_within, walk, walk_kernel
from ...ir.depends import depending
from ...ir.known import const_of
from ...ir.rewrite import Builder, Env, map_bodies, remove_dead, rewrite
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar, Tile
from ..facts.common import promised_positive, without_effect
from ..facts.rows import independent_rows, stored_rows
from ..facts.warp_grid import along_rows
from .affine import Affine
from .forms import ALL, EMPTY, Form, Range, Rows, number
from .hole import Hole
from .loop_copies import Facts, asking, known, specialise
from .unbounded import reason


def run(kernel: Kernel, schedule: Schedule, target: Target | None) -> Kernel:
    chain = max([op.get("chain", -1) for op in walk_kernel(kernel) if op.kind == "for"], default=-1) + 1
    parts = schedule.warps // 4 if schedule.copy == "tma" and schedule.own_rows else 1
    splitter = _Splitter(schedule.split, chain, parts, bool(schedule.late))
    splitter.along_rows = lambda op: along_rows(op, schedule)
    splitter.positive = promised_positive(kernel)
    sizes = lambda axis: isinstance(axis.dim, int) or axis.dim in kernel.dims
    splitter.grid = {v: axis for v, axis in zip(kernel.body.args, kernel.grid) if sizes(axis)}
    out = map_bodies(kernel, lambda block: remove_dead(splitter.body(_of_all_rows(block, parts))))
    if schedule.split == "branch" and not splitter.branched:
        raise without_effect("split", "no loop has masks that some of its tiles do without", expected='split="loops"', got="branch")
    if splitter.remarks:
        out = out.with_meta(remarks=tuple(dict.fromkeys([*out.meta.get("remarks", ()), *splitter.remarks])))
    return out


def _of_all_rows(body: Block, parts: int) -> Block:
    """Ends of ranges are those of all rows, where IR that was read has others for another number of groups of warps."""
    others = {v for o in walk(body) if o.kind == "row_part" and o["parts"] != parts for v in depending(body, o.result)}

    def rule(op: Op, b: Builder, env: Env) -> bool:
        stale = op.kind == "narrow" and op.operands[1] in others
        if stale:
            env[op.result] = op.operands[0]
        return stale

    return rewrite(body, rule) if others else body


class _Splitter:
    def __init__(self, split: str, chain: int, parts: int = 1, ahead: bool = False):
        self.split, self.chain, self.groups, self.ahead = split, chain, parts, ahead
        self.defs: dict[Value, Op] = {}
        self.positive: frozenset[Value] = frozenset()
        self.grid: dict[Value, GridAxis] = {}
        self.own: Affine | None = None  # the loop's questions, asked about one part of the rows
        self.mine = self.mine_full = ALL
        self.narrow: dict[tuple[Form, Form, bool], Value] = {}
        self.apart: dict[Value, Value] = {}  # conditions that selects ask for by themselves, and what decides them
        self.hole: Hole | None = None
        self.remarks: list[tuple[str, str]] = []
        self.down = self.branched = False
        self.depth = 0  # loops around: what a part leaves unread would be let go of once, in front of them
        self.stored: tuple[Value, Value | str | int, int] | None = None
        self.before: set[Value] = set()  # what stands in front of the loop
        self.along_rows: Callable[[Op], bool] = lambda op: True

    def body(self, block: Block) -> Block:
        self.defs = definitions(block)
        self.stored = stored_rows(block, self.defs)
        return self.block(block)

    def block(self, block: Block) -> Block:
        out = Builder()
        for op in block.ops:
            if op.regions:
                nested = any(o.kind == "for" for o in walk(op.regions[0]))
                self.depth += op.kind == "for"
                op = op.within(self.block)
                self.depth -= op.kind == "for"
                if op.kind == "for":
                    self.loop(op, out, nested)
                    continue
            out.add(op)
            self.before.update(op.results)
        return Block(block.args, tuple(out.ops))

    # ---- one loop ----------------------------------------------------------------------------------------------------

    def loop(self, op: Op, out: Builder, nested: bool) -> None:
        out.loc = op.loc
        body = op.regions[0]
        inside = {v for r in op.regions for v in made_within(r)}
        affine = Affine(body.args[0], inside, self.defs, out, None, self.positive, self.grid)
        lo, hi = (affine.exact(v) for v in op.operands[:2])
        if lo is None or hi is None:  # cannot be: bounds are scalars from outside
            out.add(op)
            return
        rows = independent_rows(body) if self.groups > 1 and not nested and not self.depth else None
        if rows is not None and not all(self.along_rows(o) for o in walk(body) if o.kind == "dot"):
            rows = None
        if rows is not None and rows % (64 * self.groups) == 0:
            part = out.emit("row_part", parts=self.groups, name="own")
            self.own = Affine(body.args[0], inside, self.defs, out, Rows(rows, rows // self.groups, part), self.positive, self.grid)
            self.own.scalars, self.own.flags, self.own.order = affine.scalars, affine.flags, affine.order
        else:
            self.own = None
        full_op = op
        bounds = self.live_bounds(op, affine, Range(lo, hi))
        self.hole = Hole.of(bounds, affine)
        if self.hole is not None:
            label = op.get("label") or full_op.regions[1].args[0].name
            self.remarks.append(("hole", f"the loop over {label} leaves out what lies between two ranges of its `live` condition"))
        op = replace(op, regions=(body,))
        if self.split == "none" or nested:
            self.own = None
            self.emit(op, out, affine, bounds, Facts(), "")
            return
        self.apart = self.switches(op, affine, bounds) if self.split == "branch" else {}
        always, sometimes, full = self.facts(op, affine, bounds)
        self.narrow, self.down = {}, bool(op.get("descending"))
        if self.own is not None:
            self.compare(full_op, op, Range(lo, hi), bounds, always, sometimes, full)
        self.copies(op, out, affine, bounds, always, sometimes, full)

    def live_bounds(self, op: Op, affine: Affine, bounds: Range) -> Range:
        if len(op.regions) == 2:
            live, index = op.regions[1], affine.index
            affine.index, label = live.args[0], op.get("label") or live.args[0].name
            start, affine.gaps = bounds.lo, 0
            bounds = affine.both(bounds, affine.may(live.yielded[0]))
            if affine.gaps > (bounds.gap is not None) and not affine.rows:
                self.remarks.append(("gaps", f"the loop over {label} may run over tiles that nobody needs, "
                                             "between some that are needed by one part of its `live` condition or another"))
            if affine.open and not affine.rows:
                self.remarks += [("live", f"the loop over {label} leaves out no tile by a part of its `live` condition: "
                                          f"{reason(affine, v)}") for v in affine.open]
            affine.index = index
            if bounds.is_empty:
                bounds = Range(start, start)
        return bounds

    def compare(self, full_op: Op, op: Op, ends: Range, bounds: Range, always: Facts, sometimes: Facts, full: Range) -> None:
        """The same questions for one part of the rows. Where the same things hold, only in other iterations, a group of warps that has
        that part may walk its own ones: `narrow` says so of each end of a range."""
        own = self.own
        assert own is not None
        mine = self.live_bounds(full_op, own, ends)
        a, s, f = self.facts(op, own, mine)
        if (a, s) != (always, sometimes) or mine.is_empty or (f.lo is None, f.hi is None) != (full.lo is None, full.hi is None):
            self.own = None
            return
        # an empty range of all rows has no part: the own ends stay on the right side of it, and so does what is left of a part outside.
        # (It may end before it begins: its own is then empty where it begins. A part's may too: it is then empty where that begins.)
        (low, high), (lo, hi) = mine.ends, bounds.ends
        low = low if low == lo else own.extreme("min", low, own.extreme("max", hi, lo))
        high = self.unless_outside(own, low, high, op)
        self.mine = Range(low, high if high == hi else own.extreme("max", high, low))
        self.mine_full = f

    def unless_outside(self, own: Affine, lo: Form, hi: Form, op: Op) -> Form:
        """The end of a part's iterations: there are none if its rows are all past the end, or limit, of every tensor they are stored to."""
        rows = own.rows
        if self.stored is None or rows is None or self.stored[2] != rows.count:
            return hi
        if any(v in own.inside or (v in own.defs and v not in self.before) for v in self.stored[:2]):  # made in the loop, or behind it
            return hi
        first, end, _ = self.stored
        at = own.symbol(first) + own.symbol(rows.part) * rows.each
        last = own.symbol(end) if isinstance(end, Value) else own.size(end)
        inside = lambda: own.b.emit("lt", own.value(at), own.value(last))
        make = lambda: own.b.emit("select", own.flag(("inside", at), inside), own.value(hi), own.value(lo), name="own_to")
        return own.once(("inside", at, lo, hi), make)

    def copies(self, op: Op, out: Builder, affine: Affine, bounds: Range, always: Facts, sometimes: Facts, full: Range) -> None:
        rest = self.clip(full, bounds)
        left, right = rest.lo is not None, rest.hi is not None
        if not sometimes.conditions and any(o.kind == "dot" for o in walk(op.regions[0])):
            sometimes = Facts()  # guards alone: copies that run ahead need theirs in every copy of the loop
        if not sometimes or full.is_empty or not (left or right):
            facts = always if full.is_empty else always | sometimes
            chain: dict = {}
            if self.own is not None:
                chain, self.chain = {"chain": self.chain}, self.chain + 1
            self.emit(op, out, affine, bounds, facts, "full" if facts else "", chain, own=self.mine)
            return
        if self.split == "branch":
            self.branched = True
            if sometimes.signs:
                self.remarks.append(("signs", 'whole tiles know signs that split="branch" has no copy of the loop for'))
            self.one(op, out, affine, bounds, always, sometimes, full)
            return
        ranges = self.ranges(affine, bounds, full, left, right)
        mine = self.ranges(self.own, self.mine, self.mine_full, left, right) if self.own is not None else ranges
        facts_of = [(always, "masked")] * left + [(always | sometimes, "full")] + [(always, "masked")] * right
        parts = list(zip(ranges, mine, facts_of))
        if op.get("descending"):
            parts.reverse()
        chain = {"chain": self.chain}
        self.chain += 1
        for n, (r, m, (facts, part)) in enumerate(parts):
            results = self.emit(op, out, affine, r, facts, part, chain, last=n == len(parts) - 1, own=m)
            op = replace(op, operands=op.operands[:2] + results)

    def one(self, op: Op, out: Builder, affine: Affine, bounds: Range, always: Facts, sometimes: Facts, full: Range) -> None:
        """One loop over all iterations; its selects ask first whether the tile is whole. Where dots run late, a loop of no iterations whose
        masks are always on stands in front."""
        chain = {"chain": self.chain} if self.own is not None else {}
        self.chain += bool(chain)
        mine = self.mine_full if self.own is not None else full
        ends = [self.end(affine, f, g, out, chain.get("chain", -1), w) if f is not None else None
                for f, g, w in ((full.lo, mine.lo, "lo"), (full.hi, mine.hi, "hi"))]
        decided = {v for v, _ in self.wanted(op.regions[0]) if v in always.conditions or v in sometimes.conditions}
        masks = {o: self.passes(o) for o in walk(op.regions[0]) if o.kind == "select" and isinstance(o.operands[0].type, Tile)
                 and all(v in decided for v, _ in self.parts(o.operands[0], self.passes(o)))}
        one = replace(op, regions=(asking(op, ends[0], ends[1], masks, self.apart, self.defs),))
        if not self.ahead:
            self.emit(one, out, affine, bounds, always, "", chain, own=self.mine if chain else ALL)
            return
        # what `skew` takes the first tile's ops from: there, a branch gains nothing
        chain = chain or {"chain": self.chain}
        self.chain += self.own is None
        side = "hi" if op.get("descending") else "lo"
        wide, own = getattr(bounds, side), getattr(self.mine, side) if self.own is not None else None
        self.end(affine, wide, own, out, chain["chain"], side, self.hole)
        results = self.emit(op, out, affine, Range(wide, wide), always, "masked", chain, last=False, own=Range(own, own))
        one = replace(one, operands=one.operands[:2] + results)
        self.emit(one, out, affine, bounds, always, "full", chain, own=self.mine if self.own is not None else ALL)

    @staticmethod
    def ranges(affine: Affine, bounds: Range, full: Range, left: bool, right: bool) -> list[Range]:
        """The iterations of each copy, in ascending order."""
        start, end = lo, hi = bounds.ends
        if left and full.lo is not None:
            start = affine.extreme("min", affine.extreme("max", lo, full.lo), hi, "whole_from")
        if right and full.hi is not None:
            end = affine.extreme("max", affine.extreme("min", hi, full.hi), start, "whole_to")
        return [Range(lo, start)] * left + [Range(start, end)] + [Range(end, hi)] * right

    def emit(self, op: Op, out: Builder, affine: Affine, r: Range, facts: Facts, part: str, attrs: dict | None = None,
             last: bool = True, own: Range = ALL) -> tuple[Value, ...]:
        """One copy of the loop; the last one makes the loop's own results."""
        number = (attrs or {}).get("chain", -1)
        ends = tuple(self.end(affine, f, g, out, number, w, self.hole) for f, g, w in ((r.lo, own.lo, "lo"), (r.hi, own.hi, "hi")))
        env = Env()
        for v, truth in facts.conditions.items():
            if v not in affine.inside:
                env[v] = known(out, v, truth)
        body = specialise(op.regions[0], env, facts) if facts or attrs else op.regions[0]
        body = body if self.hole is None else self.hole.jumped(body, affine)
        results = op.results if last else tuple(v.anew() for v in op.results)
        more = {**(attrs or {}), **({"part": part} if part else {})}
        out.add(replace(op, operands=(*ends, *op.operands[2:]), results=results, attrs={**op.attrs, **more}, regions=(body,)))
        return results

    def end(self, affine: Affine, wide: Form | None, own: Form | None, out: Builder, chain: int, side: str,
            hole: Hole | None = None) -> Value:
        """One end of a range, as all rows have it; where a part of the rows has another one, it is told. hole: what the loop jumps over, if
        its iterations are asked for."""
        assert wide is not None
        walked = lambda f, a: f if hole is None else hole.walked(f, a)
        if self.own is None or own is None:
            return affine.value(walked(wide, affine))
        key = (wide, own, hole is None)
        if key not in self.narrow:
            v, w = affine.value(walked(wide, affine)), self.own.value(walked(own, self.own))
            outer = self.mine.lo if side == "lo" else self.mine.hi
            word = "inner" if own != outer else "first" if (side == "hi") == self.down else "last"
            self.narrow[key] = v if v is w or not own.terms else out.emit("narrow", v, w, name=v.name or "own", chain=chain, end=word)
        return self.narrow[key]

    # ---- what can be decided -----------------------------------------------------------------------------------------

    def facts(self, op: Op, affine: Affine, bounds: Range) -> tuple[Facts, Facts, Range]:
        """(facts of every iteration, facts of the iterations in the range, the range)."""
        always, sometimes, full, inside = Facts(), Facts(), Range(), [bounds]
        for v, wanted in self.wanted(op.regions[0]):
            if v in always.conditions or v in sometimes.conditions:
                continue
            must = affine.must(v, bounds, not wanted)
            r = self.clip(must, bounds)
            if r.is_empty or (isinstance(v.type, Scalar) and not r.is_all):
                continue
            (always if r.is_all else sometimes).conditions[v] = wanted
            if v not in self.apart:
                full = affine.both(full, r)
                inside.append(must)
        for o in walk(op.regions[0]):
            for axis, rooms in _room(o, affine):
                if any(not room.step and room.known is None for room in rooms):
                    continue
                r = self.clip(reduce(affine.both, map(affine.at_least_zero, rooms)), bounds)
                if r.is_empty:
                    continue
                (always if r.is_all else sometimes).guards.add((o, axis))
                full = affine.both(full, r)
        for o in walk(op.regions[0]):
            s = affine.span(o.operands[0]) if o.kind == "abs" else None
            above = EMPTY if s is None else affine.at_least_zero(s.lo)
            if any(_inside(r, above) for r in inside):
                (always if _inside(bounds, above) else sometimes).signs.add(o)
        return always, sometimes, full

    def switches(self, op: Op, affine: Affine, bounds: Range) -> dict[Value, Value]:
        """Conditions that hold in all tiles or in none, and the scalar that says which; of selects that ask for others too, which hold in
        a range of them: tiles in that range, or outside of it, then ask for the one kind or for both. Not what hangs on one axis alone: it
        becomes a limit that the others have anyway, and a loop that is short of registers spills where it asks twice."""
        out: dict[Value, Value] = {}
        for o in walk(op.regions[0]):
            if o.kind == "select" and isinstance(o.operands[0].type, Tile) and self.passes(o):
                ranges = {v: self.clip(affine.must(v, bounds), bounds) for v, wanted in self.parts(o.operands[0], True) if wanted}
                flags = {v: flag for v, r in ranges.items() if len(v.type.shape) > 1 and (flag := affine.switched(r)) is not None}
                if any(v not in flags and not r.is_all and not r.is_empty for v, r in ranges.items()):
                    out.update(flags)
        return out

    @staticmethod
    def clip(r: Range, bounds: Range) -> Range:
        """Without the ends that the loop has anyway."""
        lo, hi = bounds.ends
        return Range(None if r.lo is not None and _at_least(lo, r.lo) else r.lo, None if r.hi is not None and _at_least(r.hi, hi) else r.hi)

    def wanted(self, block: Block) -> Iterator[tuple[Value, bool]]:
        """Conditions that selects hang on, and the value that makes the select the branch that is not a constant."""
        for op in walk(block):
            if op.kind == "select":
                yield from self.parts(op.operands[0], self.passes(op))

    def passes(self, select: Op) -> bool:
        """The value of its condition that makes a select the branch that is not a constant."""
        _, a, b = select.operands
        return const_of(a, self.defs) is None or const_of(b, self.defs) is not None

    def parts(self, v: Value, wanted: bool) -> Iterator[tuple[Value, bool]]:
        """A conjunction (or, wanted false, a disjunction) taken apart: each part that is decided is a gain."""
        op = self.defs.get(v)
        if op is not None and op.kind in ("broadcast", "transpose", "full"):
            yield from self.parts(op.operands[0], wanted)
        elif op is not None and op.kind == "not":
            yield from self.parts(op.operands[0], not wanted)
        elif op is not None and op.kind == ("and" if wanted else "or"):
            for x in op.operands:
                yield from self.parts(x, wanted)
        else:
            yield v, wanted


def _inside(a: Range, b: Range) -> bool:
    """Whether a lies in b whatever the run-time sizes are."""
    low = b.lo is None or (a.lo is not None and _at_least(a.lo, b.lo))
    return low and (b.hi is None or (a.hi is not None and _at_least(b.hi, a.hi)))


def _at_least(a: Form, b: Form) -> bool:
    """a >= b whatever the run-time sizes are."""
    gap = (a - b).known
    return gap is not None and gap >= 0


def _room(op: Op, affine: Affine) -> Iterator[tuple[int, list[Form]]]:
    """(axis of the tile, how many positions are left after the run, in the tensor and up to its limit) for the guarded runs of a load or
    store."""
    for a in Access.of(op).runs if op.kind in ("load", "store") else ():
        first = affine.exact(a.start) if a.is_run and a.guard and a.start is not None else None
        limit = affine.exact(a.limit) if a.limit is not None else affine.size(a.dim)
        if first is not None and limit is not None and a.along is not None:
            yield a.along, [end - first - number(a.size) for end in dict.fromkeys((affine.size(a.dim), limit))]
