"""Tensor parameters inside a spec: their sizes, and views of them that a load or store names."""

from __future__ import annotations

import functools
from typing import Any, cast

from ..errors import FcError, MissingAttribute, did_you_mean
from ..ir.core import Value
from ..ir.types import DType, Scalar, Tile, i32, i64
from .arith import lift, spread
from .handles import Handle, Label, NotATile, label_name
from .mistakes import called, plain, refuses
from .ranges import Placed, Positions, Range, dim_size, extent_name
from .trace import current, here, mistake


@called("tensor")
class TensorParam(NotATile):
    """A tensor parameter inside a spec: `T.dtype`, `T.M` (a dimension's size), `T[b, rows]` (a view to load or store)."""

    __slots__ = ("_flags", "_names", "_param")

    def __init__(self, value: Value, dim_names: tuple[str | int, ...], flags: tuple[str, ...]):
        self._param, self._names, self._flags = value, dim_names, flags

    def __repr__(self) -> str:
        return f"<tensor {self._param.name}: {self._param.type}>"

    def mistaken(self) -> FcError:
        name = self._param.name
        return mistake("trace/usage", f"{name} is a tensor, not a tile", got=repr(self), hint=f"load a part of it: fc.load({name}[...])")

    @property
    def written(self) -> bool:
        return "out" in self._flags or "inout" in self._flags

    def check_readable(self) -> None:
        if "out" in self._flags:
            name = self._param.name
            raise mistake("trace/usage", f"{name} is an output: what it holds before the kernel is not known",
                          hint=f'annotate it as read and written: {name}: "inout {self._param.type.dtype}[...]"')

    def whole(self, axis: int) -> int:
        """The size of an axis along which it is used whole."""
        dim = self._param.type.dims[axis]
        index = ", ".join(str(d).lower() if n <= axis else ":" for n, d in enumerate(self._names))
        raise mistake("trace/static", f"{self._param.name} is used whole along {dim}, so {dim} must be known at compile time",
                      hint=f"bind it: compile(..., {dim}=...), or index it: {self._param.name}[{index}]")

    @property
    def dtype(self) -> DType:
        return self._param.type.dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and (name == "_names" or name not in self._names):  # what Python and notebooks ask of any object
            raise AttributeError(name)
        if name not in self._names:
            sizes = ", ".join(f"{self._param.name}.{d}" for d in self._names if isinstance(d, str))
            hint = f"its sizes are {sizes}" if name in ("shape", "size") and sizes else did_you_mean(name, self._names)
            raise MissingAttribute("trace/usage", f"tensor {self._param.name} has no dimension {name}", loc=here(), got=name,
                                   expected=", ".join(map(str, self._names)), hint=hint)
        size = self._param.type.dims[self._names.index(name)]
        return Dim(name, size) if isinstance(size, int) else RunDim(name)

    __iter__ = refuses("a tensor cannot be iterated over", 'for rows in fc.loop(fc.tile(X.M, "BLOCK_M")): then fc.load(X[rows])')

    def __getitem__(self, index: Any) -> Any:
        index = tuple(map(plain, index if isinstance(index, tuple) else (index,)))
        dims = self._param.type.dims
        if len(index) > len(dims):
            raise mistake("trace/shape", f"too many indices for {self._param.name}", expected=f"at most {len(dims)}", got=len(index))
        index = (*index, *[slice(None)] * (len(dims) - len(index)))
        known_ends = next((i for i in index if hasattr(type(i), "read")), None)
        if known_ends is not None:  # `bounds`
            return known_ends.read(self, index)
        for i, dim in zip(index, dims):
            known = isinstance(i, (int, Handle, Positions, slice, NotATile)) or hasattr(i, "__index__") or hasattr(type(i), "lifted")
            if isinstance(i, bool) or not known:
                raise mistake("trace/usage", f"{self._param.name} is indexed by ranges, positions and `:`", got=repr(i)[:80],
                              expected=f"{self._param.name}[{', '.join(str(d).lower() for d in self._names)}]",
                              hint="dimensions at the end may be left away" if i is Ellipsis else None)
            if isinstance(i, int) and i < 0:
                raise mistake("trace/usage", "positions count from the start of a dimension", expected="0 or more", got=i)
            if isinstance(i, int) and isinstance(dim, int) and i >= dim:
                raise mistake("trace/usage", f"a position outside {self._param.name}", expected=f"0 to {dim - 1}", got=i)
        whole = all(not isinstance(i, (Positions, slice)) for i in index)
        listed = any(isinstance(i, Handle) and i.labels for i in index)
        readable = "out" not in self._flags
        if (listed and readable and not any(isinstance(i, slice) for i in index)) or (whole and not listed and not self.written):
            return self._gather(index)
        return View(self, index)

    def _gather(self, index: tuple[Any, ...]) -> Handle:
        if any(isinstance(i, slice) for i in index):
            raise mistake("trace/usage", "element positions need one index per dimension", got=f"{self._param.name}[...]")
        self.check_readable()
        if len(index) != len(self._names):
            raise mistake("trace/shape", f"{self._param.name} needs one position per dimension", expected=", ".join(map(str, self._names)),
                          got=len(index))
        for i in index:
            if isinstance(i, Placed):
                raise i.mistaken()
        handles = [_position(i.index if isinstance(i, Range) else i, self._param.name) for i in index]
        handles, labels = spread(handles)
        return as_of(index, Handle(current().emit("gather", self._param, *[h.value for h in handles]), labels))


