"""Machine ops of asynchronous engines: bulk tensor copies (TMA), warpgroup matrix instructions (wgmma), and what orders them.

A *channel* is a ring of tiles in shared memory with two arrays of mbarriers: `full` (the copy has landed) and `empty` (all readers are
done). Both sides walk it with a `Cursor` that counts tiles. The filling role waits on `empty` with lag=1, announces the bytes with
`mbar_expect` and starts the copy; the reading role waits on `full`, reads, and arrives on `empty`.

`wgmma` makes a `Pending` accumulator: it may be accumulated onto by another wgmma and nothing else until `settle` has waited for the
group it belongs to. A left operand in registers must stay as it is that long: `settle` lists it, which keeps its registers taken.

In a kernel with clusters, the blocks of one go through the same loops. A channel whose tiles are the same for all of them is filled by
all: each copies its part of a tile and `multicast`s it to the same place in every block, where it counts towards that block's `full`
barrier. A slot may then be filled again when the readers of all blocks are done, so they arrive on every block's `empty` barrier.
Barriers are reached by nobody before all blocks have initialised theirs; no block may end while another one may still reach it, which is
what `cluster_sync` is for.

Two proxies reach shared memory: loads, stores and ldmatrix go through the generic one; TMA and wgmma through the async one. What the
generic proxy wrote is seen by the async one after `proxy_fence` in the writing threads and a barrier (PTX ISA, 'Async proxy').
"""

from __future__ import annotations

from collections.abc import Sequence

from .access import Access
from .attrs import CLUSTER, FLAG, GUARD, INDEX, MOST, TEXT, one_of, whole
from .core import Op, Value
from .layout import WARPS
from .memory_map import SLOTS, boxes_problem
from .op_table import define, need, need_none, need_region
from .types import Buffer, Cursor, Frag, Pending, Scalar, Tensor, i32

MOST_BYTES = MOST - 1  # that an mbarrier's phase may wait for (PTX ISA, 'mbarrier': tx-count)
MOST_BOX = 256  # positions of a bulk copy along an axis
#: named barriers but for the block's own, 0
NAMED = whole(1, 15)


define("cursor", "machine", "The start of a ring: no tile has passed.", "-> cursor", makes=lambda types, attrs: (Cursor(attrs["slots"]),),
       phases="pipelined synced", slots=whole(1, SLOTS))
define("advance", "machine", "One tile further.", "cursor -> cursor", makes=lambda types, attrs: types, phases="pipelined synced",
       traits="position")


_PARTS, _PART = whole(2, WARPS).maybe, whole(0, WARPS - 1).maybe


def check_part(op: Op) -> None:
    need(op.get("part", 0) < op.get("parts", 1), f"{op.kind}: one of its parts", f"below {op.get('parts', 1)}", op.get("part"))


define("mbar_expect", "machine", """`mbar_expect bars, cursor`: one arrival by one thread, and the phase ends only after `bytes` more
       bytes have been copied (mbarrier.arrive.expect_tx).""", "bars, cursor ->", effect="write",
       phases="pipelined synced", bytes=whole(0, MOST_BYTES), traits="position")
define("mbar_arrive", "machine", """`mbar_arrive bars, cursor`: one arrival per warp of the role; with `cluster`, on these barriers in
       each of its blocks (mapa, mbarrier.arrive). lag=1: for the tile before the cursor's. block: on that of one block of the
       cluster, which then sees what the warp stored there. parts: barriers of as many equal parts of a role's warps lie behind each other;
       a warp's is that of its part, or, for a role that is one thread, that of `part`.""",
       "bars, cursor ->", effect="write", phases="pipelined synced", cluster=whole(1, CLUSTER).maybe,
       lag=whole(0, 1).maybe, block=whole(0, CLUSTER - 1).maybe, parts=_PARTS, part=_PART, check=check_part, traits="position")
