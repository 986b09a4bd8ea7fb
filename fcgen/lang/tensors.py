"""Tensor parameters inside a spec: their sizes, and views of them that a load or store names."""

from __future__ import annotations

from typing import Any

from ..errors import FcError
from ..ir.core import Value
from ..ir.types import DType, Scalar, Tile, i32
from .handles import Handle, Label, Range, dim_size, label_name, lift, spread
from .trace import current, here


class TensorParam:
    """A tensor parameter inside a spec: `T.dtype`, `T.M` (a dimension's size), `T[b, rows]` (a view to load or store)."""

    def __init__(self, value: Value, dim_names: tuple[str | int, ...], flags: tuple[str, ...]):
        self._param, self._names, self._flags = value, dim_names, flags

    def __repr__(self) -> str:
        return f"<tensor {self._param.name}: {self._param.type}>"

    @property
    def dtype(self) -> DType:
        return self._param.type.dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._names:
            raise FcError("trace/usage", f"tensor {self._param.name} has no dimension {name}", expected=", ".join(map(str, self._names)),
                          got=name, loc=here())
        size = self._param.type.dims[self._names.index(name)]
        return Dim(name, size) if isinstance(size, int) else RunDim(name)

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        dims = self._param.type.dims
        if len(index) > len(dims):
            raise FcError(
                "trace/shape", f"too many indices for {self._param.name}", expected=f"at most {len(dims)}", got=len(index), loc=here()
            )
        index = (*index, *[slice(None)] * (len(dims) - len(index)))
        if any(isinstance(i, Handle) and i.labels for i in index) or not any(isinstance(i, (Range, slice)) for i in index):
            return self._gather(index)
        return View(self, index)

    def _gather(self, index: tuple[Any, ...]) -> Handle:
        if any(isinstance(i, slice) for i in index):
            raise FcError("trace/usage", "element positions need one index per dimension", got=f"{self._param.name}[...]", loc=here())
        handles = [i.index if isinstance(i, Range) else lift(i, i32) for i in index]
        handles, labels = spread(handles)
        return Handle(current().emit("gather", self._param, *[h.value for h in handles]), labels)


class Dim(int):
    """A compile-time size that remembers which dimension it is."""

    name: str

    def __new__(cls, name: str, size: int) -> Dim:
        x = super().__new__(cls, size)
        x.name = name
        return x


class RunDim(Handle):
    """The run-time size of a dimension, as a scalar."""

    def __init__(self, name: str):
        self.name = name
        h = dim_size(name)
        self._value, self.labels, self.scope = h._value, (), h.scope


class View:
    """A rectangle of a tensor, not loaded yet."""

    def __init__(self, tensor: TensorParam, index: tuple[Any, ...]):
        self.tensor = tensor
        words: list[str] = []
        scalars: list[Value] = []
        guard: list[bool] = []
        labels: list[Label] = []
        shape: list[int] = []
        for i, dim, name in zip(index, tensor._param.type.dims, tensor._names):
            if isinstance(i, Range):
                words.append("tile")
                scalars.append(i.start.value)
                guard.append(True)
                labels.append(i)
                shape.append(i.size)
            elif isinstance(i, slice):
                if i != slice(None):
                    raise FcError("trace/usage", "a tile is named by a range, not a Python slice", got=repr(i), loc=here(),
                                  hint="fc.tile(...) in the grid or a loop makes ranges")
                if not isinstance(dim, int):
                    raise FcError("trace/static", f"{tensor._param.name} is used whole along {dim}, so {dim} must be known at compile time",
                                  loc=here(), hint=f"bind it: compile(..., {dim}=64)")
                words.append("all")
                guard.append(False)
                labels.append(name)
                shape.append(dim)
            else:
                words.append("at")
                scalars.append(lift(i, i32).value)
        self.index, self.scalars, self.guard = tuple(words), tuple(scalars), tuple(guard)
        self.labels, self.shape = tuple(labels), tuple(shape)

    def __repr__(self) -> str:
        return f"<view of {self.tensor._param.name} [{', '.join(map(label_name, self.labels))}]>"


def tile_type(dtype: DType, shape: tuple[int, ...]) -> Any:
    return Tile(dtype, shape) if shape else Scalar(dtype)
