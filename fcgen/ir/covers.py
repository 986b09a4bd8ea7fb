"""How long axes of tensors must be: a program reads or writes there at a place that follows from the grid, from loops, sizes and scalars,
and no guard stands in front.

What cannot be seen to lie inside for all sizes stands in `meta covers`, a line (NAME, axis, PLACE, CONDITION, ...) each, and is checked by
the launch, the interpreter and the simulator. A PLACE is a number, a name (of a size or an i32 scalar), (at, n) for the index on grid axis
n, (in, k, LOW, HIGH) for that of a loop, or (OP, PLACE, ...). The access is made where all CONDITIONs hold. A place that hangs on what a
tensor holds, or that a loop carries, has no line, nor has one under a condition of this kind: the simulator reports it where it is outside.
What loops do not change is read in front of them (`simplify`), and added behind them (`totals`), so its line does not hang on whether they
have iterations; a read that no line answers for there is told to stay (`stays`). Gathers read 0 outside, so of these there are lines only
for places that are the grid's or a loop's own, or parts of them (`//`, `%`).

A check follows intervals first (`ranges.RULES`). Where that does not decide, places are computed for every index, up to some millions of
them: past that a program is believed. All follows from the program as it was traced: later, a persistent kernel's places are computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import FcError
from .access import accesses
from .core import Block, Kernel, Op, Value, blocks, walk, walk_kernel
from .depends import followed
from .elementwise import FNS
from .op_table import OPS
from .ranges import RULES, Span
from .tile_ops import in_turn
from .types import Scalar, Tensor, i1, i32, i64

Place = Any  # int | str | tuple
#: (tensor, axis, place, conditions ...)
Cover = tuple[Any, ...]
MOST_OPS, MOST_PLACES = 32, 1 << 22
#: ops that hand a value on
SAME = ("full", "broadcast", "cast")
SIGNS = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
         "ne": "!="}
ARITHMETIC = {*SIGNS, "min", "max", "neg", "abs", "select", "and", "or", "not"}
PARTS = {"at", "in", "floordiv", "mod"}


@lru_cache(maxsize=64)
def covered(kernel: Kernel) -> tuple[Cover, ...]:
    """What `meta covers` says; of a tile kernel as it was traced, what follows from its program."""
    told = kernel.meta.get("covers")
    if told is None:
        return _Found(kernel).covers() if kernel.level == "tile" and kernel.meta.get("ranges") is None else ()
    dims = {p.name: p.type.dims for p in kernel.params if isinstance(p.type, Tensor)}
    names = {*kernel.dims, *(p.name for p in kernel.params if p.type == Scalar(i32)), *(a.dim for a in kernel.grid)}

    def known(x: Any, left: int = MOST_OPS) -> bool:
        if not isinstance(x, tuple):
            return type(x) is int or x in names
        if x[:1] == ("at",):
            return len(x) == 2 and type(x[1]) is int and 0 <= x[1] < len(kernel.grid)
        if left <= 0 or not x:
            return False
        arity = 3 if x[0] == "select" else FNS[x[0]].arity if x[0] in ARITHMETIC else -1
        inner = x[2:] if x[0] == "in" and len(x) == 4 and type(x[1]) is int else x[1:] if arity == len(x) - 1 else None
        return inner is not None and all(known(i, left - 1) for i in inner)

    for line in told:
        if not (isinstance(line, tuple) and len(line) > 2 and line[0] in dims and type(line[1]) is int
                and 0 <= line[1] < len(dims[line[0]]) and all(map(known, line[2:]))):
            raise FcError("ir/verify", "meta covers has the name of a tensor, an axis, a place of grid, loops, sizes and numbers, and "
                          "conditions", expected="(NAME, 0, (at, 0))", got=repr(line))
    return tuple(told)


def stays(kernel: Kernel) -> dict[Op, int]:
    """Loads of which nothing but that they are made in an iteration says that they are inside: how many of the loops around them they may
    leave. All others may be made in front of all loops, as far out as the first branch."""
    return _Found(kernel).stays(covered(kernel))


class _Scope(NamedTuple):
    """condition: whether what stands inside is run, None for what always is, UNKNOWN where that hangs on what has no line. body: of a loop.
    writes: whether that does. runs: it has iterations."""

    condition: Place | None
    body: Block | None = None
    writes: bool = False
    runs: bool = False


UNKNOWN = ("?",)


class _Found:
    """What a program says of its places."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.made = {r: op for op in walk_kernel(kernel) for r in op.results}
        self.leaves: dict[Value, Place] = {p: p.name for p in kernel.params if p.type == Scalar(i32)}

    def covers(self) -> tuple[Cover, ...]:
        out: dict[Cover, None] = {}
        for op, scopes in self.reached():
            conditions = _conditions(self.around(op, scopes))
            for tensor, n, place in (*self.places(op), *self.turns(op)) if UNKNOWN not in conditions else ():
                if place is not None and not self.inside(place, tensor.type.dims[n], conditions):
                    line = (tensor.name, n, place, *conditions)
                    out[line] = None
        most: dict[Any, int] = {}
        for c in out:
            if type(c[2]) is int:
                most[c[:2], c[3:]] = max(c[2], most.get((c[:2], c[3:]), 0))
        return tuple(c for c in out if type(c[2]) is not int or c[2] == most[c[:2], c[3:]])

    def stays(self, told: tuple[Cover, ...]) -> dict[Op, int]:
        out: dict[Op, int] = {}
        for op, scopes in self.reached():
            loops = list(itertools.takewhile(lambda s: s.body is not None, reversed(scopes)))
            near = [s.body for s in loops if s.body is not None]
            if op.kind != "load" or all(s.runs for s in loops):
                continue
            places = list(self.places(op))
            left = len(near)
            while left and not self.may_leave(op, scopes, near[:left], places, told):
                left -= 1
            if left < len(near):
                out[op] = left
        return out

    def may_leave(self, op: Op, scopes: tuple[_Scope, ...], loops: list[Block], places: list[tuple[Value, int, Place | None]],
                  told: tuple[Cover, ...]) -> bool:
        """Whether the access is inside in front of these loops."""
        around = _conditions(scopes[:len(scopes) - len(loops)])
        own = [i for loop in loops if (i := self.leaves.get(loop.args[0])) is not None]
        return all(place is not None and not any(_hangs(place, i) for i in own)
                   and (self.inside(place, tensor.type.dims[n], around) or _answered(op, n, place, around, told))
                   for tensor, n, place in places)

    def turns(self, op: Op) -> Iterator[tuple[Value, int, Place | None]]:
        """Where the number stands that says whose turn it is."""
        for n, at in enumerate(in_turn(op)[1:-1] if op.get("turn") else ()):
            yield in_turn(op)[0], n, self.place(at)

    def places(self, op: Op) -> Iterator[tuple[Value, int, Place | None]]:
        """Of each axis along which the access must be inside, where it is: None for what hangs on something else."""
        for n, axis in enumerate(() if (access := accesses(op)) is None else access.axes):
            place = self.place(axis.start) if axis.start is not None and axis.word in ("at", "element") else None
            if axis.word == "at" or (isinstance(place, tuple) and _words(place) <= PARTS):
                yield op.operands[0], n, place

    def reached(self) -> Iterator[tuple[Op, tuple[_Scope, ...]]]:
        """All ops, and what decides about them."""
        for role in self.kernel.roles:
            self.leaves |= {arg: ("at", n) for n, arg in enumerate(role.body.args)}
            yield from self.inner(role.body, ())

    def inner(self, block: Block, scopes: tuple[_Scope, ...]) -> Iterator[tuple[Op, tuple[_Scope, ...]]]:
        for op in block.ops:
            yield op, scopes
            if op.kind == "for":
                low, high = map(self.place, op.operands[:2])
                some: Place | None = None
                if low is not None and high is not None:
                    self.leaves |= dict.fromkeys((r.args[0] for r in op.regions), ("in", len(self.leaves), low, high))
                    some = ("lt", low, high)
                runs = type(low) is type(high) is int and low < high
                writes = any(OPS[o.kind].effect == "write" and o.kind != "yield" for o in walk(op.regions[0]))
                for region in op.regions:
                    yield from self.inner(region, (*scopes, _Scope(None if runs else some, region, writes, runs)))
            elif op.kind == "if":
                cond = self.place(op.operands[0])
                for region, word in zip(op.regions, (UNKNOWN, UNKNOWN) if cond is None else (cond, ("not", cond))):
                    yield from self.inner(region, (*scopes, _Scope(word)))

    def around(self, op: Op, scopes: tuple[_Scope, ...]) -> tuple[_Scope, ...]:
        """Those that decide about it: a read that is the same in all iterations is made in front of them (`simplify`), what is added to one
        place behind them (`totals`), even if there is none."""
        adds, kept = op.get("reduce") == "add", list[_Scope]()
        places = op.operands[2:] if adds else op.operands
        while scopes and (adds or (OPS[op.kind].effect == "read" and scopes[-1].body is not None and not scopes[-1].writes)):
            if (body := scopes[-1].body) is None:
                kept.insert(0, scopes[-1])
            else:
                changes = {a for b in blocks(body) for a in b.args}
                if not changes.isdisjoint((*places, *(v for o in followed(places, self.made) or () for v in o.operands))):
                    break
            scopes = scopes[:-1]
        return (*scopes, *kept)

    def place(self, v: Value, room: int = MOST_OPS) -> Place | None:
        """None where it hangs on something else."""
        if v in self.leaves:
            return self.leaves[v]
        op = self.made.get(v)
        if op is None or room <= 0 or (not op.operands and op.kind not in ("const", "size")):
            return None
        if op.kind == "const":
            return int(op["value"]) if type(op["value"]) in (int, bool) else None
        if op.kind == "size":
            return op["dim"]
        if getattr(op.operands[0].type, "dtype", None) not in (i1, i32, i64):
            return None
        if op.kind in SAME and op.result.type.dtype in (i32, i64):
            return self.place(op.operands[0], room)
        if op.kind not in ARITHMETIC:
            return None
        each = [self.place(x, room // len(op.operands)) for x in op.operands]
        return None if None in each else (op.kind, *each)

    def inside(self, x: Place, dim: str | int, conditions: tuple[Place, ...]) -> bool:
        """Whether 0 <= x < dim for all sizes."""
        below = self.below(x)
        if below is not None and not {("lt", x, dim), ("gt", dim, x)}.isdisjoint(conditions):
            return True
        return below is not None and any(b == dim or (type(b) is type(dim) is int and b <= dim) for b in below)  # type: ignore[operator]

    def below(self, x: Place) -> set[str | int] | None:
        """What x is below; None if it may be negative."""
        if type(x) is int:
            return {x + 1} if x >= 0 else None
        if not isinstance(x, tuple):
            return set() if x in self.kernel.dims or x in {p.name for p in self.kernel.counts} else None
        if x[0] == "at":
            axis = self.kernel.grid[x[1]]
            return {axis.dim} if type(axis.dim) is str or axis.tile == 1 else {-(-axis.dim // axis.tile)}  # type: ignore[operator]
        if x[0] == "in":
            return None if self.below(x[2]) is None else {x[3]} if not isinstance(x[3], tuple) else set()
        if x[0] == "mul" and isinstance(x[1], tuple) and type(x[2]) is int and x[2] > 0 and (dim := self.tiled(x[1], x[2])) is not None:
            return {dim}  # the first position of a tile
        each = [self.below(y) for y in x[1:]] if x[0] in ("add", "mul", "floordiv", "mod", "min", "max") else [None]
        if each[0] is None or each[-1] is None:
            return None
        a, b = each[0], each[-1]
        if x[0] == "mod":
            return a | ({x[2]} if not isinstance(x[2], tuple) else set())
        return a | b if x[0] == "min" else a & b if x[0] == "max" else a if x[0] == "floordiv" else set()

    def tiled(self, x: Place, tile: int) -> str | int | None:
        """What x counts the tiles of."""
        if x[0] == "at":
            return self.kernel.grid[x[1]].dim if self.kernel.grid[x[1]].tile == tile else None
        if x[0] != "in" or self.below(x[2]) is None or not isinstance(x[3], tuple) or x[3][0] != "floordiv":
            return None
        _, of, by = x[3]
        return of[1] if by == tile and isinstance(of, tuple) and of == ("add", of[1], tile - 1) and type(of[1]) is str else None


def _conditions(scopes: tuple[_Scope, ...]) -> tuple[Place, ...]:
    return tuple(s.condition for s in scopes if s.condition is not None)


def _answered(op: Op, axis: int, place: Place, conditions: tuple[Place, ...], told: tuple[Cover, ...]) -> bool:
    """Whether a line asks for this place, or a later one, wherever the conditions hold."""
    return any(c[:2] == (op.operands[0].name, axis) and {*c[3:]} <= {*conditions}
               and (c[2] == place or (type(c[2]) is type(place) is int and c[2] > place)) for c in told)


def _hangs(x: Place, leaf: Place) -> bool:
    return x == leaf or (isinstance(x, tuple) and any(_hangs(y, leaf) for y in x[1:]))


def _words(x: Place) -> set[str]:
    return {x[0]}.union(*map(_words, x[1:])) if isinstance(x, tuple) else set()


class Reach(NamedTuple):
    """The first and last of the positions that programs reach."""

    least: int
    most: int


class Grid(NamedTuple):
    """axes: (name, dimension or number, tile, ...). sizes: of dimensions and of scalars."""

    axes: Sequence[Sequence[Any]]
    sizes: Mapping[str, int]

    def count(self, n: int) -> int:
        dim, tile = self.axes[n][1:3]
        return -(-(dim if isinstance(dim, int) else self.sizes[dim]) // tile)

    def span(self, x: Place) -> Span | None:
        """Where a place lies, whatever the conditions."""
        if not isinstance(x, tuple):
            n = x if isinstance(x, int) else self.sizes[x]
            return Span(n, n)
        if x[0] == "at":
            return Span(0, self.count(x[1]) - 1)
        spans = [self.span(y) for y in (x[2:] if x[0] in ("in", "select") else x[1:])]
        if None in spans:
            return None
        if x[0] in ("in", "select"):
            a, b = spans
            return Span(a.lo, b.hi - 1) if x[0] == "in" else Span(min(a.lo, b.lo), max(a.hi, b.hi))  # type: ignore[union-attr]
        return RULES[x[0]](*spans) if x[0] in RULES else None  # type: ignore[no-any-return]

    def reach(self, cover: Cover) -> Reach | None:
        """The positions of a line; None where there are none, or too many to look at. For a grid that has programs."""
        if len(cover) == 3 and isinstance(cover[2], tuple) and cover[2][0] == "at":
            return Reach(0, self.count(cover[2][1]) - 1)  # each of them
        leaves: dict[Place, None] = {}
        for x in cover[2:]:
            _leaves(x, leaves)
        values: dict[Place, np.ndarray] = {}
        mask, total = np.ones((1,) * len(leaves), bool), 1
        for n, leaf in enumerate(leaves):
            span = self.span(leaf)
            total *= max(0, span.hi - span.lo + 1) if span is not None else 0
            if span is None or not 0 < total <= MOST_PLACES:
                return None
            values[leaf] = np.arange(span.lo, span.hi + 1, dtype=np.int64).reshape([-1 if k == n else 1 for k in range(len(leaves))])
            if leaf[0] == "in":
                low, high = (_computed(y, values, self.sizes) for y in leaf[2:])
                mask = mask & (low <= values[leaf]) & (values[leaf] < high)
        for condition in cover[3:]:
            mask = mask & np.asarray(_computed(condition, values, self.sizes), bool)
        at = np.broadcast_to(_computed(cover[2], values, self.sizes), np.broadcast_shapes(mask.shape, *(v.shape for v in values.values())))
        at = at[np.broadcast_to(mask, at.shape)]
        return Reach(int(at.min()), int(at.max())) if at.size else None

    def outside(self, cover: Cover, length: int) -> Reach | None:
        """What programs reach, if not all of it lies in a tensor that is so long there."""
        span = self.span(cover[2])
        if span is not None and span.lo >= 0 and span.hi < length:
            return None
        reach = self.reach(cover)
        return None if reach is None or (reach.least >= 0 and reach.most < length) else reach


def _leaves(x: Any, out: dict[Place, None]) -> None:
    """The indices that a place hangs on, each after those that it hangs on itself."""
    if isinstance(x, tuple):
        for y in x:
            _leaves(y, out)
        if x and x[0] in ("at", "in"):
            out[x] = None


def _computed(x: Place, values: Mapping[Place, np.ndarray], sizes: Mapping[str, int]) -> Any:
    if not isinstance(x, tuple):
        return np.int64(x if isinstance(x, int) else sizes[x])
    if x in values:
        return values[x]
    each = [_computed(y, values, sizes) for y in x[1:]]
    with np.errstate(all="ignore"):
        return np.where(*each) if x[0] == "select" else FNS[x[0]].numpy(*(np.asarray(y) for y in each))


def check_covers(covers: tuple[Cover, ...], grid: Sequence[Sequence[Any]], dims: Mapping[str, tuple[str | int, ...]],
                 sizes: Mapping[str, int]) -> None:
    """FcError "call/argument" where a program would reach a place that a tensor does not have. grid: (name, dimension, tile, ...) per axis.
    sizes: of dimensions, and i32 scalars."""
    of = Grid(grid, sizes)
    for cover in covers if all(of.count(n) > 0 for n in range(len(grid))) else ():
        name, axis, place = cover[:3]
        own = dims[name][axis]
        have = own if isinstance(own, int) else sizes[own]
        reach = of.outside(cover, have)
        if reach is None:
            continue
        if reach.least < 0:
            raise FcError("call/argument", f"a program reaches argument `{name}` before its first element", got=f"{reach.least} along axis "
                          f"{axis}", expected="positions from 0 on", hint=f"the place is {told(place, grid)}")
        dim, tile = grid[place[1]][1:3] if isinstance(place, tuple) and place[0] == "at" else (0, 1)
        plain = isinstance(dim, str) and tile == 1
        raise FcError("call/argument", f"axis {axis} of argument `{name}` is too short", got=have,
                      expected=f"at least {reach.most + 1}" + (f", the size of {dim}" if plain else ""),
                      hint=f"a program for each of {dim} reaches {name} at its own place" if plain else
                      None if isinstance(place, int) else f"a program reaches {name} there at {told(place, grid)}")


def told(x: Place, grid: Sequence[Sequence[Any]]) -> str:
    """A place as people write it."""
    if not isinstance(x, tuple):
        return str(x)
    if x[0] in ("at", "in"):
        return str(grid[x[1]][0]) if x[0] == "at" else f"(a position from {told(x[2], grid)} to {told(x[3], grid)})"
    each = [told(y, grid) for y in x[1:]]
    each = [f"({t})" if isinstance(y, tuple) and y[0] in SIGNS else t for t, y in zip(each, x[1:])]
    return f"{each[0]} {SIGNS[x[0]]} {each[1]}" if x[0] in SIGNS else f"{x[0]}({', '.join(each)})"


def needs(cover: Cover, grid: Sequence[Sequence[Any]]) -> set[str]:
    """The sizes and scalars that a line hangs on."""
    def of(x: Place) -> set[str]:
        if isinstance(x, tuple):
            return of(grid[x[1]][1]) if x[0] == "at" else set().union(*map(of, x[2:] if x[0] == "in" else x[1:]))
        return {x} if isinstance(x, str) else set()

    return set().union(*map(of, cover[2:]))
