"""Tensors of any library: parsed without copies, refused by name."""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np
import pretend
import pytest

from fcgen.errors import FcError
from fcgen.runtime import tensors
from fcgen.runtime.tensors import CPU, TensorArg, check, current_stream, describe


class Shared:
    """An array that pretends to be elsewhere, or of another DLPack version."""

    def __init__(self, array, device=(2, 0), old=False):
        self.array, self.device, self.old, self.asked = array, device, old, None

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **arguments):
        if self.old and "max_version" in arguments:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.asked = arguments
        return self.array.__dlpack__(**{k: v for k, v in arguments.items() if k == "max_version"})


@pytest.mark.parametrize(("dtype", "name"), [("float16", "f16"), ("float32", "f32"), ("float64", "f64"), ("int8", "i8"),
                                             ("int32", "i32"), ("int64", "i64"), ("uint8", "u8"), ("bool", "i1")])
def test_dlpack_gives_address_shape_and_dtype(dtype, name):
    array = np.zeros((2, 3, 4), dtype)
    arg = describe(array, "q", cpu_ok=True)
    assert arg[:5] == (array.ctypes.data, (2, 3, 4), (12, 4, 1), name, CPU)


@pytest.mark.parametrize("view", [lambda a: a[1:, ::2], lambda a: a.T, lambda a: a[:, :, 1], lambda a: a[:0]],
                         ids=["sliced", "transposed", "plane", "empty"])
def test_dlpack_gives_the_strides_of_views_in_elements(view):
    array = view(np.arange(120, dtype=np.float32).reshape(4, 5, 6))
    arg = describe(array, "q", cpu_ok=True)
    assert arg.shape == array.shape and arg.ptr == array.ctypes.data
    if array.size:
        assert arg.strides == tuple(s // 4 for s in array.strides)


@pytest.mark.parametrize("old", [False, True], ids=["versioned", "older than 1.0"])
def test_both_kinds_of_capsule_are_read(old):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    arg = tensors.from_dlpack(Shared(array, (1, 0), old), "q")
    assert arg.ptr == array.ctypes.data and arg.shape == (2, 3)


def test_a_read_only_array_is_marked_where_the_producer_can_say_so():
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    try:
        arg = describe(array, "q", cpu_ok=True)
    except FcError as error:  # NumPy before 2.1 cannot share a read-only array at all
        assert "read" in str(error).lower()
    else:
        assert arg.readonly


def test_the_capsule_keeps_the_memory_alive_and_gives_it_back():
    array = np.arange(1000, dtype=np.float32)
    before = sys.getrefcount(array)
    arg = describe(array, "q", cpu_ok=True)
    assert sys.getrefcount(array) > before
    assert ctypes.c_float.from_address(arg.ptr + 4 * 7).value == 7.0
    del arg
    assert sys.getrefcount(array) == before


def test_a_gpu_producer_is_told_which_stream_will_read():
    shared = Shared(np.zeros(4, np.float32), (2, 3))
    assert describe(shared, "q").device == 3
    assert shared.asked["stream"] == 1, "DLPack's name for the legacy default stream"


def test_a_tensor_on_the_cpu_is_refused_by_name():
    with pytest.raises(FcError) as caught:
        describe(np.zeros(4), "key")
    assert caught.value.code == "call/argument"
    assert "`key` is on the CPU" in caught.value.message and "numpy.ndarray" in caught.value.got


@pytest.mark.parametrize("thing", [[1.0, 2.0], 3, None, "q"])
def test_what_is_no_tensor_is_refused_by_name(thing):
    with pytest.raises(FcError, match="`v` is not a tensor"):
        describe(thing, "v")


def test_a_device_that_cuda_cannot_read_is_refused():
    with pytest.raises(FcError, match="device that CUDA cannot read"):
        describe(Shared(np.zeros(4), (8, 0)), "q")


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "int16"])
def test_an_unknown_dtype_is_refused(dtype):
    with pytest.raises(FcError, match="dtype that kernels do not know"):
        describe(np.zeros(4, dtype), "q", cpu_ok=True)


class Interface:
    def __init__(self, **facts):
        self.__cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3, **facts}


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(tensors, "_device_of", lambda ptr: 0)


def test_the_cuda_array_interface_is_read(one_gpu):
    assert describe(Interface(), "q")[:6] == (4096, (2, 3), (3, 1), "f32", 0, False)
    strided = describe(Interface(strides=(32, 8), typestr="<f2", data=(64, True)), "q")
    assert (strided.strides, strided.dtype, strided.readonly) == ((16, 4), "f16", True)


@pytest.mark.parametrize("facts", [{"typestr": "<V2"}, {"typestr": ">f4"}, {"strides": (9, 3)}, {"mask": object()}])
def test_what_the_cuda_array_interface_cannot_say_is_refused(one_gpu, facts):
    with pytest.raises(FcError, match="`q`"):
        describe(Interface(**facts), "q")


