"""Padding never reaches what is stored: the elements that must not matter are poisoned."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.errors import FcError
from fcgen.ir.core import walk_kernel
from fcgen.ir.schedule import Schedule
from fcgen.ir.types import Tile
from fcgen.ir.verify import verify
from fcgen.passes import run_passes
from fcgen.passes.tile import pad, simplify

from .check import same
from .programs import GridAxis, T, attention, f16, f32, kernel, linear, row_norm, scalar, sigmoid_rows, tensor


def shapes(k):
    return {n for o in walk_kernel(k) for v in (*o.operands, *o.results) if isinstance(v.type, Tile) for n in v.type.shape}


@pytest.mark.parametrize("make", [lambda: attention(d=24, e=40), row_norm, sigmoid_rows, linear, lambda: attention(d=1, e=3)])
@pytest.mark.parametrize("first", [False, True])
def test_same_results_and_sizes(make, first):
    before = make()
    k = simplify.run(before, Schedule(), None) if first else before
    after = verify(pad.run(k, Schedule(), None))
    dots = any(o.kind == "dot" for o in walk_kernel(k))
    assert all(n % 16 == 0 or n == 1 or (n & (n - 1) == 0 and not dots) for n in shapes(after))
    for sizes in (dict(M=33, N=20), dict(M=1, N=1)):
        same(before, after, sizes)
    assert pad.run(after, Schedule(), None) is after


@pytest.mark.parametrize("n, wide", [(1, 1), (4, 4), (8, 8), (10, 16), (24, 32), (40, 48), (56, 64), (72, 80), (144, 144), (1000, 1024),
                                     (1008, 1008), (1040, 1152), (1536, 1536), (11008, 11264)])
def test_without_matrix_instructions_sizes_are_shared_out_over_lanes(n, wide):
    """A power of two, or a multiple of 16 that two lanes can hold, stays as it is."""
    k = row_norm(bm=4, d=n)
    assert max(shapes(pad.run(k, Schedule(), None))) == max(4, wide)


def test_aligned_programs_are_left_alone():
    k = attention()
    assert pad.run(k, Schedule(), None) is k


def selects(k):
    return sum(o.kind == "select" for o in walk_kernel(k))


def test_known_zeros_need_no_select():
    """Loads and what scales them are zero in the padding: a dot over it is right as it is."""
    Q, K, O, c = tensor("Q", f16, "M", 24), tensor("K", f16, "N", 24), tensor("O", f32, "M", "N"), scalar("c")

    def body(t: T, mi, ni) -> None:
        from .programs import E

        q = t.load(Q, ("tile", mi * 16), "all", shape=(16, 24), guard=(True, False))
        k = t.load(K, ("tile", ni * 16), "all", shape=(16, 24), guard=(True, False))
        d = (q.to("f32") * E(t, c)).to("f16").dot(k.T)
        t.store(O, d, ("tile", mi * 16), ("tile", ni * 16), guard=(True, True))

    k = kernel("p", [Q, K, O, c], [GridAxis("mi", "M", 16), GridAxis("ni", "N", 16)], {"O": ("out",)}, body)
    after = pad.run(k, Schedule(), None)
    assert selects(after) == 0
    same(k, after, dict(M=20, N=17))


def test_unknown_padding_is_cleared_before_a_dot():
    X, O = tensor("X", f32, "M", 24), tensor("O", f32, "M", 5)

    def body(t: T, mi) -> None:
        x = t.load(X, ("tile", mi * 16), "all", shape=(16, 24), guard=(True, False))
        e = t.fn("log", t.fn("abs", x))  # -inf in the padding
        t.store(O, e.dot(t.full(1.0, 24, 5)), ("tile", mi * 16), "all", guard=(True, False))

    k = kernel("p", [X, O], [GridAxis("mi", "M", 16)], {"O": ("out",)}, body)
    after = pad.run(k, Schedule(), None)
    assert selects(after) == 1
    _, b = same(k, after, dict(M=20))
    assert np.isfinite(b.arrays["O"]).all()


def test_values_carried_by_a_loop_keep_what_is_known():
    """A sum of zero padding stays zero; one that gets something else is cleared where it is reduced."""
    X, O = tensor("X", f32, "M", 24), tensor("O", f32, "M")

    def build(extra: float):
        def body(t: T, mi) -> None:
            def step(i, s):
                return [s + t.load(X, ("tile", i * 16), "all", shape=(16, 24), guard=(True, False)) + extra]

            (s,) = t.loop(t.const(0, "i32"), mi + 1, {"s": t.full(0.0, 16, 24)}, step)
            t.store(O, s.reduce("sum", 1), ("tile", mi * 16), guard=(True,))

        return kernel("p", [X, O], [GridAxis("mi", "M", 16)], {"O": ("out",)}, body)

    for extra, n in ((0.0, 0), (1.0, 1)):
        k = build(extra)
        after = pad.run(k, Schedule(), None)
        assert selects(after) == n
        same(k, after, dict(M=40))


def test_short_runs_cannot_be_stored_beside_matrix_instructions():
    with pytest.raises(FcError, match="multiple of 16"):
        pad.run(sigmoid_rows(bm=8, d=32, e=32), Schedule(), None)
    k = row_norm(bm=8, d=32)
    assert pad.run(k, Schedule(), None) is k


def test_a_pass_that_breaks_a_program_is_named(monkeypatch):
    from dataclasses import replace

    from fcgen import passes

    def broken(k, s, t):
        return k.with_body(replace(k.body, ops=k.body.ops[1:]))

    monkeypatch.setattr(passes, "PIPELINE", (passes.Pass("saw", broken, "takes the first op away"),))
    with pytest.raises(FcError, match="after the pass saw") as e:
        run_passes(row_norm(), Schedule(), None)
    assert "the program:" in e.value.notes


def test_stop_after_must_exist():
    with pytest.raises(FcError, match="no pass has this name"):
        run_passes(row_norm(), Schedule(), None, stop_after="nope")
