"""A launch of which everything but the pointers and scalars is decided: what a call costs after the first one.

A `Frame` is what all launches of a loaded kernel have in common: blocks of kernel parameters, and where in them each parameter lies. A
`SteadyLaunch` is one for given sizes and strides. Guaranteed: a steady launch calls the driver with a block that already holds its values,
if one of the last launches had the same (the layers of a model, over and over); else one is written, and that makes a launch with sizes
never seen before cheap too. The driver copies a block before it returns. A block belongs to one launch at a time, so any number of threads
(and whatever interrupts them) may launch. Nothing is launched where a tensor cannot be described, or where an output shares memory with
another argument: that follows from what a block holds, so it is tested when one is written.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fcgen.runtime import overlap, tensormap
from fcgen.runtime.module import OVERLAP, LaunchConfig, LoadedKernel
from fcgen.runtime.tensors import ITEMSIZE

#: launches whose parameters are kept, and blocks that are allocated together
_REMEMBERED, _TOGETHER = 1024, 32
#: a scalar is given as its bits: -0.0 and 0.0 are equal, and not the same launch
_CODES = {"ptr": "Q", "f32": "I4x", "i32": "i4x", "u32": "I4x", "i64": "q"}
_token = itertools.count()


class Varying(NamedTuple):
    """A parameter whose value is number `at` of those that `launch` is given."""

    at: int


class Size(NamedTuple):
    """A size or stride: number `at` of a launch's. A kernel that takes 32 bits reads the lower half."""

    at: int


class Map(NamedTuple):
    """A tensor map. at: which value of `launch` is the tensor's pointer."""

    at: int
    box: tensormap.Box


class Counter(NamedTuple):
    """A pointer to a tile counter, which depends on the stream."""


Parameter = Varying | Size | Map | Counter


