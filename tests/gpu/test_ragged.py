"""Ranges with limits on the GPU: a ragged batch beside NaN neighbours, outputs poisoned before, loads and stores in bulk and not."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import fcgen as fc

from ..kernels import test_listed as listed
from ..kernels.test_ragged import hopper, padded, shifted

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ragged(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("ragged_attention")


def on_gpu(args):
    return {k: torch.from_numpy(x).cuda() if isinstance(x, np.ndarray) else x for k, x in args.items()}


SCHEDULES = {
    "mma": fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}),
    "tma": hopper(128, 64, 2, late="acc"),
    "bulk": hopper(128, 64, 2, late="acc", epilogue="tma", persistent="dynamic"),
    "one": hopper(64, 128, 1, epilogue="tma", split="branch"),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("d", [64, 128])
def test_a_ragged_batch(name, d, ragged):
    schedule, target = SCHEDULES[name], fc.gpu_target()
    if schedule.copy == "tma" and target != "sm_90a":
        pytest.skip("bulk copies are Hopper's")
    p = ragged.ragged_attention.compile(target=target, schedule=schedule, T=fc.f16, D=d, E=d)
    for queries, keys, bad in [((5, 0, 333, 1, 700), (20, 3, 333, 0, 650), 2), ((1,), (1,), None), ((128, 64, 3), (128, 200, 90), 1)]:
        given = ragged.inputs(np.random.default_rng(0), queries, keys, h=4, g=2, d=d)
        args = {k: x.astype(np.float16) if getattr(x, "dtype", None) == np.float64 else x for k, x in given.items()}
        want = ragged.reference(**{k: x.astype(np.float64) if getattr(x, "dtype", None) == np.float16 else x for k, x in args.items()})["O"]
        own = np.ones(len(want), bool)
        if bad is not None:  # a sequence of NaN: the others know nothing of it
            for x, first, last in (("Q", "Begin", "End"), ("K", "KBegin", "KEnd"), ("V", "KBegin", "KEnd")):
                args[x][args[first][bad]:args[last][bad]] = np.nan
            own[args["Begin"][bad]:args["End"][bad]] = False
        out = torch.full(want.shape, -7.0, device="cuda", dtype=torch.float16)
        for _ in range(2):
            p(O=out, **on_gpu(args))
        got = out.cpu().numpy().astype(np.float64)
        np.testing.assert_allclose(got[own], want[own], atol=4e-3)


@pytest.mark.parametrize("epilogue", ["direct", "tma"])
@pytest.mark.parametrize(("n", "stop"), [(0, 99), (5, 30), (7, 7), (20, 3), (0, -4), (1000, 2000)])
def test_nothing_is_written_past_a_limit(epilogue, n, stop):
    target, rows = fc.gpu_target(), 37
    if epilogue == "tma" and target != "sm_90a":
        pytest.skip("bulk copies are Hopper's")
    p = shifted.compile(target=target, schedule=fc.Schedule(tiles={"BM": 16}, warps=4, epilogue=epilogue), T=fc.f16, D=16)
    args = {"X": np.arange(rows * 16).reshape(rows, 16).astype(np.float16), "Y": np.full((rows, 16), -7, np.float16),
            "Z": np.full((rows, 16), -7, np.float32), "n": n, "stop": stop}
    want, got = p.interpret(**args), on_gpu(args)
    p(**got)
    for name in ("Y", "Z"):
        np.testing.assert_array_equal(got[name].cpu().numpy(), want[name])


@pytest.mark.parametrize("epilogue", ["direct", "tma"])
def test_a_padded_batch(epilogue):
    if epilogue == "tma" and fc.gpu_target() != "sm_90a":
        pytest.skip("bulk copies are Hopper's")
    p = padded.compile(target=fc.gpu_target(), schedule=fc.Schedule(tiles={"BM": 16}, warps=4, epilogue=epilogue), T=fc.f32, D=8)
    args = {"Q": np.ones((4, 20, 8), np.float32), "Count": np.array([0, 1, 17, 25], np.int32), "O": np.full((4, 20, 8), 7, np.float32)}
    want, got = p.interpret(**args)["O"], on_gpu(args)
    p(**got)
    np.testing.assert_array_equal(got["O"].cpu().numpy(), want)


@pytest.mark.parametrize("deep", [False, True], ids=["mma", "wgmma"])
@pytest.mark.parametrize("name", ["paged", "whole_pages", "grouped"])
def test_rows_that_lie_anywhere(name, deep):
    target = fc.gpu_target()
    if deep and target != "sm_90a":
        pytest.skip("bulk copies are Hopper's")
    schedule = hopper(128, 64, 2, late="acc", epilogue="quad", persistent="dynamic") if deep else SCHEDULES["mma"]
    p = getattr(listed, name).compile(target=target, schedule=schedule, T=fc.f16, D=16, **({"E": 16} if name == "grouped" else {}))
    if name == "grouped":
        cases = [listed.groups(m, n, h, g)[:2] for m, n, h, g in ((10, 40, 6, 2), (1, 700, 8, 1), (333, 333, 5, 1))]
    else:
        sizes = [(1000, 64), (700, 128), *([(40, 8), (70, 5)] if name == "paged" else [])]
        cases = [listed.pages(count, size, -(-count // size) + 2) for count, size in sizes]
    for args, want in cases:
        if name == "whole_pages":
            args = {k: x.reshape(-1, 1, 16) if k in "KV" else x for k, x in args.items()} | {"page": args["K"].shape[1]}
        out = torch.full(want.shape, -7.0, device="cuda", dtype=torch.float16)
        more = {"LSE": torch.full(want.shape[:2], -7.0, device="cuda")} if name == "grouped" else {}
        p(O=out, **more, **on_gpu(args))
        np.testing.assert_allclose(out.cpu().numpy().astype(float), want, atol=4e-3)
