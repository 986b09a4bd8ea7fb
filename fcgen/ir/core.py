"""The one program structure of both IR levels: values, ops, blocks, kernels; and how to walk them.

All of it is immutable: a pass takes a `Kernel` and returns a new one. A `Value` is its identity (two values with the same
name are different values); an `Op` is a node of one generic shape whose rules live in the table of `ir.ops`.
That nobody assigns to a `Value`, an `Op` or a `Block` is mypy's to see (`node`): checked at run time, it made the making of one
three times as long, and a compilation makes tens of thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from operator import is_
from typing import TYPE_CHECKING, Any

from ..errors import Loc

if TYPE_CHECKING:
    from typing import TypeVar

    from typing_extensions import dataclass_transform

    C = TypeVar("C")

    @dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(field,))
    def node(cls: type[C]) -> type[C]: ...
else:
    node = dataclass(eq=False)

#: how `str` writes an op and a kernel; `text` says it, which knows all of this module
WRITTEN: dict[type, Callable[[Any], str]] = {}

Attr = Any  # int | float | str | bool | None | a layout | tuple of these


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether they hold the same things, not others that are equal."""
    return len(a) == len(b) and all(map(is_, a, b))


@node
class Value:
    """An SSA value. `name` is for people; the printer makes it unique."""

    type: Any  # ir.types.Type; what an op demands of it is checked by the op table
    name: str = ""

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"

    def anew(self) -> Value:
        """Another value of this type and name."""
        return Value(self.type, self.name)


@node
class Op:
    """One operation: `results = kind operands {attrs} regions`. loc: the line of the spec that it comes from. place: where it stands in
    the text that it was read from; one that a pass makes has none."""

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
        return Op(self.kind, self.operands, self.results, {**self.attrs, **attrs}, self.regions, self.loc, self.place)

    def reading(self, operands: tuple[Value, ...]) -> Op:
        """The op with these operands: itself where they are its own."""
        return self if same(operands, self.operands) else \
            Op(self.kind, operands, self.results, self.attrs, self.regions, self.loc, self.place)

    def within(self, fn: Callable[[Block], Block]) -> Op:
        """The op with `fn(region)` in the place of each of its regions: itself where these are the same ones."""
        if not self.regions:
            return self
        regions = tuple(map(fn, self.regions))
        return self if same(regions, self.regions) else \
            Op(self.kind, self.operands, self.results, self.attrs, regions, self.loc, self.place)

    @property
    def reads(self) -> set[Value]:
        """Values that the op reads, in its regions or not."""
        return set(self.operands).union(*(r.reads for r in self.regions))

    def __str__(self) -> str:
        return WRITTEN[Op](self)


@node
class Block:
    """Ops in order; the last op of a region is `yield`."""

    args: tuple[Value, ...] = ()
    ops: tuple[Op, ...] = ()

    @cached_property
    def reads(self) -> frozenset[Value]:
        """Values read in the block but made outside it."""
        read = set[Value]()
        for op in self.ops:
            read.update(op.operands, *(r.reads for r in op.regions))
        return frozenset(read.difference(self.args, *(op.results for op in self.ops)))

    @cached_property
    def made(self) -> Mapping[Value, Op]:
        """value -> the op that makes it, of the block's own."""
        return {r: op for op in self.ops for r in op.results}

    @property
    def yielded(self) -> tuple[Value, ...]:
        return self.ops[-1].operands if self.ops and self.ops[-1].kind == "yield" else ()


@dataclass(frozen=True)
class GridAxis:
    """One axis of the launch grid: ceil(size / tile) programs. dim: a number, or the name of a tensor dimension or of an i32 parameter.
    cluster: as many neighbours along the axis run at the same time and reach each other's shared memory; the launch is rounded up to whole
    clusters."""

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
    def dims(self) -> tuple[str, ...]:
        """The names of run-time sizes, in order."""
        return tuple(dict.fromkeys(d for p in self.params for d in getattr(p.type, "dims", ()) if isinstance(d, str)))

    @property
    def counts(self) -> tuple[Value, ...]:
        """The scalar parameters that axes of the grid run over."""
        names = {a.dim for a in self.grid} - set(self.dims)
        return tuple(p for p in self.params if not hasattr(p.type, "dims") and p.name in names)

    def __str__(self) -> str:
        return WRITTEN[Kernel](self)


# ---- walking ---------------------------------------------------------------------------------------------------------


def walk(part: Block | Op) -> Iterator[Op]:
    """Every op of a block, or an op itself, and of the regions, outer op before inner ones, in program order."""
    rest = [iter(part.ops if isinstance(part, Block) else (part,))]
    while rest:
        for op in rest[-1]:
            yield op
            if op.regions:
                rest += [iter(r.ops) for r in reversed(op.regions)]
                break
        else:
            rest.pop()


def blocks(block: Block) -> Iterator[Block]:
    """The block and all in it."""
    yield block
    for op in walk(block):
        yield from op.regions


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


def made_within(block: Block) -> set[Value]:
    """What the block and all in it make, arguments of regions and its own among them."""
    return {v for b in blocks(block) for v in (*b.args, *b.made)}


def definitions(block: Block) -> dict[Value, Op]:
    """value -> the op that makes it; region arguments are absent."""
    return {r: op for op in walk(block) for r in op.results}
