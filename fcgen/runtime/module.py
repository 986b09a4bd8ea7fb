"""Load a cubin onto a device and launch its kernel.

In: a cubin, a kernel's name, the addresses of a configuration and of arguments (`steady` writes both). Out: launches. Guaranteed: the
device's primary context is used, the one torch uses, and the caller's current context is as before afterwards; any number of threads may
launch the same kernel.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from fcgen.errors import FcError
from fcgen.runtime import cubin as cubin_facts
from fcgen.runtime import driver, nvrtc


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

    def starter(self) -> Callable[[int, int], None]:
        """The launch as a function that does as little as possible: of the address of a `LaunchConfig` and that of an array of pointers to
        the arguments. It returns at once; errors of an earlier kernel may show up here."""
        device, function, start = self.device, int(self._function), driver.native().cuLaunchKernelEx
        here = _current_device()

        def enqueue(config: int, params: int) -> None:
            status = start(config, function, params, None) if here() == device else driver.WRONG_CONTEXT[0]
            if status in driver.WRONG_CONTEXT:  # the thread's current context is another one, or none
                with driver.entered(self._context, "switching to the kernel's device"):
                    status = start(config, function, params, None)
            if status:
                self._refused(status, config)

        return enqueue

    def _refused(self, status: int, config: int) -> None:
        c = LaunchConfig.from_address(config)
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
