"""What a call of attention asks for besides the plain kernel: functions of masks, scores, weights and sinks; and the program for them.

A program with functions takes the library's schedule for its shape, as far as it goes: what the functions leave no use for is let go of
field by field, tiles shrink until the functions' values have registers, and where nothing of it is left `fc.schedule_for` chooses.
Guaranteed: programs are kept by what the functions are, never by what they hold.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

from ..build.captured import Captured, Entry, Family
from ..build.compiler import own_target, target
from ..build.program import Program
from ..build.tables import kept_in
from ..dropout import Dropout
from ..errors import FcError
from ..ir.core import Op, walk
from ..ir.schedule import Schedule
from ..ir.types import i32
from ..lang.captures import identity
from ..lang.spec import Spec
from ..masks import Mask, takes
from ..scores import Score, Sinks

#: what a tuned schedule may have that a function leaves no use for, in the order in which it is given up
_LET_GO: tuple[dict[str, Any], ...] = (
    {"from_end": ()}, {"ones": ()}, {"split": "loops"}, {"tokens": False}, {"regs_a": ()}, {"epilogue": "direct"},
    {"l2": 0}, {"persistent": "none", "l2": 0}, {"late": (), "vote": False, "compare_bits": False, "skip_ones": False})
#: of a thread's values in memory lie beside the loops, and cost less than smaller tiles do
FEW_BYTES = 32
#: functions that the special-function unit has a part in
SPECIAL = frozenset(("exp", "exp2", "log", "log2", "tanh", "tanh_approx", "sigmoid", "sin", "cos", "erf", "pow", "sqrt", "rsqrt", "rcp"))
_WORDS = {"keep": "mask", "score": "score", "weigh": "dropout", "sink": "sinks"}


class Functions(NamedTuple):
    """score: (s, b, h, i, j) -> s. keep: (b, h, i, j) -> condition. weigh: (p, b, h, i, j) -> weights of values. sink: (h) -> logit."""

    score: Any = None
    keep: Any = None
    weigh: Any = None
    sink: Any = None

    def lacking(self, sizes: tuple[int, ...]) -> tuple[str, int, int] | None:
        """The first tensor of ready-made functions that does not cover so many batches, heads, rows and keys (`masks.Sizes`)."""
        for f in self:
            for it in getattr(f, "sizes", ()):
                if it[1] < sizes[it[2]]:
                    return it  # type: ignore[no-any-return]
        return None

    def check(self, sizes: tuple[int, ...]) -> None:
        lacking = self.lacking(sizes)
        if lacking is not None:
            name, n, axis = lacking
            raise FcError("call/argument", f"the tensor `{name}` of a mask, score or sinks is too small for this call",
                          expected=f"{sizes[axis]} {('batches', 'heads', 'rows', 'keys')[axis]}", got=n)

    def given(self) -> dict[str, Any]:
        return {name: x for name, x in self._asdict().items() if x is not None}


def functions(score: Any = None, mask: Any = None, sinks: Any = None, dropout: Any = None) -> Functions:
    """The functions of a call's arguments, each looked at."""
    for name, x, kind, arguments in (("score", score, Score, "s, b, h, q_idx, kv_idx"), ("mask", mask, Mask, "b, h, q_idx, kv_idx")):
        if x is None or type(x) is kind or takes(x, 5 if kind is Score else 4):
            continue
        if not callable(x):
            raise FcError("call/argument", f"argument `{name}` is not a function", expected=f"lambda {arguments}: ...", got=repr(x)[:80])
        try:
            inspect.signature(x).bind(*arguments.split(", "))
        except (TypeError, ValueError) as e:
            code = getattr(x, "__code__", None)
            raise FcError("call/argument", f"the function `{name}` takes other arguments", expected=f"({arguments})", got=str(e),
                          notes=[f"{code.co_filename}:{code.co_firstlineno}"] if code else []) from None
    if dropout is not None and not isinstance(dropout, Dropout):
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
            raise FcError("call/argument", "argument `dropout` is no dropout", expected="fcgen.Dropout(p, seed, offset)",
                          got=repr(dropout)[:80])
        dropout = Dropout(dropout)
    sink = sinks if sinks is None or isinstance(sinks, Sinks) else Sinks(sinks)
    score = score if score is None or isinstance(score, Score) else Score(score)
    mask = mask if mask is None or isinstance(mask, Mask) else Mask(mask)
    return Functions(score, mask, None if dropout is None or dropout.p == 0 else dropout, sink)


PLAIN = Functions()


#: what is said of a program that needs more registers or shared memory than there are
TOO_MUCH = ("compile/budget", "compile/ptxas")


class Choice(NamedTuple):
    """target, schedule, whether the scale is positive, and the spec's options `lazy` and `sums` ("" and None: what goes with it)."""

    arch: str
    schedule: Schedule
    positive: bool
    lazy: float | None
    sums: str

    def options(self) -> dict[str, Any]:
        """The spec's."""
        lazy = lazy_of(self.schedule) if self.lazy is None else self.lazy
        return {"positive": self.positive, "lazy": lazy, "sums": self.sums or sums_of(self.schedule, lazy)}


