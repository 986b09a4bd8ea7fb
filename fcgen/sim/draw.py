"""Inputs for a kernel on trial: sizes, numbers and tensors that take it through its states, drawn from what its IR says of them.

In: a kernel of either level, which says what its sizes and numbers mean, and the machine kernel that is to run. Out: trial number n, the
same on every machine. Guaranteed: sizes that are divided by each other are multiples; numbers and elements that end in an unguarded
position lie inside; small trials come first, and sizes differ between tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.access import Axis, accesses
from ..ir.core import Block, Kernel, Op, Value, walk_kernel
from ..ir.covers import Grid, covered, needs
from ..ir.elementwise import to_dtype
from ..ir.sizes import is_made
from ..ir.tile_ops import in_turn
from ..ir.types import Buffer, Tensor

#: what random tensors look like: "loud" ones take rare branches, "rising" and "falling" ones grow along their tiles, "equal" ones have
#: ties but for the last, "huge" ones are multiples of a power of two, whose products and sums float32 knows exactly, "level" ones are both.
#: "mixed" ones are huge in some rows and small in others, so that a rare branch is left or entered on the way; what "drifting" ones add up
#: to goes from below zero to above it, or back, and "sunken" sums stay below, far or near; "shifted" sums lie far from zero, most of them
#: in one place, "distant" ones very far, in steps that float32 knows, and "leaping" ones go there on the way, where all are equal; "quiet"
#: ones hardly move; "tiny" ones leap too, and go with enormous numbers. Trials 4, 8 and so on are the large ones
KINDS = ("normal", "mixed", "sunken", "distant", "leaping", "loud", "level", "rising", "drifting", "loud",
         "leaping", "shifted", "quiet", "tiny", "shifted", "falling", "huge", "equal", "mixed", "sunken", "drifting")
#: factors that go with them: large ones turn what is nearly a maximum into one, and make of small differences large ones
FACTORS = {"tiny": 2.0**40, "shifted": 1.0, "sunken": 8.0, "drifting": 2.0, "rising": 4.0, "leaping": 1.0, "quiet": 0.25}
#: and with the others: no two trials of a kind alike, and no factor the same as another one
ANY, APART = (0.125, 0.25, 1.0, 32.0, 0.5), (1.0, 0.75, 1.5, 1.25)
#: sizes of what is only ever a position: a batch, heads, groups of heads
FEW = ((1, 2, 1), (1, 2, 2), (2, 1, 1), (2, 2, 1), (1, 4, 2), (2, 3, 1), (1, 1, 1))
#: blocks of a kernel whose blocks take several tiles
BLOCKS = (1, 2, 1, 3, 1, 2, 3)
#: the trial whose loops take no step; the one with one row and whole tiles; the one with more heads than a tile has elements
EMPTY, ONE_ROW, WIDE = 9, 7, 5


@dataclass(frozen=True)
class Trial:
    """One run. numbers: the scalars. kind: of the tensors. blocks: of a kernel whose blocks take several tiles. total: programs. waits:
    they wait for each other."""

    sizes: Mapping[str, int]
    numbers: Mapping[str, Any]
    kind: str
    seed: int
    blocks: int
    total: int
    persistent: bool
    waits: bool = False

    @property
    def every(self) -> bool:
        """All programs run."""
        return self.persistent or self.waits or self.total <= 16

    def __str__(self) -> str:
        what = [f"{d}={n}" for d, n in self.sizes.items() if n != 1] + [f"{d}={n}" for d, n in self.numbers.items()]
        where = f" in {self.blocks} block{'s' * (self.blocks != 1)}" if self.persistent else ""
        run = f"{self.total} program{'s' * (self.total != 1)}{where}" if self.every else f"the first and the last of {self.total} programs"
        return f"{', '.join(what)}, {self.kind}: {run}" if what else f"{self.kind}: {run}"


def dimensions(kernel: Kernel) -> list[str]:
    """The sizes that a kernel takes at run time, in the order of its parameters."""
    return list(dict.fromkeys(d for p in kernel.params for d in getattr(p.type, "dims", ()) if isinstance(d, str)))


@dataclass
class Meaning:
    """What a kernel does with its sizes and numbers. tiles: dimension -> extent of the tiles that walk it. multiples: (a, b) where size a
    is divided by size b. inside: parameter -> dimensions in which it is an unguarded position. begins: tensor of integers -> dimensions in
    which its elements say where runs begin or end. moved: outputs that are written where such elements say. counts: parameter -> extent of
    the tiles of which it says how many a loop or the grid has. ends: (output, dimension) -> numbers that say how far it is written."""

    tiles: dict[str, int] = field(default_factory=dict)
    multiples: set[tuple[str, str]] = field(default_factory=set)
    inside: dict[str, set[str | int]] = field(default_factory=dict)
    begins: dict[str, set[str | int]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    ends: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def needed(self) -> set[str | int]:
        """Dimensions that something is a position in."""
        return {d for dims in self.inside.values() for d in dims}


def found(op: Op) -> tuple[Axis, ...]:
    reached = accesses(op)
    return reached.axes if reached is not None else ()


def meaning(kernel: Kernel) -> Meaning:
    out = Meaning()
    sizes: dict[Value, str] = {}
    for op in walk_kernel(kernel):
        if op.kind == "size":
            sizes[op.result] = op["dim"]
        elif op.kind in ("floordiv", "mod") and all(v in sizes for v in op.operands):
            out.multiples.add((sizes[op.operands[0]], sizes[op.operands[1]]))
        for axis in found(op):
            if axis.is_run and isinstance(axis.dim, str):
                out.tiles[axis.dim] = max(axis.size, out.tiles.get(axis.dim, 1))
    for g in kernel.grid:
        if isinstance(g.dim, str) and g.tile > 1 and g.dim in dimensions(kernel):
            out.tiles[g.dim] = g.tile
    for p in kernel.params:
        if not p.type.dtype.is_float and "out" not in kernel.flags.get(p.name, ()):
            reached = _reached(kernel, p)
            inside = {a.dim for op in walk_kernel(kernel) for a in found(op) if a.word == "at" and a.start in reached}
            if inside:
                out.inside[p.name] = inside
            runs = [(op, a) for op in walk_kernel(kernel) for a in found(op) if a.along is not None and {a.start, a.limit} & reached]
            if runs and isinstance(p.type, Tensor):
                out.begins[p.name] = {a.dim for _, a in runs}
                out.moved |= {op.operands[0].name for op, _ in runs if not op.results and op.kind != "cp_async"}
            for op in walk_kernel(kernel) if not isinstance(p.type, Tensor) else ():
                for a in found(op) if not op.results else ():
                    if isinstance(a.dim, str) and {a.start, a.limit} & reached and is_made(kernel, op.operands[0].name):
                        out.ends.setdefault((op.operands[0].name, a.dim), []).append(p.name)
            walked = [g.tile for g in kernel.grid if p in kernel.counts and g.dim == p.name]
            walked += [op.get("tile", 1) for op in walk_kernel(kernel) if op.kind == "for" and not reached.isdisjoint(op.operands[:2])]
            if walked and not ({a.start for _, a in runs} & _reached(kernel, p, False)):
                out.counts[p.name] = max(walked)
    return out


def _reached(kernel: Kernel, source: Value, bounds: bool = True) -> set[Value]:
    """Values that are computed from a parameter; through shared memory by whole rings. bounds: a loop's index follows from its bounds."""
    out = {source}
    if source in kernel.counts:
        out.update(i for role in kernel.roles for axis, i in zip(kernel.grid, role.body.args) if axis.dim == source.name)

    def pairs(old: Sequence[Value], new: Sequence[Value], carried: int) -> None:
        """The last values of one list become those of the other."""
        if carried and len(old) >= carried <= len(new):
            out.update(b for a, b in zip(old[-carried:], new[-carried:]) if a in out)

    def block(b: Block) -> None:
        for op in b.ops:
            hit = any(v in out for v in op.operands)
            for region in op.regions:
                pairs(op.operands, region.args, len(op.results))
                if bounds and op.kind == "for" and any(v in out for v in op.operands[:2]):
                    out.update(region.args[:1])
                block(region)
                pairs(region.yielded, op.results, len(op.results))
            if hit and not op.regions:
                out.update(op.results or [v for v in op.operands if isinstance(v.type, Buffer)])
            if op.kind == "slot" and op.result in out:
                out.add(op.operands[0])

    for _ in range(3):  # around loops, and from one role to another
        for role in kernel.roles:
            block(role.body)
    return out


