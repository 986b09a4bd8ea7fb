"""fcgen: tiled kernels from a small Python DSL, as readable CUDA C++, checked without a GPU.

Names are loaded when they are first used: `import fcgen` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: module -> the public names that it provides
_PROVIDES = {
    "fcgen.lang.spec": ("Spec", "kernel"),
    "fcgen.lang.control": ("grid", "loop", "same", "span", "tile", "var", "when"),
    "fcgen.lang.memory": ("atomic_add", "gather", "load", "store"),
    "fcgen.lang.functions": ("abs", "arange", "cast", "ceil", "cos", "dot", "erf", "exp", "exp2", "floor", "full", "inf", "log", "log2",
                             "max", "maximum", "min", "minimum", "rsqrt", "sigmoid", "sin", "sqrt", "sum", "tanh", "transpose", "where",
                             "zeros"),
    "fcgen.ir.types": ("bf16", "f16", "f32", "i32", "i64"),
    "fcgen.ir.schedule": ("Schedule",),
    "fcgen.errors": ("FcError", "Loc"),
}
_HOME = {name: module for module, names in _PROVIDES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module 'fcgen' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
