"""Small questions that several tile-level passes ask about values and ops."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from math import gcd, inf, isinf
from typing import Any

from ...errors import FcError, Loc
from ...ir import tile_ops  # noqa: F401  (fills the op table)
from ...ir.core import Block, Kernel, Op, Value, walk
from ...ir.depends import sources
from ...ir.elementwise import FNS
from ...ir.layout import RegLayout, rowwise
from ...ir.op_table import having
from ...ir.ops import OPS
from ...ir.schedule import Schedule
from ...ir.types import Frag, Scalar, Tensor, Tile, i32

ELEMENTWISE = having("elementwise")
#: ops whose result lies as their operands do
ALIKE = ELEMENTWISE | {"sum_blocks"}
COMPARISONS = having("compare")


def effect(op: Op) -> str:
    """ "none", "read" or "write"; of an op with regions, the strongest inside it."""
    if not op.regions:
        return OPS[op.kind].effect
    inner = {effect(o) for r in op.regions for o in r.ops if o.kind != "yield"}
    return "write" if "write" in inner else "read" if "read" in inner else "none"


def writes(block: Block) -> bool:
    return any(o.kind != "yield" and OPS[o.kind].effect == "write" for o in walk(block))


def is_position(v: Value, defs: Mapping[Value, Op], known: Callable[[Value], bool], fuel: int = 12) -> bool:
    """Whether an i32 follows from sizes, constants, runs of positions and what is `known` to be one alone. Launches are refused where such
    arithmetic would leave 32 bits (`ir.ranges`); other numbers wrap."""
    if known(v):
        return True
    op = defs.get(v)
    if op is None or fuel == 0 or v.type.dtype != i32:
        return False
    fits = op.kind in FNS or op.kind in ("const", "size", "iota", "row_part", "narrow", "full", "broadcast", "transpose")
    return fits and all(is_position(o, defs, known, fuel - 1) for o in op.operands)


def loaded_name(load: Op) -> str:
    """What a loaded tile is called: as the spec calls it, else after its tensor."""
    return load.result.name or f"{(load.operands[0].name or 'x').lower()}_tile"


def copied_run(shape: tuple[int, ...], vec: int, schedule: Schedule) -> int:
    """Elements that one access of a copy to shared memory moves; vec: the most that one may."""
    return 1 if schedule.copy == "scalar" else gcd(vec, shape[-1])


def copy_threads(t: Any, vec: int, schedule: Schedule) -> RegLayout:
    """Which elements of a tile each thread copies to shared memory."""
    run = copied_run(t.shape, vec, schedule)
    if len(t.shape) == 1:
        return rowwise(1, t.shape[0], 1, 32, run).drop(0)
    return rowwise(t.shape[0], t.shape[1], schedule.warps, 32, run)


def rank(v: Value) -> int:
    return len(v.type.shape)


#: what a ring with several slots needs
AHEAD = "a load in a loop with dots, from a place that the loop's index or a table decides, which cp_async or a bulk copy can move"


def not_ahead(op: Op) -> FcError:
    """For slots that `stages` gives a load which no copy can make before its tile is wanted."""
    return without_effect("stages", f"%{op['site']} is not loaded ahead", expected=AHEAD, got=op["stages"], loc=op.loc)


def index_slice(body: Block, operands: tuple[Value, ...], written: Container[Value] = ()) -> list[Op] | None:
    """The ops of a loop's body that these operands follow from, in order: arithmetic on scalars and vectors, and what is read of tensors
    that the kernel does not write. None if they need anything else made in the body."""
    plain = lambda v: isinstance(v.type, (Scalar, Frag, Tile, Tensor)) and v not in written
    return sources(operands, body, lambda op: not op.regions and op.kind not in ("load", "unstage") and all(map(plain, op.operands)))


def promised_positive(kernel: Kernel) -> frozenset[Value]:
    return frozenset(p for p in kernel.params if "positive" in kernel.flags.get(p.name, ()))


def positive(v: Value, told: Container[Value], defs: Mapping[Value, Op], depth: int = 0) -> bool:
    """Whether a number, or each of a tile's, is known to be above zero (and finite, if those are that it follows from)."""
    op = defs.get(v)
    if v in told or op is None or depth > 8:
        return v in told
    if op.kind == "const":
        return not isinstance(op["value"], bool) and 0 < op["value"] < inf
    if op.kind in ("sqrt", "rsqrt", "rcp", "cast") and not op.operands[0].type.dtype.is_float:
        return False
    among = {**dict.fromkeys(("mul", "div", "add", "min", "sqrt", "rsqrt", "rcp", "cast", "full", "broadcast"), all), "max": any}
    return op.kind in among and among[op.kind](positive(x, told, defs, depth + 1) for x in op.operands)


def scale_free(x: Any) -> bool:
    """Numbers that a multiplication by a positive finite number leaves as they are."""
    return x is not None and not isinstance(x, bool) and (x == 0 or (isinstance(x, float) and isinf(x)))


def called(op: Op) -> str:
    """Of an op with one result, how a report names it."""
    return f"%{op.result.name}" if op.result.name else "the product"


def without_effect(field: str, why: str, *, expected: Any = None, got: Any = None, loc: Loc | None = None,
                   hint: str | None = None) -> FcError:
    """For a field of the schedule that asks for something which this program, on this target, cannot have."""
    return FcError("compile/schedule", f"Schedule.{field} has no effect: {why}", expected=expected, got=got, loc=loc,
                   hint=hint or f"leave {field} out of the schedule")
