"""Ready-made masks, scores, sinks and dropout through `fcgen.attention`, on both targets, alone and together."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from benchmarks.eager import eager
from benchmarks.on_cpu import Array, on_cpu
from fcgen import masks, scores
from fcgen.attend.blocks import Lists
from fcgen.ir.core import walk_kernel

B, H, G, M, N, D = 2, 4, 2, 75, 140, 32
RNG = np.random.default_rng(3)
Q, K, V = (RNG.standard_normal((B, h, n, D)).astype(np.float16) for h, n in ((H, M), (G, N), (G, N)))
SMALL = {"sm_89": fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=2),
         "sm_90a": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, math="wgmma", copy="tma", warps=4)}
LENGTHS, ROWS = np.array([100, 140], np.int32), np.array([75, 40], np.int32)
IDS = np.sort(RNG.integers(0, 4, (2, N))).astype(np.int32)
LAYOUT = RNG.integers(0, 2, (H, 5, 9)).astype(np.int8)
SLOPES, FACTORS = (2.0 ** -np.arange(1, H + 1)).astype(np.float32), np.array([0.5, 1.0, 2.0, 0.3], np.float32)
BIAS, TABLE = RNG.standard_normal((1, H, 1, N)).astype(np.float32), RNG.standard_normal((H, 17)).astype(np.float16)
WIDE = RNG.standard_normal((B, 1, M, N)).astype(np.float16)
SINKS = np.array([0.5, -np.inf, 2.0, 30.0], np.float32)

#: name -> (mask, what it is in NumPy)
MASKS: dict[str, Any] = {
    "everything": (masks.everything(), lambda b, h, i, j: np.ones((M, N), bool)),
    "causal": (masks.causal(), lambda b, h, i, j: j <= i),
    "causal at the end": (masks.causal(N - M), lambda b, h, i, j: j <= i + N - M),
    "window": (masks.window(20, 3), lambda b, h, i, j: (j >= i - 20) & (j <= i + 3)),
    "window to the left": (masks.window(9, shift=N - M), lambda b, h, i, j: j >= i + N - M - 9),
    "window of nothing": (masks.window(5, -3) & masks.window(-9, 0), lambda b, h, i, j: np.zeros((M, N), bool)),
    "prefix": (masks.prefix(30) | masks.causal(), lambda b, h, i, j: (j < 30) | (j <= i)),
    "prefix per batch": (masks.prefix(LENGTHS) | masks.causal(), lambda b, h, i, j: (j < LENGTHS[b]) | (j <= i)),
    "first keys and a window": ((masks.prefix(9) | masks.window(20, 0)) & masks.causal(50),
                                lambda b, h, i, j: ((j < 9) | ((j >= i - 20) & (j <= i))) & (j <= i + 50)),
    "all but a band": (~masks.window(10, 45), lambda b, h, i, j: (j < i - 10) | (j > i + 45)),
    "padding": (masks.padding(LENGTHS, ROWS), lambda b, h, i, j: (j < LENGTHS[b]) & (i < ROWS[b])),
    "left padding": (masks.left_padding(LENGTHS), lambda b, h, i, j: j >= LENGTHS[b]),
    "documents": (masks.documents(IDS[:, :M], IDS), lambda b, h, i, j: IDS[b, :M, None] == IDS[b][None]),
    "documents of all": (masks.documents(IDS[:1, :M], IDS[0]) & masks.causal(50),
                         lambda b, h, i, j: (IDS[0, :M, None] == IDS[0][None]) & (j <= i + 50)),
    "dilated": (masks.dilated(3, 40, 10), lambda b, h, i, j: ((i - j) % 3 == 0) & (j >= i - 40) & (j <= i + 10)),
    "neighbourhood": (masks.neighbourhood((8, 16), (2, 3)), lambda b, h, i, j: (abs(i // 16 - j // 16) <= 2) & (abs(i % 16 - j % 16) <= 3)),
    "neighbourhood of three": (masks.neighbourhood((3, 4, 6), 1), lambda b, h, i, j: (abs(i // 24 - j // 24) <= 1)
                               & (abs(i // 6 % 4 - j // 6 % 4) <= 1) & (abs(i % 6 - j % 6) <= 1)),
    "not": (~masks.causal(20), lambda b, h, i, j: j > i + 20),
    "blocks": (masks.block_sparse(LAYOUT, 16), lambda b, h, i, j: LAYOUT[h][i // 16, j // 16] != 0),
    "blocks of all heads": (masks.block_sparse(LAYOUT[:1], (16, 16)), lambda b, h, i, j: LAYOUT[0][i // 16, j // 16] != 0),
    "all of them": ((masks.prefix(7) | masks.window(20, 3) | masks.neighbourhood((8, 16), 1)) & masks.padding(LENGTHS) & ~masks.dilated(5),
                    lambda b, h, i, j: ((j < 7) | ((j >= i - 20) & (j <= i + 3)) | ((abs(i // 16 - j // 16) <= 1) & (abs(i % 16 - j % 16) <= 1)))
                    & (j < LENGTHS[b]) & ((i - j) % 5 != 0)),
}
SCORES: dict[str, Any] = {
    "soft cap": (scores.soft_cap(2.0), lambda s, b, h, i, j: 2 * np.tanh(s / 2)),
    "exact soft cap": (scores.soft_cap(2.0, exact=True), lambda s, b, h, i, j: 2 * np.tanh(s / 2)),
    "alibi": (scores.alibi(SLOPES), lambda s, b, h, i, j: s - SLOPES[h] * abs(i - j)),
    "alibi per batch": (scores.alibi(np.stack([SLOPES, 2 * SLOPES]), 5), lambda s, b, h, i, j: s - SLOPES[h] * (1 + b) * abs(i + 5 - j)),
    "relative": (scores.relative(TABLE), lambda s, b, h, i, j: s + TABLE[h].astype(float)[np.clip(j - i, -8, 8) + 8]),
    "bias of keys": (scores.bias(BIAS), lambda s, b, h, i, j: s + BIAS[0, h, 0][j]),
    "bias of all": (scores.bias(WIDE), lambda s, b, h, i, j: s + WIDE[b, 0].astype(float)),
    "temperature": (scores.temperature(FACTORS), lambda s, b, h, i, j: s * FACTORS[h]),
    "in a row": (scores.soft_cap(2.0) + scores.alibi(SLOPES) + scores.bias(WIDE[0, 0]) + scores.temperature(FACTORS),
                 lambda s, b, h, i, j: (2 * np.tanh(s / 2) - SLOPES[h] * abs(i - j) + WIDE[0, 0].astype(float)) * FACTORS[h]),
}


def check(got: Any, want: Any, atol: float = 4e-3) -> None:
    np.testing.assert_allclose(got[0].array.astype(float), want[0], atol=atol)
    np.testing.assert_allclose(got[1].array.astype(float), want[1], atol=2e-3)


def called(**given: Any) -> Any:
    return fc.attention(Array(Q), Array(K), Array(V), return_lse=True, **given)


def in_turns(names: Any) -> list[tuple[str, str]]:
    """Each on one target, on both where all is asked for."""
    targets = tuple(SMALL)
    return [(name, t) for n, name in enumerate(names) for t in (targets if os.environ.get("FCGEN_ALL") else targets[n % 2:n % 2 + 1])]


@pytest.mark.parametrize(("name", "target"), in_turns(MASKS))
def test_a_mask(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, target, "simulate")
    mask, seen = MASKS[name]
    check(called(mask=mask, schedule=SMALL[target]), eager(Q, K, V, seen=seen))


@pytest.mark.parametrize("split", ["branch", "loops"])
def test_warpgroups_jump_over_a_hole_together(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves out tiles of its own at both ends; what lies between is left out by what all rows see."""
    on_cpu(monkeypatch, "sm_90a", "simulate")
    mask, seen = MASKS["first keys and a window"]
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 16}, math="wgmma", copy="tma", warps=8, late="acc", vote=True, split=split,
                           stages={"q": 1, "k": 3, "v": 3}, persistent="dynamic", from_end="rows", epilogue="quad")
    check(called(mask=mask, schedule=schedule), eager(Q, K, V, seen=seen))


