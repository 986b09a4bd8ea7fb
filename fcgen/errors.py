"""The one error type users see: a code, expected/got, the place in their file with a caret, and what to try next.

Every check in fcgen that a user can trip raises `FcError`. `ERROR_CODES` lists the codes, so that a code means one
thing everywhere; raising with an unknown code is itself an error.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

#: code -> what kind of mistake it names (shown by `fcgen explain CODE`).
ERROR_CODES: dict[str, str] = {
    # DSL
    "trace/python-if": "a tile or a run-time scalar was used as a Python bool (in `if`, `while`, `and`, `or`, `not`)",
    "trace/shape": "the shapes of two tiles do not agree",
    "trace/dtype": "an operation does not take these dtypes",
    "trace/unset": "a var is read before it is set, or outside the kernel that made it",
    "trace/store": "a store writes outside the part of the tensor that this program owns",
    "trace/usage": "a DSL function is called in a way that has no meaning",
    "trace/capture": "a function given to a spec holds or changes something that a program cannot follow",
    "trace/grad": "a derivative is asked for of something that has none",
    "trace/static": "a size or dtype that must be known at compile time was not given",
    # IR
    "ir/parse": "IR text that does not follow the grammar",
    "ir/verify": "IR that breaks a rule of its level",
    # compiler
    "compile/schedule": "a schedule field has a value that is not legal for this program and target",
    "compile/unsupported": "this program has no lowering on this target",
    "compile/budget": "shared memory, registers or threads exceed what the target has",
    "compile/nvrtc": "NVRTC refused the generated source",
    "compile/toolchain": "NVRTC or its headers are missing or too old",
    "compile/ptxas": "the compiled kernel spills or is serialised where it must not",
    # simulator
    "sim/race": "two accesses to the same memory with nothing that orders them",
    "sim/stale": "a value is read before the asynchronous operation that makes it has completed",
    "sim/unwritten": "an element of an output that nothing writes",
    "sim/deadlock": "every agent waits for something that no one will do",
    "sim/leftover": "the kernel ends with work that nobody waited for",
    "sim/protocol": "arrivals, bytes or phases of a barrier do not fit together",
    "sim/proxy": "what ordinary stores wrote is read by an engine of the async proxy without a proxy fence",
    "sim/register": "registers of an asynchronous matrix instruction are touched without the fence or wait that it needs",
    "sim/launch": "a kernel that is launched early touches a tensor before the kernels in front of it have ended",
    "sim/value": "a machine program computes something else than the program that it is compared with",
    "sim/align": "an access of global memory that does not start on a multiple of its size",
    "sim/bounds": "an access outside its tensor or buffer",
    # calls
    "call/argument": "an argument of a kernel call has the wrong type, shape, dtype, device or alignment",
    "call/driver": "no usable CUDA driver or GPU",
    "call/launch": "the driver refused a launch",
    # command line
    "cli/usage": "a word on the command line that means nothing there",
    # files
    "file/missing": "a file named on the command line does not exist or is not what it should be",
    "cache/unusable": "the cache folder cannot be used",
}


#: no larger file is read for the sake of one line; so many characters of that are shown, and of any line of a message
MOST_SOURCE, SHOWN, MOST_LINE = 1 << 24, 300, 2000


@dataclass(frozen=True)
class Loc:
    """A place in a user's file. `line` counts from 1; `col` from 0, -1 where unknown. text: the line itself, of text that is in no file."""

    file: str
    line: int
    col: int = -1
    end_col: int = -1
    text: str | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def short(self) -> str:
        """`file.py:12`, without folders: what IR text and generated code show."""
        return f"{self.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{self.line}"

    def source_line(self) -> str | None:
        """The line's text where Python can still find it (files, IPython cells), else None. What is there but no ordinary file is not
        opened: a pipe would be waited for."""
        if self.text is not None:
            return self.text
        try:
            if os.path.exists(self.file) and not (os.path.isfile(self.file) and os.path.getsize(self.file) <= MOST_SOURCE):
                return None
            return linecache.getline(self.file, self.line).rstrip("\n") or None
        except ValueError:  # a name that no file can have: with a NUL in it, or half of a surrogate pair
            return None


#: what a terminal obeys or hides: control characters but tab and newline, and marks that reorder or separate text
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with escapes for what would not be seen as it is: messages quote files of others."""
    return _UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}" if ord(m[0]) > 255 else f"\\x{ord(m[0]):02x}", text)


def said(value: Any) -> str:
    """A value in words; what has none (a number of thousands of digits, an object of others) by its type: a message is never lost."""
    try:
        return str(value)
    except Exception as e:
        return f"a {type(value).__name__} ({type(e).__name__} in str)"


class FcWarning(UserWarning):
    """What a compilation says of a kernel that is right and not what one would wish: registers that spill, a check that was not made."""


def warn(warning: Warning) -> None:
    """Warn at the line of the user's that led here: the innermost one outside of this package."""
    inside = os.path.dirname(os.path.abspath(__file__)) + os.sep
    frame = sys._getframe(1)
    ours = lambda f: f.f_code.co_filename.startswith((inside, "<")) or f.f_globals.get("__name__") == "functools"
    while frame.f_back is not None and ours(frame):
        frame = frame.f_back
    warnings.warn_explicit(warning, type(warning), frame.f_code.co_filename, frame.f_lineno,
                           registry=frame.f_globals.setdefault("__warningregistry__", {}))


