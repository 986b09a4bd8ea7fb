"""Whether two machine kernels do the same: both are run by symbols, at many sizes, and what they do to each place is compared (`steps`).

Not a difference: what things are called, arithmetic that nothing uses, code that no run reaches, the order of what does not meet, which of
several groups a copy is in when the same wait covers it, waits for what has come already, copies that nothing reads, guards on what lies
inside, where in memory the elements of a tile lie that no engine reads.

`alike` is a proof for the sizes that it tries: every remainder that matters, of some tiles, each way around. That what orders two ops still
does is not its question: the simulator's clocks answer it, whatever the order in which things happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice, product
from math import lcm
from typing import Any

from fcgen.ir.core import Block, Kernel, Op, Value, walk, walk_kernel
from fcgen.ir.types import Scalar, Tensor, i1
from fcgen.sim.draw import Draws

from .steps import STORES, Names, Steps, places_of

#: how conditions on values of tensors go: all one way, all the other, each as it likes
WAYS = (True, False, 1, 2)
#: facts of a kernel that no step shows
FACTS = ("smem_bytes", "persistent", "aligned", "ranges", "min_blocks", "target", "stage")


def facts(kernel: Kernel) -> Any:
    """What a kernel is besides its steps."""
    return ([f"{p.name}: {p.type}" for p in kernel.params], kernel.flags, kernel.grid, kernel.order,
            [(r.name, r.warps, r.regs) for r in kernel.roles], len(kernel.buffers), [kernel.meta.get(k) for k in FACTS])


def same_facts(a: Kernel, b: Kernel) -> bool:
    """Of a buffer that is declared otherwise: where its elements lie is nobody's business."""
    return facts(a) == facts(b) and all(x.type == y.type or mine == its for x, y, mine, its in
                                        zip(a.buffers, b.buffers, places_of(a).words, places_of(b).words, strict=True))


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


def parts_of(*kernels: Kernel) -> list[int]:
    """In how many parts of its warps each role tells rows apart, in any of some kernels of the same roles."""
    return [lcm(*(op["parts"] for role in roles for op in walk(role.body) if op.kind == "row_part"))
            for roles in zip(*(k.roles for k in kernels), strict=True)]


def runs(kernel: Kernel, names: Names, sizes: Any, numbers: Any, place: Any, way: bool | int, shares: list[int],
         of: Kernel | None = None) -> list[Steps]:
    """What each role does, and each part of its rows. of: the kernel whose places are asked about."""
    posted: list[tuple[Any, ...]] = []
    return [Steps(kernel, role, names, sizes, numbers, place, (n, parts), way, posted, 2, places_of(of or kernel))
            for role, parts in zip(kernel.roles, shares, strict=True) for n in range(parts)]


Same = Callable[[Steps, Steps, set[Any], set[Any]], bool]


def compare(a: Kernel, b: Kernel, same: Same, ways: tuple[bool | int, ...] = WAYS, every: int = 1) -> bool:
    """every: only each so many-th situation, for a quick look."""
    if not same_facts(a, b):
        return False
    names: Names = {}
    shares = parts_of(a, b)
    ways = ways[::2] if a.meta.get("persistent", "none") != "none" else ways
    for n, situation in enumerate(islice(situations(a), None, None, every)):
        for way in (w if isinstance(w, bool) else w + 4 * n for w in ways):
            x, y = (runs(k, names, *situation, way, shares, a) for k in (a, b))
            heard = [{wait[1] for run in side for wait in run.waited} for side in (x, y)]
            if not all(same(mine, other, *heard) for mine, other in zip(x, y, strict=True)):
                return False
    return True


def alike(a: Kernel, b: Kernel, every: int = 1) -> bool:
    """Both do the same in every situation; a part whose rows lie outside of a tensor may do as it likes with them, if others hear the same
    from it."""
    def same(x: Steps, y: Steps, *heard: set[Any]) -> bool:
        return x.result(heard[0]) == y.result(heard[1]) or (not all(x.stores) and x.stores == y.stores and talk(x) == talk(y))

    return compare(a, b, same, every=every)


def talk(x: Steps) -> dict[Any, list[Any]]:
    """What a part does with each barrier, and stores in shared memory and inside of tensors."""
    out: dict[Any, list[Any]] = {name: log for name, log in x.logs.items() if name.startswith("tensor")}
    for log in x.logs.values():
        for event in log:
            if isinstance(event, tuple) and event[0] in ("mbar_wait", "mbar_arrive", "barrier", *STORES):
                out.setdefault({"mbar_wait": event[1], "mbar_arrive": event[2 % len(event)]}.get(event[0], ""), []).append(event)
    return out


def more_programs(a: Kernel, b: Kernel, every: int = 1) -> bool:
    """b is a with more programs, and none of those stores anything inside of a tensor."""
    if a.meta.get("persistent", "none") != "none" or str(replace(b, grid=a.grid)) != str(a) or a.cluster != b.cluster:
        return False
    if [(g.name, g.reverse) for g in a.grid] != [(g.name, g.reverse) for g in b.grid]:
        return False
    names: Names = {}
    shares, seen = parts_of(a, b), set()
    for sizes, numbers, _ in islice(situations(a), None, None, every):
        counts, more = ([g.count(sizes) for g in k.grid] for k in (a, b))
        if any(m < c for c, m in zip(counts, more)):
            return False
        if (key := (tuple(sizes.items()), tuple(numbers.items()))) in seen:
            continue
        seen.add(key)
        for place in product(*(range(m) if g.tile > 1 else sorted({0, c, m - 1}) for g, c, m in zip(a.grid, counts, more))):
            if any(i >= c for i, c in zip(place, counts)) and all(i < m for i, m in zip(place, more)):
                ran = runs(b, names, sizes, numbers, place, True, shares)
                if any(any(x.stores) for x in ran):
                    return False
    return True


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
