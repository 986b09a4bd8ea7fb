"""Python's own complaints about what a spec holds, told as mistakes of the spec: with the user's line, and what to write instead.

Python refuses by itself what the DSL's objects do not define (`x[0] = 1`, `len(x)`, a missing argument). `told` says what such an exception
means; exceptions of the user's own code it leaves alone. `Traced` refuses what Python would accept and get wrong, and NumPy's functions.
"""

from __future__ import annotations

import re
import sysconfig
from inspect import isfunction, signature
from types import FrameType, TracebackType
from typing import Any, ClassVar, TypeVar

from ..errors import FcError, Loc, closest, did_you_mean
from ..ir.elementwise import MIRROR
from ..ir.types import DType, as_dtype
from .trace import HERE, here, mistake, place_of

C = TypeVar("C", bound=type)

#: how arrays come into a spec
HOLD = "an array is a parameter, or given when the spec is compiled, by itself or held by a function: compile(bias=bias), compile(f=f)"

#: the functions of the DSL, by the names that a spec calls them by (the package fills it)
VOCABULARY: dict[str, Any] = {}
#: operators of NumPy's scalars and arrays -> ops of the elementwise table
OPERATORS = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv", "true_divide": "truediv", "floor_divide": "floordiv",
             "remainder": "mod", "power": "pow", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq",
             "not_equal": "ne", "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}
#: what other libraries call it -> what a spec writes
ELSEWHERE = {"amax": "fc.max", "amin": "fc.min", "clip": "fc.minimum(fc.maximum(x, low), high)", "matmul": "fc.dot", "mm": "fc.dot",
             "bmm": "fc.dot", "mean": "fc.sum(x, axis=1) / X.D.to(fc.f32)", "relu": "fc.maximum(x, 0.0)",
             "absolute": "fc.abs", "power": "x ** n",
             "softmax": "e = fc.exp(x - fc.max(x, axis=1)); e / fc.sum(e, axis=1), or fc.online_softmax tile by tile",
             "astype": "x.to(fc.f32)", "type": "x.to(fc.f32)",
             "float": "x.to(fc.f32)", "half": "x.to(fc.f16)", "bfloat16": "x.to(fc.bf16)", "int": "x.to(fc.i32)", "long": "x.to(fc.i64)",
             "char": "x.to(fc.i8)", "byte": "x.to(fc.u8)", "umulhi": "fc.mulhi(a, b)", "left_shift": "a << n", "right_shift": "a >> n",
             "transpose": "x.T", "t": "x.T", "mT": "x.T", "permute": "x.T", "pow": "x ** n", "zeros_like": "fc.zeros(rows)",
             "ones": "fc.full(rows, 1.0)", "arange": "rows.index", "iota": "rows.index", "program_id": "fc.grid", "range": "fc.loop",
             "set": "v <<= value", "item": "fc.sum(x, axis=None), which makes a number of a tile", "log1p": "fc.log(1.0 + x)",
             "expm1": "fc.exp(x) - 1.0", "square": "x * x", "reciprocal": "1.0 / x", "logical_and": "a & b", "logical_or": "a | b",
             "logical_not": "~a", "isnan": "x != x", "fmax": "fc.maximum", "fmin": "fc.minimum"}
_RESHAPED = ("reshape", "view", "unsqueeze", "squeeze", "expand", "broadcast_to", "expand_dims", "newaxis", "repeat")
_AXES = "axes meet by the range or dimension that they run over: nothing is reshaped, [rows, cols] - [rows] works as it is"

#: a part of Python's message -> what to write instead
_HINTS = (
    (r"object has no attribute|no setter|can't set", "attributes are read, not set"),
    (r"'fcgen tensor' object does not support item", "write to an output with fc.store(O[b, rows], x)"),
    (r"item assignment|item deletion", "values do not change: choose with fc.where(cond, a, b), write with fc.store(O[b, rows], x), and "
     "let a variable take a new value with v <<= x"),
    (r"'fcgen (value|variable|size|view)' object is not subscriptable", "a tile is used as a whole; " + _AXES),
    (r"'fcgen range' object is not subscriptable", "the positions of a range are rows.index, the first one is rows.start"),
    (r"for @", "a matrix product is fc.dot(a, b)"),
    (r"has no len", "sizes are x.shape for tiles, X.M for tensors"),
    (r"format string", "no value is known while the spec is traced: f\"{x}\" shows dtype and axes"),
    (r"object is not iterable|argument after \*|must be a mapping",
     "a loop of the program is: for cols in fc.loop(fc.tile(K.N, \"BLOCK_N\"))"),
    (r"context manager|__enter__", "the only blocks are `with fc.when(cond):` and `for cols in fc.loop(...):`"),
    (r"__round__|__trunc__|__floor__|__ceil__", "round with fc.floor(x + 0.5), fc.floor and fc.ceil"),
    (r"divmod", "write a // b and a % b"),
    (r"'DType' object is not callable", "convert with x.to(fc.f32); numbers take the dtype of what they meet"),
    (r"<<=", "only variables are assigned: v = fc.var(init), then v <<= x"),
    (r"not callable", "the functions are fcgen's: fc.exp(x)"),
)
_OURS = re.compile(r"\bfcgen (value|variable|size|view|tensor|range|tiling|loop|branch)\b|'DType'|^(fc|value|variable|range)\.\w+\(\)")
#: whose frames an exception may pass through on its way to the line that a user wrote
_LIBRARIES = tuple(sysconfig.get_paths()[k] for k in ("stdlib", "purelib", "platlib"))


def called(name: str) -> Any:
    """Class decorator: what Python's messages call its objects."""
    def rename(cls: C) -> C:
        cls.__name__ = f"fcgen {name}"
        for word, fn in vars(cls).items():
            if isfunction(fn):
                fn.__qualname__ = f"{name}.{word}"
        return cls

    return rename


