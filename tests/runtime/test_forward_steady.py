"""`fcgen.attention` after the first call: same launches, nothing described again, every check still made."""

from __future__ import annotations

import functools
import sys
import types

import numpy as np
import pytest
from pretend import Driver, Tensor, install, number, torch

import fcgen
from fcgen.attend import calls, forward
from fcgen.build.compiler import Built, Facts
from fcgen.errors import FcError
from fcgen.ir.schedule import Schedule
from fcgen.launch import Launcher
from fcgen.runtime import tensors
from tests.work import calls as work

DIMS = {"Q": ("B", "H", "M", "D"), "K": ("B", "G", "N", "D"), "V": ("B", "G", "N", "E"), "O": ("B", "H", "M", "E"), "LSE": ("B", "H", "M")}


class Program:
    """A program with three maps, and strides and sizes, as the Hopper kernels have."""

    def __init__(self, dtype, lse, positive):
        names = ["Q", "K", "V", "O"] + ["LSE"] * lse
        params = [(n, "tensor", "f32" if n == "LSE" else dtype, DIMS[n], ("out",) if n in ("O", "LSE") else ()) for n in names]
        flat = [(k, n, a, ()) for n in names for k, a in [("ptr", -1), *(("stride", a) for a in range(len(DIMS[n]) - 1))]]
        flat += [("map", n, -1, (1, 1, 64, 64, 128)) for n in "QKV"] + [("scalar", "scale", -1, ())]
        flat += [("size", d, -1, ()) for d in "BHMNG"]
        params.append(("scale", "scalar", "f32", (), ("positive",) if positive else ()))
        facts = Facts("attention", "sm_90", 384, 1 << 17, tuple(params), tuple(flat),
                      (("b", "B", 1, 1), ("h", "H", 1, 1), ("m", "M", 128, 1)),
                      aligned=tuple((n, *[4 if n == "LSE" else 16] * len(DIMS[n])) for n in names))
        self.launcher = Launcher(Built(facts, Schedule(), "", "", "", repr((flat, positive)).encode(), ""))
        self.sizes = [128 if k == "map" else 4 if k in ("scalar", "size") else 8 for k, *_ in flat]
        self.flat = flat


@pytest.fixture
def world(monkeypatch):
    """(torch, driver); every program that `attention` asks for is in driver.programs."""
    t, fake = torch(), Driver()
    fake.programs = []
    monkeypatch.setitem(sys.modules, "torch", t)
    monkeypatch.setattr(tensors, "_torch_dtypes", {})
    install(monkeypatch, fake)
    made = {}

    def compiled(dtype, d, e, mask, lse, arch, schedule=None, positive=True, lazy=0.0, sums=""):
        key = (dtype, d, e, mask, lse, arch, schedule, positive)
        if key not in made:
            made[key] = Program(dtype, lse, positive)
            fake.programs.append(key)
            fake.kernels[made[key].launcher.built.cubin] = made[key].sizes
        fake.flat = made[key].flat
        return made[key]

    monkeypatch.setattr(forward, "compiled", compiled)
    monkeypatch.setattr(calls, "kinds", {})
    forward._arch.cache_clear()
    yield t, fake
    forward._arch.cache_clear()


def read(fake, n=-1):
    """The pointers, the scale and the stream of a launch."""
    *_, stream, raw = fake.launches[n]
    out = {name: number(raw[i], "Q") for i, (kind, name, *_) in enumerate(fake.flat) if kind == "ptr"}
    return out | {"scale": next(number(raw[i], "f") for i, f in enumerate(fake.flat) if f[0] == "scalar"), "stream": stream,
                  "maps": [raw[i] for i, f in enumerate(fake.flat) if f[0] == "map"]}


def three(t, shape=(2, 4, 256, 64), dtype="float16", **change):
    return [Tensor(shape, getattr(t, dtype), **change) for _ in range(3)]


def forbid(monkeypatch):
    """From here on only the short way works."""
    def no(*a, **k):
        raise AssertionError("the long way")

    monkeypatch.setattr(forward, "_checked", no)


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_the_second_call_reads_pointers_only(world, monkeypatch, return_lse, given):
    t, fake = world
    out = Tensor((2, 4, 256, 64), t.float16) if given else None
    call = lambda qkv: fcgen.attention(*qkv, causal=True, return_lse=return_lse, out=out)
    first = three(t)
    call(first)
    forbid(monkeypatch)
    for qkv in (three(t), first, three(t)):
        result = call(qkv)
        o, lse = result if return_lse else (result, None)
        got = read(fake)
        assert [got[n] for n in "QKVO"] == [x.data_ptr() for x in (*qkv, o)] and got["scale"] == 0.125
        assert (o is out) == given and (lse is None or (got["LSE"] == lse.data_ptr() and lse.shape == (2, 4, 256)))
    assert len(fake.launches) == 4 and fake.launches[0][0] == (16, 1, 1)
    maps = [read(fake, n)["maps"] for n in range(4)]
    assert maps[0] == maps[2] and len({m for ms in maps for m in ms}) == 9
    assert len(fake.encoded) == 12, "each map was made once on each way"


