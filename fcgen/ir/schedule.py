"""Schedules: everything that changes a kernel's speed and nothing that changes its meaning, as one frozen value.

A `Schedule` is plain data: it prints, parses (`Schedule.parse`), compares and hashes, and stands on top of the generated file.
Names in per-value fields (`math`, `stages`) are the spec's own variable names.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import FcError, did_you_mean

CHOICES: dict[str, tuple[str, ...]] = {
    "math": ("mma", "wmma", "fma", "wgmma"), "copy": ("cp_async", "vector", "scalar", "tma"), "epilogue": ("smem", "direct", "quad", "tma"),
    "persistent": ("none", "static", "dynamic"), "split": ("loops", "branch", "none")}

#: Fields that take one value for all, or one per name of the spec.
BY_NAME = ("tiles", "math", "stages", "cluster", "grid")
#: Fields that list names: of dots, `from_end` of axes.
NAMES = ("late", "early", "behind", "rolling", "ones", "regs_a", "made", "from_end")
#: Fields that only make sense by name, and how one is written.
MAPS = {"tiles": "{BLOCK_M: 128, BLOCK_N: 64}", "cluster": "{rows: 2}", "grid": "{acc: 1x2}"}
#: Fields that count: what they count, and which numbers are legal, in words and as a set.
NUMBERS: dict[str, tuple[str, str, Container[int]]] = {
    "tiles": ("has a size that does not divide over warps and lanes", "a power of two or a multiple of 16, up to 65536",
              {1, 2, 4, 8, *range(16, 2**16 + 1, 16)}),
    "warps": ("is the number of warps in a block", "1, 2, 4, 8, 12 or 16", (1, 2, 4, 8, 12, 16)),
    "stages": ("counts ring slots", "1 to 8; of a load that goes straight to registers, 0", range(9)),
    "min_blocks": ("counts blocks per multiprocessor", "1 to 32", range(1, 33)),
    "l2": ("counts MiB of the L2 cache", "0 to 1024", range(1025)),
    "cluster": ("counts the blocks of a cluster along an axis", "1, 2, 4 or 8", (1, 2, 4, 8)),
    "makers": ("counts the warps of a role that makes operands", "0 or 4", (0, 4)),
    "parts": ("counts the blocks that share the iterations of a loop", "1 to 8", range(1, 9))}


@dataclass(frozen=True)
class Schedule:
    """How one program runs on one target. A name that the program does not have, and a field that asks for something which the program, the
    target or the other fields do not have, are errors when it is lowered; turning off what is not there is none.

    tiles: BLOCK name -> size. warps: warps per block, laid along the rows of dot results, and along their columns where rows are too few.
    grid: dot -> (rows, columns) of warps, with wgmma of warpgroups, that its result is spread over; where they are fewer than there are,
    the others hold copies. math: instruction family of the dots,
    one for all or per dot (by the name of the value that it makes): "mma" (mma.sync + ldmatrix), "wmma" (wmma API, opaque
    fragments), "fma" (plain multiply-adds). copy: how tiles reach shared memory: "cp_async" (16 bytes, asynchronous), "vector"
    (16-byte loads through registers), "scalar" (one element at a time). stages: slots of each shared-memory ring inside loops; 1
    loads in place, n keeps n - 1 tiles in flight; one number or per load; 0, by name: to registers, through no ring. ahead: with
    stages=1, start the next load as soon as the slot's last reader is done. hold_a: keep loop-invariant left operands of dots in
    registers. reuse_frags: a dot result feeds the next dot from registers where the layouts agree (else through shared memory). split:
    where a mask leaves tiles whole, separate loop copies for those ("loops"), or one loop with the mask under a branch that all warps
    take alike ("branch": a third less code, which compiles in two thirds of the time and runs 1 to 2 % slower), or neither ("none").
    skip_ones: leave out `tile * row` products when every
    row factor of the warp is one. defer: finish loop-carried row sums after it. epilogue: stores through shared memory as 16-byte rows
    ("smem"), straight from fragments ("direct"), or from fragments whose quads of lanes have swapped columns ("quad": 16 bytes, no shared
    memory), or staged in shared memory and written by bulk copies ("tma", Hopper: two-axis tiles; the copy runs on beside the work that
    follows).
    longest_first: run the row tiles with the most work first. min_blocks: blocks per multiprocessor that registers must allow (launch
    bounds). persistent: as many blocks as `min_blocks` on each multiprocessor work through the grid's tiles, in fixed steps ("static") or
    claiming each from a counter ("dynamic"). l2: where tiles differ in work, as many programs of the other axes run side by side, longest
    tile first, as have looped-over tensors of this many MiB together; where none does and two axes have tiles, tiles that run together form
    a square.

    Hopper: math "wgmma" (warpgroup instructions) and copy "tma" (bulk tensor copies by a role of its own) go together; warps are then those
    of the consumer warpgroups, four each, and a producer warpgroup is added. late: names of dots that run one iteration behind the rest of
    their loop, so that two dots are in flight together. early: names of dots of loaded tiles that are issued behind the last dot of the
    iteration before. behind: names of dots of what their loop computes, which are only stored: they follow one iteration behind, and no
    barrier waits for all warps to have stored that. rolling: names of wgmma dots whose left operand is computed part by part, each part
    multiplied while the next one is computed. vote: a row condition that is rarely true is tested first, with one vote per warp,
    and what hangs on it is skipped. tokens: consumer warpgroups take turns at issuing their dots.
    own_rows: a consumer warpgroup leaves out the tiles that only other rows than its own need.
    compare_bits: with vote, a threshold on a row maximum is tested on bit patterns, two elements per instruction.
    hints: bulk copies tell L2 to keep what programs along an axis of the grid all read, and to let go of the rest first. ones: names of
    dots that also make the row sum of their left operand, by eight columns of ones on their right. regs_a: names of wgmma dots whose left
    operand, which is loaded, is taken from shared memory into registers once.

    from_end: names of the grid's axes (of the variable along them) whose tiles are counted from the end: the ragged one is then the first.
    cluster: grid axis -> how many blocks that are neighbours along it (2, 4 or 8) form a cluster: tiles that are the same for all of them
    are copied once, a part by each block, into the shared memory of all. Axes have the spec's names, `rows` or `rows_tile`. pdl:
    programmatic dependent launch: a launch begins while the one in front of it on the stream still runs, and waits for its end before it
    touches a tensor. makers: with copy "tma", so many more warps are a role of their own, which makes the operands of dots that loops
    compute from loads alone (scaled, rotated, normed, converted): it reads what bulk copies brought and fills a ring of ready operands,
    ahead of the dots. made: names of wgmma dots that the makers, a warpgroup, make too, with all that these lead to up to the dots of the
    other warps, which read it from such a ring. parts: with copy "tma", so many blocks, a cluster, share the iterations of the program's
    loop, which does nothing but add up; the first of them adds up what they found, always in the same order, and does what comes behind it.
    sender: with epilogue "tma", a thread beside the one that copies starts the bulk stores of loops and waits for them: warps that compute
    stage a tile and go on.
    """

    tiles: Any = ()
    warps: int = 4
    math: Any = "mma"
    copy: str = "cp_async"
    stages: Any = 2
    ahead: bool = False
    hold_a: bool = True
    reuse_frags: bool = True
    split: str = "loops"
    skip_ones: bool = False
    defer: bool = True
    epilogue: str = "smem"
    longest_first: bool = True
    min_blocks: int = 1
    late: Any = ()
    vote: bool = False
    tokens: bool = False
    persistent: str = "none"
    l2: int = 0
    own_rows: bool = True
    compare_bits: bool = False
    hints: bool = False
    ones: Any = ()
    regs_a: Any = ()
    from_end: Any = ()
    cluster: Any = ()
    pdl: bool = False
    grid: Any = ()
    makers: int = 0
    made: Any = ()
    parts: int = 1
    early: Any = ()
    behind: Any = ()
    rolling: Any = ()
    sender: bool = False

    def __new__(cls, *args: Any, **given: Any) -> Schedule:
        for name in given:
            _check_field(name, f"{name}={given[name]!r}")
        if len(args) > len(fields(cls)):
            raise FcError("compile/schedule", "Schedule has fewer fields", expected=len(fields(cls)), got=len(args))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in NAMES:
            v = getattr(self, name)
            if isinstance(v, str):
                object.__setattr__(self, name, tuple(w.strip() for w in v.split("+")) if v else ())
        for name in BY_NAME:
            v = getattr(self, name)
            if isinstance(v, Mapping):
                object.__setattr__(self, name, tuple(sorted(((k, _grid(x) if name == "grid" else x) for k, x in v.items()), key=str)))
        for f in fields(self):
            self._check(f.name, getattr(self, f.name), f.default)
        if sum(n > 1 for _, n in self.cluster) > 1:
            raise FcError("compile/schedule", "a cluster lies along one axis of the grid", expected="{rows: 2}", got=dict(self.cluster))

    @staticmethod
    def _check(name: str, v: Any, default: Any) -> None:
        """One field by itself: its type, its names, its range."""
        def wrong(what: str, expected: str, got: Any = v, hint: str | None = None) -> FcError:
            return FcError("compile/schedule", f"Schedule.{name} {what}", expected=expected, got=repr(got)[:80], hint=hint)

        if isinstance(default, bool):
            if not isinstance(v, bool):
                raise wrong("is a switch", "True or False")
            return
        if name in NAMES:
            if not isinstance(v, tuple) or not all(isinstance(w, str) and w.isidentifier() for w in v) or len({*v}) < len(v):
                raise wrong("lists names of the spec, each once", "a tuple of names, or acc+s")
            return
        values = [v]
        if name in BY_NAME and (isinstance(v, tuple) or name in MAPS):
            if not isinstance(v, tuple) or not all(isinstance(kv, tuple) and len(kv) == 2 and str(kv[0]).isidentifier() for kv in v):
                raise wrong("has a value for each name of the spec", MAPS.get(name, "{acc: ..., s: ...}"))
            if len({str(key) for key, _ in v}) < len(v):
                raise wrong("has one value for each name of the spec", MAPS.get(name, "{acc: ..., s: ...}"))
            values = [x for _, x in v]
        if name == "stages" and isinstance(v, int) and v == 0:
            raise wrong("of all loads counts ring slots", "1 to 8", hint="0 is for loads by name: stages={'x': 0}")
        for x in values:
            if name in CHOICES and not (isinstance(x, str) and x in CHOICES[name]):
                raise wrong("has no such choice", ", ".join(CHOICES[name]), x,
                            did_you_mean(x, CHOICES[name]) if isinstance(x, str) else None)
            if name in NUMBERS and not (_is_int(x) and x in NUMBERS[name][2]):
                what, legal, _ = NUMBERS[name]
                raise wrong(what, legal, x)
            if name == "grid" and not (isinstance(x, tuple) and len(x) == 2 and all(_is_int(n) and 1 <= n <= 16 for n in x)):
                raise wrong("spreads a dot's result over rows and columns of warps", "two numbers from 1 to 16, as (1, 2) or 1x2", x)

    @staticmethod
    def parse(text: str) -> Schedule:
        """The inverse of `str`: `tiles={BLOCK_M: 128, BLOCK_N: 64}, stages=2, math={s: wmma, acc: fma}`. Evaluates nothing."""
        if not isinstance(text, str):
            raise FcError("compile/schedule", "Schedule.parse reads text", expected='"tiles={BLOCK_M: 128}, stages=2"', got=repr(text)[:80])
        values: dict[str, Any] = {}
        for part in _split(text):
            name, equals, value = (w.strip() for w in part.partition("="))
            _check_field(name, part.strip(), "write field=value, separated by commas")
            if not equals:
                raise FcError("compile/schedule", f"Schedule.{name} has no value", expected=f"{name}=...", got=part.strip())
            if name in values:
                raise FcError("compile/schedule", f"Schedule.{name} is given twice", got=text)
            values[name] = _pairs(name, value) if value.startswith("{") else _word(value)
        return Schedule(**values)

    def tile(self, name: str) -> int | None:
        return dict(self.tiles).get(name)

    def math_of(self, name: str) -> str:
        return self.math if isinstance(self.math, str) else dict(self.math).get(name, "mma")

    def stages_of(self, name: str) -> int:
        return self.slots if isinstance(self.stages, int) else dict(self.stages).get(name, self.slots)

    @property
    def slots(self) -> int:
        """Of the ring of a load that is not named."""
        return self.stages if isinstance(self.stages, int) else 2

    def __str__(self) -> str:
        """Only what differs from the defaults, so that a schedule reads as a sentence."""
        out = []
        for f in fields(self):
            v = getattr(self, f.name)
            if v != f.default or f.name in ("tiles", "warps", "math", "stages"):
                if f.name in NAMES:
                    out.append(f"{f.name}=" + "+".join(v))
                    continue
                out.append(f"{f.name}=" + ("{" + ", ".join(f"{k}: {_text(x)}" for k, x in v) + "}" if isinstance(v, tuple) else str(v)))
        return ", ".join(out)


def _check_field(name: str, got: str, hint: str | None = None) -> None:
    known = [f.name for f in fields(Schedule)]
    if name not in known:
        raise FcError("compile/schedule", f"Schedule has no field {name!r}", expected=", ".join(known), got=got,
                      hint=did_you_mean(name, known, hint))


def _split(text: str) -> list[str]:
    """At the commas outside braces."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if depth not in (0, 1):
            break
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth:
        raise FcError("compile/schedule", "the braces of a schedule do not match", expected="name={A: 1, B: 2}", got=text)
    return [p for p in (*parts, text[start:]) if p.strip()]