def as_of(index: tuple[Any, ...], out: Handle) -> Handle:
    """What was read at these positions, as a value of their kind."""
    return functools.reduce(lambda out, i: i.made(out) if isinstance(i, Handle) else out, index, out)


class Dim(int):
    """A compile-time size that remembers which dimension it is."""

    name: str

    def __new__(cls, name: str, size: int) -> Dim:
        x = super().__new__(cls, size)
        x.name = name
        return x

    def to(self, dtype: DType | str) -> Handle:
        """As of a size that is known at run time."""
        return lift(int(self), i32).to(dtype)


@called("size")
class RunDim(Handle):
    """The run-time size of a dimension, as a scalar."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name
        h = dim_size(name)
        self._value, self.labels, self.scope = h._value, (), h.scope


@called("view")
class View(NotATile):
    """A rectangle of a tensor, not loaded yet. `X[b][i]` is `X[b, i]`: an index of a view is one of the axes that it has whole."""

    __slots__ = ("given", "index", "labels", "shape", "tensor")

    def __init__(self, tensor: TensorParam, index: tuple[Any, ...]):
        self.tensor, self.given = tensor, index
        if not any(i == slice(None) and isinstance(dim, str) for i, dim in zip(index, tensor._param.type.dims) if isinstance(i, slice)):
            self._look()

    def __getattr__(self, name: str) -> Any:
        """Of a view that has an axis whole, whose size must be known for that: looked at when it is used."""
        if name not in ("index", "labels", "shape"):
            raise AttributeError(name)
        self._look()
        return getattr(self, name)

    def __getitem__(self, index: Any) -> Any:
        more = list(index if isinstance(index, tuple) else (index,))
        whole = [n for n, i in enumerate(self.given) if isinstance(i, slice)]
        if len(more) > len(whole):
            raise mistake("trace/shape", f"too many indices for a view of {self.tensor._param.name}", expected=f"at most {len(whole)}",
                          got=len(more))
        index = list(self.given)
        for n, i in zip(whole, more):
            index[n] = i
        return self.tensor[tuple(index)]

    def _look(self) -> None:
        tensor, index = self.tensor, self.given
        self.index: list[Any] = []
        labels: list[Label] = []
        shape: list[int] = []
        for i, dim, name in zip(index, tensor._param.type.dims, tensor._names):
            if isinstance(i, Positions):
                p = i.placed()
                self.index.append(p)
                labels.append(p.range)
                shape.append(p.range.size)
            elif isinstance(i, slice):
                if i != slice(None):
                    raise mistake("trace/usage", "a tile is named by a range, not a Python slice", got=repr(i),
                                  hint="fc.tile(...) in the grid or a loop makes ranges")
                dim = dim if isinstance(dim, int) else tensor.whole(len(self.index))
                self.index.append(None)
                labels.append(name)
                shape.append(dim)
            else:
                h = _position(i, tensor._param.name)
                self.index.append(h)
                if h.labels:
                    self._list(h, labels, shape)
        for n, dim in enumerate(tensor._param.type.dims):
            if len(labels) > 2:
                self._squeeze(n, dim, labels, shape)
        self.labels, self.shape = tuple(labels), tuple(shape)

    def _squeeze(self, n: int, dim: str | int, labels: list[Label], shape: list[int]) -> None:
        """Of three axes, one of a single position is none: a tile without it meets others all the same."""
        i = self.index[n]
        if isinstance(i, Placed) and i.range.size == 1 and i.range.dim == dim and i.shift is None and i.stop is None:
            at, label = i.start, cast(Label, i.range)
        elif i is None and dim == 1:
            at, label = lift(0, i32), self.tensor._names[n]
        else:
            return
        self.index[n] = at
        del shape[labels.index(label)]
        labels.remove(label)

    def _list(self, h: Handle, labels: list[Label], shape: list[int]) -> None:
        """A vector of positions: of a new axis, or of the one that the vector before it runs along."""
        name, before = self.tensor._param.name, [i.labels for i in self.index[:-1] if isinstance(i, Handle) and i.labels]
        if len(h.labels) != 1 or h.dtype != i32:
            raise mistake("trace/shape", f"rows of {name} are found by a vector of positions", expected="i32 [rows]", got=repr(h),
                          hint="one position for each element is X[i, j], with as many indices as X has dimensions")
        if before and before[-1] != h.labels:
            raise mistake("trace/shape", f"two vectors of positions in {name} run along different axes", expected=label_name(before[-1][0]),
                          got=label_name(h.labels[0]), hint="one position for each element is X[i, j], without `:`")
        if not before:
            labels += h.labels
            shape += h.shape

    def access(self, written: bool) -> tuple[tuple[Value, ...], dict[str, Any]]:
        """(scalars, attributes) of the op that reaches it."""
        scalars: list[Value] = []
        words: list[str] = []
        for i, dim in zip(self.index, self.tensor._param.type.dims):
            limit = i.limit(dim, written) if isinstance(i, Placed) else None
            word = "all" if i is None else "tile" if limit is None else "until"
            if isinstance(i, Handle):
                word = "at" if not i.labels else "also" if "each" in words else "each"
            words.append(word)
            scalars += [] if i is None else [i.value] if isinstance(i, Handle) else [i.start.value]
            scalars += [limit.value] if limit is not None else []
        return tuple(scalars), {"index": tuple(words), "guard": tuple(w != "all" for w in words if w not in ("at", "also"))}

    def check_covers(self) -> None:
        """An output is written as a whole: a range, or an index of the grid, covers the axis that it indexes and no other. Where a range is
        moved to, is the program's own business."""
        t, tensor = current(), self.tensor
        for i, dim, name in zip(self.index, tensor._param.type.dims, tensor._names):
            if isinstance(i, Placed):
                over = dim if i.shift is not None else "until" if i.stop is not None else i.range.dim
                what = repr(i)
            else:
                over = next((g.dim for x, g in zip(t.ids, t.grid) if i is not None and x is i.value), dim)
                what = f"the grid's index along {over}"
            if "out" in tensor._flags and (isinstance(over, Handle) or over != dim):
                raise mistake("trace/store", f"axis {name} of {tensor._param.name} is indexed by what runs over {extent_name(over)}: where "
                              f"{name} is larger, the rest is never written", expected=f"a range or index over {name}", got=what,
                              hint="give what is always of one size one name; if the rest is kept, "
                              f'{tensor._param.name} is "inout {tensor.dtype}[...]"')

    def mistaken(self) -> FcError:
        return mistake("trace/usage", f"a view of {self.tensor._param.name} is not a tile yet", got=repr(self),
                       hint="load it: fc.load(...)")

    def __repr__(self) -> str:
        return f"<view of {self.tensor._param.name} [{', '.join(map(label_name, self.labels))}]>"


def _position(i: Any, name: str) -> Handle:
    h = lift(i, i32)
    if h.dtype not in (i32, i64):
        raise mistake("trace/dtype", f"a position in {name} is a whole number", expected="i32", got=repr(h),
                      hint="convert: .to(fc.i32)" if h.dtype.is_float else None)
    return h


def tile_type(dtype: DType, shape: tuple[int, ...]) -> Any:
    return Tile(dtype, shape) if shape else Scalar(dtype)
