"""select: placed ops become the target's instructions.

In: pipelined machine IR. Out: no `dot`, `stage`, `unstage`, `load` or `store` is left: a dot is an unrolled loop over the depth of one
instruction, reading its operands by `ldmatrix` (or from fragments it already has), a rolled loop of multiply-adds, or WMMA calls; staged
tiles have kernel buffers. Each dot carries the decision in `math`; this pass only carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import FcError
from ...ir.alignment import demanded, with_promises
from ...ir.core import Block, Kernel, Op, Value, walk
from ...ir.known import const_of
from ...ir.layout import Factor, OpaqueLayout, RegLayout, SmemLayout, mma_a, mma_b, mma_run, rowwise, warp_grid
from ...ir.lifetimes import WRITES
from ...ir.moves import matrix_blocks
from ...ir.rewrite import Builder, Env
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.types import Buffer, Frag, Pending, Scalar, f32, i32
from ..facts.common import ELEMENTWISE, called, without_effect
from ..facts.stores import INSTEAD, Staging, check_alone, check_bulk, is_box, out_of_turn, staging, stored_blocks


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    if schedule.epilogue == "tma":
        check_alone(kernel)
    s = _Selector(schedule, target, kernel)
    roles = [replace(r, body=s.block(r.body, Env(), r.warps)) for r in kernel.roles]
    roles = [replace(r, body=s.fill_ones(r.body)) for r in roles]
    out = replace(kernel, roles=tuple(roles), buffers=(*kernel.buffers, *s.buffers, *s.ones.values())).with_meta(stage="selected")
    return with_promises(out, demanded(out))


@dataclass
class _Selector:
    schedule: Schedule
    target: Target
    kernel: Kernel
    buffers: list[Value] = field(default_factory=list)
    defs: dict[Value, Op] = field(default_factory=dict)
    ones: dict[Buffer, Value] = field(default_factory=dict)  # how stored -> the buffer
    #: left operands kept in registers: (tile, is it read turned, warps along each axis) -> fragment
    held: dict[tuple[Value, bool, tuple[int, ...]], Value] = field(default_factory=dict)
    warps: int = 0  # of the role
    copies: dict[tuple[Any, ...], Value] = field(default_factory=dict)  # n-th staging buffer of a kind in each loop of a chain -> it
    chain: Any = None  # of the loop whose body is selected; staged: how many buffers of a kind it has had
    staged: dict[Any, int] = field(default_factory=dict)
    #: fragments that this block stages for readers in its own iteration -> where they lie; and staged tiles that are read in the next one
    tiles: dict[Value, Value] = field(default_factory=dict)
    later: set[Value] = field(default_factory=set)

    def block(self, block: Block, env: Env, warps: int) -> Block:
        self.warps = warps
        b, held, tiles = Builder(), dict(self.held), self.tiles
        self.tiles = {}
        self.later.update(v for o in block.ops if o.get("behind") for v in o.operands)
        for op in _staged_first(block.ops) if self.schedule.epilogue == "tma" else block.ops:
            b.loc = op.loc
            op = op.reading(env.all(op.operands))
            if op.kind == "for" and self.schedule.hold_a:
                self.hold(op, b, env)
            rule = getattr(self, "on_" + op.kind, None)
            if rule is not None:
                rule(op, b, env)
                continue
            results = env.anew(op.results)
            self.defs |= dict.fromkeys(results, op)
            outer = self.chain, self.staged
            if op.kind == "for":
                self.chain, self.staged = op.get("chain"), {}
            b.add(replace(op.within(lambda r: self.block(r, env, warps)), results=results))
            self.chain, self.staged = outer
        self.held, self.tiles = held, tiles  # what was fetched in this block does not reach the ops outside it
        return b.block(block.args)

    # ---- data movement -----------------------------------------------------------------------------------------------

    def on_load(self, op: Op, b: Builder, env: Env) -> None:
        env[op.result] = b.emit("ld_global", *op.operands, type=op.result.type, name=op.result.name, **self.access(op))

    def on_store(self, op: Op, b: Builder, env: Env) -> None:
        if isinstance(op.operands[1].type, Buffer):
            self.send(op, op.operands[1], Staging(op.operands[1].type, 1, False), b)
            return
        if self.schedule.epilogue == "tma" and is_box(op):
            self.bulk_store(op, b)
            return
        if op.get("turn"):
            raise out_of_turn(op)
        b.do("st_global", *op.operands, **self.access(op))

    def access(self, op: Op) -> dict[str, Any]:
        attrs = {k: a for k, a in op.attrs.items() if k not in ("site", "stages", "leaves")}
        return {**attrs, "vec": 1} if self.schedule.copy == "scalar" else attrs

    def bulk_store(self, op: Op, b: Builder) -> None:
        """From where the tile lies for other readers, or through a buffer of its own, from which one thread of each group of warps with
        rows of their own starts a copy."""
        frag = op.operands[1]
        buffer = self.tiles.get(frag)
        s = staging(op, self.warps, self.target, buffer.type if buffer is not None else None)
        if buffer is None or s.buffer is not buffer.type:
            buffer = self.staging(s.buffer, f"{op.operands[0].name.lower()}_tile", op.operands[0])
            self.put(frag, buffer, b)
        self.send(op, buffer, s, b)

    def send(self, op: Op, buffer: Value, s: Staging, b: Builder) -> None:
        check_bulk(op, self.kernel, self.defs, INSTEAD)
        across: dict[str, Any] = {"across": True} if s.across else {}
        b.do("tma_store", op.operands[0], *op.operands[2:], buffer, parts=s.parts, **across,
             **{k: a for k, a in op.attrs.items() if k != "vec"})
        b.do("bulk_commit")

    def on_st_shared(self, op: Op, b: Builder, env: Env) -> None:
        """Into a slot of a ring: a whole tile, or a part of it."""
        if op.operands[0].type.shape == op.operands[1].type.shape and not op.attrs:
            self.put(op.operands[0], op.operands[1], b)
        else:
            b.add(op)

    def on_stage(self, op: Op, b: Builder, env: Env) -> None:
        buffer = self.staging(op.result.type, op.result.name)
        self.put(op.operands[0], buffer, b)
        env[op.result] = buffer
        if op.result not in self.later:
            self.tiles.setdefault(op.operands[0], buffer)

    def staging(self, t: Buffer, name: str, tensor: Value | None = None) -> Value:
        """A buffer to stage a tile in. Copies of a loop, which run one after the other, have theirs in common where engines read them:
        those of one loop may read what the next one begins to store."""
        kind = self.warps, t, name, tensor
        n = self.staged[kind] = self.staged.get(kind, 0) + 1
        buffer = self.copies.get((self.chain, n, kind)) if self.chain is not None and self.schedule.copy == "tma" else None
        if buffer is None:
            buffer = self.copies[self.chain, n, kind] = Value(t, name)
            self.buffers.append(buffer)
        return buffer

    def put(self, frag: Value, buffer: Value, b: Builder) -> None:
        layout, zero = frag.type.layout, b.const(0)
        if isinstance(layout, OpaqueLayout):
            b.do("wmma_store", frag, buffer, zero, zero)
        elif blocks := stored_blocks(layout, buffer.type, self.warps, self.target):
            b.do("stmatrix", frag, buffer, zero, zero, trans=blocks == "columns")
        else:
            b.do("st_shared", frag, buffer, zero, zero)

    def on_unstage(self, op: Op, b: Builder, env: Env) -> None:
        t, zero, kind, how = op.result.type, b.const(0), "ld_shared", dict[str, Any]()
        if isinstance(t.layout, OpaqueLayout):
            kind = "wmma_load"
        elif t.dtype.bits in (8, 16) and len(t.shape) == 2 and "ldmatrix_x4" in self.target.instrs and t.layout == self.left_layout(t):
            kind, how = "ldmatrix", {"transposed": False, "trans": False}
        elif t.dtype.bits == 16 and self.in_columns(t.layout, op.operands[0].type):
            kind, how = "ldmatrix", {"transposed": False, "trans": True}
        env[op.result] = b.emit(kind, op.operands[0], zero, zero, type=t, name=op.result.name, **how)

    def on_combine_across(self, op: Op, b: Builder, env: Env) -> None:
        """Each warp puts its part into shared memory; each reads all parts of its rows and folds them, all in the same order."""
        part, t, zero = op.operands[0], op.result.type, b.const(0)
        rows: tuple[int, ...] = (op["warps"].shape[0], *t.shape)
        frag = lambda digits: Frag(t.dtype, rows, RegLayout((digits, *t.layout.axes)))
        buffer = Value(Buffer(t.dtype, rows, SmemLayout(t.shape[-1])), f"{op.result.name}_parts" if op.result.name else "parts")
        self.buffers.append(buffer)
        b.do("st_shared", b.emit("apart", part, type=frag(op["warps"].axes[0]), lanes=op["lanes"], name=op.result.name), buffer, zero, zero)
        every = b.emit("ld_shared", buffer, zero, zero, type=frag((Factor("r", rows[0], t.layout.regs),)), name=op.result.name)
        env[op.result] = b.emit("reduce", every, name=op.result.name, fn=part.type.partial, axis=0)

    def in_columns(self, layout: RegLayout, buffer: Buffer) -> bool:
        """Whether lanes hold neighbours in a column, which loads would take one by one, as ldmatrix gives them."""
        return ("ldmatrix_x4" in self.target.instrs and buffer.layout.row_bytes(buffer.dtype.bytes) % 16 == 0
                and matrix_blocks(layout, self.warps) == "columns")

    def left_layout(self, t: Frag) -> RegLayout | None:
        rows, depth = t.shape
        size, down = t.dtype.bytes, warp_grid(t.layout)[0]
        return mma_a(rows, depth, (down, 1), size) if rows % (16 * down) == 0 and depth * size % 32 == 0 else None

    # ---- dots ----------------------------------------------------------------------------------------------------

    def on_dot(self, op: Op, b: Builder, env: Env) -> None:
        env[op.result] = {"mma": self.mma, "wmma": self.wmma, "fma": self.fma, "wgmma": self.wgmma}[op["math"]](op, b)

    def hold(self, loop: Op, b: Builder, env: Env) -> None:
        """Left operands that a loop only reads are fetched into registers once, in front of it."""
        body = loop.regions[0]
        rings = {o.result: o.operands[0] for o in walk(body) if o.kind == "slot"}  # a slot is filled by another name than it is read by
        outside = body.reads - {rings.get(v, v) for o in walk(body) if o.kind in WRITES for v in o.operands}
        for op in walk(body):
            a = env[op.operands[0]] if op.get("math") == "mma" else None
            if a is not None and isinstance(a.type, Buffer) and op.operands[0] in outside and (key := _as_read(op, a)) not in self.held:
                rows, depth = a.type.shape[::-1] if op["ta"] else a.type.shape
                t = Frag(a.type.dtype, (rows, depth), mma_a(rows, depth, warp_grid(op.result.type.layout), a.type.dtype.bytes))
                zero = b.const(0)
                self.held[key] = b.emit("ldmatrix", a, zero, zero, type=t, name=a.name, loc=op.loc, transposed=op["ta"], trans=op["ta"])

    def mma(self, op: Op, b: Builder) -> Value:
        a, right, acc = op.operands
        a = self.held.get(_as_read(op, a), a)
        instr = self.target.matrix_instr("mma", a.type.dtype.name)
        if instr is None:
            raise FcError("compile/unsupported", f"{self.target.arch} has no mma instruction for {a.type.dtype}", loc=op.loc,
                          hint='Schedule(math="fma")')
        (rows, cols), step = acc.type.shape, instr.shape[2]
        flip_a, size = op["ta"] and isinstance(a.type, Buffer), a.type.dtype.bytes
        check_bytes(op)
        depth = a.type.shape[0 if flip_a else 1]
        warps = warp_grid(acc.type.layout)

        def at_depth(k: Value, acc: Value, b: Builder) -> Value:
            first = b.emit("mul", k, b.const(step))
            part = Frag(a.type.dtype, (rows, step), mma_a(rows, step, warps, size))
            if isinstance(a.type, Buffer):
                pos = (first, b.const(0)) if flip_a else (b.const(0), first)
                left = b.emit("ldmatrix", a, *pos, type=part, name=a.name, transposed=flip_a, trans=flip_a)
            else:
                left = b.emit("slice", a, first, type=part, name=a.name, axis=1)
            width = warps[1] * mma_run(cols // warps[1])

            def at_column(n: Value | None, acc: Value, b: Builder) -> Value:
                col = b.emit("mul", n, b.const(width)) if n is not None else b.const(0)
                pos = (col, first) if op["tb"] else (first, col)
                t = Frag(a.type.dtype, (step, width), mma_b(step, width, warps, size))
                r = b.emit("ldmatrix", right, *pos, type=t, name=right.name, transposed=op["tb"], trans=not op["tb"])
                extra = (col,) if n is not None else ()
                return b.emit("mma", left, r, acc, *extra, type=acc.type, name=op.result.name, instr=instr.name)

            if width == cols:
                return at_column(None, acc, b)
            return _unrolled(cols // width, "n", acc, at_column, b)

        return _unrolled(depth // step, "k", acc, at_depth, b)

    def wgmma(self, op: Op, b: Builder) -> Value:
        """Issued and settled where the dot stands; `overlap` moves the settling to where the result is needed."""
        a, right, acc = op.operands
        cols, ones = acc.type.shape[1] // warp_grid(acc.type.layout)[1], op.get("ones", 0)
        before = cols - ones - right.type.layout.panel if ones else 0  # columns of the panels that ones do not stand beside
        check_bytes(op)
        name, first = (f"wgmma_m64n{n}k{32 // a.type.dtype.bytes}_{a.type.dtype.name}" for n in (cols - before, before))
        if name not in self.target.instrs or (before and first not in self.target.instrs):
            raise FcError("compile/unsupported", f"{self.target.arch} has no wgmma for {a.type.dtype} and {cols} columns", loc=op.loc,
                          hint='Schedule(math="mma", copy="cp_async"), or target="sm_90a"')
        b.do("wgmma_fence")
        extra = () if self.zero(acc) else (acc,)
        beside = (self.tile_of_ones(right.type),) if ones else ()
        attrs: dict[str, Any] = {"ones": ones, **({"first": first} if before else {})} if ones else {}
        attrs |= {name: True for name in ("early", "behind", "rolling") if op.get(name)}
        if op.get("rolling") and (isinstance(a.type, Buffer) or self.kind_of(a) not in ELEMENTWISE):
            raise without_effect("rolling", f"no element work makes the left operand of {called(op.result)} in registers", loc=op.loc)
        if op.get("rolling") and acc.type.shape[0] // warp_grid(acc.type.layout)[0] > 16:
            raise without_effect("rolling", f"a warpgroup has more than 64 rows of {called(op.result)}", loc=op.loc,
                                 expected="one instruction for each step of the depth")
        out = b.emit("wgmma", a, right, *extra, *beside, type=Pending(acc.type), name=op.result.name, instr=name, ta=op["ta"], tb=op["tb"],
                     **attrs)
        b.do("wgmma_commit")
        read = (a,) if isinstance(a.type, Frag) else ()
        return b.emit("settle", out, *read, type=acc.type, name=op.result.name, groups=0)

    def kind_of(self, v: Value) -> str:
        return self.defs[v].kind if v in self.defs else ""

    def tile_of_ones(self, right: Any) -> Value:
        """16 rows of ones, stored like those of a right operand; one tile for the whole kernel."""
        t = replace(right, shape=(16, right.layout.panel), slots=1)
        return self.ones.setdefault(t, Value(t, "ones"))

    def fill_ones(self, body: Block) -> Block:
        """Ones are written once, where a role begins that reads them. The barrier is here, since they are written in one place for readers
        anywhere."""
        used = {v for o in walk(body) for v in o.operands}
        b = Builder()
        for t, v in self.ones.items():
            if v in used:
                one = b.emit("full", b.emit("const", value=1.0, dtype=t.dtype.name),
                             type=Frag(t.dtype, t.shape, rowwise(16, t.shape[1], self.schedule.warps, 32, 16 // t.dtype.bytes)), name="one")
                b.do("st_shared", one, v, b.const(0), b.const(0))
                b.do("proxy_fence")
                b.do("barrier")
        return Block(body.args, (*b.ops, *body.ops))

    def zero(self, v: Value) -> bool:
        """Whether an accumulator is zero everywhere: then the first instruction overwrites."""
        return bool(const_of(v, self.defs) == 0)

    def wmma(self, op: Op, b: Builder) -> Value:
        a, right, acc = op.operands
        (rows, cols), grid = acc.type.shape, warp_grid(acc.type.layout)
        depth = a.type.shape[0 if op["ta"] else 1]

        def at_depth(k: Value, acc: Value, b: Builder) -> Value:
            first, zero = b.emit("mul", k, b.const(16)), b.const(0)
            left = b.emit("wmma_load", a, *((first, zero) if op["ta"] else (zero, first)), transposed=op["ta"], name=a.name,
                          type=Frag(a.type.dtype, (rows, 16), OpaqueLayout("a", *grid)))
            r = b.emit("wmma_load", right, *((zero, first) if op["tb"] else (first, zero)), transposed=op["tb"], name=right.name,
                       type=Frag(right.type.dtype, (16, cols), OpaqueLayout("b", *grid)))
            return b.emit("wmma_mma", left, r, acc, type=acc.type, name=op.result.name)

        return _unrolled(depth // 16, "k", acc, at_depth, b)

    def fma(self, op: Op, b: Builder) -> Value:
        a, right, acc = op.operands
        t: Any = acc.type
        layout: RegLayout = t.layout
        depth = a.type.shape[0 if op["ta"] else 1]

        def vector(buffer: Value, k: Value, along: int, axis: int, b: Builder) -> Value:
            """Column or row k of a stored tile, spread like axis `axis` of the accumulator, as f32."""
            zero = b.const(0)
            n = t.shape[axis]
            frag = Frag(buffer.type.dtype, (n,), layout.drop(1 - axis))
            pos = (zero, k) if along == 0 else (k, zero)
            v = b.emit("ld_shared", buffer, *pos, type=frag, name=buffer.name, along=along)
            if v.type.dtype != t.dtype:
                v = b.emit("cast", v, to=t.dtype.name, name=buffer.name)
            return b.emit("broadcast", v, type=t, axes=(axis,), name=buffer.name)

        def at_depth(k: Value, acc: Value, b: Builder) -> Value:
            left = vector(a, k, 1 if op["ta"] else 0, 0, b)
            r = vector(right, k, 0 if op["tb"] else 1, 1, b)
            if t.dtype == f32:
                return b.emit("fma", left, r, acc, name=op.result.name)
            return b.emit("add", b.emit("mul", left, r), acc, name=op.result.name)

        return _unrolled(depth, "k", acc, at_depth, b, unroll=False)


# ---- helpers -----------------------------------------------------------------------------------------------------------


def check_bytes(op: Op) -> None:
    """Matrix instructions take elements of 8 bits along the depth, and nothing transposes them on the way."""
    a, right, _ = (v.type for v in op.operands)
    if a.dtype.bits == 8 and ((op["ta"] and isinstance(a, Buffer)) or not op["tb"]):
        side, got, want = ("left", a, "[rows, depth], as it is") if op["tb"] else ("right", right, "[columns, depth], read as its .T")
        raise FcError("compile/unsupported", f"{op['math']}: the {side} operand of a dot of {a.dtype} lies across its depth",
                      expected=f"a tile {want}", got=got, loc=op.loc,
                      hint='keep that tensor transposed in memory, convert the tile with .to(fc.f16), or Schedule(math="fma")')


def _unrolled(count: int, name: str, acc: Value, step: Any, b: Builder, unroll: bool = True) -> Value:
    """for name in 0..count carrying an accumulator; `step(index, acc, builder) -> acc` writes the body."""
    index, inner = Value(Scalar(i32), name), Value(acc.type, acc.name)
    body = Builder(b.loc)
    body.do("yield", step(index, inner, body))
    result = Value(acc.type, acc.name)
    attrs = {"unroll": True} if unroll else {}
    b.add(Op("for", (b.const(0), b.const(count), acc), (result,), attrs, (body.block((index, inner)),), b.loc))
    return result


def _staged_first(ops: tuple[Op, ...]) -> list[Op]:
    """A block's ops, where a tile that others read too is staged for them in front of its bulk store."""
    stored = {o.operands[1]: n for n, o in reversed([*enumerate(ops)]) if o.kind == "store" and is_box(o)}
    at = [min(n, stored.get(o.operands[0], n) - 0.5) if o.kind == "stage" else n for n, o in enumerate(ops)]
    return [ops[n] for n in sorted(range(len(ops)), key=at.__getitem__)]


def _as_read(op: Op, a: Value) -> tuple[Value, bool, tuple[int, ...]]:
    """The left operand of a product, and how its lanes read it."""
    return a, bool(op["ta"]), tuple(warp_grid(op.result.type.layout)) if isinstance(op.result.type, Frag) else ()
