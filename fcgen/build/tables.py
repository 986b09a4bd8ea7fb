"""Tables of what was made before: bounded, and shared by all threads without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

K = TypeVar("K")
V = TypeVar("V")
_NOTHING = object()


def kept_in(table: dict[K, V], most: int, key: K, make: Callable[[], V]) -> V:
    """What a table has under a key; made, where it has nothing. A table with `most` entries is emptied before one comes in. Another thread
    may fill or empty it meanwhile: what this call found or made is what it returns, and of two threads that made one at a time, both get
    the one that was there first."""
    found = table.get(key, cast(V, _NOTHING))
    if found is _NOTHING:
        found = make()
        if len(table) >= most:
            table.clear()
        found = table.setdefault(key, found)
    return found
