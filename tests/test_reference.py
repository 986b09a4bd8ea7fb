"""docs/reference.md: every name of the package and every field of a schedule is there, and every example runs."""

from __future__ import annotations

import linecache
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import fcgen as fc

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
TEXT = PAGE.read_text(encoding="utf-8")


def pieces() -> list[tuple[str, str]]:
    """("heading" | "code" | "row", text), in order."""
    found = re.finditer(r"^### (?P<heading>[^\n]*)$|^```python\n(?P<code>.*?)^```$|^(?P<row>\| `[^\n]*\|)$", TEXT, re.MULTILINE | re.DOTALL)
    return [(m.lastgroup or "", m[m.lastgroup or 0]) for m in found]


def executed(code: str, space: dict[str, Any], n: int) -> None:
    file = f"<reference {n}>"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    exec(compile(code, file, "exec"), space)


def program_text(program: Any) -> str:
    return "\n".join(line for line in str(program.machine).splitlines() if not line.startswith("meta schedule"))


@pytest.fixture(scope="module")
def ran() -> list[tuple[str, Any, Any]]:
    """What the tables say, with the schedule and the spec that stand above each: (row, base, lower). All code has run."""
    space: dict[str, Any] = {}
    rows = []
    for n, (kind, text) in enumerate(pieces()):
        if kind == "code":
            executed(text, space, n)
        elif kind == "row":
            rows.append((text, space["base"], space["lower"]))
    return rows


def test_every_name_has_a_heading_and_an_example_that_uses_it() -> None:
    heading, seen, used = "", [], {}
    for kind, text in pieces():
        if kind == "heading":
            heading = text
            seen += re.findall(r"`fc\.(\w+)`", heading)
        elif kind == "code":
            for name in re.findall(r"`fc\.(\w+)`", heading):
                used[name] = used.get(name, False) or bool(re.search(rf"\bfc\.{name}\b", text))
    assert sorted(seen) == sorted(fc.__all__)
    assert [name for name, is_used in used.items() if not is_used] == [] and set(used) == set(fc.__all__)


def test_every_field_of_a_schedule_is_in_a_table() -> None:
    listed = {re.match(r"\| `(\w+)`", text)[1] for kind, text in pieces() if kind == "row"}  # type: ignore[index]
    assert listed == {f.name for f in fields(fc.Schedule)}


def test_every_example_of_a_field_changes_the_kernel(ran: list[tuple[str, Any, Any]]) -> None:
    made: dict[Any, str] = {}
    wrong = []
    for row, base, lower in ran:
        field, example = re.fullmatch(r"\| `(\w+)` \| .* \| `(.*)` \|", row).groups()  # type: ignore[union-attr]
        changed = eval(f"dict({example})")
        assert field in changed, row
        if lower not in made:
            made[lower] = program_text(lower(base))
        without = {k: v for k, v in changed.items() if k != field}
        try:
            before = program_text(lower(replace(base, **without))) if without else made[lower]
        except fc.FcError:  # the others are nothing without it
            before = ""
        try:
            if program_text(lower(replace(base, **changed))) == before:
                wrong.append(f"{example} changes nothing")
        except fc.FcError as e:
            wrong.append(f"{example}: {e.message}")
    assert not wrong, "\n".join(wrong)
