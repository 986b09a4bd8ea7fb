"""What Python functions given to a spec hold besides their parameters: where it stands, and what was seen of it while they were traced.

A *key* says how a value is reached from the spec's compile-time arguments and what is computed of it, in nested tuples: ("given", "f"),
("cell", KEY, 0, "x"), ("attr", KEY, "alpha"), ("mul", KEY, ("int", 2)). `Found` follows keys in the arguments of one call. `Captures`
gathers, in one trace, the parameters that captured values became and the `seen` facts that the trace follows from: kinds of values,
outcomes of comparisons, numbers that Python itself used. Guaranteed: where a call finds the same facts, the traced program is that call's
program, for whatever numbers and tensors it finds. No tensor is kept.
"""

from __future__ import annotations

import dis
import enum
import math
import numbers
import operator
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import FcError, Loc
from ..ir.core import Value
from ..ir.types import DTYPES, ELSEWHERE, DType, Scalar, Tensor
from .trace import place_in, shown

Key = tuple[Any, ...]
_STDLIB, *_INSTALLED = (sysconfig.get_paths()[k] for k in ("stdlib", "purelib", "platlib"))
#: packages whose functions are called as they are, but for modules that say they are written in the language, as a user's would be
_FOREIGN = ("fcgen", "numpy", "torch")
IN_THE_LANGUAGE = "WRITTEN_IN_THE_LANGUAGE"
#: how the gradient of a captured tensor comes together: added up in f32, added up in the tensor's own dtype, stored in it
SUM, FEW, STORED = "sum", "few", "stored"


class Same:
    """An object that is compared by what it is, not by what it equals."""

    __slots__ = ("of",)

    def __init__(self, of: Any):
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.of is other.of

    __hash__ = None  # type: ignore[assignment]


# ---- keys ------------------------------------------------------------------------------------------------------------

_READ: dict[str, Callable[[Any, Any], Any]] = {
    "cell": lambda f, n: f.__closure__[n].cell_contents, "default": lambda f, n: f.__defaults__[n],
    "kwdefault": lambda f, name: f.__kwdefaults__[name], "global": lambda f, name: f.__globals__[name], "attr": getattr,
    "item": lambda x, k: x[k], "class": lambda x, name: getattr(type(x), name)}
_COMPUTE: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs",
                                                  "lt", "le", "gt", "ge", "eq", "ne")},
    "lines": lambda x: in_lines(x), "line": lambda x: x.reshape(1), "plain": lambda x: x.item(), "kind": lambda x: kind_of(x),
    "value": lambda x: x, "same": operator.is_,
    "wants": lambda x: bool(getattr(x, "requires_grad", True)),
    "f16": lambda x: float(np.float16(x)), "bf16": lambda x: float(_bf16(x)), "f32": float, "i32": int, "i64": int}


def _bf16(x: Any) -> Any:
    from ..ir.elementwise import to_dtype

    return to_dtype(np.asarray(x, np.float32), DTYPES["bf16"])


def number_key(x: int | float) -> Key:
    """The key of a number of the source. (As members of tuples 2, 2.0 and True would be one.)"""
    return ("float", x.hex()) if isinstance(x, float) else ("int", int(x))


def root(key: Key) -> str:
    """The name of the argument that a key begins at."""
    while key[0] != "given":
        key = next(k for k in key[1:] if isinstance(k, tuple) and k[0] not in ("int", "float"))
    return str(key[1])


def spelt(key: Key) -> str:
    """For people: the name under which a function holds a value."""
    if key[0] == "attr":
        return f"{spelt(key[1])}.{key[2]}" if key[2] not in ("func", "args", "keywords", "__self__", "__func__") else spelt(key[1])
    if key[0] == "item":
        return f"{spelt(key[1])}[{key[2]!r}]"
    if key[0] in ("given", "global", "kwdefault", "cell", "default"):
        return str(key[-1])
    return next((spelt(k) for k in key[1:] if isinstance(k, tuple) and k[0] not in ("int", "float")), str(key[-1]))


class Found:
    """What the arguments of a call hold, by key."""

    def __init__(self, given: Mapping[str, Any]):
        self._known: dict[Key, Any] = {("given", name): x for name, x in given.items()}

    def __getitem__(self, key: Key) -> Any:
        known = self._known
        if key in known:
            return known[key]
        word = key[0]
        if word in _READ:
            out = _READ[word](self[key[1]], key[2])
        elif word in _COMPUTE:
            out = _COMPUTE[word](*[self[k] for k in key[1:]])
        elif word == "given":
            raise KeyError(key[1])
        else:
            out = float.fromhex(key[1]) if word == "float" else key[1]
        known[key] = out
        return out


