"""What the instructions that move registers between lanes, or to shared memory, make of a layout: quads of lanes swapping pairs of columns,
and the 8 x 8 blocks of ldmatrix and stmatrix."""

from __future__ import annotations

from math import prod

import numpy as np

from .layout import LANES, Factor, RegLayout


def quad_rows(layout: RegLayout) -> RegLayout | None:
    """An accumulator's layout after the four lanes of a quad have swapped pairs of columns so that each holds eight in a row; None for
    other layouts, or where a warp's columns are not whole runs of 32."""
    *down, across = layout.axes
    above, n = across[:-3], across[-3].size if len(across) > 2 else 0
    if len(down) != 1 or across[-3:] != (Factor("r", n, 4), Factor("l", 4, 1), Factor("r", 2, 1)) or n % 4:
        return None
    rows = [Factor(f.unit, f.size, {2: 8}.get(f.stride, f.stride)) if f.unit == "r" and f.stride < 4 else f for f in down[0]]
    return RegLayout((tuple(rows), (*above, Factor("r", n // 4, 16), Factor("l", 4, 1), Factor("r", 8, 1))))


def matrix_blocks(layout: RegLayout, warps: int) -> str | None:
    """Whether pairs of registers are the 8 x 8 blocks that ldmatrix and stmatrix move: "rows" where a lane's two elements are neighbours in
    a row, "columns" where in a column (the .trans forms); None for other layouts, and for those with copies."""
    if len(layout.axes) != 2 or layout.regs % 2 or prod(layout.shape) != warps * LANES * layout.regs:
        return None
    c = layout.coords(warps).reshape(warps, LANES, layout.regs // 2, 2, 2)
    off = c - c[:, :1, :, :1]
    if (c[:, 0, :, 0, 1] % 8).any():
        return None
    lane, e = np.arange(LANES)[:, None, None], np.arange(2)
    along, across = 2 * (lane % 4) + e, lane // 4
    for name, want in (("rows", (across, along)), ("columns", (along, across))):
        if all((off[..., axis] == want[axis]).all() for axis in (0, 1)):
            return name
    return None
