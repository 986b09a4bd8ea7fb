"""The WMMA family: fragments whose element map is not specified, so everything works on whole 16 x 16 fragments."""

from __future__ import annotations

from math import prod

import numpy as np

from ...errors import FcError
from ...ir.core import Op, Value
from ...ir.layout import OpaqueLayout
from ...ir.types import Frag, Scalar
from .emit import Emitter, emits
from .expr import apply, choose
from .frag import put
from .text import X, add, closed_form, mul

_ELEMENT = {"f16": "half", "bf16": "__nv_bfloat16", "f32": "float"}


def grid(t: Frag) -> tuple[int, int]:
    """16 x 16 fragments per warp: rows, columns."""
    lay, (rows, cols) = t.layout, t.shape
    assert isinstance(lay, OpaqueLayout)
    m, n = lay.parts
    if rows % (16 * m) or cols % (16 * n):
        raise FcError("compile/unsupported", "wmma: a tile is whole 16 x 16 fragments per warp", got=t)
    return rows // m // 16, cols // n // 16


def count(t: Frag) -> int:
    return prod(grid(t))


def _declare(em: Emitter, v: Value, transposed: bool = False) -> str:
    root = em.plan.root(v)
    if root not in em.arrays:
        t = v.type
        em.headers["mma.h"] = None
        if t.dtype.name == "bf16":
            em.headers["cuda_bf16.h"] = None
        el = _ELEMENT[t.dtype.name]
        kind = {"acc": "accumulator", "a": "matrix_a", "b": "matrix_b"}[t.layout.role]
        order = "" if kind == "accumulator" else f", wmma::{'col' if transposed else 'row'}_major"
        em.arrays[root] = name = em.names(v.name, "frag")
        em.w.line(f"wmma::fragment<wmma::{kind}, 16, 16, 16, {el}{order}> {name}[{count(t)}];")
    return em.arrays[root]


@emits("opaque_declare")
def _opaque_declare(em: Emitter, op: Op) -> None:
    _declare(em, op.operands[0])


@emits("opaque_into")
def _into(em: Emitter, op: Op) -> None:
    v, name = op.operands[0], op["into"]
    if v in em.plan.fused:
        _fill(em, name, em.plan.maker[v])
    else:
        em.w.loop(count(v.type), "i", lambda i: [f"{name}[{i}] = {em.array(v)}[{i}];"])


def _fill(em: Emitter, name: str, full: Op) -> None:
    value = em.scalar(full.operands[0])
    em.w.loop(count(full.result.type), "i", lambda i: [f"wmma::fill_fragment({name}[{i}], {value});"])


@emits("opaque")
def _opaque(em: Emitter, op: Op) -> None:
    """A pointwise op: legal because equal layouts put an element into the same place of each fragment."""
    v = op.result
    name = _declare(em, v)
    if op.kind == "full":
        _fill(em, name, op)
        return
    if v.type.dtype.name != "f32" or any(o.type.dtype.name != "f32" for o in op.operands if isinstance(o.type, Frag)):
        raise FcError("compile/unsupported", "elementwise work on an opaque fragment is in f32", got=v.type, loc=op.loc,
                      hint="stage the value through shared memory (Schedule.math=\"mma\" keeps it in registers)")

    def element(o: Value) -> X:
        if isinstance(o.type, Scalar):
            return em.scalar(o)
        maker = em.plan.maker.get(o)
        if o in em.plan.fused and maker is not None and maker.kind == "full":
            return em.scalar(maker.operands[0])
        return X(f"{em.array(o)}[i].x[e]")

    args = [element(o) for o in op.operands]
    x = choose(*args) if op.kind == "select" else apply(em, op.kind, op.operands[0].type.dtype, args)
    em.w.line("#pragma unroll")
    em.w.line(f"for (int i = 0; i < {count(v.type)}; ++i)")
    em.w.line("    #pragma unroll")
    em.w.line(f"    for (int e = 0; e < {name}[i].num_elements; ++e)")
    em.w.line(f"        {name}[i].x[e] = {x};")


def _places(em: Emitter, op: Op, t: Frag, buffer: Value, row: Value, col: Value, transposed: bool) -> tuple[str, int]:
    """(byte offset in shared memory of fragment i, as text; elements from row to row)."""
    lay, b = t.layout, buffer.type
    assert isinstance(lay, OpaqueLayout)
    known = em.static([row, col])
    if known is None:
        raise FcError("compile/unsupported", "wmma: the position is not known when the kernel is compiled", loc=op.loc)
    over, at = known
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
    x = add(em.offset_of(buffer), X(str(int(base[0, 0, 0]))))
    x = add(x, em.form((addr[:, 0, 0] - base[0, 0, 0]), over, "part"))
    wx = closed_form(addr[0, :, 0] - base[0, 0, 0], X("warp"))
    x = add(x, wx if wx is not None else X("0"))
    x = add(x, em.form(addr[0, 0] - base[0, 0, 0], X("i") if r * c > 1 else X("0"), "place"))
    return x.text, b.layout.panel + b.layout.pad


def _pointer(t: str, offset: str) -> str:
    return f"reinterpret_cast<{t}*>(smem + {offset})" if offset != "0" else f"reinterpret_cast<{t}*>(smem)"


@emits("wmma_load")
def _load(em: Emitter, op: Op) -> None:
    buffer, row, col = op.operands
    v, transposed = op.result, bool(op.get("transposed"))
    em.comment([op.loc])
    name = _declare(em, v, transposed)
    offset, ld = _places(em, op, v.type, buffer, row, col, transposed)
    el = _ELEMENT[v.type.dtype.name]
    order = f", wmma::mem_{'col' if transposed else 'row'}_major" if v.type.layout.role == "acc" else ""
    em.w.loop(count(v.type), "i", lambda i: [
        f"wmma::load_matrix_sync({name}[{i}], {_pointer('const ' + el, offset)}, {ld}{order});"])


@emits("wmma_store")
def _store(em: Emitter, op: Op) -> None:
    v, buffer, row, col = op.operands
    em.comment([op.loc])
    offset, ld = _places(em, op, v.type, buffer, row, col, False)
    el = _ELEMENT[v.type.dtype.name]
    em.w.loop(count(v.type), "i",
              lambda i: [f"wmma::store_matrix_sync({_pointer(el, offset)}, {em.array(v)}[{i}], {ld}, wmma::mem_row_major);"])


@emits("wmma_mma")
def _mma(em: Emitter, op: Op) -> None:
    a, b, acc = op.operands
    (m, k), (_, n) = grid(a.type), grid(b.type)
    em.comment([op.loc])
    _declare(em, op.result)
    name = put(em, acc, op.result)
    mi, ni, ki = (X(v) if count > 1 else X("0") for v, count in (("mi", m), ("ni", n), ("ki", k)))
    c = f"{name}[{add(mul(mi, n), ni)}]"
    em.w.nest({"ki": k, "mi": m, "ni": n},
              [f"wmma::mma_sync({c}, {em.array(a)}[{add(mul(mi, k), ki)}], {em.array(b)}[{add(mul(ki, n), ni)}], {c});"])
