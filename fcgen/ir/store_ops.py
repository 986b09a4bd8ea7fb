"""Machine ops of bulk stores: a tile goes from registers to shared memory and from there, by an engine, to global memory.

The engine reads the staged tile through the async proxy, at any time up to the `bulk_wait` with read=true that covers its group, and
writes the tensor up to the one without. Groups are counted per thread, and the thread that starts a store is the one that waits for it:
what others may then do with the staging buffer takes a barrier. What the generic proxy has staged is seen after a `proxy_fence` of the
threads that wrote and a barrier.
"""

from __future__ import annotations

from .access import Access
from .async_ops import MOST_BOX, check_part
from .attrs import FLAG, GUARD, INDEX, one_of, whole
from .core import Op
from .layout import WARPS
from .machine_ops import check_runs
from .memory_map import boxes_problem
from .op_table import RuleError, define, need, need_none
from .tile_ops import TURN, check_added, check_turn
from .types import Buffer

#: what a tensor map can describe: axes, positions of a box along each of them, bytes that a box's rows are multiples of
MOST_AXES, ROW_BYTES = 5, 16
#: element types of tensor maps
DTYPES = ("f16", "bf16", "f32", "i32", "u32", "i8", "u8", "f8e4m3", "f8e5m2")


def part_shape(shape: tuple[int, ...], parts: int, across: bool) -> tuple[int, int]:
    """Of one of equal parts of a staged tile, which lie below each other or, across, beside each other."""
    rows, cols = shape
    return (rows, cols // parts) if across else (rows // parts, cols)


def refusal(access: Access, buffer: Buffer, rows: int) -> RuleError | None:
    """What is wrong where no bulk store can move a part of a tile, of so many rows."""
    tensor = access.tensor
    if tensor.dtype.name not in DTYPES:
        return RuleError("an element type that tensor maps have", ", ".join(DTYPES), tensor.dtype)
    if not 2 <= len(tensor.dims) <= MOST_AXES:
        return RuleError("a tensor of two to five axes", f"2 to {MOST_AXES}", len(tensor.dims))
    if not access.in_rows:
        return RuleError("the tile runs along the tensor's last axis", "a run, or all of it", access.axes[-1].word)
    if buffer.layout.panel * buffer.dtype.bytes % ROW_BYTES:
        return RuleError(f"rows are multiples of {ROW_BYTES} bytes", f"{ROW_BYTES // buffer.dtype.bytes} elements", buffer.shape[-1])
    if rows > MOST_BOX or buffer.layout.panel > MOST_BOX:
        return RuleError(f"at most {MOST_BOX} positions along each axis", MOST_BOX, f"{rows} x {buffer.layout.panel}")
    return boxes_problem(buffer, buffer.shape[0] // rows) or access.unbounded()


def _check_tma_store(op: Op) -> None:
    types = tuple(v.type for v in op.operands)
    buffer, parts, across = types[-1], op["parts"], op.get("across", False)
    need(len(buffer.shape) == 2 and buffer.layout.pad == 0, "tma_store: a tile of two axes, its rows without padding", "pad 0", buffer)
    rows, cols = part_shape(buffer.shape, parts, across)
    need(buffer.shape == ((rows, cols * parts) if across else (rows * parts, cols)) and cols % buffer.layout.panel == 0,
         "tma_store: equal parts of the rows, or of the panels", buffer.shape, parts)
    check_added(op)
    check_part(op)
    need_none(op.kind, refusal(Access.of(op), buffer, rows))


define("tma_store", "machine", """`tma_store T, scalars..., buffer`: one thread of each of `parts` equal parts of the role's warps starts
       the copy of as large a part of a staged tile's rows, with `across` of its columns, to a rectangle of a tensor (cp.async.bulk.tensor,
       one per panel). Positions outside the tensor, or past a limit, are left out, guarded or not. reduce="add" adds atomically. It belongs
       to the group that the thread's next `bulk_commit` closes. part: a role that is one thread starts that of this part. turn: as of
       `store`, in front of the tile, until `sender` writes the waits down.""",
       "tensor, *, slot ->", effect="write", one_dtype=True, check=_check_tma_store, phases="selected synced", index=INDEX, guard=GUARD,
       parts=whole(1, WARPS), part=whole(0, WARPS - 1).maybe, across=FLAG.maybe, reduce=one_of("add").maybe, turn=TURN, reach=(1, 1, -1))


def _check_await(op: Op) -> None:
    check_turn([v.type for v in op.operands], op.kind)


define("await_turn", "machine", """`await_turn T, at..., n`: one thread waits until n stands at this place of a tensor of i32. What others
        did before they put it there has happened, also for bulk stores that it starts from here on.""", "tensor, * ->", effect="write",
       check=_check_await, phases="selected synced")
define("end_turn", "machine", """`end_turn T, at..., n`: one thread waits until all its bulk stores have written, and puts n + 1 there.""",
       "tensor, * ->", effect="write", check=_check_await, phases="selected synced")
define("bulk_commit", "machine", "Close this thread's group of bulk stores (an empty group counts).", "->", effect="write",
       phases="selected synced")
define("bulk_wait", "machine", """Wait until at most n of this thread's groups of bulk stores are under way; with read=true only until all
       others have read their shared memory, which may then be written again.""", "->", effect="write", phases="synced synced",
       n=whole(0, 64), read=FLAG)


def _check_stmatrix(op: Op) -> None:
    t, buffer = op.operands[0].type, op.operands[1].type
    need(t.dtype.bits == 16 and len(t.shape) == 2, "stmatrix moves 2-d tiles of 16-bit elements", "16 bits", t)
    check_runs(buffer, ROW_BYTES, "stmatrix")


define("stmatrix", "machine", """`stmatrix frag, buffer, row, col`: 8x8 blocks of 16-bit elements to a slot, four at a time; lane l supplies
       the address of row l. trans: the .trans form, which writes each block transposed.""", "complete, slot, i32, i32 ->", effect="write",
       one_dtype=True, check=_check_stmatrix, phases="selected synced", trans=FLAG, traits="writes shared")
