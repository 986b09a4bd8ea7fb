"""A launch of which everything but the pointers and scalars is decided: what a call costs after the first one.

In: a loaded kernel and, per kernel parameter, where its value comes from. Out: `launch(stream, values)`. Guaranteed: a steady launch calls
the driver with a block of parameters that already holds these values, if one of the last launches had the same (the layers of a model, over
and over); else one is written. The driver copies a block before it returns. A block belongs to one launch at a time, so any number of
threads (and whatever interrupts them) may launch. Nothing is launched where a tensor cannot be described.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

from fcgen.runtime import tensormap
from fcgen.runtime.module import KINDS

#: launches whose parameters are kept
_REMEMBERED = 256


class Constant:
    """A parameter with the same value in every launch. kind: as in `module.KINDS`."""

    def __init__(self, kind: str, value: Any):
        self.kind, self.value = kind, value


class Varying:
    """A parameter whose value is number `index` of those that `launch` is given."""

    def __init__(self, index: int):
        self.index = index


class Map:
    """A tensor map. index: which value of `launch` is the tensor's pointer; the rest as in `tensormap.encode`."""

    def __init__(self, index: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int,
                 name: str):
        self.index = index
        self._facts = (dtype, shape, strides, box, swizzle, name)
        self._made: dict[int, bytes] = {}

    def at(self, ptr: int) -> bytes:
        """The map of the tensor where it lies now."""
        made = self._made.get(ptr)
        if made is None:
            made = tensormap.encode(ptr, *self._facts)
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            self._made[ptr] = made
        return made


class Counter:
    """A pointer to a tile counter, which depends on the stream."""


Parameter = Constant | Varying | Map | Counter


class Block:
    """Parameter values where the driver reads them, and the array of pointers to them. Maps come first: they are aligned to 64 bytes.
    exact: values equal to these are the same bits (0.0 and -0.0 are not)."""

    __slots__ = ("at", "bytes", "exact", "keep")

    def __init__(self, size: int, offsets: Sequence[int]):
        raw = ctypes.create_string_buffer(size + tensormap.ALIGN)
        start = ctypes.addressof(raw)
        skip = -start % tensormap.ALIGN
        pointers = (ctypes.c_void_p * max(1, len(offsets)))(*(start + skip + o for o in offsets))
        self.keep = (raw, pointers)
        self.bytes = memoryview(raw).cast("B")[skip:skip + size]
        self.at = ctypes.addressof(pointers)
        self.exact = False


class SteadyLaunch:
    """kinds: of the values that vary ("ptr", "f32", ...), in the order in which `launch` takes them. parameters: of the kernel, in order.
    enqueue: launches, given the address of the parameters and a stream (`LoadedKernel.bind`). counter: stream -> address."""

    def __init__(self, kinds: Sequence[str], parameters: Sequence[Parameter], enqueue: Callable[[int, int], None],
                 counter: Callable[[int], int] | None = None):
        self._enqueue = enqueue
        found = [p for p in parameters if isinstance(p, Map)]
        self._windows = [(m.index, m.at, slice(n * tensormap.SIZE, (n + 1) * tensormap.SIZE)) for n, m in enumerate(found)]
        self._start = len(found) * tensormap.SIZE
        self._counter = counter if any(isinstance(p, Counter) for p in parameters) else None
        layout = _Layout(self._start)
        places = [layout.add(k) for k in kinds]
        if self._counter:
            place = layout.add("ptr")
        self._pack = struct.Struct(layout.code).pack_into
        self._offsets: list[int] = []
        self._constants: list[tuple[int, bytes]] = []
        maps = 0
        for p in parameters:
            if isinstance(p, Map):
                self._offsets.append(maps * tensormap.SIZE)
                maps += 1
            elif isinstance(p, Varying):
                self._offsets.append(places[p.index])
            elif isinstance(p, Counter):
                self._offsets.append(place)
            else:
                self._offsets.append(layout.add(p.kind))
                self._constants.append((self._offsets[-1], struct.pack("<" + KINDS[p.kind][0], p.value)))
        self._size = layout.at
        self._ready: dict[tuple[Any, ...], Block] = {}
        self.launch = self._bound()

    def _bound(self) -> Callable[[int, tuple[Any, ...]], None]:
        """`launch(stream, values)`: on a stream given as its address; values: pointers and scalars, as `kinds` says. A function of its own,
        since looking up what it needs on `self` would cost a tenth of a call."""
        ready, make, enqueue, counter = self._ready, self._block, self._enqueue, self._counter
        take = ready.pop

        def launch(stream: int, values: tuple[Any, ...]) -> None:
            if counter is not None:
                values = (*values, counter(stream))
            block = take(values, None) or make(values)  # taking it out is atomic, so this block is ours alone
            enqueue(block.at, stream)
            if block.exact:
                ready[values] = block

        return launch

    def _block(self, values: tuple[Any, ...]) -> Block:
        """A block with these values: the one used last where there are many, else a new one."""
        try:
            block = self._ready.popitem()[1] if len(self._ready) >= _REMEMBERED else self._new()
        except KeyError:  # other threads took them all
            block = self._new()
        self._pack(block.bytes, self._start, *values)
        for index, at, window in self._windows:
            block.bytes[window] = at(values[index])
        block.exact = not any(v == 0.0 and isinstance(v, float) for v in values)
        return block

    def _new(self) -> Block:
        block = Block(self._size, self._offsets)
        for offset, value in self._constants:
            block.bytes[offset:offset + len(value)] = value
        return block


class _Layout:
    """Gives values their places, each aligned to its size; `code` packs those placed so far from `start` on."""

    def __init__(self, start: int):
        self.at, self.code = start, "<"

    def add(self, kind: str) -> int:
        code, size, align = KINDS[kind]
        pad = -self.at % align
        self.code += f"{pad}x{code}" if pad else code
        self.at += pad + size
        return self.at - size
