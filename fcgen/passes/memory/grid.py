"""The grid as ops: what a role does for one tile, put under what hands out tiles.

A block takes its own tile (`block_index`), or, with `persistent`, works through the grid's tiles, in steps of the number of blocks or as it
claims them. Where a role copies for the others, it claims and decodes, and they hear of the tile through a channel of a few numbers. Where
there is one role, one thread of it claims the next tile while the others finish this one, and all decode what it posts.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.core import Block, Kernel, Op, Value, walk
from ...ir.rewrite import Builder, Env, copy_block
from ...ir.schedule import Schedule
from ...ir.types import Scalar, i32
from ..facts.common import without_effect
from ..facts.tiles import Tiles
from .channels import Channel

TOKENS = 1  # the first of the named barriers that pass a token around


def over_grid(kernel: Kernel, body: Block, schedule: Schedule, box: Channel | None, fills: bool = True) -> Block:
    """The role's body for one tile, put under what hands out tiles. box: through which the block hears of its next tile. fills: whether it
    copies tiles. Block arguments stay (the printer's grid), unread."""
    args = tuple(Value(Scalar(i32), a.name) for a in kernel.body.args)
    b = Builder()
    if schedule.tokens and not fills:
        b.do("token_start", id=TOKENS)
    told = box if box is not None and box.full is not None else None  # by this role, to another
    if told is not None and not fills:
        return _taking(kernel, body, told, args, b)
    index = b.emit("block_index", name="block")
    tiles = Tiles(kernel, schedule, b)
    if schedule.l2 and tiles.long is None and not tiles.strip:
        raise without_effect("l2", "tiles run in no order that saves reads", got=schedule.l2,
                             expected="another axis beside one along which work differs, or two axes with tiles")
    if schedule.persistent == "none":
        b.ops += _inline(body, tiles.decode(index, b))
        return b.block(args)
    count = b.emit("block_count", name="blocks") if schedule.persistent == "static" else None
    t, inner = Value(Scalar(i32), "tile"), Builder()
    tile = tiles.decode(t, inner)
    if told is not None:
        _tell(told, [inner.const(1), *(tile[n] for n in range(len(kernel.grid)))], inner)
    inner.ops += _inline(body, tile)
    if count is not None:
        after = inner.emit("add", t, count, name="tile")
    elif told is not None:
        inner.ops, after = _with_claim(inner.ops)
    else:
        assert box is not None
        after = _claimed(box, inner)
    inner.do("yield", inner.emit("lt", after, tiles.total, name="more"), after)
    b.add(Op("while", (b.emit("lt", index, tiles.total), index), (Value(Scalar(i32), "tile"),), {}, (inner.block((t,)),)))
    if told is not None:
        _tell(told, [b.const(0)] * (1 + len(kernel.grid)), b)
    if count is None:
        b.do("claim_done")
    return b.block(args)


def _claimed(box: Channel, tile: Builder) -> Value:
    """The next tile's number, in a block of one role: claimed behind the tile's last loop, so that the answer comes while results are
    stored, and heard of at the end."""
    at = 1 + max((n for n, o in enumerate(tile.ops) if any(x.kind == "for" for x in walk(o))), default=-1)
    claim = Value(Scalar(i32), "claimed")
    tile.ops.insert(at, Op("claim", (), (claim,)))
    _tell(box, [claim], tile)
    return _fetch(box, ["tile"], tile)[0]


def _with_claim(ops: list[Op]) -> tuple[list[Op], Value]:
    """The tile's ops with the claim of the next tile in front of its last copy: late, so that longest-first keeps its meaning, and early
    enough that the answer is there when it is needed."""
    waits = lambda o: any(x.kind == "mbar_wait" for x in walk(o))
    n = max((n for n, o in enumerate(ops) if waits(o)), default=-1)
    claim = Value(Scalar(i32), "claimed")
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
    box.fill(b, lambda slot: b.do("post", *numbers, slot))


def _fetch(box: Channel, names: list[str], b: Builder) -> list[Value]:
    view = box.view(b)
    box.wait(b)
    numbers = [Value(Scalar(i32), name) for name in names]
    b.add(Op("fetch", (view,), tuple(numbers)))
    box.release(b)
    return numbers


def _hear(kernel: Kernel, box: Channel, b: Builder) -> tuple[Value, list[Value]]:
    """Whether there is a tile, and its place on each axis."""
    more, *tile = _fetch(box, ["more", *(a.name for a in kernel.grid)], b)
    return b.emit("ne", more, b.const(0), name="go_on"), tile


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
