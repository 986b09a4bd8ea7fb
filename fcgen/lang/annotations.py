"""What a spec's parameters are, read from their annotations.

    Q: "T[B, H, M, D]"        a tensor of a dtype (f16, bf16, f32, f64, f8e4m3, f8e5m2, i1, i8, u8, i32, u32, i64), or of one
                              that is bound when the spec is traced: a word that begins with a capital and is no dtype's name elsewhere
                              (T, TK; not F16, not half)
    O: "out T[B, H, M, E]"    a tensor that the spec writes as a whole ("inout": reads, or writes in part)
    scale: "f32", n: "i32", seed: "u32"    run-time numbers; "f32 > 0" promises a positive one, which calls check
    LSE: "out f32[M] | None"  may be absent: it is None in the spec where it is given as None (`compile(LSE=None)`), or not given in a call
    a type, or nothing        a compile-time Python value

With `from __future__ import annotations` the quotes may be left away, and a type such as `list[int]` or `Callable[..., Any]` is still
a type.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import contextlib
import inspect
import linecache
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import FcError, Loc, did_you_mean
from ..ir.types import DTYPES, DType, as_dtype, dtype_meant, looks_like_dtype

_TENSOR = re.compile(r"(?:(out|inout)\s+)?(\w+)\s*\[([^\]]*)\]$")
_SCALAR = re.compile(r"(f32|i32|u32|i64)\s*(>\s*0)?$")


@dataclass(frozen=True)
class Param:
    """kind: "tensor", "scalar" or "static". dtype: a dtype's name or a free name. dims: names or numbers. optional: it may be absent."""

    name: str
    kind: str
    dtype: str = ""
    dims: tuple[str | int, ...] = ()
    flags: tuple[str, ...] = ()
    default: Any = inspect.Parameter.empty
    optional: bool = False


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

    def without(self, binding: Mapping[str, Any]) -> Signature:
        """The signature without what is bound to be absent."""
        return Signature(tuple(p for p in self.params if not (p.optional and p.name in binding)))

    def dtypes(self, binding: Mapping[str, Any]) -> dict[str, DType]:
        """tensor or scalar parameter -> its dtype under a binding."""
        return {p.name: DTYPES.get(p.dtype) or as_dtype(binding[p.dtype], p.dtype) for p in self.params if p.kind != "static"}


FORMS = '"T[B, H, M, D]", "out f32[M, N]", "out f32[M] | None", "f32", "f32 > 0", "i32", "u32", "i64", or a type for a compile-time value'


def read_signature(fn: Callable[..., Any], loc: Loc) -> Signature:
    params = []
    postponed = bool(fn.__code__.co_flags & __future__.annotations.compiler_flag)
    for p in inspect.signature(fn).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise FcError("trace/usage", f"a spec takes named parameters, not *{p.name}", loc=parameter_loc(fn, p.name, loc))
        try:
            params.append(_read(p.name, p.annotation, p.default, fn.__globals__, postponed))
        except FcError as e:
            raise e.at(parameter_loc(fn, p.name, loc)) from None
    bound = {p.dtype for p in params if p.kind == "tensor"}
    for q, p in zip(params, inspect.signature(fn).parameters.values()):
        if q.kind == "static" and str(p.annotation) in bound:
            raise FcError("trace/usage", f"`{q.name}` is annotated with a dtype that tensors have, and is no tensor", expected=FORMS,
                          got=repr(p.annotation), loc=parameter_loc(fn, q.name, loc), hint='a run-time number is "f32", "i32" or "i64"')
    return Signature(tuple(params))


def parameter_loc(fn: Callable[..., Any], name: str, otherwise: Loc) -> Loc:
    """Where a function's parameter stands, with its annotation; `otherwise` where the source cannot be had."""
    try:
        lines, first = inspect.getsourcelines(fn)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return otherwise
    node = next((a for a in ast.walk(tree) if isinstance(a, ast.arg) and a.arg == name), None)
    if node is None:
        return otherwise
    line = first + node.lineno - 1
    text = linecache.getline(fn.__code__.co_filename, line)
    indent = len(lines[node.lineno - 1]) - len(textwrap.dedent("".join(lines)).splitlines(keepends=True)[node.lineno - 1])
    inside = lambda n: indent + len(text[indent:].encode()[:n].decode(errors="ignore"))
    end = inside(node.end_col_offset) if node.end_lineno == node.lineno and node.end_col_offset is not None else -1
    return Loc(otherwise.file, line, inside(node.col_offset), end)


