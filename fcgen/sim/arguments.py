"""Arguments of a run: arrays in the kernel's dtypes, run-time sizes read from their shapes and checked against each other."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FcError
from ..ir.core import Kernel
from ..ir.elementwise import to_dtype
from ..ir.types import DType, Tensor


@dataclass
class Arguments:
    """tensors: copies, the written ones poisoned or (inout) as given. sizes: dimension -> size."""

    tensors: dict[str, np.ndarray]
    scalars: dict[str, Any]
    sizes: dict[str, int]
    written: tuple[str, ...]


def read_arguments(kernel: Kernel, args: Mapping[str, Any], sizes: Mapping[str, int]) -> Arguments:
    """Raises FcError "call/argument" that names the argument."""
    names = [p.name for p in kernel.params]
    for name in args:
        if name not in names:
            raise FcError("call/argument", f"{kernel.name} has no parameter `{name}`", expected=", ".join(names), got=name)
    arrays: dict[str, np.ndarray] = {}
    out = Arguments({}, {}, dict(sizes), tuple(p.name for p in kernel.params if "out" in kernel.flags.get(p.name, ())))
    first: dict[str, str] = {d: "sizes" for d in sizes}
    for p in kernel.params:
        flags = kernel.flags.get(p.name, ())
        if p.name not in args:
            if not isinstance(p.type, Tensor) or "out" not in flags or "inout" in flags:
                raise FcError("call/argument", f"argument `{p.name}` is missing", expected=str(p.type))
        elif isinstance(p.type, Tensor):
            arrays[p.name] = x = np.asarray(args[p.name])
            _check_shape(p.name, p.type, x, out.sizes, first)
        else:
            out.scalars[p.name] = _scalar(p.name, p.type.dtype, args[p.name], "positive" in flags)
    for p in kernel.params:
        if not isinstance(p.type, Tensor):
            continue
        given, flags = arrays.get(p.name), kernel.flags.get(p.name, ())
        if given is not None and ("out" not in flags or "inout" in flags):
            out.tensors[p.name] = np.array(to_dtype(given, p.type.dtype))
            continue
        shape = tuple(_size(p.name, d, out.sizes) for d in p.type.dims)
        fill = np.nan if p.type.dtype.is_float else np.iinfo(p.type.dtype.np_dtype).min
        out.tensors[p.name] = np.full(shape, fill, p.type.dtype.np_dtype)
    for g in kernel.grid:
        _size("the grid", g.dim, out.sizes)
    return out


def _check_shape(name: str, t: Tensor, x: np.ndarray, sizes: dict[str, int], first: dict[str, str]) -> None:
    want = f"[{', '.join(map(str, t.dims))}]"
    if x.ndim != len(t.dims):
        raise FcError("call/argument", f"argument `{name}` has the wrong number of axes", expected=want, got=x.shape)
    if x.dtype.kind not in "fiub":
        raise FcError("call/argument", f"argument `{name}` is no array of numbers", expected=t.dtype, got=x.dtype)
    for dim, n in zip(t.dims, x.shape):
        if isinstance(dim, int):
            if dim != n:
                raise FcError("call/argument", f"argument `{name}` has the wrong shape", expected=want, got=x.shape,
                              hint="this size is fixed in the kernel: compile one for the new size")
        elif sizes.setdefault(dim, n) != n:
            raise FcError("call/argument", f"`{name}` and `{first[dim]}` disagree on the size of {dim}", expected=sizes[dim], got=n)
        else:
            first.setdefault(dim, name)


def _size(name: str, dim: str | int, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim not in sizes:
        raise FcError("call/argument", f"the size {dim} of `{name}` is in no argument", hint=f"give the array `{name}`, or sizes={{\"{dim}\": ...}}")
    return sizes[dim]


def _scalar(name: str, dtype: DType, x: Any, positive: bool) -> Any:
    if not isinstance(x, (numbers.Real, np.generic)) or isinstance(x, bool):
        raise FcError("call/argument", f"argument `{name}` is not a number", expected=dtype, got=repr(x)[:60])
    if positive and not x > 0:
        raise FcError("call/argument", f"argument `{name}` must be positive: the spec says so", expected="> 0", got=x)
    return to_dtype(np.asarray(x), dtype)[()]
