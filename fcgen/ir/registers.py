"""What fragments take of the registers of a thread."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from .core import Block, Kernel, Value
from .layout import OpaqueLayout
from .op_table import having
from .target import Target
from .types import Frag, Pending

#: ops whose results are made again where they are used
VIEWS = having("cheap") | {"transpose"}


def frag_words(t: object) -> int:
    """32-bit registers of a fragment."""
    t = t.frag if isinstance(t, Pending) else t
    if not isinstance(t, Frag):
        return 0
    if isinstance(t.layout, OpaqueLayout):
        return prod(t.shape) // prod(t.layout.parts) * t.dtype.bytes // 4 // 32 * (1 if t.layout.role == "acc" else 2)
    return -(-t.layout.regs * max(t.dtype.bits, 8 if t.dtype.bits == 1 else 0) // 32)


def at_launch(target: Target, threads: int, blocks: int) -> int:
    """What a thread can have where so many blocks share a multiprocessor: each of its four schedulers has a quarter of the registers."""
    return target.regs_per_sm // 4 // (-(-threads * blocks // 128) * 32) // 8 * 8


def limit_of(kernel: Kernel, target: Target) -> int:
    """What a thread of the role that has most can have."""
    launch = at_launch(target, kernel.warps * 32, kernel.meta.get("min_blocks", 1) or 1)
    return min(target.regs_per_thread, max(r.regs or launch for r in kernel.roles))


def least(body: Block) -> int:
    """Registers that the fragments of a loop's body take for certain: of those live between two of its ops, without what can be made again
    from others. A body in it counts for what it reads."""
    made = {r: o for o in body.ops for r in o.results}

    def held(values: Iterable[Value]) -> set[Value]:
        out: set[Value] = set()
        for v in values:
            op = made.get(v)
            out |= held(op.operands) if op is not None and op.kind in VIEWS else {v} if frag_words(v.type) else set()
        return out

    live = around = held(body.reads)
    most = 0
    for op in reversed(body.ops):
        if op.kind not in VIEWS:
            live = (live - set(op.results)) | around | held(op.reads)
            most = max(most, sum(frag_words(v.type) for v in live))
    return most
