"""Handles that a spec computes with: values (scalars and tiles), tensors, and rectangles of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..ir.core import Value
from ..ir.types import DType, Scalar, Tensor
from .axes import Label, Range, Size, Tiling, shape_of
from .trace import Scope, Tracer, current


def _binary(fn: str, a: Any, b: Any) -> Expr:
    from .arith import binary

    return binary(fn, a, b)


def _unary(fn: str, a: Any) -> Expr:
    from .arith import elementwise

    return elementwise(fn, (a,))


class Operators:
    """Python's operators, for everything that stands for a value."""

    def describe(self) -> str:
        raise NotImplementedError

    def __add__(self, o: Any) -> Expr:
        return _binary("add", self, o)

    def __radd__(self, o: Any) -> Expr:
        return _binary("add", o, self)

    def __sub__(self, o: Any) -> Expr:
        return _binary("sub", self, o)

    def __rsub__(self, o: Any) -> Expr:
        return _binary("sub", o, self)

    def __mul__(self, o: Any) -> Expr:
        return _binary("mul", self, o)

    def __rmul__(self, o: Any) -> Expr:
        return _binary("mul", o, self)

    def __truediv__(self, o: Any) -> Expr:
        return _binary("div", self, o)

    def __rtruediv__(self, o: Any) -> Expr:
        return _binary("div", o, self)

    def __floordiv__(self, o: Any) -> Expr:
        return _binary("floordiv", self, o)

    def __rfloordiv__(self, o: Any) -> Expr:
        return _binary("floordiv", o, self)

    def __mod__(self, o: Any) -> Expr:
        return _binary("mod", self, o)

    def __rmod__(self, o: Any) -> Expr:
        return _binary("mod", o, self)

    def __pow__(self, o: Any) -> Expr:
        return _binary("pow", self, o)

    def __rpow__(self, o: Any) -> Expr:
        return _binary("pow", o, self)

    def __lshift__(self, o: Any) -> Expr:
        return _binary("shl", self, o)

    def __rlshift__(self, o: Any) -> Expr:
        return _binary("shl", o, self)

    def __rshift__(self, o: Any) -> Expr:
        return _binary("shr", self, o)

    def __rrshift__(self, o: Any) -> Expr:
        return _binary("shr", o, self)

    def __and__(self, o: Any) -> Expr:
        return _binary("and", self, o)

    def __rand__(self, o: Any) -> Expr:
        return _binary("and", o, self)

    def __or__(self, o: Any) -> Expr:
        return _binary("or", self, o)

    def __ror__(self, o: Any) -> Expr:
        return _binary("or", o, self)

    def __xor__(self, o: Any) -> Expr:
        return _binary("xor", self, o)

    def __rxor__(self, o: Any) -> Expr:
        return _binary("xor", o, self)

    def __lt__(self, o: Any) -> Expr:
        return _binary("lt", self, o)

    def __le__(self, o: Any) -> Expr:
        return _binary("le", self, o)

    def __gt__(self, o: Any) -> Expr:
        return _binary("gt", self, o)

    def __ge__(self, o: Any) -> Expr:
        return _binary("ge", self, o)

    def __eq__(self, o: Any) -> Expr:  # type: ignore[override]
        return _binary("eq", self, o)

    def __ne__(self, o: Any) -> Expr:  # type: ignore[override]
        return _binary("ne", self, o)

    def __hash__(self) -> int:
        return id(self)

    def __invert__(self) -> Expr:
        return _unary("not", self)

    def __neg__(self) -> Expr:
        return _unary("neg", self)

    def __pos__(self) -> Expr:
        return as_expr(self)

    def __abs__(self) -> Expr:
        return _unary("abs", self)

    def __ilshift__(self, o: Any) -> Any:
        raise current("`<<=`").error("trace/usage", "`<<=` assigns to a var, and this is none", got=self.describe(),
                                     hint="make it one before the loop: x = fc.var(init)")

    def __bool__(self) -> bool:
        raise current("a tile").error(
            "trace/python-if", "a traced value has no Python truth value: `if`, `while`, `and`, `or`, `not` and chained "
            "comparisons cannot depend on it", got=self.describe(),
            hint="elementwise: fc.where(c, a, b), and & | ~ for conditions; for the whole program: with fc.when(c)")

    def __iter__(self) -> Iterator[Any]:
        raise current("a tile").error("trace/usage", "a traced value cannot be iterated or unpacked", got=self.describe(),
                                      hint="tiles are computed with as a whole; fc.loop walks over tiles of a tensor")

    def _number(self, what: str) -> Any:
        raise current("a tile").error("trace/static", f"a traced value is no Python number: {what} needs one while tracing",
                                      got=self.describe(), hint="pass the number as a compile-time parameter of the spec")

    def __int__(self) -> int:
        return self._number("int()")

    def __index__(self) -> int:
        return self._number("an index or range()")

    def __float__(self) -> float:
        return self._number("float()")

    def to(self, dtype: DType) -> Expr:
        from .arith import cast

        return cast(self, dtype)

    @property
    def T(self) -> Expr:
        from .functions import transpose

        return transpose(self)

    @property
    def dtype(self) -> DType:
        return as_expr(self).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return as_expr(self).shape


class Expr(Operators):
    """A value of the traced program: a scalar, or a tile with one label per axis."""

    def __init__(self, tracer: Tracer, value: Value, axes: tuple[Label, ...]):
        self.tracer, self.value, self.axes = tracer, value, axes
        self.scope: Scope = tracer.scope

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.axes)

    def describe(self) -> str:
        return f"{self.dtype}[{', '.join(map(repr, self.axes))}]" if self.axes else f"{self.dtype} scalar"

    def __repr__(self) -> str:
        return f"<fcgen {self.describe()}>"

    def take_name(self, name: str) -> None:
        self.tracer.names.setdefault(self.value, name)


