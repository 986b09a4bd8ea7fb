"""Gradients of scores that a pass over keys leaves in memory: parts of heads, and heads and batches that are not there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
import fcgen as fc  # noqa: E402
from fcgen.attend import scores, training  # noqa: E402

M, N, D = 21, 18, 256


@pytest.mark.parametrize("groups, most", [(1, 1), (2, 1), (4, 3), (4, 5), (2, 100)])
def test_parts_of_heads_give_what_all_of_them_do(gradient_kernels, monkeypatch, groups, most):
    one = 4 // groups * N * scores.wide(M) * 2
    monkeypatch.setattr(scores, "room", lambda device: most * one + 5)
    monkeypatch.setattr(training, "_plans", {})
    xs = [torch.randn(3, h, n, D).half().requires_grad_() for h, n in ((4, M), (groups, N), (groups, N))]
    ys = [x.detach().double().requires_grad_() for x in xs]
    fc.attention(*xs, causal="top_left").sum().backward()
    assert [p.tile.name for p in gradient_kernels].count("backward_queries") == len(list(scores._parts(3, groups, min(most, 3 * groups))))
    seen = torch.arange(N) <= torch.arange(M)[:, None]
    k, v = (y.repeat_interleave(4 // groups, 1) for y in ys[1:])
    (torch.where(seen, ys[0] @ k.mT * D**-0.5, -torch.inf).softmax(-1) @ v).sum().backward()
    for x, y in zip(xs, ys):
        assert (x.grad.double() - y.grad).abs().max() <= 1e-2 * y.grad.abs().max()


@pytest.mark.parametrize("b, h, g, m, n", [(1, 0, 0, 5, 5), (0, 2, 1, 5, 5), (2, 2, 1, 0, 5), (2, 2, 1, 5, 0)])
@pytest.mark.parametrize("d", [64, 256])
def test_axes_of_nothing(gradient_kernels, b, h, g, m, n, d):
    xs = [torch.randn(b, heads, size, d).half().requires_grad_() for heads, size in ((h, m), (g, n), (g, n))]
    fc.attention(*xs).sum().backward()
    assert [x.grad.shape for x in xs] == [x.shape for x in xs] and not any(x.grad.any() for x in xs)
