"""A steady launch: what the driver is given, when a block of parameters is used again, and when it must not be."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest
from pretend import Driver, install

from fcgen.errors import FcError
from fcgen.runtime import steady, tensormap
from fcgen.runtime.module import LaunchConfig
from fcgen.runtime.steady import Argument, Counter, Frame, Map, Size, SteadyLaunch, Varying


class Kernel:
    """Takes launches: what the driver would read at each pointer, and where the block lay."""

    def __init__(self, sizes):
        self.sizes, self.calls, self.at, self.before = sizes, [], [], lambda: None

    def starter(self):
        return self.start

    def start(self, config, params):
        self.before()
        c = LaunchConfig.from_address(config)
        assert (tuple(c.grid), tuple(c.block), c.smem) == ((9, 1, 1), (128, 1, 1), 77)
        pointers = (ctypes.c_void_p * len(self.sizes)).from_address(params)
        assert all(p % min(n, 64) == 0 for p, n in zip(pointers, self.sizes)), "aligned"
        self.calls.append((c.stream or 0, [ctypes.string_at(p, n) for p, n in zip(pointers, self.sizes)]))
        self.at.append(params)


@pytest.fixture
def made(monkeypatch):
    """Pointers whose tensor map was asked for."""
    asked = []
    fake = install(monkeypatch, Driver())
    encode = fake.cuTensorMapEncodeTiled

    def write(into, dtype, rank, pointer, *rest):
        encode(into, dtype, rank, pointer, *rest)
        asked.append(pointer.value)
        ctypes.memmove(into, struct.pack("<Q", pointer.value).ljust(128, b"."), 128)
        return 0

    monkeypatch.setattr(fake, "cuTensorMapEncodeTiled", write, raising=False)
    return asked


def a_launch(counter=None, sizes=(64, 64, 64, 1, 7, 1), written=True):
    """(launch of (X with a map, Y, f32), what it was given): X is [64, 64], Y has 7 elements."""
    parameters = [Map(0, tensormap.Box("f16", (64, 64), 128, "X")), Varying(1), Size(4), Varying(2)]
    if counter is not None:
        parameters.append(Counter())
    kernel = Kernel([128, 8, 4, 4] + [8] * (counter is not None))
    arguments = [Argument("X", "f16", 0, 2, False), Argument("Y", "f16", 4, 1, written)]
    frame = Frame(arguments, ["ptr", "ptr", "f32"], parameters, kernel, 128, 77, False, counter)
    return SteadyLaunch(frame, 9, sizes), kernel


def read(call):
    stream, (tile, ptr, seven, x, *more) = call
    bits = struct.unpack("<I", x)[0]
    return (stream, struct.unpack("<Q", tile[:8])[0], struct.unpack("<Q", ptr)[0], struct.unpack("<i", seven)[0], bits,
            *(struct.unpack("<Q", m)[0] for m in more))


ONE = 0x3F800000  # 1.0f


@pytest.mark.parametrize("values", [
    [(16, 32, 1.0)] * 3, [(16, 32, 1.0), (48, 32, 1.0), (16, 32, 1.0)], [(16, 32, 1.0), (16, 64, 1.0), (16, 64, 0.5), (16, 32, 1.0)],
    [(16, 32, 0.0), (16, 32, -0.0), (16, 32, 0.0)], [(n * 16, 32, 1.0) for n in range(700)] * 2,
], ids=["same", "a map moves and returns", "each value", "signs of zero", "more than are kept"])
def test_the_driver_reads_the_values_of_its_launch(made, values):
    steady_launch, seen = a_launch()
    for n, v in enumerate(values):
        steady_launch.launch(n, v)
    assert [read(c) for c in seen.calls] == [(n, q, p, 7, struct.unpack("<I", struct.pack("<f", x))[0]) for n, (q, p, x) in enumerate(values)]
    assert len(steady_launch._ready) <= steady._REMEMBERED


def test_a_repeated_launch_writes_nothing(made, monkeypatch):
    steady_launch, seen = a_launch()
    layers = [(16 * n, 32, 1.0) for n in range(20)]
    for v in layers:
        steady_launch.launch(0, v)
    asked = len(made)
    monkeypatch.setattr(steady_launch, "_pack", None)
    for v in layers * 3:
        steady_launch.launch(0, v)
    assert len(made) == asked == 20 and len(set(seen.at)) == 20


def test_a_block_belongs_to_one_launch_at_a_time(made):
    """A launch inside of a launch (a signal handler, another thread) with the same values has another block."""
    steady_launch, _ = a_launch()
    inner = []

    def enqueue(at, stream):
        inner.append(at)
        if len(inner) == 1:
            thread = threading.Thread(target=steady_launch.launch, args=(1, (16, 32, 1.0)))
            thread.start()
            thread.join()

    steady_launch._enqueue = enqueue
    steady_launch.launch = steady_launch._bound()
    steady_launch.launch(0, (16, 32, 1.0))
    assert len(inner) == 2 and inner[0] != inner[1]


def test_the_counter_is_the_streams(made):
    steady_launch, seen = a_launch(counter=lambda stream: 1000 + stream)
    for stream in (1, 2, 1):
        steady_launch.launch(stream, (16, 32, 1.0))
    assert [read(c) for c in seen.calls] == [(s, 16, 32, 7, ONE, 1000 + s) for s in (1, 2, 1)]


def test_a_tensor_that_cannot_be_described_launches_nothing_and_spoils_nothing(made, monkeypatch):
    steady_launch, seen = a_launch()
    steady_launch.launch(0, (16, 32, 1.0))
    monkeypatch.setattr(tensormap, "encode", lambda *facts: (_ for _ in ()).throw(ValueError("no map")))
    with pytest.raises(ValueError, match="no map"):
        steady_launch.launch(0, (48, 32, 0.5))
    steady_launch.launch(0, (16, 32, 1.0))
    assert [read(c)[4] for c in seen.calls] == [ONE, ONE]
