"""The algebraic rules of `simplify`: each looks at one op and returns the value to use instead, or None.

A rule is a function of the sweep and an op whose operands are already simplified; it builds what it needs with `s.make`. Rules
are tried in the order of this file. Operands of commutative ops come with the simpler one on the right (tile, scalar,
constant).

Exact rules come first. Rules under "up to rounding" change float32 results in the last places, and only ever float32:
  - (x * s1) * s2 becomes x * (s1 * s2), (x - r) * s becomes x*s - r*s where r has lower rank (one multiply-add per element);
  - x / r with r of lower rank becomes x * (1 / r): it differs from the division also where 1 / r overflows (r below 2**-128);
  - exp(x) becomes exp2(x * log2e), log(x) becomes log2(x) * ln2;
  - x + dot(a, b) accumulates onto x.
Signs of zero and payloads of NaNs are not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from math import e, inf, log, log2
from typing import TYPE_CHECKING

import numpy as np

from ...ir.core import Op, Value
from ...ir.elementwise import FNS, INVERSE, to_dtype
from ...ir.known import number_of
from ...ir.types import DTYPES, DType, Scalar, Tile, f32, i1
from ..facts.common import ELEMENTWISE, is_position, rank

if TYPE_CHECKING:
    from .simplify import Sweep

Rule = Callable[["Sweep", Op], "Value | None"]
RULES: dict[str, list[Rule]] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    def register(fn: Rule) -> Rule:
        for kind in kinds:
            RULES.setdefault(kind, []).append(fn)
        return fn

    return register


def apply_rules(s: Sweep, op: Op) -> Value | None:
    for fn in RULES.get(op.kind, ()):
        out = fn(s, op)
        if out is not None and out is not op.result:
            return out
    return None


# ---- constants and broadcasts ----------------------------------------------------------------------------------------


@rule(*sorted(ELEMENTWISE))
def fold_constants(s: Sweep, op: Op) -> Value | None:
    number = number_of(op, [s.const(v) for v in op.operands])
    return None if number is None else s.spread(s.number(number, op.result.type.dtype), op.result.type)


@rule(*sorted(ELEMENTWISE))
def full_to_scalar(s: Sweep, op: Op) -> Value | None:
    """A tile that is one scalar everywhere is that scalar to an elementwise op; if all tiles are, so is the result."""
    if not isinstance(op.result.type, Tile):
        return None
    fulls = [s.made_by(v, "full") for v in op.operands]
    if not any(fulls):
        return None
    operands = tuple(f.operands[0] if f else v for f, v in zip(fulls, op.operands))
    out = s.make(op.kind, *operands, **op.attrs)
    return s.spread(out, op.result.type)


@rule(*sorted(ELEMENTWISE))
def broadcast_late(s: Sweep, op: Op) -> Value | None:
    """f(broadcast a, broadcast b, scalar) = broadcast f(a, b, scalar): less to compute."""
    if rank(op.result) == 0:
        return None
    spread = [s.made_by(v, "broadcast") if rank(v) else None for v in op.operands]
    first = next((b for b in spread if b), None)
    if first is None:
        return None
    source = first.operands[0].type.shape
    if len(source) >= rank(op.result):
        return None
    operands = []
    for v, b in zip(op.operands, spread):
        if rank(v) == 0:
            operands.append(v)
        elif b and b["axes"] == first["axes"] and b.operands[0].type.shape == source:
            operands.append(b.operands[0])
        else:
            return None
    return s.make("broadcast", s.make(op.kind, *operands, **op.attrs), axes=first["axes"], shape=op.result.type.shape)


@rule("broadcast")
def simple_broadcast(s: Sweep, op: Op) -> Value | None:
    x, axes, shape = op.operands[0], tuple(op["axes"]), op.result.type.shape
    if rank(x) == 0:
        return s.make("full", x, shape=shape)
    if axes == tuple(range(len(shape))):
        return x
    inner = s.made_by(x, "full", "broadcast")
    if inner is None:
        return None
    if inner.kind == "full":
        return s.make("full", inner.operands[0], shape=shape)
    return s.make("broadcast", inner.operands[0], axes=tuple(axes[a] for a in inner["axes"]), shape=shape)


@rule("transpose")
def simple_transpose(s: Sweep, op: Op) -> Value | None:
    inner = s.made_by(op.operands[0], "transpose", "full", "broadcast")
    shape = op.result.type.shape
    if inner is None:
        return None
    if inner.kind == "transpose":
        return inner.operands[0]
    if inner.kind == "full":
        return s.make("full", inner.operands[0], shape=shape)
    return s.make("broadcast", inner.operands[0], axes=tuple(1 - a for a in inner["axes"]), shape=shape)


@rule("reduce")
def reduce_full(s: Sweep, op: Op) -> Value | None:
    inner = s.made_by(op.operands[0], "full")
    if inner is None or (op["fn"] == "sum" and op.result.type.dtype != f32):
        return None
    x = inner.operands[0]
    if op["fn"] == "sum":
        x = s.make("mul", x, s.number(float(op.operands[0].type.shape[op["axis"]]), f32))
    return s.spread(x, op.result.type)


@rule("reduce", "cumsum")
def widen_sums(s: Sweep, op: Op) -> Value | None:
    """Sums and extrema of narrow elements are kept in what these are computed in, and rounded once."""
    dtype = op.result.type.dtype
    if dtype.computed == dtype:
        return None
    return s.make("cast", s.make(op.kind, s.make("cast", op.operands[0], to=dtype.computed.name), **op.attrs), to=dtype.name)


@rule("cast")
def simple_cast(s: Sweep, op: Op) -> Value | None:
    x, to = op.operands[0], DTYPES[op["to"]]
    if x.type.dtype == to:
        return x
    inner = s.made_by(x, "cast")
    if inner is not None:
        first, middle = inner.operands[0].type.dtype, x.type.dtype
        widens = first.is_float and middle.is_float and middle.bits > first.bits > 8  # to 8 bits infinity becomes a number
        if first == to and (widens or (first.is_int and middle.is_int and middle.bits > first.bits)):
            return inner.operands[0]
    return None


# ---- identities ------------------------------------------------------------------------------------------------------


@rule("add", "sub", "mul", "div", "floordiv", "mod", "max", "min", "pow", "shl", "shr")
def right_identity(s: Sweep, op: Op) -> Value | None:
    """x + 0, x - 0, x * 1, x / 1, x // 1, max(x, -inf), ... and, for integers, x * 0 and x % 1."""
    x, c = op.operands[0], s.const(op.operands[1])
    if c is None:
        return None
    kind, is_int = op.kind, op.result.type.dtype.is_int
    if (kind in ("add", "sub", "shl", "shr") and c == 0) or (kind in ("mul", "div", "floordiv", "pow") and c == 1) \
            or (kind == "max" and c == -inf) or (kind == "min" and c == inf):
        return s.spread(x, op.result.type)
    if (is_int and kind == "mul" and c == 0) or (kind == "mod" and c == 1):
        return s.spread(s.number(0, op.result.type.dtype), op.result.type)
    if kind == "mul" and c == -1:
        return s.spread(s.make("neg", x), op.result.type)
    return None


