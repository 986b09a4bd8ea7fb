"""Channels in text: cursors as a slot and a parity, mbarriers, bulk copies, tokens, and the tiles that a block claims."""

from __future__ import annotations

from itertools import product
from typing import Any

from ...errors import FcError
from ...ir.access import Access
from ...ir.async_ops import boxes, share
from ...ir.core import Op, Value, walk
from ...ir.lifetimes import WRITES
from ...ir.rings import position
from ...ir.types import Buffer, Cursor, Scalar, Tensor
from ..targets.hopper import HINTS
from .boxes import Boxes
from .emit import Emitter, emits
from .flow import carry_in, carry_out, emit_block, move
from .text import ADD, ZERO, X, add, binary, div, mul

ONE = "if (threadIdx.x == 0) "  # in a block of one role


@emits("cursor")
def _cursor(em: Emitter, op: Op) -> None:
    c = op.result
    ring = min(em.walked.get(c, ()), key=em.kernel.buffers.index, default=None)
    names = [em.once((ring, word), f"{em.ring_name[ring] if ring else 'ring'}_{word}") for word in ("slot", "parity")]
    if ring is None or any(names[1] == parity for _, parity in em.cursors.values()):  # one more in this role
        names = [em.names(n) for n in names]
    slot, parity = names[0] if c.type.slots > 1 else "", names[1]
    em.cursors[c] = (slot, parity)
    if slot:
        em.w.line(f"int {slot} = 0;")
    em.w.line(f"uint32_t {parity} = 0;")


@emits("advance")
def _advance(em: Emitter, op: Op) -> None:
    old, new = op.operands[0], op.result
    em.cursors[new] = slot, parity = em.cursors[old]
    if slot:
        em.w.line(f"if (++{slot} == {new.type.slots}) {{ {slot} = 0; {parity} ^= 1; }}")
    else:
        em.w.line(f"{parity} ^= 1;")
    em.changed(*filter(None, (slot, parity)))


