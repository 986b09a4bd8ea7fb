"""Tables of what was made before."""

from __future__ import annotations

from typing import Any

from fcgen.build.tables import kept_in


def test_what_is_there_is_found_and_a_full_table_is_emptied() -> None:
    table: dict[int, Any] = {}
    assert [kept_in(table, 2, n % 2, object) for n in range(2)] == [kept_in(table, 2, n % 2, object) for n in range(2)]
    assert kept_in(table, 2, 5, lambda: None) is None and table == {5: None}
    assert kept_in(table, 2, 5, object) is None, "None is something that was made"


def test_other_threads_may_fill_or_empty_it_while_something_is_made() -> None:
    table: dict[int, Any] = {}
    theirs = object()
    assert kept_in(table, 8, 1, lambda: table.update({1: theirs}) or object()) is theirs, "all get the one that was there first"
    assert kept_in(table, 8, 2, lambda: table.clear() or theirs) is theirs and table == {2: theirs}
