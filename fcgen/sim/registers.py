"""Index maps between registers, tiles and memory: what the simulator needs of a layout, found once by enumeration.

All maps are per warp and physical: [lane, register]. Instructions use their own register maps (`Instr.a`, `.b`, `.c`), loads and stores the
fragment's layout; where the two disagree the simulated numbers are wrong, as they would be on the GPU.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..errors import FcError
from ..ir.layout import LANES, Factor, RegLayout


@lru_cache(maxsize=1024)
def coords(layout: RegLayout, warps: int, warp: int) -> np.ndarray:
    """int [32, regs, rank]: the tile coordinate of each register of one warp."""
    return layout.coords(max(warps, layout.warps))[warp]


@lru_cache(maxsize=1024)
def first_column(layout: RegLayout, warps: int, warp: int) -> int:
    return int(coords(layout, warps, warp)[..., 1].min())


@lru_cache(maxsize=1024)
def writers(layout: RegLayout, warps: int, warp: int) -> np.ndarray:
    """bool [32]: of lanes (and warps) that hold copies, the first one."""
    c = layout.coords(max(warps, layout.warps))[:, :, 0, :].reshape(-1, max(1, len(layout.axes)))
    _, first = np.unique(c, axis=0, return_index=True)
    mask = np.zeros(len(c), bool)
    mask[first] = True
    return mask.reshape(-1, LANES)[warp]


@lru_cache(maxsize=1024)
def slice_registers(src: RegLayout, out: RegLayout, axis: int, first: int, warps: int, warp: int) -> np.ndarray:
    """For each register of the part, the register of the whole that holds the same element in every lane."""
    have, want = coords(src, warps, warp), coords(out, warps, warp).copy()
    want[..., axis] += first
    at = {tuple(c): r for r, c in reversed(list(enumerate(have[0])))}
    regs = [at.get(tuple(c), -1) for c in want[0]]
    if -1 in regs or not (have[:, regs] == want).all():
        raise FcError("ir/verify", "slice: a lane does not hold the part's elements", expected=out, got=src)
    return np.array(regs)


@lru_cache(maxsize=512)
def exchange(src: RegLayout, out: RegLayout, warps: int, warp: int) -> tuple[np.ndarray, np.ndarray]:
    """For each lane and register of `out`, the lane and register of `src` in the same warp that hold its element."""
    have, want = (coords(x, warps, warp).reshape(-1, len(x.shape)) for x in (src, out))
    held, wanted = (np.ravel_multi_index(tuple(c.T), src.shape) for c in (have, want))
    order = np.argsort(held, kind="stable")
    found = order[np.minimum(np.searchsorted(held, wanted, sorter=order), len(order) - 1)]
    if (held[found] != wanted).any():
        raise FcError("ir/verify", "quad_transpose: the warp does not hold the elements", expected=out, got=src)
    lane, reg = np.divmod(found.reshape(LANES, -1), src.regs)
    return lane, reg


@lru_cache(maxsize=512)
def operand_map(layout: RegLayout, unit: RegLayout, warps: int, warp: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Where the instruction finds the elements of a whole operand: (lane, register) index arrays of the operand's tile in this warp,
    and the tile coordinate of its corner. Runs of `unit.regs` registers are one instruction's operand; their place in the tile is
    where lane 0's first register says it is, their inner order is the instruction's."""
    have, inner = coords(layout, warps, warp), coords(unit, 1, 0)
    n = unit.regs
    origins = [(tuple(have[0, b] - inner[0, 0]), b) for b in range(0, layout.regs, n)]
    rows, cols = sorted({o[0] for o, _ in origins}), sorted({o[1] for o, _ in origins})
    ur, uc = unit.shape
    lane, reg = (np.full((len(rows) * ur, len(cols) * uc), -1) for _ in range(2))
    for (r, c), b in origins:
        i, j = rows.index(r) * ur + inner[..., 0], cols.index(c) * uc + inner[..., 1]
        lane[i, j] = np.arange(LANES)[:, None]
        reg[i, j] = b + np.arange(n)[None]
    if (lane < 0).any():
        raise FcError("ir/verify", "mma: a fragment does not hold whole instruction operands", expected=unit, got=layout)
    return lane, reg, (int(rows[0]), int(cols[0]))


@lru_cache(maxsize=512)
def matrix_origins(layout: RegLayout, warps: int, warp: int, transposed: bool, per: int = 2) -> np.ndarray:
    """int [words, 2]: for each 32-bit register, of `per` elements, the stored (row, col) of the corner of the block of 8 rows that ldmatrix
    puts there."""
    c = coords(layout, warps, warp)[0, ::per]
    return c[:, ::-1] if transposed else c


@lru_cache(maxsize=512)
def runs(layout: RegLayout, axis: int) -> tuple[np.ndarray, Factor]:
    """Of an axis whose lanes hold runs: int [rows, per row], a thread's registers of each row in order; and the digit of the lanes."""
    lanes = next((f for f in layout.axes[axis] if f.unit == "l"), Factor("l", 1, 1))
    order = np.argsort(layout.part(axis, "r", np.arange(layout.regs)), kind="stable")
    table = layout.drop_map(axis)[order]
    return order[np.argsort(table, kind="stable")].reshape(layout.drop(axis).regs, -1), lanes


@lru_cache(maxsize=512)
def groups(layout: RegLayout, axis: int) -> np.ndarray:
    """int [rows, per row]: the registers that a thread folds into each register of the reduced fragment."""
    table = layout.drop_map(axis)
    return np.argsort(table, kind="stable").reshape(layout.drop(axis).regs, -1)
