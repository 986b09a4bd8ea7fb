"""FlashAttention-3's functions: its module `flash_attn_interface`, argument by argument, on fcgen's kernels.

Tensors are [batch, length, heads, head size], or packed [rows, heads, head size] with `cu_seqlens`. As FlashAttention has it, causal and
windows end bottom right, and rows that see no key are 0. Arguments that decide a result are honoured or refused by name. Those that only
say how a kernel should go about it (`num_splits`, `pack_gqa`) are looked at and change nothing: fcgen's kernels choose for themselves.
Gradients flow; with `deterministic` they are summed up in one order, as all forward results are.
"""

from __future__ import annotations

from operator import index
from typing import Any

import torch

from ..torch.core import attend, attend_varlen, lined, refuse, wants_gradient

Window = tuple[int, int]
NO_WINDOW: Window = (-1, -1)


def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float | None = None, causal: bool = False,
                    qv: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None, window_size: Window = NO_WINDOW,
                    attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1, pack_gqa: bool | None = None,
                    deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False) -> Any:
    """q: [B, M, H, D]; k: [B, N, Hkv, D]; v: [B, N, Hkv, E]; H a multiple of Hkv. Returns [B, M, H, E]; with return_attn_probs also the
    log-sum-exp [B, H, M]."""
    if not (qv is q_descale is k_descale is v_descale is pack_gqa is None and type(num_splits) is int and num_splits >= 0 == sm_margin):
        _refused(qv, q_descale, k_descale, v_descale, num_splits, pack_gqa, sm_margin)
    if not (type(q) is type(k) is type(v) is torch.Tensor and q.dim() == k.dim() == v.dim() == 4):
        _axes(4, q=q, k=k, v=v)
    left, right = (-1, -1) if window_size is NO_WINDOW else _window(window_size, causal)
    out = attend(_rows(q), _rows(k), _rows(v), causal="bottom_right" if causal else "none", left=left, right=right,
                 chunk=_chunk(attention_chunk), softcap=_cap(softcap), scale=softmax_scale, lse=bool(return_attn_probs),
                 deterministic=_switch(deterministic))
    return (out[0].transpose(1, 2), out[1]) if return_attn_probs else out.transpose(1, 2)


def flash_attn_qkvpacked_func(qkv: torch.Tensor, softmax_scale: float | None = None, causal: bool = False, q_descale: Any = None,
                              k_descale: Any = None, v_descale: Any = None, window_size: Window = NO_WINDOW, attention_chunk: int = 0,
                              softcap: float = 0.0, deterministic: bool = False, num_heads_q: int | None = None, sm_margin: int = 0,
                              return_attn_probs: bool = False) -> Any:
    """qkv: [B, M, 3, H, D], or [B, M, num_heads_q + 2 * Hkv, D]."""
    _axes((4, 5), qkv=qkv)
    if qkv.dim() == 5:
        if qkv.shape[2] != 3:
            refuse("argument `qkv` does not hold q, k and v", "[batch, length, 3, heads, head size]", tuple(qkv.shape))
        q, k, v = qkv.unbind(2)
    else:
        if num_heads_q is None or not 0 < num_heads_q < qkv.shape[2] or (qkv.shape[2] - num_heads_q) % 2:
            refuse("argument `num_heads_q` does not fit `qkv`", f"a number that leaves an even part of {qkv.shape[2]} heads", num_heads_q)
        groups = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split([num_heads_q, groups, groups], dim=2)
    return flash_attn_func(q, k, v, softmax_scale, causal, None, q_descale, k_descale, v_descale, window_size, attention_chunk, softcap,
                           deterministic=deterministic, sm_margin=sm_margin, return_attn_probs=return_attn_probs)


def flash_attn_varlen_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
                           max_seqlen_q: int, max_seqlen_k: int, seqused_q: torch.Tensor | None = None,
                           seqused_k: torch.Tensor | None = None, softmax_scale: float | None = None, causal: bool = False, qv: Any = None,
                           q_descale: Any = None, k_descale: Any = None, v_descale: Any = None, window_size: Window = NO_WINDOW,
                           attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1, pack_gqa: bool | None = None,
                           deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False) -> Any:
    """q: [rows, H, D]; k: [keys, Hkv, D]; v: [keys, Hkv, E]. Sequence s is the rows cu_seqlens_q[s] to cu_seqlens_q[s + 1], of which
    seqused_q[s] count, and likewise for keys. Returns [rows, H, E]; with return_attn_probs also the log-sum-exp [H, rows]."""
    if not (qv is q_descale is k_descale is v_descale is pack_gqa is None and type(num_splits) is int and num_splits >= 0 == sm_margin):
        _refused(qv, q_descale, k_descale, v_descale, num_splits, pack_gqa, sm_margin)
    if not (type(q) is type(k) is type(v) is torch.Tensor and q.dim() == k.dim() == v.dim() == 3):
        _axes(3, q=q, k=k, v=v)
    for name, x in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if not isinstance(x, torch.Tensor):
            refuse(f"argument `{name}` is not a tensor", "an int32 tensor [sequences + 1]", f"a {type(x).__name__}",
                   "keys in a padded batch: flash_attn_func with a mask, or fcgen.attention with fcgen.masks.padding")
    left, right = _window(window_size, causal)
    return attend_varlen(lined(q), lined(k), lined(v), cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                         max_seqlen_k, seqused_q, seqused_k, causal=bool(causal), left=left, right=right, chunk=_chunk(attention_chunk),
                         softcap=_cap(softcap), scale=softmax_scale, lse=bool(return_attn_probs), deterministic=_switch(deterministic))


