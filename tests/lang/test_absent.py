"""Parameters that may be absent: one spec with and without an output, an input or a scalar."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen import api
from fcgen.build import compiler
from fcgen.runtime import tensors

SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 32}, warps=1)


@fc.kernel
def rows_of(X: "f32[M, D]", Y: "out f32[M, D]", S: "out f32[M] | None", W: f32[M] | None, *, by: "f32 | None"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    x = fc.load(X[rows])
    if W is not None:
        x = x * fc.load(W[rows])
    fc.store(Y[rows], x if by is None else x * by)
    if S is not None:
        fc.store(S[rows], fc.sum(x, axis=1))


@fc.kernel
def plain(X: "f32[M, D]", Y: "out f32[M, D]"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    x = fc.load(X[rows])
    fc.store(Y[rows], x)


def compiled(spec: fc.Spec = rows_of, **absent: None) -> fc.Program:
    return spec.compile(target="sm_89", schedule=SCHEDULE, D=16, **absent)


def test_what_is_absent_leaves_nothing() -> None:
    text = lambda p: re.sub(r"rows_of|plain|//.*", "", compiler.to_cuda(p.machine, p.target).text)
    assert text(compiled(S=None, W=None, by=None)) == text(compiled(plain))


X, W = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32), np.arange(40, dtype=np.float32)


@pytest.mark.parametrize("absent", [(), ("S",), ("W",), ("by",), ("S", "W"), ("S", "W", "by")])
def test_every_choice_is_a_program(absent: tuple[str, ...]) -> None:
    given = {k: v for k, v in {"X": X, "W": W, "by": 2.0}.items() if k not in absent}
    p = compiled(**dict.fromkeys(absent))
    x = X if "W" in absent else X * W[:, None]
    for run in (p.interpret, p.simulate):
        got = run(**given)
        np.testing.assert_allclose(got["Y"], x * (1.0 if "by" in absent else 2.0), rtol=1e-6)
        assert ("S" in got) == ("S" not in absent)
        if "S" in got:
            np.testing.assert_allclose(got["S"], x.sum(1), rtol=1e-5, atol=1e-4)


def test_a_dtype_of_an_absent_tensor_is_not_asked_for() -> None:
    @fc.kernel
    def spec(X: "T[M]", Y: "out T[M]", Z: "S[M] | None"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows], fc.load(X[rows]))

    assert len(spec.compile(target="sm_89", schedule=SCHEDULE, T=fc.f32, Z=None).params) == 2
    with pytest.raises(fc.FcError, match="dtype S is not bound"):
        spec.compile(target="sm_89", schedule=SCHEDULE, T=fc.f32)


def test_only_what_may_be_absent_is() -> None:
    with pytest.raises(fc.FcError, match="no compile-time parameter X"):
        compiled(X=None)
    with pytest.raises(fc.FcError, match="can only be left out") as e:
        compiled(S=True)
    assert "rows_of" in str(e.value.loc.source_line())
    with pytest.raises(fc.FcError, match="has no parameter `S`"):
        compiled(S=None).interpret(X=X, W=W, by=1.0, S=X)


def test_none_for_what_is_absent_is_no_argument() -> None:
    p = compiled(S=None, by=None)
    np.testing.assert_allclose(p.simulate(X=X, W=W, S=None, by=None)["Y"], X * W[:, None], rtol=1e-6)
    with pytest.raises(fc.FcError, match="has no parameter `S`"):
        p.simulate(X=X, W=W, S=W)
    with pytest.raises(fc.FcError, match=r"compile\(W=None\)"):
        tensors.describe(None, "W")


def test_a_call_leaves_out_what_is_none_or_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(api, "_arch", lambda device: "sm_89")
    monkeypatch.setattr(api, "_program", lambda spec, schedule, arch, binding: lambda **given: seen.append((dict(binding), sorted(given))))
    monkeypatch.setattr("fcgen.runtime.tensors.describe", lambda x, name: type("A", (), {"shape": x.shape, "dtype": "f32", "device": 0}))
    rows_of(X, X, None, W, by=2.0)
    rows_of(X, X)
    rows_of(X, X, S=W, by=None)
    assert seen == [({"D": 16, "S": None}, ["W", "X", "Y", "by"]), ({"D": 16, "S": None, "W": None, "by": None}, ["X", "Y"]),
                    ({"D": 16, "W": None, "by": None}, ["S", "X", "Y"])]


def test_a_promise_that_a_scalar_is_positive() -> None:
    def spec(X: "f32[M]", Y: "out f32[M]", *, by: "f32", above=True):
        if above:
            fc.positive(by)
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows], fc.load(X[rows]) * by)

    p, any_sign = (fc.kernel(spec).compile(target="sm_89", schedule=SCHEDULE, above=a) for a in (True, False))
    assert p.tile.flags["by"] == ("positive",) and "by" not in any_sign.tile.flags
    with pytest.raises(fc.FcError, match="must be positive"):
        p.interpret(X=W, by=-1.0)
    np.testing.assert_array_equal(any_sign.interpret(X=W, by=-1.0)["Y"], -W)

    @fc.kernel
    def wrong(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows], fc.positive(fc.load(X[rows])))

    with pytest.raises(fc.FcError, match=r"fc\.positive is for a parameter"):
        _ = wrong.compile(target="sm_89", schedule=SCHEDULE).tile
