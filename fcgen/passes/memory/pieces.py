"""pieces: an operand that is computed on its way from one place in shared memory to another is never in registers as a whole.

In: placed machine IR. Out: the same, where tiles that are read from shared memory, worked upon row by row and stored there again, and read
by nobody in between, go through registers a few rows at a time. The rows of a piece are read while the piece before is worked upon; where
a role of its own makes the tile, what comes straight from tensors is read some pieces earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...ir.access import SCALARS, Access
from ...ir.core import Block, Kernel, Op, Value
from ...ir.layout import RegLayout
from ...ir.registers import least
from ...ir.rewrite import Builder, Env, map_bodies, substitute
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Frag, Scalar
from ..facts.common import ELEMENTWISE

#: elements of a tile that a thread holds at once: 16 bytes of half precision
MOST = 8
#: registers that the pieces of a role of their own may take
ROOM = 72
#: how many pieces ahead rows are read of a stored tile, and of a tensor
AHEAD = {"unstage": 1, "load": 3}
ROWWISE = ELEMENTWISE | {"broadcast", "reduce", "combine"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    buffers: list[Value] = []
    out = map_bodies(kernel, lambda body: _block(body, buffers, schedule.makers > 0))
    return replace(out, buffers=(*out.buffers, *buffers)) if buffers or out is not kernel else kernel


def _block(block: Block, buffers: list[Value], made: bool) -> Block:
    """made: what is stored to a slot is the work of a role of its own."""
    block = Block(block.args, tuple(o.within(lambda r: _block(r, buffers, made)) for o in block.ops))
    while (group := _first(block, made)) is not None:
        block = group.rewritten(buffers)
    return block


@dataclass
class _Group:
    """stores: the ops that put tiles into shared memory. work: what they follow from, in order, the reads included. layout: of the tiles,
    small: of one of `count` pieces."""

    block: Block
    stores: list[Op]
    work: list[Op]
    layout: RegLayout
    count: int
    small: RegLayout

    def rewritten(self, buffers: list[Value]) -> Block:
        mine = {*self.stores, *self.work}
        named, env = {}, Env()
        for s in self.stores:
            if s.kind == "stage":
                named[s.result] = env[s.result] = Value(s.result.type, s.result.name)
                buffers.append(env[s.result])
        b = Builder()
        for op in self.block.ops:
            if op is self.stores[0]:
                self.pieces(named, b)
            if op not in mine:
                b.add(substitute(op, env))
        return b.block(self.block.args)

    def registers(self) -> int:
        """What the pieces take for certain."""
        b = Builder()
        self.pieces({s.result: Value(s.result.type) for s in self.stores if s.kind == "stage"}, b)
        return least(Block((), tuple(b.ops)))

    def pieces(self, named: dict[Value, Value], b: Builder) -> None:
        b.loc = self.stores[0].loc
        rows = self.layout.shape[0] // self.count
        small = self.small
        reads = [o for kind in ("load", "unstage") for o in self.work if o.kind == kind]
        envs = [Env() for _ in range(self.count)]

        def read(o: Op, n: int) -> None:
            first, t = b.const(n * rows), self.piece(o.result, rows, small)
            if o.kind == "load":
                at = _start_of_rows(o)
                start = b.emit("add", o.operands[at], first)
                envs[n][o.result] = Value(t, o.result.name)
                b.add(replace(o, operands=(*o.operands[:at], start, *o.operands[at + 1:]), results=(envs[n][o.result],)))
                return
            envs[n][o.result] = b.emit("ld_shared", o.operands[0], *place(o.result, n), type=t, name=o.result.name)

        def place(v: Value, n: int) -> tuple[Value, Value]:
            """Where a piece begins in the stored tile: a vector is one row."""
            first, zero = b.const(n * rows), b.const(0)
            return (first, zero) if len(v.type.shape) == 2 else (zero, first)

        for o in reads:
            for n in range(min(AHEAD[o.kind], self.count)):
                read(o, n)
        for n, env in enumerate(envs):
            for o in reads:
                if n + AHEAD[o.kind] < self.count:
                    read(o, n + AHEAD[o.kind])
            for o in (x for x in self.work if x.kind not in AHEAD):
                out = Value(self.piece(o.result, rows, small), o.result.name)
                b.add(replace(o, operands=env.all(o.operands), results=(out,)))
                env[o.result] = out
            for s in self.stores:
                to = named[s.result] if s.kind == "stage" else s.operands[1]
                b.do("st_shared", env[s.operands[0]], to, *place(s.operands[0], n))

    def piece(self, v: Value, rows: int, small: RegLayout) -> Frag:
        t = v.type
        assert isinstance(t, Frag)
        return replace(t, shape=(rows, *t.shape[1:]), layout=small if len(t.shape) == 2 else small.drop(1))


def _part(layout: RegLayout, count: int) -> RegLayout | None:
    """The layout of a `count`-th of the rows, where a thread has so many times the same ones."""
    digit = max((f for f in layout.axes[0] if f.unit == "r"), key=lambda f: f.size, default=None)
    return None if digit is None or digit.size % count else layout.counting(digit, digit.size // count)


def _start_of_rows(load: Op) -> int:
    """The operand that says where a loaded tile's rows begin; 0 if none does."""
    axes = Access.of(load).axes
    n = next((n for n, a in enumerate(axes) if a.along == 0), 0)
    return 1 + sum(SCALARS[a.word] for a in axes[:n]) if axes and axes[n].along == 0 and axes[n].is_run else 0


