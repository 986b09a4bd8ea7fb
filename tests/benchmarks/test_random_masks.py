"""A small sample of the random combinations; `python -m benchmarks.random_masks` runs thousands."""

from __future__ import annotations

import os

import pytest

from benchmarks import on_cpu, random_masks


@pytest.mark.parametrize("number", range(int(os.environ.get("FCGEN_MASKS", "6"))))
def test_a_random_combination(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setattr", "setitem"):
        monkeypatch.setattr(on_cpu.Patch, name, getattr(monkeypatch, name))
    _, what, said, _ = random_masks.one(number)
    assert not said, f"{what}\n{said}"


def test_cases_are_drawn_by_their_number() -> None:
    assert str(random_masks.Drawn(5)) == str(random_masks.Drawn(5)) != str(random_masks.Drawn(6))