def test_the_short_way_gives_what_the_long_one_gives(world):
    t, fake = world
    qkv, out = three(t), Tensor((2, 4, 256, 64), t.float16)
    fcgen.attention(*qkv, out=out, scale=0.3)
    fcgen.attention(*qkv, out=out, scale=0.3)
    assert fake.launches[0] == fake.launches[1]


@pytest.mark.parametrize("change", [
    {"causal": True}, {"causal": "top_left"}, {"scale": 0.5}, {"scale": 0}, {"return_lse": True}, {"schedule": Schedule(warps=8)},
])
def test_other_options_are_other_calls(world, change):
    t, fake = world
    qkv = three(t)
    fcgen.attention(*qkv)
    fcgen.attention(*qkv, **change)
    fcgen.attention(*qkv, **change)
    assert len(calls.kinds) == (1 if "scale" in change else 2) and len(fake.launches) == 3
    if "scale" in change:
        assert read(fake)["scale"] == change["scale"]
    elif "causal" in change or "return_lse" in change or "schedule" in change:
        assert len(fake.programs) == 2


@pytest.mark.parametrize(("q", "causal", "return_lse", "rows"), [
    ((2, 8, 1, 64), "bottom_right", True, 4), ((2, 8, 1, 64), False, False, 4), ((2, 8, 30, 64), False, True, 120),
    ((2, 8, 30, 64), "bottom_right", True, None),
])
def test_grouped_heads_are_rows_of_one_where_the_mask_allows_it(world, monkeypatch, q, causal, return_lse, rows):
    t, fake = world
    call = lambda: fcgen.attention(Tensor(q, t.float16), *(Tensor((2, 2, 256, 64), t.float16) for _ in range(2)), causal=causal,
                                   return_lse=return_lse)
    call()
    forbid(monkeypatch)
    assert tuple((call()[0] if return_lse else call()).shape) == q
    assert fake.programs[0][3] == ("none" if rows else "causal_bottom_right")
    for n in range(2):
        raw = fake.launches[n][-1]
        sizes = {name: number(raw[i], "i") for i, (kind, name, *_) in enumerate(fake.flat) if kind == "size"}
        assert (sizes["H"], sizes["M"], sizes["G"]) == ((2, rows, 2) if rows else (8, q[2], 2))
    assert fake.launches[0][:3] == fake.launches[1][:3]


def test_other_tensors_are_other_calls(world):
    t, fake = world
    fcgen.attention(*three(t))
    for qkv in (three(t, (2, 4, 128, 64)), three(t, dtype="bfloat16"), three(t, strides=(4 * 256 * 64, 64, 4 * 64, 1)),
                [three(t)[0], *three(t, (2, 4, 512, 64))[1:]]):
        for _ in range(7):
            fcgen.attention(*qkv)
            raw = fake.launches[-1][-1]
            sizes = {name: number(raw[i], "i") for i, (kind, name, *_) in enumerate(fake.flat) if kind == "size"}
            strides = [number(raw[i], "q") for i, (kind, name, *_) in enumerate(fake.flat) if kind == "stride" and name == "Q"]
            assert read(fake)["Q"] == qkv[0].data_ptr() and (sizes["M"], sizes["N"]) == (qkv[0].shape[2], qkv[1].shape[2])
            assert strides == list(qkv[0].stride()[:-1])
            assert [str(k[0]) for k in fake.programs][-1] == {"float16": "f16", "bfloat16": "bf16"}[qkv[0].dtype.name] or len(fake.programs) == 2
    rows = Tensor((2, 4, 256, 64), t.float16, (4 * 256 * 64, 64, 4 * 64, 1))
    for _ in range(7):
        assert fcgen.attention(*three(t), out=rows) is rows and read(fake)["O"] == rows.data_ptr()


