"""CUDA C++ text to a cubin, with NVRTC.

In: source, an architecture ("sm_89", "sm_90a"), a name for it, and where each generated line came from. Out: `Binary`.
Guaranteed: a compile error is shown at the generated line, with the lines around it, and at the line of the spec that
the line came from; a missing or old NVRTC or header says what to install. Nothing here needs a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fcgen.errors import FcError, Loc
from fcgen.runtime import cubin as cubin_facts
from fcgen.runtime import diagnose, driver, toolchain

OLDEST = (12, 4)
_ARCH = re.compile(r"sm_(\d{2,3})([af]?)")
#: Registers and spills of each kernel, and advice such as "wgmma serialised", come in the log.
_VERBOSE = "--ptxas-options=-v"
_ADVICE = re.compile(r"\(C\d{4}\)|\bwarning\b|\badvisory\b", re.IGNORECASE)


@dataclass(frozen=True)
class Binary:
    """A compiled kernel file. `log` is all that NVRTC and ptxas said."""

    cubin: bytes
    log: str
    arch: str
    name: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """The log's warnings and performance advice, one line each."""
        return tuple(line.strip() for line in self.log.splitlines() if _ADVICE.search(line))

    def resources(self) -> dict[str, cubin_facts.Resources]:
        """kernel name -> registers, spills, stack and shared memory."""
        return cubin_facts.resources(self.cubin, self.log)


def wheels_for(driver_version: tuple[int, int] | None) -> str:
    """What to install for a driver: CUDA 13 needs driver 580; the wheels of CUDA 12 go with older ones."""
    major = 12 if driver_version and driver_version < (13, 0) else 13
    return " ".join([f"nvidia-cuda-nvrtc{'-cu12' if major == 12 else ''}", *sorted({w[major] for w in toolchain.NEEDED.values()})])


@functools.cache
def nvrtc_version() -> tuple[int, int]:
    """NVRTC's version; refuses one that is absent or older than OLDEST."""
    nvrtc = _bindings()
    library = toolchain.nvrtc_library()
    try:
        if library is not None:
            ctypes.CDLL(str(library))  # what is loaded already is what cuda-bindings finds first, whichever wheels there are beside it
        status, major, minor = nvrtc.nvrtcVersion()
    except (RuntimeError, OSError) as error:  # every release of cuda-bindings reports a library it cannot find this way
        raise FcError("compile/toolchain", "the NVRTC library cannot be loaded", got=str(error).split("\n")[0],
                      hint=f"pip install {wheels_for(driver.cuda_version())}, or set CUDA_HOME to a CUDA toolkit") from error
    if int(status) != 0:
        raise FcError("compile/toolchain", "NVRTC does not start", got=str(status))
    if (major, minor) < OLDEST:
        raise FcError("compile/toolchain", "NVRTC is too old", expected=f"{OLDEST[0]}.{OLDEST[1]} or newer",
                      got=f"{major}.{minor}", hint=f"pip install -U {wheels_for(driver.cuda_version())}")
    return major, minor


def compile_cuda(source: str, arch: str, *, name: str, options: tuple[str, ...] = (),
                 line_map: Mapping[int, Loc] | None = None) -> Binary:
    """Compile to a cubin for `arch`. line_map: generated line (from 1) -> the spec's place it came from."""
    _check_arch(arch)
    file = _file_name(name)
    flags = _flags(arch, (_VERBOSE, *options))
    cubin, log = _compile(source, file, flags, "CUBIN")
    if cubin is None:
        ptx = None
        if diagnose.is_ptxas_error(log):
            # ptxas names a line of the PTX. Both sides are made once more with .loc lines, which lead to the source.
            _, log = _compile(source, file, [*flags, "-lineinfo"], "CUBIN")
            ptx, _ = _compile(source, file, _flags(_virtual(arch), (*options, "-lineinfo")), "PTX")
        raise diagnose.failure(log, source, file, arch, line_map or {}, ptx.decode() if ptx else None)
    return Binary(cubin, log, arch, name)