def test_an_array_that_has_both_interfaces_falls_back_to_dlpack(one_gpu):
    both = Shared(np.zeros((5, 2), np.float16), (2, 0))
    both.__cuda_array_interface__ = Interface(typestr="<V2").__cuda_array_interface__
    assert describe(both, "q").shape == (5, 2)


class Waits(Exception):
    pass


@pytest.mark.parametrize(("stream", "waits"), [(None, False), (1, False), (2, True), (0xABC0, True)])
def test_another_stream_of_the_producer_is_waited_for(one_gpu, monkeypatch, stream, waits):
    def require():
        raise Waits

    monkeypatch.setattr(tensors.driver, "require", require)
    if waits:
        with pytest.raises(Waits):
            describe(Interface(stream=stream), "q")
    else:
        describe(Interface(stream=stream), "q")


class FakeTensor(pretend.Tensor):
    """On any device."""

    def __init__(self, dtype="torch.float16", device="cuda", index=1):
        self.dtype, self.shape, self.is_cuda = dtype, [2, 8], device == "cuda"
        self.device, self.index = types.SimpleNamespace(type=device), index

    def data_ptr(self):
        return 512

    def stride(self):
        return (8, 1)

    def get_device(self):
        return self.index

    def cuda(self):
        return self


@pytest.fixture
def torch(monkeypatch):
    module = pretend.torch()
    module.Tensor = FakeTensor
    module._C._cuda_getCurrentRawStream = lambda device: 1000 + device
    module.cuda = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, current_device=lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.parametrize(("dtype", "name"), [("float16", "f16"), ("bfloat16", "bf16"), ("float32", "f32"), ("bool", "i1")])
def test_a_torch_tensor_is_read_as_it_is(torch, dtype, name):
    assert describe(FakeTensor(f"torch.{dtype}"), "q")[:5] == (512, (2, 8), (8, 1), name, 1)


def test_a_subclass_of_a_torch_tensor_counts_as_one(torch):
    assert describe(type("Parameter", (FakeTensor,), {})(), "q").device == 1


def test_a_torch_tensor_on_the_cpu_or_of_another_kind_is_refused(torch):
    with pytest.raises(FcError, match=r"`q` is on the CPU(.|\n)*pass q\.cuda\(\)"):
        describe(FakeTensor(device="cpu"), "q")
    with pytest.raises(FcError, match="has no memory"):
        describe(FakeTensor(device="meta"), "q")
    with pytest.raises(FcError, match="tensor on xpu"):
        describe(FakeTensor(device="xpu"), "q")
    with pytest.raises(FcError, match="dtype"):
        describe(FakeTensor("torch.complex64"), "q")


def test_torchs_stream_and_device_are_the_current_ones(torch):
    assert current_stream(3) == 1003
    assert tensors.current_device() == 2


def test_without_torch_the_default_stream_is_used(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert current_stream(0) == 0


def test_torch_without_cuda_has_the_default_stream(torch):
    del torch._C._cuda_getCurrentRawStream
    torch.cuda.is_available = lambda: False
    assert current_stream(0) == 0


GOOD = TensorArg(ptr=4096, shape=(2, 4, 100, 64), strides=(25600, 6400, 64, 1), dtype="f16", device=0)


@pytest.mark.parametrize("wanted", [
    {}, {"dtype": "f16"}, {"dtype": ("bf16", "f16")}, {"shape": (2, 4, 100, 64)}, {"shape": (None, None, None, 64)},
    {"device": 0},
])
def test_a_fitting_argument_passes(wanted):
    check(GOOD, name="q", **wanted)


@pytest.mark.parametrize(("change", "wanted", "said"), [
    ({}, {"dtype": "bf16"}, "wrong dtype"),
    ({}, {"dtype": ("bf16", "f32")}, "expected: bf16 or f32"),
    ({}, {"shape": (2, 4, 64)}, "expected: (2, 4, 64)"),
    ({}, {"shape": (None, 4, None, 128)}, "expected: (any, 4, any, 128)"),
    ({}, {"device": 1}, "expected: cuda:1"),
    ({"device": CPU}, {"device": 0}, "`q` is on the CPU"),
    ({"strides": (25600, 6400, 1, 100)}, {}, "call q.contiguous()"),
])
def test_an_argument_that_does_not_fit_is_refused_with_both_sides(change, wanted, said):
    with pytest.raises(FcError) as caught:
        check(GOOD._replace(**change), name="q", **wanted)
    assert caught.value.code == "call/argument"
    assert said in str(caught.value) and "`q`" in caught.value.message


def test_axes_of_size_one_and_tensors_without_elements_may_have_any_stride():
    check(GOOD._replace(shape=(0, 4, 100, 64), strides=(0, 0, 0, 0)), name="q")
    check(GOOD._replace(shape=(2, 4, 1, 1), strides=(8, 8, 3, 7)), name="q")
    check(GOOD._replace(shape=(), strides=()), name="q")
