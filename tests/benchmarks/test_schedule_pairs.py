"""A sample of the pairs of schedule fields; `benchmarks/schedule_pairs.py` runs all of them."""

from __future__ import annotations

import random

import pytest

from benchmarks.schedule_pairs import BASES, SPECS, Case, cases, verdict

EVERY = list(cases())


def test_every_field_of_a_schedule_is_in_the_pairs() -> None:
    from dataclasses import fields

    from benchmarks.schedule_pairs import options
    from fcgen.ir.schedule import Schedule

    for spec in SPECS.values():
        assert set(options(spec)) == {f.name for f in fields(Schedule)}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
def test_a_pair_of_fields_is_right_or_refused_in_words(spec: str, target: str) -> None:
    mine = [c for c in EVERY if c.spec == spec and c.target == target]
    for case in random.Random(f"{spec} {target}").sample(mine, 6):
        kind, said = verdict(case)
        assert kind != "bug", f"{case}: {said}"


def test_a_field_that_asks_for_something_changes_the_program_or_is_refused() -> None:
    mine = [c for c in EVERY if c.base is not None and c.spec != "attention"]
    assert len(mine) > 100
    for case in random.Random("idle").sample(mine, 30):
        kind, said = verdict(case, simulate=False)
        assert kind != "bug", f"{case}: {said}"


@pytest.mark.parametrize("spec, base, more", [
    ("attention", ("sm_90a", "wgmma"), {"math": "fma"}), ("attention", ("sm_90a", "mma"), {"math": "wgmma"}),
    ("attention", ("sm_90a", "mma"), {"math": "wgmma", "stages": 1, "ahead": True}), ("attention", ("sm_89", "mma"), {"math": {"s": "fma"}}),
    ("attention", ("sm_89", "mma"), {"math": {"s": "wmma", "acc": "fma"}}), ("gated", ("sm_90a", "wgmma"), {"warps": 8, "reuse_frags": False})])
def test_pairs_that_were_bugs(spec: str, base: tuple[str, str], more: dict) -> None:
    tiles = SPECS[spec].tiles[1 if more.get("warps") == 8 else 0]
    kind, said = verdict(Case(spec, base[0], tuple({"tiles": tiles, **BASES[base], **more}.items())))
    assert kind != "bug", said
