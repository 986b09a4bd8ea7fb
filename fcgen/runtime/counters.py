"""Tile counters: two ints on the GPU that the blocks of one launch share, 0 whenever no launch runs.

In: a device and a stream. Out: an address. Guaranteed: launches that may run at the same time have counters of their own. Launches of one
stream are ordered and share one; those recorded into a CUDA graph get one per graph and stream, since a graph may be replayed beside
anything; a counter that was given out is never given back while the process runs, and asking for one is allowed during capture.
"""

from __future__ import annotations

import threading
from typing import Any

from fcgen.runtime import driver

#: Counters lie a cache line of L2 apart, and are allocated by the page.
SPACING, PER_PAGE = 128, 64
_PER_THREAD = 2  # CU_STREAM_PER_THREAD: one name, a stream for every thread


class Counters:
    """The counters of one kernel on one device."""

    def __init__(self, device: int):
        self.device = device
        self._context = driver.primary_context(device)
        self._given: dict[Any, int] = {}
        self._free: list[int] = []
        self._lock = threading.Lock()

    def address(self, stream: int) -> int:
        """The counter for a launch on a stream, given as its address."""
        key: Any = stream
        capturing = is_capturing(stream)
        if capturing or stream == _PER_THREAD:
            key = (stream, _capture_id(stream) if capturing else None, threading.get_ident() if stream == _PER_THREAD else None)
        found = self._given.get(key)
        return self._give(key) if found is None else found

    def _give(self, key: Any) -> int:
        with self._lock:
            if key not in self._given:
                if not self._free:
                    self._free = self._page()
                self._given[key] = self._free.pop()
            return self._given[key]

    def _page(self) -> list[int]:
        """New counters, zeroed on a stream of our own, which no capture of the caller's is in the way of."""
        cu, what = driver.bindings(), "making tile counters"
        driver.check(cu.cuCtxPushCurrent(self._context), what)
        try:
            mode = driver.check(cu.cuThreadExchangeStreamCaptureMode(cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED), what)
            try:
                start = int(driver.check(cu.cuMemAlloc(SPACING * PER_PAGE), what))
                stream = driver.check(cu.cuStreamCreate(int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)), what)
                driver.check(cu.cuMemsetD32Async(start, 0, SPACING * PER_PAGE // 4, stream), what)
                driver.check(cu.cuStreamSynchronize(stream), what)
                driver.check(cu.cuStreamDestroy(stream), what)
            finally:
                driver.check(cu.cuThreadExchangeStreamCaptureMode(mode), what)
        finally:
            cu.cuCtxPopCurrent()
        return [start + SPACING * n for n in reversed(range(PER_PAGE))]


def is_capturing(stream: int) -> bool:
    """Is what is launched on the stream being recorded into a graph? The legacy default stream never is."""
    if stream == 0 or stream == 1:
        return False
    cu = driver.bindings()
    status = driver.check(cu.cuStreamIsCapturing(cu.CUstream(stream)), "asking whether a stream is captured")
    return status == cu.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE


def _capture_id(stream: int) -> int:
    cu = driver.bindings()
    return int(driver.check(cu.cuStreamGetCaptureInfo(cu.CUstream(stream)), "asking for a stream's capture")[1])
