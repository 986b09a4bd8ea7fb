"""Masks as text and as pictures."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen import masks


def test_tiles_are_drawn() -> None:
    text = (masks.window(100, 0) & masks.causal()).drawn(256, tile=(64, 64))
    assert text.splitlines()[0].startswith("window & causal: 256 rows x 256 keys in tiles of 64 x 64, ")
    lines = text.splitlines()[2:]
    i, j = np.arange(256)[:, None], np.arange(256)[None]
    seen = (j <= i) & (j >= i - 100)
    for y, line in enumerate(lines):
        for x, c in enumerate(line):
            part = seen[y * 64:y * 64 + 64, x * 64:x * 64 + 64]
            assert c == ("█" if part.all() else "▒" if part.any() else "·")


def test_what_hangs_on_batches_heads_and_tensors_is_drawn() -> None:
    mask = masks.padding(np.array([16, 40], np.int32)) & masks.documents(np.repeat(np.arange(4), 16).astype(np.int32))
    assert mask.drawn(64, b=0).splitlines()[2:] == ["█···", "····", "····", "····"]
    assert mask.drawn(64, b=1).splitlines()[2:] == ["█···", "·█··", "··▒·", "····"]
    assert str(masks.everything()).splitlines()[2:] == ["█" * 32] * 32


def test_a_picture_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    masks.causal().plot(tmp_path / "mask.png", 64)
    assert (tmp_path / "mask.png").stat().st_size > 1000


def test_without_matplotlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(fc.FcError, match=r"fcgen\[plot\]"):
        masks.causal().plot("mask.png", 16)


@pytest.mark.parametrize("given", [{"rows": 0}, {"rows": 10**6}, {"tile": 3}])
def test_refused(given: Any) -> None:
    with pytest.raises(fc.FcError):
        masks.causal().drawn(**given)
