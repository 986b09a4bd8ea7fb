"""`@fc.kernel`: a Python function over tiles, and its trace to a tile kernel."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import FcError
from ..ir.core import Kernel, Role, Value
from ..ir.ops import verify
from ..ir.types import Scalar, Tensor
from .annotations import Param, Signature, def_loc, read_signature
from .handles import TensorHandle
from .names import Finisher
from .trace import Tracer, tracing
from .until import until


class Spec:
    """A kernel in the DSL. `trace` makes tile IR; nothing runs before.

    name: the function's. signature: its parameters, dimensions, free dtype names, and the block names met in traces so far.
    """

    def __init__(self, fn: Callable[..., Any]):
        if not hasattr(fn, "__code__"):
            raise FcError("trace/usage", "@fc.kernel decorates a Python function", got=repr(fn))
        functools.update_wrapper(self, fn)
        self.fn, self.name = fn, fn.__name__
        self.loc = def_loc(fn)
        self.signature: Signature = read_signature(fn)
        self._until: str | None = None

    def __repr__(self) -> str:
        return f"<fcgen spec {self.name}{f' until {self._until}' if self._until else ''} at {self.loc.short}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise FcError("trace/usage", f"{self.name} is a kernel spec and is not called as a function", loc=self.loc,
                      hint=f"compile it first: {self.name}.compile(T=fc.f16, ...)")

    def until(self, name: str) -> Any:
        """The same spec, stopped at a named value: it stores that value to one more parameter, UNTIL, and nothing else."""
        out = copy.copy(self)
        out._until = name
        return out

    def annotated(self, **annotations: str) -> Any:
        """The same spec with other annotations for some parameters."""
        out = copy.copy(self)
        out.signature = read_signature(self.fn, annotations)
        return out

    def trace(self, tiles: Mapping[str, int] | None = None, **binding: Any) -> Kernel:
        """The tile kernel for these tile sizes, dtypes (T=fc.f16), dimension sizes (D=64) and compile-time values.

        Dimensions that are not bound are run-time sizes. Raises FcError "trace/..." with the line of the spec."""
        sig = self.signature
        self._check_names(binding)
        sizes = {d: self._size(d, binding[d]) for d in sig.dims if d in binding}
        statics = {p.name: self._static(p, binding) for p in sig.statics}
        t = Tracer(self.name, self.fn.__code__, dict(tiles) if type(tiles) is dict else (tiles or {}), sizes, self.loc)
        params: list[Value] = []
        flags: dict[str, tuple[str, ...]] = {}
        handles: dict[str, Any] = {}
        with tracing(t):
            for p in sig.params:
                if p.kind == "static":
                    handles[p.name] = statics[p.name]
                    continue
                if p.condition is not None and not statics[p.condition]:
                    handles[p.name] = None
                    continue
                dtype = sig.dtype(p, binding)
                words = (("out",) if p.role == "out" else ("out", "inout") if p.written else ()) + (("positive",) if p.positive else ())
                if words:
                    flags[p.name] = words
                if p.kind == "scalar":
                    v = Value(Scalar(dtype), p.name)
                    handles[p.name] = t.wrap(v)
                    t.names[v] = p.name
                else:
                    v = Value(Tensor(dtype, tuple(sizes.get(d, d) if isinstance(d, str) else d for d in p.dims)), p.name)
                    handles[p.name] = TensorHandle(t, v, p.dims, p.role)
                params.append(v)
            self.fn(**handles)
            kernel = self._finish(t, tuple(params), flags, [p for p in sig.params if handles[p.name] is not None])
        if t.blocks:
            self.signature = replace(sig, blocks=tuple(dict.fromkeys((*self.signature.blocks, *t.blocks))))
        return kernel if self._until is None else until(kernel, self._until)

    def block_names(self, **binding: Any) -> tuple[str, ...]:
        """The tile names that the spec asks a schedule for."""
        self.trace(_AnySize(), **binding)
        return self.signature.blocks

    def _finish(self, t: Tracer, params: tuple[Value, ...], flags: dict[str, tuple[str, ...]], given: list[Param]) -> Kernel:
        if len(t.scopes) > 1:
            raise FcError("trace/usage", f"{t.scope.what} was left early", loc=t.scope.loc,
                          hint="no `break` or `return` leaves a traced loop: say where it ends with stop=, or mask with fc.where")
        if t.grid is None:
            raise FcError("trace/usage", f"{self.name} never called fc.grid, so it has no programs", loc=self.loc,
                          hint="start with: b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, \"BLOCK_M\"))")
        for p in given:
            if p.role == "out" and p.name not in t.written:
                raise FcError("trace/usage", f"`{p.name}` is marked `out` and is never stored to", loc=p.loc,
                              hint=f"store to it, or drop it; an output that a flag switches off is `\"out ... if flag\"`")
        t.sweep()
        body = t.scope.builder.block(t.grid_args)
        finisher = Finisher(t, body)
        block = finisher.block(body)
        role = Role("all", 0, block)
        return verify(Kernel(self.name, "tile", params, finisher.grid(t.grid_args), (role,), flags))

    def _check_names(self, binding: Mapping[str, Any]) -> None:
        sig = self.signature
        known = (*sig.free, *sig.dims, *(p.name for p in sig.statics))
        for name in binding:
            if name in known:
                continue
            run_time = any(p.name == name for p in sig.params)
            raise FcError("trace/usage", f"{self.name} has no compile-time parameter `{name}`", expected=", ".join(known) or "none",
                          got=name, loc=self.loc, hint="it is given when the kernel is called" if run_time else None)

    def _size(self, dim: str, n: Any) -> int:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise FcError("trace/static", f"dimension {dim} of {self.name} is bound to a size", expected="a whole number above 0",
                          got=repr(n), loc=self.loc)
        return int(n)

    def _static(self, p: Param, binding: Mapping[str, Any]) -> Any:
        if p.name in binding:
            return binding[p.name]
        if p.default is inspect.Parameter.empty:
            raise FcError("trace/static", f"compile-time parameter `{p.name}` of {self.name} was not given", loc=p.loc,
                          hint=f"compile with {p.name}=..., or give it a default; a run-time number is annotated, for example \"f32\"")
        return p.default


class _AnySize(dict):
    """Tile sizes for a trace whose sizes do not matter."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 16


def kernel(fn: Callable[..., Any]) -> Spec:
    """Decorator: this function is a kernel spec."""
    return Spec(fn)


