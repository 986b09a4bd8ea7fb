"""roles: copies into shared memory become a role of their own, which runs ahead of the one that computes.

In: placed machine IR with one role, for targets with bulk tensor copies and `copy="tma"`. Out: two roles. Every load into shared memory
becomes a *channel*: a ring of slots with `full` and `empty` barriers, filled by the role `load` and read by the role `main`. `load` keeps
the control flow and the scalars that its copies follow from; `main` keeps everything else. A tile is waited for in front of its first
reader and released after its last one. Cursors, which count a channel's tiles, are carried through loops and branches.

The grid becomes explicit here: a block takes its own tile (`block_index`), or, with `persistent`, works through the grid's tiles, in
steps of the number of blocks or as it claims them; claimed tiles reach `main` through a channel of one number.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import FcError
from ..ir.core import Block, Builder, Env, Kernel, Op, Role, Value, copy_block, copy_op, free_values, remove_dead, substitute, walk
from ..ir.layout import SmemLayout
from ..ir.ops import has_effect
from ..ir.schedule import Schedule
from ..ir.target import Target
from ..ir.types import Buffer, Cursor, Mbarrier, Scalar, i32
from .cursors import thread_cursors
from .tiles import Tiles

#: consumer warpgroups -> registers per thread (producer, consumers); setmaxnreg takes multiples of 8 and moves what the block got at launch
TOKENS = 1  # the first of the named barriers that pass a token around
REGISTERS = {1: (56, 240), 2: (40, 232), 3: (32, 160), 4: (24, 112)}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if schedule.copy != "tma":
        return kernel
    groups = schedule.warps // 4
    loads = [o for o in walk(kernel.body) if o.kind == "load" and isinstance(o.result.type, Buffer)]
    channels = _channels(loads, kernel.body, schedule)
    box = _mailbox(kernel, schedule) if schedule.persistent != "none" else None
    filled = _Filler(channels, schedule.hints).block(kernel.body)
    read = _Reader(channels, schedule.tokens).block(kernel.body)
    roles = []
    regs = REGISTERS[groups]
    if loads or box:
        roles.append(Role("load", 4, remove_dead(thread_cursors(_grid(kernel, filled, schedule, box, True))), regs[0]))
    roles.append(Role("main", schedule.warps, thread_cursors(_grid(kernel, read, schedule, box, False)), regs[1] if roles else 0))
    every = dict.fromkeys([*channels.values(), *([box] if box else [])])
    buffers = [b for c in every for b in (c.ring, c.full, c.empty)]
    return replace(kernel, roles=tuple(roles), buffers=(*kernel.buffers, *buffers)).with_meta(
        stage="pipelined", persistent=schedule.persistent
    )


@dataclass(eq=False)
class Channel:
    """again: other blocks read the same tiles, so L2 should keep them. cursor: stands for the channel's position until `thread_cursors`
    gives each role values of its own."""

    ring: Value
    full: Value
    empty: Value
    again: bool = False
    cursor: Value = field(init=False)

    def __post_init__(self) -> None:
        self.cursor = Value(Cursor(self.full.type.slots), self.ring.name)


def _channels(loads: list[Op], body: Block, schedule: Schedule) -> dict[int, Channel]:
    """The channel of each load. Copies of one load of the spec (in front of a loop, in its copies, after it) share one, since their tiles
    follow each other; they do not where two of them are held at a time."""
    inside = {id(o) for f in walk(body) if f.kind == "for" for o in walk(f.regions[0])}
    groups: dict[Any, list[Op]] = {}
    for o in loads:
        key = (o.operands[0], o.result.type, o["index"], o.loc)
        groups.setdefault(key if o.loc is not None and not _held_together(groups.get(key, []), o, body) else id(o), []).append(o)
    out = {}
    for ops in groups.values():
        name = ops[0].result.name or "tile"
        slots = (
            schedule.stages_of(name)
            if any(id(o) in inside for o in ops) or name in dict(schedule.stages if isinstance(schedule.stages, tuple) else ())
            else 1
        )
        channel = Channel(Value(replace(ops[0].result.type, slots=slots), name), Value(Mbarrier(1, slots), f"{name}_full"),
                          Value(Mbarrier(schedule.warps, slots), f"{name}_empty"), any(id(o) in inside for o in ops))
        out.update({id(o): channel for o in ops})
    return out


def _mailbox(kernel: Kernel, schedule: Schedule) -> Channel:
    """The channel through which `main` learns its next tile: whether there is one, and the program's index on each axis."""
    slots, numbers = 2, 1 + len(kernel.grid)
    return Channel(Value(Buffer(i32, (numbers,), SmemLayout(numbers), slots), "next"), Value(Mbarrier(1, slots), "next_full"),
                   Value(Mbarrier(schedule.warps, slots), "next_empty"))


