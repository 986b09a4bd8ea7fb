"""Tensors of any library, as the few facts a launch needs.

In: torch tensors, objects with `__cuda_array_interface__` (CuPy, Numba), objects with `__dlpack__` (JAX and all others).
Out: `TensorArg`. Guaranteed: no copy is made and no library is imported; a tensor on the CPU, of a dtype that kernels do
not know, or of the wrong shape is refused by name with what would help; a producer's pending work is ordered before
ours where its protocol says how. What looks like a tensor and is more than its memory is refused: tensors without memory (meta, fake,
wrapped ones), lazily negated ones, and those whose gradients would be lost.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from fcgen.errors import FcError
from fcgen.ir.alignment import WIDEST, of_arguments
from fcgen.ir.types import DTYPES
from fcgen.runtime import driver

ITEMSIZE = {d.name: d.bytes for d in DTYPES.values()}
TORCH_NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
               "i1": "bool", "i8": "int8", "u8": "uint8", "i32": "int32", "u32": "uint32", "i64": "int64"}
_OURS = {torch: ours for ours, torch in TORCH_NAMES.items()}
_TYPESTR = {"<f2": "f16", "<f4": "f32", "<f8": "f64", "|i1": "i8", "<i4": "i32", "<i8": "i64", "|u1": "u8", "<u4": "u32",
            "|b1": "i1"}
_DLPACK_DTYPES = {(0, 8): "i8", (0, 32): "i32", (0, 64): "i64", (1, 8): "u8", (1, 32): "u32", (2, 16): "f16", (2, 32): "f32",
                  (2, 64): "f64", (4, 16): "bf16", (6, 8): "i1", (10, 8): "f8e4m3", (12, 8): "f8e5m2"}
_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED = 1, 2, 3, 13
CPU = -1


class TensorArg(NamedTuple):
    """Where a tensor's data is. strides count elements; device is CPU (-1) for host memory.

    owner keeps borrowed memory alive (a DLPack capsule); readonly where the producer says so.
    """

    ptr: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int
    readonly: bool = False
    owner: Any = None

    @property
    def in_lines(self) -> bool:
        """Whether bulk copies can move it: its pointer and strides are multiples of 16 bytes."""
        return all(n == WIDEST for n in of_arguments(self.ptr, self.shape, self.strides, ITEMSIZE[self.dtype]).words)


#: torch.dtype -> ours, filled as dtypes are met (torch is never imported here)
_torch_dtypes: dict[Any, str] = {}


def describe(x: Any, name: str, *, cpu_ok: bool = False) -> TensorArg:
    """The facts of tensor `x`, which the call knows as `name`. cpu_ok: host memory is wanted (interpreter, tests). Facts are their own."""
    if isinstance(x, TensorArg):
        return x
    torch = sys.modules.get("torch")
    tensor_type = getattr(torch, "Tensor", None)
    if torch is not None and tensor_type is not None and isinstance(x, tensor_type):
        while _followed.get() and torch._C._functorch.is_gradtrackingtensor(x):
            x = torch._C._functorch.get_unwrapped(x)
        arg = _from_torch(x, name)
    elif getattr(x, "__cuda_array_interface__", None) is not None:
        arg = _from_cuda_array(x, name)
    elif hasattr(x, "__dlpack__"):
        if hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] == _DL_CPU and not cpu_ok:
            raise _on_cpu(name, x)
        arg = from_dlpack(x, name)
    else:
        raise FcError("call/argument", f"argument `{name}` is not a tensor", got=f"a {type(x).__name__}",
                      expected="a torch tensor, or an object with __cuda_array_interface__ or __dlpack__",
                      hint=f"what a spec marks `| None` is left out when it is compiled: compile({name}=None)" if x is None else None)
    if arg.device == CPU and not cpu_ok:
        raise _on_cpu(name, x)
    if not arg.ptr and 0 not in arg.shape:
        raise _no_memory(name, x)
    return arg


def outline(x: Any, name: str) -> TensorArg:
    """The facts of a tensor of torch's that may stand for others (of a transform of torch.func): it may not be launched with."""
    inner, of = x, sys.modules["torch"]._C._functorch
    while of.is_functorch_wrapped_tensor(inner):
        inner = of.get_unwrapped(inner)
    arg = describe(inner.detach(), name)
    return arg if inner is x else arg._replace(shape=tuple(x.shape), strides=tuple(x.stride()))


