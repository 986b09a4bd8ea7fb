"""The launch grid in text: a program's index on each axis, from the number of its block."""

from __future__ import annotations

from .emit import Emitter
from .text import ADD, MUL, X, binary, div, mod, mul


def grid(em: Emitter) -> None:
    """Program indices from the linear block number: a block's place in its cluster, then the fastest axis of `kernel.order` first."""
    kernel = em.kernel
    order = list(kernel.order) or list(range(len(kernel.grid)))
    users = em.plan.users
    left = div(X("blockIdx.x"), kernel.cluster)
    if any(a in users for a in kernel.body.args):
        em.w.line("// this program's place in the grid, from its block's number: the fastest axis first")
    for n, a in enumerate(order):
        axis, arg = kernel.grid[a], kernel.body.args[a]
        used, last = arg in users, n == len(order) - 1
        if last and not (used and axis.reverse):
            size = X("")
        else:
            size = next((em.scalars[p] for p in kernel.counts if p.name == axis.dim), None) or em.size(axis.dim)
        span = axis.tile * axis.cluster
        if isinstance(axis.dim, int):
            count = X(str(-(-axis.dim // span)))
        elif span == 1:
            count = size
        elif last and not (used and axis.reverse):
            count = X("")
        else:
            count = X(em.names(f"{arg.name or axis.name}_{'tiles' if axis.cluster == 1 else 'clusters'}"))
            em.w.line(f"const int {count} = ({size} + {span - 1}) / {span};")
        if used:
            x = left if last else binary("%", left, count)
            if axis.reverse:
                x = X(f"{count} - 1 - {x.within(MUL)}", ADD)
            if axis.cluster > 1:
                x = binary("+", mul(x, axis.cluster), mod(X("blockIdx.x"), axis.cluster))
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
