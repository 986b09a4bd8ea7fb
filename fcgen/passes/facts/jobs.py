"""Which values the products of a role of their own (`Schedule.made`) lead to, and who does what with them."""

from __future__ import annotations

from ...ir.core import Block, Op, Value, walk
from ...ir.depends import depending
from ...ir.schedule import Schedule


def of_makers(body: Block) -> set[Value]:
    """What the makers' products make, and what follows from that up to the products of the other warps: these read it in shared memory."""
    ends = lambda op: op.kind != "dot"
    return {v for op in walk(body) if op.kind == "dot" and op.get("made") for v in depending(body, op.result, through=ends)}


def warps_of(dot: Op, schedule: Schedule) -> int:
    """Of the role that makes a dot."""
    return schedule.makers if dot.get("made") else schedule.warps
