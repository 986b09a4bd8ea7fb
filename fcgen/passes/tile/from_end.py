"""from_end: tiles of a grid axis are counted from the axis's end, so that the ragged one is the first.

In and out: tile IR. `schedule.from_end` names axes of the grid by the variable that runs along them. A tile starts at
`index * tile - short`, where `short` is what the last tile would lack: the first tile then begins in front of the axis. Positions there are
outside of the tensor like those past its end: they read as zero and are not stored. It pays where the work of a tile grows along the axis,
as under a triangular mask: the ragged tile is then the shortest one, not the longest.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import FcError, did_you_mean
from ...ir.access import Access
from ...ir.core import Block, GridAxis, Kernel, Op, Value, definitions, walk
from ...ir.depends import followed
from ...ir.known import const_of
from ...ir.rewrite import Builder, Env, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ..facts.common import COMPARISONS, without_effect
from ..facts.stores import is_box


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not schedule.from_end:
        return kernel
    names = {axis.name.removesuffix("_tile"): n for n, axis in enumerate(kernel.grid)
             if axis.tile > 1 and axis.dim not in {p.name for p in kernel.counts}}
    for name in schedule.from_end:
        if name not in names:
            raise FcError("compile/schedule", f"Schedule.from_end names {name}, which is no axis of the grid with tiles of a tensor",
                          expected=", ".join(sorted(names)) or "none here", got=name, hint=did_you_mean(name, names))
        axis, index = kernel.grid[names[name]], kernel.body.args[names[name]]
        starts = _starts(kernel.body, axis, index)
        _check(kernel, axis, index, starts, name)
        if isinstance(axis.dim, int) and axis.dim % axis.tile == 0:
            raise without_effect("from_end", f"all tiles along {name} are whole", got=f"{axis.dim} / {axis.tile}")
        if schedule.epilogue == "tma":
            _check_stores(kernel, starts, name)
        kernel = kernel.with_body(_shifted(kernel.body, axis, starts))
    return kernel


def _starts(body: Block, axis: GridAxis, index: Value) -> list[Op]:
    """The ops that say where the axis's tile begins."""
    defs = definitions(body)
    return [o for o in body.ops if o.kind == "mul" and index in o.operands and any(const_of(v, defs) == axis.tile for v in o.operands)]


def _check(kernel: Kernel, axis: GridAxis, index: Value, starts: list[Op], name: str) -> None:
    """The index is only read to find the tile's start; no tensor's last axis runs along it, where runs of elements begin at a whole one;
    and no position is compared with the axis's size: one in front of the axis would pass as valid."""
    other = next((o for o in walk(kernel.body) if index in o.operands and o not in starts), None)
    if other is not None or not starts:
        raise FcError("compile/schedule", f"Schedule.from_end: the index of {name} is read for more than the tile's start",
                      loc=other.loc if other is not None else None, got=other.kind if other is not None else "nothing")
    first = {s.result for s in starts}
    defs = definitions(kernel.body)
    for op in walk(kernel.body):
        sides = (op.operands, op.operands[::-1]) if op.kind in COMPARISONS else ()
        if any(_is_size(x, axis, defs) and _follows(y, first, defs) for x, y in sides):
            raise FcError("compile/schedule", f"Schedule.from_end: positions along {name} are compared with its size", loc=op.loc,
                          expected="a program that does not ask which positions are valid: those in front of the axis are not")
    for op in walk(kernel.body):
        if op.kind not in ("load", "store"):
            continue
        access = Access.of(op)
        at = [a for a in access.axes if a.start is not None and _follows(a.start, first, defs)]
        if any(a.start not in first or a.limit is not None for a in at):
            tensor = op.operands[0].name
            raise FcError("compile/schedule", f"Schedule.from_end: {name} is moved, or cut off, where it indexes {tensor}: a tile that "
                          "begins in front of it would reach what lies there", loc=op.loc)
        if access.axes[-1].start in first and len(access.shape) > 1:
            raise FcError("compile/schedule", f"Schedule.from_end: {name} runs along the last axis of {op.operands[0].name}", loc=op.loc,
                          expected="an axis whose neighbours are whole rows apart")


def _check_stores(kernel: Kernel, starts: list[Op], name: str) -> None:
    first = {s.result for s in starts}
    defs = definitions(kernel.body)
    for op in walk(kernel.body):
        if op.kind == "store" and is_box(op) and any(_follows(v, first, defs) for v in Access.of(op).scalars):
            tensor = op.operands[0].name
            raise FcError("compile/schedule", f"Schedule.from_end: the first tile along {name} may begin in front of {tensor}, "
                          "where a bulk store is an illegal instruction", loc=op.loc, got='epilogue="tma"',
                          expected='epilogue="quad", "smem" or "direct"',
                          hint=f"without {name} in from_end the ragged tile is the last one, which bulk stores cut off")


def _is_size(v: Value, axis: GridAxis, defs: dict[Value, Op]) -> bool:
    op = defs.get(v)
    while op is not None and op.kind in ("broadcast", "full", "transpose"):
        op = defs.get(op.operands[0])
    return op is not None and ((op.kind == "size" and op["dim"] == axis.dim) or (op.kind == "const" and op["value"] == axis.dim))


def _follows(v: Value, first: set[Value], defs: dict[Value, Op]) -> bool:
    """Whether a position is the start, or the start and something."""
    sums = {r: o for r, o in defs.items() if o.kind in ("add", "broadcast", "full", "transpose")}
    found = followed([v], sums, stop=first) or ()
    return v in first or any(x in first for o in found for x in o.operands)


def _shifted(body: Block, axis: GridAxis, starts: list[Op]) -> Block:
    b, env = Builder(), Env()
    for op in body.ops:
        b.loc = op.loc
        if op not in starts:
            b.add(substitute(op, env))
            continue
        start = b.add(replace(substitute(op, env), results=(Value(op.result.type, "whole_start"),))).result
        size = b.emit("size", dim=axis.dim) if isinstance(axis.dim, str) else b.const(axis.dim)
        tile = b.const(axis.tile)
        most = b.const(axis.tile - 1)
        tiles = b.emit("floordiv", b.emit("add", size, most), tile, name=f"{axis.name}_tiles")
        short = b.emit("sub", b.emit("mul", tiles, tile), size, name="short")
        env[op.result] = b.emit("sub", start, short, name=op.result.name)
    return b.block(body.args)
