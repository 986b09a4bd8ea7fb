"""Which tile of the grid a number stands for: the order of `order`, as scalar ops.

Axes vary in the kernel's `order`, the fastest first; an axis marked `reverse` runs from its last tile to its first.
"""

from __future__ import annotations

from ..ir.core import Builder, Kernel, Value
from ..ir.schedule import Schedule


def block_tile(kernel: Kernel, t: Value, schedule: Schedule, b: Builder) -> tuple[dict[int, Value], Value]:
    """(axis -> the program's index on it for tile number t, how many tiles there are)."""
    def number(n: int) -> Value:
        return b.emit("const", value=n, dtype="i32")

    counts = {}
    for a, axis in enumerate(kernel.grid):
        size = number(axis.dim) if isinstance(axis.dim, int) else b.emit("size", dim=axis.dim, name=axis.dim)
        if axis.tile != 1:
            size = b.emit("floordiv", b.emit("add", size, number(axis.tile - 1)), number(axis.tile), name=f"{axis.name}_tiles")
        counts[a] = size
    order = list(kernel.order) or list(range(len(kernel.grid)))
    out, left = {}, t
    for n, a in enumerate(order):
        last = n == len(order) - 1
        x = left if last else b.emit("mod", left, counts[a])
        if kernel.grid[a].reverse:
            x = b.emit("sub", b.emit("sub", counts[a], number(1)), x)
        out[a] = x
        if not last:
            left = b.emit("floordiv", left, counts[a])
    total = number(1)
    for a in order:
        total = b.emit("mul", total, counts[a])
    return out, total