class RunSize(Operators):
    """The run-time size of a dimension."""

    def __init__(self, name: str):
        self.name = name

    @property
    def expr(self) -> Expr:
        t = current("a size")
        return t.wrap(t.emit("size", name=self.name, dim=self.name))

    def describe(self) -> str:
        return f"run-time size {self.name}"

    def __repr__(self) -> str:
        return f"<fcgen {self.describe()}>"


class TensorHandle:
    """A tensor parameter. `Q.M` is the size of its dimension M: a number if bound, else a run-time scalar."""

    def __init__(self, tracer: Tracer, value: Value, names: tuple[str | int, ...], role: str):
        self._tracer, self._value, self._names, self._role = tracer, value, names, role

    @property
    def name(self) -> str:
        return self._value.name

    @property
    def dtype(self) -> DType:
        return self._value.type.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self._size(n) for n in self._names)

    def _size(self, name: str | int) -> Any:
        if isinstance(name, int):
            return Size(name, str(name))
        return Size(self._tracer.sizes[name], name) if name in self._tracer.sizes else RunSize(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._names:
            return self._size(name)
        raise self._tracer.error("trace/usage", f"tensor {self.name} has no dimension {name}",
                                 expected=", ".join(map(str, self._names)), got=name)

    def __getitem__(self, index: Any) -> Any:
        from .memory import index_tensor

        return index_tensor(self, index if isinstance(index, tuple) else (index,))

    def describe(self) -> str:
        return f"tensor {self.name}: {self.dtype}[{', '.join(map(str, self._names))}]"

    def __repr__(self) -> str:
        return f"<fcgen {self.describe()}>"

    def __bool__(self) -> bool:
        return True  # `if LSE:` asks whether an optional tensor was given

    def __iter__(self) -> Iterator[Any]:
        raise self._tracer.error("trace/usage", "a tensor cannot be iterated", hint="index it with the ranges of fc.grid and fc.loop")

    def _mistaken(self, *_: Any) -> Any:
        raise self._tracer.error("trace/usage", f"{self.name} is a tensor, not a tile", got=self.describe(),
                                 hint=f"load a tile of it first: fc.load({self.name}[...])")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _mistaken
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = _mistaken


class View(Operators):
    """A rectangle of a tensor: words, scalars and guards as the IR has them. A view of one element is also a scalar."""

    def __init__(self, tensor: TensorHandle, words: tuple[str, ...], scalars: tuple[Expr, ...], axes: tuple[Label, ...],
                 guard: tuple[bool, ...]):
        self.tensor, self.words, self.scalars, self.axes, self.guard = tensor, words, scalars, axes, guard
        self._element: Expr | None = None

    @property
    def element(self) -> Expr:
        from .memory import gather

        t = self.tensor._tracer
        if self.axes:
            raise t.error("trace/usage", f"a rectangle of {self.tensor.name} is not a tile yet", got=self.describe(),
                          hint="load it: fc.load(...)")
        if self._element is None or self._element.scope.closed or self.tensor._role == "inout":
            self._element = gather(self.tensor, *self.scalars)
        return self._element

    def describe(self) -> str:
        return f"{self.tensor.dtype}[{', '.join(map(repr, self.axes))}] of tensor {self.tensor.name}"

    def __repr__(self) -> str:
        return f"<fcgen {self.describe()}>"

    def take_name(self, name: str) -> None:
        if self._element is not None:
            self._element.take_name(name)


def as_expr(x: Any) -> Expr:
    """The current value behind a handle, checked to be usable here."""
    from .control import Var

    t = current("a tile")
    if isinstance(x, Var):
        x = x.get()
    elif isinstance(x, RunSize):
        x = x.expr
    elif isinstance(x, View):
        x = x.element
    if not isinstance(x, Expr):
        hint = None
        if isinstance(x, TensorHandle):
            hint = f"load a tile of it: fc.load({x.name}[...])"
        elif isinstance(x, Range):
            hint = "its positions are `.index`, its first one `.start`"
        elif isinstance(x, Tiling):
            hint = "give it to fc.grid or fc.loop, which hand out its ranges"
        elif x is None:
            hint = "an optional parameter that was not given is None: ask with Python's `if x is not None`"
        raise t.error("trace/usage", "this is no scalar and no tile", expected="a tile, a scalar or a number",
                      got=x.describe() if hasattr(x, "describe") else repr(x)[:60], hint=hint)
    if x.tracer is not t:
        raise t.error("trace/unset", "this value belongs to another trace", got=x.describe(),
                      hint="do not keep handles between calls: make the value inside the spec")
    if x.scope.closed:
        name = t.names.get(x.value)
        raise t.error("trace/unset", f"{f'`{name}`' if name else 'this value'} was made inside {x.scope.what} and is used after it",
                      got=x.describe(), notes=[f"{x.scope.what} starts at {x.scope.loc}"],
                      hint="carry it out in a var: x = fc.var(init) before, x <<= value inside")
    return x


def tensor_type(dtype: DType, names: tuple[str | int, ...], sizes: dict[str, int]) -> Tensor:
    return Tensor(dtype, tuple(sizes.get(n, n) if isinstance(n, str) else n for n in names))


def is_scalar(x: Expr) -> bool:
    return isinstance(x.value.type, Scalar)
