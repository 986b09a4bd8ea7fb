"""makers: operands that loops compute from loads alone are made by a role of their own; with `Schedule.makers`, part of `prologues`.

In: placed machine IR. Out: the same, where in each loop the work that leads from loads to staged operands of products, if it follows from
nothing else, is spread over the warps of the role to be, and ends in stores into a slot of a ring; the products read that slot. Copies of
such work outside of loops, for a first or last tile, fill the same ring. `roles` then gives each side its own copy of the program
(`sides`): who stores into the rings, and who reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ...errors import FcError
from ...ir.access import Access
from ...ir.core import Block, Kernel, Op, Value, definitions, walk
from ...ir.depends import followed
from ...ir.layout import RegLayout, rowwise
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, edited, remove_dead, substitute
from ...ir.schedule import Schedule
from ...ir.types import Frag
from ..facts.common import called
from ..facts.jobs import of_makers
from .channels import Channel
from .prefetch import PLACES

#: what may stand between a load and an operand
WORK = PLACES | {"load", "gather", "unstage", "reduce", "combine", "stage"}
#: scalars that each role finds by itself
KNOWN = PLACES | {"size", "narrow", "row_part", "load", "gather", "combine", "reduce"}
#: Of a ring of its own. In one ring with what was copied, of the slots of both, the makers run ahead, and their loads and stores come in
#: bursts that hold up the consumers' shuffles: 1.29 times the plain kernel's time, for 1.14 (H200, rotated keys, D = 128, 4k)
SLOTS = 2
#: lanes that share a row where rows are reduced: as many as reach all banks of shared memory with 16 bytes each
LANES_OF_A_ROW = 8


def apart(kernel: Kernel, schedule: Schedule) -> Kernel | None:
    """The kernel with the work of its makers, or None where there is none."""
    m = _Makers(kernel, schedule)
    m.loops(kernel.body)
    if not m.rings:
        return None
    body = remove_dead(m.beside(m.block(kernel.body, ())))
    return replace(kernel.with_body(body), buffers=(*kernel.buffers, *m.rings.values()))


class _Makers:
    """rings: what a staged operand is made of, wherever it is -> its ring. moved: tiles and vectors of blocks around the work, with
    where it wants its layouts to go -> what lies there."""

    def __init__(self, kernel: Kernel, schedule: Schedule):
        self.schedule, self.defs = schedule, definitions(kernel.body)
        self.written = {o.operands[0] for o in walk(kernel.body) if o.kind == "store"}
        self.indices = {o.regions[0].args[0] for o in walk(kernel.body) if o.kind == "for"} | set(kernel.body.args)
        self.params = set(kernel.params)
        self.rings: dict[Any, Value] = {}
        self.moved: dict[tuple[Value, Any], Value] = {}

    def loops(self, block: Block) -> None:
        for op in block.ops:
            for r in op.regions:
                self.loops(r)
                if op.kind == "for" and not op.get("unroll"):
                    for group in self.groups(r, r.args[1:]):
                        for key, stage in group.stages:
                            self.rings.setdefault(key, Value(replace(stage.result.type, slots=SLOTS), stage.result.name))

    def block(self, block: Block, carried: tuple[Value, ...]) -> Block:
        groups = [g for g in self.groups(block, carried) if all(key in self.rings for key, _ in g.stages)]
        at = {g.stages[0][1]: g for g in groups}
        gone = {stage for g in groups for _, stage in g.stages}
        b, env, done = Builder(), Env(), set()
        for n, op in enumerate(block.ops):
            if op in at:
                b.loc = op.loc
                for k in at[op].early(block, n):  # what its work follows from stands in front
                    if k not in done:
                        b.add(k)
                        done.add(k)
                at[op].emit(self, b, env)
            if op in gone or op in done:
                continue
            regions = tuple(self.block(r, r.args[1:] if op.kind == "for" else ()) for r in op.regions)
            b.add(substitute(replace(op, regions=regions), env))
        return b.block(block.args)

    def groups(self, block: Block, carried: tuple[Value, ...]) -> list[_Group]:
        """Of staged operands that share work."""
        out: list[_Group] = []
        counts: dict[Any, int] = {}
        for stage in (o for o in block.ops if o.kind == "stage" and read_by_products(o.result, block)):
            ops = self.slice(stage, block.made, carried)
            spread = ops and _spread(self.around(o for o in block.ops if o in ops), self.schedule)
            if not ops or not spread or not any(o.kind in ("load", "gather") for o in ops):
                continue
            sites = tuple(sorted(str(o.get("site") or o.operands[0].name) for o in ops if o.kind in ("load", "gather")))
            key = (sites, str(stage.result.type))
            counts[key] = counts.get(key, -1) + 1
            tiles = {o for o in ops if isinstance(o.result.type, Frag)}
            group = _Group([((key, counts[key]), stage)], ops, spread)
            for other in [g for g in out if not tiles.isdisjoint(g.ops)]:
                out.remove(other)
                group = _Group([*other.stages, *group.stages], {**other.ops, **ops}, {**other.spread, **spread})
            out.append(group)
        return out

    def slice(self, stage: Op, made: Mapping[Value, Op], carried: tuple[Value, ...]) -> dict[Op, None] | None:
        """The ops of its block that a staged tile follows from, if no other role is needed for them."""
        def allowed(op: Op) -> bool:
            fixed = op.kind not in ("load", "gather") or op.operands[0] not in self.written
            return op.kind in WORK and not op.regions and fixed and not (op.kind == "load" and Access.of(op).listed)

        return followed(stage.operands, made, allowed, lambda v: v not in carried and self.known(v))

    def around(self, ops: Iterable[Op]) -> list[Op]:
        """The ops, and those of other blocks that make tiles and vectors for them."""
        out = dict.fromkeys(ops)
        tiles = {v: o for v, o in self.defs.items() if isinstance(v.type, Frag)}
        return [*(out | (followed([v for o in out for v in o.operands], tiles) or {}))]

    def wanted(self, v: Value, spread: dict[Any, Any]) -> Value:
        """A value of a block around the work, as the work wants it."""
        if not isinstance(v.type, Frag) or spread[v.type.layout] == v.type.layout:
            return v
        key = v, frozenset(spread.items())
        if key not in self.moved:
            self.moved[key] = Value(_moved(v.type, spread), v.name)
            for o in self.defs[v].operands:
                self.wanted(o, spread)
        return self.moved[key]

    def beside(self, block: Block) -> Block:
        """With what `wanted` promised, each beside the op that makes the value of the other layout."""
        def beside(op: Op) -> list[Op]:
            return [op, *(replace(op, operands=tuple(self.moved.get((x, where), x) for x in op.operands), results=(new,))
                          for (v, where), new in self.moved.items() if v in op.results)]

        return edited(block, beside)

    def known(self, v: Value) -> bool:
        """Whether any role can make a value of another block: from the grid, indices of loops, sizes and what is loaded."""
        made = {x: o for x, o in self.defs.items() if x not in self.indices and x not in self.params}
        return followed([v], made, lambda o: o.kind in KNOWN and not o.regions, lambda x: x in self.indices or x in self.params) is not None


class _Group:
    """stages: (what it is made of, the op), in order. ops: the work of its block. spread: layout -> that over the makers' warps."""

    def __init__(self, stages: list[tuple[Any, Op]], ops: dict[Op, None], spread: dict[Any, Any]):
        self.stages, self.ops, self.spread = stages, ops, spread

    def early(self, block: Block, n: int) -> list[Op]:
        return [o for o in block.ops[n:] if o in self.ops and not isinstance(o.result.type, Frag)]

    def emit(self, makers: _Makers, b: Builder, env: Env) -> None:
        """The work once more, spread over other warps; what else reads it keeps what there was."""
        mine = Env()
        zero = b.const(0)
        for key, stage in self.stages:
            env[stage.result] = b.emit("slot", makers.rings[key], zero, ahead=0, made=True, name=stage.result.name)
        for op in self.ops:
            if isinstance(op.result.type, Frag):
                mine[op.result] = Value(_moved(op.result.type, self.spread), op.result.name)
        for op in self.in_order():
            operands = tuple(mine[v] if v in mine.map else makers.wanted(v, self.spread) for v in op.operands)
            made = mine[op.result]
            if op.kind == "combine":  # the lanes that share a row are others
                op = op.with_attrs(lanes=self.spread[op.operands[0].type.layout, op["lanes"]])
            b.add(replace(op, operands=operands, results=(made,)))
        for _, stage in self.stages:
            tile = stage.operands[0]
            held = mine[tile] if tile in mine.map else makers.wanted(tile, self.spread)
            b.do("st_shared", held, env[stage.result], zero, zero, loc=stage.loc)

    def in_order(self) -> list[Op]:
        """Tiles and vectors of the work, each behind what it is made of."""
        made = {o.result: o for o in self.ops if isinstance(o.result.type, Frag)}
        out: dict[Op, None] = {}

        def visit(op: Op) -> None:
            for v in op.operands:
                if v in made and made[v] not in out:
                    visit(made[v])
            out[op] = None

        for _, stage in self.stages:
            op = made.get(stage.operands[0])
            if op is not None and op not in out:
                visit(op)
        return list(out)


