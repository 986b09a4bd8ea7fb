"""Tile counters: two ints on the GPU that the blocks of one launch share, 0 whenever no launch runs.

In: a device and a stream. Out: an address. Guaranteed: launches that may run at the same time have counters of their own. Launches of one
stream are ordered and share one, whatever their kernels: one launched early reaches it after its `grid_wait`. A stream is known by its id,
which the driver gives once in the life of the process: a handle comes back as soon as its stream is destroyed, while its work may go on.
A launch that is recorded into a CUDA graph has a counter of its own, whatever edges the graph has or gets later. Copies of it (a graph
instantiated twice, a child graph) share that one, as they share all pointers of the launch, outputs included: they must be ordered anyway.

A counter is never given to another stream or recorded launch: when the work of a destroyed stream is over, nobody can tell. That costs 128
bytes of GPU memory for each stream and each recorded launch of the process's life: a megabyte for 8,000. Asking for one is allowed during
capture.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from fcgen.runtime import driver

#: Counters lie a cache line of L2 apart, and are allocated by the page.
SPACING, PER_PAGE = 128, 64
_LEGACY = (0, 1)  # names of the default stream, which is never captured; asking whether it is fails while another stream is


class Counters:
    """The counters of one device."""

    def __init__(self, device: int):
        self._context = driver.primary_context(device)
        self._given: dict[int, int] = {}
        self._free: list[int] = []
        self._lock = threading.Lock()
        self._stream_id, self._capturing = driver.native().cuStreamGetId, driver.native().cuStreamIsCapturing

    def address(self, stream: int) -> int:
        """The counter for a launch on a stream, given as its address."""
        if stream not in _LEGACY and self._is_capturing(stream):
            with self._lock:
                return self._next()
        number = ctypes.c_uint64()
        status = self._stream_id(stream, ctypes.byref(number))
        if status:
            self._ask_inside(status, self._stream_id, stream, number)
        found = self._given.get(number.value)
        return self._give(number.value) if found is None else found

    def _is_capturing(self, stream: int) -> bool:
        """Is what is launched on the stream being recorded into a graph?"""
        answer = ctypes.c_int()
        status = self._capturing(stream, ctypes.byref(answer))
        if status:
            self._ask_inside(status, self._capturing, stream, answer)
        return answer.value == 1  # CU_STREAM_CAPTURE_STATUS_ACTIVE

    def _ask_inside(self, status: int, ask: Any, stream: int, answer: Any) -> None:
        """A thread without a context will launch on the kernel's, and so is the default stream that it means."""
        what = "asking about a stream"
        if status in driver.WRONG_CONTEXT:
            with driver.entered(self._context, what):
                status = ask(stream, ctypes.byref(answer))
        driver.check_status(status, what)

    def _give(self, key: int) -> int:
        with self._lock:
            if key not in self._given:
                self._given[key] = self._next()
            return self._given[key]

    def _next(self) -> int:
        if not self._free:
            self._free = self._page()
        return self._free.pop()

    def _page(self) -> list[int]:
        """New counters, zeroed on a stream of our own, which no capture of the caller's is in the way of."""
        cu, what = driver.bindings(), "making tile counters"
        with driver.entered(self._context, what):
            mode = driver.check(cu.cuThreadExchangeStreamCaptureMode(cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED), what)
            try:
                start = int(driver.check(cu.cuMemAlloc(SPACING * PER_PAGE), what))
                stream = driver.check(cu.cuStreamCreate(int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)), what)
                driver.check(cu.cuMemsetD32Async(start, 0, SPACING * PER_PAGE // 4, stream), what)
                driver.check(cu.cuStreamSynchronize(stream), what)
                driver.check(cu.cuStreamDestroy(stream), what)
            finally:
                driver.check(cu.cuThreadExchangeStreamCaptureMode(mode), what)
        return [start + SPACING * n for n in reversed(range(PER_PAGE))]


_of: dict[int, Counters] = {}
_making = threading.Lock()


def of(device: int) -> Counters:
    """The counters of a device: all kernels' that run on it."""
    with _making:
        if device not in _of:
            _of[device] = Counters(device)
        return _of[device]
