"""The CUDA driver: is it there, what GPUs does it see, and its errors as FcError.

In: device numbers, results of cuda.bindings calls. Out: `DeviceInfo`, plain values. Guaranteed: `available()` never
raises and says why not; a failed call names the CUDA error and explains it; nothing happens before the first call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fcgen.errors import FcError


@dataclass(frozen=True)
class DeviceInfo:
    """A GPU's facts. arch: what to compile for ("sm_89", "sm_90a": Hopper's own instructions need the `a`)."""

    ordinal: int
    name: str
    capability: tuple[int, int]
    arch: str
    sm_count: int
    smem_per_block: int  # the most a block can opt in to
    smem_per_sm: int
    regs_per_sm: int
    memory_bytes: int
    driver_version: tuple[int, int]


LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def bindings() -> Any:
    """cuda.bindings.driver."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise FcError("call/driver", "cuda-python cannot be imported", got=str(error),
                      hint="pip install 'cuda-python>=12.6'") from error
    return driver


@functools.cache
def native() -> Any:
    """The driver's library itself, for the few calls that every launch makes: with arguments that ctypes takes as they are, one costs
    0.25 us where cuda.bindings takes 0.7 us (a tensor map 0.9 us and 3.4 us). The interpreter's lock is given back meanwhile: a launch may
    wait."""
    library = ctypes.CDLL(LIBRARY)
    pointer = ctypes.c_void_p
    library.cuLaunchKernelEx.argtypes = [pointer] * 4
    library.cuStreamGetId.argtypes = library.cuStreamIsCapturing.argtypes = [pointer] * 2
    return library


def check(result: tuple[Any, ...], what: str, *, code: str = "call/driver", hint: str | None = None) -> Any:
    """The values of a cuda.bindings call (None, one, or a tuple), or FcError naming the CUDA error.

    what: what was tried, as in "the launch of attention".
    """
    if int(result[0]) != 0:
        name, text = error_text(result[0])
        raise FcError(code, f"{what} failed: {name} ({text})", hint=hint or _hint(name))
    return None if len(result) == 1 else result[1] if len(result) == 2 else result[1:]


def check_status(status: int, what: str, *, code: str = "call/driver", hint: str | None = None) -> None:
    """As `check`, for what a call of `native` gave."""
    if status:
        check((bindings().CUresult(status),), what, code=code, hint=hint)


def error_text(status: Any) -> tuple[str, str]:
    """CUDA's name and description of an error."""
    cu = bindings()
    name, text = (f(status)[1] for f in (cu.cuGetErrorName, cu.cuGetErrorString))
    return (name.decode() if name else f"error {int(status)}", text.decode() if text else "no description")


def _hint(name: str) -> str | None:
    if name in ("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_MISALIGNED_ADDRESS",
                "CUDA_ERROR_ILLEGAL_INSTRUCTION"):
        return ("a kernel launched earlier failed, and this process cannot use the GPU any more; run it again under "
                "compute-sanitizer to find which access it was")
    if name == "CUDA_ERROR_NOT_INITIALIZED":
        return "a process that was forked after its parent began to use CUDA cannot use it: start it with multiprocessing's spawn"
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        return "other tensors or processes hold the GPU's memory"
    if name == "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH":
        return "the driver was updated while it was in use: restart the machine"
    return None


