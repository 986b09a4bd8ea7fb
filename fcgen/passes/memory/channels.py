"""Channels: how tiles travel from who fills a ring of shared-memory slots to who reads them, and which loads share a ring.

What says that a slot is full, and that it may be filled again, is the channel's own affair: `fill`, `wait` and `release` write it down.
Where one role fills and another reads, it is an mbarrier per slot for either. Where a role fills for itself, copies are committed as groups
and tiles acquired, and `sync` puts the waits and barriers where they are needed. A load's `mover` is what copies its tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ...errors import Loc
from ...ir.access import Access
from ...ir.core import Block, Kernel, Op, Value, blocks, uses, walk
from ...ir.depends import depending
from ...ir.layout import SmemLayout
from ...ir.rewrite import Builder, edited
from ...ir.schedule import Schedule
from ...ir.types import Buffer, Cursor, Frag, Mbarrier, i32
from ..facts.common import copied_run, copy_threads, loaded_name


@dataclass(eq=False)
class Channel:
    """full, empty: mbarriers, or None where the role that reads fills too. again: other blocks read the same tiles, so L2 should keep them.
    blocks: how many of a cluster fill it together, and free its slots together. cursor: stands for the channel's position until
    `thread_cursors` gives each role values of its own; None where a loop's index says it. made: it is an `outlet`. lead: the channel whose
    barriers and position are this one's too: their tiles come and go together. parts: of a tile, each with barriers of its own."""

    ring: Value
    full: Value | None = None
    empty: Value | None = None
    again: bool = False
    blocks: int = 1
    cursor: Value | None = None
    made: bool = False
    lead: Channel | None = None
    parts: int = 1

    @staticmethod
    def between(ring: Value, readers: int, again: bool = False, blocks: int = 1, fillers: int = 1, parts: int = 1) -> Channel:
        """A channel between roles, with so many warps that read in each of the blocks, and as many that say that a slot is full, of each
        of its parts."""
        slots = ring.type.slots
        bars = lambda count, word: Value(Mbarrier(count, slots * parts), f"{ring.name}_{word}")
        full, empty = bars(fillers, "full"), bars(readers * blocks, "empty")
        return Channel(ring, full, empty, again, blocks, Value(Cursor(slots), ring.name), parts=parts)

    def beside(self, ring: Value) -> Channel:
        """A channel of other tiles that come and go with this one's."""
        return replace(self, ring=ring, lead=self)

    def outlet(self) -> Channel:
        """The channel as a role sees it whose warps store its tiles: a slot is waited for until it is empty, and let go when it is full."""
        return replace(self, full=self.empty, empty=self.full, made=True)

    @property
    def slots(self) -> int:
        return self.ring.type.slots

    @property
    def buffers(self) -> list[Value]:
        return [v for v in (self.ring, *(() if self.lead else (self.full, self.empty))) if v is not None]

    def among(self, word: str) -> dict[str, Any]:
        """The attribute that says how many blocks an op of the channel reaches, where it is more than its own."""
        return {word: self.blocks} if self.blocks > 1 else {}

    def of_part(self, part: int | None) -> dict[str, Any]:
        """The attributes of an op of all warps, each of which means its own part, or of a thread that means this one."""
        return {} if self.parts == 1 else {"parts": self.parts} if part is None else {"parts": self.parts, "part": part}

    def view(self, b: Builder, n: Value | None = None, ahead: int = 0, loc: Loc | None = None) -> Value:
        """The slot so many after the one at the cursor, or without a cursor after that of a loop's tile number n."""
        at = self.cursor or n
        if at is None:
            return self.ring
        return b.emit("slot", self.ring, at, ahead=ahead, name=self.ring.name, loc=loc)

    # ---- the tile at the cursor: between roles, or of one slot -----------------------------------------------------------

    def fill(self, b: Builder, write: Callable[[Value], Any], bytes: int = 0, first: bool = True, last: bool = True) -> Value:
        """Wait for a free slot and write it. bytes: what an engine will bring; else it is full once `write` has been there. Of tiles that
        come together the first one waits, and says what all of them are; the last one goes on to the next slot."""
        view = self.view(b)
        if self.full is None or self.empty is None or self.cursor is None:
            write(view)
            return view
        if first:
            b.do("mbar_wait", self.empty, self.cursor, lag=1)
        if not bytes:
            write(view)
        if first:
            b.do("mbar_expect", self.full, self.cursor, bytes=bytes)
        if bytes:
            write(view)
        if last:
            b.do("advance", self.cursor)
        return view

    def wait(self, b: Builder, part: int | None = None) -> None:
        """part: that one thread waits for; else each warp waits for its own."""
        if self.full is not None and self.cursor is not None:
            b.do("mbar_wait", self.full, self.cursor, lag=int(self.made), **self.of_part(part))

    def release(self, b: Builder, parts: Sequence[int | None] = (None,)) -> None:
        """The tile has been read: its slot may be filled again."""
        if self.empty is not None and self.cursor is not None:
            if self.made:
                b.do("proxy_fence")  # by those who stored; what reads the tile comes through the async proxy
            for part in parts:
                b.do("mbar_arrive", self.empty, self.cursor, **self.among("cluster"), **self.of_part(part))
            b.do("advance", self.cursor)


