"""alternate: a tile that each iteration of a loop stages for products lies in two places in turn.

In: selected machine IR. Out: the same, where a buffer that a loop's body stores once and only its own products read has two slots, if as
many blocks fit a multiprocessor as before. Warps then store the next tile while others still read this one, and one barrier an iteration,
between the store and the products, is enough. Guaranteed: nothing shares bytes with a bulk store for it that did not before.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.core import Block, Builder, Env, Kernel, Value, substitute, walk_kernel
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer
from .alloc import offsets_of

STORES = ("st_shared", "stmatrix")


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    for buffer in [b for b in kernel.buffers if isinstance(b.type, Buffer) and b.type.slots == 1]:
        body = _staged_in(buffer, kernel)
        if body is None:
            continue
        after = _doubled(buffer, body, kernel)
        (shared, _, total), (more, _, most) = offsets_of(kernel, target), offsets_of(after, target)
        fit = lambda n: target.smem_per_sm // (n + target.smem_reserved)
        if most <= target.smem_per_block and more <= shared and fit(most) >= min(fit(total), max(1, schedule.min_blocks)):
            kernel = after
    return kernel


def _staged_in(buffer: Value, kernel: Kernel) -> Block | None:
    """The body of the loop that stores the tile, all of it and first, and whose own products alone read it."""
    bodies = [o.regions[0] for o in walk_kernel(kernel) if o.kind == "for" and any(buffer in x.operands for x in o.regions[0].ops)]
    users = [o for o in walk_kernel(kernel) if buffer in o.operands]
    if len(bodies) != 1 or not all(any(o is x for x in bodies[0].ops) for o in users):
        return None
    store, *readers = users
    whole = store.kind in STORES and store.operands[0].type.shape == buffer.type.shape
    return bodies[0] if whole and readers and all(o.kind == "wgmma" for o in readers) else None


def _doubled(buffer: Value, body: Block, kernel: Kernel) -> Kernel:
    ring = Value(replace(buffer.type, slots=2), buffer.name)

    def block(b: Block) -> Block:
        if b is not body:
            return replace(b, ops=tuple(replace(o, regions=tuple(map(block, o.regions))) if o.regions else o for o in b.ops))
        new = Builder()
        for op in b.ops:
            if buffer in op.operands and buffer not in env.map:
                new.loc = op.loc
                env[buffer] = new.emit("slot", ring, b.args[0], ahead=0, name=buffer.name)
            new.add(substitute(op, env))
        return new.block(b.args)

    env = Env()
    roles = tuple(replace(r, body=block(r.body)) for r in kernel.roles)
    return replace(kernel, roles=roles, buffers=tuple(ring if v is buffer else v for v in kernel.buffers))