@rule("pow")
def small_powers(s: Sweep, op: Op) -> Value | None:
    """x ** n is multiplications for whole n up to 8 (within 4 ulp, as powf is), 1 over them for n below 0; x ** 0.5 and x ** -0.5 are
    roots, 2 ** x is exp2. 16-bit floats are multiplied in f32 and rounded once."""
    x, dtype = op.operands[0], op.result.type.dtype
    n, base = s.const(op.operands[1]), s.const(x)
    if base == 2 and n is None:
        return s.spread(s.make("exp2", op.operands[1]), op.result.type)
    if n in (0.5, -0.5):
        return s.spread(s.make("sqrt" if n > 0 else "rsqrt", x), op.result.type)
    if n is None or n != int(n if abs(n) <= 8 else 0):
        return None
    if n == 0:
        return s.spread(s.number(1.0, dtype), op.result.type)
    square, out = s.make("cast", x, to="f32") if dtype.computed == f32 != dtype and abs(n) > 2 else x, None
    for bit in range(int(abs(n)).bit_length()):
        square = s.make("mul", square, square) if bit else square
        if int(abs(n)) >> bit & 1:
            out = square if out is None else s.make("mul", out, square)
    assert out is not None
    out = s.make("rcp", out) if n < 0 else out
    return s.spread(s.make("cast", out, to=dtype.name) if out.type.dtype != dtype else out, op.result.type)


@rule("sub", "max", "min", "and", "or", "xor", "lt", "le", "gt", "ge", "eq", "ne")
def same_operands(s: Sweep, op: Op) -> Value | None:
    x, y = op.operands
    if x is not y:
        return None
    if op.kind in ("max", "min", "and", "or"):
        return x
    if x.type.dtype.is_float:
        return None  # NaN
    if op.kind in ("sub", "xor"):
        return s.spread(s.number(False if x.type.dtype == i1 else 0, x.type.dtype), op.result.type)
    return s.spread(s.number(op.kind in ("le", "ge", "eq"), i1), op.result.type)


