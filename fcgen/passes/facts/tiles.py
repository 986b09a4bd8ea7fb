"""Which tile of the grid a number stands for: the order of `order`, as scalar ops.

Blocks of a cluster have consecutive numbers: they are counted first, and everything below is about clusters, each one program that is
`cluster` tiles long. Axes vary in the kernel's `order`, the fastest first; an axis marked `reverse` runs from its last tile to its first.
With `schedule.l2`, and an axis along which work differs, or programs wait for each other, the other axes are cut into groups whose
looped-over tensors fit that much of L2: a group's longest tiles run first, all of its members' side by side. Groups are equally large, and
never so small that their tiles are few per block: the last group's short tiles must be enough to even out its long ones (H200: a small last
group left the busiest multiprocessor 16 % above the mean).

Where no axis's work differs and the two fastest axes both have tiles, `l2` makes strips: the tiles that run together are then about a
square of the two axes, which reads least of both operands.
"""

from __future__ import annotations

from math import prod, sqrt

from ...ir.access import Access
from ...ir.core import Kernel, Value, walk
from ...ir.rewrite import Builder, extent
from ...ir.schedule import Schedule
from ...ir.types import Tensor
from .work import waits, works

#: tiles per block that a group has at least
WAVES = 2
#: blocks that run together where each has a tile of its own: multiprocessors of the GPUs that have these instructions, about
TOGETHER = 128


