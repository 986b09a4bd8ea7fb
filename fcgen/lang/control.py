"""Control flow of the DSL: the grid, loops, branches and the variables that they carry."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import FcError, Loc
from ..ir.core import Block, GridAxis, Op, Value
from ..ir.rewrite import Env, substitute_block
from ..ir.types import Scalar, i1, i32
from .arith import lift
from .handles import Handle, NotATile, Var
from .mistakes import called, plain
from .ranges import Range, TiledSize, dim_size, whole_number
from .rebinding import check_branch, check_loop, in_for_statement, snapshot
from .tensors import Dim, RunDim
from .trace import current, here, mistake


def tile(size: Any, block: str) -> TiledSize:
    """A dimension (`Q.M`), or a count that the program computes, cut into blocks whose size the schedule gives under the name `block`."""
    size = _as_value(size)
    if isinstance(size, (Dim, RunDim)):
        return TiledSize(int(size) if isinstance(size, Dim) else size.name, block)
    if _is_count(size):
        return TiledSize(size, block)
    if isinstance(size, Handle) and not size.labels and size.dtype == i32:
        return TiledSize(Handle(size.value), block)
    raise mistake("trace/usage", "fc.tile takes a tensor's dimension", expected='fc.tile(Q.M, "BLOCK_M")', got=repr(size),
                  hint="a count is an i32 scalar" if isinstance(size, Handle) else None)


def _as_value(n: Any) -> Any:
    """A captured number as a scalar of the program, that of another library as Python's; anything else as it is."""
    return n.lifted(None) if hasattr(type(n), "lifted") else plain(n)


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**31


def _grid_size(n: Any) -> str | int:
    """What an axis of the grid runs over: known when the kernel is launched."""
    n = _as_value(n)
    if isinstance(n, RunDim):
        return n.name
    if isinstance(n, Handle):
        t = current()
        name = n.value.name
        dims = {d for p in (*t.params, *t.captures.params) for d in getattr(p.type, "dims", ())}
        if n.value in (*t.params, *t.captures.params) and n.value.type == Scalar(i32) and name not in dims:
            return name
    elif isinstance(n, str) or _is_count(n):
        return n if isinstance(n, str) else int(n)
    raise mistake("trace/usage", "a grid axis is a tensor's dimension, a number, an i32 parameter, or fc.tile(...) of one",
                  got=_computed(n) if isinstance(n, Handle) else repr(n),
                  hint=f"a launch has to know it: {_known_before(n)}" if isinstance(n, Handle) else None)


def _sizes_of(n: Handle) -> list[str]:
    """The dimensions that a scalar is computed from."""
    made = {r: op for op in current().scope.builder.ops for r in op.results}
    dims: dict[str, None] = {}
    todo = [n.value]
    while todo:
        op = made.get(todo.pop())
        if op is not None:
            dims |= {op["dim"]: None} if op.kind == "size" else {}
            todo += op.operands[::-1]
    return list(dims)


def _computed(n: Handle) -> str:
    return f"{n!r} computed from {' and '.join(dims)}" if (dims := _sizes_of(n)) else repr(n)


def _known_before(n: Handle) -> str:
    dims = _sizes_of(n)
    bind = f"bind {' and '.join(dims)}, compile(..., {', '.join(f'{d}=...' for d in dims)}), or " if dims else ""
    return f"{bind}make it a dimension of a tensor, or an i32 parameter"


def grid(*axes: Any) -> tuple[Any, ...]:
    """The program's place in the launch: a scalar per dimension, a `Range` per tiled one. Called once, before anything else."""
    t = current()
    if t.grid:
        raise mistake("trace/usage", "fc.grid is called twice")
    if not axes:
        raise mistake("trace/usage", "fc.grid needs at least one axis")
    sizes = [_grid_size(axis.dim if isinstance(axis, TiledSize) else axis) for axis in axes]
    before = [op for op in t.scope.builder.ops if op.kind != "size"]
    if before:
        first = next((op for op in before if op.kind != "const"), before[0])
        raise mistake("trace/usage", "fc.grid comes first in a spec, before any operation", got=f"{first.kind} at {first.loc}",
                      hint="move that behind it")
    out: list[Any] = []
    for n, (axis, size) in enumerate(zip(axes, sizes)):
        i = Value(Scalar(i32), "")
        t.ids.append(i)
        if isinstance(axis, TiledSize):
            t.grid.append(GridAxis(f"i{n}", size, axis.size))
            start = t.emit("mul", i, t.emit("const", value=axis.size, dtype="i32"))
            out.append(Range(axis.block, axis.size, start, axis.dim, i))
        else:
            t.grid.append(GridAxis(f"i{n}", size))
            out.append(Handle(i))
    return tuple(out)


