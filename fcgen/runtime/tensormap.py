"""Tensor maps: the 128 bytes that tell Hopper's TMA unit where a tensor lies and which box of it one instruction copies.

In: a tensor's pointer, dtype, shape and strides, the box along each of its dimensions, the swizzle of the box in shared memory. Out: the
bytes, in a block of kernel parameters: a map is passed by value. Guaranteed: what the hardware cannot describe is refused with the tensor's
name before anything is launched; elements outside the tensor read as zeros.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from fcgen.errors import FcError
from fcgen.ir.access import CUT
from fcgen.runtime import driver

SIZE, ALIGN = 128, 64
#: of a run with a limit: CUT steps of this many bytes go around 64 bits; more positions than any limit has
AROUND, MOST = 2**64 // CUT, 2**31 - 1
MOST_AXES, MOST_BOX = 5, 256
#: dtype -> (CUtensorMapDataType, bytes)
_DTYPES = {"f16": (6, 2), "bf16": (9, 2), "f32": (7, 4), "f64": (8, 8), "i64": (5, 8), "i32": (3, 4), "u32": (2, 4), "i8": (0, 1),
           "u8": (0, 1), "i1": (0, 1), "f8e4m3": (0, 1), "f8e5m2": (0, 1)}
#: bytes -> CUtensorMapSwizzle
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_PROMOTION_256B = 3  # CU_TENSOR_MAP_L2_PROMOTION_L2_256B


class Box:
    """What a kernel copies of a tensor at once: outermost dimension first, in elements. swizzle: a span in bytes. name: for errors. cut:
    the axis that has a limit, which the kernel's coordinates say (`ir.access.CUT`), or -1. rank: of the tensor; axes: of the map."""

    def __init__(self, dtype: str, box: tuple[int, ...], swizzle: int, name: str = "?", cut: int = -1):
        if dtype not in _DTYPES:
            raise FcError("call/argument", f"argument `{name}` has a dtype that TMA does not copy", expected=", ".join(_DTYPES), got=dtype)
        self.name, self._box, self._swizzle, self.rank, self.cut = name, box, swizzle, len(box), cut
        self.axes = self.rank + (2 if cut >= 0 else 0)
        kind, self.itemsize = _DTYPES[dtype]
        if not self.rank >= 2 or self.axes > MOST_AXES:  # the driver takes no map of one axis (H200, driver 580)
            raise FcError("call/argument", f"argument `{name}` has a number of axes that TMA cannot take", expected=f"2 to {MOST_AXES}",
                          got=self.rank)
        _check_box(name, self.itemsize, box, swizzle)
        number = ctypes.c_uint32
        self._first = number(kind), number(self.axes)
        whole = (*[1] * (self.axes - self.rank), *box)
        self._last = ((number * self.axes)(*reversed(whole)), (number * self.axes)(*[1] * self.axes),
                      *map(number, (0, _SWIZZLES[swizzle], _PROMOTION_256B, 0)))
        #: what the driver writes one with, of a window's arguments; not 0 where `encode` knows better
        self.write = driver.native().cuTensorMapEncodeTiled

    def layout(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
        """What a map says of a tensor, as 64-bit numbers: its sizes, innermost first, then the strides of all but the innermost dimension
        in bytes. Zeros for a tensor without elements: no instruction may use its map, and a kernel with nothing to load does not."""
        if len(shape) == 1:  # the driver takes no map of one axis
            shape, strides = (1, *shape), (0, *strides)
        if len(shape) != self.rank:
            raise FcError("call/argument", f"argument `{self.name}` has the wrong number of axes", expected=self.rank, got=shape)
        if 0 in shape:
            return (0,) * (2 * self.axes - 1)
        if strides[-1] != 1 and shape[-1] > 1:
            raise FcError("call/argument", f"the last axis of argument `{self.name}` is not contiguous", expected="stride 1",
                          got=f"stride {strides[-1]}", hint=f"call {self.name}.contiguous()")
        if max(shape) >= 2**32:
            raise FcError("call/argument", f"argument `{self.name}` is too large", expected="sizes below 2**32", got=shape)
        steps = byte_strides(self.name, self.itemsize, shape, strides)
        if self.cut < 0:
            return (*shape[::-1], *steps)
        if shape[self.cut] > CUT or steps[self.rank - 2 - self.cut] >= AROUND:
            raise FcError("call/argument", f"axis {self.cut} of argument `{self.name}` is too large to be cut off at a limit",
                          expected=f"at most {CUT} positions, less than {AROUND} bytes apart", got=(shape, strides))
        sizes, wide = self.with_limit(list(shape), [*reversed(steps), self.itemsize])
        return (*sizes[::-1], *wide[-2::-1])

    def with_limit(self, shape: list[Any], steps: list[Any]) -> tuple[list[Any], list[Any]]:
        """Sizes and byte strides, of numbers or of text, with the two axes that a limit takes."""
        sizes = [CUT if axis == self.cut else n for axis, n in enumerate(shape)]
        step = steps[self.cut]
        return [MOST, MOST, *sizes], [f"{AROUND} - {step}" if isinstance(step, str) else AROUND - step, step, *steps]

    def window(self, into: int, layout: int) -> Window:
        """A place for a map, with the numbers of its layout at an address."""
        pointer = ctypes.c_void_p()
        numbers = ctypes.c_void_p(layout), ctypes.c_void_p(layout + 8 * self.axes)
        return Window(into, pointer, (ctypes.c_void_p(into), *self._first, pointer, *numbers, *self._last))

    def encode(self, window: Window, pointer: int, layout: tuple[int, ...]) -> None:
        """Write the map of the tensor at a pointer; the window's numbers are those of its layout."""
        if not layout[0]:
            ctypes.memset(window.into, 0, SIZE)
            return
        if pointer % 16:
            raise FcError("call/argument", f"argument `{self.name}` is not aligned", expected="a multiple of 16 bytes",
                          got=f"{pointer:#x}, {pointer % 16} bytes past one",
                          hint=f"{self.name} looks like a slice that starts inside a row: call {self.name}.clone()")
        window.pointer.value = pointer
        status = self.write(*window.arguments)
        if status in driver.WRONG_CONTEXT:
            with driver.entered(driver.retained(), "describing a tensor"):
                status = self.write(*window.arguments)
        if status:
            driver.check_status(status, f"describing argument `{self.name}` to TMA (innermost first: sizes {layout[:self.axes]}, byte "
                                f"strides {layout[self.axes:]}, box {self._box[::-1]}; swizzle {self._swizzle})", code="call/argument")


class Window(NamedTuple):
    """Where a map is written, and what the driver is given for it: ctypes takes its own objects in two thirds of the time."""

    into: int
    pointer: ctypes.c_void_p
    arguments: tuple[Any, ...]


def encode(ptr: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int,
           name: str = "?") -> bytes:
    """A map by itself."""
    made = Box(dtype, box, swizzle, name)
    layout = made.layout(shape, strides)
    raw, numbers = ctypes.create_string_buffer(SIZE + ALIGN), (ctypes.c_uint64 * len(layout))(*layout)
    at = -ctypes.addressof(raw) % ALIGN
    made.encode(made.window(ctypes.addressof(raw) + at, ctypes.addressof(numbers)), ptr, layout)
    return raw.raw[at:at + SIZE]


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


def _check_box(name: str, itemsize: int, box: tuple[int, ...], swizzle: int) -> None:
    """What the compiler decides. A failure here is a compiler's mistake, told before the driver says only "invalid value"."""
    wrong = None
    if not all(1 <= n <= MOST_BOX for n in box):
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
