"""A loop without the iterations between two ranges of them: it counts those that are left.

Iteration n of the new loop is iteration n of the old one in front of the hole, and n + size from there on; both ends of the hole are
scalars in front of the loop, and a hole may have no size.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.core import Block, Value
from ...ir.rewrite import Builder, Env, substitute
from .affine import Affine
from .forms import Form, Range, number


@dataclass(frozen=True)
class Hole:
    """bounds: of the loop with its hole; start and size of that, inside of them."""

    bounds: Range
    start: Form
    size: Form

    @staticmethod
    def of(bounds: Range, affine: Affine) -> Hole | None:
        """The hole of a loop with such bounds, if it can have one."""
        if bounds.gap is None:
            return None
        (first, end), (lo, hi) = bounds.gap.ends, bounds.ends
        inside = lambda f, least: affine.extreme("min", affine.extreme("max", f, least), hi)
        start = inside(first, lo)
        size = inside(end, start) - start
        return None if size.known == 0 else Hole(bounds, start, affine.once(("hole", size), lambda: affine.value(size)))

    def walked(self, at: Form, affine: Affine) -> Form:
        """How many iterations, counted from 0, lie in front of one of the old loop."""
        if at == self.bounds.lo:
            return at
        if at == self.bounds.hi:
            return at - self.size
        return at - affine.extreme("max", number(0), affine.extreme("min", at - self.start, self.size))

    def jumped(self, body: Block, affine: Affine) -> Block:
        """The body of the old loop, for the index of the new one."""
        old, *others = body.args
        start, size = affine.value(self.start), affine.value(self.size)
        b, index = Builder(body.ops[0].loc if body.ops else None), Value(old.type, "walked")
        past = b.emit("select", b.emit("ge", index, start), size, b.const(0))
        env = Env()
        env[old] = b.emit("add", index, past, name=old.name)
        b.ops += [substitute(op, env) for op in body.ops]
        return b.block((index, *others))
