"""wgmma in text: descriptors, one call per instruction in unrolled loops, and what keeps registers in place around it.

A descriptor is a base for the ring's first slot, computed once, plus the slot's offset plus constants for the instruction. Registers in
flight are not touched between the fence and the wait: copies into an accumulator stand in front of the fence.
"""

from __future__ import annotations

import numpy as np

from ...errors import FcError
from ...ir.async_ops import accumulator
from ...ir.core import Block, Op, Value
from ...ir.layout import warp_grid, wgmma_a
from ...ir.types import Buffer, Frag, Pending
from .emit import Emitter, emits
from .frag import evaluate_into, locs_of, stored
from .text import ZERO, X, add, mul, register_type

SWIZZLE_CODE = {128: 1, 64: 2, 32: 3}
GROUP = 4  # warps of a warpgroup
#: ptxas adds up so many descriptors where they are needed; of more it keeps each in two registers (seen with 13.0, depth 512)
STEPS = 16
#: printed if it is used
BESIDE = f"constexpr int BESIDE = {(1 << 16) - 1};  // less in a descriptor: 16 bytes more of address, as many less to the leading panel"


def fences(block: Block) -> dict[int, list[Op]]:
    """wgmma_fence -> the products issued under it."""
    out: dict[int, list[Op]] = {}
    now: list[Op] | None = None
    for op in block.ops:
        if op.kind == "wgmma_fence":
            now = out.setdefault(id(op), [])
        elif op.kind == "wgmma" and now is not None:
            now.append(op)
        elif op.kind == "settle":
            now = None
        for r in op.regions:
            out.update(fences(r))
    return out


def _touch(em: Emitter, v: Value) -> None:
    name = em.array(v)
    em.w.line(f"{em.fn({'float': 'touch', 'int': 'touch_i32'}.get(register_type(v.type.dtype), 'touch_b32'))}({name});")


@emits("wgmma_fence")
def _fence(em: Emitter, op: Op) -> None:
    for product in em.fences.get(id(op), ()):
        em.comment(locs_of(em, product))
        a, acc = product.operands[0], accumulator(product)
        name = em.declare(product.result)
        if acc is not None:
            if acc in em.plan.fused or em.plan.root(em.plan.base(acc)) is not em.plan.root(product.result):
                evaluate_into(em, name, acc)
            if not isinstance(acc.type, Pending):
                _touch(em, product.result)
        if isinstance(a.type, Frag):
            stored(em, a)
            _touch(em, a)
    em.w.line(f"{em.fn('wgmma_fence')}();")


@emits("wgmma_commit")
def _commit(em: Emitter, op: Op) -> None:
    em.w.line(f"{em.fn('wgmma_commit')}();")


@emits("wgmma_wait")
def _wait(em: Emitter, op: Op) -> None:
    em.w.line(f"{em.fn('wgmma_wait')}<{op['groups']}>();")
    for v in op.operands:
        _touch(em, v)


@emits("pend")
def _pend(em: Emitter, op: Op) -> None:
    acc = op.operands[0]
    name = em.declare(op.result)
    if acc in em.plan.fused or em.plan.root(em.plan.base(acc)) is not em.plan.root(op.result):
        evaluate_into(em, name, acc)
    _touch(em, op.result)


@emits("settle")
def _settle(em: Emitter, op: Op) -> None:
    em.w.line(f"{em.fn('wgmma_wait')}<{op['groups']}>();")
    for v in op.operands:
        _touch(em, v)


@emits("proxy_fence")
def _proxy(em: Emitter, op: Op) -> None:
    em.w.line(f"{em.fn('proxy_fence')}();")


