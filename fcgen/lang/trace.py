"""The state of one tracing run: blocks being written, variables, names and places.

Tracing calls the spec's Python function once. Every operation on a handle appends an op to the innermost open block; a loop's body
runs once, with fresh values in place of its index and of every variable, and is closed when Python asks the loop for its next item.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import CodeType, FrameType
from typing import Any

from ..errors import FcError, FcWarning, Loc, closest
from ..ir.core import Block, GridAxis, Op, Value
from ..ir.rewrite import Builder
from ..ir.types import Scalar, i32

_FOLDER = __file__.rsplit("trace.py", 1)[0]
#: the language's own files, whose frames are nobody's lines; the second is its vocabulary under torch's names
HERE = (_FOLDER, os.path.join(os.path.dirname(os.path.dirname(_FOLDER)), "torch", "values.py"))
#: files whose frames may lie between a user's line and this folder
_BETWEEN = (contextlib.__file__, _FOLDER.rsplit("lang", 1)[0] + "__init__.py")
#: how many blocks of a kind may stand one in the other: passes look at a block once for each that it lies in, at a loop more often
MOST = {"loop": 6, "branch": 64}
_state = threading.local()


@dataclass
class Scope:
    """A block being written. Handles made inside are not readable after it closes."""

    builder: Builder
    kind: str
    parent: Scope | None

    def encloses(self, other: Scope | None) -> bool:
        while other is not None:
            if other is self:
                return True
            other = other.parent
        return False


class Named:
    """A handle, which takes the name of the local variable that a spec binds it to."""

    __slots__ = ()
    _value: Value | None
    scope: Scope | None


@dataclass
class Trace:
    """code: of the spec's function; tiles: BLOCK sizes, from the schedule; captures: what its functions hold."""

    code: CodeType
    tiles: Mapping[str, int]
    captures: Any
    params: list[Value] = field(default_factory=list)
    grid: list[GridAxis] = field(default_factory=list)
    ids: list[Value] = field(default_factory=list)
    used_tiles: set[str] = field(default_factory=set)
    no_size: dict[str, Loc] = field(default_factory=dict)  # names without a tile size, and where they are cut
    variables: list[Any] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)
    positive: set[str] = field(default_factory=set)  # scalar parameters that are promised to be
    names: dict[Value, str] = field(default_factory=dict)
    told: dict[Value, str] = field(default_factory=dict)  # values that `fc.name` names
    given: dict[str, Loc] = field(default_factory=dict)  # its names, and where they were given
    scope: Scope = None  # type: ignore[assignment]
    ranges: int = 0  # how many there are so far
    broken: Loc | None = None  # a loop that was left before its body had been traced to the end
    unused: dict[int, tuple[str, Loc]] = field(default_factory=dict)  # loops and branches that were made, and not begun
    frames: tuple[FrameType, ...] = ()
    sizes: dict[str, Value] = field(default_factory=dict)
    runs: dict[Value, Any] = field(default_factory=dict)  # tiles of positions that are a range's own -> the range
    folded: dict[Value, Any] = field(default_factory=dict)  # reductions and products -> the range that they fold
    labels: dict[Value, tuple[Any, ...]] = field(default_factory=dict)  # of values that are tiles
    partial: Callable[[], tuple[tuple[FcWarning, Loc], ...]] = tuple  # what of these hangs on the tile size

    def __post_init__(self) -> None:
        self.scope = Scope(Builder(), "kernel", None)

    # ---- emitting --------------------------------------------------------------------------------------------------

    def emit(self, kind: str, *operands: Value, type: Any = None, **attrs: Any) -> Value:
        loc = here()
        self.sweep_names()
        try:
            return self.scope.builder.emit(kind, *operands, type=type, loc=loc, **attrs)
        except FcError as e:
            raise (FcError("trace/dtype" if "dtype" in e.message or "floats" in e.message or "integers" in e.message else "trace/shape",
                           e.message, expected=e.expected, got=e.got, hint=e.hint, loc=loc) if e.code == "ir/verify" else e) from None

    def do(self, kind: str, *operands: Value, **attrs: Any) -> None:
        self.sweep_names()
        self.scope.builder.do(kind, *operands, loc=here(), **attrs)

    def size(self, dim: str) -> Value:
        """The run-time size of a dimension, asked for once, at the top of the kernel."""
        if dim not in self.sizes:
            top = self.scope
            while top.parent is not None and top.parent.parent is not None:
                top = top.parent
            value = Value(Scalar(i32), dim)
            top.builder.ops.insert(len(self.sizes), Op("size", (), (value,), {"dim": dim}, (), here()))
            self.sizes[dim] = value
        return self.sizes[dim]

    def check_loops(self) -> None:
        if self.broken is not None:
            raise FcError("trace/usage", "a loop of the program was left with break or return", loc=self.broken,
                          hint="the body of fc.loop is traced once, to its end; use fc.when or fc.where for conditions")

    def check_sizes(self, whole: bool = True) -> None:
        """Whether all tiles had a size. whole: the spec was traced to its end, so that names which were not used are in vain."""
        if self.no_size:
            vain = [name for name in self.tiles if name not in self.used_tiles]
            first = next(iter(self.no_size))
            near = vain[0] if len(vain) == 1 else closest(first, vain or self.tiles)
            instead = f", in place of {near}" if near in vain else f"; or did you mean {near}?" if near else ""
            give = ", ".join(f'"{name}": 64' for name in self.no_size)
            raise FcError("trace/static", f"no tile size is given for {', '.join(self.no_size)}", loc=self.no_size[first],
                          got=", ".join(self.tiles) or "no tile sizes", notes=[f"nothing is cut into {name}" for name in vain if whole],
                          hint=f"Schedule(tiles={{{give}, ...}})" + instead)

    def check_used(self) -> None:
        for word, loc in self.unused.values():
            raise FcError("trace/usage", f"fc.{word} is called, and nothing is done with it", loc=loc,
                          hint="write `for cols in fc.loop(...):`" if word == "loop" else "write `with fc.when(cond):`")

    # ---- names -----------------------------------------------------------------------------------------------------

    def sweep_names(self) -> None:
        """Handles that the spec's function has bound to local variables since the last op take those names."""
        self.frames = _frames(self.code) or self.frames
        for frame in self.frames:
            for name, x in list(frame.f_locals.items()):
                if isinstance(x, Named) and x.scope is not None and x._value is not None:
                    self.names.setdefault(x._value, name)

    def name_range(self, given: Any, index: Value) -> None:
        """A loop's range that the spec calls `cols` starts at `cols_start`, in the tile number `cols_tile`."""
        for frame in self.frames:
            for name in [n for n, x in frame.f_locals.items() if x is given]:
                self.names.setdefault(given._start, f"{name}_start")
                self.names.setdefault(index, f"{name}_tile")

    def named(self, block: Block) -> Block:
        """The block with every value under the name it was given (values are replaced consistently)."""
        mapping: dict[Value, Value] = {}

        def new(v: Value) -> Value:
            if v not in mapping:
                mapping[v] = replace(v, name=self.names[v]) if v in self.names and not v.name else v
            return mapping[v]

        def walk(b: Block) -> Block:
            args = tuple(new(a) for a in b.args)
            ops = []
            for op in b.ops:
                regions = tuple(walk(r) for r in op.regions)
                ops.append(replace(op, operands=tuple(new(v) for v in op.operands), results=tuple(new(v) for v in op.results),
                                   regions=regions))
            return Block(args, tuple(ops))

        return walk(block)

    # ---- blocks ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def block(self, kind: str) -> Iterator[Scope]:
        outer = self.scope
        around = list(_kinds(outer))
        if kind in MOST and around.count(kind) >= MOST[kind]:
            raise FcError("trace/usage", f"a {kind} inside {MOST[kind]} others", expected=f"at most {MOST[kind]}, one in the other",
                          loc=here(), hint="join conditions with &, and loops by counting over a product")
        self.scope = Scope(Builder(), kind, outer)
        try:
            yield self.scope
        finally:
            self.scope = outer


