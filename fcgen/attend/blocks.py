"""Lists of blocks of keys: what a mask that hangs on elements of tensors leaves of each block of rows, found by kernels.

`fcgen.attention` makes the lists of such a mask in front of each call, without waiting for them, and those of masks that may leave several
holes in long rows, in one launch: where the mask can be asked about whole blocks (`lang.bounds`), of these, else of every element.
`fcgen.block_lists` makes them once for many calls, exactly. Guaranteed: no block is left out that a row sees, none is called whole that is
not, whatever the mask holds then; where it tells batches, or heads, not apart, there is one list for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..build.captured import Family
from ..build.program import Program
from ..build.tables import kept_in
from ..errors import FcError
from ..ir.core import walk_kernel
from ..ir.known import const_of
from ..ir.schedule import Schedule
from ..ir.types import DTYPES, Tile
from ..kernels.listed import bounded_lists, listed_attention, lists_of, merged_lists
from ..lang.captures import identity
from ..passes import run_passes
from ..runtime import tensors
from . import plans
from .outputs import _empty
from .variants import Choice, Functions, _arch, family, fitted, functions, quiet, run, two_groups

#: tiles of keys from which on it pays to look for holes
_LONG = 16


class Lists(NamedTuple):
    """counts: i32 [B or 1, H or 1, row blocks], entries: i32 [..., blocks of keys]: for each block of rows how many blocks of keys it sees,
    and which: 2 * n for block n, in which the mask is asked, 2 * n + 1 for one that is seen whole. block: rows and keys of one."""

    counts: Any
    entries: Any
    block: tuple[int, int] = (128, 128)


class BlockLists(NamedTuple):
    """Lists as torch's `BlockMask` has them. counts, indices: i32 [B or 1, H or 1, row blocks] and [..., key blocks]: the blocks in which
    the mask is to be asked; full_counts, full_indices: those that are seen whole, if any. block: rows and keys of one. A call makes
    `Lists` of them by one small kernel; `merged` does that once for many calls."""

    counts: Any
    indices: Any
    full_counts: Any = None
    full_indices: Any = None
    block: tuple[int, int] = (128, 128)

    def merged(self) -> Lists:
        return merged(self)


def block_lists(mask: Any, batch: int, heads: int, rows: int, keys: int, like: Any, *, block: tuple[int, int] = (128, 128)) -> Lists:
    """The lists of a mask, made by one kernel on the device of the tensor `like`."""
    given = functions(mask=mask)
    if given.keep is None:
        raise FcError("call/argument", "there are no lists without a mask", expected="a function (b, h, q_idx, kv_idx) -> condition")
    for name, n in (("batch", batch), ("heads", heads), ("rows", rows), ("keys", keys)):
        if isinstance(n, bool) or not hasattr(n, "__index__") or getattr(n, "shape", ()) != () or not 1 <= int(n) < 2**31:
            raise FcError("call/argument", f"argument `{name}` is not a number of at least one, in 32 bits", got=repr(n)[:80])
    _check_block(block)
    given.check((batch, heads, rows, keys))
    arch = _arch(tensors.describe(like, "like").device)
    return _made(_exact(given, arch, block, None), given, arch, (batch, heads, rows, keys), like, block, None)


def _check_block(block: Any) -> None:
    if not (isinstance(block, tuple) and len(block) == 2 and all(isinstance(n, int) and n > 0 and n % 16 == 0 for n in block)):
        raise FcError("call/argument", "`block` is not (rows, keys)", expected="two multiples of 16", got=repr(block)[:80])


def merged(lists: BlockLists) -> Lists:
    """One list of two, by one kernel."""
    if not isinstance(lists, BlockLists) or lists.counts is None or lists.indices is None:
        raise FcError("call/argument", "these are no two lists of blocks to merge", got=repr(lists)[:80],
                      expected="fcgen.BlockLists(counts, indices, full_counts, full_indices)")
    _check_block(lists.block)
    if (lists.full_counts is None) != (lists.full_indices is None):
        raise FcError("call/argument", "lists of full blocks have counts and indices, or neither")
    given: dict[str, Any] = {}
    shape: tuple[int, ...] | None = None
    for name, field, x in zip(("PartCount", "Part", "WholeCount", "Whole"), BlockLists._fields, lists[:4]):
        if x is not None:
            given[name] = _of(x, field, shape or (None, None, None), 4 if "ndices" in field else 3, None)
            shape = shape or given[name].shape
    assert shape is not None
    device, most = given["Part"].device, sum(given[n].shape[3] for n in ("Part", "Whole") if n in given)
    made = _empty(lists.counts, shape, "int32"), _empty(lists.counts, (*shape, most), "int32")
    if 0 not in (*shape, most):
        _merger(_arch(device), "Whole" in given).launcher({**given, "Count": made[0], "List": made[1]})
    return Lists(*made, lists.block)


@functools.lru_cache(maxsize=16)
def _merger(arch: str, whole: bool) -> Program:
    absent: dict[str, Any] = {} if whole else {"Whole": None, "WholeCount": None}
    return quiet(merged_lists, arch, Schedule(warps=1), **absent)


def _of(x: Any, field: str, want: tuple[int | None, ...], axes: int, device: int | None) -> tensors.TensorArg:
    """One tensor of lists; axes of one element that stand for all are spread."""
    a = tensors.describe(x, f"blocks.{field}")
    tensors.check(a, name=f"blocks.{field}", dtype="i32", device=device)
    fits = len(a.shape) == axes and all(w is None or n in (1, w) for n, w in zip(a.shape[:2], want))
    if not fits or (want[2] is not None and a.shape[2] < want[2]):
        words = [str(w or "any") for w in want]
        raise FcError("call/argument", f"argument `blocks.{field}` has the wrong shape", got=a.shape,
                      expected=f"[{words[0]} or 1, {words[1]} or 1, {words[2]}{', blocks of keys' if axes == 4 else ''}]")
    shape = tuple(n if w is None else w for n, w in zip(a.shape[:3], want))
    steps = tuple(0 if n == 1 else s for n, s in zip(a.shape[:2], a.strides))
    return a._replace(shape=(*shape, *a.shape[3:]), strides=(*steps, *a.strides[2:]))


@functools.lru_cache(maxsize=64)
def _own(block: tuple[int, int]) -> Schedule:
    """Many warps, which share a block's elements evenly where its keys are a power of two. (8192 x 8192 bytes: 0.25 ms with 16 warps, 0.44
    with 8, 0.85 with 4; Hopper, 2026-11-28)"""
    rows, keys = block
    most = 8 if keys & (keys - 1) else 16
    return Schedule(tiles={"ROWS": rows, "KEYS": keys}, warps=min(most, 16 if rows * keys > 8192 else 8 if rows * keys > 4096 else 4))


def _exact(given: Functions, arch: str, block: tuple[int, int], shift: int | None) -> Family:
    """The programs that make a mask's lists, asking it about every element."""

    def make(functions: Mapping[str, Any]) -> Program:
        absent: dict[str, Any] = {"shift": None} if shift is None else {}
        return quiet(lists_of, arch, _own(block), **functions, **absent)

    return family(("lists", arch, block, shift is None), Functions(keep=given.keep), make)


