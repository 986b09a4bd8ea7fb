"""Sums along an axis, and a tile as one number: each thread goes through its own registers, then lanes exchange what they have."""

from __future__ import annotations

import numpy as np

from ...ir.core import Op
from ...ir.elementwise import REDUCTIONS
from ...ir.layout import Factor
from .emit import Emitter, emits
from .expr import apply
from .frag import check_wide, stored
from .text import CTYPES, X, call


@emits("fold")
def _fold(em: Emitter, op: Op) -> None:
    em.comment([op.loc])
    src = op.operands[0]
    check_wide(src, op)
    dtype, layout = src.type.dtype, src.type.layout
    source, name, fn = stored(em, src), X(em.names(op.result.name, op["fn"]), depth=em.depth), REDUCTIONS[op["fn"]][1]
    em.w.line(f"{CTYPES[dtype.name]} {name} = {source}[0];")
    em.w.loop(layout.regs, "i", lambda i: [f"{name} = {apply(em, fn, dtype, [name, X(f'{source}[{i}]')])};"], start=1)
    for step in layout.reduces_over(0)[0]:
        other = call(em.fn(f"shfl_xor_{dtype.name}"), name, str(step))
        em.w.line(f"{name} = {apply(em, fn, dtype, [name, other])};")
    em.scalars[op.result] = name


@emits("cumsum")
def _cumsum(em: Emitter, op: Op) -> None:
    """In each row: the thread's own run, what the lanes before it have together, and that added to the run."""
    em.comment([op.loc])
    src, axis = op.operands[0], op["axis"]
    check_wide(src, op)
    layout = src.type.layout
    source, name, ctype = stored(em, src), em.declare(op.result), CTYPES[src.type.dtype.name]
    order = np.argsort(layout.part(axis, "r", np.arange(layout.regs)), kind="stable")
    drop = layout.drop_map(axis)[order]
    rows = order[np.argsort(drop, kind="stable")].reshape(-1, np.bincount(drop)[0])
    steps = rows[0] - rows[0, 0]
    assert (rows - rows[:, :1] == steps).all(), "rows of a register layout are laid out alike"
    lanes = next((f for f in layout.axes[axis] if f.unit == "l"), Factor("l", 1, 1))
    digit = f"lane / {lanes.stride} % {lanes.size}" if lanes.stride > 1 else f"lane % {lanes.size}"

    def row(j: X) -> list[str]:
        first = em.form(rows[:, 0], j, f"first_{name}")
        each = f"for (int i = 0; i < {len(steps)}; ++i)"
        at = f"{first} + {em.form(steps, X('i'), f'step_{name}')}"
        out = [f"{ctype} upto = 0;", "#pragma unroll", each, f"    {name}[{at}] = upto = upto + {source}[{at}];"]
        if lanes.size == 1:
            return out
        up, step = em.fn(f"shfl_up_{src.type.dtype.name}"), 1
        while step < lanes.size:
            out += [f"const {ctype} other_{step} = {up}(upto, {step * lanes.stride});",
                    f"upto = {digit} >= {step} ? upto + other_{step} : upto;"]
            step *= 2
        out += [f"{ctype} before = {up}(upto, {lanes.stride});", f"before = {digit} > 0 ? before : 0;", "#pragma unroll", each,
                f"    {name}[{at}] = {name}[{at}] + before;"]
        return out

    em.w.loop(len(rows), "j", row, block=True)
