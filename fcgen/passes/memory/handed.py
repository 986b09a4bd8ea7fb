"""handed: what the makers' own products lead to is stored for those of the other warps; with `Schedule.made`, part of `prologues`.

In: placed machine IR, in which the dots that the makers make are marked. Out: the same, where a tile that follows from these, and that other
dots read, is stored into a slot of a ring; copies of such work, in loops for masked and for whole tiles, fill the same ring. `roles` then
gives each side its own copy of the program (`sides`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import FcError
from ...ir.core import Block, Kernel, Op, Value, blocks, walk
from ...ir.rewrite import Builder, Env, substitute
from ...ir.schedule import Schedule
from ..facts.common import called, without_effect
from ..facts.jobs import of_makers

#: of a ring: the makers store one tile while products read the other
SLOTS = 2


def handed(kernel: Kernel, schedule: Schedule) -> Kernel:
    """The kernel with rings for what the makers hand over."""
    theirs = of_makers(kernel.body)
    rings: dict[Any, Value] = {}
    ring_of: dict[Op, Value] = {}
    for block in blocks(kernel.body):
        count: dict[Any, int] = {}
        for stage in (o for o in block.ops if o.kind == "stage" and o.operands[0] in theirs):
            readers = [o for o in walk(block) if stage.result in o.operands]
            others = [o for o in readers if not (o.kind == "dot" and o.get("made")) and o.kind != "unstage"]
            if not others:
                continue
            odd = next((o for o in readers if o not in others), others[0] if any(o not in block.ops for o in others) else None)
            if odd is not None:
                raise FcError("compile/unsupported", f"{called(stage.result)}, which the makers hand over, is read beside the products of the "
                              "other warps", loc=odd.loc, got=odd.kind, expected="products of the block that makes it, by one role",
                              hint="name those products in Schedule.made, or leave out what they follow from")
            kind = str(stage.result.type), stage.result.name
            count[kind] = count.get(kind, -1) + 1
            new = Value(replace(stage.result.type, slots=SLOTS), stage.result.name)
            ring_of[stage] = rings.setdefault((kind, count[kind]), new)
    if not rings:
        raise without_effect("made", "no product of the other warps reads what these lead to", got="+".join(schedule.made),
                             expected="dots whose results are worked upon, and are then operands of others")
    return replace(kernel.with_body(_stored(kernel.body, ring_of, Env())), buffers=(*kernel.buffers, *rings.values()))


def _stored(block: Block, ring_of: dict[Op, Value], env: Env) -> Block:
    b = Builder()
    for op in block.ops:
        b.loc = op.loc
        if op not in ring_of:
            b.add(substitute(op.within(lambda r: _stored(r, ring_of, env)), env))
            continue
        zero = b.const(0)
        env[op.result] = view = b.emit("slot", ring_of[op], zero, ahead=0, made=True, name=op.result.name)
        b.do("st_shared", env[op.operands[0]], view, zero, zero)
    return b.block(block.args)
