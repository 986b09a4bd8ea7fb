"""Which tiles and rows travel through a ring of shared memory before they are read into registers; part of `homes`.

A load that stands in a loop with products, from a place that the loop's index decides, is copied by an engine while the products of the
tiles before it run, if the target's copies can move it: what is computed from it, and what is added to a product, waits for no memory. How
many such rings there are is a matter of room: rows come first, then the smallest tiles. Where a bulk copy fills a ring, one slot is enough
to be ahead, since its readers take it into registers at once; a role that makes operands takes longer, and reads what there is no room for
two of straight from the tensor. Where copies of a loop (for masked and for whole tiles) differ in that, one reading a tile in registers and
another from shared memory, the tile travels through the latter's slots.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from ...ir.access import Access
from ...ir.alignment import WIDEST
from ...ir.core import Block, Op, Value, walk
from ...ir.depends import readers
from ...ir.layout import SmemLayout, native_smem
from ...ir.store_ops import MOST_BOX
from ...ir.types import Buffer, Tile
from ..facts.common import ELEMENTWISE, index_slice, without_effect
from ..facts.stores import bulk_refusal

if TYPE_CHECKING:
    from .homes import Homes

VIEWS = ELEMENTWISE | {"broadcast", "transpose"}
MADE_OF = VIEWS | {"reduce"}
#: bytes that barriers and the like take of shared memory, and tiles of ones beside them
OTHERS, ONES = 1024, 2048


def ring_buffer(t: Tile, slots: int = 1) -> Buffer:
    """A slot that copies fill and registers are read from: rows in the widest swizzle, so that no register layout meets a bank twice."""
    span = t.dtype.bytes * t.shape[-1]
    layout = native_smem(t.shape[-1], t.dtype.bytes) if len(t.shape) == 2 and span % 32 == 0 else SmemLayout(t.shape[-1])
    return Buffer(t.dtype, t.shape, layout, slots)


def find_twins(homes: Homes, stored: set[Value]) -> dict[Value, Value]:
    """Loaded tile at home in registers -> the tile of another copy of its load, which products read as it is stored. Not where a role of
    its own works upon it: another one reads the slots."""
    loads = [o for o, _ in _loads(homes.kernel.body, None)]
    as_stored = {(o["site"], o.result.type): o.result for o in loads if o.result in stored}
    found = {o.result: as_stored.get((o["site"], o.result.type)) for o in loads if o.result not in stored and not _for_makers(homes, o)}
    return {v: twin for v, twin in found.items() if twin is not None}


def find_flights(homes: Homes, stored: set[Value]) -> dict[Value, int]:
    """Loaded tile -> the slots of its ring. stored: loaded tiles that live in shared memory for their dots."""
    sites: dict[str, list[tuple[Op, Block | None]]] = {}
    for op, loop in _loads(homes.kernel.body, None):
        sites.setdefault(op["site"], []).append((op, loop))
    written: set[Value] = {o.operands[0] for o in walk(homes.kernel.body) if o.kind == "store"}
    able = [copies for copies in sites.values()
            if not any(o.result in stored or o.operands[0] in written or _says_where(homes, o.result) for o, _ in copies)
            and any(loop is not None for _, loop in copies) and all(_copied(homes, o, loop, written) for o, loop in copies)
            and (homes.schedule.copy == "tma" or _in_all(copies, sites))]
    _check_none([o for copies in sites.values() for o, _ in copies], [o for copies in able for o, _ in copies], stored)
    room = _room(homes, stored)
    able.sort(key=lambda c: (len(c[0][0].result.type.shape), ring_buffer(c[0][0].result.type).bytes))
    fewest = 1 if homes.schedule.copy == "tma" else 2
    out: dict[Value, int] = {}
    deepest = homes.schedule.slots
    for more in range(max(1, deepest)):  # a ring for each comes before deeper rings for some
        for copies in able:
            t, named = copies[0][0].result.type, copies[0][0].get("stages")
            few = 2 if _for_makers(homes, copies[0][0]) else fewest
            if named == 0:
                continue
            slots = named or few + more
            if (named is None and deepest < few) or (more and slots > deepest):
                continue
            size = ring_buffer(t, slots).bytes - (ring_buffer(t, slots - 1).bytes if more else 0)
            if (more and out.get(copies[0][0].result) != slots - 1) or (named and (more or named < fewest)) or (not named and size > room):
                continue
            room -= size
            out.update((o.result, slots) for o, _ in copies)
    return out


def _in_all(copies: list[tuple[Op, Block | None]], sites: dict[str, list[tuple[Op, Block | None]]]) -> bool:
    """Whether all loops that walk the same tiles have the load: those for masked and for whole tiles share the rings that they fill."""
    mine = {loop for _, loop in copies if loop is not None}
    found = [{loop for _, loop in others if loop is not None} for others in sites.values()]
    return all(loops <= mine for loops in found if loops & mine)


def _for_makers(homes: Homes, op: Op) -> bool:
    """Whether a tile is only read by a role that makes operands, which can as well read it from its tensor, a few rows at a time."""
    @cache
    def made(v: Value) -> bool:
        users = homes.uses.get(v, ())
        return bool(users) and all((u.kind == "dot" and v in u.operands[:2]) or (u.kind in MADE_OF and made(u.result)) for u in users)

    rows = next((a for a in Access.of(op).axes if a.along == 0), None)
    return homes.schedule.makers > 0 and len(op.result.type.shape) == 2 and rows is not None and rows.is_run and made(op.result)


def _check_none(loads: list[Op], able: list[Op], stored: set[Value]) -> None:
    """Loads that shall have no ring could have one."""
    none = [o for o in loads if o.get("stages") == 0]
    fixed = next((o for o in none if o.result in stored), None)
    if fixed is not None or (none and not any(o in able for o in none)):
        op = fixed or none[0]
        why = "is an operand of a dot as it is" if fixed else "travels through no ring anyway"
        raise without_effect("stages", f"%{op['site']} {why}",
                             expected="0 for a tile that is worked upon, or added to a product", got=0, loc=op.loc)


def _loads(block: Block, loop: Block | None) -> list[tuple[Op, Block | None]]:
    """Each load of a tile, with the body of the loop that it stands in directly, if that loop has products."""
    out: list[tuple[Op, Block | None]] = []
    for op in block.ops:
        if op.kind == "load" and op.results and isinstance(op.result.type, Tile):
            out.append((op, loop))
        for r in op.regions:
            inner = r if op.kind == "for" and not op.get("unroll") and any(o.kind == "dot" for o in walk(r)) else None
            out += _loads(r, inner)
    return out


def _says_where(homes: Homes, v: Value) -> bool:
    """Whether other reads hang on these numbers: such are wanted in registers, an iteration before the tile that they lead to."""
    return any(u.kind == "gather" for _, u in readers(v, homes.uses, lambda _, u: u.kind in VIEWS))


def _copied(homes: Homes, op: Op, loop: Block | None, written: set[Value]) -> bool:
    """Whether an engine of the target can copy the tile, ahead of its readers."""
    t, copy = op.result.type, homes.schedule.copy
    if Access.of(op).listed:
        return False
    if copy == "tma":
        boxed = ring_buffer(t).layout.panel <= MOST_BOX and t.shape[-1] * t.dtype.bytes % WIDEST == 0
        boxed = boxed and op.operands[0].type.dtype.bits <= 32
        return boxed and len(t.shape) <= 2 and bulk_refusal(op, homes.kernel, homes.defs, "") is None
    run = next(n for n in range(homes.widest(op), 0, -1) if t.shape[-1] % n == 0)
    ahead = loop is None or index_slice(loop, op.operands[1:], written) is not None
    return copy == "cp_async" and run * t.dtype.bytes >= 4 and ahead and len(t.shape) <= 2


def _room(homes: Homes, stored: set[Value]) -> int:
    """Bytes of shared memory that nothing else is known to take. Tiles that wait for bulk stores share bytes where the block would not fit
    without that, as in `alloc`; those behind the loops also with what is staged in the loops, in a block that ends there."""
    schedule, target = homes.schedule, homes.target
    room = min(target.smem_per_block, target.smem_per_sm // schedule.min_blocks - target.smem_reserved)
    room -= ONES if schedule.ones else OTHERS
    rings: dict[str, int] = {}
    for op, loop in _loads(homes.kernel.body, None):
        if op.result in stored:
            slots = op.get("stages", schedule.slots) if loop is not None else 1
            rings[op["site"]] = max(rings.get(op["site"], 0), slots * _bytes(op.result.type))
    staged: dict[Any, int] = {}
    sent: dict[Value, int] = {}
    looped: dict[Value, int] = {}
    inside = {o for f in walk(homes.kernel.body) if f.kind == "for" for o in walk(f.regions[0])}
    for op in walk(homes.kernel.body):
        if op.kind == "dot":
            for n, v in enumerate(op.operands[:2]):
                held = n == 0 and op["math"] in ("mma", "wgmma") and homes.in_registers(op)
                if homes.source(v)[0] not in stored and not held:
                    slots = 2 if (n and op["math"] == "wgmma") or v in homes.handed else 1  # made ahead
                    staged[op["site"], n] = slots * _bytes(v.type)
        elif op.kind == "store" and schedule.copy == "tma" and schedule.epilogue in ("tma", "smem") and len(op.operands[1].type.shape) == 2:
            (looped if op in inside and schedule.persistent == "none" else sent)[op.operands[0]] = _bytes(op.operands[1].type)
    room -= sum(rings.values())
    mine = sum(staged.values()) + sum(looped.values())
    if schedule.persistent != "none":
        apart = room - mine - sum(sent.values())
        return apart if apart >= 0 else room - mine - max(sent.values(), default=0)
    return room - max(mine, max(sent.values(), default=0))


def _bytes(t: Tile) -> int:
    return prod(t.shape) * t.dtype.bytes
