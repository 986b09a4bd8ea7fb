"""wgmma in text: descriptors, one call per instruction in unrolled loops or per chain of them, and what keeps registers in place around it.

A descriptor is a base for the ring's first slot, computed once, plus the slot's offset plus constants for the instruction. Registers in
flight are not touched between the fence and the wait: copies into an accumulator stand in front of the fence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...errors import FcError
from ...ir.async_ops import accumulator
from ...ir.core import Block, Op, Value, walk
from ...ir.layout import warp_grid, wgmma_a
from ...ir.target import Instr
from ...ir.types import Buffer, Frag, Pending
from .emit import Emitter, emits
from .frag import evaluate, locs_of, put, stored
from .plan import POINTWISE
from .text import ADD, ZERO, X, add, mul, register_type

SWIZZLE_CODE = {128: 1, 64: 2, 32: 3}
GROUP = 4  # warps of a warpgroup
#: ptxas adds up so many descriptors where they are needed; of more it keeps each in two registers (seen with 13.0, depth 512)
STEPS = 16
#: operands that a chain spares, or its steps are a statement each: the compiler would win little, and ptxas orders some instructions anew
#: (chains that spared 252 and 192 made kernels up to 0.5 % and 0.9 % slower, longer ones changed nothing. H200, 2026-11-28)
SPARED = 256
#: less in a descriptor for each unit of address, of a panel with a leading offset of its own
LESS = (1 << 16) - 1
#: printed if it is used
BESIDE = f"constexpr int BESIDE = {LESS};  // less in a descriptor: 16 bytes more of address, as many less to the leading panel"


def fences(block: Block) -> dict[int, list[Op]]:
    """wgmma_fence -> the products issued under it."""
    out: dict[int, list[Op]] = {}
    now: list[Op] | None = None
    for op in block.ops:
        if op.kind == "wgmma_fence":
            now = out.setdefault(id(op), [])
        elif op.kind == "wgmma" and now is not None:
            now.append(op)
        elif op.kind == "settle":
            now = None
        for r in op.regions:
            out.update(fences(r))
    return out


def delayed(em: Emitter) -> dict[Value, Op]:
    """What is computed part by part in front of the parts of a rolling product: the left operand, and element work in its block that it is
    made of, register by register, and that nothing else reads before, if what that is made of is still there; and of which product."""
    out: dict[Value, Op] = {}
    for product in (o for products in em.fences.values() for o in products if o.get("rolling")):
        a = product.operands[0]
        home = em.plan.home[product.result]
        fence = next(n for n, o in enumerate(home.ops) if product in em.fences.get(id(o), ()))
        behind = {id(o) for o in home.ops[fence:]}
        todo = [a]
        while todo:
            v = todo.pop()
            maker = em.plan.maker.get(v)
            if maker is not None and maker.kind in POINTWISE and em.plan.home[v] is home and v not in out \
                    and _late(em, v, behind, {r for r, p in out.items() if p is product}) and _there(em, v, product, out):
                if v not in em.plan.fused:
                    out[v] = product
                todo += [b for o in maker.operands for b, direct in em.plan.leaves(o) if direct]
    return out


def _late(em: Emitter, v: Value, behind: set[int], there: set[Value]) -> bool:
    """Whether all that read v are among some ops, or are computed there."""
    return all(id(u) in behind or any(r in there or (r in em.plan.fused and _late(em, r, behind, there)) for r in u.results)
               for u, _ in em.plan.users[v])


def _there(em: Emitter, v: Value, product: Op, out: dict[Value, Op]) -> bool:
    """Whether what v is made of is in its registers until the product is issued, and is not what the product adds to."""
    ops = em.plan.home[v].ops
    first, last = ops.index(em.plan.maker[v]), ops.index(product)
    between = (o for op in ops[first + 1:last + 1] for o in walk(op) if not any(r in out for r in o.results))
    written = {em.plan.root(r) for o in between for r in (*o.results, *(a for region in o.regions for a in region.args))}
    return written.isdisjoint(em.plan.root(b) for o in em.plan.maker[v].operands for b, _ in em.plan.leaves(o))


def _rolls(em: Emitter, product: Op) -> bool:
    """Whether a product's left operand is computed part by part: not one that is made of what the product adds to."""
    acc = em.plan.root(product.result)
    return bool(product.get("rolling")) and not any(em.plan.root(b) is acc for b, _ in em.plan.leaves(product.operands[0]))


def _parts(depth: int) -> int:
    """Into how many parts a rolling product of so many steps is divided."""
    return next((n for n in (4, 5, 3, 2) if depth % n == 0), depth)