define("mbar_wait", "machine", """`mbar_wait bars, cursor`: until the phase of this slot that the cursor is in has ended; with lag=1 the
       phase before it, which for the first round of a ring is no wait at all (mbarrier.try_wait.parity in a loop). cluster: arrivals of
       other blocks have published what these stored. parts, part: as above.""", "bars, cursor ->",
       effect="write", phases="pipelined synced", lag=whole(0, 1), cluster=FLAG.maybe, parts=_PARTS, part=_PART,
       check=check_part, traits="position")


def _check_tma_load(op: Op) -> None:
    t = op.operands[-3].type
    need(t.layout.pad == 0, "tma_load: rows without padding", "pad 0", t.layout)
    need(boxes(t.rows) > 0 and t.layout.panel <= MOST_BOX,
         f"tma_load: boxes of at most {MOST_BOX} positions along each axis, of rows in multiples of 8", MOST_BOX, t)
    need_none(op.kind, boxes_problem(t) or Access.of(op).unbounded())
    n = op.get("multicast") or 1
    need(n == 1 or share(t, n) is not None, "tma_load: a tile that is copied in parts is made of as many panels, or runs of 8 rows",
         f"{n} parts", t)


def boxes(rows: int) -> int:
    """In how many copies, one below the other, rows come; 0 where they do not divide."""
    return next((n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= MOST_BOX and (n == 1 or rows // n % 8 == 0)), 0)


def share(t: Buffer, blocks: int) -> tuple[int, int] | None:
    """(rows, panels) of the part of a tile that each of some blocks copies; None where it does not divide. Parts are whole panels, else
    whole groups of 8 rows, so that each starts on a period of the swizzle."""
    rows, panels = t.rows, t.shape[-1] // t.layout.panel
    if panels % blocks == 0:
        return rows, panels // blocks
    return (rows // blocks, panels) if rows % (8 * blocks) == 0 else None


define("tma_load", "machine", """`tma_load T, scalars..., slot, bars, cursor`: one thread starts the copy of a rectangle of a tensor into a
       slot (cp.async.bulk.tensor, one per panel of the slot, or `boxes` of each); positions outside the tensor, or past a limit, become
       zero. The bytes of the whole slot count towards the cursor's barrier when they have landed. With `multicast`, the op of this block
       copies only its part (`share`) of the tile, to the slot and barrier of the same place in every block of the cluster.""",
       "tensor, *, slot, bars, cursor ->", effect="write", one_dtype=True, check=_check_tma_load, phases="pipelined synced", index=INDEX,
       guard=GUARD, hint=one_of("evict_first", "evict_last").maybe,
       multicast=whole(1, CLUSTER).maybe, traits="fills, position", reach=(1, 3, -3))
define("cluster_sync", "machine", """Wait until all warps of all blocks of the cluster have come here, but for roles that have ended
       (barrier.cluster).""", "->", effect="write", phases="pipelined synced")


def accumulator(op: Op) -> Value | None:
    """What a wgmma adds to, if anything."""
    return op.operands[2] if len(op.operands) - bool(op.get("ones")) == 3 else None


def _check_wgmma(op: Op) -> None:
    ones = op.get("ones", 0)
    need(len(op.operands) - bool(ones) in (2, 3), "wgmma takes a, b, possibly an accumulator, and with `ones` a tile of ones", "2 or 3",
         len(op.operands))
    a, b = (v.type for v in op.operands[:2])
    out = op.result.type
    need(isinstance(out, Pending), "wgmma makes a pending accumulator", "pending frag", out)
    need(isinstance(b, Buffer), "wgmma: b is in shared memory", "smem", b)
    need(isinstance(a, (Buffer, Frag)), "wgmma: a is a fragment or in shared memory", "frag or smem", a)
    for t, what in ((a, "a"), (b, "b")):
        if isinstance(t, Buffer):
            need(t.slots == 1, f"wgmma: {what} is one slot of a ring, taken with `slot`", "one slot", t)
            need(t.layout.pad == 0 and t.layout.swizzle > 0, f"wgmma: {what} is swizzled", "swizzle 32, 64 or 128", t.layout)
    need(isinstance(a, Buffer) or not op["ta"], "wgmma: only a stored a can be read transposed")
    rows, depth = a.shape[::-1] if op["ta"] else a.shape
    depth_b, cols = b.shape[::-1] if op["tb"] else b.shape
    need(depth == depth_b and out.shape == (rows, cols + ones), "wgmma: shapes agree", got=f"{a} {b} {out}")
    need(a.dtype == b.dtype and out.dtype == a.dtype.computed, "wgmma: operands of one dtype, an accumulator of f32 or, for integers, i32",
         a.dtype.computed, out.dtype)
    need(a.dtype.bits == 16 or (op["tb"] and not op["ta"]), "wgmma: operands of 8 bits are stored with the depth along their rows",
         "ta = false, tb = true", f"ta = {op['ta']}, tb = {op['tb']}")
    if (acc := accumulator(op)) is not None:
        need(acc.type in (out, out.frag), "wgmma: the accumulator has the result's type", out.frag, acc.type)
    if ones:
        t = op.operands[-1].type
        need(not op["tb"], "wgmma: ones stand beside a right operand that is stored as rows", "tb = false", "tb = true")
        need(t == Buffer(b.dtype, (16, b.layout.panel), b.layout), "wgmma: ones are 16 rows of one panel, stored like those of b", b, t)
    several = bool(ones) and b.shape[1] > b.layout.panel
    need(("first" in op.attrs) == several, "wgmma: `first` goes with ones beside the last of several panels")


def _wgmma_wait(types, attrs):
    need(all(isinstance(t, Frag) for t in types), "wgmma_wait takes left operands in registers", "frags", types)
    return ()


define("wgmma", "machine", """`wgmma a, b` or `wgmma a, b, acc`: [acc +] a b by the target's instruction `instr`, repeated over depth and
       rows; ta, tb: the stored tile is the transpose of the operand. ones: so many columns to the right of b's come from the last operand,
       16
       stored rows that every step of the depth reads again; `instr` then takes b's last panel and the ones, and `first` the panels before.
       Asynchronous: it belongs to the group that the next `wgmma_commit` closes. early, behind: passes `ahead` and `behind` move it.""",
       lambda types, attrs: None, effect="write", check=_check_wgmma, phases="selected synced", instr=TEXT, ta=FLAG, tb=FLAG,
       ones=whole(8, 8).maybe, first=TEXT.maybe, early=FLAG.maybe, behind=FLAG.maybe, rolling=FLAG.maybe,
       traits="product, in flight")
define("wgmma_fence", "machine", """Orders this thread's accesses of accumulators and operand registers before the wgmmas that follow;
       needed before the first one and after every such access.""", "->", effect="write", phases="selected synced")
define("pend", "machine", "An accumulator that products will be added to; from here on it is theirs until a `settle`.", "frag -> pending",
       makes=lambda types, attrs: (Pending(types[0]),), phases="selected synced")
define("wgmma_wait", "machine", """Wait until at most `groups` of this warpgroup's groups are in flight: what older ones read may be
       overwritten, the left operands in registers that are listed too. Their accumulators stay pending.""", _wgmma_wait, effect="write",
       phases="selected synced", groups=whole(0, 7))
define("wgmma_commit", "machine", "Close the group of this warpgroup's wgmmas.", "->", effect="write", phases="selected synced")


def _settle(types, attrs):
    need(any(isinstance(t, Pending) for t in types), "settle takes pending accumulators", "pending frag", types)
    need(all(isinstance(t, (Pending, Frag)) for t in types), "settle takes pending accumulators and the fragments they read",
         "pending frag, frag", types)
    return tuple(t.frag for t in types if isinstance(t, Pending))


define("settle", "machine", """`settle pending..., frags...`: wait until at most `groups` wgmma groups are in flight; the pending
       accumulators become fragments. The other operands are left operands in registers, which may be overwritten from here on.""",
       _settle, effect="write", phases="selected synced", groups=whole(0, 7), traits="in flight")
define("proxy_fence", "machine", "What this thread wrote to shared memory is seen by TMA and wgmma (fence.proxy.async).", "->",
       effect="write", phases="pipelined synced")
define("token_take", "machine", """Wait for this warpgroup's turn: one token goes around the warpgroups of the role. `id`: the first of as
       many named barriers as the role has warpgroups.""", "->", effect="write", phases="selected synced", id=NAMED, traits="named barrier")
define("token_give", "machine", "Hand the token to the next warpgroup.", "->", effect="write", phases="selected synced", id=NAMED,
       traits="named barrier")
define("token_start", "machine", "The last warpgroup hands the first one the token.", "->", effect="write", phases="pipelined synced",
       id=NAMED, traits="named barrier")
define("block_index", "machine", "The number of this block in the launch.", "-> i32", phases="pipelined synced")
define("block_count", "machine", "How many blocks were launched.", "-> i32", phases="pipelined synced")
define("claim", "machine", """The next tile that no block has taken: a counter in global memory, shared by all blocks of the launch, which
       starts at the number of blocks. One thread of the role asks; where there are more, they hear of it by `post` and `fetch`.""",
       "-> i32", effect="write", phases="pipelined synced")
define("claim_done", "machine", "This block will claim no more; the last one to say so resets the counter for the next launch.",
       "->", effect="write", phases="pipelined synced")


define("grid_wait", "machine", """Wait until the grids in front of this one on its stream have ended and all that they wrote is seen
       (griddepcontrol.wait). A kernel that has this op is launched before they have: each of its roles says it before it touches a
       tensor.""", "->", effect="write", phases="selected synced")
define("launch_dependents", "machine", """This block does not mind if the next grid begins: it does when all blocks have said so or ended
       (griddepcontrol.launch_dependents).""", "->", effect="write", phases="selected synced")


def reaches_tensors(op: Op) -> bool:
    """Whether the op itself, without its regions, accesses global memory; the counter of claimed tiles lies there too."""
    return op.kind in ("claim", "claim_done") or any(isinstance(v.type, Tensor) for v in op.operands)


def _check_post(op: Op) -> None:
    *values, slot = (v.type for v in op.operands)
    _numbers(slot, values, "post")


def _numbers(slot, values: Sequence[object], what: str) -> None:
    need(bool(values) and all(t == Scalar(i32) for t in values), f"{what}: i32 scalars", "i32, ...", values)
    need(slot.dtype == i32 and len(slot.shape) == 1 and slot.shape[0] >= len(values), f"{what}: a slot of as many i32", len(values), slot)


define("post", "machine", "`post x, ..., slot`: one thread writes scalars into shared memory.", "*, slot ->", effect="write",
       check=_check_post, phases="pipelined synced")


def _check_fetch(op: Op) -> None:
    (v,) = op.operands
    need(isinstance(v.type, Buffer) and v.type.slots == 1, "fetch takes a slot", "smem i32[n]", v.type)
    _numbers(v.type, [r.type for r in op.results], "fetch")


define("fetch", "machine", "`fetch slot`: the scalars that were posted, known to be the same in the whole warp.", lambda types, attrs: None,
       effect="read", check=_check_fetch, phases="pipelined synced")


def _check_while(op: Op) -> None:
    need(len(op.regions) == 1 and len(op.operands) >= 1, "while takes a condition and carried values")
    types = tuple(v.type for v in op.operands[1:])
    need(op.operands[0].type.dtype.name == "i1" and isinstance(op.operands[0].type, Scalar), "while: the condition is a scalar i1", "i1",
         op.operands[0].type)
    need_region(op, 0, "the body", types, (op.operands[0].type, *types))
    need(tuple(r.type for r in op.results) == types, "while: one result per carried value", types, [r.type for r in op.results])


define("while", "machine", """`while go, inits... -> (carried...)`: the body runs as long as the condition holds; it yields the next
       condition and the carried values.""", lambda types, attrs: None, check=_check_while, phases="pipelined synced",
       traits="regions, in flight, position")
