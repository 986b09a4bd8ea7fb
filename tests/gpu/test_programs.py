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


@fc.kernel
def divided(X: "i32[N]", Q: "out i32[N]", R: "out i32[N]", P: "out i32[N]", *, n: "i32"):
    fc.positive(n)
    (at,) = fc.grid(fc.tile(X.N, "B"))
    x = fc.load(X[at])
    fc.store(Q[at], x // n)
    fc.store(R[at], x % n)
    fc.store(P[at], at.index // n)


def test_division_by_a_number_of_the_call():
    """By a product, for numbers of either sign and for positions."""
    p = divided.compile(target=fc.gpu_target(), schedule=fc.Schedule(tiles={"B": 256}))
    rng, top = np.random.default_rng(0), 2**31 - 1
    divisors = [1, 2, 3, 7, 32, 641, 65535, 65536, 65537, 2**29 + 1, 2**30 - 1, 2**30, *rng.integers(1, 5000, 20).tolist()]
    for n in divisors:
        near = rng.integers(-(2**31) // n + 2, 2**31 // n - 1, 5000) * n if n < 2**29 else np.zeros(1, np.int64)
        x = np.concatenate([near, near - 1, near + 1, rng.integers(-(2**31), 2**31, 5000), [0, -1, top, 1 - 2**31]]).astype(np.int32)
        out = p.run(X=x, n=n)
        wide, at = x.astype(np.int64), np.arange(len(x))
        for name, want in (("Q", wide // n), ("R", wide % n), ("P", at // n)):
            np.testing.assert_array_equal(out[name], want.astype(np.int32), err_msg=f"{name} {n}")