def alike(a: Any, b: Any) -> bool:
    """Whether two facts are the same: numbers of one type with the same bits."""
    if isinstance(a, float):
        return type(b) is float and ((a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b))
    return type(a) is type(b) and bool(a == b)


# ---- kinds -----------------------------------------------------------------------------------------------------------


def kind_of(x: Any) -> tuple[Any, ...]:
    """What a trace follows from, of a captured value: its kind, and of constants the value. Raises FcError for what cannot be captured."""
    t = type(x)
    if x is None or t in (bool, str, bytes, DType, slice, range, frozenset, types.EllipsisType) or isinstance(x, enum.Enum):
        return "constant", t, x
    if t in (int, float):
        if t is int and x.bit_length() > 1023:
            raise FcError("trace/capture", "a whole number that no dtype holds cannot be captured", got=f"one of {x.bit_length()} bits")
        return "number", t
    if _ours(t.__module__) or _as_it_is(x):
        return "itself", Same(x)
    if isinstance(x, type):
        return "object", t
    if isinstance(x, np.generic) or (is_array(x) and not len(x.shape)):
        if getattr(x, "requires_grad", False) and sys.modules["torch"].is_grad_enabled():
            raise no_number(x)
        return ("point", dtype_name(x)) if _on_gpu(x) else ("plain", t)
    if is_array(x):
        return "tensor", dtype_name(x), len(x.shape)
    if isinstance(x, types.FunctionType):
        return "function", x.__code__
    if isinstance(x, (list, tuple)):
        return "sequence", t, len(x)
    if isinstance(x, dict):
        return "dict", t, tuple(x)
    if isinstance(x, (types.MethodType, types.ModuleType)) or (t.__flags__ & 1 << 9 and not hasattr(x, "__next__")
                                                               and not isinstance(x, numbers.Number)):
        return "object", t  # of a class that Python code made
    hint = "a function is traced once, and what it takes from an iterator is gone: capture a tuple" if hasattr(x, "__next__") else \
        "what the function puts there is put there once, while it is traced: capture a frozenset or a tuple" if t is set else \
        "capture float(x)" if isinstance(x, numbers.Number) else "capture the numbers and tensors in it"
    raise FcError("trace/capture", f"a {t.__name__} cannot be captured by a function of a spec", got=repr(x)[:80], hint=hint,
                  expected="numbers, arrays, tensors, strings, functions, and tuples, dicts or objects that hold them")


def _on_gpu(x: Any) -> bool:
    return str(getattr(x, "device", "cpu")).startswith("cuda")


def no_number(x: Any) -> FcError:
    """Numbers are read where a function is called; nothing follows them back."""
    return FcError("trace/capture", "a number that requires grad cannot be captured: no gradient flows to it", got=repr(x)[:80],
                   hint="on the GPU with one axis, x[None], and indexed with 0 it gets one; or capture float(x)")


def _ours(module: str) -> bool:
    """A module of fcgen that is not written in the language."""
    return module.split(".")[0] == "fcgen" and not getattr(sys.modules.get(module), IN_THE_LANGUAGE, False)


def _as_it_is(x: Any) -> bool:
    """Functions and modules that hold nothing of the user's."""
    if isinstance(x, (types.BuiltinFunctionType, np.ufunc)):
        owner = getattr(x, "__self__", None)
        if owner is None or isinstance(owner, (type, types.ModuleType)):
            return True
        raise FcError("trace/capture", f"a method of a {type(owner).__name__} cannot be captured by a function of a spec", got=repr(x)[:80],
                      hint="what it changes is changed once, while the function is traced")
    if isinstance(x, types.ModuleType):
        file = getattr(x, "__file__", None)
        ours = file is None and x.__name__ == "__main__"
        return not ours and (file is None or x.__name__.split(".")[0] in _FOREIGN or file.startswith((_STDLIB, *_INSTALLED)))
    if isinstance(x, type):  # of the user's classes attributes may be read
        home = sys.modules.get(x.__module__)
        if getattr(home, IN_THE_LANGUAGE, False):
            return False
        return issubclass(x, (BaseException, enum.Enum)) or home is None or x.__module__ == "builtins" or _as_it_is(home)
    if isinstance(x, types.FunctionType):
        file = x.__code__.co_filename
        name = str(x.__module__)
        if name.split(".")[0] in _FOREIGN and (_ours(name) or not name.startswith("fcgen")):
            return name.startswith("fcgen") or not any(c != types.CellType() and _of_the_user(c.cell_contents) for c in x.__closure__ or ())
        return (file.startswith(_STDLIB) and not file.startswith(tuple(_INSTALLED)))
    return isinstance(x, (types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType))


