"""The one program structure of both IR levels: values, ops, blocks, kernels; and how to build, walk and rewrite them.

All of it is immutable: a pass takes a `Kernel` and returns a new one. A `Value` is its identity (two values with the same
name are different values); an `Op` is a node of one generic shape whose rules live in the table of `ir.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ..errors import Loc

Attr = Any  # int | float | str | bool | None | a layout | tuple of these


@dataclass(frozen=True, eq=False)
class Value:
    """An SSA value. `name` is for people; the printer makes it unique."""

    type: Any  # ir.types.Type; what an op demands of it is checked by the op table
    name: str = ""

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: `results = kind operands {attrs} regions`. loc: the line of the spec that it comes from. place: where it stands in
    the text that it was read from; what a pass makes of it has none."""

    kind: str
    operands: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    regions: tuple[Block, ...] = ()
    loc: Loc | None = None
    place: Loc | None = None

    def __getitem__(self, name: str) -> Attr:
        return self.attrs[name]

    def get(self, name: str, default: Attr = None) -> Attr:
        return self.attrs.get(name, default)

    @property
    def result(self) -> Value:
        assert len(self.results) == 1, f"{self.kind} has {len(self.results)} results"
        return self.results[0]

    def with_attrs(self, **attrs: Attr) -> Op:
        return replace(self, attrs={**self.attrs, **attrs})

    def __str__(self) -> str:
        from .text import print_op

        return print_op(self)


@dataclass(frozen=True, eq=False)
class Block:
    """Ops in order; the last op of a region is `yield`."""

    args: tuple[Value, ...] = ()
    ops: tuple[Op, ...] = ()

    @property
    def yielded(self) -> tuple[Value, ...]:
        return self.ops[-1].operands if self.ops and self.ops[-1].kind == "yield" else ()


