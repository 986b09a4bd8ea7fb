"""Grouped heads as rows: where the mask does not tell rows apart, the heads of q that share a head of k and v are rows of one head.

A tile of queries then reads a tile of keys once for the whole group, and one query per head (decoding) fills H / Hkv rows of a tile instead
of one. It is a matter of shapes and strides alone: the kernel is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from ..runtime.tensors import TensorArg

Seen = tuple[tuple[int, ...], tuple[int, ...]]


def applies(q: Sequence[int], k: Sequence[int], mask: str) -> bool:
    """Are the heads of a group alike to this mask? Their mask is then "none". q, k: shapes."""
    return q[1] > k[1] > 0 and (mask == "none" or (q[2] == 1 and mask == "causal_bottom_right" and k[2] > 0))


@functools.lru_cache(maxsize=256)
def as_rows(shape: tuple[int, ...], strides: tuple[int, ...], groups: int) -> Seen | None:
    """[B, H, M, ...] as [B, groups, H / groups * M, ...]: (shape, strides), or None where the strides do not allow that view."""
    b, heads, m, *rest = shape
    batch, head, row, *last = strides
    if m > 1 and head != m * row:
        return None
    group = heads // groups
    return (b, groups, group * m, *rest), (batch, group * head, row if m > 1 else head, *last)


def packed(tensors: Mapping[str, TensorArg], mask: str) -> dict[str, TensorArg] | None:
    """The arguments of the kernel with the heads of Q, O and LSE as rows. None where the mask or a tensor's strides do not allow it."""
    if not tensors["Q"].shape[2] or not applies(tensors["Q"].shape, tensors["K"].shape, mask):
        return None
    out = dict(tensors)
    for name in {"Q", "O", "LSE"} & set(tensors):
        t = tensors[name]
        rows = as_rows(t.shape, t.strides, tensors["K"].shape[1])
        if rows is None:
            return None
        out[name] = t._replace(shape=rows[0], strides=rows[1])
    return out