def _kinds(scope: Scope | None) -> Iterator[str]:
    while scope is not None:
        yield scope.kind
        scope = scope.parent


def current() -> Trace:
    trace = getattr(_state, "trace", None)
    if trace is None:
        raise FcError("trace/usage", "this only works inside a spec while it is traced", loc=here(),
                      hint="call it in a function decorated with @fc.kernel")
    return trace


@contextlib.contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    before = getattr(_state, "trace", None)
    _state.trace = trace
    try:
        yield trace
    finally:
        _state.trace = before


def here() -> Loc:
    """The user's line: the innermost frame outside this folder, with columns where Python knows them."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename.startswith(HERE) or frame.f_code.co_filename in _BETWEEN):
        frame = frame.f_back
    return Loc("<unknown>", 0) if frame is None else place_of(frame, frame.f_lasti)


def mistake(code: str, message: str, **more: Any) -> FcError:
    """A mistake of the spec, at the user's line."""
    return FcError(code, message, loc=here(), **more)


def place_of(frame: FrameType, instruction: int) -> Loc:
    """The place of an instruction of a frame's code."""
    return place_in(frame.f_code, instruction, frame.f_lineno)


def place_in(code: CodeType, instruction: int, otherwise: int | None = None) -> Loc:
    """The place of an instruction. otherwise: the line, where Python knows no columns."""
    file = shown(code.co_filename)
    positions, at = _positions(code), instruction // 2
    if 0 <= at < len(positions):
        line, end_line, col, end_col = positions[at]
        if line is not None and line == end_line and col is not None:
            return Loc(file, line, *_characters(code.co_filename, line, (col, end_col or -1)))
        if line is not None:
            return Loc(file, line)
    lines = dict(dis.findlinestarts(code)) if otherwise is None else {}
    return Loc(file, otherwise or lines[max((n for n in lines if n <= instruction), default=min(lines))])


@functools.lru_cache(maxsize=256)
def _positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    """Per instruction where it stands; nothing before Python 3.11."""
    positions = getattr(code, "co_positions", None)
    return list(positions()) if positions is not None else []


def _characters(file: str, line: int, columns: tuple[int, int]) -> tuple[int, int]:
    """Columns in characters: Python counts the bytes of the line."""
    text = linecache.getline(file, line)
    if text.isascii():
        return columns
    first, end = (len(text.encode()[:n].decode(errors="ignore")) if n >= 0 else n for n in columns)
    return first, end


def shown(file: str) -> str:
    """A file's name relative to the current folder where it lies inside: the same on every machine that has the project."""
    return _relative(file, os.getcwd())


@functools.lru_cache(maxsize=256)
def _relative(file: str, folder: str) -> str:
    inside = os.path.isabs(file) and file.startswith(folder.rstrip(os.sep) + os.sep)
    return os.path.relpath(file, folder).replace(os.sep, "/") if inside else file


def _frames(code: CodeType) -> tuple[FrameType, ...]:
    """The user's frames of this call of the spec: its own, and those of helpers that it calls."""
    out: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(HERE):
            out.append(frame)
        if frame.f_code is code:
            return tuple(out)
        frame = frame.f_back
    return ()
