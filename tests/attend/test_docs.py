"""docs/masks.md: its examples run, and its tables have all there is."""

from __future__ import annotations

import re
from pathlib import Path

from fcgen import masks, scores

TEXT = (Path(__file__).parents[2] / "docs" / "masks.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    space: dict[str, object] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(code, space)


def test_the_tables_name_all_ready_made_ones() -> None:
    for module, left in ((masks, {"mask", "and_masks", "or_masks", "everything", "wrong_result", "place_in", "takes"}),
                         (scores, {"alibi_slopes", "chain", "wrong_result"})):
        made = {n for n, x in vars(module).items() if not n.startswith("_") and getattr(x, "__module__", "") == module.__name__ and n[0].islower()}
        assert {n for n in made - left if f"`{n}(" not in TEXT} == set()
