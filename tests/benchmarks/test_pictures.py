"""docs/benchmarks.md says what the result files say, and its pictures can be drawn from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import page, pictures

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
FOLDERS = re.findall(r"\.\./(benchmarks/results/[\w.-]+)\)", TEXT.split("##")[0])
RESULTS = page.Results(*(ROOT / folder for folder in FOLDERS))


def test_the_page_is_of_the_result_files() -> None:
    assert page.page(RESULTS, *FOLDERS) == TEXT, f"python -m benchmarks.pictures {' '.join(FOLDERS)} docs"


def test_of_files_of_one_name_the_last_folder_counts(tmp_path: Path) -> None:
    for n, names in enumerate((("a.json", "b-1.json"), ("a.json", "b-2.json"))):
        (tmp_path / str(n)).mkdir()
        for name in names:
            (tmp_path / str(n) / name).write_text(str(n))
    found = page.Results(tmp_path / "0", tmp_path / "1")
    assert found.read("a.json") == 1 and found.read("b-1.json") == 0 and found.names("b-*.json") == {"b-1.json", "b-2.json"}
    assert found.has("a.json") and not found.has("c.json")


def test_its_pictures_are_there() -> None:
    for name in re.findall(r"!\[[^]]*\]\((.*?)\)", TEXT):
        assert (ROOT / "docs" / name).exists(), name
    assert all(f"{name}.svg" in TEXT for name in pictures.PICTURES)


def test_the_race_is_of_36_cells() -> None:
    race = RESULTS.race("fp16")
    assert sum(map(len, race.values())) == 36 and all(0.5 < ratio < 2 for cells in race.values() for _, ratio, _ in cells.values())


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures.main([*(str(ROOT / folder) for folder in FOLDERS), str(tmp_path)])
    for name, words in (("race", "cuDNN"), ("variants", "soft-cap"), ("backward", "deterministic"), ("gemms", "SwiGLU")):
        assert words in (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
