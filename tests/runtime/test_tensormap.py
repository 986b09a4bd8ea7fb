"""Tensor maps: what the driver is asked for, and what is refused before."""

from __future__ import annotations

import pytest
from cuda.bindings import driver
from pretend import Driver, install

from fcgen.errors import FcError
from fcgen.ir.access import CUT
from fcgen.runtime import tensormap


@pytest.fixture
def fake(monkeypatch):
    return install(monkeypatch, Driver())


def test_the_driver_is_told_innermost_first(fake):
    made = tensormap.encode(0x1000, "bf16", (2, 8, 512, 64), (8 * 512 * 64, 64, 8 * 64, 1), (1, 1, 128, 64), 128)
    assert len(made) == 128
    (dtype, rank, ptr, dims, strides, box, steps, interleave, swizzle, promotion, fill), = fake.encoded
    assert (rank, ptr, dims, box, steps) == (4, 0x1000, [64, 512, 8, 2], [64, 128, 1, 1], [1] * 4)
    assert strides == [8 * 64 * 2, 64 * 2, 8 * 512 * 64 * 2]
    kinds = (driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
             driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B, driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
    assert (dtype, interleave, swizzle, promotion, fill) == tuple(map(int, kinds))


@pytest.mark.parametrize(("dtype", "word"), [("f16", "FLOAT16"), ("bf16", "BFLOAT16"), ("f32", "FLOAT32"), ("i32", "INT32")])
@pytest.mark.parametrize(("swizzle", "mode"), [(0, "NONE"), (32, "32B"), (64, "64B"), (128, "128B")])
def test_dtypes_and_swizzles(fake, dtype, word, swizzle, mode):
    tensormap.encode(0, dtype, (64, 64), (64, 1), (8, 8), swizzle)
    assert fake.encoded[0][0] == getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{word}")
    assert fake.encoded[0][8] == getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{mode}")


@pytest.mark.parametrize(("shape", "strides", "want"), [
    ((4, 64), (64, 1), [128]),
    ((1, 64), (7, 1), [128]),                      # what is never stepped along may have any stride
    ((1, 1, 20), (3, 5, 1), [48, 48]),             # rounded up to 16 bytes
    ((1, 8, 64), (2**45, 64, 1), [128, 1024]),
    ((3, 8, 64), (0, 64, 1), [128, 0]),            # expanded
    ((3, 1, 8, 64), (512, -1, 64, 1), [128, 1024, 1024]),
    ((2, 3, 5, 7, 64), (6720, 2240, 448, 64, 1), [128, 896, 4480, 13440]),
])
def test_strides_that_are_legal(fake, shape, strides, want):
    tensormap.encode(0, "f16", shape, strides, (1,) * (len(shape) - 1) + (16,), 32)
    assert fake.encoded[0][4] == want


def test_a_tensor_of_one_axis_is_a_row_of_two(fake):
    """The driver takes no map of one axis."""
    tensormap.encode(0, "f32", (70,), (1,), (1, 64), 0)
    assert [x for x in fake.encoded[0]][1:6] == [2, 0, [70, 1], [288], [64, 1]]


@pytest.mark.parametrize(("dtype", "word"), [("i1", "UINT8"), ("u8", "UINT8"), ("f8e4m3", "UINT8"), ("u32", "UINT32"), ("i64", "INT64"), ("f64", "FLOAT64")])
def test_every_dtype_of_memory_has_a_map(fake, dtype, word):
    """Conditions are bytes: a mask of bools travels as any other tile."""
    tensormap.encode(0, dtype, (64, 64), (64, 1), (16, 16), 0)
    assert fake.encoded[0][0] == getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{word}")


@pytest.mark.parametrize(("change", "said"), [
    ({"ptr": 0x1008}, "not aligned"),
    ({"strides": (65, 1)}, "axis 0 of argument `Q` is not aligned"),
    ({"strides": (-64, 1)}, "cannot take"),
    ({"strides": (2**40, 1)}, "cannot take"),
    ({"strides": (64, 2)}, "not contiguous"),
    ({"shape": (2**32, 64)}, "too large"),
    ({"dtype": "i4"}, "dtype"),
    ({"shape": (1,) * 6, "strides": (1,) * 6, "box": (1,) * 6}, "number of axes"),
    ({"box": (257, 64)}, "box"), ({"box": (64,)}, "number of axes"), ({"box": (8, 8, 64)}, "number of axes"), ({"box": (8, 4)}, "box"), ({"box": (8, 128)}, "box"), ({"swizzle": 16}, "box"),
])
def test_what_tma_cannot_take_is_refused_by_name(fake, change, said):
    facts = {"ptr": 0, "dtype": "f16", "shape": (64, 64), "strides": (64, 1), "box": (64, 64), "swizzle": 128, "name": "Q"} | change
    with pytest.raises(FcError) as caught:
        tensormap.encode(**facts)
    assert caught.value.code == "call/argument" and said in str(caught.value) and "`Q`" in str(caught.value) and not fake.encoded


def test_a_tensor_without_elements_has_an_empty_map(fake):
    assert tensormap.encode(0, "f16", (4, 0, 64), (0, 64, 1), (1, 64, 64), 128) == bytes(128) and not fake.encoded


@pytest.mark.parametrize("cut", [0, 1])
def test_a_map_with_a_limit_ends_there(fake, cut):
    """What the unit computes from coordinates, 64 bits wide: the run's own addresses below the limit, nothing at or past it."""
    shape, strides, box = (40, 3, 64), (3 * 64 + 8, 64, 1), (16, 1, 64) if cut == 0 else (1, 2, 64)
    made = tensormap.Box("f16", box, 128, "X", cut)
    numbers = made.layout(shape, strides)
    sizes, steps = numbers[:made.axes], (2, *numbers[made.axes:])
    assert made.axes == 5 and all(0 <= s < 2**40 and s % 16 == 0 for s in steps[1:]) and all(n < 2**32 for n in sizes)
    for stop in (0, 1, shape[cut] - 1, shape[cut]):
        for at in range(shape[cut]):
            place = [5, *([2, CUT - stop + at] if cut == 0 else [CUT - stop + at, 7]), stop, CUT]  # as a kernel says it, innermost first
            address = sum(c * s for c, s in zip(place, steps)) % 2**64
            other = 7 * strides[0] if cut == 1 else 2 * strides[1]
            assert address == 2 * (5 + other + at * strides[cut])
            assert all(0 <= c < n for c, n in zip(place, sizes)) == (at < stop)


def test_what_cannot_be_cut_off_is_refused(fake):
    with pytest.raises(FcError, match="limit"):
        tensormap.Box("f16", (1, 8, 64), 128, "X", 0).layout((3, 8, 64), (2**33, 64, 1))
    with pytest.raises(FcError, match="axes"):
        tensormap.Box("f16", (1, 1, 8, 64), 128, "X", 2)
