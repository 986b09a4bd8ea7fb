"""Whether two machine kernels take the same steps: both are run by symbols, at many sizes, and what they do is compared.

A role's run is a row of steps: ops that have an effect, with numbers, slots, phases and the expressions that they work on. Whole numbers
are computed, everything else is an expression over what was read; a condition on values of tensors goes one way or the other, the same in
both kernels. Not a difference: what things are called, arithmetic that nothing uses, code that no run reaches, the order of reads and of
copies between two steps, which of several groups a copy is in when the same wait covers it, waits for what has come already, copies that
nothing reads, guards on what lies inside.

`alike` is a proof for the sizes that it tries: every remainder that matters, of some tiles, each way around.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from math import prod
from typing import Any

import numpy as np

from fcgen.ir.access import Access
from fcgen.ir.core import Block, Kernel, Op, Role, Value, walk, walk_kernel
from fcgen.ir.elementwise import FNS
from fcgen.ir.ops import OPS
from fcgen.ir.types import Cursor, Frag, Mbarrier, Scalar, Tensor, i1
from fcgen.sim.draw import Draws

#: how conditions on values of tensors go: all one way, all the other, each as it likes
WAYS = (True, False, 1, 2)
#: expressions are compared by number: one table for all kernels
Names = dict[Any, int]
READS = ("ld_shared", "ldmatrix", "wmma_load", "ld_global", "gather")
#: facts of a kernel that no step shows
FACTS = ("smem_bytes", "persistent", "aligned", "ranges", "min_blocks", "target", "stage")


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


def kept(beside: list[Any]) -> frozenset[Any]:
    return frozenset(x.what if isinstance(x, Copy) else x for x in beside if not isinstance(x, Copy) or x.read)


class Steps:
    """One run of a role. place: the program's index on each axis; posted: what another role or one thread has, for `fetch`."""

    def __init__(self, kernel: Kernel, role: Role, names: Names, sizes: Mapping[str, int], numbers: Mapping[str, Any],
                 place: tuple[int, ...], warp: int, way: bool | int, posted: list[tuple[Any, ...]], blocks: int):
        self.sizes, self.names, self.warp, self.role, self.way, self.blocks = sizes, names, warp, role, way, blocks
        self.steps: list[Any] = []
        self.beside: list[Any] = []  # reads and copies since the last step
        self.unread: dict[Any, list[Copy]] = {}  # view -> copies into it that nothing has looked at
        self.parts: list[tuple[str, int, str]] = []  # (loop, tile, copy of its body) in turns
        self.group: list[Any] = []
        self.groups: list[list[Any]] = []
        self.waited: set[Any] = set()
        counts = [g.count(sizes) for g in kernel.grid]
        self.block_number = sum(place[n] * prod(counts[m] for m in kernel.order[:k]) for k, n in enumerate(kernel.order))
        self.posted, self.fetched, self.claimed = posted, iter(posted), blocks
        at = kernel.meta.get("smem_offsets", ())
        self.env: dict[Value, Any] = {p: numbers.get(p.name, ("param", p.name)) for p in kernel.params}
        self.env.update({b: ("buffer", str(b.type), at[n] if n < len(at) else n, 0) for n, b in enumerate(kernel.buffers)})
        self.env.update(zip(role.body.args, place))
        self.block(role.body)
        self.step("end")
        self.settle()

    def settle(self) -> None:
        """Leaves out what turns out not to matter: copies that nothing reads, and waits for them alone."""
        out, carried = [], frozenset[Any]()
        for beside, what in self.steps:
            carried |= kept(beside)
            what = ("landed", kept(what[1])) if what[0] == "landed" else what
            if what[0] != "landed" or what[1]:
                out.append((carried, what))
                carried = frozenset()
        self.steps = out

    def step(self, *what: Any) -> int:
        self.steps.append((self.beside, what))
        self.beside = []
        return len(self.steps)

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
                while self.true(go) and len(self.steps) < 100_000:
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
        special = getattr(self, "do_" + op.kind, None)
        if special is not None:
            return special(op, xs)
        bars = next((v.type for v in op.operands if isinstance(v.type, Mbarrier)), None)
        if bars is not None:  # of a cursor a barrier sees the slot; of what it counts, the phase
            xs = [x % bars.slots if isinstance(v.type, Cursor) else x for v, x in zip(op.operands, xs)]
        attrs = self.attributes(op, xs)
        types = tuple(str(r.type) for r in op.results)
        if op.kind in READS:
            self.beside.append((op.kind, attrs, *xs))
            return self.name(op.kind, attrs, types, *xs, len(self.steps))
        if OPS[op.kind].effect == "none":
            return self.pure(op, xs, attrs, types)
        at = self.step(op.kind, attrs, *xs)
        return [("made", at, n) for n in range(len(op.results))]

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
                self.name("full", (), types, chosen)
        if op.kind in FNS and FNS[op.kind].commutative:
            xs = sorted(xs, key=repr)
        return self.name(op.kind, attrs, types, *xs)

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
        return op["value"] if not op.result.type.dtype.is_float else self.name("const", repr(op["value"]), op["dtype"])

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

    def do_claim(self, op: Op, xs: list[Any]) -> int:
        self.step("claim")
        self.claimed += 1
        return self.claimed - 1

    def do_post(self, op: Op, xs: list[Any]) -> None:
        self.posted.append(tuple(xs[:-1]))
        self.step("post", xs[-1])  # who fetches it shows what it makes of it

    def do_fetch(self, op: Op, xs: list[Any]) -> list[Any]:
        self.step("fetch", *xs)
        return list(next(self.fetched, (0,) * len(op.results)))

    def do_slot(self, op: Op, xs: list[Any]) -> Any:
        kind, n, at, _ = xs[0]
        return kind, n, at, (self.whole(xs[1]) + op["ahead"]) % op.operands[0].type.slots

    def do_cp_async(self, op: Op, xs: list[Any]) -> None:
        copy = Copy(("cp_async", self.attributes(op, xs), *xs))
        self.unread.setdefault(xs[-1], []).append(copy)
        self.beside.append(copy)
        self.group.append(copy)

    def do_commit_group(self, op: Op, xs: list[Any]) -> None:
        self.groups.append(self.group)
        self.group = []

    def do_wait_group(self, op: Op, xs: list[Any]) -> None:
        done = self.groups[:len(self.groups) - op["n"]] if op["n"] else self.groups
        self.step("landed", [c for g in done for c in g])
        self.groups = self.groups[len(done):]

    def do_barrier(self, op: Op, xs: list[Any]) -> None:
        self.step("barrier", op.get("parts", 1))

    def do_mbar_wait(self, op: Op, xs: list[Any]) -> None:
        slots = op.operands[0].type.slots
        wait = ("mbar_wait", xs[0], xs[1] % slots, xs[1] // slots - op["lag"])
        if wait[-1] >= 0 and wait not in self.waited:
            self.waited.add(wait)
            self.step(*wait)

    def do_mbar_arrive(self, op: Op, xs: list[Any]) -> None:
        self.step("mbar_arrive", op.get("cluster"), xs[0], (xs[1] - op.get("lag", 0)) % op.operands[0].type.slots)


def facts(kernel: Kernel) -> Any:
    """What a kernel is besides its steps."""
    return ([f"{p.name}: {p.type}" for p in kernel.params], kernel.flags, kernel.grid, kernel.order,
            [(r.name, r.warps, r.regs) for r in kernel.roles], [str(b.type) for b in kernel.buffers],
            [kernel.meta.get(k) for k in FACTS])


def situations(kernel: Kernel) -> Iterator[tuple[dict[str, int], dict[str, int], tuple[int, ...]]]:
    """(sizes, numbers, place of the program): remainders of every kind over a few tiles."""
    draws = Draws(kernel, {}, kernel, 1)
    whole = [p.name for p in kernel.params if not isinstance(p.type, Tensor) and not p.type.dtype.is_float]
    plain = [d for d in draws.dims if d not in draws.tiles]
    choices: dict[str, tuple[int, ...]] = {d: (2, 4, 516) if n == 1 else (2,) for n, d in enumerate(plain)}
    if draws.persistent:  # a block does them all
        choices = {d: (1 + (n == 1),) for n, d in enumerate(plain)}
    for d, t in draws.tiles.items():
        if d in draws.dims:
            choices[d] = (1, t, t + t // 2 + 1, 3 * t + 1) if d in draws.rows else (0, 1, t - 1, t, t + 1, 2 * t, 3 * t + t // 2 + 1, 4 * t)
    steps = max([t for d, t in draws.tiles.items() if d not in draws.rows], default=8)
    for point in product(*choices.values()):
        sizes = dict(zip(choices, point))
        counts = [g.count(sizes) for g in kernel.grid]
        for number in (1, steps // 2, 2 * steps + 3, 10**6)[:4 if whole else 1]:
            numbers = {name: 0 if name in draws.meaning.inside else number for name in whole}
            if draws.persistent or 0 in counts:
                yield sizes, numbers, tuple(c - 1 for c in counts)
            else:
                yield from ((sizes, numbers, place) for place in product(*(range(c) if g.tile > 1 else (c - 1,)
                                                                           for g, c in zip(kernel.grid, counts))))


def runs(kernel: Kernel, names: Names, sizes: Any, numbers: Any, place: Any, way: bool | int) -> list[Steps]:
    """What each role does, and each part of its rows."""
    posted: list[tuple[Any, ...]] = []
    out = []
    for role in kernel.roles:
        parts = max([op["parts"] for op in walk(role.body) if op.kind == "row_part"], default=1)
        out += [Steps(kernel, role, names, sizes, numbers, place, n * role.warps // parts, way, posted, 2) for n in range(parts)]
    waited = {what[1] for run in out for _, what in run.steps if what[0] == "mbar_wait"}
    for run in out:  # arrivals that nobody waits for
        run.steps = [s for s in run.steps if s[1][0] != "mbar_arrive" or s[1][2] in waited]
    return out


def compare(a: Kernel, b: Kernel, same: Callable[[Steps, Steps], bool], ways: tuple[bool | int, ...] = WAYS, every: int = 1) -> bool:
    """every: only each so many-th situation, for a quick look."""
    if facts(a) != facts(b):
        return False
    names: Names = {}
    ways = ways[::2] if a.meta.get("persistent", "none") != "none" else ways
    return all(same(x, y) for situation in islice(situations(a), None, None, every) for way in ways
               for x, y in zip(runs(a, names, *situation, way), runs(b, names, *situation, way), strict=True))


def alike(a: Kernel, b: Kernel, every: int = 1) -> bool:
    """Both take the same steps in every situation."""
    return compare(a, b, lambda x, y: x.steps == y.steps, every=every)


def masks_more(a: Kernel, b: Kernel, every: int = 1) -> bool:
    """The loops of b come to the same tiles, or to more that lie behind, and where that is not as in a, by the copy of their body that
    masks what is outside."""
    def same(x: Steps, y: Steps) -> bool:
        own = {(n, i): p for n, i, p in x.parts}
        other = {(n, i): p for n, i, p in y.parts}
        more = [t for t in other if other[t] != own.get(t)]
        return own.keys() <= other.keys() and all(other[t] == "masked" and t[1] >= 0 for t in more)

    return any("part" in op.attrs for op in walk_kernel(a)) and only_numbers(a, b) and compare(a, b, same, (1,), every)


def only_numbers(a: Kernel, b: Kernel) -> bool:
    """They differ in how whole numbers are computed, and in nothing else."""
    def pure(op: Op) -> bool:
        return bool(op.results) and all(isinstance(r.type, Scalar) for r in op.results) and OPS[op.kind].effect == "none"

    def same(x: Op, y: Op) -> bool:
        return x.kind == y.kind and x.attrs == y.attrs and [v.name for v in x.operands] == [v.name for v in y.operands]

    return all(same(x, y) or (pure(x) and pure(y)) for x, y in zip(walk_kernel(a), walk_kernel(b)))


def always(a: Kernel, b: Kernel) -> bool:
    """b is a with a branch taken in any case that a vote of lanes takes in a. The work of such a branch is by row, and rows that did not
    ask for it go through it whenever another row of their warp does: it is right for them."""
    makers = {r: op for op in walk_kernel(a) for r in op.results}
    changed = [op for op, other in zip(walk_kernel(a), walk_kernel(b)) if op.kind == other.kind == "if" and op.operands != other.operands]
    if len(changed) != 1 or not _voted(changed[0].operands[0], makers, a):
        return False
    true = Op("const", (), (Value(Scalar(i1), "true"),), {"value": True, "dtype": "i1"})

    def copy(block: Block) -> Block:
        ops: list[Op] = []
        for op in block.ops:
            new = replace(op, regions=tuple(map(copy, op.regions)))
            ops += [true, replace(new, operands=true.results)] if op is changed[0] else [new]
        return Block(block.args, tuple(ops))

    return alike(replace(a, roles=tuple(replace(r, body=copy(r.body)) for r in a.roles)), b)


def _voted(v: Value, makers: Mapping[Value, Op], kernel: Kernel) -> bool:
    """A vote, or a value that is carried and begins as one."""
    for _ in range(8):
        op = makers.get(v)
        if op is None:
            outer = next((o for o in walk_kernel(kernel) for r in o.regions if v in r.args), None)
            if outer is None:
                return False
            args = outer.regions[0].args
            v = outer.operands[args.index(v) - len(args)]
        elif op.kind in ("if", "for", "while"):
            v = op.regions[0].yielded[op.results.index(v) - len(op.results)]
        else:
            return op.kind == "vote_any"
    return False
