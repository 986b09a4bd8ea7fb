"""place: tile IR -> machine IR in its placed phase. Every tile gets a memory space and a layout.

In: tile IR. Out: machine IR in which registers hold `Frag`s, loads that feed dots make shared-memory tiles, and every change of layout is
an explicit `stage` (registers to shared memory) and `unstage` (back). Dots are still one op each; loads are not yet rings; nothing
synchronises. Guaranteed: element work sees equal layouts; a dot reads its left operand from registers exactly where enumeration says
that the fragment already has the right map (layouts are compared in normal form).

Where values live is decided in `homes`; this file only writes it down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...errors import FcError
from ...ir.access import Access, along
from ...ir.core import Block, Kernel, Op, Role, Value, walk
from ...ir.layout import OpaqueLayout, RegLayout, SmemLayout, native_smem, rowwise
from ...ir.moves import quad_rows
from ...ir.rewrite import Builder, Env, branch
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.tile_ops import in_turn
from ...ir.types import Buffer, Frag, Scalar, Tensor, Tile, i1, i32
from ..facts.common import copy_threads, without_effect
from .flights import ring_buffer
from .homes import ALIKE, ELEMENTWISE, SMEM, Homes


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    homes = Homes(kernel, schedule, target)
    placer = _Placer(homes)
    body = placer.block(kernel.body, Env(), tuple(a.anew() for a in kernel.body.args))
    if schedule.skip_ones and "skip_ones" not in placer.used:
        raise without_effect("skip_ones", "no tile is multiplied by a factor per row", expected="tile * row in the program")
    if schedule.epilogue == "quad" and "quad" not in placer.used:
        raise without_effect("epilogue", "no tile of 16-bit elements is stored from narrow runs", got="quad", expected='"smem" or "direct"')
    meta = {"target": target.arch, "stage": "placed", "schedule": str(schedule), "min_blocks": schedule.min_blocks}
    return replace(kernel, level="machine", roles=(Role("main", schedule.warps, body),), meta={**kernel.meta, **meta})


def buffer_for(dtype: Any, shape: tuple[int, ...], reader: str, run: int = 0, *holders: Any) -> Buffer:
    """A shared-memory tile for its main reader: swizzled rows for ldmatrix and 16-byte rows, one padded stride for the WMMA API and
    for plain loads down columns. Panels divide runs of so many columns, and are to the liking of fragments that write and read it."""
    cols = shape[-1]
    if reader not in ("wmma", "fma") and dtype.bits in (8, 16) and cols * dtype.bytes % 32 == 0:
        return Buffer(dtype, shape, native_smem(run or cols, dtype.bytes, *holders))
    return Buffer(dtype, shape, SmemLayout(cols, max(1, 16 // dtype.bytes)))


class _Placer:
    def __init__(self, homes: Homes):
        self.homes = homes
        self.schedule: Schedule = homes.schedule
        self.scopes: list[dict[tuple[Value, Any], Value]] = []  # what has been made in another layout, per open block
        self.builders: list[Builder] = []  # of the open blocks
        self.branches: list[bool] = []  # which of these are parts of an `if`
        self.depth: dict[Value, int] = {}  # tile -> which of the open blocks makes it
        self.in_regs = self.left_operands_in_regs()
        self.used: set[str] = set()  # fields of the schedule that found something to do

    # ---- blocks --------------------------------------------------------------------------------------------------

    def block(self, block: Block, env: Env, args: tuple[Value, ...]) -> Block:
        for old, new in zip(block.args, args):
            env[old] = new
        b = Builder()
        with self.inside(b):
            self.ops(block, b, env)
        return b.block(args)

    @contextmanager
    def inside(self, b: Builder, branch: bool = False) -> Iterator[None]:
        self.scopes.append({})
        self.builders.append(b)
        self.branches.append(branch)
        yield
        for of in (self.scopes, self.builders, self.branches):
            of.pop()

    @contextmanager
    def where_made(self, v: Value, always: bool = True) -> Iterator[Builder]:
        """The block that makes `v`, so that what follows from it alone is done once and not in each round of the loops inside. always: also
        if it is read in a branch that may be passed by."""
        n = max([self.depth[v] + 1, *(k + 1 for k, branch in enumerate(self.branches) if branch and not always)])
        before = self.scopes, self.builders, self.branches
        self.scopes, self.builders, self.branches = self.scopes[:n], self.builders[:n], self.branches[:n]
        yield self.builders[-1]
        self.scopes, self.builders, self.branches = before

    def ops(self, block: Block, b: Builder, env: Env) -> None:
        for op in block.ops:
            b.loc = op.loc
            self.depth.update(dict.fromkeys(op.results, len(self.builders) - 1))
            try:
                self.op(op, b, env)
            except FcError as e:
                raise e.at(op.place or op.loc) from None

    def op(self, op: Op, b: Builder, env: Env) -> None:
        if op.kind == "for":
            self.loop(op, b, env)
        elif op.kind == "if":
            self.branch(op, b, env)
        elif op.kind == "store":
            self.store(op, b, env)
        elif op.kind == "dot":
            self.dot(op, b, env)
        elif op.kind == "load":
            self.load(op, b, env)
        elif op.kind == "reduce" and isinstance(op.result.type, Scalar):
            x = op.operands[0]
            src = self.want(x, self.homes.reducible(op, self.homes.known(x) or self.homes.plain(x.type)), b, env)
            env[op.result] = b.emit("fold", src, fn=op["fn"], name=op.result.name)
        elif not any(isinstance(r.type, Tile) for r in op.results):
            b.add(replace(op, operands=env.all(op.operands), results=env.anew(op.results)))
        elif self.homes[op.result] is None:
            return  # flexible: made where it is read, in the layout wanted there
        elif op.kind in ALIKE:
            self.element(op, b, env)
        elif op.kind == "reduce":
            env[op.result] = self.reduced(op, self.homes.known(op.operands[0]), b, env)
        elif op.kind == "cumsum":
            src = self.want(op.operands[0], self.homes[op.result], b, env)
            env[op.result] = b.emit("cumsum", src, name=op.result.name, axis=op["axis"])
        elif op.kind == "slice":
            src = self.want(op.operands[0], self.homes.known(op.operands[0]), b, env)
            env[op.result] = b.emit("slice", src, env[op.operands[1]], type=_frag(op.result, self.homes[op.result]), name=op.result.name,
                                    axis=op["axis"])
        else:
            env[op.result] = self.make(op, self.homes[op.result], b, env)

    def loop(self, op: Op, b: Builder, env: Env) -> None:
        body = op.regions[0]
        homes = [self.homes[a] for a in body.args[1:]]
        inits = tuple(self.at_home(v, h, b, env) for v, h in zip(op.operands[2:], homes))
        args = (Value(Scalar(body.args[0].type.dtype), body.args[0].name),
                *(Value(_at(a, h), a.name) for a, h in zip(body.args[1:], homes)))
        inner = Block((), body.ops[:-1])
        new = self.region(inner, env, dict(zip(body.args, args)), body.yielded, homes, body.ops[-1].loc)
        operands = (*env.all(op.operands[:2]), *inits)
        b.add(replace(op, operands=operands, results=self.results(op, homes, env), regions=(replace(new, args=args),)))

    def results(self, op: Op, homes: list[Any], env: Env) -> tuple[Value, ...]:
        out = tuple(Value(_at(r, h), r.name) for r, h in zip(op.results, homes))
        env.map.update(zip(op.results, out))
        return out

    def region(self, block: Block, env: Env, args: dict[Value, Value], yielded: tuple[Value, ...], homes: list[Any], loc: Any) -> Block:
        for old, fresh in args.items():
            env[old] = fresh
            self.depth[old] = len(self.builders)
        b = Builder()
        with self.inside(b, not args):
            self.ops(block, b, env)
            b.do("yield", *[self.at_home(v, h, b, env) for v, h in zip(yielded, homes)], loc=loc)
        return b.block()

    def branch(self, op: Op, b: Builder, env: Env) -> None:
        homes = [self.homes[r] for r in op.results]
        regions = tuple(self.region(Block((), r.ops[:-1]), env, {}, r.yielded, homes, r.ops[-1].loc) for r in op.regions)
        b.add(replace(op, operands=env.all(op.operands), results=self.results(op, homes, env), regions=regions))

    # ---- values in the layout a reader wants ---------------------------------------------------------------------------

    def at_home(self, v: Value, home: Any, b: Builder, env: Env) -> Value:
        return env[v] if isinstance(v.type, Scalar) else self.want(v, home, b, env)

    def want(self, v: Value, home: Any, b: Builder, env: Env) -> Value:
        """`v` in `home` (a register or opaque layout)."""
        if isinstance(v.type, Scalar):
            return env[v]
        have = self.homes[v]
        flies = v in self.homes.rings or v in self.homes.twins
        if flies and self.homes[v] == home:
            return self.landed(v, env)
        if have == home:
            return env[v]
        for scope in self.scopes:
            if (v, home) in scope:
                return scope[v, home]
        if have is not None:
            out = self.convert(self.landed(v, env) if flies else env[v], home, b, v.name, v)
        elif isinstance(home, OpaqueLayout) and self.homes.defs[v].kind != "full":
            out = self.convert(self.want(v, self.homes.partner(v.type), b, env), home, b, v.name)
        else:
            out = self.make(self.homes.defs[v], home, b, env)
        self.scopes[-1][v, home] = out
        return out

    def landed(self, v: Value, env: Env) -> Value:
        """A tile that travels through a ring, at home in registers: taken from its slot once, in the block that loads it."""
        with self.where_made(v) as b:
            if (v, "landed") not in self.scopes[-1]:
                self.scopes[-1][v, "landed"] = b.emit("unstage", env[v], type=_frag(v, self.homes[v]), name=v.name)
            return self.scopes[-1][v, "landed"]

    def make(self, op: Op, layout: Any, b: Builder, env: Env) -> Value:
        """A flexible op's result in `layout`."""
        v = op.result
        t = Frag(v.type.dtype, v.type.shape, layout)
        if op.kind == "full":
            return b.emit("full", env[op.operands[0]], type=t, name=v.name, loc=op.loc)
        if op.kind == "iota":
            return b.emit("iota", type=t, name=v.name, loc=op.loc)
        if op.kind == "broadcast":
            src = self.want(op.operands[0], layout.keep(op["axes"]), b, env)
            return b.emit("broadcast", src, type=t, name=v.name, loc=op.loc, axes=op["axes"])
        if op.kind == "transpose":
            src = self.want(op.operands[0], layout.transpose(), b, env)
            return b.emit("transpose", src, type=t, name=v.name, loc=op.loc)
        if op.kind == "reduce":
            with self.where_made(v, False) as outer:
                if (v, "row") not in self.scopes[-1]:
                    self.scopes[-1][v, "row"] = self.reduced(op, self.homes.plain(op.operands[0].type), outer, env)
                row = self.scopes[-1][v, "row"]
            return self.convert(row, layout, b, v.name, v)
        if op.kind in ELEMENTWISE or op.kind == "gather":
            args = [x if isinstance(x.type, Tensor) else self.want(x, layout, b, env) for x in op.operands]
            return b.emit(op.kind, *args, type=t, name=v.name, loc=op.loc, **op.attrs)
        raise FcError("compile/unsupported", f"{op.kind}: threads do not keep whole parts of %{v.name or '?'} to themselves", got=v.type,
                      loc=op.place or op.loc, expected="a part of what a dot makes, along the columns of each warp")

    def convert(self, v: Value, home: Any, b: Builder, name: str, of: Value | None = None) -> Value:
        """Through shared memory, unless the map is the same. of: the tile of the program that it is. A row of it is stored once, in front
        of the loops that read it; a whole tile would keep its bytes all the while."""
        t = v.type
        if isinstance(t, Frag) and t.layout == home:
            return v
        if isinstance(t, Frag) and t.dtype == i1:  # shared memory holds numbers
            one, zero = (b.const(n) for n in (1, 0))
            moved = self.convert(b.emit("select", v, one, zero, type=replace(t, dtype=i32)), home, b, name)
            return b.emit("ne", moved, zero, name=name)
        if isinstance(t, Frag):
            opaque = isinstance(t.layout, OpaqueLayout) or isinstance(home, OpaqueLayout)
            buffer = buffer_for(t.dtype, t.shape, "wmma") if opaque else buffer_for(t.dtype, t.shape, "plain", 0, t.layout, home)
            make = lambda b: b.emit("stage", v, type=buffer, name=f"{name}_tile" if name else "tile")
            if of is None or len(t.shape) > 1:
                return b.emit("unstage", make(b), type=Frag(t.dtype, t.shape, home), name=name)
            with self.where_made(of, False) as outer:
                if (of, buffer) not in self.scopes[-1]:
                    self.scopes[-1][of, buffer] = make(outer)
                v = self.scopes[-1][of, buffer]
        return b.emit("unstage", v, type=Frag(t.dtype, t.shape, home), name=name)

    # ---- ops -----------------------------------------------------------------------------------------------------

    def element(self, op: Op, b: Builder, env: Env) -> None:
        home, pair = self.homes[op.result], self.row_factor(op) if self.schedule.skip_ones else None
        env[op.result] = self.compute(op, home, b, env) if pair is None else self.skipped(op, *pair, home, b, env)

    def compute(self, op: Op, home: Any, b: Builder, env: Env) -> Value:
        shape = op.result.type.shape
        layout = self.homes.partner(op.result.type) if isinstance(home, OpaqueLayout) else home
        args = [self.want(x, layout, b, env) if x.type.shape == shape else env[x] for x in op.operands]
        out = b.emit(op.kind, *args, type=Frag(op.result.type.dtype, shape, layout), name=op.result.name, **op.attrs)
        return self.convert(out, home, b, op.result.name)

    def row_factor(self, op: Op) -> tuple[Value, Value] | None:
        """(tile, row) where the op is tile * broadcast(row)."""
        if op.kind != "mul" or len(op.result.type.shape) != 2:
            return None
        for x, y in (op.operands, op.operands[::-1]):
            d = self.homes.defs.get(y)
            if d is not None and d.kind == "broadcast" and len(d.operands[0].type.shape) == 1 and self.homes[x] == self.homes[op.result]:
                return x, d.operands[0]
        return None

    def skipped(self, op: Op, tile: Value, row: Value, home: Any, b: Builder, env: Env) -> Value:
        """tile * row only in warps where some row factor is not one."""
        layout = self.homes[row]
        if not isinstance(layout, RegLayout):
            return self.compute(op, home, b, env)
        self.used.add("skip_ones")
        one = b.emit("full", b.emit("const", value=1.0, dtype=str(row.type.dtype)), type=_frag(row, layout))
        moved = b.emit("vote_any", b.emit("ne", self.want(row, layout, b, env), one, type=Frag(i1, row.type.shape, layout)), name="moved")
        inner, keep, out = Builder(op.loc), Builder(op.loc), Value(_at(op.result, home), op.result.name)
        with self.inside(inner, True):
            product = self.compute(op, home, inner, env)
        b.add(branch(moved, inner, [product], [self.want(tile, home, keep, env)], (out,), keep))
        return out

    def reduced(self, op: Op, layout: Any, b: Builder, env: Env) -> Value:
        src = self.want(op.operands[0], self.homes.reducible(op, layout), b, env)
        out = b.emit("reduce", src, name=op.result.name, **op.attrs)
        lanes, warps = src.type.layout.reduces_over(op["axis"])
        if warps.axes[0]:
            return b.emit("combine_across", out, name=op.result.name, lanes=tuple(lanes), warps=warps)
        return b.emit("combine", out, name=op.result.name, lanes=tuple(lanes)) if lanes else out

    def load(self, op: Op, b: Builder, env: Env) -> None:
        home, t = self.homes[op.result], op.result.type
        attrs = {**op.attrs, "vec": self.homes.widest(op)}
        stored = op.result if home == SMEM else self.homes.twins.get(op.result)
        if stored is not None:
            type_: Any = buffer_for(t.dtype, t.shape, self.reader(stored), self.homes.columns(stored))
        elif op.result in self.homes.rings:
            type_, attrs["stages"] = ring_buffer(t), self.homes.rings[op.result]
        else:
            type_ = _frag(op.result, home)
        threads = copy_threads(t, attrs["vec"], self.schedule) if stored is not None else home
        where = self.positions(op, threads, b, env)
        env[op.result] = b.emit("load", env[op.operands[0]], *where, type=type_, name=op.result.name, **attrs)
        if op.result in self.in_regs:
            t = _frag(op.result, self.in_regs[op.result])
            self.scopes[-1][op.result, "left operand"] = b.emit("unstage", env[op.result], type=t, name=op.result.name)

    def positions(self, op: Op, layout: RegLayout, b: Builder, env: Env) -> tuple[Value, ...]:
        """The scalars of an access, and vectors of positions as its threads want them."""
        access = Access.of(op)
        wanted = {**{v: along(layout, a)[0] for v, a in access.listed.items()}, **dict.fromkeys(access.scattered, layout)}
        return tuple(self.want(v, wanted[v], b, env) if v in wanted else env[v] for v in access.scalars)

    def left_operands_in_regs(self) -> dict[Value, RegLayout]:
        """Loaded tiles that dots marked `regs` read as their left operand -> the layout they read."""
        out: dict[Value, RegLayout] = {}
        for op in walk(self.homes.kernel.body):
            if not op.get("regs"):
                continue
            v, flipped = self.homes.source(op.operands[0])
            made = self.homes.defs.get(v)
            if op["math"] != "wgmma" or flipped or made is None or made.kind != "load":
                raise FcError("compile/schedule", f"Schedule.regs_a: the left operand of %{op['site']} is not loaded as it is read",
                              expected="a wgmma dot whose left operand is a loaded tile", got=f"{op['math']}, %{v.name or '?'}",
                              loc=op.loc, hint="leave it out of Schedule.regs_a")
            out[v] = self.homes.a_layout(op)
        return out

    def reader(self, v: Value) -> str:
        """The instruction family that reads a shared tile; one that mixes families takes the plainest layout."""
        users = [u for u in self.homes.uses.get(v, ()) if u.kind in ("dot", "transpose")]
        families = {u["math"] if u.kind == "dot" else self.reader(u.result) for u in users}
        return next((f for f in ("wmma", "fma", "wgmma", "mma") if f in families), "plain")

    def dot(self, op: Op, b: Builder, env: Env) -> None:
        family, home = op["math"], self.homes[op.result]
        a, ta = self.left(op, family, b, env)
        right, tb = self.homes.source(op.operands[1])
        bv = self.shared(right, family, b, env)
        if len(op.operands) == 3:
            acc = self.want(op.operands[2], home, b, env)
        else:
            dtype = op.result.type.dtype
            zero = b.emit("const", value=0.0 if dtype.is_float else 0, dtype=dtype.name)
            acc = b.emit("full", zero, type=_frag(op.result, home), name=op.result.name)
        extra = {name: op[name] for name in ("ones", "early", "behind", "rolling", "made") if op.get(name)}
        if "ones" in extra and (family != "wgmma" or tb):
            raise FcError("compile/schedule", f"the dot %{op['site']} cannot read ones beside its right operand",
                          expected="math wgmma, and a right operand that is stored as it is read",
                          got=f"{family}, {'transposed ' if tb else ''}{bv.type}", loc=op.loc, hint="leave it out of Schedule.ones")
        env[op.result] = b.emit("dot", a, bv, acc, type=_frag(op.result, home), name=op.result.name, ta=ta, tb=tb, math=family, **extra)

    def left(self, op: Op, family: str, b: Builder, env: Env) -> tuple[Value, bool]:
        v = op.operands[0]
        if family in ("mma", "wgmma") and self.schedule.reuse_frags and self.homes.in_registers(op):
            return self.want(v, self.homes[v], b, env), False
        stored, flipped = self.homes.source(v)
        if family == "wgmma" and op.get("regs"):
            return next(scope[stored, "left operand"] for scope in self.scopes if (stored, "left operand") in scope), False
        return self.shared(stored, family, b, env), flipped

    def shared(self, v: Value, family: str, b: Builder, env: Env) -> Value:
        """A dot operand in shared memory: the load's own tile, or a staged copy."""
        if self.homes[v] == SMEM:
            return env[v]
        key = (v, "smem " + family)
        with self.where_made(v) as b:
            if key not in self.scopes[-1]:
                frag = self.want(v, self.homes[v] or self.homes.plain(v.type), b, env)
                held = (frag.type.layout,) if isinstance(frag.type.layout, RegLayout) else ()
                t = buffer_for(v.type.dtype, v.type.shape, family, self.homes.columns(v), *held)
                self.scopes[-1][key] = b.emit("stage", frag, type=t, name=f"{v.name}_tile" if v.name else "tile")
            return self.scopes[-1][key]

    def store(self, op: Op, b: Builder, env: Env) -> None:
        v, t = op.operands[1], op.operands[1].type
        if not isinstance(t, Tile):  # one element is a run of one
            one = Frag(t.dtype, (1,), RegLayout(((),)))
            index = (*op["index"][:-1], "tile")
            b.do("store", env[op.operands[0]], b.emit("full", env[v], type=one), *env.all(op.operands[2:]),
                 **{**op.attrs, "index": index, "guard": (False,)}, vec=1)
            return
        home = self.homes[v] or self.homes.plain(t)
        layout = self.homes.partner(t) if isinstance(home, OpaqueLayout) else home
        if home == SMEM:
            layout = self.homes.plain(t)
        frag = self.want(v, layout, b, env)
        vec = self.homes.widest(op)
        if (self.schedule.epilogue == "smem" and len(t.shape) == 2 and layout.vector() < vec and t.shape[1] % vec == 0
                and not op.get("reduce")):
            frag = self.convert(frag, rowwise(t.shape[0], t.shape[1], self.schedule.warps, 32, vec), b, v.name)
        swapped = quad_rows(layout) if self.schedule.epilogue == "quad" and t.dtype.bits == 16 and isinstance(layout, RegLayout) else None
        if t.dtype.bits == 16 and len(t.shape) == 2 and isinstance(layout, RegLayout) and layout.vector() < 16 // t.dtype.bytes:
            self.used.add("quad")  # also where the tile is too narrow to have quads
        if swapped is not None:
            frag = b.emit("quad_transpose", frag, type=Frag(t.dtype, t.shape, swapped), name=v.name)
        b.do("store", env[op.operands[0]], frag, *self.positions(op, frag.type.layout, b, env), *env.all(in_turn(op)), **op.attrs, vec=vec)


def _frag(v: Value, home: Any) -> Frag:
    return Frag(v.type.dtype, v.type.shape, home)


def _at(v: Value, home: Any) -> Any:
    return v.type if isinstance(v.type, Scalar) else _frag(v, home)
