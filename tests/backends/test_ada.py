"""Instruction records against the PTX tables, and budgets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fcgen.backends as backends
from fcgen.backends.budget import check_budget
from fcgen.backends.targets.ada import INSTRS, TARGETS
from fcgen.errors import FcError
from fcgen.ir.verify import verify

from .programs import gemm, two_dots


def test_mma_maps_are_the_tables():
    """PTX ISA, Matrix Fragments for mma.m16n8k16: the formulas of the tables, register by register."""
    rec = INSTRS["mma_m16n8k16_f16"]
    a, b, c = rec.a.coords(1)[0], rec.b.coords(1)[0], rec.c.coords(1)[0]
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(8):
            assert tuple(a[lane, i]) == (group + (8 if i in (2, 3, 6, 7) else 0), thread * 2 + i % 2 + (8 if i >= 4 else 0))
        for i in range(4):
            assert tuple(b[lane, i]) == (thread * 2 + i % 2 + (8 if i >= 2 else 0), group)
            assert tuple(c[lane, i]) == (group + (8 if i >= 2 else 0), thread * 2 + i % 2)


def test_mma_effect_is_the_product():
    rec, rng = INSTRS["mma_m16n8k16_bf16"], np.random.default_rng(1)
    a, b, c = (rng.standard_normal(s).astype(np.float32) for s in ((16, 16), (16, 8), (16, 8)))
    regs = [m[tuple(np.moveaxis(lay.coords(1)[0], -1, 0))] for m, lay in ((a, rec.a), (b, rec.b), (c, rec.c))]
    out = rec.effect(*regs)
    at = np.moveaxis(rec.c.coords(1)[0], -1, 0)
    np.testing.assert_allclose(out, (c + a.astype(np.float64) @ b)[tuple(at)], rtol=1e-6)


def test_ldmatrix_effect():
    blocks = np.arange(4 * 64).reshape(4, 8, 8)
    plain, trans = INSTRS["ldmatrix_x4"].effect(blocks), INSTRS["ldmatrix_x4_trans"].effect(blocks)
    assert plain[5, 3] == blocks[1, 1, 3] and trans[5, 3] == blocks[1, 3, 1]


def test_records_hold_one_instruction_and_no_program():
    for rec in INSTRS.values():
        assert rec.doc and rec.body.count("asm") <= 1 and "for (" not in rec.body and "while" not in rec.body


def test_a_record_calls_those_before_it():
    """So that all of them, printed in order, are one module."""
    for records in (INSTRS, TARGETS["sm_80"].instrs):
        names = list(records)
        for n, rec in enumerate(records.values()):
            assert [x for x in names[n:] if re.search(rf"\b{x}\(", rec.body)] == [], rec.name


def test_every_family_member_has_its_limits():
    assert {a: (t.smem_per_block, t.smem_per_sm) for a, t in TARGETS.items()} == {
        "sm_80": (166912, 167936),
        "sm_86": (101376, 102400),
        "sm_89": (101376, 102400),
        "sm_90": (232448, 233472),
    }
    assert TARGETS["sm_89"].matrix_instr("mma", "bf16").name == "mma_m16n8k16_bf16"


def test_backends_know_no_application():
    for path in Path(backends.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8").lower()
        for word in ("attention", "softmax", "causal", "query", "flash", "kv_len"):
            assert word not in text, f"{path.name} says {word}"
        assert len(text.splitlines()) < 400, path.name
        for line in re.findall(r"^\s*(?:from|import) (\S+)", text, re.M):
            assert line.split(".")[0] in (
                "",
                *["__future__", "numpy", "collections", "contextlib", "dataclasses", "typing", "math", "re", "itertools", "hashlib", "functools",
                  "unicodedata"],
            ), line


def test_budget_counts():
    use = check_budget(verify(two_dots()), TARGETS["sm_89"])
    assert use.smem_bytes == 49152 and use.threads == 128 and 160 <= use.fragment_regs <= 230


@pytest.mark.parametrize(
    "kernel, words",
    [
        (lambda: gemm(128, 128, 128, stages=4), ("shared memory", "Schedule.stages", "4 slots")),
        (lambda: two_dots(m=128, n=128, d=64), ("registers", "Schedule.tiles", "hold_a")),
        (lambda: two_dots(min_blocks=3), ("shared memory of a multiprocessor", "min_blocks")),
        (lambda: gemm(warps=64, m=1024), ("threads", "Schedule.warps")),
    ],
)
def test_budget_names_the_field(kernel, words):
    with pytest.raises(FcError) as e:
        check_budget(kernel(), TARGETS["sm_89"])
    assert e.value.code == "compile/budget"
    for w in words:
        assert w in str(e.value)