@pytest.mark.parametrize(("name", "target"), in_turns(SCORES))
def test_a_score(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, target, "simulate")
    score, wanted = SCORES[name]
    check(called(score=score, causal="bottom_right", schedule=SMALL[target]),
          eager(Q, K, V, score=wanted, seen=lambda b, h, i, j: j <= i + N - M))


@pytest.mark.parametrize("target", SMALL)
@pytest.mark.parametrize("sinks", [SINKS, 0.0, -1e30])
def test_sinks_are_scores_without_a_value(target: str, sinks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, target, "simulate")
    check(called(sinks=sinks, mask=masks.window(5, -3), schedule=SMALL[target]),
          eager(Q, K, V, seen=lambda b, h, i, j: (j >= i - 5) & (j <= i - 3),
                sinks=np.broadcast_to(sinks, H)))


@pytest.mark.parametrize("target", SMALL)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_is_read_back(target: str, p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, target, "simulate")
    drop = fc.Dropout(p, 2**40 + 5, 7)
    kept = fc.dropout_mask(drop, B, H, M, N, Array(Q)).array
    np.testing.assert_array_equal(kept, drop.mask(B, H, M, N))
    assert abs(kept.mean() - (1 - p)) < 0.01 and (p in (0, 1) or (kept != fc.Dropout(p, 6, 7).mask(B, H, M, N)).any())
    check(called(dropout=drop, causal="top_left", schedule=SMALL[target]),
          eager(Q, K, V, seen=lambda b, h, i, j: j <= i, kept=kept, factor=1 / (1 - p) if p < 1 else 0.0), 8e-3)


