"""Grid, loops, conditions and vars: everything of a spec that is more than arithmetic."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import Loc
from ..ir.core import GridAxis, Op, Value
from ..ir.types import Scalar, i1, i32
from .arith import as_operand, binary, constant, is_number
from .axes import Axis, Range, Size, Tiling, show
from .handles import Expr, Operators, RunSize, as_expr
from .trace import Scope, Tracer, current

# ---- ranges ----------------------------------------------------------------------------------------------------------


def tile(size: Any, block: str | int) -> Tiling:
    """A dimension cut into runs of a block size: a name that the schedule gives a size to, or a number."""
    t = current("fc.tile")
    if isinstance(block, str):
        if block not in t.tiles:
            raise t.error("trace/static", f"tile size {block} was not given", expected=f"a size for {block}",
                          got=", ".join(f"{k}={v}" for k, v in t.tiles.items()) or "no tile sizes",
                          hint=f"name it in the schedule's field `tiles`: tiles={{\"{block}\": 64}}")
        label, n = block, t.tiles[block]
        t.blocks[block] = n
    else:
        label, n = "tile", block
    if not isinstance(n, numbers.Integral) or isinstance(n, bool) or n < 1:
        raise t.error("trace/static", "a tile size is a whole number above 0", got=repr(n))
    if isinstance(size, Size):
        return Tiling(size, int(size), int(n), label)
    if isinstance(size, RunSize):
        return Tiling(size, size.name, int(n), label)
    if isinstance(size, int) and not isinstance(size, bool):
        return Tiling(size, size, int(n), label)
    return Tiling(as_expr(size), None, int(n), label)


def span(start: Any, size: int, limit: Any) -> Range:
    """`size` positions from `start` on, along a dimension of size `limit` (such as K.N)."""
    t = current("fc.span")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise t.error("trace/static", "fc.span: the length is a compile-time number", expected="an int", got=repr(size))
    return Range(t, Axis(int(size), "span"), scalar_i32(t, start, "fc.span"), limit)


def same(r: Range) -> Range:
    """The same positions as another axis, for a tile that has them along both (rows against rows)."""
    t = current("fc.same")
    if not isinstance(r, Range):
        raise t.error("trace/usage", "fc.same takes a range", got=repr(r)[:60])
    return Range(t, Axis(r.size, r.axis.name), r.start, r.limit)


def scalar_i32(t: Tracer, x: Any, what: str) -> Expr:
    e = constant(t, x, i32, what) if is_number(x) else as_expr(x)
    if e.value.type != Scalar(i32):
        raise t.error("trace/dtype", f"{what} takes an i32 scalar", expected="i32 scalar", got=e)
    return e


# ---- grid ------------------------------------------------------------------------------------------------------------


def grid(*axes: Any) -> tuple[Any, ...]:
    """The programs of a kernel: one per combination. A size gives a scalar index, fc.tile(...) a range. Once, before anything else."""
    t = current("fc.grid")
    if t.grid is not None:
        raise t.error("trace/usage", "fc.grid was called twice", hint="a kernel has one grid; give it all axes at once")
    if len(t.scopes) > 1 or t.scope.builder.ops:
        raise t.error("trace/usage", "fc.grid comes first in a spec, before any operation")
    if not axes:
        raise t.error("trace/usage", "fc.grid needs at least one axis", expected="sizes and fc.tile(...)")
    out: list[Any] = []
    made: list[GridAxis] = []
    args = tuple(Value(Scalar(i32), "") for _ in axes)
    t.scope.args = args
    t.grid = ()
    for i, (a, arg) in enumerate(zip(axes, args)):
        dim = a.dim if isinstance(a, Tiling) else a.name if isinstance(a, RunSize) else int(a) if isinstance(a, numbers.Integral) else None
        if dim is None or isinstance(a, bool):
            raise t.error("trace/usage", "a grid axis is a tensor's dimension or a number, or fc.tile of one", expected="Q.B, 8 or fc.tile(Q.M, ...)",
                          got=a.describe() if isinstance(a, Operators) else "fc.tile of a computed size" if isinstance(a, Tiling) else repr(a)[:60],
                          hint="give the tensor a dimension of that size")
        t.depends[arg] = frozenset((i,))
        made.append(GridAxis("", dim, a.block if isinstance(a, Tiling) else 1))
        index = t.wrap(arg)
        if isinstance(a, Tiling):
            start = t.wrap(t.emit("mul", arg, t.const(a.block, i32)))
            out.append(Range(t, Axis(a.block, a.label), start, a.size, arg))
        else:
            out.append(index)
    t.grid, t.grid_args, t.grid_handles = tuple(made), args, tuple(out)
    return t.grid_handles


# ---- vars ------------------------------------------------------------------------------------------------------------


class Var(Operators):
    """A name for a value that changes: `v <<= new` assigns, reading takes the current value."""

    def __init__(self, tracer: Tracer, loc: Loc):
        self.tracer, self.loc = tracer, loc
        self.name = ""
        self.expr: Expr | None = None
        self.lost: str | None = None  # why it has no value
        tracer.vars.append(self)

    def get(self) -> Expr:
        """The current value (a handle that later assignments do not change)."""
        t = current("a var")
        if self.tracer is not t:
            raise t.error("trace/unset", "this var belongs to another trace", hint="make it inside the spec")
        t.sweep()
        if self.expr is None or self.expr.scope.closed:
            why = self.lost or (f"its value was made inside {self.expr.scope.what}" if self.expr is not None else "nothing was assigned to it")
            raise t.error("trace/unset", f"var {f'`{self.name}` ' if self.name else ''}is read before it is set: {why}",
                          notes=[f"the var was made at {self.loc}"], hint="give it a value where it is made: fc.var(init)")
        if t.var_reads is not None:
            t.var_reads.add(self)
        return self.expr

    def set(self, value: Any) -> None:
        """Same as `v <<= value`."""
        t = current("`<<=`")
        if self.tracer is not t:
            raise t.error("trace/unset", "this var belongs to another trace", hint="make it inside the spec")
        t.sweep()
        old = self.expr if self.expr is not None and not self.expr.scope.closed else None
        new = as_operand(t, value, old.dtype if old is not None and is_number(value) else None)
        if old is not None and (new.dtype != old.dtype or new.axes != old.axes):
            name = f"`{self.name}`" if self.name else "the var"
            shape = new.axes != old.axes
            raise t.error("trace/shape" if shape else "trace/dtype", f"{name} keeps its type: the new value differs", expected=old, got=new,
                          notes=[f"the var was made at {self.loc}"],
                          hint=f"spread it: fc.zeros(...) + x, or make the var with axes {show(new.axes)}" if shape else f"convert it: x.to(fc.{old.dtype})")
        self.expr = Expr(t, new.value, new.axes)
        t.var_values.setdefault(new.value, self)

    def __ilshift__(self, value: Any) -> Var:
        self.set(value)
        return self

    def take_name(self, name: str) -> None:
        self.name = self.name or name

    def describe(self) -> str:
        return f"var {self.name}: {self.expr.describe()}" if self.expr is not None else f"var {self.name} without a value"

    def __repr__(self) -> str:
        return f"<fcgen {self.describe()}>"


def var(init: Any = None) -> Var:
    """A var with a first value, or without one until the first assignment."""
    t = current("fc.var")
    out = Var(t, t.here())
    if init is not None:
        out.set(init)
    return out


class _Saved:
    """The vars with a value when a region opens."""

    def __init__(self, t: Tracer):
        self.t = t
        self.old = {v: v.expr for v in t.vars if v.expr is not None and not v.expr.scope.closed}

    def changed(self) -> list[Var]:
        return [v for v, old in self.old.items() if v.expr is not old]

    def forget_new(self, scope: Scope) -> None:
        for v in self.t.vars:
            if v not in self.old and v.expr is not None and v.expr.scope is scope:
                v.expr, v.lost = None, f"it was set only inside {scope.what}"


# ---- loops -----------------------------------------------------------------------------------------------------------


def loop(over: Any, start: Any = None, stop: Any = None, *, descending: bool = False, live: Callable[[Any], Any] | None = None) -> Iterator[Any]:
    """Walk over tiles (a range each) or over a count (a scalar each); the body is traced once. Vars assigned in it are carried.

    start, stop: first and past-the-last tile. live(x): a condition; tiles where it is false everywhere may be left out."""
    return _Loop(current("fc.loop"), over, start, stop, descending, live)


class _Loop:
    def __init__(self, t: Tracer, over: Any, start: Any, stop: Any, descending: bool, live: Any):
        if t.grid is None:
            raise t.error("trace/usage", "fc.grid comes first in a spec", hint="declare the programs: b, h, rows = fc.grid(...)")
        if isinstance(over, Range):
            raise t.error("trace/usage", "fc.loop walks over tiles; a range is one tile", hint="fc.loop(fc.tile(size, \"BLOCK\"))")
        self.t, self.over, self.descending, self.live = t, over, bool(descending), live
        self.loc = t.here()
        self.lo = scalar_i32(t, 0 if start is None else start, "fc.loop: start")
        self.hi = scalar_i32(t, stop, "fc.loop: stop") if stop is not None else self._count()
        self.state = "new"

    def _count(self) -> Expr:
        t, over = self.t, self.over
        if not isinstance(over, Tiling):
            return scalar_i32(t, over, "fc.loop: the count")
        if isinstance(over.dim, int):
            return constant(t, -(-over.dim // over.block), i32)
        return binary("floordiv", binary("add", over.size, over.block - 1), over.block)

    def __iter__(self) -> _Loop:
        if self.state != "new":
            raise self.t.error("trace/usage", "a loop is run through once")
        return self

    def __next__(self) -> Any:
        if self.state == "new":
            self.state = "open"
            return self._open()
        if self.state == "open":
            self.state = "done"
            self._close()
        raise StopIteration

    def _handle(self, arg: Value) -> Any:
        t, over = self.t, self.over
        index = t.wrap(arg)
        if not isinstance(over, Tiling):
            return index
        start = t.wrap(t.emit("mul", arg, t.const(over.block, i32), loc=self.loc))
        return Range(t, Axis(over.block, over.label), start, over.size, arg)

    def _open(self) -> Any:
        t = self.t
        lo, hi = as_expr(self.lo), as_expr(self.hi)
        self.bounds = (lo.value, hi.value)
        self.regions: tuple[Any, ...] = ()
        self.live_reads: set[Any] = set()
        if self.live is not None:
            self.regions = (self._trace_live(),)
        self.saved = _Saved(t)
        self.arg = Value(Scalar(i32), "i")
        self.carried: dict[Var, Value] = {v: Value(e.value.type, "") for v, e in self.saved.old.items() if e is not None}
        self.scope = Scope(f"the loop at {self.loc.short}", self.loc, (self.arg,))
        t.open(self.scope)
        t.depends[self.arg] = t.union(self.bounds)
        for v, arg in self.carried.items():
            old = self.saved.old[v]
            assert old is not None
            t.depends[arg] = t.union((old.value,))
            t.var_values[arg] = v
            v.expr = Expr(t, arg, old.axes)
        self.entry = {v: v.expr for v in self.carried}
        return self._handle(self.arg)

    def _trace_live(self) -> Any:
        t = self.t
        arg = Value(Scalar(i32), "i")
        scope = Scope(f"`live` of the loop at {self.loc.short}", self.loc, (arg,))
        t.open(scope)
        before, t.var_reads = t.var_reads, set()
        saved = _Saved(t)
        cond = self.live(self._handle(arg))
        cond = constant(t, cond, i1) if isinstance(cond, bool) else as_expr(cond)
        if cond.dtype != i1:
            raise t.error("trace/dtype", "live= returns a condition", expected="i1 tile", got=cond)
        if saved.changed():
            raise t.error("trace/usage", "live= assigns to a var: it only says which tiles matter")
        t.do("yield", cond.value)
        self.live_reads, t.var_reads = t.var_reads, before
        if before is not None:
            before |= self.live_reads
        t.close(scope)
        return scope.builder.block((arg,))

    def _close(self) -> None:
        t, scope = self.t, self.scope
        if t.scope is not scope:
            raise t.error("trace/usage", f"{t.scope.what} was left early", loc=t.scope.loc,
                          hint="no `break` or `return` leaves a traced loop: say where it ends with stop=, or mask with fc.where")
        changed = [v for v in self.carried if v.expr is not self.entry[v]]
        for v in changed:
            if v in self.live_reads:
                raise t.error("trace/usage", f"live= reads var `{v.name}`, which the loop changes", loc=self.loc,
                              hint="what decides which tiles matter must be known before the loop")
        t.do("yield", *(v.get().value for v in changed))
        t.close(scope)
        self.saved.forget_new(scope)
        inits, args, results = [], [], []
        for v, arg in self.carried.items():
            old, new = self.saved.old[v], v.expr
            assert old is not None and new is not None
            if new is self.entry[v]:
                t.alias[arg] = old.value
                v.expr = old
                continue
            result = Value(old.value.type, "")
            t.depends[result] = t.union((old.value, new.value, *self.bounds))
            t.var_values[result] = v
            v.expr = Expr(t, result, old.axes)
            inits.append(old.value)
            args.append(arg)
            results.append(result)
        attrs: dict[str, Any] = {}
        if self.descending:
            attrs["descending"] = True
        if isinstance(self.over, Tiling):
            attrs |= {"label": self.over.label, "tile": self.over.block}
        body = scope.builder.block((self.arg, *args))
        t.add(Op("for", (*self.bounds, *inits), tuple(results), attrs, (body, *self.regions), self.loc))


# ---- conditions ------------------------------------------------------------------------------------------------------


class when:
    """`with fc.when(c):` the block's stores and assignments happen only if the scalar condition holds."""

    def __init__(self, condition: Any):
        t = self.t = current("fc.when")
        if isinstance(condition, bool):
            raise t.error("trace/usage", "fc.when takes a traced condition; this one is known while tracing", got=condition,
                          hint="use Python's `if`")
        c = as_expr(condition)
        if c.value.type != Scalar(i1):
            raise t.error("trace/shape" if c.axes else "trace/dtype", "fc.when takes one condition for the whole program", expected="i1 scalar",
                          got=c, hint="element by element: fc.where(c, a, b)")
        self.condition, self.loc = c.value, t.here()

    def __enter__(self) -> None:
        t = self.t
        self.saved = _Saved(t)
        self.scope = Scope(f"fc.when at {self.loc.short}", self.loc, (), t.union((self.condition,)))
        t.open(self.scope)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            return
        t, scope = self.t, self.scope
        if t.scope is not scope:
            t.close(scope)
        changed = self.saved.changed()
        t.do("yield", *(v.get().value for v in changed))
        t.close(scope)
        self.saved.forget_new(scope)
        other = Scope("", None)
        results = []
        for v in changed:
            old, new = self.saved.old[v], v.expr
            assert old is not None and new is not None
            result = Value(old.value.type, "")
            t.depends[result] = t.union((old.value, new.value, self.condition))
            t.var_values[result] = v
            v.expr = Expr(t, result, old.axes)
            results.append(result)
        other.builder.do("yield", *(self.saved.old[v].value for v in changed))  # type: ignore[union-attr]
        t.add(Op("if", (self.condition,), tuple(results), {}, (scope.builder.block(), other.builder.block()), self.loc))