class FcError(Exception):
    """A mistake of the user's, told so that they can mend it.

    code: one of `ERROR_CODES`. expected, got: shown side by side where both make sense. loc: where in the user's file.
    hint: the next thing to try. notes: further lines (for example the other side of a race).
    """

    def __init__(self, code: str, message: str, *, expected: Any = None, got: Any = None, loc: Loc | None = None,
                 hint: str | None = None, notes: tuple[str, ...] | list[str] = ()):
        assert code in ERROR_CODES, f"unknown error code {code!r}: add it to ERROR_CODES"
        self.code, self.message, self.expected, self.got = code, message, expected, got
        self.loc, self.hint, self.notes = loc, hint, tuple(notes)
        super().__init__(self.render())

    def at(self, loc: Loc | None) -> FcError:
        """The same error with a place, kept if it already has one."""
        if self.loc is not None or loc is None:
            return self
        return FcError(self.code, self.message, expected=self.expected, got=self.got, loc=loc, hint=self.hint,
                       notes=self.notes)

    def noted(self, note: str) -> FcError:
        """The same error with a further line."""
        return FcError(self.code, self.message, expected=self.expected, got=self.got, loc=self.loc, hint=self.hint,
                       notes=(*self.notes, note))

    def named(self, names: Mapping[str, int]) -> FcError:
        """The same error with names where it shows their numbers, which nobody wrote."""
        def words(x: Any) -> Any:
            if x is None:
                return None
            text = said(x)
            for name, n in names.items():
                text = re.sub(rf"(?<![\w.])({re.escape(name)}: )?{n}(?![\w.])", name, text)
            return text

        return FcError(self.code, words(self.message), expected=words(self.expected), got=words(self.got), loc=self.loc,
                       hint=words(self.hint), notes=[words(n) for n in self.notes])

    def render(self) -> str:
        out = [f"[{self.code}] {self.message}"]
        if self.expected is not None:
            out.append(f"  expected: {said(self.expected)}")
        if self.got is not None:
            out.append(f"  got:      {said(self.got)}")
        if self.loc is not None:
            out.append(f"  at {self.loc}")
            out += snippet(self.loc)
        out += [f"  note: {n}" for n in self.notes]
        if self.hint:
            out.append(f"  hint: {self.hint}")
        return "\n".join([x if len(x) <= MOST_LINE else x[:MOST_LINE] + "..." for x in visible("\n".join(out)).split("\n")])

    def __str__(self) -> str:
        return self.render()


#: letters of words that are compared for a hint
LONG = 60


class MissingAttribute(FcError, AttributeError):
    """A name that a module or an object does not have; Python's `hasattr` and `from ... import` see an AttributeError."""


def closest(word: Any, known: Iterable[Any]) -> str | None:
    """The known word that is most like this one, if any is; case does not count."""
    by_case: dict[str, str] = {}
    for k in known:
        if len(str(k)) <= LONG:
            by_case.setdefault(str(k).lower(), str(k))
    near = get_close_matches(str(word).lower(), by_case, 1) if len(str(word)) <= LONG else None
    return by_case[near[0]] if near else None


def did_you_mean(word: Any, known: Iterable[Any], otherwise: str | None = None) -> str | None:
    """A hint: the known word that is most like this one, else `otherwise`."""
    near = closest(word, known)
    return f"did you mean {near}?" if near else otherwise


def snippet(loc: Loc) -> list[str]:
    """The line at `loc` with a caret under it, or nothing where the text cannot be had."""
    text = loc.source_line()
    if text is None or not text.strip():
        return []
    start = max(0, loc.col - SHOWN // 2) if len(text) > SHOWN else 0  # a part of a line that is too long to be shown
    before, under, after = (visible(text[start:start + SHOWN][a:b]) for a, b in _caret(loc, start))
    number = f"{loc.line:>5} | "
    out = [number + before + under + after]
    if loc.col >= 0:
        pad = "".join("\t" if c == "\t" else " " for c in before)
        out.append(" " * (len(number) - 2) + "| " + pad + "^" * max(1, len(under)))
    return out


def _caret(loc: Loc, start: int) -> tuple[tuple[int, int], ...]:
    """A line that is shown from `start` on in three parts: before, over and after the caret."""
    col = max(0, loc.col - start)
    end = max(col + 1, loc.end_col - start)
    return (0, col), (col, end), (end, SHOWN)
