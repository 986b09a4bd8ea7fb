"""Ranges: runs of positions along a dimension or a count. They label the axes of tiles, and index tensors, moved or cut off where a spec
says so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ..errors import FcError
from ..ir.core import Value
from ..ir.types import i1, i32
from .arith import elementwise, lift
from .handles import Handle, NotATile
from .mistakes import called, refuses
from .trace import current, here, mistake

#: of a tile that is given none: what follows from it is not looked at
ANY_SIZE = 16
Extent = Any  # str | int | Handle: a dimension, a number, or a scalar of the program


class Positions(NotATile, ABC):
    """What an index along a dimension may be that a tile runs along: a range, or one that was moved or cut off."""

    __slots__ = ()

    @abstractmethod
    def placed(self) -> Placed:
        """As a range, how far it was moved, and where it is cut off."""

    def __add__(self, n: Any) -> Placed:
        p = self.placed()
        return Placed(p.range, _moved("add", p.shift, n, self), p.stop)

    __radd__ = __add__

    def __sub__(self, n: Any) -> Placed:
        p = self.placed()
        return Placed(p.range, _moved("sub", p.shift, n, self), p.stop)

    def until(self, stop: Any) -> Placed:
        """The same positions, but none at or past `stop`: they read as zero and are not written, whatever the tensor has there."""
        p, end = self.placed(), _moved("add", None, stop, self)
        return Placed(p.range, p.shift, end if p.stop is None else elementwise("min", p.stop, end))


def whole_number(n: Any, what: str, code: str = "trace/usage", hint: str | None = None) -> Handle:
    """An i32 scalar of the program. what: is said of anything else."""
    h = lift(n, i32)
    if h.labels or h.dtype != i32:
        raise mistake(code, what, expected="an i32 scalar or a number", got=repr(h), hint=hint)
    return h


def _moved(kind: str, a: Handle | None, n: Any, whose: Any) -> Handle:
    """A position in a tensor, so far from where a range begins."""
    if isinstance(n, NotATile):
        raise n.mistaken() if not isinstance(n, Positions) else whose.mistaken()
    h = whole_number(n, "a range is moved, or cut off, by a whole number", hint="the positions of a range, as a tile, are rows.index")
    return h if a is None and kind == "add" else elementwise(kind, 0 if a is None else a, h)


@called("range")
class Range(Positions):
    """A run of positions along a dimension: what `fc.tile` of a grid or loop axis yields, and an axis label of what it indexes. dim: what
    ends it, a dimension's name, a number, or a scalar of the program. `rows + start` are the same rows, further on in a tensor."""

    __slots__ = ("_live", "_start", "_tile", "block", "dim", "number", "scope", "size")
    PUBLIC = ("again", "index", "matters", "size", "start", "until", "valid")

    def __init__(self, block: str, size: int, start: Value, dim: Extent, tile: Value | None = None):
        self.block, self.size, self.dim = block, size, dim
        t = current()
        self.scope = t.scope
        self._start, self._tile = start, tile
        self._live: Any = None  # of the loop that it comes from
        t.ranges += 1
        self.number = t.ranges  # among those of its trace

    def mistaken(self) -> FcError:
        return mistake("trace/usage", "a range is not a tile", got=repr(self),
                       hint="its positions are .index, the first one is .start; rows + n, with a scalar n, indexes a tensor further on")

    __bool__ = refuses("a range has no truth value", "its positions are .index; choose with fc.where", "trace/python-if")
    __iter__ = refuses("a range is not a loop", "for cols in fc.loop(fc.tile(K.N, 'BLOCK_N')):")

    def __repr__(self) -> str:
        return f"<range {self.block} of {self.size} along {extent_name(self.dim)}>"

    @property
    def start(self) -> Handle:
        """The first position, an i32 scalar."""
        return self._scoped(Handle(self._start))

    @property
    def index(self) -> Handle:
        """The positions, i32 [self]."""
        t = current()
        at = t.emit("add", t.emit("iota", shape=(self.size,)), self.start.value)
        t.runs[at] = self
        return Handle(at, (self,))

    @property
    def valid(self) -> Handle:
        """Which positions lie inside the dimension, i1 [self]."""
        return elementwise("lt", self.index, dim_size(self.dim))

    @property
    def matters(self) -> Handle | None:
        """Where the loop that the range comes from is live, i1; None where it says nothing."""
        return None if self._live is None else lift(self._live(self), i1)

    def again(self) -> Range:
        """The same positions as an axis of its own, for products of a chunk with itself."""
        return Range(self.block, self.size, self.start.value, self.dim, self._tile)

    def placed(self) -> Placed:
        return Placed(self, None, None)

    def _scoped(self, h: Handle) -> Handle:
        h.scope = self.scope
        h.check_scope()
        return h


