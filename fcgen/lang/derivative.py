"""`fc.vjp` and `fc.jvp`: derivatives of a function over tiles, taken while the spec is traced, as more ops of the same program.

The function is called once, on its operands; the rules of `fcgen.grad` then write what its derivative is. What it holds besides its
operands counts as constant, but for tensors that are named or, with `captured`, that functions given to the spec hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import FcError
from ..grad.modes import pull, push
from ..grad.writer import Writer
from ..ir.core import Op, Value
from ..ir.types import Tensor
from .arith import aligned, lift
from .captures import STORED, SUM
from .handles import Handle, NotATile
from .mistakes import called
from .scatter import add_to_tensor, how_together
from .tensors import TensorParam
from .trace import Scope, current, mistake


def vjp(f: Callable[..., Any], *primals: Any, captured: bool | str = False, places: Sequence[Any] = ()) -> tuple[Any, Callable[[Any], Any]]:
    """The value of f(*primals), and a function that takes the gradient of that value (one for each, of several) to those of the primals.

    primals: tiles and scalars of floats, and tensors that f reads, itself or as what it is given. The gradient of one primal comes as it
    is, of several as a tuple; that of a tensor as an object whose `add_to(T)` adds it to an f32 tensor of the same sizes. Gradients of
    16-bit floats are f32. captured: the gradients of float tensors that functions of the spec hold (of torch's, those that require one)
    are added to further parameters of the kernel, f32, named after them.

    places: positions (scalars, and positions along an axis of the value) of the value's elements, no two of which have the same in all
    programs. A captured tensor that is read once, at exactly these, gets each element's gradient from one place: it is stored, in the
    tensor's dtype. captured="few" says that few elements have the same positions where some are left out: what is read at all that run
    along axes is then added in the tensor's dtype too.
    """
    if captured not in (True, False, "few") or (places and not captured):
        raise mistake("trace/usage", "captured: whether what the function holds gets gradients; places: of which elements alone",
                      expected='captured=True or captured="few"', got=f"captured={captured!r}, {len(places)} places")
    run = _Run(f, primals, bool(captured))
    read = _captured_reads(run.ops) if captured else {}
    apart = [lift(x, None).value for x in places]
    of = {*(v.value if isinstance(v, Handle) else v._param for v in run.given), *read}

    def gradient(value: Any) -> Any:
        outs = run.several(value, "gradient")
        if not run.scope.encloses(current().scope):
            raise mistake("trace/unset", "a gradient is asked for outside of the block that the value was computed in",
                          hint="call it where the value may be read")
        known: dict[Value, Value] = {}
        m = _writer()
        for out, x in zip(run.outs, outs):
            if x is not None and out.dtype.is_float:
                v = _like(x, out, "the gradient")
                known[out.value] = m.add(known[out.value], v) if out.value in known else v
        with _places(m):
            found, reads = pull(m, run.ops, of, known)
        results: list[Any] = []
        for p, x in zip(primals, run.given):
            if isinstance(x, Handle):
                results.append(Handle(found[x.value] if x.value in found else m.zero(x.value), x.labels))
            else:
                results.append(TensorGradient(p, [(op, ct) for op, ct in reads if op.operands[0] is p._param]))
        with _places(m):
            for op, ct in reads:
                if (tensor := op.operands[0]) in read:
                    how = how_together([r for r, _ in reads if r.operands[0] is tensor], apart, captured == "few")
                    to, how = _into(tensor, how)
                    add_to_tensor(m.at(op), op, ct, to, how == STORED)
        return results[0] if len(results) == 1 else tuple(results)

    return run.value, gradient


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """(f(*primals), its tangent): how the value moves where each primal moves by its tangent. None is the tangent of what stays; a tensor's
    is a tensor."""
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)) or len(primals) != len(tangents):
        raise mistake("trace/usage", "fc.jvp takes the operands of a function and a tangent for each",
                      expected="fc.jvp(f, (x, y), (dx, dy))", got=f"{primals!r:.60}, {tangents!r:.60}")
    run = _Run(f, primals)
    known: dict[Value, Value] = {}
    for x, t in zip(run.given, tangents):
        if t is None:
            continue
        if isinstance(x, Handle):
            known[x.value] = _like(t, x, "the tangent")
        elif isinstance(t, TensorParam) and t.dtype.is_float and t._param.type.dims == x._param.type.dims:
            t.check_readable()
            known[x._param] = t._param
        else:
            raise mistake("trace/usage", "the tangent of a tensor is a tensor with its sizes", expected=repr(x), got=repr(t)[:80])
    m = _writer()
    with _places(m):
        found = push(m, run.ops, known)
    outs = [Handle(found[o.value] if o.value in found else m.zero(o.value), o.labels) if o.dtype.is_float else None for o in run.outs]
    return run.value, (tuple(outs) if run.many else outs[0])


@called("gradient")
class TensorGradient(NotATile):
    """What a tensor gets of a gradient: a piece for each time that the function reads it."""

    __slots__ = ("pieces", "tensor")
    PUBLIC = ("add_to",)

    def __init__(self, tensor: TensorParam, pieces: list[tuple[Op, Value]]):
        self.tensor, self.pieces = tensor, pieces

    def add_to(self, tensor: Any) -> None:
        """Add it, atomically, to an f32 tensor with the sizes of the one that was read."""
        like = self.tensor._param.type.dims
        if not isinstance(tensor, TensorParam) or not tensor.written or tensor.dtype.bits < 32 or tensor._param.type.dims != like:
            want = ", ".join(map(str, like))
            raise mistake("trace/store", "a tensor's gradient is added to a tensor with its sizes", expected=f'"inout f32[{want}]"',
                          got=repr(tensor)[:80])
        tensor.check_readable()
        p, m = tensor._param, _writer()
        current().stored.add(p.name)
        with _places(m):
            for op, ct in self.pieces:
                add_to_tensor(m.at(op), op, ct, p)

    def mistaken(self) -> FcError:
        return mistake("trace/usage", "the gradient of a tensor is no tile", hint="add it to an output: g.add_to(dX)")


class _Run:
    """One call of the function: what it was given, the ops that it made, what it returned."""

    def __init__(self, f: Callable[..., Any], primals: Sequence[Any], captured: bool = False):
        t = current()
        if not callable(f) or not (primals or captured):
            raise mistake("trace/usage", "a derivative is that of a function with respect to its operands", got=repr(f)[:80],
                          expected="fc.vjp(f, x)")
        self.scope: Scope = t.scope
        ops = t.scope.builder.ops
        #: values of their own, so that what the function holds stays constant even if it is one of them
        self.given: list[Any] = [p if isinstance(p, TensorParam) else _fresh(p) for p in primals]
        last = ops[-1] if ops else None
        self.value = f(*self.given)
        if t.scope is not self.scope:
            raise mistake("trace/usage", "the function of a derivative leaves a block open")
        first = next((n + 1 for n in reversed(range(len(ops))) if ops[n] is last), 0)
        self.ops = tuple(ops[first:])
        self.many = isinstance(self.value, (tuple, list))
        self.outs = [lift(x, None) for x in (self.value if self.many else (self.value,))]
        self.value = tuple(self.outs) if self.many else self.outs[0]

    def several(self, value: Any, what: str) -> Sequence[Any]:
        outs = value if self.many else (value,)
        if not isinstance(outs, (tuple, list)) or len(outs) != len(self.outs):
            raise mistake("trace/usage", f"there is one {what} for each value of the function", expected=f"{len(self.outs)} of them",
                          got=repr(value)[:80])
        return outs


def _fresh(p: Any) -> Handle:
    x = lift(p, None)
    if not x.dtype.is_float:
        raise mistake("trace/grad", "derivatives are with respect to floats", expected="f16, bf16, f32", got=repr(x),
                      hint="what the function needs besides, it may hold: lambda s: f(s, i)")
    return Handle(current().emit("cast", x.value, to=x.dtype.name), x.labels)


def _captured_reads(ops: Sequence[Op]) -> Mapping[Value, Value]:
    """Tensors that functions of the spec hold, are read here and want a gradient."""
    captures = current().captures
    found = [op.operands[0] for op in ops if op.kind in ("load", "gather")]
    return {v: v for v in found if isinstance(v.type, Tensor) and v.type.dtype.is_float and captures.wants_gradient(v)}


def _into(tensor: Value, how: str) -> tuple[Value, str]:
    """Where a captured tensor's gradient goes, and how: what another derivative began to add up goes on like that."""
    to, before = current().captures.gradient(tensor, how)
    if before != how and before != SUM:
        raise mistake("trace/grad", f"the gradient of {tensor.name} is stored where one function read it, and another one reads it too",
                      expected="places for none of both, or one function", got=tensor.name, hint="fc.vjp(f, x, captured=True)")
    return to, before


def _like(x: Any, like: Handle, what: str) -> Value:
    """A derivative of a value, as the value's shape and dtype want it."""
    want = like.dtype.computed
    h = lift(x, want)
    if not h.dtype.is_float or not set(h.labels) <= set(like.labels):
        raise mistake("trace/shape" if h.dtype.is_float else "trace/dtype", f"{what} has the axes of its value, in {want}", got=repr(h),
                      expected=repr(like))
    h = aligned(h.to(want), like.labels, dict(zip(like.labels, like.shape)))
    return _writer().fit(h.value, like.value)


def _writer() -> Writer:
    current().sweep_names()
    return Writer(current().scope.builder)


@contextmanager
def _places(m: Writer) -> Iterator[None]:
    """What is written inside comes from the lines that the rules say; afterwards from nowhere in particular."""
    before = m.builder.loc
    yield
    m.builder.loc = before
