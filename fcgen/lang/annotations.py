"""What a spec says about its parameters: `"out T[B, H, M, D]"`, `"f32 > 0"`, or nothing for a compile-time Python value.

    [out|inout] DTYPE[dims] [if NAME]     a tensor; NAME is a compile-time parameter, without which the tensor does not exist
    DTYPE [> 0]                           a run-time scalar: f32, i32 or i64

DTYPE is a dtype's name or a free name, bound when the spec is compiled. A dimension is a name (equal names are equal sizes) or a number.
"""

from __future__ import annotations

import __future__
import ast
import inspect
import linecache
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FcError, Loc
from ..ir.types import DTYPES, DType

_TENSOR = re.compile(r"(?:(out|inout)\s+)?([A-Za-z_]\w*)\s*\[([^\]]*)\](?:\s+if\s+([A-Za-z_]\w*))?")
_SCALAR = re.compile(r"([A-Za-z_]\w*)\s*(>\s*0)?")
FORMS = '"T[B, M, D]", "out f32[B, M]", "f32", "i32" or "f32 > 0"'


@dataclass(frozen=True)
class Param:
    """kind: "tensor", "scalar" or "static" (a compile-time Python value, with `default` if it has one)."""

    name: str
    kind: str
    dtype: str = ""
    dims: tuple[str | int, ...] = ()
    role: str = "in"
    condition: str | None = None
    positive: bool = False
    default: Any = inspect.Parameter.empty
    loc: Loc | None = None

    @property
    def written(self) -> bool:
        return self.role != "in"


@dataclass(frozen=True)
class Signature:
    """params in call order; dims: named dimensions; free: dtype names to bind; blocks: tile names met in traces so far."""

    params: tuple[Param, ...]
    dims: tuple[str, ...]
    free: tuple[str, ...]
    blocks: tuple[str, ...] = field(default=())

    @property
    def statics(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if p.kind == "static")

    def dtypes(self, binding: Mapping[str, Any]) -> dict[str, DType]:
        """parameter -> dtype, for tensors and scalars, with the free names bound."""
        return {p.name: self.dtype(p, binding) for p in self.params if p.kind != "static"}

    def dtype(self, p: Param, binding: Mapping[str, Any]) -> DType:
        if p.dtype in DTYPES:
            return DTYPES[p.dtype]
        if p.dtype not in binding:
            raise FcError("trace/static", f"the dtype {p.dtype} of `{p.name}` was not given", loc=p.loc,
                          expected="f16, bf16, f32, i32 or i64", hint=f"compile with {p.dtype}=fc.f16")
        got = binding[p.dtype]
        got = DTYPES.get(got, got) if isinstance(got, str) else got
        if not isinstance(got, DType):
            raise FcError("trace/static", f"{p.dtype} names the dtype of `{p.name}`", expected="a dtype such as fc.f16",
                          got=repr(got), loc=p.loc)
        return got


def read_signature(fn: Callable[..., Any], instead: Mapping[str, str] | None = None) -> Signature:
    """The parameters of a spec; `instead` replaces annotations. Raises FcError "trace/usage" at the parameter that cannot be read."""
    params: list[Param] = []
    for p in inspect.signature(fn).parameters.values():
        loc = param_loc(fn, p.name)
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise FcError("trace/usage", f"a spec names each of its parameters; `{p.name}` collects any number", loc=loc)
        text = (instead or {}).get(p.name) or _text(fn, p.annotation)
        params.append(Param(p.name, "static", default=p.default, loc=loc) if text is None else _parse(p.name, text, loc))
    dims = dict.fromkeys(d for p in params for d in p.dims if isinstance(d, str))
    free = dict.fromkeys(p.dtype for p in params if p.kind != "static" and p.dtype not in DTYPES)
    names = {p.name for p in params}
    for p in params:
        if p.condition is not None and p.condition not in {q.name for q in params if q.kind == "static"}:
            raise FcError("trace/usage", f"`{p.name}` exists only if `{p.condition}`, which is no compile-time parameter", loc=p.loc)
    for word in (*dims, *free):
        if word in names or (word in dims and word in free):
            raise FcError("trace/usage", f"`{word}` names two things in the signature of {fn.__name__}",
                          loc=next(p.loc for p in params if word in (*p.dims, p.dtype)), hint="rename one of them")
    return Signature(tuple(params), tuple(dims), tuple(free))


def _text(fn: Callable[..., Any], annotation: Any) -> str | None:
    """The annotation as we read it, or None for a compile-time parameter."""
    if not isinstance(annotation, str):
        return None
    if not fn.__code__.co_flags & __future__.annotations.compiler_flag:
        return annotation
    try:  # every annotation is source text here; ours is the source of a string
        value = ast.literal_eval(annotation)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) else None


def _parse(name: str, text: str, loc: Loc | None) -> Param:
    m = _TENSOR.fullmatch(text.strip())
    if m:
        role, dtype, dims, condition = m.groups()
        words = [d.strip() for d in dims.split(",")] if dims.strip() else []
        for d in words:
            if not re.fullmatch(r"[A-Za-z_]\w*|[1-9]\d*", d):
                raise FcError("trace/usage", f"`{name}`: a dimension is a name or a number", got=repr(d), loc=loc)
        return Param(name, "tensor", dtype, tuple(int(d) if d.isdigit() else d for d in words), role or "in", condition, loc=loc)
    m = _SCALAR.fullmatch(text.strip())
    if m and m[1] in ("f32", "i32", "i64"):
        return Param(name, "scalar", m[1], positive=bool(m[2]), loc=loc)
    raise FcError("trace/usage", f"the annotation of `{name}` cannot be read", expected=FORMS, got=repr(text), loc=loc,
                  hint="leave the annotation away for a compile-time Python value")


def def_loc(fn: Callable[..., Any]) -> Loc:
    """Where `def` stands (the code object starts at the decorator)."""
    code = fn.__code__
    for line in range(code.co_firstlineno, code.co_firstlineno + 20):
        text = linecache.getline(code.co_filename, line)
        if text.lstrip().startswith("def "):
            return Loc(code.co_filename, line)
    return Loc(code.co_filename, code.co_firstlineno)


def param_loc(fn: Callable[..., Any], name: str) -> Loc:
    """Where a parameter stands in the signature."""
    start = def_loc(fn)
    for line in range(start.line, start.line + 40):
        text = linecache.getline(start.file, line)
        m = re.search(rf"(?<=[(\s,*]){re.escape(name)}(?=\s*[:=,)])", text)
        if m:
            return Loc(start.file, line, m.start(), m.end())
        if not text or text.rstrip().endswith(":"):
            break
    return start
