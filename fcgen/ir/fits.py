"""Whether a kernel's matrix instructions and clusters are the target's, and fit what they are used on: shapes, registers, and where blocks
start in shared memory."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import FcError
from .core import Kernel, Op, Value, definitions, walk
from .known import multiple
from .layout import RegLayout, warp_grid, wgmma_c
from .op_table import RuleError
from .target import Target
from .types import Buffer

WARPGROUP_ROWS = 64
#: op -> bytes on which each of the blocks that it moves starts (PTX ISA, ldmatrix and stmatrix; CUDA C++ guide, "Warp matrix functions")
BLOCKS = {"ldmatrix": 16, "stmatrix": 16, "wmma_load": 32, "wmma_store": 32}


def check_fits(kernel: Kernel, target: Target) -> None:
    """Raises FcError "compile/unsupported" with the op's place."""
    if kernel.cluster > target.max_cluster:
        raise FcError("compile/unsupported", f"{target.arch} has no clusters of so many blocks", expected=f"at most {target.max_cluster}",
                      got=kernel.cluster)
    for role in kernel.roles:
        defs = definitions(role.body)
        for op in walk(role.body):
            wrong = _mma(op, target) if op.kind == "mma" else _wgmma(op, role.warps, target) if op.kind == "wgmma" else \
                _start(op, defs) if op.kind in BLOCKS else None
            if wrong is not None:
                raise FcError("compile/unsupported", f"{op.kind}: {wrong.rule}", expected=wrong.expected, got=wrong.got,
                              loc=op.place or op.loc)


def _mma(op: Op, target: Target) -> RuleError | None:
    rec, types = target.instrs.get(op["instr"]), [v.type for v in op.operands[:3]]
    if rec is None or rec.a is None or rec.b is None or rec.c is None or rec.needs > target.capability:
        return RuleError(f"{target.arch} has no such matrix instruction", got=op["instr"])
    m, n, k = rec.shape
    for t, unit, tile, what in zip(types, (rec.a, rec.b, rec.c), ((m, k), (k, n), (m, n)), ("left", "right", "accumulator")):
        whole = len(t.shape) == 2 and not any(s % u for s, u in zip(t.shape, tile))
        if not (whole and isinstance(t.layout, RegLayout) and t.layout.regs % unit.regs == 0):
            return RuleError(f"the {what} is made of the instruction's operands", f"{tile[0]} x {tile[1]}, {unit}", t)
    return None if types[0].dtype.name == rec.dtype else RuleError("the instruction's dtype", rec.dtype, types[0])


def _wgmma(op: Op, warps: int, target: Target) -> RuleError | None:
    a, out = op.operands[0].type, op.result.type
    cols, step = 0, 1
    for name in [op.get("first"), op["instr"]]:
        rec = target.instrs.get(name) if name is not None else None
        if name is None:
            continue
        if rec is None or rec.name.split("_")[0] != "wgmma" or rec.name.endswith("_rs"):
            return RuleError(f"{target.arch} has no such warpgroup instruction", got=name)
        if rec.dtype != a.dtype.name:
            return RuleError("the instruction's dtype", rec.dtype, a)
        cols, step = cols + rec.shape[1], rec.shape[2]
    for t in (a, out):
        if not isinstance(t, Buffer) and not isinstance(t.layout, RegLayout):
            return RuleError("its fragments are registers", got=t)
    depth, (rows, width) = a.shape[0] if op["ta"] else a.shape[1], out.shape
    held, across = warp_grid(out.layout)
    if cols * across != width or depth % step:
        return RuleError(f"the instruction's columns are a warpgroup's of the result, its steps {step} deep", f"{cols} columns",
                         f"{width} over {across}, depth {depth}")
    down = held // 4
    if warps % 4 or not down or rows % (WARPGROUP_ROWS * down) or out.layout != wgmma_c(rows, width, down, across):
        return RuleError("each warpgroup of the role works on 64 rows at a time", f"a multiple of {WARPGROUP_ROWS * max(1, down)}",
                         f"{rows} rows, {warps} warps, {out.layout}")
    return None


def _start(op: Op, defs: Mapping[Value, Op]) -> RuleError | None:
    """Blocks lie at multiples of their own size from the position that is given: that one decides."""
    t = next(v.type for v in op.operands if isinstance(v.type, Buffer))
    row, col = (multiple(v, defs) for v in op.operands[-2:])
    size, grain = t.dtype.bytes, BLOCKS[op.kind]
    if row * t.layout.row_bytes(size) % grain or col * size % grain:
        return RuleError(f"its blocks start on {grain} bytes of the stored tile", f"a row and a column that are known to be multiples of "
                         f"{grain // size} elements", f"multiples of {row} and {col}, in {t}")
    return None
