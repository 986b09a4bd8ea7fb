"""Stop a kernel at one of its values: `until(kernel, name)` stores that value and nothing else, to look at it.

The kernel gets one more parameter, UNTIL, of the value's dtype (i32 for conditions) and the dimensions
    one per grid axis, counting programs; one per enclosing loop, counting its index; the value's own axes.
A grid axis over single positions of a dimension has that dimension's name; one over tiles is the run-time dimension `UNTIL_<axis>`, a
loop is `UNTIL_I0`, `UNTIL_I1`, ... from the outside in: whoever calls the kernel allocates them large enough. Where a program never
makes the value (an iteration that does not exist, a condition that does not hold) nothing is written.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import FcError
from ..ir.core import Block, Kernel, Op, Value, free_values, remove_dead, walk_kernel
from ..ir.ops import verify
from ..ir.types import Scalar, Tensor, Tile, i1, i32, with_dtype


def text_names(kernel: Kernel) -> dict[Value, str]:
    """Each value's name in the kernel's text: `s`, `s.1`, ..."""
    from ..ir.text import Names

    names = Names()
    for p in kernel.params:
        names.define(p)
    for g, a in zip(kernel.grid, kernel.body.args):
        names.of[a] = names.fresh(g.name)

    def visit(block: Block) -> None:
        for op in block.ops:
            for v in op.results:
                names.define(v)
            for r in op.regions:
                for a in r.args:
                    names.define(a)
                visit(r)

    visit(kernel.body)
    return {v: n.removeprefix("%") for v, n in names.of.items()}


def until(kernel: Kernel, name: str) -> Kernel:
    """The kernel that stores the value `name`. Raises FcError "trace/usage" that lists the names there are."""
    names = text_names(kernel)
    made = [(names[v], v) for op in walk_kernel(kernel) for v in op.results if v.name and isinstance(v.type, (Scalar, Tile))]
    target = next((v for n, v in made if n == name), None)
    if target is None:
        raise FcError("trace/usage", f"{kernel.name} has no value called {name!r}", expected=", ".join(n for n, _ in made), got=name,
                      hint="a variable that is assigned again is s.1, s.2, ... as in the kernel's text")
    out_type = with_dtype(target.type, i32) if target.type.dtype == i1 else target.type
    loops: list[Value] = []
    if not _find(kernel.body, target, loops):
        raise AssertionError("a named value that no block makes")
    dims: list[str | int] = []
    for g in kernel.grid:
        if isinstance(g.dim, int):
            dims.append(g.count({}))
        else:
            dims.append(g.dim if g.tile == 1 else f"UNTIL_{g.name.removesuffix('_i')}")
    dims += [f"UNTIL_I{i}" for i in range(len(loops))]
    out = Value(Tensor(out_type.dtype, (*dims, *out_type.shape)), "UNTIL")
    body = _rewrite(kernel.body, target, out, (*kernel.body.args, *loops))
    body = remove_dead(body)
    params = (*_needed(kernel, body), out)
    flags = {k: v for k, v in kernel.flags.items() if any(p.name == k for p in params)} | {"UNTIL": ("out",)}
    return verify(replace(kernel.with_body(body), params=params, flags=flags))


def _find(block: Block, target: Value, loops: list[Value]) -> bool:
    """Whether the block makes the value; `loops` gets the indices of the loops around it."""
    for op in block.ops:
        if target in op.results:
            return True
        for r in op.regions:
            if op.kind == "for":
                loops.append(r.args[0])
            if _find(r, target, loops):
                return True
            if op.kind == "for":
                loops.pop()
    return False


def _rewrite(block: Block, target: Value, out: Value, at: tuple[Value, ...]) -> Block:
    ops: list[Op] = []
    for op in block.ops:
        if op.kind == "store":
            continue
        ops.append(replace(op, regions=tuple(_rewrite(r, target, out, at) for r in op.regions)))
        if target in op.results:
            value = target
            if target.type.dtype != out.type.dtype:
                value = Value(with_dtype(target.type, out.type.dtype), target.name)
                ops.append(Op("cast", (target,), (value,), {"to": out.type.dtype.name}, (), op.loc))
            rank = len(target.type.shape)
            ops.append(Op("store", (out, value, *at), (), {"index": ("at",) * len(at) + ("all",) * rank, "guard": (False,) * rank}, (), op.loc))
    return Block(block.args, tuple(ops))


def _needed(kernel: Kernel, body: Block) -> tuple[Value, ...]:
    """Parameters that the body still reads, and those that alone say how large a dimension is."""
    read = free_values(body)
    sizes = {op["dim"] for op in walk_kernel(kernel.with_body(body)) if op.kind == "size"} | {g.dim for g in kernel.grid}
    keep = [p for p in kernel.params if p in read]
    for p in kernel.params:
        known = {d for q in keep if isinstance(q.type, Tensor) for d in q.type.dims}
        if p not in read and isinstance(p.type, Tensor) and any(isinstance(d, str) and d in sizes and d not in known for d in p.type.dims):
            keep.append(p)
    return tuple(p for p in kernel.params if p in keep)
