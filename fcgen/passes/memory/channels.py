"""Channels: rings of shared-memory slots with a `full` and an `empty` barrier each, and which loads share one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...ir.core import Block, Kernel, Op, Value, free_values, walk
from ...ir.layout import SmemLayout
from ...ir.schedule import Schedule
from ...ir.types import Buffer, Cursor, Mbarrier, i32
from ..facts.common import loaded_name


@dataclass(eq=False)
class Channel:
    """again: other blocks read the same tiles, so L2 should keep them. blocks: how many of a cluster fill it together, and free its slots
    together. cursor: stands for the channel's position until `thread_cursors`
    gives each role values of its own."""

    ring: Value
    full: Value
    empty: Value
    again: bool = False
    blocks: int = 1
    cursor: Value = field(init=False)

    def __post_init__(self) -> None:
        self.cursor = Value(Cursor(self.full.type.slots), self.ring.name)

    def among(self, word: str) -> dict[str, Any]:
        """The attribute that says how many blocks an op of the channel reaches, where it is more than its own."""
        return {word: self.blocks} if self.blocks > 1 else {}


def find_channels(loads: list[Op], body: Block, schedule: Schedule, shared: Mapping[int, int],
                  readers: Mapping[int, int]) -> dict[int, Channel]:
    """The channel of each load. Copies of one load of the spec (in front of a loop, in its copies, after it) share one, since their tiles
    follow each other; they do not where two of them are held at a time. shared: how many blocks share the copies of a load, by its id;
    readers: how many warps read it."""
    inside = {id(o) for f in walk(body) if f.kind == "for" for o in walk(f.regions[0])}
    groups: dict[Any, list[Op]] = {}
    for o in loads:
        key = o["site"]
        groups.setdefault(key if not _held_together(groups.get(key, []), o, body) else id(o), []).append(o)
    out = {}
    for ops in groups.values():
        name = loaded_name(ops[0])
        slots = ops[0].get("stages", schedule.slots if any(id(o) in inside for o in ops) else 1)
        blocks = min(shared.get(id(o), 1) for o in ops)
        channel = Channel(Value(replace(ops[0].result.type, slots=slots), name), Value(Mbarrier(1, slots), f"{name}_full"),
                          Value(Mbarrier(readers[id(ops[0])] * blocks, slots), f"{name}_empty"), any(id(o) in inside for o in ops), blocks)
        out.update({id(o): channel for o in ops})
    return out


def mailbox(kernel: Kernel, schedule: Schedule) -> Channel:
    """The channel through which `main` learns its next tile: whether there is one, and the program's index on each axis."""
    slots, numbers = 2, 1 + len(kernel.grid)
    return Channel(Value(Buffer(i32, (numbers,), SmemLayout(numbers), slots), "next"), Value(Mbarrier(1, slots), "next_full"),
                   Value(Mbarrier(schedule.warps + schedule.makers, slots), "next_empty"))


def _held_together(others: list[Op], load: Op, body: Block) -> bool:
    """Whether a tile of `others` is still read after `load` stands, in the block of both or around it."""
    for block in _blocks(body):
        at = [n for n, o in enumerate(block.ops) if o is load or any(x is load for r in o.regions for x in walk(r))]
        for other in others:
            mine = [n for n, o in enumerate(block.ops) if o is other]
            if mine and at and mine[0] <= at[0] <= max(readers(other.result, block), default=mine[0]):
                return True
    return False


def _blocks(block: Block) -> list[Block]:
    return [block, *(b for o in block.ops for r in o.regions for b in _blocks(r))]


def tile_bytes(ring: Buffer) -> int:
    """What a copy of one tile brings: all panels, with the rows and columns outside the tensor as zeros."""
    n = ring.dtype.bytes
    for s in ring.shape:
        n *= s
    return n


def readers(v: Value, block: Block) -> list[int]:
    return [n for n, o in enumerate(block.ops) if v in o.operands or any(v in free_values(r) for r in o.regions)]
