"""Layouts as values: where the elements of a tile live in registers (`RegLayout`) and in shared memory (`SmemLayout`).

A layout is the only place that knows a mapping. Facts about one (bijective, conflict-free, equal to another) are found by
enumeration: tiles are small, and NumPy compares all of their elements faster than a proof can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd, prod

import numpy as np

LANES = 32
WARPS = 32


@dataclass(frozen=True)
class Factor:
    """One digit of a coordinate: `(index of unit // stride) % size`. unit: "w" warp, "l" lane, "r" register."""

    unit: str
    size: int
    stride: int

    def __str__(self) -> str:
        return f"{self.unit}{self.size}@{self.stride}"

    def digit(self, index: np.ndarray | int):
        return index // self.stride % self.size


def _normal(axis: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """Drop digits of size 1 and join neighbours that count as one, so that equal maps are equal values."""
    out: list[Factor] = []
    for f in axis:
        if f.size == 1:
            continue
        if out and out[-1].unit == f.unit and out[-1].stride == f.stride * f.size:
            out[-1] = Factor(f.unit, out[-1].size * f.size, f.stride)
        else:
            out.append(f)
    return tuple(out)


@dataclass(frozen=True)
class RegLayout:
    """A tile over warps, lanes and registers.

    axes: for each tile axis its digits, the most significant first: the coordinate is their mixed-radix number. A warp or lane digit that
    no axis uses means copies: every such thread holds the element. Register digits are dense. Text: `{w4@1 r2@2 l8@4 | r8@4 l4@1 r2@1}`.
    """

    axes: tuple[tuple[Factor, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(_normal(tuple(a)) for a in self.axes))
        object.__setattr__(self, "_hash", hash(self.axes))

    def __hash__(self) -> int:  # (of all factors: found once)
        return self._hash  # type: ignore[attr-defined, no-any-return]

    def __str__(self) -> str:
        return "{" + " | ".join(" ".join(map(str, a)) or "1" for a in self.axes) + "}"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(f.size for f in a) for a in self.axes)

    @cached_property
    def regs(self) -> int:
        """Registers (elements) per thread."""
        return prod(f.size for a in self.axes for f in a if f.unit == "r")

    @property
    def warps(self) -> int:
        """How many warps the layout tells apart (a power-of-two-like product of its warp digits' reach)."""
        return max([1] + [f.size * f.stride for a in self.axes for f in a if f.unit == "w"])

    def weights(self, axis: int) -> list[tuple[Factor, int]]:
        """(digit, what one step of it adds to the coordinate) for one axis, most significant first."""
        return _weights(self.axes[axis])

    def part(self, axis: int, unit: str, index):
        """The share of one unit's index in the coordinate along `axis`; coordinates are the sum over w, l and r."""
        return sum((f.digit(index) * w for f, w in self.weights(axis) if f.unit == unit), start=index * 0)

    def coords(self, warps: int | None = None) -> np.ndarray:
        """int32 [warps, 32, regs, rank]: the tile coordinate held by each register."""
        return _coords(self, self.warps if warps is None else warps)

    def drop(self, axis: int) -> RegLayout:
        """The layout of a tile without `axis`: its lanes and warps become copies, registers are renumbered densely."""
        return self.keep([i for i in range(len(self.axes)) if i != axis])

    def keep(self, axes: Sequence[int]) -> RegLayout:
        """The layout of a tile with these of its axes, in their order."""
        return RegLayout(_renumber(tuple(a for i, a in enumerate(self.axes) if i in axes)))

    def drop_map(self, axis: int) -> np.ndarray:
        """int [regs]: for each register of this layout, the register of `drop(axis)` that holds its row."""
        small = self.drop(axis)
        kept = [a for i, a in enumerate(self.axes) if i != axis]
        index = np.arange(self.regs)
        out = np.zeros_like(index)
        for a, b in zip(kept, small.axes):
            old = [f for f in a if f.unit == "r"]
            new = [f for f in b if f.unit == "r"]
            # `_normal` may have joined digits of b, so go through the coordinate share instead of pairing digits
            value = sum((f.digit(index) * w for f, w in _weights(old)), start=index * 0)
            out += _place(value, new)
        return out

    def part_of(self, axis: int, size: int) -> RegLayout | None:
        """The layout of `size` positions of `axis`, from any multiple of what its topmost digit counts in; None where a thread would not
        keep whole digits of its own."""
        first, *rest = self.axes[axis] or (None,)
        step = prod(f.size for f in rest)
        if first is None or first.unit != "r" or size % step:
            return None
        return self.counting(first, size // step)

    def counting(self, digit: Factor, size: int) -> RegLayout:
        """The layout in which one of its register digits counts so far, and registers are numbered densely."""
        return RegLayout(_renumber(tuple(tuple(Factor("r", size, f.stride) if f is digit else f for f in a) for a in self.axes)))

    def transpose(self) -> RegLayout:
        return RegLayout(self.axes[::-1])

    def reduces_over(self, axis: int) -> tuple[list[int], RegLayout]:
        """(strides of the binary butterfly steps that combine the lanes' copies left by dropping `axis`, the warps that share it)."""
        lanes = [f.stride << b for f in self.axes[axis] if f.unit == "l" for b in range((f.size - 1).bit_length())]
        return lanes, RegLayout((tuple(f for f in self.axes[axis] if f.unit == "w"),))

    def vector(self) -> int:
        """How many consecutive registers hold consecutive elements of the last axis."""
        last = self.axes[-1]
        if last and last[-1].unit == "r" and last[-1].stride == 1:
            return last[-1].size
        return 1

    @cached_property
    def problem(self) -> str | None:
        """Why this is no layout, or None: each digit stands by itself, registers count without gaps, lanes are 32."""
        for unit, what in (("r", "register"), ("l", "lane"), ("w", "warp")):
            end = 1
            for f in sorted((f for a in self.axes for f in a if f.unit == unit), key=lambda f: f.stride):
                if f.stride % end:
                    return f"{what} digit {f} overlaps a smaller one"
                if unit == "r" and f.stride != end:
                    return f"registers {end} to {f.stride - 1} hold nothing of their own: {f} starts late"
                end = f.stride * f.size
            if unit == "l" and end > LANES:
                return f"a warp has {LANES} lanes, these digits count {end}"
            if unit == "w" and end > WARPS:
                return f"a block has {WARPS} warps, these digits count {end}"
        return None


def _weights(digits: Sequence[Factor]) -> list[tuple[Factor, int]]:
    out, w = [], 1
    for f in reversed(digits):
        out.append((f, w))
        w *= f.size
    return out[::-1]


def _place(value: np.ndarray, digits: Sequence[Factor]) -> np.ndarray:
    return sum((value // w % f.size * f.stride for f, w in _weights(digits)), start=value * 0)


def _renumber(axes: tuple[tuple[Factor, ...], ...]) -> tuple[tuple[Factor, ...], ...]:
    """Give the register digits that are left dense strides, in the order of their old ones."""
    digits = sorted((f for a in axes for f in a if f.unit == "r"), key=lambda f: f.stride)
    stride, new = 1, {}
    for f in digits:
        new[f.stride] = stride
        stride *= f.size
    return tuple(tuple(Factor("r", f.size, new[f.stride]) if f.unit == "r" else f for f in a) for a in axes)


@lru_cache(maxsize=512)
def _coords(layout: RegLayout, warps: int) -> np.ndarray:
    w, l, r = np.meshgrid(np.arange(warps), np.arange(LANES), np.arange(layout.regs), indexing="ij")
    out = np.stack([sum((layout.part(a, u, x) for u, x in (("w", w), ("l", l), ("r", r))), start=w * 0)
                    for a in range(len(layout.axes))] or [w[..., :0]], axis=-1) if layout.axes else np.zeros((*w.shape, 0), int)
    out = out.astype(np.int32)
    out.setflags(write=False)
    return out


@dataclass(frozen=True)
class OpaqueLayout:
    """A WMMA fragment grid: which thread holds which element is not specified (CUDA C++ guide, 'Warp matrix functions').

    role: "acc", "a" or "b". warps_m x warps_n warps; each holds whole 16 x 16 fragments of contiguous rows and columns.
    Legal on such a value: fill, mma, elementwise with a scalar or a value of the same layout, load and store. Row operations
    are not. Text: `{wmma acc 4x1}`.
    """

    role: str
    warps_m: int
    warps_n: int = 1

    def __str__(self) -> str:
        return f"{{wmma {self.role} {self.warps_m}x{self.warps_n}}}"

    @property
    def warps(self) -> int:
        return self.warps_m * self.warps_n

    @property
    def parts(self) -> tuple[int, int]:
        """Into how many parts the rows and the columns are divided: each warp has one of each."""
        return 1 if self.role == "b" else self.warps_m, 1 if self.role == "a" else self.warps_n

    def part_of(self, warp):
        """Which part of the rows and of the columns a warp has. warp may be an array."""
        down, across = self.parts
        return warp // self.warps_n % self.warps_m % down, warp % self.warps_n % across


@dataclass(frozen=True)
class SmemLayout:
    """Bytes of a tile in shared memory: panels of `panel` columns, rows of a panel one after the other, `pad` elements after
    each row, and the XOR swizzle of TMA and wgmma on byte addresses (span 32, 64 or 128; 0 for none).

    Text: `{panel 64 swizzle 128}`, `{panel 64 pad 8}`.
    """

    panel: int
    pad: int = 0
    swizzle: int = 0

    def __str__(self) -> str:
        return (f"{{panel {self.panel}" + (f" pad {self.pad}" if self.pad else "")
                + (f" swizzle {self.swizzle}" if self.swizzle else "") + "}")

    def row_bytes(self, size: int) -> int:
        return (self.panel + self.pad) * size

    def panel_bytes(self, shape: tuple[int, ...], size: int) -> int:
        rows = shape[0] if len(shape) == 2 else 1
        return rows * self.row_bytes(size)

    def slot_bytes(self, shape: tuple[int, ...], size: int) -> int:
        cols = shape[-1]
        assert cols % self.panel == 0, f"{cols} columns are not whole panels of {self.panel}"
        raw = cols // self.panel * self.panel_bytes(shape, size)
        align = 1024 if self.swizzle else 128
        return -(-raw // align) * align

    def address(self, shape: tuple[int, ...], size: int, i, j):
        """Byte address of element (i, j) from the slot's start; i, j may be arrays. size: bytes of an element."""
        off = (j // self.panel) * self.panel_bytes(shape, size) + i * self.row_bytes(size) + j % self.panel * size
        return self.swizzled(off)

    def swizzled(self, off):
        """XOR the 16-byte chunk number with the row number, as `CU_TENSOR_MAP_SWIZZLE_*` and wgmma do (PTX ISA, 'Swizzling
        modes'): bits 7.. of the address into bits 4.. of it."""
        mask = {0: 0, 32: 0x10, 64: 0x30, 128: 0x70}[self.swizzle]
        return off ^ ((off >> 3) & mask)


def native_smem(cols: int, size: int, *holders: RegLayout, rows: int = 8) -> SmemLayout:
    """The conflict-free swizzled layout for rows of `cols` elements: the widest panel of 128, 64 or 32 bytes that fits. Where `rows`, which
    begin anywhere by themselves, are no whole periods of a swizzle: none, and the widest panel that a bulk copy moves at once. holders:
    fragments whose warps' columns are to be whole panels, or whole fractions of one, if those can be swizzled: then an element's place is a
    sum of its warp's, lane's and register's."""
    runs = [n for h in holders for f, n in h.weights(-1) if f.unit == "w"]
    wide = _widest_panel(cols, size, rows)
    fitting = _widest_panel(gcd(cols, *runs), size, rows) if any(n % wide.panel and wide.panel % n for n in runs) else wide
    return fitting if fitting.swizzle or not wide.swizzle else wide


def _widest_panel(cols: int, size: int, rows: int) -> SmemLayout:
    for span in (128, 64, 32):
        if cols * size % span == 0 and rows % 8 == 0:
            return SmemLayout(span // size, 0, span)
    wide = [n for n in range(min(cols, 256), 0, -1) if cols % n == 0 and n * size % 16 == 0]
    return SmemLayout(next(iter(wide), cols), 0, 0)


#: Columns that a warp holds of a right operand in fragments at once: 64 columns of 16 rows are 16 registers.
RUN = 128


def mma_run(cols: int) -> int:
    """How many of a warp's columns of a product lie side by side: those of which its right operand is held at once."""
    return cols if cols <= RUN else max((n for n in range(16, RUN + 1, 16) if cols % n == 0), default=cols)


def mma_c(rows: int, cols: int, warps: tuple[int, int] = (4, 1)) -> RegLayout:
    """Accumulator of `mma.m16n8k16` tiled over rows x cols (PTX ISA, 'Matrix Fragments for mma.m16n8k16', C/D), over a grid of warps: warp
    w has rows w mod wm and columns w div wm, `mma_run` of them at a time. Warps past wm * wn hold copies."""
    wm, wn = warps
    m, n, run = rows // wm // 16, cols // wn // 8, mma_run(cols // wn) // 8
    return RegLayout((
        (Factor("w", wm, 1), Factor("r", m, n * 4), Factor("r", 2, 2), Factor("l", 8, 4)),
        (Factor("r", n // run, run * 4), Factor("w", wn, wm), Factor("r", run, 4), Factor("l", 4, 1), Factor("r", 2, 1))))


def mma_a(rows: int, depth: int, warps: tuple[int, int] = (4, 1), size: int = 2) -> RegLayout:
    """A operand of `mma.m16n8k16` over rows x depth (same PTX section): for one warp column its registers are exactly the
    accumulator's, which is why P needs no shuffle. size: bytes of an element; those of one are four to a register ('Matrix Fragments for
    mma.m16n8k32')."""
    wm, e = warps[0], 4 // size
    m, k = rows // wm // 16, depth // (8 * e)
    return RegLayout((
        (Factor("w", wm, 1), Factor("r", m, k * 4 * e), Factor("r", 2, e), Factor("l", 8, 4)),
        (Factor("r", k, 4 * e), Factor("r", 2, 2 * e), Factor("l", 4, 1), Factor("r", e, 1))))


def wgmma_c(rows: int, cols: int, down: int, across: int = 1) -> RegLayout:
    """Accumulators of `wgmma.m64nNk16` over rows x cols: each warpgroup has contiguous rows, 64 per instruction, 16 of them per warp (PTX
    ISA, 'Register Fragments for wgmma.m64nNk16'). With 64 rows per warpgroup this is `mma_c` over its warps. Over a grid, warpgroup g has
    rows g mod down and columns g div down; those past down * across hold copies."""
    m, n = rows // down // 64, cols // across // 8
    return RegLayout((
        (Factor("w", down, 4), Factor("r", m, n * 4), Factor("w", 4, 1), Factor("r", 2, 2), Factor("l", 8, 4)),
        (Factor("w", across, 4 * down), Factor("r", n, 4), Factor("l", 4, 1), Factor("r", 2, 1))))


def warp_grid(layout: RegLayout | OpaqueLayout) -> tuple[int, int]:
    """Into how many parts warps divide the rows and the columns of a tile."""
    if isinstance(layout, OpaqueLayout):
        return layout.warps_m, layout.warps_n
    down, across = (prod(f.size for f in a if f.unit == "w") for a in layout.axes)
    return down, across


def wgmma_a(rows: int, depth: int, down: int, size: int = 2) -> RegLayout:
    """Left operand of `wgmma` in registers (PTX ISA, 'Register Fragments for wgmma.m64nNk32'); of 16-bit elements it is an accumulator's
    layout."""
    m, e = rows // down // 64, 4 // size
    k = depth // (8 * e)
    return RegLayout((
        (Factor("w", down, 4), Factor("r", m, k * 4 * e), Factor("w", 4, 1), Factor("r", 2, e), Factor("l", 8, 4)),
        (Factor("r", k, 4 * e), Factor("r", 2, 2 * e), Factor("l", 4, 1), Factor("r", e, 1))))


def mma_b(depth: int, cols: int, warps: tuple[int, int] = (4, 1), size: int = 2) -> RegLayout:
    """B operand of `mma.m16n8k16` over depth x cols (same PTX section), or of `m16n8k32` for elements of one byte."""
    (wm, wn), e = warps, 4 // size
    n, k = cols // wn // 8, depth // (8 * e)
    return RegLayout((
        (Factor("r", k, n * 2 * e), Factor("r", 2, e), Factor("l", 4, 1), Factor("r", e, 1)),
        (Factor("w", wn, wm), Factor("r", n, 2 * e), Factor("l", 8, 4))))


def in_runs(shape: tuple[int, ...], axis: int, warps: int) -> RegLayout:
    """Lanes hold runs of `axis`, one after the other, and each warp holds it whole: as few lanes as leave no lane without rows."""
    if len(shape) == 1:
        lanes = max(n for n in (1, 2, 4, 8, 16, 32) if shape[0] % n == 0)
        return RegLayout(((Factor("l", lanes, 1), Factor("r", shape[0] // lanes, 1)),))
    if axis == 0:
        return in_runs(shape[::-1], 1, warps).transpose()
    rows, cols = shape
    w = max(n for n in range(1, warps + 1) if rows % n == 0 and warps % n == 0)
    down = max(n for n in (1, 2, 4, 8, 16, 32) if rows // w % n == 0)
    lanes = max(n for n in (1, 2, 4, 8, 16, 32) if n * down <= LANES and cols % n == 0)
    run = cols // lanes
    return RegLayout(((Factor("w", w, 1), Factor("r", rows // w // down, run), Factor("l", down, lanes)),
                      (Factor("l", lanes, 1), Factor("r", run, 1))))


def rowwise(rows: int, cols: int, warps: int, lanes_per_row: int = 4, vec: int = 1) -> RegLayout:
    """Contiguous rows per warp; in a warp `lanes_per_row` lanes share a row, each with runs of `vec` columns: the layout for
    plain element work and coalesced access. Sizes that do not divide leave copies rather than holes."""
    vec = max(v for v in range(1, vec + 1) if cols % v == 0)
    lanes = max(n for n in (1, 2, 4, 8, 16, 32) if n <= lanes_per_row and cols % (n * vec) == 0)
    w = max(n for n in range(1, warps + 1) if rows % n == 0 and warps % n == 0)
    down = max(n for n in (1, 2, 4, 8, 16, 32) if n * lanes <= LANES and rows // w % n == 0)
    rr, rc = rows // w // down, cols // (lanes * vec)
    return RegLayout((
        (Factor("w", w, 1), Factor("r", rr, rc * vec), Factor("l", down, lanes)),
        (Factor("r", rc, vec), Factor("l", lanes, 1), Factor("r", vec, 1))))


def blocked(rows: int, cols: int, warps: int, vec: int = 1, lanes_per_row: int = 32) -> RegLayout:
    """`rowwise` with as many lanes as a row can use: consecutive threads touch consecutive runs of `vec` columns."""
    return rowwise(rows, cols, warps, lanes_per_row, vec)
