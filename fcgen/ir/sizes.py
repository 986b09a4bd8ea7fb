"""Run-time sizes that follow from others: how large an output of `until` is."""

from __future__ import annotations

from ..errors import FcError
from .core import Kernel
from .types import Tensor


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
