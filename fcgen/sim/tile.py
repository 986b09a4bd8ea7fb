"""Runs tile programs in NumPy: what a kernel means, program by program, with every rounding where the IR has it.

Outputs start poisoned (NaN; the smallest integer), so that what a kernel forgets to write is seen. Accesses outside a tensor without a
guard, and two programs that touch one element without order, are errors with the op's place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.core import Block, Kernel, Op, Value
from ..ir.elementwise import FNS, REDUCTIONS, apply, to_dtype
from ..ir.types import DTYPES, Scalar, Tensor
from .arguments import Arguments, read_arguments


def interpret(kernel: Kernel, args: Mapping[str, Any], *, sizes: Mapping[str, int] | None = None, skip: bool = False) -> dict[str, np.ndarray]:
    """Run the whole grid and return the tensors that the kernel writes.

    args: arrays and numbers by parameter name; an `out` tensor may be given for its shape only. sizes: run-time dimensions that no
    input has. skip: leave out iterations whose `live` tile is false everywhere. Floats come back in their NumPy dtype (bf16 as
    float32). Raises FcError "call/argument", "sim/bounds" or "sim/race"."""
    if kernel.level != "tile":
        raise FcError("call/argument", "interpret runs tile IR", expected="tile", got=kernel.level)
    given = read_arguments(kernel, args, sizes or {})
    run = _Run(kernel, given, skip)
    counts = [g.count(given.sizes) for g in kernel.grid]
    with np.errstate(all="ignore"):
        for number, ids in enumerate(itertools.product(*map(range, counts))):
            run.program(number, ids)
    return {name: given.tensors[name] for name in given.written}


class _Owners:
    """For each element of a tensor that the kernel writes: which program stored, added to and read it (-1 none, -2 several)."""

    def __init__(self, shape: tuple[int, ...]):
        self.by = {what: np.full(shape, -1, np.int32) for what in ("stored", "added", "read")}

    def touch(self, what: str, where: Any, program: int) -> tuple[str, np.ndarray] | None:
        """Record an access. Returns how another program touched some of the same elements out of order, and where."""
        clash = {"stored": ("stored", "added", "read"), "added": ("stored", "read"), "read": ("stored", "added")}[what]
        for other in clash:
            by = self.by[other][where]
            bad = (by != -1) & (by != program)
            if bad.any():
                return other, bad
        mine = self.by[what][where]
        self.by[what][where] = np.where((mine == -1) | (mine == program), program, -2)
        return None


class _Run:
    def __init__(self, kernel: Kernel, given: Arguments, skip: bool):
        self.kernel, self.given, self.skip = kernel, given, skip
        self.owners = {n: _Owners(given.tensors[n].shape) for n in given.written}
        self.base: dict[Value, Any] = {}
        for p in kernel.params:
            self.base[p] = p.name if isinstance(p.type, Tensor) else given.scalars[p.name]
        self.env: dict[Value, Any] = {}
        self.number, self.ids = 0, ()
        self.special: dict[str, Callable[[Op, list[Any]], tuple[Any, ...]]] = {
            "select": self.select, "cast": self.cast, "const": self.const, "full": self.full, "iota": self.iota,
            "broadcast": self.broadcast, "transpose": self.transpose, "reduce": self.reduce, "dot": self.dot, "load": self.load,
            "store": self.store, "gather": self.gather, "size": self.size, "for": self.loop, "if": self.branch}

    def program(self, number: int, ids: tuple[int, ...]) -> None:
        self.number, self.ids = number, ids
        self.env = dict(self.base)
        self.env.update(zip(self.kernel.body.args, map(np.int32, ids)))
        self.block(self.kernel.body)

    def block(self, block: Block) -> tuple[Any, ...]:
        env, special = self.env, self.special
        for op in block.ops:
            args = [env[v] for v in op.operands]
            kind = op.kind
            if kind == "yield":
                return tuple(args)
            if kind in FNS:
                env[op.results[0]] = _shaped(apply(kind, op.operands[0].type.dtype, *args), op)
            else:
                for v, x in zip(op.results, special[kind](op, args)):
                    env[v] = x
        return ()

    # ---- values ----

    def select(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        return (_shaped(np.where(*args).astype(op.result.type.dtype.np_dtype, copy=False), op),)

    def cast(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        return (to_dtype(args[0], DTYPES[op["to"]]),)

    def const(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        return (to_dtype(np.asarray(op["value"]), DTYPES[op["dtype"]])[()],)

    def full(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        t = op.result.type
        return (np.full(t.shape, args[0], t.dtype.np_dtype),)

    def iota(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        return (np.arange(op.result.type.shape[0], dtype=np.int32),)

    def broadcast(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        shape, axes = op.result.type.shape, op["axes"]
        x = np.transpose(args[0], np.argsort(axes))
        return (np.broadcast_to(x[tuple(slice(None) if a in axes else None for a in range(len(shape)))], shape),)

    def transpose(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        return (args[0].T,)

    def reduce(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        x, dtype = args[0], op.operands[0].type.dtype
        if dtype.is_float:
            x = np.asarray(x, np.float32)
        return (to_dtype(REDUCTIONS[op["fn"]][0](x, axis=op["axis"]), dtype),)

    def dot(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        out = np.asarray(args[0], np.float32) @ np.asarray(args[1], np.float32)
        return (out + args[2] if len(args) == 3 else out,)

    def size(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        return (np.int32(self.given.sizes[op["dim"]]),)

    # ---- memory ----

    def window(self, op: Op, name: str, scalars: list[Any], shape: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[slice, ...]]:
        """The part of the tensor that exists, and the part of the tile that it fills."""
        tensor = self.given.tensors[name]
        there: list[Any] = []
        here: list[slice] = []
        rest = iter(scalars)
        for dim, (word, n) in enumerate(zip(op["index"], tensor.shape)):
            if word == "at":
                p = int(next(rest))
                if not 0 <= p < n:
                    raise self.outside(op, name, dim, p, p)
                there.append(p)
                continue
            start = int(next(rest)) if word == "tile" else 0
            axis = len(here)
            stop = start + shape[axis]
            if start < 0 or (stop > n and not op["guard"][axis]):
                raise self.outside(op, name, dim, start, stop - 1)
            end = min(stop, n)
            there.append(slice(min(start, n), max(end, min(start, n))))
            here.append(slice(0, max(0, end - start)))
        return tuple(there), tuple(here)

    def outside(self, op: Op, name: str, dim: int, first: int, last: int) -> FcError:
        tensor = self.given.tensors[name]
        label = self.kernel.param(name).type.dims[dim]
        return FcError("sim/bounds", f"{op.kind} outside {name} along {f'dimension {label}' if isinstance(label, str) else f'axis {dim}'}",
                       expected=f"positions 0 to {tensor.shape[dim] - 1}", got=str(first) if first == last else f"{first} to {last}", loc=op.loc,
                       notes=[f"in program {self.where()}"])

    def where(self) -> str:
        return ", ".join(f"{g.name or i}={n}" for i, (g, n) in enumerate(zip(self.kernel.grid, self.ids))) or "0"

    def touch(self, op: Op, name: str, what: str, there: Any) -> None:
        owners = self.owners.get(name)
        clash = owners.touch(what, there, self.number) if owners is not None else None
        if clash is not None:
            other, bad = clash
            first = tuple(int(i[0]) for i in np.nonzero(bad)) if np.ndim(bad) else ()
            words = {"stored": "stores to", "added": "adds to", "read": "reads"}
            raise FcError("sim/race", f"program {self.where()} {words[what]} {name} where another program {words[other]} it",
                          expected="programs that touch different elements", got=f"{int(np.sum(bad))} shared, the first at {first} of the tile",
                          loc=op.loc, hint="index with every grid axis, or use fc.atomic_add for sums")

    def load(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        name, t = args[0], op.result.type
        there, here = self.window(op, name, args[1:], t.shape)
        part = self.given.tensors[name][there]
        self.touch(op, name, "read", there)
        if np.shape(part) == t.shape:
            return (part.copy() if name in self.owners else part,)
        out = np.zeros(t.shape, t.dtype.np_dtype)
        out[here] = part
        return (out,)

    def store(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        name, value = args[0], args[1]
        there, here = self.window(op, name, args[2:], np.shape(value))
        tensor = self.given.tensors[name]
        part = value[here] if np.ndim(value) else value
        if op.get("reduce"):
            self.touch(op, name, "added", there)
            tensor[there] = apply("add", self.kernel.param(name).type.dtype, tensor[there], part)
        else:
            self.touch(op, name, "stored", there)
            tensor[there] = part
        return ()

    def gather(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        name, t = args[0], op.result.type
        tensor = self.given.tensors[name]
        at = np.broadcast_arrays(*(np.asarray(a, np.int64) for a in args[1:]))
        inside = np.ones(np.shape(at[0]), bool)
        for a, n in zip(at, tensor.shape):
            inside = inside & (a >= 0) & (a < n)
        safe = tuple(np.where(inside, a, 0) for a in at)
        if 0 in tensor.shape:
            return (_shaped(np.zeros(np.shape(inside), t.dtype.np_dtype), op),)
        self.touch(op, name, "read", tuple(a[inside] for a in safe))
        return (_shaped(np.where(inside, tensor[safe], np.zeros((), tensor.dtype)), op),)

    # ---- control ----

    def loop(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        carried = tuple(args[2:])
        order = range(int(args[0]), int(args[1]))
        body = op.regions[0]
        live = op.regions[1] if self.skip and len(op.regions) == 2 else None
        for i in reversed(order) if op.get("descending") else order:
            if live is not None:
                self.env[live.args[0]] = np.int32(i)
                if not np.any(self.block(live)[0]):
                    continue
            self.env.update(zip(body.args, (np.int32(i), *carried)))
            carried = self.block(body)
        return carried

    def branch(self, op: Op, args: list[Any]) -> tuple[Any, ...]:
        return self.block(op.regions[0 if args[0] else 1])


def _shaped(x: Any, op: Op) -> Any:
    """The value in the shape of its type: NumPy makes scalars of what are scalars here."""
    t = op.results[0].type
    if isinstance(t, Scalar):
        return np.asarray(x)[()]
    return x if np.shape(x) == t.shape else np.broadcast_to(x, t.shape)