class Argument(NamedTuple):
    """A tensor among the arguments. at: where its sizes begin among a launch's; its strides follow them."""

    name: str
    dtype: str
    at: int
    rank: int
    written: bool

    def of(self, sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(shape, strides, bytes of an element)"""
        middle = self.at + self.rank
        return tuple(sizes[self.at:middle]), tuple(sizes[middle:middle + self.rank]), ITEMSIZE[self.dtype]


class Block:
    """What the driver reads during a launch. memory, at: where values are packed; config, params: the addresses of the launch's
    configuration and of the pointers to its parameters; windows: its maps, and held: what those describe: (pointer, layout)."""

    __slots__ = ("at", "config", "held", "memory", "params", "windows")

    def __init__(self, memory: memoryview, at: int, config: int, params: int, windows: list[tensormap.Window]):
        self.memory, self.at, self.config, self.params, self.windows = memory, at, config, params, windows
        self.held: list[Any] = [None] * len(windows)


class Frame:
    """arguments: the tensors, first among the values that `launch` takes. kinds: of all those ("ptr", "f32", ...), in order. parameters: of
    the kernel, in order. kernel, threads, smem, pdl: what is launched, and how. counter: stream -> address, if a parameter is one. more:
    numbers that a launch has among its sizes besides those of tensors."""

    def __init__(self, arguments: Sequence[Argument], kinds: Sequence[str], parameters: Sequence[Parameter], kernel: LoadedKernel,
                 threads: int, smem: int, pdl: bool, counter: Callable[[int], int] | None = None, more: int = 0):
        self.arguments, self.counter, self.start = tuple(arguments), counter, kernel.starter()
        self.maps = [p for p in parameters if isinstance(p, Map)]
        #: which values, and which sizes and strides, the kernel reads
        self.values, self.sizes = ({p.at for p in parameters if isinstance(p, kind)} for kind in (Varying, Size))
        self.shape, self.attributes = (1, 1, threads, 1, 1, smem), OVERLAP if pdl else (0, 0)
        sizes = sum(2 * a.rank for a in arguments) + more
        head = [_CODES[k] for k in kinds] + ["Q"] * (counter is not None)
        numbers = [2 * m.box.axes - 1 for m in self.maps]
        values = struct.Struct("<" + LaunchConfig.code + "".join(head) + "q" * sizes + "Q" * sum(numbers))
        self._pack = values.pack_into
        # a block: maps, which are aligned to 64 bytes, the configuration, then what is packed, eight bytes each
        self._config = len(self.maps) * tensormap.SIZE
        first = self._config + ctypes.sizeof(LaunchConfig)
        place = {Varying: lambda p: p.at, Size: lambda p: len(head) + p.at, Counter: lambda p: len(head) - 1}
        window = iter(range(len(self.maps)))
        self._offsets = np.array([next(window) * tensormap.SIZE if isinstance(p, Map) else first + 8 * place[type(p)](p)
                                  for p in parameters] or [0], dtype=np.uint64)
        self._numbers = [first + 8 * (len(head) + sizes + n) for n in itertools.accumulate([0, *numbers])]
        self._size = -(-(self._config + values.size) // tensormap.ALIGN) * tensormap.ALIGN
        self.ready: dict[tuple[Any, ...], Block] = {}
        self.free: list[Block] = []
        self._keep: list[Any] = []

    def described(self, m: Map, places: Sequence[str]) -> list[str]:
        """`Box.layout` written out, of sizes and strides that TMA takes as they are. places: what those of all arguments are called."""
        a = self.arguments[m.at]
        shape, strides = (list(places[at:at + a.rank]) for at in (a.at, a.at + a.rank))
        if a.rank == 1:
            return [shape[0], "1", f"-(-{m.box.itemsize} * {shape[0]} // 16) * 16"]
        steps = [f"{m.box.itemsize} * {s}" for s in strides]
        if m.box.cut >= 0:
            shape, steps = m.box.with_limit(shape, steps)
        return [str(x) for x in (*shape[::-1], *steps[-2::-1])]

    def check_apart(self, sizes: Sequence[int], pointers: Sequence[int]) -> None:
        """Refuse outputs that share memory with themselves or with other arguments."""
        areas = [overlap.Area(a.name, *a.of(sizes), a.written) for a in self.arguments]
        for a in areas:
            if a.written:
                overlap.check_itself(a)
        overlap.check(areas, pointers)

    def write(self, block: Block, stream: int, blocks: int, values: Sequence[Any], sizes: Sequence[int], layouts: Sequence[Any]) -> None:
        numbers = itertools.chain.from_iterable(layouts)
        self._pack(block.memory, block.at, blocks, *self.shape, stream, *self.attributes, *values, *sizes, *numbers)
        held, windows = block.held, block.windows
        for n, m in enumerate(self.maps):
            now = values[m.at], layouts[n]
            if held[n] != now:
                held[n] = None
                m.box.encode(windows[n], *now)
                held[n] = now

    def block(self) -> Block:
        """A block to write: of the launch that was remembered last where there are many, else one that is free."""
        while True:
            try:
                return self.ready.popitem()[1] if len(self.ready) >= _REMEMBERED else self.free.pop()
            except (KeyError, IndexError):  # other threads took them all, or none is left
                self._allocate()

    def give_back(self, block: Block) -> None:
        self.free.append(block)

    def _allocate(self) -> None:
        raw = np.zeros(self._size * _TOGETHER + tensormap.ALIGN, np.uint8)
        first = -raw.ctypes.data % tensormap.ALIGN
        starts = raw.ctypes.data + first + self._size * np.arange(_TOGETHER, dtype=np.uint64)
        pointers = starts[:, None] + self._offsets
        self._keep.append((raw, pointers))
        memory = memoryview(raw)  # type: ignore[arg-type]
        for n, start in enumerate(starts.tolist()):
            windows = [m.box.window(start + tensormap.SIZE * i, start + self._numbers[i]) for i, m in enumerate(self.maps)]
            self.free.append(Block(memory, first + self._size * n + self._config, start + self._config,
                                    pointers.ctypes.data + pointers.strides[0] * n, windows))


def written_out(names: Sequence[str], expression: str) -> Callable[..., Any]:
    """A function of numbers, as text of ours: a tenth of a loop's time."""
    return eval(f"lambda {', '.join(names)}: {expression}", {"min": min})  # type: ignore[no-any-return]


class SteadyLaunch:
    """blocks: of the grid. sizes: of all tensors' axes and strides, as the frame's arguments say.

    launch(stream, values, fresh=False): on a stream given as its address; values: pointers, and scalars with floats as their bits. fresh:
    the outputs are newly made.
    """

    def __init__(self, frame: Frame, blocks: int, sizes: Sequence[int]):
        self.frame, self.blocks, self.sizes = frame, blocks, sizes
        self._layouts = [m.box.layout(*frame.arguments[m.at].of(sizes)[:2]) for m in frame.maps]
        self.launch = self._bound()

    def _bound(self) -> Callable[..., None]:
        """A function of its own, since looking up what it needs on `self` would cost a tenth of a call."""
        frame, make, token = self.frame, self._block, next(_token)
        ready, start, counter, take = frame.ready, frame.start, frame.counter, frame.ready.pop

        def launch(stream: int, values: tuple[Any, ...], fresh: bool = False) -> None:
            key = (token, stream, *values) if counter is None else (token, stream, *values, counter(stream))
            block = take(key, None) or make(key, fresh)  # taking it out is atomic, so this block is ours alone
            start(block.config, block.params)
            ready[key] = block

        return launch

    def _block(self, key: tuple[Any, ...], fresh: bool) -> Block:
        """A block with these values."""
        frame, (_, stream, *values) = self.frame, key
        if not fresh:
            frame.check_apart(self.sizes, values)
        block = frame.block()
        try:
            frame.write(block, stream, self.blocks, values, self.sizes, self._layouts)
        except BaseException:
            frame.give_back(block)
            raise
        return block


class _Nothing(SteadyLaunch):
    """The launch of no blocks."""

    def __init__(self) -> None:
        self.launch = lambda stream, values, fresh=False: None


NOTHING = _Nothing()
