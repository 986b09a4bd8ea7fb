"""Calls of `fcgen.attention` of a kind that has been seen: only what sizes and pointers decide is left to do.

A `Kind` is what a call that went well has shown to be right and sizes do not change: options, classes, dtypes and devices of the tensors. A
guard over all of that recognises it. A call of a known kind costs the same whether its lengths have been seen or not, and leaves nothing
behind; one that comes back a few times in a row gets a guard over its sizes too, and then only its pointers are read. Guaranteed: what runs
here is what `forward.checked` would run; a call that is not quite ordinary goes there. No tensor is kept alive; what is kept is bounded.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ..build.program import Program
from ..errors import FcError
from ..kernels.hopper_schedules import reach
from ..launch import Loaded, scalar
from ..runtime import tensors
from .grouped import applies, as_rows

HEADS = frozenset({*range(16, 257, 8), *range(288, 513, 32)})  # the wide ones on Hopper
#: where the number of keys stands among the sizes and strides of Q, K and V
KEYS = 10, 18
ORDER = ("Q", "K", "V", "O", "LSE", "scale")
#: kinds kept, by their options and of each; programs that one keeps; how often is often, and how often the same is no growth
_OPTIONS, _EACH, _PROGRAMS, _OFTEN, _CONSTANT = 256, 4, 256, 8, 256
#: calls with everything decided that are kept; sizes of a kind whose calls are counted
_RECENT, _SIZES = 8, 32


class Options(NamedTuple):
    """What is decided before tensors are looked at. mask: of `forward.MASKS`; square: it is right where there are as many rows as keys.

    program: (dtype, device, q's shape, k's shape, value head size, mask, scale) -> what runs. checked: (q, k, v, scale, out) -> the same
    call, by the long way. causal, return_lse, schedule: as the call had them."""

    mask: str
    square: bool
    program: Callable[..., Program]
    checked: Callable[..., Any]
    causal: Any
    return_lse: bool
    schedule: Any


class Call(NamedTuple):
    """A call that came often, with everything decided but the pointers. given: with `out`. guard: are these its tensors?"""

    causal: Any
    scale: float | None
    return_lse: bool
    schedule: Any
    given: bool
    guard: Callable[..., bool]
    run: Callable[..., Any]


#: the last ones, the latest in front
recent: tuple[Call, ...] = ()
#: torch's module that knows whether forward-mode tangents are about
forward_ad: Any = None
_kinds: dict[Any, list[Kind]] = {}


def run(options: tuple[Any, ...], q: Any, k: Any, v: Any, out: Any, scale: float | None) -> Any:
    """The result of a call with these options; None if its kind is not known."""
    if any(getattr(t, "is_nested", True) for t in (q, k, v)) or getattr(out, "is_nested", False):
        return None
    for kind in _kinds.get(options, ()):
        found = kind.growing
        if (found is not None and found.scale == scale and (found.guard(q, k, v) if out is None else found.guard(q, k, v, out))
                and forward_ad._current_level < 0):
            _remember(found)
            return found.run(q, k, v, out)
        if (kind.guard(q, k, v) if out is None else kind.guard(q, k, v, out)) and forward_ad._current_level < 0:
            return kind.run(q, k, v, out, scale)
    return None


def _remember(call: Call) -> None:
    global recent
    recent = (call, *[c for c in recent if c is not call][:_RECENT - 1])


def learn(options: tuple[Any, ...], given: Options, q: Any, k: Any, v: Any, out: Any) -> None:
    """After a call that went well: know its kind. Only for torch tensors, and none that a gradient may flow from another time."""
    global forward_ad
    torch = sys.modules.get("torch")
    every = (q, k, v) if out is None else (q, k, v, out)
    if torch is None or _guards() is None or not hasattr(torch._C, "_cuda_getCurrentRawStream") or not all(
            isinstance(t, torch.Tensor) and not t.requires_grad for t in every):
        return
    forward_ad = torch.autograd.forward_ad
    if len(_kinds) >= _OPTIONS:
        _kinds.clear()
    _kinds[options] = [*_kinds.get(options, [])[1 - _EACH:], Kind(given, torch, every, tensors.describe(q, "q"))]


def guard(every: tuple[Any, ...], sizes: bool = False, growing: bool = False) -> Callable[..., bool]:
    """A test for tensors like these: of the same class, dtype, device and number of axes, with memory of their own, no transform or mode
    around them, and no gradient if these have none. sizes: with the same sizes and strides too; growing: the second and third may have
    another length. It is Dynamo's own: 0.5 us for three tensors, which is less than reading their shapes. To be asked only of tensors
    that are not nested: those abort it."""
    shapes, strides = ([[*x] if sizes else [None] * len(x) for x in xs] for xs in ([t.shape for t in every], [t.stride() for t in every]))
    if growing:
        shapes[1][2] = shapes[2][2] = None
    return _guards()(*every, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides).check  # type: ignore[no-any-return]


def _guards() -> Any:
    """The class of torch that makes guards; None in versions that have none: all calls go the long way then."""
    return functools.reduce(lambda x, name: getattr(x, name, None), ("_C", "_dynamo", "guards", "TensorGuards"), sys.modules.get("torch"))


def _parts(sizes: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Sizes before, between and after the number of keys in K and in V."""
    return sizes[:KEYS[0]], sizes[KEYS[0] + 1:KEYS[1]], sizes[KEYS[1] + 1:]


