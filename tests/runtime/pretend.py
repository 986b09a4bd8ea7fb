"""A CUDA driver and torch that launch nothing and remember what they were told: for tests of what happens before a kernel runs."""

from __future__ import annotations

import ctypes
import enum
import itertools
import struct
import threading
import types

from fcgen.runtime import counters, driver, module, tensors

KIB = 1024
INFO = driver.DeviceInfo(0, "pretend H200", (9, 0), "sm_90a", 132, 227 * KIB, 228 * KIB, 65536, 140 << 30, (13, 0))


class Words(type):
    def __getattr__(cls, name):
        return name


class Word(metaclass=Words):
    """Any enum: each of its members is its own name."""


class Status(enum.IntEnum):
    OK = 0
    INVALID_VALUE = 1
    INVALID_CONTEXT = 201


class Driver:
    """What `driver.bindings()` gives. sizes: of the kernel's parameters in bytes, as the real driver knows them from the cubin (kernels:
    by cubin, where there are several)."""

    CUstreamCaptureMode = CUfunction_attribute = Word
    CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUresult = Status

    def __init__(self, sizes=()):
        self.sizes, self.kernels, self.launches, self.encoded, self.calls = sizes, {}, [], [], []
        self.attributes, self.cubins = [], []
        self.device, self.entered = threading.local(), []
        self.capture, self.ids = set(), {}  # streams that are captured; handle -> id, where the handle has been used before
        self.pages = itertools.count(0x70000000, 1 << 20)

    def function(self, cubin):
        """The handle of a cubin's kernel."""
        self.cubins.append(cubin)
        return len(self.cubins)

    def lost(self):
        return getattr(self.device, "lost", False) and not self.entered

    def cuLaunchKernelEx(self, config, function, params, extra):
        if self.lost():
            return Status.INVALID_CONTEXT
        c = module.LaunchConfig.from_address(config) if isinstance(config, int) else config._obj
        sizes = self.kernels.get(self.cubins[function - 1], self.sizes)
        pointers = (ctypes.c_void_p * len(sizes)).from_address(params)
        assert all(p % min(s, 64) == 0 for p, s in zip(pointers, sizes)), "aligned"
        given = (module.Attribute * c.attribute_count).from_address(c.attributes) if c.attribute_count else []
        self.attributes += [(a.id, a.value) for a in given]
        self.launches.append((tuple(c.grid), tuple(c.block), c.smem, c.stream or 0, [ctypes.string_at(p, s) for p, s in zip(pointers, sizes)]))
        return Status.OK

    def cuTensorMapEncodeTiled(self, into, dtype, rank, pointer, dims, steps, box, ones, *modes):
        into, dtype, rank, pointer, *modes = (getattr(x, "value", x) or 0 for x in (into, dtype, rank, pointer, *modes))
        dims, steps = (list((ctypes.c_uint64 * n).from_address(x.value)) for n, x in ((rank, dims), (rank - 1, steps)))
        facts = (dtype, rank, pointer, dims, steps, list(box), list(ones), *modes)
        assert into % 64 == 0
        self.encoded.append(facts)
        ctypes.memmove(into, repr(hash(str(facts))).encode().ljust(128, b"."), 128)
        return Status.OK

    def cuStreamGetId(self, stream, into):
        if self.lost():
            return Status.INVALID_CONTEXT
        into._obj.value = self.ids.get(stream, stream) + (threading.get_ident() << 32 if stream == 2 else 0)
        return Status.OK

    def cuStreamIsCapturing(self, stream, into):
        assert stream not in (0, 1), "fails for the default stream while another one is captured"
        into._obj.value = int(stream in self.capture)
        return Status.OK

    def cuCtxGetDevice(self):
        return Status.OK, 0

    def cuCtxPushCurrent(self, context):
        self.entered.append(context)
        return (Status.OK,)

    def cuCtxPopCurrent(self):
        return Status.OK, self.entered.pop()

    def cuMemAlloc(self, size):
        self.calls.append("cuMemAlloc")
        return Status.OK, next(self.pages)

    def cuThreadExchangeStreamCaptureMode(self, mode):
        self.calls.append(mode.removeprefix("CU_STREAM_CAPTURE_MODE_"))
        return Status.OK, "GLOBAL"

    def cuStreamCreate(self, flags):
        return Status.OK, 77

    def __getattr__(self, name):  # the rest succeeds and gives nothing
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name, *args)) or (Status.OK,)


