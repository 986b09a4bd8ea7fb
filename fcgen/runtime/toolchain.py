"""Where CUDA's compiler, headers and tools are: in pip wheels, in a conda environment, or in a toolkit.

In: NVRTC's version. Out: which NVRTC to load where there are several, the include folders that make <mma.h>, <cuda_fp16.h> and
<cuda_bf16.h> compile, and the paths of nvdisasm and cuobjdump. Guaranteed: every header in NEEDED is in one of the returned folders,
folders whose CUDA version is NVRTC's own come first, and what is missing is named together with the wheel that has it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from fcgen.errors import FcError
from fcgen.runtime import driver

#: header -> the wheel it comes in, per CUDA major (12's wheels have a suffix, and keep `crt/` with the compiler).
NEEDED: dict[str, dict[int, str]] = {
    "cuda_fp16.h": {12: "nvidia-cuda-runtime-cu12", 13: "nvidia-cuda-runtime"},
    "cuda_bf16.h": {12: "nvidia-cuda-runtime-cu12", 13: "nvidia-cuda-runtime"},
    "mma.h": {12: "nvidia-cuda-runtime-cu12", 13: "nvidia-cuda-runtime"},
    "crt/mma.h": {12: "nvidia-cuda-nvcc-cu12", 13: "nvidia-cuda-crt"},
}
_NVRTC = re.compile(r"libnvrtc\.so\.(\d+)|nvrtc64_(\d+)0_\d+\.dll")
_VERSION = re.compile(rb"#define\s+CUDART_VERSION\s+(\d+)")


def wheel_roots() -> list[Path]:
    """The folders of the `nvidia` namespace package, which all of NVIDIA's wheels install into."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []


def toolkit_roots() -> list[Path]:
    """Toolkits, by the environment's word first."""
    named = [os.environ.get(v) for v in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX")]
    roots = [Path(p) for p in [*named, sys.prefix, "/usr/local/cuda"] if p]
    return [p for r in roots for p in (r, r / "targets" / "x86_64-linux") if p.is_dir()]


def _include_candidates() -> Iterator[Path]:
    seen = set()
    for folder in [d for r in wheel_roots() for d in sorted(r.glob("*/include"), reverse=True)] + \
                  [r / "include" for r in toolkit_roots()]:
        real = folder.resolve()
        if real not in seen and any((folder / h).is_file() for h in NEEDED):
            seen.add(real)
            yield folder


def header_version(folder: Path) -> tuple[int, int] | None:
    """The CUDA version that a folder's headers belong to, None where it does not say."""
    path = folder / "cuda_runtime_api.h"
    if not path.is_file():
        return None
    found = _VERSION.search(path.read_bytes())
    return (int(found[1]) // 1000, int(found[1]) % 1000 // 10) if found else None


@functools.cache
def include_dirs(nvrtc: tuple[int, int]) -> tuple[Path, ...]:
    """The include folders to compile with: a single one where one has every needed header."""
    def rank(folder: Path) -> tuple[int, bool]:
        version = header_version(folder)
        distance = 1 if version is None else 0 if version == nvrtc else 1 if version[0] == nvrtc[0] else 2
        return distance, not all((folder / h).is_file() for h in NEEDED)

    missing = list(NEEDED)
    dirs: list[Path] = []
    for folder in sorted(_include_candidates(), key=rank):  # stable: the search order breaks ties
        here = [h for h in missing if (folder / h).is_file()]
        if here:
            dirs.append(folder)
            missing = [h for h in missing if h not in here]
        if not missing:
            return tuple(dirs)
    wheels = sorted({NEEDED[h][13 if nvrtc[0] >= 13 else 12] for h in missing})
    raise FcError("compile/toolchain", "CUDA headers are missing", expected=", ".join(NEEDED),
                  got="not found: " + ", ".join(missing),
                  hint=f"pip install {' '.join(wheels)}, or set CUDA_HOME to a CUDA toolkit")


def find_tool(name: str) -> Path | None:
    """nvdisasm or cuobjdump: from the wheels, a toolkit, or PATH."""
    folders = [d for r in wheel_roots() for d in sorted(r.glob("*/bin"), reverse=True)]
    for folder in folders + [r / "bin" for r in toolkit_roots()]:
        found = shutil.which(name, path=str(folder))
        if found:
            return Path(found)
    found = shutil.which(name)
    return Path(found) if found else None


def _bindings_version() -> tuple[int, ...] | None:
    try:
        return tuple(int(n) for n in metadata.version("cuda-python").split(".")[:2])
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def nvrtc_library() -> Path | None:
    """The NVRTC to compile with, None where only the system's loader may know one: the newest whose CUDA major the driver has reached (an
    older driver does not load what a newer major made), wheels before toolkits. Without a driver cuda-python's major counts; where all are
    too new, the newest is taken."""
    version = driver.cuda_version() or _bindings_version()
    found: dict[int, Path] = {}
    for folder in [d for r in wheel_roots() for d in sorted([*r.glob("*/lib"), *r.glob("*/bin")])] + \
                  [d for r in toolkit_roots() for d in (r / "lib64", r / "lib")]:
        for file in sorted(folder.glob("*nvrtc*")):
            major = _NVRTC.fullmatch(file.name)
            if major:
                found.setdefault(int(major[1] or major[2]), file)
    fit = [m for m in found if version is None or m <= version[0]]
    return found[max(fit or found)] if found else None


def nvrtc_identity() -> str:
    """What tells one installed NVRTC from another without loading it: path, size and time of the library."""
    library = nvrtc_library()
    facts = library.stat() if library else None
    return f"{library}:{facts.st_size}:{facts.st_mtime_ns}" if facts else "system"
