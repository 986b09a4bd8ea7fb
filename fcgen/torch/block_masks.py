"""What a BlockMask shows, as masks and lists of fcgen's, and the call with it.

The lists of blocks count, with the mask_mod in those that are listed as partial. Where the lists are those of the mask_mod (which is found
out once per block mask) the function alone is traced, and tiles are skipped by what can be proven of it; where they are not, the
kernel goes by the lists. A mask_mod that cannot be traced is evaluated by torch, at each call, and read as a table.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention import flex_attention as theirs

from ..attend import forward, learning
from ..attend.blocks import BlockLists
from ..attend.variants import PLAIN, Functions, functions
from ..errors import FcError
from ..masks import and_masks, or_masks
from . import variants
from .core import like_q

#: so many elements of a mask are looked at to see whether its lists are those of its function
_LOOKED_AT = 1 << 28
#: rows and keys that the blocks of lists which a kernel goes by are multiples of
_LEAST = 64, 16
#: who makes a conjunction that cannot be traced, and what it is called there
_ELSEWHERE = ("torch.nn.attention.flex_attention", "transformers.masking_utils")
_JOINS = {"and_mask": and_masks, "or_mask": or_masks}
#: what torch.vmap is made of in the dispatcher
_VMAP = [getattr(torch._C.DispatchKey, f"FuncTorch{name}")
         for name in ("Batched", "VmapMode", "DynamicLayerFrontMode", "DynamicLayerBackMode")]
#: block mask -> (versions of its lists, whether its function says them all)
_seen: weakref.WeakKeyDictionary[Any, tuple[Any, bool]] = weakref.WeakKeyDictionary()


def boundless(block: Any) -> bool:
    """The block mask that torch takes for none."""
    return all([size >= 1 << 30 for size in block.BLOCK_SIZE])


class Lists(NamedTuple):
    """What a block mask shows. lists: how many partial blocks each block of rows has, which, and the same of full ones (or None). lengths:
    of rows and keys. size: rows and keys of a block. mask: its mask_mod. said: the lists say nothing that the mask_mod does not say."""

    lists: tuple[Any, ...]
    lengths: tuple[int, int]
    size: tuple[int, int]
    mask: Callable[..., Any]
    said: bool = False

    def versions(self) -> tuple[Any, ...]:
        """Changes when the lists do."""
        return (*[(x.data_ptr(), x._version) for x in self.lists if x is not None], self.lengths, self.size)

    def table(self) -> torch.Tensor:
        """[B, H, blocks of rows, blocks of keys]: 0 where a block is in no list, 1 where it is partial, 2 where it is full."""
        count, indices, full_count, full_indices = self.lists
        columns = -(-self.lengths[1] // self.size[1])
        table = count.new_zeros((*count.shape, max(columns, indices.shape[-1]) + 1), dtype=torch.uint8)
        for n, index, kind in ((count, indices, 1), (full_count, full_indices, 2)):
            if n is not None:
                there = torch.arange(index.shape[-1], device=index.device) < n.unsqueeze(-1)
                table.scatter_(-1, torch.where(there, index, table.shape[-1] - 1).long(), kind)
        return table[..., :columns].contiguous()

    def looked_at(self) -> Lists:
        """With `said`. (That waits for the GPU.)"""
        (rows, columns), (tall, wide), (b, h, _) = self.lengths, self.size, self.lists[0].shape
        if _all_seen(self.mask) or b * h * rows * columns > _LOOKED_AT:
            return self
        if self.lists[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return self
        mask = evaluated(self.mask, (b, h, rows, columns), self.lists[0].device)
        wholes = self.table().repeat_interleave(tall, 2)[:, :, :rows].repeat_interleave(wide, 3)[..., :columns]
        return self._replace(said=torch.equal(mask, ((wholes == 1) & mask) | (wholes == 2)))

    def functions(self, batch: int, heads: int, mask: Any, learns: bool) -> tuple[Any, BlockLists | None]:
        """The mask and the lists for the kernel. mask: the mask_mod in fcgen's language; None if it holds everywhere. learns: a gradient
        will flow, and the backward pass goes by the mask alone."""
        if self.said:
            return mask, None
        tall, wide = self.size
        if not learns and tall % _LEAST[0] == 0 and wide % _LEAST[1] == 0:
            counts, indices, full_counts, full_indices = [None if x is None else x.int() for x in self.lists]
            return mask, BlockLists(counts, indices, full_counts, full_indices, self.size)
        table = self.table()
        table = table.expand(batch, heads, *table.shape[2:])
        some = variants.listed(table, tall, wide)
        return some if mask is None else some & variants.unless_full(table, tall, wide, mask), None


def evaluated(mask: Any, shape: tuple[int, int, int, int], device: Any) -> torch.Tensor:
    """A mask_mod by torch, at all places of [B, H, M, N]. An operator that a mode of torch's dispatcher calls (one that counts, or looks at
    what operators do, as the first run of a compiled graph) must not dispatch to what came before the mode: torch's vmap, which evaluates
    the mask, is of that, and is allowed again."""
    with torch._C._PreserveDispatchKeyGuard():
        for key in _VMAP:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        return theirs.create_mask(mask, *shape, device=device)


def _all_seen(mask: Any) -> bool:
    return mask is theirs.noop_mask or getattr(mask, "__code__", None) is theirs.noop_mask.__code__


def run(q: Any, k: Any, v: Any, score: Any, block: Any, scale: Any, lse: bool) -> Any:
    if block is None or boundless(block):
        return call(q, k, v, score, None, scale, lse)
    lists = Lists((block.kv_num_blocks, block.kv_indices, block.full_kv_num_blocks, block.full_kv_indices), (q.shape[2], k.shape[2]),
                  tuple(block.BLOCK_SIZE), block.mask_mod)
    found = _seen.get(block)
    if found is None or found[0] != lists.versions():
        found = _seen[block] = lists.versions(), lists.looked_at().said
    return call(q, k, v, score, lists._replace(said=found[1]), scale, lse)


def call(q: Any, k: Any, v: Any, score: Any, shown: Lists | None, scale: Any, lse: bool) -> Any:
    """The call with a score_mod of torch's and what a block mask shows."""
    scored, (batch, heads, rows, _) = None if score is None else variants.score_of(score), q.shape
    if (shown is None or shown.said) and q.shape[3] == v.shape[3] and (scale is None or type(scale) is float):
        mask = None if shown is None or _all_seen(shown.mask) else variants.mask_of(unfolded(shown.mask))
        given = functions(score=scored, mask=mask)
        found = forward.known(q, k, v, False, scale, None if given == PLAIN else given, lse)
        if found is not None:
            return found
    learns = learning.learns(Functions(score=scored), q, k, v)
    out = None if q.shape[3] == v.shape[3] or learns else like_q(q, v)

    def attention(mask: Any = None, blocks: Any = None) -> Any:
        return forward.attention(q, k, v, scale=scale, return_lse=lse, score=scored, mask=mask, blocks=blocks, out=out)

    if shown is None:
        return attention()
    if _all_seen(shown.mask):
        return attention(*shown.functions(batch, heads, None, learns))
    try:
        return attention(*shown.functions(batch, heads, variants.mask_of(unfolded(shown.mask)), learns))
    except FcError as e:
        if not e.code.startswith("trace/"):
            raise
        if scored is not None:
            attention()  # is it the score function that cannot be traced? Then that is said
    table = evaluated(shown.mask, (batch, heads, rows, k.shape[2]), q.device)
    return attention(*shown.functions(batch, heads, variants.table(table, table.shape), learns))


def unfolded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A mask_mod; what `and_masks` and `or_masks` of torch and of transformers made, as fcgen's conjunction of the same functions."""
    join = _JOINS.get(getattr(function, "__name__", ""))
    if join is None or getattr(function, "__module__", "") not in _ELSEWHERE or not function.__closure__:
        return function
    (parts,) = [c.cell_contents for c in function.__closure__]
    return join(*[unfolded(f) for f in parts])
