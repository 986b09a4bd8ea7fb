"""The simulator sees what it should: every fault planted in a kernel of the pipeline shows, and the kernel itself is silent and right.
Two sites of each fault in each kernel are run, and all of them with FCGEN_ALL=1 in the environment."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fcgen.ir.core import Kernel, walk_kernel
from fcgen.ir.text import print_kernel
from fcgen.ir.verify import verify
from fcgen.sim.machine import simulate
from tests.sim.faults import FAULTS, run_mutant

from .cases import CASES, EVERYTHING, sample

RACE, STALE, LEFTOVER, BOUNDS, WRONG = "sim/race", "sim/stale", "sim/leftover", "sim/bounds", "wrong"

#: fault -> codes, one of which each of its mutants must show ("wrong": the numbers)
EXPECTED: dict[str, set[str]] = {
    "drop-barrier": {RACE},
    "drop-syncwarp": {RACE},
    "drop-wait": {STALE, LEFTOVER},
    "weaken-wait": {STALE},
    "drop-commit": {STALE},
    "early-copy": {RACE},
    "fewer-slots": {RACE, STALE},
    "wrong-slot": {RACE, STALE, WRONG},  # with nothing in flight, an old tile is read
    "far-copy": {RACE, STALE},
    "overlap": {RACE, STALE, WRONG},  # one warp's own bytes, in order: only the numbers tell
    "swap-rows": {WRONG, BOUNDS},  # bounds: a row of a block is not 16 aligned bytes
    "flip-trans": {WRONG},
    "unguarded-store": {BOUNDS},
    "unguarded-load": {BOUNDS},
}

#: (fault, cases, pattern of the site, why leaving it out changes nothing): what the compiler puts in and need not.
BENIGN = [
    (
        "drop-wait",
        {"stages-2", "stages-3", "gemm"},
        r"before st_shared tile$",
        "after the loop only empty groups are open; `sync` does not know that a loop of no steps started no copies",
    ),
    ("drop-wait", {"ahead"}, r"^wait_group 1: wait_group$", "the same, at the end of the kernel"),
    (
        "weaken-wait",
        {"stages-2", "stages-3", "gemm", "masked"},
        r"before st_shared tile$",
        "the newest group is the empty one of the last iteration, or of a loop of no steps",
    ),
    ("weaken-wait", {"ahead"}, r"^wait_group 1: wait_group$", "the same"),
    ("weaken-wait", {"wmma"}, r"before wmma_store acc, acc_tile$", "the same"),
    (
        "drop-barrier",
        {"wmma"},
        r"before wmma_store acc, acc_tile$",
        "it follows that wait: the copies that it would order are none, and the last readers of those bytes are behind the loop's own barrier",
    ),
    (
        "early-copy",
        {"stages-2", "stages-3"},
        r"^copies 0: ",
        "in the masked part: without a mask it has one step, so nobody read the slot before (`masked` sees this fault)",
    ),
    (
        "drop-commit",
        {"masked", "wmma"},
        r"^commit_group 0: ",
        "the first load shares the group of the first tiles, which are waited for before either is read",
    ),
    (
        "drop-syncwarp",
        {"wmma"},
        r"^syncwarp (6|12): syncwarp, before st_shared tile$",
        "each lane stores to the elements that it has just read, in one layout; `sync` compares warps, not lanes",
    ),
    (
        "unguarded-load",
        {"stages-2", "stages-3", "masked", "ahead", "wmma"},
        r"^cp_async [3-8]: ",
        "a descending loop starts with the last tile, which the prologue loads: the tiles after it are whole",
    ),
]


def reason(case: str, fault: str, site: str) -> str | None:
    return next((why for f, cases, pattern, why in BENIGN if f == fault and case in cases and re.search(pattern, site)), None)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_silent_and_right(case):
    for seed in range(3):
        for arguments, expected in case.runs(seed)[slice(seed, None, 1 if EVERYTHING or not seed else 3)]:
            result = simulate(case.kernel, arguments, case.program.target, seed=seed)
            assert not result.reports, result.reports[0]
            for name, want in expected.items():
                np.testing.assert_allclose(result.outputs[name].astype(np.float64), want, rtol=4e-3, atol=4e-3, err_msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_mutant_shows(case, fault):
    c = CASES[case]
    runs = c.runs()
    unexpected = []
    for mutant in sample(FAULTS[fault].mutants(c.kernel), case + fault, 2):
        codes = run_mutant(mutant.kernel, runs, c.program.target, stop=True)
        if codes and not codes & EXPECTED[fault]:
            codes = run_mutant(mutant.kernel, runs, c.program.target)
        why = reason(case, fault, mutant.site)
        if why is not None and not codes:
            continue
        if why is not None or not codes & EXPECTED[fault]:
            unexpected.append(f"{mutant.site} ({mutant.loc}): {sorted(codes) or 'not seen'}" + (f"; said to be benign: {why}" if why else ""))
    assert not unexpected, "\n".join(unexpected)


def test_every_benign_site_exists():
    """No line of the table outlives what it is about."""
    for fault, cases, pattern, why in BENIGN:
        for case in cases:
            assert any(re.search(pattern, m.site) for m in FAULTS[fault].mutants(CASES[case].kernel)), (fault, case, why)


def test_table_is_complete():
    assert set(EXPECTED) == set(FAULTS)
    for name, fault in FAULTS.items():
        assert fault.name == name and fault.doc.endswith(".")
        assert any(True for c in CASES.values() for _ in fault.mutants(c.kernel)), f"{name} fits nowhere"


def _count(kernel: Kernel, kind: str) -> int:
    return sum(op.kind == kind for op in walk_kernel(kernel))


@pytest.mark.parametrize("fault", FAULTS)
def test_mutants_are_kernels(fault):
    """Each mutant is well formed, differs from the kernel, from the others, and leaves the kernel as it was."""
    for case in ("stages-2", "wmma"):
        kernel = CASES[case].kernel
        before = print_kernel(kernel)
        texts = []
        for mutant, loc, site in FAULTS[fault].mutants(kernel):
            verify(mutant)
            texts.append(print_kernel(mutant))
            assert site and (loc is None or loc.line > 0)
        assert before not in texts and len(set(texts)) == len(texts)
        assert print_kernel(kernel) == before


@pytest.mark.parametrize(("fault", "kind"), [("drop-barrier", "barrier"), ("drop-wait", "wait_group"), ("drop-commit", "commit_group")])
def test_one_mutant_per_site(fault, kind):
    kernel = CASES["stages-3"].kernel
    mutants = list(FAULTS[fault].mutants(kernel))
    assert len(mutants) == _count(kernel, kind) > 0
    assert all(_count(m.kernel, kind) == len(mutants) - 1 for m in mutants)