@rule("max", "min", "and", "or")
def nested(s: Sweep, op: Op) -> Value | None:
    """max(max(x, y), x) = max(x, y), and for integers max(min(x, y), x) = x; and / or likewise."""
    dual = {"max": "min", "min": "max", "and": "or", "or": "and"}[op.kind]
    for x, y in (op.operands, op.operands[::-1]):
        inner = s.made_by(x, op.kind, dual)
        if inner and y in inner.operands:
            if inner.kind == op.kind:
                return x
            return y if not y.type.dtype.is_float and y.type == op.result.type else None
    return None


@rule("add", "sub", "neg", "abs", "not")
def signs(s: Sweep, op: Op) -> Value | None:
    x = op.operands[-1]
    inner = s.made_by(x, "neg")
    if op.kind in ("add", "sub"):
        return s.make("sub" if op.kind == "add" else "add", op.operands[0], inner.operands[0]) if inner else None
    if op.kind in ("neg", "abs"):
        if inner:
            return inner.operands[0] if op.kind == "neg" else s.make("abs", inner.operands[0])
        return None
    twice = s.made_by(x, "not")
    if twice:
        return twice.operands[0]
    test = s.made_by(x, *INVERSE)
    if test and (not test.operands[0].type.dtype.is_float or test.kind in ("eq", "ne")):
        return s.make(INVERSE[test.kind], *test.operands)
    return None


@rule("and", "or", "xor")
def truth(s: Sweep, op: Op) -> Value | None:
    x, c = op.operands[0], s.const(op.operands[1])
    if op.result.type.dtype != i1 or c is None:
        return None
    if op.kind == "xor":
        return s.spread(s.make("not", x) if c else x, op.result.type)
    if bool(c) == (op.kind == "and"):
        return s.spread(x, op.result.type)
    return s.spread(s.number(bool(c), i1), op.result.type)


@rule("select")
def simple_select(s: Sweep, op: Op) -> Value | None:
    cond, a, b = op.operands
    c, out = s.const(cond), op.result.type
    if c is not None:
        return s.spread(a if c else b, out)
    if a is b:
        return s.spread(a, out)
    inverse = s.made_by(cond, "not")
    if inverse:
        return s.make("select", inverse.operands[0], b, a)
    if out.dtype == i1:
        ca, cb = s.const(a), s.const(b)
        if ca is True or cb is False:
            return s.make("or" if ca is True else "and", cond, b if ca is True else a)
    inner = s.made_by(a, "select")
    if inner and inner.operands[0] is cond:
        return s.make("select", cond, inner.operands[1], b)
    inner = s.made_by(b, "select")
    if inner and inner.operands[0] is cond:
        return s.make("select", cond, a, inner.operands[2])
    return None


