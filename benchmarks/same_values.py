"""Whether two machine kernels that compute whole numbers otherwise do the same, or the same by other steps.

What can differ are bounds, positions and conditions that follow from sizes, numbers and the place of a program: no value of a tensor has a
part in them. Both are run by symbols at a dense set of sizes, which tells at which of them a step is other (elsewhere nothing is, and that
is a proof). Those are the ones at which the edited kernel is then simulated, on values of which a term more or less shows, on such that
take rare branches, and on such that take none; what it computes is compared with the tile program.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Any

from fcgen.errors import FcError
from fcgen.ir.core import Kernel, Op, Value, walk_kernel
from fcgen.ir.ops import OPS
from fcgen.ir.target import Target
from fcgen.ir.types import Scalar, Tensor
from fcgen.sim.draw import Draws
from fcgen.sim.trial import Oracle, run_trials

from .alike import parts_of, runs, same_facts
from .steps import Names

#: trials whose kind of values is taken: normal, leaping far away, quiet
TRIALS = (0, 3, 12)
#: ops that make whole numbers of a program's place, or bring them from another role
KNOWN = ("fetch", "claim", "row_part", "block_index", "block_count", "cursor", "advance", "slot")
#: sizes to simulate at, of all that differ
MOST = 40


def pure(op: Op) -> bool:
    """Computes whole numbers from whole numbers alone."""
    return bool(op.results) and OPS[op.kind].effect == "none" and not op.regions and \
        all(isinstance(v.type, Scalar) and not v.type.dtype.is_float for v in (*op.results, *op.operands))


def decided(kernel: Kernel) -> set[Value]:
    """Whole numbers that no value of a tensor has a part in."""
    unknown: set[Value] = set()

    def settle(results: Any, sources: list[Any]) -> bool:
        new = {r for r, vs in zip(results, zip(*sources, strict=True), strict=True) if not unknown.isdisjoint(vs)} - unknown
        unknown.update(new)
        return bool(new)

    again = True
    while again:
        again = False
        for op in walk_kernel(kernel):
            if op.kind == "if":
                again |= settle(op.results, [r.yielded for r in op.regions])
                if op.operands[0] in unknown and not unknown.issuperset(op.results):
                    unknown.update(op.results)
                    again = True
            elif op.regions:
                n, body = len(op.results), op.regions[0]
                carried = [op.operands[-n:], body.yielded[-n:]] if n else []
                if n:
                    again |= settle(body.args[-n:], carried) | settle(op.results, carried)
            elif not unknown.isdisjoint(op.operands) or not (pure(op) or op.kind in KNOWN):
                again |= not unknown.issuperset(op.results)
                unknown.update(op.results)
    return {v for op in walk_kernel(kernel) for v in (*op.results, *op.operands, *(a for r in op.regions for a in r.args))
            if isinstance(v.type, Scalar) and not v.type.dtype.is_float} - unknown


def only_numbers(a: Kernel, b: Kernel) -> bool:
    """They differ in whole numbers that follow from sizes and places, and in nothing else."""
    def numbered(kernel: Kernel) -> tuple[list[Op], dict[Value, Any]]:
        outside = (*kernel.params, *kernel.buffers, *(v for r in kernel.roles for v in r.body.args))
        of: dict[Value, Any] = {v: n for n, v in enumerate(outside)}
        ops = list(walk_kernel(kernel))
        for n, op in enumerate(ops):
            of.update({v: (n, k) for k, v in enumerate((*op.results, *(v for r in op.regions for v in r.args)))})
        return ops, of

    (mine, here), (other, there) = numbered(a), numbered(b)
    if len(mine) != len(other) or not same_facts(a, b):
        return False
    known, too = decided(a), decided(b)
    for x, y in zip(mine, other, strict=True):
        if pure(x) and pure(y):
            if not (known.issuperset(x.results) and too.issuperset(y.results)) and (
                    x.kind != y.kind or x.attrs != y.attrs or [here[v] for v in x.operands] != [there[v] for v in y.operands]):
                return False
        elif x.kind != y.kind or x.attrs != y.attrs or len(x.operands) != len(y.operands) or not all(
                here[v] == there[w] or (v in known and w in too) for v, w in zip(x.operands, y.operands, strict=True)):
            return False
    return True


def sizes_of(kernel: Kernel) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """(sizes, numbers): tiles of every remainder, each size beside each other and a little off, few heads, and once very many."""
    draws = Draws(kernel, {}, kernel, 1)
    whole = [p.name for p in kernel.params if not isinstance(p.type, Tensor) and not p.type.dtype.is_float]
    plain = [d for d in draws.dims if d not in draws.tiles]
    walked = [d for d in draws.dims if d in draws.tiles]
    edges = {d: sorted({int(d not in draws.rows), 1, t // 2, t - 1, t, t + 1, 2 * t - 1, 2 * t, 2 * t + 1, 3 * t + t // 2 + 1})
             for d, t in draws.tiles.items()}
    points = [dict(zip(walked, at)) for at in product(*(edges[d] for d in walked))]
    for d, e in product(walked, walked):  # one a little off the other, or off by tiles
        if d != e:
            t, u = draws.tiles[d], draws.tiles[e]
            for base, by in product((u // 2, u, u + 1, 2 * u + 3), (-1, 0, 1, t // 2, t - 1, t, t + 1, 2 * t)):
                if base + by > 0:
                    points.append({**{f: draws.tiles[f] for f in walked}, e: base, d: base + by})
    steps = max([t for d, t in draws.tiles.items() if d not in draws.rows], default=8)
    few = [dict.fromkeys(plain, 1), {d: (1, 2, 1)[n % 3] for n, d in enumerate(plain)}]
    for point in points:
        for value in (1, steps // 2, 2 * steps + 3, 10**6)[:4 if whole else 1]:
            yield {**few[0], **point}, {name: 0 if name in draws.meaning.inside else value for name in whole}
    number = {name: 0 if name in draws.meaning.inside else 2 * steps + 3 for name in whole}
    yield from (({**few[1], **point}, number) for point in points[::17])
    most = {d: (1, 160, 1)[n % 3] for n, d in enumerate(plain)}
    yield {**most, **{d: 1 if d in draws.rows else 500 for d in walked}}, number


def differ(a: Kernel, b: Kernel, every: int = 1) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Where a step is other."""
    names: Names = {}
    shares, out = parts_of(a, b), []
    persistent = a.meta.get("persistent", "none") != "none"
    for sizes, numbers in islice(sizes_of(a), None, None, every):
        counts = [g.count({**numbers, **sizes}) for g in a.grid]
        places = [tuple(c - 1 for c in counts)] if persistent or 0 in counts else \
            product(*(range(c) if g.tile > 1 else (c - 1,) for g, c in zip(a.grid, counts)))
        for place in places:
            if any(x.result({w[1] for s in mine for w in s.waited}) != y.result({w[1] for s in its for w in s.waited})
                   for mine, its in [[runs(k, names, sizes, numbers, place, 1, shares, a) for k in (a, b)]]
                   for x, y in zip(mine, its, strict=True)):
                out.append((sizes, numbers))
                break
    return out


def same_values(a: Kernel, b: Kernel, target: Target, oracle: Oracle, every: int = 1, most: int = MOST) -> bool:
    """b computes what the oracle does wherever it takes other steps than a. Raises the first report of where it does not.
    every, most: fewer sizes, for a quick look."""
    if not only_numbers(a, b):
        return False
    found = [s for s in differ(a, b, every) if max(s[0].values(), default=0) < 1200]
    chosen = found[::max(1, -(-len(found) // most))]
    for n, (sizes, numbers) in enumerate(chosen):
        for first in TRIALS if n % 3 == 0 else TRIALS[n % 3:n % 3 + 1]:
            try:
                run_trials(b, target, sizes, against=oracle, fixed=numbers, first=first, most=1, seeds=3)
            except FcError:
                if passes(a, target, sizes, numbers, oracle, first):
                    raise
    return True


def passes(kernel: Kernel, target: Target, sizes: dict[str, int], numbers: dict[str, int], oracle: Oracle, first: int) -> bool:
    try:
        run_trials(kernel, target, sizes, against=oracle, fixed=numbers, first=first, most=1, seeds=3)
    except FcError:
        return False
    return True