def _moved(t: Frag, spread: dict[Any, Any]) -> Frag:
    return replace(t, layout=spread[t.layout])


def read_by_products(v: Value, block: Block) -> bool:
    """Whether products of the block itself read a tile, and nothing else."""
    readers = [o for o in walk(block) if v in o.operands]
    return bool(readers) and all(o.kind == "dot" and o in block.ops for o in readers)


def _spread(ops: Iterable[Op], schedule: Schedule) -> dict[Any, Any] | None:
    """Where each layout of the work goes, and the lanes that combine what one has left, if so many warps as the role has share the rows;
    None where that is not known."""
    ops = list(ops)
    frags = [v.type for o in ops for v in (*o.results, *o.operands) if isinstance(v.type, Frag)]
    out: dict[Any, Any] = {}
    summed = any(o.kind == "reduce" for o in ops)
    for old, (rows, cols) in dict.fromkeys((t.layout, t.shape) for t in frags if len(t.shape) == 2):
        width = next((v for v in (1, 2, 4, 8, 16, 32) if rowwise(rows, cols, schedule.warps, 32, v) == old), None)
        if width is None:
            return None
        out[old] = rowwise(rows, cols, schedule.makers, LANES_OF_A_ROW if summed else 32, width)
    for old, new in list(out.items()):
        for a in (0, 1):
            out[old.drop(a)] = new.drop(a)
            out[old.drop(a), tuple(old.reduces_over(a)[0])] = tuple(new.reduces_over(a)[0])
    if any(o.kind == "combine" and (o.operands[0].type.layout, o["lanes"]) not in out for o in ops):
        return None
    return out if all(isinstance(t.layout, RegLayout) and t.layout in out for t in frags) else None


