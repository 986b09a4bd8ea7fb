"""Functions of fcgen's language for what only torch's interfaces have: tables that broadcast, chunks, lists of blocks, torch's functions.

Each holds numbers and tensors, which are read at the call: other values compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import masks
from ..ir.types import f32, i1
from .values import plain, values

#: what these functions hold is read at each call, as of a user's
WRITTEN_IN_THE_LANGUAGE = True


class Held:
    """An object that a function of a graph holds: those of its attributes that the function names."""

    def __init__(self, attributes: dict[str, Any]):
        vars(self).update(attributes)


def chunks(size: int, shift: Any) -> masks.Mask:
    """Row i, at i + shift, sees the keys of its own chunk of positions. shift: a number, or one per batch."""
    if isinstance(shift, torch.Tensor):
        return masks.Mask(lambda b, h, i, j: (i + shift[b]) // size == j // size, "chunks")
    return masks.Mask(lambda b, h, i, j: (i + shift) // size == j // size, "chunks")


def table(given: torch.Tensor, shape: tuple[int, ...]) -> Callable[..., Any]:
    """The element of a table for (b, h, i, j). given: 4 axes that broadcast to `shape`, or the last 2; those of one element are not read
    for. Where a gradient is to flow into it, it has 4 and nothing is expanded: it is added up where the element was read."""
    (b, h, m, n), learns = shape, given.requires_grad and torch.is_grad_enabled()
    batches, heads = not learns or given.shape[0] != 1, not learns or given.shape[1] != 1
    *_, tall, wide = given.shape
    rows, columns = tall != 1 or m == 1, wide != 1 or n == 1
    if not rows:
        given = given[..., 0, :]
    if not columns:
        given = given[..., 0]
    if given.stride(-1) != 1 and given.shape[-1] > 1:
        given = given.contiguous()
    if not learns:
        given = given.expand(b, h, *[tall] * rows, *[wide] * columns)
    held = given if rows or columns else given.contiguous()

    def at(b: Any, h: Any, i: Any, j: Any) -> Any:
        b, h = b if batches else 0, h if heads else 0
        if rows and columns:
            return held[b, h, i, j]
        return held[b, h, i] if rows else held[b, h, j] if columns else held[b, h]

    return at


def added(at: Callable[..., Any]) -> Callable[..., Any]:
    """The scores plus an element for each."""
    return lambda s, b, h, i, j: s + at(b, h, i, j).to(f32)


def listed(blocks: torch.Tensor, tall: int, wide: int) -> masks.Mask:
    """Where a block of so many rows and keys is in a list. blocks: [B, H, blocks of rows, blocks of keys], 0 for those that are in none."""
    return masks.Mask(lambda b, h, i, j: blocks[b, h, i // tall, j // wide] != 0, "listed blocks")


def unless_full(blocks: torch.Tensor, tall: int, wide: int, mask: Callable[..., Any]) -> masks.Mask:
    """Where a block is in the list of full ones (2), or the mask holds."""
    return masks.Mask(lambda b, h, i, j: (blocks[b, h, i // tall, j // wide] == 2) | mask(b, h, i, j), "partial blocks")


def score_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch's score_mod."""
    return lambda s, b, h, i, j: plain(function(*values(s, b, h, i, j)), f32)


def mask_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch's mask_mod."""
    return lambda b, h, i, j: plain(function(*values(b, h, i, j)), i1)
