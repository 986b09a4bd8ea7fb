"""Clusters: blocks that are neighbours along a grid axis copy the tiles they have in common once, a part each, into the memory of all."""

import re
from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda.printer import print_cuda
from fcgen.build.compiler import lower, target
from fcgen.errors import FcError
from fcgen.ir.core import walk, walk_kernel
from fcgen.ir.parse import parse_kernel
from fcgen.ir.schedule import Schedule
from fcgen.kernels import attention as library
from fcgen.runtime import cubin, toolchain
from fcgen.sim.machine import Simulation, simulate
from tests.ir.test_async_text import KERNEL
from tests.sim.async_faults import ASYNC_FAULTS


@fc.kernel
def product(A: "f16[M, K]", B: "f16[N, K]", C: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))
    acc = fc.var(fc.zeros(rows, cols))
    for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):
        acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)
    fc.store(C[rows, cols], acc)


def schedule(m=64, n=32, k=16, groups=1, **more):
    sizes = {"BLOCK_M": m, "BLOCK_N": n, **({"BLOCK_K": k} if k else {})}
    return Schedule(tiles=sizes, warps=4 * groups, **{"math": "wgmma", "copy": "tma", "stages": 2, "cluster": {"rows": 2}, **more})


def compiled(s):
    return product.compile(target="sm_90a", schedule=s)


def draw(m, n, k, seed=0):
    rng = np.random.default_rng(seed)
    return {"A": (rng.standard_normal((m, k)) / 4).astype(np.float16), "B": (rng.standard_normal((n, k)) / 4).astype(np.float16)}


def attention(s, mask="none"):
    return library.attention.compile(target="sm_90a", schedule=s, T=fc.f16, D=16, E=16, mask=mask, lazy=2.0)


PRODUCTS = {
    "rows": schedule(), "static": schedule(persistent="static", stages=3), "cols": schedule(128, 32, 16, 2, cluster={"cols": 2}, epilogue="direct"),
    "four": schedule(64, 64, 16, cluster={"rows_tile": 4}, epilogue="direct"), "panels": schedule(64, 16, 128, hints=True, persistent="static"),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_simulator_is_silent_and_agrees_with_the_tile_program(name):
    """Odd tile counts, more columns than one tile, loops shorter and longer than the ring."""
    p = compiled(PRODUCTS[name])
    deep = PRODUCTS[name].tile("BLOCK_K")
    for seed, (m, n, trips) in enumerate([(64, 16, 1), (130, 72, 3), (300, 40, 5), (1, 1, 2)]):
        args = draw(m, n, max(8, deep * trips - 8), seed)
        got, want = p.simulate(seed=seed, **args)["C"], p.interpret(**args)["C"]
        assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize("more", [{"late": "acc", "vote": True, "epilogue": "quad"}, {"persistent": "static", "epilogue": "smem"}],
                         ids=["late", "static"])
def test_attention_shares_keys_and_values_along_its_rows(more):
    p = attention(schedule(128, 16, 0, 2, **more))
    assert {op.operands[0].name for op in walk_kernel(p.machine) if op.kind == "tma_load" and op.get("multicast")} == {"K", "V"}
    rng = np.random.default_rng(0)
    for seed, (m, n) in enumerate([(70, 5), (300, 43), (130, 90)]):
        args = {x: rng.standard_normal((1, h, s, 16)).astype(np.float16) for x, h, s in (("Q", 2, m), ("K", 1, n), ("V", 1, n))}
        got, want = p.simulate(seed=seed, scale=0.4, **args), p.interpret(scale=0.4, **args)
        assert all(np.abs(got[key].astype(np.float32) - want[key].astype(np.float32)).max() < 2e-3 for key in want)


@pytest.mark.parametrize("n, cluster", [(130, 2), (64, 4), (40, 2)])
def test_the_backward_pass_shares_rows_along_its_keys(n, cluster):
    """Every tile of keys begins in front of the last key: how often the loop runs does not hang on which one it is. Programs past the last
    tile, which fill up a cluster, run it with the others."""
    from fcgen.kernels.backward import backward

    s = Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, math="wgmma", copy="tma", epilogue="tma", split="branch",
                 stages={"q": 2, "do": 2}, cluster={"cols": cluster})
    p = backward.compile(target="sm_90a", schedule=s, T=fc.f16, D=32, E=32, mask="none", dQ=None)
    assert {op.operands[0].name for op in walk_kernel(p.machine) if op.kind == "tma_load" and op.get("multicast")} >= {"Q", "dO"}
    rng = np.random.default_rng(n)
    q, k, v, do = (rng.standard_normal((1, 1, x, 32)).astype(np.float16) for x in (150, n, n, 150))
    args = {"Q": q, "K": k, "V": v, "dO": do, "LSE2": np.full((1, 1, 150), 4.0, np.float32), "Delta": np.zeros((1, 1, 150), np.float32)}
    for seed in range(2):
        got, want = p.simulate(seed=seed, scale=0.2, **args), p.interpret(scale=0.2, **args)
        assert all(np.allclose(got[key].astype(np.float32), want[key].astype(np.float32), atol=2e-2, rtol=4e-3) for key in want)
    with pytest.raises(FcError, match="how often this loop runs depends on cols"):
        _ = backward.compile(target="sm_90a", schedule=s, T=fc.f16, D=32, E=32, mask="causal_top_left", dQ=None).machine