def check(arg: TensorArg, *, name: str, dtype: str | tuple[str, ...] | None = None,
          shape: Sequence[int | None] | None = None, device: int | None = None, contiguous_last: bool = True) -> None:
    """Refuse an argument that no kernel can take. None in `shape`: any size. What a kernel asks of pointer and strides: `ir.alignment`."""
    if dtype is not None and arg.dtype != dtype and arg.dtype not in ((dtype,) if isinstance(dtype, str) else dtype):
        wanted = dtype if isinstance(dtype, str) else " or ".join(dtype)
        raise FcError("call/argument", f"argument `{name}` has the wrong dtype", expected=wanted, got=arg.dtype,
                      hint=f"convert {name}, or compile the kernel for {arg.dtype}")
    if shape is not None and (len(shape) != len(arg.shape) or
                              any(w is not None and w != g for w, g in zip(shape, arg.shape))):
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise FcError("call/argument", f"argument `{name}` has the wrong shape", expected=wanted, got=arg.shape)
    if device is not None and arg.device != device:
        where = "the CPU" if arg.device == CPU else f"cuda:{arg.device}"
        raise FcError("call/argument", f"argument `{name}` is on {where}", expected=f"cuda:{device}", got=where,
                      hint="all tensors of one call must be on the same GPU")
    if contiguous_last and arg.shape and arg.strides[-1] != 1 and arg.shape[-1] > 1 and 0 not in arg.shape:
        raise FcError("call/argument", f"the last axis of argument `{name}` is not contiguous", expected="stride 1",
                      got=f"stride {arg.strides[-1]} (strides {arg.strides})", hint=f"call {name}.contiguous()")


def written(x: Any) -> None:
    """Tell autograd that a kernel has written to a tensor: what saved it for a backward pass must not use it any more."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        torch.autograd.graph.increment_version(x)


def current_device() -> int:
    """torch's current device where torch has begun to use CUDA, else the current context's, else 0."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.current_device())
    if driver.available()[0]:
        status, device = driver.bindings().cuCtxGetDevice()
        if int(status) == 0:
            return int(device)
    return 0