def install(monkeypatch, fake):
    """Put the driver in place; `module.load` then gives a kernel of it."""
    monkeypatch.setattr(driver, "bindings", lambda: fake)
    monkeypatch.setattr(driver, "native", lambda: fake)
    monkeypatch.setattr(driver, "require", lambda: fake)
    for name in ("available", "present"):
        monkeypatch.setattr(driver, name, lambda: (True, "1 GPU"))
    monkeypatch.setattr(driver, "device_info", lambda ordinal=0: INFO)
    monkeypatch.setattr(driver, "primary_context", lambda ordinal: 5)
    monkeypatch.setattr(module, "load", lambda cubin, name, smem, device=0: module.LoadedKernel(name, device, None, fake.function(cubin), 5, smem))
    monkeypatch.setattr(counters, "_of", {})
    return fake


class Dtype:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


class Tensor:
    """As much of torch.Tensor as a launch looks at."""

    ends = itertools.count(0x10000000, 1 << 28)
    is_cuda, is_nested, requires_grad, layout, __torch_dispatch__ = True, False, False, "strided", None

    def __init__(self, shape, dtype, strides=None, ptr=None, device="cuda:0"):
        self.shape, self.dtype, self.device = tuple(shape), dtype, device
        self._strides = tensors.row_major(self.shape) if strides is None else tuple(strides)
        self._ptr = next(self.ends) if ptr is None else ptr

    def stride(self):
        return self._strides

    def data_ptr(self):
        return self._ptr

    def element_size(self):
        return tensors.ITEMSIZE[tensors._OURS[str(self.dtype).rsplit(".", 1)[-1]]]

    def get_device(self):
        return int(self.device[-1])

    def is_neg(self):
        return False

    is_conj = is_neg


class Guards:
    """TensorGuards for tensors of this file."""

    def __init__(self, *every, dynamic_dims_sizes, dynamic_dims_strides):
        self.wanted = [(type(t), t.dtype, t.device, t.requires_grad, len(t.shape)) for t in every]
        self.sizes = list(zip(dynamic_dims_sizes, dynamic_dims_strides))

    def check(self, *now):
        fits = lambda got, want: all(w is None or g == w for g, w in zip(got, want))
        return all((type(t), t.dtype, t.device, t.requires_grad, len(t.shape)) == w and fits(t.shape, s[0]) and fits(t.stride(), s[1])
                   for t, w, s in zip(now, self.wanted, self.sizes))


def torch():
    """A torch with one GPU. `stream` and `device` are what it says is current."""
    out = types.ModuleType("torch")
    out.Tensor = Tensor
    for name in ("float16", "bfloat16", "float32", "int32"):
        setattr(out, name, Dtype(name))
    out.empty = lambda shape, dtype, device, **_: Tensor(shape, dtype, device=device)
    out.empty_strided = lambda shape, strides, dtype, device: Tensor(shape, dtype, strides, device=device)
    out.empty_like = lambda x, **_: Tensor(x.shape, x.dtype, device=x.device)
    inside(out)
    out.cuda = types.SimpleNamespace(is_initialized=lambda: True, is_available=lambda: True, current_device=lambda: 0)
    return out


def inside(out):
    """What a call looks at in torch besides tensors: streams, guards, autograd."""
    out.now = types.SimpleNamespace(stream=0, device=0)
    wrapped = types.SimpleNamespace(is_functorch_wrapped_tensor=lambda x: False, is_gradtrackingtensor=lambda x: False,
                                    is_batchedtensor=lambda x: False)
    out._C = types.SimpleNamespace(_cuda_getCurrentRawStream=lambda d: out.now.stream, _cuda_getDevice=lambda: out.now.device,
                                   _TorchDispatchModeKey=types.SimpleNamespace(PROXY="proxy"), _get_dispatch_mode=lambda key: None,
                                   _get_tracing_state=lambda: None, _len_torch_dispatch_stack=lambda: 0, _functorch=wrapped,
                                   _are_functorch_transforms_active=lambda: False,
                                   _dynamo=types.SimpleNamespace(guards=types.SimpleNamespace(TensorGuards=Guards)))
    out.strided, out.is_grad_enabled, out.written = "strided", lambda: True, []
    dual = types.SimpleNamespace(unpack_dual=lambda x: types.SimpleNamespace(tangent=None), _current_level=-1)
    out.autograd = types.SimpleNamespace(Function=object, forward_ad=dual, graph=types.SimpleNamespace(increment_version=lambda x: out.written.append(x.data_ptr())))


def number(raw, code):
    return struct.unpack("<" + code, raw)[0]


def real_torch(monkeypatch, stream=0):
    """torch itself, whose CPU tensors are taken for the GPU's: for what only its own classes, modes and transforms can show."""
    import torch

    described = tensors._from_torch
    monkeypatch.setattr(tensors, "_from_torch", lambda x, name: described(x, name)._replace(device=0))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: stream, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    return torch
