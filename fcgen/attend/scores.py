"""Gradients of scores that the pass over keys leaves in memory for the one over queries (`kernels.backward.backward_queries`).

They take rows x keys numbers of each head: as many heads at a time as there is room for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import FcError
from ..ir.types import DTYPES
from ..runtime import driver

if TYPE_CHECKING:
    from .training import Ready

#: the device's memory over what a backward pass may take of it for a while
SHARE = 64
#: tensors by heads of rows, and by heads of keys
_ROWS, _KEYS = ("Q", "dO", "LSE2", "Delta", "dQ"), ("K", "V", "dK", "dV")


def room(device: int) -> int:
    """Bytes: $FCGEN_WORKSPACE MiB, or a share of the device's memory."""
    told = os.environ.get("FCGEN_WORKSPACE")
    if not told:
        return driver.device_info(device).memory_bytes // SHARE
    if not told.isdecimal():
        raise FcError("call/argument", "FCGEN_WORKSPACE is no number of MiB", expected="for example 512, or 0: scores are computed again",
                      got=repr(told))
    return int(told) << 20


def wide(rows: int) -> int:
    """Rows of a tensor whose lines begin on multiples of 16 bytes."""
    return rows + -rows % 8


def least(q: tuple[int, ...], k: tuple[int, ...], dtype: str, whole: bool) -> int:
    """Bytes of the least part: of all heads (whole), or of those that share a head of keys."""
    heads = q[0] * q[1] if whole else q[1] // max(1, k[1])
    return heads * k[2] * wide(q[2]) * DTYPES[dtype].bytes


def launch(programs: tuple[Ready, Ready], given: Mapping[str, Any], most: int, whole: bool, held: tuple[Any, ...],
           into: dict[int, Any]) -> None:
    """Run the passes over keys and over queries, one part of the heads after the other. most: bytes; less where memory is short. whole:
    functions are given a head's number, which parts do not know."""
    q, k = given["Q"], given["K"]
    one = q.shape[1] // k.shape[1] * k.shape[2] * wide(q.shape[2]) * q.element_size()
    every = q.shape[0] * k.shape[1]
    many = every if whole else min(every, most // one)
    while True:
        parts = list(_parts(q.shape[0], k.shape[1], many))
        try:
            left = torch.empty(max(map(_size, parts)) * one // q.element_size(), dtype=q.dtype, device=q.device)
            break
        except torch.OutOfMemoryError:
            if many == 1 or whole:
                raise
            many = many // 2
    for batch, heads in parts:
        group = q.shape[1] // k.shape[1]
        rows = slice(heads.start * group, heads.stop * group)
        mine = {**given, **{n: given[n][batch, rows] for n in _ROWS}, **{n: given[n][batch, heads] for n in _KEYS}}
        shape = *mine["Q"].shape[:2], k.shape[2], wide(q.shape[2])
        mine["dS"] = left[:math.prod(shape)].view(shape)[..., :q.shape[2]]
        for program in programs:
            program.launch(mine, held, into)


def _size(part: tuple[slice, slice]) -> int:
    return math.prod(int(s.stop - s.start) for s in part)


def _parts(batches: int, heads: int, many: int) -> Iterator[tuple[slice, slice]]:
    """Slices of batches and of heads of keys, of at most so many heads, about alike."""
    if many >= heads:
        for b in _even(batches, many // heads):
            yield b, slice(0, heads)
    else:
        for n in range(batches):
            for h in _even(heads, many):
                yield slice(n, n + 1), h


def _even(size: int, most: int) -> Iterator[slice]:
    count = -(-size // most)
    return (slice(n * size // count, (n + 1) * size // count) for n in range(count))
