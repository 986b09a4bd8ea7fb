"""Moves between global memory, shared memory and registers: pointers, guards, vector widths, cp.async and ldmatrix."""

from __future__ import annotations

import numpy as np

from ...errors import FcError
from ...ir.access import Access, Axis, along
from ...ir.alignment import run
from ...ir.core import Op, Value
from ...ir.layout import LANES, RegLayout
from ...ir.types import DTYPES, DType
from .emit import Emitter, emits, memtype
from .expr import choose, nonneg
from .frag import one_by_one, stored
from .smem import Addresses, byte_address
from .text import ADD, ATOM, BITS, CTYPES, MUL, ZERO, X, add, binary, call, every, inside, mul

_TAGS = {d.name: "b32" if d.per_register > 1 or d.name == "u32" else d.name for d in DTYPES.values()}


def scaled(x: X, stride: X) -> X:
    """Elements: position times stride, in 64 bits."""
    if x.is_zero or stride.text == "1":
        return x
    return X(f"(long long){x.within(ATOM)} * {stride}", MUL, x.depth)


def end_of(em: Emitter, axis: Axis) -> X:
    """The first position along a dimension that no longer counts: 0 or more."""
    size = em.size(axis.dim)
    if axis.limit is None:
        return size
    most = call("min", em.scalar(axis.limit), size)
    return em.hoist("int", "end", most if nonneg(em, axis.limit) else call("max", ZERO, most))


