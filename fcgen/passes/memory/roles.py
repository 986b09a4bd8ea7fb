"""roles: copies into shared memory become a role of their own, which runs ahead of the one that computes.

In: machine IR with one role, for targets with bulk tensor copies and `copy="tma"`. Out: two roles; three where `makers` make operands for
`main`, whose slots pass through channels as well. Every load into shared memory that `pipeline` has left becomes a *channel* between
roles: a ring of slots with `full` and `empty` barriers, filled by the role `load` and read by the role `main`. `load` keeps the control
flow and the scalars that its copies follow from; `main` keeps everything else. A tile is waited for in front of its first reader and
released after its last one.
Cursors, which count a channel's tiles, are carried through loops and branches. In a cluster, a channel whose tiles are the same for all
blocks (`clusters`) is filled by all of them, a part each, and its slots are free when the readers of all blocks have arrived; `make` and
`main` end with a `cluster_sync`.

What a role does for one tile goes under what hands out tiles (`grid`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...errors import FcError, Loc
from ...ir.alignment import promised
from ...ir.core import Block, Kernel, Op, Role, Value, definitions, walk
from ...ir.ops import has_effect
from ...ir.registers import at_launch, least
from ...ir.rewrite import Builder, Env, copy_block, copy_op, remove_dead, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Frag, Scalar, i32
from ..facts.clusters import shared_loads
from ..facts.common import not_ahead, without_effect
from ..facts.stores import check_bulk
from .channels import Channel, find_channels, is_shared_load, mailbox, readers, tile_bytes
from .cursors import thread_cursors
from .grid import over_grid
from .makers import chains, made_channels, rings_made, sides, warps_reading

#: consumer warpgroups, and those of makers -> registers per thread (load, make, main); setmaxnreg takes multiples of 8 and moves what the
#: block got at launch, which is 65536 over its threads
REGISTERS = {(1, 0): (56, 240), (2, 0): (40, 232), (3, 0): (32, 160), (4, 0): (24, 112),
             (1, 1): (40, 168, 240), (2, 1): (24, 104, 192), (3, 1): (24, 72, 128)}
#: the same where a loop of consumers has few left by its fragments: fewer than FEWEST if it stages tiles, whose addresses take registers
#: too; beside makers where it has SHORT too many (masks, which are counted among fragments, lie in predicates)
TIGHT = {(2, 0): (24, 240), (2, 1): (24, 72, 208)}
FEWEST, SHORT = 28, 8
#: of registers, what a thread gets; and the one that copies, where the others' follow from their loops
LEAST, MOST, LOAD = 24, 240, 40


def _registers(groups: int, makes: Block | None, body: Block, schedule: Schedule, target: Target) -> tuple[int, ...]:
    """Of each role; where several blocks share a multiprocessor, what a block gets at launch is less. makes: of the makers, if there are
    any; body: of the consumers."""
    makers = schedule.makers // 4 if makes is not None else 0
    *others, work = REGISTERS[groups, makers]
    loops = [o.regions[0] for o in walk(body) if o.kind == "for" and (makers or any(x.kind == "stage" for x in o.regions[0].ops))]
    need = max(map(least, loops), default=0)
    every = groups + makers + 1
    got = at_launch(target, 128 * every, schedule.min_blocks) * every
    if makes is not None and any(o.kind == "dot" for o in walk(makes)):  # each has its fragments, and as much beside them as the others
        theirs = max((least(o.regions[0]) for o in walk(makes) if o.kind == "for"), default=0)
        left = got - LOAD
        fits = lambda n: max(LEAST, min(MOST, n // 8 * 8))
        work = fits((left + makers * (need - theirs)) // (groups + makers))
        return LOAD, fits((left - groups * work) // makers), work
    if schedule.min_blocks == 1 and need > work + (SHORT if makers else -FEWEST):
        *others, work = TIGHT.get((groups, makers), REGISTERS[groups, makers])
    if schedule.min_blocks > 1:
        others = [min(n, 40) for n in others]
    return *others, min(work, (got - others[0] - makers * others[-1]) // groups // 8 * 8)


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if schedule.copy != "tma":
        return kernel
    groups = schedule.warps // 4
    loads = [o for o in walk(kernel.body) if is_shared_load(o)]
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
    makes, reads = sides(kernel.body, made, schedule) if made else (None, kernel.body)
    warps = warps_reading(loads, {"make": (makes, schedule.makers), "main": (reads, schedule.warps)})
    body, channels = find_channels(kernel.body, schedule, shared_loads(kernel), warps)
    body, outlets = made_channels(body, made, schedule, len(channels))
    if not loads and schedule.persistent == "none" and not any(op.get("math") == "wgmma" for op in walk(kernel.body)):
        raise without_effect("copy", "no tile is loaded into shared memory", got="tma")
    if schedule.slots > 2 and not any(v.type.slots == schedule.slots for v in (*kernel.buffers, *(c.ring for c in channels))):
        raise without_effect("stages", "no loop loads tiles into shared memory", got=schedule.slots)
    box = mailbox(kernel, schedule)
    filled = _Filler(channels, schedule.hints).block(body)
    makes, reads = sides(body, rings_made(body), schedule) if made else (None, body)
    # no block may end while others copy into it or arrive on its barriers
    end = (Op("cluster_sync"),) if any(c.blocks > 1 for c in channels) else ()
    roles = []
    regs = _registers(groups, makes, reads, schedule, target)
    if loads or box:
        filling = remove_dead(thread_cursors(over_grid(kernel, filled, schedule, box, True)))
        on_tiles = next((o for o in walk(filling) for v in o.operands if isinstance(v.type, Frag)), None)
        if on_tiles is not None:
            raise FcError("compile/unsupported", "whether or where a tile is copied follows from another tile, and the role that copies is "
                          "one thread", loc=on_tiles.loc, expected="numbers of the grid, of loops and of single loads", got=on_tiles.kind,
                          hint='copy="cp_async" with math="mma"')
        roles.append(Role("load", 4, filling, regs[0]))
    if makes is not None:  # it works on the tiles of all rows, and waits for no turn
        work = _Reader([*channels, *(c.outlet() for c in outlets)], False, chains(makes)).block(makes)
        make = over_grid(kernel, work, replace(schedule, tokens=False), box, False)
        make = remove_dead(thread_cursors(make))
        roles.append(Role("make", schedule.makers, replace(make, ops=(*make.ops, *end)), regs[1]))
    read = _Reader([*channels, *outlets], schedule.tokens, shared_loops(reads)).block(reads)
    main = thread_cursors(over_grid(kernel, read, schedule, box, False))
    roles.append(Role("main", schedule.warps, replace(main, ops=(*main.ops, *end)), regs[-1] if roles else 0))
    buffers = [v for c in (*channels, *outlets, *([box] if box else [])) for v in c.buffers]
    buffers = [*(v for v in kernel.buffers if v not in made.values()), *buffers]
    return replace(kernel, roles=tuple(roles), buffers=tuple(buffers)).with_meta(stage="pipelined", persistent=schedule.persistent)


def companions(ops: Sequence[Op], channels: Sequence[Channel]) -> list[list[tuple[Op, Channel]]]:
    """Those ops of a block that go through channels, together where their tiles come together, the one that leads in front."""
    out: list[list[tuple[Op, Channel]]] = []
    for op in ops:
        if "channel" in op.attrs:
            channel = channels[op["channel"]]
            led = next((group for group in reversed(out) if channel.lead is not None and group[0][1] is channel.lead), None)
            out.append([(op, channel)]) if led is None else led.append((op, channel))
    return out


class _Filler:
    """The role that copies: loads become waits, announcements and copies; nothing else has an effect."""

    def __init__(self, channels: list[Channel], hints: bool):
        self.channels, self.hints = channels, hints

    def block(self, block: Block) -> Block:
        return self._block(block, Env())

    def _block(self, block: Block, env: Env) -> Block:
        b = Builder()
        args = env.anew(block.args)
        together = {o: [x for x, _ in group] for group in companions([o for o in block.ops if o.kind == "load"], self.channels)
                    for o, _ in group}
        for op in block.ops:
            b.loc = op.loc
            if op.kind == "load" and "channel" in op.attrs:
                channel = self.channels[op["channel"]]
                self.copy(op, channel, together[op], b, env)
            elif op.regions:
                copied = op.within(lambda r: self._block(r, env))
                b.add(replace(copied, operands=env.all(op.operands), results=env.anew(op.results)))
            elif op.kind == "narrow":
                env[op.result] = env[op.operands[0]]
            elif op.kind == "yield" or not has_effect(op):
                b.add(copy_op(op, env))
        return b.block(args)

    def copy(self, op: Op, channel: Channel, together: list[Op], b: Builder, env: Env) -> None:
        """together: the loads of the block whose tiles come with this one's."""
        hint: dict[str, Any] = {"hint": "evict_last" if channel.again else "evict_first"} if self.hints else {}
        assert channel.full is not None and channel.cursor is not None
        bar, at = channel.full, channel.cursor
        env[op.result] = channel.fill(b, lambda view: b.do(
            "tma_load", *env.all(op.operands), view, bar, at, index=op["index"], guard=op["guard"], **hint,
            **channel.among("multicast")), sum(tile_bytes(o.result.type) for o in together), op is together[0], op is together[-1])


