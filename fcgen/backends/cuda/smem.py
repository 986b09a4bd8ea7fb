"""Shared-memory addresses: split by enumeration into what the slot, the thread and the instruction's number add.

`address(thread, n) == ((slot + thread part) ^ flip[n]) + step[n]` with compile-time flip and step: one instruction with an
immediate in an unrolled loop. The split is computed from `SmemLayout.address` for every thread and checked on all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from ...ir.core import Op, Value
from ...ir.layout import LANES
from ...ir.types import Buffer, Cursor
from .emit import Emitter, emits
from .text import ADD, BITS, MUL, UNARY, ZERO, X, add, binary, div, mod, mul

BANK = 4  # bytes
SWIZZLE_MASK = {32: 0x10, 64: 0x30, 128: 0x70}


@dataclass(frozen=True)
class Split:
    """thread: byte offset [warps, lanes] of instance 0; flip, step: [trips, instances]."""

    thread: np.ndarray
    flip: np.ndarray
    step: np.ndarray


def split(t: Buffer, rows: np.ndarray, cols: np.ndarray) -> Split | None:
    """rows, cols: int [warps, lanes, trips, instances], positions in the stored tile. None where no such split exists."""
    addr = byte_address(t, rows, cols)
    base = addr[:, :, :1, :1]
    mask = SWIZZLE_MASK.get(t.layout.swizzle, 0)
    flip = (addr ^ base) & mask
    if not (flip == flip[:1, :1]).all():
        flip = np.zeros_like(addr)
    step = addr - (base ^ flip)
    if not (step == step[:1, :1]).all():
        return None
    out = Split(base[:, :, 0, 0], flip[0, 0], step[0, 0])
    assert (((out.thread[:, :, None, None] ^ out.flip) + out.step) == addr).all(), "an address split is exact"
    return out


def passes(addr: np.ndarray, words: int) -> int:
    """In how many passes a warp stores so many words per lane, instruction by instruction. addr: int [lanes, instructions], in bytes."""
    together = addr.reshape(words, LANES // words, -1)[:, :, :, None] // BANK + np.arange(words)
    together = np.sort(together.transpose(0, 2, 1, 3).reshape(-1, LANES), axis=1)
    return int(sum(np.bincount(np.unique(group) % LANES).max() for group in together))


def byte_address(t: Buffer, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.asarray(t.layout.address(t.shape, t.dtype.bytes, rows, cols), dtype=np.int64)


def linear(t: Buffer, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Byte offsets before the swizzle."""
    size, lay = t.dtype.bytes, t.layout
    return cols // lay.panel * lay.panel_bytes(t.shape, size) + rows * lay.row_bytes(size) + cols % lay.panel * size


def swizzled(em: Emitter, t: Buffer, x: X) -> X:
    if not t.layout.swizzle:
        return x
    fn = em.fn("swizzle")
    return X(f"{fn}<{SWIZZLE_MASK[t.layout.swizzle]:#x}>({x})", depth=x.depth)


def thread_offset(em: Emitter, t: Buffer, rows: np.ndarray, cols: np.ndarray, wish: str) -> X | None:
    """The thread's byte offset as a constant of the kernel, or None if it is no sum of a lane and a warp part."""
    lin = linear(t, rows, cols)
    lanes, warps = lin[0], lin[:, 0] - lin[0, 0]
    if not (lin == lanes + warps[:, None]).all():
        return None
    assert (t.layout.swizzled(lin) == byte_address(t, rows, cols)).all()
    x = swizzled(em, t, em.lane_form(lanes, warps))
    return x if x.text.isdigit() else em.hoist("uint32_t", wish, x)


