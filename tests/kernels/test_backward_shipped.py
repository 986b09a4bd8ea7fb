"""The backward schedules that the library runs first on Hopper, simulated against float64: rings go round, tiles are ragged."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen import masks
from fcgen.kernels.backward import LOG2E, backward, backward_in_turn, backward_queries, backward_rows, backward_scores
from fcgen.kernels.backward_schedules import FEW_BYTES, Way, candidates, few_bytes, turned, ways

#: head size, mask, heads of rows for each of keys, tiles of rows that a program walks, whether it adds up dQ too
CASES = [(64, "none", 1, 6, True), (64, "causal_top_left", 1, 4, True), (128, "none", 1, 6, True), (128, "causal_top_left", 1, 4, True),
         (128, "none", 2, 3, True), (128, "causal_top_left", 2, 2, True), (128, "window", 1, 4, True), (64, "none", 1, 3, False),
         (64, "causal_top_left", 1, 3, False),
         (128, "none", 2, 2, False), (128, "causal_top_left", 1, 4, False), (160, "none", 1, 3, False), (256, "none", 1, 2, False),
         (256, "causal_top_left", 1, 3, False)]
#: keys in front of a row's own
WINDOW = 70


def problem(head, mask, group, m, n):
    """Arguments, and the gradients in float64."""
    rng = np.random.default_rng(m)
    q, do, k, v = (rng.standard_normal((1, h, s, head)).astype(np.float16).astype(float) for h, s in ((group, m), (group, m), (1, n), (1, n)))
    scale = head**-0.5
    s = q @ k.swapaxes(2, 3) * scale
    seen = np.tri(m, n, dtype=bool) & ~np.tri(m, n, -WINDOW - 1, dtype=bool) if mask == "window" else np.tri(m, n, dtype=bool)
    s = np.where(seen, s, -np.inf) if mask != "none" else s
    lse = np.log(np.exp(s).sum(-1), where=(seen | (mask == "none")).any(1), out=np.full(s.shape[:-1], np.inf))
    p = np.exp(s - lse[..., None])
    delta = (p @ v * do).sum(-1)
    ds = p * (do @ v.swapaxes(2, 3) - delta[..., None]) * scale
    over = lambda x: x.sum(1, keepdims=True)
    half, single = (lambda x: x.astype(np.float16)), (lambda x: x.astype(np.float32))
    given = {"Q": half(q), "K": half(k), "V": half(v), "dO": half(do), "O": half(p @ v), "LSE": single(lse), "LSE2": single(lse * LOG2E),
             "Delta": single(delta), "scale": scale}
    return given, {"dQ": ds @ k, "dK": over(ds.swapaxes(2, 3) @ q), "dV": over(p.swapaxes(2, 3) @ do)}


@pytest.mark.parametrize("head, mask, group, tiles, adds", CASES)
def test_shipped_schedules_of_hopper(head, mask, group, tiles, adds):
    window, uneven = mask == "window", mask not in ("none", "window")
    schedule = candidates("backward", "sm_90a", head, adds, uneven, group > 1, window)[0]
    facts = {"T": fc.f16, "D": head, "E": head, **({"keep": masks.window(WINDOW, 0)} if window else {"mask": mask})}
    keys = backward.compile(target="sm_90a", schedule=schedule, check=False, **facts, grouped=group > 1, **turned(schedule),
                            **({} if adds else {"dQ": None}))
    rows = [] if adds else [backward_rows.compile(target="sm_90a", schedule=candidates("backward_rows", "sm_90a", head, uneven=uneven)[0], check=False,
                                                  dLSE=None, **facts)]
    keys.quiet = True
    given, want = problem(head, mask, group, tiles * dict(schedule.tiles)["BLOCK_M"] - 7, dict(schedule.tiles)["BLOCK_N"] + 7)
    got = {"dQ": np.zeros(given["Q"].shape, np.float32)} if adds else {}
    for program in (*rows, keys):  # the first of two makes what the other one reads
        takes = {p.name for p in program.params}
        got |= program.simulate(**{n: x for n, x in {**given, **got}.items() if n in takes and (adds or n != "dQ")})
    if adds:
        got["dQ"] = got["dQ"] * given["scale"]  # `rows_after` does that
    for name, exact in want.items():
        assert np.abs(got[name] - exact).max() < 6e-3, name
    assert keys.resources.spill_stores is None or keys.resources.spill_stores <= few_bytes(schedule)


@pytest.mark.parametrize("head, mask", [(64, "none"), (64, "causal_top_left"), (128, "none"), (128, "causal_top_left")])
def test_shipped_schedules_that_add_in_turn(head, mask):
    """Each tile of rows has had as many turns as there are tiles of keys that see it."""
    schedule = candidates("backward_in_turn", "sm_90a", head, uneven=mask != "none")[0]
    program = backward_in_turn.compile(target="sm_90a", schedule=schedule, check=False, T=fc.f16, D=head, E=head, mask=mask)
    program.quiet = True
    m, n = (dict(schedule.tiles)[name] for name in ("BLOCK_M", "BLOCK_N"))
    rows, keys = 256 + m - 7, 2 * n + 7
    given, want = problem(head, mask, 1, rows, keys)
    takes = {p.name for p in program.params}
    sums = np.zeros(given["Q"].shape, np.float32)
    got = program.simulate(**{n: x for n, x in given.items() if n in takes}, dQ=sums, Turns=np.zeros((1, 1, rows), np.int32))
    got["dQ"] = got["dQ"] * given["scale"]
    for name, exact in want.items():
        assert np.abs(got[name] - exact).max() < 6e-3, name
    sees = lambda last: 3 if mask == "none" else min(3, last // n + 1)
    turns = [sees(min(at + m, rows) - 1) if at % m == 0 else 0 for at in range(rows)]
    assert np.array_equal(got["Turns"], np.broadcast_to(turns, got["Turns"].shape))
    spilled = program.resources.spill_stores
    assert ways(head, False, False, 4096, True, True, False) is Way.TURNS and (spilled is None or spilled <= FEW_BYTES)


@pytest.mark.parametrize("head, mask, group, tiles", [(128, "none", 1, 3), (128, "causal_top_left", 2, 3), (128, "window", 1, 4),
                                                      (192, "none", 1, 3), (256, "none", 2, 3), (256, "causal_top_left", 1, 4)])
def test_shipped_schedules_that_leave_gradients_of_scores(head, mask, group, tiles):
    """What the first program skips is no number, and the second one does not add it up."""
    window, uneven = mask == "window", mask not in ("none", "window")
    facts = {"T": fc.f16, "D": head, **({"keep": masks.window(WINDOW, 0)} if window else {"mask": mask})}
    of = lambda spec, **more: first_that_fits(spec, candidates(spec.name, "sm_90a", head, True, uneven, group > 1, window), {**facts, **more})
    keys, queries = of(backward_scores, E=head, grouped=group > 1), of(backward_queries)
    rows, wide = tiles * dict(keys.schedule.tiles)["BLOCK_M"] - 7, 128 + 7
    given, want = problem(head, mask, group, rows, wide)
    takes = {p.name for p in keys.params}
    got = keys.simulate(**{n: x for n, x in given.items() if n in takes}, dS=np.full((1, group, wide, rows), np.nan, np.float16))
    got |= queries.simulate(dS=got["dS"], K=given["K"], scale=given["scale"])
    for name, exact in want.items():
        assert np.abs(got[name] - exact).max() < 6e-3, name


def first_that_fits(spec, schedules, facts):
    for schedule in schedules:
        try:
            program = spec.compile(target="sm_90a", schedule=schedule, check=False, **facts)
            program.quiet = True
            assert program.resources.spill_stores is None or program.resources.spill_stores <= FEW_BYTES
            return program
        except fc.FcError as e:
            assert e.code.startswith("compile/")
    raise AssertionError(schedules)


@pytest.mark.parametrize("head, rows", [(40, 128), (64, 128), (96, 64), (128, 64)])
def test_masks_that_functions_say_take_the_tiles_of_their_head_size(head, rows):
    assert dict(candidates("backward", "sm_90a", head, masked=True)[0].tiles)["BLOCK_M"] == rows
