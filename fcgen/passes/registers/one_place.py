"""one_place: a tile that is read of one place of a tensor is read once.

In: placed machine IR. Out: where the positions that a tile of a loop is read at (`gather`) follow from runs of positions and scalars, a
branch asks whether the least and the largest of them are the same. On one side a scalar is read, for all of the tile; the other side is as
it was, and has what only the positions were made of. What uses the tile at once stands on both sides, so that no register holds the scalar
once for each element. So tables of distances that end somewhere, or that have an entry for several distances, cost little where tiles are
past that end. Positions do not wrap (`ranges`), and nor do the ends that are computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from ...ir.core import Block, Kernel, Op, Value, definitions, uses, walk_kernel
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, branch, copy_op, edited, map_bodies, remove_dead
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag, Scalar, i32
from ..facts.common import ELEMENTWISE, is_position

Ends = tuple[Value, Value]


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    written = {o.operands[0] for o in walk_kernel(kernel) if o.kind == "store"}

    def body(block: Block) -> Block:
        defs = definitions(block)
        loop = lambda op: op.within(lambda r: _block(r, defs, written)) if op.kind == "for" else op
        return edited(block, loop)

    return map_bodies(kernel, lambda b: after if (after := body(b)) is b else remove_dead(after))


def _block(block: Block, defs: Mapping[Value, Op], written: set[Value]) -> Block:
    for op in block.ops:
        if op.kind == "gather" and op.operands[0] not in written and isinstance(op.result.type, Frag) and len(op.result.type.shape) == 2:
            block = _read(block, op, defs) or block
    return block


def _read(block: Block, read: Op, defs: Mapping[Value, Op]) -> Block | None:
    readers = uses(block)
    (use, *more) = readers.get(read.result, [read])
    known = lambda v: isinstance(v.type, Scalar)
    places = [v for v in read.operands[1:] if isinstance(v.type, Frag)]
    if more or use.kind not in ELEMENTWISE or use not in block.ops or not all(is_position(v, defs, known, 24) for v in places):
        return None
    before, out = Builder(read.loc), Builder(read.loc)
    ends = {v: _ends(v, defs, before) for v in places}
    if any(e is None or e[0] is e[1] for e in ends.values()):
        return None
    tests = [before.emit("eq", *e) for e in ends.values() if e is not None]
    same = reduce(lambda a, b: before.emit("and", a, b), tests)
    alone = _only_for(block, {read, use}, readers)
    sides, envs = (Builder(read.loc), Builder(read.loc)), (Env(), Env())
    for n, (side, env) in enumerate(zip(sides, envs)):
        if n == 0:
            first = [e[0] if (e := ends.get(v)) is not None else v for v in read.operands[1:]]
            number = side.emit("gather", read.operands[0], *first, type=Scalar(read.result.type.dtype), name=read.result.name)
            env[read.result] = side.emit("full", number, type=read.result.type)
        for o in block.ops:
            if o in alone and (n == 1 or o is not read):
                side.add(copy_op(o, env))
    for o in block.ops:
        if o is use:
            out.ops += before.ops
            out.add(branch(same, sides[0], envs[0].all(use.results), envs[1].all(use.results), use.results, sides[1], use.loc))
        elif o not in alone:
            out.add(o)
    return Block(block.args, tuple(out.ops))


def _only_for(block: Block, found: set[Op], readers: Mapping[Value, list[Op]]) -> set[Op]:
    """These, and the ops of the block that only they follow from, as far as each is element work."""
    inside = {v for o in block.ops for r in o.regions for v in r.reads}
    for op in reversed(block.ops):
        mine = op.results and all(x in found for r in op.results for x in readers.get(r, [op]))
        light = op.kind in ELEMENTWISE or op.kind in ("iota", "full", "broadcast", "transpose")
        if op not in found and mine and light and not has_effect(op) and inside.isdisjoint(op.results) and isinstance(op.result.type, Frag):
            found = found | {op}
    return found


def _ends(v: Value, defs: Mapping[Value, Op], b: Builder) -> Ends | None:
    """The least and the largest of a tile of positions, as scalars; they may lie further apart."""
    op = defs.get(v)
    if isinstance(v.type, Scalar):
        return v, v
    if op is None or v.type.dtype != i32:
        return None
    if op.kind == "iota":
        return b.const(0), b.const(v.type.shape[0] - 1)
    if op.kind in ("full", "broadcast", "transpose"):
        return _ends(op.operands[0], defs, b)
    rule = RULES.get(op.kind)
    xs = [_ends(x, defs, b) for x in op.operands] if rule is not None else [None]
    return rule(b, *xs) if rule is not None and None not in xs else None


def _each(kind: str, turned: bool = False) -> Callable[..., Ends]:
    return lambda b, x, y: (b.emit(kind, x[0], y[turned]), b.emit(kind, x[1], y[1 - turned]))


def _quotients(b: Builder, x: Ends, y: Ends) -> Ends | None:
    """By one number, of either sign."""
    if y[0] is not y[1]:
        return None
    low, high = (b.emit("floordiv", e, y[0]) for e in x)
    return b.emit("min", low, high), b.emit("max", low, high)


RULES: dict[str, Callable[..., Ends | None]] = {
    "add": _each("add"), "sub": _each("sub", True), "min": _each("min"), "max": _each("max"), "floordiv": _quotients,
    "neg": lambda b, x: (b.emit("neg", x[1]), b.emit("neg", x[0]))}
