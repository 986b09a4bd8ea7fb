"""alloc: byte offsets of the shared-memory buffers.

In: selected machine IR. Out: the same with `smem_offsets` and `smem_bytes`. Buffers that are in use at the same time never overlap; use is
counted in whole ops of the role's body, so a buffer touched inside a loop is in use for the whole loop. Buffers whose uses are apart share
bytes; `sync` comes after this pass and orders them.
"""

from __future__ import annotations

from ..errors import FcError
from ..ir.core import Block, Kernel, Op, Value, walk
from ..ir.schedule import Schedule
from ..ir.target import Target

ALIGN = 1024  # one period of the widest swizzle: addresses are swizzled by their absolute bits


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    spans: dict[Value, tuple[int, int]] = {}
    for role in kernel.roles:
        for i, op in enumerate(role.body.ops):
            for buffer in _touched(op, set(kernel.buffers)):
                first, _ = spans.get(buffer, (i, i))
                spans[buffer] = (first, i)
    kept = [b for b in kernel.buffers if b in spans]
    offsets: dict[Value, int] = {}
    for b in sorted(kept, key=lambda v: (-v.type.bytes, spans[v][0])):
        taken = sorted((offsets[o], offsets[o] + o.type.bytes) for o in offsets if _meet(spans[o], spans[b]))
        at = 0
        for low, high in taken:
            if at + b.type.bytes <= low:
                break
            at = max(at, -(-high // ALIGN) * ALIGN)
        offsets[b] = at
    total = max((offsets[b] + b.type.bytes for b in kept), default=0)
    if total > target.smem_per_block:
        parts = ", ".join(f"{b.name} {b.type.bytes}" for b in kept)
        raise FcError("compile/budget", f"shared memory: the tiles of {kernel.name} do not fit one block on {target.arch}",
                      expected=f"at most {target.smem_per_block} bytes", got=f"{total} bytes ({parts})",
                      hint="make Schedule.tiles smaller or Schedule.stages fewer")
    from dataclasses import replace

    return replace(kernel, buffers=tuple(kept)).with_meta(stage="allocated", smem_offsets=tuple(offsets[b] for b in kept), smem_bytes=total)


def _touched(op: Op, buffers: set[Value]) -> set[Value]:
    return {v for o in walk(Block((), (op,))) for v in o.operands if v in buffers}


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
