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
FLOATS = RNG.standard_normal(N).astype(np.float32).repeat(20)[:N]
FLOATS[::7], FLOATS[40:60] = np.nan, np.nan
FLAGS = np.repeat(RNG.integers(0, 2, N), 17)[:N].astype(np.uint8)
FAR = 2147483600

wrapped = lambda i, n: (i * n).astype(np.int32)

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
    "documents, dilated": (masks.documents(MIXED[:M], MIXED) & masks.dilated(3),
                           lambda i, j: (MIXED[i] == MIXED[j]) & ((i - j) % 3 == 0), False),
    "neighbours": (masks.neighbourhood((10, 50), 6), lambda i, j: (abs(i // 50 - j // 50) <= 6) & (abs(i % 50 - j % 50) <= 6), False),
    "products": (lambda b, h, i, j: (i * 3 - j * -2 < 400) | ((j - i) % -40 > -5), lambda i, j: (i * 3 + j * 2 < 400) | ((j - i) % -40 > -5), False),
    "numbers of keys": (lambda b, h, i, j: (MIXED[j] * 3 % 4 == 1) & (fc.maximum(i, j) < 450),
                        lambda i, j: (MIXED[j] * 3 % 4 == 1) & (np.maximum(i, j) < 450), False),
    "what weighs more": (lambda b, h, i, j: (FLOATS[j] > 0.2) | (FLAGS[j] == 1), lambda i, j: (FLOATS[j] > 0.2) | (FLAGS[j] == 1), False),
    "what wraps": (lambda b, h, i, j: (i * 1103515245 > j * 12345678) & (i.to(fc.u8) >= (j * 5).to(fc.u8)),
                   lambda i, j: (wrapped(i, 1103515245) > wrapped(j, 12345678)) & (i.astype(np.uint8) >= (j * 5).astype(np.uint8)), False),
    "a number that leaves 32 bits": (lambda b, h, i, j: (i + 2147483647 > 5) & (j * 128 + FAR < 5),
                                     lambda i, j: (wrapped(i + 2147483647, 1) > 5) & (wrapped(j * 128 + FAR, 1) < 5), False),
    "what has no opposite": (lambda b, h, i, j: abs(j + -2147483648) < MIXED[i], lambda i, j: (j == 0) & (MIXED[i] > -1), False),
    "no numbers": (lambda b, h, i, j: ~(FLOATS[i] >= FLOATS[j]), lambda i, j: ~(FLOATS[i] >= FLOATS[j]), False),
    "of one axis": (lambda b, h, i, j: (j - MIXED[j] > i) & (i.to(fc.f32) * 0.5 < 120.0),
                    lambda i, j: (j - MIXED[j] > i) & (i * 0.5 < 120), False),
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
    """By one kernel as well. What tensors hold for rows and for keys has no sum, which may wrap for one element and not for the next; and a float of both axes is
    rounded by each kernel as it likes."""
    small = MIXED.astype(np.uint8)
    for mask, one in ((masks.documents(SORTED), True), (masks.documents(SORTED) & masks.dilated(3), True),
                      (lambda b, h, i, j: small[i] == small[j], True), (lambda b, h, i, j: abs(MIXED[j]) > 3, True),
                      (lambda b, h, i, j: small[i] - small[j] > 1, False), (lambda b, h, i, j: j - MIXED[i] > i, False),
                      (lambda b, h, i, j: (i - j).to(fc.f32) * 0.5 > 1.0, False), (lambda b, h, i, j: (i ^ j) > 5, False),
                      (lambda b, h, i, j: (i - j) // j == 1, False), (lambda b, h, i, j: i * j > 9000, False),
                      (lambda b, h, i, j: i * 1000 * 1000 + j * 3 > 5, False),
                      *((lambda b, h, i, j, d=d: (i - j).to(d) > 3, False) for d in ("u8", "i8", "u32"))):
        found = blocks._lister(functions(mask=mask), "sm_90a", (128, 128), None).find({"keep": mask})[0]
        assert found.tile.name == ("bounded_lists" if one else "lists_of")


def test_a_condition_of_one_axis_is_known_exactly() -> None:
    for name in ("what weighs more",):
        mask, seen, _ = MASKS[name]
        program = bounded_lists.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCKS": 16}, warps=2), check=False, keep=mask,
                                        block=BLOCK, shift=None)
        given = {"List": np.full((1, 1, 10, 30), -1, np.int32), "queries": M, "keys": N}
        out = program.first.interpret(**given, **program.family.bound({"keep": mask})[1])
        want = [c for c in range(30) if seen(0, np.arange(c * 16, min(c * 16 + 16, N))).any()]
        assert [x // 2 for x in out["List"][0, 0, 3, :out["Count"][0, 0, 3]]] == want
