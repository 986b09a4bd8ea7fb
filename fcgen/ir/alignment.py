"""How many bytes one access of a tensor may move, and what a launch must then promise.

An access of n bytes must start on a multiple of n, or the GPU ends the kernel (ld, st, red, bulk copies) or moves other bytes than were
meant. Where an access starts follows from the tensor's pointer, its strides, and the positions along its axes. Of the positions, multiples
are known when a kernel is compiled (`multiple`); pointer and strides are the caller's. So `demands` says of a width: never, or what
pointer and strides must be multiples of (`Promise`). What the accesses of a kernel demand together (`demanded`) stands in the machine IR as
`meta aligned`, and the launch checks exactly that. In tile IR the same line says the most that may be demanded; without one it is what
packed tensors from an allocator have (`natural`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from ..errors import FcError
from .access import Access, accesses
from .core import Kernel, Op, Value, definitions, walk
from .known import multiple
from .types import Frag, Tensor

#: bytes of the widest access of one thread, and of the grain of bulk copies
WIDEST = 16


@dataclass(frozen=True)
class Promise:
    """Bytes that a tensor's pointer, and the stride of each axis but the last (whose stride is one element), are multiples of."""

    pointer: int
    strides: tuple[int, ...]

    def covers(self, other: Promise) -> bool:
        return self.pointer % other.pointer == 0 and all(a % b == 0 for a, b in zip(self.strides, other.strides))

    def both(self, other: Promise) -> Promise:
        return Promise(max(self.pointer, other.pointer), tuple(map(max, self.strides, other.strides)))

    def either(self, other: Promise) -> Promise:
        return Promise(min(self.pointer, other.pointer), tuple(map(min, self.strides, other.strides)))

    @property
    def words(self) -> tuple[int, ...]:
        return (self.pointer, *self.strides)


def nothing(t: Tensor) -> Promise:
    """What every tensor of whole elements keeps."""
    return Promise(t.dtype.bytes, (t.dtype.bytes,) * (len(t.dims) - 1))


def natural(t: Tensor) -> Promise:
    """What a packed tensor has whose rows, where their length is not known, are whole runs of 16 bytes."""
    strides, step = [], t.dtype.bytes
    for axis, dim in reversed([*enumerate(t.dims)][1:]):
        step *= dim if isinstance(dim, int) else WIDEST if axis == len(t.dims) - 1 else 1
        strides.append(gcd(step, WIDEST) or WIDEST)
    return Promise(WIDEST, tuple(reversed(strides)))


