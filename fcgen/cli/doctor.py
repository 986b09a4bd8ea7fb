"""Is everything here that fcgen needs? One line per thing, with what to do about those that are missing.

In: the machine. Out: `Check`s. Guaranteed: nothing raises and torch is not imported; where all is ok, a kernel of the library was
compiled as any other is, and where there is a GPU it was run there and its numbers are right. A check that is `optional` may fail on a
healthy machine: without a GPU everything but launching works.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FcError
from ..runtime import cache, driver, nvrtc, tensors, toolchain

#: of the kernel that is compiled, and run where there is a GPU: batch, heads, rows, keys, head size
SIZES = (1, 2, 100, 150, 64)


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
        ("cache", _cache, True),
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
            for n in range(driver.device_count()):
                found += [_gpu(n), *(_launch(arch, n) for arch in _targets(n))]
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


def _targets(ordinal: int | None) -> list[str]:
    """What `fcgen.attention` and other specs compile for on a GPU; without one, a member of each family."""
    from ..build.compiler import targets

    if ordinal is None:
        return ["sm_89", "sm_90a"]
    own = driver.device_info(ordinal).arch
    return [a for a in dict.fromkeys((own.rstrip("a"), own)) if a in targets()]


@functools.cache
def _program(arch: str) -> Any:
    from ..build.compiler import build
    from ..ir.types import f16
    from ..kernels.attention import attention
    from ..kernels.schedules import choose

    b, h, m, n, d = SIZES
    schedule, lazy, sums = choose(arch, (b, h, m, d), (b, h, n, d), d, "none", sms=1)
    program = attention.compile(target=arch, schedule=schedule, T=f16, D=d, E=d, lazy=lazy, sums=sums)
    program.built = build(program.tile, schedule, program.target, cache=False)  # not what another day's toolchain has left on disk
    return program


def _compiler() -> Check:
    targets = [t for n in range(driver.device_count()) for t in _targets(n)] or _targets(None)
    made = [f"{t} ({_program(t).resources.registers} registers)" for t in dict.fromkeys(targets)]
    return Check("compiler", True, f"attention compiles for {' and '.join(made)}")


def _launch(arch: str, ordinal: int) -> Check:
    """The kernel's numbers on a GPU against float64."""
    name = f"{arch} on GPU {ordinal}"
    try:
        error = _largest_error(_program(arch), ordinal)
    except Exception as e:
        hint = e.hint if isinstance(e, FcError) else "please report this"
        return Check(name, False, str(e).splitlines()[0] if isinstance(e, FcError) else f"{type(e).__name__}: {e}", hint or "")
    return Check(name, error < 1e-2, f"attention ran, largest error {error:.1e}", "the result is wrong: please report this")


def _largest_error(program: Any, ordinal: int) -> float:
    """Of one launch, through the driver alone; inf where an element is missing."""
    from ..kernels.reference import attention_reference

    b, h, m, n, d = SIZES
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((b, h, length, d)).astype(np.float16) for length in (m, n, n))
    arrays: dict[str, np.ndarray] = {"Q": q, "K": k, "V": v, "O": np.full((b, h, m, d), np.nan, np.float16),
                                     "LSE": np.full((b, h, m), np.nan, np.float32)}
    dtypes = {np.dtype(np.float16): "f16", np.dtype(np.float32): "f32"}
    cu = driver.require()
    memory: dict[str, Any] = {}
    with driver.entered(driver.primary_context(ordinal), f"switching to device {ordinal}"):
        try:
            for name, x in arrays.items():
                memory[name] = driver.check(cu.cuMemAlloc(x.nbytes), "reserving memory")
                driver.check(cu.cuMemcpyHtoD(memory[name], x.ctypes.data, x.nbytes), "copying to the GPU")
            given = {name: tensors.TensorArg(int(memory[name]), x.shape, tensors.row_major(x.shape), dtypes[x.dtype], ordinal)
                     for name, x in arrays.items()}
            program.launcher({**given, "scale": d**-0.5}, 0)
            driver.check(cu.cuCtxSynchronize(), "running the kernel")
            for name in ("O", "LSE"):
                driver.check(cu.cuMemcpyDtoH(arrays[name].ctypes.data, memory[name], arrays[name].nbytes), "copying from the GPU")
        finally:
            for address in memory.values():
                cu.cuMemFree(address)
    want = attention_reference(q, k, v)
    error = max(float(np.abs(arrays[name].astype(np.float64) - w).max()) for name, w in zip(("O", "LSE"), want))
    return error if np.isfinite(error) else float("inf")


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
