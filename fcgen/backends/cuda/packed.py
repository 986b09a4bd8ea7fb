"""Elementwise functions on packed elements, a register at a time: two halves, or four integers of 8 bits.

Sums, differences and products of halves are what the same in floats would be, rounded once: 24 bits hold twice the 11 of a half and two
more, so rounding twice is rounding once. A product that is added to something is rounded once with it, as that of floats is. Bits of bytes
are those of a word, but for what a shift moves past a byte's end. A choice between elements of any kind is one between their bits. What a
register does not hold as it is wanted, or no function takes packed, is computed one by one and packed.
"""

from __future__ import annotations

import numpy as np

from ...ir.core import Op, Value
from ...ir.elementwise import to_dtype
from ...ir.known import const_of
from ...ir.types import DType, Scalar, f16, i8, u8
from .emit import Emitter
from .expr import LONG, Registers
from .spread import broadcast_map
from .text import UNARY, X, binary, call
from .words import wished

#: function -> the record that does it to two halves
HALVES = {"add": "add_f16x2", "sub": "sub_f16x2", "mul": "mul_f16x2"}
NOTHING = "0x00000000u"
BYTES = {"and": "&", "or": "|", "xor": "^"}


def takes(em: Emitter, op: Op) -> bool:
    """Is there a packed form of what the op does to the elements of its result?"""
    dtype = op.result.type.dtype
    if op.kind == "full":
        return const_of(op.operands[0], em.plan.maker) is not None
    if op.kind == "select":
        return all(_as_words(em, v) for v in op.operands[1:])
    if op.kind == "cast":
        src = op.operands[0].type.dtype
        return dtype == f16 and (src in (i8, u8) or f"to_f16x2_{src.name}" in em.target.instrs)
    if dtype == f16:
        return op.kind in HALVES and HALVES[op.kind] in em.target.instrs
    return dtype in (i8, u8) and (op.kind in (*BYTES, "not") or (dtype == u8 and op.kind in ("shl", "shr") and _shift(em, op) is not None))


def _as_words(em: Emitter, v: Value) -> bool:
    """Whether its elements are there packed, or computed so."""
    op = em.plan.maker.get(v)
    return isinstance(v.type, Scalar) or v not in em.plan.fused or op is None or op.kind == "full" or takes(em, op)


def _shift(em: Emitter, op: Op) -> int | None:
    """By how many bits, where all elements are shifted alike and that is known."""
    v = op.operands[1]
    made = em.plan.maker.get(v)
    v = made.operands[0] if made is not None and made.kind == "full" else v
    known = em.fold(v) if isinstance(v.type, Scalar) else None
    return known if known is not None and 0 <= known < 8 else None