def _of_the_user(x: Any) -> bool:
    """Does what a foreign package's function holds come from its caller: arrays, their functions, objects with arrays?"""
    if isinstance(x, types.FunctionType):
        return not _as_it_is(x)
    inside = vars(x).values() if hasattr(x, "__dict__") and not isinstance(x, (type, types.ModuleType)) else ()
    return not isinstance(x, type) and any(is_array(y) for y in (x, *inside))


def is_array(x: Any) -> bool:
    ways = ("data_ptr", "__dlpack__", "__cuda_array_interface__", "__array__")
    return hasattr(x, "shape") and hasattr(x, "dtype") and any(hasattr(x, w) for w in ways)


def dtype_name(x: Any) -> str:
    """An array's dtype, by our name for it. Raises FcError for those we have none for."""
    word = str(x.dtype).rsplit(".", 1)[-1]
    name = word if word in DTYPES else ELSEWHERE.get(word)
    if name is None:
        raise FcError("trace/capture", "an array of this dtype cannot be captured", expected=", ".join(DTYPES), got=word,
                      hint="convert it before")
    return name


def in_lines(x: Any) -> bool:
    """Whether an array's rows begin on multiples of 16 bytes, and their elements lie side by side: then copies can move tiles of it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        of = torch._C._functorch
        while of.is_functorch_wrapped_tensor(x):
            x = of.get_unwrapped(x)  # what a transform follows has no memory of its own
        size, strides = x.element_size(), x.stride()  # (asked at each call)
        return not x.data_ptr() % 16 and strides[-1] == 1 and not [n for n, s in zip(x.shape[:-1], strides) if s * size % 16 and n > 1]
    known = getattr(x, "__cuda_array_interface__", None) or getattr(x, "__array_interface__", None)
    if known is None:
        return False
    size = np.dtype(known["typestr"]).itemsize
    ptr = known["data"][0]
    steps = known.get("strides") or [size * math.prod(x.shape[n + 1:]) for n in range(len(x.shape))]
    return ptr % 16 == 0 and steps[-1] == size and all(s % 16 == 0 for n, s in zip(x.shape[:-1], steps) if n > 1)


def holds(x: Any, depth: int = 3) -> bool:
    """Whether a compile-time argument is a function of the user's, a tensor, or holds one: then what it captures is looked for."""
    t = type(x)
    if t in (int, float, str, bool, DType, type(None)) or isinstance(x, (type, enum.Enum)):
        return False
    if t in (tuple, list):
        return depth > 0 and any(holds(y, depth - 1) for y in x)
    if t is dict:
        return depth > 0 and any(holds(y, depth - 1) for y in x.values())
    return not _ours(t.__module__) and (callable(x) or is_array(x)) and not isinstance(x, np.generic)


def identity(x: Any) -> Any:
    """What stands for such an argument where programs are looked up: equal for functions of one text, whatever they hold."""
    if isinstance(x, types.FunctionType):
        return x.__code__
    if isinstance(x, types.MethodType):
        return identity(x.__func__)
    if type(x) in (tuple, list):
        return (type(x), *map(identity, x))
    if type(x) is dict:
        return (dict, *((k, identity(y)) for k, y in x.items()))
    return identity(x.func) if hasattr(x, "func") and hasattr(x, "keywords") else type(x) if holds(x) else x


# ---- one trace -------------------------------------------------------------------------------------------------------


