"""Ops that exist only in the machine IR.

Shared memory is reached through `Buffer` values: `kernel.buffers` are rings; `slot ring, n` is a view of one slot and every op
below takes views (or a ring of one slot). Positions (row, col) are element offsets in the stored tile. `transposed` means that
the fragment is the transpose of what is stored. A warp touches the part of the rectangle that the fragment's layout gives it.

Asynchrony: `cp_async` starts copies that belong to the thread's current group; `commit_group` closes the group; `wait_group n`
returns when at most n of this thread's groups are still in flight. Other threads see the data after a `barrier` that follows the
wait.
"""

from __future__ import annotations

from dataclasses import replace

from .attrs import FLAG, GUARD, INDEX, LAYOUT, TEXT, VEC, every, one_of, whole
from .core import Op
from .elementwise import REDUCTIONS
from .layout import RegLayout
from .moves import quad_rows
from .op_table import define, need
from .tile_ops import check_added
from .types import Buffer, Cursor, Frag, Scalar, f32, i1, i32


def check_runs(t: Buffer, size: int, what: str) -> None:
    """A row of each panel starts on a multiple of `size` bytes and ends on one: what moves so many at once asks it."""
    need(t.layout.panel * t.dtype.bytes % size == 0 and t.layout.row_bytes(t.dtype.bytes) % size == 0,
         f"{what}: rows of the stored tile are made of aligned runs of {size} bytes", f"a multiple of {size} bytes", t.layout)


def _slot(types, attrs):
    need(len(types) == 2 and isinstance(types[0], Buffer) and (types[1] == Scalar(i32) or isinstance(types[1], Cursor)),
         "slot takes a ring and an i32 or a cursor", "smem, i32", types)
    need(not isinstance(types[1], Cursor) or types[1].slots == types[0].slots, "slot: the cursor counts as many slots as the ring has",
         types[0], types[1])
    return (replace(types[0], slots=1),)


define("slot", "machine", """View of slot (n + ahead) mod slots of a ring. `ahead` is how many tiles past the loop's current one. made: a
       role of its own fills it.""",
       _slot, phases="placed synced", ahead=whole(0, 64), made=FLAG.maybe, traits="position")


define("acquire", "machine", """`acquire views...`: from here on these tiles are read. Says where a loop wants to wait for its
       tiles; `sync` puts the wait and the barrier in its place.""", "* ->", effect="write",
       phases="pipelined allocated")


def _check_cp_async(op: Op) -> None:
    buffer, t = op.operands[-1].type, op["threads"]
    need(t.shape == buffer.shape, "cp_async: `threads` covers the tile", buffer.shape, t.shape)
    vec = op.get("vec", t.vector())
    need(vec >= 1 and t.vector() % vec == 0, "cp_async: `threads` keeps whole runs of `vec` elements together", vec, t)
    need(vec * buffer.dtype.bytes in (4, 8, 16), "cp_async copies 4, 8 or 16 bytes", "4, 8, 16", vec * buffer.dtype.bytes)
    check_runs(buffer, vec * buffer.dtype.bytes, "cp_async")


define("cp_async", "machine", """`cp_async T, scalars..., buffer`: start copying a rectangle of a tensor into a slot, each thread
       the runs of elements that `threads` (a register layout) gives it, `vec` at a time (all of a run if absent); guarded-out elements
       become zero.""", "tensor, *, slot ->", effect="write", one_dtype=True, check=_check_cp_async, phases="pipelined synced",
       index=INDEX, guard=GUARD, threads=LAYOUT, vec=VEC.maybe, traits="fills, writes shared", reach=(1, 1, -1))
define("commit_group", "machine",
       "Close this thread's group of cp_async copies (an empty group counts).", "->", effect="write", phases="pipelined synced")
define("wait_group", "machine", "Wait until at most n of this thread's groups are in flight.", "->", effect="write", phases="synced synced",
       n=whole(0, 64))
define("barrier", "machine", """All warps of the block; orders shared memory among them. parts=n: the warps of each of n equal parts of the
       role by themselves.""", "->", effect="write", phases="selected synced", parts=whole(1, 32).maybe, traits="named barrier")
define("syncwarp", "machine", "All lanes of the warp; orders shared memory among them.", "->", effect="write", phases="synced synced")


define("ld_global", "machine", """`ld_global T, scalars...`: a rectangle of a tensor into registers; guarded-out elements are
       zero. vec: at most this many elements per load.""", "tensor, * -> frag", effect="read", one_dtype=True,
       phases="pipelined synced", index=INDEX, guard=GUARD, vec=VEC, reach=(1, 0, None))


