"""Kernels of asynchronous engines are silent and right at every trip count that visits each slot in both parities; descriptors; rules."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.build.compiler import target
from fcgen.errors import FcError
from fcgen.ir.layout import SmemLayout
from fcgen.ir.parse import parse_kernel
from fcgen.sim import descriptor
from fcgen.sim.machine import simulate

from .hopper import CASES, gemm, gemm_draw, tiles

SM = target("sm_90a")


def run(kernel, arguments, seed=0):
    return simulate(kernel, arguments, SM, seed=seed)


def right(result, expected):
    assert not result.reports, result.reports[0]
    for name, want in expected.items():
        np.testing.assert_allclose(result.outputs[name].astype(np.float64), want, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_silent_and_right(case):
    for steps in case.counts():
        for seed in (0, 1, 2 + steps % 4):  # late, eager, and one of any order
            arguments, expected = case.draw(seed, steps)
            right(run(case.kernel, arguments, seed), expected)


@pytest.mark.parametrize("span", [128, 64, 32])
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_operands_by_descriptor(span, ta, tb):
    """Both majors of both operands in every swizzle, the tensors' ends inside of the tiles, several blocks."""
    kernel = parse_kernel(gemm(2, ta, tb, span), "gemm.fcir", locate=True)
    for seed in range(2):
        arguments, expected = gemm_draw(ta, tb, m=130, n=70)(seed, 3)
        right(run(kernel, arguments, seed), expected)


