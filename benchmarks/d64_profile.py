"""One launch of the backward kernels, for a profiler: python -m benchmarks.d64_profile SPEC HEAD [causal]."""
import sys

import torch

from fcgen.kernels.backward_schedules import candidates

from .backward import Cell
from .pool import Job, build, launcher

spec, d, causal = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
mask = "causal" if causal else "none"
schedule = candidates(spec.replace("_keys", ""), "sm_90a", d, spec != "backward_keys", causal)[0]
made = build(Job(schedule, d, d, mask, "f16", 0.0, spec, "sm_90a"))
x = Cell(1, 4096, 2048 // d * 2, d, causal)
arguments, _ = x.arguments(spec)
launch = launcher(made)
for _ in range(3):
    launch(arguments)
torch.cuda.synchronize()
print(schedule)