@rule("add", "sub", "mul", "floordiv", "mod")
def integers(s: Sweep, op: Op) -> Value | None:
    """(x + c) + d, (x * c) * d, (x + y) - y, (x - y) + y; and of what cannot wrap (x * c) // c, (x * c) % c."""
    dtype, (x, y) = op.result.type.dtype, op.operands
    if not dtype.is_int:
        return None
    inner = s.made_by(x, "add", "sub", "mul")
    if inner is None:
        return None
    p, q = inner.operands
    if op.kind == "sub" and inner.kind == "add" and y in (p, q):
        return s.spread(q if y is p else p, op.result.type)
    if op.kind == "add" and inner.kind == "sub" and y is q:
        return s.spread(p, op.result.type)
    c, d = s.const(q), s.const(y)
    if c is None or d is None:
        return None
    if op.kind in ("add", "sub") and inner.kind in ("add", "sub"):
        total = (c if inner.kind == "add" else -c) + (d if op.kind == "add" else -d)
        return s.spread(s.make("add", p, s.number(wrapped(total, dtype), dtype)), op.result.type)
    if op.kind == "mul" and inner.kind == "mul":
        return s.spread(s.make("mul", p, s.number(wrapped(c * d, dtype), dtype)), op.result.type)
    whole = inner.kind == "mul" and d > 0 and c % d == 0
    if op.kind == "floordiv" and whole and is_position(p, s.defs, s.counted.__contains__):
        return s.spread(s.make("mul", p, s.number(c // d, dtype)), op.result.type)
    if op.kind == "mod" and whole and (d & d - 1 == 0 or is_position(p, s.defs, s.counted.__contains__)):
        return s.spread(s.number(0, dtype), op.result.type)
    return None


def wrapped(n: int, dtype: DType) -> int:
    """A whole number as an integer dtype holds it."""
    return int(to_dtype(np.asarray(n & (1 << dtype.bits) - 1, np.uint64), dtype))


#: A float32 of this size is off by 2**-11 at most, and so is the exponent of a power with it: the rounding of a float16 near one.
FAR = 2.0**13


# ---- up to rounding --------------------------------------------------------------------------------------------------


@rule("exp", "log")
def base_two(s: Sweep, op: Op) -> Value | None:
    if op.result.type.dtype != f32:
        return None
    if op.kind == "exp":
        return s.make("exp2", s.make("mul", op.operands[0], s.number(log2(e), f32)))
    return s.make("mul", s.make("log2", op.operands[0]), s.number(log(2), f32))


@rule("div")
def reciprocal(s: Sweep, op: Op) -> Value | None:
    x, y = op.operands
    if op.result.type.dtype != f32 or rank(op.result) == 0 or rank(x) == 0:
        return None
    spread = s.made_by(y, "broadcast")
    if spread:
        r = s.make("rcp", spread.operands[0])
        return s.make("mul", x, s.make("broadcast", r, axes=spread["axes"], shape=y.type.shape))
    return s.make("mul", x, s.make("rcp", y)) if isinstance(y.type, Scalar) else None


@rule("mul")
def scalar_factors(s: Sweep, op: Op) -> Value | None:
    """(x * s1) * s2 = x * (s1 * s2); (x - c) * s = x * s - c * s for a number c: rows that vary may be so large that c * s drowns x. A sum
    of several numbers stays one: a chain of n steps would be multiplied out n times."""
    x, k = op.operands
    if op.result.type.dtype != f32 or rank(k):
        return None
    inner = s.made_by(x, "mul")
    constants = s.const(k) is not None and inner is not None and s.const(inner.operands[1]) is not None
    if inner and rank(inner.operands[1]) == 0 and (rank(x) or constants):
        return s.make("mul", inner.operands[0], s.make("mul", inner.operands[1], k))
    inner = s.made_by(x, "sub", "add")
    is_sum = lambda o: o is not None and rank(o.result) > 0 and sum(s.const(v) is not None for v in o.operands) == 1
    if inner is None or not is_sum(inner) or any(is_sum(s.made_by(v, "sub", "add")) for v in inner.operands):
        return None
    return s.make(inner.kind, *(s.make("mul", v, k) for v in inner.operands))


@rule("exp2")
def power_of_a_difference(s: Sweep, op: Op) -> Value | None:
    """exp2((x - r) * k) = exp2((x - d) * k - b), one multiply-add per element: b is r * k, and d is 0. Where r * k is so large that its
    rounding would show, d is r and b is 0. r is a row, and x a tile or a row: equal elements give equal bits."""
    scaled = s.made_by(op.operands[0], "mul")
    inner = scaled and s.made_by(scaled.operands[0], "sub")
    if not scaled or not inner or rank(scaled.operands[1]) or op.result.type.dtype != f32:
        return None
    k, (x, r) = scaled.operands[1], inner.operands
    spread = s.made_by(r, "broadcast")
    row = spread.operands[0] if spread else r
    if rank(row) != 1 or x.type.shape != op.result.type.shape or s.made_by(x, "broadcast", "full"):
        return None
    as_tile = lambda v: s.make("broadcast", v, axes=spread["axes"], shape=r.type.shape) if spread else v
    b, zero = s.make("mul", row, k), s.spread(s.number(0.0, f32), row.type)
    far = s.make("gt", s.make("abs", b), s.number(FAR, f32), name="far")
    d, b = s.make("select", far, row, zero, rare=True, name="shift"), s.make("select", far, zero, b, rare=True)
    return s.make("exp2", s.make("sub", s.make("mul", s.make("sub", x, as_tile(d)), k), as_tile(b)))


@rule("add", "sub")
def dot_accumulates(s: Sweep, op: Op) -> Value | None:
    """x + dot(a, b), and dot(a, b) - x for an x = z * k, which is z * -k as well."""
    if op.result.type.dtype != f32:
        return None
    for dot, x in (op.operands[::-1], op.operands) if op.kind == "add" else (op.operands,):
        d = s.made_by(dot, "dot")
        if d and len(d.operands) == 2 and x is not dot and x.type == dot.type and s.once_here(dot):
            if op.kind == "sub":
                product = s.made_by(x, "mul")
                if product is None or rank(product.operands[1]):
                    return None
                x = s.make("mul", product.operands[0], s.make("neg", product.operands[1]))
            return s.make("dot", *d.operands, x, name=dot.name or op.result.name, **d.attrs)
    return None


assert set(RULES) <= set(FNS) | {"select", "cast", "broadcast", "transpose", "reduce", "cumsum"}
