"""Tensor maps: what the bulk copies of Hopper (TMA) need to know of a tensor, as 128 opaque bytes made by the driver.

In: pointer, dtype, shape, strides, the box of one copy and its swizzle. Out: the bytes. Made once per set of these and kept.
"""

from __future__ import annotations

import functools
from typing import Any

from fcgen.errors import FcError
from fcgen.runtime import driver

_DTYPES = {"f16": "FLOAT16", "bf16": "BFLOAT16", "f32": "FLOAT32", "i32": "INT32"}
_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "i32": 4}


@functools.lru_cache(maxsize=4096)
def encode(ptr: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int, name: str = "") -> bytes:
    """The tensor map of a tensor for copies of `box` (positions along each axis, outermost first).

    strides: in elements, the last one 1. swizzle: 0, 32, 64 or 128 bytes. Reads outside the tensor give zeros. name: for messages.
    Source: CUDA driver API, cuTensorMapEncodeTiled. Raises FcError "call/argument" for what a map cannot describe."""
    cu: Any = driver.bindings()
    size = _BYTES[dtype]
    if ptr % 16:
        raise FcError("call/argument", f"argument `{name}` is not aligned for bulk copies", expected="a multiple of 16 bytes", got=hex(ptr))
    inner = shape[::-1]
    outer_strides = []
    for n, s in zip(shape[-2::-1], strides[-2::-1]):
        wide = s * size if n > 1 else -(-max(shape[-1] * size, 16) // 16) * 16  # nothing is read along an axis of one position
        if wide % 16 or not 0 <= wide < 2**40:
            raise FcError("call/argument", f"argument `{name}` has a stride that bulk copies cannot take", expected="a multiple of 16 bytes",
                          got=f"{wide} bytes")
        outer_strides.append(wide)
    word = cu.cuuint64_t
    swizzles = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}
    made = driver.check(cu.cuTensorMapEncodeTiled(
        getattr(cu.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_DTYPES[dtype]}"), len(shape), ptr,
        [word(n) for n in inner], [word(s) for s in outer_strides], [cu.cuuint32_t(n) for n in reversed(box)],
        [cu.cuuint32_t(1)] * len(shape), cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(cu.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzles[swizzle]}"),
        cu.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        cu.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE), f"the tensor map of `{name}`")
    return b"".join(int(x).to_bytes(8, "little") for x in made.opaque)
