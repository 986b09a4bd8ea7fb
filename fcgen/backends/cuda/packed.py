"""Elementwise functions on packed elements, a register at a time: two halves, or four integers of 8 bits.

Sums, differences and products of halves are what the same in floats would be, rounded once: 24 bits hold twice the 11 of a half and two
more, so rounding twice is rounding once. Bits of bytes are those of a word, but for what a shift moves past a byte's end. What a register
does not hold as it is wanted, or no function takes packed, is computed one by one and packed.
"""

from __future__ import annotations

import numpy as np

from ...ir.core import Op, Value
from ...ir.types import DType, Scalar, f16, i8, u8
from .emit import Emitter
from .expr import Registers, broadcast_map
from .text import X, binary, call

#: function -> the record that does it to two halves
HALVES = {"add": "add_f16x2", "sub": "sub_f16x2", "mul": "mul_f16x2"}
BYTES = {"and": "&", "or": "|", "xor": "^"}


def takes(em: Emitter, op: Op) -> bool:
    """Is there a packed form of what the op does to the elements of its result?"""
    dtype = op.result.type.dtype
    if op.kind == "cast":
        return dtype == f16 and f"to_f16x2_{op.operands[0].type.dtype.name}" in em.target.instrs
    if dtype == f16:
        return op.kind in HALVES and HALVES[op.kind] in em.target.instrs
    return dtype in (i8, u8) and (op.kind in (*BYTES, "not") or (dtype == u8 and op.kind in ("shl", "shr") and _shift(em, op) is not None))


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

    def value(self, v: Value, table: np.ndarray) -> X:
        """The elements table[i] of v, packed. table: int [words, elements of one]."""
        em = self.em
        if isinstance(v.type, Scalar):
            return self.alike(v, v.type.dtype)
        op = em.plan.maker.get(v)
        if v in em.plan.fused:
            assert op is not None
            return self.compute(op, table)
        whole = (table == table[:, :1] + np.arange(table.shape[1])).all() and not (table[:, 0] % v.type.dtype.per_register).any()
        if em.plan.base(v) is v and whole and table.shape[1] == v.type.dtype.per_register:
            name = em.array(v)
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
        if op.kind == "cast":
            return self.halves(op, table)
        if op.kind in ("shl", "shr"):
            n = _shift(em, op)
            assert n is not None
            kept = (255 << n if op.kind == "shl" else 255 >> n) & 255
            moved = binary("<<" if op.kind == "shl" else ">>", self.value(op.operands[0], table), X(str(n)))
            return binary("&", moved, _bytes(kept)) if n else moved
        args = [self.value(o, table) for o in op.operands]
        if op.kind == "not":
            return X(f"~{args[0].within(90)}", 90, args[0].depth)
        return binary(BYTES[op.kind], *args) if dtype != f16 else call(em.fn(HALVES[op.kind]), *args)

    def halves(self, op: Op, table: np.ndarray) -> X:
        """Two bytes of a word as halves."""
        src = op.operands[0]
        first = table[:, 0]
        if (table[:, 1] != first + 1).any() or (first % 2).any():
            return self.one_by_one(op.result, table)
        word = self.value(src, first[:, None] // 4 * 4 + np.arange(4))
        second = self.em.form(first // 2 % 2, self.i, "second")
        half = {"0": word, "1": binary(">>", word, X("16"))}.get(second.text, binary(">>", word, binary("*", X("16"), second)))
        return call(self.em.fn(f"to_f16x2_{src.type.dtype.name}"), call("static_cast<unsigned short>", half))

    def alike(self, v: Value, dtype: DType) -> X:
        """All elements are the same."""
        made = self.em.plan.maker.get(v)
        if made is not None and made.kind == "const":
            if not dtype.is_float:
                return _bytes(made["value"] & 255)
            bits = int(np.float16(made["value"]).view(np.uint16))
            return X(f"0x{bits:04x}{bits:04x}u")
        return call(self.em.fn(f"pack_{dtype.name}"), *[self.em.scalar(v)] * dtype.per_register)

    def one_by_one(self, v: Value, table: np.ndarray) -> X:
        return call(self.em.fn(f"pack_{v.type.dtype.name}"), *[self.single.value(v, t, final=True) for t in table.T])


def _bytes(value: int) -> X:
    return X(f"0x{value * 0x01010101:08x}u")
