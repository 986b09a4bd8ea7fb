"""What a condition says of positions, where the value that is chosen under it may rely on it.

`select(c, f(x), y)` takes nothing of f(x) where c does not hold: there f may be another function. Where c says on which side of each other
two positions lie, the distance between them has a known sign, one of the two is the larger one, and comparisons of them are decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.core import Op, Value
from ...ir.types import i32
from ..facts.common import COMPARISONS, ELEMENTWISE, is_position
from .rules import rule

if TYPE_CHECKING:
    from .simplify import Sweep

#: a comparison -> the signs that the difference of its operands may have
SIGNS = {"lt": {-1}, "le": {-1, 0}, "eq": {0}, "ne": {-1, 1}, "ge": {0, 1}, "gt": {1}}
#: ops that a chosen value is followed through
FUEL = 8


@rule("select")
def known_where_taken(s: Sweep, op: Op) -> Value | None:
    cond, x, y = op.operands
    known = Known(s, cond)
    chosen = known.rewritten(x, FUEL) if known.signs else x
    return None if chosen is x else s.make("select", cond, chosen, y, **op.attrs)


class Known:
    """signs[p, q]: which p - q may have where a condition holds."""

    def __init__(self, s: Sweep, cond: Value):
        self.s, self.signs = s, dict[tuple[Value, Value], set[int]]()
        todo = [cond]
        while todo:
            op = s.defs.get(todo.pop())
            if op is not None and op.kind == "and":
                todo += op.operands
            elif op is not None and op.kind in SIGNS and all(self.exact(v) for v in op.operands):
                p, q = op.operands
                for pair, signs in (((p, q), SIGNS[op.kind]), ((q, p), {-n for n in SIGNS[op.kind]})):
                    self.signs[pair] = self.signs.get(pair, signs) & signs

    def exact(self, v: Value) -> bool:
        """Whether differences of such numbers do not wrap."""
        return v.type.dtype == i32 and is_position(v, self.s.defs, self.s.counted.__contains__)

    def rewritten(self, v: Value, fuel: int) -> Value:
        """What may stand for a value that nothing else reads."""
        op = self.s.defs.get(v)
        if op is None or op.kind not in ELEMENTWISE or fuel == 0 or not self.s.once_here(v):
            return v
        found = self.simpler(op)
        if found is not None and found.type == v.type:
            return found
        operands = tuple(self.rewritten(o, fuel - 1) for o in op.operands)
        return v if operands == op.operands else self.s.make(op.kind, *operands, name=v.name, **op.attrs)

    def simpler(self, op: Op) -> Value | None:
        s = self.s
        if op.kind == "abs":
            inner = s.made_by(op.operands[0], "sub")
            signs = inner and self.signs.get((inner.operands[0], inner.operands[1]))
            if inner and signs and signs <= {0, 1}:
                return op.operands[0]
            return s.make("sub", *inner.operands[::-1]) if inner and signs and signs <= {-1, 0} else None
        if len(op.operands) != 2 or op.operands not in self.signs:
            return None
        p, q = op.operands
        signs = self.signs[p, q]
        if op.kind in ("max", "min") and (signs <= {0, 1} or signs <= {-1, 0}):
            return p if (signs <= {0, 1}) == (op.kind == "max") else q
        if op.kind in COMPARISONS and (signs <= SIGNS[op.kind] or not signs & SIGNS[op.kind]):
            return s.spread(s.number(signs <= SIGNS[op.kind], op.result.type.dtype), op.result.type)
        return None
