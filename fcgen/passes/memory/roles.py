"""roles: copies into shared memory become a role of their own, which runs ahead of the one that computes.

In: placed machine IR with one role, for targets with bulk tensor copies and `copy="tma"`. Out: two roles; three where `makers` make
operands for `main`, whose slots pass through channels as well. Every load into shared memory becomes a *channel*: a ring of slots with
`full` and `empty` barriers, filled by the role `load` and read by the role `main`. Tiles whose rows a vector lists are copied by `main`
where they are read, through registers. `load` keeps the control flow and the scalars that its copies follow from; `main` keeps everything
else. A tile is waited for in front of its first reader and released after its last one.
Cursors, which count a channel's tiles, are carried through loops and branches. In a cluster, a channel whose tiles are the same for all
blocks (`clusters`) is filled by all of them, a part each, and its slots are free when the readers of all blocks have arrived; `main` ends
with a `cluster_sync`.

What a role does for one tile goes under what hands out tiles (`grid`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import FcError, Loc
from ...ir.access import Access
from ...ir.alignment import promised
from ...ir.core import Block, Kernel, Op, Role, Value, definitions, walk
from ...ir.ops import has_effect
from ...ir.registers import least
from ...ir.rewrite import Builder, Env, copy_op, map_bodies, remove_dead, rewrite, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Frag, Scalar, i32
from ..facts.clusters import shared_loads
from ..facts.common import loaded_name, not_ahead, without_effect
from ..facts.stores import check_bulk
from .channels import Channel, find_channels, mailbox, readers, tile_bytes
from .cursors import thread_cursors
from .grid import over_grid
from .makers import chains, made_channels, rings_made, sides, warps_reading
from .pipeline import start_copy

#: consumer warpgroups, and those of makers -> registers per thread (load, make, main); setmaxnreg takes multiples of 8 and moves what the
#: block got at launch, which is 65536 over its threads
REGISTERS = {(1, 0): (56, 240), (2, 0): (40, 232), (3, 0): (32, 160), (4, 0): (24, 112),
             (1, 1): (40, 168, 240), (2, 1): (24, 104, 192), (3, 1): (24, 72, 128)}
#: the same where the fragments of consumers are so many more (masks, which are counted among them, lie in predicates)
TIGHT, SHORT = (24, 72, 208), 8


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if schedule.copy != "tma":
        return kernel
    groups, kernel = schedule.warps // 4, _listed_in_place(kernel, schedule)
    loads = [o for o in walk(kernel.body) if o.kind == "load" and isinstance(o.result.type, Buffer)]
    defs = definitions(kernel.body)
    unheld = next((o for o in walk(kernel.body) if o.kind == "load" and o.get("stages") and not isinstance(o.result.type, Buffer)), None)
    if unheld is not None and promised(kernel) is None:
        raise not_ahead(unheld)
    for op in loads:
        if op.result.type.layout.pad:
            raise FcError("compile/schedule", f"%{op['site']} is stored for plain loads, in padded rows: no bulk copy can", loc=op.loc,
                          expected="dots of wgmma or mma, on tiles of 16 or 8 bits, rows of 32 bytes or a multiple", got=op.result.type,
                          hint='copy="cp_async" with math="mma", or another `math` for the dots that read it')
        check_bulk(op, kernel, defs, 'copy="cp_async" with math="mma"')
    made = rings_made(kernel.body)
    makes, reads = sides(kernel.body, made) if made else (None, kernel.body)
    warps = warps_reading(loads, {"make": (makes, schedule.makers), "main": (reads, schedule.warps)})
    loads = [o for o in loads if warps[id(o)]]
    channels = find_channels(loads, kernel.body, schedule, shared_loads(kernel), warps)
    outputs = made_channels(made, schedule)
    if not loads and schedule.persistent == "none" and not any(op.get("math") == "wgmma" for op in walk(kernel.body)):
        raise without_effect("copy", "no tile is loaded into shared memory", got="tma")
    if schedule.slots > 2 and not any(c.ring.type.slots == schedule.slots for c in channels.values()):
        raise without_effect("stages", "no loop loads tiles into shared memory", got=schedule.slots)
    box = mailbox(kernel, schedule) if schedule.persistent != "none" else None
    filled = _Filler(channels, schedule.hints).block(kernel.body)
    every = {**channels, **outputs}
    roles = []
    regs = REGISTERS[groups, schedule.makers // 4 if makes else 0]
    if regs == REGISTERS[2, 1] and max((least(o.regions[0]) for o in walk(reads) if o.kind == "for"), default=0) > regs[-1] + SHORT:
        regs = TIGHT
    if loads or box:
        filling = remove_dead(thread_cursors(over_grid(kernel, filled, schedule, box, True)))
        on_tiles = next((o for o in walk(filling) for v in o.operands if isinstance(v.type, Frag)), None)
        if on_tiles is not None:
            raise FcError("compile/unsupported", "whether or where a tile is copied follows from another tile, and the role that copies is "
                          "one thread", loc=on_tiles.loc, expected="numbers of the grid, of loops and of single loads", got=on_tiles.kind,
                          hint='copy="cp_async" with math="mma"')
        roles.append(Role("load", 4, filling, regs[0]))
    if makes is not None:  # it works on the tiles of all rows, and waits for no turn
        body = _Reader(every, False, chains(makes), set(outputs.values())).block(makes)
        roles.append(Role("make", schedule.makers, remove_dead(thread_cursors(over_grid(kernel, body, replace(schedule, tokens=False), box,
                                                                                       False))), regs[1]))
    read = _Reader(every, schedule.tokens, shared_loops(reads), set()).block(reads)
    main = thread_cursors(over_grid(kernel, read, schedule, box, False))
    if kernel.cluster > 1:  # no block may end while others copy into it or arrive on its barriers
        main = replace(main, ops=(*main.ops, Op("cluster_sync")))
    roles.append(Role("main", schedule.warps, main, regs[-1] if roles else 0))
    rings = dict.fromkeys([*every.values(), *([box] if box else [])])
    buffers = [*(v for v in kernel.buffers if v not in made.values()), *(b for c in rings for b in (c.ring, c.full, c.empty))]
    return replace(kernel, roles=tuple(roles), buffers=tuple(buffers)).with_meta(stage="pipelined", persistent=schedule.persistent)


def _listed_in_place(kernel: Kernel, schedule: Schedule) -> Kernel:
    """Tiles whose rows a vector lists, which no engine copies in bulk, are copied where they are loaded, through registers."""
    buffers: list[Value] = []

    def rule(op: Op, b: Builder, env: Env) -> bool:
        if op.kind != "load" or not isinstance(op.result.type, Buffer) or not Access.of(op).listed:
            return False
        buffers.append(Value(op.result.type, loaded_name(op)))
        start_copy(op, env.all(op.operands), buffers[-1], schedule, b)
        env[op.result] = buffers[-1]
        return True

    kernel = map_bodies(kernel, lambda body: rewrite(body, rule))
    return replace(kernel, buffers=(*kernel.buffers, *buffers))


class _Filler:
    """The role that copies: loads become waits, announcements and copies; nothing else has an effect."""

    def __init__(self, channels: dict[int, Channel], hints: bool):
        self.channels, self.hints = channels, hints

    def block(self, block: Block) -> Block:
        return self._block(block, Env())

    def _block(self, block: Block, env: Env) -> Block:
        b = Builder()
        args = tuple(Value(a.type, a.name) for a in block.args)
        for old, new in zip(block.args, args):
            env[old] = new
        for op in block.ops:
            b.loc = op.loc
            channel = self.channels.get(id(op))
            if channel is not None:
                size = tile_bytes(channel.ring.type)
                view = b.emit("slot", channel.ring, channel.cursor, ahead=0, name=channel.ring.name)
                b.do("mbar_wait", channel.empty, channel.cursor, lag=1)
                b.do("mbar_expect", channel.full, channel.cursor, bytes=size)
                hint: dict[str, Any] = {"hint": "evict_last" if channel.again else "evict_first"} if self.hints else {}
                b.do("tma_load", *env.all(op.operands), view, channel.full, channel.cursor, index=op["index"], guard=op["guard"], **hint,
                     **channel.among("multicast"))
                b.do("advance", channel.cursor)
                env[op.result] = view
            elif op.regions:
                copied = replace(op, operands=env.all(op.operands), regions=tuple(self._block(r, env) for r in op.regions),
                                 results=tuple(Value(r.type, r.name) for r in op.results))
                for old, res in zip(op.results, copied.results):
                    env[old] = res
                b.add(copied)
            elif op.kind == "narrow":
                env[op.result] = env[op.operands[0]]
            elif op.kind == "yield" or not has_effect(op):
                b.add(copy_op(op, env))
        return b.block(args)


class _Reader:
    """A role that works on tiles: a load is a view of the channel's slot, waited for and released around its readers. fills: channels
    whose slots it stores to; it waits until they are empty, and arrives when they are full."""

    def __init__(self, channels: dict[int, Channel], turns: bool, shared: set[int], fills: set[Channel]):
        self.channels, self.turns, self.shared, self.fills = channels, turns, shared, fills
        self.inner: dict[int, list[tuple[Value, Channel]]] = {}  # branch -> the tiles that are let go inside it

    def block(self, block: Block) -> Block:
        return self._block(copy_marked(block, self.channels))

    def _block(self, marked: tuple[Block, dict[int, Channel]]) -> Block:
        block, channels = marked
        return self._walk(block, channels)

    def release(self, channels: list[Channel], b: Builder) -> None:
        for c in channels:
            if c in self.fills:
                b.do("proxy_fence")  # by those who stored; what reads it comes through the async proxy
                b.do("mbar_arrive", c.full, c.cursor)
            else:
                b.do("mbar_arrive", c.empty, c.cursor, **c.among("cluster"))
            b.do("advance", c.cursor)

    def drains(self, block: Block, channels: dict[int, Channel]) -> tuple[dict[int, list[Op]], dict[int, list[Op]]]:
        """Loops over the tiles that all rows together need and this group's own do not: they are let go unread. (In front of op n, after
        op n) of the block."""
        before: dict[int, list[Op]] = {}
        after: dict[int, list[Op]] = {}
        for op in block.ops:
            if op.kind != "narrow" or op["end"] == "inner" or op["chain"] in self.shared:
                continue
            at = [(n, [o for o in (x, *(y for r in x.regions for y in walk(r))) if o.kind == "for" and o.get("chain") == op["chain"]])
                  for n, x in enumerate(block.ops)]
            at = [(n, loops) for n, loops in at if loops]
            if not at:
                continue
            inner = Builder(op.loc)
            for c in dict.fromkeys(channels[id(o)] for _, loops in at for l in loops for o in walk(l.regions[0]) if id(o) in channels):
                inner.do("mbar_wait", c.full, c.cursor, lag=0)
                self.release([c], inner)
            if self.turns and inner.ops:
                inner.do("turn")
            inner.do("yield")
            every, own = op.operands
            down, first = bool(at[0][1][0].get("descending")), op["end"] == "first"
            low, high = (own, every) if down == first else (every, own)
            loop = Op("for", (low, high), (), {}, (inner.block((Value(Scalar(i32), "unread"),)),), op.loc)
            if inner.ops[:-1]:
                (before if first else after).setdefault(at[0][0] if first else at[-1][0], []).append(loop)
        return before, after

    def _walk(self, block: Block, channels: dict[int, Channel], passed: tuple[tuple[Value, Channel], ...] = (),
              loc: Loc | None = None) -> Block:
        """passed: tiles of an outer block whose last reader is in here, or in the other branch: this block, at `loc`, lets them go."""
        env = Env()
        spans = {id(o): readers(o.result, block) for o in block.ops if id(o) in channels}
        first: dict[int, list[Channel]] = {}
        last: dict[int, list[Channel]] = {}
        for o in block.ops:
            if id(o) in channels:
                span = spans[id(o)]
                if not span:
                    raise FcError("compile/unsupported", "a tile is loaded that nothing in its block reads", loc=o.loc)
                first.setdefault(span[0], []).append(channels[id(o)])
                if block.ops[span[-1]].kind == "if":
                    self.inner.setdefault(id(block.ops[span[-1]]), []).append((o.result, channels[id(o)]))
                else:
                    last.setdefault(span[-1], []).append(channels[id(o)])
        for v, c in passed:  # tiles of an outer block that are let go in here
            span = readers(v, block)
            if span and block.ops[span[-1]].kind == "if":
                self.inner.setdefault(id(block.ops[span[-1]]), []).append((v, c))
            else:
                last.setdefault(span[-1] if span else -1, []).append(c)
        b = Builder(loc)
        before, after = self.drains(block, channels)
        self.release(last.get(-1, []), b)
        for n, op in enumerate(block.ops):
            b.loc = op.loc
            b.ops += [substitute(o, env) for o in before.get(n, ())]
            for c in first.get(n, ()):
                b.do("mbar_wait", *((c.empty, c.cursor) if c in self.fills else (c.full, c.cursor)), lag=int(c in self.fills))
            if op.kind == "narrow":
                env[op.result] = env[op.operands[op["chain"] not in self.shared]]
            elif id(op) in channels:
                c = channels[id(op)]
                env[op.result] = b.emit("slot", c.ring, c.cursor, ahead=0, name=c.ring.name)
            else:
                inner = tuple(self.inner.get(id(op), ()))
                b.add(substitute(replace(op, regions=tuple(self._walk(r, channels, inner, op.loc) for r in op.regions)), env))
            self.release(last.get(n, []), b)
            b.ops += [substitute(o, env) for o in after.get(n, ())]
        return b.block(block.args)


def shared_loops(body: Block) -> set[int]:
    """Chains of loops in which a tile goes through shared memory: all warps walk them in step, over the tiles of all rows."""
    return {f["chain"] for f in walk(body) if f.kind == "for" and f.get("chain") is not None
            and any(o.kind in ("stage", "st_shared", "combine_across") for o in walk(f.regions[0]))}


def copy_marked(block: Block, channels: dict[int, Channel]) -> tuple[Block, dict[int, Channel]]:
    """A copy with values of its own, and which of its ops are the channels' loads."""
    env, marked = Env(), {}

    def copy(b: Block) -> Block:
        args = tuple(Value(a.type, a.name) for a in b.args)
        for old, new in zip(b.args, args):
            env[old] = new
        ops = []
        for op in b.ops:
            regions = tuple(copy(r) for r in op.regions) if op.regions else ()
            made = replace(op, operands=env.all(op.operands), regions=regions, results=tuple(Value(r.type, r.name) for r in op.results))
            for old, res in zip(op.results, made.results):
                env[old] = res
            if id(op) in channels:
                marked[id(made)] = channels[id(op)]
            ops.append(made)
        return Block(args, tuple(ops))

    return copy(block), marked
