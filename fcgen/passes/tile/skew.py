"""skew: a dot runs one iteration behind the rest of its loop, so that two dots are in flight together.

In: tile IR with its loops split. Out: an equal program. Of a loop with a dot marked `late`, the late ops are these dots, what only they
read (loads, views, and what is computed from such alone), and what follows from them, stores included; the others are early. Iteration j
of the new loop runs the early ops of tile j and the late ops of the tile before: first the early dots that do not wait for late results,
then the late ops, then the rest. What the late ops read from the early ones of their own tile is carried to the next iteration; what they
make is no longer carried. The first tile's early ops stand before the loops and the last tile's late ops after them, all under one `if` (a
loop may have no tile at all).

With `schedule.tokens`, a group of warps starts a turn with each iteration's first dot.

A chain of loops is skewed as one loop: the tile before the first one of a copy is the last one of the copy before it. The first tile's ops
come from a copy that keeps all masks, which holds for any tile; a masked copy that has at most that tile, for all sizes (`gaps`), is left
out.

This is modulo scheduling (Rau, 1994) with two stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...errors import FcError
from ...ir.access import guards
from ...ir.core import Block, Kernel, Op, Value, definitions, uses, walk, walk_kernel
from ...ir.depends import followed
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, branch, copy_op, map_bodies, remove_dead, substitute, substitute_block
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar
from ..facts.common import index_slice, without_effect
from .gaps import at_most

VIEWS = {"load", "transpose"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if schedule.tokens and not schedule.late:
        raise FcError("compile/schedule", "Schedule.tokens: warpgroups take turns at dots that run late, and none does",
                      hint='Schedule(late="acc", ...), or no tokens')
    late = {op["site"]: op for op in walk_kernel(kernel) if op.get("late")}
    if not late:
        return kernel
    done: set[str] = set()
    kernel = map_bodies(kernel, lambda body: remove_dead(_block(body, definitions(body), schedule.tokens, done)))
    for site in late:
        if site not in done:
            raise without_effect("late", f"%{site} is no dot of a loop's own body", expected="a dot that a loop runs in every iteration",
                                 loc=late[site].loc)
    return kernel


def _block(block: Block, defs: dict[Value, Op], turns: bool, done: set[str]) -> Block:
    out, env = Builder(), Env()
    ops = list(block.ops)
    i = 0
    while i < len(ops):
        op = env.reading(ops[i])
        out.loc = op.loc
        if op.kind != "for":
            out.add(op.within(lambda r: _block(substitute_block(r, env), defs, turns, done)))
            i += 1
            continue
        chain = [ops[i]]
        while (between := _up_to_next(ops, i)) is not None:
            for scalar in between:  # ends of the next range: they hang on no loop
                out.add(env.reading(scalar))
            i += len(between) + 1
            chain.append(ops[i])
        i += 1
        chain = [substitute(o, env) for o in chain]
        alike = lambda parts: len({tuple(x.kind for x in p.late) for p in parts}) == 1
        parts = [_Parts(o.regions[0], True) for o in chain]
        if not alike(parts):  # masks that only some tiles need stay with their own tile
            parts = [_Parts(o.regions[0], False) for o in chain]
        for o, p in zip(chain, parts):
            p.check(o)
        if not alike(parts):
            dot = next(o for o in chain[0].regions[0].ops if o.get("late"))
            raise FcError("compile/schedule", f"the dot %{dot['site']} cannot run late: what masks its result, in some tiles, would too",
                          loc=dot.loc, hint="Schedule.late names dots that only a carried value depends on")
        if not any(p.late for p in parts):
            for o in chain:
                if o.operands[0] is o.operands[1]:  # of no iterations: there for a first tile to be cut off
                    for old, new in zip(o.results, o.operands[2:]):
                        env[old] = env[new]
                    continue
                out.add(substitute(o, env).within(lambda r: _block(r, defs, turns, done)))
            continue
        for p in parts:
            _alone(p)
        done.update(o["site"] for p in parts for o in p.late if o.kind == "dot")
        results = _Skew(chain, parts, defs, turns).build(out)
        for old, new in zip(chain[-1].results, results):
            env[old] = new
    return out.block(block.args)


def _alone(parts: _Parts) -> None:
    """Refuse what late dots leave no room for: others ahead of their iteration, and work on an operand that has been carried."""
    late = next(o["site"] for o in parts.late if o.kind == "dot")
    for op in parts.body.ops:
        if op.get("early"):
            raise FcError("compile/schedule", f"Schedule.early: %{op['site']} is an iteration ahead already, where "
                          f"%{late} runs late", loc=op.loc, hint="late or early in a loop, not both")
        for field, why in (("rolling", "its left operand is made an iteration before"), ("behind", "it is an iteration behind")):
            if op.get(field) and op in parts.late:
                raise FcError("compile/schedule", f"Schedule.{field}: %{op['site']} runs late: {why}", loc=op.loc,
                              hint=f"late or {field}, not both of one dot")


def _up_to_next(ops: list[Op], i: int) -> list[Op] | None:
    """The ops between loop i and the next loop of its chain, if these are scalars that could as well stand before it; else None."""
    made = set(ops[i].results)
    for n in range(i + 1, len(ops) if ops[i].get("chain") is not None else 0):
        op = ops[n]
        if op.kind == "for":
            return ops[i + 1:n] if op.get("chain") == ops[i]["chain"] else None
        if has_effect(op) or op.regions or any(v in made for v in op.operands) or not all(isinstance(r.type, Scalar) for r in op.results):
            return None
    return None


class _Parts:
    """The early and the late ops of one loop body. computed: late are also ops that lead from loads and the index to late dots alone."""

    def __init__(self, body: Block, computed: bool):
        self.body, self.readers = body, uses(body)
        waits = set(body.args[1:])  # what follows from carried values and products
        for op in body.ops:
            if op.kind == "dot" or op.regions or has_effect(op) or any(v in waits for v in op.operands):
                waits.update(op.results)
        chosen = {o for o in body.ops if o.get("late")}
        ops = body.ops[:-1]
        for op in reversed(ops):
            us = [u for r in op.results for u in self.readers.get(r, ())]
            view = op.kind in VIEWS or (computed and not any(v in waits or isinstance(v.type, Scalar) for v in op.results))
            if view and us and all(u in chosen for u in us):
                chosen.add(op)
        made = {r for o in ops if o in chosen for r in o.results}
        for op in ops:  # what follows from late results, and stores of it
            if op not in chosen and any(v in made for v in op.operands) and _follows(op, body):
                chosen.add(op)
                made.update(op.results)
        self.late = [o for o in ops if o in chosen]
        self.early = [o for o in ops if o not in chosen]
        #: carried values whose next value a late op makes
        self.finished = [n for n, y in enumerate(body.yielded) if y in made]
        read, changes = {v for o in self.late for v in o.operands}, set(body.args[1:])
        #: of these, the ones that the next tile's late ops go on with
        self.onward = [n for n in self.finished if body.args[1 + n] in read]
        scalars: dict[Value, Op] = {}  # what late ops make again: it follows from the loop's index alone
        for op in self.early:
            if not op.regions and all(isinstance(r.type, Scalar) for r in op.results) and not changes.intersection(op.operands):
                scalars.update((r, op) for r in op.results)
            else:
                changes.update(op.results)
        written = {o.operands[0] for o in walk(body) if o.kind == "store"}
        places = [v for o in self.late if o.kind == "load" for v in o.operands[1:] if v in changes]
        for op in index_slice(body, tuple(v for v in places if index_slice(body, (v,), written) is not None), written) or ():
            scalars.update((r, op) for r in op.results)  # where a late load reads: not carried, so that its tile can be brought ahead
            changes.difference_update(op.results)
        #: what late ops read of the others, and of carried values as they were in front of early ops that change them
        self.cut = list(dict.fromkeys(v for o in self.late for v in o.operands
                                      if v in changes and v not in made and v not in {body.args[1 + n] for n in self.finished}))
        self.index_ops = _slice([v for o in self.late for v in o.operands if v in scalars], scalars)

    def check(self, loop: Op) -> None:
        made = {r for o in self.late for r in o.results}
        reader = next((o for o in self.early if o.reads & made), None)
        if reader is not None:
            dot = next(o for o in self.late if o.kind == "dot")
            raise FcError("compile/schedule", f"the dot %{dot['site']} cannot run late: its own iteration reads the result",
                          got=f"{reader.kind} reads it", loc=reader.loc or loop.loc,
                          hint="Schedule.late names dots that only a carried value depends on")

    def first(self, late_results: set[Value]) -> list[Op]:
        """Early ops that stand in front of the late ones: dots that need nothing from them, with what they read."""
        made, waits = {r: o for o in self.early for r in o.results}, set(late_results)
        for o in self.early:
            if not waits.isdisjoint(o.operands):
                waits.update(o.results)
        need = {o for d in self.early if d.kind == "dot" and d.result not in waits for o in [d, *_slice(d.operands, made)]}
        return [o for o in self.early if o in need]


def _follows(op: Op, body: Block) -> bool:
    """Whether an op that reads a late result may run late itself: not a dot, nor one that others of the loop must come before or after."""
    if op.kind == "store":
        return not any(o is not op and op.operands[0] in o.operands for o in walk(body))
    return op.kind != "dot" and not op.regions and not has_effect(op)


def _slice(values: Iterable[Value], made: dict[Value, Op]) -> list[Op]:
    """The ops that these values follow from, in order."""
    need = followed(values, made) or ()
    return [o for o in dict.fromkeys(made.values()) if o in need]


@dataclass
class _Skew:
    chain: list[Op]
    parts: list[_Parts]
    defs: dict[Value, Op]
    turns: bool

    def build(self, out: Builder) -> tuple[Value, ...]:
        first, last = self.chain[0], self.chain[-1]
        down = bool(first.get("descending"))
        low, high = (last.operands[0], first.operands[1]) if down else (first.operands[0], last.operands[1])
        b = Builder(first.loc)
        one = b.const(1)
        some = out.emit("lt", low, high, name="some", loc=first.loc)
        start = b.emit("sub", high, one, name="first") if down else low
        end = low if down else b.emit("sub", high, one, name="last")
        limit = start if down else b.emit("add", low, one)
        whole = next((n for n, o in enumerate(self.chain) if o.get("part") != "full"), 0)
        carried = list(first.operands[2:])
        values, cut = self.peel(whole, start, carried, b)
        ends = {v: b.emit("min" if down else "max", v, limit) for v in dict.fromkeys(v for o in self.chain for v in o.operands[:2])
                if v is not low and v is not high}  # in front of all loops: nothing stands between those of a chain
        ends[high if down else low] = limit
        for n, op in enumerate(self.chain):
            bounds = tuple(ends.get(v, v) for v in op.operands[:2])
            if n == 0 and op.get("part") == "masked" and len(self.chain) > 1 and self.one_tile(op):
                continue  # the tile in front of the loops is all that this copy was for
            values, cut = self.loop(n, op, bounds, values, cut, one, b)
        values = self.finish(len(self.chain) - 1, end, values, cut, b)
        results = tuple(r.anew() for r in last.results)
        out.add(branch(some, b, values, first.operands[2:], results, loc=first.loc))
        return results

    def peel(self, n: int, index: Value, carried: list[Value], b: Builder) -> tuple[list[Value], list[Value]]:
        """The early ops of the first tile, which stand in no loop that a product could follow behind."""
        parts = self.parts[n]
        env = Env(dict(zip(parts.body.args, [index, *carried])))
        for op in parts.early:
            b.add(copy_op(op.with_attrs(behind=False) if op.get("behind") else op, env))
        return [v if k in parts.finished else env[y] for k, (v, y) in enumerate(zip(carried, parts.body.yielded))], list(env.all(parts.cut))

    def loop(self, n: int, op: Op, bounds: tuple[Value, ...], values: list[Value], cut: list[Value], one: Value,
             b: Builder) -> tuple[list[Value], list[Value]]:
        parts, body = self.parts[n], op.regions[0]
        kept = [k for k in range(len(values)) if k not in parts.finished or k in parts.onward]
        index = body.args[0].anew()
        args = [body.args[1 + k].anew() for k in kept] + [Value(v.type, v.name or "late") for v in cut]
        carried = {body.args[1 + k]: a for k, a in zip(kept, args)}
        env = Env({body.args[0]: index, **carried})
        inner = Builder(op.loc)
        late_args = {body.args[1 + k] for k in parts.finished}
        front = parts.first(late_args)
        if self.turns:
            inner.do("turn")
        for o in front:
            inner.add(copy_op(o, env))
        inner.loc = op.loc
        before = inner.emit("add" if op.get("descending") else "sub", index, one, name="before")
        late = self.late(parts, before, {**carried, **dict(zip(parts.cut, args[len(kept):]))}, inner)
        for k in parts.finished:
            env[body.args[1 + k]] = late[body.yielded[k]]
        for o in parts.early:
            if o not in front:
                inner.add(copy_op(o, env))
        inner.do("yield", *((late if k in parts.onward else env)[body.yielded[k]] for k in kept), *env.all(parts.cut), loc=body.ops[-1].loc)
        results = tuple(a.anew() for a in args)
        b.add(replace(op, operands=(*bounds, *(values[k] for k in kept), *cut), results=results, regions=(inner.block((index, *args)),)))
        new = list(values)
        for k, r in zip(kept, results):
            new[k] = r
        return new, list(results[len(kept):])

    def late(self, parts: _Parts, index: Value, cut: dict[Value, Value], b: Builder) -> Env:
        """The late ops of tile `index`, which may be a tile of the copy before: loads keep a guard that any copy has."""
        env = Env({parts.body.args[0]: index, **cut})
        for op in parts.index_ops:
            b.add(copy_op(op, env))
        for k, op in enumerate(parts.late):
            if op.kind in ("load", "store"):
                op = op.with_attrs(guard=guards([p.late[k] for p in self.parts]))
            b.add(copy_op(op, env))
        return env

    def finish(self, n: int, index: Value, values: list[Value], cut: list[Value], b: Builder) -> list[Value]:
        parts = self.parts[n]
        whole = next((p for p, o in zip(self.parts, self.chain) if o.get("part") != "full"), parts)
        if self.turns:
            b.do("turn")
        onward = {whole.body.args[1 + k]: values[k] for k in whole.onward}
        late = self.late(whole, index, {**onward, **dict(zip(whole.cut, cut))}, b)
        return [late[whole.body.yielded[k]] if k in whole.finished else v for k, v in enumerate(values)]

    def one_tile(self, op: Op) -> bool:
        """Whether the copy holds at most one tile, for all rows and for each part of them."""
        ends = [self.defs.get(v) for v in op.operands[:2]]
        both = [d.operands if d is not None and d.kind == "narrow" else (v, v) for d, v in zip(ends, op.operands)]
        return all(at_most(high, low, 1, self.defs) for low, high in zip(*both))
