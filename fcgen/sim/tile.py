"""The tile IR in NumPy: what a program means, one grid point at a time.

Values are arrays of the tile's shape in the dtype's NumPy representation (bf16 as rounded float32); rounding happens exactly where the IR
casts, or computes in less than 32 bits. Outputs start as NaN (or an integer at an end of its range), so that what no program wrote is
seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import FcError, did_you_mean
from ..ir.access import Access
from ..ir.core import Block, Kernel, Op, Value, walk_kernel
from ..ir.covers import check_covers, covered
from ..ir.elementwise import FNS, REDUCTIONS, convert, evaluate, to_dtype
from ..ir.ranges import HIGHEST, Admitted, admitted
from ..ir.sizes import is_made, number, output_shape
from ..ir.tile_ops import in_turn
from ..ir.types import DTYPES, DType, Scalar, Tensor, i1, i32
from .product import product
from .tensors import add_at, coordinates, numbers_of, reached
from .turns import Taken


def interpret(kernel: Kernel, arguments: Mapping[str, Any], *, skip_dead: bool = False,
              written: dict[str, np.ndarray] | None = None, shaken: Shaken | None = None) -> dict[str, np.ndarray]:
    """Run a tile kernel over its whole grid; returns its outputs by name. shaken: what becomes of each result.

    arguments: arrays and numbers by parameter name; an output may be given (an "inout" tensor) or is made. skip_dead: leave out loop
    iterations whose `live` tile is false everywhere, as the compiler may. written: receives which elements of each output were written, or
    came from the caller; without it, an element that nothing writes is an error. Raises FcError "call/argument", "sim/bounds", "sim/race",
    "sim/deadlock", "sim/unwritten".
    """
    memory, sizes = bind(kernel, arguments)
    machine = _Interpreter(kernel, memory, sizes, skip_dead, shaken)
    with np.errstate(all="ignore"):
        for place in itertools.product(*[range(axis.count(sizes)) for axis in kernel.grid]):
            machine.program(place)
    machine.turns.check()
    came = {n: (t["stores"] != -1) | (t["adds"] != -1) | (n in arguments) for n, t in machine.touched.items()}
    if written is not None:
        written.update(came)
    else:
        for name, elements in came.items():
            if fault := unwritten(kernel, name, elements):
                raise fault
    return {name: memory[name] for name, flags in kernel.flags.items() if "out" in flags and name in memory}


def bind(kernel: Kernel, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """(parameter name -> array or number, dimension name -> size). Inputs are converted to their dtypes; missing outputs are made."""
    sizes: dict[str, int] = {}
    limits: Mapping[Any, Admitted] = admitted(kernel)
    memory: dict[str, Any] = {}
    names = [p.name for p in kernel.params]
    for name in arguments:
        if name not in names:
            raise FcError("call/argument", f"{kernel.name} has no parameter `{name}`", expected=", ".join(names), got=name,
                          hint=did_you_mean(name, names))
    for p in kernel.params:
        if not isinstance(p.type, Tensor):
            if p.name not in arguments:
                raise FcError("call/argument", f"argument `{p.name}` is missing", expected=", ".join(names))
            n = number(p.name, p.type.dtype, kernel.flags.get(p.name, ()), arguments[p.name])
            if p.name in limits:
                n = limits[p.name](p.name, int(n))
            memory[p.name] = to_dtype(np.asarray(n), p.type.dtype)[()]
            continue
        if p.name not in arguments:
            if is_made(kernel, p.name):
                continue
            raise FcError("call/argument", f"argument `{p.name}` is missing", expected=", ".join(names),
                          hint="what it holds is read, or kept where nothing is written" if p.name in kernel.flags else None)
        x = _array(p.name, p.type.dtype, arguments[p.name])
        if x.ndim != len(p.type.dims):
            raise FcError(
                "call/argument",
                f"argument `{p.name}` has the wrong number of axes",
                expected=f"[{', '.join(map(str, p.type.dims))}]",
                got=x.shape,
            )
        for dim, n in zip(p.type.dims, x.shape):
            want = dim if isinstance(dim, int) else sizes.setdefault(dim, n)
            limits.get(dim, Admitted(0, HIGHEST)).size(p.name, n)
            if want != n:
                what = "has the wrong shape" if isinstance(dim, int) else f"disagrees on the size of {dim}"
                raise FcError("call/argument", f"argument `{p.name}` {what}", expected=f"[{', '.join(map(str, p.type.dims))}]"
                              if isinstance(dim, int) else want, got=x.shape if isinstance(dim, int) else n)
        memory[p.name] = np.array(to_dtype(x, p.type.dtype))
    scalars = {p.name: int(memory[p.name]) for p in kernel.params if p.type == Scalar(i32)}
    sizes |= {p.name: scalars[p.name] for p in kernel.counts}
    given = tuple(line for line in covered(kernel) if line[0] in memory)
    grid = [(axis.name, axis.dim, axis.tile) for axis in kernel.grid]
    check_covers(given, grid, {p.name: p.type.dims for p in kernel.params if isinstance(p.type, Tensor)}, {**scalars, **sizes})
    for p in kernel.params:
        if isinstance(p.type, Tensor) and p.name not in memory:
            shape = output_shape(kernel, p.name, sizes)
            sizes.update({d: n for d, n in zip(p.type.dims, shape) if isinstance(d, str)})
            memory[p.name] = poison(shape, p.type.dtype)
    return memory, sizes


def _array(name: str, dtype: DType, value: Any) -> np.ndarray:
    """An argument as an array that its dtype can hold: numbers are rounded, and never wrapped, cut or made of words."""
    x = np.asarray(value)
    if x.dtype.kind not in ("b" if dtype == i1 else "iu" if dtype.is_int else "fiu"):
        if x.dtype.names is not None or x.dtype.kind != "V":  # what NumPy lacks is a kind of its own
            raise FcError("call/argument", f"argument `{name}` is not an array of {dtype}", expected=dtype, got=f"an array of {x.dtype}",
                          hint="round it first: np.rint(x).astype(np.int32)" if x.dtype.kind == "f" and dtype.is_int else None)
    low, high = dtype.range if dtype.is_int else (0, 0)
    if dtype.is_int and x.size and not (low <= int(x.min()) and int(x.max()) <= high):
        raise FcError("call/argument", f"argument `{name}` holds numbers that do not fit {dtype}", got=f"{x.min()} to {x.max()}",
                      expected=f"{low} to {high}")
    return x


def unwritten(kernel: Kernel, name: str, written: np.ndarray, due: np.ndarray | None = None) -> FcError | None:
    """What to say of an output of which not every element was written (bool, in the tensor's shape). due: those that must be; if None, all,
    but for a tensor whose rest is kept, and what `until` writes: these may stay unwritten in parts."""
    if due is None and (not is_made(kernel, name) or "until_loops" in kernel.meta):
        return None
    missing = ~written if due is None else due & ~written
    if not missing.any():
        return None
    first = tuple(int(i[0]) for i in np.nonzero(missing))
    stores = (op for op in walk_kernel(kernel) if op.operands and op.operands[0] is kernel.param(name) and op.loc is not None)
    return FcError("sim/unwritten", f"nothing writes {int(missing.sum())} of the {written.size} elements of {name}",
                   expected="every element of an `out` tensor", got=f"none at {list(first)}", loc=next((op.loc for op in stores), None),
                   hint=f'cover each axis of {name} by a range over that axis; if the rest is to be kept: {name}: "inout ..."')


def poison(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    return np.full(shape, np.nan if dtype.is_float else dtype.range[0] or dtype.range[1], dtype.np_dtype)


#: (op, operands, result) -> what the result is to be
Shaken = Callable[[Op, list[Any], Any], Any]
#: how a program touches an element -> how no other program may have touched it, whichever came first
CLASHES = {"stores": ("stores", "adds", "reads"), "adds": ("stores", "reads"), "reads": ("stores", "adds")}


class _Interpreter:
    def __init__(self, kernel: Kernel, memory: dict[str, Any], sizes: dict[str, int], skip_dead: bool,
                 shaken: Shaken | None = None):
        self.kernel, self.memory, self.sizes, self.skip_dead, self.shaken = kernel, memory, sizes, skip_dead, shaken
        written = [n for n, flags in kernel.flags.items() if "out" in flags and n in memory]
        #: how an element was touched -> by which program: -1 none, -2 several
        self.touched = {n: {how: np.full(memory[n].shape, -1, np.int32) for how in CLASHES} for n in written}
        self.turns = Taken(memory)
        self.number = -1
        self.place: tuple[int, ...] = ()

    def program(self, place: tuple[int, ...]) -> None:
        self.number += 1
        self.place = place
        env: dict[Value, Any] = {p: (p.name if isinstance(p.type, Tensor) else self.memory[p.name]) for p in self.kernel.params}
        env.update(zip(self.kernel.body.args, map(np.int32, place)))
        self.block(self.kernel.body, env)

    def block(self, block: Block, env: dict[Value, Any]) -> tuple[Any, ...]:
        for op in block.ops:
            if op.kind == "yield":
                return tuple(env[v] for v in op.operands)
            run = getattr(self, "do_" + op.kind, None)
            args = [env[v] for v in op.operands]
            if run is not None:
                out = run(op, args, env)
            elif op.kind in FNS:
                out = evaluate(op.kind, op.operands[0].type.dtype, *args)
            else:
                raise FcError("compile/unsupported", f"the tile interpreter has no meaning for {op.kind}", loc=op.loc)
            if len(op.results) == 1 and not op.regions:
                env[op.result] = out if self.shaken is None else self.shaken(op, args, out)
        return ()

    # ---- values ----------------------------------------------------------------------------------------------------

    def do_const(self, op: Op, args: list[Any], env: Any) -> Any:
        return convert(np.asarray(op["value"]), DTYPES[op["dtype"]])[()]

    def do_full(self, op: Op, args: list[Any], env: Any) -> Any:
        return np.full(op.result.type.shape, args[0], op.result.type.dtype.np_dtype)

    def do_iota(self, op: Op, args: list[Any], env: Any) -> Any:
        return np.arange(op.result.type.shape[0], dtype=np.int32)

    def do_size(self, op: Op, args: list[Any], env: Any) -> Any:
        return np.int32(self.sizes[op["dim"]])

    def do_broadcast(self, op: Op, args: list[Any], env: Any) -> Any:
        shape = [1] * len(op.result.type.shape)
        order = np.argsort(op["axes"])
        for a in op["axes"]:
            shape[a] = op.result.type.shape[a]
        return np.broadcast_to(np.transpose(args[0], order).reshape(shape), op.result.type.shape)

    def do_transpose(self, op: Op, args: list[Any], env: Any) -> Any:
        return args[0].T

    def do_slice(self, op: Op, args: list[Any], env: Any) -> Any:
        first = int(args[1])
        return args[0][:, first:first + op["size"]] if op["axis"] else args[0][first:first + op["size"]]

    def do_select(self, op: Op, args: list[Any], env: Any) -> Any:
        return np.where(*args)

    def do_cast(self, op: Op, args: list[Any], env: Any) -> Any:
        return convert(np.asarray(args[0]), DTYPES[op["to"]])

    def do_reduce(self, op: Op, args: list[Any], env: Any) -> Any:
        wide = np.asarray(args[0], op.operands[0].type.dtype.computed.np_dtype)
        return convert(REDUCTIONS[op["fn"]][0](wide, axis=op["axis"]), op.result.type.dtype)

    def do_cumsum(self, op: Op, args: list[Any], env: Any) -> Any:
        dtype = op.result.type.dtype
        return convert(np.cumsum(args[0], axis=op["axis"], dtype=dtype.computed.np_dtype), dtype)

    def do_dot(self, op: Op, args: list[Any], env: Any) -> Any:
        dtype = op.result.type.dtype
        wide = np.float32 if dtype.is_float else np.float64  # integers of 8 bits: exact
        right = np.asarray(args[1], wide)
        if op.get("ones"):
            right = np.concatenate([right, np.ones((len(right), op["ones"]), np.float32)], axis=1)
        out = np.asarray(product(np.asarray(args[0], wide), right), dtype.np_dtype)
        return np.asarray(out if len(args) == 2 else args[2] + out, dtype.np_dtype)

    # ---- memory ----------------------------------------------------------------------------------------------------

    def places(self, op: Op, args: list[Any], shape: tuple[int, ...]) -> tuple[tuple[Any, ...], np.ndarray]:
        """(index arrays into the tensor, which elements are inside). Raises where an unguarded one is not."""
        tensor, sizes = args[0], self.memory[args[0]].shape
        index: list[Any] = []
        inside = np.ones(shape, bool)
        access, numbers, coords = Access.of(op), numbers_of(op, args), coordinates(shape)
        numbers.update({v: numbers[v].reshape(coords[axis].shape) for v, axis in access.listed.items()})
        for dim, (axis, at, ok) in enumerate(reached(op, numbers, sizes, coords)):
            if not axis.guard and not ok.all():
                got = f"{at.min()}..{at.max()}" if axis.is_run else at
                raise FcError("sim/bounds", f"{op.kind} outside {tensor}", expected=f"0..{sizes[dim] - 1} along axis {dim}", got=got,
                              loc=op.loc, notes=[self.where()])
            inside &= ok
            index.append(np.where(ok, at, 0))
        return tuple(index), inside

    def do_load(self, op: Op, args: list[Any], env: Any) -> Any:
        shape = op.result.type.shape
        index, inside = self.places(op, args, shape)
        if not self.memory[args[0]].size:
            return np.zeros(shape, self.memory[args[0]].dtype)
        if args[0] in self.touched:
            self.touch(op, args[0], "reads", tuple(np.broadcast_to(i, shape)[inside] for i in index))
        data = np.broadcast_to(self.memory[args[0]][index], shape) if shape else self.memory[args[0]][index]
        return np.where(inside, data, np.zeros((), data.dtype)) if shape else data

    def do_store(self, op: Op, args: list[Any], env: Any) -> None:
        tensor, value = args[0], args[1]
        index, inside = self.places(op, args, value.shape)
        where = tuple(np.broadcast_to(i, value.shape)[inside] for i in index)
        if op.get("reduce"):
            self.touch(op, tensor, "adds", where)
            add_at(self.memory[tensor], where, value[inside], self.kernel.param(tensor).type.dtype)
            if turn := in_turn(op):
                *at, n = (int(env[v]) for v in turn[1:])
                self.turns.take(op, turn[0].name, tuple(at), n, self.number, self.where())
            return
        self.touch(op, tensor, "stores", where)
        self.memory[tensor][where] = value[inside]

    def touch(self, op: Op, tensor: str, how: str, where: tuple[Any, ...]) -> None:
        """Record an access to a tensor that the kernel writes. Raises where another program did what no order makes right."""
        by = self.touched[tensor]
        for other in CLASHES[how]:
            before = by[other][where]
            clash = (before != -1) & (before != self.number)
            if clash.any():
                first = tuple(int(i[clash][0]) for i in where)
                both = "write" if how == other == "stores" else "touch"
                raise FcError("sim/race", f"two programs {both} the same element of {tensor}", loc=op.loc,
                              expected="each element to one program, or only added to", got=f"one {other} it, another one {how} it",
                              notes=[f"element {first}, {self.where()}"],
                              hint="index the output by every grid axis, or add with fc.atomic_add")
        mine = by[how][where]
        by[how][where] = np.where((mine == -1) | (mine == self.number), self.number, -2)

    def where(self) -> str:
        return "in the program " + (", ".join(f"{g.name or n} = {i}" for n, (g, i) in enumerate(zip(self.kernel.grid, self.place))) or "0")

    def do_gather(self, op: Op, args: list[Any], env: Any) -> Any:
        data, index = self.memory[args[0]], np.broadcast_arrays(*args[1:])
        if not data.size:
            return np.zeros(op.result.type.shape, data.dtype)[()]
        inside = np.logical_and.reduce([np.broadcast_to(ok, index[0].shape)
                                        for *_, ok in reached(op, numbers_of(op, args), data.shape, ())])
        if args[0] in self.touched:
            self.touch(op, args[0], "reads", tuple(i[inside] for i in index))
        out = np.where(inside, data[tuple(np.where(inside, i, 0) for i in index)], np.zeros((), data.dtype))
        return out if op.result.type.shape else out[()]

    # ---- control flow ------------------------------------------------------------------------------------------------

    def do_for(self, op: Op, args: list[Any], env: dict[Value, Any]) -> None:
        body = op.regions[0]
        steps = range(int(args[0]), int(args[1]))
        carried = tuple(args[2:])
        for i in reversed(steps) if op.get("descending") else steps:
            if self.skip_dead and len(op.regions) == 2:
                env[op.regions[1].args[0]] = np.int32(i)
                (live,) = self.block(op.regions[1], env)
                if not np.any(live):
                    continue
            env.update(zip(body.args, (np.int32(i), *carried)))
            carried = self.block(body, env)
        env.update(zip(op.results, carried))

    def do_turn(self, op, args, env):
        return []

    def do_row_part(self, op, args, env):
        return [np.int32(0)]

    def do_narrow(self, op, args, env):
        return [args[0]]

    def do_if(self, op: Op, args: list[Any], env: dict[Value, Any]) -> None:
        env.update(zip(op.results, self.block(op.regions[0 if args[0] else 1], env)))
