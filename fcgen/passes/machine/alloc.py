"""alloc: byte offsets of the shared-memory buffers.

In: selected machine IR. Out: the same with `smem_offsets` and `smem_bytes`. Buffers that are in use at the same time never overlap. A
buffer is in use from its first to its last access, counted in the ops of the innermost block that holds them all: a tile staged and
read within one iteration is in use for that part of the iteration only, one that lives across iterations for the whole loop. Buffers
whose uses are apart share bytes; `sync` comes after this pass and orders them. Those of two roles are never apart. Channels share none,
since `sync` leaves their order to their mbarriers; where nothing else is enough, one does with what the only role that reads it uses behind
its last tile. What a bulk store reads shares none, since it reads as late as it likes and others would wait for it. Where the block does
not fit then, it shares with what other bulk stores read, else with all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...errors import FcError
from ...ir.core import Kernel, Role, Value, walk_kernel
from ...ir.lifetimes import meet, spans
from ...ir.memory_map import told
from ...ir.rings import outlived, ring_of
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Cursor, Mbarrier

ALWAYS = (0, 1 << 60)
ALIGN = 1024  # one period of the widest swizzle: addresses are swizzled by their absolute bits


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    offsets, total = offsets_of(kernel, target)[1:]
    if total > target.smem_per_block:
        raise FcError("compile/budget", f"shared memory: the tiles of {kernel.name} do not fit one block on {target.arch}",
                      expected=f"at most {target.smem_per_block} bytes", got=f"{total} bytes",
                      hint="make Schedule.tiles smaller or Schedule.stages fewer", notes=told(offsets))
    return replace(kernel, buffers=tuple(offsets)).with_meta(stage="allocated", smem_offsets=tuple(offsets.values()), smem_bytes=total)


def offsets_of(kernel: Kernel, target: Target, whole: bool = False) -> tuple[int, dict[Value, int], int]:
    """(how much had to be shared with what bulk stores read, or channels: 0 nothing, buffer that is used -> its offset, bytes in all).
    whole: as of `spans`."""
    live: dict[Value, tuple[Role | None, tuple[int, int]]] = {}
    posted = {o.operands[-1] for o in walk_kernel(kernel) if o.kind == "post"}  # on its own, it is ordered by barriers that others need
    told = {o.operands[1] for o in walk_kernel(kernel) if o.kind == "st_shared" and o.get("block") is not None}
    posted |= {o.operands[0] for o in walk_kernel(kernel) if o.kind == "slot"
               and (o.result in told  # other blocks store there at any time
                    or isinstance(o.operands[1].type, Cursor))}  # a channel: its mbarriers order it, and nothing else
    reader = outlived(kernel)
    for role in kernel.roles:
        for b, span in spans(role.body, set(kernel.buffers), whole, reader).items():
            alone = b in live or b in posted or isinstance(b.type, Mbarrier)  # what two roles share has no order of its own
            if reader.get(b, role) is role:
                live[b] = (role, span) if b in reader or not alone else (None, ALWAYS)
    kept = [b for b in kernel.buffers if b in live]
    beside = {o.operands[-1] for o in walk_kernel(kernel) if o.kind == "wgmma" and o.get("ones")}
    made = {v: o for o in walk_kernel(kernel) for v in o.results if o.kind == "slot"}
    sent = {ring_of(op.operands[-1], made) for op in walk_kernel(kernel) if op.kind == "tma_store"}
    ring = lambda a, b: a in reader or b in reader
    rules = (lambda a, b: ring(a, b) or a in sent or b in sent, lambda a, b: ring(a, b) or (a in sent) != (b in sent), ring,
             lambda a, b: False)
    tries = ((n, _offsets(kept, live, beside, apart)) for n, apart in enumerate(rules))
    shared, offsets = next(((n, at) for n, at in tries if _end(at) <= target.smem_per_block or n == len(rules) - 1))
    return shared, {b: offsets[b] for b in kept}, _end(offsets)


def side_by_side(kernel: Kernel, target: Target) -> int:
    """How many blocks' shared memory a multiprocessor has room for."""
    return target.smem_per_sm // (offsets_of(kernel, target)[2] + target.smem_reserved)


def _end(offsets: dict[Value, int]) -> int:
    return max((at + b.type.bytes for b, at in offsets.items()), default=0)


def _offsets(kept: list[Value], live: dict[Value, tuple[Role | None, tuple[int, int]]], beside: set[Value],
             apart: Callable[[Value, Value], bool]) -> dict[Value, int]:
    """The largest first, each as low as those allow that are in use beside it, or are to be apart from it."""
    offsets: dict[Value, int] = {}
    together = lambda a, b: live[a][0] is not live[b][0] or meet(live[a][1], live[b][1])
    for b in sorted(kept, key=lambda v: (v in beside, -v.type.bytes, live[v][1][0])):
        align = 8 if isinstance(b.type, Mbarrier) else ALIGN
        if b in beside:  # a descriptor's leading offset counts upwards: behind all that it could be counted from
            offsets[b] = -(-_end(offsets) // align) * align
            continue
        taken = sorted((offsets[o], offsets[o] + o.type.bytes) for o in offsets if together(o, b) or apart(o, b))
        at = 0
        for low, high in taken:
            if at + b.type.bytes <= low:
                break
            at = max(at, -(-high // align) * align)
        offsets[b] = at
    return offsets
