"""Lists of blocks of keys: what a mask that hangs on elements of tensors leaves of each block of rows, found by a kernel.

`fcgen.attention` makes the lists of such a mask in front of each call, in one launch and without waiting for it, and those of masks that
may leave holes in long rows; `fcgen.block_lists` makes them once for many calls. Guaranteed: they are the mask's, whatever it holds then; where
it tells batches, or heads, not apart, there is one list for all of them.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple

from ..build.captured import Family
from ..build.program import Program
from ..errors import FcError
from ..ir.core import walk_kernel
from ..ir.schedule import Schedule
from ..ir.types import DTYPES, Tile
from ..kernels.listed import listed_attention, lists_of
from .outputs import _empty
from .variants import Choice, Functions, _arch, family, fitted, functions, lazy_of, run, sums_of

#: tiles of keys from which on it pays to look for holes
_LONG = 16
#: the tensors of lists, as the kernel calls them
_NAMES = ("PartCount", "Part", "WholeCount", "Whole")


class BlockLists(NamedTuple):
    """counts, indices: i32 [B or 1, H or 1, row blocks] and [..., blocks of keys]: the blocks of keys in which the mask is to be asked,
    for each block of rows; full_counts, full_indices: those that are seen whole, if there are any. block: rows and keys of one. torch's
    `BlockMask` has the same four tensors."""

    counts: Any
    indices: Any
    full_counts: Any = None
    full_indices: Any = None
    block: tuple[int, int] = (128, 128)


def block_lists(mask: Any, batch: int, heads: int, rows: int, keys: int, like: Any, *, block: tuple[int, int] = (128, 128)) -> BlockLists:
    """The lists of a mask, made by one kernel on the device of the tensor `like`."""
    given = functions(mask=mask)
    if given.keep is None:
        raise FcError("call/argument", "there are no lists without a mask", expected="a function (b, h, q_idx, kv_idx) -> condition")
    for name, n in (("batch", batch), ("heads", heads), ("rows", rows), ("keys", keys)):
        if isinstance(n, bool) or not hasattr(n, "__index__") or int(n) < 1:
            raise FcError("call/argument", f"argument `{name}` is not a number of at least one", got=repr(n)[:80])
    if not (isinstance(block, tuple) and len(block) == 2 and all(isinstance(n, int) and n > 0 and n % 16 == 0 for n in block)):
        raise FcError("call/argument", "argument `block` is not (rows, keys)", expected="two multiples of 16", got=repr(block)[:80])
    from ..runtime import tensors

    device = tensors.describe(like, "like").device
    return _made(given, _lister(given, _arch(device), block, None), (batch, heads, rows, keys), like, block, None)


@functools.lru_cache(maxsize=64)
def _own(block: tuple[int, int]) -> Schedule:
    return Schedule(tiles={"ROWS": block[0], "KEYS": block[1]}, warps=8 if block[0] * block[1] > 4096 else 4)


def _lister(given: Functions, arch: str, block: tuple[int, int], shift: int | None) -> Family:
    """The programs that make a mask's lists."""
    def make() -> Program:
        absent = {"shift": None} if shift is None else {}
        program = lists_of.compile(target=arch, schedule=_own(block), check=False, keep=given.keep, **absent)
        program.quiet = True
        return program

    return family(("lists", arch, block, shift is None), Functions(keep=given.keep), make)


class Reads(NamedTuple):
    """What a mask hangs on: the batch, the head, elements of tensors that decide about single positions; and whether one of two conditions
    is enough, so that there may be holes between the keys that a row sees."""

    batch: bool
    head: bool
    elements: bool
    holes: bool


@functools.lru_cache(maxsize=1024)
def _reads(program: Program) -> Reads:
    ids, ops = program.tile.body.args, list(walk_kernel(program.tile))
    asks = lambda n: any(ids[n] in op.operands for op in ops if op.kind != "store")
    tiles = {op.kind for op in ops for r in op.results if isinstance(r.type, Tile)}
    return Reads(asks(0), asks(1), "gather" in tiles or "load" in tiles, "or" in tiles)


