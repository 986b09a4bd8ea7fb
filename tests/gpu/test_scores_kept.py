"""Backward passes that leave gradients of scores in memory: heads over 128, short causal ones, the same bits each time; by parts of heads."""

from __future__ import annotations

import pytest

import fcgen as fc
from tests.gpu.test_training import compare, draw

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")


@pytest.fixture
def workspace(monkeypatch):
    """FCGEN_WORKSPACE in MiB, for calls whose plans are made anew."""
    from fcgen.attend import trained

    def told(mib):
        monkeypatch.setenv("FCGEN_WORKSPACE", mib)
        trained._passes.clear()

    yield told
    trained._passes.clear()


def ways():
    """Of the backward passes that have been planned last."""
    from fcgen.attend.training import _plans

    return {plan.way.value for plan in _plans.values()}


def seen(m, n, causal):
    i, j = torch.arange(m, device="cuda")[:, None], torch.arange(n, device="cuda")
    return {"seen": i + (n - m if causal == "bottom_right" else 0) >= j} if causal else {}


@pytest.mark.parametrize("mib", ["", "1", "0"])
@pytest.mark.parametrize("d, e, g, m, n, causal", [(256, 256, 4, 200, 300, False), (256, 256, 2, 513, 300, "top_left"), (192, 128, 1, 300, 200, False),
                                                   (160, 160, 4, 130, 257, "bottom_right"), (128, 128, 2, 333, 520, "bottom_right"),
                                                   (96, 128, 4, 385, 385, "top_left")])
def test_gradients(d, e, g, m, n, causal, mib, workspace):
    from fcgen.attend.training import _plans

    workspace(mib)
    _plans.clear()
    for dtype in ("float16", "bfloat16"):
        for _ in range(2):  # a pass that is known the second time
            compare(draw(b=3, g=g, m=m, n=n, d=d, e=e, dtype=dtype), {"causal": causal}, lse=False, tolerance=4e-2 if dtype == "bfloat16" else 1e-2,
                    **seen(m, n, causal))
    assert ways() == {"rows" if mib == "0" else "scores"}


def test_little_memory_takes_more_parts(workspace, monkeypatch):
    workspace("64")
    xs, empty, tried = draw(b=2, m=300, n=300, d=256), torch.empty, []

    def short(*shape, **how):
        if len(shape) == 1 and isinstance(shape[0], int) and shape[0] > 300 * 304 * 3:
            tried.append(shape[0])
            raise torch.OutOfMemoryError("none left")
        return empty(*shape, **how)

    monkeypatch.setattr(torch, "empty", short)
    compare(xs, {})
    assert len(tried) == 2  # eight heads, four, two


def test_parts_of_heads_do_not_reach_functions(workspace, monkeypatch):
    """What they are told is the head's number in the whole tensor."""
    workspace("64")
    xs, empty = draw(b=2, m=200, n=200, d=256), torch.empty

    def short(*shape, **how):
        if len(shape) == 1 and isinstance(shape[0], int) and shape[0] > 200 * 200 * 3:
            raise torch.OutOfMemoryError("none left")
        return empty(*shape, **how)

    options = {"score": lambda s, b, h, i, j: s * (1.0 + 0.5 * fc.cast(h + 4 * b, fc.f32))}
    factor = 1 + 0.5 * torch.arange(8, device="cuda").double().view(2, 4, 1, 1)
    compare(xs, options, score=lambda: lambda s: s * factor, tolerance=2e-2)
    monkeypatch.setattr(torch, "empty", short)
    with pytest.raises(torch.OutOfMemoryError):
        fc.attention(*xs, **options).sum().backward()


@pytest.mark.parametrize("value", ["-1", "1.5", "1G"])
def test_a_workspace_that_is_no_number(value, workspace):
    from fcgen.attend.scores import room

    workspace(value)
    with pytest.raises(fc.FcError, match="FCGEN_WORKSPACE"):
        room(0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("d, causal", [(128, False), (128, "top_left"), (256, False), (256, "top_left")])
def test_the_same_bits_each_time(d, causal, dtype, workspace):
    workspace("")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        xs = draw(b=2, m=700, n=700, d=d, dtype=dtype)
        compare(xs, {"causal": causal}, tolerance=4e-2 if dtype == "bfloat16" else 1e-2, **seen(700, 700, causal))
        out = fc.attention(*xs, causal=causal)
        g = torch.randn_like(out)
        first, *more = (torch.autograd.grad(out, xs, g, retain_graph=True) for _ in range(20))
        assert all(bool((x == y).all()) for again in more for x, y in zip(first, again))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mib", ["64", "1"])
@pytest.mark.parametrize("g", [1, 4])
def test_functions_and_what_they_hold(g, mib, workspace):
    """With functions all heads must have room together: what they read by head stays where it is."""
    workspace(mib)
    m, n = 200, 300
    xs = draw(b=2, m=m, n=n, d=192, g=g)
    i, j = torch.arange(m, device="cuda")[:, None], torch.arange(n, device="cuda")
    bias, heat, sinks = (torch.randn(s, device="cuda").requires_grad_() for s in ((4, m, n), 1, 4))
    compare(xs, {"score": lambda s, b, h, i, j: 5.0 * fc.tanh(s * heat[0] / 5.0) + bias[h, i, j], "mask": lambda b, h, i, j: (i - j < 90) & (j - i < 70),
                 "sinks": sinks}, (bias, heat, sinks), tolerance=2e-2,
            score=lambda bias, heat, sinks: lambda s: 5 * torch.tanh(s * heat / 5) + bias, sink=lambda bias, heat, sinks: sinks,
            seen=(i - j < 90) & (j - i < 70))
