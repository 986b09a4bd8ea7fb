"""How long axes of tensors must be: a program reads or writes there at its own place in the grid, or at a number, and no guard stands in
front.

Where tensor and grid name one dimension, that they agree is checked like any other size. What is left stands in `meta covers`, a line
(NAME, axis, dimension of the grid or a number) each, and is checked by the launch, the interpreter and the simulator. It follows from the
program as it was traced: later, a persistent kernel's places are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ..errors import FcError
from .access import Access
from .core import Kernel, Op, Value, walk, walk_kernel
from .op_table import OPS
from .types import Tensor

#: (tensor, axis, dimension of the grid or a number)
Cover = tuple[str, int, str | int]


@lru_cache(maxsize=64)
def covered(kernel: Kernel) -> tuple[Cover, ...]:
    """What `meta covers` says; of a tile kernel without one, what follows from its program."""
    told = kernel.meta.get("covers")
    if told is None:
        return _found(kernel) if kernel.level == "tile" else ()
    dims = {p.name: p.type.dims for p in kernel.params if isinstance(p.type, Tensor)}
    for line in told:
        if not (isinstance(line, tuple) and len(line) == 3 and line[0] in dims and type(line[1]) is int
                and 0 <= line[1] < len(dims[line[0]]) and (type(line[2]) is int or line[2] in {a.dim for a in kernel.grid})):
            raise FcError("ir/verify", "meta covers has the name of a tensor, an axis, and a dimension of the grid or a number",
                          expected="(NAME, 0, H)", got=repr(line))
    return tuple(told)


def _found(kernel: Kernel) -> tuple[Cover, ...]:
    out: dict[Cover, None] = {}
    made = {r: op for op in walk_kernel(kernel) for r in op.results}
    for role in kernel.roles:
        places = {arg: axis.dim for arg, axis in zip(role.body.args, kernel.grid) if axis.tile == 1}
        for op in walk(role.body):
            if OPS[op.kind].reach is not None:
                for n, axis in enumerate(Access.of(op).axes):
                    want = _least(axis.start, places, made) if axis.word == "at" and axis.start is not None else None
                    enough = want == axis.dim or (isinstance(want, int) and isinstance(axis.dim, int) and want <= axis.dim)
                    if want is not None and not enough:
                        out[op.operands[0].name, n, want] = None
    return tuple(out)


def _least(at: Value, places: Mapping[Value, str | int], made: Mapping[Value, Op]) -> str | int | None:
    """How long an axis with this position has to be, where that is known."""
    if at in places:
        return places[at]
    op = made.get(at)
    return op["value"] + 1 if op is not None and op.kind == "const" and type(op["value"]) is int else None


def check_covers(covers: tuple[Cover, ...], dims: Mapping[str, tuple[str | int, ...]], sizes: Mapping[str, int]) -> None:
    """FcError "call/argument" where a tensor is shorter than the grid. sizes: of dimensions and of scalars that size the grid."""
    for name, axis, dim in covers:
        own = dims[name][axis]
        have, want = (x if isinstance(x, int) else sizes[x] for x in (own, dim))
        if have < want:
            raise FcError("call/argument", f"axis {axis} of argument `{name}` is too short",
                          expected=f"at least {want}" + (f", the size of {dim}" if isinstance(dim, str) else ""), got=have,
                          hint=f"a program for each of {dim} reaches {name} at its own place" if isinstance(dim, str) else None)