# ---- for `roles` ----------------------------------------------------------------------------------------------------------


def rings_made(body: Block) -> dict[Op, Value]:
    """`slot` op -> the ring that the makers fill."""
    return {o: o.operands[0] for o in walk(body) if o.kind == "slot" and o.get("made")}


def sides(body: Block, made: dict[Op, Value], schedule: Schedule) -> tuple[Block, Block]:
    """What the makers do, and what is left for the role that computes. What is done with results of the makers' own products is theirs."""
    views, theirs = {o.result for o in walk(body) if o in made}, of_makers(body)
    acts = lambda o: not o.regions and o.kind != "yield" and has_effect(o)
    fills = lambda o: (o.kind == "st_shared" and o.operands[1] in views) or (acts(o) and not theirs.isdisjoint(o.operands))
    makes = remove_dead(edited(body, lambda o: None if acts(o) and not fills(o) else o))
    reads = remove_dead(edited(body, lambda o: None if fills(o) else o))
    _check_sides(makes, reads, schedule)
    return makes, reads


def _check_sides(makes: Block, reads: Block, schedule: Schedule) -> None:
    """Makers follow from no product but their own, and nobody else needs those in registers."""
    own = schedule.made
    hint = f"{'name it in Schedule.made too, or ' if own else ''}leave {'made' if own else 'makers'} out of the schedule"
    kinds = ("dot",) if own else ("dot", "stage", "combine_across")
    product = next((o for o in walk(makes) if o.kind in kinds and not o.get("made")), None)
    if product is not None:
        raise FcError("compile/unsupported", "whether or how an operand is made follows from a product" + " of the other warps" * bool(own),
                      loc=product.loc, got=product.kind, expected="numbers of the grid, of loops and of loads", hint=hint)
    product = next((o for o in walk(reads) if o.kind == "dot" and o.get("made")), None)
    if product is not None:
        raise FcError("compile/unsupported", f"what follows from {called(product.result)}, which makers make, is needed by the other warps "
                      "in registers", loc=product.loc, got="work or a store of theirs that reads it",
                      expected="operands of their products alone", hint="name those products in Schedule.made too, or leave it out")
    wide = next((o for o in walk(makes) for r in o.results if isinstance(r.type, Frag) and isinstance(r.type.layout, RegLayout)
                 and r.type.layout.warps > schedule.makers), None)
    if wide is not None:
        raise FcError("compile/unsupported", f"{called(wide.result)} is spread over more warps than the makers are", loc=wide.loc,
                      got=wide.result.type, expected=f"a tile that takes part in products of {schedule.makers} warps", hint=hint)


def chains(body: Block) -> set[int]:
    """All loops that may be cut short for some rows: the makers walk them over the tiles of all rows."""
    return {o["chain"] for o in walk(body) if o.kind == "narrow"}


def warps_reading(loads: list[Op], roles: dict[str, tuple[Block | None, int]]) -> dict[Op, dict[str, int]]:
    """Load -> those of these roles that wait for its tile, and how many warps of each."""
    out: dict[Op, dict[str, int]] = {o: {} for o in loads}
    sites: dict[str, set[str]] = {}
    for name, (body, warps) in roles.items():
        here = set(walk(body)) if body is not None else set()
        for o in loads if body is not None else ():
            out[o] |= {name: warps} if o in here else {}
            sites.setdefault(o["site"], set()).add(f"{name} {o in here}")
    for o in loads:
        torn = [n for n in roles if {f"{n} True", f"{n} False"} <= sites[o["site"]]]
        if torn:
            raise FcError("compile/unsupported", f"the role {torn[0]} reads %{o['site']} in one loop and not in its copy", loc=o.loc,
                          hint="leave makers out of the schedule")
    return out


def made_channels(body: Block, made: dict[Op, Value], schedule: Schedule, first: int) -> tuple[Block, list[Channel]]:
    """The body in which each slot that makers fill says the number of its channel, from `first` on. Each warp of the makers arrives for
    what it has stored."""
    rings = list(dict.fromkeys(made.values()))
    marked = edited(body, lambda o: o.with_attrs(channel=first + rings.index(made[o])) if o in made else o)
    return marked if made else body, [Channel.between(v, schedule.warps, fillers=schedule.makers) for v in rings]
