"""Grouped heads as rows of one head: which calls, by which views, and that the numbers are the same."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.attend.grouped import packed
from fcgen.kernels.attention import attention
from fcgen.kernels.reference import attention_reference
from fcgen.runtime.tensors import TensorArg

SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 16}, warps=1)


def arg(x: np.ndarray) -> TensorArg:
    return TensorArg(x.ctypes.data, x.shape, tuple(s // x.itemsize for s in x.strides), {2: "f16", 4: "f32"}[x.itemsize], 0)


def view(x: np.ndarray, t: TensorArg) -> np.ndarray:
    assert t.ptr == x.ctypes.data
    return np.lib.stride_tricks.as_strided(x, t.shape, [s * x.itemsize for s in t.strides])


def tensors(h: int, g: int, m: int, n: int, rows_outside: bool, d: int = 16) -> dict[str, np.ndarray]:
    """rows_outside: [B, M, H, D] in memory."""
    rng = np.random.default_rng(0)
    new = lambda heads, rows: rng.standard_normal((2, rows, heads, d) if rows_outside else (2, heads, rows, d)).astype(np.float16)
    x = {"Q": new(h, m), "K": new(g, n), "V": new(g, n), "O": np.full_like(new(h, m), np.nan)}
    x = {name: t.transpose(0, 2, 1, 3) if rows_outside else t for name, t in x.items()}
    return x | {"LSE": np.full((2, h, m), np.nan, np.float32)}


@pytest.mark.parametrize("mask, m, rows_outside", [("none", 5, False), ("none", 1, False), ("none", 1, True), ("causal_bottom_right", 1, True)])
@pytest.mark.parametrize("h, g", [(4, 1), (6, 2)])
def test_the_packed_call_gives_what_the_plain_one_gives(h: int, g: int, mask: str, m: int, rows_outside: bool) -> None:
    x = tensors(h, g, m, 37, rows_outside)
    rows = packed({name: arg(t) for name, t in x.items()}, mask)
    assert rows is not None and rows["Q"].shape == (2, g, h // g * m, 16) and rows["LSE"].shape == (2, g, h // g * m)
    given = {name: view(t, rows[name]) for name, t in x.items()}
    p = attention.compile(target="sm_89", schedule=SCHEDULE, T=fc.f16, D=16, E=16, mask="none")
    got = p.simulate(Q=given["Q"], K=given["K"], V=given["V"], scale=0.3)
    given["O"][...], given["LSE"][...] = got["O"], got["LSE"]  # through the views, into [B, H, M, D]
    want, lse = attention_reference(x["Q"], x["K"], x["V"], mask=mask, scale=0.3)
    np.testing.assert_allclose(x["O"].astype(np.float64), want, atol=2e-3)
    np.testing.assert_allclose(x["LSE"], lse, atol=1e-4)


@pytest.mark.parametrize("why, mask, m, h, g, rows_outside", [
    ("no group", "none", 5, 4, 4, False), ("rows see different keys", "causal_top_left", 5, 4, 2, False),
    ("one row that sees one key", "causal_top_left", 1, 4, 2, False), ("heads lie between rows", "none", 5, 4, 2, True),
])
def test_others_stay_as_they_are(why: str, mask: str, m: int, h: int, g: int, rows_outside: bool) -> None:
    assert packed({name: arg(t) for name, t in tensors(h, g, m, 37, rows_outside).items()}, mask) is None, why


def test_an_output_that_cannot_be_seen_so_keeps_the_call_as_it_is() -> None:
    x = {name: arg(t) for name, t in tensors(4, 2, 5, 37, False).items()}
    x["O"] = arg(tensors(4, 2, 5, 37, True)["O"])
    assert packed(x, "none") is None
