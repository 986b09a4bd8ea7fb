"""Axes of tiles: each tile axis carries a label that says what it runs over, and elementwise ops meet axis by axis, by label.

A label is an `Axis` (made by a tiled range: rows, cols) or a `DimAxis` (a whole compile-time dimension of a tensor). Two tiles of
the same size over different ranges do not match by accident.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .trace import Tracer, current

if TYPE_CHECKING:
    from .handles import Expr

_count = itertools.count()


class Axis:
    """The axis of one tiled range. Equal only to itself."""

    def __init__(self, size: int, name: str):
        self.size, self.name, self.number = size, name, next(_count)
        self.named = False

    def __repr__(self) -> str:
        return f"{self.name} {self.size}"

    @property
    def rank(self) -> tuple[int, int, str]:
        return (0, self.number, "")


@dataclass(frozen=True)
class DimAxis:
    """A whole dimension."""

    name: str
    size: int

    def __repr__(self) -> str:
        return self.name if self.name == str(self.size) else f"{self.name} {self.size}"

    @property
    def rank(self) -> tuple[int, int, str]:
        return (1, 0, self.name)


Label = Axis | DimAxis


class Size(int):
    """A compile-time size that remembers which dimension it is of."""

    name: str

    def __new__(cls, n: int, name: str) -> Size:
        out = super().__new__(cls, n)
        out.name = name
        return out

    @property
    def axis(self) -> DimAxis:
        return DimAxis(self.name, int(self))


class Tiling:
    """`fc.tile(size, block)`: a dimension cut into runs of `block`. size: the handle that was given; dim: its name or number."""

    def __init__(self, size: Any, dim: str | int | None, block: int, label: str):
        self.size, self.dim, self.block, self.label = size, dim, block, label


class Range:
    """A run of positions: `start`, start + 1, ... of a fixed length `size`, along a dimension of run-time size `limit`."""

    def __init__(self, tracer: Tracer, axis: Axis, start: Expr, limit: Any, index_arg: Any = None):
        self._t, self.axis, self.start, self.limit = tracer, axis, start, limit
        self._arg = index_arg
        self._index: Expr | None = None

    @property
    def size(self) -> int:
        return self.axis.size

    @property
    def index(self) -> Expr:
        """The positions, as i32[size]."""
        from .arith import binary

        t = current("`.index`")
        if self._index is None or self._index.tracer is not t or self._index.scope.closed:
            iota = t.wrap(t.emit("iota", shape=(self.size,)), (self.axis,))
            self._index = binary("add", iota, self.start)
        return self._index

    @property
    def valid(self) -> Expr:
        """Which positions exist: index < size of the dimension."""
        from .arith import binary

        return binary("lt", self.index, self.limit)

    def shift(self, by: Any) -> Range:
        """The same axis, `by` positions further on (positions below zero are an error when they are read)."""
        from .arith import binary

        return Range(self._t, self.axis, binary("add", self.start, by), self.limit)

    def take_name(self, name: str) -> None:
        if not self.axis.named:
            self.axis.name, self.axis.named = name, True
        self._t.names.setdefault(self.start.value, name)
        if self._arg is not None:
            self._t.names.setdefault(self._arg, f"{name}_i")

    def describe(self) -> str:
        return f"range {self.axis!r}"

    def __repr__(self) -> str:
        return f"<fcgen {self.describe()}>"

    def __bool__(self) -> bool:
        raise self._t.error("trace/python-if", "a range has no truth value while tracing", hint="use fc.where or fc.when")

    def __iter__(self) -> Any:
        raise self._t.error("trace/usage", "a range is not iterated: it stands for all of its positions at once",
                            hint="write `for x in fc.loop(fc.tile(size, \"BLOCK\"))` to walk over tiles")


def shape_of(axes: Sequence[Label]) -> tuple[int, ...]:
    return tuple(a.size for a in axes)


def show(axes: Sequence[Label]) -> str:
    return "[" + ", ".join(map(repr, axes)) + "]"


def record(t: Tracer, axes: Sequence[Label]) -> None:
    """Remember that a tile of the program has its axes in this order."""
    for i, a in enumerate(axes):
        for b in axes[i + 1:]:
            if a != b and (b, a) not in t.order:
                t.order.add((a, b))


def meet(t: Tracer, fn: str, all_axes: Sequence[tuple[Label, ...]]) -> tuple[Label, ...]:
    """The axes of an elementwise result: those of the operand that has all of them, or for one-dimensional operands their product."""
    shaped = [a for a in all_axes if a]
    if not shaped:
        return ()
    union = list(dict.fromkeys(x for a in shaped for x in a))
    widest = max(shaped, key=len)
    if set(widest) >= set(union):
        for a in shaped:
            if len(a) == len(widest) and a != widest and set(a) == set(widest):
                raise t.error("trace/shape", f"{fn}: the axes stand in different orders", expected=show(widest), got=show(a),
                              hint="transpose one of them: x.T")
        return widest
    if len(widest) == 1 and len(union) == 2:
        a, b = sorted(union, key=lambda x: x.rank)
        return (b, a) if (b, a) in t.order and (a, b) not in t.order else (a, b)
    other = next(a for a in shaped if not set(a) <= set(widest))
    same_size = [(x, y) for x in other if x not in widest for y in widest if y not in other and x.size == y.size]
    raise t.error("trace/shape", f"{fn}: the tiles run over different axes", expected=f"axes of {show(widest)}", got=show(other),
                  hint="axes match by what they run over, not by size: use the same range or dimension on both sides"
                  if same_size else "reduce or broadcast one of them so that its axes are among the other's")
