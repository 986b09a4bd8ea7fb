"""Ranges that are moved and cut off: positions past a limit read as zero and are never written, on every path, whoever owns what lies there."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError

EXAMPLES = Path(__file__).parents[2] / "examples"


def hopper(m: int = 64, n: int = 16, groups: int = 1, **more: Any) -> fc.Schedule:
    return fc.Schedule(tiles={"BLOCK_M": m, "BLOCK_N": n}, warps=4 * groups, math="wgmma", copy="tma", **more)


SCHEDULES = {
    "ada": ("sm_89", fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 16}, warps=2)),
    "ada_vector": ("sm_89", fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 16}, warps=2, copy="vector", stages=1, epilogue="smem")),
    "hopper": ("sm_90a", hopper()),
    "hopper_bulk": ("sm_90a", hopper(128, 16, 2, late="acc", epilogue="tma", persistent="dynamic")),
    "hopper_branch": ("sm_90a", hopper(64, 32, 1, split="branch", epilogue="tma")),
}
BATCHES = [((5, 0, 33, 1, 70), (20, 3, 33, 0, 50)), ((1,), (1,)), ((40, 3), (17, 90)), ((0, 0, 2), (0, 4, 0))]


@pytest.fixture
def ragged(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("ragged_attention")


def drawn(ragged: Any, queries: tuple[int, ...], keys: tuple[int, ...]) -> dict[str, Any]:
    given = ragged.inputs(np.random.default_rng(0), queries, keys, h=2, g=1, d=16)
    return {k: fc.round_to(x, fc.f16) if getattr(x, "dtype", None) == np.float64 else x for k, x in given.items()}


def wide(args: dict[str, Any]) -> dict[str, Any]:
    return {k: x.astype(np.float64) if getattr(x, "dtype", None) == np.float16 else x for k, x in args.items()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_ragged_batch(name: str, ragged: Any) -> None:
    target, schedule = SCHEDULES[name]
    p = ragged.ragged_attention.compile(target=target, schedule=schedule, T=fc.f16, D=16, E=16)
    for seed, (queries, keys) in enumerate(BATCHES):
        args = drawn(ragged, queries, keys)
        want = ragged.reference(**wide(args))["O"]
        for got in (p.interpret(**args)["O"], p.simulate(seed=seed, **args)["O"]):
            np.testing.assert_allclose(got.astype(np.float64), want, atol=3e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rows_next_door_do_not_matter(name: str, ragged: Any) -> None:
    """Zero times NaN is NaN: the rows behind a sequence's last one must arrive as zeros."""
    target, schedule = SCHEDULES[name]
    p = ragged.ragged_attention.compile(target=target, schedule=schedule, T=fc.f16, D=16, E=16)
    args = drawn(ragged, (20, 30, 9), (21, 25, 40))
    want = ragged.reference(**wide(args))["O"]
    for x in (args["K"][21:46], args["V"][21:46], args["Q"][20:50]):
        x[:] = np.nan
    got = p.simulate(**args)["O"].astype(np.float64)
    np.testing.assert_allclose(np.delete(got, np.s_[20:50], 0), np.delete(want, np.s_[20:50], 0), atol=3e-3)
    assert np.isnan(got[25:50]).all(), "its own rows are NaN, but for those that see no key"


@fc.kernel
def shifted(X: "T[M, D]", Y: "inout T[M, D]", Z: "inout f32[M, D]", *, n: "i32", stop: "i32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[(rows - 3).until(stop)])
    fc.store(Y[(rows + n).until(stop)], x)
    fc.atomic_add(Z[(rows + n).until(stop)], x.to(fc.f32))


@pytest.mark.parametrize(("target", "schedule"), [
    ("sm_89", fc.Schedule(tiles={"BM": 16}, warps=2)), ("sm_90a", fc.Schedule(tiles={"BM": 16}, warps=4, epilogue="tma"))])
@pytest.mark.parametrize(("n", "stop"), [(0, 99), (5, 30), (7, 7), (20, 3), (0, -4), (1000, 2000)])
def test_stores_and_sums_end_at_the_limit(target: str, schedule: fc.Schedule, n: int, stop: int) -> None:
    p, rows = shifted.compile(target=target, schedule=schedule, T=fc.f16, D=16), 37
    x = np.arange(1, rows * 16 + 1).reshape(rows, 16).astype(np.float16)
    want = np.full((2, rows, 16), -1.0)
    end = max(0, min(stop, rows))
    for r in range(rows):
        if n + r < end:  # a row of X that is read at or past the limit, or in front, is zero
            row = x[r - 3].astype(float) if 0 <= r - 3 < end else np.zeros(16)
            want[0, n + r], want[1, n + r] = row, row - 1
    for run in (p.interpret, p.simulate):
        args = {"X": x, "Y": np.full((rows, 16), -1, np.float16), "Z": np.full((rows, 16), -1, np.float32), "n": n, "stop": stop}
        got = run(**args)
        np.testing.assert_array_equal(np.stack([got["Y"], got["Z"]]).astype(float), want)


@fc.kernel
def padded(Q: "T[B, M, D]", Count: "i32[B]", O: "inout T[B, M, D]"):
    b, rows = fc.grid(Q.B, fc.tile(Q.M, "BM"))
    fc.store(O[b, rows.until(Count[b])], fc.load(Q[b, rows.until(Count[b])]) * 2.0)


@pytest.mark.parametrize(("target", "more"), [("sm_89", {}), ("sm_90a", {"epilogue": "tma"})])
def test_a_range_may_end_early_where_it_is(target: str, more: dict[str, Any]) -> None:
    p = padded.compile(target=target, schedule=fc.Schedule(tiles={"BM": 16}, warps=4, **more), T=fc.f32, D=8)
    q, counts = np.ones((4, 20, 8), np.float32), np.array([0, 1, 17, 25], np.int32)
    for run in (p.interpret, p.simulate):
        got = run(Q=q, Count=counts, O=np.full(q.shape, 7, np.float32))["O"]
        np.testing.assert_array_equal(got[..., 0], np.where(np.arange(20) < counts[:, None], 2, 7))


@fc.kernel
def other_axis(X: "f32[M]", Y: "inout f32[N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    fc.store(Y[rows], fc.load(X[rows]))


def test_what_runs_over_a_shorter_axis_writes_no_further() -> None:
    p = other_axis.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 16}, warps=1))
    for run in (p.interpret, p.simulate):
        got = run(X=np.ones(5, np.float32), Y=np.full(40, 7, np.float32))["Y"]
        np.testing.assert_array_equal(got, np.where(np.arange(40) < 5, 1, 7))


