"""mma.sync in text: which registers each instruction takes, found by comparing layouts with the instruction's own maps."""

from __future__ import annotations

import numpy as np

from ...errors import FcError, Loc
from ...ir.core import Op, Value
from ...ir.layout import RegLayout
from .emit import Emitter, emits
from .expr import slice_table
from .frag import locs_of, put
from .text import ZERO, X, add


def _instances(layout: RegLayout, unit: RegLayout, warps: int, what: str,
               loc: Loc | None) -> dict[tuple[int, ...], tuple[int, np.ndarray]]:
    """origin of an instruction's tile in warp 0 -> (its first register, its origin in every warp). Every run of registers must be
    exactly the instruction's map, in every warp."""
    have, want, n = layout.coords(warps), unit.coords(1)[0], unit.regs
    out = {}
    for b in range(0, layout.regs, n):
        block = have[:, :, b: b + n]
        origin = block[:, :1, :1]
        if block.shape[2] != n or not (block - origin == want).all():
            raise FcError("compile/unsupported", f"mma: the {what} fragment does not hold the instruction's "
                          "registers one after the other",
                          expected=unit, got=layout, loc=loc)
        out[tuple(int(x) for x in origin[0, 0, 0])] = (b, origin[:, 0, 0])
    return out


@emits("mma")
def _mma(em: Emitter, op: Op) -> None:
    a, b, acc = op.operands[:3]
    rec = em.target.instrs.get(op["instr"])
    if rec is None or rec.a is None or rec.b is None or rec.c is None:
        raise FcError("compile/unsupported", f"{em.target.arch} has no matrix instruction {op['instr']!r}", loc=op.loc)
    warps = em.kernel.warps
    ia, ib, ic = (_instances(v.type.layout, u, warps, what, op.loc)
                  for v, u, what in ((a, rec.a, "left"), (b, rec.b, "right"), (acc, rec.c, "accumulator")))
    kk = rec.shape[2]
    depth = a.type.shape[1] // kk
    ms, ns = sorted({r for r, _ in ic}), sorted({c for _, c in ib})
    part, firsts = _columns(em, op)
    ta = np.array([[ia[(r, k * kk)][0] for k in range(depth)] for r in ms])
    tb = np.array([[ib[(k * kk, c)][0] for c in ns] for k in range(depth)])
    tcs = np.array([[[ic[(r, c + first)][0] for c in ns] for r in ms] for first in firsts])
    tc = tcs[0] - tcs[0, 0, 0]
    assert (tcs - tcs[:, :1, :1] == tc).all(), "parts of the accumulator are laid out alike"
    for r in ms:
        for c in ns:
            for k in range(depth):
                at, bt, ct = ia[(r, k * kk)][1], ib[(k * kk, c)][1], ic[(r, c)][1]
                agree = (at[:, 0] == ct[:, 0]) & (bt[:, 1] == ct[:, 1]) & (at[:, 1] == bt[:, 0])
                assert agree.all(), "the three fragments split one product over the warps"
    em.comment(locs_of(em, op))
    name = put(em, acc, op.result)
    fn = em.fn(rec.name)
    vm, vn, vk = (X(v) if n > 1 else ZERO for v, n in (("mi", len(ms)), ("ni", len(ns)), ("ki", depth)))

    def pointer(v: Value, table: np.ndarray, x: X, y: X, packed: bool, start: X = ZERO) -> str:
        rows, cols = table[:, 0], table[0] - table[0, 0]
        assert (table == rows[:, None] + cols).all(), "instances are laid out alike"
        src = em.plan.base(v)
        if src is not v:  # a view: compose with the stored fragment's registers
            regs = np.arange(v.type.layout.regs)
            over, full = _view_table(em, v, regs)
            step = rec.a.regs if v is a else rec.b.regs  # type: ignore[union-attr]
            for p in full:
                for t in table.ravel():
                    if not (p[t: t + step] == p[t] + np.arange(step)).all():
                        raise FcError("compile/unsupported", "mma: a sliced operand's registers are not consecutive", loc=op.loc)
            base = full[:, rows[0]]
            rows, cols = full[0][rows] - full[0][rows[0]], full[0][rows[0] + cols] - full[0][rows[0]]
            scale = v.type.dtype.per_register if packed else 1
            first = em.form(base // scale, over, f"part_{em.array(src)}")
        else:
            scale, first = (v.type.dtype.per_register if packed else 1), start
        wish = f"tile_{em.array(src)}"
        index = add(add(first, em.form(rows // scale, x, wish)), em.form(cols // scale, y, wish))
        return f"&{em.array(src)}[{index}]" if index.text != "0" else em.array(src)

    start = em.form(tcs[:, 0, 0], part, f"part_{name}")
    text = (f"{fn}({pointer(op.result, tc, vm, vn, False, start)}, {pointer(a, ta, vm, vk, True)}, {pointer(b, tb, vk, vn, True)});")
    em.w.nest({"ki": depth, "mi": len(ms), "ni": len(ns)}, [text])


def _columns(em: Emitter, op: Op) -> tuple[X, list[int]]:
    """(index, first column for each of its values): which part of the accumulator an mma changes."""
    if len(op.operands) == 3:
        return ZERO, [0]
    over, firsts = em.expanded(op, [op.operands[3]])
    width = op.operands[2].type.shape[1]
    return over, [int(first) for (first,) in firsts if first < width]


def _view_table(em: Emitter, v: Value, regs: np.ndarray) -> tuple[X, np.ndarray]:
    op = em.plan.maker[v]
    if op.kind == "transpose":
        raise FcError("compile/unsupported", "mma on a transposed view", loc=op.loc)
    over, full = slice_table(em, op)
    if not (full - full[:, :1] == full[0] - full[0, 0]).all():
        raise FcError("compile/unsupported", "slice: the parts are not laid out alike", loc=op.loc)
    return over, full[:, regs]

