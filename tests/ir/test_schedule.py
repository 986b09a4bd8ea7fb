"""A schedule prints as text that parses back to the same value; whatever else is written is refused with words, never evaluated."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgen.errors import FcError
from fcgen.ir.schedule import CHOICES, Schedule
from fcgen.ir.schedule import NAMES as SEVERAL

NAMES = st.sampled_from(["BLOCK_M", "BLOCK_N", "k", "acc", "s2", "_x"])
TILES = st.one_of(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256]), st.integers(1, 20).map(lambda n: 16 * n))


def by_name(one: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(one, st.dictionaries(NAMES, one, min_size=1, max_size=3))


SCHEDULES = st.builds(
    Schedule, tiles=st.dictionaries(NAMES, TILES, max_size=3), warps=st.sampled_from([1, 2, 4, 8, 16]),
    math=by_name(st.sampled_from(CHOICES["math"])), copy=st.sampled_from(CHOICES["copy"]), stages=by_name(st.integers(1, 8)),
    cluster=st.dictionaries(NAMES, st.sampled_from([1, 2, 4, 8]), max_size=1), min_blocks=st.integers(1, 32), l2=st.integers(0, 99),
    **{name: st.sampled_from(CHOICES[name]) for name in ("epilogue", "split", "persistent")},
    **{name: st.lists(NAMES, max_size=2, unique=True).map(tuple) for name in SEVERAL},
    **{f.name: st.booleans() for f in fields(Schedule) if isinstance(f.default, bool)})


@settings(max_examples=300, deadline=None)
@given(SCHEDULES)
def test_a_schedule_is_its_own_text(schedule: Schedule) -> None:
    again = Schedule.parse(str(schedule))
    assert again == schedule and hash(again) == hash(schedule) and str(again) == str(schedule)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="tilesmah={}:, 12-TrueABCK_x", max_size=60)))
def test_any_other_text_is_a_schedule_or_an_error_of_ours(text: str) -> None:
    try:
        schedule = Schedule.parse(text)
    except FcError as error:
        assert error.code == "compile/schedule"
    else:
        assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(("text", "words"), [
    ("tile={A: 16}", "did you mean tiles?"), ("stage=2", "did you mean stages?"), ("warps", "has no value"), ("tiles=5", "BLOCK_M: 128"),
    ("tiles={A: 16", "braces"), ("tiles={{A: 16}}", "braces"), ("tiles={A}", "each name once"), ("tiles={A: 16, A: 32}", "each name once"),
    ("tiles={A: x}", "power of two"), ("tiles={A: True}", "power of two"), ("stages=2, stages=3", "given twice"), ("stages=True", "1 to 8"),
    ("min_blocks=--5", "1 to 32"), ("min_blocks=0", "1 to 32"), ("warps=True", "1, 2, 4, 8, 12 or 16"), ("ahead=1", "True or False"),
    ("copy={k: vector}", "takes one value"), ("cluster=2", "{rows: 2}"), ("cluster={rows: 3}", "1, 2, 4 or 8"),
    ("cluster={rows: 2, cols: 2}", "along one axis"), ("math=tensor", "mma, wmma, fma"), ("tiles={A: 16} x", "each name once"),
    ("__class__=1", "no field"), ("late=acc+acc", "each once"), ("early=s+", "each once"), ("behind=+", "each once"), ("warps=__import__('os').getpid()", "1, 2, 4, 8, 12 or 16")])
def test_slips_are_named(text: str, words: str) -> None:
    with pytest.raises(FcError) as caught:
        Schedule.parse(text)
    assert caught.value.code == "compile/schedule" and words in str(caught.value)


WRONG = [None, "x", "", -1, 0, 10**20, 2.5, True, [], {}, (), (1, 2), ("a", "b"), {"A": None}, {"A B": 16}, {"A": "x\ny"}, {3: 16}, object(), [16], ("a\nb",),
         {"A": 10**20}, {"A": [2]}, ((("A", 2), 3),), b"mma", float("nan"), np.array([1, 2]), np.array("mma"),
         (("A", 16), ("A", 32))]


@pytest.mark.parametrize("field", [f.name for f in fields(Schedule)])
def test_every_field_with_every_kind_of_thing(field: str) -> None:
    """A schedule that prints and parses again, or a refusal that names the field."""
    for value in WRONG:
        try:
            schedule = Schedule(**{field: value})
        except FcError as e:
            assert e.code == "compile/schedule" and f"Schedule.{field} " in e.message and e.expected, str(e)
        else:
            assert Schedule.parse(str(schedule)) == schedule and hash(schedule) == hash(Schedule(**{field: value}))


@pytest.mark.parametrize("text", [None, 5, b"warps=4", ["warps=4"]])
def test_what_is_no_text_is_not_parsed(text: object) -> None:
    with pytest.raises(FcError, match="reads text"):
        Schedule.parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["tiles", "stages", "grid"])
def test_a_name_has_one_value(field: str) -> None:
    one = (1, 1) if field == "grid" else 1
    with pytest.raises(FcError, match="one value for each name"):
        Schedule(**{field: (("A", one), ("A", one))})


def test_fields_that_do_not_exist() -> None:
    for make in (lambda: Schedule(stage=2), lambda: replace(Schedule(), stage=2)):
        with pytest.raises(FcError) as caught:
            make()
        assert caught.value.code == "compile/schedule" and "did you mean stages?" in str(caught.value)
    with pytest.raises(FcError, match="did you mean cp_async"):
        Schedule(copy="cp_asinc")
    assert pickle.loads(pickle.dumps(Schedule(warps=8))) == copy.deepcopy(Schedule(warps=8)) == Schedule(warps=8)
