"""Calls with masks, caps or sinks that have been made before with tensors of the same sizes: only their pointers are looked at.

What the slow way launched for such a call is kept, if it was one kernel whose arguments are the call's own tensors, its outputs, and
numbers that follow from the call's. Guaranteed: a call that is taken here would launch that kernel with those arguments: the guard knows
classes, dtypes, devices, sizes and strides, and gradients, modes and transforms; pointers are as far from multiples of 16 as they were.
Outputs are new. No tensor is kept alive; what is kept is bounded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import launch
from ..attend import calls

#: kinds of calls, and sizes of each, that are kept
_KINDS, _EACH = 256, 8


class Known(NamedTuple):
    guard: Callable[..., bool]
    low: list[int]
    start: Callable[..., None]


_forward = torch.autograd.forward_ad
_known: dict[Any, list[Known]] = {}


def run(key: Any, given: tuple[Any, ...], make: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """The outputs of a call that is known. key: all that decides it but tensors; given: those; make: new outputs, in the kernel's order."""
    once, which = _distinct(given)
    known = _known.get((key, which))
    if known is None or _forward._current_level >= 0:
        return None
    for t in once:
        if t.is_nested:
            return None
    for call in known:
        if call.guard(*once):
            pointers = [t.data_ptr() for t in given]
            if [p & 15 for p in pointers] != call.low or 0 in pointers:
                return None
            out = make()
            call.start(pointers, [t.data_ptr() for t in out], given[0].get_device())
            return out
    return None


def learn(key: Any, names: dict[str, int], given: tuple[Any, ...], slow: Callable[[], Any]) -> Any:
    """What the slow way gives. names: parameters of kernels -> which of the given tensors they are; others are known by their pointers."""
    if calls._guards() is None or not hasattr(torch._C, "_cuda_getCurrentRawStream"):
        return slow()
    with launch.watched() as launches:
        result = slow()
    outputs = result if isinstance(result, tuple) else (result,)
    call = _known_from(launches[0], names, given, outputs) if len(launches) == 1 else None
    if call is not None:
        if len(_known) >= _KINDS:
            _known.clear()
        key = key, _distinct(given)[1]
        _known[key] = [call, *_known.get(key, [])[:_EACH - 1]]
    return result


def _distinct(given: tuple[Any, ...]) -> tuple[Sequence[Any], tuple[int, ...]]:
    """The tensors, each once (guards hold for different ones), and which of these each is; () where all are different."""
    if len(set(map(id, given))) == len(given):
        return given, ()
    once: list[Any] = []
    which = []
    for t in given:
        at = next((n for n, other in enumerate(once) if other is t), len(once))
        which.append(at)
        if at == len(once):
            once.append(t)
    return once, tuple(which)


def _known_from(seen: launch.Seen, names: dict[str, int], given: tuple[Any, ...], outputs: tuple[Any, ...]) -> Known | None:
    if not all([type(t) is torch.Tensor and not t.requires_grad for t in given]):
        return None
    pointers = [t.data_ptr() for t in (*given, *outputs)]
    at = {**names, **dict(zip(("O", "LSE"), range(len(given), len(pointers))))}
    taken = []
    for name, value in zip(seen.tensors, seen.values):
        if name not in at and value not in pointers[:len(given)]:  # a tensor that the call made for itself
            return None
        taken.append(at[name] if name in at else pointers.index(value))  # by name, or what a function holds
        if value != pointers[taken[-1]]:  # a view of it, or a copy
            return None
    go, raw, pick = seen.plan.launch, torch._C._cuda_getCurrentRawStream, operator.itemgetter(*taken)
    scalars = seen.values[len(taken):]

    def start(pointers: list[int], made: list[int], device: int) -> None:
        go(raw(device), (*pick(pointers + made), *scalars), True)

    return Known(calls.guard(tuple(_distinct(given)[0]), sizes=True), [p & 15 for p in pointers[:len(given)]], start)
