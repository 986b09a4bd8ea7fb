"""The launch grid in text: a program's index on each axis, from the number of its block."""

from __future__ import annotations

from .cuda_emit import Emitter
from .cuda_text import X, binary


def grid(em: Emitter) -> None:
    """Program indices from the linear block number, the fastest axis of `kernel.order` first."""
    kernel = em.kernel
    order = list(kernel.order) or list(range(len(kernel.grid)))
    users = em.plan.users
    left = X("blockIdx.x")
    for n, a in enumerate(order):
        axis, arg = kernel.grid[a], kernel.body.args[a]
        used, last = arg in users, n == len(order) - 1
        if last and not (used and axis.reverse):
            size = X("")
        else:
            size = em.size(axis.dim)
        if isinstance(axis.dim, int):
            count = X(str(-(-axis.dim // axis.tile)))
        elif axis.tile == 1:
            count = size
        elif last and not (used and axis.reverse):
            count = X("")
        else:
            count = X(em.names(f"{arg.name or axis.name}_tiles"))
            em.w.line(f"const int {count} = ({size} + {axis.tile - 1}) / {axis.tile};")
        if used:
            x = left if last else binary("%", left, count)
            if axis.reverse:
                x = X(f"{count} - 1 - {x.within(80)}", 70)
            name = em.names(arg.name or axis.name)
            em.w.line(f"const int {name} = {_int(x)};")
            em.scalars[arg] = X(name)
            em.nonneg.add(arg)
        if not last and any(kernel.body.args[o] in users for o in order[n + 1:]):
            rest = binary("/", left, count)
            if n + 2 == len(order):
                left = rest
            else:
                name = em.names("rest")
                em.w.line(f"const int {name} = {_int(rest)};")
                left = X(name)


def _int(x: X) -> str:
    """blockIdx.x is unsigned: make the arithmetic signed."""
    return x.text.replace("blockIdx.x", "int(blockIdx.x)") if x.text != "blockIdx.x" else x.text
