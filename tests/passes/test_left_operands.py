"""Left operands that are computed from what a loop loads stay in registers, in the layout that their products read."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import example, norm_gemm
from fcgen.ir.core import walk
from fcgen.ir.types import Frag

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
