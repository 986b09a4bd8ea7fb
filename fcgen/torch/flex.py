"""`flex_attention` with FlexAttention's signature, on torch's own BlockMask and functions written for it (`block_masks`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import flex_attention as theirs

from ..attend.torch_op import beside, transforming
from .block_masks import boundless, run
from .core import fits, lined, padded, recorded, refuse
from .flex_graph import in_graph


def flex_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score_mod: Callable[..., Any] | None = None,
                   block_mask: Any = None, scale: float | None = None, enable_gqa: bool = False, return_lse: bool = False,
                   kernel_options: Any = None, *, return_aux: Any = None) -> Any:
    """torch.nn.attention.flex_attention.flex_attention. score_mod and the block mask's mask_mod may be torch's functions or
    fcgen's; numbers and tensors that they hold are read at each call. Returns what torch's returns: the output, (output, log-sum-exp) with
    `return_lse`, (output, AuxOutput) with `return_aux`."""
    problem = _problem(query, key, value, score_mod, block_mask, enable_gqa, return_lse, kernel_options, return_aux)
    if problem is not None:
        refuse(*problem)
    lse = bool(return_lse or (return_aux is not None and return_aux.lse))
    if key.shape[0] != query.shape[0]:
        key, value = key.expand(query.shape[0], -1, -1, -1), value.expand(query.shape[0], -1, -1, -1)
    size, width = query.shape[-1], value.shape[-1]
    if not fits(size) or not fits(width):
        scale = (size**-0.5 if size else 1.0) if scale is None else scale
        query, key, value = padded(query), padded(key), padded(value)
    query, key, value = [lined(x) for x in (query, key, value)]
    if transforming():
        out = beside(run, query, key, value, score_mod, block_mask, scale, lse)
    elif recorded(query, key, value):
        out = in_graph(query, key, value, score_mod, block_mask, scale, lse)
    else:
        out = run(query, key, value, score_mod, block_mask, scale, lse)
    if value.shape[-1] != width:
        out = (out[0][..., :width], out[1]) if lse else out[..., :width]
    if return_aux is None:
        return out
    return (out[0], theirs.AuxOutput(lse=out[1])) if lse else (out, theirs.AuxOutput())


def _problem(q: Any, k: Any, v: Any, score: Any, block: Any, gqa: bool, lse: bool, options: Any, aux: Any) -> Any:
    for name, x in (("query", q), ("key", k), ("value", v)):
        if not isinstance(x, torch.Tensor):
            return f"argument `{name}` is not a tensor", "a torch tensor", f"a {type(x).__name__}"
        if x.is_nested or x.dim() != 4:
            shape = "a nested tensor" if x.is_nested else tuple(x.shape)
            return f"argument `{name}` has the wrong number of axes", "[B, H, length, head size]", shape
        if x.dtype != q.dtype or x.device != q.device:
            return f"`query` and `{name}` have different dtypes or devices", (q.dtype, q.device), (x.dtype, x.device)
    if score is not None and not callable(score):
        return "argument `score_mod` is not a function", "score_mod(score, b, h, q_idx, kv_idx)", repr(score)[:80]
    if options:
        return "`kernel_options` are those of torch's kernels", "None", options, "fcgen.attention takes a schedule"
    if lse and aux is not None:
        return "`return_lse` and `return_aux` are both given", "one of them", "both"
    if aux is not None and getattr(aux, "max_scores", False):
        return "the maxima of scores are not kept", "AuxRequest(lse=True)", aux
    if q.shape[1] != k.shape[1] and not gqa:
        return "`query` and `key` differ in heads", q.shape[1], k.shape[1], "grouped heads need enable_gqa=True"
    if k.shape[0] != q.shape[0] and (k.shape[0] != 1 or block is None):
        return "`query` and `key` differ in batch", q.shape[0], k.shape[0]
    return None if block is None else _problem_of_block(q, k, block)


def _problem_of_block(q: Any, k: Any, block: Any) -> Any:
    if not isinstance(block, theirs.BlockMask):
        return "argument `block_mask` is not a BlockMask", "what torch's create_block_mask makes", f"a {type(block).__name__}"
    if block.kv_num_blocks.device != q.device:
        return "`query` and `block_mask` are on different devices", q.device, block.kv_num_blocks.device
    if tuple(block.seq_lengths) != (q.shape[2], k.shape[2]) and not boundless(block):
        return "the block mask was made for other lengths", tuple(block.seq_lengths), (q.shape[2], k.shape[2]), "make one for these lengths"
    for axis, name in enumerate(("batch", "heads")):
        if block.kv_num_blocks.shape[axis] not in (1, q.shape[axis]):
            return f"the block mask has another {name}", (1, q.shape[axis]), block.kv_num_blocks.shape[axis]
    return None
