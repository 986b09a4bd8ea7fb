"""Blocks of a cluster that share a loop's iterations: right in the simulator, which sees what would not be; and what is no plain sum is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import gemm_nt, norm_gemm
from fcgen.errors import FcError
from fcgen.ir.core import Op, walk_kernel
from fcgen.ir.rewrite import edited, map_bodies
from fcgen.ir.verify import verify
from fcgen.passes import run_passes
from fcgen.passes.tile.parts import shared_loop
from fcgen.sim.machine import simulate

BULK = dict(math="wgmma", copy="tma", epilogue="direct", warps=4)
TILES = {"BM": 64, "BN": 64, "BK": 64}


def compiled(spec: Any = gemm_nt, binding: Any = None, **fields: Any) -> Any:
    return spec.compile(target="sm_90a", schedule=fc.Schedule(**{"tiles": TILES, **BULK, "parts": 2, **fields}), T=fc.f16, **binding or {})


def product(m: int = 70, n: int = 72, k: int = 200) -> dict[str, Any]:
    rng = np.random.default_rng(k)
    return {x: rng.standard_normal((rows, k)).astype(np.float16) for x, rows in (("A", m), ("B", n))}


@pytest.mark.parametrize("k", [8, 200])
@pytest.mark.parametrize("fields", [{}, {"parts": 3}, {"parts": 8}, {"epilogue": "tma"}, {"math": "mma", "tiles": {**TILES, "BM": 16}},
                                    {"warps": 8, "tiles": {**TILES, "BM": 128}, "epilogue": "quad", "pdl": True}])
def test_parts_add_up(fields: dict[str, Any], k: int) -> None:
    """Fewer iterations than parts too."""
    p, args = compiled(**fields), product(k=k)
    for seed in range(3):
        result = simulate(p.machine, args, p.target, seed=seed)
        assert not result.reports, result.reports[0]
        want = args["A"].astype(float) @ args["B"].astype(float).T
        np.testing.assert_allclose(result.outputs["C"].astype(float), want, atol=2e-3 * np.abs(want).max())


def test_rows_beside_a_tile_and_what_sums_begin_with() -> None:
    @fc.kernel
    def begun(A: "T[M, K]", B: "T[N, K]", C: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
        acc, total = fc.var(fc.full((rows, cols), 3.0)), fc.var(fc.zeros(rows))
        for ks in fc.loop(fc.tile(A.K, "BK")):
            a = fc.load(A[rows, ks])
            acc <<= acc + fc.dot(a, fc.load(B[cols, ks]).T)
            total <<= total + fc.sum(a.to(fc.f32), axis=1)
        fc.store(C[rows, cols], acc * total)

    p, args = compiled(begun, parts=4), product(k=520)
    a, b = (args[x].astype(float) for x in "AB")
    want = (3.0 + a @ b.T) * a.sum(1, keepdims=True)
    result = simulate(p.machine, args, p.target)
    assert not result.reports, result.reports[0]
    np.testing.assert_allclose(result.outputs["C"], want, atol=1e-3 * np.abs(want).max())


#: what is left out or changed -> what the simulator says
FAULTS: dict[str, tuple[Callable[[Op], Op | None], set[str]]] = {
    "nobody waits": (lambda o: None if o.kind == "mbar_wait" and o.get("cluster") else o, {"sim/race", "sim/stale", "sim/leftover"}),
    "nobody tells": (lambda o: None if o.kind == "mbar_arrive" and o.get("block") is not None else o, {"sim/deadlock"}),
    "at the own barrier": (lambda o: o.with_attrs(block=1) if o.kind == "mbar_arrive" and o.get("block") is not None else o, {"sim/deadlock"}),
    "to the own memory": (lambda o: o.with_attrs(block=1) if o.kind == "st_shared" and o.get("block") is not None else o, {"sim/stale"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_sums_that_are_not_told_of_are_seen(name: str) -> None:
    change, codes = FAULTS[name]
    p = compiled()
    broken = map_bodies(p.machine, lambda body: edited(body, change))
    assert broken is not p.machine
    try:
        found = {r.code for seed in range(3) for r in simulate(broken, product(), p.target, seed=seed).reports}
    except FcError as e:
        found = {e.code}
    assert found & codes, found


def test_partial_sums_at_one_place_are_a_race() -> None:
    """The others' places are their own."""
    p = compiled(parts=3)
    to = {o.operands[1] for o in walk_kernel(p.machine) if o.kind == "st_shared" and o.get("block") is not None}
    places = {o.operands[1] for o in walk_kernel(p.machine) if o.kind == "slot" and o.result in to}
    first = lambda o: Op("const", (), o.results, {"value": 0, "dtype": "i32"}) if places & {*o.results} else o
    reports = simulate(map_bodies(p.machine, lambda body: edited(body, first)), product(), p.target).reports
    assert "sim/race" in {r.code for r in reports}


