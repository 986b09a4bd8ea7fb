"""Which part of a tensor an op reaches: the one place that reads the words, guards and scalars of loads, stores and copies.

Attribute `index` of such an op holds one word per tensor dimension:
  "at"     one position, given by a scalar operand;
  "tile"   a run of positions whose first is a scalar operand and whose length is an axis of the tile;
  "until"  such a run with a limit, a second scalar: no position at or past it belongs to the run, whatever the tensor has there;
  "all"    the whole compile-time dimension (the tile's axis may be longer: padding, read as zero);
  "each"   a position of its own for each element along an axis of the tile, given by a vector of integers (a fragment of the machine IR
           has the layout of the tile, or of the copying threads, along that axis);
  "also"   the same along the axis of the "each" before it: a row of the tile is then found by several positions;
  "element" in a store, for all dimensions or none: a position of its own for each element of the tile, given by a tile of integers (or by
           a scalar, for all).
The tile has one axis per word but "at" and "also", in order. Attribute `guard` has one bool per axis of the tile: True means that
positions outside of the tensor, or at or past the limit, read as zero (a load) or are left alone (a store). An axis without a guard is
known to be inside. Where elements have positions of their own, all are guarded. A gather's are the word "element" too. Attribute `turn`, of
a store that adds, says how many operands behind the scalars name whose turn it is (`tile_ops.in_turn`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .core import Op, Value
from .layout import RegLayout
from .op_table import OPS, Reach, RuleError, need
from .types import Frag, Scalar, Tensor, Tile, i32, i64

#: Of a run with a limit, a bulk copy has a map that counts positions so that the limit is always at this one: it has two more axes, whose
#: strides are the run's own and 2**34 bytes less that, and a coordinate of CUT along the latter takes the address around 64 bits.
CUT, MOST_CUT = 1 << 30, 3
#: scalars that go with each word
SCALARS = {"at": 1, "tile": 1, "until": 2, "all": 0, "each": 1, "also": 1, "element": 1}


@dataclass(frozen=True)
class Axis:
    """One dimension of the tensor. word, start, limit: see above. along: the axis of the tile that runs here, None for a point. size: how
    many positions that axis has."""

    dim: str | int
    word: str
    start: Value | None
    limit: Value | None
    along: int | None
    size: int
    guard: bool

    @property
    def is_run(self) -> bool:
        """Whether the tile runs along the dimension from a position on."""
        return self.word in ("tile", "until")

    @property
    def is_listed(self) -> bool:
        """Whether a vector says the positions."""
        return self.word in ("each", "also")


@dataclass(frozen=True)
class Access:
    """op: what reaches the tensor. bulk: by an engine that copies boxes."""

    op: Op
    tensor: Tensor
    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    bulk: bool

    @staticmethod
    @functools.lru_cache(maxsize=4096)  # an op does not change
    def of(op: Op) -> Access:
        if op.kind == "gather":
            tensor = op.operands[0].type
            each = tuple(Axis(dim, "element", v, None, None, 1, True) for dim, v in zip(tensor.dims, op.operands[1:]))
            return Access(op, tensor, each, op.result.type.shape, False)
        reach = OPS[op.kind].reach
        assert reach is not None, f"{op.kind} reaches no tensor by an index"
        before, after, tile = reach.before, reach.after, reach.tile
        shape = (op.result if tile is None else op.operands[tile]).type.shape
        tensor, guard = op.operands[0].type, op["guard"]
        given, axes, along = iter(op.operands[before:len(op.operands) - after - op.get("turn", 0)]), list[Axis](), 0
        for dim, word in zip(tensor.dims, op["index"]):
            start = next(given) if SCALARS[word] else None
            limit = next(given) if SCALARS[word] > 1 else None
            if word in ("at", "element"):
                axes.append(Axis(dim, word, start, None, None, 1, word == "element"))
            elif word == "also":
                last = next(a for a in reversed(axes) if a.word == "each")
                axes.append(Axis(dim, word, start, None, last.along, last.size, last.guard))
            else:
                axes.append(Axis(dim, word, start, limit, along, shape[along], guard[along]))
                along += 1
        return Access(op, tensor, tuple(axes), shape, op.kind in ("tma_load", "tma_store"))

    @property
    def runs(self) -> tuple[Axis, ...]:
        """The dimensions that the tile runs along, one per axis of the tile."""
        return tuple(a for a in self.axes if a.along is not None and a.word != "also")

    @property
    def listed(self) -> dict[Value, int]:
        """Vectors that say positions -> the axis of the tile: no engine copies such a tile in bulk."""
        return {a.start: a.along for a in self.axes if a.is_listed and a.start is not None and a.along is not None}

    @property
    def scattered(self) -> tuple[Value, ...]:
        """Positions of which each element of the tile has its own."""
        return tuple(a.start for a in self.axes if a.word == "element" and a.start is not None and a.start.type.shape)

    @property
    def scalars(self) -> tuple[Value, ...]:
        return tuple(v for a in self.axes for v in (a.start, a.limit) if v is not None)

    @property
    def in_rows(self) -> bool:
        """Whether neighbours along the tile's last axis are neighbours in memory."""
        return bool(self.axes) and self.axes[-1].along is not None and not self.axes[-1].is_listed

    def unbounded(self) -> RuleError | None:
        """What is wrong where a bulk copy cannot follow the positions, or keep to a limit."""
        if self.listed:
            return RuleError("a tile whose positions a scalar says", "runs", "positions in a vector")
        cut = [n for n, a in enumerate(self.axes) if a.limit is not None]
        if not cut:
            return None
        if len(cut) > 1 or cut[0] == len(self.axes) - 1:
            return RuleError("a limit on one axis, and not on the last", "one axis of rows", f"axes {', '.join(map(str, cut))}")
        if len(self.axes) > MOST_CUT:
            return RuleError(f"a tensor of at most {MOST_CUT} axes where a limit cuts its rows off", MOST_CUT, len(self.axes))
        return None