def _made(given: Functions, lister: Family, sizes: tuple[int, ...], like: Any, block: tuple[int, int], shift: int | None) -> BlockLists:
    """Launch the kernel that makes the lists. sizes: batch, heads, rows, keys."""
    b, h, rows, keys = sizes
    reads = _reads(lister.find({"keep": given.keep})[0])
    shape = (b if reads.batch else 1, h if reads.head else 1, -(-rows // block[0]))
    each = -(-keys // block[1])
    made = [_empty(like, s, "int32") for s in (shape, (*shape, each), shape, (*shape, each))]
    scalars = {"queries": rows, "keys": keys, **({} if shift is None else {"shift": shift})}
    lister.run({"keep": given.keep}, {**dict(zip(_NAMES, made)), **scalars})
    return BlockLists(made[0], made[1], made[2], made[3], block)


def automatic(sizes: tuple[Any, ...], given: Functions, choice: Choice, like: Any, shift: int | None) -> BlockLists | None:
    """The lists for a call whose mask hangs on elements of tensors, or may leave holes in long rows; None for others, whose loops leave out
    what lies outside of one interval, and where there is little to leave out."""
    _, q, k = sizes[:3]
    tiles = dict(choice.schedule.tiles)
    block = tiles["BLOCK_M"], tiles["BLOCK_N"]
    if given.keep is None or k[2] <= 2 * block[1] or block[0] % 16 or block[1] % 16:
        return None
    lister = _lister(given, choice.arch, block, shift)
    reads = _reads(lister.find({"keep": given.keep})[0])
    if not (reads.elements or (reads.holes and k[2] > _LONG * block[1])):
        return None
    return _made(given, lister, (q[0], q[1], q[2], k[2]), like, block, shift)


def launch(facts: tuple[Any, ...], given: Functions, choice: Choice, caller: bool, arguments: dict[str, Any], lists: BlockLists,
           shift: int | None) -> None:
    """Attention over lists. facts: dtype, head sizes, mask, with the log-sum-exp. caller: the schedule is the caller's."""
    arguments = {**arguments, **_described(lists, arguments["Q"].shape, arguments["K"].shape[2], arguments["Q"].device)}
    if shift is not None:
        arguments["shift"] = shift
    absent = tuple(n for n in ("WholeCount", "Whole", "shift", "LSE") if n not in arguments)
    dtype, d, e = facts[:3]
    binding = {"T": DTYPES[dtype], "D": d, "E": e, "block": lists.block, **dict.fromkeys(absent)}

    def compiled(c: Choice) -> Program:
        lazy = lazy_of(c.schedule) if c.lazy is None else c.lazy
        program = listed_attention.compile(target=c.arch, schedule=c.schedule, check=caller, positive=c.positive, lazy=lazy,
                                           sums=c.sums or sums_of(c.schedule, lazy), **binding, **given.given())
        program.quiet = True
        return program

    def make() -> Program:
        chosen = choice if caller else choice._replace(schedule=dividing(choice.schedule, lists.block))
        return fitted(chosen, given, caller, compiled, lambda: dividing(Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}), lists.block))

    if given.given():
        run(family((facts, choice, lists.block, absent), given, make), given, arguments)
    else:
        _plain(facts, choice, lists.block, absent, caller, make).launcher(arguments)


_programs: dict[Any, Program] = {}


def _plain(*key: Any) -> Program:
    *key, make = key  # type: ignore[assignment]
    if tuple(key) not in _programs:
        if len(_programs) >= 256:
            _programs.clear()
        _programs[tuple(key)] = make()
    return _programs[tuple(key)]


def dividing(schedule: Schedule, block: tuple[int, int]) -> Schedule:
    """A schedule with tiles that divide blocks."""
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


def _described(lists: Any, q: tuple[int, ...], keys: int, device: int) -> dict[str, Any]:
    """The lists as arguments, one for each batch and head."""
    from ..runtime import tensors

    if not isinstance(lists, BlockLists):
        raise FcError("call/argument", "argument `blocks` holds no lists of blocks", got=repr(lists)[:80],
                      expected="fcgen.block_lists(...), or fcgen.BlockLists(...)")
    if (lists.full_counts is None) != (lists.full_indices is None):
        raise FcError("call/argument", "lists of full blocks have counts and indices, or neither")
    rows = -(-q[2] // lists.block[0])
    out = {}
    for name, field, x in zip(_NAMES, BlockLists._fields, lists[:4]):
        if x is None:
            continue
        word, axes = f"blocks.{field}", 3 if name.endswith("Count") else 4
        a = tensors.describe(x, word)
        tensors.check(a, name=word, dtype="i32", device=device)
        want = (q[0], q[1], rows)
        if len(a.shape) != axes or any(n not in (1, w) for n, w in zip(a.shape[:2], want)) or a.shape[2] < rows:
            raise FcError("call/argument", f"argument `{word}` has the wrong shape", got=a.shape,
                          expected=f"[{q[0]} or 1, {q[1]} or 1, {rows}{', blocks of keys' if axes == 4 else ''}]")
        steps = tuple(0 if n == 1 else s for n, s in zip(a.shape[:2], a.strides))
        out[name] = a._replace(shape=(*want, *a.shape[3:]), strides=(*steps, *a.strides[2:]))
    return out
