"""Stage isolation: a kernel that writes one named value out, so that a wrong intermediate is found in one call.

In: tile IR and the name of a value in it: a variable's last value by its name, an earlier one as the kernel's text calls it (`s.1`; the
first is `s.0`). Out: tile IR with one output, `UNTIL`, of shape [grid axes..., iterations of each enclosing
loop..., the value's own axes...]; every other store, and what only they needed, is gone. The value is what it was: nothing before it
changes.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import FcError, did_you_mean
from ..ir.core import Block, Kernel, Op, Value, definitions, walk
from ..ir.depends import followed
from ..ir.rewrite import Builder, edited, remove_dead
from ..ir.text import value_names
from ..ir.types import Tensor, i1, i32


def until(kernel: Kernel, name: str) -> Kernel:
    texts = value_names(kernel)
    made = [(op, r) for op in walk(kernel.body) for r in op.results if r.name]
    exact = name.removesuffix(".0") if name.endswith(".0") else name
    found = [(op, r) for op, r in made if (texts[r] == exact if "." in name else r.name == name)]
    if not found:
        raise FcError("trace/usage", f"{kernel.name} has no value called {name}", expected=", ".join(texts[r] for _, r in made), got=name,
                      hint=did_you_mean(name, (texts[r] for _, r in made)))
    op, value = found[-1]
    loops = _enclosing(kernel.body, op) or ()
    dtype = i32 if value.type.dtype == i1 else value.type.dtype
    dims: list[str | int] = [g.dim if g.tile == 1 else f"UNTIL_{g.name}" for g in kernel.grid]
    dims += [f"UNTIL_loop{n}" for n in range(len(loops))]
    out = Value(Tensor(dtype, (*dims, *value.type.shape)), "UNTIL")
    defs = definitions(kernel.body)
    counted = tuple((f"UNTIL_loop{n}", dim, loop["tile"]) for n, loop in enumerate(loops) if (dim := _dimension(loop, defs)) is not None)
    at = (*kernel.body.args, *(loop.regions[0].args[0] for loop in loops))
    body = _written(kernel.body, op, value, out, at)
    body = remove_dead(body)
    flags = {k: tuple(f for f in v if f not in ("out", "kept")) for k, v in kernel.flags.items()}
    used = {v for o in walk(body) for v in o.operands}
    params = tuple(p for p in kernel.params if p in used or "out" not in kernel.flags.get(p.name, ()))
    return replace(kernel, name=f"{kernel.name}_until_{name}", params=(*params, out), flags={**flags, "UNTIL": ("out",)},
                   meta={**kernel.meta, "until_loops": counted}).with_body(body)


def _dimension(loop: Op, defs: dict[Value, Op]) -> str | None:
    """The tensor dimension that a loop's upper bound counts the tiles of, if it is one."""
    if not loop.get("tile"):
        return None
    sizes = {op["dim"] for op in (followed(loop.operands[1:2], defs) or ()) if op.kind == "size"}
    return sizes.pop() if len(sizes) == 1 else None


def _enclosing(block: Block, target: Op) -> tuple[Op, ...] | None:
    """The loops around an op, outermost first."""
    for op in block.ops:
        if op is target:
            return ()
        for r in op.regions:
            inner = _enclosing(r, target)
            if inner is not None:
                return (op, *inner) if op.kind == "for" else inner
    return None


def _written(block: Block, target: Op, value: Value, out: Value, at: tuple[Value, ...]) -> Block:
    """With a store of the value behind the op that makes it, and no other store."""
    b = Builder(target.loc)
    v = value
    if value.type.dtype == i1:
        one, zero = (b.emit("const", value=n, dtype="i32") for n in (1, 0))
        if value.type.shape:
            one, zero = (b.emit("full", n, shape=value.type.shape) for n in (one, zero))
        v = b.emit("select", value, one, zero)
    index = ("at",) * len(at) + ("all",) * len(value.type.shape)
    b.do("store", out, v, *at, index=index, guard=(False,) * len(value.type.shape))
    return edited(block, lambda op: () if op.kind == "store" else [op, *b.ops] if value in op.results else op)
