"""Examples on the GPU against their references, named values with `until`, and the GPU against the interpreter."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc
from fcgen.kernels.attention import attention

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(p.stem for p in EXAMPLES.glob("*.py") if "\nexample = Example(" in p.read_text())


@pytest.mark.parametrize("name, math", [(n, m) for n in NAMES for m in ("mma", "wmma", "fma") if n != "softmax" or m == "mma"])
def test_examples(name, math, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module(name).example
    arguments, want = example.draw(seed=1)
    got = example.compile(target=fc.gpu_target(), schedule=replace(example.schedule, math=math)).run(**arguments)
    for key, reference in want.items():
        assert sys.modules["harness"].error(np.asarray(got[key], np.float64), reference) < example.rtol, key


def until_case(name, mask="none"):
    """(program, arguments, shape of the result) of a named value of attention."""
    n, block = 70, 32
    tiles = -(-n // block)
    rng = np.random.default_rng(0)
    q, k, v = (fc.round_to(rng.standard_normal((1, 2, n, 16)), fc.f16) for _ in range(3))
    schedule = fc.Schedule(tiles={"BLOCK_M": block, "BLOCK_N": block}, warps=2)
    make = lambda arch: attention.until(name).compile(target=arch, schedule=schedule, T=fc.f16, D=16, E=16, mask=mask)
    shape = (1, 2, tiles, tiles, block) + (() if name == "top" else (block,))
    return make, {"Q": q, "K": k, "V": v, "scale": 0.25}, shape


@pytest.mark.parametrize("mask", ["none", "causal_top_left"])
@pytest.mark.parametrize("name", ["s", "p", "top"])
def test_until(name, mask):
    """A tile that the loop skips is not written; every other one is as the interpreter says."""
    make, arguments, shape = until_case(name, mask)
    program = make(fc.gpu_target())
    (want,) = program.interpret(**arguments, UNTIL=np.full(shape, np.nan, np.float32)).values()
    got = torch.full(shape, float("nan"), device="cuda")
    on_gpu = {k: torch.from_numpy(x).cuda() if isinstance(x, np.ndarray) else x for k, x in arguments.items()}
    known = {p.name for p in program.machine.params}
    program(UNTIL=got, **{k: x for k, x in on_gpu.items() if k in known})
    got = got.cpu().numpy()
    written = ~np.isnan(got)
    assert written.any() and (written.all() or mask != "none")
    np.testing.assert_allclose(got[written], want[written], rtol=1e-4, atol=1e-4)
