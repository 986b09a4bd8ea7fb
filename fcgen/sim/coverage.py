"""What of a kernel has run: which ops, which way its branches went, how far its rings went around.

Recorded by the simulator as it goes, over as many runs as one `Coverage` is given to; told in the kernel's own words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from ..ir.core import Kernel, Op, Value, walk, walk_kernel
from ..ir.types import Buffer, Cursor, Mbarrier


@dataclass
class Coverage:
    """ran: ops. ways: (op, taken) of branches. rounds: how many slots of a ring of tiles or barriers were passed, counted over its end."""

    ran: set[Op] = field(default_factory=set)
    ways: set[tuple[Op, bool]] = field(default_factory=set)
    rounds: dict[Value, int] = field(default_factory=dict)

    def passed(self, ring: Value, slots: int) -> None:
        if slots > self.rounds.get(ring, 0):
            self.rounds[ring] = slots

    def size(self) -> int:
        """Grows whenever something runs for the first time."""
        return len(self.ran) + len(self.ways) + sum(min(n, 2 * ring.type.slots) for ring, n in self.rounds.items())


def never_ran(kernel: Kernel, seen: Coverage) -> list[Op]:
    """Ops that no run came to, without those inside of others that did not run either, and those that none can come to."""
    inside = {op for branch in never_taken(kernel) for op in walk(branch.regions[0])}
    out = []
    for op in walk_kernel(kernel):
        if op in seen.ran or op.kind == "yield":
            continue
        if op not in inside:
            out.append(op)
        inside.update(o for region in op.regions for o in region.ops)
        inside.update(o for region in op.regions for x in region.ops for r in x.regions for o in r.ops)
    return out


def one_way(kernel: Kernel, seen: Coverage) -> list[tuple[Op, bool]]:
    """Branches that always went the same way, and which, where they can go the other one."""
    ways = {op: [w for w in (True, False) if (op, w) in seen.ways] for op in walk_kernel(kernel) if op.kind == "if"}
    never = never_taken(kernel)
    return [(op, w[0]) for op, w in ways.items() if len(w) == 1 and op not in never]


@lru_cache(maxsize=16)
def never_taken(kernel: Kernel) -> frozenset[Op]:
    """Branches whose condition holds for no sizes: a loop over the one tile that is not whole asks whether another one follows."""
    apart = _Apart(kernel)
    return frozenset(op for op in walk_kernel(kernel) if op.kind == "if" and apart.never(op.operands[0]))


class _Apart:
    """How far two scalars of a kernel lie apart at most."""

    def __init__(self, kernel: Kernel):
        self.made = {r: op for op in walk_kernel(kernel) for r in op.results}
        self.lows = {op.regions[0].args[0]: op.operands[0] for op in walk_kernel(kernel) if op.kind == "for"}

    def never(self, condition: Value) -> bool:
        op = self.made.get(condition)
        if op is None or op.kind not in ("lt", "gt"):
            return op is not None and op.kind == "and" and any(map(self.never, op.operands))
        low, high = op.operands if op.kind == "lt" else op.operands[::-1]
        most = self.most(high, low)
        return most is not None and most <= 0

    def number(self, v: Value) -> int | None:
        op = self.made.get(v)
        return op["value"] if op is not None and op.kind == "const" and op["dtype"] == "i32" else None

    def most(self, a: Value, b: Value, left: int = 12) -> int | None:
        """A number that a - b is never above; None where none is seen."""
        x, y = self.number(a), self.number(b)
        if a is b or left == 0 or (x is not None and y is not None):
            return 0 if a is b else None if left == 0 or x is None or y is None else x - y
        found: list[int | None] = []
        more = lambda p, q: self.most(p, q, left - 1)
        for v, sign, step in ((a, 1, lambda p: more(p, b)), (b, -1, lambda p: more(a, p))):
            op = self.made.get(v)
            n = self.number(op.operands[1]) if op is not None and op.kind in ("add", "sub") else None
            if op is not None and n is not None and (d := step(op.operands[0])) is not None:
                found.append(d + sign * (n if op.kind == "add" else -n))
            elif op is not None and op.kind in ("min", "max"):
                each = [step(p) for p in op.operands]
                either = op.kind == ("min" if v is a else "max")  # one bound is enough
                found += each if either else [max(each) if None not in each else None]  # type: ignore[type-var]
        if b in self.lows:
            found.append(more(a, self.lows[b]))
        over = [self.made.get(v) for v in (a, b)]
        if all(op is not None and op.kind == "floordiv" for op in over):
            (p, m), (q, n) = ((op.operands[0], self.number(op.operands[1])) for op in over if op is not None)
            if m is not None and m == n and m > 0 and (d := more(p, q)) is not None:
                found.append(-(-d // m))  # floor((q + d) / m) - floor(q / m)
        return min((d for d in found if d is not None), default=None)


def short_rings(kernel: Kernel, seen: Coverage) -> list[Value]:
    """Rings that something walks and that never went on from their end: a wait for a wrong phase does not show there."""
    walked = set(rings(walk_kernel(kernel)))
    return [b for b in kernel.buffers if b in walked and seen.rounds.get(b, 0) <= b.type.slots]


def rings(ops: Iterable[Op]) -> list[Value]:
    """The rings of tiles and of barriers that ops work on by a count of tiles."""
    out: dict[Value, None] = {}
    for op in ops:
        for v in op.operands:
            counted = isinstance(v.type, Mbarrier) and any(isinstance(x.type, Cursor) for x in op.operands)
            if counted or (op.kind == "slot" and isinstance(v.type, Buffer) and v.type.slots > 1):
                out[v] = None
    return list(out)
