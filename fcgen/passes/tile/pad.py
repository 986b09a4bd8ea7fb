"""pad: every tile axis gets a size that divides over lanes, and over matrix instructions where there are any.

In: a tile program with axes of any size. Out: an equal one where each axis of n elements has the next `size` of them: a multiple of 16, for
each unit of warps that a schedule divides columns among (one element stays one where no matrix instruction meets such an axis); in a
program without matrix instructions (none of its dots has one) a power of two, a multiple of 16 that two lanes can hold, or a number
a little above that many lanes share. It is a function of n alone, so shapes that agreed still agree. The elements past n are padding:
  - loads of a whole dimension read zeros there (guard on that axis); loads of a run read what follows, guarded; stores of a
    whole dimension leave padding out by their guard. A run cannot be stored padded, its end is inside the tensor: that is an
    error;
  - nothing real is ever computed from padding: a reduction over a padded axis first selects its neutral element there, a dot
    over one selects zeros, unless the padding is known to be that already.
For this the pass follows, per value and padded axis, the one number that the padding is known to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np

from ...errors import FcError
from ...ir.access import Access, accesses
from ...ir.core import Block, Kernel, Op, Value, walk_kernel
from ...ir.elementwise import REDUCTIONS
from ...ir.known import const_of, number_of
from ...ir.rewrite import Builder, map_bodies
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Tile
from ..facts.common import ELEMENTWISE, rank

GRANULE = 16
#: elements of a row that two lanes can hold in registers
ROW = 1024 - GRANULE


def padded(n: int, granule: int = GRANULE) -> int:
    """For matrix instructions."""
    return -(-n // granule) * granule


def shared_out(n: int) -> int:
    """For lanes alone. Beyond `ROW`, 16 times an odd number is too much for the two lanes that share it."""
    even = n % GRANULE == 0
    if n & (n - 1) == 0 or (even and n <= ROW):
        return n
    step = max(GRANULE, 1 << max(0, (n - 1).bit_length() - (4 if even else 3)))
    return -(-n // step) * step


def run(kernel: Kernel, schedule: Schedule, target: Target | None) -> Kernel:
    dots = [op for op in walk_kernel(kernel) if op.kind == "dot" and op.get("math") != "fma"]
    deep = {op.operands[0].type.shape[1] for op in dots if op.operands[0].type.dtype.bytes == 1}  # instructions go 32 bytes deep
    ones = any(1 in v.type.shape for op in dots for v in op.operands)
    # columns that a schedule divides among units of warps, which take whole panels of them where they can be padded: those of a run cannot
    runs = {a.size for op in walk_kernel(kernel) if (access := accesses(op)) for a in access.axes if a.is_run}
    across: dict[int, int] = {}
    for op in dots:
        if op.get("grid") and op.operands[1].type.shape[1] not in runs:
            n = op.operands[1].type.shape[1]
            across[n] = max(op["grid"][1], across.get(n, 1))
    # what is cut out of a tile, and what it is cut out of, stay as they are (in IR that has been through `row_sums`)
    cut = {v.type.shape[op["axis"]] for op in walk_kernel(kernel) if op.kind == "slice" for v in (op.operands[0], op.result)}
    whole = lambda n: n if (n <= 1 and not ones) or n in cut else padded(n, GRANULE * max(2 if n in deep else 1, across.get(n, 1)))
    size = whole if dots else lambda n: n if n in cut or (n in runs and n % GRANULE == 0) else shared_out(n)
    if not any(size(n) != n for op in walk_kernel(kernel) for v in (*op.results, *op.operands)
               if isinstance(v.type, Tile) for n in v.type.shape):
        return kernel
    return map_bodies(kernel, lambda block: _Pad(size).block(block, {}))


class _Pad:
    """Copies a program. `fill[v]`: axis -> the number in the padding, None if not known; axes without padding are absent."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self.size = size
        self.map: dict[Value, Value] = {}
        self.fill: dict[Value, dict[int, Any]] = {}
        self.defs: dict[Value, Op] = {}
        self.b = Builder()

    # ---- blocks ------------------------------------------------------------------------------------------------------

    def fresh(self, old: Value, fill: dict[int, Any] | None = None) -> Value:
        """The padded counterpart of a value."""
        t = old.type
        axes: dict[int, Any] = {}
        new = old
        if isinstance(t, Tile):
            axes = {a: None for a, n in enumerate(t.shape) if self.size(n) != n}
            new = Value(replace(t, shape=tuple(map(self.size, t.shape))), old.name)
        self.map[old] = new
        self.fill[new] = {a: (fill or {}).get(a) for a in axes}
        return new

    def block(self, block: Block, fills: dict[Value, dict[int, Any]]) -> Block:
        args = tuple(self.fresh(a, fills.get(a)) for a in block.args)
        outer, self.b = self.b, Builder()
        for op in block.ops:
            self.b.loc = op.loc
            self.op(op)
        done, self.b = self.b, outer
        return done.block(args)

    def op(self, op: Op) -> None:
        operands = tuple(self.map.get(v, v) for v in op.operands)
        if op.kind == "for":
            self.loop(op, operands)
            return
        if op.regions:
            regions = tuple(self.block(r, {}) for r in op.regions)
            ends = [[self.fill.get(v, {}) for v in r.yielded] for r in regions]
            results = tuple(self.fresh(r, _meet(a, b)) for r, a, b in zip(op.results, *ends))
            self.b.add(replace(op, operands=operands, regions=regions, results=results))
            return
        attrs = dict(op.attrs)
        if "shape" in attrs:
            attrs["shape"] = tuple(map(self.size, attrs["shape"]))
        if op.kind in ("load", "store"):
            attrs["guard"] = self.guards(op)
        if op.kind == "reduce":
            neutral = REDUCTIONS[op["fn"]][2]
            operands = (self.cleared(operands[0], op["axis"], op.operands[0].type.shape[op["axis"]], neutral),)
        if op.kind == "dot":
            operands = self.contraction(op, operands)
        fill = self.known(op, operands)
        results = tuple(self.fresh(r, fill) for r in op.results)
        new = self.b.add(replace(op, operands=operands, results=results, attrs=attrs))
        for r in results:
            self.defs[r] = new

    def loop(self, op: Op, operands: tuple[Value, ...]) -> None:
        body = op.regions[0]
        fills = {a: self.fill.get(v, {}) for a, v in zip(body.args[1:], operands[2:])}
        while True:
            new = self.block(body, fills)
            weaker = {a: _meet(fills[a], self.fill.get(y, {})) for a, y in zip(body.args[1:], new.yielded)}
            if weaker == fills:
                break
            fills = weaker
        rest = tuple(self.block(r, {}) for r in op.regions[1:])
        results = tuple(self.fresh(r, fills[a]) for r, a in zip(op.results, body.args[1:]))
        self.b.add(replace(op, operands=operands, regions=(new, *rest), results=results))

    # ---- memory ------------------------------------------------------------------------------------------------------

    def guards(self, op: Op) -> tuple[bool, ...]:
        out = []
        access = Access.of(op)
        if access.scattered and tuple(map(self.size, access.shape)) == access.shape:
            return op["guard"]  # type: ignore[no-any-return]
        for n, axis in [(n, None) for n in access.shape] if access.scattered else [(a.size, a) for a in access.runs]:
            if self.size(n) != n and op.kind == "store" and (axis is None or axis.word != "all"):
                raise FcError("compile/schedule", f"a run of {n} positions is stored, and matrix instructions work on multiples "
                              f"of {GRANULE}" + (", of 32 along a depth in bytes" if n % GRANULE == 0 else ""), got=n, loc=op.loc,
                              expected=f"a tile size that is a multiple of {GRANULE if n % GRANULE else 2 * GRANULE}",
                              hint='choose a larger tile, or math="fma"')
            out.append(axis is None or axis.guard or self.size(n) != n)
        return tuple(out)

    # ---- what padding may not reach ----------------------------------------------------------------------------------

    def cleared(self, v: Value, axis: int, n: int, value: float) -> Value:
        """v with `value` in the padding of the axis, whose real size is n."""
        fill = self.fill.get(v, {})
        if axis not in fill or _same(fill[axis], value):
            return v
        b, shape, dtype = self.b, v.type.shape, v.type.dtype
        real = b.emit("lt", b.emit("iota", shape=(shape[axis],)), b.const(n))
        if len(shape) > 1:
            real = b.emit("broadcast", real, axes=(axis,), shape=shape)
        out = b.emit("select", real, v, self.number(value, dtype), name=v.name)
        self.fill[out] = {a: value if a == axis or _same(x, value) else None for a, x in fill.items()}
        return out

    def number(self, value: float, dtype: Any) -> Value:
        return self.b.emit("const", value=value if dtype.is_float else int(np.clip(value, *dtype.range)), dtype=dtype.name)

    def contraction(self, op: Op, operands: tuple[Value, ...]) -> tuple[Value, ...]:
        """Both operands finite in the padding of the inner axis, and one of them zero."""
        a, b, *rest = operands
        n = op.operands[0].type.shape[1]
        if self.size(n) == n:
            return operands
        fills = [self.fill[a].get(1), self.fill[b].get(0)]
        known = [f is not None and isfinite(f) for f in fills]
        if not known[0] or (known[1] and 0 not in fills):
            a = self.cleared(a, 1, n, 0.0)
        if not known[1]:
            b = self.cleared(b, 0, n, 0.0)
        return (a, b, *rest)

    # ---- what padding holds ------------------------------------------------------------------------------------------

    def known(self, op: Op, operands: tuple[Value, ...]) -> dict[int, Any]:
        if not op.results or not isinstance(op.result.type, Tile):
            return {}
        axes = [a for a, n in enumerate(op.result.type.shape) if self.size(n) != n]
        return {a: x for a in axes if (x := self.axis_fill(op, operands, a)) is not None}

    def axis_fill(self, op: Op, operands: tuple[Value, ...], axis: int) -> Any:
        kind = op.kind
        if kind == "full":
            return self.scalar(operands[0])
        if kind == "broadcast":
            source = operands[0]
            if axis in op["axes"]:
                return self.fill.get(source, {}).get(op["axes"].index(axis))
            return self.scalar(source)
        if kind == "transpose":
            return self.fill[operands[0]].get(1 - axis)
        if kind == "load":
            return 0.0 if Access.of(op).runs[axis].word == "all" else None
        if kind == "reduce":
            x = self.fill[operands[0]].get(axis + (axis >= op["axis"]))
            return x if op["fn"] != "sum" or _same(x, 0) else None
        if kind in ELEMENTWISE:
            xs = [self.fill[v].get(axis) if rank(v) else self.scalar(v) for v in operands]
            return self.elementwise(op, operands, xs)
        return None

    def elementwise(self, op: Op, operands: tuple[Value, ...], xs: Sequence[Any]) -> Any:
        if op.kind == "select":
            if xs[0] is not None:
                return xs[1] if xs[0] else xs[2]
            return xs[1] if _same(xs[1], xs[2]) else None
        if op.kind == "mul" and any(_same(x, 0) for x in xs):
            # zero times a run-time scalar counts as zero: a scalar that is not finite spoils the real elements just the same
            return 0.0 if all((x is not None and isfinite(x)) or not rank(v) for x, v in zip(xs, operands)) else None
        return number_of(op, xs)

    def scalar(self, v: Value) -> Any:
        """The number that a scalar, or all of a tile made from one, is known to be."""
        return const_of(v, self.defs)


def _same(x: Any, y: Any) -> bool:
    return x is not None and y is not None and x == y


def _meet(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    return {k: x if _same(x, b.get(k)) else None for k, x in a.items()}