def along(layout: RegLayout, axis: int) -> tuple[RegLayout, np.ndarray]:
    """The layout of a vector along one axis of a tile, and for each register of the tile the one of the vector's."""
    index = np.arange(layout.regs)
    for a in reversed([a for a in range(len(layout.axes)) if a != axis]):
        index, layout = layout.drop_map(a)[index], layout.drop(a)
    return layout, index


def guards(copies: Sequence[Op]) -> tuple[bool, ...]:
    """The guards that an access needs which may be that of any of these copies."""
    return tuple(map(any, zip(*(op["guard"] for op in copies))))


def accesses(op: Op) -> Access | None:
    """What an op reaches of a tensor by an index; None for all others."""
    return Access.of(op) if OPS[op.kind].reach or op.kind == "gather" else None


def check_index(op: Op, reach: Reach) -> None:
    """Index, guard and scalars say where in the tensor each axis of the tile lies, as above."""
    tensor, tile = op.operands[0].type, (op.result if reach.tile is None else op.operands[reach.tile]).type
    need(isinstance(tensor, Tensor), "the first operand is a tensor parameter", "tensor", tensor)
    index, guard, shape, layout = op["index"], op["guard"], tile.shape, op.get("threads", getattr(tile, "layout", None))
    scalars = [v.type for v in op.operands[reach.before:len(op.operands) - reach.after - op.get("turn", 0)]]
    need(len(index) == len(tensor.dims), "one index word per tensor dimension", len(tensor.dims), len(index))
    count = sum(SCALARS[w] for w in index)
    need(len(scalars) == count, "one scalar per 'at' and 'tile', two per 'until'", count, len(scalars))
    if "element" in index:
        stores = op.kind in ("store", "st_global")
        need(stores and set(index) == {"element"}, "stores have positions of elements, in all dimensions", got=index)
        need(guard == (True,) * len(shape), "elements with positions of their own are guarded", (True,) * len(shape), guard)
        need(all(t.dtype == i32 for t in scalars), "positions are integers", "i32", scalars)
        for t in (t for t in scalars if t.shape):
            need(t.shape == shape and getattr(t, "layout", None) == layout, "positions of elements have the tile's shape and layout",
                 f"{shape} {layout or ''}", t)
        return
    axes = [(d, w) for d, w in zip(tensor.dims, index) if w not in ("at", "also")]
    need(len(axes) == len(shape), "one tile axis per 'tile', 'until', 'each' and 'all'", len(axes), len(shape))
    need("also" not in index or "each" in index[:index.index("also")], "'also' comes after an 'each'", got=index)
    given, axis, each = iter(scalars), -1, 0
    for word in index:
        axis += word not in ("at", "also")
        each = axis if word == "each" else each
        for t in (next(given) for _ in range(SCALARS[word])):
            if word in ("each", "also"):
                need(isinstance(t, (Tile, Frag)) and t.shape == shape[each:each + 1] and t.dtype == i32,
                     "a vector says the positions", f"i32[{shape[each]}]", t)
                need(isinstance(t, Tile) or not isinstance(layout, RegLayout) or t.layout == along(layout, each)[0],
                     "the vector has the tile's layout along its axis", layout, t)
            else:
                need(isinstance(t, Scalar) and t.dtype in (i32, i64), "positions are integer scalars", "i32", t)
    need(len(guard) == len(axes), "one guard per tile axis", len(axes), len(guard))
    for (dim, word), n, g in zip(axes, shape, guard):
        if word == "all":
            need(isinstance(dim, int), "'all' is for compile-time dimensions", "a number", dim)
            need(n == dim or (n > dim and g), "the axis is the whole dimension, or longer with a guard", dim, n)
