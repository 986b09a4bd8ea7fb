"""Run a program before and after passes on the same random inputs and compare what it writes."""

from __future__ import annotations

import numpy as np

from fcgen.ir.core import Kernel
from fcgen.ir.types import Tensor
from fcgen.ir.verify import verify

from .mini import Run


def inputs(kernel: Kernel, sizes: dict[str, int], seed: int = 0) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    arrays, scalars = {}, {}
    for p in kernel.params:
        if isinstance(p.type, Tensor):
            shape = tuple(sizes[d] if isinstance(d, str) else d for d in p.type.dims)
            arrays[p.name] = rng.standard_normal(shape) if p.type.dtype.is_float else rng.integers(0, 3, shape)
        else:
            scalars[p.name] = float(rng.uniform(0.3, 2.0)) if p.type.dtype.is_float else int(rng.integers(1, 40))
    return arrays, scalars


def execute(kernel: Kernel, arrays: dict, scalars: dict) -> Run:
    return Run(kernel, {k: v.copy() for k, v in arrays.items()}, scalars).run()


def same(before: Kernel, after: Kernel, sizes: dict[str, int], seed: int = 0, **fixed) -> tuple[Run, Run]:
    """Both kernels verify and write the same (to 1e-5: folded constants are float32)."""
    verify(before)
    verify(after)
    arrays, scalars = inputs(before, sizes, seed)
    scalars.update(fixed)
    a, b = execute(before, arrays, scalars), execute(after, arrays, scalars)
    for name in arrays:
        np.testing.assert_allclose(b.arrays[name], a.arrays[name], rtol=2e-5, atol=2e-5, err_msg=name)
    return a, b
