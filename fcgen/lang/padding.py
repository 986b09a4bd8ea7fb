"""What tiles hold past the end of their range, and reductions that count it.

The last tile of a range goes past the end, unless the size is known to be whole tiles. There loads read zero, and what is computed of that
may be anything. A sum, a maximum or a product over such an axis is one of the dimension only if what lies there is neutral; if it is not,
the result hangs on the tile size. The axes of values are followed through the program: what is past the end is a known number, the same as
inside, or unknown. What is unknown is taken to be finite: times zero it is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import FcWarning, Loc
from ..ir.access import Access
from ..ir.core import Block, Op, Value, walk
from ..ir.elementwise import FNS
from ..ir.known import number_of
from ..ir.types import DType, i1, i32
from .handles import Handle, Label
from .ranges import Range, extent_name

#: what masks put where nothing counts is at least so large: adding to it, or scaling it, leaves it out of sight
FAR = 1e4
#: ops whose result is at least zero, whatever they are of
POSITIVE = {"abs", "exp", "exp2", "sqrt", "rsqrt", "sigmoid"}


class Past(NamedTuple):
    """Of one axis of a value. number: what is there past the end, None if that is not known. same: the value is the same all along."""

    number: Any = None
    same: bool = False


class _Line(NamedTuple):
    """An integer as a sum: how often each thing is in it (a range: the position in it), and a number."""

    terms: Mapping[Any, int]
    number: int

    def plus(self, other: _Line, times: int = 1) -> _Line:
        terms = dict(self.terms)
        for x, n in other.terms.items():
            terms[x] = terms.get(x, 0) + n * times
        return _Line({x: n for x, n in terms.items() if n}, self.number + other.number * times)


def padded(body: Block, labels: Mapping[Value, tuple[Label, ...]], folded: Mapping[Value, Range],
           runs: Mapping[Value, Range]) -> Iterator[tuple[FcWarning, Loc]]:
    """Reductions and products that count what lies past the end of a range. labels: of values, their axes. folded: the ranges that
    results of reductions fold. runs: tiles that are the positions of a range."""
    ragged = {v: r for v, r in folded.items() if not (isinstance(r.dim, int) and r.dim % r.size == 0)}
    if not ragged:
        return
    found = _Padding(labels, runs)
    found.block(body)
    for op in walk(body):
        along = ragged.get(op.result) if len(op.results) == 1 else None
        if along is None or op.loc is None or found.neutral(op):
            continue
        dim, what = extent_name(along.dim), "product" if op.kind == "dot" else op["fn"]
        instead = {"max": "-fc.inf", "min": "fc.inf"}.get(what, "0.0")
        yield FcWarning(f"this {what} counts what lies past the end of {dim} in the last tile: loads read zero there, and what is computed "
                        f"of it is something else, so results depend on {along.block}, now {along.size} (mask what goes in: "
                        f"fc.where(r.valid, x, {instead}), r being the range)"), op.loc


class _Padding:
    def __init__(self, labels: Mapping[Value, tuple[Label, ...]], runs: Mapping[Value, Range]):
        self.labels, self.runs = labels, runs
        self.past: dict[Value, tuple[Past, ...]] = {}  # per axis; of a scalar one
        self.positive: set[Value] = set()  # not below zero
        self.lines: dict[Value, _Line] = {}

    def of(self, v: Value, axis: int) -> Past:
        known = self.past.get(v, ())
        return (known[axis] if v.type.shape else known[0]) if known else Past(None, not v.type.shape)

    def neutral(self, op: Op) -> bool:
        """Whether it is the same without what lies past the end."""
        if op.kind == "dot":
            return any(self.of(v, axis).number == 0 for v, axis in zip(op.operands, (1, 0)))
        x = self.of(op.operands[0], op["axis"])
        if op["fn"] == "sum" or (x.number is None and not x.same):
            return x.number == 0
        sign = 1 if op["fn"] == "max" else -1
        return x.same or sign * x.number <= -FAR or (sign > 0 and x.number <= 0 and op.operands[0] in self.positive)

    # ---- walking ---------------------------------------------------------------------------------------------------

    def block(self, block: Block) -> tuple[Value, ...]:
        for op in block.ops:
            if op.kind == "yield":
                return op.operands
            if op.kind == "for":
                self._loop(op)
            elif op.kind == "if":
                each = [self.block(r) for r in op.regions]
                for n, r in enumerate(op.results):
                    self._joined(r, [e[n] for e in each])
            elif len(op.results) == 1:
                self.past[op.result] = self._op(op)
                if self._positive(op):
                    self.positive.add(op.result)
                line = self._line(op) if op.result.type.dtype == i32 else None
                if line is not None:
                    self.lines[op.result] = line
        return ()

    def _loop(self, op: Op) -> None:
        """What is carried is what it was before, as long as the body does not make something else of it."""
        args = op.regions[0].args[1:]
        for a, init in zip(args, op.operands[2:]):
            self._joined(a, [init])
        while True:
            ends = self.block(op.regions[0])
            before = [(self.past[a], a in self.positive) for a in args]
            for a, end in zip(args, ends):
                self._joined(a, [a, end])
            if before == [(self.past[a], a in self.positive) for a in args]:
                break
        for r, a in zip(op.results, args):
            self._joined(r, [a])

    def _joined(self, to: Value, each: Sequence[Value]) -> None:
        """What holds of all of them."""
        axes = [[self.of(v, a) for v in each] for a in range(len(to.type.shape) or 1)]
        positive = all(v in self.positive for v in each)
        self.past[to] = tuple(Past(p[0].number if all(x.number == p[0].number for x in p) else None, all(x.same for x in p)) for p in axes)
        (self.positive.add if positive else self.positive.discard)(to)

    # ---- one op ----------------------------------------------------------------------------------------------------

    def _op(self, op: Op) -> tuple[Past, ...]:
        shape, args = op.result.type.shape, op.operands
        axes = range(len(shape) or 1)
        if op.kind == "const":
            return (Past(op["value"], True),)
        if op.kind == "full":
            return tuple(Past(self.of(args[0], 0).number, True) for _ in axes)
        if op.kind == "broadcast":
            scalar = None if args[0].type.shape else self.of(args[0], 0).number
            return tuple(self.of(args[0], op["axes"].index(a)) if a in op["axes"] else Past(scalar, True) for a in axes)
        if op.kind == "transpose":
            return tuple(self.of(args[0], 1 - a) for a in axes)
        if op.kind == "load":
            return tuple(self._load(op, a) for a in axes) if shape else (Past(None, True),)
        if op.kind == "gather":
            return tuple(self._gather(op, a) for a in axes)
        if op.kind == "reduce":
            kept = [a for a in range(len(shape) + 1) if a != op["axis"]]
            return tuple(self._folded(self.of(args[0], a), op["fn"] == "sum") for a in kept) or (Past(None, True),)
        if op.kind == "cumsum":
            return tuple(Past() if a == op["axis"] else self._folded(self.of(args[0], a), True) for a in axes)
        if op.kind == "dot":
            product = [self._folded(self.of(v, a), True) for a, v in enumerate(args[:2])]
            return tuple(Past(0 if p.number == acc.number == 0 else None, p.same and acc.same) for p, acc in
                         zip(product, [self.of(args[2], a) if len(args) == 3 else Past(0, True) for a in axes]))
        if op.kind in FNS or op.kind in ("select", "cast"):
            return tuple(self._elementwise(op, a) for a in axes)
        return tuple(Past(None, not shape) for _ in axes)

    def _folded(self, x: Past, added: bool) -> Past:
        """Along another axis than the one that is folded."""
        return Past(x.number if not added or x.number == 0 else None, x.same)

    def _load(self, op: Op, axis: int) -> Past:
        here = next(a for a in Access.of(op).axes if a.along == axis)
        along = self._range(op.result, axis)
        if here.start is not None and here.is_listed:
            return Past(None, self.of(here.start, 0).same)
        if along is None or not here.is_run:
            return Past()
        cut = isinstance(along.dim, Handle) or here.start is not along._start  # such reads end where their range does
        return Past(0 if cut or here.dim == along.dim else None)

    def _gather(self, op: Op, axis: int) -> Past:
        """Outside of a tensor it reads zero too."""
        along = self._range(op.result, axis)
        for dim, at in zip(op.operands[0].type.dims, op.operands[1:]):
            ends = _Line({}, dim) if isinstance(dim, int) else _Line({dim: 1}, 0)
            if along is not None and (line := self._of_line(at)) is not None and self._least(line.plus(ends, -1), along, 1) >= 0:
                return Past(0)
        return Past(None, all(self.of(v, axis).same for v in op.operands[1:]))

    def _elementwise(self, op: Op, axis: int) -> Past:
        each = [self.of(v, axis) for v in op.operands]
        numbers = [x.number for x in each]
        same = all(x.same for x in each)
        if None not in numbers:
            return Past(number_of(op, numbers), same)
        if op.kind in FNS and FNS[op.kind].kind == "compare":
            return Past(self._compared(op, axis), same)
        return Past(_partly(op.kind, numbers, op.result.type.dtype), same)

    def _compared(self, op: Op, axis: int) -> bool | None:
        along, (a, b) = self._range(op.result, axis), map(self._of_line, op.operands)
        if along is None or a is None or b is None:
            return None
        less = a.plus(b, -1)  # a - b
        low, high = self._least(less, along, 1), -self._least(less, along, -1)
        answers = {"lt": (high < 0, low >= 0), "le": (high <= 0, low > 0), "gt": (low > 0, high <= 0), "ge": (low >= 0, high < 0),
                   "eq": (False, low > 0 or high < 0), "ne": (low > 0 or high < 0, False)}
        yes, no = answers[op.kind]
        return True if yes else False if no else None

    def _positive(self, op: Op) -> bool:
        args = op.operands
        each = [v in self.positive for v in args]
        if op.kind == "const":
            return bool(op["value"] >= 0)
        if op.kind == "mul":
            return all(each) or args[0] is args[1]
        if op.kind == "max":
            return any(each)
        return op.kind in POSITIVE or (op.kind in ("full", "broadcast", "transpose", "cast", "add", "div", "min", "reduce", "cumsum") and
                                       all(each)) or (op.kind == "select" and all(each[1:]))

    # ---- positions -------------------------------------------------------------------------------------------------

    def _range(self, v: Value, axis: int) -> Range | None:
        label = (*self.labels.get(v, ()), None, None)[axis]
        return label if isinstance(label, Range) else None

    def _line(self, op: Op) -> _Line | None:
        if op.result in self.runs:
            return _Line({self.runs[op.result]: 1}, 0)
        if op.kind == "size":
            return _Line({op["dim"]: 1}, 0)
        if op.kind == "const":
            return _Line({}, int(op["value"]))
        if op.kind not in ("full", "broadcast", "transpose", "neg", "add", "sub", "mul"):
            return None
        a, b = (self._of_line(v) for v in (op.operands[0], op.operands[-1]))
        if a is None or b is None or (op.kind == "mul" and a.terms and b.terms):
            return None
        if op.kind == "mul":
            return _Line({}, 0).plus(*((a, b.number) if a.terms else (b, a.number)))
        if op.kind in ("add", "sub"):
            return a.plus(b, 1 if op.kind == "add" else -1)
        return _Line({}, 0).plus(a, -1) if op.kind == "neg" else a

    def _of_line(self, v: Value) -> _Line | None:
        return self.lines.get(v, _Line({v: 1}, 0) if not v.type.shape and v.type.dtype == i32 else None)

    def _least(self, line: _Line, along: Range, sign: int) -> float:
        """The least that `sign` times a line is past the end of a range, and inside of all others; -inf where nothing is known."""
        line = _Line({}, 0).plus(line, sign)
        for x, n in list(line.terms.items()):
            if not isinstance(x, Range):
                continue
            end = _Line({}, x.dim) if isinstance(x.dim, int) else _Line({x.dim: 1}, 0)
            if isinstance(x.dim, Handle):
                assert x.dim._value is not None
                end = self._of_line(x.dim._value) or end
            if x is along:  # from the end on, and less than a tile further
                place = end if n > 0 else end.plus(_Line({}, x.size - 2))
            else:  # from zero to one before the end
                place = _Line({}, 0) if n > 0 else end.plus(_Line({}, -1))
            line = line.plus(_Line({x: 1}, 0), -n).plus(place, n)
        sizes = all(isinstance(x, str) and n > 0 for x, n in line.terms.items())
        return line.number if sizes else -math.inf


def _partly(kind: str, numbers: Sequence[Any], dtype: DType) -> Any:
    """What an op makes of numbers of which some are not known. (Integers that are far away wrap.)"""
    a, b = numbers[0], numbers[-1]
    known = b if a is None else a
    if kind == "select":
        return numbers[1 if a else 2] if a is not None else numbers[1] if numbers[1] == numbers[2] else None
    if kind in ("and", "or") and dtype == i1:
        return known if known is not None and bool(known) == (kind == "or") else None
    if kind in ("mul", "div") and known == 0 and (kind == "mul" or a == 0):
        return 0
    if kind == "div" and b is not None and abs(b) >= FAR:
        return 0
    if dtype.is_float and (kind in ("add", "sub", "mul") or (kind == "div" and a is not None)):
        far = known is not None and not isinstance(known, bool) and abs(known) >= FAR
        return math.copysign(math.inf, -known if kind == "sub" and a is None else known) if far else None
    return None
