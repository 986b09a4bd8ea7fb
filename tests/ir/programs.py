"""Hand-built kernels of both levels for the tests of this folder, and structural comparison."""

from __future__ import annotations

import math

from fcgen.errors import Loc
from fcgen.ir.core import Block, GridAxis, Kernel, Op, Role, Value
from fcgen.ir.layout import SmemLayout, blocked, mma_a, mma_b, mma_c, native_smem
from fcgen.ir.rewrite import Builder
from fcgen.ir.text import base_name
from fcgen.ir.types import Buffer, Frag, Scalar, Tensor, Tile, f16, f32, i1, i32

I = Scalar(i32)


def spec(line: int, file: str = "examples/attention.py") -> Loc:
    return Loc(file, line)


def int_const(b: Builder, n: int) -> Value:
    return b.emit("const", value=n, dtype="i32")


def tile_kernel() -> Kernel:
    """Row-wise attention with a mask that leaves tiles out, an `if`, a reduce-add store and names that repeat."""
    Q = Value(Tensor(f16, ("B", "M", 64)), "Q")
    K = Value(Tensor(f16, ("B", "N", 64)), "K")
    O = Value(Tensor(f32, ("B", "M", 64)), "O")
    scale = Value(Scalar(f32), "scale")
    bi, mt = Value(I, "b"), Value(I, "mt")
    b = Builder(spec(3))
    r0 = b.emit("mul", mt, int_const(b, 128), name="rows")
    q = b.emit("load", Q, bi, r0, type=Tile(f16, (128, 64)), name="q", index=("at", "tile", "all"), guard=(True, False))
    lo, n = int_const(b, 0), b.emit("size", dim="N", name="n")
    hi = b.emit("floordiv", n, int_const(b, 64), name="hi")
    m = b.emit("full", b.emit("const", value=-math.inf, dtype="f32"), name="m", shape=(128,))
    acc = b.emit("full", b.emit("const", value=0.0, dtype="f32"), name="acc", shape=(128, 64))

    j, m1, acc1 = Value(I, "j"), Value(m.type, "m"), Value(acc.type, "acc")
    c = Builder(spec(7))
    at = c.emit("mul", j, int_const(c, 64), name="cols")
    k = c.emit("load", K, bi, at, type=Tile(f16, (64, 64)), name="k", index=("at", "tile", "all"), guard=(True, False))
    s = c.emit("dot", q, c.emit("transpose", k, name="kt"), name="s")
    s = c.emit("mul", s, scale, name="s")
    m2 = c.emit("max", m1, c.emit("reduce", s, name="rowmax", fn="max", axis=1), name="m")
    p = c.emit("exp", c.emit("sub", s, c.emit("broadcast", m2, axes=(0,), shape=(128, 64))), name="p", loc=spec(11,
                                                                                                                "lib/score.py"))
    acc2 = c.emit("dot", c.emit("cast", p, name="h", to="f16"), k, acc1, name="acc", loc=spec(12, "other/score.py"))
    c.do("yield", m2, acc2)
    j2 = Value(I, "j")
    d = Builder(spec(8))
    rows = d.emit("add", d.emit("iota", shape=(128,)), r0)
    d.do("yield", d.emit("ge", rows, j2, name="some"))
    m_out, acc_out = Value(m.type, "m"), Value(acc.type, "acc")
    b.add(Op("for", (lo, hi, m, acc), (m_out, acc_out), {"descending": True, "tile": 64, "label": "BLOCK_N"},
             (c.block((j, m1, acc1)), d.block((j2,))), spec(7)))
    then, other = Builder(spec(15)), Builder()
    then.do("yield", then.emit("neg", acc_out))
    other.do("yield", acc_out)
    chosen = b.emit("if", b.emit("lt", bi, lo), type=acc.type, name="chosen", regions=(then.block(), other.block()))
    b.do("store", O, chosen, bi, r0, index=("at", "tile", "all"), guard=(True, False), reduce="add")
    return Kernel("attention", "tile", (Q, K, O, scale), (GridAxis("b", "B"), GridAxis("mt", "M", 128, True)),
                  (Role("all", 0, b.block((bi, mt))),), {"O": ("out",), "scale": ("positive",)}, (1, 0),
                  meta={"target": 'say "hi", #1', "until_loops": (("UNTIL_n", "N", 64), ("UNTIL_m", "M", 1))})


