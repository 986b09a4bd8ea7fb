"""What a function given to a spec sees in place of what it holds.

A captured number computes with Python's numbers as Python does, and becomes a run-time scalar where it meets a value of the program; where
Python itself uses it (`if`, `range`, `math.exp`, a tile's size) its value is a fact of the trace. A captured array is a tensor parameter.
Functions are made anew with what they hold replaced. Objects, lists and dicts are shown and cannot be changed.
"""

from __future__ import annotations

import functools
import math
import operator
import types
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..errors import FcError, Loc
from ..ir.types import DTYPES, DType, f32, i32
from .arith import lift
from .captures import Captures, Key, is_array, number_key, place_of_name, refuse_writes, torch_module
from .functions import load
from .handles import Handle
from .mistakes import called
from .ranges import Range
from .tensors import RunDim, TensorParam, View, as_of
from .trace import current, here, mistake, place_in

#: dtypes of what numbers meet -> the scalar that carries them
_CARRIED = {"f32": "f32", "f16": "f32", "bf16": "f32", "i32": "i32", "i64": "i64"}


def seen_by_trace(x: Any, key: Key, captures: Captures, where: Callable[[], Loc] = here) -> Any:
    """What a traced function sees in place of the value that stands at `key`. where: it takes it."""
    if key not in captures.made:
        try:
            word, *kind = captures.see(("kind", key))
        except FcError as e:
            raise e.at(where()) from None
        captures.made[key] = _MAKE[word](x, key, captures, *kind)
    return captures.made[key]


# ---- numbers ---------------------------------------------------------------------------------------------------------


class Number:
    """A captured number, or what follows from some."""

    __slots__ = ("captures", "key")
    __array_priority__ = 1000

    def __init__(self, captures: Captures, key: Key):
        self.captures, self.key = captures, key

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.captures.found[self.key])

    def plain(self) -> Any:
        """Its value, from now on a fact of the trace."""
        return self.captures.see(("value", self.key))

    def lifted(self, dtype: DType | None) -> Handle:
        """A scalar of the program; its dtype is that of what it meets."""
        value = self.captures.found[self.key]
        dtype = dtype or (i32 if type(value) is int else f32)
        carried = _CARRIED.get(dtype.name)
        whole = not dtype.is_float
        if carried is None or (whole and (type(value) is not int or not -(2 ** (dtype.bits - 1)) <= value < 2 ** (dtype.bits - 1))):
            return lift(self.plain(), dtype)
        if whole or carried == dtype.name:
            return Handle(self.captures.parameter((carried, self.key), DTYPES[carried]))
        return Handle(self.captures.parameter((dtype.name, self.key), DTYPES[carried])).to(dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented  # the value that it meets knows

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **more: Any) -> Any:
        return getattr(ufunc, method)(*[x.plain() if type(x) is Number else x for x in inputs], **more)

    def __bool__(self) -> bool:
        return bool(self.captures.see(("ne", self.key, ("int", 0))))

    def __round__(self, *n: Any) -> Any:
        return round(self.plain(), *n)

    def __format__(self, spec: str) -> str:
        return format(self.plain(), spec)


def _number(captures: Captures, key: Key) -> Any:
    return Number(captures, key) if type(captures.found[key]) in (int, float) else captures.see(key)


def _arithmetic(name: str, swapped: bool, compares: bool) -> Callable[[Number, Any], Any]:
    def op(self: Number, other: Any) -> Any:
        if type(other) is not Number and isinstance(other, np.generic):
            other = other.item()
        if type(other) not in (int, float, bool, Number):
            return NotImplemented
        keys = self.key, other.key if type(other) is Number else number_key(other)
        key = (name, *(keys[::-1] if swapped else keys))
        return self.captures.see(key) if compares else _number(self.captures, key)

    return op


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_BOTH_SIDES = (*_ARITHMETIC, *[f"r{name}" for name in _ARITHMETIC])
for _name in _ARITHMETIC:
    setattr(Number, f"__{_name}__", _arithmetic(_name, False, False))
    setattr(Number, f"__r{_name}__", _arithmetic(_name, True, False))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _arithmetic(_name, False, True))
