"""Is everything here that fcgen needs? One line per thing, with what to do about those that are missing.

In: the machine. Out: `Check`s. Guaranteed: nothing raises and torch is not imported. A check that is `optional` may fail
on a healthy machine: without a GPU everything but launching works.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fcgen.errors import FcError
from fcgen.runtime import cache, cubin, driver, nvrtc, toolchain

#: Includes what generated code includes.
_PROBE = """#include <mma.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void probe(const __half* a, __nv_bfloat16* b) {
    b[threadIdx.x] = __float2bfloat16(__half2float(a[threadIdx.x]));
}
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. hint: what to do if not ok."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    optional: bool = False


def checks() -> list[Check]:
    """All checks, in the order in which they build on each other."""
    steps: list[tuple[str, Callable[[], Check], bool]] = [
        ("python", _python, False),
        ("fcgen", lambda: _package("fcgen", "fcgen", "pip install -e . in its folder makes `fcgen` a command"), True),
        ("numpy", lambda: _package("numpy", "numpy", "pip install numpy"), False),
        ("lark", lambda: _package("lark", "lark", "pip install lark"), False),
        ("cuda-python", lambda: _package("cuda-python", "cuda-bindings", "pip install 'cuda-python>=12.6'"), False),
        ("NVRTC", _nvrtc, False),
        ("CUDA headers", _headers, False),
        ("compiler", _compiler, False),
        ("disassembler", _disassembler, True),
        ("cache", _cache, False),
        ("driver", _driver, True),
        ("torch", lambda: _package("torch", "torch", "pip install torch (only if you want to call kernels with torch)"), True),
    ]
    found = []
    for name, step, optional in steps:
        try:
            result = step()
        except FcError as error:
            got = "" if error.got is None else f": {error.got}"
            result = Check(name, False, f"{error.message}{got}", error.hint or "")
        except Exception as error:  # a doctor that dies of what it looks for is of no use
            result = Check(name, False, f"{type(error).__name__}: {error}", "please report this")
        found.append(Check(result.name, result.ok, result.detail, "" if result.ok else result.hint, optional))
        if name == "driver" and result.ok:
            found += [_gpu(n) for n in range(driver.device_count())]
    return found


def _python() -> Check:
    return Check("python", sys.version_info >= (3, 10), f"{platform.python_version()} ({sys.executable})",
                 "Python 3.10 or newer is needed")


def _package(name: str, distribution: str, hint: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", hint)


def _nvrtc() -> Check:
    major, minor = nvrtc.nvrtc_version()
    return Check("NVRTC", True, f"{major}.{minor} ({_loaded_library('nvrtc') or 'loaded by cuda-python'})")


def _loaded_library(part: str) -> str | None:
    """The path of a library of this process, where the system shows it."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "/" in line}
    return min((p for p in paths if part in os.path.basename(p) and ".so" in p and "builtins" not in p
                and "cpython" not in p and "lib" + part in p), default=None)


def _headers() -> Check:
    folders = toolchain.include_dirs(nvrtc.nvrtc_version())
    versions = [".".join(map(str, v)) for v in map(toolchain.header_version, folders) if v]
    return Check("CUDA headers", True, f"{versions[0] if versions else 'version unknown'} "
                                       f"({', '.join(map(str, folders))})")


def _compiler() -> Check:
    binary = nvrtc.compile_cuda(_PROBE, "sm_89", name="probe")
    registers = binary.resources()["probe"].registers
    return Check("compiler", True, f"a kernel with mma.h, cuda_fp16.h and cuda_bf16.h compiles for "
                                   f"{cubin.arch_of(binary.cubin)} ({registers} registers)")


def _disassembler() -> Check:
    tool = toolchain.find_tool("nvdisasm")
    return Check("disassembler", tool is not None, str(tool or "nvdisasm is not installed"),
                 "pip install nvidia-cuda-nvdisasm (only to read SASS)")


def _cache() -> Check:
    stats = cache.DiskCache(cache.cache_dir()).stats()
    return Check("cache", True, f"{stats.path} ({stats.entries} kernels, {stats.bytes / 1e6:.1f} MB)")


def _driver() -> Check:
    ok, reason = driver.available()
    if not ok:
        return Check("driver", False, reason, "kernels can be interpreted, simulated, compiled and read here, but not run")
    version = driver.device_info(0).driver_version
    return Check("driver", True, f"CUDA {version[0]}.{version[1]}, {reason}")


def _gpu(ordinal: int) -> Check:
    try:
        info = driver.device_info(ordinal)
    except FcError as error:
        return Check(f"GPU {ordinal}", False, error.message, error.hint or "", optional=True)
    ok = info.capability >= (8, 0)
    return Check(f"GPU {ordinal}", ok,
                 f"{info.name}: {info.arch}, {info.sm_count} SMs, {info.smem_per_block // 1024} KiB shared memory per block, "
                 f"{info.memory_bytes / 2**30:.0f} GiB", "" if ok else "fcgen needs sm_80 or newer", optional=True)