@fc.kernel
def largest(A: "T[M, K]", B: "T[N, K]", C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    top = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        top <<= fc.maximum(top, fc.dot(fc.load(A[rows, ks]), fc.load(B[cols, ks]).T))
    fc.store(C[rows, cols], top)


@fc.kernel
def each(A: "T[M, K]", B: "T[D, K]", C: "out f32[M, D]", S: "out T[M, K]"):
    (rows,) = fc.grid(fc.tile(A.M, "BM"))
    acc = fc.var(fc.zeros(rows, B.D))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        a = fc.load(A[rows, ks])
        acc <<= acc + fc.dot(a, fc.load(B[:, ks]).T)
        fc.store(S[rows, ks], a)
    fc.store(C[rows], acc)


@fc.kernel
def alone(A: "T[M, 64]", B: "T[N, 64]", C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    fc.store(C[rows, cols], fc.dot(fc.load(A[rows]), fc.load(B[cols]).T))


@fc.kernel
def onto(A: "T[M, K]", B: "T[N, K]", C: "inout f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.zeros(rows, cols))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[rows, ks]), fc.load(B[cols, ks]).T)
    fc.store(C[rows, cols], acc + fc.load(C[rows, cols]))


@fc.kernel
def onto_begun(A: "T[M, K]", B: "T[N, K]", C: "inout f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc = fc.var(fc.load(C[rows, cols]))
    for ks in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[rows, ks]), fc.load(B[cols, ks]).T)
    fc.store(C[rows, cols], acc)


@fc.kernel
def beside(A: "T[M, K]", B: "T[N, K]", C: "out f32[M, N]", D: "inout f32[M, N]", *, n: "i32"):
    rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
    acc, factor = fc.var(fc.zeros(rows, cols)), fc.var(fc.full(rows, 1.0))
    with fc.when(n > 3):
        fc.store(D[rows, cols], fc.zeros(rows, cols))
        factor <<= factor * 2.0
    for ks in fc.loop(fc.tile(A.K, "BK")):
        acc <<= acc + fc.dot(fc.load(A[rows, ks]), fc.load(B[cols, ks]).T)
    fc.store(C[rows, cols], acc * factor)


def test_what_is_added_may_come_of_much() -> None:
    """The search for what is carried looks at each value once, not along every way to it."""
    @fc.kernel
    def deep(A: "T[M, K]", B: "T[N, K]", C: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(B.N, "BN"))
        acc = fc.var(fc.zeros(rows, cols))
        for ks in fc.loop(fc.tile(A.K, "BK")):
            x = fc.dot(fc.load(A[rows, ks]), fc.load(B[cols, ks]).T)
            for _ in range(40):
                x = x * x + x
            acc <<= acc + x
        fc.store(C[rows, cols], acc)

    p = compiled(deep)
    assert shared_loop(p.tile.body, 2).kind == "for"


@pytest.mark.parametrize("spec, fields, says", [
    (onto, {}, "the first one writes it"), (onto_begun, {}, "the first one writes it"),
    (beside, {}, "%factor is made beside"), (largest, {}, "does more than add up"),
    (each, {"tiles": {"BM": 64, "BK": 64}, "binding": {"D": 64}}, "does more than add up"),
    (alone, {"tiles": {"BM": 64, "BN": 64}}, "one loop"),
    (gemm_nt, {"persistent": "static"}, "no effect"), (gemm_nt, {"cluster": {"rows": 2}}, "no effect"),
    (gemm_nt, {"math": "mma", "copy": "cp_async"}, "no effect"), (gemm_nt, {"math": "fma"}, "plain loads")])
def test_what_is_no_plain_sum_is_refused(spec: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(FcError) as e:
        str(compiled(spec, **fields).machine)
    assert e.value.code == "compile/schedule" and says in str(e.value)


def test_norms_of_rows_are_whole() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, 264)).astype(np.float16) for n in (70, 72))
    g = rng.uniform(0.5, 1.5, 264).astype(np.float32)
    p = compiled(norm_gemm)
    result = simulate(p.machine, {"X": x, "W": w, "G": g}, p.target)
    wide = x.astype(float)
    want = (wide * g) @ w.astype(float).T / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5)
    assert not result.reports, result.reports[0]
    np.testing.assert_allclose(result.outputs["Y"].astype(float), want, atol=3e-3 * np.abs(want).max())


def test_what_makes_no_sense_is_refused() -> None:
    """Blocks that are no cluster, and what is no tile."""
    p = compiled()
    kernel = run_passes(p.tile, p.schedule, p.target, stop_after="parts")
    verify(kernel)
    apart = replace(kernel, grid=tuple(replace(a, cluster=1) for a in kernel.grid))
    nothing = map_bodies(kernel, lambda body: edited(body, lambda o: replace(o, operands=()) if o.kind == "sum_blocks" else o))
    for broken, says in ((apart, "form a cluster"), (nothing, "takes a tile")):
        with pytest.raises(FcError, match=says):
            verify(broken)
