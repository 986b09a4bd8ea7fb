"""`fcgen.attention` in a graph of torch.compile: an operator that Dynamo takes as it is, with a rule for the shape of its result.

Imported only while a graph is traced. Guaranteed: one graph for all lengths, no break, and the operator does what the plain call does; what
an operator cannot say (a schedule or a score function of the caller's) breaks the graph, and the plain call decides.
"""

from __future__ import annotations

from typing import Any

import torch

from . import forward
from .operators import define, learnt

#: how `causal` is written in a graph
_WORDS = {False: "none", None: "none", True: "square"}


def _plain(q: Any, k: Any, v: Any, causal: str, scale: float | None, return_lse: bool, out: Any = None) -> Any:
    return forward.attention(q, k, v, causal=True if causal == "square" else causal, scale=scale, return_lse=return_lse, out=out)


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


@torch.compiler.disable
def _break(*args: Any, **named: Any) -> Any:
    return forward.attention(*args, **named)


def traced(q: Any, k: Any, v: Any, causal: Any, scale: Any, return_lse: Any, schedule: Any, out: Any, more: dict[str, Any]) -> Any:
    """What Dynamo writes into the graph for a call."""
    lost = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    word = causal if isinstance(causal, str) else _WORDS[causal] if isinstance(causal, (bool, type(None))) else None
    special = schedule is not None or any(x is not None for x in more.values())
    if lost and out is None and not special and word is not None and isinstance(scale, (float, int, type(None))):
        o, lse = TRAINED(q, k, v, word, None if scale is None else float(scale))
        return (o, lse) if return_lse else o
    if lost or special or word is None or not isinstance(scale, (float, int, type(None))):
        return _break(q, k, v, causal=causal, scale=scale, return_lse=return_lse, schedule=schedule, out=out, **more)
    if scale is not None:
        scale = float(scale)
    if out is None:
        return _OPS[bool(return_lse), False](q, k, v, word, scale)
    lse = _OPS[bool(return_lse), True](q, k, v, out, word, scale)
    return (out, lse) if return_lse else out
