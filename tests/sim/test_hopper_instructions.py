"""The simulator's engines against the instruction records: products, bulk copies and descriptors mean the same in both."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.backends.cuda.wgmma import SWIZZLE_CODE
from fcgen.backends.targets.hopper import INSTRS
from fcgen.build.compiler import target
from fcgen.ir.layout import native_smem, wgmma_c
from fcgen.ir.parse import parse_kernel
from fcgen.sim import descriptor
from fcgen.sim.machine import simulate

from .hopper import gemm, gemm_draw

SM = target("sm_90a")


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_products(ta, tb):
    """A product of depth 64 over two warpgroups is four issues of the record each, one onto the other."""
    arguments, _ = gemm_draw(ta, tb)(0, 1)
    got = simulate(parse_kernel(gemm(2, ta, tb), "gemm.fcir"), arguments, SM)
    assert not got.reports
    a, b = (arguments["A"].T if ta else arguments["A"]), (arguments["B"].T if tb else arguments["B"])
    record, at = INSTRS["wgmma_m64n64k16_f16"], wgmma_c(64, 64, 1).coords(4)
    for group in range(2):
        d = np.zeros((4, 32, 32), np.float32)
        for k in range(0, 64, 16):
            d = record.effect(a[64 * group:64 * group + 64, k:k + 16], b[k:k + 16], d)
        np.testing.assert_allclose(got.outputs["C"][64 * group + at[..., 0], at[..., 1]], d, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cols", [8, 24, 64, 200, 256])
def test_a_left_operand_in_registers_is_the_same_operand(cols):
    rng = np.random.default_rng(cols)
    a, b = (rng.standard_normal(s).astype(np.float16).astype(np.float32) for s in ((64, 16), (16, cols)))
    c = rng.standard_normal((4, 32, cols // 2)).astype(np.float32)
    stored, held = INSTRS[f"wgmma_m64n{cols}k16_f16"], INSTRS[f"wgmma_m64n{cols}k16_f16_rs"]
    at, to = held.a.coords(4), held.c.coords(4)
    for add in (False, True):
        got = held.effect(a[at[..., 0], at[..., 1]], b, c, add)
        np.testing.assert_array_equal(got, stored.effect(a, b, c, add))
        np.testing.assert_allclose(got, (a @ b)[to[..., 0], to[..., 1]] + add * c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("span", [128, 64, 32])
@pytest.mark.parametrize("major", ["K", "MN"])
def test_descriptors(span, major):
    """The fields that the printer gives `smem_desc` are those the simulator reads operands by."""
    layout, shape = native_smem(span // 2, 2), (32, 128)
    panel = layout.panel_bytes(shape, 2)
    want = descriptor.encode(layout, shape, 2, major, 5 * 1024)
    assert int(INSTRS["smem_desc"].effect(SWIZZLE_CODE[span], panel if major == "MN" else 16, 8 * span, 5 * 1024)) == want


@pytest.mark.parametrize("row, col", [(0, 0), (40, 32), (-5, -16), (70, 0), (0, 96), (-64, 0)])
def test_bulk_copies(row, col):
    """Through the simulated engine into a swizzled tile of two panels, and out by ordinary loads: the records' boxes."""
    frag = "frag f16[64,64]{w4@1 r2@16 l8@4 | l4@1 r16@1}"
    kernel = parse_kernel(f"""\
machine kernel t
param %X: tensor f16[3, M, N]
param %Y: tensor f16[64, 64] out
smem %x: f16[64,64]{{panel 32 swizzle 64}}
smem %full: mbarrier count 1
role load warps 4 {{
  %2 = const {{value = 2, dtype = i32}} : i32
  %row = const {{value = {row}, dtype = i32}} : i32
  %col = const {{value = {col}, dtype = i32}} : i32
  %c = cursor {{slots = 1}} : cursor x1
  mbar_expect %full, %c {{bytes = 8192}}
  tma_load %X, %2, %row, %col, %x, %full, %c {{index = (at, tile, tile), guard = (true, true)}}
}}
role main warps 4 {{
  %0 = const {{value = 0, dtype = i32}} : i32
  %c = cursor {{slots = 1}} : cursor x1
  mbar_wait %full, %c {{lag = 0}}
  %y = ld_shared %x, %0, %0 : {frag}
  st_global %Y, %y {{index = (all, all), guard = (false, false), vec = 8}}
}}
""", "t")
    x = np.arange(1, 3 * 70 * 96 + 1).reshape(3, 70, 96).astype(np.float16)
    got = simulate(kernel, {"X": x}, SM)
    assert not got.reports
    effect = INSTRS["tma_load_3d"].effect
    want = np.concatenate([effect(x, (1, 64, 32), col + p * 32, row, 2)[0] for p in (0, 1)], axis=1)
    np.testing.assert_array_equal(got.outputs["Y"], want)
    assert bool((want == 0).any()) == ((row, col) != (0, 0)), "every place but the first is partly outside"
