"""Random backward passes: a few of each interface on the CPU, in the interpreter."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from benchmarks import random_gradients as drawn
from tests.interfaces.interpreted import interpreted

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(drawn, "LENGTHS", (1, 7, 33))
    monkeypatch.setattr("fcgen.attend.training._fits", lambda program: True)
    monkeypatch.setattr("fcgen.attend.training._families", {})
    return interpreted(monkeypatch)


@pytest.mark.parametrize("number", [0, 3, 5, 7, 14, 28])
def test_a_call_of_each_interface_agrees(number, on_cpu) -> None:
    share, wrong = drawn.run(drawn.draw(drawn.kind(number), 1), "cpu")
    assert not wrong and 0 < share < 1 and "rows_before" in " ".join(p.name for p in on_cpu)


def test_a_wrong_gradient_is_told(monkeypatch) -> None:
    ours = drawn.Case.ours
    monkeypatch.setattr(drawn.Case, "ours", lambda self, xs: ours(self, [xs[0] * 1.05, *xs[1:]]))
    share, wrong = drawn.run(drawn.draw(drawn.kind(2), 0), "cpu")
    assert share > 1 and "dQ" in wrong[0]


def test_kinds_and_calls_are_their_numbers() -> None:
    kinds = [drawn.kind(n) for n in range(48)]
    assert kinds == [drawn.kind(n) for n in range(48)] and {k.interface for k in kinds} == set(drawn.INTERFACES)
    assert drawn.draw(kinds[4], 3) == drawn.draw(kinds[4], 3) != drawn.draw(kinds[4], 4)
    assert {w for k in kinds for w in (k.score, k.mask)} >= {*drawn.SCORES, *drawn.MASKS, "some"}
