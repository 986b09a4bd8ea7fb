"""sender: bulk stores of loops are started, and waited for, by a thread of its own; with `Schedule.sender`.

In: selected machine IR whose first role is one thread, with the waits and arrivals of its other channels. Out: the same, where a tile that
a loop stages for a bulk store travels through a channel: warps wait until its slot is free, stage, say that it is full and go on. The role
`send`, a warp beside the one that copies, walks the same loops: it waits for the warps of each part, starts the part's store, and frees the
slot when the engine has read it (`sync` puts that wait there). Of the tiles that a block works through it hears as the warps do that
compute. A tile that products read too stays with the warps that compute, who wait for all of it anyway. A tile that is added in turn waits
for it there, and ends it when it has been written. So no warp that computes issues a store, or waits for one. Guaranteed: a channel has a
second slot where that costs no block its room.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from ...errors import FcError
from ...ir.core import Block, Kernel, Op, Role, Value, definitions, walk, walk_kernel
from ...ir.lifetimes import WRITES
from ...ir.named_barriers import WARPGROUP, is_one_thread
from ...ir.ops import has_effect
from ...ir.rewrite import Builder, Env, copy_block, map_bodies, remove_dead, substitute_block
from ...ir.rings import beginnings, ring_of
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.tile_ops import in_turn
from ...ir.types import Frag
from ..facts.common import without_effect
from ..facts.stores import out_of_turn, stored_alone
from ..memory.channels import Channel
from ..memory.cursors import thread_cursors
from .alloc import side_by_side

#: warps of the warpgroup that copies which are the sender's
WARPS = 2


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if not schedule.sender:
        return _in_turn(kernel)
    main, first = kernel.roles[-1], kernel.roles[0]
    alone = stored_alone(kernel)
    stores = [o for loop in walk(main.body) if loop.kind == "for" for o in walk(loop.regions[0]) if o.kind == "tma_store"]
    sent = {o.operands[-1]: o["parts"] for o in stores if o.operands[-1] in alone}
    read = _channels(main.body, {o.operands[-1] for o in stores})
    if not sent and not read:
        raise without_effect("sender", "no loop stores a tile by bulk copies that no product reads", got=True)
    odd = next((o for o in stores if o.get("turn") or o.operands[-1] not in alone), None)
    if odd is not None and schedule.persistent != "none":
        raise FcError("compile/unsupported", "a thread that stores what products read, or adds in turn, does so for one tile of the grid",
                      loc=odd.loc, expected='persistent="none"', got=schedule.persistent)
    if len(kernel.roles) == 1 or not is_one_thread(first) or first.warps != WARPGROUP:
        raise without_effect("sender", "no thread of its own copies tiles", got=True)
    kernel = _through(kernel, sent, read, 2, schedule, target) or _through(kernel, sent, read, 1, schedule, target) or kernel
    odd = next((o for o in walk(kernel.roles[1].body) if o.kind == "row_part" or any(isinstance(v.type, Frag) for v in o.operands)), None)
    if odd is not None:
        raise FcError("compile/unsupported", "whether or where a tile is stored follows from what each warp has, and the role that stores "
                      "is one thread", loc=odd.loc, expected="numbers of the grid and of loops", got=odd.kind, hint="leave sender out")
    return _in_turn(kernel)


def _in_turn(kernel: Kernel) -> Kernel:
    """All that is stored in turn is stored by the sender."""
    left = next((o for o in walk_kernel(kernel) if o.kind == "tma_store" and o.get("turn")), None)
    if left is not None:
        raise out_of_turn(left)
    return kernel


@dataclass(frozen=True)
class _Read:
    """A channel that there is, as its reader sees it: the position that it begins with, what is waited for and what is arrived at."""

    begin: Value
    full: Value
    empty: Value


def _channels(body: Block, views: set[Value]) -> dict[Value, _Read]:
    """Ring of which some of the views are slots -> its channel."""
    begins = beginnings(body)
    at = {o.operands[0]: begins[o.operands[1]] for o in walk(body) if o.kind == "slot" and o.result in views and o.operands[1] in begins}
    bar = lambda kind, begin: next(o.operands[0] for o in walk(body) if o.kind == kind and begins[o.operands[1]] is begin)
    return {ring: _Read(begin, bar("mbar_wait", begin), bar("mbar_arrive", begin)) for ring, begin in at.items()}


def _through(kernel: Kernel, sent: dict[Value, int], read: dict[Value, _Read], slots: int, schedule: Schedule,
             target: Target) -> Kernel | None:
    """The kernel with channels of so many slots; None where more than one take a block its room. read: channels that there are."""
    first, *others, main = kernel.roles
    ring = lambda v: Value(replace(v.type, slots=slots), v.name)
    channels = {v: Channel.between(ring(v), 1, fillers=main.warps // parts, parts=parts) for v, parts in sent.items()}
    body = copy_block(main.body, Env())
    heard = _heard(body)
    walked = {bar for c in read.values() for bar in (c.full, c.empty)}  # whether a slot is stored or not, each is let go once
    met = heard | {o for o in walk(body) if o.kind in ("mbar_wait", "mbar_arrive") and o.operands[0] in walked}
    send = remove_dead(thread_cursors(_sends(body, channels, read, definitions(body), met)))
    staged = thread_cursors(_stages(main.body, {v: c.outlet() for v, c in channels.items()}, read, definitions(main.body)))
    roles = (replace(first, warps=first.warps - WARPS), Role("send", WARPS, send, first.regs), *others,
             replace(main, body=_until_free(staged, read)))
    buffers = (*(v for v in kernel.buffers if v not in channels), *(v for c in channels.values() for v in c.buffers))
    freed = {o.operands[0]: o.get("cluster", 1) for o in heard if o.kind == "mbar_arrive"} | {c.empty: 1 for c in read.values()}
    more = Env({v: Value(replace(v.type, count=v.type.count + n), v.name) for v, n in freed.items()})
    out = map_bodies(replace(kernel, roles=roles, buffers=more.all(buffers)), lambda body: substitute_block(body, more))
    enough = lambda: max(1, min(side_by_side(kernel, target), schedule.min_blocks))
    return out if slots == 1 or side_by_side(out, target) >= enough() else None


def _until_free(body: Block, read: dict[Value, _Read]) -> Block:
    """Behind the last op that uses a channel, all wait until its last slot is free, and so all of them, which are let go in their order:
    what lies over them may be stored from there on."""
    begins, b = beginnings(body), Builder()
    last = {ring: next((o for o in reversed(body.ops) if any(ring in x.operands for x in walk(o))), None) for ring in read}
    for op in body.ops:
        b.loc = b.add(op).loc
        for ring, c in read.items():
            at = next((r for r in op.results if begins.get(r) is c.begin), None) if last[ring] is op else None
            if at is not None:
                for _ in range(ring.type.slots - 1):
                    at = b.emit("advance", at, name=at.name)
                b.do("mbar_wait", c.empty, at, lag=1)
    return b.block(body.args)


def _heard(body: Block) -> set[Op]:
    """The waits and arrivals of numbers that a role tells the others."""
    made = definitions(body)
    at = {made[o.operands[0]].operands[1] for o in walk(body) if o.kind == "fetch"}
    return {o for o in walk(body) if o.kind in ("mbar_wait", "mbar_arrive") and o.operands[1] in at}


def _stages(block: Block, channels: dict[Value, Channel], read: Container[Value], made: Mapping[Value, Op]) -> Block:
    """What is left for the warps that compute."""
    b, env, closes = Builder(), Env(), False
    for op in block.ops:
        b.loc = op.loc
        buffer = next((v for v in op.operands if v in channels), None)
        if op.kind == "bulk_commit" and closes:
            closes = False
            continue
        if op.kind == "tma_store" and ring_of(op.operands[-1], made) in read:
            closes = True
            continue
        if buffer is None:
            b.add(op.within(lambda r: _stages(r, channels, read, made)))
            continue
        c = channels[buffer]
        if op.kind in WRITES and buffer not in env.map:
            env[buffer] = c.view(b)
            c.wait(b)
            b.add(env.reading(op))
        elif op.kind == "tma_store" and buffer in env.map:
            c.release(b)
            del env.map[buffer]
            closes = True
        else:
            raise FcError("compile/unsupported", "a tile is staged for a bulk store in one block and stored in another", loc=op.loc,
                          got=op.kind, hint="leave sender out of the schedule")
    return b.block(block.args)


def _sends(block: Block, channels: dict[Value, Channel], read: Container[Value], made: Mapping[Value, Op], met: Container[Op]) -> Block:
    """What the sender does: the loops and scalars that stores follow from, its waits and arrivals, and the stores."""
    b = Builder()
    for op in block.ops:
        b.loc = op.loc
        c = channels.get(op.operands[-1]) if op.kind == "tma_store" else None
        if c is not None:
            view, turn = c.view(b), in_turn(op)
            where = op.operands[:-1 - len(turn)]
            attrs = {k: a for k, a in op.attrs.items() if k != "turn"}
            if turn:
                b.do("await_turn", *turn)
            for part in range(c.parts):
                c.wait(b, part)
                b.add(replace(op, operands=(*where, view), attrs={**attrs, **c.of_part(part)}))
                b.do("bulk_commit")
            c.release(b, range(c.parts))
            if turn:
                b.do("end_turn", *turn)
        elif op.kind == "tma_store" and ring_of(op.operands[-1], made) in read:
            b.add(op)
            b.do("bulk_commit")
        elif op.regions or op.kind == "yield" or op in met or not has_effect(op):
            b.add(op.within(lambda r: _sends(r, channels, read, made, met)))
    return b.block(block.args)
