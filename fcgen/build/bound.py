"""What a traced program asks of the functions that it was traced from (`lang.captures.Held`), written out as a function of Python.

Guaranteed: it gives the values that `Held` says captured parameters have, for functions of which every fact holds that the trace followed
from, and None for others, and where reading one raises anything: whoever asked goes the long way then, which reads it again and tells its
error. A value that several facts are about is read once. A tenth of what walking the keys costs.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..lang.captures import _COMPUTE, Held, Key, Same, alike, kind_of
from ..runtime.tensors import TORCH_NAMES
from ..straight import Script

_INFIX = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "lt": "<", "le": "<=", "gt": ">",
          "ge": ">=", "eq": "==", "ne": "!="}


class _Bound:
    def __init__(self, held: Held, given: Sequence[str]):
        self.script = Script()
        self._places: dict[Key, str] = {("given", name): f"given_{n}" for n, name in enumerate(given)}
        self._fn = self.script.known(types.FunctionType, "function")
        self.script.line("try:", "    pass")
        for key, want in held.seen:
            self._refuse_unless(self._kind(key[1], want) if key[0] == "kind" else self._is(self._value(key), want))
        values = [self._value(key) for _, key in held.values]
        self.script.line(f"    return ({''.join(v + ', ' for v in values)})", "except Exception:",
                         "    return None  # the trace that follows reads it too, and says what is wrong with it")

    def _refuse_unless(self, condition: str) -> None:
        self.script.line(f"    if not ({condition}): return None")

    def _value(self, key: Key) -> str:
        """The name of what stands at a key; read when it is met first."""
        if key not in self._places:
            text = self._read(key)
            self._places[key] = text if text.isidentifier() else f"v{len(self._places)}"
            if not text.isidentifier():
                self.script.line(f"    {self._places[key]} = {text}")
        return self._places[key]

    def _read(self, key: Key) -> str:
        word, *rest = key
        if word == "given":
            return "missing"  # ends in None
        if word == "value":
            return self._value(rest[0])
        if word in ("int", "float"):
            return self.script.known(float.fromhex(rest[0]) if word == "float" else rest[0], "n")
        if word in _INFIX:
            return f"{self._value(rest[0])} {_INFIX[word]} {self._value(rest[1])}"
        if word in _COMPUTE:
            return f"{self.script.known(_COMPUTE[word], word)}({', '.join(map(self._value, rest))})"
        of, what = self._value(rest[0]), rest[1]
        if word in ("attr", "class"):
            of = of if word == "attr" else f"type({of})"
            return f"{of}.{what}" if str(what).isidentifier() else f"getattr({of}, {what!r})"
        named = repr(what) if type(what) in (int, str) else self.script.known(what, "item")
        return {"cell": f"{of}.__closure__[{named}].cell_contents", "default": f"{of}.__defaults__[{named}]",
                "kwdefault": f"{of}.__kwdefaults__[{named}]", "global": f"{of}.__globals__[{named}]", "item": f"{of}[{named}]"}[word]

    def _is(self, x: str, want: Any) -> str:
        """Is a value what it was?"""
        if want is None or type(want) is bool:
            return f"{x} is {want}"
        if type(want) in (int, str, bytes):
            return f"type({x}) is {self.script.known(type(want), 'type')} and {x} == {self.script.known(want, 'want')}"
        return f"{self.script.known(alike, 'alike')}({x}, {self.script.known(want, 'want')})"

    def _kind(self, key: Key, want: tuple[Any, ...]) -> str:
        """Is what stands at a key of this kind? As `kind_of` says; told shorter where one look at its class is enough."""
        x, (word, *rest) = self._value(key), want
        of_type = lambda t: f"type({x}) is {self.script.known(t, 'type')}"
        long = f"{self.script.known(alike, 'alike')}({self.script.known(kind_of, 'kind_of')}({x}), {self.script.known(want, 'want')})"
        if word == "number":
            return of_type(rest[0])
        if word == "constant":
            if rest[1] is None or rest[0] in (bool, str, bytes):
                return self._is(x, rest[1])
            return f"{x} is {self.script.known(rest[1])} or {long}"
        if word == "function":
            return f"type({x}) is {self._fn} and {x}.__code__ is {self.script.known(rest[0], 'code')}"
        if word == "itself" and isinstance(rest[0], Same):
            return f"{x} is {self.script.known(rest[0].of, 'same')}"
        if word == "sequence":
            return f"{of_type(rest[0])} and len({x}) == {rest[1]}"
        if word == "plain" and issubclass(rest[0], np.generic):
            return of_type(rest[0])
        if word == "object" and rest[0] is not types.ModuleType and not issubclass(rest[0], type):
            return f"{of_type(rest[0])} and not hasattr({x}, 'shape') or {long}"
        if word == "tensor":
            torch = sys.modules.get("torch")
            dtype = getattr(torch, TORCH_NAMES.get(rest[0], ""), None)
            if torch is not None and dtype is not None:
                return f"{of_type(torch.Tensor)} and {x}.dtype is {self.script.known(dtype, 'dtype')} and {x}.dim() == {rest[1]} or {long}"
        return long


def written_out(held: Held, given: Sequence[str]) -> Callable[..., tuple[Any, ...] | None]:
    """A function of the compile-time arguments of these names: the values of the captured parameters, in the order of `held.values`, or
    None where the program is not theirs."""
    return _Bound(held, given).script.function([f"given_{n}" for n in range(len(given))], "None")
