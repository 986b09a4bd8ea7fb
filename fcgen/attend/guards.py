"""Tests for tensors like those of a call that went well: Dynamo's guards, which look at all that makes a tensor more than its memory."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def guard(every: tuple[Any, ...], sizes: bool = False) -> Callable[..., bool]:
    """A test for tensors like these: different ones, of the same class, dtype, device and number of axes, with memory of their own, no
    transform or mode around them, and no gradient if these have none: 0.2 us for three. sizes: with the same sizes and strides too, 0.6 us,
    which is less than to read them. To be asked only of tensors that are not nested: those abort it."""
    shapes, strides = ([[*x] if sizes else [None] * len(x) for x in xs] for xs in ([t.shape for t in every], [t.stride() for t in every]))
    return kind()(*every, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides).check  # type: ignore[no-any-return]


def kind() -> Any:
    """The class of torch that makes guards; None in versions that have none: all calls go the long way then."""
    return functools.reduce(lambda x, name: getattr(x, name, None), ("_C", "_dynamo", "guards", "TensorGuards"), sys.modules.get("torch"))


def usable() -> bool:
    """Is this a torch whose calls can be recognised?"""
    torch = sys.modules.get("torch")
    return kind() is not None and hasattr(torch._C, "_cuda_getCurrentRawStream")  # type: ignore[union-attr]