def quiet(spec: Spec, arch: str, schedule: Schedule, /, *, check: bool = False, **facts: Any) -> Program:
    """A program with a schedule that the caller of the library did not choose: nobody is warned of it."""
    program: Program = spec.compile(target=arch, schedule=schedule, check=check, **facts)
    program.quiet = True
    return program


def fitted(choice: Choice, given: Functions, caller: bool, make: Callable[[Choice], Program], other: Callable[[], Schedule]) -> Program:
    """The program with functions for a choice. caller: the schedule is the caller's, and taken as it is. make: compiles a choice. other: a
    schedule by the model, where the table's cannot be."""
    if given.weigh is not None and not caller:  # sums are of the weights before they change; rows 8 apart share random numbers
        choice = choice._replace(schedule=replace(choice.schedule, ones=(), from_end=()), sums="exact")
    if caller:
        return make(choice)
    base: Schedule | None = choice.schedule
    while base is not None:
        refused = ""
        for schedule in (base, *smaller(base)):
            sums = "" if choice.schedule.ones and not schedule.ones and choice.sums == "rounded" else choice.sums
            try:
                program, first = _made(make, choice._replace(schedule=schedule, sums=sums), given.score is not None)
                if not (_odd(schedule) and _reads_tiles(first)) and _fits(first):
                    return program
            except FcError as e:
                if e.code in TOO_MUCH:
                    continue
                if e.code != "compile/schedule":
                    raise
                refused = refused or e.message  # (a smaller one says what is wrong with a base that was not lowered)
                if schedule is base:
                    break
        base = _without(base, refused) if refused else None
    last = other()
    choice = choice._replace(schedule=last, lazy=None, sums="exact" if given.weigh is not None else "")
    program = make(choice)
    # which products this toolkit keeps in flight is known when it has compiled them
    return program if not last.late or _fits(_first(program)) else make(choice._replace(schedule=replace(last, late=(), tokens=False)))


def _first(program: Program) -> Program:
    return cast(Captured, program).first if isinstance(program, Captured) else program


def _made(make: Callable[[Choice], Program], choice: Choice, scored: bool) -> tuple[Program, Program]:
    """The program of a choice, and the first one that it stands for. What is known of signs in whole tiles is known in their copy; loops
    with a hole have copies (first keys and a window of 1024, D = 64: 0.398 ms, with a branch 0.406). Where tiles of 128 x 128 are read
    beside the keys, warpgroups take no turns (a bias per head, D = 128: 1.040 ms, in turns 1.062). Three warpgroups whose scores are
    computed from positions take turns, but not where special functions are what they wait for (a soft cap: 1.65 ms and 1.52). ALiBi,
    causal, of the causal kernel's time: D = 64 1.049 in turns with loops apart, 1.064 with a branch, 1.060 and 1.082 without turns; D = 128
    1.048 in turns with a branch and sums by the tensor core, 1.054 as the table has it (H200, 2026-11-28)."""
    program, schedule = make(choice), choice.schedule
    first = _first(program)
    if schedule.split == "branch" and not {"signs", "hole"}.isdisjoint(dict(first.machine.meta.get("remarks", ()))):
        return _made(make, choice._replace(schedule=replace(schedule, split="loops")), scored)
    if schedule.stages == 2 and schedule.tokens and _reads_tiles(first):
        return _made(make, choice._replace(schedule=replace(schedule, stages={"q": 1, "k": 2, "v": 2}, tokens=False)), scored)
    three = schedule.warps == 12 and schedule.late and not schedule.tokens
    if scored and three and (schedule.split == "branch" or schedule.from_end) and _from_positions(first):
        turns = replace(schedule, tokens=True, ones=schedule.late, split="loops" if schedule.ones else "branch")
        return _made(make, choice._replace(schedule=turns, sums="rounded"), False)
    return program, first


def _from_positions(program: Program) -> bool:
    """Whether positions enter the arithmetic of a loop's tiles, and no special function but the one that all have does."""
    tiles = [o for op in walk(program.tile.body) if op.kind == "for" for o in walk(op.regions[0]) if o.results and len(_shape(o)) == 2]
    return sum(o.kind in SPECIAL for o in tiles) < 2 and any(o.kind == "cast" and o.operands[0].type.dtype == i32 for o in tiles)


def _shape(op: Op) -> tuple[int, ...]:
    return getattr(op.results[0].type, "shape", ())


