"""Shared-memory descriptors of wgmma: the 64 bits that say where an operand lies, and, independently, which bytes such bits mean.

`encode` starts from a layout of the IR; `addresses` knows only the bits and the hardware's rules (PTX ISA, 'Asynchronous warpgroup level
matrix shared memory layout'). The simulator reads operands through both, so that a mistake in either shows in the numbers.

Fields, byte amounts stored >> 4: bits 0-13 start address, 16-29 leading byte offset (LBO), 32-45 stride byte offset (SBO), 49-51 base
offset, 62-63 swizzle (1: 128 bytes, 2: 64, 3: 32).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..ir.layout import SmemLayout

DEPTH = 16  # k of one instruction with 16-bit operands: 32 bytes
MODES = {128: 1, 64: 2, 32: 3}


def encode(layout: SmemLayout, shape: tuple[int, int], size: int, major: str, start: int, row: int = 0, k: int = 0,
           beside: int | None = None) -> int:
    """The descriptor of one instruction's operand.

    layout, shape: of the stored tile; size: bytes of an element. major: "K" where the tile is stored [rows, depth] (depth
    contiguous), "MN" where it is stored [depth, rows]. start: the tile's first byte in shared memory. row, k: first row (of M or N)
    and first depth position of the operand, in elements. beside: where the next panel of each step's 16 rows lies, if not in the tile."""
    assert (size == 2 or major == "K") and layout.pad == 0 and layout.swizzle in MODES and layout.panel * size == layout.swizzle, layout
    span, panel = layout.swizzle, layout.panel
    panel_bytes = shape[0] * span
    if major == "K":
        assert row % 8 == 0 and k * size % 32 == 0
        at = start + k // panel * panel_bytes + row * span + k % panel * size
        leading = 16  # not read: 1 in the field, as CuTe writes
    else:
        assert row % panel == 0 and k % 8 == 0
        at = start + row // panel * panel_bytes + k * span
        leading = panel_bytes if beside is None else beside - at
    return (at >> 4 & 0x3FFF) | (leading >> 4 & 0x3FFF) << 16 | (8 * span >> 4 & 0x3FFF) << 32 | MODES[span] << 62


def addresses(descriptor: int, rows: int, major: str, size: int = 2) -> np.ndarray:
    """int [rows, depth]: the byte that each element of the operand starts on, as the tensor core finds it."""
    mode = descriptor >> 62 & 3
    span = 256 >> mode  # 1: 128 bytes, 2: 64, 3: 32
    assert mode and not descriptor >> 49 & 7, "no swizzle, or a base offset: not modelled"
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    r, c = np.meshgrid(np.arange(rows), np.arange(2 * DEPTH // size), indexing="ij")
    if major == "K":  # atoms of 8 rows by a span, one below the other
        at = r // 8 * stride + r % 8 * span + c * size
    else:  # atoms of a span of rows by 8 of depth
        wide = span // size
        at = r // wide * leading + r % wide * size + c // 8 * stride + c % 8 * span
    at = start + at
    chunk_bits = span // 16 - 1  # so many of bits 7.. go into bits 4..
    return at ^ (at >> 7 & chunk_bits) << 4


@lru_cache(maxsize=256)
def tile(layout: SmemLayout, shape: tuple[int, int], size: int, major: str, start: int, row: int, rows: int, depth: int,
         beside: int | None = None) -> np.ndarray:
    """int [rows, depth]: the byte of each element of a whole operand, one descriptor after the other along its depth."""
    parts = [addresses(encode(layout, shape, size, major, start, row, k, beside), rows, major, size)
             for k in range(0, depth, 2 * DEPTH // size)]
    return np.concatenate(parts, axis=1)