def flash_attn_combine(out_partial: torch.Tensor, lse_partial: torch.Tensor, out: torch.Tensor | None = None,
                       out_dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One result of several over parts of the keys. out_partial: f32 [parts, ..., M, H, D]; lse_partial: f32 [parts, ..., M, H]. Returns
    the output [..., M, H, D] and its log-sum-exp [..., M, H]; what no part has seen is 0 and -inf."""
    for name, x in (("out_partial", out_partial), ("lse_partial", lse_partial)):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or x.layout is not torch.strided:
            refuse(f"argument `{name}` is not a strided tensor of f32", torch.float32, getattr(x, "dtype", type(x)))
    if out_partial.dim() not in (4, 5) or out_partial.shape[:-1] != lse_partial.shape or out_partial.device != lse_partial.device:
        refuse("`lse_partial` is not of `out_partial`", f"{tuple(out_partial.shape[:-1])} on {out_partial.device}",
               f"{tuple(lse_partial.shape)} on {lse_partial.device}")
    dtype = out_dtype if out_dtype is not None else out_partial.dtype if out is None else out.dtype
    if wants_gradient(out_partial, lse_partial, out):
        refuse("an argument of flash_attn_combine requires grad, and it has no backward pass", "tensors from which no gradient flows",
               "requires_grad=True", "call it under torch.no_grad(), or pass the tensor's .detach()")
    if out is not None and (out.dtype != dtype or out.shape != out_partial.shape[1:] or out.device != out_partial.device):
        refuse("argument `out` is not what is written", (dtype, tuple(out_partial.shape[1:])), (out.dtype, tuple(out.shape)))
    lse = lse_partial.logsumexp(0)
    weights = torch.where(lse_partial == -torch.inf, 0.0, (lse_partial - lse).exp())
    total = torch.einsum("s...,s...d->...d", weights, out_partial)
    if out is None:
        return total.to(dtype), lse
    return out.copy_(total), lse


def _refused(qv: Any, q_descale: Any, k_descale: Any, v_descale: Any, num_splits: Any, pack_gqa: Any, sm_margin: Any) -> None:
    for name, x in (("qv", qv), ("q_descale", q_descale), ("k_descale", k_descale), ("v_descale", v_descale)):
        if x is not None:
            refuse(f"argument `{name}` is not supported", "None", "a tensor" if isinstance(x, torch.Tensor) else repr(x))
    if sm_margin != 0:
        refuse("argument `sm_margin` is not supported: a launch takes the multiprocessors that it finds", 0, sm_margin)
    if isinstance(num_splits, bool) or not isinstance(num_splits, int) or num_splits < 0:
        refuse("argument `num_splits` is not a number of parts", "0 or more", repr(num_splits))
    if pack_gqa is not None and not isinstance(pack_gqa, bool):
        refuse("argument `pack_gqa` is not a bool", "True, False or None", repr(pack_gqa))


def _axes(count: Any, **tensors: Any) -> None:
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            refuse(f"argument `{name}` is not a tensor", "a torch tensor", f"a {type(x).__name__}")
        if x.dim() != count and (isinstance(count, int) or x.dim() not in count):
            shapes = {3: "[rows, heads, head size]", 4: "[batch, length, heads, head size]"}
            refuse(f"argument `{name}` has the wrong number of axes", shapes.get(count, count), tuple(x.shape))


def _rows(x: Any) -> Any:
    """[B, H, M, D], with a contiguous last axis."""
    return lined(x).transpose(1, 2)


def _window(window: Any, causal: Any) -> tuple[int, int]:
    """(left, right), -1 for no end. What a causal mask says of the right is the causal mask's."""
    try:
        left, right = [-1 if n is None else n if type(n) is int else index(n) for n in window]
    except (TypeError, ValueError):
        refuse("argument `window_size` is not (left, right)", "two whole numbers, -1 for no end", repr(window))
    left, right = [max(n, -1) for n in (left, right)]
    return left, -1 if causal else right


def _switch(deterministic: Any) -> bool:
    if not isinstance(deterministic, bool):
        refuse("argument `deterministic` is not a bool", "True or False", repr(deterministic))
    return bool(deterministic)


def _chunk(chunk: Any) -> int:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 0:
        refuse("argument `attention_chunk` is not a length", "0 (no chunks) or more", repr(chunk))
    return int(chunk)


def _cap(cap: Any) -> float | None:
    if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not cap >= 0:
        refuse("argument `softcap` is not a cap", "0.0 (none) or more", repr(cap))
    return float(cap) if cap else None
