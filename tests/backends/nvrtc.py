"""NVRTC for tests: text in, cubin and log out. Without the package, tests that need it are skipped."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest


def include_dirs() -> list[str]:
    spec = find_spec("nvidia")
    if spec is None or not spec.submodule_search_locations:
        return []
    return [str(p) for root in spec.submodule_search_locations for p in Path(root).glob("*/include")]


def compile_cubin(text: str, arch: str, *options: str) -> tuple[bytes, bytes, str]:
    """(cubin, PTX, log with ptxas -v). Fails the test with the log if NVRTC refuses."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    err, prog = nvrtc.nvrtcCreateProgram(text.encode(), b"k.cu", 0, [], [])
    assert err == nvrtc.nvrtcResult.NVRTC_SUCCESS
    args = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", "--ptxas-options=-v", *options]
    args += [f"-I{d}" for d in include_dirs()]
    (err,) = nvrtc.nvrtcCompileProgram(prog, len(args), [a.encode() for a in args])
    _, n = nvrtc.nvrtcGetProgramLogSize(prog)
    log = b" " * n
    nvrtc.nvrtcGetProgramLog(prog, log)
    said = log.decode().strip("\0 ")
    assert err == nvrtc.nvrtcResult.NVRTC_SUCCESS, said
    _, n = nvrtc.nvrtcGetCUBINSize(prog)
    cubin = b" " * n
    nvrtc.nvrtcGetCUBIN(prog, cubin)
    _, n = nvrtc.nvrtcGetPTXSize(prog)
    ptx = b" " * n
    nvrtc.nvrtcGetPTX(prog, ptx)
    return cubin, ptx, said


def sass(cubin: bytes, tmp: Path) -> str:
    """The disassembly, or a skip where nvdisasm is missing."""
    spec = find_spec("nvidia")
    found = shutil.which("nvdisasm") or next(
        (str(p) for r in (spec.submodule_search_locations if spec else ()) or () for p in Path(r).glob("*/bin/nvdisasm")), None
    )
    if found is None:
        pytest.skip("nvdisasm is not installed")
    path = tmp / "k.cubin"
    path.write_bytes(cubin)
    return subprocess.run([found, str(path)], capture_output=True, text=True, check=True).stdout