@called("range")
class Placed(Positions):
    """A range's positions in a tensor: `shift` further on, and none at or past `stop`. The tile's axis is the range's own."""

    __slots__ = ("range", "shift", "stop")
    PUBLIC = ("until",)

    def __init__(self, range: Range, shift: Handle | None, stop: Handle | None):
        self.range, self.shift, self.stop = range, shift, stop

    def mistaken(self) -> FcError:
        return mistake("trace/usage", "a range that was moved indexes a tensor, and is no tile", got=repr(self), expected="X[rows + start]",
                       hint="as a tile, its positions are rows.index + start")

    def __repr__(self) -> str:
        return f"{self.range!r}{' + ...' if self.shift is not None else ''}{' until ...' if self.stop is not None else ''}"

    def placed(self) -> Placed:
        return self

    @property
    def start(self) -> Handle:
        """The first position in the tensor."""
        first = self.range.start
        return first if self.shift is None else elementwise("add", first, self.shift)

    def limit(self, dim: str | int, written: bool) -> Handle | None:
        """Where in a dimension of a tensor the positions end, if not where the dimension does: where the range itself ends, once it is
        moved or counts something else that a tensor does not have. What is written ends there in any case."""
        end = None
        if self.shift is not None or isinstance(self.range.dim, Handle) or (written and self.range.dim != dim):
            end = dim_size(self.range.dim)
            end = end if self.shift is None else elementwise("add", end, self.shift)
        return end if self.stop is None else self.stop if end is None else elementwise("min", end, self.stop)


@called("tiling")
class TiledSize(NotATile):
    """`fc.tile(size, "BLOCK")`: a dimension, or a count, cut into blocks. An axis of the grid, or what a loop runs over."""

    __slots__ = ("block", "dim", "size")

    def __init__(self, dim: Extent, block: str):
        self.dim, self.block = dim, block
        t = current()
        if not isinstance(block, str):
            raise mistake("trace/usage", "fc.tile names its block size, and the schedule says how large it is", expected='"BLOCK_M"',
                          got=block, hint='Schedule(tiles={"BLOCK_M": 64, ...})')
        if block in t.tiles:
            self.size = t.tiles[block]
        else:
            t.no_size.setdefault(block, here())
            self.size = ANY_SIZE
        t.used_tiles.add(block)

    def __repr__(self) -> str:
        return f"<fc.tile of {extent_name(self.dim)} into {self.block}>"

    def __getitem__(self, number: Any) -> Range:
        """Block `number`, a scalar of the program."""
        n = whole_number(number, "the number of a block is a whole number")
        return Range(self.block, self.size, elementwise("mul", n, self.size).value, self.dim, n.value)

    def mistaken(self) -> FcError:
        return mistake("trace/usage", "fc.tile(...) is a way to cut a dimension, not a tile",
                       hint="fc.grid and fc.loop take it and hand out ranges")

    __iter__ = refuses("fc.tile(...) is not a loop yet", 'for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):')


def extent_name(dim: Extent) -> str:
    return "a count" if isinstance(dim, Handle) else str(dim)


def dim_size(dim: Extent) -> Handle:
    t = current()
    if isinstance(dim, Handle):
        return dim
    if isinstance(dim, int):
        return lift(dim, i32)
    h = Handle(t.size(dim))
    while h.scope is not None and h.scope.parent is not None and h.scope.parent.parent is not None:
        h.scope = h.scope.parent  # it stands at the top of the kernel
    return h
