"""The call that all of torch's interfaces end in, on tensors [B, H, M, D], and its operators for graphs.

A `graph` is whatever records operators in place of running them: torch.compile, torch.export, make_fx, fake tensors. Guaranteed: the same
arguments give the same result in a graph and outside; sizes are no part of a graph; what an operator cannot say is refused, not dropped.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import forward
from ..errors import FcError
from . import variants

#: no end of a window
OPEN = -1


def recorded(*tensors: Any) -> bool:
    """Is this call being written down, rather than made?"""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return True
    return any(type(t).__name__ in ("FakeTensor", "FunctionalTensor") for t in tensors)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, table: torch.Tensor | None = None, sinks: torch.Tensor | None = None,
           causal: str = "none", left: int = OPEN, right: int = OPEN, chunk: int = 0, softcap: float | None = None, scale: float | None = None,
           lse: bool = False) -> Any:
    """softmax of the scores times v, or (that, log-sum-exp).

    table: added to the scores, or bools that say which count; 4 axes, those of one element broadcast. causal: "none", "top_left",
    "bottom_right". left, right: a window around the diagonal that ends bottom right. chunk: rows see their own chunk of so many
    positions. softcap: scores go through softcap * tanh(score / softcap). sinks: one more score per head, of a key without a value.
    """
    no_gradient(q, k, v, table, sinks)
    if recorded(q, k, v):
        op = torch.ops.fcgen.attend_lse if lse else torch.ops.fcgen.attend
        return op(q, k, v, table, sinks, causal, left, right, chunk, softcap, scale)
    return _attend(q, k, v, table, sinks, causal, left, right, chunk, softcap, scale, lse)


def _attend(q: Any, k: Any, v: Any, table: Any, sinks: Any, causal: str, left: int, right: int, chunk: int, softcap: float | None,
            scale: float | None, lse: bool) -> Any:
    if table is None and sinks is None and left < 0 and right < 0 and not chunk and not softcap:
        return forward.attention(q, k, v, causal=False if causal == "none" else causal, scale=scale, return_lse=lse)
    scores = [variants.capped(float(softcap))] if softcap else []
    shift = k.shape[2] - q.shape[2]
    if left >= 0 or right >= 0:
        scores.append(variants.masked(variants.window(left, right, shift)))
    if chunk:
        scores.append(variants.masked(variants.chunks(chunk, shift)))
    if table is not None:
        scores.append(variants.added(table, (*q.shape[:3], k.shape[2])))
    return _with_sinks(q, k, v, sinks, False if causal == "none" else causal, scale, lse, variants.one(scores))


def _with_sinks(q: Any, k: Any, v: Any, sinks: Any, causal: Any, scale: Any, lse: bool, score: Any) -> Any:
    if sinks is None:
        return forward.attention(q, k, v, causal=causal, scale=scale, return_lse=lse, score=score)
    out, sums = forward.attention(q, k, v, causal=causal, scale=scale, return_lse=True, score=score)
    sunk = torch.logaddexp(sums, sinks.float()[None, :, None])
    out = out.mul_(torch.exp(sums - sunk).unsqueeze(-1).to(out.dtype))
    return (out, sunk) if lse else out


def no_gradient(*tensors: Any) -> None:
    """Refuse tensors from which a gradient would flow."""
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors]):
        refuse("an argument requires grad, and fcgen has no backward pass yet", "tensors from which no gradient flows",
               "requires_grad=True", "call it under torch.no_grad(), or pass the tensor's .detach()")


@torch.compiler.disable(reason="fcgen refuses this call; called without torch.compile it says why")
def refuse(message: str, expected: Any = None, got: Any = None, hint: str | None = None) -> None:
    raise FcError("call/argument", message, expected=expected, got=got, hint=hint)


# ---- operators ---------------------------------------------------------------------------------------------------------

_ARGUMENTS = ("(Tensor q, Tensor k, Tensor v, Tensor? table, Tensor? sinks, str causal, SymInt left, SymInt right, SymInt chunk, "
              "float? softcap, float? scale)")
#: operators live as long as this
LIBRARY = torch.library.Library("fcgen", "FRAGMENT")


def define(name: str, arguments: str, result: str, function: Any, fake: Any) -> None:
    """An operator `fcgen::name` whose result has the shape and strides that `fake` gives."""
    LIBRARY.define(f"{name}{arguments} -> {result}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fcgen::{name}", fake, lib=LIBRARY)


def like_q(q: Any, v: Any) -> Any:
    """An output as `forward` makes it."""
    shape = (*q.shape[:3], v.shape[3])
    return torch.empty_like(q, requires_grad=False) if q.shape[3] == v.shape[3] else q.new_empty(shape)


def rows_of(q: Any) -> Any:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


define("attend", _ARGUMENTS, "Tensor", lambda *a: _attend(*a, False), lambda q, k, v, *_: like_q(q, v))
define("attend_lse", _ARGUMENTS, "(Tensor, Tensor)", lambda *a: _attend(*a, True), lambda q, k, v, *_: (like_q(q, v), rows_of(q)))