class Words:
    """Evaluates fragment values a register at a time, in word `i` of one loop."""

    def __init__(self, em: Emitter, i: X, lines: list[str], domain: str):
        self.em, self.i = em, i
        self.single = Registers(em, i, lines, domain)
        self.known: dict[tuple[Value, bytes], X] = {}

    def value(self, v: Value, table: np.ndarray) -> X:
        """The elements table[i] of v, packed. table: int [words, elements of one]."""
        em = self.em
        if isinstance(v.type, Scalar):
            return self.alike(v, v.type.dtype)
        op = em.plan.maker.get(v)
        if v in em.plan.fused:
            assert op is not None
            key = v, table.tobytes()
            if key not in self.known:
                x = self.compute(op, table)
                if len(x.text) <= LONG:
                    return x
                self.known[key] = X(em.names(wished(em.plan, v), "x"))  # else a value that is read twice would be written twice each time
                self.single.lines.append(f"const uint32_t {self.known[key]} = {x};")
            return self.known[key]
        whole = (table == table[:, :1] + np.arange(table.shape[1])).all() and not (table[:, 0] % v.type.dtype.per_register).any()
        same = em.plan.unturned(v)
        if em.plan.base(v) is same and same not in em.plan.fused and whole and table.shape[1] == v.type.dtype.per_register:
            name = em.array(same)
            return X(f"{name}[{em.index(table[:, 0] // table.shape[1], self.i, f'word_{name}')}]")
        return self.one_by_one(v, table)

    def compute(self, op: Op, table: np.ndarray) -> X:
        em, dtype = self.em, op.result.type.dtype
        if op.kind == "full":
            return self.alike(op.operands[0], dtype)
        if op.kind == "broadcast" and not isinstance(op.operands[0].type, Scalar):
            return self.value(op.operands[0], broadcast_map(op)[table])
        if not takes(em, op):
            return self.one_by_one(op.result, table)
        if op.kind == "select":
            return self.chosen(op, table)
        if op.kind == "cast":
            return self.halves(op, table) or self.one_by_one(op.result, table)
        if dtype == f16 and op.kind in ("add", "sub") and (both := self.plus(op, table)) is not None:
            return both
        if op.kind in ("shl", "shr"):
            n = _shift(em, op)
            assert n is not None
            kept = (255 << n if op.kind == "shl" else 255 >> n) & 255
            moved = binary("<<" if op.kind == "shl" else ">>", self.value(op.operands[0], table), X(str(n)))
            return binary("&", moved, _word(kept, u8)) if n else moved
        args = [self.value(o, table) for o in op.operands]
        if op.kind == "not":
            return X(f"~{args[0].within(UNARY)}", UNARY, args[0].depth)
        return binary(BYTES[op.kind], *args) if dtype != f16 else call(em.fn(HALVES[op.kind]), *args)

    def chosen(self, op: Op, table: np.ndarray) -> X:
        """The bits of one or the other word under a mask."""
        em, (condition, x, y) = self.em, op.operands
        mask = call(em.fn(f"mask_x{table.shape[1]}"), *[self.single.value(condition, t) for t in table.T])
        first, second = self.value(x, table), self.value(y, table)
        if second.text == NOTHING:
            return binary("&", first, mask)
        name = X(em.names("mask"))
        self.single.lines.append(f"const uint32_t {name} = {mask};")
        rest = binary("&", second, X(f"~{name}", UNARY))
        return rest if first.text == NOTHING else binary("|", binary("&", first, name), rest)

    def plus(self, op: Op, table: np.ndarray) -> X | None:
        """Bytes as halves, and a number added to them: one instruction, where the number that it takes is a half."""
        cast, number = op.operands[0], self.number(op.operands[1])
        made = self.em.plan.maker.get(cast) if cast in self.em.plan.fused else None
        if number is None or made is None or made.kind != "cast" or made.operands[0].type.dtype not in (i8, u8) or not takes(self.em, made):
            return None
        return self.halves(made, table, number if op.kind == "add" else -number)

    def halves(self, op: Op, table: np.ndarray, more: float = 0.0) -> X | None:
        """Two bytes of a word as halves, and `more` added: with 0x64 above it a byte is the half 1024 + byte, or, of some of its bits
        that are to be shifted to the right, of as many more as these count."""
        em, src, first = self.em, op.operands[0], table[:, 0]
        if (table[:, 1] != first + 1).any() or (first % 2).any():
            return None
        bytes_of = lambda v: self.value(v, first[:, None] // 4 * 4 + np.arange(4))
        second = em.form(first // 2 % 2, self.i, "second")
        if src.type.dtype not in (i8, u8):
            half = binary(">>", bytes_of(src), binary("*", X("16"), second))
            return None if more else call(em.fn(f"to_f16x2_{src.type.dtype.name}"), call("static_cast<unsigned short>", half))
        src, kept, right = self.bits(src)
        lowest = 1024 + (128 if src.type.dtype == i8 else 0)
        offset = more - lowest / 2**right
        if float(np.float16(offset)) != offset:
            return None
        word = binary("^", bytes_of(src), _word(128, u8)) if src.type.dtype == i8 else bytes_of(src)
        x = call(em.fn("spread_bytes"), word, second)
        x = x if kept == 255 else binary("&", x, X(f"0x{0x64006400 | kept << 16 | kept:08x}u"))
        added = _word(offset, f16)
        return call(em.fn("fma_f16x2"), x, _word(2.0**-right, f16), added) if right else call(em.fn("add_f16x2"), x, added)

    def bits(self, v: Value) -> tuple[Value, int, int]:
        """(a tile of bytes, which of its bits are kept, by how many they are shifted to the right) that make v."""
        kept, right, em = 255, 0, self.em
        made = lambda v: em.plan.maker.get(v) if v in em.plan.fused and v.type.dtype == u8 else None
        if (op := made(v)) is not None and op.kind == "and" and (mask := self.number(op.operands[1])) is not None:
            v, kept = op.operands[0], int(mask) & 255
        if (op := made(v)) is not None and op.kind == "shr" and (n := _shift(em, op)) is not None:
            v, kept, right = op.operands[0], kept << n & 255, n
        return v, kept, right

    def number(self, v: Value) -> float | None:
        """What all elements are, if it is a constant."""
        return const_of(v, self.em.plan.maker)  # type: ignore[no-any-return]

    def alike(self, v: Value, dtype: DType) -> X:
        """All elements are the same."""
        if (number := self.number(v)) is not None:
            return _word(number, dtype)
        return call(self.em.fn(f"pack_{dtype.name}"), *[self.em.scalar(v)] * dtype.per_register)

    def one_by_one(self, v: Value, table: np.ndarray) -> X:
        return call(self.em.fn(f"pack_{v.type.dtype.name}"), *[self.single.value(v, t, final=True) for t in table.T])


def _word(number: float, dtype: DType) -> X:
    """The same number in all of a register."""
    one = np.atleast_1d(to_dtype(np.float32(number), dtype) if dtype.is_float else np.int64(number)).astype(dtype.stored)
    return X(f"0x{int(np.repeat(one, dtype.per_register).view(np.uint32)[0]):08x}u")
