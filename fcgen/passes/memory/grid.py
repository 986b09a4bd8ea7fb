"""The grid as ops: what a role does for one tile, put under what hands out tiles.

A block takes its own tile (`block_index`), or, with `persistent`, works through the grid's tiles, in steps of the number of blocks or as it
claims them. Where a role copies for the others, it claims and decodes, and they hear of the tile through a channel of a few numbers. Where
there is one role, one thread of it claims the next tile, and all decode what it posts; they start the next tile's first copies before they
store this one's results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir.core import Block, Kernel, Op, Value, free_values, walk
from ...ir.ops import OPS, has_effect
from ...ir.rewrite import Builder, Env, copy_op
from ...ir.schedule import Schedule
from ...ir.types import Scalar, i32
from ..facts.common import without_effect
from ..facts.tiles import Tiles
from .channels import Channel
from .cursors import thread_cursors

TOKENS = 1  # the first of the named barriers that pass a token around


def over_grid(kernel: Kernel, body: Block, schedule: Schedule, box: Channel | None, fills: bool = True) -> Block:
    """The role's body for one tile, put under what hands out tiles. box: through which the block hears of its next tile. fills: whether it
    copies tiles. Block arguments stay (the printer's grid), unread."""
    args = tuple(Value(Scalar(i32), a.name) for a in kernel.body.args)
    b = Builder()
    if schedule.tokens and not fills:
        b.do("token_start", id=TOKENS)
    if schedule.persistent != "none" and not kernel.grid:
        raise without_effect("persistent", "the program has no grid", got=schedule.persistent)
    told = box if box is not None and box.full is not None else None  # by this role, to another
    if told is not None and not fills:
        return _taking(kernel, body, told, args, b)
    index = b.emit("block_index", name="block")
    tiles = Tiles(kernel, schedule, b)
    if schedule.l2 and tiles.long is None and not tiles.strip:
        raise without_effect("l2", "tiles run in no order that saves reads", got=schedule.l2,
                             expected="another axis beside one along which work differs, or two axes with tiles")
    if schedule.persistent == "none":
        b.ops += _inline(body.ops, body, tiles.decode(index, b))
        return b.block(args)
    count = b.emit("block_count", name="blocks") if schedule.persistent == "static" else None
    if told is None:
        _alone(body, tiles, index, count, box, b)
        return thread_cursors(b.block(args))
    t, inner = Value(Scalar(i32), "tile"), Builder()
    tile = tiles.decode(t, inner)
    _tell(told, [inner.emit("const", value=1, dtype="i32"), *(tile[n] for n in range(len(kernel.grid)))], inner)
    inner.ops += _inline(body.ops, body, tile)
    if count is not None:
        after = inner.emit("add", t, count, name="tile")
    else:
        inner.ops, after = _with_claim(inner.ops)
    inner.do("yield", inner.emit("lt", after, tiles.total, name="more"), after)
    b.add(Op("while", (b.emit("lt", index, tiles.total), index), (Value(Scalar(i32), "tile"),), {}, (inner.block((t,)),)))
    _tell(told, [b.emit("const", value=0, dtype="i32")] * (1 + len(kernel.grid)), b)
    if count is None:
        b.do("claim_done")
    return b.block(args)


def _alone(body: Block, tiles: Tiles, index: Value, count: Value | None, box: Channel | None, b: Builder) -> None:
    """A block of one role. Behind a tile's last loop it knows the next tile, and starts its first copies: they and this tile's results are
    on their way together. One thread claims in front of that loop."""
    loops = [n for n, o in enumerate(body.ops) if any(x.kind == "for" for x in walk(Block((), (o,))))]
    claim_at, known_at = (loops[-1], loops[-1] + 1) if loops else (0, len(body.ops))
    first = _first_copies(body.ops[:loops[0]] if loops else ())
    copies = {id(o) for o in first if has_effect(o)}
    rest = [o for o in body.ops if id(o) not in copies]
    claim_at, known_at = (n - sum(id(o) in copies for o in body.ops[:n]) for n in (claim_at, known_at))

    def start(tile: Value, condition: Value, b: Builder) -> None:
        if copies:
            then, empty = Builder(b.loc), Builder(b.loc)
            then.ops += _inline(first, body, tiles.decode(tile, then))
            for branch in (then, empty):
                branch.do("yield")
            b.do("if", condition, regions=(then.block(), empty.block()))

    go = b.emit("lt", index, tiles.total, name="any")
    start(index, go, b)
    t, inner, env = Value(Scalar(i32), "tile"), Builder(), Env()
    tile = tiles.decode(t, inner)
    inner.ops += _inline(rest[:claim_at], body, tile, env)
    if box is not None:
        claim = Value(Scalar(i32), "claimed")
        inner.add(Op("claim", (), (claim,)))
    inner.ops += _inline(rest[claim_at:known_at], body, tile, env)
    if box is not None:
        _tell(box, [claim], inner)
        (after,) = _fetch(box, ["next_tile"], inner)
    elif count is not None:
        after = inner.emit("add", t, count, name="next_tile")
    more = inner.emit("lt", after, tiles.total, name="more")
    start(after, more, inner)
    inner.ops += _inline(rest[known_at:], body, tile, env)
    inner.do("yield", more, after)
    b.add(Op("while", (go, index), (Value(Scalar(i32), "tile"),), {}, (inner.block((t,)),)))
    if box is not None:
        b.do("claim_done")


def _first_copies(ops: Sequence[Op]) -> list[Op]:
    """The asynchronous copies among these ops, with what they follow from; none if that is more than numbers and what is read of tables."""
    made = {r: o for o in ops for r in o.results}
    copying = lambda o: {x.kind for x in walk(Block((), (o,))) if OPS[x.kind].effect == "write" and x.kind not in ("if", "yield")}
    need: dict[int, Op] = {id(o): o for o in ops if copying(o) and copying(o) <= {"cp_async", "commit_group"} and not o.results}
    todo = list(need.values())
    while todo:
        op = todo.pop()
        for v in (*op.operands, *(v for r in op.regions for v in free_values(r))):
            if (o := made.get(v)) is not None and id(o) not in need:
                if has_effect(o) or o.regions:
                    return []
                need[id(o)] = o
                todo.append(o)
    return [o for o in ops if id(o) in need]


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
    return b.emit("ne", more, b.emit("const", value=0, dtype="i32"), name="go_on"), tile


def _taking(kernel: Kernel, body: Block, box: Channel, args: tuple[Value, ...], b: Builder) -> Block:
    """The reading role works on tiles as it is told of them: where a tile lies was computed once, by the role that runs ahead."""
    go, tile = _hear(kernel, box, b)
    inside = tuple(Value(Scalar(i32), a.name) for a in kernel.grid)
    inner = Builder()
    inner.ops += _inline(body.ops, body, dict(enumerate(inside)))
    again, after = _hear(kernel, box, inner)
    inner.do("yield", again, *after)
    b.add(Op("while", (go, *tile), tuple(Value(Scalar(i32), a.name) for a in kernel.grid), {}, (inner.block(inside),)))
    return b.block(args)


def _inline(ops: Sequence[Op], body: Block, tile: dict[int, Value], env: Env | None = None) -> list[Op]:
    """Copies of ops of the body, for a tile. env: what was copied of it before."""
    env = Env() if env is None else env
    for n, a in enumerate(body.args):
        env[a] = tile[n]
    return [copy_op(o, env) for o in ops]
