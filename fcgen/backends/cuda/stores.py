"""Bulk stores in text: matrix stores into the staging buffer, the copies that one thread of each part starts, and the waits for them."""

from __future__ import annotations

import numpy as np

from ...errors import FcError
from ...ir.access import Access
from ...ir.core import Op
from ...ir.moves import matrix_blocks
from ...ir.store_ops import part_shape
from ...ir.types import Buffer, Tensor
from .boxes import Boxes
from .channels import part_of
from .emit import Emitter, emits
from .frag import stored
from .memory import matrix_rows, registers, scaled, stored_positions
from .text import ZERO, X, add, mul


@emits("stmatrix")
def _stmatrix(em: Emitter, op: Op) -> None:
    """Registers 2p, 2p+1 are block p; the lanes' row addresses of 4 blocks go into one instruction, of fewer where not all 4s lie alike."""
    v = op.operands[0]
    layout = v.type.layout
    if matrix_blocks(layout, em.kernel.warps) != ("columns" if op["trans"] else "rows"):
        raise FcError("compile/unsupported", "stmatrix: the fragment's registers are not 8 x 8 blocks of the stored tile", got=layout,
                      loc=op.loc, hint="the .trans form is for fragments whose pairs run down the stored columns")
    rows, cols = stored_positions(em, op, v)
    blocks = layout.regs // 2
    corners = np.stack([rows[0, 0, ::2], cols[0, 0, ::2]])
    alike = lambda n: not np.diff(corners.reshape(2, -1, n) - corners.reshape(2, -1, n)[:, :, :1], axis=1).any()
    count = next(n for n in (4, 2, 1) if blocks % n == 0 and alike(n))
    em.comment([op.loc])
    name = stored(em, v)
    access = matrix_rows(em, op, rows[:, 0, ::2], cols[:, 0, ::2], count)
    fn = em.fn(f"stmatrix_x{count}{'_trans' if op['trans'] else ''}")
    em.w.loop(blocks // count, "i", lambda i: [f"{fn}({access.address(i)}, {registers(v.type.dtype, name, i, 2 * count)[0]});"])


@emits("tma_store")
def _tma_store(em: Emitter, op: Op) -> None:
    tensor, view = op.operands[0], op.operands[-1]
    t: Buffer = view.type
    assert isinstance(tensor.type, Tensor)
    em.comment([op.loc])
    parts, across = op["parts"], op.get("across", False)
    (rows, cols), warps = part_shape(t.shape, parts, across), max(1, em.kernel.warps // parts)
    part = part_of(em, op)
    box = Boxes(em, Access.of(op), (rows, t.layout.panel))
    if parts > 1:
        box.shift(1, mul(part, cols)) if across else box.shift(0, mul(part, rows))
    name = em.map_of(tensor, box.detail(t.layout.swizzle))
    fn = em.fn(f"tma_{'add' if op.get('reduce') else 'store'}_{box.rank}d")
    first = "warp == 0" if parts == 1 else f"warp % {warps} == 0" if warps > 1 else ""
    if not em.one_thread:
        em.open(f"if ({first}{' && ' if first else ''}lane == 0) {{" if em.kernel.warps > 1 else "if (lane == 0) {")
    wide = t.layout.panel_bytes(t.shape, t.dtype.bytes)
    step = cols // t.layout.panel * wide if across else rows * t.layout.row_bytes(t.dtype.bytes)
    src = add(em.scalars[view], mul(part, step)) if parts > 1 else em.scalars[view]
    for p in range(cols // t.layout.panel):
        panel = add(src, X(str(p * wide)))
        em.w.line(f"{fn}({name}, {box.coords(p * t.layout.panel)}, {panel});")
    if not em.one_thread:
        em.close()


@emits("bulk_wait")
def _wait(em: Emitter, op: Op) -> None:
    em.w.line(f"{em.fn('bulk_wait_read' if op['read'] else 'bulk_wait')}<{op['n']}>();")


@emits("await_turn", "end_turn")
def _turn(em: Emitter, op: Op) -> None:
    """Where a turn is kept is a place inside of its tensor."""
    tensor, *at, n = op.operands
    offset = ZERO
    for axis, v in enumerate(at):
        offset = add(offset, scaled(em.scalar(v), em.stride(tensor, axis)))
    number = em.scalar(n) if op.kind == "await_turn" else add(em.scalar(n), X("1"))
    em.comment([op.loc])
    em.w.line(f"{em.fn(op.kind)}({add(X(em.pname[tensor]), offset)}, {number});")