def _pairs(name: str, text: str) -> dict[str, Any]:
    """`{A: 1, B: 2}` as the value of a field that takes one per name."""
    if name not in BY_NAME:
        raise FcError("compile/schedule", f"Schedule.{name} takes one value", got=text, hint=f"only {', '.join(BY_NAME)} take one per name")
    slip = FcError("compile/schedule", f"Schedule.{name} takes each name once, with a value", expected="{A: 1, B: 2}", got=text)
    if not text.endswith("}"):
        raise slip
    out: dict[str, Any] = {}
    for part in _split(text[1:-1]):
        key, colon, value = (w.strip() for w in part.partition(":"))
        if not colon or not key.isidentifier() or key in out:
            raise slip
        out[key] = _word(value)
    return out


def _word(text: str) -> Any:
    if text in ("True", "true", "False", "false"):
        return text in ("True", "true")
    try:
        return int(text)
    except ValueError:
        return text


def _text(x: Any) -> str:
    return "x".join(map(str, x)) if isinstance(x, tuple) else str(x)


def _grid(x: Any) -> Any:
    """(1, 2), also as text: 1x2."""
    if isinstance(x, list):
        return tuple(x)
    parts = x.split("x") if isinstance(x, str) else []
    return tuple(map(int, parts)) if len(parts) == 2 and all(p.isdecimal() for p in parts) else x


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)