class Captures:
    """What one trace captures. taken: names that parameters have already. fixed: axes of captured tensors whose sizes must be known."""

    def __init__(self, given: Mapping[str, Any], taken: set[str], fixed: frozenset[tuple[Key, int]] = frozenset()):
        self.found, self._taken, self.fixed = Found(given), taken, fixed
        self.seen: dict[Key, Any] = {}
        self.made: dict[Key, Any] = {}
        self._values: dict[Key, Value] = {}
        #: captured tensor -> where its gradient goes, and how
        self._gradients: dict[Value, tuple[Value, str]] = {}

    def see(self, key: Key) -> Any:
        """A fact that the trace follows from."""
        if key not in self.seen:
            self.seen[key] = self.found[key]
        return self.seen[key]

    def parameter(self, key: Key, dtype: DType, rank: int | None = None) -> Value:
        """The parameter that a captured number or tensor (of so many axes) is."""
        if key not in self._values:
            count = 0
            stem = root(key) or "own"
            while any(w == f"{stem}_{count}" or w.startswith(f"{stem}_{count}_") for w in self._taken):
                count += 1
            name = f"{stem}_{count}"
            self._taken.add(name)
            dims = [self.see(("item", ("attr", key, "shape"), axis)) if (key, axis) in self.fixed else f"{name}_{axis}"
                    for axis in range(rank or 0)]
            self._values[key] = Value(Scalar(dtype) if rank is None else Tensor(dtype, tuple(dims)), name)
        return self._values[key]

    def wants_gradient(self, of: Value) -> bool:
        """Whether a parameter is a captured tensor that a gradient is asked for (any, but torch's that do not require one)."""
        key = next((k for k, v in self._values.items() if v is of), None)
        return key is not None and bool(self.see(("wants", key)))

    def gradient(self, of: Value, how: str = SUM) -> tuple[Value, str]:
        """The parameter of a captured tensor's sizes that its gradient goes to, and how it does: as was said first."""
        if of not in self._gradients:
            name = f"{of.name}_grad"
            self._taken.add(name)
            self._gradients[of] = Value(Tensor(DTYPES["f32"] if how == SUM else of.type.dtype, of.type.dims), name), how
        return self._gradients[of]

    @property
    def params(self) -> tuple[Value, ...]:
        return tuple(self._values.values())

    @property
    def gradients(self) -> tuple[Value, ...]:
        return tuple(v for v, _ in self._gradients.values())

    def done(self) -> Held:
        return Held(tuple(self.seen.items()), tuple((v.name, key) for key, v in self._values.items()),
                    tuple((g.name, v.name, how == STORED) for v, (g, how) in self._gradients.items()))


class Held:
    """What a traced program asks of the functions that it was traced from, and what its captured parameters are. gradients: parameters
    that a captured tensor's gradient goes to, that tensor's, and whether it is stored there, each element once, and not added."""

    def __init__(self, seen: tuple[tuple[Key, Any], ...] = (), values: tuple[tuple[str, Key], ...] = (),
                 gradients: tuple[tuple[str, str, bool], ...] = ()):
        self.seen, self.values, self.gradients = seen, values, gradients

    def bind(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameter -> number or tensor, for these compile-time arguments; None where the program is not theirs (a new trace then says
        what is wrong, if something is)."""
        found = Found(given)
        try:
            for key, want in self.seen:
                if not alike(found[key], want):
                    return None
            return {name: found[key] for name, key in self.values}
        except Exception:
            return None

    def told(self, name: str) -> str:
        """For people: what a captured parameter is."""
        key = next(k for n, k in self.values if n == name)
        by = f"what was given as `{root(key)}`" if root(key) else "the spec"
        return f"`{name}` is {spelt(key)}, held by {by}"


# ---- places ----------------------------------------------------------------------------------------------------------


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions inside of it."""
    yield code
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            yield from codes(c)


def refuse_writes(code: types.CodeType) -> None:
    """A function that assigns to variables that are not its own would do so once, while it is traced."""
    for inner in codes(code):
        for i in dis.get_instructions(inner):
            word, what = i.opname.split("_", 1) if "_" in i.opname else ("", "")
            if word in ("STORE", "DELETE") and (what == "GLOBAL" or (what == "DEREF" and i.argval in code.co_freevars)):
                raise FcError("trace/capture", f"a function of a spec assigns to `{i.argval}`, which is not its own",
                              loc=place_in(inner, i.offset), hint="it is called once, while it is traced: return what it computes")


def place_of_name(code: types.CodeType, name: str) -> Loc:
    """Where a function reads a variable for the first time."""
    for inner in codes(code):
        for i in dis.get_instructions(inner):
            if i.opname.startswith("LOAD_") and i.argval == name:
                return place_in(inner, i.offset)
    return Loc(shown(code.co_filename), code.co_firstlineno)


def torch_module(x: Any) -> bool:
    nn = getattr(sys.modules.get("torch"), "nn", None)
    return nn is not None and isinstance(x, nn.Module)
