"""Launches written out: what they let pass is what a launcher launches; for everything else they give None and nothing happens."""

from __future__ import annotations

import dataclasses
import itertools
import random
import sys
import threading

import pytest
from pretend import Driver, Dtype, Tensor, install, number, torch

from fcgen.build.compiler import Built, Facts
from fcgen.errors import FcError
from fcgen.ir.schedule import Schedule
from fcgen.launch import Launcher
from fcgen.straight import Script

F16, F32 = Dtype("float16"), Dtype("float32")
FLAT = (("map", "X", -1, (1, 64, 64, 128)), ("ptr", "Y", -1, ()), ("stride", "Y", 0, ()), ("stride", "Y", 1, ()), ("ptr", "Z", -1, ()), ("counter", "counter", -1, ()),
        ("scalar", "scale", -1, ()), ("scalar", "n", -1, ()), ("size", "B", -1, ()), ("size", "M", -1, ()), ("size", "N", -1, ()))
SIZES = (128, 8, 8, 8, 8, 8, 4, 4, 4, 4, 4)
FACTS = Facts("k", "sm_90a", 128, 1024, (
    ("X", "tensor", "f16", ("B", "M", 64), ()), ("Y", "tensor", "f16", ("B", "M", 64), ("out",)), ("Z", "tensor", "f32", ("N",), ()),
    ("scale", "scalar", "f32", (), ("positive",)), ("n", "scalar", "i32", (), ())), FLAT, (("b", "B", 1, 1), ("m", "M", 64, 1)), "dynamic", True,
    ranges=(("n", -5, 10), ("M", 0, 4096)), aligned=(("X", 16, 16, 16), ("Y", 16, 16, 16), ("Z", 4)), covers=(("Z", 0, ("at", 0)), ("Z", 0, 1)))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch())
    return install(monkeypatch, Driver(SIZES))


def both(given=()):
    """A launcher, and the same written out: (x, y, z, scale, n) -> "launched", or None."""
    launcher = Launcher(Built(FACTS, Schedule(), "", "", "", b"", ""))
    s = Script()
    views = {name: s.tensor(name.lower(), rank) for name, rank in (("X", 3), ("Y", 3), ("Z", 1))}
    s.launch(launcher.loaded(0), views, {"scale": "scale", "n": "n"}, "7", given)
    return launcher, s.function(["x", "y", "z", "scale", "n"], "'launched'")


def tensors(rows=100, batch=2, x=None, y=None, z=(9,), ptr=None):
    return [Tensor((batch, rows, 64), F16, x), Tensor((batch, rows, 64), F16, y), Tensor(z, F32, ptr=ptr)]


def test_the_driver_gets_what_a_launcher_gives_it(fake):
    launcher, straight = both()
    for rows, strides in ((100, None), (64, (100 * 128, 128, 1)), (4000, (64, 2 * 64, 1))):
        given = tensors(rows, x=strides)
        assert straight(*given, 0.25, -5) == "launched"
        launcher(dict(zip(("X", "Y", "Z", "scale", "n"), (*given, 0.25, -5))), 7)
        assert fake.launches[-1] == fake.launches[-2] and fake.launches[-1][3] == 7 and fake.attributes[-1] == fake.attributes[-2]
        assert [fake.encoded[-1][2:]] == [fake.encoded[-2][2:]]
    straight(*given, 0.25, 2)
    straight(*given, 0.25, 3)
    assert number(fake.launches[-1][-1][7], "i") == 3 and len(fake.encoded) == 7, "a map that a block holds is not made again"
    assert straight(*tensors(1), 0.25, 3) == "launched"


ODD = {"a pointer of 8 bytes": {"ptr": 0x1002}, "no memory": {"ptr": 0}, "columns": {"x": (6400, 1, 64)}, "a stride of 8 bytes": {"x": (100 * 68, 68, 1)},
       "more rows than can be": {"rows": 4097}, "no rows": {"rows": 0}, "fewer than the grid": {"z": (3,), "batch": 4}, "fewer than a number": {"z": (1,), "batch": 1}}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_what_has_to_be_looked_at_is_not_launched(fake, change):
    _, straight = both()
    assert straight(*tensors(**change), 0.5, 1) is None and not fake.launches and not fake.encoded


@pytest.mark.parametrize(("scale", "n"), [(0.0, 1), (-1.0, 1), (float("inf"), 1), (float("nan"), 1), (1e39, 1), (0.5, 11), (0.5, -6), (0.5, 2**40), (0.5, 1.0),
                                          (0.5, True)])
def test_numbers_that_the_kernel_would_not_see_are_not_launched(fake, scale, n):
    _, straight = both()
    assert straight(*tensors(), scale, n) is None and not fake.launches


@pytest.mark.parametrize(("change", "wrong"), [
    (lambda x, y, z: (Tensor((3, 100, 64), F16), y, z), True), (lambda x, y, z: (x, Tensor((2, 99, 64), F16), z), True),
    (lambda x, y, z: (Tensor((2, 100, 72), F16), y, z), True), (lambda x, y, z: (x, y, z), False)])
def test_shapes_that_disagree_are_not_launched(fake, change, wrong):
    _, straight = both()
    assert (straight(*change(*tensors()), 0.5, 1) is None) == wrong == (not fake.launches)