def test_only_what_does_not_depend_on_the_axis_is_shared():
    """The roles of a small product: half a tile of B from each block, released in both; A as ever."""
    kernel = lower(compiled(schedule()).tile, schedule(), target("sm_90a"), stop_after="roles")
    text = str(kernel)
    assert "grid %rows_tile: M / 64 cluster 2, %cols_tile: N / 32" in text
    load, main = kernel.roles
    copies = {op.operands[0].name: op for op in walk(load.body) if op.kind == "tma_load"}
    assert copies["B"]["multicast"] == 2 and copies["A"].get("multicast") is None
    shared = copies["B"].operands[-2]
    announced = {op.operands[0]: op["bytes"] for op in walk(load.body) if op.kind == "mbar_expect"}
    assert announced[shared] == 32 * 16 * 2, "the whole tile, whoever brings it"
    arrivals = {op.operands[0]: op.get("cluster") for op in walk(main.body) if op.kind == "mbar_arrive"}
    assert {b.type.count: n for b, n in arrivals.items()} == {4: None, 8: 2}
    assert main.body.ops[-1].kind == "cluster_sync"
    assert str(parse_kernel(text)) == text


def test_it_compiles_to_multicast_copies_and_cheap_arrivals():
    p = compiled(schedule(128, 128, 64, 2, stages=4, epilogue="direct", persistent="static"))
    assert p.resources.spill_stores == 0 and "C75" not in p.built.log
    assert "void __cluster_dims__(2, 1, 1) __launch_bounds__" in p.cuda
    assert "if (lane < 2) mbar_arrive_cluster(" in p.cuda and "tma_load_2d_multicast(" in p.cuda
    maps = {name: box for kind, name, _, box in p.built.facts.flat if kind == "map"}
    assert maps == {"A": (128, 64, 128), "B": (64, 64, 128)}


@pytest.mark.skipif(toolchain.find_tool("nvdisasm") is None, reason="nvdisasm is not installed")
def test_the_loop_has_no_fence_of_the_gpu():
    """Arrivals in other blocks say that reads are over; they need not wait for memory."""
    code = cubin.sass(compiled(schedule(128, 128, 64, 2, stages=4, epilogue="direct")).built.cubin)
    assert "UTMALDG.2D.MULTICAST" in code
    assert code.count("MEMBAR.ALL.GPU") == code.count("UCGABAR_ARV") == 2, "where the cluster meets, and nowhere else"


@pytest.mark.parametrize("name, code", [("own-arrive", "sim/deadlock"), ("forget-peers", "sim/race"), ("drop-cluster-sync", "sim/leftover"),
                                        ("drop-arrive", "sim/deadlock"), ("drop-load", "sim/deadlock"), ("early-load", "sim/")])