def test_random_bits_are_fair() -> None:
    kept = fc.Dropout(0.5, 1).mask(1, 8, 256, 256)[0].reshape(8, -1) * 2.0 - 1
    corr = np.corrcoef(kept)
    assert abs(kept.mean(1)).max() < 0.02 and abs(corr - np.eye(8)).max() < 0.02
    rows = kept.reshape(8, 256, 256)
    assert abs((rows[:, 1:] * rows[:, :-1]).mean()) < 0.01 and abs((rows[..., 1:] * rows[..., :-1]).mean()) < 0.01
    other = fc.Dropout(0.5, 1, 1).mask(1, 8, 256, 256)[0].reshape(8, -1) * 2.0 - 1
    assert abs((kept * other).mean()) < 0.01


@pytest.mark.parametrize("target", SMALL)
def test_everything_at_once_over_lists(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that hangs on tensors goes by lists that one kernel makes; all else stands beside it."""
    seen = on_cpu(monkeypatch, target, "simulate")
    drop = fc.Dropout(0.2, 9)
    got = called(mask=masks.documents(IDS[:, :M], IDS) & masks.padding(LENGTHS), causal="bottom_right", score=SCORES["in a row"][0],
                 sinks=SINKS, dropout=drop, schedule=SMALL[target])
    want = eager(Q, K, V, seen=lambda b, h, i, j: MASKS["documents"][1](b, h, i, j) & (j < LENGTHS[b]) & (j <= i + N - M),
                 score=SCORES["in a row"][1], sinks=SINKS, kept=drop.mask(B, H, M, N), factor=1 / 0.8)
    check(got, want, 8e-3)
    assert [p.name for p in seen] == ["bounded_lists", "listed_attention"]


SEEN = (RNG.random((M, N)) < 0.3).repeat(20, axis=1)[:, :N].astype(np.int8)
#: masks of which blocks of positions say nothing
DATA: dict[str, Any] = {
    "a tensor of rows and keys": (lambda b, h, i, j: (SEEN[i, j] == 1) & (j <= i + 30), lambda b, h, i, j: (SEEN[i, j] == 1) & (j <= i + 30)),
    "floats of both": (lambda b, h, i, j: (i - j).to(fc.f32) * 0.5 > IDS[b, j].to(fc.f32),
                       lambda b, h, i, j: (i - j) * 0.5 > IDS[b][j]),
    "bits of both": (lambda b, h, i, j: ((i ^ j) & 32 == 0) & (IDS[b, j] >= 0), lambda b, h, i, j: ((i ^ j) & 32 == 0) & (IDS[b][j] >= 0)),
}


@pytest.mark.parametrize(("name", "target"), [(n, t) for n in DATA for t in ("sm_89", "sm_90a")])
def test_one_kernel_lists_what_is_asked_about_every_element(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_cpu(monkeypatch, target)
    mask, wanted = DATA[name]
    check(called(mask=mask, schedule=SMALL[target]), eager(Q, K, V, seen=wanted))
    assert [p.name for p in seen] == ["lists_of", "listed_attention"]


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("block", [(128, 128), (64, 64), (128, 16), (64, 80)])
def test_lists_that_are_given(target: str, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_cpu(monkeypatch, target)
    mask, wanted = masks.documents(IDS[:1, :M], IDS[0]), lambda b, h, i, j: IDS[0, :M, None] == IDS[0][None]
    lists = fc.block_lists(mask, B, H, M, N, Array(Q), block=block)
    assert lists.counts.shape == (1, 1, -(-M // block[0])) and lists.entries.shape[3] == -(-N // block[1])
    check(called(mask=mask, blocks=lists), eager(Q, K, V, seen=wanted))
    assert [p.name for p in seen] == ["lists_of", "listed_attention"]


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
def test_lists_as_torch_has_them(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lists, of blocks seen in part and of blocks seen whole; what stands in neither is left out."""
    seen, block = on_cpu(monkeypatch, target), (64, 16)
    part, whole = RNG.random((B, 1, 2, 9)) < 0.5, RNG.random((B, 1, 2, 8)) < 0.5
    part[..., :8] &= ~whole

    def listed(x: np.ndarray) -> tuple[Array, Array]:
        order = np.argsort(~x, axis=-1, kind="stable").astype(np.int32)
        return Array(x.sum(-1).astype(np.int32)), Array(order)

    mask, blocks = masks.causal(30), fc.BlockLists(*listed(part), *listed(whole), block)
    grow = lambda x: np.pad(np.kron(x, np.ones(block)), ((0, 0), (0, N)))[:M, :N] > 0
    both = lambda b, h, i, j: (grow(part[b, 0]) & (j <= i + 30)) | grow(whole[b, 0])
    check(called(mask=mask, blocks=blocks), eager(Q, K, V, seen=both))
    check(called(mask=mask, blocks=blocks.merged()), eager(Q, K, V, seen=both))
    check(called(blocks=blocks._replace(full_counts=None, full_indices=None)), eager(Q, K, V, seen=lambda b, h, i, j: grow(part[b, 0])))
    assert [p.name for p in seen] == ["merged_lists", "listed_attention"] * 2 + ["merged_lists", "listed_attention"]


@pytest.mark.parametrize(("words", "given"), [
    ("takes other arguments", {"mask": lambda q, k: q > k}), ("is not a function", {"mask": 3}), ("of the mask alone", {"blocks": fc.BlockLists(None, None), "causal": "top_left"}),
    ("holds no lists", {"blocks": 3}), ("no two lists", {"blocks": fc.BlockLists(None, None)}), ("two multiples of 16", {"blocks": Lists(1, 2, None)}),
    ("has the wrong shape", {"blocks": fc.BlockLists(*(Array(np.zeros((1, 1, 3), np.int32)) for _ in range(2)))}),
    ("has the wrong shape", {"blocks": fc.BlockLists(Array(np.zeros((3, 1, 3), np.int32)), Array(np.zeros((3, 1, 3, 1), np.int32)))}),
    ("and counts, or neither|counts and indices", {"blocks": fc.BlockLists(1, 2, 3)}), ("two multiples of 16", {"blocks": fc.BlockLists(1, 2, block=(3, 3))}),
    ("no tensor of 1 axes", {"sinks": np.zeros((2, 2), np.float32)}), ("no dropout", {"dropout": "much"}), ("not between 0 and 1", {"dropout": 1.5}),
])
def test_refused(words: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)
    with pytest.raises(fc.FcError, match=words):
        called(**given)


@pytest.mark.parametrize("make", [
    lambda: masks.window("x"), lambda: masks.prefix(1.5), lambda: masks.documents(np.zeros(4)), lambda: masks.neighbourhood((2, 2, 2, 2), 1),
    lambda: masks.Mask(lambda a: a), lambda: masks.and_masks(lambda a: a), lambda: masks.block_sparse(np.zeros((2, 2), bool)), lambda: scores.soft_cap(0),
    lambda: scores.Score(lambda s: s), lambda: scores.relative(np.zeros(4, np.float32)), lambda: fc.Dropout(2.0), lambda: fc.Dropout(0.5, 1.5), lambda: scores.alibi(3),
    lambda: masks.dilated(0), lambda: masks.neighbourhood((0, 4), 1), lambda: masks.neighbourhood((4, 4), -1), lambda: masks.neighbourhood(5.0, 1),
    lambda: masks.block_sparse(np.ones((2, 2), np.int8), 0)])
def test_what_is_no_mask_or_score_is_refused_where_it_is_made(make: Any) -> None:
    with pytest.raises(fc.FcError) as e:
        make()
    assert e.value.code == "call/argument"


def test_a_mistake_in_a_mask_names_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)

    def wrong(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx.nothing > kv_idx

    for mask in (wrong, masks.and_masks(wrong, masks.causal()), masks.Mask(wrong) | masks.causal()):
        with pytest.raises(fc.FcError) as e:
            called(mask=mask)
        assert "test_masks.py" in str(e.value) and "q_idx.nothing" in str(e.value), str(e.value)
    for returns, words in ((lambda b, h, i, j: i + j, "condition"), (lambda b, h, i, j: None, "condition"), (lambda b, h, i, j: j / 0.0, "condition")):
        with pytest.raises(fc.FcError) as e:
            called(mask=returns)
        assert "test_masks.py" in str(e.value) and words in str(e.value), str(e.value)


def test_numbers_lengths_and_tensors_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = on_cpu(monkeypatch)
    rng = np.random.default_rng(0)

    def call() -> None:
        b, g, m, n, left = (int(rng.integers(1, x)) for x in (3, 3, 40, 50, 20))
        ids = rng.integers(0, 3, n).astype(np.int32)
        bias = rng.standard_normal((1, 1, m + 1, n + 1)).astype(np.float32)
        q, k = (Array(rng.standard_normal((b, h, s, 16)).astype(np.float16)) for h, s in ((2 * g, m), (g, n)))
        lengths = rng.integers(0, n, b).astype(np.int32)
        fc.attention(q, k, k, mask=(masks.window(left, 3) | masks.prefix(left // 2)) & masks.padding(lengths), score=scores.soft_cap(1.0 + left) + scores.bias(bias),
                     sinks=rng.standard_normal(2 * g).astype(np.float32), dropout=fc.Dropout(0.1 + left / 100, left, n), scale=0.1 + left, schedule=SMALL["sm_90a"])

    for _ in range(30):
        call()
    assert len({id(p) for p in programs}) <= 2, "one for a bias whose rows bulk copies can move, one for others"


@pytest.mark.parametrize(("keys", "way"), [(136, "load"), (137, "gather")])
@pytest.mark.parametrize("target", SMALL)
def test_a_bias_is_loaded_tile_by_tile_where_copies_can_move_it(target: str, keys: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_cpu(monkeypatch, target, "simulate")
    k, bias = RNG.standard_normal((B, G, keys, D)).astype(np.float16), RNG.standard_normal((1, H, M, keys)).astype(np.float16)
    check(fc.attention(Array(Q), Array(k), Array(k), score=scores.bias(bias), schedule=SMALL[target], return_lse=True),
          eager(Q, k, k, score=lambda s, b, h, i, j: s + bias[0, h].astype(float)))
    ways = {op.kind for op in walk_kernel(seen[0].tile) if op.operands and op.operands[0].name.startswith("score")}
    assert ways == {way}
