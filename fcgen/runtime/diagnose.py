"""What NVRTC's log says went wrong, shown in the generated source and in the spec.

In: the log, the source, the map from generated lines to the spec. Out: an FcError. Guaranteed: the first error counts;
its line is shown with the lines around it; `#line` directives, errors inside headers and ptxas errors (which name a
line of the PTX) are traced back to the generated line where the log gives enough to do so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fcgen.errors import FcError, Loc

_ERROR = re.compile(r"^(?P<file>[^\s(][^(\n]*)\((?P<line>\d+)\): (?:catastrophic )?error(?: #[\w-]+)?: (?P<text>.*)$", re.M)
_INSIDE = re.compile(r"\bat line (\d+)(?: of \"?([^\"\s]+)\"?)?")
_PTXAS = re.compile(r"^ptxas .*?(?:, line (?P<line>\d+))?; (?:error|fatal)\s*: (?P<text>.*)$", re.M)
_PTXAS_PLAIN = re.compile(r"^(?:ptxas )?(?:error|fatal)\s*: (?P<text>.*)$", re.M)
_LINE = re.compile(r'^\s*#\s*(?:line\s+)?(\d+)(?:\s+"((?:[^"\\]|\\.)*)")?')
_AROUND = 2
_HINT = ("edited IR or schedule text is the usual cause; if you edited nothing this is a bug of fcgen: please report it "
         "with this message")


def is_ptxas_error(log: str) -> bool:
    """Did the C++ compile, and only its PTX not?"""
    return not _ERROR.search(log) and bool(_PTXAS.search(log) or _PTXAS_PLAIN.search(log))


def failure(log: str, source: str, file: str, arch: str, line_map: Mapping[int, Loc], ptx: str | None) -> FcError:
    """The error to raise. ptx: the same source's PTX with .loc lines, where ptxas was the one to refuse."""
    notes: list[str] = []
    line: int | None = None
    loc: Loc | None = None
    found = _ERROR.search(log)
    if found:
        text = found["text"]
        where, number = found["file"].strip(), int(found["line"])
        line = physical_line(source, file, where, number)
        if line is None and not where.endswith((".h", ".hpp", ".inl", ".cuh")):
            loc = Loc(where, number)  # a `#line` that the source no longer shows: the log's word is all there is
        elif line is None:
            notes.append(f"inside {where}:{number}")
            line = _caller(log[found.end():], source, file)
        more = len(_ERROR.findall(log)) - 1
    else:
        found = _PTXAS.search(log)
        plain = None if found else _PTXAS_PLAIN.search(log)
        text = "ptxas: " + found["text"] if found else plain["text"] if plain else (log.splitlines() or ["no reason given"])[0]
        if found and found["line"] and ptx:
            number = int(found["line"])
            notes.append(f"in the PTX:\n{_excerpt(ptx, number)}")
            line = _line_of_ptx(ptx, number, source, file)
        more = len(_PTXAS.findall(log)) - 1
    if line is not None:
        notes.insert(0, f"generated {file}:{line}\n{_excerpt(source, line)}")
        loc = _spec_place(line, line_map) or _declared(source, file, line)
    if more > 0:
        notes.append(f"{more} more error{'s' if more > 1 else ''} in NVRTC's log")
    return FcError("compile/nvrtc", f"NVRTC refused {file} for {arch}: {text}", loc=loc, notes=notes, hint=_HINT)


def presumed_places(source: str, file: str) -> list[tuple[str, int]]:
    """What the compiler calls each physical line, following `#line N "file"` directives."""
    places = []
    name, number = file, 1
    for text in source.splitlines():
        places.append((name, number))
        directive = _LINE.match(text)
        if directive:
            number = int(directive[1])
            name = name if directive[2] is None else directive[2].replace('\\"', '"').replace("\\\\", "\\")
        else:
            number += 1
    return places


def physical_line(source: str, file: str, where: str, number: int) -> int | None:
    """The generated line (from 1) that the compiler calls `where(number)`, None where there is none."""
    places = presumed_places(source, file)
    return places.index((where, number)) + 1 if (where, number) in places else None


def _spec_place(line: int, line_map: Mapping[int, Loc]) -> Loc | None:
    """A statement may span lines: the closest mapped line at or above counts."""
    above = [n for n in line_map if n <= line]
    return line_map[max(above)] if above else None


def _declared(source: str, file: str, line: int) -> Loc | None:
    where, number = presumed_places(source, file)[line - 1]
    return Loc(where, number) if where != file else None


def _caller(rest_of_log: str, source: str, file: str) -> int | None:
    """For an error inside a header: the generated line that led there, from 'instantiation ... at line N of file'."""
    for number, where in _INSIDE.findall(rest_of_log):
        line = physical_line(source, file, where or file, int(number))
        if line is not None:
            return line
    return None


def _line_of_ptx(ptx: str, number: int, source: str, file: str) -> int | None:
    """The generated line that a line of PTX came from, by the last `.loc` above it."""
    lines = ptx.splitlines()
    files = {m[1]: m[2] for m in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', ptx, re.M)}
    for text in reversed(lines[:number]):
        loc = re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", text)
        if loc and int(loc[2]) > 0:
            where = files.get(loc[1], file)
            # NVRTC writes the file's name with a folder in front
            return physical_line(source, file, where, int(loc[2])) or \
                physical_line(source, file, where.rsplit("/", 1)[-1], int(loc[2]))
    return None


def _excerpt(text: str, line: int) -> str:
    lines = text.splitlines()
    first, last = max(1, line - _AROUND), min(len(lines), line + _AROUND)
    return "\n".join(f"  {'>' if n == line else ' '} {n:>5} | {lines[n - 1]}" for n in range(first, last + 1))
