"""What a report says: the line of the file that was run, the spec's line behind it, buffers that share bytes, a channel's line; and that
copies may be issued before their bytes are announced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fcgen.build.compiler import target
from fcgen.errors import FcError
from fcgen.ir.parse import parse_kernel
from fcgen.ir.rewrite import edited as each
from fcgen.ir.rewrite import map_bodies
from fcgen.sim.machine import simulate
from tests.ir.test_async_text import KERNEL

SM = target("sm_90a")
SEEDS = range(6)


def run(kernel, seed: int = 0):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((64, 64)).astype(np.float16) for _ in range(2))
    result = simulate(kernel, {"A": a, "B": b}, SM, seed=seed)
    return result, a.astype(np.float32) @ b.astype(np.float32).T


def edited(*pairs: tuple[str, str], marks: bool = True):
    text = KERNEL
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    if marks:
        text = text.replace("(tile, all), guard = (true, false)}\n", "(tile, all), guard = (true, false)}   @spec.py:7\n")
    return parse_kernel(text, "edited.fc"), text.split("\n")


def first(kernel, code: str) -> FcError:
    return next(e for e in run(kernel)[0].reports if e.code == code)


def test_a_report_stands_at_the_line_of_the_file_and_names_the_specs():
    kernel, lines = edited(("  mbar_wait %full, %c {lag = 0}\n", ""))
    e = first(kernel, "sim/race")
    copies, product = ([n for n, line in enumerate(lines, 1) if word in line] for word in ("tma_load", " = wgmma "))
    assert e.loc is not None and e.loc.file == "edited.fc" and e.loc.line in copies + product and "^" in str(e)
    assert any(f"(edited.fc:{n}, spec.py:7)" in str(e) for n in copies) and f"(edited.fc:{product[0]})" in str(e), str(e)


def test_a_report_on_a_marked_op_says_where_it_comes_from():
    kernel, lines = edited(("  mbar_wait %full, %c {lag = 0}\n  wgmma_fence\n", "  wgmma_fence\n"), ("mbar_wait %empty, %c {lag = 1}\n  ", ""),
                           ("mbar_arrive %empty, %c\n", "mbar_arrive %empty, %c\n"), ("bytes = 16384", "bytes = 8192"))
    e = next(e for e in run(kernel)[0].reports if e.loc is not None and "tma_load" in lines[e.loc.line - 1])
    assert any(n.startswith("which comes from spec.py:7") for n in e.notes)


def test_buffers_that_share_bytes_are_named():
    kernel, _ = edited(("(0, 8192, 16384, 16392)", "(0, 0, 16384, 16392)"))
    e = first(kernel, "sim/race")
    assert any("a and b share bytes 0 to 8191" in n or "b and a share bytes 0 to 8191" in n for n in e.notes), e.notes
    assert e.hint is not None and "meta smem_offsets" in e.hint
    kernel, _ = edited(("  mbar_wait %full, %c {lag = 0}\n", ""))
    assert not any("share bytes" in n for e in run(kernel)[0].reports for n in e.notes)


def test_buffers_of_one_name_are_told_apart_as_the_text_does():
    kernel, _ = edited(("(0, 8192, 16384, 16392)", "(0, 0, 16384, 16392)"), ("smem %b:", "smem %a.1:"), ("%2, %b, %full", "%2, %a.1, %full"),
                       ("wgmma %a, %b {", "wgmma %a, %a.1 {"))
    e = first(kernel, "sim/race")
    assert any(n.startswith(("a and a.1 share", "a.1 and a share")) for n in e.notes), e.notes


@pytest.mark.parametrize("old, new, kind", [("  mbar_arrive %empty, %c\n", "  mbar_arrive %empty, %c\n  mbar_arrive %empty, %c\n", "mbar_arrive"),
                                            ("bytes = 16384", "bytes = 16400", "mbar_wait")])
def test_an_op_without_a_line_has_that_of_its_channel(old, new, kind):
    """What passes make has no place in a text, and what they put in for order often no line of the spec."""
    kernel, _ = edited((old, new))
    bare = map_bodies(kernel, lambda body: each(body, lambda op: replace(op, place=None)))
    e = next(e for e in run(bare)[0].reports if f" {kind}" in " ".join(e.notes))
    assert str(e.loc) == "spec.py:7" and any(n.startswith("its channel is filled at spec.py:7") for n in e.notes), str(e)


EXPECT = "  mbar_expect %full, %c {bytes = 16384}\n"
COPIES = KERNEL[KERNEL.index("  tma_load %A"):KERNEL.index("  %c.1 = advance")]


@pytest.mark.parametrize("between", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_may_be_issued_before_its_bytes_are_announced(seed, between):
    """PTX ISA, 'mbarrier': a phase ends when no arrival is pending and the tx-count is zero; before that it may be below."""
    one, two = COPIES.splitlines(True)
    kernel, _ = edited((EXPECT + COPIES, one + EXPECT + two if between else COPIES + EXPECT))
    result, want = run(kernel, seed)
    assert not result.reports, result.reports[0]
    np.testing.assert_allclose(result.outputs["C"], want, atol=1e-2)


@pytest.mark.parametrize("count", [8192, 24576])
@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_that_do_not_fit_are_seen_by_every_seed_wherever_they_are_announced(seed, count):
    wrong = EXPECT.replace("16384", str(count))
    for kernel, _ in (edited((EXPECT, wrong)), edited((EXPECT + COPIES, COPIES + wrong))):
        codes = {e.code for e in run(kernel, seed)[0].reports}
        assert codes & {"sim/protocol", "sim/deadlock", "sim/leftover"}, codes