def test_a_fault_planted_in_a_product_is_reported(name, code):
    """Blocks work through several tiles: what a tile's end forgets, the next one waits for."""
    p = compiled(schedule(persistent="static"))
    for mutant in ASYNC_FAULTS[name].mutants(p.machine):
        found = [r.code for seed in range(3) for r in simulate(mutant.kernel, draw(384, 32, 160), p.target, seed=seed).reports]
        assert any(c.startswith(code) for c in found), mutant.site


@pytest.mark.parametrize("s, mask, words", [
    (schedule(64, 16, 0, late="acc"), "causal_top_left", "this branch is taken depends on rows"),
    (schedule(64, 16, 0, own_rows=False), "causal_bottom_right", "how often this loop runs depends on rows"),
    (schedule(64, 16, 0, cluster={"x": 2}), "none", "no axis x"),
    (schedule(64, 16, 0, cluster={"rows": 8}), "none", "divides into 8 parts"),
    (schedule(64, 16, 0, cluster={"h": 2}), "none", "share no tile"),
    (schedule(64, 16, 0, persistent="dynamic"), "none", "cannot claim tiles one by one"),
    (schedule(64, 16, 0, copy="cp_async", math="mma"), "none", "share bulk copies"),
])
def test_what_cannot_run_as_a_cluster_is_refused_with_the_reason(s, mask, words):
    with pytest.raises(FcError, match=words) as e:
        _ = attention(s, mask).machine
    assert e.value.code == "compile/schedule"


def test_a_target_without_clusters_is_refused():
    with pytest.raises(FcError, match="sm_89 has no bulk tensor copies"):
        lower(product.compile(target="sm_89", schedule=Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 16})).tile, schedule(),
              target("sm_89"))


def test_a_block_outside_of_the_grid_may_write_only_under_a_guard():
    @fc.kernel
    def heads(A: "f16[H, M, 16]", B: "f16[N, 16]", C: "out f32[H, M, N]"):
        h, rows = fc.grid(A.H, fc.tile(A.M, "BLOCK_M"))
        for cols in fc.loop(fc.tile(B.N, "BLOCK_N")):
            fc.store(C[h, rows, cols], fc.dot(fc.load(A[h, rows]), fc.load(B[cols]).T))

    s = schedule(64, 16, 0, cluster={"h": 2})
    with pytest.raises(FcError, match="outside of the grid, which fills up the last cluster, writes where no guard"):
        _ = heads.compile(target="sm_90a", schedule=s).machine
    even = heads.compile(target="sm_90a", schedule=replace(s, cluster={"rows": 2}))
    assert any(op.get("multicast") == 2 for op in walk_kernel(even.machine))


def test_neighbours_are_blocks_with_consecutive_numbers():
    """Of a hand-written kernel that reads the grid: the printed text and the simulator decode one way."""
    kernel = parse_kernel(KERNEL.replace("M / 64", "M / 64 cluster 2 reverse"))
    text = print_cuda(kernel, target("sm_90a")).text
    lines = re.findall(r"const int ([ij](?:_clusters)?(?:_\d*)?) = (.*blockIdx.*|\(M .*);", text.split("// role main")[1])
    assert len(lines) == 3 and "clusters" in lines[0][0]
    for m, n in ((64, 64), (300, 130)):
        memory = {"A": np.zeros((m, 64), np.float16), "B": np.zeros((n, 64), np.float16), "C": np.zeros((m, n), np.float32)}
        sim = Simulation(kernel, target("sm_90a"), memory, {"M": m, "N": n}, {}, np.random.default_rng(0))
        for block in range(2 * -(-m // 128) * -(-n // 64)):
            known = {"M": m, "N": n, "block": block}
            for name, x in lines:
                known[name] = eval(x.replace("int(blockIdx.x)", "block").replace("/", "//"), {}, known)
            assert sim.place(block) == (known[lines[1][0]], known[lines[2][0]])
