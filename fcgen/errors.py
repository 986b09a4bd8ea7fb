"""The one error type users see: a code, expected/got, the place in their file with a caret, and what to try next.

Every check in fcgen that a user can trip raises `FcError`. `ERROR_CODES` lists the codes, so that a code means one
thing everywhere; raising with an unknown code is itself an error.
"""

from __future__ import annotations

import linecache
import os
import re
from dataclasses import dataclass
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
    "sim/deadlock": "every agent waits for something that no one will do",
    "sim/leftover": "the kernel ends with work that nobody waited for",
    "sim/protocol": "arrivals, bytes or phases of a barrier do not fit together",
    "sim/proxy": "what ordinary stores wrote is read by an engine of the async proxy without a proxy fence",
    "sim/register": "registers of an asynchronous matrix instruction are touched without the fence or wait that it needs",
    "sim/launch": "a kernel that is launched early touches a tensor before the kernels in front of it have ended",
    "sim/value": "a machine program computes something else than the program that it is compared with",
    "sim/unwritten": "elements of an output that no store reaches",
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


@dataclass(frozen=True)
class Loc:
    """A place in a user's file. `line` counts from 1; `col` from 0, -1 where unknown."""

    file: str
    line: int
    col: int = -1
    end_col: int = -1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def short(self) -> str:
        """`file.py:12`, without folders: what IR text and generated code show."""
        return f"{self.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{self.line}"

    def source_line(self) -> str | None:
        """The line's text where Python can still find it (files, IPython cells), else None. What is there but no ordinary file is not
        opened: a pipe would be waited for."""
        try:
            if os.path.exists(self.file) and not os.path.isfile(self.file):
                return None
            return linecache.getline(self.file, self.line).rstrip("\n") or None
        except ValueError:  # a name that no file can have: with a NUL in it, or half of a surrogate pair
            return None


#: what a terminal obeys or hides: control characters but tab and newline, and marks that reorder or separate text
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with escapes for what would not be seen as it is: messages quote files of others."""
    return _UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}" if ord(m[0]) > 255 else f"\\x{ord(m[0]):02x}", text)


class FcError(Exception):
    """A mistake of the user's, told so that they can mend it.

    code: one of `ERROR_CODES`. expected, got: shown side by side where both make sense. loc: where in the user's file.
    hint: the next thing to try. notes: further lines (for example the other side of a race). source: the text that
    `loc` points into, for text that is in no file (IR given as a string).
    """

    def __init__(self, code: str, message: str, *, expected: Any = None, got: Any = None, loc: Loc | None = None,
                 hint: str | None = None, notes: tuple[str, ...] | list[str] = (), source: str | None = None):
        assert code in ERROR_CODES, f"unknown error code {code!r}: add it to ERROR_CODES"
        self.code, self.message, self.expected, self.got = code, message, expected, got
        self.loc, self.hint, self.notes, self.source = loc, hint, tuple(notes), source
        super().__init__(self.render())

    def at(self, loc: Loc | None) -> FcError:
        """The same error with a place, kept if it already has one."""
        if self.loc is not None or loc is None:
            return self
        return FcError(self.code, self.message, expected=self.expected, got=self.got, loc=loc, hint=self.hint,
                       notes=self.notes, source=self.source)

    def render(self) -> str:
        out = [f"[{self.code}] {self.message}"]
        if self.expected is not None:
            out.append(f"  expected: {self.expected}")
        if self.got is not None:
            out.append(f"  got:      {self.got}")
        if self.loc is not None:
            out.append(f"  at {self.loc}")
            out += snippet(self.loc, self.source)
        out += [f"  note: {n}" for n in self.notes]
        if self.hint:
            out.append(f"  hint: {self.hint}")
        return visible("\n".join(out))

    def __str__(self) -> str:
        return self.render()


def snippet(loc: Loc, source: str | None = None) -> list[str]:
    """The line at `loc` with a caret under it, or nothing where the text cannot be had."""
    if source is not None:
        lines = source.splitlines()
        text = lines[loc.line - 1] if 0 < loc.line <= len(lines) else None
    else:
        text = loc.source_line()
    if text is None or not text.strip():
        return []
    number = f"{loc.line:>5} | "
    out = [number + text]
    if loc.col >= 0:
        width = max(1, (loc.end_col if loc.end_col > loc.col else loc.col + 1) - loc.col)
        width = min(width, max(1, len(text) - loc.col))
        pad = "".join("\t" if c == "\t" else " " for c in text[: loc.col])
        out.append(" " * (len(number) - 2) + "| " + pad + "^" * width)
    return out
