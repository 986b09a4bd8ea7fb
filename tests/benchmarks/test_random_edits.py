"""The campaign of random edits, in small: every kind has a place, an edit is the same twice, and a few of each kernel family run to a verdict."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from benchmarks.edits import EDITS
from benchmarks.random_edits import edited, program, reason, run, shipped, sound
from fcgen.compiler import from_text
from fcgen.errors import FcError

KERNELS = ("sm_90a ROWS 0", "sm_90a ROWS 3", "sm_89 wmma 0", "example gemm")


def test_every_kind_has_a_place_and_is_an_edit() -> None:
    assert len(EDITS) >= 36
    machines = {name: program(name)[0].machine for name in KERNELS}
    nowhere = [kind for kind, make in EDITS.items() if all(make(m, np.random.default_rng(5)) is None for m in machines.values())]
    assert nowhere in ([], ["cluster"], ["multicast"])  # the library's kernels have no clusters
    for kind in list(EDITS)[::8]:
        made = next(m for m in (EDITS[kind](machine, np.random.default_rng(5)) for machine in machines.values()) if m is not None)
        with contextlib.suppress(FcError):  # refused is an answer
            from_text(str(made[0]), "edited.fc")


def test_an_edit_is_a_function_of_kernel_seed_and_number() -> None:
    first, again = edited("example gemm", 3, 4), edited("example gemm", 3, 4)
    assert first is not None and again is not None
    assert first[:2] == again[:2] and str(first[2]) == str(again[2]) != str(program("example gemm")[0].machine)
    assert len({edited("example gemm", 3, n)[0] for n in range(20)}) > 10  # type: ignore[index]


@pytest.mark.parametrize("kernel", ["example gemm", "sm_90a SMALL 0"])
def test_a_few_edits_come_to_a_verdict(kernel: str) -> None:
    outcomes = [run(kernel, 11, n) for n in range(3)]
    assert {o.verdict for o in outcomes} <= {"refused", "reported", "silent", "no edit"}, outcomes
    assert all(o.code for o in outcomes if o.verdict in ("refused", "reported")) and all(o.kind in EDITS for o in outcomes)


def test_kernels_as_they_are_have_nothing_to_report() -> None:
    assert len(shipped()) > 40
    assert sound("sm_89 mma 0", 2) == sound("example softmax", 4) == []


def test_a_harmless_edit_has_a_reason_or_none() -> None:
    assert reason("double an op that orders", "main: wait_group 3 () -> gone") and reason("count", "k_full") is None
