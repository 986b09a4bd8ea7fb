"""The simulator's matrix ops against the instruction records: one issue on random registers, then fragments of several issues."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.build.compiler import target
from fcgen.ir.core import Kernel, Role, Value
from fcgen.ir.elementwise import to_dtype
from fcgen.ir.layout import Factor, RegLayout, SmemLayout, blocked, mma_a, mma_b, mma_c, native_smem
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import DTYPES, Buffer, DType, Frag, Scalar, Tensor, f16, f32, i32
from fcgen.ir.verify import verify
from fcgen.sim.agents import Agent
from fcgen.sim.machine import Simulation, simulate
from fcgen.sim.memory import SharedMemory

TARGET = target("sm_89")


def digits(text: str) -> tuple[Factor, ...]:
    """`r2@4 l8@1`, as layouts print an axis."""
    return tuple(Factor(f[0], *map(int, f[1:].split("@"))) for f in text.split())


def agent(kernel: Kernel) -> Agent:
    s = Simulation(kernel, TARGET, {}, {}, (), np.random.default_rng(0))
    s.places.append(())
    s.shared = SharedMemory(1024, 1)
    return Agent(s, kernel.roles[0], 0, 0, {})


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_one_mma(dtype):
    """On physical registers, the record's effect and nothing else."""
    instr = TARGET.matrix_instr("mma", dtype)
    assert instr is not None and instr.effect is not None
    rng = np.random.default_rng(0)
    types = [Frag(t, x.shape, x) for t, x in ((DTYPES[dtype], instr.a), (DTYPES[dtype], instr.b), (f32, instr.c))]
    registers = [to_dtype(rng.standard_normal((32, t.layout.regs)), t.dtype) for t in types]
    b = Builder()
    b.emit("mma", *(Value(t) for t in types), type=types[2], instr=instr.name)
    out = agent(Kernel("k", "machine", (), (), (Role("main", 1, b.block()),))).do_mma(b.ops[0], registers)
    np.testing.assert_allclose(out, instr.effect(*registers), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_ldmatrix(trans, count):
    instr = TARGET.instrs[f"ldmatrix_x{count}{'_trans' if trans else ''}"]
    blocks = np.arange(count * 64, dtype=np.float16).reshape(count, 8, 8)
    # blocks one under the other; lane 0's register pairs are at their corners, which is all that ldmatrix goes by
    layout = RegLayout((digits(f"r{count}@2 l8@4"), digits("l4@1 r2@1")))
    ring = Value(Buffer(f16, (8 * count, 8), SmemLayout(8)), "s")
    zero = Value(Scalar(i32), "zero")
    b = Builder()
    b.emit("ldmatrix", ring, zero, zero, type=Frag(f16, (8 * count, 8), layout), transposed=False, trans=trans)
    a = agent(Kernel("k", "machine", (), (), (Role("main", 1, b.block()),), buffers=(ring,)))
    a.shared.bytes[:blocks.nbytes] = blocks.ravel().view(np.uint8)
    np.testing.assert_array_equal(a.do_ldmatrix(b.ops[0], [(ring, 0), 0, 0]), instr.effect(blocks))


def product(m: int, n: int, k: int, warps: int, dtype: DType, a_layout: RegLayout, b_layout: RegLayout, *, stored: bool) -> Kernel:
    """C = A B; with `stored`, B lies transposed in shared memory, else as it is."""
    A, B, C = Value(Tensor(dtype, (m, k)), "A"), Value(Tensor(dtype, (n, k) if stored else (k, n)), "B"), Value(Tensor(f32, (m, n)), "C")
    ra, rb = (Value(Buffer(dtype, v.type.dims, native_smem(v.type.dims[1], 2)), v.name.lower()) for v in (A, B))
    o = Builder()
    zero = o.emit("const", value=0, dtype="i32")
    whole = {"index": ("all", "all"), "guard": (False, False)}
    for tensor, ring in ((A, ra), (B, rb)):
        shape = tensor.type.dims
        x = o.emit("ld_global", tensor, type=Frag(dtype, shape, blocked(*shape, warps)), vec=1, **whole)
        o.do("st_shared", x, ring, zero, zero)
    o.do("barrier")
    fa = o.emit("ldmatrix", ra, zero, zero, type=Frag(dtype, (m, k), a_layout), transposed=False, trans=False)
    fb = o.emit("ldmatrix", rb, zero, zero, type=Frag(dtype, (k, n), b_layout), transposed=stored, trans=not stored)
    t = Frag(f32, (m, n), mma_c(m, n, (warps, 1)))
    acc = o.emit("full", o.emit("const", value=0.0, dtype="f32"), type=t)
    out = o.emit("mma", fa, fb, acc, type=t, instr=f"mma_m16n8k16_{dtype}")
    o.do("st_global", C, out, vec=1, **whole)
    return verify(Kernel("product", "machine", (A, B, C), (), (Role("main", warps, o.block()),), {"C": ("out",)}, buffers=(ra, rb)))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("m", "n", "k", "warps"), [(16, 8, 16, 1), (32, 16, 32, 2), (128, 64, 64, 4), (64, 32, 48, 2)])
def test_product(m, n, k, warps, stored, dtype):
    kernel = product(m, n, k, warps, DTYPES[dtype], mma_a(m, k, (warps, 1)), mma_b(k, n, (warps, 1)), stored=stored)
    rng = np.random.default_rng(0)
    a, b = (to_dtype(rng.standard_normal(s), DTYPES[dtype]) for s in ((m, k), (k, n)))
    r = simulate(kernel, {"A": a, "B": b.T if stored else b}, TARGET)
    assert not r.reports, r.reports[0]
    np.testing.assert_allclose(r.outputs["C"], a.astype(np.float64) @ b.astype(np.float64), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("axes", ["r2@16 r2@2 l8@4 | r4@4 l4@1 r2@1", "r2@2 r2@16 l8@4 | r4@4 l4@1 r2@1", "r2@16 r2@2 l8@4 | r2@4 r2@8 l4@1 r2@1"],
                         ids=["true", "rows", "depth"])
def test_a_layout_that_lies(axes):
    """8 x 8 blocks in other registers than the instruction's: the numbers are wrong, as they would be on the GPU."""
    a = RegLayout(tuple(digits(x) for x in axes.split("|")))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 32)).astype(np.float16), rng.standard_normal((32, 16)).astype(np.float16)
    out = simulate(product(32, 16, 32, 1, f16, a, mma_b(32, 16, (1, 1)), stored=False), {"A": x, "B": y}, TARGET).outputs["C"]
    right = np.allclose(out, x.astype(np.float64) @ y.astype(np.float64), atol=0.01)
    assert right == (a == mma_a(32, 32, (1, 1)))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("fn", ["sum", "max"])
def test_reduce_rounds_once(fn, dtype):
    """Folded in float32 and rounded to the tile's dtype, as the tile IR defines it."""
    t = Frag(DTYPES[dtype], (32, 64), RegLayout((digits("l32@1"), digits("r64@1"))))
    b = Builder()
    b.emit("reduce", Value(t), fn=fn, axis=1)
    x = to_dtype(np.random.default_rng(0).standard_normal((32, 64)) * 9, t.dtype)
    out = agent(Kernel("k", "machine", (), (), (Role("main", 1, b.block()),))).do_reduce(b.ops[0], [x])
    want = getattr(np, fn)(x.astype(np.float64), axis=1)
    np.testing.assert_array_equal(out[:, 0], to_dtype(want, t.dtype))
    assert b.ops[0].result.type == Frag(t.dtype, (32,), t.layout.drop(1))
