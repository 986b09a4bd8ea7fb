"""Load a cubin onto a device and launch its kernel.

In: a cubin, a kernel's name, packed arguments. Out: launches. Guaranteed: the device's primary context is used, the one
torch uses, and the caller's current context is as before afterwards; a steady launch allocates nothing per argument
and costs a few microseconds; any number of threads may launch the same kernel.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fcgen.errors import FcError
from fcgen.runtime import cubin as cubin_facts
from fcgen.runtime import driver, nvrtc

#: kind of argument -> (struct code, bytes, alignment). tensormap: the 128 bytes of a TMA descriptor.
KINDS: dict[str, tuple[str, int, int]] = {
    "ptr": ("Q", 8, 8), "i32": ("i", 4, 4), "u32": ("I", 4, 4), "i64": ("q", 8, 8), "f32": ("f", 4, 4), "tensormap": ("128s", 128, 64),
}


class ArgPacker:
    """Puts argument values where the driver reads them. Each thread has a buffer of its own, made on first use."""

    def __init__(self, kinds: tuple[str, ...]):
        self.kinds = kinds
        self.offsets: tuple[int, ...]
        offsets, layout, at = [], "<", 0
        for kind in kinds:
            if kind not in KINDS:
                raise FcError("call/argument", "unknown kind of kernel argument", expected=", ".join(KINDS), got=kind)
            code, size, align = KINDS[kind]
            pad = -at % align
            layout += f"{pad}x{code}" if pad else code
            offsets.append(at + pad)
            at += pad + size
        self.offsets, self.size = tuple(offsets), at
        self._struct = struct.Struct(layout)
        self._local = threading.local()

    def pack(self, values: Sequence[Any]) -> int:
        """The address of an array of pointers to the values, as cuLaunchKernel takes it.

        It stays valid until this thread packs again: the driver copies the values during the launch.
        """
        try:
            buffer, address = self._local.slot
        except AttributeError:
            buffer, address = self._new_slot()
        try:
            self._struct.pack_into(buffer, 0, *values)
        except (struct.error, OverflowError, TypeError) as error:
            raise self._explain(values, error) from error
        return address

    def _new_slot(self) -> tuple[Any, int]:
        buffer = ctypes.create_string_buffer(self.size + 64)
        start = ctypes.addressof(buffer)
        skip = -start % 64
        aligned = (ctypes.c_char * self.size).from_buffer(buffer, skip)
        pointers = (ctypes.c_void_p * max(1, len(self.kinds)))(*(start + skip + o for o in self.offsets))
        self._local.keep = (buffer, pointers)
        self._local.slot = (aligned, ctypes.addressof(pointers))
        return self._local.slot

    def _explain(self, values: Sequence[Any], error: Exception) -> FcError:
        if len(values) != len(self.kinds):
            return FcError("call/argument", "wrong number of kernel arguments", expected=len(self.kinds),
                           got=len(values))
        for number, (kind, value) in enumerate(zip(self.kinds, values)):
            try:
                struct.pack("<" + KINDS[kind][0], value)
            except (struct.error, OverflowError, TypeError) as reason:
                return FcError("call/argument", f"kernel argument {number} does not fit", expected=kind,
                               got=f"{value!r} ({reason})")
        return FcError("call/argument", "the kernel arguments cannot be packed", got=str(error))


def _current_device() -> Callable[[], int]:
    """A function that gives the calling thread's current device, -1 where it has none: torch's own, which is cheap, or the driver's.

    torch may say a device whose context the thread has not entered yet: a launch then fails with one of `driver.WRONG_CONTEXT`.
    """
    torch = sys.modules.get("torch")
    cheap = getattr(getattr(torch, "_C", None), "_cuda_getDevice", None)
    if cheap is not None and torch is not None and torch.cuda.is_initialized():
        return cheap  # type: ignore[no-any-return]
    cu = driver.bindings()

    def ask() -> int:
        status, device = cu.cuCtxGetDevice()
        return -1 if int(status) else int(device)

    return ask


class Attribute(ctypes.Structure):
    """CUlaunchAttribute with a number as its value."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig. code: of its fields, for struct."""

    code = "7I4xQQI4x"

    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("smem", ctypes.c_uint), ("stream", ctypes.c_void_p),
                ("attributes", ctypes.c_void_p), ("attribute_count", ctypes.c_uint)]


_OVERLAP = (Attribute * 1)(Attribute(id=6, value=1))  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
#: the attributes of a launch that may begin early, and their number; the driver reads them during a launch and never writes them
OVERLAP = ctypes.addressof(_OVERLAP), 1


