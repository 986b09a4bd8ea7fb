# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Dots over a grid of warps, rows times columns: right in the simulator for every instruction family, orientation and grid."""

from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk, walk_kernel
from fcgen.ir.layout import warp_grid
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel
from fcgen.kernels.attention import attention
from fcgen.passes import PIPELINE


@fc.kernel
def product(A: "T[M, K]", B: "T[K, N]", C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[depth, cols]))
    fc.store(C[rows, cols], acc)


@fc.kernel
def product_of_transposed(A: "T[K, M]", B: "T[N, K]", C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[depth, rows]).T, fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc)


@fc.kernel
def halves(A: "T[M, K]", B: "T[N, K]", C: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc.to(C.dtype))


def schedule(m, n, k, warps, math, grid=None, **more):
    more = {"copy": "tma" if math == "wgmma" else "cp_async", "epilogue": "direct", **more}
    return fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, warps=warps, math=math, grid={"acc": grid} if grid else {}, **more)


def grids(program, kind):
    return {warp_grid(op.result.type.layout) for op in walk_kernel(program.machine) if op.kind == kind}


#: rows, columns and depth of a tile; warps; family; what the schedule says, and what comes of it
CASES = [
    (64, 64, 32, 4, "mma", (2, 2), (2, 2)), (32, 64, 16, 4, "mma", None, (2, 2)), (16, 64, 16, 4, "mma", None, (1, 4)),
    (32, 32, 16, 4, "mma", (2, 1), (2, 1)), (16, 512, 16, 2, "mma", None, (1, 2)), (32, 64, 16, 4, "wmma", (2, 2), None),
    (64, 128, 32, 8, "wgmma", None, (4, 2)), (64, 64, 16, 8, "wgmma", (1, 2), (4, 2)), (64, 64, 32, 8, "wgmma", (1, 1), (4, 1)),
    (128, 64, 16, 16, "wgmma", None, (8, 2)), (64, 512, 16, 8, "wgmma", None, (4, 2)), (128, 32, 32, 16, "wgmma", (1, 2), (4, 2)),
]


@pytest.mark.parametrize("spec", [product, product_of_transposed], ids=["plain", "transposed"])
@pytest.mark.parametrize("m, n, k, warps, math, grid, made", CASES)
def test_a_product_over_a_grid_of_warps(spec, m, n, k, warps, math, grid, made):
    p = spec.compile(target="sm_90a" if math == "wgmma" else "sm_89", schedule=schedule(m, n, k, warps, math, grid), T=fc.f16)
    rng = np.random.default_rng(m + n)
    a, b = (rng.standard_normal(s).astype(np.float16) for s in ((m + 9, 3 * k), (3 * k, n + 8)))
    want = a.astype(float) @ b.astype(float)
    got = p.simulate(A=np.ascontiguousarray(a.T), B=np.ascontiguousarray(b.T)) if spec is product_of_transposed else p.simulate(A=a, B=b)
    assert np.abs(got["C"] - want).max() < 1e-2
    assert grids(p, math) == {made} if made else True
    assert not p.resources.spills


@fc.kernel
def normalised(A: "T[M, K]", B: "T[N, K]", C: "out f32[M, N]", S: "inout f32[N]", L: "out f32[M]"):
    """A softmax along the rows of A B^T, whose columns are one tile, the columns' sums of it, and the sum of all tiles' largest elements."""
    (rows,) = fc.grid(fc.tile(A.M, "BLOCK_M"))
    a, total = fc.load(A[rows, :]), fc.var(fc.zeros(rows))
    for cols in fc.loop(fc.tile(B.N, "BLOCK_N")):
        x = fc.dot(a, fc.load(B[cols, :]).T)
        x = fc.where(rows.valid & cols.valid, x, -fc.inf)
        top = fc.max(x, axis=1)
        p = fc.exp(x - top)
        total <<= total + fc.sum(p, axis=1)
        p = fc.where(rows.valid & cols.valid, p, 0.0)
        fc.store(C[rows, cols], p)
        fc.atomic_add(S[cols], fc.sum(p, axis=0))
    fc.store(L[rows], total)


SHARED = [(32, 64, 4, "mma", (1, 4)), (64, 32, 8, "mma", (2, 2)), (64, 64, 8, "wgmma", (1, 2)), (64, 32, 8, "wgmma", (1, 1)),
          (128, 64, 8, "wgmma", (2, 1)), (128, 96, 12, "wgmma", (1, 3))]


def shared_case(m, n, warps, math, grid, target):
    """(program, arguments, output -> (what it should be, how exactly))."""
    s = fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=warps, math=math, grid={"x": grid}, copy="tma" if math == "wgmma" else "cp_async")
    p = normalised.compile(target=target(s), schedule=s, T=fc.f16, K=32)
    rng = np.random.default_rng(m)
    a, b = (rng.standard_normal(s).astype(np.float16) for s in ((m - 3, 32), (2 * n + 8, 32)))
    x = a.astype(float) @ b.astype(float).T
    parts = [x[:, i:i + n] for i in range(0, len(b), n)]
    parts = [np.exp(x - x.max(axis=1, keepdims=True)) for x in parts]
    whole = np.concatenate(parts, axis=1)
    want = {"C": (whole, 1e-2), "S": (whole.sum(axis=0), 1e-1), "L": (sum(x.sum(axis=1) for x in parts), 1e-1)}
    return p, {"A": a, "B": b, "S": np.zeros(len(b), np.float32)}, want


@pytest.mark.parametrize("m, n, warps, math, grid", SHARED)
def test_reductions_over_what_warps_share(m, n, warps, math, grid):
    p, args, want = shared_case(m, n, warps, math, grid, lambda s: "sm_90a" if s.copy == "tma" else "sm_89")
    got = p.simulate(**args)
    for name, (value, limit) in want.items():
        assert np.abs(got[name] - value).max() < limit, name
    assert not p.resources.spills


