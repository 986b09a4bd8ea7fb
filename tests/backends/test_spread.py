"""What is made of positions alone is printed as a common part and a number per register, and is what it was: run on the CPU against NumPy."""
# mypy: disable-error-code="name-defined, valid-type, syntax"

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from fcgen.attend.forward import compiled
from fcgen.attend.variants import functions, two_groups
from fcgen.backends.cuda.printer import print_cuda
from fcgen.backends.targets.ada import TARGETS
from fcgen.kernels.schedules import pick

from .host import run_on_host


@fc.kernel
def positions(F: "out f32[M, N]", I: "out i32[M, N]", *, shift: f32, c=8):
    rows, cols = fc.grid(fc.tile(F.M, "BM"), fc.tile(F.N, "BN"))
    apart = rows.index - cols.index
    fc.store(F[rows, cols], apart.to(fc.f32) * shift + (cols.index + 3).to(fc.f32))
    fc.store(I[rows, cols], (rows.index & c) * 1000 + (cols.index & c) * 10 + (apart & c) + ((rows.index + cols.index) & c))


@pytest.mark.parametrize("c", [8, -9, 7, -4, 0x30, 0x12345, -1, 0])
def test_floats_and_bits_of_positions(c: int, tmp_path: Path) -> None:
    p = positions.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 32, "BN": 80}, warps=4), check=False, c=c)
    m, n = 50, 170
    f, i = np.zeros((m, n), np.float32), np.zeros((m, n), np.int32)
    run_on_host(print_cuda(p.machine, TARGETS["sm_89"]), tmp_path, 6, {"F": f, "I": i}, {"shift": 0.37}, {"M": m, "N": n})
    rows, cols = np.arange(m, dtype=np.int32)[:, None], np.arange(n, dtype=np.int32)[None]
    np.testing.assert_array_equal(i, (rows & c) * 1000 + (cols & c) * 10 + ((rows - cols) & c) + ((rows + cols) & c))
    np.testing.assert_allclose(f, (rows - cols) * np.float64(np.float32(0.37)) + cols + 3, rtol=1e-6, atol=1e-4)


def test_what_registers_share_is_seen() -> None:
    """Of the counters of dropout's random numbers: two columns that lie 8 apart have one, and so have two rows."""
    schedule = replace(two_groups(pick("sm_90a", 64, mask="none")), ones=())
    p = compiled.__wrapped__("f16", 64, 64, "none", False, "sm_90a", schedule, True, check=False,
                             functions=functions(dropout=fc.Dropout(0.1, 1)))
    text = getattr(p, "first", p).cuda
    assert re.search(r"\(\(\w+ \+ \w+ \* 128\) & -9\) \+ i / 4 \* 16 \+ i % 2", text)
    assert re.search(r"uint32_t\(\(\w+ \+ rows_start\) & -9\);", text)
