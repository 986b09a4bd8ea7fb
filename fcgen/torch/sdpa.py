"""`scaled_dot_product_attention` with torch's signature and torch's meaning of every corner.

As torch has it: causal is aligned top left, a CausalBias as it says;
a mask of bools says which keys count, one of floats is added; a row that sees no key is 0;
leading axes broadcast; heads are grouped only where `enable_gqa` says so; under autocast arguments are cast first. Head sizes that kernels
have not are padded with zeros. Guaranteed: what is not taken is an FcError that says why, before anything runs; torch is called instead
only where `fallback="torch"` asks for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.attention.bias import CausalBias, CausalVariant

from ..attend import forward
from ..attend.calls import HEADS
from ..attend.variants import Functions, functions
from ..errors import FcError
from . import variants
from .core import attend, fits, padded, refuse

#: what fcgen has no kernel for, and torch perhaps has
_LACKING = ("call/argument", "compile/unsupported", "compile/budget")


def scaled_dot_product_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
                                 dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
                                 *, fallback: str | None = None) -> torch.Tensor:
    """softmax(query key^T * scale + attn_mask) value, as torch.nn.functional's function of this name has it.

    query: [..., H, L, E]; key: [..., Hkv, S, E]; value: [..., Hkv, S, Ev]; f16 or bf16, on a GPU. attn_mask: bools or floats that
    broadcast to [..., H, L, S]. fallback: "torch" calls torch's own where fcgen says that it has no kernel.
    """
    if fallback is None and not torch.compiler.is_compiling() and (scale is None or type(scale) is float) and type(is_causal) is bool \
            and not dropout_p and (attn_mask is None or not is_causal):
        found = _known(query, key, value, attn_mask, is_causal, scale, enable_gqa)
        if found is not None:
            return found
    if fallback is not None and fallback != "torch":
        raise FcError("call/argument", "argument `fallback` is not one that there is", expected='None or "torch"', got=repr(fallback))
    if torch.is_autocast_enabled("cuda"):
        query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    problem = _problem(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if fallback is None:
        if problem is not None:
            refuse(*problem)
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if problem is None:
        try:
            return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        except FcError as e:
            if e.code not in _LACKING:
                raise
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                                                            enable_gqa=enable_gqa)


def _known(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None, gqa: Any) -> Any:
    """The result of a call of a kind that went well: nothing to cast, broadcast or pad, and nothing that records it. None for others."""
    if torch.is_autocast_enabled("cuda") or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return None
    try:
        if q.shape[1] != k.shape[1] and gqa is not True:
            return None
        given = None if mask is None else _functions_of(q, k, mask)
    except (AttributeError, IndexError, RuntimeError, ValueError):  # no tensors, nested ones, or others than [B, H, M, D]
        return None
    return forward.known(q, k, v, "top_left" if causal else False, scale, given) if mask is None or given is not None else None


def _functions_of(q: Any, k: Any, mask: Any) -> Functions | None:
    """What becomes of a mask that `_problem_of_mask` and `_as_table` have nothing to do for."""
    if type(mask) is not torch.Tensor or mask.requires_grad or mask.device != q.device:
        return None
    bools, (b, h, m, _), n = mask.dtype is torch.bool, q.shape, k.shape[2]
    mb, mh, mm, mn = mask.shape if mask.dim() != 2 else (1, 1, *mask.shape)
    if not ((mb == 1 or mb == b) and (mh == 1 or mh == h) and (mm == 1 or mm == m) and (mn == 1 or mn == n)):
        return None
    if not (bools or mask.dtype is torch.float32 or mask.dtype is q.dtype):
        return None
    at = variants.table(mask, (b, h, m, n))
    return functions(mask=at) if bools else functions(score=variants.added(at))


def _attention(q: Any, k: Any, v: Any, mask: Any, dropout: float, causal: bool, scale: float | None, gqa: bool) -> Any:
    word = "top_left" if causal else "none"
    if isinstance(mask, CausalBias):
        word, mask = "bottom_right" if mask.variant == CausalVariant.LOWER_RIGHT else "top_left", None
    size, width, shape = q.shape[-1], v.shape[-1], q.shape[:-1]
    lead = q.shape[:-2]
    if len(shape) != 3 or k.shape[:-2] != lead or v.shape[:-2] != lead:
        q, k, v, lead = _four_axes(q, k, v, gqa)
        shape = (*lead, shape[-1])
    if mask is not None:
        mask = _as_table(mask, lead, shape[-1], k.shape[2])
    if not fits(size) or not fits(width):
        scale = (size**-0.5 if size else 1.0) if scale is None else scale
        q, k, v = padded(q), padded(k), padded(v)
    q, k, v = (x if x.stride(-1) == 1 or not x.numel() else x.contiguous() for x in (q, k, v))
    out = attend(q, k, v, table=mask, causal=word, dropout=dropout or None, scale=scale)
    if out.shape[-1] != width:
        out = out[..., :width]
    return out if len(shape) == 3 else out.reshape(*shape, width)


def _autocast(*tensors: Any) -> list[Any]:
    """As autocast's list of functions in lower precision has it."""
    dtype = torch.get_autocast_dtype("cuda")
    lower = lambda x: isinstance(x, torch.Tensor) and not isinstance(x, CausalBias) and x.is_floating_point()
    return [x.to(dtype) if lower(x) and x.dtype != torch.float64 and x.dtype != dtype else x for x in tensors]


