"""Shared memory in bytes: where a kernel's buffers and mbarriers lie, and that they may lie there.

Tiles whose uses are apart share bytes (`alloc`). An mbarrier shares its bytes with nothing: whoever stores over one has broken it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .attrs import MOST
from .core import Kernel, Value
from .op_table import RuleError
from .types import Buffer, Cursor, Mbarrier

#: bytes on which tiles start: the period of the widest swizzle where there is one; mbarriers
SWIZZLED, PLAIN, MBARRIER = 1024, 16, 8
#: bytes on which a box of a bulk copy starts (PTX ISA, cp.async.bulk.tensor)
BOX = 128
#: slots of a ring
SLOTS = 64


def alignment(v: Value) -> int:
    return MBARRIER if isinstance(v.type, Mbarrier) else SWIZZLED if v.type.layout.swizzle else PLAIN


def buffer_problem(t: Buffer | Mbarrier | Cursor) -> RuleError | None:
    """What is wrong with a ring by itself."""
    if t.slots > SLOTS:
        return RuleError("a ring has so many slots", f"1 to {SLOTS}", t.slots)
    if not isinstance(t, Buffer):
        return RuleError("the number of arrivals", f"1 to {MOST - 1}", t.count) if isinstance(t, Mbarrier) and t.count >= MOST else None
    layout, size = t.layout, t.dtype.bytes
    if not 1 <= len(t.shape) <= 2:
        return RuleError("a buffer's tile has one or two axes", got=t)
    if t.shape[-1] % layout.panel:
        return RuleError("the buffer's columns are whole panels", f"a multiple of {layout.panel}", t)
    if layout.swizzle and (layout.pad or layout.panel * size > layout.swizzle):
        return RuleError("rows of a swizzled panel are not padded, and no longer than the swizzle", f"at most {layout.swizzle} bytes",
                         f"{layout.row_bytes(size)} bytes: {t}")
    if t.bytes > MOST:
        return RuleError("a buffer's size", f"at most {MOST} bytes", t.bytes)
    return None


def boxes_problem(t: Buffer, parts: int = 1) -> RuleError | None:
    """What is wrong with a tile that bulk copies move, panel by panel, in some equal parts of its rows: each box starts on `BOX` bytes of
    shared memory, and on a period of the swizzle, whose rows it fills (CUDA programming guide, 'tensor map swizzle modes': shorter ones lie
    apart by the swizzle's width, not side by side)."""
    if t.layout.swizzle and t.layout.panel * t.dtype.bytes != t.layout.swizzle:
        return RuleError("rows of its boxes are as long as the swizzle", f"{t.layout.swizzle} bytes", t)
    rows, row = t.rows, t.layout.row_bytes(t.dtype.bytes)
    starts = [rows // parts * row] * (parts > 1) + [rows * row] * (t.shape[-1] > t.layout.panel)
    grain = 8 * t.layout.swizzle or BOX
    if any(n % grain for n in starts):
        return RuleError(f"each of its boxes starts on {grain} bytes of shared memory", f"multiples of {grain}", t)
    return None


def problems(kernel: Kernel) -> Iterator[tuple[Value | None, RuleError]]:
    """(a buffer, what is wrong with its place), for a kernel that says where its buffers lie."""
    offsets, size = kernel.meta.get("smem_offsets"), kernel.meta.get("smem_bytes", 0)
    if offsets is None:
        return
    if len(offsets) != len(kernel.buffers):
        yield None, RuleError("smem_offsets has one number per buffer", len(kernel.buffers), len(offsets))
        return
    places = [(v, at, at + v.type.bytes) for v, at in zip(kernel.buffers, offsets)]
    for v, at, end in places:
        if at % alignment(v):
            yield v, RuleError(f"%{v.name} starts on {alignment(v)} bytes of shared memory", f"a multiple of {alignment(v)}", at)
        if at < 0 or end > size:
            yield v, RuleError(f"%{v.name} lies in the kernel's shared memory", f"0 to {size} (meta smem_bytes)", f"{at} to {end}")
    for n, (v, at, end) in enumerate(places):
        if isinstance(v.type, Mbarrier):
            for k, (other, low, high) in enumerate(places):
                if at < high and low < end and (k < n or (k > n and not isinstance(other.type, Mbarrier))):
                    yield v, RuleError(f"%{v.name} and %{other.name} share bytes of shared memory: an mbarrier has its own",
                                       got=f"{at} to {end} and {low} to {high}")


def told(offsets: Mapping[Value, int]) -> list[str]:
    """What lies where, in lines: bytes that buffers share are counted once in the whole."""
    shares = lambda a, b: a is not b and offsets[a] < offsets[b] + b.type.bytes and offsets[b] < offsets[a] + a.type.bytes
    beside = {a: ", ".join(b.name for b in offsets if shares(a, b)) for a in offsets}
    return [f"{a.name}: {a.type.bytes} bytes from {at} on" + f", shared with {beside[a]}" * bool(beside[a]) for a, at in offsets.items()]


def shared_bytes(kernel: Kernel, a: Value, b: Value) -> range:
    """The bytes that two buffers have in common."""
    offsets = dict(zip(kernel.buffers, kernel.meta.get("smem_offsets", ())))
    if a is b or a not in offsets or b not in offsets:
        return range(0)
    return range(max(offsets[a], offsets[b]), min(offsets[a] + a.type.bytes, offsets[b] + b.type.bytes))