# ---- descriptors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [128, 64, 32])
@pytest.mark.parametrize("major", ["K", "MN"])
def test_bits_say_where_the_layout_puts_the_elements(span, major):
    layout, shape, start = SmemLayout(span // 2, 0, span), (64, 128) if major == "MN" else (192, 128), 5 * 1024
    rows = 64
    for row in range(0, (shape[0] if major == "K" else shape[1]) - rows + 1, 64):
        for k in range(0, shape[1] if major == "K" else shape[0], 16):
            bits = descriptor.encode(layout, shape, 2, major, start, row, k)
            assert 0 <= bits < 1 << 64 and bits >> 62 == {128: 1, 64: 2, 32: 3}[span]
            r, c = np.meshgrid(np.arange(rows) + row, np.arange(16) + k, indexing="ij")
            i, j = (r, c) if major == "K" else (c, r)
            np.testing.assert_array_equal(descriptor.addresses(bits, rows, major), start + layout.address(shape, 2, i, j))


def test_the_measured_descriptors():
    """hopper-notes: SBO 1024; +32 bytes per k step, then the next panel; for V the panel's stride as LBO and +2048 bytes per k step."""
    layout = SmemLayout(64, 0, 128)
    base = descriptor.encode(layout, (128, 128), 2, "K", 0)
    assert base >> 32 & 0x3FFF == 1024 >> 4 and base >> 16 & 0x3FFF == 1 and base >> 49 & 7 == 0
    steps = [descriptor.encode(layout, (128, 128), 2, "K", 0, 0, k) - base for k in range(0, 128, 16)]
    assert steps == [0, 2, 4, 6, 1024, 1026, 1028, 1030]
    v = descriptor.encode(layout, (128, 128), 2, "MN", 0)
    assert v >> 16 & 0x3FFF == 16384 >> 4 and v >> 32 & 0x3FFF == 1024 >> 4
    assert descriptor.encode(layout, (128, 128), 2, "MN", 0, 0, 16) - v == 128


# ---- rules ---------------------------------------------------------------------------------------------------------------


def mutant(case, *edits):
    text = CASES[case].text
    for old, new in edits:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return parse_kernel(text, f"{case}.fcir", locate=True)


def codes(kernel, case, steps=3, seeds=range(4)):
    found = {}
    for seed in seeds:
        for e in run(kernel, CASES[case].draw(seed, steps)[0], seed).reports:
            found.setdefault(e.code, e)
    return found


def test_an_accumulator_made_anew_needs_a_fence_after_the_last_was_read():
    """The second wgmma of the loop writes registers that the first one's result may still be in."""
    found = codes(mutant("tiles-2", ("    wgmma_fence\n", ""), ("  %c = cursor {slots = 2} : cursor x2\n  mbar_wait %b_full",
                                                                "  %c = cursor {slots = 2} : cursor x2\n  wgmma_fence\n  mbar_wait %b_full")), "tiles-2")
    assert "accumulators were touched since the last wgmma_fence" in found["sim/register"].message


def test_bytes_that_nobody_waits_for():
    found = codes(mutant("tiles-2", ("  mbar_wait %b_full, %cb {lag = 0}\n", ""), ("wgmma %sx, %b {", "wgmma %sx, %sx {")), "tiles-2")
    assert "nobody waited for it" in found["sim/leftover"].message


def test_a_copy_over_stores_needs_a_proxy_fence():
    """Generic stores into a slot, then a TMA load into it: the barrier between them is not enough."""
    text = """\
machine kernel t
param %X: tensor f16[64, 64]
param %Y: tensor f16[64, 64] out
smem %x: f16[64,64]{panel 64 swizzle 128}
smem %stored: mbarrier count 4
smem %full: mbarrier count 1
role load warps 4 {
  %c = cursor {slots = 1} : cursor x1
  mbar_wait %stored, %c {lag = 0}
  mbar_expect %full, %c {bytes = 8192}
  tma_load %X, %x, %full, %c {index = (all, all), guard = (false, false)}
}
role main warps 4 {
  %0 = const {value = 0, dtype = i32} : i32
  %z = const {value = 0.0, dtype = f16} : f16
  %n = full %z : frag f16[64,64]{w4@1 r2@16 l8@4 | l4@1 r16@1}
  %c = cursor {slots = 1} : cursor x1
  st_shared %n, %x, %0, %0
  proxy_fence
  mbar_arrive %stored, %c
  mbar_wait %full, %c {lag = 0}
  %y = ld_shared %x, %0, %0 : frag f16[64,64]{w4@1 r2@16 l8@4 | l4@1 r16@1}
  st_global %Y, %y {index = (all, all), guard = (false, false), vec = 8}
}
"""
    x = np.arange(4096).reshape(64, 64).astype(np.float16)
    r = run(parse_kernel(text, "t", locate=True), {"X": x})
    assert not r.reports, r.reports[0]
    np.testing.assert_array_equal(r.outputs["Y"], x)
    (e,) = run(parse_kernel(text.replace("  proxy_fence\n", ""), "t", locate=True), {"X": x}).reports
    assert e.code == "sim/proxy" and any("st_shared n, x" in n for n in e.notes) and any("tma_load X" in n for n in e.notes)


def test_who_waits_for_a_copy_knows_nothing_of_what_its_thread_did_after_starting_it():
    lines = tiles(2).splitlines(keepends=True)
    post, load = (next(n for n, line in enumerate(lines) if line.strip().startswith(w)) for w in ("post %tile", "tma_load %X"))
    text = "".join([*lines[:post], *lines[post + 1:load + 1], lines[post], *lines[load + 1:]])
    result = run(parse_kernel(text, "late_post.fcir", locate=True), CASES["tiles-2"].draw(0, 3)[0])
    assert any(e.code == "sim/race" and "fetch" in str(e) and "post" in str(e) for e in result.reports), result.reports


def test_a_second_start_token():
    found = codes(mutant("turns-2", ("  token_start {id = 2}\n", "  token_start {id = 2}\n  token_start {id = 2}\n")), "turns-2")
    assert "arrives twice at named barrier 2" in found["sim/protocol"].message


def test_claims_belong_to_one_thread():
    with pytest.raises(FcError, match="claim belongs to one thread"):
        run(mutant("tiles-2", ("    %next = fetch %st : i32\n", "    %next = claim : i32\n")), CASES["tiles-2"].draw(0, 2)[0])


def test_a_while_that_does_not_end_is_stopped():
    found = codes(mutant("tiles-2", ("%more = lt %next, %count : i1", "%more = lt %0, %count : i1")), "tiles-2", steps=1, seeds=[0])
    assert any("it would not end" in n for n in found["sim/deadlock"].notes)