class Rectangle:
    """The global side of an op: a pointer for the thread, offsets and guards per instance (a run of `vec` registers)."""

    def __init__(self, em: Emitter, op: Op, layout: RegLayout, vec: int, who: str = ""):
        tensor, access = op.operands[0], Access.of(op)
        self.em, self.tensor, self.vec = em, tensor, vec
        regs = np.arange(0, layout.regs, vec)
        terms: list[X] = []
        self.axes: list[tuple[np.ndarray, X]] = []
        self.guards: list[tuple[X, np.ndarray, X, str | int, bool]] = []
        self.before: set[int] = set()  # guards of runs that may begin in front of the tensor
        #: vectors, or tiles, of positions: array, register of each instance, stride, end if guarded
        self.listed: list[tuple[str, np.ndarray, X, X | None]] = []
        self.inside_all: list[X] = []  # of positions that all elements share, guarded
        for d, axis in enumerate(access.axes):
            own = axis.word == "element" and axis.start is not None and axis.start.type.shape
            first = em.scalar(axis.start) if axis.start is not None and not axis.is_listed and not own else ZERO
            stride, last = em.stride(tensor, d), d == len(access.axes) - 1
            if own:
                assert axis.start is not None
                self.listed.append((stored(em, axis.start), regs, stride, em.size(axis.dim)))
                continue
            if axis.word == "element":
                self.inside_all.append(inside(first, em.size(axis.dim)))
            if axis.along is None:
                terms.append(scaled(first, stride))
                continue
            if axis.is_listed:
                assert axis.start is not None
                registers = along(layout, axis.along)[1][regs]
                self.listed.append((stored(em, axis.start), registers, stride, em.size(axis.dim) if axis.guard else None))
                continue
            thread = em.thread_part(layout, axis.along, f"{who or tensor.name.lower()}_{'col' if last else 'row'}")
            table = np.asarray(layout.part(axis.along, "r", regs))
            terms += [scaled(add(first, thread), stride)] if first.depth == 0 else [scaled(thread, stride), scaled(first, stride)]
            self.axes.append((table, stride))
            if axis.guard:
                if axis.start is not None and not nonneg(em, axis.start):
                    self.before.add(len(self.guards))
                self.guards.append((add(first, thread), table, end_of(em, axis), axis.dim if axis.limit is None else "", last))
        self.terms = [t for t in terms if not t.is_zero]

    def step(self) -> X | None:
        """Elements from one instance to the next where that is one run-time constant: the pointer can walk."""
        moving = [(t, s) for t, s in self.axes if t.any()]
        if self.listed or self.inside_all or len(moving) != 1 or moving[0][1].text == "1" or len(moving[0][0]) < 2:
            return None
        table, stride = moving[0]
        rows = int(table[1] - table[0])
        if not (table == np.arange(len(table)) * rows).all():
            return None
        return self.em.hoist("long long", f"{self.tensor.name.lower()}_step", binary("*", X(str(rows)), stride))

    def walker(self) -> X:
        """A pointer of this op's own, to be moved by `step`."""
        em = self.em
        now = [t for t in self.terms if t.depth >= em.depth]
        self.terms = [t for t in self.terms if t.depth < em.depth]
        x = self.pointer()
        for t in now:
            x = add(x, t)
        name = em.names(f"{self.tensor.name.lower()}_src")
        em.w.line(f"{self.ctype} {name} = {x};")
        return X(name, depth=em.depth)

    @property
    def ctype(self) -> str:
        return f"{'' if self.tensor in self.em.written else 'const '}{memtype(self.tensor)}*"

    def pointer(self) -> X:
        """The thread's pointer; what outer blocks know is added there."""
        em = self.em
        base = X(em.pname[self.tensor])
        for depth in sorted({t.depth for t in self.terms}):
            for t in self.terms:
                if t.depth == depth:
                    base = add(base, t)
            wish = f"{self.tensor.name.lower()}_{'ptr' if depth == em.depth else 'base'}"
            base = em.hoist(self.ctype, wish, base)
        return base

    def offset(self, i: X) -> X:
        out = ZERO
        for table, stride in self.axes:
            out = add(out, scaled(self.em.form(table, i, "at"), stride))
        for name, table, stride, _ in self.listed:
            out = add(out, scaled(X(f"{name}[{self.em.index(table, i, 'at')}]", depth=self.em.depth), stride))
        return out

    def prepare(self) -> None:
        """Name the thread's guarded positions before the loop over instances."""
        wish = f"{self.tensor.name.lower()}_pos"
        self.guards = [(self.em.hoist("int", wish, at) if at.prec < 100 else at, *rest) for at, *rest in self.guards]  # type: ignore[misc]

    def inside(self, i: X) -> X | None:
        """True where the first element of the run is inside the tensor."""
        out = [*self.inside_all]
        for n, (at, table, size, _, _) in enumerate(self.guards):
            x = add(at, self.em.form(table, i, "at"))
            out.append(inside(x, size) if n in self.before else binary("<", x, size))
        out += [inside(X(f"{name}[{self.em.index(table, i, 'at')}]"), end) for name, table, _, end in self.listed if end is not None]
        return every(out)

    def ragged(self) -> bool:
        """Whether a run may straddle the end of the last axis."""
        return any(last and (isinstance(dim, str) or dim % self.vec) for *_, dim, last in self.guards)

    def count(self, i: X) -> X | None:
        """Elements of the run that are inside, where it may straddle the end."""
        for at, table, size, _, last in self.guards:
            if last:
                left = binary("-", size, add(at, self.em.form(table, i, "at")))
                return call("max", ZERO, call("min", X(str(self.vec)), left))
        return None


