"""Mistakes in IR text are told with a place, a caret and what to try next."""

from __future__ import annotations

import pytest

from fcgen.errors import FcError
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel

from .programs import machine_kernel, tile_kernel

TILE, MACHINE = print_kernel(tile_kernel()), print_kernel(machine_kernel())


def mistake(old: str, new: str, text: str = TILE) -> FcError:
    assert old in text
    with pytest.raises(FcError) as e:
        parse_kernel(text.replace(old, new, 1), "k.fcir")
    return e.value


PARSE_ERRORS = [
    # (text before, text after, what the caret stands under, message, hint)
    ("tile kernel", "tiel kernel", "tiel", "there is no level 'tiel'", "did you mean tile?"),
    ("kernel attention", "kernl attention", "kernl", "`kernl` does not fit here", "did you mean kernel?"),
    ("param %Q", "param Q", "Q", "`Q` does not fit here", None),
    ("f16[B, M", "f17[B, M", "f17", "no dtype is called 'f17'", "did you mean f16?"),
    ("= mul", "= mull", "mull", "no op is called 'mull'", "did you mean mul?"),
    ("%mt, %0", "%mt %0", "%0", "`%0` does not fit here", None),
    ("mul %mt,", "mul %mtt,", "%mtt", "no value %mtt is defined here", "did you mean %mt?"),
    ("yield %11", "yield %some", "%some", "no value %some is defined here", "yield it from that region"),
    ("lt %b, %1", "lt %b, %chosen", "%chosen", "no value %chosen is defined here", None),
    ("{fn = max", "{fun = max", "fun", "reduce has no attribute 'fun'", "did you mean fn?"),
    ("{fn = max", "{fn = 3", "fn = 3", "reduce: attribute 'fn' has the wrong type", None),
    ("{fn = max, axis = 1}", "{fn = max}", "reduce", "reduce needs the attribute 'axis'", None),
    ("{fn = max, axis", "{fn = max, fn = max, axis", "fn = max", "attribute 'fn' is given twice", None),
    ("%s = dot", "%q = dot", "%q", "%q is defined twice", "give one of them another name"),
    ("mul %mt, %0 : i32", "mul %mt, %0 : i32, f32", "i32, f32", "mul: after the colon comes one type for each result", None),
    ("} live (", "} alive (", "alive", "for: another word starts its second region", None),
    ("order 1, 0", "order 1, 1", "order 1, 1", "order names each grid axis once, by its number", None),
    ('target = "say \\"hi\\", #1"', 'target = "say', '"', '`"` does not fit here', "a string ends on the line where it starts"),
    ('"say', '"\\say', '"\\say \\"hi\\", #1"', "this string has a bad escape", "a backslash itself is written \\\\"),
    ("f16[B, M, 64]", "f16[B, M, 0]", "0", "a size is at least 1", None),
    ("/ 128", "/ 0", "0", "a tile is at least 1", None),
]


@pytest.mark.parametrize("old, new, under, message, hint", PARSE_ERRORS, ids=[e[3] for e in PARSE_ERRORS])
def test_parse_errors(old, new, under, message, hint):
    e = mistake(old, new)
    assert (e.code, e.message, e.hint) == ("ir/parse", message, hint)
    assert e.loc is not None and e.loc.file == "k.fcir"
    line = TILE.replace(old, new, 1).split("\n")[e.loc.line - 1]
    if under != "order 1, 1":
        assert line[e.loc.col: e.loc.end_col] == under
    rendered = str(e).split("\n")
    caret = next(i for i, s in enumerate(rendered) if set(s.strip()) == {"|", " ", "^"})
    assert rendered[caret].index("^") - rendered[caret].index("|") == rendered[caret - 1].index(under, e.loc.col + 8) - \
        rendered[caret - 1].index("|")


@pytest.mark.parametrize("old, new, message", [
    ("} x2", "} x0", "a ring has at least one slot"),
    ("swizzle 128", "swizzle 120", "there is no such swizzle"),
    ("frag f32[64,64]$1", "frag f32[64,64]$7", "no layout is called $7"),
    ("{w4@1 r2@2 l8@4 | r2@4", "{w4@1 r2@0 l8@4 | r2@4", "the size and stride of a layout's digit are at least 1"),
    ("{w4@1 r2@2 l8@4 | r2@4", "{w4@1 z2@2 l8@4 | r2@4", "`z2` does not fit here"),
    ("partial sum", "partial some", "partial names a reduction"),
    ("role math", "rule math", "`rule` does not fit here"),
    ("warps 4", "warps many", "`many` does not fit here")])
def test_machine_text(old, new, message):
    e = mistake(old, new, MACHINE)
    assert (e.code, e.message) == ("ir/parse", message) and "^" in str(e)


def test_what_is_expected_is_said_in_words():
    assert mistake("%mt, %0", "%mt %0").expected == "a place such as @file.py:12, the end of the line, `(`, `,`, `:` or `{`"
    assert mistake("param %Q", "param Q").expected == "a value such as %x"


def test_an_open_brace():
    e = mistake("\n}\n", "\n")
    assert e.message == "the end of the text does not fit here" and e.hint == "a `{` above is not closed"


def test_no_text_at_all():
    for text in ("", "\n\n", "# only a comment"):
        with pytest.raises(FcError, match="the end of the text does not fit here"):
            parse_kernel(text)
    with pytest.raises(FcError, match="the kernel has no body"):
        parse_kernel("tile kernel k\nparam %x: f32")


def test_absurd_text_is_refused_politely():
    with pytest.raises(FcError, match="nested too deeply"):
        parse_kernel("tile kernel k\nmeta a = " + "(" * 5000 + ")" * 5000 + "\n{\n}")
    with pytest.raises(FcError, match="ir/parse"):
        parse_kernel("tile kernel k\nmeta a = " + "9" * 100 + "x" + "\n{\n}")


def test_a_rule_broken_in_the_text():
    e = mistake("max %m.2, %rowmax", "max %m.2, %s.1")
    assert e.code == "ir/verify" and e.message == "max: shapes agree"
    assert str(e.loc) == "k.fcir:34" and "^^^" in str(e), "the line of the text that was read"
    assert e.notes == ("in  %m.3 = max %m.2, %s.1 : f32[128]", "which comes from examples/attention.py:7")


def test_a_rule_broken_in_text_without_marks_points_into_the_text():
    with pytest.raises(FcError) as e:
        parse_kernel("tile kernel k\nparam %x: f32\n{\n  %y = not %x : f32\n}", "k.fcir")
    assert str(e.value).split("\n") == [
        "[ir/verify] not is for i1 and integers", "  expected: i1, i8, u8, i32, u32, i64", "  got:      f32", "  at k.fcir:4",
        "    4 |   %y = not %x : f32", "      |        ^^^", "  note: in  %y = not %x : f32"]


def test_a_buffer_of_broken_panels_points_at_its_line():
    e = mistake("{panel 64 pad 8}", "{panel 60 pad 8}", MACHINE)
    assert e.code == "ir/verify" and "whole panels" in e.message and e.loc is not None and e.loc.line == 13 and "^^" in str(e)


def test_parsing_evaluates_nothing():
    with pytest.raises(FcError):
        parse_kernel("tile kernel k\nmeta a = __import__('os').system('true')\n{\n}")
    k = parse_kernel('tile kernel k\nmeta target = "__import__(\'os\')"\n{\n}')
    assert k.meta == {"target": "__import__('os')"}
