"""Do tensors share bytes? A kernel is compiled in the belief that what it writes is nobody else's memory.

In: pointers, shapes, strides. Out: nothing, or FcError "call/argument". Guaranteed: an output whose elements share bytes with one another
or with another argument is refused; views that interleave without sharing are not, where NumPy's solver can tell quickly. No memory is
read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcgen.errors import FcError

#: candidates that the exact test looks at before it gives up
_EFFORT = 100_000


class Area:
    """A tensor's place, relative to its first element: bytes low to high (none without elements). written: the kernel writes to it."""

    def __init__(self, name: str, shape: Sequence[int], strides: Sequence[int], itemsize: int, written: bool):
        self.name, self.shape, self.strides, self.itemsize, self.written = name, shape, strides, itemsize, written
        steps = [(n - 1) * step for n, step in zip(shape, strides)]
        self.low = sum(s for s in steps if s < 0) * itemsize
        self.high = 0 if 0 in shape else (sum(s for s in steps if s > 0) + 1) * itemsize


def check(areas: Sequence[Area], pointers: Sequence[int]) -> None:
    """Refuse outputs that share elements with another argument."""
    for i, (a, p) in enumerate(zip(areas, pointers)):
        if not a.written:
            continue
        for j, (b, r) in enumerate(zip(areas, pointers)):
            if i != j and p + a.low < r + b.high and r + b.low < p + a.high and _meet(a, p, b, r):
                raise FcError("call/argument", f"argument `{a.name}` is written, and shares memory with `{b.name}`",
                              expected="memory of its own", got=f"{a.name} at {p:#x}, {b.name} at {r:#x}",
                              hint=f"write to a new tensor, or pass {b.name}.clone()")


def check_itself(a: Area) -> None:
    """Refuse an output two elements of which share memory, as in an expanded tensor."""
    reach = 0  # of the axes with smaller strides, in elements
    for step, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape) if n > 1):
        if step <= reach:
            break
        reach += step * (n - 1)
    else:
        return
    for axis, n in enumerate(a.shape):
        # two equal addresses differ first along some axis: there by 1 or more, elsewhere by anything
        first, rest = ((*a.shape[:axis], size, *a.shape[axis + 1:]) for size in (1, n - 1))
        one, others = (Area(a.name, shape, a.strides, a.itemsize, True) for shape in (first, rest))
        if n > 1 and _meet(one, 0, others, a.strides[axis] * a.itemsize):
            raise FcError("call/argument", f"argument `{a.name}` is written, and elements of it share memory",
                          expected="one place per element", got=f"shape {tuple(a.shape)}, strides {tuple(a.strides)}",
                          hint="pass a new tensor, not an expanded one")


def _meet(a: Area, p: int, b: Area, r: int) -> bool:
    try:
        return np.shares_memory(_view(a, p), _view(b, r), max_work=_EFFORT)  # type: ignore[arg-type]
    except RuntimeError:  # numpy.exceptions.TooHardError, by its name in every NumPy
        names = " and ".join(dict.fromkeys((f"`{a.name}`", f"`{b.name}`")))
        raise FcError("call/argument", f"whether elements of {names} share memory is too hard to tell",
                      expected="an output apart from the rest",
                      hint="pass an output whose memory does not reach into another tensor's") from None


def _view(a: Area, pointer: int) -> np.ndarray:
    """The addresses as an array that nobody reads, moved far from 0 so that negative strides stay above it."""

    class Facts:
        __array_interface__ = {"data": (pointer + (1 << 50), False), "shape": tuple(a.shape), "typestr": f"|V{a.itemsize}", "version": 3,
                               "strides": tuple(s * a.itemsize for s in a.strides)}

    return np.asarray(Facts())
