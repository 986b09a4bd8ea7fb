# mypy: disable-error-code="name-defined, valid-type, syntax"
"""Products that run ahead of their iteration, or behind it: the same numbers, or a reason why not."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc


@fc.kernel
def spread(X: "f16[M, D]", Y: "f16[N, D]", W: "f16[N, M]", dX: "inout f32[M, D]", dY: "out f32[N, D]", *, shared=False):
    (cols,) = fc.grid(fc.tile(Y.N, "BN"))
    y, dy = fc.load(Y[cols]), fc.var(fc.zeros(cols, Y.D))
    for rows in fc.loop(fc.tile(X.M, "BM")):
        x = fc.load(X[rows])
        s = fc.dot(x, y.T) * 0.5
        p = fc.tanh(s).to(X.dtype)
        dy <<= dy + fc.dot(p.T if shared else fc.load(W[cols, rows]), x)
        dx = fc.dot(p, y)
        fc.atomic_add(dX[rows], dx)
    fc.store(dY[cols], dy)


def compiled(shared: bool, **fields):
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 128}, warps=8, copy="tma", **{"math": "wgmma", "epilogue": "tma", **fields})
    return spread.compile(target="sm_90a", schedule=schedule, D=64, shared=shared)


@pytest.mark.parametrize("fields", [{"early": "s"}, {"behind": "dx"}, {"early": "s", "behind": "dx"}, {"behind": "dx", "late": "dy"}], ids=str)
def test_products_ahead_and_behind_give_the_same_numbers(fields):
    rng = np.random.default_rng(0)
    x, y, w = (rng.standard_normal(shape).astype(np.float16) / 4 for shape in ((88, 64), (136, 64), (136, 88)))
    got = compiled(False, **fields).simulate(X=x, Y=y, W=w, dX=np.zeros((88, 64)))
    p = np.tanh(x.astype(float) @ y.astype(float).T * 0.5)
    assert np.allclose(got["dX"], p @ y, atol=2e-3) and np.allclose(got["dY"], w.astype(float) @ x, atol=2e-3)


@pytest.mark.parametrize(("shared", "fields", "words"), [
    (True, {"behind": "dx"}, "%dx cannot follow an iteration behind: another op reads the tile that its iteration stages for it"),
    (False, {"behind": "dy"}, "%dy cannot follow an iteration behind: it reads no tile that its iteration stages"),
    (False, {"behind": "s"}, "a value cannot follow an iteration behind: it reads no tile that its iteration stages"),
    (False, {"early": "dx"}, "%dx follows from what its own iteration computes")], ids=str)
def test_what_cannot_run_ahead_or_behind_is_refused_at_its_line(shared, fields, words):
    with pytest.raises(fc.FcError) as caught:
        assert compiled(shared, **fields).machine
    assert caught.value.code == "compile/schedule" and words in str(caught.value) and "fc.dot" in str(caught.value)


@pytest.mark.parametrize("field", ["early", "behind"])
def test_products_of_other_instructions_do_not_run_ahead_or_behind(field):
    with pytest.raises(fc.FcError) as caught:
        assert compiled(False, math="mma", **{field: "dx"}).machine
    assert caught.value.message == f"Schedule.{field} has no effect: %dx waits for its result"


def test_products_ahead_of_claimed_tiles_are_refused():
    """A kernel of the backward pass once gave a wrong sum so; nobody knows why."""
    with pytest.raises(fc.FcError, match="not known to be right") as caught:
        assert compiled(False, early="s", persistent="dynamic").machine
    assert caught.value.code == "compile/schedule"
    assert compiled(False, early="s", persistent="static").machine


@pytest.mark.parametrize("fields, says", [
    ({"late": "dy", "early": "s"}, "Schedule.early: %s is issued an iteration ahead already, where %dy runs late"),
    ({"late": "dy", "rolling": "dy"}, "Schedule.rolling: %dy runs late: its left operand is made an iteration before"),
    ({"late": "dx", "behind": "dx"}, "Schedule.behind: %dx runs late: it is an iteration behind")], ids=str)
def test_what_late_leaves_no_room_for_is_said_to_be_its(fields, says):
    with pytest.raises(fc.FcError) as caught:
        assert compiled(True, **fields).machine
    assert caught.value.code == "compile/schedule" and says in str(caught.value) and "fc.dot" in str(caught.value)
