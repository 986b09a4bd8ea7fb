"""`flex_attention` with FlexAttention's signature, on torch's own BlockMask and functions written for it.

What a block mask shows is its lists of blocks, with its mask_mod in those that are listed as partial. Where the lists are those of the
mask_mod (which is found out once per block mask) the function alone is traced, and tiles are skipped by what can be proven of it; where they
are not, a table of blocks is asked too. A mask_mod that cannot be traced is evaluated by torch, at each call, and read as a table.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention import flex_attention as theirs

from ..attend import forward
from ..errors import FcError
from ..masks import and_masks, or_masks
from . import variants
from .core import like_q, no_gradient, recorded, refuse

#: so many elements of a mask are looked at to see whether its lists are those of its function
_LOOKED_AT = 1 << 28
#: who makes a conjunction that cannot be traced, and what it is called there
_ELSEWHERE = ("torch.nn.attention.flex_attention", "transformers.masking_utils")
_JOINS = {"and_mask": and_masks, "or_mask": or_masks}
#: block mask -> (versions of its lists, its blocks if they are needed)
_seen: weakref.WeakKeyDictionary[Any, tuple[Any, Any]] = weakref.WeakKeyDictionary()


def flex_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score_mod: Callable[..., Any] | None = None,
                   block_mask: Any = None, scale: float | None = None, enable_gqa: bool = False, return_lse: bool = False,
                   kernel_options: Any = None, *, return_aux: Any = None) -> Any:
    """torch.nn.attention.flex_attention.flex_attention, forward. score_mod and the block mask's mask_mod may be torch's functions or fcgen's;
    numbers and tensors that they hold are read at each call. Returns what torch's returns: the output, (output, log-sum-exp) with
    `return_lse`, (output, AuxOutput) with `return_aux`."""
    problem = _problem(query, key, value, score_mod, block_mask, enable_gqa, return_lse, kernel_options, return_aux)
    if problem is not None:
        refuse(*problem)
    no_gradient(query, key, value)
    lse = bool(return_lse or (return_aux is not None and return_aux.lse))
    if key.shape[0] != query.shape[0]:
        key, value = key.expand(query.shape[0], -1, -1, -1), value.expand(query.shape[0], -1, -1, -1)
    query, key, value = [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)]
    if recorded(query, key, value):
        from .flex_graph import in_graph

        out = in_graph(query, key, value, score_mod, block_mask, scale, lse)
    else:
        out = run(query, key, value, score_mod, block_mask, scale, lse)
    if return_aux is None:
        return out
    return (out[0], theirs.AuxOutput(lse=out[1])) if lse else (out, theirs.AuxOutput())


def _problem(q: Any, k: Any, v: Any, score: Any, block: Any, gqa: bool, lse: bool, options: Any, aux: Any) -> Any:
    for name, x in (("query", q), ("key", k), ("value", v)):
        if not isinstance(x, torch.Tensor):
            return f"argument `{name}` is not a tensor", "a torch tensor", f"a {type(x).__name__}"
        if x.is_nested or x.dim() != 4:
            return f"argument `{name}` has the wrong number of axes", "[B, H, length, head size]", "nested" if x.is_nested else tuple(x.shape)
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
        return "argument `block_mask` is not a BlockMask", "torch.nn.attention.flex_attention.create_block_mask(...)", f"a {type(block).__name__}"
    if block.kv_num_blocks.device != q.device:
        return "`query` and `block_mask` are on different devices", q.device, block.kv_num_blocks.device
    if tuple(block.seq_lengths) != (q.shape[2], k.shape[2]) and not boundless(block):
        return "the block mask was made for other lengths", tuple(block.seq_lengths), (q.shape[2], k.shape[2]), "make one for these lengths"
    for axis, name in enumerate(("batch", "heads")):
        if block.kv_num_blocks.shape[axis] not in (1, q.shape[axis]):
            return f"the block mask has another {name}", (1, q.shape[axis]), block.kv_num_blocks.shape[axis]
    return None


def boundless(block: Any) -> bool:
    """The block mask that torch takes for none."""
    return all([size >= 1 << 30 for size in block.BLOCK_SIZE])


# ---- the call --------------------------------------------------------------------------------------------------------


class Lists(NamedTuple):
    """What a block mask shows. lists: how many partial blocks each block of rows has, which, and the same of full ones (or None). lengths: of
    rows and keys. size: rows and keys of a block. mask: its mask_mod. table: `blocks_of` it, where the mask_mod does not say it all."""

    lists: tuple[Any, ...]
    lengths: tuple[int, int]
    size: tuple[int, int]
    mask: Callable[..., Any]
    table: torch.Tensor | None = None

    def versions(self) -> tuple[Any, ...]:
        """Changes when the lists do."""
        return (*[(x.data_ptr(), x._version) for x in self.lists if x is not None], self.lengths, self.size)

    def blocks(self) -> torch.Tensor:
        """[B, H, blocks of rows, blocks of keys]: 0 where a block is in no list, 1 where it is partial, 2 where it is full."""
        count, indices, full_count, full_indices = self.lists
        columns = -(-self.lengths[1] // self.size[1])
        table = count.new_zeros((*count.shape, max(columns, indices.shape[-1]) + 1), dtype=torch.uint8)
        for n, index, kind in ((count, indices, 1), (full_count, full_indices, 2)):
            if n is not None:
                there = torch.arange(index.shape[-1], device=index.device) < n.unsqueeze(-1)
                table.scatter_(-1, torch.where(there, index, table.shape[-1] - 1).long(), kind)
        return table[..., :columns].contiguous()

    def table_if_needed(self) -> torch.Tensor | None:
        """The blocks, unless the lists say nothing that the mask_mod does not say."""
        table, (rows, columns) = self.blocks(), self.lengths
        b, h, *_ = table.shape
        if self.mask is theirs.noop_mask or b * h * rows * columns > _LOOKED_AT:
            return table
        if table.is_cuda and torch.cuda.is_current_stream_capturing():
            return table
        mask = theirs.create_mask(self.mask, b, h, rows, columns, device=table.device)
        tall, wide = self.size
        wholes = table.repeat_interleave(tall, 2)[:, :, :rows].repeat_interleave(wide, 3)[..., :columns]
        return None if torch.equal(mask, ((wholes == 1) & mask) | (wholes == 2)) else table

    def functions(self, batch: int, heads: int) -> list[Any]:
        """As masks of fcgen's that must all hold; the last is the mask_mod, where there is one that says something."""
        plain = self.mask is theirs.noop_mask or getattr(self.mask, "__code__", None) is theirs.noop_mask.__code__
        last = [] if plain else [variants.mask_of(unfolded(self.mask))]
        if self.table is None:
            return last
        table = self.table.expand(batch, heads, *self.table.shape[2:])
        return [variants.listed(table, *self.size), *[variants.unless_full(table, *self.size, m) for m in last]]