@dataclass(frozen=True)
class GridAxis:
    """One axis of the launch grid: ceil(size / tile) programs. dim: a number, or the name of a tensor dimension or of an i32 parameter.
    cluster: as many neighbours
    along the axis run at the same time and reach each other's shared memory; the launch is rounded up to whole clusters."""

    name: str
    dim: str | int
    tile: int = 1
    reverse: bool = False
    cluster: int = 1

    def count(self, sizes: Mapping[str, int]) -> int:
        n = self.dim if isinstance(self.dim, int) else sizes[self.dim]
        return -(-n // self.tile)

    def clusters(self, sizes: Mapping[str, int]) -> int:
        return -(-self.count(sizes) // self.cluster)


@dataclass(frozen=True, eq=False)
class Role:
    """A group of warps that runs one body. Tile level: one role named "all" with 0 warps."""

    name: str
    warps: int
    body: Block
    regs: int = 0


@dataclass(frozen=True, eq=False)
class Kernel:
    """A program at either level.

    params: tensors and scalars, in call order. flags: param name -> words ("out": written, as a whole
    unless "kept" is there too; "positive": a scalar known > 0).
    grid: axes in the order of the spec; each role body's args are the program's index on each axis. order: axis numbers,
    the fastest varying first. buffers: machine level, the shared-memory rings. meta: facts for people and for the launch
    (target, schedule, stage, smem_bytes, ...).
    """

    name: str
    level: str
    params: tuple[Value, ...]
    grid: tuple[GridAxis, ...]
    roles: tuple[Role, ...]
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    buffers: tuple[Value, ...] = ()
    meta: Mapping[str, Attr] = field(default_factory=dict)

    @property
    def body(self) -> Block:
        assert len(self.roles) == 1, "a kernel with several roles has no single body"
        return self.roles[0].body

    @property
    def warps(self) -> int:
        return sum(r.warps for r in self.roles)

    @property
    def cluster(self) -> int:
        """Blocks per cluster."""
        return prod(a.cluster for a in self.grid)

    def with_body(self, body: Block) -> Kernel:
        return replace(self, roles=(replace(self.roles[0], body=body),))

    def with_meta(self, **meta: Attr) -> Kernel:
        return replace(self, meta={**self.meta, **meta})

    def param(self, name: str) -> Value:
        return next(p for p in self.params if p.name == name)

    @property
    def counts(self) -> tuple[Value, ...]:
        """The scalar parameters that axes of the grid run over."""
        names = {a.dim for a in self.grid} - {d for p in self.params for d in getattr(p.type, "dims", ())}
        return tuple(p for p in self.params if not hasattr(p.type, "dims") and p.name in names)

    def extent(self, axis: GridAxis, b: Builder) -> Value:
        """The size that an axis of the grid runs over, as a value."""
        count = next((p for p in self.counts if p.name == axis.dim), None)
        return count or (b.emit("const", value=axis.dim, dtype="i32") if isinstance(axis.dim, int) else
                         b.emit("size", dim=axis.dim, name=axis.dim))

    def __str__(self) -> str:
        from .text import print_kernel

        return print_kernel(self)


# ---- walking ---------------------------------------------------------------------------------------------------------


def walk(block: Block) -> Iterator[Op]:
    """Every op of the block and of its regions, outer op before inner ones, in program order."""
    for op in block.ops:
        yield op
        for r in op.regions:
            yield from walk(r)


def walk_kernel(kernel: Kernel) -> Iterator[Op]:
    for role in kernel.roles:
        yield from walk(role.body)


def uses(block: Block) -> dict[Value, list[Op]]:
    """value -> the ops that read it (a `yield` counts)."""
    out: dict[Value, list[Op]] = {}
    for op in walk(block):
        for v in op.operands:
            out.setdefault(v, []).append(op)
    return out


def definitions(block: Block) -> dict[Value, Op]:
    """value -> the op that makes it; region arguments are absent."""
    return {r: op for op in walk(block) for r in op.results}


def free_values(block: Block) -> set[Value]:
    """Values read in the block but made outside it."""
    made = set(block.args)
    free: set[Value] = set()
    for op in block.ops:
        free |= {v for v in op.operands if v not in made}
        for r in op.regions:
            free |= {v for v in free_values(r) if v not in made}
        made |= set(op.results)
    return free


# ---- rewriting -------------------------------------------------------------------------------------------------------


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


def substitute(op: Op, env: Env) -> Op:
    """The op, and those in its regions, with operands through `env`; it keeps its own values."""
    regions = tuple(substitute_block(r, env) for r in op.regions)
    return Op(op.kind, env.all(op.operands), op.results, op.attrs, regions, op.loc)


def substitute_block(block: Block, env: Env) -> Block:
    return Block(block.args, tuple(substitute(op, env) for op in block.ops))


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
        from .ops import infer

        if type is None:
            (type,) = infer(kind, tuple(operands), attrs, loc or self.loc)
        out = Value(type, name)
        self.ops.append(Op(kind, tuple(operands), (out,), attrs, regions, loc or self.loc))
        return out

    def do(self, kind: str, *operands: Value, loc: Loc | None = None, regions: tuple[Block, ...] = (), **attrs: Attr) -> Op:
        """Append an op without results."""
        return self.add(Op(kind, tuple(operands), (), attrs, regions, loc or self.loc))

    def block(self, args: tuple[Value, ...] = ()) -> Block:
        return Block(args, tuple(self.ops))


def copy_op(op: Op, env: Env) -> Op:
    """A copy with fresh results and region arguments; operands go through `env`, which learns the new results."""
    operands = env.all(op.operands)
    regions = tuple(copy_block(r, env) for r in op.regions)
    results = tuple(Value(r.type, r.name) for r in op.results)
    for old, new in zip(op.results, results):
        env[old] = new
    return Op(op.kind, operands, results, op.attrs, regions, op.loc)


def copy_block(block: Block, env: Env) -> Block:
    args = tuple(Value(a.type, a.name) for a in block.args)
    for old, new in zip(block.args, args):
        env[old] = new
    return Block(args, tuple(copy_op(op, env) for op in block.ops))


def rewrite(block: Block, rule: Callable[[Op, Builder, Env], bool], env: Env | None = None) -> Block:
    """Copy a block; for each op (operands already substituted) `rule` may build something else and return True.

    The rule maps old results through `env[old] = new`. Regions are rewritten before the rule sees their op."""
    env = Env() if env is None else env
    args = tuple(Value(a.type, a.name) for a in block.args)
    for old, new in zip(block.args, args):
        env[old] = new
    b = Builder()
    for op in block.ops:
        operands, regions = env.all(op.operands), tuple(rewrite(r, rule, env) for r in op.regions)
        new_op = Op(op.kind, operands, op.results, op.attrs, regions, op.loc)
        b.loc = op.loc
        if rule(new_op, b, env):
            continue
        results = tuple(Value(r.type, r.name) for r in op.results)
        for old, fresh in zip(op.results, results):
            env[old] = fresh
        b.add(Op(op.kind, operands, results, op.attrs, regions, op.loc))
    return b.block(args)


def map_bodies(kernel: Kernel, fn: Callable[[Block], Block]) -> Kernel:
    return replace(kernel, roles=tuple(replace(r, body=fn(r.body)) for r in kernel.roles))


def remove_dead(block: Block, live: set[Value] | None = None) -> Block:
    """Drop ops whose results nobody reads and that have no effect; shrink loops to the carried values that matter."""
    from .ops import has_effect

    live = set() if live is None else set(live)
    kept: list[Op] = []
    for op in reversed(block.ops):
        effect = has_effect(op)
        if not effect and not any(r in live for r in op.results):
            continue
        if op.kind in ("for", "if") and op.results:
            op = _shrink(op, live)
        if op.kind == "for":
            regions = tuple(remove_dead(r, live) for r in op.regions)
            op = replace(op, regions=regions)
        elif op.regions:
            op = replace(op, regions=tuple(remove_dead(r, live) for r in op.regions))
        live |= set(op.operands)
        for r in op.regions:
            live |= free_values(r)
        kept.append(op)
    return Block(block.args, tuple(reversed(kept)))


def _shrink(op: Op, live: set[Value]) -> Op:
    """Without the results (and, for a loop, carried values) that neither later ops nor the body itself need."""
    if op.kind == "if":
        keep = [i for i, r in enumerate(op.results) if r in live]
        regions = tuple(_keep_yields(r, keep) for r in op.regions)
        return replace(op, results=tuple(op.results[i] for i in keep), regions=regions)
    body = op.regions[0]
    carried = body.args[1:]
    keep_set = {i for i, r in enumerate(op.results) if r in live}
    while True:
        slim = remove_dead(_keep_yields(body, sorted(keep_set)), set())
        needed = free_values(Block((), slim.ops))
        more = {i for i, a in enumerate(carried) if a in needed} | keep_set
        if more == keep_set:
            break
        keep_set = more
    keep = sorted(keep_set)
    if len(keep) == len(op.results):
        return op
    first = len(op.operands) - len(op.results)
    new_body = replace(_keep_yields(body, keep), args=(body.args[0], *(carried[i] for i in keep)))
    return replace(op, operands=op.operands[:first] + tuple(op.operands[first + i] for i in keep),
                   results=tuple(op.results[i] for i in keep), regions=(new_body, *op.regions[1:]))


def _keep_yields(block: Block, keep: list[int]) -> Block:
    last = block.ops[-1]
    return replace(block, ops=(*block.ops[:-1], replace(last, operands=tuple(last.operands[i] for i in keep))))