#: kinds of masks that cannot be asked about whole blocks
_elements: set[Any] = set()


def _lister(given: Functions, arch: str, block: tuple[int, int], shift: int | None) -> Family:
    """The programs that make a mask's lists: asking it about whole blocks, where that can be."""

    def make(functions: Mapping[str, Any]) -> Program:
        absent: dict[str, Any] = {"shift": None} if shift is None else {}
        return quiet(bounded_lists, arch, Schedule(tiles={"BLOCKS": 64}, warps=8), **functions, block=block, **absent)

    key = identity(getattr(given.keep, "fn", given.keep)), arch, block, shift is None
    if key in _elements:
        return _exact(given, arch, block, shift)
    try:
        found = family(("bounds", *key[1:]), Functions(keep=given.keep), make)
        found.find({"keep": given.keep})
    except FcError as e:
        if e.code != "compile/unsupported":
            raise
        if len(_elements) >= 256:
            _elements.clear()
        _elements.add(key)
        return _exact(given, arch, block, shift)
    return found


class Reads(NamedTuple):
    """What a mask hangs on: the batch, the head, elements of tensors that decide about single positions; and whether one of several
    conditions is enough, so that there may be more holes between the keys that a row sees than the one that a loop jumps over; whether rows
    leave out keys in front of those that they see, or in between."""

    batch: bool
    head: bool
    elements: bool
    holes: bool
    front: bool


def _reads_of(given: Functions, arch: str, block: tuple[int, int], shift: int | None) -> Reads:
    return _reads(_exact(given, arch, block, shift).find({"keep": given.keep})[0])


