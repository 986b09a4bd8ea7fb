"""How much work something is, the same on a busy machine as on an idle one: a test that reads a clock fails when its neighbours work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def calls(fn: Callable[[], Any]) -> int:
    """How many functions are called, Python's and C's, by `fn()` run for the second time."""
    fn()
    count = 0

    def seen(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    old = sys.getprofile()
    sys.setprofile(seen)
    try:
        fn()
    finally:
        sys.setprofile(old)
    return count
