"""docs/benchmarks.md says what the result files say, and its pictures can be drawn from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import pictures

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
FOLDER = re.search(r"\.\./(benchmarks/results/[\w.-]+)\)", TEXT)[1]  # type: ignore[index]


def test_the_page_is_of_the_result_files() -> None:
    assert pictures.page(pictures.Results(ROOT / FOLDER), FOLDER) == TEXT, f"python -m benchmarks.pictures {FOLDER} docs"


def test_its_pictures_are_there() -> None:
    for name in re.findall(r"!\[[^]]*\]\((.*?)\)", TEXT):
        assert (ROOT / "docs" / name).exists(), name
    assert all(f"bench-{name}.svg" in TEXT for name in pictures.PICTURES)


def test_the_race_is_of_36_cells() -> None:
    race = pictures.Results(ROOT / FOLDER).race("fp16")
    assert sum(map(len, race.values())) == 36 and all(0.5 < ratio < 2 for cells in race.values() for _, ratio, _ in cells.values())


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures.main([str(ROOT / FOLDER), str(tmp_path)])
    for name, words in (("race", "cuDNN"), ("variants", "soft-cap"), ("backward", "deterministic"), ("gemms", "SwiGLU")):
        assert words in (tmp_path / f"bench-{name}.svg").read_text(encoding="utf-8")