def _bar(em: Emitter, bars: Value, cursor: Value, lag: int = 0, part: X = ZERO, parts: int = 1) -> X:
    slot, _ = em.cursors[cursor]
    base = add(em.buffer_base(bars), mul(part, 8 * bars.type.slots // parts)) if parts > 1 else em.buffer_base(bars)
    if lag and slot:
        slot = f"({slot} == 0 ? {bars.type.slots - 1} : {slot} - 1)"
    return X(f"{base} + {slot} * 8", ADD, em.depth) if slot else base


def part_of(em: Emitter, op: Op) -> X:
    """Which of the equal parts of its role's warps a warp is in, or that which an op of one thread names."""
    parts = op.get("parts", 1)
    if parts == 1 or op.get("part") is not None:
        return X(str(op.get("part") or 0))
    return div(X("warp"), em.kernel.warps // parts)


def _part(em: Emitter, op: Op) -> dict[str, Any]:
    """Of barriers that parts of a role have of their own."""
    parts = op.get("parts", 1)
    return {} if parts == 1 else {"parts": parts, "part": part_of(em, op)}


@emits("mbar_wait")
def _wait(em: Emitter, op: Op) -> None:
    bars, cursor = op.operands
    em.comment([op.loc])
    _, parity = em.cursors[cursor]
    wait = "mbar_wait_cluster" if op.get("cluster") else "mbar_wait"
    em.w.line(f"{em.fn(wait)}({_bar(em, bars, cursor, **_part(em, op))}, {parity}{' ^ 1' if op['lag'] else ''});")


@emits("mbar_expect")
def _expect(em: Emitter, op: Op) -> None:
    bars, cursor = op.operands
    em.w.line(f"{em.fn('mbar_expect')}({_bar(em, bars, cursor)}, {op['bytes']});")


def _lanes_touch(em: Emitter) -> bool:
    """Whether lanes of the role read shared memory, or store into a channel."""
    made = em.plan.maker
    return any(op.kind in ("ld_shared", "ldmatrix") for op in made.values()) or any(
        op.kind in WRITES and position(op.operands[1], made) is not None for role in em.kernel.roles for op in walk(role.body))


@emits("mbar_arrive")
def _arrive(em: Emitter, op: Op) -> None:
    bars, cursor = op.operands
    blocks = op.get("cluster") or 1
    bar = _bar(em, bars, cursor, op.get("lag", 0), **_part(em, op))
    one = "" if em.one_thread else "if (lane == 0) "
    if (block := op.get("block")) is not None:
        em.w.line("__syncwarp();")  # lane 0 speaks for the others: they have stored
        em.w.line(f"{one}{em.fn('mbar_tell')}({bar}, {block});")
        return
    if not em.one_thread and _lanes_touch(em):
        em.w.line("__syncwarp();")  # lane 0 speaks for the others: their loads and stores are done too
    if blocks == 1:
        em.w.line(f"{one}{em.fn('mbar_arrive')}({bar});")
    elif em.one_thread:
        em.w.line(f"for (int i = 0; i < {blocks}; ++i) {em.fn('mbar_arrive_cluster')}({bar}, i);")
    else:
        em.w.line(f"if (lane < {blocks}) {em.fn('mbar_arrive_cluster')}({bar}, lane);")


@emits("tma_load")
def _tma_load(em: Emitter, op: Op) -> None:
    tensor, view, bars, cursor = op.operands[0], *op.operands[-3:]
    t: Buffer = view.type
    assert isinstance(tensor.type, Tensor)
    em.comment([op.loc])
    access, panels = Access.of(op), t.shape[-1] // t.layout.panel
    if not access.in_rows:
        raise FcError("compile/unsupported", "a bulk copy runs along the tensor's last axis", got=op["index"], loc=op.loc)
    dst, bar, size = em.scalars[view], _bar(em, bars, cursor), t.dtype.bytes
    blocks, hint = op.get("multicast") or 1, op.get("hint")
    part = share(t, blocks) if blocks > 1 else None
    rows = part[0] if part is not None and part[1] == panels and len(t.shape) == 2 else t.shape[0]
    below = boxes(rows) if len(t.shape) == 2 else 1
    each = rows // below
    box = Boxes(em, access, (each, t.layout.panel) if len(t.shape) == 2 else (t.layout.panel,))
    if part is not None:
        rank = em.hoist("int", "rank", X(f"{em.fn('cluster_rank')}()"))
        if part[1] < panels:
            panels = part[1]
            box.shift(-1, binary("*", rank, X(str(panels * t.layout.panel))))
            dst = add(dst, binary("*", rank, X(str(panels * t.layout.panel_bytes(t.shape, size)))))
        else:
            box.shift(0, binary("*", rank, X(str(part[0]))))
            dst = add(dst, binary("*", rank, X(str(part[0] * t.layout.row_bytes(size)))))
    name = em.map_of(tensor, box.detail(t.layout.swizzle))
    fn = em.fn(f"tma_load_{box.rank}d" + ("_multicast" if blocks > 1 else "") + ("_hint" if hint else ""))
    extra = (f", {hex((1 << blocks) - 1)}" if blocks > 1 else "") + (f", {HINTS[hint]}" if hint else "")
    for n, p in product(range(below), range(panels)):
        if n and p == 0:
            box.shift(0, X(str(each)))
        to = add(dst, X(str(p * t.layout.panel_bytes(t.shape, size) + n * each * t.layout.row_bytes(size))))
        em.w.line(f"{fn}({to}, {name}, {bar}, {box.coords(p * t.layout.panel)}{extra});")


# ---- turns, and tiles to work on ---------------------------------------------------------------------------------------


@emits("token_take", "token_give")
def _turn(em: Emitter, op: Op) -> None:
    """A group waits at its own barrier, and arrives at that of the next one."""
    takes = op.kind == "token_take"
    whose = "warp / 4" if takes else f"(warp / 4 + 1) % {em.kernel.warps // 4}"
    turn = em.hoist("int", "my_turn" if takes else "next_turn", X(f"{op['id']} + {whose}", ADD))
    em.w.line(f"{em.fn('bar_sync' if takes else 'bar_arrive')}({turn}, 256);")


@emits("token_start")
def _start(em: Emitter, op: Op) -> None:
    em.w.line(f"if (warp / 4 == {em.kernel.warps // 4 - 1}) {em.fn('bar_arrive')}({op['id']}, 256);")


@emits("block_index", "block_count")
def _block(em: Emitter, op: Op) -> None:
    em.scalars[op.result] = X("int(blockIdx.x)" if op.kind == "block_index" else "int(gridDim.x)")
    em.nonneg.add(op.result)


@emits("row_part")
def _row_part(em: Emitter, op: Op) -> None:
    em.scalars[op.result] = part_of(em, op)
    em.nonneg.add(op.result)


@emits("claim")
def _claim(em: Emitter, op: Op) -> None:
    em.counter = True
    name, claimed = em.names(op.result.name, "next"), "atomicAdd(counter, 1) + int(gridDim.x);  // the next tile that no block has taken"
    if em.one_thread:
        em.w.line(f"const int {name} = {claimed}")
    else:  # the others hear of it
        em.w.line(f"int {name} = 0;")
        em.w.line(f"{ONE}{name} = {claimed}")
    em.scalars[op.result] = X(name, depth=em.depth)
    em.nonneg.add(op.result)


@emits("claim_done")
def _claim_done(em: Emitter, op: Op) -> None:
    em.counter = True
    em.w.line("// the last block to finish resets the counter for the next launch")
    em.w.open(f"if ({'' if em.one_thread else 'threadIdx.x == 0 && '}atomicAdd(counter + 1, 1) == int(gridDim.x) - 1) {{")
    em.w.line("counter[0] = 0;")
    em.w.line("counter[1] = 0;")
    em.w.close()


@emits("post")
def _post(em: Emitter, op: Op) -> None:
    *values, slot = op.operands
    em.w.line("// told to the other roles" if em.one_thread else "// told to the other warps")
    for n, v in enumerate(values):
        em.w.line(f"{'' if em.one_thread else ONE}{em.fn('post_i32')}({add(em.scalars[slot], X(str(4 * n)))}, {em.scalar(v)});")


@emits("fetch")
def _fetch(em: Emitter, op: Op) -> None:
    for n, r in enumerate(op.results):
        name, at = em.names(r.name, "next"), add(em.scalars[op.operands[0]], X(str(4 * n)))
        if em.one_thread:
            em.w.line(f"int {name};")
            em.w.line(f"{em.fn('ld_shared_i32x1')}(&{name}, {at});")
        else:
            em.w.line(f"const int {name} = {em.fn('fetch_i32')}({at});")
        em.scalars[r] = X(name, depth=em.depth)
        em.nonneg.add(r)


@emits("while")
def _while(em: Emitter, op: Op) -> None:
    body = op.regions[0]
    other = next((a.type for a in body.args if not isinstance(a.type, (Scalar, Cursor))), None)
    if other is not None:
        raise FcError("compile/unsupported", "a while loop carries scalars and cursors", got=other, loc=op.loc)
    names = carry_in(em, body.args, op.operands[1:])
    em.nonneg.update(arg for arg, init in zip(body.args, op.operands[1:]) if arg in names and init in em.nonneg)
    go = em.names("go")
    em.w.line(f"bool {go} = {em.scalar(op.operands[0])};")
    em.open(f"while ({go}) {{")
    for arg, name in names.items():
        em.scalars[arg] = X(name, depth=em.depth)
    emit_block(em, body)
    cond = em.scalar(body.yielded[0])
    pairs = [(a, y) for a, y in zip(body.args, body.yielded[1:]) if a in names]
    em.w.line(f"{go} = {cond};")
    move(em, pairs, names)
    em.close()
    carry_out(em, op.results, body.args, names)

