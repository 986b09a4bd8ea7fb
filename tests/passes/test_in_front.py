"""What is read behind a loop of products, and follows from nothing of it, is read in front of it: nobody waits for memory at the end."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import example
from fcgen.ir.core import walk

TILES = {"BM": 64, "BN": 32, "BK": 32}
WGMMA = {"math": "wgmma", "copy": "tma"}


@fc.kernel
def biased(A: "f16[M, K]", B: "f16[N, K]", bias: "f32[N]", C: "inout f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc + fc.load(bias[cols]) + fc.load(C[rows, cols]))


@fc.kernel
def looked_up(A: "f16[M, K]", B: "f16[N, K]", TABLE: "f32[J]", C: "out f32[M, N]"):
    """What is read follows from the product."""
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc + TABLE[fc.max(acc, axis=1).to(fc.i32)])


def reads(p: fc.Program) -> list[tuple[str, bool]]:
    """(tensor, is it in front of the loop of products) of each read into registers outside of loops."""
    body = p.machine.roles[-1].body
    at = next(n for n, o in enumerate(body.ops) if o.kind == "for" and any(x.kind in ("wgmma", "mma") for x in walk(o.regions[0])))
    return [(o.operands[0].name, n < at) for n, o in enumerate(body.ops) if o.kind in ("ld_global", "gather")]


@pytest.mark.parametrize("more", [{}, WGMMA], ids=["mma", "wgmma"])
def test_rows_beside_a_product_are_read_in_front_of_its_loop_and_what_is_written_behind(more):
    p = biased.compile(target="sm_90a", schedule=fc.Schedule(tiles=TILES, **more))
    assert dict(reads(p)) == {"bias": True, "C": False}
    rng = np.random.default_rng(0)
    a, b, bias, c = (rng.standard_normal(s).astype(t) for s, t in (((70, 40), "f2"), ((40, 40), "f2"), (40, "f4"), ((70, 40), "f4")))
    want = a.astype(np.float64) @ b.T.astype(np.float64) + bias + c
    np.testing.assert_allclose(p.simulate(A=a, B=b, bias=bias, C=c)["C"], want, rtol=1e-2, atol=1e-2)


def test_what_follows_from_a_product_is_read_behind_it():
    p = looked_up.compile(target="sm_90a", schedule=fc.Schedule(tiles=TILES), check=False)
    assert dict(reads(p)) == {"TABLE": False}


def test_scales_of_integers_are_there_when_the_loop_ends():
    spec = example("int4_gemm").spec
    schedule = fc.Schedule(tiles={"BLOCK_N": 128, "BLOCK_M": 16, "BLOCK_K": 128}, warps=4, min_blocks=2, pdl=True, **WGMMA)
    assert dict(reads(spec.compile(target="sm_90a", schedule=schedule, check=False, T=fc.f16))) == {"S": True}
