"""Words for values that no one named: from what they are used for, else from what they are made of.

Only wishes come from here: which word a value gets changes nothing but that word.
"""

from __future__ import annotations

import math

from ...ir.core import Op, Value
from ...ir.elementwise import FNS
from ...ir.types import Scalar, Tensor
from .plan import ACCUMULATE, Plan

#: a word that would be longer says less than a short one
LONG = 22
_JOINT = {"add": "plus", "sub": "minus", "mul": "times", "floordiv": "over", "div": "over", "mod": "mod", "min": "or", "max": "or",
          "lt": "below", "le": "upto", "gt": "above", "ge": "from", "eq": "is", "ne": "isnt", "and": "and", "or": "or", "pow": "to"}


#: op -> what a scalar is called that nothing else is known about
_SCALARS = {**dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne", "not"), "test"), **dict.fromkeys(("and", "or", "xor"), "tests"),
            **dict.fromkeys(("max", "min"), "end"),
            **dict.fromkeys(("add", "sub", "neg"), "sum"), **dict.fromkeys(("mul", "fma"), "product"),
            **dict.fromkeys(("exp", "exp2", "pow"), "power"), **dict.fromkeys(("div", "rcp", "floordiv"), "quotient"), "mod": "rest",
            "select": "choice", "vote_any": "any", "ld_global": "number", "gather": "number", "reduce": "total"}


def scalar(plan: Plan, v: Value) -> str:
    """What a scalar is called where `wished` has nothing to say."""
    op = plan.maker.get(v)
    return _SCALARS.get(op.kind, op.kind) if op is not None else "number"


def word(plan: Plan, v: Value, fuel: int = 3) -> str:
    """A word for the value, or "" where nothing short can be said."""
    if v.name or fuel == 0:
        return v.name
    op = plan.maker.get(v)
    if op is None:
        return ""
    if op.kind == "for":  # what it makes, as its body does
        return word(plan, op.regions[0].yielded[op.results.index(v)], fuel)
    out = _of(plan, op, fuel - 1)
    return out if len(out) <= LONG else ""


def wished(plan: Plan, v: Value) -> str:
    """As `word`, of a value that is about to get a name: what it bounds comes first."""
    if v.name:
        return v.name
    for op, _ in plan.users.get(v, ()):
        if op.kind == "for" and v in op.operands[:2]:
            index = op.regions[0].args[0].name or "n"
            return f"{index}_{'to' if v is op.operands[1] else 'from'}"
        if op.kind == "st_global" and v is op.operands[1]:
            return f"{op.operands[0].name.lower()}_out"
    return word(plan, v)


def _of(plan: Plan, op: Op, fuel: int) -> str:
    kind, operands = op.kind, op.operands
    if kind == "const":
        x = op["value"]
        return "log2e" if isinstance(x, float) and math.isclose(x, math.log2(math.e), rel_tol=1e-6) else \
            str(int(x)) if not isinstance(x, bool) and 0 <= x < 10_000 and x == int(x) else ""
    if kind == "size":
        return str(op["dim"])
    if kind in ("cast", "full", "broadcast", "combine", "apart", "transpose", "slice", "unstage", "quad_transpose"):
        return word(plan, operands[0], fuel)
    if kind in ACCUMULATE:
        return _joined(word(plan, operands[0], fuel), "dot", word(plan, operands[1], fuel))
    if kind in ("ld_global", "gather") and isinstance(operands[0].type, Tensor):
        return operands[0].name.lower()
    if kind == "reduce":
        return _joined(op["fn"], word(plan, operands[0], fuel))
    if kind == "select":
        return word(plan, operands[1], fuel) or word(plan, operands[2], fuel)
    if kind not in FNS:
        return ""
    if len(operands) == 1:
        return _joined(kind, word(plan, operands[0], fuel))
    tiles = _tiles(plan, op, fuel) if kind == "floordiv" else ""
    if tiles or len(operands) != 2 or kind not in _JOINT:
        return tiles
    a, b = (word(plan, o, fuel) for o in operands)
    if FNS[kind].commutative and a.isdigit():
        a, b = b, a
    if kind in ("min", "max") and (b.isdigit() or not (a and b)):
        return a if b.isdigit() else _joined(a or b, "cut" if kind == "min" else "raised")
    if kind == "mul" and a.endswith("_tile") and b.isdigit():
        return f"{a.removesuffix('_tile')}_start"
    if kind in ("add", "sub") and b == "1":
        return _joined(a, "next" if kind == "add" else "before")
    if kind == "mul" and b == "log2e":
        return _joined(a, b)
    return _joined(a, _JOINT[kind], b)


def _tiles(plan: Plan, op: Op, fuel: int) -> str:
    """Of a quotient rounded up, (x + (n - 1)) // n: how many tiles x is."""
    above, n = plan.maker.get(op.operands[0]), _number(plan, op.operands[1])
    if above is None or above.kind != "add" or not n or _number(plan, above.operands[1]) != n - 1:
        return ""
    return _joined(word(plan, above.operands[0], fuel), "tiles")


def _number(plan: Plan, v: Value) -> int | None:
    op = plan.maker.get(v)
    return op["value"] if op is not None and op.kind == "const" and isinstance(v.type, Scalar) and v.type.dtype.is_int else None


def _joined(*words: str) -> str:
    return "_".join(words) if all(words) else ""
