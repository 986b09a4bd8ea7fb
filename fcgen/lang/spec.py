
from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FunctionType
from typing import Any

from ..errors import FcError, FcWarning, Loc, did_you_mean
from ..ir.core import Block, Kernel, Role, Value
from ..ir.types import DTYPES, Scalar, Tensor, as_dtype
from ..ir.verify import verify
from .annotations import Param, Signature, parameter_loc, read_signature
from .captured import Again, own_arrays, seen_by_trace, with_own_arrays
from .captures import Captures, Held, holds
from .handles import Handle
from .mistakes import told
from .naming import sites
from .owners import shared_stores
from .padding import padded
from .partial import in_parts
from .ranges import Range
from .tensors import TensorParam
from .trace import Trace, mistake, shown, tracing
from .until import until

#: set by the package: what `spec.compile` and a call of a spec do (the language itself knows no compiler)
compile_hook: Callable[..., Any] | None = None
call_hook: Callable[..., Any] | None = None


class Spec:
    """A kernel specification. `trace` gives tile IR; `compile` a program for a target; calling it compiles for its arguments and runs.

    signature: its parameters. Compile-time facts are given by name: dtypes (`T=fc.f16`), sizes (`D=64`), Python values.
    """

    def __init__(self, fn: Callable[..., Any], stop: str | None = None):
        self.fn, self.stop = fn, stop
        code = fn.__code__
        self.loc = Loc(shown(code.co_filename), code.co_firstlineno)
        self.signature: Signature = read_signature(fn, self.loc)
        self.names = [p.name for p in self.signature.params]
        self._statics = {p.name for p in self.signature.params if p.kind == "static"}
        self._held = {p.name: p.default for p in self.signature.params if p.name in self._statics and holds(p.default)}
        functools.update_wrapper(self, fn)

    @property
    def name(self) -> str:
        return self.fn.__name__ if self.stop is None else f"{self.fn.__name__}_until_{self.stop}"

    def __repr__(self) -> str:
        return f"<fcgen spec {self.name}({', '.join(p.name for p in self.signature.params)})>"

    def until(self, name: str) -> Spec:
        """The same spec, stopped at the value called `name`: its kernel writes that value to an extra output `UNTIL` instead of the
        spec's own outputs."""
        return Spec(self.fn, name)

    def compile(self, *, target: str | None = None, schedule: Any = None, check: bool = True, **binding: Any) -> Any:
        """A `Program` for a target (the GPU's own if None). check: its first compilation also runs it in the simulator."""
        assert compile_hook is not None, "import fcgen"
        return compile_hook(self, target, schedule, check, binding)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert call_hook is not None, "import fcgen"
        return call_hook(self, args, kwargs)

    def trace(self, tiles: Mapping[str, int], **binding: Any) -> Kernel:
        """Tile IR for these BLOCK sizes (there may be more than the spec needs) and compile-time facts."""
        return self._traced(tiles, binding)[0]

    def scheduled(self, tiles: Mapping[str, int], **binding: Any) -> tuple[Kernel, Held]:
        """Tile IR for the tile sizes of a schedule, which names none in vain; and what it asks of the functions in the binding."""
        kernel, t = self._traced(tiles, binding)
        self._check_tiles(t)
        for warning, loc in t.partial():
            warnings.warn_explicit(warning, FcWarning, loc.file, loc.line)
        return kernel, t.captures.done()

    @functools.cached_property
    def _own(self) -> dict[str, Any]:
        return {"": self.fn} if isinstance(self.fn, FunctionType) and own_arrays(self.fn) else {}

    def given(self, binding: Mapping[str, Any]) -> dict[str, Any]:
        """The compile-time parameters that may capture something, with what they are bound to; "" is the spec's function, if it does."""
        return {**self._own, **self._held, **{name: x for name, x in binding.items() if name in self._statics and holds(x)}}

    def _traced(self, tiles: Mapping[str, int], binding: Mapping[str, Any]) -> tuple[Kernel, Trace]:
        self.check_binding(binding)
        fixed: frozenset[Any] = frozenset()
        while True:
            try:
                return self._once(tiles, binding, fixed)
            except Again as again:
                fixed |= {again.what}

    def _once(self, tiles: Mapping[str, int], binding: Mapping[str, Any], fixed: frozenset[Any]) -> tuple[Kernel, Trace]:
        sig, held = self.signature.without(binding), self.given(binding)
        captures = Captures(held, {*sig.dims, *(p.name for p in self.signature.params)}, fixed)
        t = Trace(inspect.unwrap(self.fn).__code__, tiles, captures)
        with tracing(t):
            given = dict.fromkeys((p.name for p in self.signature.params), None)
            for p in sig.params:
                if p.name in held:
                    given[p.name] = seen_by_trace(held[p.name], ("given", p.name), captures, functools.partial(self.where, p.name))
                    continue
                if p.kind == "static":
                    given[p.name] = binding.get(p.name, p.default)
                    continue
                v = Value(self._type(p, binding), p.name)
                t.params.append(v)
                given[p.name] = TensorParam(v, p.dims, p.flags) if p.kind == "tensor" else Handle(v)
            with t.block("kernel"):
                try:
                    (with_own_arrays(self.fn, captures) if "" in held else self.fn)(**given)  # type: ignore[arg-type]
                except FcError as e:
                    t.check_sizes(whole=False)
                    raise e.at(self.loc) from None
                except Exception as e:
                    t.check_sizes(whole=False)
                    mistake = told(e, self.loc)
                    if mistake is None:
                        raise
                    raise mistake from e
                t.check_loops()
                t.check_sizes()
                t.check_used()
                self._sweep_last(t)
                body = Block(tuple(t.ids), tuple(t.scope.builder.ops))
        self._check_outputs(t, sig, body)
        t.partial = lambda: (*in_parts(body, t.folded), *padded(body, t.labels, t.folded, t.runs))
        for n, i in enumerate(t.ids):
            t.names.setdefault(i, f"i{n}")
        named = t.named(sites(body, t.told))
        grid = tuple(replace(g, name=v.name) for g, v in zip(t.grid, named.args))
        flags = {p.name: ("out", "kept") if "inout" in p.flags else p.flags for p in sig.params if p.flags}
        flags |= dict.fromkeys(t.positive, ("positive",)) | dict.fromkeys([g.name for g in captures.gradients], ("out", "kept"))
        kernel = Kernel(self.fn.__name__, "tile", (*t.params, *captures.params, *captures.gradients), grid, (Role("all", 0, named),), flags)
        kernel = until(kernel, self.stop) if self.stop else kernel
        return verify(kernel), t

    def where(self, parameter: str) -> Loc:
        """Where a parameter stands."""
        return parameter_loc(inspect.unwrap(self.fn), parameter, self.loc)

    # ---- checks ----------------------------------------------------------------------------------------------------

    def check_binding(self, binding: Mapping[str, Any]) -> None:
        sig = self.signature
        known = {*sig.dims, *sig.dtype_names, *(p.name for p in sig.params if p.kind == "static" or p.optional)}
        for name in binding:
            if name not in known:
                raise FcError("trace/static", f"{self.fn.__name__} has no compile-time parameter {name}", expected=", ".join(sorted(known)),
                              got=name, loc=self.loc, hint=did_you_mean(name, [*known, "target", "schedule"]))
        for p in sig.params:
            if p.optional and binding.get(p.name) is not None:
                raise FcError("trace/static", f"{p.name} is given when the kernel is called; when it is compiled it can only be left out",
                              expected=f"{p.name}=None, or nothing", got=repr(binding[p.name])[:80], loc=self.where(p.name))
        for name in sig.without(binding).dtype_names:
            if name not in binding:
                raise FcError("trace/static", f"the dtype {name} is not bound", loc=self.loc, hint=f"compile(..., {name}=fc.f16)")
        for name in sig.dims:
            if name in binding and (isinstance(binding[name], bool) or not isinstance(binding[name], int) or binding[name] < 1):
                raise FcError("trace/static", f"the size {name} must be a positive whole number", got=repr(binding[name]), loc=self.loc)
        for p in sig.params:
            if p.kind == "static" and p.name not in binding and p.default is inspect.Parameter.empty:
                raise FcError("trace/static", f"the compile-time parameter {p.name} is not given", loc=self.loc,
                              hint=f"compile(..., {p.name}=...)")

    def _type(self, p: Param, binding: Mapping[str, Any]) -> Any:
        dtype = DTYPES[p.dtype] if p.dtype in DTYPES else as_dtype(binding[p.dtype], p.dtype)
        if p.kind == "scalar":
            return Scalar(dtype)
        return Tensor(dtype, tuple(binding.get(d, d) if isinstance(d, str) else d for d in p.dims))

    def _sweep_last(self, t: Trace) -> None:
        """Names that locals got after the last op are still in the frame that just returned."""
        t.sweep_names()
        for frame in t.frames:
            for name, x in list(frame.f_locals.items()):
                if isinstance(x, Range) and x._tile in t.ids:
                    t.names.setdefault(x._start, f"{name}_start")
                    t.names.setdefault(x._tile, f"{name}_tile")

    def _check_tiles(self, t: Trace) -> None:
        unused = sorted(set(t.tiles) - t.used_tiles)
        if unused:
            raise FcError("compile/schedule", f"Schedule.tiles names {', '.join(unused)}, and {self.name} cuts nothing into such tiles",
                          expected=", ".join(sorted(t.used_tiles)) or "no tiles", got=", ".join(unused), loc=self.loc,
                          hint="the names are those that fc.tile is given")

    def _check_outputs(self, t: Trace, sig: Signature, body: Block) -> None:
        if not t.grid:
            raise FcError("trace/usage", f"{self.fn.__name__} does not call fc.grid", loc=self.loc,
                          hint='b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))')
        for p in sig.tensors:
            if "out" in p.flags and p.name not in t.stored:
                raise FcError("trace/store", f"the output {p.name} is never stored", loc=self.where(p.name),
                              hint=f"fc.store({p.name}[...], tile)")
        for op, missing in shared_stores(body):
            for g, i in zip(t.grid, t.ids):
                if i in missing and not (isinstance(g.dim, int) and g.dim <= g.tile):
                    axis = t.names.get(i) or (f"the tiles of {g.dim}" if g.tile > 1 else str(g.dim))
                    raise FcError("trace/store", f"every program along {axis} writes the same part of {op.operands[0].name}",
                                  expected="a place that depends on each axis of the grid", loc=op.loc,
                                  hint="index the output by every grid axis, or add with fc.atomic_add")


def kernel(fn: Callable[..., Any]) -> Spec:
    """Decorator: make a spec of a function over tiles. Parameters are annotated as `annotations` says."""
    if not inspect.isfunction(fn):
        raise mistake("trace/usage", "@fc.kernel decorates a function", got=repr(fn))
    return Spec(fn)