def machine_kernel() -> Kernel:
    """A ring filled by cp_async and read by ldmatrix into mma, in a loop expanded over the depth."""
    A = Value(Tensor(f16, ("M", 64)), "A")
    B = Value(Tensor(f16, (64, "N")), "B")
    C = Value(Tensor(f32, ("M", "N")), "C")
    ring = Value(Buffer(f16, (64, 64), native_smem(64, 2), 2), "a")
    small = Value(Buffer(f16, (64, 64), SmemLayout(64, 8)), "a")
    mi, ni = Value(I, "m"), Value(I, "n")
    b = Builder(spec(20, "gemm.py"))
    row, col = b.emit("mul", mi, int_const(b, 64)), b.emit("mul", ni, int_const(b, 64))
    zero = int_const(b, 0)
    threads = blocked(64, 64, 4, 8)
    a0 = b.emit("slot", ring, zero, name="a0", ahead=0)
    b.do("cp_async", A, row, a0, index=("tile", "all"), guard=(True, False), threads=threads)
    b.do("cp_async", B, col, small, index=("all", "tile"), guard=(False, True), threads=threads)
    b.do("commit_group")
    b.do("wait_group", n=0)
    b.do("barrier")
    acc = b.emit("full", b.emit("const", value=0.0, dtype="f32"), type=Frag(f32, (64, 64), mma_c(64, 64)), name="acc")
    k, acc1 = Value(I, "k"), Value(acc.type, "acc")
    c = Builder(spec(24, "gemm.py"))
    z = int_const(c, 0)
    fa = c.emit("ldmatrix", a0, z, k, type=Frag(f16, (64, 16), mma_a(64, 16)), name="fa", transposed=False, trans=False)
    fb = c.emit("ldmatrix", small, k, z, type=Frag(f16, (16, 64), mma_b(16, 64)), name="fb", transposed=False, trans=True)
    acc2 = c.emit("mma", fa, fb, acc1, type=acc.type, name="acc", instr="mma.m16n8k16.f16")
    c.do("yield", acc2)
    out = b.emit("for", zero, int_const(b, 4), acc, name="acc", regions=(c.block((k, acc1)),), unroll=True)
    part = b.emit("reduce", out, name="row", fn="sum", axis=1)
    whole = b.emit("combine", part, name="row", lanes=(1, 2))
    b.emit("mul", out, b.emit("broadcast", whole, type=acc.type, axes=(0,)))
    b.do("st_global", C, out, row, col, index=("tile", "tile"), guard=(True, True), vec=2)
    mi2, ni2 = Value(I, "m"), Value(I, "n")
    idle = Builder()
    idle.emit("lt", mi2, ni2)
    return Kernel("gemm", "machine", (A, B, C), (GridAxis("m", "M", 64), GridAxis("n", "N", 64)),
                  (Role("math", 4, b.block((mi, ni)), 168), Role("idle", 1, idle.block((mi2, ni2)))), {"C": ("out",)}, (),
                  (ring, small), {"target": "sm_89", "smem_bytes": 25600})


def same(a: Kernel, b: Kernel) -> None:
    """Assert that two kernels are equal but for the identity of their values."""
    env: dict[Value, Value] = {}

    def made(x: Value, y: Value) -> None:
        assert x.type == y.type and base_name(x.name) == y.name, (x, y)
        env[x] = y

    def attr(x):
        return repr(x)  # tells 1 from 1.0 and True, and nan from nothing else

    def block(x: Block, y: Block) -> None:
        assert len(x.args) == len(y.args) and len(x.ops) == len(y.ops)
        for v, w in zip(x.args, y.args):
            made(v, w)
        for o, p in zip(x.ops, y.ops):
            assert (o.kind, len(o.operands), len(o.results), len(o.regions)) == (p.kind, len(p.operands), len(p.results),
                                                                                 len(p.regions))
            assert [env[v] for v in o.operands] == list(p.operands), str(o)
            assert {n: attr(v) for n, v in o.attrs.items()} == {n: attr(v) for n, v in p.attrs.items()}
            assert (o.loc and (o.loc.file, o.loc.line)) == (p.loc and (p.loc.file, p.loc.line))
            for r, s in zip(o.regions, p.regions):
                block(r, s)
            for v, w in zip(o.results, p.results):
                made(v, w)

    assert (a.name, a.level, a.grid, a.order, a.flags) == (b.name, b.level, b.grid, b.order, b.flags)
    assert {n: attr(v) for n, v in a.meta.items()} == {n: attr(v) for n, v in b.meta.items()}
    assert len(a.params) == len(b.params) and len(a.buffers) == len(b.buffers) and len(a.roles) == len(b.roles)
    for v, w in zip((*a.params, *a.buffers), (*b.params, *b.buffers)):
        made(v, w)
    for r, s in zip(a.roles, b.roles):
        assert (r.name, r.warps, r.regs) == (s.name, s.warps, s.regs)
        block(r.body, s.body)


def bool_tile(n: int) -> Tile:
    return Tile(i1, (n,))