@functools.lru_cache(maxsize=1024)
def _reads(program: Program) -> Reads:
    ids, ops = program.tile.body.args, list(walk_kernel(program.tile))
    asks = lambda n: any(ids[n] in op.operands for op in ops if op.kind != "store")
    tiles = {op.kind for op in ops for r in op.results if isinstance(r.type, Tile)}
    lowered = run_passes(program.tile, program.schedule, program.target, stop_after="split_loops")
    said = {kind for kind, _ in lowered.meta.get("remarks", ())}
    first = next((op for op in walk_kernel(lowered) if op.kind == "for"), None)
    front = first is not None and const_of(first.operands[0], {r: o for o in walk_kernel(lowered) for r in o.results}) != 0
    # "gaps": tiles that one of several conditions needs may lie apart, in more than two ranges
    return Reads(asks(0), asks(1), "gather" in tiles or "load" in tiles, "or" in tiles and "gaps" in said, front or "hole" in said)


def table(keys: int, given: Functions, choice: Choice, shift: int | None) -> str:
    """The kind of mask that one without lists is to the library's schedules."""
    block = _block(choice, given)
    if given.keep is None or keys <= 2 * block[1] or block[0] % 16 or block[1] % 16:
        return "part"
    return "part" if _reads_of(given, choice.arch, block, shift).front else "causal_bottom_right"


def _block(choice: Choice, given: Functions) -> tuple[int, int]:
    """The blocks of a call's lists; a score function may leave no registers for three warpgroups."""
    return _size(_for_lists(choice.schedule) if given.score is None else two_groups(choice.schedule))


def _size(schedule: Schedule) -> tuple[int, int]:
    tiles = dict(schedule.tiles)
    return tiles["BLOCK_M"], tiles["BLOCK_N"]


def _for_lists(schedule: Schedule) -> Schedule:
    """A schedule whose tiles are the blocks of lists: three warpgroups keep their registers with fewer keys where the tensor core makes the
    sums, else there are two. (Documents, D = 64: 0.287 ms with 192 x 64, 0.306 with 128 x 128; D = 128: 0.233, 0.221. H200, 2026-11-28)"""
    if _size(schedule)[0] == 192 and schedule.ones:
        return replace(schedule, tiles={"BLOCK_M": 192, "BLOCK_N": 64}, stages={"q": 2, "k": 5, "v": 5})
    return two_groups(schedule)


