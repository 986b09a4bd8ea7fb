"""Fragments whose element map is not specified (WMMA's): work on them goes over whole 16 x 16 fragments."""

from __future__ import annotations

from math import prod

from ...errors import FcError
from ...ir.core import Op, Value
from ...ir.layout import OpaqueLayout
from ...ir.types import Frag, Scalar
from .emit import Emitter
from .expr import apply, choose
from .text import X

#: dtype of a fragment -> its C++ type
ELEMENT = {"f16": "half", "bf16": "__nv_bfloat16", "f32": "float"}


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


def declare(em: Emitter, v: Value, transposed: bool = False) -> str:
    root = em.plan.root(v)
    if root not in em.arrays:
        t = v.type
        em.headers["mma.h"] = None
        if t.dtype.name == "bf16":
            em.headers["cuda_bf16.h"] = None
        el = ELEMENT[t.dtype.name]
        kind = {"acc": "accumulator", "a": "matrix_a", "b": "matrix_b"}[t.layout.role]
        order = "" if kind == "accumulator" else f", wmma::{'col' if transposed else 'row'}_major"
        em.arrays[root] = name = em.names(v.name, "frag")
        em.w.line(f"wmma::fragment<wmma::{kind}, 16, 16, 16, {el}{order}> {name}[{count(t)}];")
    return em.arrays[root]


def into(em: Emitter, name: str, v: Value) -> None:
    """Copy or compute value v into the fragments `name`."""
    if v in em.plan.fused:
        _fill(em, name, em.plan.maker[v])
    else:
        em.w.loop(count(v.type), "i", lambda i: [f"{name}[{i}] = {em.array(v)}[{i}];"])


def _fill(em: Emitter, name: str, full: Op) -> None:
    value = em.scalar(full.operands[0])
    em.w.loop(count(full.result.type), "i", lambda i: [f"wmma::fill_fragment({name}[{i}], {value});"])


def pointwise(em: Emitter, op: Op) -> None:
    """A pointwise op: legal because equal layouts put an element into the same place of each fragment."""
    v = op.result
    name = declare(em, v)
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


def is_opaque(v: Value) -> bool:
    return isinstance(v.type, Frag) and isinstance(v.type.layout, OpaqueLayout)