#: what is wrong with a call: message, expected, got, hint
Problem = tuple[str, Any, Any, "str | None"]


def _problem(q: Any, k: Any, v: Any, mask: Any, dropout: Any, causal: Any, scale: Any, gqa: Any) -> Problem | None:
    """What torch refuses, and what there is no kernel for."""
    for name, x in (("query", q), ("key", k), ("value", v)):
        if not isinstance(x, torch.Tensor):
            return f"argument `{name}` is not a tensor", "a torch tensor", f"a {type(x).__name__}", None
        if x.is_nested:
            return f"argument `{name}` is a nested tensor", "a plain tensor", None, "ragged batches: fcgen.compat.flash_attn_interface"
        if x.layout is not torch.strided:
            return f"argument `{name}` is not a strided tensor", torch.strided, x.layout, f"call {name}.to_dense()"
        if x.dim() < 2:
            return f"argument `{name}` has too few axes", "[..., length, head size]", tuple(x.shape), None
        if x.dtype != q.dtype:
            return f"`query` and `{name}` have different dtypes", q.dtype, x.dtype, None
        if x.device != q.device:
            return f"`query` and `{name}` are on different devices", q.device, x.device, None
        if x.dim() != q.dim():
            return f"`query` and `{name}` differ in their number of axes", q.dim(), x.dim(), "give it leading axes of size 1"
        if x.shape[-1] >= HEADS.stop:
            return f"the head size of `{name}` is not supported", f"at most {HEADS[-1]}", x.shape[-1], 'fallback="torch" lets torch do it'
    if q.dtype != torch.float16 and q.dtype != torch.bfloat16:
        return "there is no kernel for this dtype", "torch.float16 or torch.bfloat16", q.dtype, \
            'convert the tensors, use torch.autocast, or pass fallback="torch"'
    if q.shape[-1] != k.shape[-1]:
        return "`query` and `key` differ in head size", q.shape[-1], k.shape[-1], None
    if k.shape[-2] != v.shape[-2]:
        return "`key` and `value` differ in length", k.shape[-2], v.shape[-2], None
    if not isinstance(causal, bool):
        return "argument `is_causal` is not a bool", "True or False", repr(causal), None
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0.0 <= dropout <= 1.0:
        return "argument `dropout_p` is not a probability", "a number from 0 to 1", repr(dropout), None
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
        return "argument `scale` is not a number", "a number or None", repr(scale), None
    return _problem_of_mask(q, k, mask, causal) or _problem_of_leads(q, k, v, gqa)