@pytest.mark.parametrize("math, warps, grid, words", [
    ("mma", 4, {"s": (1, 2)}, "Schedule.grid names s, and no dot is called so"),
    ("mma", 4, {"acc": (3, 1)}, "not spread over so many warps"),
    ("wgmma", 8, {"acc": (4, 2)}, "not spread over so many warpgroups"),
    ("wmma", 4, {"acc": (1, 2)}, "not spread over so many warps"),
    ("fma", 4, {"acc": (1, 4)}, "has no effect"),
    ("mma", 8, {"acc": (8, 1)}, "does not divide into mma instructions"),
    ("wgmma", 8, {"acc": (2, 1)}, "does not divide into wgmma instructions"),
    ("mma", 4, {"acc": (0, 1)}, "spreads a dot's result"), ("mma", 4, {"acc": 2}, "spreads a dot's result"),
    ("mma", 4, (1, 2), "has a value for each name"),
])
def test_a_grid_that_cannot_be_is_refused(math, warps, grid, words):
    with pytest.raises(fc.FcError, match=words):
        s = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, warps=warps, math=math, grid=grid,
                        copy="tma" if math == "wgmma" else "cp_async", epilogue="direct")
        product.compile(target="sm_90a" if math == "wgmma" else "sm_89", schedule=s, T=fc.f16).machine  # noqa: B018


def test_a_grid_prints_and_parses():
    s = schedule(64, 64, 32, 8, "wgmma", (1, 2))
    assert "grid={acc: 1x2}" in str(s) and fc.Schedule.parse(str(s)) == s == fc.Schedule(**{**vars(s), "grid": {"acc": "1x2"}})
    p = product.compile(target="sm_90a", schedule=s, T=fc.f16)
    bound = PIPELINE[0].run(p.tile, s, p.target)
    text = print_kernel(bound)
    assert "grid = (1, 2)" in text and print_kernel(parse_kernel(text)) == text


def test_warpgroups_that_share_rows_walk_their_loops_together():
    """Which tiles a warpgroup may leave out is a question of its rows: where columns are split, all walk the tiles of all rows."""
    own = lambda s: any(o.kind == "row_part" for o in walk_kernel(
        attention.compile(target="sm_90a", schedule=s, T=fc.f16, D=32, E=32, mask="causal_top_left", sums="rounded").machine))
    tiles = {"BLOCK_M": 128, "BLOCK_N": 32}
    s = fc.Schedule(tiles=tiles, warps=8, math="wgmma", copy="tma", epilogue="quad")
    assert own(s) and not own(replace(s, grid=(("acc", (1, 2)), ("s", (1, 2)))))


def test_a_sum_that_warps_share_is_combined_once_after_its_loop():
    s = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=8, math="wgmma", copy="tma", grid={"x": (1, 2)})
    p = normalised.compile(target="sm_90a", schedule=s, T=fc.f16, K=32)
    inside = {id(o) for f in walk_kernel(p.machine) if f.kind == "for" for r in f.regions for o in walk(r)}
    apart = [o for o in walk_kernel(p.machine) if o.kind == "apart"]
    assert [id(o) in inside for o in apart if o.operands[0].type.partial == "sum" and o.result.type.shape == (2, 64)] == [False]
    assert {id(o) in inside for o in apart if o.operands[0].type.partial == "max"} == {True}


def test_quads_swap_columns_within_what_their_warp_has():
    s = schedule(64, 128, 32, 8, "wgmma", (1, 2), epilogue="quad")
    p = halves.compile(target="sm_90a", schedule=s, T=fc.f16)
    a, b = (np.random.default_rng(0).standard_normal((n, 64)).astype(np.float16) for n in (70, 136))
    assert np.abs(p.simulate(A=a, B=b)["C"] - a.astype(float) @ b.astype(float).T).max() < 5e-2
    assert [o.kind for o in walk_kernel(p.machine)].count("quad_transpose") == 1 and not p.resources.spills


@pytest.mark.parametrize("spec", [product, product_of_transposed], ids=["plain", "transposed"])
@pytest.mark.parametrize("n, epilogue", [(48, "direct"), (48, "smem"), (96, "smem")])
def test_columns_that_are_no_power_of_two(spec, n, epilogue):
    """A warp's columns begin inside of what would be a panel: panels are narrower then."""
    p = spec.compile(target="sm_89", schedule=schedule(32, n, 16, 4, "mma", (2, 2), epilogue=epilogue), T=fc.f16)
    a, b = (np.random.default_rng(0).standard_normal(s).astype(np.float16) for s in ((40, 48), (48, n + 8)))
    got = p.simulate(A=np.ascontiguousarray(a.T), B=np.ascontiguousarray(b.T)) if spec is product_of_transposed else p.simulate(A=a, B=b)
    assert np.abs(got["C"] - a.astype(float) @ b.astype(float)).max() < 1e-2


def test_blocks_that_no_four_lie_alike_are_stored_in_pairs():
    s = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 48}, grid={"s": (2, 2), "acc": (1, 4)})
    p = attention.compile(target="sm_90a", schedule=s, T=fc.f16, D=64, E=64, mask="none", sums="rounded")
    assert "stmatrix_x2(" in p.cuda
    args = {x: np.random.default_rng(1).standard_normal((1, 1, 70, 64)).astype(np.float16) for x in "QKV"}
    got, want = p.simulate(**args, scale=0.125), p.interpret(**args, scale=0.125)
    assert np.abs(got["O"].astype(float) - want["O"]).max() < 2e-3