define("st_global", "machine", """`st_global T, frag, scalars...`: registers to a rectangle of a tensor; of threads that hold
       copies one writes. reduce="add" adds atomically.""", "tensor, complete, * ->", effect="write", one_dtype=True,
       check=check_added, phases="selected synced", index=INDEX, guard=GUARD, vec=VEC, reduce=one_of("add").maybe, reach=(2, 0, 1))


define("ld_shared", "machine", """`ld_shared buffer, row, col`: plain loads from a slot. A 1-d fragment runs along axis `along` of
       the stored tile. few: nothing is waited for between it and its readers, so that it need not be in registers all at once.""",
       "slot, i32, i32 -> regs", effect="read", one_dtype=True, phases="placed synced", transposed=FLAG.maybe,
       along=whole(0, 1).maybe, few=FLAG.maybe, traits="reads shared")


define("st_shared", "machine", """`st_shared frag, buffer, row, col`: plain stores to a slot; of threads that hold copies one writes. block:
       to the same place in that block of the cluster.""",
       "complete, slot, i32, i32 ->", effect="write", one_dtype=True, phases="placed synced",
       transposed=FLAG.maybe, along=whole(0, 1).maybe, block=whole(0, 15).maybe, traits="writes shared")


def _check_ldmatrix(op: Op) -> None:
    buffer, t = op.operands[0].type, op.result.type
    need(t.dtype.bits in (8, 16) and len(t.shape) == 2, "ldmatrix moves 2-d tiles of 16-bit elements, or pairs of bytes", "16 bits", t)
    need(t.dtype.bits == 16 or not op["trans"], "ldmatrix transposes elements of 16 bits", "trans = false", t)
    check_runs(buffer, 16, "ldmatrix")


define("ldmatrix", "machine", """`ldmatrix buffer, row, col`: blocks of 8 rows of 16 bytes (8x8 of 16-bit elements) from a slot, four at a
       time; lane l supplies the address of row l. trans: the .trans form, which hands out each block transposed.""",
       "slot, i32, i32 -> frag", effect="read", one_dtype=True,
       check=_check_ldmatrix, phases="selected synced", transposed=FLAG, trans=FLAG, traits="reads shared")


def _check_mma(op: Op) -> None:
    need(len(op.operands) in (3, 4), "mma takes a, b, acc and possibly a first column", "3 or 4", len(op.operands))
    a, b, c = (v.type for v in op.operands[:3])
    need(op.result.type == c, "mma: the result has the accumulator's type", c, op.result.type)
    need(c.dtype == a.dtype.computed and a.dtype == b.dtype, "mma: operands of one dtype, an accumulator of f32 or, for integers, i32",
         a.dtype.computed, c.dtype)
    need(a.shape[1] == b.shape[0] and a.shape[0] == c.shape[0], "mma: shapes agree", got=f"{a} {b} {c}")
    if len(op.operands) == 3:
        need(b.shape[1] == c.shape[1], "mma: b is as wide as the accumulator, or a first column says where it goes", c, b)
    else:
        need(c.shape[1] % b.shape[1] == 0, "mma: b is a whole part of the accumulator's width", c, b)


define("mma", "machine", """`mma a, b, acc` or `mma a, b, acc, col`: acc + a b by the target's instruction `instr`, repeated over
       the fragments; with col (known when the enclosing loop is expanded) only columns col .. col + b's width change. The
       instruction's own register map must be the layouts': checked where the instruction is declared.""", lambda types, attrs: None,
       check=_check_mma, phases="selected synced", instr=TEXT, traits="product")


def _check_same_shape(op: Op) -> None:
    src, out = op.operands[0].type, op.result.type
    need(src.shape == out.shape, f"{op.kind}: one shape", src, out)


define("stage", "machine", "A fragment's tile as a fresh tile in shared memory (until `select` gives it a buffer and stores).",
       "frag -> smem", one_dtype=True, check=_check_same_shape, phases="placed pipelined")
define("unstage", "machine", "A shared-memory tile as a fragment (until `select` chooses the loads).", "smem -> frag", effect="read",
       one_dtype=True, check=_check_same_shape, phases="placed pipelined")


def _quad_transpose(types, attrs):
    (t,) = types
    swapped = quad_rows(t.layout) if t.dtype.bits == 16 else None
    need(swapped is not None, "quad_transpose takes an accumulator's layout of 16-bit elements, with runs of 32 columns", got=t)
    return (replace(t, layout=swapped),)


define("quad_transpose", "machine", """The same tile with eight columns in a row per lane: the four lanes that share a row of an accumulator
       swap pairs of columns (shfl.xor).""", "regs -> regs", makes=_quad_transpose)