def _read(name: str, annotation: Any, default: Any, types: Mapping[str, Any], postponed: bool) -> Param:
    """types: the names that an annotation given as text may use. postponed: all are given as text."""
    if isinstance(annotation, DType):
        raise _unread(name, annotation, f'quote it: {name}: "{annotation}" for a number, "{annotation}[M, N]" for a tensor')
    if not isinstance(annotation, str):
        return Param(name, "static", default=default)
    text = annotation.strip()
    if postponed:
        with contextlib.suppress(ValueError, SyntaxError):  # not quoted: ours, or a Python type
            text = str(ast.literal_eval(text)).strip()
    present = re.sub(r"(?<=[\w\]])['\"]?\s*\|\s*None$", "", text).lstrip("'\"")
    if m := _SCALAR.match(present):
        return Param(name, "scalar", m[1], flags=("positive",) if m[2] else (), default=default, optional=present != text)
    if (m := _TENSOR.match(present)) and (m[1] or looks_like_dtype(m[2]) or not _is_type(present, types)):
        return Param(name, "tensor", _dtype_word(m[2], name), _dims(m[3], name, present), (m[1],) if m[1] else (), default, present != text)
    if _is_type(text, types) and not isinstance(getattr(types.get(text.split(".")[0]), text.split(".")[-1], None), DType):
        return Param(name, "static", default=default)
    word = re.match(r"[\w.]*", text)[0].split(".")[-1]  # type: ignore[index]
    near = dtype_meant(word) if looks_like_dtype(word) or word.islower() else None
    if text.count("[") != text.count("]"):
        raise _unread(name, text, "its brackets do not match")
    numbers = ("f32", "i32", "u32", "i64")
    raise _unread(name, text, f"did you mean {near}?" if near in numbers and near != text else 'a run-time number is "f32", "i32" or "i64"'
                  if looks_like_dtype(word) else did_you_mean(text.split(" ")[0], ("out", "inout")))


def _unread(name: str, text: Any, hint: str | None) -> FcError:
    return FcError("trace/usage", f"the annotation of `{name}` is not understood", expected=FORMS, got=repr(text), hint=hint)


def _dtype_word(word: str, name: str) -> str:
    """A dtype's name, or that of a dtype that is bound when the spec is traced: a capital word, so that no misspelt dtype becomes one."""
    if word in DTYPES or (word[0].isupper() and not looks_like_dtype(word)):
        return word
    near = dtype_meant(word)
    raise FcError("trace/usage", f"the dtype of tensor `{name}` is not known", expected=f"{', '.join(DTYPES)}, or a capital word that is "
                  "bound when the spec is compiled: T", got=word, hint=f"did you mean {near}?" if near else None)


def _dims(text: str, name: str, annotation: str) -> tuple[str | int, ...]:
    dims: list[str | int] = []
    for word in filter(None, (w.strip() for w in text.split(","))):
        if not (word.isidentifier() or (word.isdigit() and int(word))):
            raise FcError("trace/usage", f"the annotation of `{name}` has a dimension that is neither a name nor a number",
                          expected='"DTYPE[B, H, M, 64]"', got=repr(annotation))
        dims.append(int(word) if word.isdigit() else word)
    if not dims:
        raise FcError("trace/usage", f"tensor `{name}` needs at least one dimension", got=repr(annotation), hint='"DTYPE[M, N]"')
    return tuple(dims)


def _is_type(text: str, types: Mapping[str, Any]) -> bool:
    """Whether source text means a Python type: `list[int]`, `Callable[..., Any] | None`."""
    word = re.match(r"[\w.]*", text)[0].split(".")[0]  # type: ignore[index]
    known = types.get(word, getattr(builtins, word, None))
    if isinstance(known, (type, ModuleType)) or getattr(known, "__module__", None) == "typing":
        return True
    if any(mark in text for mark in ("|", "...", "[[")):
        return True
    return text.replace(".", "").isidentifier() and word[:1].isupper()  # a name that only a type checker imports
