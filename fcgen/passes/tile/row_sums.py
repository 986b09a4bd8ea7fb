"""row_sums: a row sum becomes eight more columns of a matrix product.

In: tile IR with its loops split. Out: an equal program, up to rounding. Where a loop carries
    acc' = dot(p, v, acc * f)        l' = l * f + sum(p, axis=1)
with both zero at first, and the dot is marked `sums`, it carries one wider accumulator instead: dot(p, [v | 1 1 ... 1], wide * f), whose
right columns are l each. The sum is one of what the dot reads: where p was rounded for the dot, its rounding is in acc and in l alike and
cancels in their quotient. After the loops the two are cut out of the wide one again.

Eight columns are the least that a matrix instruction adds; the sum costs no additions, no exchange between lanes and no factor of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import FcError
from ...ir.core import Block, Kernel, Op, Value, definitions, uses, walk_kernel
from ...ir.known import const_of
from ...ir.rewrite import Builder, Env, copy_op, map_bodies, remove_dead, substitute, substitute_block
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Tile

COLUMNS = 8


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    left = {op["site"] for op in walk_kernel(kernel) if op.get("sums")}
    if not left:
        return kernel
    out = map_bodies(kernel, lambda body: remove_dead(_Widen(body, left).block(body)))
    if left:
        raise FcError("compile/schedule", f"Schedule.ones names {', '.join(sorted(left))}, which no row sum goes with",
                      expected="a dot in a loop, acc = acc * f + dot(p, v), beside l = l * f + sum(p, axis=1), both zero at first",
                      hint="leave it out of Schedule.ones")
    return out


@dataclass
class _Pair:
    """A dot and its row sum in one loop body. acc, row: their places among the carried values; factor: of both, a row, or None."""

    dot: Op
    add: Op
    acc: int
    row: int
    factor: Value | None


class _Widen:
    """left: sites of dots whose row sum has not been found."""

    def __init__(self, body: Block, left: set[str]):
        self.left = left
        self.defs, self.uses = definitions(body), uses(body)
        self.wide: dict[tuple[Value, Value], Value] = {}  # (accumulator, sum) -> both in one

    def block(self, block: Block) -> Block:
        out, env = Builder(), Env()
        for op in block.ops:
            op = env.reading(op)
            out.loc = op.loc
            pair = self.pair(op) if op.kind == "for" else None
            if pair is not None:
                for old, new in zip(op.results, self.loop(op, pair, env, out)):
                    env[old] = new
            else:
                op = op.within(lambda r: self.block(substitute_block(r, env)))
                if op.kind == "if":
                    self.branch(op, env, out)
                else:
                    out.add(op)
        return out.block(block.args)

    def branch(self, op: Op, env: Env, out: Builder) -> None:
        """A branch: where both sides end with an accumulator and its sum, these leave it in one, and are cut behind it."""
        ends, some = [r.yielded for r in op.regions], range(len(op.results))
        pairs = {i: j for i in some for j in some if all((e[i], e[j]) in self.wide for e in ends)}
        kept = [n for n in some if n not in pairs.values()]
        both = {n: Value(self.wide[ends[0][n], ends[0][pairs[n]]].type, op.results[n].name) for n in pairs}
        regions = []
        for r, end in zip(op.regions, ends):
            values = [self.wide[end[n], end[pairs[n]]] if n in pairs else end[n] for n in kept]
            regions.append(replace(r, ops=(*r.ops[:-1], replace(r.ops[-1], operands=tuple(values)))))
        out.add(replace(op, results=tuple(both.get(n, op.results[n]) for n in kept), regions=tuple(regions)))
        for n, row in pairs.items():
            acc, total = op.results[n], op.results[row]
            env[acc], env[total] = self.cut(both[n], acc.type.shape[1], acc.name, total.name, out)

    # ---- finding -----------------------------------------------------------------------------------------------------

    def pair(self, loop: Op) -> _Pair | None:
        body = loop.regions[0]
        for dot in body.ops:
            if not dot.get("sums"):
                continue
            found = self.beside(dot, body)
            if found is None:
                continue
            inits = tuple(loop.operands[2 + n] for n in (found.acc, found.row))
            if inits in self.wide or all(const_of(v, self.defs) == 0 for v in inits):
                self.left.discard(dot["site"])
                return found
        return None

    def beside(self, dot: Op, body: Block) -> _Pair | None:
        """The row sum that grows by what the dot reads, as the dot's accumulator does."""
        carried, yielded = body.args[1:], body.yielded
        acc = self.carried(dot.result, body)
        if len(dot.operands) != 3 or acc is None or not self.read_once(dot.result):
            return None
        factor = self.factor(dot.operands[2], carried[acc], tall=True)
        if factor is None:
            return None
        source = self.bare(dot.operands[0])
        sums = [o for o in body.ops if o.kind == "reduce" and o["fn"] == "sum" and o["axis"] == 1 and self.bare(o.operands[0]) is source]
        for op in sorted(sums, key=lambda o: o.operands[0] is source):  # first what was rounded as the dot's operand was
            for add in self.uses.get(op.result, ()):
                row = self.carried(add.result, body) if add.kind == "add" else None
                if row is None or not (self.read_once(op.result) and self.read_once(yielded[row])):
                    continue
                other = next(v for v in add.operands if v is not op.result)
                if self.factor(other, carried[row], tall=False) == factor:
                    return _Pair(dot, add, acc, row, factor[0])
        return None

    def carried(self, v: Value, body: Block) -> int | None:
        return next((n for n, y in enumerate(body.yielded) if y is v), None)

    def read_once(self, v: Value) -> bool:
        return len(self.uses.get(v, ())) == 1

    def factor(self, v: Value, of: Value, tall: bool) -> tuple[Value | None] | None:
        """(f,) where v is of * f (with `tall`, f spread over the columns), (None,) where v is `of`; else None, as when anyone else reads
        `of`."""
        if not self.read_once(of):
            return None
        if v is of:
            return (None,)
        op = self.defs.get(v)
        if op is None or op.kind != "mul" or of not in op.operands or not self.read_once(v):
            return None
        f = next((x for x in op.operands if x is not of), of)
        if not tall:
            return (f,)
        spread = self.defs.get(f)
        return (spread.operands[0],) if spread is not None and spread.kind == "broadcast" and tuple(spread["axes"]) == (0,) else None

    def bare(self, v: Value) -> Value:
        """Without conversions between floats."""
        while (op := self.defs.get(v)) is not None and op.kind == "cast" and op.operands[0].type.dtype.is_float:
            v = op.operands[0]
        return v

    # ---- writing -----------------------------------------------------------------------------------------------------

    def loop(self, op: Op, pair: _Pair, outside: Env, out: Builder) -> list[Value]:
        """The loop over the wide accumulator; its old results, cut out of the wide one."""
        body, inits = op.regions[0], op.operands[2:]
        rows, cols = pair.dot.result.type.shape
        t = Tile(pair.dot.result.type.dtype, (rows, cols + COLUMNS))
        name, attrs = pair.dot["site"], {k: x for k, x in pair.dot.attrs.items() if k != "sums"}
        start = self.wide.get((inits[pair.acc], inits[pair.row]))
        if start is None:
            start = out.emit("full", out.emit("const", value=0.0, dtype=t.dtype.name), shape=t.shape, name=name)
        kept = [n for n in range(len(inits)) if n != pair.row]
        arg = Value(t, name)
        args = [arg if n == pair.acc else body.args[1 + n].anew() for n in kept]
        index = body.args[0].anew()
        env = Env({**outside.map, body.args[0]: index, **{body.args[1 + n]: a for n, a in zip(kept, args)}})
        inner, last = Builder(op.loc), body.ops[-1]
        gone = {pair.add.result, *pair.add.operands, pair.dot.operands[2]}
        for o in body.ops[:-1]:
            if o.results and o.results[0] is pair.dot.result:
                inner.loc = o.loc
                acc = arg
                if pair.factor is not None:
                    f = inner.emit("broadcast", env[pair.factor], axes=(0,), shape=t.shape)
                    acc = inner.emit("mul", arg, f)
                env[o.result] = inner.emit("dot", *env.all(o.operands[:2]), acc, name=name, ones=COLUMNS, **attrs)
            elif not any(r in gone for r in o.results):
                inner.add(copy_op(o, env) if not o.regions else substitute(o, env))
        inner.do("yield", *(env[last.operands[n]] for n in kept), loc=last.loc)
        made = [a.anew() for a in args]
        out.add(replace(op, operands=(*op.operands[:2], *(start if n == pair.acc else inits[n] for n in kept)), results=tuple(made),
                        regions=(inner.block((index, *args)), *op.regions[1:])))
        wide = made[kept.index(pair.acc)]
        acc, row = self.cut(wide, cols, op.results[pair.acc].name, op.results[pair.row].name, out)
        self.wide[acc, row] = wide
        results = dict(zip(kept, made))
        results.update({pair.acc: acc, pair.row: row})
        for n, r in results.items():  # questions about uses are asked of the old program
            self.uses.setdefault(r, self.uses.get(op.results[n], []))
        return [results[n] for n in range(len(inits))]

    def cut(self, wide: Value, cols: int, acc: str, row: str, out: Builder) -> tuple[Value, Value]:
        at = [out.const(n) for n in (0, cols)]
        left = out.emit("slice", wide, at[0], axis=1, size=cols, name=acc)
        return left, out.emit("reduce", out.emit("slice", wide, at[1], axis=1, size=COLUMNS), fn="max", axis=1, name=row)