def _whole(types, attrs):
    return (replace(types[0], partial=None),)


define("combine", "machine", "Fold a partial reduction over lanes: one butterfly step (shfl.xor) per stride in `lanes`.",
       "partial -> complete", makes=_whole, lanes=every(VEC, 5, 1), traits="finishes")


def _fold(types, attrs):
    t = types[0]
    need(len(types) == 1 and isinstance(t, Frag) and len(t.shape) == 1 and isinstance(t.layout, RegLayout) and t.partial is None,
         "fold takes a complete tile of one axis in registers", "frag", types)
    need(t.layout.reduces_over(0)[1].warps == 1, "fold: each warp holds the whole axis", "no warp digit", t.layout)
    return (Scalar(t.dtype),)


define("fold", "machine", """A tile of one axis as one number, the same in all threads: registers first, then one butterfly step per lane
       digit.""", _fold, fn=one_of(*REDUCTIONS))


def _combine_across(types, attrs):
    warps = attrs["warps"]
    need(len(warps.axes) == 1 and all(f.unit == "w" for f in warps.axes[0]), "combine_across: warps of one axis", "warp digits", warps)
    return _whole(types, attrs)


define("combine_across", "machine", """Fold a partial reduction over lanes, and over the warps that share the axis: they are the places of
       `warps`. Through shared memory (until `select` chooses how), so that all warps come here.""", "partial -> complete",
       makes=_combine_across, effect="read", phases="placed pipelined", lanes=every(VEC, 5), warps=LAYOUT, traits="finishes")


def _check_apart(op: Op) -> None:
    t, out = op.operands[0].type, op.result.type
    need(out.shape[1:] == t.shape and out.layout.axes[1:] == t.layout.axes
         and all(f.unit == "w" for f in out.layout.axes[0]), "apart: the warps' parts are rows in front of what they are parts of", t, out)


define("apart", "machine", "The parts of a reduction that warps hold, folded over lanes as `combine` does, as a tile with a row for each.",
       "partial -> regs", check=_check_apart, phases="selected synced", lanes=every(VEC, 5))


def _vote(types, attrs):
    need(types[0].dtype == i1, "vote_any takes i1", "i1", types[0])
    return (Scalar(i1),)


define("vote_any", "machine", "True where any thread of the warp holds a true element. The same in all lanes of a warp, not of the block: "
       "no barrier may depend on it. rare: of a `select`'s condition that is.", _vote, rare=FLAG.maybe)


def _at_one_stride(t: Buffer, what: str) -> None:
    need(not t.layout.swizzle and t.layout.panel == t.shape[-1], f"{what}: rows at one stride", "one panel without swizzle", t.layout)
    check_runs(t, 16, what)


define("wmma_load", "machine", "`wmma_load buffer, row, col`: wmma::load_matrix_sync for each 16x16 fragment.", "slot, i32, i32 -> wmma",
       effect="read", one_dtype=True, check=lambda op: _at_one_stride(op.operands[0].type, "wmma_load"), phases="selected synced",
       transposed=FLAG.maybe, traits="reads shared")


def _check_wmma_store(op: Op) -> None:
    t, buffer = op.operands[0].type, op.operands[1].type
    need(t.layout.role == "acc", "wmma_store stores an accumulator", "wmma acc", t)
    _at_one_stride(buffer, "wmma_store")


define("wmma_store", "machine", "`wmma_store frag, buffer, row, col`: wmma::store_matrix_sync for each 16x16 fragment.",
       "wmma, slot, i32, i32 ->", effect="write", check=_check_wmma_store, phases="selected synced", traits="writes shared")


def _check_wmma_mma(op: Op) -> None:
    a, b, c = (v.type for v in op.operands)
    need(op.result.type == c, "wmma_mma: the result has the accumulator's type", c, op.result.type)
    need(a.shape[1] == b.shape[0] and c.shape == (a.shape[0], b.shape[1]), "wmma_mma: shapes agree", got=f"{a} {b} {c}")
    need([t.layout.role for t in (a, b, c)] == ["a", "b", "acc"], "wmma_mma takes a, b and accumulator fragments")
    need(len({(t.layout.warps_m, t.layout.warps_n) for t in (a, b, c)}) == 1, "wmma_mma: the three are spread over warps alike")
    need(a.dtype == b.dtype and a.dtype.bits == 16 and c.dtype == f32, "wmma_mma: 16-bit operands of one dtype, f32 accumulator")


define("wmma_mma", "machine", "`wmma_mma a, b, acc`: wmma::mma_sync for each 16x16x16 product.", "wmma, wmma, wmma -> wmma",
       check=_check_wmma_mma, phases="selected synced", traits="product")
