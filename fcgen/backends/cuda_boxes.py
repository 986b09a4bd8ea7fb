"""The box of a tensor that a bulk copy moves: its coordinates in text, and what its tensor map says."""

from __future__ import annotations

from ..ir.access import Access
from .cuda_emit import Emitter
from .cuda_text import ZERO, X, add


class Boxes:
    """size: positions of a box along each axis of the tile."""

    def __init__(self, em: Emitter, access: Access, size: tuple[int, ...]):
        self.access = access
        self.at = [em.scalar(a.start) if a.start is not None else ZERO for a in access.axes]
        self.box = [1 if a.along is None else size[a.along] for a in access.axes]

    @property
    def rank(self) -> int:
        return len(self.at)

    def shift(self, along: int, by: X) -> None:
        """Start further on along an axis of the tile."""
        d = [d for d, a in enumerate(self.access.axes) if a.along is not None][along]
        self.at[d] = add(self.at[d], by)

    def detail(self, swizzle: int) -> tuple[int, ...]:
        """What `Emitter.map_of` takes."""
        return (*self.box, swizzle)

    def coords(self, column: int) -> str:
        """Innermost first, from a column of the tile on."""
        return ", ".join(map(str, [add(self.at[-1], X(str(column))), *reversed(self.at[:-1])]))
