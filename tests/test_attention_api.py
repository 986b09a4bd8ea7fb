"""`fcgen.attention`'s arguments: what is refused before a kernel is looked for, and calls that need none. No GPU."""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.attend.forward import attention

PLACES = itertools.count(1, 1 << 20)
NAMES = {"f16": "<f2", "f32": "<f4"}


class Tensor:
    """A tensor on a GPU, as far as its interface says."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "f16", readonly: bool = False):
        self.shape, self.dtype, self.filled = shape, dtype, None
        self.__cuda_array_interface__ = {"shape": shape, "typestr": NAMES.get(dtype, dtype), "data": (4096 * next(PLACES) if 0 not in shape else 0, readonly), "version": 3}

    def fill(self, value: float) -> None:
        self.filled = value


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pointers belong to GPU 0, whether there is one or not."""
    from fcgen.runtime import tensors

    monkeypatch.setattr(tensors, "_device_of", lambda ptr: 0)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are those of an array library that fcgen can make new ones of."""
    names = {"float32": "f32"}
    module = types.SimpleNamespace(ndarray=Tensor, empty=lambda shape, dtype: Tensor(shape, names.get(dtype, dtype)))
    monkeypatch.setitem(sys.modules, "cupy", module)


def refused(*words: str, q: Any = None, k: Any = None, v: Any = None, **more: Any) -> None:
    t = lambda x, default: default if x is None else x if not isinstance(x, tuple) else Tensor(x)
    q, k, v = t(q, Tensor((2, 4, 10, 64))), t(k, Tensor((2, 2, 20, 64))), t(v, Tensor((2, 2, 20, 64)))
    with pytest.raises(fc.FcError) as e:
        attention(q, k, v, **more)
    assert e.value.code == "call/argument", str(e.value)
    for w in words:
        assert w in str(e.value), str(e.value)


@pytest.mark.parametrize(("words", "given"), [
    (["`q`", "number of axes"], {"q": (4, 10, 64)}),
    (["`k`", "wrong dtype", "f32"], {"k": Tensor((2, 2, 20, 64), "f32")}),
    (["`v`", "not a tensor"], {"v": [1, 2]}),
    (["`q`", "CPU"], {"q": np.zeros((2, 4, 10, 64), np.float16)}),
    (["batch or head size"], {"k": (1, 2, 20, 64), "v": (1, 2, 20, 64)}),
    (["batch, heads or length"], {"v": (2, 2, 21, 64)}),
    (["multiple of those of `k`", "divisor of 4"], {"k": (2, 3, 20, 64), "v": (2, 3, 20, 64)}),
    (["multiple of those of `k`"], {"k": (2, 0, 20, 64), "v": (2, 0, 20, 64)}),
    (["ambiguous", "bottom_right"], {"causal": True}),
    (["ambiguous"], {"causal": np.True_}),
    (["no such mask", "top_left"], {"causal": "left"}),
    (["no such mask"], {"causal": ["top_left"]}),
    (["no such mask"], {"causal": 1}),
    (["`scale`", "not a number"], {"scale": "x"}),
    (["`scale`", "not finite"], {"scale": float("nan")}),
    (["`out`", "wrong dtype"], {"out": Tensor((2, 4, 10, 64), "f32")}),
    (["`out`", "wrong shape"], {"out": Tensor((2, 4, 11, 64))}),
    (["`out`", "read-only"], {"out": Tensor((2, 4, 10, 64), readonly=True)}),
    (["cannot make an output"], {}),
], ids=lambda x: None if isinstance(x, dict) else x[-1])
def test_refused(words: list[str], given: dict[str, Any]) -> None:
    refused(*words, **given)


@pytest.mark.parametrize("schedule", ["x", 5, []])
def test_what_is_no_schedule_is_refused(schedule: Any) -> None:
    with pytest.raises(fc.FcError, match="not a Schedule"):
        attention(*(Tensor((2, 2, 20, 64)) for _ in range(3)), schedule=schedule)


@pytest.mark.parametrize("head", [4, 20, 100, 520])
def test_head_sizes_are_multiples_of_eight_up_to_512(head: int) -> None:
    refused("head size of `q`", "multiple of 8", str(head), q=(2, 4, 10, head), k=(2, 2, 20, head))
    refused("head size of `v`", v=(2, 2, 20, head))


@pytest.mark.parametrize("shape", [(0, 4, 10, 64), (2, 4, 0, 64)])
def test_nothing_is_launched_for_nothing(shape: tuple[int, ...], library: None) -> None:
    k = Tensor((shape[0], 2, 20, 64))
    out, lse = attention(Tensor(shape), k, k, return_lse=True)
    assert out.shape == shape and lse.shape == shape[:3] and lse.dtype == "f32"


@pytest.mark.parametrize("causal", [False, None, "top_left", "bottom_right"])
def test_rows_without_keys_are_zero(causal: Any, library: None) -> None:
    k, v = Tensor((2, 2, 0, 64)), Tensor((2, 2, 0, 128))
    out, lse = attention(Tensor((2, 4, 10, 64)), k, v, causal=causal, return_lse=True)
    assert out.shape == (2, 4, 10, 128) and out.filled == 0.0 and lse.filled == -np.inf
    mine = Tensor((2, 4, 10, 128))
    assert attention(Tensor((2, 4, 10, 64)), k, v, causal=causal, out=mine) is mine and mine.filled == 0.0


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("lse", [True, False])
def test_the_program_has_the_outputs_that_are_asked_for(lse: bool, positive: bool) -> None:
    from fcgen.attend.forward import compiled

    kernel = compiled("f16", 64, 32, "none", lse, "sm_89", None, positive).tile
    assert [p.name for p in kernel.params] == ["Q", "K", "V", "O", *(["LSE"] if lse else []), "scale"]
    assert ("positive" in kernel.flags.get("scale", ())) == positive
