"""Calls of `fcgen.attention` through which a gradient flows: the forward program, and what the backward pass will need.

A plain call's plan of its backward pass is kept, by all that it hangs on but the numbers: a call like one before looks for nothing.
Guaranteed: what is kept holds no tensor, and is used only where looking would find the same.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from ..runtime import tensors
from . import guards

#: sets of options, and kinds of tensors of each
_OPTIONS, _EACH = 256, 8
#: options -> (guard, pass) of the calls that were looked at last
_passes: dict[Any, list[tuple[Callable[..., bool], Any]]] = {}


def attention(q: Any, k: Any, v: Any, return_lse: bool, options: tuple[Any, ...], plain: bool, call_of: Callable[..., Any]) -> Any:
    """The results of a call, of arguments that were looked at. options: its mask and scale; plain: there is nothing else to it. call_of:
    what the backward pass has to know of it (`training.Call`), from (q, k, v)."""
    from .differentiable import attend, begin
    from .training import in_order, widened

    torch = sys.modules["torch"]
    key = *options, in_order.get(), torch.are_deterministic_algorithms_enabled()
    plain = plain and not transformed(torch)
    found = _known(key, q, k, v) if plain else None
    if found is None:
        with tensors.followed():
            call = call_of(q, k, v)
        wide = widened(q, k, v)
        if wide is not None:
            q, k, wide_v = wide
            out, lse = attention(q, k, wide_v, True, (*options[:-1], call.scale), plain, functools.partial(call_of, scale=call.scale))
            return (out[..., :v.shape[3]], lse) if return_lse else out[..., :v.shape[3]]
        found = begin(call, q, k, v)
        if plain and _in_lines(q, k, v) and guards.usable() and len({id(x) for x in (q, k, v)}) == 3:
            _keep(key, (guards.guard((q, k, v), sizes=True), found))
    out, lse = attend(found, q, k, v)
    return (out, lse) if return_lse else out


def transformed(torch: Any) -> bool:
    """Are tangents, or transforms of torch.func, about?"""
    return bool(torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active())


def _known(key: Any, q: Any, k: Any, v: Any) -> Any:
    kept = _passes.get(key)
    if kept is None or q.is_nested or k.is_nested or v.is_nested:
        return None
    return next((run for guard, run in kept if guard(q, k, v) and _in_lines(q, k, v)), None)


def _keep(key: Any, made: tuple[Callable[..., bool], Any]) -> None:
    if len(_passes) >= _OPTIONS:
        _passes.clear()
    _passes[key] = [made, *_passes.get(key, [])[:_EACH - 1]]


def _in_lines(q: Any, k: Any, v: Any) -> bool:
    """Whether memory begins on multiples of 16 bytes (a guard looks at strides)."""
    pointers = q.data_ptr(), k.data_ptr(), v.data_ptr()
    return all(pointers) and not (pointers[0] | pointers[1] | pointers[2]) & 15