class _Reader:
    """A role that works on tiles: a load is a view of the channel's slot, waited for and released around its readers; so is a slot that it
    fills, of an outlet."""

    def __init__(self, channels: Sequence[Channel], turns: bool, shared: set[int]):
        self.channels, self.turns, self.shared = channels, turns, shared
        self.inner: dict[Op, list[tuple[tuple[Value, ...], Channel]]] = {}  # branch -> the tiles that are let go inside it

    def block(self, block: Block) -> Block:
        return self._walk(copy_block(block, Env()))

    def of(self, op: Op) -> Channel | None:
        return self.channels[op["channel"]] if "channel" in op.attrs else None

    def drains(self, block: Block) -> tuple[dict[int, list[Op]], dict[int, list[Op]]]:
        """Loops over the tiles that all rows together need and this group's own do not: they are let go unread. (In front of op n, after
        op n) of the block."""
        before: dict[int, list[Op]] = {}
        after: dict[int, list[Op]] = {}
        for op in block.ops:
            if op.kind != "narrow" or op["end"] == "inner" or op["chain"] in self.shared:
                continue
            at = [(n, [o for o in walk(x) if o.kind == "for" and o.get("chain") == op["chain"]])
                  for n, x in enumerate(block.ops)]
            at = [(n, loops) for n, loops in at if loops]
            if not at:
                continue
            inner = Builder(op.loc)
            inside = [o for _, loops in at for l in loops for o in walk(l.regions[0])]
            for c in dict.fromkeys(c.lead or c for o in inside if (c := self.of(o)) is not None):
                c.wait(inner)
                c.release(inner)
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

    def _walk(self, block: Block, passed: tuple[tuple[tuple[Value, ...], Channel], ...] = (), loc: Loc | None = None) -> Block:
        """passed: tiles of an outer block, those that come together, whose last reader is in here, or in the other branch: this block, at
        `loc`, lets them go."""
        env = Env()
        first: dict[int, list[Channel]] = {}
        last: dict[int, list[Channel]] = {}
        mine: list[tuple[tuple[Value, ...], Channel]] = []
        for group in companions(block.ops, self.channels):
            unread = next((o for o, _ in group if not readers(o.result, block)), None)
            if unread is not None:
                raise FcError("compile/unsupported", "a tile is loaded that nothing in its block reads", loc=unread.loc)
            mine.append((tuple(o.result for o, _ in group), group[0][1]))
            first.setdefault(min(n for v in mine[-1][0] for n in readers(v, block)), []).append(group[0][1])
        for vs, c in (*mine, *passed):  # those of an outer block that are let go in here too
            span = sorted({n for v in vs for n in readers(v, block)})
            if span and block.ops[span[-1]].kind == "if":
                self.inner.setdefault(block.ops[span[-1]], []).append((vs, c))
            else:
                last.setdefault(span[-1] if span else -1, []).append(c)
        b = Builder(loc)
        before, after = self.drains(block)
        for c in last.get(-1, ()):
            c.release(b)
        for n, op in enumerate(block.ops):
            b.loc = op.loc
            b.ops += [substitute(o, env) for o in before.get(n, ())]
            for c in first.get(n, ()):
                c.wait(b)
            if op.kind == "narrow":
                env[op.result] = env[op.operands[op["chain"] not in self.shared]]
            elif (own := self.of(op)) is not None:
                env[op.result] = own.view(b)
            else:
                inner = tuple(self.inner.get(op, ()))
                b.add(substitute(op.within(partial(self._walk, passed=inner, loc=op.loc)), env))
            for c in last.get(n, ()):
                c.release(b)
            b.ops += [substitute(o, env) for o in after.get(n, ())]
        return b.block(block.args)


def shared_loops(body: Block) -> set[int]:
    """Chains of loops in which a tile goes through shared memory: all warps walk them in step, over the tiles of all rows."""
    return {f["chain"] for f in walk(body) if f.kind == "for" and f.get("chain") is not None
            and any(o.kind in ("stage", "st_shared", "combine_across", "cp_async") for o in walk(f.regions[0]))}
