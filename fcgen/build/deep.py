"""Room for walks that are as deep as a program's chains of ops are long: an unrolled loop of a spec makes chains of thousands. Quiet for
passes that make tens of thousands of nodes.

`with_room(fn, ops)` runs fn as it is for programs of ordinary size, and on a stack of its own for long ones, or where the caller's stack is
full. Guaranteed: what does not fit even there is an FcError, never a RecursionError.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..errors import FcError

T = TypeVar("T")

#: ops of a program up to which Python's own limit of 1000 frames is enough: a link of a chain takes up to five
ORDINARY = 400
FRAMES_PER_OP = 12
#: of C stack, for a frame that is entered through C (`any`, `tuple`, a generator)
BYTES_PER_FRAME = 2048
MOST_BYTES = 1 << 29
_lock = threading.Lock()
_inside = threading.local()  # set in a thread that has room


def with_room(fn: Callable[[], T], ops: int) -> T:
    if hasattr(_inside, "room"):
        return fn()
    if ops <= ORDINARY:
        with suppress(RecursionError):  # the caller may have used up the frames
            return fn()
    frames = 2000 + ops * FRAMES_PER_OP
    out: list[Any] = []

    def run() -> None:
        _inside.room = True
        try:
            out.append((True, fn()))
        except BaseException as e:
            out.append((False, e))

    with _lock:
        limit, size = sys.getrecursionlimit(), threading.stack_size()
        try:
            sys.setrecursionlimit(max(limit, frames))
            threading.stack_size(min(MOST_BYTES, (1 << 24) + frames * BYTES_PER_FRAME) // 4096 * 4096)
            thread = threading.Thread(target=run, name="fcgen")
            try:
                thread.start()
            except RuntimeError as e:  # there is no memory for so large a stack, or no thread to be had
                raise FcError("compile/unsupported", "there is no room for a program of so many operations", got=f"{ops} ops: {e}",
                              hint="a Python loop that unrolls into thousands of steps: make it a loop of the program, fc.loop(n)") from e
            finally:
                threading.stack_size(size)  # those that others start need no more than before
            thread.join()
        finally:
            sys.setrecursionlimit(limit)
    good, result = out[0]
    if good:
        return result
    if isinstance(result, RecursionError):
        raise FcError("compile/unsupported", "the program has longer chains of operations than can be followed", got=f"{ops} ops",
                      hint="a Python loop that unrolls into thousands of steps: make it a loop of the program, fc.loop(n)") from None
    raise result


_off = threading.Lock()
_holds = 0
_was = True


@contextmanager
def collector_off() -> Iterator[None]:
    """Python's garbage collector holds still: each of its runs looks at every object of the process (of torch's modules too), and what a
    compilation makes is free when nothing refers to it. It goes on when the last thread has left, if it was on when the first one came."""
    global _holds, _was
    with _off:
        if not _holds:
            _was = gc.isenabled()
            gc.disable()
        _holds += 1
    try:
        yield
    finally:
        with _off:
            _holds -= 1
            if not _holds and _was:
                gc.enable()
