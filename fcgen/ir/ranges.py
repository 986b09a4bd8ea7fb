"""Which sizes and scalars a kernel may be called with, so that no 32-bit arithmetic on positions overflows.

Sizes, i32 scalars and what follows from them linearly (positions, bounds of loops, limits of masks) are followed as intervals. Where one
leaves 32 bits, the largest of what it depends on are halved, until none does: that is what a launch admits (`Admitted`). A scalar that only
decides comparisons with positions, such as a window, *saturates*: beyond what positions can reach a larger one decides the same, so a call
may pass any i32 and the kernel gets the nearest value that is admitted.

What is read from tensors, carried by loops, or a product of two unknown numbers is not followed; it wraps as the hardware does. So does
arithmetic that overflows at sizes of `FLOOR` already: it is meant to (hashes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import FcError
from .core import Block, Kernel, Op, Value
from .op_table import having
from .types import Scalar, Tensor, i32, i64, u32

LOWEST, HIGHEST = -(2**31), 2**31 - 1
#: room for what later passes add: tiles that are copied ahead, positions inside of a tile
ROOM = HIGHEST - 2**16
#: what a scalar that saturates is cut to
REACH = 2**29
FLOOR = 2**24


#: what integers of a width hold
WIDTHS = {d.name: d.range for d in (i32, u32, i64)}


class Admitted(NamedTuple):
    """lo <= x <= hi of a size or scalar; saturates: what lies outside is cut, not refused."""

    lo: int
    hi: int
    saturates: bool = False

    def __call__(self, name: str, value: int) -> int:
        """The value that the kernel gets. Raises FcError "call/argument"."""
        if self.lo <= value <= self.hi:
            return value
        lo, hi = (LOWEST if self.lo < 0 else self.lo, HIGHEST) if self.saturates else (self.lo, self.hi)
        if lo <= value <= hi:
            return min(max(value, self.lo), self.hi)
        raise FcError("call/argument", f"argument `{name}` is out of range", expected=f"{lo} to {hi}", got=value,
                      hint="positions are counted in 32 bits, and what the kernel computes from them must fit too")

    def size(self, name: str, n: int) -> None:
        """Refuse a size of tensor `name`."""
        if n > self.hi:
            raise FcError("call/argument", f"argument `{name}` is too large", expected=f"sizes up to {self.hi}", got=n,
                          hint="positions are counted in 32 bits, and what the kernel computes from them must fit too")


class Span(NamedTuple):
    """lo <= every element <= hi. of: the sizes and scalars that it follows from. steps: factors with which the scalar in question may be
    in it (0: it may be absent); lo and hi are then without it."""

    lo: int
    hi: int
    of: frozenset[str] = frozenset()
    steps: frozenset[int] = frozenset((0,))


def is_count(v: Value) -> bool:
    return getattr(v.type, "dtype", None) == i32 and not isinstance(v.type, Tensor)


def symbols(kernel: Kernel) -> dict[str, Admitted]:
    """Sizes and i32 scalars by name, with all that 32 bits hold."""
    out = {d: Admitted(0, HIGHEST) for d in sorted(kernel.dims)}
    for p in kernel.params:
        if p.type == Scalar(i32):
            least = 1 if "positive" in kernel.flags.get(p.name, ()) else 0 if p in kernel.counts else LOWEST
            out[p.name] = Admitted(least, HIGHEST)
    return out


@lru_cache(maxsize=64)
def admitted(kernel: Kernel) -> dict[str, Admitted]:
    """Sizes and i32 scalars of a kernel -> what it may be called with: what `meta ranges` says; of a tile kernel without one, what follows
    from its program."""
    told = kernel.meta.get("ranges")
    if told is None:
        return traced(kernel) if kernel.level == "tile" else {}
    known = symbols(kernel)
    for line in told if isinstance(told, tuple) else (told,):
        if not (isinstance(line, tuple) and len(line) == 4 and line[0] in known and all(type(n) is int for n in line[1:3])
                and LOWEST <= line[1] <= line[2] <= HIGHEST and type(line[3]) is bool):
            raise FcError("ir/verify", "meta ranges has for each size and i32 scalar its name, least and greatest value, and whether it "
                          "saturates", expected="(NAME, 0, 536870912, false)", got=repr(line))
    return {name: Admitted(*rest) for name, *rest in told}


def with_ranges(kernel: Kernel, ranges: Mapping[str, Admitted]) -> Kernel:
    return kernel.with_meta(ranges=tuple((name, *r) for name, r in ranges.items()))


def traced(kernel: Kernel) -> dict[str, Admitted]:
    """For a kernel as it was traced, where a comparison means what it says: scalars that only decide such saturate."""
    ranges = found(kernel, symbols(kernel))
    for p in kernel.params:
        if p.type == Scalar(i32) and p.name not in kernel.dims and p not in kernel.counts:
            cut = found(kernel, {**ranges, p.name: Admitted(max(ranges[p.name].lo, -REACH), REACH, True)}, p.name)
            ranges = cut if cut[p.name].saturates else ranges
    return ranges


def found(kernel: Kernel, ranges: dict[str, Admitted], cut: str = "") -> dict[str, Admitted]:
    """The ranges, narrowed until nothing overflows. cut: a scalar that is to saturate; it comes back without if it cannot."""
    start, meant = ranges, set[Op]()
    while True:
        walk = _Walk(kernel, ranges, meant, cut)
        if walk.plain_use:
            return {**start, cut: start[cut]._replace(saturates=False)}
        if not walk.over:
            return ranges
        op, of = next(iter(walk.over.items()))
        loose = next((n for n in of if n == cut or ranges[n].saturates), "")
        narrow = [n for n in of if ranges[n].hi > FLOOR and n != loose]
        if narrow:
            most = max(ranges[n].hi for n in narrow)
            half = (most + 1) // 2
            ranges = {**ranges, **{n: ranges[n]._replace(lo=max(ranges[n].lo, -half), hi=half) for n in narrow if ranges[n].hi == most}}
        elif loose:
            start = ranges = {**start, loose: start[loose]._replace(saturates=False)}
            if loose == cut:
                return start
        else:
            meant.add(op)
            ranges = start


class _Walk:
    """One pass over a kernel. over: ops whose result may leave 32 bits -> what it depends on. plain_use: the scalar that is to saturate is
    used in another way than comparisons."""

    def __init__(self, kernel: Kernel, ranges: Mapping[str, Admitted], meant: set[Op], cut: str):
        self.kernel, self.ranges, self.meant, self.cut = kernel, ranges, meant, cut
        self.known: dict[Value, Span | None] = {}
        self.over: dict[Op, frozenset[str]] = {}
        self.plain_use = False
        for p in kernel.params:
            if p.type == Scalar(i32):
                r = ranges[p.name]
                self.known[p] = Span(r.lo, r.hi, frozenset((p.name,)))
                if p.name == cut:
                    self.known[p] = Span(0, 0, frozenset((p.name,)), frozenset((1,)))
        for role in kernel.roles:
            for axis, arg in zip(kernel.grid, role.body.args):
                n = self.size(axis.dim)
                self.known[arg] = Span(0, max(0, (n.hi - 1) // axis.tile + axis.cluster - 1), n.of)
            self.block(role.body)

    def size(self, dim: str | int) -> Span:
        return Span(dim, dim) if isinstance(dim, int) else Span(0, self.ranges[dim].hi, frozenset((dim,))) if dim in self.ranges \
            else Span(0, HIGHEST // 2)

    def block(self, block: Block) -> None:
        for op in block.ops:
            spans = [self.known.get(v) for v in op.operands]
            if op.kind == "for":
                low, high = spans[:2]
                for region in op.regions:
                    if low is not None and high is not None:
                        self.known[region.args[0]] = Span(low.lo, max(low.lo, high.hi - 1), low.of | high.of)
            for region in op.regions:
                self.block(region)
            out = self.result(op, spans) if len(op.results) == 1 and is_count(op.results[0]) else None
            if self.cut and (out is None or out.steps == {0}) and op.kind not in COMPARES and any(s and s.steps != {0} for s in spans):
                self.plain_use = True
            if op.kind in COMPARES and None not in spans:
                self.compare(op, *spans)
            elif op.kind in COMPARES and any(s and s.steps != {0} for s in spans):
                self.plain_use = True
            if out is not None:
                self.known[op.results[0]] = self.fits(op, out)

    def fits(self, op: Op, s: Span) -> Span | None:
        if op in self.meant:
            return None
        reach = max(map(abs, s.steps)) * REACH
        if s.lo - reach < -ROOM or s.hi + reach > ROOM:
            if op.kind not in MOVES:
                self.over[op] = s.of
            return s._replace(lo=max(s.lo, -ROOM), hi=min(s.hi, ROOM))
        return s

    def compare(self, op: Op, a: Any, b: Any) -> None:
        """Where the scalar does not cancel, it must outweigh everything else at the ends of its range."""
        apart = {x - y for x in a.steps for y in b.steps} - {0}
        if not apart:
            return
        others = {p.name for p in self.kernel.params if p.type == Scalar(i32)} - {self.cut}
        if (a.of | b.of) & others:
            self.plain_use = True
        elif max(abs(a.lo - b.hi), abs(a.hi - b.lo)) >= min(map(abs, apart)) * REACH:
            self.over[op] = a.of | b.of

    def result(self, op: Op, spans: list[Span | None]) -> Span | None:
        kind = op.kind
        if kind == "const":
            return Span(op["value"], op["value"])
        if kind == "size":
            return self.size(op["dim"])
        if kind == "iota":
            return Span(0, op.results[0].type.shape[0] - 1)
        if kind == "cast" and not is_count(op.operands[0]):
            return None
        if kind == "mod" and spans[0] is None:
            spans = [Span(LOWEST, HIGHEST), spans[1]]
        if kind in ("min", "max") and spans.count(None) == 1:
            known = next(s for s in spans if s is not None)
            lo, hi = (LOWEST, known.hi) if kind == "min" else (known.lo, HIGHEST)
            return Span(lo, hi, known.of) if known.steps == {0} else None
        if kind in ("select", "narrow"):
            return _hull(spans[-2:])
        if kind not in RULES or None in spans:
            return None
        return RULES[kind](*spans)


def _hull(spans: Iterable[Span | None]) -> Span | None:
    known = [s for s in spans if s is not None]
    if len(known) != 2:
        return None
    a, b = known
    return Span(min(a.lo, b.lo), max(a.hi, b.hi), a.of | b.of, a.steps | b.steps)


def _add(a: Span, b: Span) -> Span:
    return Span(a.lo + b.lo, a.hi + b.hi, a.of | b.of, frozenset(x + y for x in a.steps for y in b.steps))


def _neg(a: Span) -> Span:
    return Span(-a.hi, -a.lo, a.of, frozenset(-x for x in a.steps))


def _mul(a: Span, b: Span) -> Span | None:
    if a.lo != a.hi or a.of:
        a, b = b, a
    if a.lo != a.hi or a.of:
        return None
    ends = (a.lo * b.lo, a.lo * b.hi)
    return Span(min(ends), max(ends), b.of, frozenset(a.lo * x for x in b.steps))


def _max(a: Span, b: Span) -> Span:
    if a.steps | b.steps != {0}:
        return Span(min(a.lo, b.lo), max(a.hi, b.hi), a.of | b.of, a.steps | b.steps)
    return Span(max(a.lo, b.lo), max(a.hi, b.hi), a.of | b.of)


def _floordiv(a: Span, b: Span) -> Span | None:
    if b.lo < 1 or a.steps | b.steps != {0}:
        return None
    return Span(min(a.lo // b.lo, a.lo // b.hi), max(a.hi // b.lo, a.hi // b.hi), a.of | b.of)


COMPARES = having("compare")
#: ops that hand values on
MOVES = ("full", "broadcast", "transpose", "cast", "slice", "narrow", "select", "max", "min")
RULES: dict[str, Any] = {
    "add": _add, "sub": lambda a, b: _add(a, _neg(b)), "neg": _neg, "mul": _mul, "max": _max, "abs": lambda a: _max(a, _neg(a)),
    "min": lambda a, b: _neg(_max(_neg(a), _neg(b))), "floordiv": _floordiv,
    "mod": lambda a, b: None if b.lo < 1 or a.steps | b.steps != {0} else Span(0, b.hi - 1, b.of),
    **dict.fromkeys(("full", "broadcast", "transpose", "cast", "slice"), lambda a, *more: a)}
