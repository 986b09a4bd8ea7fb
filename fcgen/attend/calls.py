"""Calls of `fcgen.attention` of a kind that has been seen: only what sizes, pointers and captured values decide is left to do.

A kind is what a call that went well has shown to be right and sizes do not change: options, the text of functions, classes, dtypes and
devices of the tensors; a guard recognises it. Its calls are launched by plans (`plans`), which read sizes, pointers and what functions
hold. So a call costs the same whether its lengths have been seen or not, and leaves nothing behind; sizes that come again and again
have a launch in which only pointers change. Guaranteed: what runs here is what `forward._checked` would run; a call that is not quite
ordinary goes there. No tensor is kept alive; what is kept is bounded.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ..build.tables import kept_in
from ..errors import FcError
from ..kernels.hopper_schedules import reach
from ..launch import scalar
from ..runtime import tensors
from . import guards
from .grouped import applies, as_rows
from .plans import Plan

HEADS = range(8, 513, 8)
#: below it a scale has kernels for any sign: it may be 0 to a multiplication
SMALLEST_NORMAL = 2.0**-126
#: kinds kept, by their options and of each; sets of sizes with plans of their own, and plans of each
_OPTIONS, _EACH, _PLANS, _SAME = 1024, 4, 1024, 8
#: sizes of a kind that have a launch; how often in a row they come before; how many other calls they outlive
_READY, _OFTEN, _OTHERS = 4, 8, 64
#: what tensors say that are none, or nested
_STRANGE = (AttributeError, RuntimeError, TypeError, ValueError)
_ROOTS = {d: 1.0 / math.sqrt(d) for d in HEADS}


class Options(NamedTuple):
    """What is decided before tensors are looked at. mask: of `forward.MASKS`; square: it is right where there are as many rows as keys.

    plan: (dtype, device, q's and k's shapes, value head size, mask, scale, functions, are grouped heads rows, q) -> how such calls are
    launched, if they can be. program: the same, but a plain call's program. lse, schedule: as the call had them."""

    mask: str
    square: bool
    lse: bool
    schedule: Any
    plan: Callable[..., Plan | None]
    program: Callable[..., Any]


Call = Callable[..., Any]
#: options -> (q, k, v, out, scale, functions) -> the result, or None where the call is of no such kind
kinds: dict[Any, list[Call]] = {}


#: the last call, if its sizes came again and again: (causal, with the log-sum-exp, schedule, with `out`, scale, guard, call)
last: tuple[Any, ...] | None = None
#: torch's module that knows whether forward-mode tangents are about
forward_ad: Any = None


def texts_of(given: Any) -> tuple[int, ...]:
    """What stands for functions where kinds are looked up: numbers of their texts, which a kind's plans keep alive."""
    return tuple([0 if f is None else id(getattr(getattr(f, "fn", f), "__code__", None) or type(f)) for f in given])


def learn(key: tuple[Any, ...] | None, options: Options, q: Any, k: Any, v: Any, out: Any) -> None:
    """After a call that went well: know its kind. Only for torch tensors, and none that a gradient may flow from another time."""
    global forward_ad
    torch = sys.modules.get("torch")
    every = (q, k, v) if out is None else (q, k, v, out)
    if key is None or torch is None or not guards.usable() or not all(isinstance(t, torch.Tensor) and not t.requires_grad for t in every):
        return
    forward_ad = torch.autograd.forward_ad
    if len(kinds) >= _OPTIONS:
        kinds.clear()
    kinds[key] = [_kind(options, torch, every, (key[0], key[1], options.schedule, key[3])), *kinds.get(key, [])[:_EACH - 1]]


class _Sizes:
    """Calls of a kind whose sizes have the same plans: those, and how often in a row the last of them came."""

    __slots__ = ("last", "plans", "times")

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.last: Any = None
        self.times = 0


