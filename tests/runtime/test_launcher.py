"""Launches with a driver that only listens: parameters, maps, counters, grids, contexts, threads, errors."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from cuda.bindings import driver as cuda
from pretend import Driver, Dtype, Tensor, install, number, torch

from fcgen.build.compiler import Built, Facts
from fcgen.errors import FcError
from fcgen.ir.schedule import Schedule
from fcgen.launch import Launcher, check_arch
from fcgen.runtime import steady

F16 = Dtype("float16")
FLAT = (("ptr", "X", -1, ()), ("stride", "X", 0, ()), ("ptr", "Y", -1, ()), ("map", "X", -1, (64, 64, 128)), ("map", "Y", -1, (8, 16, 32)),
        ("counter", "counter", -1, ()), ("scalar", "scale", -1, ()), ("size", "M", -1, ()))
SIZES = (8, 8, 8, 128, 128, 8, 4, 4)


def facts(flat=FLAT, persistent="dynamic", arch="sm_90a", cluster=1, pdl=False, resident=1):
    return Facts("k", arch, 384, 1024, (("X", "tensor", "f16", ("M", "D"), ()), ("Y", "tensor", "f16", ("M", "D"), ("out",)),
                                        ("scale", "scalar", "f32", (), ("positive",))), flat, (("m", "M", 64, cluster),), persistent, pdl,
                 resident=resident)


def made(**change):
    return Launcher(Built(facts(**change), Schedule(), "", "", "", b"", ""))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch())
    return install(monkeypatch, Driver(SIZES))


def test_facts_survive_the_cache():
    import json

    assert Facts.from_json(json.loads(json.dumps(facts().to_json()))) == facts()


def test_every_parameter_is_where_the_kernel_reads_it(fake):
    x, y = Tensor((100, 64), F16, (128, 1)), Tensor((100, 64), F16)
    call = made()
    call({"X": x, "Y": y, "scale": 0.5})
    (grid, block, smem, stream, raw), = fake.launches
    assert (grid, block, smem, stream) == ((2, 1, 1), (384, 1, 1), 1024, 0)
    assert [number(raw[0], "Q"), number(raw[1], "q"), number(raw[2], "Q")] == [x.data_ptr(), 128, y.data_ptr()]
    assert (number(raw[6], "f"), number(raw[7], "i")) == (0.5, 100) and number(raw[5], "Q") >= 0x70000000
    assert raw[3] != raw[4] and fake.encoded[0][2:6] == (x.data_ptr(), [64, 100], [256], [64, 64])
    assert fake.encoded[1][2:6] == (y.data_ptr(), [64, 100], [128], [16, 8]) and len(fake.encoded) == 2


def test_maps_follow_their_tensors(fake):
    call, y = made(), Tensor((100, 64), F16)
    xs = [Tensor((100, 64), F16) for _ in range(3)]
    for x in (*xs, *xs, xs[2]):
        call({"X": x, "Y": y, "scale": 1})
    maps = [raw[3] for *_, raw in fake.launches]
    assert len(set(maps)) == 3 and maps[:3] == maps[3:6] and maps[6] == maps[2]
    assert len({raw[4] for *_, raw in fake.launches}) == 1 and len(fake.encoded) == 6


def test_more_tensors_than_are_remembered(fake, monkeypatch):
    monkeypatch.setattr(steady, "_REMEMBERED", 4)
    call, y, xs = made(), Tensor((64, 64), F16), [Tensor((64, 64), F16) for _ in range(10)]
    for x in (*xs, *xs):
        call({"X": x, "Y": y, "scale": 1})
    maps = [raw[3] for *_, raw in fake.launches]
    assert len(set(maps[:10])) == 10 and maps[:10] == maps[10:] and len(fake.encoded) == 20


@pytest.mark.parametrize(("rows", "persistent", "blocks"), [(64, "none", 1), (64 * 500, "none", 500), (64 * 500, "static", 132),
                                                          (64 * 500, "dynamic", 132), (64 * 9, "dynamic", 9)])
def test_a_persistent_grid_has_one_block_per_multiprocessor(fake, rows, persistent, blocks):
    made(persistent=persistent)({"X": Tensor((rows, 64), F16), "Y": Tensor((rows, 64), F16), "scale": 1})
    assert fake.launches[0][0] == (blocks, 1, 1)


def test_a_persistent_grid_fills_multiprocessors_that_were_made_for_several_blocks(fake):
    made(persistent="dynamic", resident=2)({"X": Tensor((64 * 500, 64), F16), "Y": Tensor((64 * 500, 64), F16), "scale": 1})
    assert fake.launches[0][0] == (264, 1, 1)


def test_nothing_to_do_launches_nothing(fake):
    made()({"X": Tensor((0, 64), F16, ptr=0), "Y": Tensor((0, 64), F16, ptr=0), "scale": 1})
    assert not fake.launches and "cuMemAlloc" not in fake.calls


def test_counters_belong_to_streams_and_to_captured_launches(fake):
    call, given = made(), {"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}

    def at(stream, captured=False):
        fake.capture = {stream} if captured else set()
        call(given, stream)
        return number(fake.launches[-1][4][5], "Q")

    seen = [at(0), at(100), at(200)]
    recorded = [at(100, True), at(100, True), at(200, True)]
    assert len({*seen, *recorded}) == 6, "launches that may overlap have counters of their own"
    assert [at(0), at(100), at(200)] == seen
    assert fake.calls.count("cuMemAlloc") == 1 and all(s % 128 == 0 for s in seen)
    assert ("cuMemsetD32Async", 0x70000000, 0, 64 * 128 // 4, 77) in fake.calls
    assert fake.calls[0] == "RELAXED" and fake.calls[-1] == "GLOBAL", "capture is left as it was"
    others = {at(1000 + n) for n in range(70)}
    assert len(others) == 70 and not others & {*seen, *recorded} and fake.calls.count("cuMemAlloc") == 2


def test_a_handle_that_comes_back_is_another_stream(fake):
    call, given = made(), {"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}
    seen = []
    for n in range(5):
        fake.ids[100] = 7000 + n  # the stream before was destroyed, its work goes on
        for _ in range(2):
            call(given, 100)
        seen.append({raw[5] for *_, raw in fake.launches[-2:]})
    assert all(len(s) == 1 for s in seen) and len(set.union(*seen)) == 5


def test_kernels_of_one_stream_share_its_counter(fake):
    """They run one after another; so a program more costs no memory for each stream."""
    given = {"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}
    for call in (made(), made(arch="sm_90")):
        for stream in (0, 100):
            call(given, stream)
    assert len({raw[5] for *_, raw in fake.launches}) == 2 and fake.calls.count("cuMemAlloc") == 1


def test_threads_of_the_per_thread_stream_do_not_share_a_counter(fake):
    call, given = made(), {"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}
    call(given, 2)
    threads = [threading.Thread(target=call, args=(given, 2)) for _ in range(1)]
    for t in threads:
        t.start()
        t.join()
    assert len({raw[5] for *_, raw in fake.launches}) == 2


def test_a_thread_without_the_context_enters_it(fake):
    call, given = made(), {"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}
    fake.device.lost = True                        # torch says device 0, the driver has no context yet
    call(given)
    assert len(fake.launches) == 1 and not fake.entered
    sys.modules["torch"].now.device = 1            # another device is current
    call(given)
    assert len(fake.launches) == 2 and not fake.entered


def test_threads_never_see_each_others_arguments(fake):
    call, failures = made(), []

    def work(n):
        tensors = [(Tensor((64, 64), F16), Tensor((64, 64), F16)) for _ in range(3)]
        for i in range(200):
            x, y = tensors[i % 3]
            call({"X": x, "Y": y, "scale": n + 1}, 1000 + n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(old)
    by_x, by_stream = {}, {}
    for _, _, _, stream, raw in fake.launches:
        by_x.setdefault(raw[0], set()).add((stream, raw[2], raw[3], raw[4], raw[6]))
        by_stream.setdefault(stream, set()).add((raw[5], raw[6]))
    assert len(fake.launches) == 1200 and not failures
    assert len(by_x) == 18 and all(len(s) == 1 for s in by_x.values()) and all(len(s) == 1 for s in by_stream.values())


@pytest.mark.parametrize(("x", "said"), [
    (Tensor((64, 64), F16, ptr=0x1008), "not aligned"),
    (Tensor((64, 64), F16, (68, 1)), "not aligned"),
    (Tensor((64, 64), Dtype("float32")), "wrong dtype"),
    (Tensor((64, 64), F16, device="cuda:1"), "is on cuda:1"),
])
def test_errors_come_before_any_launch(fake, x, said):
    with pytest.raises(FcError, match=said) as caught:
        made()({"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1} | {"Y": x})
    assert caught.value.code == "call/argument" and not fake.launches


def with_scalar(kind, flags=()):
    f = Facts("k", "sm_90a", 128, 0, (("Y", "tensor", "f16", ("M", "D"), ("out",)), ("n", "scalar", kind, (), flags)),
              (("ptr", "Y", -1, ()), ("scalar", "n", -1, ())), (("m", "M", 64, 1),))
    return Launcher(Built(f, Schedule(), "", "", "", b"", ""))


@pytest.mark.parametrize(("kind", "flags", "value", "said"), [
    ("i32", (), 2**31, "out of range"), ("i32", (), -2**31 - 1, "out of range"), ("i64", (), 2**63, "out of range"), ("i32", (), 2.5, "not a number"),
    ("i32", (), 2.0, "not a number"), ("i32", (), "3", "not a number"), ("f32", (), "3", "not a number"), ("f32", (), 1e39, "does not fit"),
    ("f32", (), 10**400, "does not fit"), ("f32", (), None, "not a number"), ("f32", (), 1j, "not a number"), ("f32", ("positive",), 1e-46, "must be positive"),
    ("f32", ("positive",), 0, "must be positive"), ("f32", ("positive",), float("nan"), "must be positive"), ("i32", ("positive",), -1, "must be positive"),
])
def test_a_scalar_that_the_kernel_would_see_as_another_is_refused(fake, kind, flags, value, said):
    with pytest.raises(FcError, match=said) as caught:
        with_scalar(kind, flags)({"Y": Tensor((64, 64), F16), "n": value})
    assert caught.value.code == "call/argument" and "`n`" in str(caught.value) and not fake.launches


@pytest.mark.parametrize(("kind", "code", "value", "got"), [
    ("i32", "i", 2**31 - 1, 2**31 - 1), ("i32", "i", -2**31, -2**31), ("i64", "q", -2**63, -2**63), ("i64", "q", np.int32(7), 7),
    ("f32", "f", 0.1, np.float32(0.1)), ("f32", "f", np.float16(0.5), 0.5), ("f32", "f", 3, 3.0), ("f32", "f", float("-inf"), float("-inf")),
    ("f32", "I", -0.0, 1 << 31), ("f32", "I", float("nan"), 0x7FC00000),
])
def test_scalars_arrive_as_they_are(fake, kind, code, value, got):
    fake.sizes = (8, 8 if kind == "i64" else 4)
    call = with_scalar(kind)
    for _ in range(3):
        call({"Y": Tensor((64, 64), F16), "n": value})
        assert number(fake.launches[-1][4][1], code) == got


class Foreign:
    def __init__(self, **facts):
        self.__dict__.update(facts)


@pytest.mark.parametrize(("stream", "address"), [
    (0, 0), (1234, 1234), (np.int64(5), 5), (Foreign(cuda_stream=77), 77), (Foreign(ptr=78), 78), (Foreign(__cuda_stream__=(0, 79)), 79),
    (Foreign(__cuda_stream__=lambda: (0, 80)), 80), (cuda.CUstream(81), 81), (Foreign(handle=cuda.CUstream(82)), 82), (None, 0),
])
def test_streams_of_any_library(fake, stream, address):
    made()({"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}, stream)
    assert fake.launches[0][3] == address


@pytest.mark.parametrize("stream", ["1234", 1.0, True, -1, 2**64, Foreign(), Foreign(cuda_stream=None), Foreign(__cuda_stream__=(9, 1)), object()])
def test_what_is_no_stream_is_refused(fake, stream):
    with pytest.raises(FcError, match="argument `stream`") as caught:
        made()({"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}, stream)
    assert caught.value.code == "call/argument" and not fake.launches


def test_outputs_are_known_to_have_been_written(fake):
    x, y = Tensor((64, 64), F16), Tensor((64, 64), F16)
    made()({"X": x, "Y": y, "scale": 1})
    assert sys.modules["torch"].written == [y.data_ptr()]


def test_a_failed_call_leaves_the_launcher_in_order(fake, monkeypatch):
    call = made()
    given = {"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "scale": 1}
    call(given)
    monkeypatch.setattr(call._loaded[0].frame.maps[0].box, "write", lambda *a: 1)
    monkeypatch.setattr(fake, "cuGetErrorName", lambda e: (0, b"CUDA_ERROR_INVALID_VALUE"), raising=False)
    monkeypatch.setattr(fake, "cuGetErrorString", lambda e: (0, b"invalid argument"), raising=False)
    with pytest.raises(FcError, match="describing argument `X`"):
        call(given | {"X": Tensor((64, 64), F16)})
    call(given)
    assert len(fake.launches) == 2 and fake.launches[0][4] == fake.launches[1][4]


@pytest.mark.parametrize(("made_for", "runs"), [("sm_90a", True), ("sm_90", True), ("sm_89", False), ("sm_80", False), ("sm_100a", False)])
def test_which_cubins_run_on_hopper(fake, made_for, runs):
    if runs:
        check_arch(facts(arch=made_for), 0)
    else:
        with pytest.raises(FcError, match="compiled for"):
            check_arch(facts(arch=made_for), 0)


def test_an_arch_specific_cubin_runs_on_no_later_gpu(fake, monkeypatch):
    import dataclasses

    from pretend import INFO

    from fcgen.runtime import driver

    monkeypatch.setattr(driver, "device_info", lambda ordinal=0: dataclasses.replace(INFO, arch="sm_103a"))
    check_arch(facts(arch="sm_100"), 0)
    with pytest.raises(FcError, match="compiled for sm_100a"):
        check_arch(facts(arch="sm_100a"), 0)


@pytest.mark.parametrize("rows, persistent, blocks", [(64, "none", 4), (257, "none", 8), (10**6, "none", 15628), (257, "static", 8),
                                                      (10**6, "static", 132)])
def test_launches_are_whole_clusters(fake, rows, persistent, blocks):
    x, y = Tensor((rows, 64), F16), Tensor((rows, 64), F16)
    made(persistent=persistent, cluster=4)({"X": x, "Y": y, "scale": 1.0})
    assert fake.launches[0][0] == (blocks, 1, 1)


def test_persistent_blocks_that_fill_no_cluster_are_not_launched(fake):
    x, y = Tensor((10**6, 64), F16), Tensor((10**6, 64), F16)
    made(persistent="static", cluster=8)({"X": x, "Y": y, "scale": 1.0})
    assert fake.launches[0][0] == (128, 1, 1), "of 132 multiprocessors"


@pytest.mark.parametrize("pdl", [False, True])
def test_a_kernel_that_waits_for_those_in_front_is_launched_before_they_have_ended(fake, pdl):
    x, y = Tensor((100, 64), F16), Tensor((100, 64), F16)
    call = made(pdl=pdl)
    for stream in (3, 3, 4):
        call({"X": x, "Y": y, "scale": 0.5}, stream)
    assert [(launch[:3], launch[3]) for launch in fake.launches] == [(((2, 1, 1), (384, 1, 1), 1024), s) for s in (3, 3, 4)]
    assert fake.attributes == [(cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, 1)] * 3 * pdl


PLAIN = (("ptr", "X", -1, ()), ("stride", "X", 0, ()), ("ptr", "Y", -1, ()), ("scalar", "n", -1, ()), ("size", "M", -1, ()))


def plain(aligned=(("X", 8, 4), ("Y", 2, 2)), ranges=(), narrower=None):
    """A kernel without maps: 8 bytes of X at a time, single elements of Y."""
    f = Facts("k", "sm_90", 128, 0, (("X", "tensor", "f16", ("M", "D"), ()), ("Y", "tensor", "f16", ("M", "D"), ("out",)),
                                     ("n", "scalar", "i32", (), ())), PLAIN, (("m", "M", 64, 1),), aligned=aligned, ranges=ranges)
    return Launcher(Built(f, Schedule(), "", "", "", b"", ""), narrower)


@pytest.mark.parametrize(("x", "said"), [
    ({"ptr": 0x1008}, ""), ({"strides": (66, 1)}, ""), ({"strides": (0, 1)}, ""), ({"shape": (1, 64), "strides": (65, 1)}, ""),
    ({"ptr": 0x1004}, "argument `X` is not aligned"), ({"strides": (65, 1)}, "axis 0 of argument `X`")])
def test_a_launch_checks_what_the_kernel_needs_and_nothing_more(monkeypatch, x, said):
    monkeypatch.setitem(sys.modules, "torch", torch())
    fake = install(monkeypatch, Driver((8, 8, 8, 4, 4)))
    given = {"X": Tensor(**{"shape": (64, 64), "dtype": F16, **x}), "n": 1}
    given["Y"] = Tensor(given["X"].shape, F16, (65, 1), ptr=0x100002)
    if not said:
        plain()(given)
        stride = number(fake.launches[0][-1][1], "q")
        assert stride == (0 if given["X"].shape[0] == 1 else given["X"].stride()[0])
        return
    with pytest.raises(FcError, match=said) as e:
        plain()(given)
    assert e.value.code == "call/argument" and e.value.hint and not fake.launches
    asked, kept = [], plain((("X", 2, 2), ("Y", 2, 2)))
    wide = plain(narrower=lambda have: asked.append(have) or kept)
    for _ in range(3):
        wide(given)
    assert len(fake.launches) == 3 and len(asked) == 1 and asked[0]["Y"].words == (2, 2)
    assert asked[0]["X"].words == ((4, 16) if "ptr" in x else (16, 2))


@pytest.mark.parametrize(("n", "got"), [(7, 7), (2**31 - 1, 2**29), (-(2**31), -(2**29)), (2**31, None), (-(2**40), None)])
def test_scalars_saturate_or_are_refused(monkeypatch, n, got):
    monkeypatch.setitem(sys.modules, "torch", torch())
    fake = install(monkeypatch, Driver((8, 8, 8, 4, 4)))
    given = {"X": Tensor((64, 64), F16), "Y": Tensor((64, 64), F16), "n": n}
    calls = [plain(ranges=(("M", 0, 2**29, False), ("n", -(2**29), 2**29, True))), plain(ranges=(("n", -100, 100, False),)), plain()]
    for call, want in zip(calls, (got, n if abs(n) <= 100 else None, n if abs(n) < 2**31 or n == -(2**31) else None)):
        if want is None:
            with pytest.raises(FcError, match="argument `n` is out of range"):
                call(given)
        else:
            call(given)
            assert number(fake.launches[-1][-1][3], "i") == want


def test_sizes_past_what_is_admitted_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch())
    fake = install(monkeypatch, Driver((8, 8, 8, 4, 4)))
    for m, most in ((2**29 + 1, 2**29), (2**31 - 1, 2**29), (2**31, 2**31 - 1)):
        given = {"X": Tensor((m, 64), F16, (0, 1)), "Y": Tensor((m, 64), F16, (0, 1)), "n": 1}
        with pytest.raises(FcError, match="argument `X` is too large") as e:
            plain(ranges=(("M", 0, 2**29, False),) if most == 2**29 else ())(given)
        assert str(most) in str(e.value) and not fake.launches
