"""What the simulator says of planted faults is so: the kernel without its fault is right on the GPU, the one with it is wrong."""

import numpy as np
import pytest

from fcgen.runtime import driver
from fcgen.sim.machine import simulate

from .hopper_verdicts import CASES, PROTOCOL, TARGET, VERDICTS, WRONG, Trapped, mutant, right, run_apart

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(driver.available()[0] and driver.device_info().capability != (9, 0),
                                                  reason="needs a GPU of compute capability 9.0: sm_90a runs on no other")]
pytest.importorskip("torch")


@pytest.mark.parametrize("case, steps, slow", sorted({(v.case, v.steps, v.slow or ()) for v in VERDICTS}))
def test_without_a_fault(case, steps, slow):
    """Silent in the simulator, right on the GPU, with shared memory poisoned and either side slow."""
    for seed in range(3):
        arguments, expected = CASES[case].draw(seed, steps)
        assert not simulate(CASES[case].kernel, arguments, TARGET, seed=seed).reports
        assert right(run_apart(case, None, slow or None, arguments, expected), expected)


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda v: v.name)
def test_with_its_fault(verdict):
    """Reported by the simulator, and wrong on the GPU, each time. Where the simulator reports nothing, its wrong numbers are the GPU's."""
    kernel = mutant(verdict).kernel
    for seed in range(3):
        arguments, expected = CASES[verdict.case].draw(seed, verdict.steps)
        with np.errstate(all="ignore"):
            said = [simulate(kernel, arguments, TARGET, seed=order) for order in range(4)]
        assert any({e.code for e in s.reports} & verdict.codes for s in said) or verdict.codes == {WRONG}
        try:
            got = run_apart(verdict.case, verdict, verdict.slow, arguments, expected)
        except Trapped:
            assert PROTOCOL in verdict.codes, "the simulator does not say that barriers are misused"
            continue
        assert not right(got, expected), verdict.why
        if verdict.codes == {WRONG}:
            assert right(got, said[0].outputs)
