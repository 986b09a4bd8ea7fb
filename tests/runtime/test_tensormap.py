"""Tensor maps: what the driver is asked for, what is refused before, what is remembered."""

from __future__ import annotations

import pytest
from pretend import Driver, install

from fcgen.errors import FcError
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
    assert [w.rsplit("_", 1)[-1] for w in (dtype, interleave, swizzle, promotion, fill)] == ["BFLOAT16", "NONE", "128B", "256B", "NONE"]


@pytest.mark.parametrize(("dtype", "word"), [("f16", "FLOAT16"), ("bf16", "BFLOAT16"), ("f32", "FLOAT32"), ("i32", "INT32")])
@pytest.mark.parametrize(("swizzle", "mode"), [(0, "NONE"), (32, "32B"), (64, "64B"), (128, "128B")])
def test_dtypes_and_swizzles(fake, dtype, word, swizzle, mode):
    tensormap.encode(0, dtype, (64, 64), (64, 1), (8, 8), swizzle)
    assert fake.encoded[0][0] == f"CU_TENSOR_MAP_DATA_TYPE_{word}" and fake.encoded[0][8] == f"CU_TENSOR_MAP_SWIZZLE_{mode}"


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


@pytest.mark.parametrize(("change", "said"), [
    ({"ptr": 0x1008}, "not aligned"),
    ({"strides": (65, 1)}, "axis 0 of argument `Q` is not aligned"),
    ({"strides": (-64, 1)}, "cannot take"),
    ({"strides": (2**40, 1)}, "cannot take"),
    ({"strides": (64, 2)}, "not contiguous"),
    ({"shape": (2**32, 64)}, "too large"),
    ({"dtype": "i64"}, "dtype"),
    ({"shape": (1,) * 6, "strides": (1,) * 6, "box": (1,) * 6}, "number of axes"),
    ({"box": (257, 64)}, "box"), ({"box": (64,)}, "box"), ({"box": (8, 4)}, "box"), ({"box": (8, 128)}, "box"), ({"swizzle": 16}, "box"),
])
def test_what_tma_cannot_take_is_refused_by_name(fake, change, said):
    facts = {"ptr": 0, "dtype": "f16", "shape": (64, 64), "strides": (64, 1), "box": (64, 64), "swizzle": 128, "name": "Q"} | change
    with pytest.raises(FcError) as caught:
        tensormap.encode(**facts)
    assert caught.value.code == "call/argument" and said in str(caught.value) and "`Q`" in str(caught.value) and not fake.encoded


def test_a_tensor_without_elements_has_an_empty_map(fake):
    assert tensormap.encode(0, "f16", (4, 0, 64), (0, 64, 1), (1, 64, 64), 128) == bytes(128) and not fake.encoded


def test_maps_are_remembered_but_not_for_ever(fake, monkeypatch):
    monkeypatch.setattr(tensormap, "_REMEMBERED", 2)
    ask = lambda ptr: tensormap.encode(ptr, "f16", (64, 64), (64, 1), (64, 64), 128)
    first, second = ask(16), ask(32)
    assert first != second and ask(16) == first and len(fake.encoded) == 2
    ask(48)                                        # 32 was used least recently
    ask(16)
    assert len(fake.encoded) == 3 and ask(32) == second and len(fake.encoded) == 4
