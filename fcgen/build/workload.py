"""What one program of a spec does, counted from its tile IR, with tile sizes left open.

The spec is traced once, with a size for each BLOCK name that nothing else has; an axis of that size runs over those tiles. `Workload` then
says for any tile sizes what the program's dots, loads, stores and elementwise work come to, and which tiles are alive together. It counts
what the spec says, not what passes make of it: it is for comparing tile sizes with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import prod

from ..errors import FcError
from ..ir.core import Block, GridAxis, Kernel, Op, Value, definitions, uses, walk
from ..ir.depends import readers
from ..ir.op_table import having
from ..ir.types import Tile
from ..passes.tile.parts import shared_loop

Axis = int | str  # a size, or the BLOCK name that has it
Shape = tuple[Axis, ...]
Tiles = Mapping[str, int]
#: functions that take a slow unit, or several steps
SLOW = {"exp", "exp2", "log", "log2", "sqrt", "rsqrt", "rcp", "tanh", "tanh_approx", "sigmoid", "erf", "sin", "cos", "div", "pow"}
POINTWISE = having("elementwise")
#: how far things go that are known only at run time: a tiled dimension, what is tiled and a scalar counts (a part of a tensor), a count
LONG, PART, COUNT = 4096, 64, 16


class Probe(dict[str, int]):
    """Tile sizes for a trace that tells which axis is which: a size of its own for each name that the spec asks for. small: where tiles
    of common sizes would be more than a tile can hold."""

    def __init__(self, taken: set[int], small: bool = False) -> None:
        super().__init__()
        self.free = (n for n in (range(3, 1 << 14, 2) if small else range(208, 1 << 14, 32)) if n not in taken)

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        self[name] = next(self.free)
        return self[name]


@dataclass(frozen=True)
class Loop:
    """tile: the axis that an iteration covers, of `dim`; None for a count."""

    dim: Axis
    tile: Axis | None


@dataclass(frozen=True)
class Dot:
    """rows, cols, inner: its axes. staged: the left and the right operand come from shared memory, and not from registers; held: the left
    one is the same in every iteration. name: what a schedule calls it. late: it adds to a value that its loop carries, and its left
    operand is made of another dot of the same iteration. carried: nothing else touches the value that it adds to, and both its operands are
    loaded as they are: it may be in flight from one iteration to the next. computed: its left operand follows from loads of the
    iteration; chain: from another dot. folded: its rows are reduced. flying: its left operand follows from a loaded tile element by
    element, in registers, and nothing else touches the value that it adds to: where there are registers, it may be in flight too."""

    op: Op
    rows: Axis
    cols: Axis
    inner: Axis
    bits: int
    loops: tuple[Loop, ...]
    staged: tuple[bool, bool]
    held: bool
    late: bool
    carried: bool = False
    computed: bool = False
    chain: bool = False
    folded: bool = False
    flying: bool = False


@dataclass(frozen=True)
class Move:
    """A load or store. shared: it goes through shared memory, for dots. raw: it does where bulk copies bring it: a left operand of a dot is
    computed from it."""

    shape: Shape
    bits: int
    loops: tuple[Loop, ...]
    shared: bool
    write: bool
    raw: bool = False


@dataclass
class Workload:
    """names: BLOCK names in the order in which the spec asks for them. alive: the tiles (shape, bits) that are in registers
    together, at each op, and of a dot its columns."""

    kernel: Kernel
    names: dict[str, int]
    sizes: Mapping[str, int]
    dots: list[Dot] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    work: dict[tuple[Shape, tuple[Loop, ...]], float] = field(default_factory=dict)  # elements -> operations on each, slow ones apart
    slow: dict[tuple[Shape, tuple[Loop, ...]], float] = field(default_factory=dict)
    alive: set[tuple[tuple[tuple[Shape, int], ...], Axis]] = field(default_factory=set)
    staged: dict[Value, tuple[Shape, int]] = field(default_factory=dict)  # computed tiles that dots read from shared memory: shape, bits
    loops: list[tuple[Loop, ...]] = field(default_factory=list)
    live_loops: bool = False

    def __post_init__(self) -> None:
        body = self.kernel.body
        self._of = {n: name for name, n in self.names.items()}
        self._defs, self._uses = definitions(body), uses(body)
        self._flexible: set[Value] = set()
        self._shared = {op.result for op in walk(body) if op.kind == "load" and len(op.result.type.shape) == 2 and self._feeds(op.result)}
        self._block(body, ())
        self._alive(body, set())

    # ---- questions ---------------------------------------------------------------------------------------------------

    def axis(self, n: int) -> Axis:
        return self._of.get(n, n)

    def shape(self, v: Value) -> Shape:
        return tuple(map(self.axis, v.type.shape))

    def trips(self, loops: tuple[Loop, ...], tiles: Tiles) -> float:
        return prod(self.count(loop, tiles) for loop in loops)

    def count(self, loop: Loop, tiles: Tiles) -> int:
        n = loop.dim if isinstance(loop.dim, int) else self.sizes.get(loop.dim, LONG if loop.tile is not None else COUNT)
        return max(1, -(-n // size(loop.tile, tiles)) if loop.tile is not None else n)

    def programs(self, tiles: Tiles) -> int:
        return prod(self.count_of(a, tiles) for a in self.kernel.grid)

    def count_of(self, a: GridAxis, tiles: Tiles) -> int:
        """(As many as one where there is nothing: for that is no launch, and any schedule does.)"""
        n = a.dim if isinstance(a.dim, int) else self.sizes.get(a.dim, self.parts.get(a.dim, LONG) if a.tile > 1 else COUNT)
        return max(1, -(-n // size(self.axis(a.tile), tiles)) if a.tile > 1 else n)

    def covered(self, tiles: Tiles) -> float:
        """The part of all rows of dots' tiles that lies inside of the grid's dimensions."""
        rows = {d.rows for d in self.dots}
        out = 1.0
        for a in self.kernel.grid:
            n = a.dim if isinstance(a.dim, int) else self.sizes.get(a.dim)
            if n is not None and a.tile > 1 and self.axis(a.tile) in rows:
                out *= n / (self.count_of(a, tiles) * size(self.axis(a.tile), tiles))
        return out

    def known(self) -> bool:
        """Is the size of the grid known?"""
        return all(isinstance(a.dim, int) or a.dim in self.sizes for a in self.kernel.grid)

    def at_once(self, tiles: Tiles, blocks: int) -> bool:
        """Is it known that all programs, of a loop that only adds up, run at the same time?"""
        return bool(self.sums) and self.known() and self.programs(tiles) <= blocks

    def registers(self, tiles: Tiles, threads: int, fragments: bool) -> float:
        """Of a thread, for the tiles that are alive together at the worst point. fragments: dots read their right operand into registers,
        16 rows at a time."""
        return max((sum(elements(s, tiles) * bits / 32 for s, bits in group) / threads + (size(cols, tiles) / 4 if fragments else 0)
                    for group, cols in self.alive), default=0.0)

    @cached_property
    def made(self) -> bool:
        """Whether a loop computes an operand of a dot from what it loads, and dots cannot take that from the registers it is made in."""
        read = [(n, self._source_of(v)) for d in self.dots if d.bits <= 16 and d.loops for n, v in enumerate(d.op.operands[:2])
                if n or not d.held]
        return any(self._from_loads(v) and (n or not self._by_element(v)) for n, v in read
                   if (op := self._defs.get(v)) is not None and op.kind != "load")

    @cached_property
    def parts(self) -> dict[str, int]:
        """Scalars that axes of the grid run over, and how far these go where nobody says."""
        return {p.name: PART for p in self.kernel.counts}

    @cached_property
    def sums(self) -> list[tuple[Shape, int]]:
        """What blocks that share the program's loop would add up: shapes, bits. Nothing where they cannot."""
        try:
            return [(self.shape(v), v.type.dtype.bits) for v in shared_loop(self.kernel.body, 2).results]
        except FcError:
            return []

    @cached_property
    def read(self) -> int:
        """Bytes of the tensors of which tiles are loaded, as far as their sizes are known."""
        found = {op.operands[0] for op in walk(self.kernel.body) if op.kind == "load" and len(op.result.type.shape) == 2}
        return sum(prod(self.sizes.get(d, 0) if isinstance(d, str) else d for d in v.type.dims) * v.type.dtype.bytes for v in found)

    def _by_element(self, v: Value) -> bool:
        """Does it follow from a loaded tile element by element?"""
        @cache
        def loaded(v: Value) -> bool:
            op = self._defs.get(v)
            return op is not None and (op.kind == "load" or (op.kind in POINTWISE and any(
                loaded(x) for x in op.operands if isinstance(x.type, Tile) and x.type.shape == v.type.shape)))

        return loaded(v)

    def _from_loads(self, v: Value) -> bool:
        @cache
        def loaded(v: Value) -> bool:
            op = self._defs.get(self._source_of(v))
            if op is None or op.regions or op.kind == "dot":
                return False
            tiles = [x for x in op.operands if isinstance(x.type, Tile)]
            return op.kind == "load" or (bool(tiles) and all(map(loaded, tiles)))

        return loaded(v)

    def called(self, d: Dot) -> str:
        """What a schedule calls a dot: as the pass `bind` does, by its site or the first named value that it alone flows into."""
        v = d.op.result
        while not v.name:
            us = [u for u in self._uses.get(v, ()) if u.results]
            if len(us) != 1 or len(us[0].results) != 1:
                break
            v = us[0].result
        return d.op.get("site") or v.name

    # ---- counting ----------------------------------------------------------------------------------------------------

    def _feeds(self, v: Value) -> bool:
        """Does a dot read the loaded tile, as it is or turned?"""
        return any((u.kind == "dot" and v in u.operands[:2]) or (u.kind == "transpose" and self._feeds(u.result))
                   for u in self._uses.get(v, ()))

    def _leads(self, v: Value) -> bool:
        """Does a left operand of a dot follow from the tile, element by element?"""
        same = lambda v, u: u.kind in POINTWISE and bool(u.results) and u.result.type.shape == v.type.shape
        return any(u.kind == "dot" and x is u.operands[0] for x, u in readers(v, self._uses, same))

    def _source(self, v: Value) -> Value:
        while (op := self._defs.get(v)) is not None and op.kind == "transpose":
            v = op.operands[0]
        return v

    def _block(self, block: Block, loops: tuple[Loop, ...]) -> None:
        for op in block.ops:
            if op.kind == "for":
                inside = (*loops, self._loop(op))
                self.loops.append(inside)
                self.live_loops |= len(op.regions) > 1
                self._block(op.regions[0], inside)
                continue
            for r in op.regions:
                self._block(r, loops)
            if op.kind in ("load", "store", "gather"):
                v = op.operands[1] if op.kind == "store" else op.result
                self.moves.append(Move(self.shape(v) if isinstance(v.type, Tile) else (), v.type.dtype.bits, loops, v in self._shared,
                                       op.kind == "store", op.kind == "load" and len(v.type.shape) == 2 and self._leads(v)))
            elif op.kind == "dot":
                self.dots.append(self._dot(op, block, loops))
            elif op.results and isinstance(op.result.type, Tile) and op.kind in ("iota", "full", "broadcast"):
                if all(v in self._flexible or not isinstance(v.type, Tile) for v in op.operands):
                    self._flexible.add(op.result)
            elif op.kind in POINTWISE and isinstance(op.result.type, Tile):
                self._pointwise(op, loops)
            elif op.kind == "reduce":
                self._count(self.work, self.shape(op.operands[0]), loops)

    def _pointwise(self, op: Op, loops: tuple[Loop, ...]) -> None:
        if all(v in self._flexible or not isinstance(v.type, Tile) for v in op.operands):
            self._flexible.add(op.result)  # masks and indices
        self._count(self.slow if op.kind in SLOW else self.work, self.shape(op.result), loops)

    @staticmethod
    def _count(table: dict[tuple[Shape, tuple[Loop, ...]], float], shape: Shape, loops: tuple[Loop, ...]) -> None:
        table[shape, loops] = table.get((shape, loops), 0.0) + 1

    def _loop(self, op: Op) -> Loop:
        sizes, numbers, todo = [], [], [op.operands[1]]
        while todo:
            made = self._defs.get(todo.pop())
            if made is None:
                continue
            if made.kind == "size":
                sizes.append(made["dim"])
            elif made.kind == "const":
                numbers.append(made["value"])
            if made.kind not in ("load", "gather", "for", "if"):
                todo += made.operands
        tile = self.axis(op["tile"]) if op.get("tile") else None
        return Loop(sizes[0] if len(set(sizes)) == 1 else max(numbers, default=COUNT) if not sizes and numbers else "", tile)

    def _dot(self, op: Op, block: Block, loops: tuple[Loop, ...]) -> Dot:
        (rows, inner), cols = self.shape(op.operands[0]), self.shape(op.operands[1])[1]
        left = self._source(op.operands[0])
        for v, turned in ((left, self.shape(left) != (rows, inner)), (self._source(op.operands[1]), True)):
            if turned and v not in self._shared:
                self.staged[v] = self.shape(v), v.type.dtype.bits
        made = {r for o in block.ops for r in o.results}
        chain = self._reaches(left, made)
        sums = list(self._forward(op.result))
        carried = bool(loops) and any(v in block.yielded for v in sums)
        alone = carried and {u.kind for v in sums for u in self._uses.get(v, ())} <= {"add", "dot", "yield"}
        plain = left in self._shared and self._source(op.operands[1]) in self._shared
        return Dot(op, rows, cols, inner, op.operands[0].type.dtype.bits, loops, (left in self._shared, True),
                   left in self._shared and bool(loops) and left not in made, carried and chain, alone and plain,
                   left in made and left not in self._shared and not chain, chain, self._folded(op.result),
                   alone and left in made and left not in self._shared and self._by_element(left))

    def _folded(self, v: Value) -> bool:
        """Are rows of what is computed of a tile element by element reduced?"""
        return any((u.kind == "reduce" and u["axis"] == 1) or (u.kind in POINTWISE and u.results and self._folded(u.result))
                   for u in self._uses.get(v, ()) if len(v.type.shape) == 2)

    def _reaches(self, v: Value, made: set[Value]) -> bool:
        """Is it made of a dot of this block?"""
        todo, seen = [v], set()
        while todo:
            v = todo.pop()
            op = self._defs.get(v)
            if v not in seen and v in made and op is not None:
                if op.kind == "dot":
                    return True
                seen.add(v)
                todo += op.operands
        return False

    def _forward(self, v: Value) -> Iterator[Value]:
        """The value and the sums that it alone flows into."""
        yield v
        while len(us := self._uses.get(v, [])) == 1 and us[0].kind in ("add", "mul") and us[0].results:
            v = us[0].result
            yield v

    # ---- what is alive -----------------------------------------------------------------------------------------------

    def _alive(self, block: Block, after: set[Value]) -> set[Value]:
        """Walk a block from its end; `after` is read behind it. Returns what is read before it."""
        live = set(after)
        for op in reversed(block.ops):
            live -= set(op.results)
            if op.kind == "for":
                kept = {self._source_of(v) for v in op.regions[0].reads}
                live |= {v for v in kept if self._holds(v)}
                live = (live | self._alive(op.regions[0], live)) - set(op.regions[0].args)
            else:
                for r in op.regions:
                    live |= self._alive(r, live) - set(r.args)
            live |= {s for v in op.operands if self._holds(s := self._source_of(v))}
            held = live | {v for v in op.results if self._holds(v)} if op.kind in ("load", "dot") else live
            group = tuple(sorted(((self.shape(v), max(v.type.dtype.bits, 8)) for v in held), key=str))
            if group:
                self.alive.add((group, self.shape(op.operands[1])[1] if op.kind == "dot" else 0))
        return live

    def _source_of(self, v: Value) -> Value:
        """What is held for a value: views, and rows that are copied along a tile, are their operand."""
        while (op := self._defs.get(v)) is not None and op.kind in ("transpose", "broadcast", "full"):
            v = op.operands[0]
        return v

    def _holds(self, v: Value) -> bool:
        """Is it in registers? Not the dots that are only added to something: they are made where that is."""
        if not isinstance(v.type, Tile) or v in self._flexible or v in self._shared:
            return False
        op = self._defs.get(v)
        return op is None or op.kind != "dot" or [u.kind for u in self._uses.get(v, ())] != ["add"]


def size(axis: Axis, tiles: Tiles) -> int:
    return axis if isinstance(axis, int) else tiles[axis]


def elements(shape: Shape, tiles: Tiles) -> int:
    return prod(size(a, tiles) for a in shape)