# ---- who fills -----------------------------------------------------------------------------------------------------------


def is_shared_load(op: Op) -> bool:
    return op.kind == "load" and isinstance(op.result.type, Buffer)


def fills_itself(load: Op, schedule: Schedule) -> bool:
    """Whether the role that reads a tile copies it too. No bulk copy brings rows that a vector lists."""
    return schedule.copy != "tma" or bool(Access.of(load).listed)


def mover(load: Op, schedule: Schedule) -> str:
    """What copies a tile into shared memory: an engine that a role of its own tells ("tma_load"), every thread a part without waiting for
    it ("cp_async", which moves 4 bytes at least), or through registers ("ld_global")."""
    if not fills_itself(load, schedule):
        return "tma_load"
    wide = copied_run(load.result.type.shape, load["vec"], schedule) * load.result.type.dtype.bytes >= 4
    return "cp_async" if wide and schedule.copy in ("cp_async", "tma") else "ld_global"


def start_copy(load: Op, operands: tuple[Value, ...], view: Value, schedule: Schedule, b: Builder) -> None:
    """The copy of one tile by the threads of the role that reads it."""
    t: Any = load.result.type
    vec = copied_run(t.shape, load["vec"], schedule)
    threads = copy_threads(t, load["vec"], schedule)
    attrs = {"index": load["index"], "guard": load["guard"]}
    if mover(load, schedule) == "cp_async":
        attrs |= {"vec": vec} if vec != threads.vector() else {}
        b.do("cp_async", *operands, view, threads=threads, loc=load.loc, **attrs)
        return
    frag = b.emit("ld_global", *operands, type=Frag(t.dtype, t.shape, threads), name=load.result.name, vec=vec, loc=load.loc, **attrs)
    zero = b.const(0)
    b.do("st_shared", frag, view, zero, zero, loc=load.loc)


# ---- which loads share a ring --------------------------------------------------------------------------------------------