def _made(lister: Family, given: Functions, arch: str, sizes: tuple[int, ...], like: Any, block: tuple[int, int],
          shift: int | None) -> Lists:
    """Launch the kernel that makes the lists. sizes: batch, heads, rows, keys."""
    b, h, rows, keys = sizes
    reads = _reads_of(given, arch, block, shift)
    shape = (b if reads.batch else 1, h if reads.head else 1, -(-rows // block[0]))
    made = _empty(like, shape, "int32"), _empty(like, (*shape, -(-keys // block[1])), "int32")
    scalars = {"queries": rows, "keys": keys, **({} if shift is None else {"shift": shift})}
    lister.run({"keep": given.keep}, {"Count": made[0], "List": made[1], **scalars})
    return Lists(*made, block)


class Wanted(NamedTuple):
    """What is known before a call about lists of its mask. lister: makes them, if there are to be any, for such blocks. keys: that holds
    for more than, and at most, so many."""

    lister: Family | None
    block: tuple[int, int]
    keys: tuple[int, int]


def wanted(keys: int, given: Functions, choice: Choice, shift: int | None) -> Wanted:
    """Lists are made of a mask that hangs on elements of tensors, or may leave holes in long rows; for others, whose loops leave out what
    lies outside of one interval, and where there is little to leave out, there are none."""
    block = _block(choice, given)
    few, many, none = 2 * block[1], _LONG * block[1], 2**62
    if given.keep is None or block[0] % 16 or block[1] % 16:
        return Wanted(None, block, (-1, none))
    if keys <= few:
        return Wanted(None, block, (-1, few))
    reads = _reads_of(given, choice.arch, block, shift)
    if not (reads.elements or reads.holes) or (not reads.elements and keys <= many):
        return Wanted(None, block, (few, many if reads.holes else none))
    return Wanted(_lister(given, choice.arch, block, shift), block, (few if reads.elements else many, none))


def automatic(sizes: tuple[Any, ...], given: Functions, choice: Choice, like: Any, shift: int | None) -> Lists | None:
    """The lists for a call, where it is to have some."""
    _, q, k = sizes[:3]
    found = wanted(k[2], given, choice, shift)
    if found.lister is None:
        return None
    return _made(found.lister, given, choice.arch, (q[0], q[1], q[2], k[2]), like, found.block, shift)


def planned(found: Wanted, given: Functions, device: int, arch: str, shift: tuple[int | None, str]) -> plans.Lister:
    """What makes the lists of calls with such functions. shift: where the diagonal is, and the text of it."""
    assert found.lister is not None
    program, values, bind = found.lister.bound({"keep": given.keep})
    reads = _reads_of(given, arch, found.block, shift[0])
    return plans.Lister(plans.part(program, device, values, bind, ["keep"]), found.block, reads.batch, reads.head, shift[1])


def launch(facts: tuple[Any, ...], given: Functions, choice: Choice, caller: bool, arguments: dict[str, Any], lists: Any,
           shift: int | None) -> None:
    """Attention over lists. facts: dtype, head sizes, mask, with the log-sum-exp. caller: the schedule is the caller's."""
    lists = merged(lists) if isinstance(lists, BlockLists) else lists
    if not isinstance(lists, Lists):
        raise FcError("call/argument", "argument `blocks` holds no lists of blocks", got=repr(lists)[:80],
                      expected="fcgen.block_lists(...), or fcgen.BlockLists(...)")
    _check_block(lists.block)
    q = arguments["Q"]
    want = (*q.shape[:2], -(-q.shape[2] // lists.block[0]))
    arguments = {**arguments, "Count": _of(lists.counts, "counts", want, 3, q.device),
                 "List": _of(lists.entries, "entries", want, 4, q.device)}
    if shift is not None:
        arguments["shift"] = shift
    absent = tuple(n for n in ("shift", "LSE") if n not in arguments)
    if given.given():
        run(over_lists(facts, given, choice, caller, lists.block, absent), given, arguments)
    else:
        key = facts, choice, lists.block, absent, caller
        kept_in(_programs, 256, key, lambda: _over_lists(facts, given, choice, caller, lists.block, absent)).launcher(arguments)


def over_lists(facts: tuple[Any, ...], given: Functions, choice: Choice, caller: bool, block: tuple[int, int],
               absent: tuple[str, ...]) -> Family:
    """The programs with functions over lists of such blocks."""
    return family((facts, choice, block, absent), given,
                  lambda functions: _over_lists(facts, Functions(**functions), choice, caller, block, absent))


def _over_lists(facts: tuple[Any, ...], given: Functions, choice: Choice, caller: bool, block: tuple[int, int],
                absent: tuple[str, ...]) -> Program:
    dtype, d, e = facts[:3]
    binding = {"T": DTYPES[dtype], "D": d, "E": e, "block": block, **dict.fromkeys(absent)}

    def compiled(c: Choice) -> Program:
        return quiet(listed_attention, c.arch, c.schedule, check=caller, **c.options(), **binding, **given.given())

    chosen = choice if caller else choice._replace(schedule=dividing(choice.schedule, block))
    fits = lambda c: compiled(c if caller else c._replace(schedule=dividing(c.schedule, block)))

    def other() -> Schedule:  # the model tries tiles that divide no blocks
        from ..api import schedule_for
        from ..kernels.attention import attention

        plain = {n: x for n, x in binding.items() if n not in ("block", "shift")}
        return dividing(schedule_for(attention, choice.arch, positive=choice.positive, **plain, **given.given()), block)

    return fitted(chosen, given, caller, fits, other)


_programs: dict[Any, Program] = {}


def dividing(schedule: Schedule, block: tuple[int, int]) -> Schedule:
    """A schedule with tiles that divide blocks."""
    if _size(own := _for_lists(schedule)) == block:
        return own
    if block[0] % 192:
        schedule = two_groups(schedule)
    tiles = dict(schedule.tiles)
    m, n = tiles["BLOCK_M"], tiles["BLOCK_N"]
    if block[0] % m == 0 and block[1] % n == 0:
        return schedule
    least = 64 if schedule.copy == "tma" else 16
    rows = next((x for x in (128, 64, 32, 16) if x <= m and x >= least and block[0] % x == 0), None)
    keys = next((x for x in (128, 96, 80, 64, 48, 32, 16) if x <= n and block[1] % x == 0), None)
    if rows is None or keys is None:
        raise FcError("call/argument", "blocks of lists are too small, or no multiples of what tiles can be", got=block,
                      expected=f"multiples of {least} rows and of 16 keys")
    warps = schedule.warps if rows == m else max(4, rows // 16) if schedule.copy == "tma" else min(schedule.warps, max(1, rows // 16))
    return replace(schedule, tiles={"BLOCK_M": rows, "BLOCK_N": keys}, warps=warps, tokens=schedule.tokens and rows > 64)
