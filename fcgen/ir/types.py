"""Types of both IR levels.

A tile-level value is a `Scalar` or a `Tile` (dtype and shape, nothing else). A machine-level value is a `Scalar`, a `Frag`
(a tile spread over the registers of a group of warps by a `RegLayout`) or a `Buffer` (a ring of tiles in shared memory).
`Tensor` is a kernel parameter in global memory at both levels. Types are frozen values: equal when their fields are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import FcError, closest
from .layout import OpaqueLayout, RegLayout, SmemLayout


@dataclass(frozen=True)
class DType:
    """An element type. `stored` is its NumPy dtype in memory; `np_dtype` is what the interpreters hold it in: floats that NumPy itself
    does not have are held as float32 rounded to them."""

    name: str
    bits: int
    is_float: bool
    signed: bool = True

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"fc.{self.name}"

    @property
    def bytes(self) -> int:
        return max(1, self.bits // 8)

    @property
    def is_int(self) -> bool:
        return not self.is_float and self.bits > 1

    @property
    def computed(self) -> DType:
        """The dtype that functions of this one are computed in before their result is rounded or wrapped, and that sums are kept in."""
        return self if self.bits >= 32 or self.bits == 1 else f32 if self.is_float else i32

    @property
    def per_register(self) -> int:
        """Elements that share a 32-bit register; 1 for those that have one or two of their own, and for conditions."""
        return 32 // self.bits if 1 < self.bits < 32 else 1

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest number that an integer dtype holds."""
        if self.bits == 1:
            return 0, 1
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)

    @property
    def largest(self) -> float:
        """The largest finite number of a float dtype."""
        return float(ml_dtypes.finfo(self.stored).max)

    @property
    def stored(self) -> np.dtype:
        return _STORED[self.name]

    @property
    def np_dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self.name in _FOREIGN else _STORED[self.name]


