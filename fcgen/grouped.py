"""Grouped heads as rows: where the mask does not tell rows apart, the heads of q that share a head of k and v are rows of one head.

A tile of queries then reads a tile of keys once for the whole group, and one query per head (decoding) fills H / Hkv rows of a tile instead
of one. It is a matter of shapes and strides alone: the kernel is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from .runtime.tensors import TensorArg


def packed(tensors: Mapping[str, TensorArg], mask: str) -> dict[str, TensorArg] | None:
    """The arguments of the kernel with [B, H, M, D] seen as [B, Hkv, H / Hkv * M, D], for Q, O and LSE; their mask is "none". None where
    the mask depends on the row, or where a tensor's strides do not allow that view."""
    (b, heads, m, _), (_, groups, n, _) = tensors["Q"].shape, tensors["K"].shape
    if heads <= groups or not groups or not m or not (mask == "none" or (m == 1 and mask == "causal_bottom_right" and n)):
        return None
    out = dict(tensors)
    for name in ("Q", "O", "LSE"):
        if name not in tensors:
            continue
        t = tensors[name]
        batch, head, row, *last = t.strides
        if m > 1 and head != m * row:
            return None
        group = heads // groups
        out[name] = t._replace(shape=(b, groups, group * m, *t.shape[3:]), strides=(batch, group * head, row if m > 1 else head, *last))
    return out
