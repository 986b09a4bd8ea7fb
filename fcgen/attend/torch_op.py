"""`fcgen.attention` in a graph of torch.compile: an operator that Dynamo takes as it is, with a rule for the shape of its result.

Imported only while a graph is traced. Guaranteed: one graph for all lengths, no break, and the operator does what the plain call does; what
an operator cannot say (a schedule or a score function of the caller's) breaks the graph, and the plain call decides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from ..errors import FcError
from . import forward
from .operators import define, learnt

#: how `causal` is written in a graph
_WORDS = {False: "none", None: "none", True: "square"}
#: a graph's word -> `causal`: objects that stay the same, by which the last call is known
_CAUSAL: dict[str, Any] = {"none": False, "square": True, "top_left": "top_left", "bottom_right": "bottom_right"}


def _plain(q: Any, k: Any, v: Any, causal: str, scale: float | None, return_lse: bool, out: Any = None) -> Any:
    return forward.attention(q, k, v, causal=_CAUSAL.get(causal, causal), scale=scale, return_lse=return_lse, out=out)


def _like(q: Any, v: Any) -> Any:
    return torch.empty_like(q) if q.shape[3] == v.shape[3] else q.new_empty((*q.shape[:3], v.shape[3]))


def _rows(q: Any) -> Any:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def _plain_op(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: str, scale: float | None) -> torch.Tensor:
    return _plain(q, k, v, causal, scale, False)  # type: ignore[no-any-return]


def _lse_op(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: str, scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    return _plain(q, k, v, causal, scale, True)  # type: ignore[no-any-return]


def _out_op(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, causal: str, scale: float | None) -> None:
    _plain(q, k, v, causal, scale, False, out)


def _out_lse_op(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, causal: str, scale: float | None) -> torch.Tensor:
    return _plain(q, k, v, causal, scale, True, out)[1]  # type: ignore[no-any-return]


_HEAD, _TAIL = "(Tensor q, Tensor k, Tensor v, ", "str causal, float? scale)"


_OPS = {
    (False, False): define("attention", f"{_HEAD}{_TAIL}", "Tensor", _plain_op, lambda q, k, v, causal, scale: _like(q, v)),
    (True, False): define("attention_lse", f"{_HEAD}{_TAIL}", "(Tensor, Tensor)", _lse_op,
                          lambda q, k, v, causal, scale: (_like(q, v), _rows(q))),
    (False, True): define("attention_out", f"{_HEAD}Tensor(a!) out, {_TAIL}", "()", _out_op, lambda *a: None),
    (True, True): define("attention_out_lse", f"{_HEAD}Tensor(a!) out, {_TAIL}", "Tensor", _out_lse_op, lambda q, *a: _rows(q)),
}
#: where gradients flow
TRAINED = learnt("attention_trained", f"{_HEAD}{_TAIL}", _lse_op, lambda q, k, v, *_: (_like(q, v), _rows(q)))


def transforming() -> bool:
    """Does Dynamo read this in a transform of torch.func, or where tangents are about? Operators have no derivatives there."""
    return bool(torch.compiler.is_dynamo_compiling() and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0))


@torch.compiler.disable(reason="transforms of torch.func and tangents follow fcgen's attention outside of graphs only")
def beside(call: Any, *args: Any, **named: Any) -> Any:
    """The call, outside of the graph."""
    return call(*args, **named)


@torch.compiler.disable(reason="fcgen.attention with functions, a schedule or blocks is no operator: it is called as it is")
def _break(*args: Any, **named: Any) -> Any:
    return forward.attention(*args, **named)


def traced(q: Any, k: Any, v: Any, causal: Any, scale: Any, return_lse: Any, schedule: Any, out: Any, more: dict[str, Any]) -> Any:
    """What Dynamo writes into the graph for a call."""
    if transforming():
        return beside(forward.attention, q, k, v, causal=causal, scale=scale, return_lse=return_lse, schedule=schedule, out=out, **more)
    word = causal if isinstance(causal, str) else _WORDS[causal] if isinstance(causal, (bool, type(None))) else None
    special = schedule is not None or any(x is not None for x in more.values())
    if special or (_learns(q, k, v) and out is not None) or word is None or not isinstance(scale, (float, int, type(None))):
        return _break(q, k, v, causal=causal, scale=scale, return_lse=return_lse, schedule=schedule, out=out, **more)
    return _written(q, k, v, word, None if scale is None else float(scale), return_lse, out)


def operator(q: Any, k: Any, v: Any, causal: Any, scale: float | None, return_lse: bool, out: Any) -> Any:
    """What a call is where torch writes operators down. (With functions or a schedule it is none, and its tensors are refused.)"""
    if out is not None and _learns(q, k, v):
        raise FcError("call/argument", "argument `out` is written, and a gradient is to flow through it",
                      hint="leave it away, or call under torch.no_grad()")
    return _written(q, k, v, causal if isinstance(causal, str) else _WORDS[causal], scale, return_lse, out)


def _learns(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any([t.requires_grad for t in tensors])


def _written(q: Any, k: Any, v: Any, word: str, scale: float | None, return_lse: bool, out: Any) -> Any:
    if out is None and _learns(q, k, v):
        o, lse = TRAINED(q, k, v, word, scale)
        return (o, lse) if return_lse else o
    if out is None:
        return _OPS[bool(return_lse), False](q, k, v, word, scale)
    lse = _OPS[bool(return_lse), True](q, k, v, out, word, scale)
    return (out, lse) if return_lse else out