@pytest.mark.parametrize("name", ["ada", "hopper"])
def test_trials_draw_sequences(name: str, ragged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCGEN_CHECK", "1")
    target, schedule = SCHEDULES[name]
    assert ragged.ragged_attention.compile(target=target, schedule=schedule, T=fc.f16, D=16, E=16).cubin


# ---- what is refused -----------------------------------------------------------------------------------------------------


def spec(body: str) -> Any:
    """A kernel whose rows are loaded as the expression says, and multiplied."""
    def fn(X: "f16[B, H, M, 16]", Y: "f16[M, 16]", Z: "f16[E, 16]", O: "out f32[B, H, M, E]", *, n: "i32"):
        b, h, rows = fc.grid(X.B, X.H, fc.tile(X.M, "BM"))
        x = eval(body, {"fc": fc}, {"X": X, "Y": Y, "rows": rows, "n": n, "b": b, "h": h})
        fc.store(O[b, h, rows], fc.dot(x, fc.load(Z).T))

    return fc.kernel(fn)


@pytest.mark.parametrize(("body", "more", "words"), [
    ("fc.load(X[b, h, rows + n])", {}, ["at most 3 axes", 'copy="cp_async"', "join axes"]),
    ("fc.load(Y[rows + n])", {"from_end": "rows"}, ["is moved"]),
])
def test_what_a_schedule_cannot_do_is_refused(body: str, more: dict[str, Any], words: list[str]) -> None:
    s = fc.Schedule(tiles={"BM": 64}, warps=4, math="wgmma", copy="tma", **more)
    with pytest.raises(FcError) as caught:
        _ = spec(body).compile(target="sm_90a", schedule=s, E=16).machine
    assert caught.value.code == "compile/schedule" and all(w in str(caught.value) for w in words), caught.value


@pytest.mark.parametrize(("body", "words"), [
    ("fc.load(Y[rows + 1.5])", ["fractional number"]), ("fc.load(Y[rows + rows.index])", ["by a whole number", "rows.index"]),
    ("fc.load(Y[rows + rows])", ["range is not a tile"]), ("fc.exp(rows + n)", ["indexes a tensor"]), ("fc.exp(Y[rows + n])", ["not a tile yet"]),
    ("fc.load(Y[rows.until(0.5)])", ["fractional"]), ("fc.gather(Y, rows + n, 0)", ["indexes a tensor"]),
    ("fc.load(Y[fc.tile(rows.index, 'BN')[0]])", ["i32 scalar"]), ("fc.load(Y[fc.tile(Y.M, 'BN')[0.5]])", ["fractional"]),
])
def test_mistakes_are_told(body: str, words: list[str]) -> None:
    with pytest.raises(FcError) as caught:
        spec(body).trace({"BM": 64, "BN": 16}, E=16)
    assert all(w in str(caught.value) for w in words), caught.value


def test_an_output_that_is_cut_off_is_kept() -> None:
    def fn(X: "f32[M]", O: "out f32[M]", *, n: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(O[rows.until(n)], fc.load(X[rows]))

    with pytest.raises(FcError, match="inout"):
        fc.kernel(fn).trace({"BM": 16})


# ---- the compiler's own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "d", "schedule"), [
    ("sm_89", 64, fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 64})),
    ("sm_90a", 128, hopper(128, 128, 2, late="acc", epilogue="tma", persistent="dynamic")),
    *([("sm_89", 128, fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, stages=1, ahead=True)),
       ("sm_90a", 64, hopper(128, 128, 2, late="acc", epilogue="tma", persistent="dynamic"))] if os.environ.get("FCGEN_ALL") else []),
])
def test_nothing_spills(target: str, d: int, schedule: fc.Schedule, ragged: Any) -> None:
    p = ragged.ragged_attention.compile(target=target, schedule=schedule, T=fc.f16, D=d, E=d)
    assert not p.resources.spills
