"""Products that a loop carries in flight, tiles counted from the end, and tiles that run together as squares."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.core import walk
from fcgen.ir.rewrite import map_bodies, rewrite
from fcgen.passes import run_passes
from fcgen.sim.machine import simulate

from .test_roles import product


@fc.kernel
def scaled(A: T[M, K], B: T[N, K], C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc * 0.5 + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc)


@fc.kernel
def tails(A: T[M, K], S: "out f32[M]"):
    (rows,) = fc.grid(fc.tile(A.M, "BLOCK_M"))
    total = fc.var(fc.zeros(rows))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        x = fc.load(A[rows, depth]).to(fc.f32)
        total <<= total + fc.sum(fc.where(rows.valid, x, 0.0), axis=1)
    fc.store(S[rows], total)


@fc.kernel
def gated(A: T[M, K], B: T[N, K], V: T[N, K], C: "out f32[M, N]"):
    """Two accumulators."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    gate, up = fc.var(fc.zeros(rows, cols)), fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        a = fc.load(A[rows, depth])
        gate <<= gate + fc.dot(a, fc.load(B[cols, depth]).T)
        up <<= up + fc.dot(a, fc.load(V[cols, depth]).T)
    fc.store(C[rows, cols], gate * fc.sigmoid(gate) + up)


