"""Launches of loaded kernels whose parameters no program knows: for kernels that tests write in CUDA themselves."""

from __future__ import annotations

import ctypes
from typing import Any

from fcgen.runtime import module

#: kinds of parameters; a 64-bit number is passed as "ptr": it has no sign
KINDS = {"ptr": ctypes.c_uint64, "i32": ctypes.c_int32, "i64": ctypes.c_int64, "u32": ctypes.c_uint32, "f32": ctypes.c_float}


def _held(kind: str, value: Any) -> tuple[Any, int]:
    """Memory with a parameter's value, and its address. A tensor map lies on a multiple of 64 bytes."""
    if kind == "tensormap":
        memory = ctypes.create_string_buffer(len(value) + 63)
        at = ctypes.addressof(memory) + 63 & ~63
        ctypes.memmove(at, bytes(value), len(value))
        return memory, at
    number = KINDS[kind](value if isinstance(value, (int, float)) else value.data_ptr())
    return number, ctypes.addressof(number)


def launch(kernel: module.LoadedKernel, kinds: tuple[str, ...], values: list[Any], *, blocks: int = 1, threads: int, smem: int = 0,
           pdl: bool = False) -> None:
    """On torch's current stream; tensors among the values are passed as their pointers. pdl: it may begin before the launch in front has
    ended, and is not waited for."""
    import torch

    held = [_held(kind, value) for kind, value in zip(kinds, values, strict=True)]
    pointers = (ctypes.c_void_p * len(held))(*(at for _, at in held))  # the driver copies what they point to during the launch
    attributes, count = module.OVERLAP if pdl else (None, 0)
    config = module.LaunchConfig((blocks, 1, 1), (threads, 1, 1), smem, torch.cuda.current_stream().cuda_stream, attributes, count)
    kernel.starter()(ctypes.byref(config), ctypes.addressof(pointers))
    if not pdl:
        torch.cuda.synchronize()
