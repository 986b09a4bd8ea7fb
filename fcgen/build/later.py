"""Work beside the caller's: most of a compilation is NVRTC's, which needs no turn of Python's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """What fn gives, found in a thread of its own, with the caller's context. (No pool: what waits for others takes nobody's place, and
    a call has few kernels.) As a context: what was begun in a block has ended when the block is left. The interpreter ends when it has
    ended."""

    def __init__(self, fn: Callable[[], T]):
        self._found: Future[T] = Future()
        try:
            Thread(target=copy_context().run, args=(self._run, fn), name="fcgen").start()
        except RuntimeError:  # there are no more threads, or the interpreter is about to end
            self._run(fn)

    def _run(self, fn: Callable[[], T]) -> None:
        try:
            self._found.set_result(fn())
        except BaseException as e:
            self._found.set_exception(e)

    @property
    def failed(self) -> bool:
        """Whether fn has raised."""
        return self._found.done() and self._found.exception() is not None

    def result(self) -> T:
        """Waits for it. Raises what fn has raised."""
        return self._found.result()

    def __enter__(self) -> Later[T]:
        return self

    def __exit__(self, *_: object) -> None:
        wait([self._found])