@pytest.mark.parametrize(("position", "bad", "said"), [
    (0, {"ptr": 0x1002}, "not aligned"), (1, {"ptr": 0x1008}, "not aligned"), (2, {"ptr": 0x1008}, "not aligned"),
    (3, {"ptr": 0x1008}, "not aligned"), (1, {"device": "cuda:1"}, "different devices"), (3, {"shape": (2, 4, 255, 64)}, "wrong shape"),
    (3, {"device": "cuda:1"}, "is on cuda:1"), (2, {"strides": (4 * 256 * 128, 256 * 128, 128, 2)}, "not contiguous"),
])
def test_what_the_first_call_refuses_later_ones_refuse(world, position, bad, said):
    t, fake = world
    good = [*three(t), Tensor((2, 4, 256, 64), t.float16)]
    fcgen.attention(*good[:3], out=good[3])
    fcgen.attention(*good[:3], out=good[3])
    good[position] = Tensor(**{"shape": (2, 4, 256, 64), "dtype": t.float16, **bad})
    with pytest.raises(FcError, match=said):
        fcgen.attention(*good[:3], out=good[3])
    assert len(fake.launches) == 2


@pytest.mark.parametrize("before", [0, 20])
@pytest.mark.parametrize(("scale", "said"), [
    (1e39, "not finite in float32"), (-1e39, "not finite"), (10**400, "not finite"), (float("nan"), "not finite"), (float("inf"), "not finite"),
    ("1", "not a number"), (b"1", "not a number"), (True, "not a number"), (1j, "not a number"), ([], "not a number"),
])
def test_scales_that_are_refused(world, scale, said, before):
    t, fake = world
    for _ in range(before):
        fcgen.attention(*three(t), scale=1.0)
    for _ in range(2):
        with pytest.raises(FcError, match=said):
            fcgen.attention(*three(t), scale=scale)
    assert len(fake.launches) == before


@pytest.mark.parametrize(("scale", "got", "positive"), [
    (1e-46, 0.0, False), (1e-40, 1e-40, False), (0, 0.0, False), (-0.0, 0.0, False), (-2.5, -2.5, False), (2.0**-126, 2.0**-126, True),
    (3.4e38, 3.4e38, True), (np.float32(0.5), 0.5, True), (np.float64(0.25), 0.25, True), (2, 2.0, True),
])
def test_every_scale_that_float32_holds_has_a_kernel(world, scale, got, positive):
    t, fake = world
    for _ in range(20):
        fcgen.attention(*three(t), scale=scale)
        assert read(fake)["scale"] == np.float32(got) and fake.programs[-1][-1] is positive


@pytest.mark.parametrize("before", [None, True, "top_left", False])
@pytest.mark.parametrize("causal", [1, 0, 1.0, "left", 2, object(), [True]])
def test_a_mask_that_is_none_is_refused_whatever_was_called_before(world, causal, before):
    t, fake = world
    for _ in range(20):
        fcgen.attention(*three(t), causal=before)
    with pytest.raises(FcError, match="no such mask"):
        fcgen.attention(*three(t), causal=causal)
    assert len(fake.launches) == 20


def test_numpys_true_is_true(world):
    t, fake = world
    for causal in [True, np.True_, True, np.True_] * 6:
        fcgen.attention(*three(t), causal=causal)
    assert len(fake.launches) == 24 and len(fake.programs) == 1 and len(calls.kinds) == 1


def test_the_stream_is_the_current_one(world, monkeypatch):
    t, fake = world
    fcgen.attention(*three(t))
    forbid(monkeypatch)
    t.now.stream = 1234
    fcgen.attention(*three(t))
    assert read(fake, 0)["stream"] == 0 and read(fake, 1)["stream"] == 1234


def test_a_schedule_is_not_mistaken_for_one_that_is_gone(world):
    t, fake = world
    qkv = three(t)
    for n in range(50):
        fcgen.attention(*qkv, schedule=Schedule(warps=4 if n % 2 else 8))
    assert [k[6].warps for k in fake.programs] == [8, 4] and len(fake.launches) == 50


def test_no_tensor_is_kept_alive(world):
    import gc
    import weakref

    t, _ = world
    qkv, out = three(t), Tensor((2, 4, 256, 64), t.float16)
    for _ in range(2):
        fcgen.attention(*qkv, out=out)
        fcgen.attention(*qkv, return_lse=True)
    dead = [weakref.ref(x) for x in (*qkv, out)]
    del qkv, out
    gc.collect()
    assert not any(d() for d in dead)


