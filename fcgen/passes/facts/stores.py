"""Bulk stores: how a tile is staged for one, which warps share a part of it, and where a bulk store is not legal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...errors import FcError
from ...ir.access import Access
from ...ir.alignment import WIDEST, demands, promised
from ...ir.core import Kernel, Op, Value, made_within, walk, walk_kernel
from ...ir.known import const_of
from ...ir.layout import RegLayout, native_smem
from ...ir.lifetimes import WRITES
from ...ir.moves import matrix_blocks
from ...ir.named_barriers import WARPGROUP
from ...ir.rings import ring_of
from ...ir.store_ops import MOST_AXES, part_shape, refusal
from ...ir.target import Target
from ...ir.types import Buffer, Tensor
from .common import without_effect

INSTEAD = 'Schedule(epilogue="quad") or epilogue="smem"'


@dataclass(frozen=True)
class Staging:
    """buffer: the staged tile. parts: into how many parts the warps divide so that each stages rows of its own, or columns (across)."""

    buffer: Buffer
    parts: int
    across: bool


def staging(op: Op, warps: int, target: Target, lies: Buffer | None = None) -> Staging:
    """For a store of a fragment of two axes. lies: how it lies in shared memory for others, who meet at a barrier of all warps, so that one
    thread may store all of it from there, if that can be. Raises FcError where the target, or the tensor map, cannot do it."""
    tensor, frag = op.operands[0], op.operands[1].type
    assert isinstance(tensor.type, Tensor)
    if "tma_store_2d" not in target.instrs:
        raise FcError("compile/unsupported", f"{target.arch} has no bulk tensor stores", loc=op.loc, expected="sm_90a",
                      got=f'epilogue="tma" on {target.arch}', hint=INSTEAD)
    layout = frag.layout
    assert isinstance(layout, RegLayout)
    if lies is not None and not lies.layout.pad and not op.get("turn") and refusal(Access.of(op), lies, lies.shape[0]) is None:
        return Staging(lies, 1, False)
    groups = max(1, warps // WARPGROUP)  # the smallest part that has a barrier of its own
    axis = next((n for n in (0, 1) if groups > 1 and _own(layout, n, warps, groups)), None)
    parts, across = 1 if axis is None else groups, axis == 1
    below, beside = part_shape(frag.shape, parts, across)
    buffer = Buffer(frag.dtype, frag.shape, native_smem(beside, frag.dtype.bytes, layout, rows=below))
    wrong = refusal(Access.of(op), buffer, below)
    if wrong is not None:
        raise FcError("compile/unsupported", f"a bulk store of {tensor.name} takes {wrong.rule}", expected=wrong.expected, got=wrong.got,
                      loc=op.loc, hint=INSTEAD)
    return Staging(buffer, parts, across)


def stored_blocks(layout: RegLayout, buffer: Buffer, warps: int, target: Target) -> str | None:
    """How a fragment goes to shared memory by matrix stores (`matrix_blocks`), if it can."""
    fits = buffer.dtype.bits == 16 and "stmatrix_x1" in target.instrs and buffer.layout.row_bytes(2) % 16 == 0
    return matrix_blocks(layout, warps) if fits else None


def check_bulk(op: Op, kernel: Kernel, defs: Mapping[Value, Op], instead: str) -> None:
    """Raises what `bulk_refusal` says."""
    wrong = bulk_refusal(op, kernel, defs, instead)
    if wrong is not None:
        raise wrong


def bulk_refusal(op: Op, kernel: Kernel, defs: Mapping[Value, Op], instead: str) -> FcError | None:
    """Why no bulk copy can make a load or store: one moves rows of a tensor, from 16 bytes of a row on (elsewhere it is an illegal
    instruction, seen on an H200), and tensors whose strides are multiples of 16 bytes."""
    name, access = op.operands[0].name, replace(Access.of(op), bulk=True)
    run = WIDEST // access.tensor.dtype.bytes
    want = demands(access, WIDEST, defs)
    if not access.in_rows:
        return FcError("compile/schedule", f"a tile of {name} does not run along rows: no bulk copy can move it", loc=op.loc,
                       expected="the tensor's last axis in the tile", hint=instead)
    if want is None:
        return FcError("compile/schedule", f"a tile of {name} may start inside {WIDEST} bytes of a row: no bulk copy can", loc=op.loc,
                       expected=f"tiles of {run} columns or a multiple", hint=f"larger Schedule.tiles along the last axis, or {instead}")
    if len(access.axes) > MOST_AXES:
        return FcError("compile/schedule", f"{name} has more axes than a bulk copy can follow", loc=op.loc, expected=f"at most {MOST_AXES}",
                       got=len(access.axes), hint=f"join axes, as in {name}[batches * heads, rows, columns], or {instead}")
    if (wrong := access.unbounded()) is not None:
        return FcError("compile/schedule", f"bulk copies of {name} take {wrong.rule}", loc=op.loc, expected=wrong.expected, got=wrong.got,
                       hint=f"join axes, as in {name}[batches * rows, heads, columns], or {instead}")
    have = promised(kernel)
    if have is not None and not have[name].covers(want):
        return FcError("compile/schedule", f"bulk copies of {name} need more than is promised of it", loc=op.loc,
                       expected=f"pointer and strides in multiples of {WIDEST} bytes", got=have[name].words, hint=instead)
    return None


def is_box(store: Op) -> bool:
    """Whether a stored tile has two axes, and lies in one rectangle of its tensor: what bulk stores move."""
    access = Access.of(store)
    return len(access.shape) == 2 and not access.listed and not access.scattered


def stored_alone(kernel: Kernel) -> set[Value]:
    """The staged tiles that nothing but bulk stores reads."""
    made = {v: o for o in walk_kernel(kernel) for v in o.results if o.kind == "slot"}
    readers: dict[Value, set[str]] = {}
    for o in walk_kernel(kernel):
        for v in o.operands if o.kind not in WRITES | {"slot"} else ():
            if isinstance(v.type, Buffer):
                readers.setdefault(ring_of(v, made), set()).add(o.kind)
    return {v for v, kinds in readers.items() if kinds == {"tma_store"}}


def out_of_turn(op: Op) -> FcError:
    """Who waits for a turn must not be a warp that others wait for."""
    return FcError("compile/unsupported", f"adds to {op.operands[0].name} have turns, for which only a thread of its own can wait",
                   loc=op.loc, expected='tiles of two axes, added in a loop, with copy="tma", epilogue="tma" and sender=True',
                   hint="without a turn, sums come in any order")


def stored_apart(loop: Op, defs: Mapping[Value, Op]) -> set[Value]:
    """The tensors of which no two iterations of a loop store the same place in bulk."""
    body = loop.regions[0]
    stores = [op for op in walk(body) if op.kind == "tma_store"]
    inside = made_within(body)

    def step(v: Value | None) -> int:
        """What a position moves by from one iteration to the next; 0 where that is not known."""
        terms = _terms(v, defs)
        return terms.pop(body.args[0], 0) if inside.isdisjoint(terms.keys() - {body.args[0]}) else 0

    moves = lambda op: any(a.word in ("at", "tile") and abs(step(a.start)) >= a.size for a in Access.of(op).axes)
    return {op.operands[0] for op in stores} - {op.operands[0] for op in stores if not moves(op)}


def lie_apart(a: Op, b: Op, loops: Mapping[Value, Op], defs: Mapping[Value, Op]) -> bool:
    """Whether two bulk stores to a tensor, in one iteration of all loops around both, never meet: of different iterations of one loop that
    passes have taken apart. loops: index -> its loop."""

    def elsewhere(loop: Op, place: Counter[Value | None]) -> bool:
        """Whether a position is none of those that a loop's index has."""
        other = loops.get(v) if len(place) == 1 and (v := next(iter(place))) is not None and place[v] == 1 else None
        if other is not None and loop.get("chain") is not None and loop.get("chain") == other.get("chain"):
            return other is not loop
        from_start, from_end = (_less(place, _terms(bound, defs)) for bound in loop.operands[:2])
        return (set(from_start) == {None} and from_start[None] < 0) or (set(from_end) <= {None} and from_end[None] >= 0)

    def moved(start: Value | None, other: Value | None, size: int) -> bool:
        off = _less(_terms(start, defs), _terms(other, defs))
        for i, step in off.items():
            loop = loops.get(i) if i is not None else None
            if loop is not None and abs(step) >= size and not any(n % step for n in off.values()):
                if elsewhere(loop, Counter({v: -n // step for v, n in off.items() if v is not i})):
                    return True
        return False

    axes = [(x, y) for x, y in zip(Access.of(a).axes, Access.of(b).axes) if x.word == y.word and x.word in ("at", "tile")]
    return any(moved(x.start, y.start, max(x.size, y.size)) for x, y in axes)


def _terms(v: Value | None, defs: Mapping[Value, Op]) -> Counter[Value | None]:
    """A position as a sum: what it follows from -> how often that counts; None stands for one."""
    op, c = (defs.get(v), const_of(v, defs)) if v is not None else (None, 0)
    if isinstance(c, int):
        return Counter({None: c}) if c else Counter()
    for x, y in (op.operands, op.operands[::-1]) if op is not None and op.kind == "mul" else ():
        if isinstance(n := const_of(y, defs), int):
            return Counter({t: n * k for t, k in _terms(x, defs).items()})
    if op is None or op.kind not in ("add", "sub"):
        return Counter({v: 1})
    first, second = (_terms(o, defs) for o in op.operands)
    return _less(first, second if op.kind == "sub" else Counter({t: -k for t, k in second.items()}))


def _less(a: Counter[Value | None], b: Counter[Value | None]) -> Counter[Value | None]:
    return Counter({v: n for v in {**a, **b} if (n := a[v] - b[v])})


def _own(layout: RegLayout, axis: int, warps: int, parts: int) -> bool:
    """Whether the tile's n-th part of rows, or columns, is what the n-th part of the warps holds: in whole periods of any swizzle, or whole
    panels of one."""
    each = layout.shape[axis] // parts
    if layout.shape[axis] % ((8, 16)[axis] * parts) or warps % parts:
        return False
    at = layout.coords(warps)[..., axis].reshape(parts, -1)
    return bool((at // each == np.arange(parts)[:, None]).all())


def check_alone(kernel: Kernel) -> None:
    """A tensor that bulk stores write is reached by nothing else in the kernel: accesses of the two proxies have no order among them."""
    ops = list(walk_kernel(kernel))
    bulk = {o.operands[0]: o for o in ops if o.kind == "store" and is_box(o)}
    if not bulk:
        raise without_effect("epilogue", "no tile of two axes is stored", got="tma", expected='epilogue="direct"')
    for op in ops:
        for v in op.operands:
            if v in bulk and not (op.kind == "store" and is_box(op)):
                what = "is stored otherwise too" if op.kind == "store" else f"is read too ({op.kind})"
                raise FcError("compile/unsupported", f"{v.name} is written by bulk stores and {what}: nothing would order the two",
                              loc=op.loc, expected="a tensor that the kernel only writes, in tiles of two axes", hint=INSTEAD)
