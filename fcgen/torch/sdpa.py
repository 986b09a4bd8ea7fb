"""`scaled_dot_product_attention` with torch's signature and torch's meaning of every corner.

As torch has it: causal is aligned top left; a mask of bools says which keys count, one of floats is added; a row that sees no key is 0; leading
axes broadcast; heads are grouped only where `enable_gqa` says so; under autocast arguments are cast first. Head sizes that kernels have
not are padded with zeros. Guaranteed: what is not taken is an FcError that says why, before anything runs; torch is called instead only
where `fallback="torch"` asks for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..calls import HEADS
from ..errors import FcError
from .core import attend

#: what fcgen has no kernel for, and torch perhaps has
_LACKING = ("call/argument", "compile/unsupported", "compile/budget")


def scaled_dot_product_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
                                 dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
                                 *, fallback: str | None = None) -> torch.Tensor:
    """softmax(query key^T * scale + attn_mask) value, as torch.nn.functional's function of this name has it.

    query: [..., H, L, E]; key: [..., Hkv, S, E]; value: [..., Hkv, S, Ev]; f16 or bf16, on a GPU. attn_mask: bools or floats that
    broadcast to [..., H, L, S]. fallback: "torch" calls torch's own where fcgen says that it has no kernel.
    """
    if fallback is not None and fallback != "torch":
        raise FcError("call/argument", "argument `fallback` is not one that there is", expected='None or "torch"', got=repr(fallback))
    if fallback is None:
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    try:
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    except FcError as e:
        if e.code not in _LACKING:
            raise
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def _attention(q: Any, k: Any, v: Any, mask: Any, dropout: Any, causal: Any, scale: Any, gqa: Any) -> Any:
    if torch.is_autocast_enabled("cuda"):
        q, k, v, mask = _autocast(q, k, v, mask)
    _check(q, k, v, mask, dropout, causal, scale)
    word = "top_left" if causal else "none"
    size, width, shape = q.shape[-1], v.shape[-1], q.shape[:-1]
    lead = q.shape[:-2]
    if len(shape) != 3 or k.shape[:-2] != lead or v.shape[:-2] != lead:
        q, k, v, lead = _four_axes(q, k, v, gqa)
        shape = (*lead, shape[-1])
    if mask is not None:
        mask = _as_table(mask, lead, shape[-1], k.shape[2])
    if size not in HEADS or width not in HEADS:
        scale = (size**-0.5 if size else 1.0) if scale is None else scale
        q, k, v = _padded(q), _padded(k), _padded(v)
    q, k, v = (x if x.stride(-1) == 1 or not x.numel() else x.contiguous() for x in (q, k, v))
    out = attend(q, k, v, table=mask, causal=word, scale=scale)
    if out.shape[-1] != width:
        out = out[..., :width]
    return out if len(shape) == 3 else out.reshape(*shape, width)


def _autocast(*tensors: Any) -> list[Any]:
    """As autocast's list of functions in lower precision has it."""
    dtype = torch.get_autocast_dtype("cuda")
    return [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64 and x.dtype != dtype else x
            for x in tensors]


def _refuse(message: str, expected: Any = None, got: Any = None, hint: str | None = None) -> None:
    raise FcError("call/argument", message, expected=expected, got=got, hint=hint)


