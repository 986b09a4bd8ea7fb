"""alternate: a tile that each iteration of a loop stages for products and bulk stores lies in two places in turn.

In: selected machine IR. Out: the same, where a buffer that a loop's body stores once and only its own products and bulk stores read has two
slots, if as many blocks fit a multiprocessor as before. Warps then store the next tile while others still read this one, and one barrier an
iteration, between the store and its readers, is enough. What bulk stores alone read is left to `sender`, if there is one.
Guaranteed: nothing shares bytes with a bulk store for it that did not before.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.core import Block, Kernel, Value, walk_kernel
from ...ir.lifetimes import STORES
from ...ir.rewrite import Builder, Env, map_bodies, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer
from ..facts.stores import stored_alone
from .alloc import offsets_of, side_by_side


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    alone = stored_alone(kernel)
    for buffer in sorted((b for b in kernel.buffers if isinstance(b.type, Buffer) and b.type.slots == 1), key=alone.__contains__):
        bodies = _staged_in(buffer, kernel)
        if not bodies or (buffer in alone and schedule.sender):
            continue
        after = _doubled(buffer, bodies, kernel)
        (shared, *_), (more, _, most) = (offsets_of(k, target, True) for k in (kernel, after))
        fits = most <= target.smem_per_block and more <= (0 if buffer in alone else shared)
        if fits and side_by_side(after, target) >= min(side_by_side(kernel, target), schedule.min_blocks):
            kernel = after
    return kernel


def _staged_in(buffer: Value, kernel: Kernel) -> list[Block]:
    """The bodies of the loop, or of a chain's, that store the tile, all of it and first, and alone read it, by products and bulk
    stores."""
    loops = [o for o in walk_kernel(kernel) if o.kind == "for" and any(buffer in x.operands for x in o.regions[0].ops)]
    users = [[x for x in o.regions[0].ops if buffer in x.operands] for o in loops]
    every = [o for o in walk_kernel(kernel) if buffer in o.operands]
    if len({o.get("chain", n) for n, o in enumerate(loops)}) != 1 or sum(map(len, users)) != len(every):
        return []
    whole = all(store.kind in STORES and store.operands[0].type.shape == buffer.type.shape for store, *_ in users)
    read = all(readers and all(o.kind in ("wgmma", "tma_store") for o in readers) for _, *readers in users)
    return [o.regions[0] for o in loops] if whole and read else []


def _doubled(buffer: Value, bodies: list[Block], kernel: Kernel) -> Kernel:
    """Loops of a chain count their tiles on, so that the index says which of the two it is."""
    ring = Value(replace(buffer.type, slots=2), buffer.name)

    def block(b: Block) -> Block:
        if b not in bodies:
            return replace(b, ops=tuple(o.within(block) for o in b.ops))
        new, env = Builder(), Env()
        for op in b.ops:
            if buffer in op.operands and buffer not in env.map:
                new.loc = op.loc
                env[buffer] = new.emit("slot", ring, b.args[0], ahead=0, name=buffer.name)
            new.add(substitute(op, env))
        return new.block(b.args)

    return replace(map_bodies(kernel, block), buffers=tuple(ring if v is buffer else v for v in kernel.buffers))