@emits("wgmma")
def _wgmma(em: Emitter, op: Op) -> None:
    a, b = op.operands[:2]
    t: Frag = op.result.type.frag
    rows, cols = t.shape
    warps, across = warp_grid(t.layout)
    down = warps // GROUP
    tall, cols = rows // (64 * down), cols // across  # of a warpgroup
    regs = isinstance(a.type, Frag)
    size = b.type.dtype.bytes
    if regs and a.type.layout != (held := wgmma_a(rows, a.type.shape[1], down, size)):
        raise FcError("compile/unsupported", "wgmma: the left operand does not have the instruction's map", expected=held,
                      got=a.type.layout, loc=op.loc)
    depth = (a.type.shape[0] if op["ta"] else a.type.shape[1]) * size // 32
    fn = em.fn(op["instr"] + ("_rs" if regs else ""))
    if not any(op in products for products in em.fences.values()):
        raise FcError("compile/unsupported", "wgmma: a wgmma_fence of its own region stands in front of it", loc=op.place or op.loc,
                      hint="wgmma_fence before the first product, and after each access of its accumulator")
    name = em.array(op.result)
    b_at = _steps(b.type, depth, not op["tb"])
    k, m = (X("k") if depth > 1 else ZERO), (X("m") if tall > 1 else ZERO)
    d = add(X(f"&{name}[0]") if tall > 1 else X(name), mul(m, cols // 2)) if tall > 1 else X(name)
    here = _here(em) if depth > STEPS else ZERO
    start = _descriptor(em, b, not op["tb"], _part(em, across, down, _column_step(b.type, cols, not op["tb"])))
    right = add(add(start, here), em.form(b_at // 16, k, f"{em.ring_name[b]}_step"))
    calls = [(fn, d, right)]
    if op.get("ones"):
        step = int(b_at[1] // 16) if depth > 1 else 0
        last = _beside(em, b, op.operands[-1])
        last = last if k.is_zero or not step else X(f"{last} - {k} * ({step} * BESIDE)", 70, em.depth)
        before = (b.type.shape[1] - b.type.layout.panel) // 2  # registers of the panels before the last
        calls = [(fn, X(f"&{name}[{add(mul(m, cols // 2), X(str(before)))}]") if before else d, last)]
        if before:
            calls.insert(0, (em.fn(op["first"] + ("_rs" if regs else "")), d, right))
    if regs:
        part = add(mul(m, depth * 4), mul(k, 4))
        left, args = X(f"&{em.array(a)}[{part}]"), f"<{int(not op['tb'])}>" if size == 2 else ""
    else:
        ad = _descriptor(em, a, op["ta"], _part(em, down, 1, tall * _row_step(a.type, op["ta"])))
        left = add(add(ad, here), em.form(_steps(a.type, depth, op["ta"]) // 16, k, f"{em.ring_name[a]}_step"))
        if tall > 1:
            left = add(left, mul(m, _row_step(a.type, op["ta"]) // 16))
        args = f"<{int(op['ta'])}, {int(not op['tb'])}>" if size == 2 else ""
    accumulate = "1" if accumulator(op) is not None else ("k != 0" if depth > 1 else "0")
    loops = [(v.text, n) for v, n in ((m, tall), (k, depth)) if n > 1]
    several = len(loops) > 0 and len(calls) > 1
    for v, n in loops:
        em.w.line("#pragma unroll")
        em.w.line(f"for (int {v} = 0; {v} < {n}; ++{v})" + (" {" if several and v == loops[-1][0] else ""))
        em.w.indent += 1
    for call, out, source in calls:
        em.w.line(f"{call}{args}({out}, {left}, {source}, {accumulate});")
    em.w.indent -= len(loops)
    if several:
        em.w.indent += len(loops) - 1
        em.w.line("}")
        em.w.indent -= len(loops) - 1


def _steps(t: Buffer, depth: int, along_rows: bool) -> np.ndarray:
    """Bytes from the first to each step, 32 bytes deep. along_rows: the depth runs down the stored rows (MN-major)."""
    k = np.arange(depth) * (32 // t.dtype.bytes)
    if along_rows:
        return k * t.layout.row_bytes(t.dtype.bytes)
    return k // t.layout.panel * t.layout.panel_bytes(t.shape, t.dtype.bytes) + k % t.layout.panel * t.dtype.bytes


def _row_step(t: Buffer, along_rows: bool) -> int:
    """Bytes from one 64-row block of a left operand to the next."""
    if along_rows:
        if 64 % t.layout.panel:
            raise FcError("compile/unsupported", "wgmma: 64 rows of a transposed operand are not whole panels", got=t.layout)
        return 64 // t.layout.panel * t.layout.panel_bytes(t.shape, t.dtype.bytes)
    return 64 * t.layout.row_bytes(t.dtype.bytes)


def _column_step(t: Buffer, cols: int, along_rows: bool) -> int:
    """Bytes from a warpgroup's columns of a right operand to those of the next."""
    return cols // t.layout.panel * t.layout.panel_bytes(t.shape, t.dtype.bytes) if along_rows else cols * t.layout.row_bytes(t.dtype.bytes)


def _here(em: Emitter) -> X:
    """Zero, as far as ptxas knows a number of this place: what is added to it is not computed in front of a loop and kept in registers."""
    name = em.names("here")
    em.w.line(f"const uint32_t {name} = {em.fn('opaque')}(0);")
    return X(name, depth=em.depth)


def _part(em: Emitter, parts: int, stride: int, step: int) -> X:
    """Bytes to this warpgroup's part of an operand of which every `stride` warpgroups share one."""
    if parts == 1:
        return ZERO
    wrap = f" % {parts}" if GROUP * stride * parts < em.kernel.warps else ""
    return mul(X(f"(warp / {GROUP * stride}{wrap})"), step)


def _descriptor(em: Emitter, v: Value, along_rows: bool, part: X = ZERO) -> X:
    """The descriptor of a slot's first instruction, of this warpgroup's part."""
    t: Buffer = v.type
    row = t.layout.row_bytes(t.dtype.bytes)
    lbo = t.layout.panel_bytes(t.shape, t.dtype.bytes) if along_rows and t.shape[1] > t.layout.panel else 16
    ring, slot = em.slots.get(v, (v, None))
    wish = f"{em.ring_name[v]}_desc"
    start = add(em.buffer_base(ring), part)
    base = em.hoist(
        "uint64_t", wish, X(f"{em.fn('smem_desc')}<{SWIZZLE_CODE[t.layout.swizzle]}, {lbo}, {8 * row}>({start})", 100, start.depth)
    )
    if slot is None:
        return base
    return X(f"{base} + uint32_t({slot} * {t.slot_bytes // 16})", 70, em.depth)


def _beside(em: Emitter, v: Value, ones: Value) -> X:
    """The descriptor of a right operand's last panel, beside which stands another buffer: the leading offset says how far away that is. One
    step on in the operand (or its ring) is one unit more of address and one less of offset: both fields are in one number."""
    t: Buffer = v.type
    row = t.layout.row_bytes(t.dtype.bytes)
    ring, slot = em.slots.get(v, (v, None))
    offsets = dict(zip(em.kernel.buffers, em.kernel.meta["smem_offsets"]))
    before = t.layout.panel_bytes(t.shape, t.dtype.bytes) * (t.shape[1] // t.layout.panel - 1)
    gap = offsets[ones] - offsets[ring] - before
    if gap + before < ring.type.bytes:
        raise FcError("compile/unsupported", "wgmma: ones lie after the ring of the right operand", expected=f"at least {ring.type.bytes}",
                      got=gap)
    start = add(em.buffer_base(ring), X(str(before)))
    base = em.hoist("uint64_t", f"{em.ring_name[v]}_ones_desc",
                    X(f"{em.fn('smem_desc')}<{SWIZZLE_CODE[t.layout.swizzle]}, {gap}, {8 * row}>({start})", 100, start.depth))
    if slot is None:
        return base
    return X(f"{base} - {slot} * ({t.slot_bytes // 16} * BESIDE)", 70, em.depth)