for _name in ("neg", "pos", "abs"):
    setattr(Number, f"__{_name}__", lambda self, name=_name: _number(self.captures, (name, self.key)))
for _name, _plain in {"int": int, "float": float, "index": operator.index, "hash": hash, "str": str, "repr": repr,
                      "trunc": math.trunc, "floor": math.floor, "ceil": math.ceil}.items():
    setattr(Number, f"__{_name}__", lambda self, plain=_plain: plain(self.plain()))
for _name in ("and", "or", "xor", "lshift", "rshift", "divmod"):
    _of = divmod if _name == "divmod" else getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    setattr(Number, f"__{_name}__", lambda self, other, of=_of: of(self.plain(), other))
    setattr(Number, f"__r{_name}__", lambda self, other, of=_of: of(other, self.plain()))


# ---- tensors ---------------------------------------------------------------------------------------------------------


class Again(BaseException):
    """The trace has to begin again with a size of a captured tensor known: it is used whole."""

    def __init__(self, key: Key, axis: int):
        self.what = key, axis


@called("tensor")
class CapturedTensor(TensorParam):
    """A captured array. Its sizes are run-time sizes, but for those along which it is used whole."""

    __slots__ = ("_captures", "_dtype", "_key", "_rank")

    def __init__(self, key: Key, captures: Captures, dtype: str, rank: int):
        self._key, self._captures, self._dtype, self._rank = key, captures, dtype, rank
        self._flags = ()

    @property
    def _param(self) -> Any:  # type: ignore[override]  # made when it is used: what is held and not used is no parameter
        return self._captures.parameter(self._key, DTYPES[self._dtype], self._rank)

    @property
    def _names(self) -> Any:  # type: ignore[override]
        return tuple(f"{self._param.name}_{axis}" for axis in range(self._rank))

    @property
    def dtype(self) -> DType:
        return DTYPES[self._dtype]

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(RunDim(d) if isinstance(d, str) else d for d in self._param.type.dims)

    @property
    def ndim(self) -> int:
        return self._rank

    def whole(self, axis: int) -> int:
        raise Again(self._key, axis)

    def _gather(self, index: tuple[Any, ...]) -> Handle:
        """Where positions are those of one range or two, of dimensions, that is a tile, which is loaded like any other."""
        runs = current().runs
        parts = [runs.get(i.value, i) if isinstance(i, Handle) and i.labels else i for i in index]
        ranges = [r for r in parts if isinstance(r, Range)]
        tiles = len(set(ranges)) == len(ranges) in (1, 2) and not any(isinstance(r.dim, Handle) for r in ranges)
        rest = all(isinstance(p, (int, Range)) or (isinstance(p, Handle) and not p.labels) for p in parts)
        tiles = tiles and (len(ranges) == 2 or not any(isinstance(p, int) for p in parts))  # a number may lie past the end: that reads 0
        if tiles and rest and len(parts) == self._rank and self._captures.see(("lines", self._key)):
            return as_of(index, load(View(self, tuple(parts))))
        t = current()
        places = {i for i, axis in zip(t.ids, t.grid) if axis.tile == 1}
        known = lambda p: isinstance(p, Range) or getattr(p, "value", None) in places  # to be no position below 0
        counted = [i.counted(n) if hasattr(i, "counted") and not known(p) else i for i, p, n in zip(index, parts, self.shape)]
        return super()._gather((*counted, *index[len(counted):]))