def _problem_of_mask(q: Any, k: Any, mask: Any, causal: bool) -> Problem | None:
    if mask is None:
        return None
    if causal:
        return "`attn_mask` is given and `is_causal` set", "one of them", "both", "take is_causal into the mask"
    if not isinstance(mask, torch.Tensor):
        return "argument `attn_mask` is not a tensor", "a torch tensor", f"a {type(mask).__name__}", None
    if mask.layout is not torch.strided:
        return "argument `attn_mask` is not a strided tensor", torch.strided, mask.layout, "call attn_mask.to_dense()"
    if isinstance(mask, CausalBias):
        made, lengths = (mask.seq_len_q, mask.seq_len_kv), (q.shape[-2], k.shape[-2])
        return None if made == lengths else ("the causal bias was made for other lengths", lengths, made, None)
    if mask.dtype not in (torch.bool, torch.float32, q.dtype):
        return "argument `attn_mask` has the wrong dtype", f"torch.bool, torch.float32 or {q.dtype}", mask.dtype, None
    if mask.device != q.device:
        return "`query` and `attn_mask` are on different devices", q.device, mask.device, None
    return None


def _problem_of_leads(q: Any, k: Any, v: Any, gqa: bool) -> Problem | None:
    """Axes in front of the last two: heads are grouped where that is asked for, all else broadcasts."""
    if q.dim() == 2:
        return None
    heads, kv = q.shape[-3], (k.shape[-3], v.shape[-3])
    if gqa:
        if not all([n and heads % n == 0 for n in kv]):
            return "the heads of `query` are not a multiple of those of `key` and `value`", f"divisors of {heads}", kv, None
    elif not _broadcast((heads, *kv)):
        return "`query`, `key` and `value` differ in heads", f"{heads} heads, or 1", kv, "grouped heads need enable_gqa=True"
    if not all([_broadcast(sizes) for sizes in zip(q.shape[:-3], k.shape[:-3], v.shape[:-3])]):
        leads = [tuple(x.shape[:-3]) for x in (q, k, v)]
        return "the leading axes of `query`, `key` and `value` do not broadcast", "equal sizes, or 1", leads, None
    return None


def _broadcast(sizes: tuple[int, ...]) -> bool:
    most = _most(sizes)
    return all([n == 1 or n == most for n in sizes])


def _most(sizes: tuple[int, ...]) -> int:
    """What these sizes broadcast to."""
    for n in sizes:
        if n != 1:
            return n
    return 1


def _four_axes(q: Any, k: Any, v: Any, gqa: bool) -> tuple[Any, Any, Any, tuple[int, ...]]:
    """[B, H, length, head size] of each, and the leading axes of the result. Key and value get the same number of heads."""
    if q.dim() == 2:
        return q[None, None], k[None, None], v[None, None], ()
    lead = tuple([_most(sizes) for sizes in zip(q.shape[:-3], k.shape[:-3], v.shape[:-3])])
    heads = q.shape[-3] if gqa else _most((q.shape[-3], k.shape[-3], v.shape[-3]))
    if q.shape[-3] != heads:
        q = q.expand(*q.shape[:-3], heads, *q.shape[-2:])
    if k.shape[-3] != v.shape[-3]:
        k, v = _all_heads(k, heads), _all_heads(v, heads)
    batch = math.prod(lead)
    q, k, v = [x.expand(*lead, *x.shape[-3:]).reshape(batch, *x.shape[-3:]) for x in (q, k, v)]
    return q, k, v, (*lead, heads)


def _all_heads(x: Any, heads: int) -> Any:
    return x.repeat_interleave(heads // x.shape[-3], -3) if x.shape[-3] != heads else x


def _as_table(mask: Any, lead: tuple[int, ...], rows: int, columns: int) -> Any:
    """A mask with 4 axes, each of which is 1 or what [B, H, L, S] has."""
    want = (*lead, rows, columns)
    have = (*[1] * (len(want) - mask.dim()), *mask.shape)
    if len(have) != len(want) or not all([n == 1 or n == m for n, m in zip(have, want)]):
        refuse("argument `attn_mask` does not broadcast to the scores", want, tuple(mask.shape))
    have = (*[1] * (4 - len(have)), *have)
    if len(have) > 4:
        outer = [1 for _ in lead[:-1]] if all([n == 1 for n in have[:-3]]) else lead[:-1]
        mask = mask.expand(*outer, *have[-3:])
        have = (math.prod(outer), *have[-3:])
    return mask.reshape(have)
