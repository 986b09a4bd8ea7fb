"""The simulator on a pipelined matrix product: silent and right as it should be, and a formula for what each omission must show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fcgen.build.compiler import target
from fcgen.sim.machine import simulate
from tests.sim.faults import FAULTS, run_mutant
from tests.work import calls

from .gemm import draw, gemm
from .test_faults import EXPECTED

TARGET = target("sm_89")


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_silent_and_right(stages, whole):
    kernel = gemm(stages)
    for steps, seed in itertools.product(range(1, 6), range(2)):
        arguments, expected = draw(seed, steps, whole)
        r = simulate(kernel, arguments, TARGET, seed=seed)
        assert not r.reports, r.reports[0]
        np.testing.assert_allclose(r.outputs["C"], expected["C"], rtol=1e-3, atol=1e-3)


SWITCHES = ("wait", "full", "commit", "empty")


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=4)), ids=lambda on: "".join("01"[x] for x in on))
def test_truth_table(stages, on):
    """A tile is complete if waited for, in a group, and passed on by a barrier; its slot is free once a barrier follows its readers. The
    first tiles are committed in any case, and a slot is only taken again if there are more tiles than slots."""
    wait, full, commit, empty = on
    kernel = gemm(stages, **dict(zip(SWITCHES, on)))
    for steps, seed in itertools.product(range(1, 2 * stages + 2), range(3)):
        clean = wait and full and (commit or steps == 1) and (empty or steps <= stages)
        r = simulate(kernel, draw(0, steps)[0], TARGET, seed=seed)
        assert (not r.reports) == clean, (on, steps, [str(e) for e in r.reports])
        codes = {e.code for e in r.reports}
        missing = [s for s, x in zip(SWITCHES, on) if not x]
        if clean or len(missing) != 1:
            continue
        if missing == ["wait"]:
            assert {"sim/stale", "sim/leftover"} <= codes
        if missing == ["full"]:
            assert codes == {"sim/race"}
        if missing == ["commit"]:
            assert "sim/stale" in codes and ("sim/leftover" in codes) == (steps > 1)
        if missing == ["empty"]:
            assert codes == {"sim/race"}  # whichever comes first, the copy or the reader


def test_words():
    """What a report of a race says: both sides with op, warp and line; the place; what to try."""
    e = simulate(gemm(2, full=False), draw(0, 1)[0], TARGET).reports[0]
    earlier, later = e.notes
    assert "role main, warp" in earlier and "cp_async A, a" in earlier and "gemm.py:" in earlier
    assert "role main, warp" in later and "fa = ldmatrix a" in later and e.loc is not None and f"gemm.py:{e.loc.line}" in later
    assert "a[slot 0] row" in e.message and "barrier" in e.hint


@pytest.mark.parametrize("fault", FAULTS)
def test_every_mutant_shows(fault):
    kernel = gemm(2)
    runs = [draw(0, steps, whole) for steps in (5, 2, 1) for whole in (True, False)]
    for mutant in FAULTS[fault].mutants(kernel):
        codes = run_mutant(mutant.kernel, runs, TARGET)
        assert codes & EXPECTED[fault], f"{mutant.site} ({mutant.loc}): {sorted(codes) or 'not seen'}"


def test_fast():
    """4 programs of 8 steps: what a laptop should do while one reads the message before."""
    kernel, (arguments, _) = gemm(2), draw(0, 8)
    simulate(kernel, arguments, TARGET)
    assert calls(lambda: simulate(kernel, arguments, TARGET)) < 50_000  # 13,500 when this was written
