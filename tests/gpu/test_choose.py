"""What `fc.schedule_for` chooses, on the GPU: the numbers of the tile program."""

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import CASES
from fcgen.build import compiler
from fcgen.build.choose import choose
from fcgen.sim.trial import random_inputs

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
NAMES = ("gemm_nn", "gemm_nt", "gemm_f32", "gram_odd", "row_softmax", "norm_gemm", "swiglu", "gated", "paged", "windowed", "library_causal",
         "differential_attention", "linear_attention", "turned")


@pytest.mark.parametrize("name", NAMES)
def test_chosen_schedules(name):
    case, arch = CASES[name], fc.gpu_target()
    found = choose(case.spec, compiler.target(arch), case.binding, case.large)
    program = case.spec.compile(target=arch, schedule=found.schedule, check=False, **case.binding)
    program.why = found.why  # as if it had been compiled without a schedule
    arguments = {**random_inputs(program.machine, case.sizes), **case.given}
    want = program.interpret(**arguments)
    for key, got in program.run(**arguments).items():
        x, y = np.asarray(want[key], np.float64), np.asarray(got, np.float64)
        assert np.sqrt(np.mean((x - y) ** 2)) <= 1e-2 * np.sqrt(np.mean(x * x)), (key, str(program.schedule))
