"""`register()` gives Hugging Face's models `attn_implementation="fcgen"`.

    import fcgen.integrations.transformers
    fcgen.integrations.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fcgen", dtype="bfloat16")

Both of the library's interfaces are given: that of attention, and that of masks. Causal masks, windows and caches stay positions, which
kernels skip by (`Seen`); what else a model asks for is a tensor of bools, as for `sdpa`. Sinks, soft caps and grouped heads are the
kernel's own. Guaranteed: an argument that changes a result is honoured or refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import masking_utils as theirs
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ..torch.core import OPEN, attend, lined, refuse

#: of arguments that models pass along and that decide nothing here
_NEUTRAL = (None, False)


class Seen(BlockMask):
    """Which keys rows see, by positions: row i those up to i + shift, of these the last left + 1 if there is a `left`; of the keys those
    that are in `keys`, a bool tensor [B, 1, 1, N], if that is given. (A BlockMask, since models hand on unread what is one; it has no
    lists of blocks.)"""

    def __init__(self, shape: tuple[int, int, int, int], shift: int, left: int = OPEN, keys: torch.Tensor | None = None):
        self.sizes, self.shift, self.left, self.keys = shape, shift, left, keys

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes

    def to(self, device: Any) -> Seen:  # type: ignore[override]
        return Seen(self.sizes, self.shift, self.left, None if self.keys is None else self.keys.to(device))

    def __getitem__(self, index: Any) -> Any:
        refuse("a mask of positions is not indexed", "a model that hands it on as it is", f"mask[{index!r}]"[:80])

    def __repr__(self) -> str:
        return f"Seen(shift={self.shift}, left={self.left}, keys={None if self.keys is None else tuple(self.keys.shape)})"

    __str__ = __repr__


def register(name: str = "fcgen") -> None:
    """Make `attn_implementation=name` mean fcgen."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


def attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, dropout: float = 0.0,
              scaling: float | None = None, is_causal: bool | None = None, sliding_window: int | None = None, softcap: float | None = None,
              s_aux: torch.Tensor | None = None, position_bias: torch.Tensor | None = None, **others: Any) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: [B, H, M, D] in, [B, M, H, E] out. A mask says all that counts; without one, rows are the last
    ones of the keys, causal where the module is, in a window where `sliding_window` says so."""
    if others.get("output_attentions") not in _NEUTRAL:
        refuse("there are no attention weights to give back", "output_attentions=False", True, 'attn_implementation="eager" has them')
    for name in ("head_mask", "layer_head_mask"):
        if others.get(name) is not None:
            refuse(f"argument `{name}` is not supported", "None", "a mask", 'attn_implementation="eager" has it')
    if torch.is_autocast_enabled("cuda") and query.dtype == torch.float32:
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    causal, left, shift, table = "none", OPEN, None, None
    if attention_mask is None:
        if is_causal if is_causal is not None else getattr(module, "is_causal", True):
            causal, left = "bottom_right", OPEN if sliding_window is None else sliding_window - 1
    elif isinstance(attention_mask, Seen):
        causal, left, shift, table = "shifted", attention_mask.left, attention_mask.shift, attention_mask.keys
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
        table = attention_mask[..., :key.shape[2]]
        if table.is_floating_point() and table.dtype not in (torch.float32, query.dtype):
            table = table.to(query.dtype)
    else:
        refuse("the attention mask is none that this attention knows", "None or a tensor [B, 1 or H, M, N]", type(attention_mask).__name__,
               "were masks made for another attn_implementation?")
    if position_bias is not None:
        table = position_bias if table is None else torch.where(table, position_bias, -torch.inf) if table.dtype == torch.bool \
            else position_bias + table
    query, key, value = [lined(x) for x in (query, key, value)]
    out = attend(query, key, value, table=table, sinks=s_aux, causal=causal, left=left, shift=shift, softcap=softcap, scale=scaling,
                 dropout=dropout if dropout else None)
    return out.transpose(1, 2).contiguous(), None


def mask(batch_size: int, kv_length: int, q_length: int | None = None, q_offset: Any = 0, kv_offset: Any = 0,
         mask_function: Any = theirs.causal_mask_function, attention_mask: torch.Tensor | None = None, local_size: int | None = None,
         allow_is_causal_skip: bool = True, **others: Any) -> Any:
    """A mask function of transformers. Causal masks and windows of it become `Seen`, with the padding beside it, where positions are known;
    other masks, and all in graphs, a tensor of bools."""
    places = [q_offset, kv_offset]
    known = all(type(n) is int for n in places) and not torch.compiler.is_compiling()
    left = _window(mask_function)
    if q_length is not None and known and allow_is_causal_skip and left is not None:
        padding = None
        if attention_mask is not None:
            keys = attention_mask[:, kv_offset:kv_offset + kv_length].bool()
            if keys.shape[1] < kv_length:
                keys = torch.nn.functional.pad(keys, (0, kv_length - keys.shape[1]))
            padding = None if _all(keys) else keys[:, None, None, :]
        return Seen((batch_size, 1, q_length, kv_length), q_offset - kv_offset, left, padding)
    more = {} if q_length is None else {"q_length": q_length, "q_offset": q_offset}
    return theirs.sdpa_mask(batch_size=batch_size, kv_length=kv_length, kv_offset=kv_offset, mask_function=mask_function,
                            attention_mask=attention_mask, local_size=local_size, allow_is_causal_skip=False, **more, **others)


def _all(keys: torch.Tensor) -> bool:
    return bool(keys.all())


def _window(function: Any) -> int | None:
    """How many keys before its own a row of this mask function sees: -1 for all of them. None where it is another mask."""
    if function is theirs.causal_mask_function:
        return OPEN
    if getattr(function, "__qualname__", "") != "and_masks.<locals>.and_mask" or getattr(function, "__module__", "") != theirs.__name__:
        return None
    parts = [c.cell_contents for c in function.__closure__]
    if len(parts) != 1 or len(parts[0]) != 2 or parts[0][1] is not theirs.causal_mask_function:
        return None
    window = parts[0][0]
    if getattr(window, "__qualname__", "") != "sliding_window_overlay.<locals>.inner_mask":
        return None
    (size,) = [c.cell_contents for c in window.__closure__]
    return size - 1 if type(size) is int else None
