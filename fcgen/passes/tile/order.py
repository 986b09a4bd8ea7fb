"""order: which programs of the grid run next to each other, and which run first.

In and out: tile IR; only the kernel's `order` and the `reverse` and `cluster` of grid axes change. Tiled axes vary fastest, so that
programs that run at the same time read the same tiles of the other operands from L2; then the remaining axes, the last one first. Where a
loop reads tiles that no two programs along the tiled axes share, but those along another axis do, that axis comes first of all. With
`longest_first`, an axis along which work grows is walked backwards: the programs with the most work start first, and the short ones fill
the end of the last wave. Programs that wait for their turn begin in the order of their turns. The neighbours that a cluster is made of
come before any other axis.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.core import Kernel, walk
from ...ir.depends import depending
from ...ir.schedule import Schedule
from ...ir.target import Target
from ..facts.clusters import axis_of
from ..facts.work import waits, works


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    axes = range(len(kernel.grid))
    grid, follow = kernel.grid, [depending(kernel.body, i) for i in kernel.body.args]
    loops = [op for op in walk(kernel.body) if op.kind == "for"]
    tiles = [o for op in loops for o in walk(op.regions[0]) if o.kind == "load" and len(o.result.type.shape) > 1]
    follows = {a: {o for o in tiles if not follow[a].isdisjoint(o.operands)} for a in axes}
    tiled = [follows[a] for a in axes if grid[a].tile > 1]
    own = set(tiles).intersection(*tiled) if tiled else set()
    order = sorted(axes, key=lambda a: (not own - follows[a], grid[a].tile == 1, -a))
    last_first = lambda a: way == -1 if (way := waits(kernel, a)) else schedule.longest_first and grid[a].tile > 1 and works(kernel, a) == 1
    grid = tuple(replace(g, reverse=True) if last_first(a) else g for a, g in enumerate(kernel.grid))
    cluster = axis_of(kernel, schedule, target)
    if cluster is not None:
        grid = tuple(replace(g, cluster=cluster[1]) if a == cluster[0] else g for a, g in enumerate(grid))
    return replace(kernel, order=tuple(order), grid=grid)