class Point:
    """A captured tensor without axes on the GPU: a scalar of the program, which every launch reads."""

    __slots__ = ("_line",)

    def __init__(self, key: Key, captures: Captures, dtype: str):
        self._line = CapturedTensor(("line", key), captures, dtype, 1)

    def lifted(self, dtype: DType | None) -> Handle:
        """Of the dtype of what it meets, unless that would round it."""
        h = cast(Handle, self._line[0])
        return h if dtype is None or h.dtype == dtype or (h.dtype.is_float and not dtype.is_float) else h.to(dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented  # the value that it meets knows

    def __bool__(self) -> bool:
        return bool(self.lifted(None))


def _of_point(name: str) -> Callable[..., Any]:
    return lambda self, *other: NotImplemented if other and isinstance(other[0], Handle) else getattr(self.lifted(None), name)(*other)


for _name in (*_BOTH_SIDES, "neg", "abs", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Point, f"__{_name}__", _of_point(f"__{_name}__"))


# ---- what holds others -----------------------------------------------------------------------------------------------


class _Globals(dict):  # type: ignore[type-arg]
    """The global names of a function, each replaced when it is read."""

    def __init__(self, fn: types.FunctionType, key: Key, captures: Captures):
        super().__init__({k: fn.__globals__[k] for k in ("__builtins__", "__name__") if k in fn.__globals__})
        self.fn, self.key, self.captures = fn, key, captures

    def __missing__(self, name: str) -> Any:
        return seen_by_trace(self.fn.__globals__[name], ("global", self.key, name), self.captures)


def _function(fn: types.FunctionType, key: Key, captures: Captures, code: types.CodeType) -> Any:
    above = key
    while above[0] != "given":
        above = above[1]
        if above in captures.made and captures.found[above] is fn:  # a function that calls itself
            captures.see(("same", key, above))
            return captures.made[above]
    refuse_writes(code)
    cells = tuple(types.CellType() for _ in fn.__closure__ or ())
    out = types.FunctionType(code, _Globals(fn, key, captures), fn.__name__, None, cells)
    captures.made[key] = out
    for n, (new, old) in enumerate(zip(cells, fn.__closure__ or ())):
        if old != types.CellType():
            name = code.co_freevars[n]
            if name == "__class__":  # what super() asks for
                new.cell_contents = old.cell_contents
                continue
            place = functools.partial(place_of_name, code, name)
            new.cell_contents = seen_by_trace(old.cell_contents, ("cell", key, n, name), captures, place)
    where = functools.partial(place_in, code, 0)
    named = code.co_varnames[code.co_argcount - len(fn.__defaults__ or ()):]
    out.__defaults__ = tuple(seen_by_trace(x, ("default", key, n, named[n]), captures, where)
                             for n, x in enumerate(fn.__defaults__ or ())) or None
    kept = fn.__kwdefaults__ or {}
    out.__kwdefaults__ = {k: seen_by_trace(x, ("kwdefault", key, k), captures, where) for k, x in kept.items()} or None
    return out


#: the key of the spec's own function
SPEC: Key = ("given", "")


def own_arrays(fn: types.FunctionType) -> list[Key]:
    """Where a spec's own function holds arrays. (Its numbers are part of its text.)"""
    held = zip(fn.__code__.co_freevars, fn.__closure__ or ())
    keys: list[Key] = [("cell", SPEC, n, name) for n, (name, c) in enumerate(held) if c != types.CellType() and _is_tensor(c.cell_contents)]
    return [*keys, *(("global", SPEC, name) for name in fn.__code__.co_names if _is_tensor(fn.__globals__.get(name)))]


def _is_tensor(x: Any) -> bool:
    return not isinstance(x, (type, types.ModuleType)) and is_array(x) and len(x.shape) > 0


def with_own_arrays(fn: types.FunctionType, captures: Captures) -> types.FunctionType:
    """A spec's function, its arrays replaced by parameters."""
    new = {key: seen_by_trace(captures.found[key], key, captures) for key in own_arrays(fn)}
    cells = tuple(types.CellType(new["cell", SPEC, n, name]) if ("cell", SPEC, n, name) in new else c
                  for n, (name, c) in enumerate(zip(fn.__code__.co_freevars, fn.__closure__ or ())))
    names = {**fn.__globals__, **{key[2]: x for key, x in new.items() if key[0] == "global"}}
    out = types.FunctionType(fn.__code__, names, fn.__name__, fn.__defaults__, cells)
    out.__kwdefaults__ = fn.__kwdefaults__
    return out


def _changed(self: Any, *_: Any, **__: Any) -> Any:
    raise mistake("trace/capture", "a function of a spec changes what it holds", got=type(self).__name__.removeprefix("Shown "),
                  hint="it is called once, while it is traced: return what it computes, or make a list of its own")


class _List(list):  # type: ignore[type-arg]
    append = extend = insert = remove = pop = clear = sort = reverse = __setitem__ = __delitem__ = __iadd__ = __imul__ = _changed


class _Dict(dict):  # type: ignore[type-arg]
    pop = popitem = clear = update = setdefault = __setitem__ = __delitem__ = __ior__ = _changed


_List.__name__, _Dict.__name__ = "Shown list", "Shown dict"


class Shown:
    """An object, its attributes replaced when they are read."""

    __slots__ = ("_captures", "_key", "_of")

    def __init__(self, of: Any, key: Key, captures: Captures):
        for name, x in (("_of", of), ("_key", key), ("_captures", captures)):
            object.__setattr__(self, name, x)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._of)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        x, key = getattr(self._of, name), ("attr", self._key, name)
        if isinstance(x, types.MethodType) and x.__self__ is self._of:
            return types.MethodType(seen_by_trace(x.__func__, ("attr", key, "__func__"), self._captures), self)
        return seen_by_trace(x, key, self._captures)

    def __instancecheck__(self, x: Any) -> bool:
        return isinstance(x, self._of)

    __setattr__ = __delattr__ = _changed


