"""Text of C++: expressions with precedence, literals, closed forms of index tables, and the line writer."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ...errors import Loc
from ...ir.types import DTYPES, DType

#: C++ type of one element, as it is computed with: narrow ones are kept packed, and widened
CTYPES = {d.name: {"f32": "float", "f64": "double", "i1": "bool", "i32": "int", "u32": "uint32_t", "i64": "long long"}[d.computed.name]
          for d in DTYPES.values()}


def register_type(dtype: DType) -> str:
    """C++ type of a register of a fragment."""
    return "uint32_t" if dtype.per_register > 1 else CTYPES[dtype.name]


#: type of an element in global memory; narrow ones are raw bits, so that no header is needed
MEMTYPES = {d.name: d.name if d.per_register > 1 else "unsigned char" if d.name == "i1" else CTYPES[d.name] for d in DTYPES.values()}

#: what is folded at compile time (on Python's numbers: addresses are folded by the thousand)
FOLDED: dict[str, Callable[[int, int], int]] = {"add": int.__add__, "sub": int.__sub__, "mul": int.__mul__, "max": max, "min": min,
                                                "floordiv": int.__floordiv__, "mod": int.__mod__}

ATOM, UNARY, MUL, ADD, SHIFT, LESS, EQUAL, BITS, AND, OR, TERNARY = 100, 90, 80, 70, 60, 50, 45, 40, 30, 20, 10
_PREC = {"*": MUL, "/": MUL, "%": MUL, "+": ADD, "-": ADD, "<<": SHIFT, ">>": SHIFT, "<": LESS, "<=": LESS, ">": LESS, ">=": LESS,
         "==": EQUAL, "!=": EQUAL, "&": BITS, "|": BITS, "^": BITS, "&&": AND}


class X(NamedTuple):
    """An expression: its text, how tightly it binds, and the depth of the innermost block it depends on."""

    text: str
    prec: int = ATOM
    depth: int = 0

    def __str__(self) -> str:
        return self.text

    def within(self, prec: int) -> str:
        return self.text if self.prec >= prec else f"({self.text})"

    @property
    def is_zero(self) -> bool:
        return self.text == "0"


ZERO = X("0")


def binary(op: str, a: X, b: X) -> X:
    """`a op b` with the parentheses it needs; bit operations are always bracketed against arithmetic, as readers expect."""
    prec = _PREC[op]
    depth = max(a.depth, b.depth)
    if op in ("&", "|", "^", "<<", ">>"):
        return X(f"{a.within(UNARY)} {op} {b.within(UNARY)}", prec, depth)
    return X(f"{a.within(prec)} {op} {b.within(prec + 1)}", prec, depth)


def add(a: X, b: X) -> X:
    """Integer a + b without zeros or needless brackets; numbers are folded."""
    if a.is_zero:
        return b
    if b.is_zero:
        return a
    if _number(a) is not None and _number(b) is not None:
        return X(str(_number(a) + _number(b)), depth=0)  # type: ignore[operator]
    if b.text.startswith("-") and b.prec >= MUL:
        return X(f"{a.within(ADD)} - {b.text[1:]}", ADD, max(a.depth, b.depth))
    return X(f"{a.within(ADD)} + {b.within(ADD)}", ADD, max(a.depth, b.depth))


def mul(a: X, n: int) -> X:
    if n == 0 or a.is_zero:
        return ZERO
    if n == 1:
        return a
    if _number(a) is not None:
        return X(str(_number(a) * n), depth=0)  # type: ignore[operator]
    return binary("*", a, X(str(n)))


def div(a: X, n: int) -> X:
    return a if n == 1 else binary("/", a, X(str(n)))


def mod(a: X, n: int) -> X:
    return binary("%", a, X(str(n)))


def total(terms: list[X]) -> X:
    return functools.reduce(add, terms, ZERO)


def inside(x: X, size: X) -> X:
    """0 <= x < size, as one comparison."""
    return binary("<", call("unsigned", x), call("unsigned", size))


def every(conditions: list[X]) -> X | None:
    """All of them; None where there are none."""
    if len(conditions) < 2:
        return conditions[0] if conditions else None
    return X(" && ".join(c.within(AND) for c in conditions), AND, max(c.depth for c in conditions))


def call(fn: str, *args: X | str) -> X:
    return X(f"{fn}({', '.join(str(a) for a in args)})", ATOM, max((a.depth for a in args if isinstance(a, X)), default=0))


def _number(x: X) -> int | None:
    return int(x.text) if re.fullmatch(r"-?\d+", x.text) else None


def literal(value: object, dtype: DType) -> X:
    if dtype.name == "i1":
        return X("true" if value else "false")
    if dtype.is_int:
        n = int(value)  # type: ignore[call-overload]
        suffix = {"i64": "LL", "u32": "u"}.get(dtype.name, "")
        return X(f"{n}{suffix}", ATOM if n >= 0 else UNARY)
    x = float(value)  # type: ignore[arg-type]
    if math.isnan(x):
        return X("NAN")
    if math.isinf(x):
        return X("INF") if x > 0 else X("-INF", UNARY)
    if dtype.name == "f64":
        text = repr(x)
    else:
        plain = 1e-5 <= abs(x) < 1e7 or x == 0
        text = (np.format_float_positional if plain else np.format_float_scientific)(np.float32(x), trim="0") + "f"
    return X(text, ATOM if not text.startswith("-") else UNARY)


# ---- closed forms of integer tables ----------------------------------------------------------------------------------


def digits(table: np.ndarray) -> tuple[int, list[tuple[int, int, int]]] | None:
    """`table[n] == start + sum of weight * (n // div % mod)` as (start, [(div, mod, weight)]), or None. Found by peeling the
    longest run of equal steps, checked on every entry."""
    vals = np.asarray(table).ravel().astype(np.int64)
    start, out, by = int(vals[0]), [], 1
    while len(vals) > 1:
        step = int(vals[1] - vals[0])
        for run in sorted((d for d in range(2, len(vals) + 1) if len(vals) % d == 0), reverse=True):
            rows = vals.reshape(-1, run)
            if (rows - rows[:, :1] == np.arange(run) * step).all():
                break
        else:
            return None
        if step:
            out.append((by, run, step))
        vals, by = vals[::run], by * run
    return start, out


def closed_form(table: np.ndarray, var: X) -> X | None:
    """C text of `table[var]`, or None where it has no short form."""
    n = len(table)
    if _number(var) is not None:
        return X(str(int(table[_number(var)])))  # type: ignore[index]
    found = digits(table)
    if found is None or len(found[1]) > 4:
        return None
    start, parts = found
    terms = []
    for by, size, weight in reversed(parts):
        t = div(var, by)
        if by * size < n:
            t = mod(t, size)
        terms.append(X(f"{t.within(MUL)} * {weight}", MUL, t.depth) if weight != 1 else t)
    if start:
        terms.append(X(str(start), ATOM if start > 0 else UNARY))
    return total(terms)


# ---- lines -----------------------------------------------------------------------------------------------------------


@dataclass
class Segment:
    """A place in the text that may still grow after later lines were written: where hoisted declarations go."""

    indent: int
    items: list[tuple[int, str, Loc | None] | Segment] = field(default_factory=list)

    def line(self, text: str, loc: Loc | None = None, indent: int | None = None) -> None:
        self.items.append((self.indent if indent is None else indent, text, loc))

    def flat(self) -> Iterator[tuple[int, str, Loc | None]]:
        for it in self.items:
            if isinstance(it, Segment):
                yield from it.flat()
            else:
                yield it


class Writer:
    """Appends lines at an indent; `mark()` leaves a segment to be filled later."""

    def __init__(self, indent: int = 0):
        self.indent = indent
        self.root = Segment(indent)
        self.loc: Loc | None = None
        self.part: tuple[str, int] | None = None  # unrolled loops go over a part of their range: (which, of how many)

    def line(self, text: str) -> None:
        for part in text.split("\n"):
            self.root.line(part, self.loc, self.indent)

    def open(self, text: str) -> None:
        self.line(text)
        self.indent += 1

    def close(self, text: str = "}") -> None:
        self.indent -= 1
        self.line(text)

    def mark(self) -> Segment:
        seg = Segment(self.indent)
        self.root.items.append(seg)
        return seg

    def first(self, n: int, start: int = 0) -> str:
        """Where a loop over [start, n), or over the part of it that is written, begins."""
        return str(start) if self.part is None else f"{self.part[0]} * {n // self.part[1]}"

    def end(self, n: int) -> str:
        return str(n) if self.part is None else f"({self.part[0]} + 1) * {n // self.part[1]}"

    def nest(self, loops: dict[str, int], lines: list[str]) -> None:
        """Lines inside of unrolled loops, variable -> how many trips; one of a single trip is left out."""
        many = {v: n for v, n in loops.items() if n > 1}
        for v, n in many.items():
            self.line("#pragma unroll")
            last = len(lines) > 1 and v == [*many][-1]
            self.line(f"for (int {v} = {self.first(n)}; {v} < {self.end(n)}; ++{v})" + (" {" if last else ""))
            self.indent += 1
        for line in lines:
            self.line(line)
        self.indent -= len(many)
        if many and len(lines) > 1:
            self.root.line("}", self.loc, self.indent + len(many) - 1)

    def loop(self, n: int, var: str, body: Callable[[X], list[str]], start: int = 0, block: bool = False) -> None:
        """An unrolled loop over [start, n); one trip is written without the loop. block: as a block of its own. Within a `part`, over as
        large a part of it."""
        if n - start == 1:
            if block:
                self.open("{")
            for t in body(X(str(start))):
                self.line(t)
            if block:
                self.close()
        if n - start <= 1:
            return
        lines = body(X(var))
        head = f"for (int {var} = {self.first(n, start)}; {var} < {self.end(n)}; ++{var})"
        if len(lines) == 1 and len(lines[0]) > 0 and not lines[0].rstrip().endswith("}"):
            self.line("#pragma unroll")
            self.line(head)
            self.line("    " + lines[0])
            return
        self.line("#pragma unroll")
        self.open(head + " {")
        for t in lines:
            self.line(t)
        self.close()