def _held_together(others: list[Op], load: Op, body: Block) -> bool:
    """Whether a tile of `others` is still read after `load` stands, in the block of both or around it."""
    for block in _blocks(body):
        at = [n for n, o in enumerate(block.ops) if o is load or any(x is load for r in o.regions for x in walk(r))]
        for other in others:
            mine = [n for n, o in enumerate(block.ops) if o is other]
            if mine and at and mine[0] <= at[0] <= max(_readers(other.result, block), default=mine[0]):
                return True
    return False


def _blocks(block: Block) -> list[Block]:
    return [block, *(b for o in block.ops for r in o.regions for b in _blocks(r))]


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
                size = _bytes(channel.ring.type)
                view = b.emit("slot", channel.ring, channel.cursor, ahead=0, name=channel.ring.name)
                b.do("mbar_wait", channel.empty, channel.cursor, lag=1)
                b.do("mbar_expect", channel.full, channel.cursor, bytes=size)
                hint: dict[str, Any] = {"hint": "evict_last" if channel.again else "evict_first"} if self.hints else {}
                b.do("tma_load", *env.all(op.operands), view, channel.full, channel.cursor, index=op["index"], guard=op["guard"], **hint)
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


def _bytes(ring: Buffer) -> int:
    """What a copy of one tile brings: all panels, with the rows and columns outside the tensor as zeros."""
    n = ring.dtype.bytes
    for s in ring.shape:
        n *= s
    return n


class _Reader:
    """The role that computes: a load is a view of the channel's slot, waited for and released around its readers."""

    def __init__(self, channels: dict[int, Channel], turns: bool):
        self.channels, self.turns = channels, turns
        self.inner: dict[int, list[tuple[Value, Channel]]] = {}  # branch -> the tiles that are let go inside it

    def block(self, block: Block) -> Block:
        return self._block(copy_marked(block, self.channels))

    def _block(self, marked: tuple[Block, dict[int, Channel]]) -> Block:
        block, channels = marked
        return self._walk(block, channels)

    @staticmethod
    def release(channels: list[Channel], b: Builder) -> None:
        for c in channels:
            b.do("mbar_arrive", c.empty, c.cursor)
            b.do("advance", c.cursor)

    def drains(self, block: Block, channels: dict[int, Channel]) -> tuple[dict[int, list[Op]], dict[int, list[Op]]]:
        """Loops over the tiles that all rows together need and this group's own do not: they are let go unread. (In front of op n, after
        op n) of the block."""
        before: dict[int, list[Op]] = {}
        after: dict[int, list[Op]] = {}
        for op in block.ops:
            if op.kind != "narrow" or op["end"] == "inner":
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

    def _walk(self, block: Block, channels: dict[int, Channel], passed: tuple[tuple[Value, Channel], ...] = ()) -> Block:
        """passed: tiles of an outer block whose last reader is in here, or in the other branch: this block lets them go."""
        env = Env()
        spans = {id(o): _readers(o.result, block) for o in block.ops if id(o) in channels}
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
            span = _readers(v, block)
            if span and block.ops[span[-1]].kind == "if":
                self.inner.setdefault(id(block.ops[span[-1]]), []).append((v, c))
            else:
                last.setdefault(span[-1] if span else -1, []).append(c)
        b = Builder()
        before, after = self.drains(block, channels)
        self.release(last.get(-1, []), b)
        for n, op in enumerate(block.ops):
            b.loc = op.loc
            b.ops += [substitute(o, env) for o in before.get(n, ())]
            for c in first.get(n, ()):
                b.do("mbar_wait", c.full, c.cursor, lag=0)
            if op.kind == "narrow":
                env[op.result] = env[op.operands[1]]
            elif id(op) in channels:
                c = channels[id(op)]
                env[op.result] = b.emit("slot", c.ring, c.cursor, ahead=0, name=c.ring.name)
            else:
                inner = tuple(self.inner.get(id(op), ()))
                b.add(substitute(replace(op, regions=tuple(self._walk(r, channels, inner) for r in op.regions)), env))
            self.release(last.get(n, []), b)
            b.ops += [substitute(o, env) for o in after.get(n, ())]
        return b.block(block.args)


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


def _readers(v: Value, block: Block) -> list[int]:
    return [n for n, o in enumerate(block.ops) if v in o.operands or any(v in free_values(r) for r in o.regions)]


# ---- the grid ----------------------------------------------------------------------------------------------------------


