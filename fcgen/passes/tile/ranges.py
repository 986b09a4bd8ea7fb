"""ranges: which sizes and scalars a launch admits, so that nothing overflows.

In: tile IR. Out: the same, with `meta ranges`, a line for each size and i32 scalar, and `meta covers` (`ir.covers`); loads that these do
not answer for in front of their loops say so (`leaves`). Guaranteed: for what
is admitted, no arithmetic on positions, bounds and masks leaves 32 bits (`ir.ranges` says which is followed), and a value that saturates
gives the same results as the one that it stands for. The first run sees the program as it was traced and decides what saturates; the
second one, in front of `place`, sees the bounds and limits that the passes in between have made.
"""

from __future__ import annotations

from ...ir.core import Kernel
from ...ir.covers import covered, stays
from ...ir.ranges import admitted, found, with_ranges
from ...ir.rewrite import edited, map_bodies
from ...ir.schedule import Schedule
from ...ir.target import Target


def run(kernel: Kernel, schedule: Schedule, target: Target | None) -> Kernel:
    covers = covered(kernel)  # of a program that has been through here, what is written there
    if kernel.meta.get("ranges") is None and (stay := stays(kernel)):
        kernel = map_bodies(kernel, lambda body: edited(body, lambda op: op.with_attrs(leaves=stay[op]) if op in stay else op))
    known = admitted(kernel) if kernel.meta.get("ranges") is None else found(kernel, admitted(kernel))
    kernel = with_ranges(kernel, known) if known else kernel
    return kernel.with_meta(covers=covers) if covers else kernel
