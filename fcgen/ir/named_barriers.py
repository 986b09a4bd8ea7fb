"""Hardware barriers by number: who uses which of the block's 16, for what, and with how many threads.

0 is the block's own. Tokens name theirs (`id`: one per warpgroup of the role, counted upwards); parts of a role have those from `PARTS` on,
whole roles those from `LAST` downwards, in the kernel's order. One number serves one purpose with one count of threads: two purposes on one
number would let go of each other's warps.
"""

from __future__ import annotations

from .core import Kernel, Op, Role, walk
from .op_table import RuleError, need
from .types import Frag, Mbarrier, Pending

PARTS, LAST = 8, 15
WARPGROUP = 4


def of_role(number: int) -> int:
    """The barrier of all warps of a kernel's role, where roles have their own."""
    return LAST - number


def is_one_thread(role: Role) -> bool:
    """No op of the role works on fragments."""
    return not any(isinstance(v.type, (Frag, Pending)) for op in walk(role.body) for v in (*op.operands, *op.results))


class NamedBarriers:
    """What the ops seen so far take."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.own = len(kernel.roles) > 1 or any(isinstance(b.type, Mbarrier) for b in kernel.buffers)
        self.taken: dict[int, tuple[str, int]] = {}

    def see(self, op: Op, role: int) -> None:
        """Raises RuleError where an op's barriers do not exist or are another purpose's."""
        warps, name = self.kernel.roles[role].warps, self.kernel.roles[role].name
        parts = op.get("parts") or 1
        if op.kind != "barrier":
            groups = warps // WARPGROUP
            need(warps % WARPGROUP == 0 and groups > 1, f"{op.kind}: turns are taken by several warpgroups of a role", "8, 12, ... warps",
                 warps)
            ids, purpose, threads = range(op["id"], op["id"] + groups), f"turns of role {name}", 2 * WARPGROUP * 32
        elif parts > 1:
            need(warps % parts == 0, "barrier: equal parts of the role's warps", f"a divisor of {warps}", parts)
            ids, purpose, threads = range(PARTS, PARTS + parts), f"{parts} parts of role {name}", warps // parts * 32
        elif self.own:
            ids, purpose, threads = range(of_role(role), of_role(role) + 1), f"role {name}", warps * 32
        else:
            return
        need(ids[-1] <= LAST, f"{op.kind}: there are 16 named barriers", f"0 to {LAST}", f"{ids[0]} to {ids[-1]}")
        for n in ids:
            before = self.taken.setdefault(n, (purpose, threads))
            if before != (purpose, threads):
                raise RuleError(f"{op.kind}: named barrier {n} has two purposes", expected=f"{before[0]}, {before[1]} threads",
                                got=f"{purpose}, {threads} threads", hint="turns take other ids")
