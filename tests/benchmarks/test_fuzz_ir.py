"""A small sample of the fuzz of IR text: every outcome is a result or an FcError, and each kind of mutation does something."""

from __future__ import annotations

import pytest

from benchmarks import fuzz_ir


@pytest.mark.parametrize("first", [0, 15, 30])
def test_a_sample_has_no_faults(first):
    rows = fuzz_ir.run(range(first, first + 15))
    assert len(rows) == 15 and not [r for r in rows if "fault" in r]


def test_fifty_megabytes_are_refused_at_once():
    (row,) = fuzz_ir.run(range(499, 500))
    assert row["kind"] == "huge" and row["outcome"] in ("ir/parse", "file/missing") and row["seconds"] < 5


def test_inputs_are_what_their_number_says():
    assert fuzz_ir.make(7) == fuzz_ir.make(7) != fuzz_ir.make(8)


@pytest.mark.parametrize("code, text", [(True, "int x = 1; FUZZ@MARK"), (True, "// a\nFUZZ@MARK"), (False, "// FUZZ@MARK"),
                                        (False, "/* FUZZ@MARK */ int x;"), (False, "// a \\\n FUZZ@MARK")])
def test_comments_are_no_code_and_nothing_else_is_a_comment(code, text):
    assert (fuzz_ir.MARK in fuzz_ir.code_of(text)) == code
