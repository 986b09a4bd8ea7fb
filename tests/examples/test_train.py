"""The training example: what it learns from, a tiny run in the interpreter whose losses are PyTorch's, and its picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from tests.interfaces.interpreted import interpreted  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def train(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train

    return train


def test_the_text_is_its_seed_and_made_of_letters(train) -> None:
    a = train.text(5000, 1)
    assert len(a) == 5000 and torch.equal(a, train.text(5000, 1)) and not torch.equal(a, train.text(5000, 2))
    assert " are " in "".join(train.LETTERS[i] for i in a.tolist())


def test_a_tiny_run_has_the_losses_of_sdpa(train, monkeypatch) -> None:
    """In half precision around attention alone: a CPU has no autocast to what the kernels take."""
    monkeypatch.setattr("fcgen.attend.training._fits", lambda *_: True)
    monkeypatch.setattr("fcgen.attend.training._families", {})
    torch.set_num_threads(1)
    seen = interpreted(monkeypatch)
    ours = train.ATTENTIONS["fcgen"]
    monkeypatch.setitem(train.ATTENTIONS, "fcgen", lambda q, k, v, is_causal: ours(q.half(), k.half(), v.half(), is_causal=is_causal).float())
    found = train.run(train.Settings(steps=4, batch=2, context=20, layers=1, width=32, heads=2, rate=1e-2), "cpu")
    assert [p.name for p in seen[:3]] == ["attention", "backward_rows", "backward"] and len(seen) == 12
    assert found["apart"]["fcgen"] < 5e-3 and found["apart"]["sdpa in float32"] < 1e-6
    assert found["losses"]["fcgen"][-1] < found["losses"]["fcgen"][0] - 0.05


def test_the_picture(train, tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install fcgen[plot]")
    losses = {name: [3.0 - 0.01 * n for n in range(60)] for name in train.ATTENTIONS}
    train.picture({"losses": losses, "settings": train.Settings()._asdict(), "gpu": "a GPU"}, tmp_path / "train.svg")
    assert "fcgen less sdpa" in (tmp_path / "train.svg").read_text(encoding="utf-8")


def test_without_a_gpu_it_says_so(train, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train.main([]) == 1 and "no GPU" in capsys.readouterr().out and "train" in sys.modules
