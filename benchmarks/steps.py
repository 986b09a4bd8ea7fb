"""A role's run by symbols: what it does to each place, in order, and the expressions that it works on.

Whole numbers are computed, everything else is an expression over what was read; a condition on values of tensors goes one way or the other,
the same in every kernel. A *place* is what ops can meet in: bytes of shared memory with the barriers of their channel, the groups of an
engine, a tensor that is written, the counter of tiles. Two ops in a row that share no place may be exchanged: each log is the same.
Reads of a place between two other events are a set. What a number is multiplied with in the first turn of a loop does not matter where it
begins as zero or as minus infinity: such products are folded, as if all other numbers were finite.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from typing import Any

import numpy as np

from fcgen.ir.access import Access
from fcgen.ir.core import Block, Kernel, Op, Role, Value, walk_kernel
from fcgen.ir.elementwise import FNS
from fcgen.ir.layout import RegLayout
from fcgen.ir.ops import OPS
from fcgen.ir.rings import strays
from fcgen.ir.types import Buffer, Cursor, Frag, Mbarrier, Tensor

#: expressions are compared by number: one table for all kernels
Names = dict[Any, int]
READS = ("ld_shared", "ldmatrix", "wmma_load", "ld_global", "gather")
#: what reads and writes an element wherever the layout says it is
ANYWHERE = ("ld_shared", "st_shared", "ldmatrix", "stmatrix", "cp_async", "slot", "yield")
#: what stores in shared memory through the generic proxy
STORES = ("st_shared", "stmatrix", "wmma_store")
#: hardware units that keep groups
UNITS = {"wgmma": "wgmma", "wgmma_fence": "wgmma", "wgmma_commit": "wgmma", "wgmma_wait": "wgmma", "settle": "wgmma",
         "tma_store": "bulk", "bulk_commit": "bulk", "bulk_wait": "bulk", "claim": "counter", "claim_done": "counter",
         **dict.fromkeys(("barrier", "syncwarp", "cluster_sync", "token_take", "token_give", "token_start"), "warps")}

#: numbers that are told apart from others, as scalars and as tiles of them, and ops that keep a tile of one such number what it is
ZERO, LEAST = ("flat", 0.0), ("flat", -inf)
SPREAD = ("broadcast", "cast", "slice", "transpose", "combine", "reduce")


@dataclass(eq=False)
class Copy:
    """One that is in flight. read: something has looked at where it went."""

    what: Any
    read: bool = False


@dataclass(eq=False)
class Known:
    """A tile of whole numbers, or of truths, that sizes and positions decide."""

    at: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and np.array_equal(self.at, other.at)

    def __hash__(self) -> int:
        return hash(self.at.tobytes())

    def __repr__(self) -> str:
        return f"Known {self.at.shape} {hash(self.at.tobytes())}"


class Places:
    """Where ops of a kernel may meet. of: offset of a buffer -> its place. words: how a buffer is told."""

    def __init__(self, kernel: Kernel):
        given = kernel.meta.get("smem_offsets") or range(0, len(kernel.buffers) << 24, 1 << 24)
        self.at = dict(zip(kernel.buffers, given))
        groups = {b: {b} for b in kernel.buffers}

        def join(a: Value, b: Value) -> None:
            if groups[a] is not groups[b]:
                both = groups[a] | groups[b]
                groups.update(dict.fromkeys(both, both))

        for b, x in self.at.items():
            for c, y in self.at.items():
                if x < y + c.type.bytes and y < x + b.type.bytes:
                    join(b, c)
        views: dict[Value, Value] = {b: b for b in kernel.buffers}
        users: dict[Value, set[str]] = {b: set() for b in kernel.buffers}
        by_cursor: dict[Value, list[Value]] = {}
        roots: dict[Value, Value] = {}
        for role in kernel.roles:
            strays(role.body, roots)
        self.stored: set[Value] = set()
        self.products: set[Value] = set()
        for op in walk_kernel(kernel):
            found = [views[v] for v in op.operands if v in views]
            if op.kind == "slot":
                views[op.result] = found[0]
            for b in found:
                users[b].add(op.kind)
            self.stored.update(found if op.kind in STORES else ())
            self.products.update(found if op.kind == "wgmma" else ())
            for v in op.operands:
                if isinstance(v.type, Cursor):
                    by_cursor.setdefault(roots[v], []).extend(found)
        for used in by_cursor.values():
            for b in used[1:]:
                join(used[0], b)
        first = {b: min(self.at[c] for c in group) for b, group in groups.items()}
        self.of = {self.at[b]: f"smem {first[b]}" for b in kernel.buffers}
        self.words = {b: f"{b.type.dtype}{b.type.shape} {b.type.bytes} x{b.type.slots}"
                      if isinstance(b.type, Buffer) and users[b] <= set(ANYWHERE) else str(b.type) for b in kernel.buffers}
        self.fenced = sorted({self.of[self.at[b]] for b in self.stored})
        self.read_late = sorted({self.of[self.at[b]] for b in self.products})
        written = {op.operands[0] for op in walk_kernel(kernel) if op.kind in ("st_global", "tma_store")}
        self.written = {p.name for p in written}
        read = {v for op in walk_kernel(kernel) if op.kind not in ("st_global", "tma_store") for v in op.operands}
        self.told = {p.name for p in written & read}  # written and read


places_of = lru_cache(maxsize=4)(Places)


class Steps:
    """One run of a role. place: the program's index on each axis; part: which of how many equal parts of its warps; posted: what another
    role has posted for `fetch`."""

    def __init__(self, kernel: Kernel, role: Role, names: Names, sizes: Mapping[str, int], numbers: Mapping[str, Any],
                 place: tuple[int, ...], part: tuple[int, int], way: bool | int, posted: list[tuple[Any, ...]], blocks: int):
        self.sizes, self.names, self.role, self.way, self.blocks = sizes, names, role, way, blocks
        self.warp, self.warps = part[0] * role.warps // part[1], role.warps // part[1]
        self.places, self.flags = places_of(kernel), kernel.flags
        self.logs: dict[str, list[Any]] = {}  # place -> events, and sets of what happened between them in any order
        self.state: dict[str, Any] = {}  # place -> the expression that it has become
        self.unread: dict[Any, list[Copy]] = {}  # view -> copies into it that nothing has looked at
        self.parts: list[tuple[str, int, str]] = []  # (loop, tile, copy of its body) in turns
        self.stores: list[bool] = []  # whether each access that writes a tensor reaches an element of it
        self.group: list[Any] = []
        self.groups: list[list[Any]] = []
        self.waited: set[Any] = set()
        self.touched, self.launched = 0, False  # accesses of tensors; whether those of the kernels in front are over
        self.count = 0
        counts = [g.count(sizes) for g in kernel.grid]
        self.block_number = sum(place[n] * prod(counts[m] for m in kernel.order[:k]) for k, n in enumerate(kernel.order))
        self.posted, self.fetched, self.claimed = posted, iter(posted), blocks
        self.env: dict[Value, Any] = {p: numbers.get(p.name, ("param", p.name)) for p in kernel.params}
        self.env.update({b: ("buffer", self.places.words[b], at, 0) for b, at in self.places.at.items()})
        self.env.update(zip(role.body.args, place))
        self.block(role.body)
        if self.touched and not self.launched:
            self.event(["launch"], "no grid_wait")

    def result(self, heard: set[Any]) -> dict[str, list[Any]]:
        """The logs without what turns out not to matter: copies that nothing reads, waits for them alone, arrivals that nobody hears."""
        out: dict[str, list[Any]] = {}
        for where, log in self.logs.items():
            found: list[Any] = []
            for x in log:
                if isinstance(x, set):
                    kept = frozenset(c.what if isinstance(c, Copy) else c for c in x if not isinstance(c, Copy) or c.read)
                    if kept and found and isinstance(found[-1], frozenset):
                        found[-1] |= kept
                    elif kept:
                        found.append(kept)
                elif x[0] == "landed":
                    kept = frozenset(c.what for c in x[1] if c.read)
                    found += [("landed", kept)] if kept else []
                elif x[0] != "mbar_arrive" or x[2] in heard:
                    found.append(x)
            if found:
                out[where] = found
        return out

    def event(self, where: list[str], *what: Any) -> Any:
        """Something that happens at some places; returns the expression of it there."""
        before = tuple((w, self.state.get(w)) for w in where)
        told = tuple(frozenset(c.what for c in x) if isinstance(x, list) else x for x in what)
        out = self.name("event", told, before)
        for w in where:
            self.logs.setdefault(w, []).append(what)
            self.state[w] = out
        self.count += 1
        return out

    def beside(self, where: list[str], what: Any) -> None:
        """Something that may as well happen a little earlier or later there."""
        for w in where:
            log = self.logs.setdefault(w, [])
            if not log or not isinstance(log[-1], set):
                log.append(set())
            log[-1].add(what)

    def met(self, op: Op, xs: list[Any]) -> list[str]:
        """The places of an op."""
        out = {self.places.of[x[2]] for x in xs if isinstance(x, tuple) and x and x[0] == "buffer"}
        out |= {f"tensor {v.name}" for v in op.operands if isinstance(v.type, Tensor) and v.name in self.places.written}
        if op.kind in UNITS:
            out.add(UNITS[op.kind])
        if op.kind in ("settle", "wgmma_wait"):
            out.update(self.places.read_late)
        if op.kind in ("bulk_wait", "proxy_fence"):
            out.update(self.places.fenced)
        return sorted(out)

    def name(self, *expression: Any) -> tuple[str, int]:
        return "x", self.names.setdefault(expression, len(self.names))

    def chance(self, x: Any) -> random.Random:
        return random.Random(f"{self.way} {x}")

    def whole(self, x: Any) -> int:
        """A number that a tensor holds: any."""
        return int(x) if isinstance(x, int) else self.chance(x).randint(0, 3)

    def true(self, x: Any) -> bool:
        if isinstance(x, (bool, int)):
            return bool(x)
        return self.way if isinstance(self.way, bool) else self.chance(x).random() < 0.5

    def block(self, block: Block) -> None:
        env = self.env
        for op in block.ops:
            if op.kind == "yield":
                return
            xs = [env[v] for v in op.operands]
            if op.kind == "for":
                run = range(self.whole(xs[0]), self.whole(xs[1]))
                body, carried = op.regions[0], xs[2:]
                for i in reversed(run) if op.get("descending") else run:
                    if "part" in op.attrs:
                        self.parts.append((op["label"], i, op["part"]))
                    env.update(zip(body.args, (i, *carried)))
                    self.block(body)
                    carried = [env[v] for v in body.yielded]
                env.update(zip(op.results, carried))
            elif op.kind == "while":
                body, (go, *carried) = op.regions[0], xs
                while self.true(go) and self.count < 100_000:
                    env.update(zip(body.args, carried))
                    self.block(body)
                    go, *carried = (env[v] for v in body.yielded)
                env.update(zip(op.results, carried))
            elif op.kind == "if":
                region = op.regions[0 if self.true(xs[0]) else 1]
                self.block(region)
                env.update(zip(op.results, [env[v] for v in region.yielded]))
            else:
                out = self.run(op, xs)
                env.update(zip(op.results, out if isinstance(out, list) else [out]))

    def run(self, op: Op, xs: list[Any]) -> Any:
        if op.kind not in ("cp_async", "slot"):
            for x in xs:
                for copy in self.unread.pop(x, ()) if isinstance(x, tuple) and x[0] == "buffer" else ():
                    copy.read = True
        self.touched += any(isinstance(v.type, Tensor) for v in op.operands) or op.kind in ("claim", "claim_done")
        special = getattr(self, "do_" + op.kind, None)
        if special is not None:
            return special(op, xs)
        bars = next((v.type for v in op.operands if isinstance(v.type, Mbarrier)), None)
        if bars is not None:  # of a cursor a barrier sees the slot; of what it counts, the phase
            xs = [x % bars.slots if isinstance(v.type, Cursor) else x for v, x in zip(op.operands, xs)]
        attrs = self.attributes(op, xs)
        types = tuple(str(r.type) for r in op.results)
        if OPS[op.kind].effect == "none":
            return self.pure(op, xs, attrs, types)
        where = self.met(op, xs)
        if op.kind in READS:
            self.beside(where, (op.kind, attrs, *xs))
            return self.name(op.kind, attrs, types, *xs, *(self.state.get(w) for w in where))
        if op.kind in ("st_global", "tma_store"):
            self.stores.append(self.reaches(op, xs))
        at = self.event(where, op.kind, attrs, *xs)
        return [self.name("made", at, n) for n in range(len(op.results))]

    def reaches(self, op: Op, xs: list[Any]) -> bool:
        """Whether an access of these warps, cut off at the end of its tensor, reaches anything of it."""
        known, t = dict(zip(op.operands, xs)), op.operands[1].type
        held = isinstance(t, Frag) and isinstance(t.layout, RegLayout) and len(t.shape) == len(Access.of(op).runs)
        first = t.layout.coords(self.role.warps)[self.warp:self.warp + self.warps].reshape(-1, len(t.shape)).min(axis=0) if held else None
        for n, axis in enumerate(Access.of(op).runs):
            start = 0 if axis.start is None else known[axis.start]
            size = axis.dim if isinstance(axis.dim, int) else self.sizes[axis.dim]
            if axis.guard and isinstance(start, int) and start + (0 if first is None else int(first[n])) >= size:
                return False
        return True

    def attributes(self, op: Op, xs: list[Any]) -> Any:
        attrs = dict(op.attrs)
        if "guard" in attrs:
            attrs["guard"] = tuple(self.outside(op, xs))
        return tuple(sorted((k, repr(v)) for k, v in attrs.items()))

    def outside(self, op: Op, xs: list[Any]) -> Iterator[bool]:
        """Along which axes of its tile an access is cut off."""
        known = dict(zip(op.operands, xs))
        for axis in Access.of(op).runs:
            first = 0 if axis.start is None else known[axis.start]
            size = axis.dim if isinstance(axis.dim, int) else self.sizes[axis.dim]
            inside = axis.limit is None and not axis.is_listed and isinstance(first, int) and 0 <= first <= size - axis.size
            yield axis.guard and not inside

    def pure(self, op: Op, xs: list[Any], attrs: Any, types: Any) -> Any:
        if all(isinstance(x, (int, Known)) for x in xs) and (known := self.compute(op, xs)) is not None:
            return known
        if op.kind == "select" and (isinstance(xs[0], int) or xs[1] == xs[2]):
            return xs[1] if xs[0] else xs[2]
        if op.kind == "select" and isinstance(xs[0], Known) and (xs[0].at.all() or not xs[0].at.any()):
            chosen = xs[1] if xs[0].at.all() else xs[2]
            return chosen if isinstance(op.operands[1].type, Frag) and isinstance(op.operands[2].type, Frag) else \
                self.full(types, chosen)
        if op.kind == "full" and len(xs) == 1:
            return self.full(types, xs[0])
        folded = self.fold(op, xs) if types and op.result.type.dtype.is_float else None
        if folded is not None:
            return folded
        if op.kind in FNS and FNS[op.kind].commutative:
            xs = sorted(xs, key=repr)
        return self.name(op.kind, attrs, types, *xs)

    def full(self, types: Any, x: Any) -> Any:
        return x if x in (ZERO, LEAST) else self.name("full", (), types, x)

    def fold(self, op: Op, xs: list[Any]) -> Any:
        """What follows from zeros and minus infinities, if all other numbers are finite."""
        kind, (x, y) = op.kind, (*xs, None, None)[:2]
        if kind in SPREAD and x in (ZERO, LEAST):
            return x
        if kind == "mul" and ZERO in xs:
            return ZERO
        if kind == "mul" and LEAST in xs:
            return LEAST if self.positive(y if x == LEAST else x) else None
        if (kind in ("add", "sub") and x == LEAST) or (kind == "add" and y == LEAST):
            return LEAST
        if (kind == "add" and ZERO in xs) or (kind == "sub" and y == ZERO) or (kind == "max" and LEAST in xs):
            return y if kind != "sub" and x in (ZERO, LEAST) else x
        if kind in ("mul", "div") and self.positive(x) and self.positive(y):
            out = self.name(kind, *sorted(xs, key=repr) if kind == "mul" else xs)
            self.names["positive", out] = 1
            return out
        return ZERO if kind in ("exp", "exp2") and x == LEAST else None

    def positive(self, x: Any) -> bool:
        return ("positive", x) in self.names or (isinstance(x, tuple) and x[0] == "param" and "positive" in self.flags.get(x[1], ()))

    def compute(self, op: Op, xs: list[Any]) -> Any:
        """What follows from sizes and positions alone."""
        t, at = op.result.type, [x.at if isinstance(x, Known) else x for x in xs]
        if op.kind == "broadcast" and isinstance(xs[0], Known):
            (axis,) = op["axes"]
            return Known(np.broadcast_to(at[0][:, None] if axis == 0 else at[0][None, :], t.shape))
        if op.kind == "iota":
            return Known(np.arange(t.shape[0]))
        if op.kind not in FNS or FNS[op.kind].kind in ("float", "bits") or (op.kind in ("floordiv", "mod") and not np.all(at[1])):
            return None
        out = FNS[op.kind].numpy(*at)
        return Known(np.asarray(out)) if isinstance(t, Frag) else bool(out) if t.dtype.name == "i1" else int(out)

    def do_const(self, op: Op, xs: list[Any]) -> Any:
        if not op.result.type.dtype.is_float:
            return op["value"]
        if op["value"] in (0.0, -inf):
            return ZERO if op["value"] == 0 else LEAST
        out = self.name("const", repr(op["value"]), op["dtype"])
        if op["value"] > 0:
            self.names["positive", out] = 1
        return out

    def do_size(self, op: Op, xs: list[Any]) -> int:
        return self.sizes[op["dim"]]

    def do_cursor(self, op: Op, xs: list[Any]) -> int:
        return 0

    def do_advance(self, op: Op, xs: list[Any]) -> int:
        return int(xs[0] + 1)

    def do_row_part(self, op: Op, xs: list[Any]) -> int:
        return int(self.warp * op["parts"] // self.role.warps)

    def do_block_index(self, op: Op, xs: list[Any]) -> int:
        return self.block_number

    def do_block_count(self, op: Op, xs: list[Any]) -> int:
        return self.blocks

    def do_claim(self, op: Op, xs: list[Any]) -> Any:
        self.event(["counter"], "claim")
        self.claimed += 1
        return self.claimed - 1

    def do_post(self, op: Op, xs: list[Any]) -> None:
        self.posted.append(tuple(xs[:-1]))
        self.event(self.met(op, xs), "post", xs[-1])  # who fetches it shows what it makes of it

    def do_fetch(self, op: Op, xs: list[Any]) -> list[Any]:
        self.event(self.met(op, xs), "fetch", *xs)
        return list(next(self.fetched, (0,) * len(op.results)))

    def do_slot(self, op: Op, xs: list[Any]) -> Any:
        kind, words, at, _ = xs[0]
        return kind, words, at, (self.whole(xs[1]) + op["ahead"]) % op.operands[0].type.slots

    def do_cp_async(self, op: Op, xs: list[Any]) -> None:
        copy = Copy(("cp_async", self.attributes(op, xs), *xs))
        self.unread.setdefault(xs[-1], []).append(copy)
        where = self.met(op, xs)
        self.beside(where, copy)
        self.group.append((where, copy))

    def do_commit_group(self, op: Op, xs: list[Any]) -> None:
        self.groups.append(self.group)
        self.group = []

    def do_wait_group(self, op: Op, xs: list[Any]) -> None:
        done = self.groups[:len(self.groups) - op["n"]] if op["n"] else self.groups
        self.groups = self.groups[len(done):]
        landed: dict[str, list[Copy]] = {}
        for where, copy in (pair for group in done for pair in group):
            for w in where:
                landed.setdefault(w, []).append(copy)
        for w, copies in landed.items():
            self.event([w], "landed", copies)

    def do_barrier(self, op: Op, xs: list[Any]) -> None:
        self.event(self.met(op, xs), "barrier", op.get("parts", 1))

    def do_mbar_wait(self, op: Op, xs: list[Any]) -> None:
        slots = op.operands[0].type.slots
        wait = ("mbar_wait", xs[0], xs[1] % slots, xs[1] // slots - op["lag"])
        if wait[-1] >= 0 and wait not in self.waited:
            self.waited.add(wait)
            self.event(self.met(op, xs), *wait)

    def do_mbar_arrive(self, op: Op, xs: list[Any]) -> None:
        self.event(self.met(op, xs), "mbar_arrive", op.get("cluster"), xs[0], (xs[1] - op.get("lag", 0)) % op.operands[0].type.slots)

    def do_grid_wait(self, op: Op, xs: list[Any]) -> None:
        if self.touched and not self.launched:
            self.event(["launch"], "grid_wait", self.touched)
        self.launched = True

    def do_launch_dependents(self, op: Op, xs: list[Any]) -> None:
        """The next grid begins a little earlier or later: it waits for the whole of this one before it touches anything."""
