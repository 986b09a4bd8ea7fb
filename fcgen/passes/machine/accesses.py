"""Which bytes of shared memory an op touches, warp by warp: what `sync` needs to know of each instruction.

A `Touch` is one op's reads or writes of one ring. Its slot is the distance to the loop's current tile (`rel`), so that two accesses can
be compared without knowing the trip count; its `area` says which elements each warp touches, found by enumerating the fragment's layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...ir.core import Op, Value
from ...ir.layout import OpaqueLayout, RegLayout
from ...ir.op_table import having
from ...ir.types import Buffer, Frag

READS = having("reads shared") | {"acquire"}


@dataclass(frozen=True)
class Touch:
    """ring: kernel buffer. rel: slot distance to the current tile, None if unknown. write. area: key of `area_of`; asynchronous copies
    carry True in `copy` until their group was waited for."""

    ring: Value
    rel: int | None
    write: bool
    area: tuple
    copy: bool = False

    def shifted(self, by: int = -1) -> Touch:
        """The same access seen from the next iteration, or one of the next iteration from this one (by = 1)."""
        return self if self.rel is None or self.ring.type.slots == 1 else Touch(self.ring, self.rel + by, self.write, self.area, self.copy)

    def forgotten(self) -> Touch:
        """The same access where the ring's count starts anew."""
        return self if self.ring.type.slots == 1 else Touch(self.ring, None, self.write, self.area, self.copy)

    def landed(self) -> Touch:
        return Touch(self.ring, self.rel, self.write, self.area, False)


WHOLE = ("whole",)


def same_slot(a: Touch, b: Touch) -> bool:
    if a.rel is None or b.rel is None:
        return True
    return (a.rel - b.rel) % a.ring.type.slots == 0


def conflict(a: Touch, b: Touch, offsets: dict[Value, int], warps: int) -> str:
    """What must stand between two accesses: "" nothing, "warp" (only lanes of one warp meet), "block"."""
    if not (a.write or b.write):
        return ""
    if a.ring is not b.ring:
        la, lb = offsets[a.ring], offsets[b.ring]
        if la + a.ring.type.bytes <= lb or lb + b.ring.type.bytes <= la:
            return ""
        if la != lb or a.ring.type != b.ring.type or a.ring.type.slots > 1 or a.copy or b.copy:
            return "block"  # else: the same bytes under another name, element for element
    if not same_slot(a, b):
        return ""
    if a.copy or b.copy:
        return "block"
    return _meeting(a.area, b.area, a.ring.type.shape, warps)


@lru_cache(maxsize=4096)
def _meeting(a: tuple, b: tuple, shape: tuple[int, ...], warps: int) -> str:
    x, y = _mask(a, shape, warps), _mask(b, shape, warps)
    meet = np.einsum("wn,vn->wv", x.reshape(warps, -1).astype(np.int64), y.reshape(warps, -1).astype(np.int64)) > 0
    if (meet & ~np.eye(warps, dtype=bool)).any():
        return "block"
    return "warp" if meet.any() else ""


@lru_cache(maxsize=1024)
def _mask(area: tuple, shape: tuple[int, ...], warps: int) -> np.ndarray:
    """bool [warps, rows, cols]: the elements each warp touches."""
    rows, cols = shape if len(shape) == 2 else (1, shape[0])
    out = np.zeros((warps, rows, cols), bool)
    if area == WHOLE:
        out[:] = True
        return out
    if area[0] == "parts":  # the first warp of each part, for the engine that reads the part's rows or columns
        for n in range(area[1]):
            part = np.moveaxis(out[n * warps // area[1]], area[2], 0)
            part[n * len(part) // area[1]:(n + 1) * len(part) // area[1]] = True
        return out
    layout, tile, transposed, along, row, col = area
    for w in range(warps):
        i, j = _positions(layout, tile, transposed, along, w, warps)
        i = np.unique(i + row) if row is not None else np.arange(rows)
        j = np.unique(j + col) if col is not None else np.arange(cols)
        out[w][np.ix_(i, j)] = True
    return out


def _positions(layout, tile: tuple[int, ...], transposed: bool, along: int, warp: int, warps: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored (row, col) of every element that the warp holds of a fragment."""
    if isinstance(layout, OpaqueLayout):
        (r, c), (row, col) = (n // parts for n, parts in zip(tile, layout.parts)), layout.part_of(warp)
        i, j = (x.ravel() for x in np.mgrid[row * r:(row + 1) * r, col * c:(col + 1) * c])
    else:
        assert isinstance(layout, RegLayout)
        c = layout.coords(max(warps, layout.warps))[warp].reshape(-1, len(tile))
        if len(tile) == 1:
            zero = np.zeros(len(c), int)
            return (c[:, 0], zero) if along == 0 else (zero, c[:, 0])
        i, j = c[:, 0], c[:, 1]
    return (j, i) if transposed else (i, j)


def area_of(op: Op, frag: Frag, buffer: Buffer, row: int | None, col: int | None) -> tuple:
    """A hashable description of the elements that `op` touches; unknown positions stand for all of them."""
    transposed, along = bool(op.get("transposed", False)), op.get("along", 1)
    shape = frag.shape[::-1] if transposed else frag.shape
    if len(shape) == 2:
        full_rows, full_cols = shape[0] == buffer.shape[0], shape[1] == buffer.shape[1]
        row, col = (0 if full_rows else row), (0 if full_cols else col)
    return (frag.layout, frag.shape, transposed, along, row, col)