@fc.kernel
def twice(A: T[M, K], B: T[N, K], V: T[N, K], C: "out f32[M, N]"):
    """Two products are added to one accumulator."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        a = fc.load(A[rows, depth])
        acc <<= acc + fc.dot(a, fc.load(B[cols, depth]).T) + fc.dot(a, fc.load(V[cols, depth]).T)
    fc.store(C[rows, cols], acc)


@fc.kernel
def prepared(A: T[M, K], B: T[N, K], G: "f32[K]", C: "out f32[M, N]"):
    """The left operand is made in registers, and what it is made of is used beside it."""
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc, squares = fc.var(fc.zeros(rows, cols)), fc.var(fc.zeros(rows))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        a = fc.load(A[rows, depth]).to(fc.f32)
        acc <<= acc + fc.dot((a * fc.load(G[depth])).to(A.dtype), fc.load(B[cols, depth]).T)
        squares <<= squares + fc.sum(a * a, axis=1)
    fc.store(C[rows, cols], acc / (squares + 1.0))


@fc.kernel
def unpacked(A: T[M, K], W: "u8[N, K]", C: "out f32[N, M]"):
    """Two products of an iteration with left operands in registers are added to one accumulator."""
    cols, rows = fc.grid(fc.tile(W.N, "BLOCK_N"), fc.tile(A.M, "BLOCK_M"))
    acc = fc.var(fc.zeros(cols, rows))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        w, a = fc.load(W[cols, depth]), fc.load(A[rows, depth])
        acc <<= acc + fc.dot((w & 15).to(A.dtype), a.T) + fc.dot((w >> 4).to(A.dtype), a.T)
    fc.store(C[cols, rows], acc)


def compiled(spec=product, **more):
    tiles = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 16}
    schedule = fc.Schedule(**{"tiles": tiles, "math": "wgmma", "copy": "tma", "stages": 2, **more})
    return spec.compile(target="sm_90a", T=fc.f16, schedule=schedule)


def draw(m, n, k, more=False):
    rng = np.random.default_rng(m + n + k)
    return {name: rng.standard_normal((rows, k)).astype(np.float16) for name, rows in (("A", m), ("B", n), *([("V", n)] if more else []))}


def loop_kinds(program):
    main = next(r for r in program.machine.roles if r.name == "main")
    loop = next(o for o in walk(main.body) if o.kind == "for" and any(x.kind == "wgmma" for x in o.regions[0].ops))
    return [o.kind for o in loop.regions[0].ops]


@pytest.mark.parametrize("spec, stages, carried", [
    (product, 2, True), (product, 4, True), (product, 1, False), (scaled, 2, False), (gated, 2, True), (twice, 3, True)])
def test_an_accumulator_that_only_products_touch_stays_in_flight(spec, stages, carried):
    """With one slot there is no tile to read while the last one is still in use."""
    kinds = loop_kinds(compiled(spec, stages=stages))
    assert ("wgmma_wait" in kinds, "settle" in kinds) == (carried, not carried)


@pytest.mark.parametrize("more", [{}, {"stages": 3, "persistent": "dynamic"}, {"persistent": "static", "l2": 32, "epilogue": "tma"}])
@pytest.mark.parametrize(("trips", "spec"), [(0, product), (1, gated), (2, twice), (3, product), (5, gated)])
def test_what_is_carried_is_right_and_the_simulator_is_silent(spec, trips, more):
    p, args = compiled(spec, **more), draw(130, 70, max(1, 16 * trips - 3) if trips else 0, spec is not product)
    np.testing.assert_allclose(p.simulate(**args)["C"], p.interpret(**args)["C"], atol=1e-4)


TILES = {prepared: {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}, unpacked: {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 32}}


def drawn(spec, k):
    a = draw(70, 130, k)
    if spec is prepared:
        return a | {"G": np.linspace(-1, 2, k, dtype=np.float32)}
    return {"A": a["A"], "W": np.random.default_rng(k).integers(0, 256, (130, k)).astype(np.uint8)}


@pytest.mark.parametrize("more", [{}, {"stages": 3, "persistent": "static"}])
@pytest.mark.parametrize(("spec", "trips"), [(s, n) for s in TILES for n in (0, 1, 2, 5)])
def test_operands_in_registers_are_carried_with_what_reads_them(spec, trips, more):
    """The next iteration's are made while the product reads these; two iterations are printed one behind the other."""
    p, args = compiled(spec, tiles=TILES[spec], **more), drawn(spec, max(1, 32 * trips - 5) if trips else 0)
    loop = next(o for r in p.machine.roles for o in walk(r.body) if o.kind == "for" and o.get("turns"))
    wait = next(o for o in loop.regions[0].ops if o.kind == "wgmma_wait")
    assert len(wait.operands) == (1 if spec is prepared else 2) and all(v in loop.regions[0].args for v in wait.operands)
    assert p.cuda.count("#pragma unroll 2") == 1
    np.testing.assert_allclose(p.simulate(**args)["C"], p.interpret(**args)["C"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stages, together", [(3, True), (1, False)])
def test_a_row_is_waited_for_with_the_tile_that_it_changes(stages, together):
    """Both are then let go behind one fence. With one slot, what fills it could wait for it before it comes to the row."""
    p = compiled(prepared, tiles=TILES[prepared], stages={"a_tile": stages, "b_tile": 2})
    kinds = [k for k in loop_kinds(p) if k in ("mbar_wait", "ldmatrix", "ld_shared", "proxy_fence")]
    assert (kinds[:2] == ["mbar_wait"] * 2, kinds.count("proxy_fence")) == (together, 1 if together else 2)
    args = drawn(prepared, 155)
    np.testing.assert_allclose(p.simulate(**args)["C"], p.interpret(**args)["C"], rtol=1e-4, atol=1e-4)


def test_operands_that_two_iterations_have_no_registers_for_are_waited_for():
    p = compiled(prepared, tiles={"BLOCK_M": 64, "BLOCK_N": 256, "BLOCK_K": 32}, warps=4)
    q = compiled(prepared, tiles={"BLOCK_M": 64, "BLOCK_N": 256, "BLOCK_K": 128}, warps=4)
    assert ("wgmma_wait" in loop_kinds(p), "wgmma_wait" in loop_kinds(q)) == (True, False)


def test_operands_of_a_product_in_flight_cannot_be_let_go():
    p = compiled(prepared, tiles=TILES[prepared])
    loop = next(o for r in p.machine.roles for o in walk(r.body) if o.kind == "for" and o.get("turns"))
    wait, product = (next(o for o in loop.regions[0].ops if o.kind == k) for k in ("wgmma_wait", "wgmma"))
    edit = lambda o, out, env: o.kind == wait.kind and bool(out.do(o.kind, env[product.operands[0]], groups=o["groups"]))
    early = map_bodies(p.machine, lambda b: rewrite(b, edit))
    reports = simulate(early, drawn(prepared, 91), p.target, programs=[(0, 0)]).reports
    assert any(r.code == "sim/register" and "may still read" in str(r) for r in reports)


@pytest.mark.parametrize("m, n", [(64, 32), (640, 32), (64, 320), (700, 500)])
def test_squares_cover_the_grid_once(m, n):
    """Every tile is stored once: the tensors' histories would report two programs at one element, and none would leave NaN."""
    p, args = compiled(l2=32, persistent="static"), draw(m, n, 16)
    np.testing.assert_allclose(p.simulate(**args)["C"], p.interpret(**args)["C"], atol=1e-4)


@pytest.mark.parametrize("spec, names, message", [
    (product, "x", "no axis of the grid with tiles"),
    (product, "cols", "runs along the last axis of C"),
    (tails, "rows", "positions along rows are compared with its size"),
])
def test_axes_that_cannot_be_counted_from_the_end_are_refused(spec, names, message):
    more = {"math": "mma", "copy": "cp_async", "tiles": {"BLOCK_M": 64, "BLOCK_K": 16}} if spec is tails else {}
    with pytest.raises(FcError, match=message):
        _ = compiled(spec, from_end=names, **more).machine


@pytest.mark.parametrize("m", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("target, more", [("sm_90a", {"math": "wgmma", "copy": "tma"}), ("sm_89", {})])
def test_rows_counted_from_the_end_are_the_same_rows(m, target, more):
    tiles = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 16}
    p = product.compile(target=target, T=fc.f16, schedule=fc.Schedule(tiles=tiles, from_end="rows", **more))
    args = draw(m, 40, 24)
    want = args["A"].astype(np.float32) @ args["B"].astype(np.float32).T
    np.testing.assert_allclose(p.interpret(**args)["C"], want, atol=1e-3)
    np.testing.assert_allclose(p.simulate(**args)["C"], want, atol=1e-3)
    if m % 64:
        assert "short" in str(run_passes(p.tile, p.schedule, p.target, stop_after="from_end"))