def _grid(kernel: Kernel, body: Block, schedule: Schedule, box: Channel | None, fills: bool) -> Block:
    """The role's body for one tile, put under what hands out tiles. Block arguments stay (the printer's grid), unread."""
    args = tuple(Value(Scalar(i32), a.name) for a in kernel.body.args)
    b = Builder()
    if schedule.tokens and not fills:
        b.do("token_start", id=TOKENS)
    index = b.emit("block_index", name="block") if fills or box is None else args[0]
    if box is not None and not fills:
        return _taking(kernel, body, box, args, b)
    tiles = Tiles(kernel, schedule, b)
    if box is None:
        b.ops += _inline(body, tiles.decode(index, b))
        return b.block(args)
    step = b.emit("block_count", name="blocks") if schedule.persistent == "static" else None
    t, inner = Value(Scalar(i32), "t"), Builder()
    tile = tiles.decode(t, inner)
    _tell(box, [inner.emit("const", value=1, dtype="i32"), *(tile[n] for n in range(len(kernel.grid)))], inner)
    inner.ops += _inline(body, tile)
    if step is not None:
        after = inner.emit("add", t, step, name="t")
    else:
        inner.ops, after = _with_claim(inner.ops)
    inner.do("yield", inner.emit("lt", after, tiles.total), after)
    b.add(Op("while", (b.emit("lt", index, tiles.total), index), (Value(Scalar(i32), "t"),), {}, (inner.block((t,)),)))
    _tell(box, [b.emit("const", value=0, dtype="i32")] * (1 + len(kernel.grid)), b)
    if step is None:
        b.do("claim_done")
    return b.block(args)


def _with_claim(ops: list[Op]) -> tuple[list[Op], Value]:
    """The tile's ops with the claim of the next tile in front of its last copy: late, so that longest-first keeps its meaning, and early
    enough that the answer is there when it is needed."""
    n = max(
        (n for n, o in enumerate(ops) if o.kind == "mbar_wait" or any(x.kind == "mbar_wait" for r in o.regions for x in walk(r))),
        default=-1,
    )
    claim = Value(Scalar(i32), "t")
    if n >= 0 and ops[n].kind == "if":
        op, regions = ops[n], []
        for r in op.regions:
            inner, got = _with_claim(list(r.ops[:-1]))
            last = r.ops[-1]
            regions.append(Block(r.args, (*inner, replace(last, operands=(*last.operands, got)))))
        return [*ops[:n], replace(op, regions=tuple(regions), results=(*op.results, claim)), *ops[n + 1:]], claim
    at = n if n >= 0 and ops[n].kind == "mbar_wait" else len(ops)
    return [*ops[:at], Op("claim", (), (claim,)), *ops[at:]], claim


def _tell(box: Channel, numbers: list[Value], b: Builder) -> None:
    view = b.emit("slot", box.ring, box.cursor, ahead=0, name="next")
    b.do("mbar_wait", box.empty, box.cursor, lag=1)
    b.do("post", *numbers, view)
    b.do("mbar_expect", box.full, box.cursor, bytes=0)
    b.do("advance", box.cursor)


def _hear(kernel: Kernel, box: Channel, b: Builder) -> tuple[Value, list[Value]]:
    """Whether there is a tile, and its place on each axis."""
    view = b.emit("slot", box.ring, box.cursor, ahead=0, name="next")
    b.do("mbar_wait", box.full, box.cursor, lag=0)
    more, *tile = (Value(Scalar(i32), name) for name in ("more", *(a.name for a in kernel.grid)))
    b.add(Op("fetch", (view,), (more, *tile)))
    b.do("mbar_arrive", box.empty, box.cursor)
    b.do("advance", box.cursor)
    return b.emit("ne", more, b.emit("const", value=0, dtype="i32")), tile


def _taking(kernel: Kernel, body: Block, box: Channel, args: tuple[Value, ...], b: Builder) -> Block:
    """The reading role works on tiles as it is told of them: where a tile lies was computed once, by the role that runs ahead."""
    go, tile = _hear(kernel, box, b)
    inside = tuple(Value(Scalar(i32), a.name) for a in kernel.grid)
    inner = Builder()
    inner.ops += _inline(body, dict(enumerate(inside)))
    again, after = _hear(kernel, box, inner)
    inner.do("yield", again, *after)
    b.add(Op("while", (go, *tile), tuple(Value(Scalar(i32), a.name) for a in kernel.grid), {}, (inner.block(inside),)))
    return b.block(args)


def _inline(body: Block, tile: dict[int, Value]) -> list[Op]:
    env = Env({a: tile[n] for n, a in enumerate(body.args)})
    return list(copy_block(Block((), body.ops), env).ops)