def of_arguments(pointer: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> Promise:
    """What a tensor that is given keeps. strides count elements; along an axis of one element nobody steps."""
    steps = tuple(gcd(s * itemsize, WIDEST) if n > 1 else WIDEST for n, s in zip(shape[:-1], strides[:-1]))
    return Promise(gcd(pointer, WIDEST), steps)


def demands(access: Access, size: int, defs: Mapping[Value, Op]) -> Promise | None:
    """What an access of `size` bytes along a row asks of the tensor; None if it is wrong whatever the tensor is."""
    item, last = access.tensor.dtype.bytes, access.axes[-1] if access.axes else None
    if size <= item and not access.bulk:
        return nothing(access.tensor)
    if last is None or not access.in_rows or (last.start is not None and multiple(last.start, defs) * item % size):
        return None
    if access.bulk:  # a tensor map has all strides in units of 16 bytes
        return Promise(size, (size,) * (len(access.axes) - 1))
    strides = []
    for axis in access.axes[:-1]:
        step = 1 if axis.size > 1 else multiple(axis.start, defs) if axis.start is not None else 0
        strides.append(max(item, size // gcd(step, size)))
    return Promise(size, tuple(strides))


def widest(access: Access, may: Promise, defs: Mapping[Value, Op]) -> int:
    """The most elements, up to 16 bytes, that an access may move without asking for more than `may`."""
    n = max(1, WIDEST // access.tensor.dtype.bytes)
    while n > 1 and ((p := demands(access, n * access.tensor.dtype.bytes, defs)) is None or not may.covers(p)):
        n //= 2
    return n


def run(op: Op) -> int:
    """How many elements one access of a `ld_global`, `st_global` or `cp_async` moves, as it is printed: what the layout keeps together, the
    op allows, and no end of the tensor cuts through; one, or whole registers of them. Atomic adds take two halves at most."""
    if op.kind == "cp_async":
        return op.get("vec") or op["threads"].vector()
    tensor, t = op.operands[0].type, (op.result if op.kind == "ld_global" else op.operands[1]).type
    assert isinstance(t, Frag)
    layout: Any = t.layout
    access = Access.of(op)
    vec = min(layout.vector(), op["vec"], WIDEST // tensor.dtype.bytes) if layout.axes and access.in_rows else 1
    last = access.axes[-1] if vec > 1 else None
    end: Any = 0 if last is None or not last.guard else last.dim if last.limit is None else "limit"
    while vec > 1 and (vec & (vec - 1) or layout.regs % vec or isinstance(end, str) or end % vec):
        vec -= 1
    vec = vec if vec >= tensor.dtype.per_register and tensor.dtype.bits > 1 else 1
    return min(vec, 2 if tensor.dtype.bits == 16 else 1) if op.get("reduce") == "add" else vec


def narrow(kernel: Kernel) -> dict[tuple[str, str], str]:
    """("loads" or "stores", tensor) -> why tiles of it move fewer elements at a time than lanes have side by side."""
    out: dict[tuple[str, str], str] = {}
    for op in (op for role in kernel.roles for op in walk(role.body) if op.kind in ("ld_global", "st_global") and not op.get("reduce")):
        access, layout = Access.of(op), (op.result if op.kind == "ld_global" else op.operands[1]).type.layout
        could = min(layout.vector(), WIDEST // access.tensor.dtype.bytes) if len(access.shape) > 1 and access.in_rows else 1
        if run(op) < could:
            name, last = op.operands[0].name, access.axes[-1]
            why = f"{name}'s pointer or strides are not promised to be such multiples" if run(op) == op["vec"] else \
                f"a limit cuts {last.dim} off" if last.limit is not None else f"{last.dim} is no multiple of {could}" if \
                isinstance(last.dim, int) else f"{last.dim} is not known to be a multiple of {could} (bind it: {last.dim}={64 * could})"
            out.setdefault(("loads" if op.kind == "ld_global" else "stores", name), f"{run(op)} of {could} elements at a time: {why}")
    return out


def demanded(kernel: Kernel) -> dict[str, Promise]:
    """Tensor -> what the accesses of a machine kernel ask of it. Raises FcError where one is misaligned whatever the tensor is."""
    out = {p.name: nothing(p.type) for p in kernel.params if isinstance(p.type, Tensor)}
    for role in kernel.roles:
        defs = definitions(role.body)
        for op in walk(role.body):
            access = accesses(op)
            if access is None or op.kind in ("load", "store", "gather"):
                continue
            size = WIDEST if access.bulk else run(op) * access.tensor.dtype.bytes
            p = demands(access, size, defs)
            if p is None:
                raise FcError("compile/unsupported", f"{op.kind} moves {size} bytes of {op.operands[0].name} at a time, and may start "
                              "inside as many", loc=op.loc, expected="a tile that runs along rows and starts on a multiple of that",
                              hint="fewer elements per access, or tiles of more columns")
            out[op.operands[0].name] = out[op.operands[0].name].both(p)
    return out


def promised(kernel: Kernel) -> dict[str, Promise] | None:
    """What `meta aligned` says; None without one. Raises FcError "ir/verify" where it makes no sense."""
    lines = kernel.meta.get("aligned")
    if lines is None:
        return None
    types = {p.name: p.type for p in kernel.params if isinstance(p.type, Tensor)}
    for line in lines if isinstance(lines, tuple) else (lines,):
        ok = isinstance(line, tuple) and line and line[0] in types and len(line) == 1 + len(types[line[0]].dims)
        if not ok or not all(n in (1, 2, 4, 8, 16) and n >= types[line[0]].dtype.bytes for n in line[1:]):
            raise FcError("ir/verify", "meta aligned has for each tensor its name, then bytes that its pointer and all strides but the "
                          "last are multiples of", expected="(NAME, 16, 16, ...), powers of two up to 16", got=repr(line))
    out = {name: nothing(t) for name, t in types.items()}
    out.update({line[0]: Promise(line[1], tuple(line[2:])) for line in lines})
    return out


def asked(kernel: Kernel) -> tuple[tuple[Any, ...], ...]:
    """What a launch of a machine kernel checks: what the kernel says, and what its accesses need in any case."""
    needed, said = demanded(kernel), promised(kernel) or {}
    return tuple((name, *(p.both(said[name]) if name in said else p).words) for name, p in needed.items())


def allowed(kernel: Kernel, tensor: Value) -> Promise:
    """The most that accesses of a tensor may ask for while a kernel is compiled."""
    given = promised(kernel)
    return natural(tensor.type) if given is None else given[tensor.name]


def with_promises(kernel: Kernel, promises: Mapping[str, Promise]) -> Kernel:
    return kernel.with_meta(aligned=tuple((name, *p.words) for name, p in promises.items()))