def var(init: Any = None) -> Var:
    """A variable. `v <<= x` assigns it; without `init` it must be assigned before it is read."""
    return Var(None if init is None else lift(init, None))


def loop(
    over: Any, start: Any = None, stop: Any = None, *, descending: bool = False, live: Callable[[Any], Handle] | None = None
) -> Loop:
    """`for cols in fc.loop(fc.tile(K.N, "BLOCK_N")):` runs the body for every block, as a loop of the program.

    over: a tiled dimension (yields a `Range`), or a count (yields an i32 scalar). start, stop: in blocks. descending: from the last to
    the first. live: a function of the range that says which elements matter; blocks where it is false everywhere may be left out.
    The body is traced once; variables that it assigns are carried.
    """
    if not current().grid:
        raise mistake("trace/usage", "call fc.grid before the first loop")
    over = _as_value(over)
    if not isinstance(over, (TiledSize, Handle)) and not (_is_count(over) or (type(over) is int and over == 0)):
        raise mistake("trace/usage", "fc.loop runs over a tiled dimension or a count", got=repr(over),
                      expected='fc.loop(fc.tile(K.N, "BLOCK_N")) or fc.loop(n)')
    if not isinstance(descending, bool):
        raise mistake("trace/usage", "`descending` is a switch", expected="True or False", got=repr(descending))
    if live is not None:
        try:
            inspect.signature(live).bind(None)
        except (TypeError, ValueError) as e:
            raise mistake("trace/usage", "`live` is a function of the range", expected="live=lambda cols: cols.index <= n",
                          got=str(e)) from None
    return Loop(over, start, stop, descending, live)


@called("loop")
class Loop(NotATile):
    """What a `for` statement runs over. It is traced once: nothing else can take its items."""

    __slots__ = ("descending", "live", "over", "start", "stop")

    def __init__(self, over: Any, start: Any, stop: Any, descending: bool, live: Callable[[Any], Handle] | None):
        self.over, self.start, self.stop, self.descending, self.live = over, start, stop, descending, live
        current().unused[id(self)] = "loop", here()

    def __repr__(self) -> str:
        return f"<fc.loop over {self.over!r}>"

    def mistaken(self) -> FcError:
        return mistake("trace/usage", "a loop is not a tile", hint="for cols in fc.loop(...):")

    def __iter__(self) -> Iterator[Any]:
        if current().unused.pop(id(self), None) is None:
            raise mistake("trace/usage", "this loop has run already", hint="call fc.loop(...) again")
        if not in_for_statement(sys._getframe(1)):
            raise mistake("trace/usage", "fc.loop belongs in a `for` statement: its body is traced once, so nothing else can count or "
                          "collect its items", expected="for cols in fc.loop(...):",
                          hint="the number of a block is cols.start // cols.size; for a loop that Python unrolls use range(n)")
        return self._items()

    def _items(self) -> Iterator[Any]:
        t, over = current(), self.over
        tiled = isinstance(over, TiledSize)
        one = lambda n: t.emit("const", value=n, dtype="i32")
        if isinstance(over, TiledSize):
            size = dim_size(over.dim).value
            count = t.emit("floordiv", t.emit("add", size, one(over.size - 1)), one(over.size))
        else:
            count = _bound(over)
        low = one(0) if self.start is None else _bound(self.start)
        high = count if self.stop is None else _bound(self.stop)
        where = here()
        t.sweep_names()
        name_variables()

        def item(index: Value) -> Any:
            if not tiled:
                return Handle(index)
            first = t.emit("mul", index, one(over.size))
            return Range(over.block, over.size, first, over.dim, index)

        carried = [v for v in t.variables if v._value is not None and v.scope.encloses(t.scope)]
        before = [v._value for v in carried]
        args = [Value(v._value.type, v.name) for v in carried]
        index = Value(Scalar(i32), "")
        left = True
        outer, held = t.scope, snapshot(t.frames)
        try:
            with t.block("loop") as scope:
                for v, a in zip(carried, args):
                    v._value = a
                given = item(index)
                if tiled:
                    given._live = self.live
                yield given
                left = False
                t.sweep_names()
                if tiled:
                    t.name_range(given, index)
                name_variables()
                check_loop(t.frames, held, {v._value: v._value for v in carried}, Block((), tuple(scope.builder.ops)), where)
                fresh = [v for v in t.variables if v.scope.encloses(outer) and v._value is not None and not any(v is c for c in carried)]
                if fresh:
                    raise FcError("trace/unset", "a variable is set for the first time inside a loop that may run no iteration", loc=where,
                                  hint="give it a value before the loop: fc.var(init)")
                changed = [i for i, v in enumerate(carried) if v._value is not args[i]]
                ops = [*scope.builder.ops, Op("yield", tuple(carried[i]._value for i in changed), loc=where)]
        except GeneratorExit:
            t.broken = where
            raise
        assert not left
        same = {a: b for i, (a, b) in enumerate(zip(args, before)) if i not in changed}
        body = substitute_block(Block((index, *(args[i] for i in changed)), tuple(ops)), Env(same))
        regions = [body]
        if self.live is not None:
            for i, (v, b) in enumerate(zip(carried, before)):
                v._value, v.closed = b, "changes in the loop, so `live` cannot use it" if i in changed else None
            regions.append(_live_region(self.live, item, carried, where))
            for v in carried:
                v.closed = None
        results = [Value(args[i].type, carried[i].name) for i in changed]
        attrs: dict[str, Any] = {"descending": True} if self.descending else {}
        if tiled:
            attrs |= {"tile": over.size, "label": over.block}
        t.scope.builder.add(Op("for", (low, high, *(before[i] for i in changed)), tuple(results), attrs, tuple(regions), where))
        for v, b in zip(carried, before):
            v._value = b
        for i, r in zip(changed, results):
            carried[i]._value = r
        if tiled:
            t.names.setdefault(index, "j")


