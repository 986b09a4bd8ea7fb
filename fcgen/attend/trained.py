"""Calls of `fcgen.attention` through which a gradient flows: the forward program, and what the backward pass will need.

A plain call's plan of its backward pass is kept, by all that it hangs on but the numbers: a call like one before looks for nothing.
Guaranteed: what is kept holds no tensor, and is used only where looking would find the same.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from ..errors import FcError
from ..runtime import tensors
from . import forward, guards
from .variants import PLAIN, Functions

#: sets of options, and kinds of tensors of each
_OPTIONS, _EACH = 256, 8
#: options -> (guard, pass) of the calls that were looked at last
_passes: dict[Any, list[tuple[Callable[..., bool], Any]]] = {}


def attention(q: Any, k: Any, v: Any, causal: Any, scale: float | None, return_lse: bool, schedule: Any, out: Any, given: Functions,
              blocks: Any) -> Any:
    """`forward.attention`'s, of arguments that it has looked at."""
    from .differentiable import attend, begin
    from .training import in_order, widened

    if out is not None:
        raise FcError("call/argument", "argument `out` is written, and a gradient is to flow through it",
                      hint="leave it away, or call under torch.no_grad()")
    if blocks is not None and given.keep is None:
        raise FcError("call/argument", "no gradient flows through `blocks` alone", hint="give the mask that they were made of too")
    torch = sys.modules["torch"]
    key = causal, scale, in_order.get(), torch.are_deterministic_algorithms_enabled()
    plain = given == PLAIN and schedule is None and not transformed(torch)
    found = _known(key, q, k, v) if plain else None
    if found is None:
        with tensors.followed():
            call = call_of(q, k, v, causal, scale, schedule, given, blocks)
        wide = widened(q, k, v)
        if wide is not None:
            q, k, wide_v = wide
            out, lse = attention(q, k, wide_v, causal, call.scale, True, schedule, None, given, blocks)
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


def call_of(q: Any, k: Any, v: Any, causal: Any, scale: float | None, schedule: Any = None, given: Functions = PLAIN,
            blocks: Any = None) -> Any:
    """What the backward pass has to know of a call (`training.Call`)."""
    from .training import DENSE, Call

    qa, ka, va = (tensors.outline(x, name) for x, name in zip((q, k, v), "qkv"))
    forward._check_shapes(qa, ka, va)
    scale = 1.0 / math.sqrt(qa.shape[3]) if scale is None else scale
    run = functools.partial(_run, causal=causal, scale=scale, schedule=schedule, given=given, blocks=blocks)
    facts = {"mask": forward._mask_kind(causal, qa.shape[2], ka.shape[2]), "positive": scale >= forward.SMALLEST_NORMAL}
    return Call(run, DENSE, scale, forward._arch(qa.device), 1, given, facts, {})


def _run(q: Any, k: Any, v: Any, causal: Any, scale: float, schedule: Any, given: Functions, blocks: Any) -> Any:
    """(out, log-sum-exp); calls of a kind that is known go its way."""
    some = None if given == PLAIN else given
    steady = schedule is None and blocks is None
    if steady:
        q, k, v = q.detach(), k.detach(), v.detach()
        found = forward.known(q, k, v, causal, scale, some, lse=True)
        if found is not None:
            return found
    result = forward._checked(q, k, v, causal, scale, True, schedule, None, given, blocks)
    if steady:
        forward.learn(forward.key_of(causal, True, some), q, k, v, causal, True)
    return result
