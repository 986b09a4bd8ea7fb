"""handed: what the makers' own products lead to is stored for those of the other warps; with `Schedule.made`, part of `prologues`.

In: placed machine IR, in which the dots that the makers make are marked. Out: the same, where a tile that follows from these, and that
other dots read, is stored into a slot of a ring; copies of such work, in loops for masked and for whole tiles, fill the same ring. A bulk
store of such a tile is made from its slot, by the warps that read it. `roles` then gives each side its own copy of the program (`sides`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import FcError
from ...ir.access import Access
from ...ir.core import Block, Kernel, Op, Value, blocks, walk
from ...ir.rewrite import Builder, Env, substitute
from ...ir.schedule import Schedule
from ...ir.store_ops import refusal
from ..facts.common import called, without_effect
from ..facts.jobs import of_makers
from ..facts.stores import is_box

#: of a ring: the makers store one tile while products read the other
SLOTS = 2


def handed(kernel: Kernel, schedule: Schedule) -> Kernel:
    """The kernel with rings for what the makers hand over."""
    theirs = of_makers(kernel.body)
    rings: dict[Any, Value] = {}
    ring_of: dict[Op, Value] = {}
    for block in blocks(kernel.body):
        count: dict[Any, int] = {}
        for stage in (o for o in block.ops if o.kind == "stage" and o.operands[0] in theirs and _for_others(o, block)):
            kind = str(stage.result.type), stage.result.name
            count[kind] = count.get(kind, -1) + 1
            new = Value(replace(stage.result.type, slots=SLOTS), stage.result.name)
            ring_of[stage] = rings.setdefault((kind, count[kind]), new)
    if not rings:
        raise without_effect("made", "no product of the other warps reads what these lead to", got="+".join(schedule.made),
                             expected="dots whose results are worked upon, and are then operands of others")
    body = _stored(kernel.body, ring_of, Env(), schedule.epilogue == "tma")
    return replace(kernel.with_body(body), buffers=(*kernel.buffers, *rings.values()))


def _for_others(stage: Op, block: Block) -> bool:
    """Whether products of the other warps read a staged tile."""
    readers = [o for o in walk(block) if stage.result in o.operands]
    others = [o for o in readers if o.kind == "dot" and not o.get("made")]
    odd = next((o for o in readers if o not in others or o not in block.ops), None)
    if others and odd is not None:
        raise FcError("compile/unsupported", f"{called(stage.result)}, which makers hand over, is read beside products of its block by the "
                      "other warps", loc=odd.loc, got=odd.kind, expected="products of the block that makes it, by one role",
                      hint="name those products in Schedule.made too, or leave out what they follow from")
    return bool(others)


def _stored(block: Block, ring_of: dict[Op, Value], env: Env, bulk: bool) -> Block:
    """bulk: stores are made by bulk copies."""
    b, tiles = Builder(), {o.operands[0]: o for o in block.ops if o in ring_of}
    for op in block.ops:
        b.loc = op.loc
        sent = bulk and op.kind == "store" and is_box(op) and not op.get("turn")
        stage = op if op in ring_of else tiles.get(op.operands[1]) if sent else None
        if stage is None or (sent and refusal(Access.of(op), t := ring_of[stage].type, t.shape[0]) is not None):
            b.add(substitute(op.within(lambda r: _stored(r, ring_of, env, bulk)), env))
            continue
        if stage.result not in env.map:
            zero = b.const(0)
            env[stage.result] = view = b.emit("slot", ring_of[stage], zero, ahead=0, made=True, name=stage.result.name)
            b.do("st_shared", env[stage.operands[0]], view, zero, zero)
        if sent:
            b.add(replace(env.reading(op), operands=(*env.all(op.operands[:1]), env[stage.result], *env.all(op.operands[2:]))))
    return b.block(block.args)
