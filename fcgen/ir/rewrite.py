"""How programs are copied, built and rewritten: everything in `core` is immutable, so each of these makes a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import Loc
from .core import Attr, Block, GridAxis, Kernel, Op, Value, same
from .ops import has_effect, infer


class Env:
    """Substitution of values while a program is copied."""

    def __init__(self, mapping: Mapping[Value, Value] | None = None):
        self.map: dict[Value, Value] = dict(mapping or {})

    def __getitem__(self, v: Value) -> Value:
        return self.map.get(v, v)

    def __setitem__(self, old: Value, new: Value) -> None:
        self.map[old] = new

    def all(self, vs: Iterable[Value]) -> tuple[Value, ...]:
        return tuple([self.map.get(v, v) for v in vs])

    def reading(self, op: Op) -> Op:
        """The op, which reads what stands for its operands; its regions are as they were."""
        return op.reading(self.all(op.operands))

    def anew(self, vs: Iterable[Value]) -> tuple[Value, ...]:
        """Values like these, which stand for them from here on."""
        new = {v: v.anew() for v in vs}
        self.map.update(new)
        return tuple(new.values())


def substitute(op: Op, env: Env) -> Op:
    """The op, and those in its regions, with operands through `env`; it keeps its own values, and is itself where it reads no others."""
    return env.reading(op.within(partial(substitute_block, env=env)))


def substitute_block(block: Block, env: Env) -> Block:
    ops = tuple(substitute(op, env) for op in block.ops)
    return block if same(ops, block.ops) else Block(block.args, ops)


class Builder:
    """Appends ops to a growing list. `emit` infers result types from the op table where they follow from the operands."""

    def __init__(self, loc: Loc | None = None):
        self.ops: list[Op] = []
        self.loc = loc

    def add(self, op: Op) -> Op:
        self.ops.append(op)
        return op

    def emit(self, kind: str, *operands: Value, type: Any = None, name: str = "", loc: Loc | None = None,
             regions: tuple[Block, ...] = (), **attrs: Attr) -> Value:
        """Append an op with one result and return the result."""
        if type is None:
            (type,) = infer(kind, tuple(operands), attrs, loc or self.loc)
        out = Value(type, name)
        self.ops.append(Op(kind, tuple(operands), (out,), attrs, regions, loc or self.loc))
        return out

    def const(self, value: int) -> Value:
        """A number, as an i32 scalar."""
        return self.emit("const", value=value, dtype="i32")

    def do(self, kind: str, *operands: Value, loc: Loc | None = None, regions: tuple[Block, ...] = (), **attrs: Attr) -> Op:
        """Append an op without results."""
        return self.add(Op(kind, tuple(operands), (), attrs, regions, loc or self.loc))

    def block(self, args: tuple[Value, ...] = ()) -> Block:
        return Block(args, tuple(self.ops))


def copy_op(op: Op, env: Env) -> Op:
    """A copy with fresh results and region arguments; operands go through `env`, which learns the new results."""
    operands = env.all(op.operands)
    regions = tuple(copy_block(r, env) for r in op.regions)
    return Op(op.kind, operands, env.anew(op.results), op.attrs, regions, op.loc)


def copy_block(block: Block, env: Env) -> Block:
    return Block(env.anew(block.args), tuple(copy_op(op, env) for op in block.ops))


def edited(block: Block, fn: Callable[[Op], Op | Sequence[Op] | None]) -> Block:
    """The block, and all in it, with `fn(op)` in the place of each op, inner ones first: an op, several, or none. Itself where all stay."""
    ops: list[Op] = []
    for op in block.ops:
        new = fn(op.within(partial(edited, fn=fn)))
        ops += [new] if isinstance(new, Op) else new or ()
    return block if same(tuple(ops), block.ops) else Block(block.args, tuple(ops))


def rewrite(block: Block, rule: Callable[[Op, Builder, Env], bool], env: Env | None = None) -> Block:
    """For each op (operands already substituted) `rule` may build something else and return True; the others stay as they are.

    The rule maps old results through `env[old] = new`. Regions are rewritten before the rule sees their op."""
    env = Env() if env is None else env
    b = Builder()
    for old in block.ops:
        op, b.loc = env.reading(old.within(partial(rewrite, rule=rule, env=env))), old.loc
        if not rule(op, b, env):
            b.add(op)
    return block if same(tuple(b.ops), block.ops) else b.block(block.args)


def branch(condition: Value, then: Builder, gives: Iterable[Value] = (), others: Iterable[Value] = (), results: tuple[Value, ...] = (),
           otherwise: Builder | None = None, loc: Loc | None = None) -> Op:
    """An `if`: what `then` has built, which gives these values, or what `otherwise` has, which gives the others."""
    otherwise = otherwise or Builder(then.loc)
    then.do("yield", *gives)
    otherwise.do("yield", *others)
    return Op("if", (condition,), results, {}, (then.block(), otherwise.block()), loc or then.loc)


def extent(kernel: Kernel, axis: GridAxis, b: Builder) -> Value:
    """The size that an axis of the grid runs over, as a value."""
    count = next((p for p in kernel.counts if p.name == axis.dim), None)
    return count or (b.const(axis.dim) if isinstance(axis.dim, int) else
                     b.emit("size", dim=axis.dim, name=axis.dim))


def map_bodies(kernel: Kernel, fn: Callable[[Block], Block]) -> Kernel:
    bodies = tuple(fn(r.body) for r in kernel.roles)
    if same(bodies, tuple(r.body for r in kernel.roles)):
        return kernel
    return replace(kernel, roles=tuple(replace(r, body=body) for r, body in zip(kernel.roles, bodies)))


def remove_dead(block: Block, live: set[Value] | None = None) -> Block:
    """Drop ops whose results nobody reads and that have no effect; shrink loops to the carried values that matter."""
    live = set() if live is None else set(live)
    kept: list[Op] = []
    for op in reversed(block.ops):
        effect = has_effect(op)
        if not effect and not any(r in live for r in op.results):
            continue
        if op.kind in ("for", "if") and op.results:
            op = _shrink(op, live)
        op = op.within(partial(remove_dead, live=live))
        live.update(op.operands, *(r.reads for r in op.regions))
        kept.append(op)
    ops = tuple(reversed(kept))
    return block if same(ops, block.ops) else Block(block.args, ops)


def _shrink(op: Op, live: set[Value]) -> Op:
    """Without the results (and, for a loop, carried values) that neither later ops nor the body itself need."""
    keep = [i for i, r in enumerate(op.results) if r in live]
    if len(keep) == len(op.results):
        return op
    if op.kind == "if":
        regions = tuple(_keep_yields(r, keep) for r in op.regions)
        return replace(op, results=tuple(op.results[i] for i in keep), regions=regions)
    body = op.regions[0]
    carried = body.args[1:]
    keep_set = set(keep)
    while True:
        slim = remove_dead(_keep_yields(body, sorted(keep_set)), set())
        needed = Block((), slim.ops).reads
        more = {i for i, a in enumerate(carried) if a in needed} | keep_set
        if more == keep_set:
            break
        keep_set = more
    return carrying(op, sorted(keep_set)) if len(keep_set) < len(op.results) else op


def carrying(loop: Op, keep: list[int]) -> Op:
    """A `for` with these of its carried values, by number, and no others."""
    body, first = loop.regions[0], len(loop.operands) - len(loop.results)
    slim = replace(_keep_yields(body, keep), args=(body.args[0], *(body.args[1 + i] for i in keep)))
    return replace(loop, operands=loop.operands[:first] + tuple(loop.operands[first + i] for i in keep),
                   results=tuple(loop.results[i] for i in keep), regions=(slim, *loop.regions[1:]))


def _keep_yields(block: Block, keep: list[int]) -> Block:
    last = block.ops[-1]
    return replace(block, ops=(*block.ops[:-1], replace(last, operands=tuple(last.operands[i] for i in keep))))