def dtype_of(value: Any) -> DType:
    """A dtype that a spec names."""
    try:
        return as_dtype(value, "this")
    except FcError as e:
        raise e.at(here()) from None


def plain(x: Any) -> Any:
    """A scalar of another library (np.int64(3), a tensor without axes) as the Python number that it is; anything else as it is."""
    if isinstance(x, (Traced, int, float)) or not hasattr(x, "item"):
        return x
    return x.item() if getattr(x, "shape", None) == () else x


def refuses(what: str, hint: str, code: str = "trace/usage") -> Any:
    """A method for what Python may ask of an object and a trace cannot answer."""
    def method(self: Any, *_: Any) -> Any:
        raise mistake(code, what, got=repr(self), hint=hint)

    return method


class Traced:
    """What a spec's function holds. NumPy's functions are refused, since they would make arrays of objects; its numbers may stand in
    expressions."""

    __slots__ = ()
    #: what a spec may ask it for
    PUBLIC: ClassVar[tuple[str, ...]] = ()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        word = OPERATORS.get(ufunc.__name__, "")
        if method == "__call__" and word and not kwargs:
            a, b = map(plain, inputs)
            mine, other, word = (a, b, word) if isinstance(a, Traced) else (b, a, MIRROR.get(word, f"r{word}"))
            if hasattr(mine, f"__{word}__"):
                return getattr(mine, f"__{word}__")(other)
        raise _foreign("NumPy", ufunc.__name__)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise _foreign("NumPy", func.__name__)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise _foreign("NumPy", "asarray")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _foreign("torch", getattr(func, "__name__", str(func)))


def _foreign(library: str, name: str) -> FcError:
    hint = HOLD if name in ("asarray", "__getitem__") else instead(name)
    return mistake("trace/usage", f"{library} works on arrays, and a spec's values are known only on the GPU", got=name,
                   hint=hint or "use the functions of fcgen: fc.exp, fc.maximum, fc.sum, fc.where")


def instead(name: str) -> str | None:
    """What a spec writes for a function or method that other libraries have."""
    if name in _RESHAPED:
        return _AXES
    if name in ELSEWHERE:
        return f"write {ELSEWHERE[name]}"
    if name in VOCABULARY:
        return f"write fc.{name}"
    near = closest(name, [*VOCABULARY, *ELSEWHERE])
    return f"did you mean {ELSEWHERE.get(near, f'fc.{near}')}?" if near else None


def told(error: Exception, spec: Loc) -> FcError | None:
    """A Python exception that left a spec, as a mistake of the spec; None where it is the user's own. spec: where that begins."""
    frames: list[tuple[FrameType, int]] = []
    tb: TracebackType | None = error.__traceback__
    while tb is not None:
        frames.append((tb.tb_frame, tb.tb_lasti))
        tb = tb.tb_next
    file = lambda f: f.f_code.co_filename
    loc = next((place_of(f, at) for f, at in reversed(frames) if not file(f).startswith(HERE) and not file(f).startswith(_LIBRARIES)), spec)
    text = str(error)
    if isinstance(error, AttributeError) and isinstance(error.obj, (Traced, DType)) and "for setting" not in text:
        name, own = error.name or "", getattr(error.obj, "PUBLIC", ())
        kind = type(error.obj).__name__.replace("fcgen ", "")
        known = kind in ("value", "variable", "size") and (name in VOCABULARY or name in ELSEWHERE or name in _RESHAPED)
        hint = "load it first: fc.load(X[...])" if kind == "view" else instead(name) if known else did_you_mean(name, own)
        return FcError("trace/usage", f"a {kind} of a spec has no attribute {name}", expected=", ".join(own) or None, got=name, loc=loc,
                       hint=hint)
    if isinstance(error, (TypeError, AttributeError)) and (_OURS.search(text) or text == "__enter__"):  # all that Python 3.10 says
        call = re.match(r"(fc|value|variable|range)\.(\w+)\(\) (.*)", text)
        if call:
            return _bad_call(call[1], call[2], call[3], loc)
        hint = next((h for pattern, h in _HINTS if re.search(pattern, text)), "the functions of a spec are fcgen's: fc.exp, fc.sum")
        return FcError("trace/usage", "Python cannot do this with what a spec holds", got=text, loc=loc, hint=hint)
    if frames and file(frames[-1][0]).startswith(HERE):
        return FcError("trace/usage", "fcgen cannot use this", got=f"{type(error).__name__}: {text}"[:200], loc=loc,
                       hint="check the types of the arguments; if they are right this is a bug of fcgen: please report it")
    return None


def _bad_call(owner: str, name: str, complaint: str, loc: Loc) -> FcError:
    """A function of the DSL called with too few, too many or unknown arguments."""
    fn = VOCABULARY.get(name) if owner == "fc" else None
    parameters = list(signature(fn).parameters.values()) if fn is not None else []
    shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    unknown = re.search(r"keyword argument '(\w+)'", complaint)
    hint = did_you_mean(unknown[1], [p.name for p in parameters]) if unknown else None
    if unknown and unknown[1] in ("dim", "axes") and "axis" in shown:
        hint = "did you mean axis?"
    if unknown and unknown[1] in ("mask", "other"):
        hint = "positions past the tensor's end read as zero and are not written; for other masks use fc.where"
    return FcError("trace/usage", f"{'fc' if owner == 'fc' else 'a ' + owner}.{name} {complaint}".replace(f"a {owner}.", f"{owner}."),
                   expected=f"fc.{name}({shown})" if fn is not None else None, loc=loc, hint=hint)