def _special(name: str) -> Callable[..., Any]:
    def method(self: Shown, *args: Any, **named: Any) -> Any:
        if isinstance(self._of, type):
            return getattr(self._of, name)(*args, **named) if name != "__call__" else self._of(*args, **named)
        word = "forward" if name == "__call__" and torch_module(self._of) else name
        fn = getattr(type(self._of), word, None)
        if fn is None:
            raise TypeError(f"'{type(self._of).__name__}' object has no {word}")
        return seen_by_trace(fn, ("class", self._key, word), self._captures)(self, *args, **named)

    return method


for _name in ("__call__", "__getitem__", "__len__", "__iter__", "__contains__"):
    setattr(Shown, _name, _special(_name))


def _object(x: Any, key: Key, captures: Captures, kind: type) -> Any:
    part = lambda name: seen_by_trace(getattr(x, name), ("attr", key, name), captures)
    if kind is types.MethodType:
        return types.MethodType(part("__func__"), part("__self__"))
    if kind is functools.partial:
        return functools.partial(part("func"), *part("args"), **part("keywords"))
    return part("__wrapped__") if hasattr(x, "__wrapped__") and callable(x) else Shown(x, key, captures)


def _sequence(x: Any, key: Key, captures: Captures, kind: type, size: int) -> Any:
    members = [seen_by_trace(y, ("item", key, n), captures) for n, y in enumerate(x)]
    return kind._make(members) if hasattr(kind, "_make") else tuple(members) if issubclass(kind, tuple) else _List(members)


def _dict(x: Any, key: Key, captures: Captures, kind: type, names: tuple[Any, ...]) -> Any:
    return _Dict({k: seen_by_trace(y, ("item", key, k), captures) for k, y in x.items()})


_MAKE: dict[str, Callable[..., Any]] = {
    "constant": lambda x, *_: x, "itself": lambda x, *_: x, "number": lambda x, key, captures, kind: Number(captures, key),
    "plain": lambda x, key, captures, kind: seen_by_trace(x.item(), ("plain", key), captures),
    "tensor": lambda x, key, captures, dtype, rank: CapturedTensor(key, captures, dtype, rank),
    "point": lambda x, key, captures, dtype: Point(key, captures, dtype),
    "function": _function, "sequence": _sequence, "dict": _dict, "object": _object}
