"""Misaligned accesses of global memory: what compilers of before made is reported, what is made now is silent and right."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.compiler import from_text, target
from fcgen.errors import FcError
from fcgen.ir.alignment import promised
from fcgen.sim.machine import simulate
from fcgen.sim.trial import run_trials

T, M, N, D = None, None, None, None  # names in annotations

#: what was compiled for `gram` before widths followed from rows: copies of 16 bytes at a pitch of 2 D
OLD = """machine kernel gram
param %X: tensor f16[M, {D}]
param %Z: tensor f16[N, {D}]
param %Y: tensor f32[M, N] out
grid %rows_tile: M / 64, %cols_tile: N / 64
meta smem_bytes = 4096
meta smem_offsets = (0, 2048)
smem %x_tile: f16[64,16]{{panel 16 swizzle 32}}
smem %z_tile: f16[64,16]{{panel 16 swizzle 32}}
role main warps 4 {{
  %0 = const {{value = 64, dtype = i32}} : i32
  %1 = const {{value = 0, dtype = i32}} : i32
  %rows_start = mul %rows_tile, %0 : i32
  %cols_start = mul %cols_tile, %0 : i32
  cp_async %X, %rows_start, %x_tile {{index = (tile, all), guard = (true, true), threads = {{w4@1 l16@2 | l2@1 r8@1}}}}
  cp_async %Z, %cols_start, %z_tile {{index = (tile, all), guard = (true, true), threads = {{w4@1 l16@2 | l2@1 r8@1}}}}
  commit_group
  wait_group {{n = 0}}
  barrier
  %2 = const {{value = 0.0, dtype = f32}} : f32
  %3 = full %2 : frag f32[64,64]{{w4@1 r2@2 l8@4 | r8@4 l4@1 r2@1}}
  %x = ldmatrix %x_tile, %1, %1 {{transposed = false, trans = false}} : frag f16[64,16]{{w4@1 r2@2 l8@4 | r2@4 l4@1 r2@1}}
  %z = ldmatrix %z_tile, %1, %1 {{transposed = true, trans = false}} : frag f16[16,64]{{r2@2 l4@1 r2@1 | r8@4 l8@4}}
  %4 = mma %x, %z, %3 {{instr = mma_m16n8k16_f16}} : frag f32[64,64]{{w4@1 r2@2 l8@4 | r8@4 l4@1 r2@1}}
  st_global %Y, %4, %rows_start, %cols_start {{index = (tile, tile), guard = (true, true), vec = 2}}
}}
"""


@pytest.mark.parametrize(("d", "bad"), [(8, False), (10, True), (12, True), (16, False)])
def test_copies_at_an_odd_pitch_are_found_without_a_gpu(d, bad):
    text = OLD.format(D=d)
    if d == 16:
        text = text.replace("true, true), threads", "true, false), threads")
    kernel, to = from_text(text, "gram.fc"), target("sm_89")
    if not bad:
        assert run_trials(kernel, to)
        return
    with pytest.raises(FcError, match="cp_async moves 16 bytes at X") as e:
        run_trials(kernel, to)
    assert e.value.code == "sim/align" and f"strides are {2 * d} bytes" in str(e.value)


@fc.kernel
def gram(X: "T[M, D]", Z: "T[N, D]", Y: "out f32[M, N]"):
    rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(Z.N, "BN"))
    fc.store(Y[rows, cols], fc.dot(fc.load(X[rows]), fc.load(Z[cols]).T))


@pytest.mark.parametrize("more", [{}, {"copy": "vector"}, {"copy": "scalar"}, {"math": "fma"}], ids=str)
@pytest.mark.parametrize(("d", "bytes_"), [(8, 16), (9, 2), (10, 4), (12, 8), (20, 8), (28, 8)])
def test_rows_of_any_pitch(d, bytes_, more):
    p = gram.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, **more), T=fc.f16, D=d)
    rng = np.random.default_rng(d)
    x, z = rng.standard_normal((70, d)).astype(np.float16), rng.standard_normal((67, d)).astype(np.float16)
    np.testing.assert_allclose(p.simulate(X=x, Z=z)["Y"], x.astype(np.float32) @ z.astype(np.float32).T, rtol=1e-5, atol=1e-5)
    asked = promised(p.machine)
    assert asked["Y"].pointer == 4 and asked["X"].pointer == asked["X"].strides[0] <= bytes_
    if not more:
        assert asked["X"].pointer == bytes_ and ("cp_async" in re.sub("meta schedule.*", "", str(p.machine))) == (bytes_ >= 4)


@fc.kernel
def plane(Q: "f16[B, H, M, 10, 4]", W: "i32[M, 10]", O: "out f32[B, H, M, 10]", *, r: "i32"):
    b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BM"))
    fc.store(O[b, h, rows], fc.load(Q[b, h, rows, :, r]).to(fc.f32) * fc.load(W[rows]).to(fc.f32))


def test_a_strided_plane_beside_odd_rows():
    p = plane.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 32}, warps=2))
    rng = np.random.default_rng(0)
    q, w = rng.standard_normal((2, 2, 50, 10, 4)).astype(np.float16), rng.integers(0, 9, (50, 10))
    got = p.simulate(Q=q, W=w.astype(np.int32), r=3)["O"]
    np.testing.assert_array_equal(got, q[..., 3].astype(np.float32) * w)
    assert promised(p.machine)["Q"].words == (2, 2, 2, 2, 2) and max(promised(p.machine)["W"].words) <= 8
    assert "lo | hi" in p.cuda, "halves of a plane are read one by one"


@fc.kernel
def planes(Q: "f16[M, 64, 4]", K: "f16[N, 64]", O: "out f32[M, N]", *, r: "i32"):
    rows, cols = fc.grid(fc.tile(Q.M, "BM"), fc.tile(K.N, "BN"))
    fc.store(O[rows, cols], fc.dot(fc.load(Q[rows, :, r]), fc.load(K[cols]).T))


def test_a_strided_plane_in_shared_memory():
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4)
    p = planes.compile(target="sm_89", schedule=schedule)
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((70, 64, 4)).astype(np.float16), rng.standard_normal((40, 64)).astype(np.float16)
    want = q[..., 1].astype(np.float32) @ k.astype(np.float32).T
    np.testing.assert_allclose(p.simulate(Q=q, K=k, r=1)["O"], want, rtol=1e-4, atol=1e-4)
    with pytest.raises(FcError, match="does not run along rows") as e:
        _ = planes.compile(target="sm_90a", schedule=replace(schedule, copy="tma", math="wgmma")).machine
    assert e.value.code == "compile/schedule" and e.value.hint


@fc.kernel
def scaled(X: "T[M, N]", Y: "out T[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        fc.store(Y[rows, cols], fc.load(X[rows, cols]) * 2.0)


@pytest.mark.parametrize("n", [128, 100, 99])
def test_columns_whose_number_is_not_known(n):
    """Whole tiles of a loop are copied in the widest way; tensors whose rows are not on 16 bytes take a kernel with narrower accesses."""
    p = scaled.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16, "BN": 64}, warps=2), T=fc.f16)
    x = np.random.default_rng(0).standard_normal((20, n)).astype(np.float16)
    np.testing.assert_array_equal(p.simulate(X=x)["Y"], x * 2)
    wide = np.zeros((20, 128), np.float16)[:, :n]
    wide[...] = x
    np.testing.assert_array_equal(p.simulate(X=wide)["Y"], x * 2)
    assert promised(p.machine)["X"].words == (16, 16)


@pytest.mark.parametrize(("edit", "said"), [
    (("meta aligned = ((X, 4, 4)", "meta aligned = ((X, 2, 4)"), "cp_async moves 4 bytes at X"),
    (("meta aligned = ((X, 4, 4)", "meta aligned = ((X, 4, 2)"), "X"),
    (("meta aligned = ((X, 4, 4)", "meta aligned = ((X, 8, 4)"), None)])
def test_a_promise_that_is_less_than_what_is_needed(edit, said):
    p = gram.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4), T=fc.f16, D=10)
    text = str(p.machine)
    assert edit[0] in text
    kernel = from_text(text.replace(*edit), "k.fc")
    result = simulate(kernel, {"X": np.zeros((70, 10), np.float16), "Z": np.zeros((64, 10), np.float16)}, target("sm_89"))
    assert [r.code for r in result.reports] == (["sim/align"] if said else []) and (said is None or said in result.reports[0].message)


def test_bulk_copies_need_16_bytes():
    p = gram.compile(target="sm_90a", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, copy="tma", math="wgmma", epilogue="tma"),
                     T=fc.f16, D=64)
    text, given = str(p.machine), {"X": np.zeros((70, 64), np.float16), "Z": np.zeros((64, 64), np.float16)}
    line = "meta aligned = ((X, 16, 16), (Z, 16, 16), (Y, 16, 16))"
    assert line in text
    for weak, kind in (("((X, 16, 8), (Z, 16, 16), (Y, 16, 16))", "tma_load"), ("((X, 8, 16), (Z, 16, 16), (Y, 16, 16))", "tma_load"), ("((X, 16, 16), (Z, 16, 16), (Y, 8, 16))", "tma_store")):
        result = simulate(from_text(text.replace(line, "meta aligned = " + weak), "k.fc"), given, target("sm_90a"))
        assert {r.code for r in result.reports} == {"sim/align"} and kind in result.reports[0].message
    assert not simulate(p.machine, given, target("sm_90a")).reports


def test_a_kernel_for_less_than_bulk_copies_need_is_refused():
    from fcgen.ir.alignment import Promise

    p = gram.compile(target="sm_90a", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, copy="tma", math="wgmma"), T=fc.f16, D=64)
    with pytest.raises(FcError, match="bulk copies of X need more") as e:
        _ = p.narrowed({"X": Promise(16, (4,))}).machine
    assert e.value.code == "compile/schedule" and e.value.hint