def _check(q: Any, k: Any, v: Any, mask: Any, dropout: Any, causal: Any, scale: Any) -> None:
    """What torch refuses, and what there is no kernel for."""
    for name, x in (("query", q), ("key", k), ("value", v)):
        if not isinstance(x, torch.Tensor):
            _refuse(f"argument `{name}` is not a tensor", "a torch tensor", f"a {type(x).__name__}")
        if x.is_nested:
            _refuse(f"argument `{name}` is a nested tensor", "a plain tensor", hint="ragged batches: fcgen.compat.flash_attn_interface")
        if x.dim() < 2:
            _refuse(f"argument `{name}` has too few axes", "[..., length, head size]", tuple(x.shape))
        if x.dtype != q.dtype:
            _refuse(f"`query` and `{name}` have different dtypes", q.dtype, x.dtype)
        if x.device != q.device:
            _refuse(f"`query` and `{name}` are on different devices", q.device, x.device)
        if x.dim() != q.dim():
            _refuse(f"`query` and `{name}` differ in their number of axes", q.dim(), x.dim(), "give it leading axes of size 1")
    if q.dtype != torch.float16 and q.dtype != torch.bfloat16:
        _refuse("there is no kernel for this dtype", "torch.float16 or torch.bfloat16", q.dtype,
                'convert the tensors, use torch.autocast, or pass fallback="torch"')
    if q.shape[-1] != k.shape[-1]:
        _refuse("`query` and `key` differ in head size", q.shape[-1], k.shape[-1])
    if k.shape[-2] != v.shape[-2]:
        _refuse("`key` and `value` differ in length", k.shape[-2], v.shape[-2])
    for name, size in (("query", q.shape[-1]), ("value", v.shape[-1])):
        if size > HEADS[-1]:
            _refuse(f"the head size of `{name}` is not supported", f"at most {HEADS[-1]}", size, 'pass fallback="torch" to let torch do it')
    if not isinstance(causal, bool):
        _refuse("argument `is_causal` is not a bool", "True or False", repr(causal))
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0.0 <= dropout <= 1.0:
        _refuse("argument `dropout_p` is not a probability", "a number from 0 to 1", repr(dropout))
    if dropout:
        _refuse("there is no dropout yet", "dropout_p=0.0", dropout, 'pass dropout_p=0.0, or fallback="torch"')
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float)) or math.isnan(scale)):
        _refuse("argument `scale` is not a number", "a number or None", repr(scale))
    if mask is not None:
        if causal:
            _refuse("`attn_mask` is given and `is_causal` set", "one of them", hint="take is_causal into the mask")
        if not isinstance(mask, torch.Tensor):
            _refuse("argument `attn_mask` is not a tensor", "a torch tensor", f"a {type(mask).__name__}")
        if mask.dtype not in (torch.bool, torch.float32, q.dtype):
            _refuse("argument `attn_mask` has the wrong dtype", f"torch.bool, torch.float32 or {q.dtype}", mask.dtype)
        if mask.device != q.device:
            _refuse("`query` and `attn_mask` are on different devices", q.device, mask.device)


def _four_axes(q: Any, k: Any, v: Any, gqa: Any) -> tuple[Any, Any, Any, tuple[int, ...]]:
    """[B, H, length, head size] of each, and the leading axes of the result. Leading axes broadcast, those of heads where they are not
    grouped; key and value get the same number of heads."""
    if q.dim() == 2:
        q, k, v = (x[None, None] for x in (q, k, v))
        return q, k, v, ()
    leads, heads = [x.shape[:-3] for x in (q, k, v)], [x.shape[-3] for x in (q, k, v)]
    if gqa:
        if any(not n or heads[0] % n for n in heads[1:]):
            _refuse("the heads of `query` are not a multiple of those of `key` and `value`", f"divisors of {heads[0]}", heads[1:])
    elif not all(n in (1, max(heads)) for n in heads) and 0 not in heads:
        _refuse("`query`, `key` and `value` differ in heads", f"{heads[0]} heads, or 1", heads[1:], "grouped heads need enable_gqa=True")
    try:
        lead = torch.broadcast_shapes(*leads)
        most = heads[0] if gqa else torch.broadcast_shapes(*[(n,) for n in heads])[0]
    except RuntimeError:
        _refuse("the leading axes of `query`, `key` and `value` do not broadcast", "equal sizes, or 1", leads)
    if heads[0] != most:
        q = q.expand(*q.shape[:-3], most, *q.shape[-2:])
    if heads[1] != heads[2]:
        k, v = (x.repeat_interleave(most // x.shape[-3], -3) for x in (k, v))
    batch = math.prod(lead)
    q, k, v = (x.expand(*lead, *x.shape[-3:]).reshape(batch, *x.shape[-3:]) for x in (q, k, v))
    return q, k, v, (*lead, most)


def _as_table(mask: Any, lead: tuple[int, ...], rows: int, columns: int) -> Any:
    """A mask with 4 axes, each of which is 1 or what [B, H, L, S] has."""
    want = (*lead, rows, columns)
    have = (*[1] * (len(want) - mask.dim()), *mask.shape)
    if len(have) != len(want) or any(n != 1 and n != m for n, m in zip(have, want)):
        _refuse("argument `attn_mask` does not broadcast to the scores", want, tuple(mask.shape))
    mask = mask.reshape(have) if len(have) != mask.dim() else mask
    if len(have) < 4:
        return mask.reshape(*[1] * (4 - len(have)), *have)
    if len(have) == 4:
        return mask
    some = all(n == 1 for n in have[:-3])
    return mask.expand(*(have[:-3] if some else lead[:-1]), *have[-3:]).reshape(-1 if not some else 1, *have[-3:])


def _padded(x: Any) -> Any:
    size = x.shape[-1]
    return x if size in HEADS else F.pad(x, (0, max(16, -(-size // 8) * 8) - size))