@emits("cp_async")
def _cp_async(em: Emitter, op: Op) -> None:
    buffer, layout = op.operands[-1], op["threads"]
    vec, size = run(op), buffer.type.dtype.bytes
    em.comment([op.loc])
    n = layout.regs // vec
    c = layout.coords(em.kernel.warps)[:, :, ::vec]
    rows, cols = (c[..., 0], c[..., 1]) if c.shape[-1] == 2 else (c[..., 0] * 0, c[..., 0])
    for e in range(1, vec):
        step = byte_address(buffer.type, rows, cols + e) - byte_address(buffer.type, rows, cols)
        assert (step == e * size).all(), "a run of elements is contiguous in shared memory"
    to = Addresses(em, buffer, None, None, rows, cols, "copy_lane")
    rect = Rectangle(em, op, layout, vec, "copy")
    step = rect.step()
    src = rect.pointer() if step is None else rect.walker()
    rect.prepare()
    plain, fill = f"cp_async_{vec * size}", f"cp_async_{vec * size}_fill"

    def body(i: X) -> list[str]:
        at = add(src, rect.offset(i)) if step is None else src
        walk = [] if step is None else [f"{src} += {step};"]
        where = rect.inside(i)
        if where is None:
            return [f"{em.fn(plain)}({to.address(i)}, {at});", *walk]
        count = rect.count(i) if rect.ragged() else None
        taken = mul(count, size) if count is not None else X(str(vec * size))
        # zero bytes taken: nothing is read, so the address may lie past the tensor and needs no clamp
        return [f"{em.fn(fill)}({to.address(i)}, {at}, {where} ? {taken} : 0);", *walk]

    with em.only(em.writer_predicate(layout, None)):  # of a tile too small for all threads: one of those with copies moves it
        em.w.loop(n, "i", body)


def registers(dtype: DType, name: str, i: X, vec: int) -> tuple[str, int]:
    """(pointer to the run's registers, how many) for run i."""
    per = vec // dtype.per_register
    at = mul(i, per)
    return (name if at.is_zero else f"&{name}[{at}]"), per


#: bits of an element -> the function that takes one out of a packed array
_PART = {16: "half_of", 8: "byte_of"}