_FOREIGN = {"bf16": ml_dtypes.bfloat16, "f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2}
_STORED = {name: np.dtype(t) for name, t in (("f16", np.float16), ("f32", np.float32), ("f64", np.float64), ("i1", np.bool_),
                                             ("i8", np.int8), ("u8", np.uint8), ("i32", np.int32), ("u32", np.uint32), ("i64", np.int64),
                                             *_FOREIGN.items())}


f16 = DType("f16", 16, True)
bf16 = DType("bf16", 16, True)
f32 = DType("f32", 32, True)
f64 = DType("f64", 64, True)
f8e4m3 = DType("f8e4m3", 8, True)
f8e5m2 = DType("f8e5m2", 8, True)
i1 = DType("i1", 1, False)
i8 = DType("i8", 8, False)
u8 = DType("u8", 8, False, signed=False)
i32 = DType("i32", 32, False)
u32 = DType("u32", 32, False, signed=False)
i64 = DType("i64", 64, False)
DTYPES: dict[str, DType] = {d.name: d for d in (f16, bf16, f32, f64, f8e4m3, f8e5m2, i1, i8, u8, i32, u32, i64)}

#: what NumPy, torch and C call them
ELSEWHERE = {"half": "f16", "float16": "f16", "fp16": "f16", "bfloat16": "bf16", "float": "f32", "float32": "f32", "fp32": "f32",
             "double": "f64", "float64": "f64", "fp64": "f64", "bool": "i1", "int": "i32", "int32": "i32", "long": "i64", "int64": "i64",
             "int8": "i8", "char": "i8", "uint8": "u8", "byte": "u8", "uint": "u32", "uint32": "u32", "float8_e4m3fn": "f8e4m3",
             "float8_e5m2": "f8e5m2", "e4m3": "f8e4m3", "e5m2": "f8e5m2", "fp8": "f8e4m3", "fp8e4m3": "f8e4m3", "fp8e5m2": "f8e5m2",
             "fp8_e4m3": "f8e4m3", "fp8_e5m2": "f8e5m2", "f8e4m3fn": "f8e4m3", "e4m3fn": "f8e4m3"}
_SIZED = re.compile(r"(i|u|int|uint|f|fp|bf|float|bfloat)(1|4|8|16|32|64|128)(_?e\dm\d\w*)?")


def looks_like_dtype(word: str) -> bool:
    """Whether a word is meant as a dtype's name, fcgen's own or another system's."""
    word = word.lower()
    return word in DTYPES or word in ELSEWHERE or _SIZED.fullmatch(word) is not None


def dtype_meant(word: str) -> str | None:
    """The name of the dtype that a word for one most likely means, None where fcgen has none like it."""
    low = word.lower()
    return low if low in DTYPES else ELSEWHERE.get(low) or (None if _SIZED.fullmatch(low) else closest(low, DTYPES))


def as_dtype(value: Any, what: str) -> DType:
    """A dtype, given as one or by its name. Raises FcError "trace/static" for others, and says which of fcgen's is meant."""
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    word = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    near = dtype_meant(word.removeprefix("torch."))
    raise FcError("trace/static", f"{what} must be a dtype of fcgen", expected=", ".join(f"fc.{d}" for d in DTYPES), got=repr(value)[:80],
                  hint=f"did you mean fc.{near}?" if near else None)


@dataclass(frozen=True)
class Scalar:
    """One value per program, the same in every thread."""

    dtype: DType

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def __str__(self) -> str:
        return str(self.dtype)


@dataclass(frozen=True)
class Tile:
    """A tile-level value: no threads, no memory space."""

    dtype: DType
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Tensor:
    """A parameter in global memory. dims: a name (run-time size; equal names are equal sizes) or an int (compile-time)."""

    dtype: DType
    dims: tuple[str | int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        raise TypeError("a tensor's sizes are run-time values")

    def __str__(self) -> str:
        return f"tensor {self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Frag:
    """A tile in registers. `partial` names a reduction ("sum", "max", "min") whose combine over the lanes that hold copies of
    an element is still to be done: until then each copy is one lane's part."""

    dtype: DType
    shape: tuple[int, ...]
    layout: RegLayout | OpaqueLayout
    partial: str | None = None

    def __str__(self) -> str:
        dims = ",".join(map(str, self.shape))
        return f"frag {self.dtype}[{dims}]{self.layout}" + (f" partial {self.partial}" if self.partial else "")


@dataclass(frozen=True)
class Buffer:
    """`slots` tiles in shared memory, one after the other, each addressed through `layout`."""

    dtype: DType
    shape: tuple[int, ...]
    layout: SmemLayout
    slots: int = 1

    @property
    def rows(self) -> int:
        """A tile of one axis is one row."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot, rounded up so that every slot starts on a swizzle period (1024 B) or at least 128 B."""
        return self.layout.slot_bytes(self.shape, self.dtype.bytes)

    @property
    def bytes(self) -> int:
        return self.slot_bytes * self.slots

    def __str__(self) -> str:
        ring = f" x{self.slots}" if self.slots != 1 else ""
        return f"smem {self.dtype}[{','.join(map(str, self.shape))}]{self.layout}{ring}"


@dataclass(frozen=True)
class Pending:
    """An accumulator that asynchronous matrix instructions are still writing: nobody may touch it before its `settle`."""

    frag: Frag

    @property
    def dtype(self) -> DType:
        return self.frag.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frag.shape

    @property
    def layout(self) -> RegLayout | OpaqueLayout:
        return self.frag.layout

    def __str__(self) -> str:
        return f"pending {self.frag}"


@dataclass(frozen=True)
class Mbarrier:
    """`slots` mbarrier objects in shared memory (PTX ISA, 'mbarrier'). A phase ends after `count` arrivals and all expected bytes."""

    count: int
    slots: int = 1

    @property
    def bytes(self) -> int:
        return 8 * self.slots

    def __str__(self) -> str:
        return f"mbarrier count {self.count}" + (f" x{self.slots}" if self.slots != 1 else "")


@dataclass(frozen=True)
class Cursor:
    """A position in a ring of `slots`: how many tiles have passed, n. The slot is n mod slots, the phase number n div slots; what is kept
    in registers is the slot and the phase's parity."""

    slots: int

    def __str__(self) -> str:
        return f"cursor x{self.slots}"


Shaped = Scalar | Tile | Tensor | Frag | Pending | Buffer
Type = Shaped | Mbarrier | Cursor


def with_dtype(t: Scalar | Tile | Tensor | Frag | Buffer, dtype: DType) -> Type:
    return t if t.dtype == dtype else replace(t, dtype=dtype)
