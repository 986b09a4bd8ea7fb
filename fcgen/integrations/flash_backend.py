"""`register()` makes fcgen one of the implementations of torch's flash attention backend (torch 2.11 and later).

    import torch, fcgen.integrations.flash_backend
    fcgen.integrations.flash_backend.register()
    torch.nn.attention.activate_flash_attention_impl("fcgen")

From there on torch's own SDPA runs fcgen's kernels where it chooses the flash backend, forward and backward.
`torch.nn.attention.restore_flash_attention_impl()` undoes it. Registering changes nothing yet.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..attend.differentiable import differentiated
from ..errors import FcError
from ..torch.core import OPEN, attend, attend_varlen, refuse


class Handle:
    """What keeps the kernels registered."""

    def __init__(self) -> None:
        self.library: Any = torch.library.Library("aten", "IMPL", "CUDA")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch's own are overridden is what was asked for
            for name, function in _OPS.items():
                self.library.impl(name, function, "CUDA")

    def remove(self) -> None:
        """Torch's own again."""
        self.library._destroy()
        self.library = None


def register(name: str = "fcgen") -> None:
    """Make the name known to `torch.nn.attention.activate_flash_attention_impl`."""
    known = getattr(torch.nn.attention, "register_flash_attention_impl", None)
    if known is None:
        raise FcError("call/argument", "this torch has no list of flash attention implementations", expected="torch 2.11 or later",
                      got=torch.__version__, hint="call fcgen.scaled_dot_product_attention")
    known(name, register_fn=Handle)


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float = 0.0, is_causal: bool = False,
         return_debug_mask: bool = False, *, scale: float | None = None) -> Any:
    """aten::_scaled_dot_product_flash_attention: [B, H, M, D]. (Its causal mask ends bottom right; torch calls it where there are as many
    rows as keys.)"""
    _refused(dropout_p, return_debug_mask)
    out, lse = attend(*_values(query, key, value), causal="bottom_right" if is_causal else "none", scale=scale, lse=True)
    return out, lse, None, None, query.shape[2], key.shape[2], *_auxiliary(query)


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cum_seq_q: torch.Tensor | None, cum_seq_k: torch.Tensor | None,
          max_q: int, max_k: int, dropout_p: float, is_causal: bool, return_debug_mask: bool, *, scale: float | None = None,
          window_size_left: int | None = None, window_size_right: int | None = None, seqused_k: torch.Tensor | None = None,
          alibi_slopes: torch.Tensor | None = None, **others: Any) -> Any:
    """aten::_flash_attention_forward: [B, M, H, D], or packed [rows, H, D] with offsets."""
    _refused(dropout_p, return_debug_mask)
    for name, x in {"alibi_slopes": alibi_slopes, **others}.items():
        if x is not None:
            refuse(f"argument `{name}` of torch's flash attention is not supported", "None", type(x).__name__)
    left, right = [OPEN if n is None or n < 0 else n for n in (window_size_left, window_size_right)]
    q, k, v = _values(query, key, value)
    if cum_seq_q is not None:
        out, lse = attend_varlen(q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, None, seqused_k, causal=is_causal, left=left, right=right,
                                 scale=scale, lse=True)
        return out, lse, *_auxiliary(query)
    if seqused_k is not None:
        refuse("argument `seqused_k` of torch's flash attention goes with packed sequences", "cum_seq_q and cum_seq_k", "a padded batch")
    q, k, v = [x.transpose(1, 2) for x in (q, k, v)]
    out, lse = attend(q, k, v, causal="bottom_right" if is_causal else "none", left=left, right=right, scale=scale, lse=True)
    return out.transpose(1, 2), lse, *_auxiliary(query)


def sdpa_backward(grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
                  logsumexp: torch.Tensor, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool,
                  philox_seed: Any, philox_offset: Any, *, scale: float | None = None) -> Any:
    """aten::_scaled_dot_product_flash_attention_backward."""
    _refused(dropout_p, False)
    given = _values(query, key, value)
    run = lambda q, k, v: attend(q, k, v, causal="bottom_right" if is_causal else "none", scale=scale, lse=True)
    return tuple(differentiated(run, given, range(3), (out, logsumexp), (grad_out, None)))


def flash_backward(grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
                   logsumexp: torch.Tensor, cum_seq_q: torch.Tensor | None, cum_seq_k: torch.Tensor | None, max_q: int, max_k: int,
                   dropout_p: float, is_causal: bool, rng_state: Any, unused: Any, *, scale: float | None = None,
                   window_size_left: int | None = None, window_size_right: int | None = None) -> Any:
    """aten::_flash_attention_backward."""
    _refused(dropout_p, False)
    left, right = [OPEN if n is None or n < 0 else n for n in (window_size_left, window_size_right)]
    given = _values(query, key, value)
    if cum_seq_q is not None:
        packed = lambda q, k, v: attend_varlen(q, k, v, cum_seq_q, cum_seq_k, max_q, max_k, causal=is_causal, left=left, right=right,
                                               scale=scale, lse=True)
        return tuple(differentiated(packed, given, range(3), (out, logsumexp), (grad_out, None)))
    given, out, grad_out = [x.transpose(1, 2) for x in given], out.transpose(1, 2), grad_out.transpose(1, 2)
    run = lambda q, k, v: attend(q, k, v, causal="bottom_right" if is_causal else "none", left=left, right=right, scale=scale, lse=True)
    return tuple(g.transpose(1, 2) for g in differentiated(run, given, range(3), (out, logsumexp), (grad_out, None)))


_OPS = {"_scaled_dot_product_flash_attention": sdpa, "_flash_attention_forward": flash,
        "_scaled_dot_product_flash_attention_backward": sdpa_backward, "_flash_attention_backward": flash_backward}


def _values(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors without what autograd does around this operator."""
    with torch.no_grad():
        return [(x if x.stride(-1) == 1 else x.contiguous()).detach() for x in tensors]


def _refused(dropout: float, debug: bool) -> None:
    if dropout:
        refuse("dropout of torch's flash attention is torch's own random numbers", "dropout_p=0.0", dropout,
               "torch.nn.attention.restore_flash_attention_impl(), or fcgen.scaled_dot_product_attention")
    if debug:
        refuse("there is no debug mask", "return_debug_mask=False", debug)


def _auxiliary(query: torch.Tensor) -> tuple[Any, Any, Any]:
    """What torch's own gives for random numbers: nothing that is used without dropout."""
    return (query.new_zeros(2, dtype=torch.uint64), query.new_zeros((), dtype=torch.uint64), query.new_empty(0))
