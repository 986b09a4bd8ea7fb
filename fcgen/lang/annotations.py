"""What a spec's parameters are, read from their annotations.

    Q: "T[B, H, M, D]"        a tensor; T is a dtype (f16, bf16, f32, i32, ...) or a name bound when the spec is traced
    O: "out T[B, H, M, E]"    a tensor that the spec writes ("inout": and reads)
    scale: "f32", n: "i32"    run-time numbers; "f32 > 0" promises a positive one, which calls check
    anything else             a compile-time Python value

With `from __future__ import annotations` the quotes may be left away, and a type such as `list[int]` or `Callable[..., Any]` is still
a type.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import FcError, Loc
from ..ir.types import DTYPES, DType

_TENSOR = re.compile(r"(?:(out|inout)\s+)?(\w+)\s*\[([^\]]*)\]$")
_SCALAR = re.compile(r"(f32|i32|i64)\s*(>\s*0)?$")


@dataclass(frozen=True)
class Param:
    """kind: "tensor", "scalar" or "static". dtype: a dtype's name or a free name. dims: names or numbers."""

    name: str
    kind: str
    dtype: str = ""
    dims: tuple[str | int, ...] = ()
    flags: tuple[str, ...] = ()
    default: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Signature:
    """The parameters of a spec, in order."""

    params: tuple[Param, ...]

    def __getitem__(self, name: str) -> Param:
        return next(p for p in self.params if p.name == name)

    @property
    def tensors(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if p.kind == "tensor")

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of tensor dimensions, in order of appearance."""
        return tuple(dict.fromkeys(d for p in self.tensors for d in p.dims if isinstance(d, str)))

    @property
    def dtype_names(self) -> tuple[str, ...]:
        """Names that stand for dtypes."""
        return tuple(dict.fromkeys(p.dtype for p in self.tensors if p.dtype not in DTYPES))

    def dtypes(self, binding: Mapping[str, Any]) -> dict[str, DType]:
        """tensor or scalar parameter -> its dtype under a binding."""
        return {p.name: DTYPES.get(p.dtype) or as_dtype(binding[p.dtype], p.dtype) for p in self.params if p.kind != "static"}


def read_signature(fn: Callable[..., Any], loc: Loc) -> Signature:
    params = []
    for p in inspect.signature(fn).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise FcError("trace/usage", f"a spec takes named parameters, not *{p.name}", loc=loc)
        types = fn.__globals__ if fn.__code__.co_flags & __future__.annotations.compiler_flag else None
        params.append(_read(p.name, p.annotation, p.default, loc, types))
    return Signature(tuple(params))


def _read(name: str, annotation: Any, default: Any, loc: Loc, types: Mapping[str, Any] | None) -> Param:
    """types: where annotations come as source text, the names that they may use."""
    if not isinstance(annotation, str):
        return Param(name, "static", default=default)
    text = annotation.strip()
    if types is not None:
        try:
            text = str(ast.literal_eval(text)).strip()
        except (ValueError, SyntaxError):  # not quoted: ours, or a Python type
            if _is_type(text, types):
                return Param(name, "static", default=default)
    if m := _SCALAR.match(text):
        return Param(name, "scalar", m[1], flags=("positive",) if m[2] else (), default=default)
    if m := _TENSOR.match(text):
        dims: list[str | int] = []
        for word in filter(None, (w.strip() for w in m[3].split(","))):
            if not (word.isidentifier() or word.isdigit()):
                raise FcError("trace/usage", f"the annotation of `{name}` has a dimension that is neither a name nor a number",
                              expected='"DTYPE[B, H, M, 64]"', got=repr(text), loc=loc)
            dims.append(int(word) if word.isdigit() else word)
        if not dims:
            raise FcError("trace/usage", f"tensor `{name}` needs at least one dimension", got=repr(text), loc=loc)
        return Param(name, "tensor", m[2], tuple(dims), (m[1],) if m[1] else (), default)
    if "[" in text or text in DTYPES:
        raise FcError("trace/usage", f"the annotation of `{name}` is not understood",
                      expected='"T[B, H, M, D]", "out T[M, N]", "f32", "f32 > 0", "i32", or a type for a compile-time value',
                      got=repr(text), loc=loc)
    return Param(name, "static", default=default)


def _is_type(text: str, types: Mapping[str, Any]) -> bool:
    """Whether source text means a Python type: `list[int]`, `Callable[..., Any] | None`."""
    word = re.match(r"[\w.]*", text)[0].split(".")[0]  # type: ignore[index]
    known = types.get(word, getattr(builtins, word, None))
    if isinstance(known, (type, ModuleType)) or getattr(known, "__module__", None) == "typing":
        return True
    return any(mark in text for mark in ("|", "...", "[["))  # a name that only a type checker imports


def as_dtype(value: Any, name: str) -> DType:
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    raise FcError("trace/static", f"{name} must be bound to a dtype", expected=", ".join(f"fc.{d}" for d in DTYPES), got=repr(value))
