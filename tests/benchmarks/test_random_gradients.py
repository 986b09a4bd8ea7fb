"""Random backward passes: a few of each interface on the CPU, in the interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from benchmarks import random_gradients as drawn  # noqa: E402
from tests.interfaces.interpreted import interpreted  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(drawn, "LENGTHS", (1, 7, 33))
    monkeypatch.setattr("fcgen.attend.training._fits", lambda *_: True)
    monkeypatch.setattr("fcgen.attend.training._families", {})
    return interpreted(monkeypatch)


@pytest.mark.parametrize("number", [16, 3, 5, 7, 14, 28])
def test_a_call_of_each_interface_agrees(number, on_cpu) -> None:
    share, wrong = drawn.run(drawn.draw(drawn.kind(number), 1), "cpu")
    assert not wrong and 0 < share < 1 and "backward" in " ".join(p.name for p in on_cpu)


def test_a_wrong_gradient_is_told(monkeypatch) -> None:
    ours = drawn.Case.ours
    monkeypatch.setattr(drawn.Case, "ours", lambda self, xs: ours(self, [xs[0] * 1.05, *xs[1:]]))
    share, wrong = drawn.run(drawn.draw(drawn.kind(2), 0), "cpu")
    assert share > 1 and "dQ" in wrong[0]


def test_what_roundings_of_the_output_move_is_allowed() -> None:
    """Of the slopes' gradient, a sum that cancels: some hundredths. A gradient of the log-sum-exp alone moves by nothing else."""
    case = drawn.Case(drawn.draw(drawn.kind(26), 0), "cpu")
    exact, moved = (drawn._backward(case, xs, case.exactly(xs), u) for xs, u in ((case.leaves(torch.float64), u) for u in (0.0, 2.0**-8)))
    assert not (exact[3] == moved[3]).all() and (exact[3] - moved[3]).abs().max() < 0.5 * (1 + exact[3].abs().max())
    assert (exact[2] == moved[2]).all()


def test_kinds_and_calls_are_their_numbers() -> None:
    kinds = [drawn.kind(n) for n in range(48)]
    assert kinds == [drawn.kind(n) for n in range(48)] and {k.interface for k in kinds} == set(drawn.INTERFACES)
    assert drawn.draw(kinds[4], 3) == drawn.draw(kinds[4], 3) != drawn.draw(kinds[4], 4)
    assert {w for k in kinds for w in (k.score, k.mask)} >= {*drawn.SCORES, *drawn.MASKS, "some"}
