"""Masks, scores, sinks, dropout, lists and packed sequences on the GPU against float64, with the library's schedules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen import masks, scores

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator has seen these kernels in the tests without a GPU."""
    monkeypatch.setenv("FCGEN_CHECK", "0")


def gpu(x: np.ndarray) -> Any:
    return torch.from_numpy(x).cuda()


def tensors(b: int, h: int, g: int, m: int, n: int, d: int, e: int, dtype: Any = None) -> Any:
    rng = np.random.default_rng(1)
    t = lambda *shape: gpu(rng.standard_normal(shape).astype(np.float32)).to(dtype or torch.float16)
    return t(b, h, m, d), t(b, g, n, d), t(b, g, n, e)


def eager(q: Any, k: Any, v: Any, seen: Any = None, score: Any = None, sinks: Any = None, kept: Any = None) -> tuple[Any, Any]:
    h, g = q.shape[1], k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(h // g, 1), v.double().repeat_interleave(h // g, 1)
    s = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    b, y, i, j = (torch.arange(n, device="cuda").reshape(tuple(-1 if a == x else 1 for a in range(4))) for x, n in enumerate(s.shape))
    s = s if score is None else score(s, b, y, i, j)
    s = s if seen is None else s.masked_fill(~seen(b, y, i, j).expand_as(s), -torch.inf)
    if sinks is not None:
        s = torch.cat([s, sinks.double().reshape(1, -1, 1, 1).expand(*s.shape[:3], 1)], -1)
    lse = s.logsumexp(-1)
    p = torch.nan_to_num(torch.exp(s - lse[..., None]))[..., :k.shape[2]]
    return (p if kept is None else p * kept) @ v, lse


def close(got: Any, want: Any, atol: float = 4e-3) -> None:
    torch.testing.assert_close(got[0].double(), want[0], atol=atol, rtol=1e-2)
    torch.testing.assert_close(got[1].double(), want[1], atol=2e-3, rtol=1e-4)


def cases(n: int = 1000) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    lengths = gpu(np.array([n // 3, n], np.int32))
    ids = gpu(np.sort(rng.integers(0, 5, (2, n))).astype(np.int32))
    slopes, bias = gpu(rng.random(4).astype(np.float32)), gpu(rng.standard_normal((2, 1, n, n)).astype(np.float16))
    sinks, heat = gpu(np.array([0.5, -np.inf, 2.0, 30.0], np.float32)), gpu(np.array([1.5, -0.7, 0.0, 3.0], np.float32))
    weights = gpu(np.where(rng.random(n) < 0.1, np.nan, rng.random(n // 100 + 1).repeat(100)[:n]).astype(np.float32))
    return {
        "window and prefix": ({"mask": (masks.window(200, 0) | masks.prefix(70)) & masks.padding(lengths)},
                              {"seen": lambda b, h, i, j: (((j >= i - 200) & (j <= i)) | (j < 70)) & (j < lengths[b])}),
        "neighbourhood": ({"mask": masks.neighbourhood((32, 32), 3)},
                          {"seen": lambda b, h, i, j: ((i // 32 - j // 32).abs() <= 3) & ((i % 32 - j % 32).abs() <= 3)}),
        "documents": ({"mask": masks.documents(ids), "causal": "top_left"}, {"seen": lambda b, h, i, j: (ids[b, i] == ids[b, j]) & (j <= i)}),
        "scores": ({"score": scores.soft_cap(3.0) + scores.alibi(slopes) + scores.bias(bias)},
                   {"score": lambda s, b, h, i, j: 3 * torch.tanh(s / 3) - slopes[h] * (i - j).abs() + bias[b, 0, i, j]}),
        "distances": ({"score": scores.alibi(slopes), "causal": "top_left"},
                      {"score": lambda s, b, h, i, j: s - slopes[h] * (i - j).abs(), "seen": lambda b, h, i, j: j <= i}),
        "sinks": ({"sinks": sinks, "causal": "top_left"}, {"sinks": sinks, "seen": lambda b, h, i, j: j <= i}),
        "temperature": ({"score": scores.temperature(heat)}, {"score": lambda s, b, h, i, j: s * heat[h]}),
        "what weighs more": ({"mask": fc.masks.Mask(lambda b, h, i, j: (weights[j] > 0.3) & (ids[b, i] * 3 % 4 <= ids[b, j] * 3 % 4))},
                             {"seen": lambda b, h, i, j: (weights[j] > 0.3) & (ids[b, i] * 3 % 4 <= ids[b, j] * 3 % 4)}),
    }


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", ["window and prefix", "neighbourhood", "documents", "scores", "distances", "sinks", "temperature", "what weighs more"])
def test_variants(name: str, d: int) -> None:
    n = 1000
    q, k, v = tensors(2, 4, 2, n, n, d, d)
    given, wanted = cases(n)[name]
    close(fc.attention(q, k, v, return_lse=True, **given), eager(q, k, v, **wanted))


@pytest.mark.parametrize(("d", "causal"), [(64, False), (128, True)])
def test_dropout_and_its_mask(d: int, causal: bool) -> None:
    q, k, v = tensors(2, 4, 2, 300, 333, d, d)
    drop = fc.Dropout(0.3, 2**41 + 3, 5)
    kept = fc.dropout_mask(drop, 2, 4, 300, 333, q)
    assert torch.equal(kept.cpu().bool(), torch.from_numpy(drop.mask(2, 4, 300, 333)))
    seen = (lambda b, h, i, j: j <= i) if causal else None
    got = fc.attention(q, k, v, dropout=drop, causal="top_left" if causal else False, return_lse=True)
    close(got, eager(q, k, v, seen=seen, kept=kept.double() * drop.factor), 8e-3)


@pytest.mark.parametrize("d", [64, 128])
def test_long_rows_leave_out_what_lies_between(d: int) -> None:
    """A loop jumps over the keys between the first ones and a window; documents go by lists that one kernel makes."""
    q, k, v = tensors(1, 2, 1, 4097, 4097, d, d)
    ids = gpu(np.sort(np.random.default_rng(4).integers(0, 6, 4097)).astype(np.int32))
    mask = (masks.prefix(70) | masks.window(500, 0)) & masks.causal()
    want = eager(q, k, v, seen=lambda b, h, i, j: (j <= i) & ((j < 70) | (j >= i - 500)))
    close(fc.attention(q, k, v, mask=mask, return_lse=True), want)
    want = eager(q, k, v, seen=lambda b, h, i, j: (ids[i] == ids[j]) & (j <= i))
    close(fc.attention(q, k, v, mask=masks.documents(ids), causal=True, return_lse=True), want)


def test_one_kernel_lists_what_is_asked_about_every_element() -> None:
    q, k, v = tensors(1, 2, 2, 1100, 1300, 64, 64)
    some = gpu(np.repeat(np.random.default_rng(6).integers(0, 2, (1100, 13)), 100, axis=1).astype(np.int8))
    for mask, seen in ((lambda b, h, i, j: (some[i, j] == 1) & (j <= i + 300), lambda b, h, i, j: (some[i, j] == 1) & (j <= i + 300)),
                       (lambda b, h, i, j: ((i ^ j) & 256 == 0) & (some[0, j] >= 0), lambda b, h, i, j: (i ^ j) & 256 == 0)):
        close(fc.attention(q, k, v, mask=mask, return_lse=True), eager(q, k, v, seen=seen))


def test_lists_of_a_mask_are_made_once_and_captured_in_a_graph() -> None:
    q, k, v = tensors(1, 2, 2, 700, 700, 64, 64)
    ids = gpu(np.sort(np.random.default_rng(3).integers(0, 4, 700)).astype(np.int32))
    mask = masks.documents(ids)
    lists = fc.block_lists(mask, 1, 2, 700, 700, q)
    want = eager(q, k, v, seen=lambda b, h, i, j: ids[i] == ids[j])
    close(fc.attention(q, k, v, mask=mask, blocks=lists, return_lse=True), want)
    fc.attention(q, k, v, mask=mask)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a wait for the GPU would be an error here
        got = fc.attention(q, k, v, mask=mask, return_lse=True)
    graph.replay()
    close(got, want)


@pytest.mark.parametrize(("d", "e", "causal", "window"), [(64, 64, True, (None, None)), (128, 128, False, (300, 0)), (192, 128, True, (None, None))])
def test_packed_sequences(d: int, e: int, causal: bool, window: Any) -> None:
    rows, keys = (5, 0, 333, 1, 700), (20, 3, 333, 0, 650)
    q, k, v = (x[0].transpose(0, 1) for x in tensors(1, 4, 2, sum(rows), sum(keys), d, e))
    ends = [gpu(np.cumsum([0, *x]).astype(np.int32)) for x in (rows, keys)]
    before = fc.compile_count()
    out, lse = fc.attention_varlen(q, k, v, *ends, max(rows), causal=causal, window=window, return_lse=True)
    q0 = k0 = 0
    for m, n in zip(rows, keys):
        if m:
            part = lambda x, at, size: x[at:at + size].transpose(0, 1)[None]
            left = 10**9 if window[0] is None else window[0]
            right = 0 if causal or window[1] is not None else 10**9
            want = eager(part(q, q0, m), part(k, k0, n), part(v, k0, n),
                         seen=lambda b, h, i, j, s=n - m: (j <= i + s + right) & (j >= i + s - left))  # noqa: B023
            close((out[q0:q0 + m].transpose(0, 1)[None], lse[None, :, q0:q0 + m]), want)
        q0, k0 = q0 + m, k0 + n
    first = fc.compile_count()
    ends[0][1:] -= 1  # other lengths
    fc.attention_varlen(q, k, v, *ends, 699, causal=causal, window=window, return_lse=True)
    assert first > before and fc.compile_count() == first


@pytest.mark.parametrize(("d", "e"), [(8, 8), (64, 256), (320, 320), (512, 512), (264, 136)])
def test_head_sizes(d: int, e: int) -> None:
    q, k, v = tensors(1, 2, 1, 200, 300, d, e, torch.bfloat16)
    close(fc.attention(q, k, v, causal="bottom_right", return_lse=True), eager(q, k, v, seen=lambda b, h, i, j: j <= i + 100), 2e-2)


def test_a_thousand_changes_compile_nothing() -> None:
    rng, count = np.random.default_rng(0), None
    number = lambda top: int(rng.integers(1, top))
    for n in range(1000):
        q, k, v = tensors(number(3), 4, 2, number(200), number(200), 64, 64)
        lengths = gpu(np.full(q.shape[0], number(200), np.int32))
        fc.attention(q, k, v, mask=masks.window(number(100), number(10)) & masks.padding(lengths), score=scores.soft_cap(float(number(50))),
                     schedule=fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}))
        count = fc.compile_count() if n == 0 else count
    assert fc.compile_count() == count
