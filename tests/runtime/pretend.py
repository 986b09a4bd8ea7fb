"""A CUDA driver and torch that launch nothing and remember what they were told: for tests of what happens before a kernel runs."""

from __future__ import annotations

import ctypes
import enum
import itertools
import struct
import threading
import types

from fcgen.runtime import driver, module, tensormap, tensors

KIB = 1024
INFO = driver.DeviceInfo(0, "pretend H200", (9, 0), "sm_90a", 132, 227 * KIB, 228 * KIB, 65536, 50 << 20, 140 << 30, 1, 1, (13, 0))


class Words(type):
    def __getattr__(cls, name):
        return name


class Word(metaclass=Words):
    """Any enum: each of its members is its own name."""


class Status(enum.IntEnum):
    OK = 0
    INVALID_VALUE = 1
    INVALID_CONTEXT = 201


class TensorMap:
    """Holds a text of what was asked for in 128 bytes."""

    def __init__(self, *facts):
        self.raw = ctypes.create_string_buffer(repr(hash(facts)).encode().ljust(128, b"."), 128)

    def getPtr(self):
        return ctypes.addressof(self.raw)


class Driver:
    """What `driver.bindings()` gives. sizes: of the kernel's parameters in bytes, as the real driver knows them from the cubin (kernels:
    by cubin, where there are several)."""

    CUtensorMapDataType = CUtensorMapInterleave = CUtensorMapSwizzle = CUtensorMapL2promotion = CUtensorMapFloatOOBfill = Word
    CUstreamCaptureMode = CUstreamCaptureStatus = CUfunction_attribute = Word
    CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    cuuint64_t = cuuint32_t = CUstream = int

    def __init__(self, sizes=()):
        self.sizes, self.kernels, self.launches, self.encoded, self.calls = sizes, {}, [], [], []
        self.attributes = []
        self.device, self.entered, self.capture = threading.local(), [], {}
        self.pages = itertools.count(0x70000000, 1 << 20)

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, smem, stream, params, extra):
        if getattr(self.device, "lost", False) and not self.entered:
            return (Status.INVALID_CONTEXT,)
        sizes = self.kernels.get(function, self.sizes)
        pointers = (ctypes.c_void_p * len(sizes)).from_address(params)
        assert all(p % min(s, 64) == 0 for p, s in zip(pointers, sizes)), "aligned"
        self.launches.append(((gx, gy, gz), (bx, by, bz), smem, stream, [ctypes.string_at(p, s) for p, s in zip(pointers, sizes)]))
        return (Status.OK,)

    class CUlaunchConfig:
        """Its fields are what a launch sets."""

    class CUlaunchAttribute:
        def __init__(self):
            self.value = types.SimpleNamespace()

    CUlaunchAttributeID = types.SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="programmatic stream serialization")

    def cuLaunchKernelEx(self, config, function, params, extra):
        c = config
        assert len(c.attrs) == c.numAttrs
        self.attributes.append({a.id: vars(a.value) for a in c.attrs})
        return self.cuLaunchKernel(function, c.gridDimX, c.gridDimY, c.gridDimZ, c.blockDimX, c.blockDimY, c.blockDimZ, c.sharedMemBytes,
                                   c.hStream, params, extra)

    def cuCtxGetDevice(self):
        return Status.OK, 0

    def cuTensorMapEncodeTiled(self, *facts):
        self.encoded.append(facts)
        return Status.OK, TensorMap(*map(str, facts))

    def cuStreamIsCapturing(self, stream):
        return Status.OK, f"CU_STREAM_CAPTURE_STATUS_{'ACTIVE' if stream in self.capture else 'NONE'}"

    def cuStreamGetCaptureInfo(self, stream):
        return Status.OK, "ACTIVE", self.capture[stream], None, None, 0

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
    monkeypatch.setattr(driver, "require", lambda: fake)
    monkeypatch.setattr(driver, "available", lambda: (True, "1 GPU"))
    monkeypatch.setattr(driver, "device_info", lambda ordinal=0: INFO)
    monkeypatch.setattr(driver, "primary_context", lambda ordinal: 5)
    monkeypatch.setattr(module, "load", lambda cubin, name, smem, device=0: module.LoadedKernel(name, device, None, cubin, 5, smem))
    monkeypatch.setattr(tensormap, "_cache", type(tensormap._cache)())
    return fake


class Dtype:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


class Tensor:
    """As much of torch.Tensor as a launch looks at."""

    ends = itertools.count(0x10000000, 1 << 24)
    is_cuda = True

    def __init__(self, shape, dtype, strides=None, ptr=None, device="cuda:0"):
        self.shape, self.dtype, self.device = tuple(shape), dtype, device
        self._strides = tensors.row_major(self.shape) if strides is None else tuple(strides)
        self._ptr = next(self.ends) if ptr is None else ptr

    def stride(self):
        return self._strides

    def data_ptr(self):
        return self._ptr

    def get_device(self):
        return int(self.device[-1])


def torch():
    """A torch with one GPU. `stream` and `device` are what it says is current."""
    out = types.ModuleType("torch")
    out.Tensor = Tensor
    for name in ("float16", "bfloat16", "float32", "int32"):
        setattr(out, name, Dtype(name))
    out.empty = lambda shape, dtype, device, **_: Tensor(shape, dtype, device=device)
    out.empty_strided = lambda shape, strides, dtype, device: Tensor(shape, dtype, strides, device=device)
    out.empty_like = lambda x, **_: Tensor(x.shape, x.dtype, device=x.device)
    out.now = types.SimpleNamespace(stream=0, device=0)
    out._C = types.SimpleNamespace(_cuda_getCurrentRawStream=lambda d: out.now.stream, _cuda_getDevice=lambda: out.now.device)
    out.cuda = types.SimpleNamespace(is_initialized=lambda: True, is_available=lambda: True, current_device=lambda: 0)
    return out


def number(raw, code):
    return struct.unpack("<" + code, raw)[0]