@emits("ld_global")
def _ld_global(em: Emitter, op: Op) -> None:
    v = op.result
    layout, dtype = v.type.layout, v.type.dtype
    em.comment([op.loc])
    name = em.declare(v)
    vec = run(op)
    rect = Rectangle(em, op, layout, vec)
    src = rect.pointer()
    rect.prepare()
    if vec == 1:
        def element(i: X) -> X:
            at, where = rect.offset(i), rect.inside(i)
            x = X(f"{src}[{at}]")
            zero = "0.0f" if dtype.name == "f32" else "0"
            return x if where is None else choose(where, x, X(zero))

        one_by_one(em, name, layout.regs, 32 // dtype.per_register, element)
        return

    def body(i: X) -> list[str]:
        into, per = registers(dtype, name, i, vec)
        where = rect.inside(i)
        load = f"{em.fn(f'ld_global_{_TAGS[dtype.name]}x{per}')}({into}, {add(src, rect.offset(i))});"
        if where is None:
            return [load]
        clear = [f"{name}[{add(mul(i, per), X(str(k)))}]" for k in range(per)]
        return [f"{' = '.join(clear)} = 0;", f"if ({where}) {load}"]

    em.w.loop(layout.regs // vec, "i", body)


@emits("st_global")
def _st_global(em: Emitter, op: Op) -> None:
    v = op.operands[1]
    layout, dtype = v.type.layout, v.type.dtype
    em.comment([op.loc])
    adds = op.get("reduce") == "add"
    name = stored(em, v)
    vec = run(op)
    rect = Rectangle(em, op, layout, vec)
    dst = rect.pointer()
    rect.prepare()
    def body(i: X) -> list[str]:
        where, at = rect.inside(i), rect.offset(i)
        to = add(dst, at)
        if dtype.bits < 32 and vec == 1:
            bits = f"{em.fn(_PART[dtype.bits])}({name}, {i})" if dtype.bits > 1 else f"{name}[{i}]"
            text = f"{em.fn('red_add_' + dtype.name)}({to}, {bits});" if adds else f"{dst}[{at}] = {bits};"
        elif adds:
            text = f"{em.fn('red_add_' + dtype.name + ('x2' if vec == 2 else ''))}({to}, {name}[{i}]);"
        elif vec == 1:
            text = f"{dst}[{at}] = {name}[{i}];"
        else:
            into, per = registers(dtype, name, i, vec)
            text = f"{em.fn(f'st_global_{_TAGS[dtype.name]}x{per}')}({to}, {into});"
        return [text if where is None else f"if ({where}) {text}"]

    with em.only(em.writer_predicate(layout, op.loc)):
        em.w.loop(layout.regs // vec, "i", body)


# ---- shared memory and registers -------------------------------------------------------------------------------------


def stored_positions(em: Emitter, op: Op, v: Value) -> tuple[np.ndarray, np.ndarray]:
    """Row and column in the stored tile of each register: int [warps, lanes, registers] each."""
    c = v.type.layout.coords(em.kernel.warps).astype(np.int64)
    if c.shape[-1] == 1:
        along = op.get("along", 1)
        return (c[..., 0] * 0, c[..., 0]) if along in (None, 1) else (c[..., 0], c[..., 0] * 0)
    return (c[..., 1], c[..., 0]) if op.get("transposed") else (c[..., 0], c[..., 1])


def _shared(em: Emitter, op: Op, v: Value, buffer: Value, row: Value, col: Value) -> tuple[Addresses, int]:
    """Addresses of runs of registers, and how many elements a run has."""
    rows, cols = stored_positions(em, op, v)
    one = Addresses(em, buffer, row, col, rows, cols) if em.static([row, col]) is not None else None
    vec = one.run(16 // v.type.dtype.bytes) if one is not None else 1
    vec = min(vec, 2) if v.type.dtype.bits == 1 else vec if vec >= v.type.dtype.per_register or vec * v.type.dtype.bits == 16 else 1
    return Addresses(em, buffer, row, col, rows[..., ::vec], cols[..., ::vec]), vec


@emits("ld_shared")
def _ld_shared(em: Emitter, op: Op) -> None:
    buffer, row, col = op.operands
    v = op.result
    dtype = v.type.dtype
    em.comment([op.loc])
    name = em.declare(v)
    access, vec = _shared(em, op, v, buffer, row, col)
    n = v.type.layout.regs
    if vec < dtype.per_register:
        each = vec * dtype.bits
        one_by_one(em, name, n // vec, each, lambda i: call(em.fn(f"ld_shared_b{each}"), access.address(i)))
        return

    def body(i: X) -> list[str]:
        if dtype.bits == 1:  # a byte each in memory
            got, at = call(em.fn(f"ld_shared_b{8 * vec}"), access.address(i)), mul(i, vec)
            if vec == 1:
                return [f"{name}[{i}] = {got};"]
            return ["{", f"    const uint32_t pair = {got};", f"    {name}[{at}] = pair & 0xff;",
                    f"    {name}[{add(at, X('1'))}] = pair >> 8;", "}"]
        into, per = registers(dtype, name, i, vec)
        return [f"{em.fn(f'ld_shared_{_TAGS[dtype.name]}x{per}')}({into}, {access.address(i)});"]

    em.w.loop(n // vec, "i", body)


@emits("st_shared")
def _st_shared(em: Emitter, op: Op) -> None:
    v, buffer, row, col = op.operands
    dtype, layout = v.type.dtype, v.type.layout
    em.comment([op.loc])
    there = "shared"
    if (block := op.get("block")) is not None:
        there = "cluster"
        at = call(em.fn("block_address"), em.scalars[buffer], X(str(block)))
        em.scalars[buffer] = em.hoist("uint32_t", f"{em.ring_name[buffer]}_there", at)
    access, vec = _shared(em, op, v, buffer, row, col)
    name = stored(em, v)

    def body(i: X) -> list[str]:
        if dtype.bits == 1:
            at = mul(i, vec)
            both = f"{name}[{at}]" if vec == 1 else f"{name}[{at}] | {name}[{add(at, X('1'))}] << 8"
            return [f"{em.fn(f'st_{there}_b{8 * vec}')}({access.address(i)}, {both});"]
        if vec < dtype.per_register:
            each = vec * dtype.bits
            return [f"{em.fn(f'st_{there}_b{each}')}({access.address(i)}, {em.fn(_PART[each])}({name}, {i}));"]
        into, per = registers(dtype, name, i, vec)
        fn = em.fn(f"st_{there}_{_TAGS[dtype.name]}x{per}")
        if crossing is None:
            return [f"{fn}({access.address(i)}, {into});"]
        of = lambda at: [f"{name}[{add(mul(at, per), X(str(e)))}]" for e in range(per)]
        crossed = [f"{lanes} ? {b} : {a}" for a, b in zip(of(i), of(X(f"({i} ^ {crossing[1]})")))]
        return [f"const {CTYPES[dtype.name]} run[{per}] = {{{', '.join(crossed)}}};", f"{fn}({access.address(i)}, run);"]

    crossing = access.crossing(vec) if dtype.bits == 32 and block is None else None
    if crossing is not None:
        bit, _, turned = crossing
        lanes = em.hoist("bool", "crossed", X(f"lane & {bit}", BITS))
        to = X(f"{access.base.within(ADD)} ^ (lane & {bit}) * {turned // bit}", BITS, access.base.depth)
        access.base = em.hoist("uint32_t", f"{em.ring_name[buffer]}_crossed", to)
    with em.only(em.writer_predicate(layout, op.loc)):
        em.w.loop(layout.regs // vec, "i", body)


def matrix_rows(em: Emitter, op: Op, rows: np.ndarray, cols: np.ndarray, count: int) -> Addresses:
    """What the lanes supply to move `count` blocks of 8 x 8 at once, which begin at these positions, int [warps, blocks]: each a row."""
    buffer, row, col = op.operands[-3:]
    which, down = np.arange(LANES) // 8 % count, np.arange(LANES)[:, None] % 8
    lr, lc = (x.reshape(len(x), -1, count)[:, :, which].transpose(0, 2, 1) for x in (rows, cols))
    return Addresses(em, buffer, row, col, lr + down, lc)


@emits("ldmatrix")
def _ldmatrix(em: Emitter, op: Op) -> None:
    """A 32-bit register is a block; the lanes' row addresses of 4 blocks go into one instruction."""
    buffer, v = op.operands[0], op.result
    rows, cols = stored_positions(em, op, v)
    per = v.type.dtype.per_register
    lane, e = np.arange(LANES)[None, :, None, None], np.arange(per)
    blocks = v.type.layout.regs // per
    br, bc = rows[:, 0, ::per], cols[:, 0, ::per]  # [warps, blocks]
    long, short = per * (lane % 4) + e, lane // 4
    want = (long, short) if op["trans"] else (short, long)
    shape = (rows.shape[0], LANES, blocks, per)
    if v.type.layout.regs % per or not all((have.reshape(shape) == b[:, None, :, None] + w).all()
                                         for have, b, w in ((rows, br, want[0]), (cols, bc, want[1]))):
        raise FcError("compile/unsupported", "ldmatrix: the fragment's registers are not 8 x 8 blocks of the stored tile",
                      got=v.type.layout, loc=op.loc,
                      hint="the .trans form is for fragments whose pairs run down the stored columns")
    count = next(n for n in (4, 2, 1) if blocks % n == 0)
    em.comment([op.loc])
    name = em.declare(v)
    access = matrix_rows(em, op, br, bc, count)
    aligned = byte_address(buffer.type, access.rows, access.cols) % 16 == 0
    assert not access.split or aligned.all(), "ldmatrix rows start on 16 bytes"
    fn = em.fn(f"ldmatrix_x{count}{'_trans' if op['trans'] else ''}")

    def body(i: X) -> list[str]:
        into, _ = registers(v.type.dtype, name, i, per * count)
        return [f"{fn}({into}, {access.address(i)});"]

    em.w.loop(blocks // count, "i", body)
