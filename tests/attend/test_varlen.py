"""`fcgen.attention_varlen` on both targets: sequences of any lengths, used parts of them, windows, functions, nothing at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from benchmarks.on_cpu import Array, on_cpu
from fcgen import masks, scores

RNG = np.random.default_rng(5)
SMALL = {"sm_89": fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=2),
         "sm_90a": fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 32}, math="wgmma", copy="tma", warps=8, late="acc", persistent="dynamic")}


def reference(q: Any, k: Any, v: Any, queries: Any, keys: Any, *, used: Any = None, kused: Any = None, align: str = "bottom",
              left: Any = None, right: Any = None, seen: Any = None, score: Any = None, sinks: Any = None) -> tuple[np.ndarray, np.ndarray]:
    (m, h, d), g = q.shape, k.shape[1]
    out, lse = np.zeros((m, h, v.shape[2])), np.full((h, m), -np.inf)
    q0 = k0 = 0
    for n, (rows, cols) in enumerate(zip(queries, keys)):
        nq, nk = rows if used is None else min(used[n], rows), cols if kused is None else min(kused[n], cols)
        i, j = np.arange(nq)[:, None], np.arange(nk)[None]
        at = i + (nk - nq if align == "bottom" else 0)
        for head in range(h):
            s = q[q0:q0 + nq, head].astype(float) @ k[k0:k0 + nk, head // (h // g)].astype(float).T * d**-0.5
            s = s if score is None else score(s, n, head, i, j)
            keep = np.ones((nq, nk), bool) & (j <= at + (1 << 30 if right is None else right)) & (j >= at - (1 << 30 if left is None else left))
            s = np.where(keep if seen is None else keep & seen(n, head, i, j), s, -np.inf)
            sink = -np.inf if sinks is None else sinks[head]
            top = np.maximum(s.max(1, keepdims=True, initial=-np.inf), sink)
            base = np.where(np.isinf(top), 0, top)
            e = np.exp(s - base)
            total = e.sum(1, keepdims=True) + np.exp(sink - base)
            out[q0:q0 + nq, head] = e @ v[k0:k0 + nk, head // (h // g)].astype(float) / np.where(total == 0, 1, total)
            with np.errstate(divide="ignore"):
                lse[head, q0:q0 + nq] = (base + np.log(total))[:, 0]
        q0, k0 = q0 + rows, k0 + cols
    return out, lse


def drawn(queries: Any, keys: Any, h: int = 4, g: int = 2, d: int = 16, e: int = 16) -> tuple[Any, ...]:
    q, k, v = (RNG.standard_normal((sum(n), heads, w)).astype(np.float16) for n, heads, w in ((queries, h, d), (keys, g, d), (keys, g, e)))
    return q, k, v, *(Array(np.cumsum([0, *n]).astype(np.int32)) for n in (queries, keys))


def check(got: Any, want: Any) -> None:
    (o, lse), (out, sums) = got, want
    np.testing.assert_allclose(o.array.astype(float), out, atol=4e-3)
    np.testing.assert_allclose(lse.array.astype(float), sums, atol=2e-3)


LENGTHS = ((5, 0, 33, 1, 150), (20, 3, 33, 0, 170))
CASES: dict[str, Any] = {
    "all": ({}, {}), "causal": ({"causal": True}, {"right": 0}), "top": ({"causal": "top_left"}, {"right": 0, "align": "top"}),
    "window": ({"window": (7, 2)}, {"left": 7, "right": 2}), "causal window": ({"causal": True, "window": (9, -1)}, {"left": 9, "right": 0}),
    "no window": ({"window": (-1, None)}, {}), "one row at most": ({"window": (0, 0)}, {"left": 0, "right": 0}),
    "sinks": ({"sinks": np.array([0.5, -np.inf, 2.0, 30.0], np.float32), "causal": True},
              {"sinks": [0.5, -np.inf, 2.0, 30.0], "right": 0}),
    "mask and score": ({"mask": masks.prefix(4) | masks.causal(), "score": scores.soft_cap(3.0)},
                       {"seen": lambda b, h, i, j: (j < 4) | (j <= i), "score": lambda s, b, h, i, j: 3 * np.tanh(s / 3)}),
}


@pytest.mark.parametrize("target", SMALL)
@pytest.mark.parametrize("case", CASES)
def test_sequences(case: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, target, "simulate")
    given, wanted = CASES[case]
    q, k, v, rows, keys = drawn(*LENGTHS)
    got = fc.attention_varlen(Array(q), Array(k), Array(v), rows, keys, max(LENGTHS[0]), return_lse=True, schedule=SMALL[target], **given)
    check(got, reference(q, k, v, *LENGTHS, **wanted))


@pytest.mark.parametrize("target", SMALL)
@pytest.mark.parametrize("causal", [False, True])
def test_parts_that_are_used(target: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, target, "simulate")
    used, kused = np.array((3, 0, 40, 1, 64), np.int32), np.array((20, 1, 0, 0, 33), np.int32)
    q, k, v, rows, keys = drawn(*LENGTHS)
    got = fc.attention_varlen(Array(q), Array(k), Array(v), rows, keys, 150, causal=causal, return_lse=True, schedule=SMALL[target],
                              seqused_q=Array(used), seqused_k=Array(kused))
    check(got, reference(q, k, v, *LENGTHS, used=used, kused=kused, right=0 if causal else None))


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize(("d", "e", "causal", "window"), [(64, 64, True, (None, None)), (128, 128, False, (None, None)),
                                                          (192, 128, True, (100, None)), (64, 256, False, (3, 3)), (72, 40, True, (None, None))])
def test_the_librarys_schedules(target: str, d: int, e: int, causal: bool, window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_cpu(monkeypatch, target)
    q, k, v, rows, keys = drawn((130, 0, 7), (257, 9, 5), d=d, e=e)
    got = fc.attention_varlen(Array(q), Array(k), Array(v), rows, keys, 130, causal=causal, window=window, return_lse=True)
    check(got, reference(q, k, v, (130, 0, 7), (257, 9, 5), left=window[0], right=0 if causal else window[1]))
    assert [p.name for p in seen] == ["tiles_of_sequences", "ragged_attention"] and seen[1].target.arch == target


def test_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_cpu(monkeypatch)
    q, k, v, rows, keys = drawn((3, 4), (0, 0))
    out, lse = fc.attention_varlen(Array(q), Array(k), Array(v), rows, keys, 4, return_lse=True)
    assert (out.array == 0).all() and (lse.array == -np.inf).all()
    q, k, v, rows, keys = drawn((0, 0), (3, 4))
    assert fc.attention_varlen(Array(q), Array(k), Array(v), rows, keys, 0).shape == (0, 4, 16)
    assert [p.name for p in seen] == ["tiles_of_sequences", "ragged_attention"]


@pytest.mark.parametrize(("words", "given"), [
    ("`max_seqlen_q` is not a length", {"max_seqlen_q": -1}), ("`window` is not", {"window": 3}), ("`window` is not", {"window": (-2, 0)}),
    ("no such mask", {"causal": "left"}), ("`cu_seqlens_k` has the wrong length", {"cu_seqlens_k": Array(np.zeros(2, np.int32))}),
    ("`cu_seqlens_q` has the wrong dtype", {"cu_seqlens_q": Array(np.zeros(3, np.int64))}),
    ("`seqused_k` has the wrong shape", {"seqused_k": Array(np.zeros(3, np.int32))}), ("takes other arguments", {"mask": lambda q, k: q > k}),
    ("is not a function", {"score": 3}), ("not a Schedule", {"schedule": {}}), ("no dropout", {"dropout": "much"}),
])
def test_refused(words: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)
    q, k, v, rows, keys = drawn((3, 4), (5, 6))
    with pytest.raises(fc.FcError, match=words):
        fc.attention_varlen(Array(q), Array(k), Array(v), **{"cu_seqlens_q": rows, "cu_seqlens_k": keys, "max_seqlen_q": 4, **given})