def find_channels(body: Block, schedule: Schedule, shared: Mapping[Op, int],
                  warps: Mapping[Op, Mapping[str, int]]) -> tuple[Block, list[Channel]]:
    """The channels between roles, and the body in which each load says the number of its own (`channel`). Copies of one load of the spec
    (in front of a loop, in its copies, after it) share one, since their tiles follow each other; they do not where two of them are held at
    a time. shared: how many blocks share the copies of a load; warps: how many read it, of each role."""
    inside = {o for f in walk(body) if f.kind == "for" for o in walk(f.regions[0])}
    groups: dict[Any, list[Op]] = {}
    for o in (o for o in walk(body) if is_shared_load(o) and warps[o]):
        key = o["site"]
        groups.setdefault(key if not _held_together(groups.get(key, []), o, body) else o, []).append(o)
    channels: list[Channel] = []
    number: dict[Op, int] = {}
    apart = [depending(body, index) for index in body.args] if schedule.hints else []  # what differs along each axis of the grid
    for ops in groups.values():
        looped = any(o in inside for o in ops)
        ring = Value(replace(ops[0].result.type, slots=ops[0].get("stages", schedule.slots if looped else 1)), loaded_name(ops[0]))
        number.update((o, len(channels)) for o in ops)
        beside = _led(ops, ring, body, channels, number, warps)
        blocks, reading = min(shared.get(o, 1) for o in ops), sum(warps[ops[0]].values())
        again = any(of.isdisjoint(v for o in ops for v in o.operands) for of in apart)
        channels.append(beside.beside(ring) if beside and blocks == 1 else Channel.between(ring, reading, again, blocks))

    return edited(body, lambda o: o.with_attrs(channel=number[o]) if o in number else o), channels


def _led(ops: list[Op], ring: Value, body: Block, channels: list[Channel], number: dict[Op, int],
         warps: Mapping[Op, Mapping[str, int]]) -> Channel | None:
    """The channel whose tiles rows come and go with: operands of products alone, loaded in all the same blocks, in front of them, into as
    many slots, for roles that read the tile too, and not read ahead of their iteration; the last of several. Each barrier less is a wait
    less between a loop's products."""
    if len(ring.type.shape) != 1:
        return None
    readers_of = uses(body)
    around = [(block, block.ops.index(o)) for o in ops for block in blocks(body) if o in block.ops]

    def fits(at: int) -> bool:
        lead, tiles = channels[at], [o for o in walk(body) if number.get(o) == at]
        alike = lead.slots == ring.type.slots and lead.blocks == 1 and lead.lead is None and warps[ops[0]].keys() <= warps[tiles[0]].keys()
        beside = [not set(tiles).isdisjoint(block.ops[:n]) for block, n in around]
        dots = all(u.kind == "dot" and not u.get("early") for o in tiles for u in readers_of[o.result])
        return alike and len(tiles) == len(ops) and all(beside) and dots

    return next((c for n, c in reversed([*enumerate(channels)]) if fits(n)), None)


def mailbox(kernel: Kernel, schedule: Schedule) -> Channel | None:
    """The channel through which a block hears of its next tile. Between roles: whether there is one, and the program's index on each axis.
    In a block of one role: the number of the tile that one thread has claimed; what is counted needs no telling."""
    if schedule.persistent == "none":
        return None
    if schedule.copy != "tma":
        return Channel(Value(Buffer(i32, (1,), SmemLayout(1)), "next")) if schedule.persistent == "dynamic" else None
    numbers = 1 + len(kernel.grid)
    return Channel.between(Value(Buffer(i32, (numbers,), SmemLayout(numbers), 2), "next"), schedule.warps + schedule.makers)


def _held_together(others: list[Op], load: Op, body: Block) -> bool:
    """Whether a tile of `others` is still read after `load` stands, in the block of both or around it."""
    for block in blocks(body):
        at = next((n for n, o in enumerate(block.ops) if load in walk(o)), -1)
        for other in (o for o in others if o in block.ops):
            mine = block.ops.index(other)
            if mine <= at <= max(readers(other.result, block), default=mine):
                return True
    return False


def tile_bytes(ring: Buffer) -> int:
    """What a copy of one tile brings: all panels, with the rows and columns outside the tensor as zeros."""
    return prod(ring.shape) * ring.dtype.bytes


def readers(v: Value, block: Block) -> list[int]:
    return [n for n, o in enumerate(block.ops) if v in o.reads]