def ptx_of(source: str, arch: str, *, name: str, options: tuple[str, ...] = (),
           line_map: Mapping[int, Loc] | None = None) -> str:
    """The PTX of the same source: `arch` as for compile_cuda ("sm_90a" gives compute_90a's PTX)."""
    _check_arch(arch)
    file = _file_name(name)
    ptx, log = _compile(source, file, _flags(_virtual(arch), options), "PTX")
    if ptx is None:
        raise diagnose.failure(log, source, file, arch, line_map or {}, None)
    return ptx.rstrip(b"\0").decode()


def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise FcError("compile/toolchain", "cuda-python cannot be imported", got=str(error),
                      hint="pip install 'cuda-python>=12.6'") from error
    return nvrtc


def _file_name(name: str) -> str:
    return name if name.endswith((".cu", ".cpp")) else name + ".cu"


def _virtual(arch: str) -> str:
    return arch.replace("sm_", "compute_")


def _check_arch(arch: str) -> None:
    matched = _ARCH.fullmatch(arch)
    if not matched:
        raise FcError("compile/toolchain", "this is not a GPU architecture", expected="sm_80, sm_89, sm_90a, ...",
                      got=arch)
    known = _supported()
    if int(matched[1]) not in known:
        version = ".".join(map(str, nvrtc_version()))
        raise FcError("compile/toolchain", f"NVRTC {version} does not compile for {arch}",
                      expected=", ".join(f"sm_{a}" for a in known), got=arch,
                      hint="a newer GPU needs a newer NVRTC (pip install -U nvidia-cuda-nvrtc); a GPU older than "
                           "sm_80 is not supported by fcgen")


@functools.cache
def _supported() -> tuple[int, ...]:
    nvrtc_version()
    nvrtc = _bindings()
    status, count = nvrtc.nvrtcGetNumSupportedArchs()
    if int(status) != 0:
        raise FcError("compile/toolchain", "NVRTC does not say which GPUs it compiles for", got=str(status))
    status, archs = nvrtc.nvrtcGetSupportedArchs()
    return tuple(sorted(int(a) for a in list(archs)[:count]))


def _flags(arch: str, more: tuple[str, ...]) -> list[str]:
    """C++17 for the constexpr helpers. No option may come twice: NVRTC before 12.6 refuses that."""
    folders = toolchain.include_dirs(nvrtc_version())
    return [f"--gpu-architecture={arch}", "--std=c++17", *(f"-I{d}" for d in folders), *more]


def _compile(source: str, file: str, flags: list[str], kind: str) -> tuple[bytes | None, str]:
    """(the CUBIN or the PTX, None where NVRTC refused, and the log)."""
    nvrtc_version()
    nvrtc = _bindings()

    def must(result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            raise FcError("compile/toolchain", "NVRTC failed", got=nvrtc.nvrtcGetErrorString(result[0])[1].decode())
        return result[1] if len(result) > 1 else None

    program = must(nvrtc.nvrtcCreateProgram(source.encode(), file.encode(), 0, [], []))
    try:
        status = int(nvrtc.nvrtcCompileProgram(program, len(flags), [f.encode() for f in flags])[0])
        log_buffer = _buffer(must(nvrtc.nvrtcGetProgramLogSize(program)))
        must(nvrtc.nvrtcGetProgramLog(program, log_buffer))
        log = log_buffer.replace(b"\0", b"").decode(errors="replace").rstrip()  # ptxas's part ends in a NUL of its own
        if status == int(nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION):
            raise FcError("compile/toolchain", "NVRTC does not know one of its options", got=" ".join(flags),
                          notes=log.splitlines())
        if status != 0:
            reason = nvrtc.nvrtcGetErrorString(nvrtc.nvrtcResult(status))[1].decode()
            return None, log or reason
        output = _buffer(size := must(getattr(nvrtc, f"nvrtcGet{kind}Size")(program)))
        must(getattr(nvrtc, f"nvrtcGet{kind}")(program, output))
        return output[:size], log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _buffer(size: int) -> bytes:
    """Room that NVRTC writes into. At least two bytes: CPython keeps one object for every one-byte string, and a log of length 1 would be
    written over the b" " of the whole process."""
    return b"\0" * (size + 1)
