"""Whether a derivative may flow through a call of `fcgen.attention`, or a graph is made of it. Loads nothing of torch's."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

from ..lang.captures import no_number
from .variants import Functions

#: how deep a function's objects are looked into
_DEPTH = 6


def learns(given: Functions, *tensors: Any) -> bool:
    """Whether one of the tensors requires a gradient, or one that the functions hold, or a transform or tangents are about."""
    torch = sys.modules.get("torch")
    if torch is None or not all(isinstance(t, torch.Tensor) for t in tensors):
        return False
    if moves(given, *tensors):
        return True
    return bool(torch.is_grad_enabled()) and (held_learn(given) or any(t.requires_grad for t in tensors))


def recorded(*tensors: Any) -> bool:
    """Whether torch writes operators down here, or looks at them (make_fx, torch.export, fake tensors, torch.jit.trace, modes), and so
    would not see a launch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return True
    return all([type(t) is not torch.Tensor and type(t).__name__ in ("FakeTensor", "FunctionalTensor") for t in tensors])


def moves(given: Functions, *tensors: Any) -> bool:
    """Whether one of the tensors, or one that the functions hold, is `moving`."""
    torch = sys.modules["torch"]
    if torch.autograd.forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return False
    return any(moving(t) for t in tensors) or any(moving(x) for x in _held(given))


def moving(x: Any) -> bool:
    """Whether a tensor of torch belongs to a transform of torch.func that takes derivatives or batches, or carries a tangent."""
    torch = sys.modules["torch"]
    of = torch._C._functorch
    if of.is_gradtrackingtensor(x) or of.is_batchedtensor(x):
        return True
    forward = torch.autograd.forward_ad
    return forward._current_level >= 0 and forward.unpack_dual(x).tangent is not None


def held_learn(given: Functions) -> bool:
    """Whether a tensor that the functions hold requires one."""
    found = [x for x in _held(given) if x.requires_grad]
    for x in found:
        if not x.shape and sys.modules["torch"].is_grad_enabled():
            raise no_number(x)
    return bool(found)


def held_in(f: Any) -> Iterator[Any]:
    """The tensors that a function holds, as far as they are found."""
    return _tensors_in(f, sys.modules["torch"].Tensor, _DEPTH) if f is not None else iter(())


def _held(given: Functions) -> Iterator[Any]:
    return (x for f in given for x in held_in(f))


def _tensors_in(x: Any, kind: type, depth: int) -> Iterator[Any]:
    """Tensors that a function, or an object of the user's, holds. What is overlooked here is refused where it is launched."""
    if isinstance(x, kind):
        yield x
        return
    inside: list[Any] = []
    if isinstance(x, (tuple, list)):
        inside = list(x)
    elif isinstance(x, dict):
        inside = list(x.values())
    elif isinstance(x, types.FunctionType):
        names = [n for n in x.__code__.co_names if n in x.__globals__]
        inside = [*(c.cell_contents for c in x.__closure__ or () if c != types.CellType()), *(x.__defaults__ or ()),
                  *(x.__kwdefaults__ or {}).values(), *(x.__globals__[n] for n in names)]
    elif isinstance(x, types.MethodType):
        inside = [x.__self__, x.__func__]
    elif isinstance(x, functools.partial):
        inside = [x.func, *x.args, *x.keywords.values()]
    elif hasattr(x, "__dict__") and not isinstance(x, (type, types.ModuleType)):
        inside = list(vars(x).values())
    if depth:
        for y in inside:
            if not isinstance(y, (int, float, str, types.ModuleType, type)):
                yield from _tensors_in(y, kind, depth - 1)
