"""`kernels`: torch's CPU tensors are a GPU's, and what is launched is interpreted."""

from __future__ import annotations

import pytest


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch):
    """The programs that were run, in order."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
    from .interpreted import interpreted

    torch.manual_seed(0)
    torch.set_num_threads(1)
    return interpreted(monkeypatch)


@pytest.fixture
def fresh():
    """No graphs of others, before and after; gives (a backend that keeps graphs, the graphs)."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
    torch._dynamo.reset()
    made: list = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    yield backend, made
    torch._dynamo.reset()


@pytest.fixture
def gradient_kernels(kernels, monkeypatch):
    """The same for backward passes: whatever fits a schedule is taken, and nothing is kept from another test."""
    from fcgen.attend import training

    monkeypatch.setattr(training, "_fits", lambda *_: True)
    monkeypatch.setattr(training, "_families", {})
    monkeypatch.setattr(training, "_programs", {})
    return kernels
