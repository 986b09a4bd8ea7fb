"""What an attribute of an op, or a fact of a kernel's `meta`, may be: its types and its legal values, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .layout import RegLayout
from .types import DTYPES

#: no axis, count or size in bytes is larger: what goes beyond is no tile of a kernel
MOST = 1 << 20
#: no more blocks of a cluster, and axes of a tile, tensor or grid
CLUSTER, RANK = 16, 8
TYPE_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a string",
                               tuple: "a tuple", RegLayout: "a register layout"}


@dataclass(frozen=True)
class Attribute:
    """types: of the value. words: which values are legal, for people; legal: whether one is. optional: it may be missing."""

    types: tuple[type, ...]
    words: str
    legal: Callable[[Any], bool] = lambda v: True
    optional: bool = False

    @property
    def maybe(self) -> Attribute:
        return replace(self, optional=True)

    def typed(self, v: Any) -> bool:
        return isinstance(v, self.types) and not (isinstance(v, bool) and bool not in self.types)

    def admits(self, v: Any) -> bool:
        return self.typed(v) and self.legal(v)


def attribute(given: Any) -> Attribute:
    """An attribute as `define` is given it: a record, or `bool`, or `(bool, None)` where it may be missing."""
    if isinstance(given, Attribute):
        return given
    kinds = given if isinstance(given, tuple) else (given,)
    types = tuple(k for k in kinds if k is not None)
    return Attribute(types, " or ".join(TYPE_WORDS.get(k, k.__name__) for k in types), optional=None in kinds)


def whole(low: int = 0, high: int = MOST) -> Attribute:
    """A whole number from low to high."""
    return Attribute((int,), f"{low} to {high}", lambda v: low <= v <= high)


def one_of(*words: str) -> Attribute:
    return Attribute((str,), ", ".join(words), words.__contains__)


def every(of: Attribute, most: int = RANK, least: int = 0) -> Attribute:
    """A tuple of such values."""
    return Attribute((tuple,), f"{least} to {most} values, each {of.words}", lambda v: least <= len(v) <= most and all(map(of.admits, v)))


#: a name or a text for people
TEXT = Attribute((str,), "a string of at most 1000 characters", lambda v: len(v) <= 1000)
NUMBER = Attribute((int, float, bool), "a number, if it is whole of 64 bits", lambda v: isinstance(v, float) or -(1 << 63) <= v < 1 << 63)
FLAG = Attribute((bool,), "true or false")
DTYPE = one_of(*DTYPES)
#: sizes of a tile
SHAPE = every(whole(1))
#: axes of a tile
AXES = every(whole(0, RANK - 1))
#: one word for each dimension of a tensor (see `access`), and whether each axis of a tile is guarded
INDEX = every(one_of("at", "tile", "until", "all", "each", "also", "element"))
GUARD = every(FLAG)
#: elements per access, or lanes between those that one butterfly step combines
VEC = Attribute((int,), "1, 2, 4, 8 or 16", (1, 2, 4, 8, 16).__contains__)
LAYOUT = Attribute((RegLayout,), "a layout of at most 32 warps", lambda v: v.problem is None)