@functools.cache
def cuda_version() -> tuple[int, int] | None:
    """The CUDA version of the installed driver, None without one. Asks its library, and starts nothing."""
    try:
        library = ctypes.CDLL(LIBRARY)
        number = ctypes.c_int()
        status = library.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return (number.value // 1000, number.value % 1000 // 10) if status == 0 and number.value else None


_NO_GPU = "the CUDA driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)"


@functools.cache
def available() -> tuple[bool, str]:
    """(True, what is there) or (False, why no kernel can be launched here)."""
    try:
        cu = bindings()
        status = cu.cuInit(0)[0]
    except FcError as error:
        return False, f"{error.message}: {error.got}"
    except (RuntimeError, OSError) as error:  # how cuda.bindings says that libcuda is not there
        return False, f"no CUDA driver on this machine ({str(error).splitlines()[0]})"
    if int(status) != 0:
        # cuGetErrorName works without an initialised driver
        name, text = error_text(status)
        return False, f"the CUDA driver does not start: {name} ({text})"
    status, count = cu.cuDeviceGetCount()
    if int(status) != 0 or count == 0:
        return False, _NO_GPU
    return True, f"{count} GPU{'s' if count > 1 else ''}"


_PROBE = """import ctypes, sys
cuda, count = ctypes.CDLL(sys.argv[1]), ctypes.c_int()
status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
print(status, count.value)"""


@functools.cache
def present() -> tuple[bool, str]:
    """As `available`, without starting the driver in this process, which no process that it forks later could use then: another process is
    asked (0.2 s). Where it has been started, by us or by torch, nobody else is."""
    torch = sys.modules.get("torch")
    if available.cache_info().currsize or (torch is not None and torch.cuda.is_initialized()):
        return available()
    try:
        ctypes.CDLL(LIBRARY)  # loading it starts nothing
        asked = subprocess.run([sys.executable, "-IS", "-c", _PROBE, LIBRARY], capture_output=True, text=True, timeout=60, check=True)
        status, count = map(int, asked.stdout.split())
    except OSError as error:
        return False, f"no CUDA driver on this machine ({str(error).splitlines()[0]})"
    except (ValueError, subprocess.SubprocessError):  # no such interpreter (embedded), or it was ended
        return available()
    if status:
        return False, f"the CUDA driver does not start: {bindings().CUresult(status).name}"
    return count > 0, f"{count} GPU{'s' if count > 1 else ''}" if count else _NO_GPU


def require() -> Any:
    """cuda.bindings.driver with the driver started, or FcError."""
    ok, reason = available()
    if not ok:
        raise FcError("call/driver", "there is no GPU to run on", got=reason,
                      hint="programs can be interpreted, simulated, compiled and read without a GPU; only a launch "
                           "needs one")
    return bindings()


def device_count() -> int:
    """How many GPUs there are; 0 without a driver."""
    return int(bindings().cuDeviceGetCount()[1]) if available()[0] else 0


@functools.cache
def device_info(ordinal: int = 0) -> DeviceInfo:
    """The facts of one GPU."""
    cu = require()
    if not 0 <= ordinal < device_count():
        raise FcError("call/driver", "there is no such GPU", expected=f"a device below {device_count()}", got=ordinal)
    device = check(cu.cuDeviceGet(ordinal), f"opening device {ordinal}")
    attributes = cu.CUdevice_attribute

    def get(name: str) -> int:
        attribute = getattr(attributes, "CU_DEVICE_ATTRIBUTE_" + name)
        return int(check(cu.cuDeviceGetAttribute(attribute, device), f"reading {name}"))

    major, minor = get("COMPUTE_CAPABILITY_MAJOR"), get("COMPUTE_CAPABILITY_MINOR")
    version = int(check(cu.cuDriverGetVersion(), "reading the driver's version"))
    return DeviceInfo(
        ordinal=ordinal, name=check(cu.cuDeviceGetName(128, device), "reading the GPU's name").split(b"\0")[0].decode(),
        capability=(major, minor), arch=f"sm_{major}{minor}{'a' if major >= 9 else ''}",
        sm_count=get("MULTIPROCESSOR_COUNT"), smem_per_block=get("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        smem_per_sm=get("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"), regs_per_sm=get("MAX_REGISTERS_PER_MULTIPROCESSOR"),
        memory_bytes=int(check(cu.cuDeviceTotalMem(device), "reading the memory size")),
        driver_version=(version // 1000, version % 1000 // 10))


_contexts: dict[int, Any] = {}
_contexts_lock = threading.Lock()


def primary_context(ordinal: int) -> Any:
    """The device's primary context, the one that torch and every runtime-API library use. It is kept for good."""
    context = _contexts.get(ordinal)
    if context is None:
        cu = require()
        device_info(ordinal)  # refuses a device that is not there
        with _contexts_lock:
            context = _contexts.get(ordinal)
            if context is None:
                device = check(cu.cuDeviceGet(ordinal), f"opening device {ordinal}")
                context = check(cu.cuDevicePrimaryCtxRetain(device), f"opening device {ordinal}")
                _contexts[ordinal] = context
    return context


#: What the driver says where a thread's context is not the one that a call needs: CUDA_ERROR_INVALID_CONTEXT and _INVALID_HANDLE. Nothing
#: was done.
WRONG_CONTEXT = (201, 400)


def retained() -> Any:
    """A context that is in use already, for calls that need one, whichever it is. A thread that only launches has none of its own."""
    with _contexts_lock:
        return next(iter(_contexts.values()))


@contextlib.contextmanager
def entered(context: Any, what: str) -> Iterator[None]:
    """With a context current in this thread, and the one before afterwards."""
    cu = bindings()
    check(cu.cuCtxPushCurrent(context), what)
    try:
        yield
    finally:
        cu.cuCtxPopCurrent()
