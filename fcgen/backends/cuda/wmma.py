"""The WMMA family in text: loads, stores and products of whole 16 x 16 fragments."""

from __future__ import annotations

import numpy as np

from ...errors import FcError
from ...ir.core import Op, Value
from ...ir.layout import LANES, OpaqueLayout
from ...ir.types import Frag
from .emit import Emitter, emits
from .frag import put
from .opaque import ELEMENT, count, declare, grid
from .text import ZERO, X, add, mul, total


def _places(em: Emitter, op: Op, t: Frag, buffer: Value, row: Value, col: Value, transposed: bool) -> tuple[str, int]:
    """(byte offset in shared memory of fragment i, as text; elements from row to row)."""
    lay, b = t.layout, buffer.type
    assert isinstance(lay, OpaqueLayout)
    over, at = em.expanded(op, [row, col])
    r, c = grid(t)
    wm, wn = lay.part_of(np.arange(em.kernel.warps))
    i = np.arange(r * c)
    fr, fc = (wm[:, None] * r + i // c) * 16, (wn[:, None] * c + i % c) * 16
    if transposed:
        fr, fc = fc, fr
    addr = np.asarray(b.layout.address(b.shape, b.dtype.bytes, fr[None] + at[:, 0, None, None], fc[None] + at[:, 1, None, None]))
    base = addr[:1, :1, :1]
    even = addr[:, :1, :1] + addr[:1, :, :1] + addr[:1, :1, :] - 2 * base
    assert (addr == even).all(), "fragments are evenly placed"
    if b.layout.panel % 16 or b.layout.row_bytes(b.dtype.bytes) % 16:
        raise FcError("compile/unsupported", "wmma: rows start on 16 bytes and panels are whole fragments", got=b.layout,
                      loc=op.loc)
    first = int(addr[0, 0, 0])
    part, warp = em.form(addr[:, 0, 0] - first, over, "part"), em.lane_form(np.zeros(LANES, np.int64), addr[0, :, 0] - first)
    place = em.form(addr[0, 0] - first, X("i") if r * c > 1 else ZERO, "place")
    x = total([em.offset_of(buffer), X(str(first)), part, warp, place])
    return x.text, b.layout.panel + b.layout.pad


def _pointer(t: str, offset: str) -> str:
    return f"reinterpret_cast<{t}*>(smem + {offset})" if offset != "0" else f"reinterpret_cast<{t}*>(smem)"


@emits("wmma_load")
def _load(em: Emitter, op: Op) -> None:
    buffer, row, col = op.operands
    v, transposed = op.result, bool(op.get("transposed"))
    em.comment([op.loc])
    name = declare(em, v, transposed)
    offset, ld = _places(em, op, v.type, buffer, row, col, transposed)
    el = ELEMENT[v.type.dtype.name]
    order = f", wmma::mem_{'col' if transposed else 'row'}_major" if v.type.layout.role == "acc" else ""
    em.w.loop(count(v.type), "i", lambda i: [
        f"wmma::load_matrix_sync({name}[{i}], {_pointer('const ' + el, offset)}, {ld}{order});"])


@emits("wmma_store")
def _store(em: Emitter, op: Op) -> None:
    v, buffer, row, col = op.operands
    em.comment([op.loc])
    offset, ld = _places(em, op, v.type, buffer, row, col, False)
    el = ELEMENT[v.type.dtype.name]
    em.w.loop(count(v.type), "i",
              lambda i: [f"wmma::store_matrix_sync({_pointer(el, offset)}, {em.array(v)}[{i}], {ld}, wmma::mem_row_major);"])


@emits("wmma_mma")
def _mma(em: Emitter, op: Op) -> None:
    a, b, acc = op.operands
    (m, k), (_, n) = grid(a.type), grid(b.type)
    em.comment([op.loc])
    name = put(em, acc, op.result)
    mi, ni, ki = (X(v) if count > 1 else ZERO for v, count in (("mi", m), ("ni", n), ("ki", k)))
    c = f"{name}[{add(mul(mi, n), ni)}]"
    em.w.nest({"ki": k, "mi": m, "ni": n},
              [f"wmma::mma_sync({c}, {em.array(a)}[{add(mul(mi, k), ki)}], {em.array(b)}[{add(mul(ki, n), ni)}], {c});"])