def _first(block: Block, apart: bool) -> _Group | None:
    """The next group of stores that share work."""
    place = {o: n for n, o in enumerate(block.ops)}
    slices: list[tuple[list[Op], set[Op]]] = []
    whole = lambda o: o.kind == "stage" or (o.kind == "st_shared" and o.operands[0].type.shape == o.operands[1].type.shape)
    for s in filter(whole, block.ops):
        work = _work(s, block.made, apart and s.kind == "st_shared")
        if work is None:
            continue
        stores, ops = [s], set(work)
        for other in [x for x in slices if x[1] & ops]:
            slices.remove(other)
            stores, ops = [*other[0], *stores], ops | other[1]
        slices.append((stores, ops))
    for stores, ops in slices:
        stores = sorted(stores, key=place.__getitem__)
        group = _group(block, stores, [o for o in block.ops if o in ops], place, apart and all(o.kind == "st_shared" for o in stores))
        if group is not None:
            return group
    return None


def _group(block: Block, stores: list[Op], work: list[Op], place: dict[Op, int], apart: bool) -> _Group | None:
    tiles = {v.type.layout for o in work for v in o.results if len(v.type.shape) == 2}
    if len(tiles) != 1:
        return None
    layout: RegLayout = tiles.pop()
    mine, made = {*stores, *work}, block.made
    inner = {r for o in work for r in o.results}
    outside = any(o.reads & inner for o in block.ops if o not in mine)
    given = [made[v] for o in (*work, *stores) for v in o.operands[:2] if v in made and v not in inner]
    late = any(place[o] > place[stores[0]] for o in given if o not in mine)
    if outside or late:
        return None
    rows = {v for o in work for v in o.operands if v not in inner and isinstance(v.type, Frag)}
    across = {v for o in work if o.kind == "broadcast" and o["axes"] == (1,) for v in o.operands}
    if not rows <= across:
        return None
    most = -(-layout.regs // MOST)
    groups = [_Group(block, stores, work, layout, count, small) for count in (range(2, most + 1) if apart else (most,))
              if count > 1 and (small := _part(layout, count)) is not None]
    fits = (g for g in groups if not apart or g.registers() <= ROOM)  # the largest pieces first: there is much to do at once
    return next(fits, groups[-1] if groups else None)


def _work(store: Op, made: Mapping[Value, Op], tensors: bool) -> dict[Op, None] | None:
    """The ops from reads of shared memory to a store; None where it follows from anything but these and rows that all pieces
    share."""
    need: dict[Op, None] = {}
    todo = [store.operands[0]]
    while todo:
        op = made.get(todo.pop())
        if op is None or op in need:
            continue
        if op.kind not in ROWWISE | {"unstage"} and not (op.kind == "load" and tensors and _start_of_rows(op)):
            return None
        if not isinstance(op.result.type, Frag) or not isinstance(op.result.type.layout, RegLayout):
            return None
        if op.kind == "reduce" and op["axis"] != 1:
            return None
        need[op] = None
        if op.kind not in AHEAD and not (op.kind == "broadcast" and op["axes"] == (1,)):  # (that is one row for all rows)
            todo += [v for v in op.operands if not isinstance(v.type, Scalar)]
    return need if any(o.kind in AHEAD for o in need) else None