def test_outputs_that_share_memory_are_not_launched(fake):
    launcher, straight = both(["Y"])
    x, y, z = tensors()
    at = x.data_ptr()
    others = [Tensor((2, 100, 64), F16, ptr=at + n) for n in (0, 16, -16, 2 * 2 * 6400 - 16)] + [Tensor((2, 100, 64), F16, (0, 64, 1)),
                                                                                                 Tensor((2, 100, 64), F16, (64, 0, 1)),
                                                                                                 Tensor((2, 100, 64), F16, ptr=z.data_ptr() - 2 * 2 * 6400 + 16)]
    for other in others:
        assert straight(x, other, z, 0.5, 1) is None and not fake.launches
        with pytest.raises(FcError, match=r"shares? memory"):
            launcher({"X": x, "Y": other, "Z": z, "scale": 0.5, "n": 1})
    for other in (y, Tensor((2, 100, 64), F16, (64, 128, 1)), Tensor((2, 100, 64), F16, ptr=at + 2 * 2 * 6400)):
        assert straight(x, other, z, 0.5, 1) == "launched"


def test_a_thousand_drawn_calls(fake):
    """Each is launched as the launcher launches it, or refused by both, or left to the launcher."""
    launcher, straight = both(["Y"])
    draw, passed = random.Random(3), 0
    for _ in range(1000):
        pick = lambda *of: draw.choice(of)
        rows, batch, pitch = pick(2, 7, 64, 65, 4000), pick(2, 3), pick(64, 64, 64, 64, 72, 66, 0)
        x = Tensor((batch, rows, 64), F16, (rows * pitch, pitch, pick(1, 1, 1, 1, 2)), ptr=pick(1 << 20, 1 << 20, (1 << 20) + 8))
        y = Tensor((batch, pick(rows, rows, rows, rows + 1), 64), F16, None, ptr=pick(1 << 30, 1 << 30, (1 << 20) + 64))
        given = (x, y, Tensor((pick(1, 9),), F32), pick(0.5, 2.0, -0.0), pick(1, 10, 11))
        before = len(fake.launches)
        result = straight(*given)
        named = dict(zip(("X", "Y", "Z", "scale", "n"), given))
        if result is None:
            assert len(fake.launches) == before
            continue
        passed += 1
        launcher(named, 7)
        assert fake.launches[-1] == fake.launches[-2] and len(fake.launches) == before + 2
    assert passed > 50


def test_threads_do_not_share_blocks(fake, monkeypatch):
    """While one launch is under way another one, of the same text, is made."""
    launcher, straight = both()
    inner, launch = threading.Event(), fake.cuLaunchKernelEx
    mine, other = tensors(64), tensors(128)
    order = itertools.count()

    def seen(*arguments):
        if next(order) == 0:
            thread = threading.Thread(target=straight, args=(*other, 2.0, 2))
            thread.start()
            thread.join(10)
            assert len(fake.launches) == 1
        inner.set()
        return launch(*arguments)

    monkeypatch.setattr(launcher.loaded(0).frame.start.__closure__[[c for c in launcher.loaded(0).frame.start.__code__.co_freevars].index("start")],
                        "cell_contents", seen)
    assert straight(*mine, 1.0, 1) == "launched" and inner.is_set()
    second, first = fake.launches
    for got, (x, y, _), n in ((first, mine, 1), (second, other, 2)):
        assert number(got[-1][1], "Q") == y.data_ptr() and number(got[-1][7], "i") == n and number(got[-1][9], "i") == x.shape[1]


def test_a_failed_launch_gives_its_block_back(fake, monkeypatch):
    launcher, straight = both()
    frame = launcher.loaded(0).frame
    straight(*tensors(), 0.5, 1)
    free = len(frame.free)
    monkeypatch.setattr(fake, "cuTensorMapEncodeTiled", lambda *a: 1)
    for name in ("cuGetErrorName", "cuGetErrorString"):
        monkeypatch.setattr(fake, name, lambda status: (0, b"wrong"))
    _, bad = both()
    with pytest.raises(FcError, match="describing argument"):
        bad(*tensors(), 0.5, 1)
    assert len(fake.launches) == 1 and len(bad.__globals__[next(n for n in bad.__globals__ if n.startswith("_free"))]) == free


def test_places_that_hang_on_sizes_and_scalars_are_asked_for(fake, monkeypatch):
    place = ("floordiv", ("at", 0), "n")
    facts = dataclasses.replace(FACTS, covers=(("Z", 0, place),))
    monkeypatch.setitem(globals(), "FACTS", facts)
    launcher, straight = both()
    names = ("X", "Y", "Z", "scale", "n")
    for batch, z, n in ((6, 3, 2), (7, 3, 2), (7, 3, 3), (7, 3, 2)):
        given = (*tensors(batch=batch, z=(z,)), 0.5, n)
        fits = (batch - 1) // n < z
        assert straight(*given) == ("launched" if fits else None)
        if fits:
            launcher(dict(zip(names, given)), 7)
            continue
        with pytest.raises(FcError, match="axis 0 of argument `Z` is too short") as e:
            launcher(dict(zip(names, given)), 7)
        assert e.value.hint == "a program reaches Z there at b // n"