def _bound(n: Any) -> Value:
    return whole_number(n, "a loop counts in i32", "trace/dtype").value


def _live_region(live: Callable[[Any], Any], item: Callable[[Value], Any], carried: list[Var], where: Loc) -> Block:
    """What `live` says about one iteration, from what is known before the loop."""
    t = current()
    j = Value(Scalar(i32), "")
    values = [v._value for v in carried]
    with t.block("live region") as scope:
        x = live(item(j))
        if isinstance(x, bool):
            x = lift(x, i1)
        if not isinstance(x, Handle) or x.dtype != i1:
            raise FcError("trace/dtype", "`live` returns a condition", expected="i1", got=repr(x), loc=where)
        if any(v._value is not b for v, b in zip(carried, values)):
            raise FcError("trace/usage", "`live` assigns to a variable; it only says which elements matter", loc=where)
        ops = [*scope.builder.ops, Op("yield", (x.value,), loc=where)]
    return Block((j,), tuple(ops))


def when(condition: Any) -> Branch:
    """`with fc.when(cond):` runs the block only where a scalar condition holds; variables assigned inside keep their old value
    otherwise."""
    c = lift(condition, None)
    if c.labels or c.dtype != i1:
        hint = "for tiles use fc.where" if c.labels else "compare it: n > 0"
        raise mistake("trace/python-if", "fc.when branches on one condition for the whole program", expected="an i1 scalar", got=repr(c),
                      hint=hint)
    return Branch(c)


@called("branch")
class Branch(NotATile):
    """The block of a `with fc.when(...)`."""

    __slots__ = ("_block", "condition")

    def __init__(self, condition: Handle):
        self.condition, self._block = condition, self._traced()
        current().unused[id(self)] = "when", here()

    def mistaken(self) -> FcError:
        return mistake("trace/usage", "fc.when is a block, not a tile", hint="choose with fc.where(cond, a, b)")

    def __enter__(self) -> None:
        if current().unused.pop(id(self), None) is None:
            raise mistake("trace/usage", "this branch has run already", hint="call fc.when(...) again")
        return self._block.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._block.__exit__(*error)

    @contextlib.contextmanager
    def _traced(self) -> Iterator[None]:
        t = current()
        where = here()
        t.sweep_names()
        name_variables()
        seen = [v for v in t.variables if v.scope.encloses(t.scope)]
        before = [v._value for v in seen]
        held = snapshot(t.frames)
        with t.block("branch") as scope:
            yield
            t.sweep_names()
            check_branch(t.frames, held, where)
            changed = [i for i, v in enumerate(seen) if v._value is not before[i]]
            if any(before[i] is None for i in changed):
                raise FcError("trace/unset", "a variable is set for the first time in a branch that may not run", loc=where,
                              hint="give it a value before: fc.var(init)")
            ops = (*scope.builder.ops, Op("yield", tuple(seen[i]._value for i in changed), loc=where))  # type: ignore[misc]
        other = Block((), (Op("yield", tuple(before[i] for i in changed), loc=where),))  # type: ignore[misc]
        results = [Value(before[i].type, seen[i].name) for i in changed]  # type: ignore[union-attr]
        t.scope.builder.add(Op("if", (self.condition.value,), tuple(results), {}, (Block((), ops), other), where))
        for i, r in zip(changed, results):
            seen[i]._value = r


def name_variables() -> None:
    """Variables learn the names of the locals that hold them."""
    for frame in current().frames:
        for name, x in list(frame.f_locals.items()):
            if isinstance(x, Var) and not x.name:
                x.name = name
