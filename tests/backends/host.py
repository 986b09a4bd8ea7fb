"""Runs generated text on the CPU with g++ and fibers (`host_shim.h`): slow, exact, and without a GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fcgen.backends.cuda.printer import CudaSource

SHIM = Path(__file__).with_name("host_shim.h")
_C = {"int": ctypes.c_int, "uint32_t": ctypes.c_uint32, "long long": ctypes.c_longlong, "float": ctypes.c_float, "double": ctypes.c_double}


def host_text(src: CudaSource) -> str:
    """The kernel as host C++: device functions that the shim provides are taken out."""
    shim = SHIM.read_text(encoding="utf-8")
    provided = set(re.findall(r"\b(\w+)\(", "\n".join(t for t in shim.splitlines() if t.startswith(("static", "template"))))) | {
        f"{o}_shared_{t}x{n}" for o in ("ld", "st") for t in ("f32", "b32", "i32") for n in (1, 2, 4)
    }

    def keep(m: re.Match[str]) -> str:
        return "" if m[2] in provided else m[0]

    text = re.sub(
        r"(template <int \w+>\n)?__device__ __forceinline__ [\w ]+? (\w+)\([^\n]*\{\n.*?\n\}\n", keep, src.text, flags=re.S
    )
    text = re.sub(r"template <int N>\n(?=\n)", "", text).replace("using uint32_t = unsigned int;", "").replace("using uint64_t = unsigned long long;", "")
    args = "\n".join(f"static {p.ctype} arg{n};" for n, p in enumerate(src.params))
    read = "\n".join(f"    arg{n} = *({p.ctype}*)a[{n}];" for n, p in enumerate(src.params))
    names = ", ".join(f"arg{n}" for n in range(len(src.params)))
    return (
        f'#include "{SHIM}"\n{text}\n{args}\nextern "C" void run(void** a, int blocks) {{\n{read}\n'
        f"    kernel_body = [] {{ {src.name}({names}); }};\n    launch(blocks, {src.threads});\n}}\n"
    )


#: nvcc makes one multiply-add of a product and a sum, with one rounding, and so does g++ where the CPU can
_CPU = Path("/proc/cpuinfo")
CONTRACT = ("-mfma", "-ffp-contract=fast", "-fexpensive-optimizations") if _CPU.exists() and " fma " in _CPU.read_text() else ()


def run_on_host(
    src: CudaSource, tmp: Path, blocks: int, tensors: dict[str, np.ndarray], scalars: dict[str, float], sizes: dict[str, int]
) -> None:
    """Run all blocks. Tensors are C-contiguous or strided arrays of the storage dtype (uint16 for bf16); outputs are written."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    cpp, lib, text = tmp / "k.cpp", tmp / "k.so", host_text(src)
    if not lib.exists() or cpp.read_text(encoding="utf-8") != text:
        cpp.write_text(text, encoding="utf-8")
        lib.unlink(missing_ok=True)  # (one that is loaded stays as it is)
        subprocess.run(["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", *CONTRACT, "-o", str(lib), str(cpp)], check=True)
    values = []
    for p in src.params:
        if p.kind == "ptr":
            values.append(ctypes.c_void_p(tensors[p.name].ctypes.data))
        elif p.kind == "stride":
            t = tensors[p.name]
            values.append(ctypes.c_longlong(t.strides[p.axis] // t.itemsize))
        else:
            values.append(_C[p.ctype]((sizes if p.kind == "size" else scalars)[p.name]))
    array = (ctypes.c_void_p * len(values))(*[ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values])
    ctypes.CDLL(str(lib)).run(array, blocks)