class LoadedKernel:
    """A kernel on one device."""

    def __init__(self, name: str, device: int, module: Any, function: Any, context: Any, smem_bytes: int):
        self.name, self.device, self.smem_bytes = name, device, smem_bytes
        self._module, self._function, self._context = module, function, context
        self._cu = driver.bindings()

    def launch(self, grid: tuple[int, int, int], block: tuple[int, int, int], smem: int, params: int,
               stream: int) -> None:
        """Launch with arguments from `ArgPacker.pack`, on a stream given as its address (0: the default stream).

        Returns at once. A grid with no blocks launches nothing. Errors of an earlier kernel may show up here.
        """
        self.bind(grid, block, smem)(params, stream)

    def bind(self, grid: tuple[int, int, int], block: tuple[int, int, int], smem: int, pdl: bool = False) -> Callable[[int, int], None]:
        """The launch for one grid, as a function of the arguments and the stream. pdl: the kernel may begin before those in front of it
        have ended, and waits for them itself (programmatic stream serialization)."""
        start = self.starter()
        attributes, count = OVERLAP if pdl else (None, 0)

        def enqueue(params: int, stream: int) -> None:
            start(ctypes.byref(LaunchConfig(grid, block, smem, stream, attributes, count)), params)

        return (lambda params, stream: None) if 0 in grid else enqueue

    def starter(self) -> Callable[[Any, int], None]:
        """The launch as a function that does as little as possible: of the address of a `LaunchConfig` and of the arguments."""
        device, function, start = self.device, int(self._function), driver.native().cuLaunchKernelEx
        here = _current_device()

        def enqueue(config: Any, params: int) -> None:
            status = start(config, function, params, None) if here() == device else driver.WRONG_CONTEXT[0]
            if status in driver.WRONG_CONTEXT:  # the thread's current context is another one, or none
                with driver.entered(self._context, "switching to the kernel's device"):
                    status = start(config, function, params, None)
            if status:
                self._refused(status, config)

        return enqueue

    def attribute(self, name: str) -> int:
        """One of the driver's facts on the kernel: "NUM_REGS", "LOCAL_SIZE_BYTES", "SHARED_SIZE_BYTES", ..."""
        which = getattr(self._cu.CUfunction_attribute, "CU_FUNC_ATTRIBUTE_" + name)
        return int(driver.check(self._cu.cuFuncGetAttribute(which, self._function), f"reading {name}"))

    def unload(self) -> None:
        """Give the device memory of the code back. The kernel must not be launched again."""
        with driver.entered(self._context, "switching to the kernel's device"):
            driver.check(self._cu.cuModuleUnload(self._module), f"unloading {self.name}")

    def _refused(self, status: int, config: Any) -> None:
        c = LaunchConfig.from_address(config) if isinstance(config, int) else config._obj
        shape = f"grid {tuple(c.grid)}, block {tuple(c.block)}, {c.smem} bytes of shared memory"
        hint = None
        if c.smem > self.smem_bytes:
            hint = f"the kernel was loaded for at most {self.smem_bytes} bytes of dynamic shared memory"
        driver.check_status(status, f"the launch of {self.name} ({shape})", code="call/launch", hint=hint)


#: what a driver says of a file whose format, PTX or instructions are newer than it is
_UNREADABLE = ("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_INVALID_SOURCE", "CUDA_ERROR_INVALID_PTX", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
               "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_JIT_COMPILER_NOT_FOUND")


def _too_new(error: str, driver_version: tuple[int, int]) -> str | None:
    """A hint where the driver may be older than what compiled the kernel: both versions, and what to install."""
    if error not in _UNREADABLE:
        return None
    compiler = nvrtc.nvrtc_version()
    both = f"the driver is for CUDA {driver_version[0]}.{driver_version[1]}, NVRTC is {compiler[0]}.{compiler[1]}"
    if compiler[0] <= driver_version[0]:
        return f"{both}: a damaged or foreign file is likelier; remove the cache folder that `fcgen doctor` names"
    return (f"{both}, which is too new for it: update the driver (CUDA 13 needs 580 or newer), or "
            f"pip install {nvrtc.wheels_for(driver_version)}")


def load(cubin: bytes, kernel_name: str, smem_bytes: int, device: int = 0) -> LoadedKernel:
    """Load a kernel onto a device and let it use up to smem_bytes of dynamic shared memory per block."""
    cu = driver.require()
    info = driver.device_info(device)
    if smem_bytes > info.smem_per_block:
        raise FcError("compile/budget", f"{kernel_name} needs more shared memory than {info.name} has",
                      expected=f"at most {info.smem_per_block} bytes per block", got=f"{smem_bytes} bytes",
                      hint="use fewer stages or smaller tiles")
    context = driver.primary_context(device)
    with driver.entered(context, f"switching to device {device}"):
        status, module = cu.cuModuleLoadData(cubin)
        if int(status) != 0:
            made_for = cubin_facts.arch_of(cubin)
            driver.check((status,), f"loading {kernel_name}, compiled for {made_for}, on {info.name} ({info.arch})",
                         hint=_too_new(driver.error_text(status)[0], info.driver_version))
        what = f"finding the kernel {kernel_name} in its cubin"
        function = driver.check(cu.cuModuleGetFunction(module, kernel_name.encode()), what,
                                hint="the cubin has: " + ", ".join(cubin_facts.resources(cubin)))
        if smem_bytes > 0:
            limit = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.check(cu.cuFuncSetAttribute(function, limit, smem_bytes),
                         f"giving {kernel_name} {smem_bytes} bytes of shared memory", code="compile/budget")
    return LoadedKernel(kernel_name, device, module, function, context, smem_bytes)