class Tiles:
    """Writes the decoding of a tile's number. The sizes that it needs are made where it was created (`b`), outside of a loop over tiles."""

    def __init__(self, kernel: Kernel, schedule: Schedule, b: Builder):
        self.kernel = kernel
        self.order = list(kernel.order) or list(range(len(kernel.grid)))
        self.counts: dict[int, Value] = {}
        for a, axis in enumerate(kernel.grid):
            size = extent(kernel, axis, b)
            span = axis.tile * axis.cluster
            if span != 1:
                name = f"{axis.name}_clusters" if axis.cluster > 1 else f"{axis.name}_tiles"
                size = b.emit("floordiv", b.emit("add", size, b.const(span - 1)), b.const(span), name=name)
            self.counts[a] = size
        tiled = [a for a in self.order if kernel.grid[a].tile > 1]
        uneven = [a for a in tiled if schedule.longest_first and works(kernel, a)]
        apart = uneven or [a for a in tiled if waits(kernel, a)]
        self.long = apart[0] if schedule.l2 and len(apart) == 1 and len(self.order) > 1 else None
        if self.long is not None:
            self.others = self.product([a for a in self.order if a != self.long], b, "others")
            one = b.const(1)
            room = b.emit("floordiv", b.const(schedule.l2 << 20), b.emit("max", self.looped_bytes(b), one), name="fit_in_l2")
            together = b.const(TOGETHER) if schedule.persistent == "none" else b.emit("block_count", name="blocks")
            blocks = self.fewer(together, b)
            waves = b.emit("mul", blocks, b.const(WAVES))
            if not uneven:
                enough = one
            elif schedule.persistent == "none":
                enough = self.ceil(waves, self.counts[self.long], b, "enough")
            else:
                enough = b.emit("add", b.emit("floordiv", waves, self.counts[self.long]), one, name="enough")
            most = b.emit("min", b.emit("max", room, enough), self.others, name="most_beside")
            groups = self.ceil(self.others, most, b, "groups")
            self.group = b.emit("max", self.ceil(self.others, b.emit("max", groups, one), b), one, name="side_by_side")
        self.strip = self.strip_of(schedule)
        self.total = self.product(self.order, b, "tiles")
        if kernel.cluster > 1:
            self.total = b.emit("mul", self.total, b.const(kernel.cluster))

    def strip_of(self, schedule: Schedule) -> int:
        """How many tiles of the second axis run side by side, 0 for no strips."""
        fast = [self.kernel.grid[a] for a in self.order[:2]]
        if not schedule.l2 or self.long is not None or len(fast) < 2 or any(axis.tile == 1 for axis in fast):
            return 0
        across, along = (axis.tile * axis.cluster for axis in fast)
        return max(1, round(sqrt(TOGETHER / self.kernel.cluster * across / along)))

    def fewer(self, blocks: Value, b: Builder) -> Value:
        """How many clusters so many blocks are."""
        return blocks if self.kernel.cluster == 1 else b.emit("floordiv", blocks, b.const(self.kernel.cluster))

    def ceil(self, x: Value, y: Value, b: Builder, name: str = "") -> Value:
        return b.emit("floordiv", b.emit("sub", b.emit("add", x, y), b.const(1)), y, name=name)

    def product(self, axes: list[int], b: Builder, name: str) -> Value:
        out = b.const(1)
        for n, a in enumerate(axes):
            out = b.emit("mul", out, self.counts[a], name=name if n == len(axes) - 1 else "")
        return out

    def looped_bytes(self, b: Builder) -> Value:
        """Bytes that the loops of one program read from tensors, or add to them, as if they ran over whole axes."""
        seen: dict[Value, Value] = {}
        for loop in (o for o in walk(self.kernel.body) if o.kind == "for"):
            for op in walk(loop.regions[0]):
                if op.kind not in ("load", "store") or op.operands[0] in seen:
                    continue
                t = op.operands[0].type
                assert isinstance(t, Tensor)
                dims = [a.dim for a in Access.of(op).runs]
                out = b.const(prod([d for d in dims if isinstance(d, int)]) * t.dtype.bytes)
                for d in dims:
                    if isinstance(d, str):
                        out = b.emit("mul", out, b.emit("size", dim=d, name=d))
                seen[op.operands[0]] = out
        total = b.const(0)
        for v in seen.values():
            total = b.emit("add", total, v)
        return total

    def decode(self, t: Value, b: Builder) -> dict[int, Value]:
        """axis -> the program's index on it, for tile number t."""
        out: dict[int, Value] = {}
        order, left = self.order, self.fewer(t, b)
        if self.long is not None:
            a, count = self.long, self.counts[self.long]
            whole = b.emit("mul", self.group, count, name="group_tiles")
            g = b.emit("floordiv", left, whole, name="group")
            inside = b.emit("mod", left, whole, name="in_group")
            first = b.emit("mul", g, self.group, name="group_first")
            members = b.emit("min", self.group, b.emit("sub", self.others, first), name="members")
            out[a] = self.turned(a, b.emit("floordiv", inside, members, name=self.name(a)), b)
            left = b.emit("add", first, b.emit("mod", inside, members), name="beside")
            order = [x for x in order if x != a]
        if self.strip:
            (across, along), order = order[:2], order[2:]
            area = b.emit("mul", self.counts[across], self.counts[along])
            t_in, left = (b.emit("mod", left, area), b.emit("floordiv", left, area)) if order else (left, left)
            whole = b.emit("mul", self.counts[across], b.const(self.strip))
            first = b.emit("mul", b.emit("floordiv", t_in, whole), b.const(self.strip))
            inside = b.emit("mod", t_in, whole)
            members = b.emit("min", b.const(self.strip), b.emit("sub", self.counts[along], first), name="members")
            out[across] = self.turned(across, b.emit("floordiv", inside, members, name=self.name(across)), b)
            out[along] = self.turned(along, b.emit("add", first, b.emit("mod", inside, members), name=self.name(along)), b)
        for n, a in enumerate(order):
            last = n == len(order) - 1
            out[a] = self.turned(a, left if last else b.emit("mod", left, self.counts[a], name=self.name(a)), b)
            if not last:
                left = b.emit("floordiv", left, self.counts[a], name=self.name(order[-1]) if n == len(order) - 2 else "rest")
        for a, axis in enumerate(self.kernel.grid):
            if axis.cluster > 1:
                size = b.const(axis.cluster)
                out[a] = b.emit("add", b.emit("mul", out[a], size), b.emit("mod", t, size))
        return out

    def turned(self, a: int, x: Value, b: Builder) -> Value:
        if not self.kernel.grid[a].reverse:
            return x
        return b.emit("sub", b.emit("sub", self.counts[a], b.const(1), name="last"), x, name=self.kernel.grid[a].name)

    def name(self, a: int) -> str:
        """What the index on an axis is called before `turned`."""
        axis = self.kernel.grid[a]
        return f"{axis.name}_turned" if axis.reverse else axis.name
