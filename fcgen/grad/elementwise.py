"""Partial derivatives of the elementwise functions, one record each: both modes follow from them.

A partial is a function (writer, t, operands, result) -> t times the derivative with respect to one operand, or None where that is zero
everywhere. Operands and result come in the dtype that they are computed in, as does t. Where a function has a kink or a step, its
derivative is torch's:
  - max, min: of two equal operands each gets half;
  - abs: 0 at 0; floor, ceil: 0;
  - x ** y: 0 in x where y is 0, 0 in y where x is 0 and y is not below 0;
  - sqrt, log and others that have an infinite slope somewhere have it; times a gradient of 0 that is NaN, as there.
Comparisons, conditions and integers have no derivative, and nothing flows through a conversion to an integer.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi, sqrt

from ..ir.core import Value
from ..ir.elementwise import FNS
from .writer import Writer

Partial = Callable[[Writer, Value, tuple[Value, ...], Value], Value]


def _as_it_is(m: Writer, t: Value, x: tuple[Value, ...], out: Value) -> Value:
    return t


def _negated(m: Writer, t: Value, x: tuple[Value, ...], out: Value) -> Value:
    return m.call("neg", t)


def _chosen(less: str, mine: int) -> Partial:
    """less: the comparison by which an operand loses against the other."""

    def partial(m: Writer, t: Value, x: tuple[Value, ...], out: Value) -> Value:
        a, b = x[mine], x[1 - mine]
        return m.select(m.call(less, a, b), 0.0, m.select(m.call("eq", a, b), m.mul(t, 0.5), t))

    return partial


def _base(m: Writer, t: Value, x: tuple[Value, ...], out: Value) -> Value:
    a, n = x
    return m.select(m.call("eq", n, 0.0), 0.0, m.mul(t, m.mul(n, m.call("pow", a, m.sub(n, 1.0)))))


def _exponent(m: Writer, t: Value, x: tuple[Value, ...], out: Value) -> Value:
    a, n = x
    none = m.call("and", m.call("eq", a, 0.0), m.call("ge", n, 0.0))
    return m.select(none, 0.0, m.mul(t, m.mul(out, m.call("log", a))))


def _sign(m: Writer, t: Value, x: tuple[Value, ...], out: Value) -> Value:
    return m.select(m.call("gt", x[0], 0.0), t, m.select(m.call("lt", x[0], 0.0), m.call("neg", t), 0.0))


#: name -> a partial for each operand
PARTIALS: dict[str, tuple[Partial | None, ...]] = {
    "add": (_as_it_is, _as_it_is), "sub": (_as_it_is, _negated), "neg": (_negated,), "abs": (_sign,), "floor": (None,), "ceil": (None,),
    "mul": (lambda m, t, x, out: m.mul(t, x[1]), lambda m, t, x, out: m.mul(t, x[0])),
    "fma": (lambda m, t, x, out: m.mul(t, x[1]), lambda m, t, x, out: m.mul(t, x[0]), _as_it_is),
    "div": (lambda m, t, x, out: m.div(t, x[1]), lambda m, t, x, out: m.call("neg", m.mul(m.div(t, x[1]), out))),
    "max": (_chosen("lt", 0), _chosen("lt", 1)), "min": (_chosen("gt", 0), _chosen("gt", 1)), "pow": (_base, _exponent),
    "exp": (lambda m, t, x, out: m.mul(t, out),), "exp2": (lambda m, t, x, out: m.mul(m.mul(t, out), log(2)),),
    "log": (lambda m, t, x, out: m.div(t, x[0]),), "log2": (lambda m, t, x, out: m.mul(m.div(t, x[0]), 1 / log(2)),),
    "sqrt": (lambda m, t, x, out: m.div(m.mul(t, 0.5), out),),
    "rsqrt": (lambda m, t, x, out: m.mul(m.mul(t, out), m.mul(m.mul(out, out), -0.5)),),
    "rcp": (lambda m, t, x, out: m.call("neg", m.mul(t, m.mul(out, out))),),
    "sin": (lambda m, t, x, out: m.mul(t, m.call("cos", x[0])),),
    "cos": (lambda m, t, x, out: m.call("neg", m.mul(t, m.call("sin", x[0]))),),
    **dict.fromkeys(("tanh", "tanh_approx"), (lambda m, t, x, out: m.mul(t, m.sub(1.0, m.mul(out, out))),)),
    "sigmoid": (lambda m, t, x, out: m.mul(t, m.mul(out, m.sub(1.0, out))),),
    "erf": (lambda m, t, x, out: m.mul(t, m.mul(m.call("exp", m.call("neg", m.mul(x[0], x[0]))), 2 / sqrt(pi))),),
}

#: functions of floats that are none of numbers: what depends on them is refused
NO_NUMBERS = ("bits",)
assert all(f.name in PARTIALS or f.name in NO_NUMBERS or f.kind not in ("arith", "float", "bits") for f in FNS.values())
