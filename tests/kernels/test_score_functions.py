"""Score functions that hold tensors, numbers and other functions, in the library's attention on both targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import attention

SCHEDULES = {"sm_89": fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=2),
             "sm_90a": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, math="wgmma", copy="tma", warps=4)}
B, H, G, M, N, D = 1, 4, 2, 45, 70, 32
RNG = np.random.default_rng(3)
Q, K, V = (RNG.standard_normal((B, h, n, D)).astype(np.float16) for h, n in ((H, M), (G, N), (G, N)))
I, J = np.arange(M)[:, None], np.arange(N)[None, :]


def wanted(score: Callable[[np.ndarray, int], np.ndarray], scale: float = D**-0.5) -> np.ndarray:
    out = np.zeros((B, H, M, D))
    for h in range(H):
        s = score(np.asarray(Q[0, h], float) @ np.asarray(K[0, h // (H // G)], float).T * scale, h)
        e = np.exp(s - s.max(1, keepdims=True, initial=-1e30))
        out[0, h] = e @ np.asarray(V[0, h // (H // G)], float) / np.maximum(e.sum(1, keepdims=True), 1e-300)
    return out


def check(target: str, score: Any, want: np.ndarray, scale: float = D**-0.5, **more: Any) -> fc.Program:
    p = attention.compile(target=target, schedule=SCHEDULES[target], LSE=None, T=fc.f16, D=D, E=D, score=score, **more)
    np.testing.assert_allclose(p.interpret(Q=Q, K=K, V=V, scale=scale)["O"], want, atol=4e-3)
    np.testing.assert_allclose(p.simulate(Q=Q, K=K, V=V, scale=scale)["O"], want, atol=4e-3)
    return p


@pytest.mark.parametrize("target", SCHEDULES)
def test_a_bias_tensor(target: str) -> None:
    bias = RNG.standard_normal((H, M, N)).astype(np.float16)
    p = check(target, lambda s, b, h, i, j: s + bias[h, i, j].to(fc.f32), wanted(lambda s, h: s + bias[h].astype(float)))
    bias = -2 * bias
    want = wanted(lambda s, h: s + bias[h].astype(float))
    np.testing.assert_allclose(p.simulate(Q=Q, K=K, V=V, scale=D**-0.5)["O"], want, atol=8e-3)


@pytest.mark.parametrize("target", SCHEDULES)
def test_slopes_and_a_table_of_distances_of_an_object(target: str) -> None:
    class Relative:
        def __init__(self) -> None:
            self.slopes, self.table, self.most = 2.0 ** -np.arange(1, H + 1, dtype=np.float32), RNG.standard_normal(17).astype(np.float32), 8

        def distance(self, i: Any, j: Any) -> Any:
            return fc.minimum(fc.maximum(j - i, -self.most), self.most)

        def __call__(self, s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            return s + self.slopes[h] * self.distance(i, j).to(fc.f32) + self.table[self.distance(i, j) + self.most]

    r = Relative()
    far = lambda: np.clip(J - I, -r.most, r.most)
    check(target, r, wanted(lambda s, h: s + r.slopes[h] * far() + r.table[far() + r.most]))


@pytest.mark.parametrize("target", SCHEDULES)
def test_documents_and_a_window(target: str) -> None:
    left, right, window = np.sort(RNG.integers(0, 3, M)).astype(np.int32), np.sort(RNG.integers(0, 3, N)).astype(np.int32), 20

    def seen(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return fc.where((left[i] == right[j]) & (abs(i - j) < window), s, -fc.inf)

    check(target, seen, wanted(lambda s, h: np.where((left[:, None] == right) & (abs(I - J) < window), s, -np.inf)))


@pytest.mark.parametrize("target", SCHEDULES)
@pytest.mark.parametrize("scale", [-0.3, 0.0, 40.0])
def test_any_scale_is_a_scalar_of_the_launch_or_a_captured_number(target: str, scale: float) -> None:
    by = scale
    with np.errstate(all="ignore"):
        want = wanted(lambda s, h: s, scale)
    p = check(target, None, want, scale, positive=False)
    check(target, lambda s, b, h, i, j: s * by, want, 1.0)
    assert "scale" not in p.tile.flags


def test_one_kernel_for_all_numbers_and_tensors_of_a_kind() -> None:
    def made(cap: float, bias: np.ndarray) -> fc.Program:
        soft = lambda s: cap * fc.tanh(s / cap)
        return attention.compile(target="sm_89", schedule=SCHEDULES["sm_89"], LSE=None, T=fc.f16, D=D, E=D,
                                 score=lambda s, b, h, i, j: soft(s + bias[h, j]))

    x, y = made(20.0, np.zeros((H, N), np.float32)), made(30.0, np.ones((2, 5), np.float32))
    assert x.first is y.first and [p.name for p in x.tile.params[4:]] == ["scale", "score_0", "score_1"]
