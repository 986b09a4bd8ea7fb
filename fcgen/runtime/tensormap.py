"""Tensor maps: the 128 bytes that tell Hopper's TMA unit where a tensor lies and which box of it one instruction copies.

In: a tensor's pointer, dtype, shape and strides, the box along each of its dimensions, the swizzle of the box in shared memory. Out: the
bytes, to be passed to a kernel by value. Guaranteed: what the hardware cannot describe is refused with the tensor's name before anything is
launched; elements outside the tensor read as zeros; a map depends on its key alone, so a remembered one is never wrong.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from typing import Any

from fcgen.errors import FcError
from fcgen.runtime import driver

SIZE, ALIGN = 128, 64
MOST_AXES, MOST_BOX = 5, 256
_DTYPES = {"f16": ("FLOAT16", 2), "bf16": ("BFLOAT16", 2), "f32": ("FLOAT32", 4), "i32": ("INT32", 4)}
_SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}
_REMEMBERED = 4096

_cache: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
_lock = threading.Lock()


def encode(ptr: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int,
           name: str = "?") -> bytes:
    """The map of a tensor, outermost dimension first; strides and box count elements, swizzle is a span in bytes. name: for errors.

    A tensor without elements has a map of zeros: no instruction may use it, and a kernel with nothing to load does not.
    """
    key = (ptr, dtype, shape, strides, box, swizzle)
    with _lock:
        found = _cache.get(key)
        if found is not None:
            _cache.move_to_end(key)
            return found
    made = _encode(name, *key)
    with _lock:
        _cache[key] = made
        if len(_cache) > _REMEMBERED:
            _cache.popitem(last=False)
    return made


def byte_strides(name: str, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Strides in bytes of all dimensions but the innermost, innermost first, each one that TMA takes.

    A dimension of size 1 is never stepped along, so its stride is replaced by what a packed tensor would have.
    """
    out: list[int] = []
    packed = shape[-1] * itemsize
    for axis in range(len(shape) - 2, -1, -1):
        step = strides[axis] * itemsize if shape[axis] > 1 else -(-packed // 16) * 16
        if shape[axis] == 1 and step >= 2**40:
            step = 16
        if step % 16:
            raise FcError("call/argument", f"axis {axis} of argument `{name}` is not aligned",
                          expected="a stride that is a multiple of 16 bytes", got=f"{strides[axis]} elements of {itemsize} bytes",
                          hint=f"pad the last axis of {name} to a multiple of {16 // itemsize} elements")
        if not 0 <= step < 2**40:
            raise FcError("call/argument", f"axis {axis} of argument `{name}` has a stride that TMA cannot take", got=f"{step} bytes",
                          expected="0 up to 2**40 bytes", hint=f"call {name}.contiguous()")
        out.append(step)
        packed = max(packed, step * shape[axis])
    return out


def _encode(name: str, ptr: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int) -> bytes:
    if 0 in shape:
        return bytes(SIZE)
    if dtype not in _DTYPES:
        raise FcError("call/argument", f"argument `{name}` has a dtype that TMA does not copy", expected=", ".join(_DTYPES), got=dtype)
    word, itemsize = _DTYPES[dtype]
    _check(name, ptr, itemsize, shape, strides)
    _check_box(name, itemsize, shape, box, swizzle)
    steps = byte_strides(name, itemsize, shape, strides)
    cu = driver.bindings()
    big, small = cu.cuuint64_t, cu.cuuint32_t
    result = cu.cuTensorMapEncodeTiled(
        getattr(cu.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{word}"), len(shape), ptr, [big(n) for n in reversed(shape)],
        [big(n) for n in steps], [small(n) for n in reversed(box)], [small(1)] * len(shape),
        cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(cu.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{_SWIZZLES[swizzle]}"),
        cu.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B, cu.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
    made = driver.check(result, f"describing argument `{name}` to TMA (shape {shape}, strides {strides}, box {box}, swizzle {swizzle})",
                        code="call/argument")
    return ctypes.string_at(int(made.getPtr()), SIZE)


def _check(name: str, ptr: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    if not 2 <= len(shape) <= MOST_AXES:  # the driver takes no map of one axis (H200, driver 580)
        raise FcError("call/argument", f"argument `{name}` has a number of axes that TMA cannot take", expected=f"2 to {MOST_AXES}",
                      got=len(shape))
    if ptr % 16:
        raise FcError("call/argument", f"argument `{name}` is not aligned", expected="a multiple of 16 bytes",
                      got=f"{ptr:#x}, {ptr % 16} bytes past one",
                      hint=f"{name} looks like a slice that starts inside a row: call {name}.clone()")
    if strides[-1] != 1 and shape[-1] > 1:
        raise FcError("call/argument", f"the last axis of argument `{name}` is not contiguous", expected="stride 1",
                      got=f"stride {strides[-1]}", hint=f"call {name}.contiguous()")
    if max(shape) >= 2**32:
        raise FcError("call/argument", f"argument `{name}` is too large", expected="sizes below 2**32", got=shape)


def _check_box(name: str, itemsize: int, shape: tuple[int, ...], box: tuple[int, ...], swizzle: int) -> None:
    """What the compiler decides. A failure here is a compiler's mistake, told before the driver says only "invalid value"."""
    wrong = None
    if len(box) != len(shape):
        wrong = f"a box of {len(shape)} sizes"
    elif not all(1 <= n <= MOST_BOX for n in box):
        wrong = f"box sizes of 1 to {MOST_BOX}"
    elif swizzle not in _SWIZZLES:
        wrong = f"a swizzle of {', '.join(map(str, _SWIZZLES))}"
    elif box[-1] * itemsize % 16:
        wrong = "a box whose rows are multiples of 16 bytes"
    elif swizzle and box[-1] * itemsize > swizzle:
        wrong = f"a box whose rows have at most the swizzle's {swizzle} bytes"
    if wrong:
        raise FcError("call/argument", f"the kernel's box of argument `{name}` is not one that TMA copies", expected=wrong,
                      got=f"box {box}, swizzle {swizzle}, {itemsize} bytes per element")