class _Seen:
    """Calls of a kind with the same sizes but for the number of keys: how many there were, and how many in a row with these keys."""

    __slots__ = ("call", "grown", "keys", "same", "times")

    def __init__(self, keys: int):
        self.keys, self.times, self.same = keys, 0, 0
        self.call: Call | None = None
        self.grown = False


class Kind:
    """Calls that differ in sizes, strides and pointers. every: the tensors of one, q first, which is like."""

    def __init__(self, options: Options, torch: Any, every: tuple[Any, ...], like: tensors.TensorArg):
        self.guard, self._options, self._dtype, self._device = guard(every), options, like.dtype, like.device
        # empty_strided takes half the time of empty, which has a memory format to think about
        self._empty, self._empty_like, self._f32 = torch.empty_strided, torch.empty_like, torch.float32
        self._raw_stream, self._written = torch._C._cuda_getCurrentRawStream, torch.autograd.graph.increment_version
        self._programs: dict[Any, tuple[Loaded, int]] = {}
        self._kernels: dict[tuple[Program, float], tuple[Loaded, int]] = {}
        self._seen: dict[Any, _Seen] = {}
        #: for calls between which only the number of keys changes: a decode loop's, whose keys and values are views of a cache
        self.growing: Call | None = None

    def run(self, q: Any, k: Any, v: Any, out: Any, scale: float | None) -> Any:
        """A call on tensors that passed the guard; None where they have to be looked at closely."""
        options = self._options
        qs, ks, vs = q.shape, k.shape, v.shape
        (b, h, m, d), (_, groups, n, _), e = qs, ks, vs[3]
        if not (b and m and n and groups) or h % groups or (options.square and m != n):
            return None
        if out is not None:
            if out.shape != (b, h, m, e):
                return None
            o = out
        elif d == e:
            o = self._empty_like(q)
        else:
            o = self._empty((b, h, m, e), (h * m * e, m * e, e, 1), dtype=q.dtype, device=q.device)
        views: tuple[Any, ...] = ((qs, q.stride()), (o.shape, o.stride()))
        if options.return_lse:
            lse = self._empty((b, h, m), (h * m, m, 1), dtype=self._f32, device=q.device)
            views += (((b, h, m), (h * m, m, 1)),)
        mask = options.mask
        if h != groups and applies(qs, ks, mask):
            rows = tuple([as_rows(*view, groups) for view in views])
            if None not in rows:
                views, mask = rows, "none"
        (qs, qt), (os, ot), *more = views  # from here on as the kernel sees them
        program = self._programs.get((b * h, m, reach(n), d, e, mask, scale)) or self._program((b, h, m, d), qs, ks, e, mask, scale)
        if program is None:
            return None
        loaded, bits = program
        sizes = [*qs, *qt, *ks, *k.stride(), *vs, *v.stride(), *os, *ot]
        if more:
            sizes += (*more[0][0], *more[0][1])
        blocks = loaded.blocks(*sizes)
        p, r, s, t = q.data_ptr(), k.data_ptr(), v.data_ptr(), o.data_ptr()
        if blocks < 0 or (p | r | s | t) & 15 or not (p and r and s and t):
            return None
        rest = sizes[:]
        rest[KEYS[0]] = rest[KEYS[1]] = 0
        key = (*rest, scale)
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) >= _SIZES:
                self._seen.clear()
            self._seen[key] = _Seen(n)
        else:
            self._often(seen, n, loaded, sizes, bits, q, k, v, out, o, scale)
        pointers = (p, r, s, t, lse.data_ptr(), bits) if more else (p, r, s, t, bits)
        try:
            loaded.frame.once(self._raw_stream(self._device), blocks, pointers, sizes, out is None)
        except FcError:
            return None  # the long way says what is wrong in the caller's words
        if out is not None:
            self._written(out)
        return (o, lse) if more else o

    def _often(self, seen: _Seen, n: int, loaded: Loaded, sizes: list[int], bits: int, *call: Any) -> None:
        """Calls like earlier ones, but for the number of keys perhaps: if there are many, make the next one cheaper."""
        seen.times, seen.same, seen.keys = seen.times + 1, seen.same + 1 if n == seen.keys else 0, n
        if seen.same == _OFTEN:
            seen.call = self._ready(loaded, sizes, bits, False, *call)
        elif seen.times >= _OFTEN and not seen.same and (self.growing is None or not seen.grown) and not self._options.square:
            seen.grown = True
            self.growing = self._ready(loaded, sizes, bits, True, *call)
        if seen.same >= _OFTEN and seen.call is not None:
            _remember(seen.call)

    def _ready(self, loaded: Loaded, sizes: list[int], bits: int, growing: bool, q: Any, k: Any, v: Any, out: Any, o: Any,
               scale: float | None) -> Call:
        """The call with these sizes. growing: whatever the number of keys."""
        options, device, dtype, where, f32 = self._options, self._device, q.dtype, q.device, self._f32
        shape = tuple(o.shape)
        _, h, m, e = shape
        alike, lse, packed, packed_rows = shape == q.shape, options.return_lse, (h * m * e, m * e, e, 1), (h * m, m, 1)
        empty, empty_like, raw_stream, written, checked = self._empty, self._empty_like, self._raw_stream, self._written, options.checked
        ready, once, blocks_of, before, between, after = loaded.launch(sizes).launch, loaded.frame.once, loaded.blocks, *_parts(sizes)
        last, same = 0, 0

        def run(q: Any, k: Any, v: Any, out: Any) -> Any:
            o = out if out is not None else empty_like(q) if alike else empty(shape, packed, dtype=dtype, device=where)
            p, r, s, t = q.data_ptr(), k.data_ptr(), v.data_ptr(), o.data_ptr()
            if (p | r | s | t) & 15 or not (p and r and s and t):
                return checked(q, k, v, scale, out)
            values: tuple[int, ...] = (p, r, s, t, bits)
            if lse:
                l = empty(shape[:3], packed_rows, dtype=f32, device=where)
                values = (p, r, s, t, l.data_ptr(), bits)
            try:
                if not growing:
                    ready(raw_stream(device), values, out is None)
                else:
                    nonlocal last, same
                    n = k.shape[2]
                    last, same = n, same + 1 if n == last else 0
                    if same == _CONSTANT:  # it has stopped growing: the next calls show what is cheaper
                        forget()
                    now = [*before, n, *between, v.shape[2], *after]
                    blocks = blocks_of(*now)
                    if blocks <= 0:
                        return checked(q, k, v, scale, out)
                    once(raw_stream(device), blocks, values, now, out is None)
            except FcError:
                return checked(q, k, v, scale, out)
            if out is not None:
                written(out)
            return (o, l) if lse else o

        def forget() -> None:
            global recent
            recent, self.growing = tuple(c for c in recent if c is not self.growing), None

        test = guard((q, k, v) if out is None else (q, k, v, out), True, growing)
        return Call(options.causal, scale, lse, options.schedule, out is not None, test, run)

    def _program(self, q: Any, rows: Any, k: Any, e: int, mask: str, scale: float | None) -> tuple[Loaded, int] | None:
        """(the kernel for these shapes, the bits of the scale), if its arguments are ours. rows: q's shape as the kernel sees it."""
        if q[3] not in HEADS or e not in HEADS:
            return None
        exact = 1.0 / math.sqrt(q[3]) if scale is None else scale
        program = self._options.program(self._dtype, self._device, rows, k, e, mask, exact)
        found = self._kernels.get((program, exact))
        if found is None:
            if program.launcher.order != tuple(n for n in ORDER if n != "LSE" or self._options.return_lse):
                return None
            found = program.launcher.loaded(self._device), scalar("scale", "f32", (), exact)
            self._kernels[program, exact] = found
        if len(self._programs) >= _PROGRAMS:
            self._programs.clear()
            self._kernels.clear()
        self._programs[q[0] * q[1], q[2], reach(k[2]), q[3], e, mask, scale] = found
        return found
