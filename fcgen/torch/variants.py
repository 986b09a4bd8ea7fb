"""What interfaces ask of scores beyond a scale, as functions of fcgen's language: caps, windows, chunks, tables added or taken as a mask.

Each is made from numbers and tensors that it holds, which are read at the call: other values compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fcgen as fc

from ..ir.types import f32, i1
from .values import plain, values

Score = Callable[..., Any]
#: what these functions hold is read at each call, as of a user's
WRITTEN_IN_THE_LANGUAGE = True


def capped(cap: float) -> Score:
    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return cap * fc.tanh(s / cap)

    return score


def window(left: int, right: int, shift: int) -> Callable[..., Any]:
    """Row i sees the keys from i + shift - left to i + shift + right; a negative end is none."""
    if left < 0:
        return lambda b, h, i, j: j <= i + (shift + right)
    if right < 0:
        return lambda b, h, i, j: j >= i + (shift - left)
    return lambda b, h, i, j: (j >= i + (shift - left)) & (j <= i + (shift + right))


def chunks(size: int, shift: int) -> Callable[..., Any]:
    """Row i sees the keys of its own chunk of positions."""
    return lambda b, h, i, j: (i + shift) // size == j // size


def _table(table: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, bool, bool]:
    """A table of scores that broadcasts to `shape`, without the last axes that it has one value for: (table, one per row, per column)."""
    b, h, m, n = shape
    rows, columns = table.shape[2] != 1 or m == 1, table.shape[3] != 1 or n == 1
    if not columns:
        table = table[..., 0]
    if not rows:
        table = table[:, :, 0]
    if table.stride(-1) != 1 and table.shape[-1] > 1:
        table = table.contiguous()
    out = table.expand(b, h, *table.shape[2:])
    return (out if rows or columns else out.contiguous()), rows, columns


def added(table: torch.Tensor, shape: tuple[int, ...]) -> Score:
    """The scores plus a table, or where it holds bools those that are True. table: 4 axes that broadcast to `shape`."""
    values, rows, columns = _table(table, shape)
    chooses = table.dtype == torch.bool

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if rows and columns:
            x = values[b, h, i, j]
        else:
            x = values[b, h, i] if rows else values[b, h, j] if columns else values[b, h]
        return fc.where(x, s, -fc.inf) if chooses else s + x.to(fc.f32)

    return score


def masked(seen: Callable[..., Any]) -> Score:
    """A mask as a score function."""
    return lambda s, b, h, i, j: fc.where(seen(b, h, i, j), s, -fc.inf)


def one(scores: list[Score]) -> Score | None:
    """Score functions, one after the other."""
    if len(scores) < 2:
        return scores[0] if scores else None
    first, *others = scores
    rest = one(others)
    assert rest is not None
    return lambda s, b, h, i, j: rest(first(s, b, h, i, j), b, h, i, j)


def both(functions: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    """Where all of these hold."""
    if len(functions) < 2:
        return functions[0] if functions else lambda b, h, i, j: i >= 0
    first, rest = functions[0], both(functions[1:])
    return lambda b, h, i, j: first(b, h, i, j) & rest(b, h, i, j)


def either(functions: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    """Where one of these holds."""
    if len(functions) < 2:
        return functions[0] if functions else lambda b, h, i, j: i < 0
    first, rest = functions[0], either(functions[1:])
    return lambda b, h, i, j: first(b, h, i, j) | rest(b, h, i, j)


def element(table: torch.Tensor) -> Callable[..., Any]:
    """Where a table of bools [B, H, M, N] is True."""
    return lambda b, h, i, j: table[b, h, i, j]


def listed(table: torch.Tensor, tall: int, wide: int) -> Callable[..., Any]:
    """Where a block of so many rows and keys is in a list. table: [B, H, blocks of rows, blocks of keys], 0 for those that are in none."""
    return lambda b, h, i, j: table[b, h, i // tall, j // wide] != 0


def unless_full(table: torch.Tensor, tall: int, wide: int, mask: Callable[..., Any]) -> Callable[..., Any]:
    """Where a block is in the list of full ones (2), or the mask holds."""
    return lambda b, h, i, j: (table[b, h, i // tall, j // wide] == 2) | mask(b, h, i, j)


def score_of(function: Score) -> Score:
    """torch's score_mod."""
    return lambda s, b, h, i, j: plain(function(*values(s, b, h, i, j)), f32)


def mask_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch's mask_mod."""
    return lambda b, h, i, j: plain(function(*values(b, h, i, j)), i1)