def _touch(em: Emitter, v: Value) -> None:
    name = em.array(v)
    em.w.line(f"{em.fn({'float': 'touch', 'int': 'touch_i32'}.get(register_type(v.type.dtype), 'touch_b32'))}({name});")


@emits("wgmma_fence")
def _fence(em: Emitter, op: Op) -> None:
    for product in em.fences.get(id(op), ()):
        em.comment(locs_of(em, product))
        a, acc = product.operands[0], accumulator(product)
        put(em, acc, product.result)
        if acc is not None and not isinstance(acc.type, Pending):
            _touch(em, product.result)
        if _rolls(em, product):
            return  # each part has its own
        if isinstance(a.type, Frag):
            stored(em, a)
            _touch(em, a)
    em.w.line(f"{em.fn('wgmma_fence')}();")


@emits("pend")
def _pend(em: Emitter, op: Op) -> None:
    put(em, op.operands[0], op.result)
    _touch(em, op.result)


@emits("wgmma_wait", "settle")
def _wait(em: Emitter, op: Op) -> None:
    em.w.line(f"{em.fn('wgmma_wait')}<{op['groups']}>();")
    for v in op.operands:
        _touch(em, v)


@emits("wgmma")
def _wgmma(em: Emitter, op: Op) -> None:
    if not _rolls(em, op):
        _product(em, op)
        return
    a = op.operands[0]
    todo = [o for o in em.plan.home[op.result].ops if o.kind in POINTWISE and em.delayed.get(o.result) is op]
    for o in todo:
        em.declare(o.result)
    name = em.declare(a)
    words = a.type.layout.regs // a.type.dtype.per_register
    count = _parts(words // 4)
    em.w.line("#pragma unroll")
    em.open(f"for (int part = 0; part < {count}; ++part) {{")
    em.w.part = "part", count
    for o in todo:
        em.comment(locs_of(em, o))
        evaluate(em, em.array(o.result), o)
    if a in em.plan.fused:
        evaluate(em, name, em.plan.maker[a])
    pin = em.fn("pin_b32")
    em.w.loop(words, "i", lambda i: [f"{pin}({name}[{i}]);"])
    em.w.line(f"{em.fn('wgmma_fence')}();")
    _product(em, op)
    em.w.part = None
    em.close()


def _product(em: Emitter, op: Op) -> None:
    a, b = op.operands[:2]
    t: Frag = op.result.type.frag
    rows, cols = t.shape
    warps, across = warp_grid(t.layout)
    down = warps // GROUP
    tall, cols = rows // (64 * down), cols // across  # of a warpgroup
    regs = isinstance(a.type, Frag)
    size = b.type.dtype.bytes
    if regs and a.type.layout != (held := wgmma_a(rows, a.type.shape[1], down, size)):
        raise FcError("compile/unsupported", "wgmma: the left operand does not have the instruction's map", expected=held,
                      got=a.type.layout, loc=op.loc)
    depth = (a.type.shape[0] if op["ta"] else a.type.shape[1]) * size // 32
    if not any(op in products for products in em.fences.values()):
        raise FcError("ir/verify", "wgmma: a wgmma_fence of its own region stands in front of it", loc=op.place or op.loc,
                      hint="wgmma_fence before the first product, and after each access of its accumulator")
    name, adds = em.array(op.result), accumulator(op) is not None
    b_at = _steps(b.type, depth, not op["tb"]) // 16
    m = X("m") if tall > 1 else ZERO
    d = X(f"&{name}[{mul(m, cols // 2)}]") if tall > 1 else X(name)
    start = _descriptor(em, b, not op["tb"], _part(em, across, down, _column_step(b.type, cols, not op["tb"])))
    last = _beside(em, b, op.operands[-1]) if op.get("ones") else None
    panels = (b.type.shape[1] - b.type.layout.panel) // 2  # registers of those before the last
    if _chained(em, op, depth, cols // 2):
        trans = f", {int(not op['tb'])}" if size == 2 else ""
        columns, right = [(op["instr"] + "_rs", b_at)], [start]
        if last is not None:
            columns, right = [(op["instr"] + "_rs", -LESS * b_at)], [last]
            if panels:
                columns, right = [(op["first"] + "_rs", b_at), *columns], [start, last]
        fn = _chain(em, Chain(tuple((rec, tuple(map(int, at))) for rec, at in columns), trans, adds))
        left = X(f"&{em.array(a)}[{mul(m, depth * 4)}]") if tall > 1 else X(em.array(a))
        em.w.nest({"m": tall}, [f"{fn}({', '.join(map(str, [d, left, *right]))});"])
        return
    k = X("k") if depth > 1 else ZERO
    fn = em.fn(op["instr"] + ("_rs" if regs else ""))
    here = _here(em) if depth > STEPS else ZERO
    source = add(add(start, here), em.form(b_at, k, f"{em.ring_name[b]}_step"))
    calls = [(fn, d, source)]
    if last is not None:
        step = int(b_at[1]) if depth > 1 else 0
        last = last if k.is_zero or not step else X(f"{last} - {k} * ({step} * BESIDE)", ADD, em.depth)
        calls = [(fn, X(f"&{name}[{add(mul(m, cols // 2), X(str(panels)))}]") if panels else d, last)]
        if panels:
            calls.insert(0, (em.fn(op["first"] + ("_rs" if regs else "")), d, source))
    if regs:
        part = add(mul(m, depth * 4), mul(k, 4))
        left, args = X(f"&{em.array(a)}[{part}]"), f"<{int(not op['tb'])}>" if size == 2 else ""
    else:
        ad = _descriptor(em, a, op["ta"], _part(em, down, 1, tall * _row_step(a.type, op["ta"])))
        left = add(add(ad, here), em.form(_steps(a.type, depth, op["ta"]) // 16, k, f"{em.ring_name[a]}_step"))
        if tall > 1:
            left = add(left, mul(m, _row_step(a.type, op["ta"]) // 16))
        args = f"<{int(op['ta'])}, {int(not op['tb'])}>" if size == 2 else ""
    accumulate = "1" if adds else ("k != 0" if depth > 1 else "0")
    em.w.nest({"m": tall, "k": depth}, [f"{call}{args}({out}, {left}, {source}, {accumulate});" for call, out, source in calls])


def _chained(em: Emitter, op: Op, depth: int, registers: int) -> bool:
    """Whether the steps of a product are one statement. registers: of its accumulator."""
    return isinstance(op.operands[0].type, Frag) and not _rolls(em, op) and (depth - 1) * registers >= SPARED


class Chain(NamedTuple):
    """Products one behind the other, of a left operand in registers. columns: (record, steps of the right operand's descriptor) of
    instructions beside each other, whose accumulators are registers one behind the other. trans: the transposition bit. adds: to what the
    accumulator holds."""

    columns: tuple[tuple[str, tuple[int, ...]], ...]
    trans: str
    adds: bool


def _chain(em: Emitter, chain: Chain) -> str:
    """The device function of a chain, one `asm`. NVVM's work is for every operand of every statement, and the accumulator is one of each
    (D = 128: NVRTC takes up to 16 % less); what ptxas makes of it is the same, mostly to the byte. Not so where the left operand is in
    shared memory: its descriptors are kept in registers over a loop if they are operands, and some do not fit; those that the statement
    adds up are added up each time (a kernel of five products took 4 % more time to run. H200, 2026-11-28)."""
    if chain in em.chains:
        return em.chains[chain]
    recs = [em.instr(name) for name, _ in chain.columns]
    counts = [rec.shape[1] // 2 for rec in recs]
    integer, n, depth = recs[0].dtype in ("i8", "u8"), sum(counts), len(chain.columns[0][1])
    text = ["{", ".reg .pred first, more;", f"setp.ne.b32 first, {int(chain.adds)}, 0;", "setp.ne.b32 more, 1, 0;"]
    for k in range(depth):
        at = 0
        for j, (rec, (_, steps), count) in enumerate(zip(recs, chain.columns, counts)):
            out, left = ", ".join(f"%{at + i}" for i in range(count)), ", ".join(f"%{n + 4 * k + i}" for i in range(4))
            at += count
            text += [f".reg .b64 b{j}_{k};", f"add.s64 b{j}_{k}, %{n + 4 * depth + j}, {steps[k]};",
                     f"{rec.ptx} {{{out}}}, {{{left}}}, b{j}_{k}, {'more' if k else 'first'}{'' if integer else ', 1, 1'}{chain.trans};"]
    con, ctype = ("r", "int") if integer else ("f", "float")
    names = [f"b{j}" if len(recs) > 1 else "b" for j in range(len(recs))]
    lines = "\n             ".join(f'"{line}\\n"' for line in text)
    outs = ", ".join(f'"+{con}"(d[{i}])' for i in range(n))
    ins = ", ".join([*(f'"r"(a[{i}])' for i in range(4 * depth)), *(f'"l"({b})' for b in names)])
    wish = f"{recs[-1].name}_x{depth}"
    name = em.chains[chain] = next(w for w in (wish, *(f"{wish}_{i}" for i in range(2, 1000))) if w not in em.used)
    doc = f"{recs[-1].doc}; {depth} one behind the other" + (", and those of the columns before them" if len(recs) > 1 else "")
    em.used[name] = Instr(name, f"{ctype}* d, const uint32_t* a, " + ", ".join(f"uint64_t {b}" for b in names),
                          f'asm volatile({lines}\n             "}}"\n             : {outs}\n             : {ins} : "memory");', doc)
    return name


def _steps(t: Buffer, depth: int, along_rows: bool) -> np.ndarray:
    """Bytes from the first to each step, 32 bytes deep. along_rows: the depth runs down the stored rows (MN-major)."""
    k = np.arange(depth) * (32 // t.dtype.bytes)
    if along_rows:
        return k * t.layout.row_bytes(t.dtype.bytes)
    return k // t.layout.panel * t.layout.panel_bytes(t.shape, t.dtype.bytes) + k % t.layout.panel * t.dtype.bytes


def _row_step(t: Buffer, along_rows: bool) -> int:
    """Bytes from one 64-row block of a left operand to the next."""
    if along_rows:
        if 64 % t.layout.panel:
            raise FcError("compile/unsupported", "wgmma: 64 rows of a transposed operand are not whole panels", got=t.layout)
        return 64 // t.layout.panel * t.layout.panel_bytes(t.shape, t.dtype.bytes)
    return 64 * t.layout.row_bytes(t.dtype.bytes)


def _column_step(t: Buffer, cols: int, along_rows: bool) -> int:
    """Bytes from a warpgroup's columns of a right operand to those of the next."""
    return cols // t.layout.panel * t.layout.panel_bytes(t.shape, t.dtype.bytes) if along_rows else cols * t.layout.row_bytes(t.dtype.bytes)


def _here(em: Emitter) -> X:
    """Zero, as far as ptxas knows a number of this place: what is added to it is not computed in front of a loop and kept in registers."""
    name = em.names("here")
    em.w.line(f"const uint32_t {name} = {em.fn('opaque')}(0);")
    return X(name, depth=em.depth)


def _part(em: Emitter, parts: int, stride: int, step: int) -> X:
    """Bytes to this warpgroup's part of an operand of which every `stride` warpgroups share one."""
    if parts == 1:
        return ZERO
    wrap = f" % {parts}" if GROUP * stride * parts < em.kernel.warps else ""
    return mul(X(f"(warp / {GROUP * stride}{wrap})"), step)


def _descriptor(em: Emitter, v: Value, along_rows: bool, part: X = ZERO) -> X:
    """The descriptor of a slot's first instruction, of this warpgroup's part."""
    t: Buffer = v.type
    lbo = t.layout.panel_bytes(t.shape, t.dtype.bytes) if along_rows and t.shape[1] > t.layout.panel else 16
    ring, slot = em.slots.get(v, (v, None))
    base = _first_slot(em, v, "desc", lbo, add(em.buffer_base(ring), part))
    return base if slot is None else X(f"{base} + uint32_t({slot} * {t.slot_bytes // 16})", ADD, em.depth)


def _first_slot(em: Emitter, v: Value, wish: str, lead: int, start: X) -> X:
    """The descriptor of what begins at `start` and is stored like v. lead: the leading byte offset."""
    layout = v.type.layout
    code = f"{em.fn('smem_desc')}<{SWIZZLE_CODE[layout.swizzle]}, {lead}, {8 * layout.row_bytes(v.type.dtype.bytes)}>({start})"
    return em.hoist("uint64_t", f"{em.ring_name[v]}_{wish}", X(code, depth=start.depth))


def _beside(em: Emitter, v: Value, ones: Value) -> X:
    """The descriptor of a right operand's last panel, beside which stands another buffer: the leading offset says how far away that is. One
    step on in the operand (or its ring) is one unit more of address and one less of offset: both fields are in one number."""
    t: Buffer = v.type
    ring, slot = em.slots.get(v, (v, None))
    offsets = dict(zip(em.kernel.buffers, em.kernel.meta["smem_offsets"]))
    before = t.layout.panel_bytes(t.shape, t.dtype.bytes) * (t.shape[1] // t.layout.panel - 1)
    gap = offsets[ones] - offsets[ring] - before
    if gap + before < ring.type.bytes:
        raise FcError("compile/unsupported", "wgmma: ones lie after the ring of the right operand", expected=f"at least {ring.type.bytes}",
                      got=gap)
    base = _first_slot(em, v, "ones_desc", gap, add(em.buffer_base(ring), X(str(before))))
    return base if slot is None else X(f"{base} - {slot} * ({t.slot_bytes // 16} * BESIDE)", ADD, em.depth)
