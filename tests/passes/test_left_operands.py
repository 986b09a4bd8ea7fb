"""Left operands that are computed from what a loop loads stay in registers, in the layout that their products read."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import example, norm_gemm
from fcgen.ir.core import walk
from fcgen.ir.types import Buffer, Frag

HOPPER = {"math": "wgmma", "copy": "tma", "stages": 2}


def int4(**more):
    e = example("int4_gemm")
    return e, e.compile(target="sm_90a", schedule=fc.Schedule(**{"tiles": {"BLOCK_N": 64, "BLOCK_M": 16, "BLOCK_K": 32}, **more}))


def loop_of(program):
    main = next(r for r in program.machine.roles if r.name == "main")
    return next(o.regions[0].ops for o in walk(main.body) if o.kind == "for" and any(x.kind in ("wgmma", "mma") for x in walk(o.regions[0])))


@pytest.mark.parametrize("more", [HOPPER, {**HOPPER, "warps": 8, "tiles": {"BLOCK_N": 128, "BLOCK_M": 32, "BLOCK_K": 64}, "min_blocks": 2}, {}])
def test_what_a_loop_unpacks_is_neither_stored_nor_waited_for(more):
    e, p = int4(**more)
    kinds = [o.kind for o in loop_of(p)]
    assert "st_shared" not in kinds and kinds.count("barrier") == (0 if more else 1) and "fma_f16x2(" in p.cuda and "sub_f16x2(" not in p.cuda
    assert all(isinstance(o.operands[0].type, Frag) for o in loop_of(p) if o.kind == "wgmma")
    given, want = e.draw(seed=2)
    np.testing.assert_allclose(p.simulate(**given)["Y"].astype(float), want["Y"], atol=4e-3 * np.abs(want["Y"]).max())


def test_what_is_added_up_beside_it_is_read_once():
    p = norm_gemm.compile(target="sm_90a", T=fc.f16, schedule=fc.Schedule(tiles={"BM": 64, "BN": 32, "BK": 32}, **HOPPER))
    kinds = [o.kind for o in loop_of(p)]
    assert kinds.count("ldmatrix") == 1 and "barrier" not in kinds
    rng = np.random.default_rng(0)
    given = {"X": rng.standard_normal((70, 80)).astype(np.float16), "G": rng.uniform(0.5, 1.5, 80).astype(np.float32),
             "W": (rng.standard_normal((48, 80)) / 9).astype(np.float16)}
    np.testing.assert_allclose(p.simulate(**given)["Y"], p.interpret(**given)["Y"], atol=4e-3)


def test_what_a_loop_only_reads_is_stored_once():
    """It would take registers from the loop."""
    @fc.kernel
    def spec(A: "f16[M, K]", B: "f16[N, K]", C: "out f32[M, N]"):
        (rows,) = fc.grid(fc.tile(A.M, "BM"))
        a = fc.load(A[rows]) * 2.0
        for cols in fc.loop(fc.tile(B.N, "BN")):
            fc.store(C[rows, cols], fc.dot(a, fc.load(B[cols]).T))

    p = spec.compile(target="sm_90a", K=64, schedule=fc.Schedule(tiles={"BM": 64, "BN": 32}, **HOPPER))
    assert not any(isinstance(o.operands[0].type, Frag) for o in loop_of(p) if o.kind == "wgmma")


@pytest.mark.parametrize(("blocks", "regs"), [(1, (56, 240)), (2, (40, 216)), (3, (40, 120))])
def test_roles_share_what_a_block_is_launched_with(blocks, regs):
    p = int4(**HOPPER, min_blocks=blocks)[1]
    assert tuple(r.regs for r in p.machine.roles) == regs
    assert p.cubin


def square(**more):
    """Rows and columns of the accumulator have the same number, and the stored tile is its transpose."""
    return int4(**{**HOPPER, "warps": 8, "tiles": {"BLOCK_N": 128, "BLOCK_M": 128, "BLOCK_K": 32}, **more})


def test_rows_that_are_stored_are_the_loops_only_where_nothing_turned_them():
    """Each of two warpgroups has half of N; that M ends after 40 rows is none of their business."""
    e, p = square()
    given, want = e.draw(seed=4, m=40, n=136)
    np.testing.assert_allclose(p.simulate(**given)["Y"].astype(float), want["Y"], atol=4e-3 * np.abs(want["Y"]).max())


def test_a_slot_that_plain_loads_read_is_freed_behind_a_proxy_fence():
    """An arrival waits for no load; a bulk copy into the slot would come too early (seen on an H200: zeros of rows outside come at once)."""
    e, p = int4(**HOPPER)
    kinds = [o.kind for o in loop_of(p)]
    assert kinds.index("ld_shared") < kinds.index("proxy_fence") < kinds.index("mbar_arrive")
    text = "\n".join(line for line in str(p.machine).splitlines() if "proxy_fence" not in line)
    given, _ = e.draw(seed=2, m=17, n=64, e=160)
    with pytest.raises(fc.FcError, match="before it has been read") as caught:
        fc.program_from_text(text, target="sm_90a").simulate(**given)
    assert caught.value.code == "sim/proxy" and "before the arrival" in caught.value.hint


@fc.kernel
def lower(A: "f16[K, M]", B: "f16[K, N]", C: "out f32[M, N]", *, seen=True):
    """C = A^T B, of A what lies on and below the diagonal."""
    (rows,) = fc.grid(fc.tile(A.M, "BM"))
    acc = fc.var(fc.zeros(rows, B.N))
    live = lambda ks: ks.valid & (ks.index >= rows.index)
    for ks in fc.loop(fc.tile(A.K, "BK"), live=live if seen else None):
        a = fc.load(A[ks, rows]).T
        acc <<= acc + fc.dot(fc.where(live(ks), a, 0.0) if seen else a, fc.load(B[ks]))
    fc.store(C[rows], acc)


def turned(target="sm_90a", **more):
    how = {**HOPPER, "warps": 8, "tiles": {"BM": 128, "BK": 64}, "stages": 3} if target == "sm_90a" else {"tiles": {"BM": 64, "BK": 32}}
    return lower.compile(target=target, N=32, schedule=fc.Schedule(**{**how, **more}))


def loops_with_products(p):
    main = next(r for r in p.machine.roles if r.name == "main")
    return [o for o in walk(main.body) if o.kind == "for" and any(x.kind in ("wgmma", "mma") for x in walk(o.regions[0])) and not o.get("unroll")]


def numbers(m=200, k=400):
    """Of A, what is not to be read is no number."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((k, m)).astype(np.float16), rng.standard_normal((k, 32)).astype(np.float16)
    above = np.arange(k)[:, None] < np.arange(m)
    return {"A": np.where(above, np.float16(np.nan), a), "B": b}, np.where(above, 0, a).astype(float).T @ b.astype(float)


