"""Elementwise arithmetic on handles: Python numbers take the dtype of what they meet, tiles meet axis by axis.

Every rule about dtypes and axes that a spec can break by writing an expression is checked here, before an op is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..ir.elementwise import FNS
from ..ir.tile_ops import TAKES
from ..ir.types import DTYPES, DType, f32, i1, i32, i64, u32
from .handles import ARITHMETIC, Handle, Label, NotATile, label_name
from .mistakes import HOLD, plain
from .trace import current, mistake

#: how messages call the functions that are written as operators
SYMBOLS = {"div": "/", "floordiv": "//", "mod": "%", "pow": "**", "max": "maximum", "min": "minimum", "not": "~",
           **{f.name: f.symbol for f in FNS.values() if f.symbol and f.name not in ("not",)}}


def lift(x: Any, dtype: DType | None) -> Handle:
    """A handle for a Python number; its dtype is that of what it meets."""
    if isinstance(x, Handle):
        return x
    if isinstance(x, NotATile):
        raise x.mistaken()
    if hasattr(type(x), "lifted"):  # a captured number
        return x.lifted(dtype)  # type: ignore[no-any-return]
    x = plain(x)
    if isinstance(x, bool):
        return Handle(current().emit("const", value=x, dtype="i1"))
    if not isinstance(x, (int, float)):
        hint = "an optional parameter that was not given is None: ask with Python's `if x is not None`" if x is None else \
            HOLD if hasattr(x, "shape") and hasattr(x, "dtype") else None
        raise mistake("trace/usage", "this is not a value of the program", expected="a tile, a scalar or a number", got=repr(x)[:80],
                      hint=hint)
    if dtype is None:
        dtype = i32 if isinstance(x, int) else f32
    if dtype == i1:
        raise mistake("trace/dtype", "a number meets a condition", expected="i1", got=x,
                      hint="choose with fc.where(c, a, b), or count conditions: c.to(fc.i32)")
    if dtype.is_float:
        return Handle(current().emit("const", value=float(x), dtype=dtype.name))
    if isinstance(x, float):
        whole = math.isfinite(x) and x.is_integer()
        raise mistake("trace/dtype", f"a {'float' if whole else 'fractional number'} meets integers", expected=dtype, got=x,
                      hint=f"write {int(x)}, or convert: .to(fc.f32)" if whole else "convert the tile: .to(fc.f32)")
    low, high = dtype.range
    if not low <= x <= high:
        wider = next((d for d in (i32, u32, i64) if d.range[0] <= x <= d.range[1]), None)
        raise mistake("trace/dtype", f"the number does not fit {dtype}", expected=f"{low} to {high}", got=x,
                      hint=f"convert what it meets: .to(fc.{wider})" if wider else None)
    return Handle(current().emit("const", value=int(x), dtype=dtype.name))


def common(what: str, args: Sequence[Any], dtype: DType | None) -> list[Handle]:
    """The operands as handles of one dtype."""
    handles = [lift(a, dtype) for a in args]
    dtypes = list(dict.fromkeys(h.dtype for h in handles))
    if len(dtypes) > 1:
        a, b = (next(h for h in handles if h.dtype == d) for d in dtypes[:2])
        to = next((d for d in dtypes if d.is_float), dtypes[0])
        raise mistake("trace/dtype", f"{what} of two dtypes", expected=repr(a), got=repr(b),
                      hint=f"convert one of them: .to(fc.{i32 if to == i1 else to})")
    return handles


def joint_labels(handles: list[Handle]) -> tuple[Label, ...]:
    """The axes of an elementwise result: those of the operand that has them all, else all of them, ranges in the order they were made."""
    shaped = list(dict.fromkeys(h.labels for h in handles if h.labels))
    if len(shaped) <= 1:
        return shaped[0] if shaped else ()
    for h in handles:
        if len(set(h.labels)) < len(h.labels):
            raise mistake("trace/shape", f"both axes of this tile run over {label_name(h.labels[0])}, so it is not clear which one the "
                          "other operand meets", expected=repr(h), got="; ".join(repr(x) for x in handles if x is not h),
                          hint="give one of the two an axis of its own: another dimension name, or rows.again()")
    every = list(dict.fromkeys(l for h in handles for l in h.labels))
    for h in handles:
        if len(h.labels) == len(every):
            return h.labels
    ranges = sorted((l for l in every if not isinstance(l, (str, int))), key=lambda r: r.number)
    return (*ranges, *(l for l in every if isinstance(l, (str, int))))


def aligned(h: Handle, labels: tuple[Label, ...], sizes: dict[Label, int] | None = None) -> Handle:
    """`h` with exactly these axes in this order. Raises FcError "trace/shape" if it has others."""
    if h.labels == labels or not h.labels:
        return h
    if not set(h.labels) <= set(labels) or len(set(h.labels)) < len(h.labels):
        raise mistake("trace/shape", "the tile runs over other axes", expected=", ".join(map(label_name, labels)), got=repr(h),
                      hint="axes are told apart by the range or dimension they run over")
    t = current()
    if len(h.labels) == len(labels):
        return Handle(t.emit("transpose", h.value), labels)
    if len(h.labels) == 2 and [l for l in labels if l in h.labels] != list(h.labels):
        h = h.T
    assert sizes is not None
    axes = tuple(labels.index(l) for l in h.labels)
    return Handle(t.emit("broadcast", h.value, axes=axes, shape=tuple(sizes[l] for l in labels)), labels)


def spread(handles: list[Handle]) -> tuple[list[Handle], tuple[Label, ...]]:
    """Operands brought to their joint axes; scalars stay scalars."""
    labels = joint_labels(handles)
    sizes: dict[Label, int] = {}
    for h in handles:
        for l, n in zip(h.labels, h.shape):
            if sizes.setdefault(l, n) != n:
                raise mistake("trace/shape", f"two axes called {label_name(l)} differ in size", expected=sizes[l], got=n)
    if len(labels) > 2:
        raise mistake("trace/shape", "these operands do not share their axes, and together have more than two",
                      expected="one or two axes in all", got="; ".join(map(repr, handles)),
                      hint="axes are told apart by the range or dimension they run over")
    return [aligned(h, labels, sizes) for h in handles], labels


def elementwise(name: str, *args: Any) -> Handle:
    """One op of the elementwise table, its operands brought to one dtype and to joint axes."""
    of_blocks = next((a for a in args if hasattr(type(a), "among")), None)
    if of_blocks is not None:  # `bounds`
        return of_blocks.among(name, args)  # type: ignore[no-any-return]
    known = [a for a in args if isinstance(a, Handle)]
    kind = FNS[name].kind
    dtype = next((h.dtype for h in known if h.labels), known[0].dtype if known else f32 if kind == "float" else None)
    for h in known:
        check_kind(name, h, next((k.dtype for k in known if k.dtype.is_float), None))
    handles, labels = spread(common(SYMBOLS.get(name, name), args, dtype))
    check_kind(name, handles[0])
    return Handle(current().emit(name, *[h.value for h in handles]), labels)


def check_kind(name: str, h: Handle, meets: DType | None = None) -> None:
    """Whether a function is defined for the dtype of one of its operands. meets: the float dtype of another one."""
    kind, d, word = FNS[name].kind, h.dtype, SYMBOLS.get(name, name)
    these = TAKES[kind][2] if kind in TAKES else ""
    if kind == "float" and not d.is_float:
        convert = f"{getattr(h, 'name', '')}.to(fc.{meets or f32})"  # of a size, as it is written
        known = {"div": f"use // for integers, or {convert}", "pow": f"multiply it out, or convert: {convert}"}
        hint = f"convert what is no float: {convert}" if meets else known.get(name, f"convert: {convert}")
        raise mistake("trace/dtype", f"{word} is for floats", expected=these, got=repr(h), hint=hint)
    if kind == "int" and not d.is_int:
        known = {"floordiv": "for floats: fc.floor(a / b)", "mod": "for floats: a - b * fc.floor(a / b)"} if d.is_float else {}
        raise mistake("trace/dtype", f"{word} is for integers", expected=these, got=repr(h), hint=known.get(name))
    if (kind == "word" and d not in (i32, u32)) or (name == "abs" and not d.signed):
        what = "integers of 32 bits" if kind == "word" else "signed numbers"
        these = these if kind == "word" else ", ".join(x.name for x in DTYPES.values() if x.signed and x != i1)
        raise mistake("trace/dtype", f"{word} is for {what}", expected=these, got=repr(h), hint="convert: .to(fc.i32)")
    if kind == "logic" and d.is_float:
        raise mistake("trace/dtype", "&, |, ^ and ~ are for conditions and integers", got=repr(h), hint="compare first: x > 0")
    if kind == "arith" and d == i1:
        raise mistake("trace/dtype", f"{word} is not defined on conditions", expected="a number", got=repr(h),
                      hint="combine conditions with & | ^ ~, or make numbers of them: c.to(fc.i32)")


ARITHMETIC.update(elementwise=elementwise, lift=lift)
