"""fcgen: tiled kernels from a small Python DSL, as readable CUDA C++, checked without a GPU.

    import fcgen as fc

    @fc.kernel
    def scale(X: "T[M, D]", Y: "out T[M, D]", *, factor: "f32"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows], (fc.load(X[rows]).to(fc.f32) * factor).to(Y.dtype))

Importing this package loads neither torch nor a driver; what needs them is imported when it is used.
"""

from __future__ import annotations

from inspect import isfunction as _isfunction
from typing import Any

from .errors import FcError, FcWarning, MissingAttribute
from .ir.schedule import Schedule
from .ir.types import bf16, f8e4m3, f8e5m2, f16, f32, f64, i1, i8, i32, i64, u8, u32
from .lang import spec as _spec
from .lang.control import grid, loop, tile, var, when
from .lang.derivative import jvp, vjp
from .lang.functions import (
    abs,
    atomic_add,
    cast,
    ceil,
    cos,
    cumsum,
    dot,
    erf,
    exp,
    exp2,
    floor,
    full,
    gather,
    inf,
    load,
    log,
    log2,
    max,
    maximum,
    min,
    minimum,
    mulhi,
    positive,
    rsqrt,
    sigmoid,
    sin,
    sqrt,
    store,
    sum,
    tanh,
    tanh_approx,
    where,
    zeros,
)
from .lang.gradient import grad
from .lang.mistakes import VOCABULARY as _VOCABULARY
from .lang.mistakes import instead as _instead
from .lang.naming import name
from .lang.online import online_softmax
from .lang.spec import Spec, kernel
from .version import __version__ as __version__


def __getattr__(name: str) -> Any:
    """What brings more of the package along is imported on first use."""
    from importlib import import_module

    lazy = {"attention": ("attend.forward", "attention"), "Program": ("build.program", "Program"), "compile": ("api", "compile"),
            "gpu_available": ("api", "gpu_available"), "gpu_target": ("api", "gpu_target"), "round_to": ("api", "round_to"),
            "program_from_text": ("api", "program_from_text"), "schedule_for": ("api", "schedule_for"),
            "scaled_dot_product_attention": ("torch.sdpa", "scaled_dot_product_attention"),
            "flex_attention": ("torch.flex", "flex_attention"),
            "attention_varlen": ("attend.varlen", "attention_varlen"), "Dropout": ("dropout", "Dropout"),
            "dropout_mask": ("attend.readback", "dropout_mask"),
            "block_lists": ("attend.blocks", "block_lists"),
            "BlockLists": ("attend.blocks", "BlockLists"), "compile_count": ("build.compiler", "compile_count")}
    modules = ("masks", "scores")
    if name.startswith("__"):
        raise AttributeError(f"module 'fcgen' has no attribute {name!r}")
    if name in modules:
        return import_module(f".{name}", __name__)
    if name not in lazy:
        from .errors import did_you_mean
        from .ir.types import dtype_meant
        from .lang.trace import here

        dtype = dtype_meant(name)
        raise MissingAttribute("trace/usage", f"fcgen has no {name}", got=f"fc.{name}", loc=here(),
                               hint=f"did you mean fc.{dtype}?" if dtype else _instead(name) or did_you_mean(name, __all__))
    module, attribute = lazy[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def _compile(spec: Spec, target: str | None, schedule: Schedule | None, check: bool, binding: dict[str, Any]) -> Any:
    from .api import compile

    return compile(spec, target=target, schedule=schedule, check=check, **binding)


def _call(spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from .api import call

    return call(spec, args, kwargs)


for _word, _fn in list(globals().items()):
    if _isfunction(_fn) and _fn.__module__.startswith("fcgen.lang.") and not _word.startswith("_"):
        _fn.__qualname__ = f"fc.{_word}"  # what Python's messages call it
        _VOCABULARY[_word] = _fn

_spec.compile_hook, _spec.call_hook = _compile, _call

__all__ = [
    "BlockLists",
    "Dropout",
    "FcError",
    "FcWarning",
    "Program",
    "Schedule",
    "Spec",
    "abs",
    "atomic_add",
    "attention",
    "attention_varlen",
    "bf16",
    "block_lists",
    "cast",
    "ceil",
    "compile",
    "compile_count",
    "cos",
    "cumsum",
    "dot",
    "dropout_mask",
    "erf",
    "exp",
    "exp2",
    "f8e4m3",
    "f8e5m2",
    "f16",
    "f32",
    "f64",
    "flex_attention",
    "floor",
    "full",
    "gather",
    "gpu_available",
    "gpu_target",
    "grad",
    "grid",
    "i1",
    "i8",
    "i32",
    "i64",
    "inf",
    "jvp",
    "kernel",
    "load",
    "log",
    "log2",
    "loop",
    "masks",
    "max",
    "maximum",
    "min",
    "minimum",
    "mulhi",
    "name",
    "online_softmax",
    "positive",
    "program_from_text",
    "round_to",
    "rsqrt",
    "scaled_dot_product_attention",
    "schedule_for",
    "scores",
    "sigmoid",
    "sin",
    "sqrt",
    "store",
    "sum",
    "tanh",
    "tanh_approx",
    "tile",
    "u8",
    "u32",
    "var",
    "vjp",
    "when",
    "where",
    "zeros",
]