def test_what_is_not_torch_goes_the_long_way(world):
    with pytest.raises(FcError, match="is not a tensor"):
        fcgen.attention(None, None, None)
    assert not calls.kinds


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("lengths", [[300 + n for n in range(60)], [300, 400] * 30, [300] * 30 + [300 + n for n in range(30)], [300] * 300])
@pytest.mark.parametrize(("heads", "rows"), [(8, 1), (2, 40)])
def test_a_loop_over_lengths_launches_what_single_calls_launch(world, monkeypatch, lengths, given, heads, rows):
    """Whatever way a call takes: views of a cache, one by one longer; the same again and again; two in turn."""
    t, fake = world
    strides = (2 * 4096 * 64, 4096 * 64, 64, 1)
    short = []
    checked = forward._checked
    monkeypatch.setattr(forward, "_checked", lambda *a: short.append(0) or checked(*a))
    for n in lengths:
        q = Tensor((2, heads, rows, 64), t.float16)
        k, v = (Tensor((2, 2, n, 64), t.float16, strides) for _ in range(2))
        out = Tensor(q.shape, t.float16) if given else None
        o = fcgen.attention(q, k, v, causal="bottom_right", out=out)
        raw = fake.launches[-1][-1]
        sizes = {name: number(raw[i], "i") for i, (kind, name, *_) in enumerate(fake.flat) if kind == "size"}
        assert sizes == {"B": 2, "H": 2, "M": rows * heads // 2, "N": n, "G": 2}
        steps = {name: [number(raw[i], "q") for i, (kind, x, *_) in enumerate(fake.flat) if kind == "stride" and x == name] for name in "QKVO"}
        group = [64 * heads * rows, 64 * rows * heads // 2, 64]
        assert steps == {"Q": group, "K": list(strides[:3]), "V": list(strides[:3]), "O": group}
        got = read(fake)
        assert [got[x] for x in "QKVO"] == [x.data_ptr() for x in (q, k, v, o)]
        described = fake.encoded[-3:]
        assert {(e[2], tuple(e[3])) for e in described} >= {(k.data_ptr(), (64, n, 2, 2)), (v.data_ptr(), (64, n, 2, 2))}
    assert len(short) == 1 and len(fake.launches) == len(lengths)


def test_memory_does_not_grow_with_lengths(world):
    import gc
    import tracemalloc

    t, fake = world
    fake.cuLaunchKernelEx = lambda *a: 0

    def loop(start):
        for n in range(start, start + 400):
            for heads in (2, 4):
                fcgen.attention(Tensor((1, heads, n, 64), t.float16), *(Tensor((1, 2, n, 64), t.float16) for _ in range(2)))
            fake.encoded.clear()
            t.written.clear()
        gc.collect()

    loop(100)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    loop(1000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 200_000, f"{grown} bytes for 800 lengths"


@pytest.mark.parametrize(("given", "lengths", "most"), [(False, [256], 20), (True, [256], 22), (False, range(300, 400), 55), (True, range(300, 400), 120)])
def test_a_call_is_little_work(world, given, lengths, most):
    """In calls of functions, Python's and C's; `python -m benchmarks.host_time` gives the times. Lengths: never seen before, or always the same."""
    t, fake = world
    fake.cuLaunchKernelEx = fake.cuTensorMapEncodeTiled = lambda *a: 0
    made = [Tensor((2, 4, 256, 64), t.float16)]
    t.empty_like = lambda x, **_: made[0]
    t._C._dynamo.guards.TensorGuards = lambda *a, **k: types.SimpleNamespace(check=lambda *a: True)
    for _ in range(20):
        fcgen.attention(*three(t), causal="top_left", out=Tensor((2, 4, 256, 64), t.float16) if given else None)
    for n in lengths:
        qkv, out = three(t, (2, 4, n, 64)), Tensor((2, 4, n, 64), t.float16)
        made[0], out = out, out if given else None
        done = work(functools.partial(fcgen.attention, *qkv, causal="top_left", out=out))
    assert done <= most, f"{done} calls"


def test_views_that_no_bulk_copy_reads_take_a_kernel_that_makes_none(world):
    t, fake = world
    fcgen.attention(*three(t))
    odd = Tensor((2, 4, 256, 64), t.float16, (4 * 256 * 66, 256 * 66, 66, 1))
    for qkv in ([odd, *three(t)[1:]], [*three(t)[:2], odd]):
        with pytest.raises(FcError, match="not aligned"):  # these pretend to make bulk copies all the same
            fcgen.attention(*qkv)
    assert [key[5] for key in fake.programs] == ["sm_90a", "sm_90"]
