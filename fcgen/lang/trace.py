"""The state of one trace: open regions, ops emitted so far, names, and where in the user's file we are.

A scope is an IR region that is being filled. Scopes are a stack; a value may be used while the scope that made it is open. Values get
their names from the spec's local variables: `sweep` looks at the running spec before every op.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from ..errors import FcError, Loc
from ..ir.core import Builder, GridAxis, Op, Value
from ..ir.types import DType, Scalar

if TYPE_CHECKING:
    from .control import Var
    from .handles import Expr

_current: ContextVar[Tracer | None] = ContextVar("fcgen_trace", default=None)
_PACKAGE = __name__.rpartition(".")[0]


class Scope:
    """One open region. what: how messages call it."""

    def __init__(self, what: str, loc: Loc | None, args: tuple[Value, ...] = (), depends: frozenset[int] = frozenset()):
        self.what, self.loc, self.args, self.depends = what, loc, args, depends
        self.builder = Builder()
        self.closed = False


class Tracer:
    """tiles: block name -> size. sizes: bound dimensions. code: the spec's code object, to find its frame."""

    def __init__(self, name: str, code: CodeType, tiles: Mapping[str, int], sizes: Mapping[str, int], loc: Loc):
        self.name, self.code, self.tiles, self.sizes, self.loc = name, code, tiles, sizes, loc
        self.blocks: dict[str, int] = {}
        self.scopes = [Scope("the kernel", loc)]
        self.grid: tuple[GridAxis, ...] | None = None
        self.grid_args: tuple[Value, ...] = ()
        self.grid_handles: tuple[Any, ...] = ()
        self.vars: list[Var] = []
        self.var_reads: set[Var] | None = None
        self.var_values: dict[Value, Var] = {}
        self.names: dict[Value, str] = {}
        self.alias: dict[Value, Value] = {}
        self.spare: set[Value] = set()  # results that are dropped if nobody reads them
        self.depends: dict[Value, frozenset[int]] = {}  # which grid axes a value depends on
        self.order: set[tuple[Any, Any]] = set()  # pairs of axes, in the order in which tiles have them
        self.written: set[str] = set()
        self.frame: FrameType | None = None
        self._bound: dict[str, Any] = {}
        self._positions: dict[CodeType, list[Any]] = {}

    # ---- scopes ----

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def open(self, scope: Scope) -> None:
        self.scopes.append(scope)

    def close(self, scope: Scope) -> None:
        """Close the innermost scope, which must be this one."""
        if self.scope is not scope:
            raise self.error("trace/usage", f"{self.scope.what} was left early", loc=self.scope.loc,
                             hint="no `break`, `return` or exception leaves a traced loop: say when it ends with stop=, or mask with fc.where")
        scope.closed = True
        self.scopes.pop()

    # ---- ops ----

    def emit(self, kind: str, *operands: Value, type: Any = None, name: str = "", loc: Loc | None = None, **attrs: Any) -> Value:
        self.sweep()
        out = self.scope.builder.emit(kind, *operands, type=type, name=name, loc=loc or self.here(), **attrs)
        deps = self.union(operands)
        if deps:
            self.depends[out] = deps
        return out

    def do(self, kind: str, *operands: Value, **attrs: Any) -> None:
        self.sweep()
        self.scope.builder.do(kind, *operands, loc=self.here(), **attrs)

    def add(self, op: Op) -> None:
        self.sweep()
        self.scope.builder.add(op)

    def union(self, values: Iterable[Value]) -> frozenset[int]:
        return frozenset().union(*(self.depends.get(v, frozenset()) for v in values))

    def const(self, value: Any, dtype: DType) -> Value:
        return self.emit("const", value=value, dtype=dtype.name)

    def wrap(self, value: Value, axes: tuple[Any, ...] = ()) -> Expr:
        from .handles import Expr

        return Expr(self, value, axes)

    def scalar(self, value: Value) -> Expr:
        assert isinstance(value.type, Scalar)
        return self.wrap(value)

    def grid_name(self, i: int) -> str:
        """What the spec calls its i-th grid axis."""
        axis = getattr(self.grid_handles[i], "axis", None)
        return axis.name if axis is not None else self.names.get(self.grid_args[i], f"axis {i}")

    # ---- places and errors ----

    def here(self) -> Loc:
        return self.locate(user_frame())

    def locate(self, frame: FrameType | None) -> Loc:
        """The expression that a frame is evaluating (columns where Python keeps them: 3.11 and later)."""
        if frame is None:
            return self.loc
        code, line = frame.f_code, frame.f_lineno
        if sys.version_info < (3, 11):
            return Loc(code.co_filename, line)
        table = self._positions.get(code)
        if table is None:
            table = self._positions[code] = list(code.co_positions())
        at, end, col, end_col = table[frame.f_lasti // 2]
        if at is None or col is None or end_col is None:
            return Loc(code.co_filename, line)
        text = linecache.getline(code.co_filename, at).rstrip("\n")
        if end != at:
            end_col = len(text.encode())
        if not text.isascii():
            col, end_col = (len(text.encode()[:n].decode(errors="ignore")) for n in (col, end_col))
        return Loc(code.co_filename, at, col, end_col)

    def error(self, code: str, message: str, **more: Any) -> FcError:
        self.sweep()
        for key in ("expected", "got"):
            value = more.get(key)
            if hasattr(value, "describe"):
                more[key] = value.describe()
        more.setdefault("loc", self.here())
        return FcError(code, message, **more)

    # ---- names ----

    def sweep(self) -> None:
        """Name what the spec has bound to local variables since the last look."""
        frame = self.frame
        if frame is None:
            f: FrameType | None = user_frame()
            while f is not None and f.f_code is not self.code:
                f = f.f_back
            if f is None:
                return
            frame = self.frame = f
        bound = self._bound
        for name, value in frame.f_locals.items():
            if bound.get(name) is not value:
                bound[name] = value
                give = getattr(type(value), "take_name", None)
                if give is not None:
                    give(value, name)


def user_frame() -> FrameType | None:
    """The innermost frame outside this package."""
    f: FrameType | None = sys._getframe(1)
    while f is not None and f.f_globals.get("__name__", "").startswith(_PACKAGE):
        f = f.f_back
    return f


def current(what: str = "this") -> Tracer:
    t = _current.get()
    if t is None:
        f = user_frame()
        raise FcError("trace/usage", f"{what} has a meaning only while a spec is traced",
                      loc=Loc(f.f_code.co_filename, f.f_lineno) if f else None,
                      hint="call it inside a function decorated with @fc.kernel")
    return t


class tracing:
    """`with tracing(t):` makes t the current trace."""

    def __init__(self, tracer: Tracer):
        self.tracer = tracer

    def __enter__(self) -> Tracer:
        if _current.get() is not None:
            raise current().error("trace/usage", "a spec was traced while another one is being traced",
                                  hint="compile both before, or call a plain Python helper instead")
        self.token = _current.set(self.tracer)
        return self.tracer

    def __exit__(self, *exc: Any) -> None:
        _current.reset(self.token)
        self.tracer.frame = None
        self.tracer._bound.clear()