def current_stream(device: int) -> int:
    """The stream to launch on: torch's current one for the device where torch is loaded, else the default stream."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if raw is not None:  # absent in builds of torch without CUDA
        return int(raw(device))
    return int(torch.cuda.current_stream(device).cuda_stream) if torch.cuda.is_available() else 0


def from_dlpack(x: Any, name: str) -> TensorArg:
    """The facts of an object with `__dlpack__`, on the CPU or a GPU.

    The capsule is never consumed: it is kept as `owner`, and its own destructor gives the memory back.
    """
    kind, number = x.__dlpack_device__()
    if kind not in (_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED):
        raise FcError("call/argument", f"argument `{name}` is on a device that CUDA cannot read",
                      expected="a CUDA tensor", got=f"DLPack device type {int(kind)}")
    on_gpu = kind in (_DL_CUDA, _DL_CUDA_MANAGED)
    # DLPack's name for the legacy default stream is 1
    arguments: dict[str, Any] = {"stream": current_stream(number) or 1} if on_gpu else {}
    try:
        try:
            capsule = x.__dlpack__(max_version=(1, 0), **arguments)
        except TypeError:  # a producer older than DLPack 1.0
            capsule = x.__dlpack__(**arguments)
    except (BufferError, RuntimeError) as error:
        raise FcError("call/argument", f"argument `{name}` cannot be shared through DLPack", got=str(error)) from error
    tensor, readonly = _open_capsule(capsule, name)
    dtype = _DLPACK_DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise _bad_dtype(name, f"DLPack type code {tensor.code} with {tensor.bits} bits and {tensor.lanes} lanes")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else row_major(shape)
    return TensorArg((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, int(number) if on_gpu else CPU,
                     readonly, capsule)


#: whether a tensor that torch.func takes a gradient of stands for its values
_followed: ContextVar[bool] = ContextVar("followed", default=False)


@contextmanager
def followed() -> Iterator[None]:
    """In here somebody else sees to it that gradients and tangents flow, those of torch.func's transforms included: tensors are their
    values."""
    before = _followed.set(True)
    try:
        with sys.modules["torch"].no_grad():
            yield
    finally:
        _followed.reset(before)


def _from_torch(x: Any, name: str) -> TensorArg:
    _check_plain(x, name)
    dtype = _torch_dtypes.get(x.dtype)
    if dtype is None:
        dtype = _OURS.get(str(x.dtype).rsplit(".", 1)[-1])
        if dtype is None:
            raise _bad_dtype(name, str(x.dtype))
        _torch_dtypes[x.dtype] = dtype
    if not x.is_cuda:
        kind = x.device.type
        if kind == "meta":
            raise _no_memory(name, x)
        if kind != "cpu":
            raise FcError("call/argument", f"argument `{name}` is not on a GPU", expected="a CUDA tensor",
                          got=f"a tensor on {kind}")
        return TensorArg(x.data_ptr(), tuple(x.shape), x.stride(), dtype, CPU)
    return TensorArg(x.data_ptr(), tuple(x.shape), x.stride(), dtype, x.get_device())


#: a line of advice for the classes that people meet
_UNWRAP = {"DTensor": "call it on each device with {name}.to_local()",
           "FakeTensor": "it has no values; fcgen.attention without functions and fcgen.scaled_dot_product_attention take it",
           "FunctionalTensor": "call it outside of torch.func.functionalize", "NestedTensor": "call it on each of {name}.unbind()"}


def _check_plain(x: Any, name: str) -> None:
    """Refuse torch tensors whose values are not the memory at their pointer, or from which gradients flow: a kernel sees neither."""
    torch = sys.modules["torch"]
    kind = type(x)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        hint = _UNWRAP.get(kind.__name__, "pass the plain tensor that it holds").format(name=name)
        raise FcError("call/argument", f"argument `{name}` is a {kind.__name__}, which has operations of its own in place of memory",
                      expected="a plain tensor", got=f"a {kind.__module__}.{kind.__qualname__}", hint=hint)
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise FcError("call/argument", f"argument `{name}` belongs to a transform of torch.func (vmap, grad, jvp, ...)",
                      expected="a plain tensor", got="a tensor without memory of its own",
                      hint="call it outside of the transform; a batch axis can be passed as it is")
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None or torch._C._get_tracing_state() is not None:
        raise FcError("call/argument", f"argument `{name}` is used in a graph that torch writes down, and a launch is no operator",
                      expected="a call outside of make_fx, torch.export and torch.jit.trace", got="a graph without the launch",
                      hint="put the call into a torch.library.custom_op; attention: fcgen.scaled_dot_product_attention is one")
    if x.layout is not torch.strided or x.is_nested:
        raise FcError("call/argument", f"argument `{name}` is not a strided tensor", expected="torch.strided",
                      got="a nested tensor" if x.is_nested else str(x.layout), hint=f"call {name}.to_dense()")
    if x.is_neg() or x.is_conj():
        raise FcError("call/argument", f"argument `{name}` is a lazily negated or conjugated view", expected="values as they lie in memory",
                      hint=f"call {name}.resolve_neg() or {name}.resolve_conj()")
    if x.requires_grad and torch.is_grad_enabled():
        raise FcError("call/argument", f"argument `{name}` requires grad, and this call has no backward pass",
                      expected="a tensor from which no gradient flows", got="requires_grad=True",
                      hint=f"call it under torch.no_grad(), or pass {name}.detach()")
    forward = torch.autograd.forward_ad
    if not _followed.get() and forward.unpack_dual(x).tangent is not None:
        raise FcError("call/argument", f"argument `{name}` carries a forward-mode tangent, which would be lost",
                      expected="a tensor without a tangent", hint=f"pass torch.autograd.forward_ad.unpack_dual({name}).primal")


def _from_cuda_array(x: Any, name: str) -> TensorArg:
    facts = x.__cuda_array_interface__
    typestr, shape = facts["typestr"], tuple(facts["shape"])
    dtype = _TYPESTR.get(typestr)
    if dtype is None:
        if hasattr(x, "__dlpack__"):  # can say what this interface cannot: bfloat16, floats of 8 bits
            return from_dlpack(x, name)
        raise _bad_dtype(name, f"typestr {typestr!r}")
    if facts.get("mask") is not None:
        raise FcError("call/argument", f"argument `{name}` is a masked array", expected="a plain tensor")
    ptr, readonly = facts["data"]
    size = ITEMSIZE[dtype]
    steps = facts.get("strides")
    if steps is not None and any(s % size for s in steps):
        raise FcError("call/argument", f"the strides of argument `{name}` are not whole elements",
                      expected=f"multiples of {size} bytes", got=tuple(steps), hint="make a contiguous copy")
    strides = tuple(s // size for s in steps) if steps is not None else row_major(shape)
    device = _device_of(ptr) if ptr else current_device()
    _wait_for(facts.get("stream"), device)
    return TensorArg(ptr, shape, strides, dtype, device, bool(readonly), None)


def _device_of(ptr: int) -> int:
    cu = driver.require()
    attribute = cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(driver.check(cu.cuPointerGetAttribute(attribute, ptr), "finding which GPU a pointer belongs to"))


def _wait_for(stream: int | None, device: int) -> None:
    """Wait for the producer's stream, as version 3 of the interface asks, unless ours follows it anyway."""
    if stream is None or stream == 0:
        return
    ours = current_stream(device)
    if stream == ours or (stream == 1 and ours == 0):
        return
    cu = driver.require()
    with driver.entered(driver.primary_context(device), f"switching to device {device}"):
        driver.check(cu.cuStreamSynchronize(cu.CUstream(stream)), "waiting for the producer of a tensor")


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _on_cpu(name: str, x: Any) -> FcError:
    hint = f"pass {name}.cuda()" if hasattr(x, "cuda") else "copy it to the GPU with its own library first"
    return FcError("call/argument", f"argument `{name}` is on the CPU", expected="a tensor on a GPU",
                   got=f"a {type(x).__module__}.{type(x).__qualname__} in host memory", hint=hint)


