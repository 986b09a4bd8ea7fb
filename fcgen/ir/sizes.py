"""What a run gives a kernel: sizes that follow from others, and numbers as their dtypes hold them."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from ..errors import FcError
from .core import Kernel
from .types import DType, Tensor


def output_shape(kernel: Kernel, name: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of an output tensor, from the sizes of the inputs. An `until` output counts programs along its grid axes and iterations
    of its loops (`meta until_loops`: name, dimension, tile)."""
    p = kernel.param(name)
    assert isinstance(p.type, Tensor)
    known = dict(sizes)
    for axis in kernel.grid:
        if isinstance(axis.dim, int) or axis.dim in known:
            known[f"UNTIL_{axis.name}"] = axis.count(known)
    for loop, dim, tile in kernel.meta.get("until_loops", ()):
        if dim in known:
            known[loop] = -(-known[dim] // tile)
    missing = [d for d in p.type.dims if isinstance(d, str) and d not in known]
    if missing:
        raise FcError("call/argument", f"the size {missing[0]} of output `{name}` follows from no input", hint=f"pass {name} itself")
    return tuple(d if isinstance(d, int) else known[d] for d in p.type.dims)


def number(name: str, dtype: DType, flags: tuple[str, ...], value: Any) -> int | float:
    """A run-time scalar as its dtype holds it. Raises FcError "call/argument" for what is no number, does not fit, or breaks a promise."""
    fail = lambda what, **more: FcError("call/argument", f"argument `{name}` {what}", **more)
    if isinstance(value, (bool, str, bytes, np.bool_)) or getattr(value, "shape", ()) != ():
        raise fail("is not a number of its dtype", expected=dtype, got=repr(value)[:80])
    try:
        x = float(value) if dtype.is_float else operator.index(value)
    except OverflowError:
        x = math.inf
    except (TypeError, ValueError):
        whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
        raise fail("is not a number of its dtype", expected=dtype, got=repr(value)[:80],
                   hint=f"write {int(value)}" if whole else None) from None
    if dtype.is_float:
        with np.errstate(over="ignore"):
            kept = float(np.asarray(x).astype(dtype.np_dtype))
        if math.isinf(kept) and (not math.isinf(x) or isinstance(value, int)):
            raise fail(f"does not fit {dtype}", expected=f"at most {np.finfo(dtype.np_dtype).max:.3g}", got=str(value)[:80])
    else:
        kept, (low, high) = x, dtype.range
        if not low <= x <= high:
            raise fail("is out of range", expected=f"{low} to {high}", got=str(value)[:80])
    if "positive" in flags and not kept > 0:
        raise fail("must be positive: the spec says so", expected=f"> 0 in {dtype}", got=value)
    return kept if dtype.is_float else int(x)


def is_made(kernel: Kernel, name: str) -> bool:
    """Whether a parameter is a tensor that the kernel writes as a whole, so that a run may make it. An `inout` one is `out kept`."""
    flags = kernel.flags.get(name, ())
    return "out" in flags and "kept" not in flags
