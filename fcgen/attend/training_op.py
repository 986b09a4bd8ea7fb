"""`fcgen.attention` with gradients in a graph of torch.compile: an operator with a rule for its derivative, which is an operator too.

Imported only while a graph is traced.
"""

from __future__ import annotations

from typing import Any

import torch

from . import forward
from .training import gradients, plan_of


def _causal(word: str) -> bool | str:
    return True if word == "square" else word


@torch.library.custom_op("fcgen::attention_trained", mutates_args=(),
                         schema="(Tensor q, Tensor k, Tensor v, str causal, float? scale) -> (Tensor, Tensor)")
def trained(q: Any, k: Any, v: Any, causal: str, scale: float | None) -> Any:
    """(out, log-sum-exp)"""
    q, k, v = (x.detach() for x in (q, k, v))
    return forward.attention(q, k, v, causal=_causal(causal), scale=scale, return_lse=True)


@torch.library.custom_op("fcgen::attention_gradients", mutates_args=(), schema="(Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, "
                         "Tensor? do, Tensor? dlse, str causal, float? scale) -> (Tensor, Tensor, Tensor)")
def _gradients(q: Any, k: Any, v: Any, o: Any, lse: Any, do: Any, dlse: Any, causal: str, scale: float | None) -> Any:
    q, k, v = (x.detach() for x in (q, k, v))
    call = forward.training_call(q, k, v, forward._mask_word(_causal(causal)), scale)
    with torch.no_grad():
        return gradients(call, plan_of(call, q, k, v, True, True, []), o, lse, q, k, v, (), do, dlse, {})


def _new(x: Any) -> Any:
    return x.new_empty(x.shape)


@trained.register_fake
def _(q: Any, k: Any, v: Any, causal: str, scale: float | None) -> Any:
    out = torch.empty_like(q) if q.shape[3] == v.shape[3] else q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@_gradients.register_fake
def _(q: Any, k: Any, v: Any, *_: Any) -> Any:
    return _new(q), _new(k), _new(v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
    q, k, v, ctx.causal, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, do: Any, dlse: Any) -> Any:
    q, k, v, o, lse = ctx.saved_tensors
    if do is None and dlse is None:
        return None, None, None, None, None
    return (*_gradients(q, k, v, o, lse, do, dlse, ctx.causal, ctx.scale), None, None)


torch.library.register_autograd("fcgen::attention_trained", _backward, setup_context=_setup)