class Draws:
    """Trials of a kernel, by number. given: sizes that stay. says: the kernel that says what sizes and numbers mean."""

    def __init__(self, kernel: Kernel, given: Mapping[str, int], says: Kernel, seeds: int):
        self.kernel, self.given, self.seeds = kernel, given, seeds
        self.meaning, own = meaning(says), meaning(kernel)
        self.tiles = {**self.meaning.tiles, **own.tiles}
        self.ring = min(8, max([b.type.slots for b in kernel.buffers], default=1))
        self.persistent = kernel.meta.get("persistent", "none") != "none"
        self.dims = dimensions(kernel)
        self.rows = [g.dim for g in kernel.grid if g.tile > 1 and g.dim in self.dims]
        self.products = any(op.kind in ("dot", "mma", "wgmma", "wmma_mma") for op in walk_kernel(says))
        #: outputs that are read or added to: the caller's
        read = (op for op in walk_kernel(says) if op.results or op.get("reduce"))
        self.read = {v.name for op in read for v in op.operands if isinstance(v.type, Tensor)}
        #: tensors that say whose turn it is: nobody has had one
        self.turns = {turn[0].name for k in (says, kernel) for op in walk_kernel(k)
                      if (turn := op.operands if op.kind == "await_turn" else in_turn(op) if op.get("turn") else ())}

    def trial(self, n: int, fixed: Mapping[str, Any] | None = None) -> Trial:
        rng = np.random.default_rng([n, 8])
        sizes = self.sizes(rng, n, *self.extent(rng, n))
        numbers = {p.name: self.number(p, rng, sizes, n) for p in self.kernel.params if not isinstance(p.type, Tensor)}
        numbers.update({name: x for name, x in (fixed or {}).items() if name in numbers})
        counts = [g.clusters({**numbers, **sizes}) for g in self.kernel.grid]
        total = int(np.prod([g.count({**numbers, **sizes}) for g in self.kernel.grid], dtype=int))
        blocks = min(int(np.prod(counts, dtype=int)), BLOCKS[n % len(BLOCKS)]) * self.kernel.cluster
        kind = KINDS[n % len(KINDS)]
        order = n % self.seeds
        return Trial(sizes, numbers, kind, order if order < 2 else 2 + n, blocks, total, self.persistent, bool(self.turns))

    def smaller(self, trial: Trial, written: Mapping[str, np.ndarray]) -> Trial | None:
        """The same with outputs that end where numbers say that they do, if they are larger: which size goes with a number, no IR tells."""
        sizes = dict(trial.sizes)
        for name, dim in self.meaning.ends:
            axis = self.kernel.param(name).type.dims.index(dim)
            far = np.flatnonzero(np.moveaxis(written[name], axis, 0).reshape(written[name].shape[axis], -1).any(1))
            sizes[dim] = min(sizes.get(dim, 0), int(far[-1]) + 1 if far.size else 0) if dim not in self.given else sizes[dim]
        total = int(np.prod([g.count({**trial.numbers, **sizes}) for g in self.kernel.grid], dtype=int))
        return replace(trial, sizes=sizes, total=total) if sizes != trial.sizes else None

    def together(self, wrong: FcError) -> list[str]:
        """Which sizes and numbers decide together whether an output is written as a whole."""
        ends = self.meaning.ends.items() if wrong.code == "sim/unwritten" else ()
        return [f"{dim} and {', '.join(names)} go together: give them both, --size {dim}=8 --arg {names[0]}=4" for (_, dim), names in ends]

    def extent(self, rng: np.random.Generator, n: int) -> tuple[int, int]:
        """(tiles of the grid, steps of the loops): turns of every ring, in one tile, over several, just one of it, and where rows see
        what lies before."""
        far = max(2 * self.ring + 1, 4)  # a loop that is split has at least two steps in each part
        steps = max([t for d, t in self.tiles.items() if d not in self.rows], default=1)
        rows = max([self.tiles[d] for d in self.rows if d in self.tiles], default=1)
        first = [(1, 1), (2, max(self.ring + 1, 3)), (5, 2), (1, far + 1), (-(-far * steps // rows), far), (6, 1),
                 (1, self.ring + 2), (1, max(2, self.ring))]
        if n < len(first):
            return first[n]
        if n % 4 == 0:
            around = int(rng.integers(min(4, far), far + 1))
            return -(-around * steps // rows), around
        return int(rng.integers(1, 4)), int(rng.integers(3, max(4, min(far + 1, 7))))

    def sizes(self, rng: np.random.Generator, n: int, tiles: int, steps: int) -> dict[str, int]:
        plain = [d for d in self.dims if d not in self.tiles]
        out: dict[str, int] = {}
        wide = n == WIDE and not self.persistent and self.meaning.multiples
        few = FEW[n % len(FEW)] if n % 4 and not wide else FEW[-1]
        for i, d in enumerate(plain):
            out[d] = self.given.get(d, few[i % len(few)])
        for _ in plain:
            for a, b in sorted(self.meaning.multiples):
                if a in out and b in out and a not in self.given and out[b] and out[a] % out[b]:
                    out[a] *= out[b]
        for a, b in sorted(self.meaning.multiples) if wide else ():
            if {a, b} <= set(plain) - set(self.given):
                out[a] = out[b] * (2 * max(self.tiles.values(), default=1) + 1)
        left = max(1, round(tiles / max(1, int(np.prod([out.get(str(g.dim), 1) for g in self.kernel.grid if g.tile == 1])))))
        for d in self.dims:
            if d in out or d in self.given:
                out[d] = out.get(d) or self.given[d]
                continue
            t, count = self.tiles[d], steps
            if d in self.rows:
                count = left if d == self.rows[0] else 1 + (n % 3 == 2)
            rest = [t - 3, t, 1 + int(rng.integers(t)), 1 + int(rng.integers(max(1, t // 4))), 1, 1 + int(rng.integers(t))]
            kind = n + (2 + n // 6) * (d in self.rows)
            if n == ONE_ROW:
                kind = 4 if d in self.rows else 1
            elif wide and d in self.rows:
                kind = 3
            out[d] = max(1, (count - 1) * t + max(1, rest[kind % 6]))
            if kind % 3 == 2 and d not in self.rows and self.rows and self.rows[0] in out:
                # where 64 rows of it, or twice as many, end with a tile, or one behind it
                out[d] += (out[self.rows[0]] - 64 * (1 + n // 6 % 2) + n // 3 % 2 - out[d]) % t
            if n == EMPTY and d not in self.rows and d not in self.meaning.needed():
                out[d] = 0
        grid = [(axis.name, axis.dim, axis.tile) for axis in self.kernel.grid]
        for cover in covered(self.kernel):  # those that hang on scalars, which are drawn later, are the scalars' to keep
            own = next(p.type.dims[cover[1]] for p in self.kernel.params if p.name == cover[0])
            if own in out and own not in self.given and needs(cover, grid) <= out.keys():
                reach = Grid(grid, out).reach(cover)
                out[own] = max(out[own], reach.most + 1 if reach is not None else 0)
        return {d: out[d] for d in self.dims}

    def number(self, p: Value, rng: np.random.Generator, sizes: Mapping[str, int], n: int) -> Any:
        positive = "positive" in self.kernel.flags.get(p.name, ())
        if p.type.dtype.is_float:
            among = [q.name for q in self.kernel.params if not isinstance(q.type, Tensor) and q.type.dtype.is_float]
            size = FACTORS.get(KINDS[n % len(KINDS)], ANY[n % len(ANY)]) * APART[among.index(p.name) % len(APART)]
            return size * (1 if positive or n % 3 < 2 else -1)
        return max(int(self.integers(p.name, rng, sizes, (), n)), int(positive))

    def integers(self, name: str, rng: np.random.Generator, sizes: Mapping[str, int], shape: tuple[int, ...], n: int) -> np.ndarray:
        """Positions where they must be inside; else what a bound may be: less than a tile, just that, several, beyond everything."""
        if name in self.meaning.inside:
            return np.asarray(rng.integers(0, self.room(name, sizes), shape))
        edges = {1, 2, 3}
        walked = self.meaning.counts.get(name)
        if walked is not None:  # of a loop or the grid: none at all, turns of every ring, a tile that is not whole
            if n == EMPTY:
                return np.zeros(shape, int)
            if n % 2 == 0:
                whole = max([1, *(sizes[d] // walked for d in self.dims if self.tiles.get(d) == walked)])
                tiles = np.asarray(rng.integers(1, 2 * self.ring + 2, shape))
                return tiles * walked - rng.integers(0, walked, shape) if n % 4 else np.full(shape, whole) * walked
            edges |= {walked - 1, walked, walked + 1, (self.ring + 1) * walked}
        for d in (d for d in self.dims if d in self.tiles and walked != 1):
            t, size = self.tiles[d], sizes[d]
            edges |= {t // 2, t - 1, t, t + 1, 2 * t + 3, size // 2, size, size + t}
        pool = np.array(sorted(e for e in edges if e > 0))
        if n % 4 == 0:  # a long run: a bound that lets it be long
            pool = pool[-4:]
        return rng.choice(pool, shape) if n or shape else pool[0]

    def ends(self, name: str, sizes: Mapping[str, int], shape: tuple[int, ...], n: int) -> np.ndarray:
        """Where runs that lie one behind the other begin; where they end, for every other tensor that speaks of the same dimensions."""
        dims = self.meaning.begins[name]
        room = min(sizes.get(d, 1) if isinstance(d, str) else d for d in dims)
        alike = [other for other, of in self.meaning.begins.items() if of & dims]
        rng = np.random.default_rng([n, 10, *map(ord, alike[0])])
        ends = np.sort(rng.integers(0, room + 1, int(np.prod(shape)) + 1))
        ends[0], ends[-1] = (0, room) if n % 2 == 0 else (ends[0], ends[-1])
        return ends[alike.index(name) % 2:][:int(np.prod(shape))].reshape(shape)

    def alone(self, name: str) -> bool:
        """Whether no other tensor says where runs begin or end in the same dimensions."""
        return not any(of & self.meaning.begins[name] for other, of in self.meaning.begins.items() if other != name)

    def room(self, name: str, sizes: Mapping[str, int]) -> int:
        """How many positions there are in every dimension that a number is one of."""
        return max(1, min([sizes.get(d, 1) if isinstance(d, str) else d for d in self.meaning.inside.get(name, ())], default=4))

    def inputs(self, trial: Trial, n: int) -> dict[str, Any]:
        """The tensors and numbers of trial n."""
        rng = np.random.default_rng([n, 9])
        out: dict[str, Any] = dict(trial.numbers)
        floats = [p for p in self.kernel.params if isinstance(p.type, Tensor) and p.type.dtype.is_float and not self.made(p)]
        for p in self.kernel.params:
            if not isinstance(p.type, Tensor):
                continue
            if self.made(p):
                continue
            shape = tuple(d if isinstance(d, int) else trial.sizes[d] for d in p.type.dims)
            if p.type.dtype.is_float:
                kind = "normal" if p is floats[-1] and trial.kind in ("equal", "level") else trial.kind
                x = self.floats(rng, shape, kind, floats.index(p) % 2)
            elif p.name in self.turns:
                x = np.zeros(shape)
            elif p.type.dtype.bits == 8 and p.name not in self.meaning.inside:
                x = rng.integers(*p.type.dtype.range, shape, endpoint=True)
            elif p.name in self.meaning.begins and n % 4 < 3 and not (p.name in self.meaning.counts and self.alone(p.name)):
                x = self.ends(p.name, trial.sizes, shape, n)
            elif p.name not in self.meaning.inside and (n % 2 or p.name in self.meaning.counts):
                x = self.integers(p.name, rng, trial.sizes, shape, n)
            else:
                x = np.asarray(rng.integers(0, self.room(p.name, trial.sizes), shape))
            out[p.name] = to_dtype(x, p.type.dtype)
        return out

    def follows(self, p: Value) -> bool:
        """Whether the sizes of an output follow from the inputs', so that a run makes it."""
        inputs = [q for q in self.kernel.params if isinstance(q.type, Tensor) and not is_made(self.kernel, q.name)]
        known = {d for q in inputs for d in q.type.dims}
        made = {loop for loop, _, _ in self.kernel.meta.get("until_loops", ())}
        return all(isinstance(d, int) or d in known or d in made or d.startswith("UNTIL_") for d in p.type.dims)

    def made(self, p: Value) -> bool:
        """An output that nobody gives."""
        return is_made(self.kernel, p.name) and p.name not in self.read and self.follows(p)

    def floats(self, rng: np.random.Generator, shape: tuple[int, ...], kind: str, second: int) -> np.ndarray:
        """second: for the other one of two tensors that meet: where the first has short stretches it has long ones."""
        x: np.ndarray = rng.standard_normal(shape)
        table = len(shape) > 1
        #: half of the tables that a tensor has go up along their rows, the others down
        tables = (np.arange(np.prod(shape[:-2], dtype=int)) + rng.integers(6)).reshape(*shape[:-2], 1)
        ways = tables[..., None] % 2 * 2 - 1
        if kind in ("leaping", "tiny") and table:
            # sums that are exact, in stretches: near zero, far away, near again, twice as far; with tiny ones near zero is zero
            at = np.arange(shape[-2])[:, None] * ways + (shape[-2] - 1) * (ways < 0)
            level = np.array([0, 1, 0, 2])[(at >= rng.integers(0, max(1, shape[-2]), (3, *tables.shape, 1))).sum(0)]
            x = rng.integers(-2, 3, shape) * ((level == 0) & (kind == "leaping") if second else 1.0)
            x[..., :1] = 27648.0 * level if second else 1024.0 * rng.integers(17, 32, (*shape[:-1], 1))
            x = x * np.where(np.arange(shape[-1]), 1.0, 1.0 if kind == "leaping" else 2.0**-14)
        elif kind in ("huge", "level"):
            x = 16384.0 * rng.integers(-2, 3, shape)
        elif kind == "mixed" and table:
            # one table ends among huge rows, the next among small ones, and one has no others
            turns = np.cumsum(rng.random(shape[:-1]) < (0.02 * (tables % 3 < 2) if second else 0.15), -1)
            turns = turns - turns[..., -1:] + (tables % 3 == 0)
            x = rng.integers(-2, 3, shape) * np.where(turns % 2, 16384.0, 1.0)[..., None]
        elif kind == "drifting" and table:
            ramp = np.linspace(-1.5, 1.5, shape[-2])[:, None] * ways
            x = np.abs(x) * (np.abs(ramp) if second else ramp)
        elif kind == "sunken" and table and not self.products:  # far below zero, behind or in front of what is nothing at all
            at = np.arange(shape[-1]) * 2 // shape[-1]
            x = np.where(at == rng.integers(0, 3, (*shape[:-1], 1)), -np.inf, x - 256.0)
        elif kind == "sunken" and table:
            ramp = 16.0 ** (np.linspace(-1, 1, shape[-2])[:, None] * ways)
            x = np.abs(x) * (np.where(ways < 0, -0.25 * ramp, -0.02) if second else 1)
        elif kind == "shifted" and table:
            own = rng.random(shape[-2]) < (0.03 if second else 1)
            x = x[..., np.arange(shape[-2]) * own, :] * (7 / np.sqrt(max(1, shape[-1]))) ** 0.5
            x[..., :1] = 96.0
        elif kind == "distant" and shape:
            x = 16.0 * rng.integers(-1, 2, shape)
            x[..., :1] = 27648.0 if second else 23552.0  # of a product that is no power of two, not every multiple is exact
        elif kind == "quiet":
            x *= 0.25
        elif kind == "loud":
            x *= rng.choice([0.5, 4.0], (*shape[:-1], 1) if shape else ())
        if kind in ("equal", "level"):
            x = np.broadcast_to(x[..., :1, :] if table else x, shape)
        elif kind in ("rising", "falling") and table:
            ramp = np.geomspace(0.25, 4.0, shape[-2])[:, None]
            x *= ramp if kind == "rising" else ramp[::-1]
        return x
