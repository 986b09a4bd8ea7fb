"""Faults that the GPU tests run: the simulator's verdict on each, and that their kernels compile with poison and delays in place."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fcgen.build.compiler import NVRTC_OPTIONS, refuse_serialised, to_cuda
from fcgen.errors import FcError
from fcgen.ir.schedule import Schedule
from fcgen.passes.machine import alloc
from fcgen.runtime.nvrtc import compile_cuda
from fcgen.sim.machine import simulate
from tests.gpu.hopper_verdicts import CASES, DELAY, TARGET, VERDICTS, WRONG, built, cuda, mutant, right
from tests.sim.async_faults import ASYNC_FAULTS

from .hopper import CASES as PLAIN
from .test_hopper_faults import names


def seen(kernel, case, steps):
    """(codes, reports as text) of the first seed that shows something."""
    for seed in range(4):
        arguments, expected = CASES[case].draw(seed, steps)
        with np.errstate(all="ignore"):
            result = simulate(kernel, arguments, TARGET, seed=seed)
        codes = {e.code for e in result.reports} | (set() if right(result.outputs, expected) else {WRONG})
        if codes:
            return codes, "\n".join(map(str, result.reports))
    return set(), ""


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda v: v.name)
def test_the_simulator_reports_it(verdict):
    planted = mutant(verdict)
    codes, text = seen(planted.kernel, verdict.case, verdict.steps)
    assert codes & verdict.codes and (verdict.codes == {WRONG}) == (codes == {WRONG})
    if codes != {WRONG}:
        role, words = names(CASES[verdict.case].kernel, planted)
        assert role is None or f"role {role}" in text
        assert any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text) for w in words), text


@pytest.mark.parametrize("case, steps", sorted({(v.case, v.steps) for v in VERDICTS}))
def test_without_the_fault_it_is_silent(case, steps):
    assert seen(CASES[case].kernel, case, steps) == (set(), "")


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda v: v.name)
def test_what_the_gpu_will_run_compiles(verdict):
    """The fault, poison before the barriers, the delay in its role and before its call; and no product made to wait."""
    pytest.importorskip("cuda.bindings.nvrtc")
    made = built(verdict.case, verdict, verdict.slow)
    text = made.cuda_text
    assert 0 < text.index("= 0x7fff7fff;") < text.index("mbar_init_fence();")
    assert "bra WAIT" not in text and text.count(DELAY) == (verdict.slow is not None)
    if verdict.slow:
        role, call = verdict.slow
        after = text[text.index(DELAY) + len(DELAY):].split("\n", 2)[1]
        assert after.lstrip().startswith(call) and text.rindex("// role ", 0, text.index(DELAY)) == text.index(f"// role {role}:")
    assert text != cuda(CASES[verdict.case].kernel, verdict.slow)[1].text, "the fault is not in the text"
    assert made.facts.arch == "sm_90a" and made.facts.smem_bytes > 0


@pytest.mark.parametrize("case", ["gemm-2", "chain-2", "tiles-2"])
def test_a_result_read_too_early_is_seen_by_ptxas_too(case):
    """Registers that are read while their product may be in flight: ptxas serialises such products and says so, which `build` refuses.
    There is nothing to run."""
    pytest.importorskip("cuda.bindings.nvrtc")
    planted = next(ASYNC_FAULTS["weaken-settle"].mutants(PLAIN[case].kernel))
    placed = alloc.run(planted.kernel, Schedule(), TARGET).with_meta(stage="synced")
    log = compile_cuda(to_cuda(placed, TARGET).text, "sm_90a", name="k", options=NVRTC_OPTIONS).log
    with pytest.raises(FcError, match="serialised the matrix products"):
        refuse_serialised(log, placed)


def test_the_table_is_of_use():
    assert len({v.name for v in VERDICTS}) == len(VERDICTS) >= 12 and {v.case for v in VERDICTS} == set(CASES)
    assert cuda(CASES["gemm-2"].kernel, None)[1].text.count("mbar_wait(") >= 3
