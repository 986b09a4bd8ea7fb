"""What a kernel holds besides its ops: parameters, grid, roles, the facts of `meta`, and which phase of machine IR it is in.

Each fact of `meta` has a type, a range and a meaning; there are no others. `problems` yields what is wrong, with a key for its place in a
text: a value of the kernel, or ("meta", name), ("grid", number), ("role", number), ("order",).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..errors import FcError
from . import memory_map
from .attrs import CLUSTER, MOST, RANK, TEXT, Attribute, every, one_of, whole
from .core import Kernel
from .layout import WARPS
from .op_table import PHASES, RuleError, short
from .types import Buffer, Mbarrier, Scalar, Tensor, i32

Problem = tuple[Any, RuleError]

SIZE = i32.range[1]  # most of a size that is known at compile time
_LOOP = Attribute((tuple,), "(name, dimension, tile)", lambda v: [type(x) for x in v] == [str, str, int] and 0 < v[2] <= MOST)

#: fact -> (what it may be, what it means)
META: dict[str, tuple[Attribute, str]] = {
    "target": (TEXT, "the target that the kernel was compiled for"),
    "aligned": (Attribute((tuple,), "lines of (NAME, 16, 16, ...)"), "what pointers and strides are multiples of (see `alignment`)"),
    "ranges": (Attribute((tuple,), "lines of (NAME, least, most, false)"), "which sizes and scalars it takes (see `ranges`)"),
    "covers": (Attribute((tuple,), "lines of (NAME, axis, PLACE)"), "which places tensors must have (see `covers`)"),
    "remarks": (Attribute((tuple,), "lines of (KIND, TEXT)", lambda v: all([*map(type, x)] == [str, str] for x in v if type(x) is tuple)),
                "what is worth knowing of the kernel, for people"),
    "until_loops": (every(_LOOP, 64), "loops that an output of `until` counts"),
    "stage": (one_of(*PHASES), "the phase of machine IR"),
    "schedule": (Attribute((str,), "a string of at most 10000 characters", lambda v: len(v) <= 10000), "the schedule, for people"),
    "min_blocks": (whole(1, 32), "blocks per multiprocessor that registers must allow"),
    "persistent": (one_of("none", "static", "dynamic"), "how blocks come to their tiles"),
    "smem_bytes": (whole(0), "shared memory of a block, in bytes"),
    "smem_offsets": (every(whole(0), 1000), "where each buffer starts, in bytes"),
}
TILE_META = ("target", "aligned", "ranges", "covers", "until_loops", "remarks")
#: from this phase on
ALLOCATED = ("smem_bytes", "smem_offsets")
FLAGS = {"out": (Tensor, "a tensor that is written"), "kept": (Tensor, "a tensor whose rest is kept where nothing is written"),
         "positive": (Scalar, "a scalar that is above 0")}


def phase(kernel: Kernel) -> int | None:
    """The number of its phase, where machine IR says it."""
    stage = kernel.meta.get("stage")
    return PHASES.index(stage) if kernel.level == "machine" and isinstance(stage, str) and stage in PHASES else None


def require(kernel: Kernel, stage: str, what: str) -> None:
    """FcError unless the kernel has come to this phase. what: needs it."""
    if kernel.level != "machine" or kernel.meta.get("stage") != stage:
        raise FcError("compile/unsupported", f"{what} takes machine IR of the phase {stage}", expected=f"meta stage = {stage}",
                      got=f"{kernel.level} IR, stage {kernel.meta.get('stage', 'not given')}",
                      hint="compile the spec, or dump the machine IR without --stop-after")


def problems(k: Kernel) -> Iterator[Problem]:
    yield from _params(k)
    yield from _grid(k)
    yield from _roles(k)
    yield from _meta(k)
    for v in k.buffers:
        if k.level == "tile" or not isinstance(v.type, (Buffer, Mbarrier)):
            yield v, RuleError("buffers are rings of tiles and mbarriers, at the machine level", got=f"{v.type}, {k.level} IR")
        elif (wrong := memory_map.buffer_problem(v.type)) is not None:
            yield v, wrong
    for where, e in memory_map.problems(k):
        yield where or ("meta", "smem_offsets"), e


def _params(k: Kernel) -> Iterator[Problem]:
    for name, n in Counter(p.name for p in k.params).items():
        if n > 1 or not name:
            where = next(p for p in reversed(k.params) if p.name == name)
            yield where, RuleError("two parameters have one name" if name else "a parameter has a name", got=f"%{name}",
                                   hint="a call tells them apart by their names (what follows a dot is no part of one)")
    for p in k.params:
        if not isinstance(p.type, (Tensor, Scalar)):
            yield p, RuleError("a parameter is a tensor or a scalar", got=p.type)
        elif isinstance(p.type, Tensor) and not (len(p.type.dims) <= RANK and all(map(_size, p.type.dims))):
            yield p, RuleError("a tensor has at most 8 axes, with a name or a size below 2^31 each", got=p.type)
        for flag in k.flags.get(p.name, ()):
            if flag not in FLAGS or not isinstance(p.type, FLAGS[flag][0]):
                yield p, RuleError("a parameter's flags", ", ".join(f"{f} ({what})" for f, (_, what) in FLAGS.items()), short(flag))


def _size(d: str | int) -> bool:
    return 0 < d <= SIZE if isinstance(d, int) else bool(d)


def _grid(k: Kernel) -> Iterator[Problem]:
    known = set(k.dims) | {p.name for p in k.params if p.type == Scalar(i32)}
    for n, a in enumerate(k.grid):
        if isinstance(a.dim, str) and a.dim not in known:
            yield ("grid", n), RuleError("a grid axis runs over a dimension of a tensor or an i32 scalar",
                                         ", ".join(sorted(known)) or "a number", short(a.dim))
        elif not _size(a.dim) or not 0 < a.tile <= MOST:
            yield ("grid", n), RuleError("sizes and tiles of the grid", f"1 to 2^31 - 1, tiles of 1 to {MOST}", f"{a.dim} / {a.tile}")
    if len(k.grid) > RANK or not 0 < k.cluster <= CLUSTER:
        yield ("grid", 0), RuleError(f"a grid has at most {RANK} axes, its clusters {CLUSTER} blocks", got=f"{len(k.grid)}, {k.cluster}")
    if k.order and sorted(k.order) != list(range(len(k.grid))):
        yield ("order",), RuleError("order names each grid axis once, by its number", got=k.order)


def _roles(k: Kernel) -> Iterator[Problem]:
    names = [r.name for r in k.roles]
    if k.level == "tile":
        if len(k.roles) != 1 or k.roles[0].warps or k.roles[0].regs:
            yield ("role", 0), RuleError("tile IR has one body, and no roles", "{ ... }", ", ".join(names))
        return
    for n, r in enumerate(k.roles):
        if r.name in names[:n]:
            yield ("role", n), RuleError("roles have names of their own", got=short(r.name))
        if not 1 <= r.warps <= WARPS or sum(x.warps for x in k.roles[:n + 1]) > WARPS:
            yield ("role", n), RuleError(f"roles have warps, a block at most {WARPS}", f"1 to {WARPS}", f"{r.name}: {r.warps}")
        if r.regs and (r.regs % 8 or not 24 <= r.regs <= 256 or len(k.roles) == 1):
            yield ("role", n), RuleError("registers of one of several roles", "a multiple of 8 from 24 to 256", r.regs)


def _meta(k: Kernel) -> Iterator[Problem]:
    known = TILE_META if k.level == "tile" else tuple(META)
    for name, v in k.meta.items():
        if name not in known:
            yield ("meta", name), RuleError(f"{k.level} IR knows no fact {short(name)}", ", ".join(known))
        elif not META[name][0].admits(v):
            yield ("meta", name), RuleError(f"meta {name}: {META[name][1]}", META[name][0].words, short(v))
    at = phase(k)
    for name in ALLOCATED:
        if at is not None and (name in k.meta) != (at >= PHASES.index("allocated")):
            yield ("meta", name if name in k.meta else "stage"), RuleError(
                f"{name} is known from the phase allocated on", "later" if name in k.meta else name, f"stage {k.meta['stage']}")
