"""A launch of which everything but the pointers and scalars is decided: what a call costs after the first one.

In: a loaded kernel and, per kernel parameter, where its value comes from. Out: `launch(stream, values)`. Guaranteed: a steady launch writes
the pointers and scalars into a block made before, replaces the tensor maps whose tensor moved, and calls the driver, which copies the block
before it returns. A block belongs to one launch at a time, so any number of threads (and whatever interrupts them) may launch. Nothing is
launched where a tensor cannot be described.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

from fcgen.runtime import tensormap
from fcgen.runtime.module import KINDS

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
        self.made: dict[int, bytes] = {}
        self._facts = (dtype, shape, strides, box, swizzle, name)

    def at(self, ptr: int) -> bytes:
        """The map of the tensor where it lies now."""
        made = tensormap.encode(ptr, *self._facts)
        if len(self.made) >= _REMEMBERED:
            self.made.clear()
        self.made[ptr] = made
        return made


class Counter:
    """A pointer to a tile counter, which depends on the stream."""


Parameter = Constant | Varying | Map | Counter


class Block:
    """Parameter values where the driver reads them, and the array of pointers to them. Maps come first: they are aligned to 64 bytes."""

    __slots__ = ("at", "bytes", "keep", "seen")

    def __init__(self, size: int, offsets: Sequence[int], maps: int):
        raw = ctypes.create_string_buffer(size + tensormap.ALIGN)
        start = ctypes.addressof(raw)
        skip = -start % tensormap.ALIGN
        pointers = (ctypes.c_void_p * max(1, len(offsets)))(*(start + skip + o for o in offsets))
        self.keep = (raw, pointers)
        self.bytes = memoryview(raw).cast("B")[skip:skip + size]
        self.at = ctypes.addressof(pointers)
        self.seen: list[int | None] = [None] * maps  # the pointer that each map describes now


class SteadyLaunch:
    """kinds: of the values that vary ("ptr", "f32", ...), in the order in which `launch` takes them. parameters: of the kernel, in order.
    enqueue: launches, given the address of the parameters and a stream (`LoadedKernel.bind`). counter: stream -> address."""

    def __init__(self, kinds: Sequence[str], parameters: Sequence[Parameter], enqueue: Callable[[int, int], None],
                 counter: Callable[[int], int] | None = None):
        self._enqueue = enqueue
        self._maps = [p for p in parameters if isinstance(p, Map)]
        self._windows = [(n, m.index, m.made, m.at, slice(n * tensormap.SIZE, (n + 1) * tensormap.SIZE)) for n, m in enumerate(self._maps)]
        self._start = len(self._maps) * tensormap.SIZE
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
        self._free: list[Block] = []

    def launch(self, stream: int, values: tuple[Any, ...]) -> None:
        """Launch on a stream given as its address. values: pointers and scalars, as `kinds` says."""
        free = self._free
        try:
            block = free.pop()  # taking and giving back are atomic, so this block is ours alone
        except IndexError:
            block = self._block()
        if self._counter is not None:
            values = (*values, self._counter(stream))
        self._pack(block.bytes, self._start, *values)
        for n, index, made, at, window in self._windows:
            ptr = values[index]
            if block.seen[n] != ptr:
                block.seen[n] = None
                block.bytes[window] = made.get(ptr) or at(ptr)
                block.seen[n] = ptr
        self._enqueue(block.at, stream)
        free.append(block)

    def _block(self) -> Block:
        block = Block(self._size, self._offsets, len(self._maps))
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