def _kind(options: Options, torch: Any, every: tuple[Any, ...], own: tuple[Any, ...]) -> Call:
    """Calls that differ in sizes, strides, pointers and what functions hold. every: the tensors of one; own: its options, as `last` has
    them."""
    like = tensors.describe(every[0], "q")
    guard, alone = guards.guard(every), [guards.guard((t,)) for t in every]
    # empty_strided takes half the time of empty, which has a memory format to think about
    empty, empty_like, written = torch.empty_strided, torch.empty_like, torch.autograd.graph.increment_version
    known: dict[Any, _Sizes] = {}
    #: the sizes that came last again and again: (scale, guard, call), the latest in front; how many calls were others
    ready: list[tuple[float | None, Callable[..., bool], Call]] = []
    others, mask, square = 0, options.mask, options.square

    def run(q: Any, k: Any, v: Any, out: Any, scale: float | None, given: Any) -> Any:
        global last
        nonlocal others
        try:
            if ready and given is None and not (q.is_nested or k.is_nested or v.is_nested or (out is not None and out.is_nested)):
                for again in ready:
                    if (again[0] == scale and (again[1](q, k, v) if out is None else again[1](q, k, v, out))
                            and forward_ad._current_level < 0):
                        if again is not ready[0]:
                            _to_front(ready, again)
                        last = *own, *again
                        return again[2](q, k, v, out)
                others += 1
                if others > _OTHERS:
                    ready.clear()
                    others = 0
            qs, ks, vs, qt, kt, vt = q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride()  # of nested ones that raises
            shape = None if out is None else out.shape
            last = None
            if not (guard(q, k, v) if out is None else guard(q, k, v, out)) and not (
                    (q is k or k is v or q is v) and all([g(t) for g, t in zip(alone, (q, k, v, out))])):
                return None
        except _STRANGE:
            return None
        if forward_ad._current_level >= 0:
            return None
        (b, h, m, d), (_, groups, n, _), e = qs, ks, vs[3]
        if not (b and m and n and groups) or h % groups or (square and m != n) or (given is not None and given.lacking((b, h, m, n))):
            return None
        exact = (_ROOTS.get(d) or 1.0) if scale is None else scale
        if out is not None:
            o = out
            if shape != (b, h, m, e):
                return None
        else:
            o = empty_like(q) if d == e else empty((b, h, m, e), (h * m * e, m * e, e, 1), dtype=q.dtype, device=q.device)
        rows = given is None and h != groups and applies(qs, ks, mask)
        while True:
            key = rows, b * h, groups, m + 63 >> 6, reach(n), n >= 4 * m, d, e, exact >= SMALLEST_NORMAL
            sizes = kept_in(known, _PLANS, key, _Sizes)
            for plan in sizes.plans:
                values = plan.values(given) if given is not None else ()
                if values is not None:
                    try:
                        result = plan.run(q, k, v, o, qs, ks, vs, qt, kt, vt, exact, *values)
                    except FcError:
                        return None  # the long way says what is wrong in the caller's words
                    if result is None:
                        break
                    if out is not None:
                        written(out)
                    if given is None:
                        now = qs, qt, ks, kt, vs, vt, scale
                        if now != sizes.last:
                            sizes.last, sizes.times = now, 0
                        else:
                            sizes.times += 1
                            if sizes.times == _OFTEN:
                                _to_front(ready, _ready(options, like, rows, torch, written, scale, exact, q, k, v, out, o))
                    return result
            else:
                made = options.plan(like.dtype, like.device, tuple(qs), tuple(ks), e, "none" if rows else mask, exact, given, rows, q)
                if made is None or (given is not None and made.values(given) is None):
                    return None
                sizes.plans = [made, *sizes.plans[:_SAME - 1]]
                continue
            if not rows:
                return None
            rows = False  # strides that do not allow it: the heads one by one

    return run


def _to_front(ready: list[Any], again: Any) -> None:
    ready[:] = [again, *[r for r in ready if r is not again][:_READY - 1]]


def _ready(options: Options, like: tensors.TensorArg, rows: bool, torch: Any, written: Any, scale: float | None, exact: float, q: Any,
           k: Any, v: Any, out: Any, o: Any) -> tuple[float | None, Callable[..., bool], Call]:
    """The call with these sizes and strides: its launch is decided."""
    shape, lse, device = tuple(o.shape), options.lse, like.device
    b, h, m, e = shape
    views: list[Any] = [(tuple(t.shape), tuple(t.stride())) for t in (q, k, v, o)] + [((b, h, m), (h * m, m, 1))] * lse
    if rows:
        views = [view if n in (1, 2) else as_rows(*view, k.shape[1]) for n, view in enumerate(views)]
    seen = views[0][0] if rows else tuple(q.shape)
    program = options.program(like.dtype, device, seen, tuple(k.shape), e, "none" if rows else options.mask, exact)
    launch = program.launcher.loaded(device).launch([x for view in views for xs in view for x in xs]).launch
    bits, alike, steps = scalar("scale", "f32", (), exact), shape == tuple(q.shape), (h * m * e, m * e, e, 1)
    empty, empty_like, raw_stream, f32 = torch.empty_strided, torch.empty_like, torch._C._cuda_getCurrentRawStream, torch.float32
    element, where, of_rows, rows_steps = q.dtype, q.device, shape[:3], (h * m, m, 1)

    def run(q: Any, k: Any, v: Any, out: Any) -> Any:
        o = out if out is not None else empty_like(q) if alike else empty(shape, steps, dtype=element, device=where)
        p, r, s, t = q.data_ptr(), k.data_ptr(), v.data_ptr(), o.data_ptr()
        if (p | r | s | t) & 15 or not (p and r and s and t):
            return None
        try:
            if lse:
                l = empty(of_rows, rows_steps, dtype=f32, device=where)
                launch(raw_stream(device), (p, r, s, t, l.data_ptr(), bits), out is None)
            else:
                launch(raw_stream(device), (p, r, s, t, bits), out is None)
        except FcError:
            return None  # the long way says what is wrong in the caller's words
        if out is not None:
            written(out)
        return (o, l) if lse else o

    return scale, guards.guard((q, k, v) if out is None else (q, k, v, out), sizes=True), run