def run(q: Any, k: Any, v: Any, score: Any, block: Any, scale: Any, lse: bool) -> Any:
    if block is None or boundless(block):
        return call(q, k, v, score, None, scale, lse)
    lists = Lists((block.kv_num_blocks, block.kv_indices, block.full_kv_num_blocks, block.full_kv_indices), (q.shape[2], k.shape[2]),
                  tuple(block.BLOCK_SIZE), block.mask_mod)
    found = _seen.get(block)
    if found is None or found[0] != lists.versions():
        found = _seen[block] = lists.versions(), lists.table_if_needed()
    return call(q, k, v, score, lists._replace(table=found[1]), scale, lse)


def call(q: Any, k: Any, v: Any, score: Any, shown: Lists | None, scale: Any, lse: bool) -> Any:
    """The call with a score_mod of torch's and what a block mask shows."""
    scored = None if score is None else variants.score_of(score)
    if shown is None:
        return _attention(q, k, v, scored, [], scale, lse)
    masks = shown.functions(q.shape[0], q.shape[1])
    try:
        return _attention(q, k, v, scored, masks, scale, lse)
    except FcError as e:
        if not e.code.startswith("trace/") or not masks:
            raise
        if scored is not None:
            _attention(q, k, v, scored, [], scale, lse)  # is it the score function that cannot be traced? Then that is said
    table = theirs.create_mask(shown.mask, q.shape[0], q.shape[1], q.shape[2], k.shape[2], device=q.device)
    if shown.table is not None:
        masks[-1] = variants.unless_full(shown.table.expand(*q.shape[:2], *shown.table.shape[2:]), *shown.size,
                                         variants.table(table, table.shape))
    else:
        masks[-1] = variants.table(table, table.shape)
    return _attention(q, k, v, scored, masks, scale, lse)


def _attention(q: Any, k: Any, v: Any, score: Any, masks: list[Any], scale: Any, lse: bool) -> Any:
    mask = and_masks(*masks) if len(masks) > 1 else masks[0] if masks else None
    out = None if q.shape[3] == v.shape[3] else like_q(q, v)
    return forward.attention(q, k, v, scale=scale, return_lse=lse, score=score, mask=mask, out=out)


def unfolded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A mask_mod; what `and_masks` and `or_masks` of torch and of transformers made, as fcgen's conjunction of the same functions."""
    join = _JOINS.get(getattr(function, "__name__", ""))
    if join is None or getattr(function, "__module__", "") not in _ELSEWHERE or not function.__closure__:
        return function
    (parts,) = [c.cell_contents for c in function.__closure__]
    return join(*[unfolded(f) for f in parts])