class Addresses:
    """Addresses of one op: call it with the instance's index to get the byte address as a 32-bit expression."""

    def __init__(self, em: Emitter, buffer: Value, row: Value | None, col: Value | None, rows: np.ndarray, cols: np.ndarray,
                 wish: str = ""):
        """rows, cols: int [warps, lanes, instances] relative to (row, col)."""
        self.em, self.t = em, buffer.type
        base, name = em.scalars[buffer], em.ring_name[buffer]
        places = [v for v in (row, col) if v is not None]
        known = em.static(places)
        self.over, at = known if known is not None else (ZERO, np.zeros((1, len(places)), np.int64))
        if not places:
            at = np.zeros((1, 2), np.int64)
        r, c = (x[:, :, None, :] + at[None, None, :, n, None] for n, x in enumerate((rows, cols)))
        self.rows, self.cols = r, c
        self.split = split(self.t, r, c) if known is not None else None
        thread = None
        if self.split is not None:
            thread = thread_offset(em, self.t, r[:, :, 0, 0], c[:, :, 0, 0], wish or f"{name}_lane")
        if thread is not None:
            both = add(base, thread)
            self.base = em.hoist("uint32_t", f"{name}_{'dst' if wish else 'at'}", both) if not thread.is_zero else base
            self.address = self._split_address
        else:  # a position that only run time knows: the whole formula per access
            self.slot, self.row, self.col = base, row, col
            self.address = self._full_address
            self.lane_r, self.lane_c = rows, cols

    def crossing(self, vec: int) -> tuple[int, int, int] | None:
        """(bit of a lane, bits of an instance's number, bits of an address): lanes with that bit store instances of the number with those
        bits changed, at the address with those bits changed, where fewer lanes that store together then meet in a bank."""
        if self.split is None or self.address != self._split_address or len(self.split.step) > 1:
            return None
        words = max(1, vec * self.t.dtype.bytes // 4)
        addr = byte_address(self.t, self.rows, self.cols)[0, :, 0]
        n, lanes, best = addr.shape[1], np.arange(LANES)[:, None], None
        fewest = passes(addr, words)
        for bit, swap in product((1, 2, 4, 8, 16), (1 << b for b in range(n.bit_length()) if n % (2 << b) == 0)):
            other = np.arange(n) ^ swap
            step, flip = self.split.step[0], self.split.flip[0]
            turned = flip[other] ^ flip
            if (step[other] == step).all() and (turned == turned[0]).all() and turned[0] % bit == 0:
                count = passes(addr[lanes, np.where(lanes & bit, other, np.arange(n))], words)
                if count < fewest:
                    fewest, best = count, (bit, swap, int(turned[0]))
        return best

    def _two(self, table: np.ndarray, i: X, wish: str) -> X:
        """table[trip][i] as a sum of the two indices' parts."""
        first, inner = table[:, 0], table[0] - table[0, 0]
        if (table == first[:, None] + inner).all():
            return add(self.em.form(first, self.over, wish), self.em.form(inner, i, wish))
        assert len(table) > 1
        n = table.shape[1]
        flat = add(mul(self.over, n), i)
        return self.em.form(table.ravel(), X(f"({flat})"), wish)

    def _split_address(self, i: X) -> X:
        assert self.split is not None
        flip, step = self._two(self.split.flip, i, "flip"), self._two(self.split.step, i, "step")
        x = self.base
        if not flip.is_zero:
            x = X(f"{x.within(ADD)} ^ {flip.within(UNARY)}", BITS, max(x.depth, flip.depth))
        return x if step.is_zero else X(f"{x.within(ADD)} + {step.within(ADD)}", ADD, max(x.depth, step.depth))

    def _full_address(self, i: X) -> X:
        em, t = self.em, self.t
        coords = []
        for v, table in ((self.row, self.lane_r), (self.col, self.lane_c)):
            lanes, warps, regs = table[0, :, 0], table[:, 0, 0] - table[0, 0, 0], table[0, 0] - table[0, 0, 0]
            assert (table == lanes[:, None] + warps[:, None, None] + regs).all(), "a position is a sum of warp, lane and register"
            x = add(em.lane_form(lanes, warps), em.form(regs, i, "at"))
            coords.append(add(em.scalar(v), x) if v is not None else x)
        size, lay = t.dtype.bytes, t.layout
        r, c = coords
        x = mul(r, lay.row_bytes(size)) if len(t.shape) == 2 else ZERO
        if t.shape[-1] > lay.panel:
            x = add(mul(div(c, lay.panel), lay.panel_bytes(t.shape, size)), x)
            c = mod(c, lay.panel)
        return binary("+", self.slot, swizzled(em, t, add(x, mul(c, size))))

    def run(self, vec: int) -> int:
        """The longest power-of-two run of registers, at most vec, whose addresses are consecutive and aligned in every thread.
        Instances must be single registers."""
        size = self.t.dtype.bytes
        addr = byte_address(self.t, self.rows, self.cols)
        n = addr.shape[-1]
        while vec > 1:
            if n % vec == 0 and vec * size <= 16:
                runs = addr.reshape(*addr.shape[:-1], n // vec, vec)
                if (runs - runs[..., :1] == np.arange(vec) * size).all() and (runs[..., 0] % (vec * size) == 0).all():
                    return vec
            vec //= 2
        return 1


@emits("slot")
def _slot(em: Emitter, op: Op) -> None:
    """A slot by cursor has its address written where it is used, since the cursor moves on."""
    ring, n = op.operands
    t, name, base = ring.type, em.ring_name[ring], em.buffer_base(ring)
    ahead = op["ahead"] % t.slots
    em.ring_name[op.result] = name
    if isinstance(n.type, Cursor):
        slot = em.cursors[n][0]
        slot = f"(({slot} + {ahead}) % {t.slots})" if ahead else slot
        em.slots[op.result] = (ring, slot or None)
        em.scalars[op.result] = add(base, X(f"{slot} * {t.slot_bytes}", MUL, em.depth)) if slot else base
        return
    if t.slots == 1:
        em.scalars[op.result] = base
        return
    fixed = em.fold(n)
    if fixed is not None:
        which = X(str((fixed + ahead) % t.slots))
    else:
        which = add(em.scalar(n), X(str(ahead)))
        if t.slots & (t.slots - 1) == 0:
            which = X(f"({which.within(UNARY)} & {t.slots - 1})", depth=which.depth)
        else:
            which = mod(which, t.slots)
    em.slots[op.result] = ring, which.within(UNARY)
    em.comment([op.loc])
    x = add(base, mul(which, t.slot_bytes))
    wish = op.result.name or f"{name}_{'next' if op['ahead'] else 'slot'}"
    em.scalars[op.result] = em.hoist("uint32_t", wish, X(x.text, x.prec, max(which.depth, base.depth)))
