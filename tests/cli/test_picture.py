"""Pictures of layouts say what the layout says; those in SVG are well-formed."""

from __future__ import annotations

import re
from math import prod
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from fcgen.cli.picture import bank_colour, chunks, lane_colour, owners, registers, svg
from fcgen.ir.layout import SmemLayout, blocked, mma_c, native_smem, rowwise
from tests.ir import strategies

NS = "{http://www.w3.org/2000/svg}"


def cells(text: str) -> list[tuple[str, str]]:
    """(fill, tooltip) of each cell."""
    root = ElementTree.fromstring(text)
    return [(r.get("fill"), r.find(f"{NS}title").text) for r in root.iter(f"{NS}rect") if r.find(f"{NS}title") is not None]


def test_registers():
    layout = mma_c(32, 16, (2, 1))
    got = cells(svg(layout))
    assert len(got) == 32 * 16
    c = layout.coords()
    for fill, tip in got:
        i, j, w, l, r = map(int, re.findall(r"\d+", tip))
        assert tuple(c[w, l, r]) == (i, j) and fill == lane_colour(l)
    assert len({lane_colour(l) for l in range(32)}) == 32
    assert "warp 1</text>" in svg(layout) and "warp 0</text>" not in svg(mma_c(16, 8, (1, 1)))


def test_copies_and_limits_are_said():
    assert "every element is held by 4 threads" in svg(blocked(2, 4, 1))
    assert "8 x 8 of 64 x 64 shown" in svg(mma_c(64, 64), limit=(8, 8))


def test_shared_memory():
    layout, shape = native_smem(64, 2), (16, 64)
    got = cells(svg(layout, shape, 2))
    assert len(got) == 16 * 8
    for fill, tip in got:
        row, col, _, byte, bank, _ = map(int, re.findall(r"\d+", tip))
        assert layout.address(shape, 2, row, col) == byte and byte // 4 % 32 == bank and fill == bank_colour(bank // 4)
    for k in range(8):
        assert len({fill for fill, _ in got[k: 64: 8]}) == 8, "eight colours down a column: no conflicts"
    plain = cells(svg(SmemLayout(64), shape, 2))
    assert len({fill for fill, _ in plain[0: 64: 8]}) == 1


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="for a tile's shape"):
        svg(SmemLayout(64))
    with pytest.raises(ValueError, match="two-dimensional"):
        svg(mma_c(16, 8, (1, 1)).drop(0))


# ---- as text -------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(strategies.row_layouts())
def test_owners_prefer_the_warp_asked_for(layout):
    for warp in {0, layout.warps // 2, layout.warps - 1}:
        home = owners(layout, warp)
        assert len(home) == prod(layout.shape)
        mine = {tuple(x) for x in layout.coords()[warp].reshape(-1, 2).tolist()}
        assert {at for at, (w, _, _) in home.items() if w == warp} == mine


def test_pictures_as_text():
    assert registers(mma_c(16, 8, (1, 1)), limit=2).split("\n") == [
        "   0 | 0.0:0  0.0:1", "   1 | 0.4:0  0.4:1", "     ... 16 x 8 in all"]
    assert chunks(native_smem(64, 2), (64, 64), 2, 2).split("\n")[1].split() == ["1", "|", "9", "8"]
    with pytest.raises(ValueError):
        registers(mma_c(16, 8, (1, 1)).drop(0))
    assert registers(rowwise(4, 8, 1, 4, 2)).startswith("   0 | 0.0:0  0.0:1  0.1:0")
