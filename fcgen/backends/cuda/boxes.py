"""The box of a tensor that a bulk copy moves: its coordinates in text, and what its tensor map says.

A run with a limit takes a map of two more axes (`ir.access.CUT`): its positions are counted backwards from the limit, so that the map's own
end is where the limit is, and the two others bring the address back.
"""

from __future__ import annotations

from ...ir.access import CUT, Access
from .emit import Emitter
from .expr import choose, nonneg
from .memory import end_of
from .text import ZERO, X, add, binary


class Boxes:
    """size: positions of a box along each axis of the tile."""

    def __init__(self, em: Emitter, access: Access, size: tuple[int, ...]):
        self.access = access
        self.at = [em.scalar(a.start) if a.start is not None else ZERO for a in access.axes]
        self.box = [1 if a.along is None else size[a.along] for a in access.axes]
        self.cut, self.outer = -1, list[X]()
        for d, a in enumerate(access.axes):
            if a.limit is not None and a.start is not None:
                end, first = end_of(em, a), self.at[d]
                x = add(binary("-", X(str(CUT)), end), first)
                if not nonneg(em, a.start):  # no map can begin in front of the tensor and end at a limit: such a tile is all outside
                    x = choose(binary("<", first, ZERO), X(str(CUT)), x)
                self.cut, self.at[d], self.outer = d, em.hoist("int", "from_end", x), [X(str(CUT)), end]
        if len(self.at) == 1:  # no map has one axis
            self.outer = [*self.outer, ZERO]

    @property
    def rank(self) -> int:
        """Coordinates of an instruction."""
        return len(self.at) + len(self.outer)

    def shift(self, along: int, by: X) -> None:
        """Start further on along an axis of the tile."""
        d = [d for d, a in enumerate(self.access.axes) if a.along is not None][along]
        self.at[d] = add(self.at[d], by)

    def detail(self, swizzle: int) -> tuple[int, ...]:
        """What `Emitter.map_of` takes."""
        return (*([1] if len(self.box) == 1 else []), *self.box, swizzle, *([self.cut] if self.cut >= 0 else []))

    def coords(self, column: int) -> str:
        """Innermost first, from a column of the tile on."""
        return ", ".join(map(str, [add(self.at[-1], X(str(column))), *reversed([*self.outer, *self.at[:-1]])]))
