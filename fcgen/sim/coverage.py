"""What of a kernel has run: which ops, which way its branches went, how far its rings went around.

Recorded by the simulator as it goes, over as many runs as one `Coverage` is given to; told in the kernel's own words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..ir.core import Kernel, Op, Value, walk_kernel
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
    """Ops that no run came to, without those inside of others that did not run either."""
    inside: set[Op] = set()
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
    """Branches that always went the same way, and which."""
    ways = {op: [w for w in (True, False) if (op, w) in seen.ways] for op in walk_kernel(kernel) if op.kind == "if"}
    return [(op, w[0]) for op, w in ways.items() if len(w) == 1]


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
