"""alloc: byte offsets of the shared-memory buffers.

In: selected machine IR. Out: the same with `smem_offsets` and `smem_bytes`. Buffers that are in use at the same time never overlap. A
buffer is in use from its first to its last access, counted in the ops of the innermost block that holds them all: a tile staged and
read within one iteration is in use for that part of the iteration only, one that lives across iterations for the whole loop. Buffers
whose uses are apart share bytes; `sync` comes after this pass and orders them.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import FcError
from ..ir.core import Block, Kernel, Op, Value
from ..ir.schedule import Schedule
from ..ir.target import Target
from .accesses import WRITES

ALIGN = 1024  # one period of the widest swizzle: addresses are swizzled by their absolute bits


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    spans = {b: span for role in kernel.roles for b, span in _spans(role.body, set(kernel.buffers)).items()}
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
    return replace(kernel, buffers=tuple(kept)).with_meta(stage="allocated", smem_offsets=tuple(offsets[b] for b in kept), smem_bytes=total)


def _spans(body: Block, buffers: set[Value]) -> dict[Value, tuple[int, int]]:
    """buffer -> (first, last) position in program order between which it is in use."""
    start: dict[int, int] = {}
    end: dict[int, int] = {}
    paths: dict[Value, list[tuple[Op, ...]]] = {}
    count = 0

    def visit(block: Block, outer: tuple[Op, ...]) -> None:
        nonlocal count
        for op in block.ops:
            start[id(op)] = count
            count += 1
            path = (*outer, op)
            for v in op.operands:
                if v in buffers:
                    paths.setdefault(v, []).append(path)
            for r in op.regions:
                visit(r, path)
            end[id(op)] = count - 1

    visit(body, ())
    out = {}
    for buffer, ps in paths.items():
        depth = 0
        while all(len(p) > depth + 1 for p in ps) and len({id(p[depth]) for p in ps}) == 1:
            depth += 1
        first, last = ps[0][depth], ps[-1][depth]
        loop = ps[0][depth - 1] if depth and ps[0][depth - 1].kind == "for" else None
        if loop is not None and ps[0][-1].kind not in WRITES | {"slot"}:  # read before written: it comes from the iteration before
            first = last = loop
        out[buffer] = (start[id(first)], end[id(last)])
    return out


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
