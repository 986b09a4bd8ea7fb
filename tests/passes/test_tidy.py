"""tidy: scalar bounds that others imply are gone, and what is left has the same value."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgen.ir.core import Block, Kernel, Role, Value
from fcgen.ir.rewrite import Builder
from fcgen.ir.schedule import Schedule
from fcgen.ir.types import Scalar, i32
from fcgen.passes.machine import tidy

FNS = {"min": min, "max": max}
PARAMS = {n: Value(Scalar(i32), n) for n in "abc"}


def tidied(tree) -> Block:
    """Ops that yield the tree's value, after tidy; a tree is a parameter's name or (fn, tree, tree)."""
    b = Builder()
    make = lambda t: PARAMS[t] if isinstance(t, str) else b.emit(t[0], make(t[1]), make(t[2]))
    b.do("yield", make(tree))
    k = Kernel("k", "machine", tuple(PARAMS.values()), (), (Role("all", 1, b.block()),))
    return tidy.run(k, Schedule(), None).body  # type: ignore[arg-type]


def value(tree, env: dict[str, int]) -> int:
    return env[tree] if isinstance(tree, str) else FNS[tree[0]](value(tree[1], env), value(tree[2], env))


@pytest.mark.parametrize("tree, left", [
    (("min", ("min", ("min", "a", "b"), "c"), "a"), 2),
    (("min", "c", ("min", ("min", "a", "b"), "c")), 2),
    (("max", ("max", "a", "b"), ("max", "b", "a")), 1),
    (("min", ("max", ("max", "a", "b"), "c"), "b"), 0),
    (("min", "a", "a"), 0),
    (("max", ("min", "a", "b"), "c"), 2),
])
def test_bounds_that_others_imply_go(tree, left):
    assert len(tidied(tree).ops) - 1 == left


TREES = st.recursive(st.sampled_from("abc"), lambda t: st.tuples(st.sampled_from(sorted(FNS)), t, t), max_leaves=8)


@given(TREES)
def test_the_value_is_the_same(tree):
    block = tidied(tree)
    for numbers in itertools.product(range(3), repeat=3):
        env = dict(zip(PARAMS, numbers))
        known = {v: env[n] for n, v in PARAMS.items()}
        for op in block.ops[:-1]:
            known[op.result] = FNS[op.kind](*(known[o] for o in op.operands))
        assert known[block.yielded[0]] == value(tree, env)
