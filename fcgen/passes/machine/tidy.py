"""tidy: constants once, no scalar arithmetic on constants, nothing computed twice, no bound that another one implies, nothing unread.

In and out: machine IR of any phase before `sync`. Works on scalar ops (and slots), which the other passes emit freely; fragments are left
alone, since where they are computed is a decision.
"""

from __future__ import annotations

from typing import Any

from ...ir.core import Block, Kernel, Op, Value
from ...ir.elementwise import FNS
from ...ir.known import number_of
from ...ir.rewrite import Builder, Env, map_bodies, remove_dead
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Scalar

#: x op c -> x
UNIT = {("add", 0), ("sub", 0), ("mul", 1), ("floordiv", 1)}
DUAL = {"min": "max", "max": "min"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    return map_bodies(kernel, lambda body: remove_dead(_tidy(body, Env(), {}, {}, {})))


def _tidy(block: Block, env: Env, seen: dict[Any, Value], consts: dict[Value, Any],
          bounds: dict[Value, tuple[str, frozenset[Value]]]) -> Block:
    seen = dict(seen)
    b = Builder()

    def constant(value: Any, dtype: str, loc: Any) -> Value:
        key = ("const", repr(value), dtype)
        if key not in seen:
            seen[key] = b.emit("const", value=value, dtype=dtype, loc=loc)
            consts[seen[key]] = value
        return seen[key]

    for op in block.ops:
        op = op.reading(env.all(op.operands))
        if op.kind == "const":
            env[op.result] = constant(op["value"], op["dtype"], op.loc)
            continue
        if _is_scalar_fn(op):
            known = [consts.get(v) for v in op.operands]
            if (folded := number_of(op, known)) is not None:
                env[op.result] = constant(folded, op.result.type.dtype.name, op.loc)
                continue
            if len(known) == 2 and (op.kind, known[1]) in UNIT and op.operands[0].type == op.result.type:
                env[op.result] = op.operands[0]
                continue
            if op.kind in DUAL and op.result.type.dtype.is_int and (bound := _implied(op, bounds)) is not None:
                env[op.result] = bound
                continue
            if len(known) == 2 and FNS[op.kind].commutative and (op.kind, known[0]) in UNIT:
                env[op.result] = op.operands[1]
                continue
        if _is_scalar_fn(op) or op.kind in ("size", "slot"):
            key = (op.kind, op.operands, tuple(sorted(op.attrs.items())))
            if key in seen:
                env[op.result] = seen[key]
                continue
            seen[key] = op.result
            if op.kind in DUAL:
                bounds[op.result] = (op.kind, _over(op.kind, op.operands[0], bounds) | _over(op.kind, op.operands[1], bounds))
        b.add(op.within(lambda r: _tidy(r, env, seen, consts, bounds)))
    return b.block(block.args)


def _over(kind: str, v: Value, bounds: dict[Value, tuple[str, frozenset[Value]]]) -> frozenset[Value]:
    """The values of which v is the smallest, or the largest."""
    made, values = bounds.get(v, ("", frozenset()))
    return values if made == kind else frozenset({v})


def _implied(op: Op, bounds: dict[Value, tuple[str, frozenset[Value]]]) -> Value | None:
    """The operand that the op's result is anyway: min(min(x, y), x) is min(x, y), and min(max(x, y), x) is x."""
    for a, b in (op.operands, op.operands[::-1]):
        if _over(op.kind, b, bounds) <= _over(op.kind, a, bounds):
            return a
        if bounds.get(a, ("",))[0] == DUAL[op.kind] and b in bounds[a][1]:
            return b
    return None


def _is_scalar_fn(op: Op) -> bool:
    return op.kind in FNS and all(isinstance(v.type, Scalar) for v in (*op.operands, *op.results))