@pytest.mark.parametrize("split", ["loops", "branch", "none"])
@pytest.mark.parametrize("target", ["sm_90a", "sm_89"])
def test_a_tile_that_is_turned_on_its_way_is_fetched_as_its_product_reads_it(target, split):
    """Nothing is stored a second time, and no barrier is between."""
    p = turned(target, split=split)
    loop = loops_with_products(p)[-1]
    kinds = [o.kind for o in walk(loop.regions[0])]
    assert "st_shared" not in kinds and kinds.count("barrier") == (target == "sm_89")
    read = next(o for o in walk(loop.regions[0]) if o.kind == "ldmatrix" and o["trans"] and not o["transposed"])
    product = next(o for o in walk(loop.regions[0]) if o.kind in ("wgmma", "mma"))
    assert read.result.type.shape[::-1] == tuple(p.schedule.tile(n) for n in ("BM", "BK")) and isinstance(product.operands[0].type, Frag)
    given, want = numbers()
    np.testing.assert_allclose(p.simulate(**given)["C"], want, atol=4e-3 * np.abs(want).max())


@pytest.mark.parametrize("target", ["sm_90a", "sm_89"])
def test_copies_of_a_loop_share_the_slots_of_a_tile_that_one_of_them_works_upon(target):
    """Whole tiles are multiplied as they are stored, masked ones from registers: one ring is filled for both."""
    p = turned(target)
    masked, whole, last = loops_with_products(p)
    assert sorted(v.name for v in p.machine.buffers if isinstance(v.type, Buffer)) == ["a_tile", "acc_tile", "b_tile"]
    if target == "sm_90a":
        lefts = [next(o for o in walk(f.regions[0]) if o.kind == "wgmma").operands[0].type for f in (whole, masked, last)]
        assert [type(t) for t in lefts] == [Buffer, Frag, Frag]
    assert not any(o.kind in ("select", "and", "ld_global", "cast") for o in walk(whole.regions[0]))
    assert not any(o.kind == "ld_global" for r in p.machine.roles for o in walk(r.body))


def test_what_reads_a_shared_slot_in_registers_frees_it_behind_a_proxy_fence():
    text = "\n".join(line for line in str(turned().machine).splitlines() if "proxy_fence" not in line)
    with pytest.raises(fc.FcError, match="before it has been read") as caught:
        fc.program_from_text(text, target="sm_90a").simulate(**numbers()[0])
    assert caught.value.code == "sim/proxy"


@pytest.mark.parametrize("split", ["branch", "none"])
def test_products_stay_in_flight_beside_a_branch_of_element_work(split):
    """Each iteration waits for the product before its own; in whole tiles, words are left as they are."""
    p = turned(split=split)
    loop = loops_with_products(p)[-1]
    assert [o["groups"] for o in loop.regions[0].ops if o.kind == "wgmma_wait"] == [1]
    assert any(o.kind == "if" and any(x.kind == "select" for x in walk(o.regions[0])) for o in loop.regions[0].ops) == (split == "branch")
    assert "mask_x2(" in p.cuda and "at_f16(" not in p.cuda


def test_a_product_that_is_in_flight_too_long_is_found():
    """Its left operand's registers are made anew two iterations later: a wait for fewer leaves them to it."""
    text = str(turned(split="branch").machine)
    assert text.count("groups = 1}") == 1
    with pytest.raises(fc.FcError) as caught:
        fc.program_from_text(text.replace("groups = 1}", "groups = 2}"), target="sm_90a").simulate(**numbers()[0])
    assert caught.value.code.startswith("sim/")
