"""Schedules: everything that changes a kernel's speed and nothing that changes its meaning, as one frozen value.

A `Schedule` is plain data: it prints, parses (`Schedule.parse`), compares and hashes, and stands on top of the generated file.
Names in per-value fields (`math`, `stages`) are the spec's own variable names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from ..errors import FcError

CHOICES: dict[str, tuple[str, ...]] = {
    "math": ("mma", "wmma", "fma", "wgmma"), "copy": ("cp_async", "vector", "scalar", "tma"), "epilogue": ("smem", "direct", "quad", "tma"),
    "persistent": ("none", "static", "dynamic"), "split": ("loops", "branch", "none")}

#: Fields that take one value for all, or one per name of the spec.
BY_NAME = ("tiles", "math", "stages", "cluster")
#: Fields that list names: of dots, `from_end` of axes.
NAMES = ("late", "ones", "regs_a", "from_end")


@dataclass(frozen=True)
class Schedule:
    """How one program runs on one target. A name that the program does not have, and a field that asks for something which the program, the
    target or the other fields do not have, are errors when it is lowered; turning off what is not there is none.

    tiles: BLOCK name -> size. warps: warps per block, laid along the rows of dot results. math: instruction family of the dots,
    one for all or per dot (by the name of the value that it makes): "mma" (mma.sync + ldmatrix), "wmma" (wmma API, opaque
    fragments), "fma" (plain multiply-adds). copy: how tiles reach shared memory: "cp_async" (16 bytes, asynchronous), "vector"
    (16-byte loads through registers), "scalar" (one element at a time). stages: slots of each shared-memory ring inside loops; 1
    loads in place, n keeps n - 1 tiles in flight; one number or per load. ahead: with stages=1, start the next load as soon as
    the slot's last reader is done. hold_a: keep loop-invariant left operands of dots in registers. reuse_frags: a dot result
    feeds the next dot from registers where the layouts agree (else through shared memory). split: where a mask leaves tiles whole, separate
    loop copies for those ("loops"), or one loop with the mask under a branch that all warps take alike ("branch": a third less code, which
    compiles in two thirds of the time and runs 1 to 2 % slower), or neither ("none"). skip_ones: leave out `tile * row` products when every
    row factor of the warp is one. defer: finish loop-carried row sums after it. epilogue: stores through shared memory as 16-byte rows
    ("smem"), straight from fragments ("direct"), or from fragments whose quads of lanes have swapped columns ("quad": 16 bytes, no shared
    memory), or staged in shared memory and written by bulk copies ("tma", Hopper: two-axis tiles; the copy runs on beside the work that
    follows).
    longest_first: run the row tiles with the most work first. min_blocks: blocks per multiprocessor that registers must allow (launch
    bounds).

    Hopper: math "wgmma" (warpgroup instructions) and copy "tma" (bulk tensor copies by a role of its own) go together; warps are then those
    of the consumer warpgroups, four each, and a producer warpgroup is added. late: names of dots that run one iteration behind the rest of
    their loop, so that two dots are in flight together. vote: a row condition that is rarely true is tested first, with one vote per warp,
    and what hangs on it is skipped. tokens: consumer warpgroups take turns at issuing their dots. persistent: one block per multiprocessor
    that works through the grid's tiles, in fixed steps ("static") or claiming each from a counter ("dynamic"). l2: where tiles differ in
    work, as many programs of the other axes run side by side, longest tile first, as have looped-over tensors of this many MiB together;
    where none does and two axes have tiles, tiles that run together form a square.
    own_rows: a consumer warpgroup leaves out the tiles that only other rows than its own need.
    compare_bits: with vote, a threshold on a row maximum is tested on bit patterns, two elements per instruction.
    hints: bulk copies tell L2 to keep what loops read and to let go of the rest first. ones: names of dots that also make the row sum of
    their left operand, by eight columns of ones on their right. regs_a: names of wgmma dots whose left operand, which is loaded, is taken
    from shared memory into registers once.

    from_end: names of the grid's axes (of the variable along them) whose tiles are counted from the end: the ragged one is then the first.
    cluster: grid axis -> how many blocks that are neighbours along it (2, 4 or 8) form a cluster: tiles that are the same for all of them
    are copied once, a part by each block, into the shared memory of all. Axes have the spec's names, `rows` or `rows_tile`. pdl:
    programmatic dependent launch: a launch begins while the one in front of it on the stream still runs, and waits for its end before it
    touches a tensor.
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

    def __post_init__(self) -> None:
        for name in NAMES:
            v = getattr(self, name)
            if isinstance(v, str):
                object.__setattr__(self, name, tuple(w for w in v.split("+") if w))
        for name in BY_NAME:
            v = getattr(self, name)
            if isinstance(v, Mapping):
                object.__setattr__(self, name, tuple(sorted(v.items())))
        if not isinstance(self.tiles, tuple):
            raise FcError("compile/schedule", "Schedule.tiles names each tile size", expected="{BLOCK_M: 128, BLOCK_N: 64}", got=self.tiles)
        for f in fields(self):
            v = getattr(self, f.name)
            if isinstance(f.default, bool) and not isinstance(v, bool):
                raise FcError("compile/schedule", f"Schedule.{f.name} is a switch", expected="True or False", got=repr(v))
        for name, allowed in CHOICES.items():
            v = getattr(self, name)
            for x in [y for _, y in v] if isinstance(v, tuple) else [v]:
                if x not in allowed:
                    raise FcError("compile/schedule", f"Schedule.{name} has no such choice", expected=", ".join(allowed),
                                  got=repr(x))
        if not _is_int(self.warps) or self.warps not in (1, 2, 4, 8, 12, 16):
            raise FcError("compile/schedule", "Schedule.warps is the number of warps in a block", expected="1, 2, 4, 8, 12 or 16",
                          got=self.warps)
        for name, n in self.tiles:
            if not _is_int(n) or n < 1 or (n & (n - 1) and n % 16):
                raise FcError("compile/schedule", f"Schedule.tiles: {name} has a size that does not divide over warps and lanes", got=n,
                              expected="a power of two or a multiple of 16")
        for v in [y for _, y in self.stages] if isinstance(self.stages, tuple) else [self.stages]:
            if not _is_int(v) or not 1 <= v <= 8:
                raise FcError("compile/schedule", "Schedule.stages counts ring slots", expected="1 to 8", got=v)
        if not _is_int(self.min_blocks) or not 1 <= self.min_blocks <= 32:
            raise FcError("compile/schedule", "Schedule.min_blocks counts blocks per multiprocessor", expected="1 to 32",
                          got=self.min_blocks)
        if not _is_int(self.l2) or self.l2 < 0:
            raise FcError("compile/schedule", "Schedule.l2 counts megabytes", expected="0 or more", got=self.l2)
        for name in NAMES:
            v = getattr(self, name)
            if not isinstance(v, tuple) or not all(isinstance(w, str) for w in v):
                raise FcError("compile/schedule", f"Schedule.{name} lists names", expected="a tuple of names, or acc+s", got=v)
        if not isinstance(self.cluster, tuple):
            raise FcError("compile/schedule", "Schedule.cluster names the grid axis that its blocks lie along", expected="{rows: 2}",
                          got=self.cluster)
        for name, n in self.cluster:
            if not _is_int(n) or n not in (1, 2, 4, 8):
                raise FcError("compile/schedule", f"Schedule.cluster counts the blocks of a cluster along {name}", expected="1, 2, 4 or 8",
                              got=n)
        if sum(n > 1 for _, n in self.cluster) > 1:
            raise FcError("compile/schedule", "a cluster lies along one axis of the grid", expected="{rows: 2}", got=dict(self.cluster))

    @staticmethod
    def parse(text: str) -> Schedule:
        """The inverse of `str`: `tiles={BLOCK_M: 128, BLOCK_N: 64}, stages=2, math={s: wmma, acc: fma}`. Evaluates nothing."""
        known = [f.name for f in fields(Schedule)]
        values: dict[str, Any] = {}
        for part in _split(text):
            name, equals, value = (w.strip() for w in part.partition("="))
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise FcError("compile/schedule", f"Schedule has no field {name!r}", expected=", ".join(known), got=part.strip(),
                              hint=f"did you mean {near[0]}?" if near else "write field=value, separated by commas")
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
                out.append(f"{f.name}=" + ("{" + ", ".join(f"{k}: {x}" for k, x in v) + "}" if isinstance(v, tuple) else str(v)))
        return ", ".join(out)


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


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)
