"""Lists of the blocks that a mask may see somewhere, made by one kernel from the ends of positions, against every element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen import masks
from fcgen.attend import blocks
from fcgen.attend.variants import functions
from fcgen.kernels.listed import bounded_lists

M, N, BLOCK = 300, 470, (32, 16)
RNG = np.random.default_rng(5)
SORTED = np.sort(RNG.integers(0, 6, N)).astype(np.int64)
MIXED = RNG.integers(0, 6, N).astype(np.int32).repeat(40)[:N]  # in runs, in no order
LENGTHS = np.array([400], np.int32)

#: name -> (mask, what it is in NumPy, whether its lists are exact)
MASKS: dict[str, Any] = {
    "documents": (masks.documents(SORTED[:M], SORTED), lambda i, j: SORTED[i] == SORTED[j], True),
    "documents, padded": (masks.documents(SORTED[:M], SORTED) & masks.padding(LENGTHS),
                          lambda i, j: (SORTED[i] == SORTED[j]) & (j < 400), True),
    "documents in no order": (masks.documents(MIXED[:M], MIXED), lambda i, j: MIXED[i] == MIXED[j], False),
    "other documents": (~masks.documents(SORTED[:M], SORTED), lambda i, j: SORTED[i] != SORTED[j], True),
    "later documents": (lambda b, h, i, j: (SORTED[i] < SORTED[j]) | (j // -7 >= abs(i - 200) - 50),
                        lambda i, j: (SORTED[i] < SORTED[j]) | (j // -7 >= abs(i - 200) - 50), False),
    "a few keys further on": (lambda b, h, i, j: SORTED[i + 3] == SORTED[2 + j // 2],
                              lambda i, j: SORTED[i + 3] == SORTED[2 + j // 2], False),
}


@pytest.mark.parametrize("shift", [None, 100], ids=["all", "causal"])
@pytest.mark.parametrize("name", MASKS)
def test_no_block_is_missing_and_none_is_called_whole(name: str, shift: int | None) -> None:
    mask, seen, exact = MASKS[name]
    program = bounded_lists.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCKS": 16}, warps=2), check=False, keep=mask, block=BLOCK,
                                    **({"shift": None} if shift is None else {}))
    first = getattr(program, "first", program)
    rows, keys = -(-M // BLOCK[0]), -(-N // BLOCK[1])
    captured = {"SORTED": SORTED, "LENGTHS": LENGTHS}
    given = {"List": np.full((1, 1, rows, keys), -1, np.int32), "queries": M, "keys": N, **({} if shift is None else {"shift": shift})}
    values = program.family.bound({"keep": mask})[1] if hasattr(program, "family") else captured
    out = first.interpret(**given, **values)
    i, j = np.arange(M)[:, None], np.arange(N)[None]
    there = seen(i, j) & (True if shift is None else j <= i + shift)
    for r in range(rows):
        part = there[r * BLOCK[0]:(r + 1) * BLOCK[0]]
        tiles = [part[:, c * BLOCK[1]:(c + 1) * BLOCK[1]] for c in range(keys)]
        got = [int(x) for x in out["List"][0, 0, r, :out["Count"][0, 0, r]]]
        whole = {c for c, x in enumerate(tiles) if x.all() and x.shape[1] == BLOCK[1]}
        assert got == sorted(got) and {c for c, x in enumerate(tiles) if x.any()} <= {x // 2 for x in got}
        assert {x // 2 for x in got if x % 2} <= whole
        if exact and shift is None:
            assert got == [2 * c + (c in whole) for c, x in enumerate(tiles) if x.any()]


def test_masks_without_bounds_are_asked_about_every_element() -> None:
    """A remainder has no rule; nor has a float, which may be no number, nor a sum of what tensors hold, which may wrap for one element and
    not for the next."""
    floats, small = SORTED.astype(np.float32), SORTED.astype(np.uint8)
    for mask, one in ((masks.documents(SORTED), True), (masks.documents(SORTED) & masks.dilated(3), False),
                      (lambda b, h, i, j: floats[i] == floats[j], False), (lambda b, h, i, j: small[i] == small[j], True),
                      (lambda b, h, i, j: small[i] - small[j] > 1, False), (lambda b, h, i, j: j - SORTED[j] > i, False),
                      (lambda b, h, i, j: abs(SORTED[j]) > 3, False), (lambda b, h, i, j: -SORTED[j] > i, False)):
        assert (blocks._bounded(functions(mask=mask), "sm_90a", (128, 128), None) is not None) == one
