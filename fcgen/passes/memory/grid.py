"""The grid as ops: what a role's block does for one tile, put under what hands out tiles.

A block takes its own tile (`block_index`), or, with `persistent`, works through the grid's tiles, in steps of the number of blocks or as it
claims them. The role that copies decodes a tile's number; the other one hears of it through a channel of a few numbers.
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


def over_grid(kernel: Kernel, body: Block, schedule: Schedule, box: Channel | None, fills: bool) -> Block:
    """The role's body for one tile, put under what hands out tiles. Block arguments stay (the printer's grid), unread."""
    args = tuple(Value(Scalar(i32), a.name) for a in kernel.body.args)
    b = Builder()
    if schedule.tokens and not fills:
        b.do("token_start", id=TOKENS)
    index = b.emit("block_index", name="block") if fills or box is None else args[0]
    if box is not None and not fills:
        return _taking(kernel, body, box, args, b)
    tiles = Tiles(kernel, schedule, b)
    if schedule.l2 and tiles.long is None and not tiles.strip:
        raise without_effect("l2", "tiles run in no order that saves reads", got=schedule.l2,
                             expected="another axis beside one along which work differs, or two axes with tiles")
    if box is None:
        b.ops += _inline(body, tiles.decode(index, b))
        return b.block(args)
    step = b.emit("block_count", name="blocks") if schedule.persistent == "static" else None
    t, inner = Value(Scalar(i32), "tile"), Builder()
    tile = tiles.decode(t, inner)
    _tell(box, [inner.emit("const", value=1, dtype="i32"), *(tile[n] for n in range(len(kernel.grid)))], inner)
    inner.ops += _inline(body, tile)
    if step is not None:
        after = inner.emit("add", t, step, name="tile")
    else:
        inner.ops, after = _with_claim(inner.ops)
    inner.do("yield", inner.emit("lt", after, tiles.total, name="more"), after)
    b.add(Op("while", (b.emit("lt", index, tiles.total), index), (Value(Scalar(i32), "tile"),), {}, (inner.block((t,)),)))
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
    return b.emit("ne", more, b.emit("const", value=0, dtype="i32"), name="go_on"), tile


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