def _no_memory(name: str, x: Any) -> FcError:
    return FcError("call/argument", f"argument `{name}` has no memory", expected="values on a GPU",
                   got=f"a {type(x).__module__}.{type(x).__qualname__} whose data pointer is 0",
                   hint="meta and fake tensors have shapes only; a storage that was resized to 0 has to be filled first")


def _bad_dtype(name: str, got: str) -> FcError:
    return FcError("call/argument", f"argument `{name}` has a dtype that kernels do not know",
                   expected=", ".join(ITEMSIZE), got=got)


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class _Versioned(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
                ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _DLTensor)]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]


def _open_capsule(capsule: Any, name: str) -> tuple[_DLTensor, bool]:
    """(the tensor inside, is it read-only). Valid as long as the capsule lives."""
    kind = _capsule_name(capsule)
    if kind == b"dltensor":  # DLManagedTensor begins with the tensor
        return _DLTensor.from_address(_capsule_pointer(capsule, kind)), False
    if kind == b"dltensor_versioned":
        managed = _Versioned.from_address(_capsule_pointer(capsule, kind))
        if managed.major == 1:
            return managed.tensor, bool(managed.flags & 1)
        raise FcError("call/argument", f"argument `{name}` speaks a newer DLPack", expected="version 1",
                      got=f"version {managed.major}.{managed.minor}")
    raise FcError("call/argument", f"argument `{name}` gave a DLPack capsule that is used up or unknown",
                  got=(kind or b"none").decode())