def smaller(schedule: Schedule) -> Iterator[Schedule]:
    """What asks for fewer registers, the least change first: rings of one slot beside the loop, outputs by bulk copies, fewer keys (where
    the tensor core makes the sums), two warpgroups for three. (A bias per head at D = 64: 1.43 ms with 192 x 64 in turns, 1.81 with
    128 x 128; at D = 128 they are level. H200, 2026-11-27)"""
    if dict(schedule.tiles).get("BLOCK_M") == 192 and not isinstance(schedule.stages, int) and schedule.stages_of("q") > 1:
        yield replace(schedule, stages={**dict(schedule.stages), "q": 1})
    if schedule.copy == "tma" and schedule.epilogue == "quad":
        yield replace(schedule, epilogue="tma")
    if dict(schedule.tiles).get("BLOCK_M") == 192:
        if dict(schedule.tiles)["BLOCK_N"] > 64 and schedule.ones:
            yield replace(schedule, tiles={"BLOCK_M": 192, "BLOCK_N": 64}, tokens=bool(schedule.late), epilogue="quad")
        schedule = two_groups(schedule)
        yield schedule
    tiles = dict(schedule.tiles)
    yield from (replace(schedule, tiles={**tiles, "BLOCK_N": n}) for n in (128, 96, 80, 64, 48, 32, 16) if n < tiles.get("BLOCK_N", 0))


def two_groups(schedule: Schedule) -> Schedule:
    """A schedule for tiles of 192 rows over three warpgroups, for 128 over two, which have half as many registers again."""
    tiles = dict(schedule.tiles)
    if tiles.get("BLOCK_M") != 192:
        return schedule
    more: dict[str, Any] = {}
    if tiles["BLOCK_N"] == 80:  # what D = 128 has beside it: twice 128 keys fill the shared memory that three times 80 did
        tiles, more = {**tiles, "BLOCK_N": 128}, {"stages": 2, "tokens": True}
    return replace(schedule, tiles={**tiles, "BLOCK_M": 128}, warps=8, **more)


def _without(schedule: Schedule, message: str) -> Schedule | None:
    """A schedule without what the message says cannot be, or without the next thing that it can do without."""
    named = re.search(r"Schedule\.(\w+)", message)
    first = [f for f in _LET_GO if named and named[1] in f]
    return next((s for s in (replace(schedule, **f) for f in (*first, *_LET_GO)) if s != schedule), None)


def _odd(schedule: Schedule) -> bool:
    """Does a tile of keys end in a part of the 128 bytes that a panel of 16-bit elements is wide?"""
    return schedule.copy == "tma" and (dict(schedule.tiles).get("BLOCK_N") or 64) % 64 != 0


def _reads_tiles(program: Program) -> bool:
    """Does a loop load tiles of rows and keys that functions read? They cost more in odd parts (a bias per head, D = 128: 1.20 ms with
    192 x 80, 1.06 with 128 x 128; H200, 2026-11-27)."""
    loads = [o for op in walk(program.tile.body) if op.kind == "for" for o in walk(op.regions[0]) if o.kind == "load"]
    return sum(len(o.result.type.shape) == 2 for o in loads) > 2


@functools.lru_cache(maxsize=256)
def _fits(program: Program) -> bool:
    """Whether a program has registers and memory enough."""
    program.quiet = True
    try:
        found = program.resources
        return not found.spills if found.spill_stores is None else found.spill_stores <= FEW_BYTES
    except FcError as e:
        if e.code not in TOO_MUCH:
            raise
        return False


_kept: dict[Any, Family] = {}


class _Fitted(Family):
    """The programs for functions of one text, with a schedule each that suits what that one computes: functions that a function holds, and
    tests of what it holds, are part of the program, not of the text. make: the program of functions, by the spec's names."""

    def __init__(self, make: Callable[[Mapping[str, Any]], Program]):
        self._make, self._known = make, ()

    def _made(self, given: Mapping[str, Any]) -> Entry:
        return cast(Captured, self._make(given)).family.entry(given)


def family(kind: Any, given: Functions, make: Callable[[Mapping[str, Any]], Program]) -> Family:
    """The programs for functions like these. kind: everything else that a program hangs on. make: see _Fitted."""
    key = tuple(identity(getattr(x, "fn", x)) for x in given), kind
    return kept_in(_kept, 256, key, lambda: _Fitted(make))


def run(family: Family, given: Functions, arguments: Mapping[str, Any]) -> None:
    """Launch; mistakes are told of the arguments of the call."""
    family.run(given.given(), arguments)


@functools.lru_cache(maxsize=64)
def _arch(device: int, schedule: Schedule | None = None) -> str:
    """The target whose code runs on a device: its own, or its architecture's common one for a schedule of the caller's that does without
    its own instructions."""
    own = own_target(device)
    return own if schedule is None or "wgmma" in str(schedule.math) else target(own.rstrip("a")).arch


def lazy_of(schedule: Schedule) -> float:
    """The spec's option `lazy` for a schedule that is not the library's."""
    from ..kernels.hopper_schedules import LAZY

    return LAZY if schedule.vote or schedule.skip_ones else 0.0


def sums_of(schedule: Schedule, lazy: float) -> str:
    """The spec's option `sums` for a schedule that is not the library's: with a stale maximum, one that knows of the weights' rounding."""
    return "exact" if not lazy else "rounded" if schedule.ones else "corrected"
