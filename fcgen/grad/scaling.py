"""How values move when a reference that they were computed against is another one.

A value *grows* by d if it is d more for each 1 that the reference is more, and is *scaled* by d if it is exp(d) times as large; the rest
stays as it is, ("scaled", 0). exp of what grows is scaled, log of what is scaled grows, products add up what their factors are scaled by,
sums and choices keep what their operands have in common. So a weighted mean whose weights are exp(score - largest) is found to hang on no
maximum, whatever it is made of. Each element of a reference moves by itself: what adds up over several of them is not known.
Guaranteed: what is not known to follow from the table is `UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from math import isinf
from typing import NamedTuple

from ..ir.core import Op, Value


class Moves(NamedTuple):
    """by: None is any amount, as 0 is scaled and an infinity grows. along: the axes that elements of the reference stand along, each of
    which moves by itself."""

    how: str
    by: Fraction | None
    along: tuple[int, ...] = ()


STAYS = Moves("scaled", Fraction(0))
NOUGHT = Moves("scaled", None)
ENDLESS = Moves("grows", None)
UNKNOWN = Moves("unknown", None)

#: a function -> its inverse, either of which the reference may be in
INVERSE = {"exp": "log", "exp2": "log2"}


def _common(x: Moves, y: Moves) -> Moves:
    """Of what either may be."""
    for a, b in ((x, y), (y, x)):
        if a == b or (b.how == a.how and b.by is None) or (b == ENDLESS and a == STAYS):
            return a
    return UNKNOWN


def _combined(x: Moves, y: Moves, how: str, sign: int) -> Moves:
    """x and y times sign, which are both scaled, or grow."""
    if STAYS in (x, y):
        other, turn = (y, sign) if x == STAYS else (x, 1)
        return UNKNOWN if other.how != how else other if other.by is None else other._replace(by=other.by * turn)
    if x.how != how or y.how != how:
        return UNKNOWN
    if x.by is None or y.by is None:
        return Moves(how, None)
    return _plain(Moves(how, x.by + sign * y.by, x.along)) if x.along == y.along else UNKNOWN


def _plain(m: Moves) -> Moves:
    return STAYS if m.by == 0 else m


def _added(x: Moves, y: Moves, sign: int) -> Moves:
    x, y = (STAYS if a == NOUGHT and b.how == "grows" else a for a, b in ((x, y), (y, x)))
    same = _common(x, y)
    return same if same.how == "scaled" else _combined(x, y, "grows", sign)


def _turned(x: Moves, by: Fraction) -> Moves:
    return UNKNOWN if x.how != "scaled" else x if x.by is None else _plain(x._replace(by=x.by * by))


def _kept(x: Moves, *more: Moves) -> Moves:
    return x


_linear: Callable[[Moves], Moves] = lambda x: x if x.how == "scaled" else UNKNOWN

RULES: dict[str, Callable[..., Moves]] = {
    **dict.fromkeys(("full", "cast"), _kept), **dict.fromkeys(("neg", "abs"), _linear),
    **dict.fromkeys(("max", "min"), _common),
    "add": lambda x, y: _added(x, y, 1), "sub": lambda x, y: _added(x, y, -1),
    "mul": lambda x, y: _combined(x, y, "scaled", 1), "div": lambda x, y: _combined(x, y, "scaled", -1),
    "fma": lambda x, y, z: _added(_combined(x, y, "scaled", 1), z, 1),
    "rcp": lambda x: _turned(x, Fraction(-1)), "sqrt": lambda x: _turned(x, Fraction(1, 2)), "rsqrt": lambda x: _turned(x, Fraction(-1, 2)),
    "select": lambda c, x, y: _common(x, y) if c == STAYS else UNKNOWN,
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), lambda x, y: STAYS if _common(x, y) != UNKNOWN else UNKNOWN)}


class Scaling:
    """What is known of values. fn: the function that the reference is an argument of, exp or exp2."""

    def __init__(self, known: dict[Value, Moves], fn: str):
        self.known, self.fn = dict(known), fn
        self.infinite: dict[Value, Value] = {}  # condition -> the value that is infinite where it holds

    def __getitem__(self, v: Value) -> Moves:
        return self.known.get(v, STAYS)

    def moves(self, v: Value) -> bool:
        return self[v] not in (STAYS, NOUGHT, ENDLESS)

    def run(self, ops: Iterable[Op]) -> bool:
        """Learn what the ops compute; whether nothing of it that moves is stored, decides what runs, or is carried by a loop."""
        still = True
        for op in ops:
            moving = any(self.moves(v) for v in op.operands)
            if op.regions:
                inside = [self.run(r.ops) for r in op.regions]
                still = still and not moving and all(inside)
            elif not op.results:
                still = still and not moving
            else:
                self.known[op.result] = self._of(op, moving)
        return still

    def _of(self, op: Op, moving: bool) -> Moves:
        xs = [self[v] for v in op.operands]
        if op.kind == "const":
            of_floats = op.result.type.dtype.is_float
            return NOUGHT if of_floats and op["value"] == 0 else ENDLESS if of_floats and isinf(op["value"]) else STAYS
        if not moving:
            return xs[0] if op.kind in ("broadcast", "full", "cast") else STAYS
        if UNKNOWN in xs:
            return UNKNOWN
        if op.kind in ("broadcast", "transpose", "reduce", "cumsum", "dot"):
            return self._placed(op, xs)
        if op.kind == self.fn and xs[0].how == "grows":
            return xs[0]._replace(how="scaled")
        if op.kind == INVERSE[self.fn] and xs[0].how == "scaled":
            return xs[0]._replace(how="grows")
        if op.kind == "eq" and ENDLESS in xs:
            self.infinite[op.result] = op.operands[xs.index(ENDLESS) - 1]
        if op.kind == "select" and self.infinite.get(op.operands[0]) is op.operands[2] and not self.moves(op.operands[1]):
            return xs[2]  # a number in the place of an infinite one: what was computed against that is 0
        if op.kind not in RULES or (op.kind == "cast" and not op.result.type.dtype.is_float):
            return UNKNOWN
        return RULES[op.kind](*xs)

    def _placed(self, op: Op, xs: list[Moves]) -> Moves:
        """Of ops that change axes, or add up along one, which must not be the reference's."""
        x = xs[0]
        if op.kind == "broadcast":
            return x._replace(along=tuple(op["axes"][a] for a in x.along))
        if op.kind == "transpose":
            return x._replace(along=tuple(1 - a for a in x.along))
        if op.kind == "dot":
            if any(m.along and m.along != (axis,) for axis, m in enumerate(xs[:2])):
                return UNKNOWN
            product = _combined(x, xs[1], "scaled", 1)
            return _common(product, xs[2]) if len(xs) > 2 else product
        if op["axis"] in x.along:
            return UNKNOWN
        if op.kind == "cumsum":
            return _linear(x)
        x = x._replace(along=tuple(a - (a > op["axis"]) for a in x.along))
        return x if op["fn"] != "sum" else _linear(x)


def grows(reference: Value) -> Moves:
    return Moves("grows", Fraction(1), tuple(range(len(reference.type.shape))))


def shrinks(reference: Value, axes: tuple[int, ...] | None) -> Moves:
    """A sum of exp(u - reference). axes: those of it that the reference runs along, None for all."""
    return Moves("scaled", Fraction(-1), tuple(range(len(reference.type.shape))) if axes is None else axes)
