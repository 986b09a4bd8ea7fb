"""Functions given to a spec hold numbers, arrays and other functions: numbers are scalars of a launch, arrays are parameters, and what
Python itself uses is part of what the kernel is."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.build import captured

SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 32}, warps=1)
ALPHA = 3.0
TABLE = np.arange(4, dtype=np.float32)


@fc.kernel
def mapped(X: "f32[M, D]", Y: "out f32[M, D]", *, f):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    fc.store(Y[rows], f(fc.load(X[rows]), rows.index))


def program(f: Any) -> fc.Program:
    return mapped.compile(target="sm_89", schedule=SCHEDULE, D=16, f=f)


X = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)


def result(p: fc.Program) -> np.ndarray:
    got = p.interpret(X=X)["Y"]
    np.testing.assert_allclose(p.simulate(X=X)["Y"], got, rtol=1e-5, atol=1e-6)
    return got


def scaled(a: Any) -> Any:
    return lambda x, i: x * a


def test_a_number_is_a_scalar_of_the_launch() -> None:
    p, q = program(scaled(2.0)), program(scaled(5.0))
    assert [str(v.type) for v in p.tile.params[2:]] == ["f32"] and p.params == p.tile.params[:2]
    assert p.first is q.first, "one kernel for all numbers"
    np.testing.assert_array_equal(result(p), X * 2)
    np.testing.assert_array_equal(result(q), X * 5)


def test_a_number_that_changes_is_read_at_the_call() -> None:
    a = 2.0
    p = program(lambda x, i: x * a)
    np.testing.assert_array_equal(result(p), X * 2)
    a = 7.0
    np.testing.assert_array_equal(result(p), X * 7)
    assert len(p.family._known) == 1
    a = 7  # an int computes with ints
    np.testing.assert_array_equal(result(p), X * 7)


@pytest.mark.parametrize("known", [False, True])
def test_what_reading_a_value_raises_is_told_at_each_call(known: bool) -> None:
    """Also where the program is known, and what its functions hold is read by a text that was written for it."""
    class Holder:
        by, broken = 2.0, not known

        @property
        def scale(self) -> float:
            if self.broken:
                raise ZeroDivisionError("no scale today")
            return self.by

    held = Holder()
    f = lambda x, i: x * held.scale
    if known:
        p = program(f)
        np.testing.assert_array_equal(result(p), X * 2)
        held.broken = True
        call = lambda: p.interpret(X=X)
    else:
        call = lambda: program(f).interpret(X=X)
    with pytest.raises((fc.FcError, ZeroDivisionError), match="no scale today"):
        call()
    held.broken = False
    np.testing.assert_array_equal(call()["Y"], X * 2)


def test_numbers_compute_as_in_python() -> None:
    n, h = 3, 0.1
    f = lambda x, i: x * (n / 2 + h * 10) + (-n // 2) * abs(h - 1)
    np.testing.assert_allclose(result(program(f)), X * (n / 2 + h * 10) + (-n // 2) * abs(h - 1), rtol=1e-6)
    assert len(program(f).tile.params) == 4


def test_a_number_takes_the_dtype_of_what_it_meets() -> None:
    n = 2
    p = program(lambda x, i: fc.where(i < n, x * n, x))
    assert sorted(str(v.type) for v in p.tile.params[2:]) == ["f32", "i32"]
    np.testing.assert_array_equal(result(p), np.where(np.arange(40)[:, None] < 2, X * 2, X))
    third = 1 / 3
    half = program(lambda x, i: (x.to(fc.f16) * third).to(fc.f32))
    np.testing.assert_array_equal(result(half), (X.astype(np.float16) * np.float16(third)).astype(np.float32))


def test_what_python_uses_is_part_of_the_kernel() -> None:
    n = 2

    def f(x: Any, i: Any) -> Any:
        for _ in range(n):
            x = x + 1.0
        return x

    p = program(f)
    assert len(p.tile.params) == 2
    np.testing.assert_allclose(result(p), X + 2, rtol=1e-6)
    n = 5
    np.testing.assert_allclose(result(p), X + 5, rtol=1e-6)
    n = 2
    result(p)
    assert len(p.family._known) == 2, "the first program is found again"


def test_only_the_outcome_of_a_comparison_is_part_of_the_kernel() -> None:
    a = 2.0
    p = program(lambda x, i: x * a if a > 1 and a else x - a)
    for a in (3.0, 0.5, 0.25, 9.0):
        np.testing.assert_allclose(result(p), X * a if a > 1 else X - a, rtol=1e-6)
    assert len(p.family._known) == 2


@pytest.mark.parametrize("word", ["sqrt", "exp", "floor"])
def test_pythons_own_functions_of_a_number(word: str) -> None:
    a = 2.5
    p = program(lambda x, i: x * getattr(math, word)(a))
    np.testing.assert_allclose(result(p), X * getattr(math, word)(2.5), rtol=1e-6)
    a = 4.0
    np.testing.assert_allclose(result(p), X * getattr(math, word)(4.0), rtol=1e-6)


def test_defaults_globals_partial_and_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    def helper(x: Any) -> Any:
        return x * ALPHA

    def f(x: Any, i: Any, b: float = 0.5, *, c: float) -> Any:
        return helper(x) * b + c

    p = program(functools.partial(f, c=4.0))
    assert len(p.tile.params) == 5
    np.testing.assert_allclose(result(p), X * 3 * 0.5 + 4, rtol=1e-6)
    monkeypatch.setitem(globals(), "ALPHA", 2.0)
    np.testing.assert_allclose(result(p), X * 2 * 0.5 + 4, rtol=1e-6)
    assert len(p.family._known) == 1


@dataclass
class Slope:
    table: np.ndarray
    by: float = 2.0
    scales: tuple[float, ...] = (1.0, 3.0)

    def at(self, i: Any) -> Any:
        return self.table[i] * self.by

    def __call__(self, x: Any, i: Any) -> Any:
        return x + self.at(i // 10) * self.scales[1]


def test_attributes_of_objects() -> None:
    s = Slope(TABLE)
    p, want = program(s), lambda: X + (s.table[np.arange(40) // 10] * s.by * s.scales[1])[:, None].astype(np.float32)
    np.testing.assert_allclose(result(p), want(), rtol=1e-6)
    s.by, s.table, s.scales = 0.5, TABLE * 7, (0.0, 2.0)
    np.testing.assert_allclose(result(p), want(), rtol=1e-6)
    assert len(p.family._known) == 1
    np.testing.assert_allclose(result(program(s.__call__)), want(), rtol=1e-6)


class Settings:
    by, most = 2.0, 3

    @staticmethod
    def cut(x: Any) -> Any:
        return fc.minimum(x, Settings.by)


class Base:
    scale = 3.0

    def __call__(self, x: Any, i: Any) -> Any:
        return x * self.scale


class Derived(Base):
    def __call__(self, x: Any, i: Any) -> Any:
        assert isinstance(self, Derived) and isinstance(Slope(TABLE), Slope)
        return super().__call__(x, i) + Settings.by


def test_classes_and_what_they_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = program(lambda x, i: Settings.cut(x) * Settings.most), program(Derived())
    for by, scale in ((2.0, 3.0), (0.5, -1.0)):
        monkeypatch.setattr(Settings, "by", by)
        monkeypatch.setattr(Base, "scale", scale)
        np.testing.assert_allclose(result(p), np.minimum(X, by) * 3, rtol=1e-6)
        np.testing.assert_allclose(result(q), X * scale + by, rtol=1e-5, atol=1e-6)
    assert len(p.family._known) == len(q.family._known) == 1


def test_arrays_are_parameters_bound_at_the_call() -> None:
    bias = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    row = 2
    p = program(lambda x, i: x + bias[row, i])
    assert [str(v.type) for v in p.tile.params[2:]] == ["tensor f32[f_0_0, f_0_1]", "i32"]
    np.testing.assert_array_equal(result(p), X + bias[2][:, None])
    bias = bias[::2] + 1
    row = 1
    np.testing.assert_array_equal(result(p), X + bias[1][:, None])
    assert len(p.family._known) == 1
    bias = bias.astype(np.float16)  # of another dtype: another kernel
    with pytest.raises(fc.FcError, match="dtype"):
        result(p)


def test_an_array_that_is_used_whole_fixes_its_sizes() -> None:
    w = np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)
    p = program(lambda x, i: x + fc.sum(fc.dot(x.to(fc.f16), fc.load(w[:, :]).to(fc.f16)), axis=1))
    assert str(p.tile.params[2].type) == "tensor f32[16, 16]"
    want = lambda: X + (X.astype(np.float16).astype(np.float32) @ w.astype(np.float16).astype(np.float32)).sum(1, keepdims=True)
    np.testing.assert_allclose(result(p), want(), atol=2e-2)
    w = w[:, :8]  # another size: another kernel
    np.testing.assert_allclose(result(p), want(), atol=2e-2)


def test_sizes_of_arrays() -> None:
    t = TABLE
    p = program(lambda x, i: x + t[i % t.shape[0]])
    np.testing.assert_array_equal(result(p), X + TABLE[np.arange(40) % 4][:, None])
    t = np.arange(7, dtype=np.float32)
    np.testing.assert_array_equal(result(p), X + t[np.arange(40) % 7][:, None])
    assert len(p.family._known) == 1


def test_functions_of_one_program_share_a_kernel_whatever_they_are_called() -> None:
    def one(x: Any, i: Any) -> Any:
        doubled = x * 2.0
        return doubled + ALPHA

    beta = 4.0
    other = lambda y, j: y * 2.0 + beta
    p, q = program(one), program(other)
    assert p.first is q.first and p.built is q.built
    np.testing.assert_array_equal(result(q), X * 2 + 4)
    assert program(lambda x, i: x * 2.5 + beta).first is not p.first, "a number of the source is no captured one"


def test_two_names_for_one_array_are_told_apart_when_they_are_two() -> None:
    a = b = TABLE
    p = program(lambda x, i: x + a[i // 10] * b[i // 10])
    want = lambda: X + (a * b)[np.arange(40) // 10][:, None]
    np.testing.assert_allclose(result(p), want(), rtol=1e-6)
    b = TABLE + 5
    np.testing.assert_allclose(result(p), want(), rtol=1e-6)


def test_another_function_is_another_program() -> None:
    inner = lambda x: x * 2.0
    p = program(lambda x, i: inner(x))
    np.testing.assert_array_equal(result(p), X * 2)
    inner = lambda x: x - 1.0
    np.testing.assert_array_equal(result(p), X - 1)


def test_a_function_that_calls_itself() -> None:
    def f(x: Any, i: Any, depth: int = 3) -> Any:
        return x if depth == 0 else f(x * 2.0, i, depth - 1)

    np.testing.assert_array_equal(result(program(f)), X * 8)


def test_lists_dicts_and_functions_in_tuples() -> None:
    weights, names, both = [2.0, 3.0], {"a": 5.0}, (abs, lambda x: x * 2.0)
    p = program(lambda x, i: both[1](x) * weights[1] + names["a"])
    np.testing.assert_allclose(result(p), X * 6 + 5, rtol=1e-6)
    weights.append(1.0)
    weights[1], names["a"] = 4.0, 1.0
    np.testing.assert_allclose(result(p), X * 8 + 1, rtol=1e-6)


def test_numpys_numbers() -> None:
    a = np.float32(1.5)
    np.testing.assert_array_equal(result(program(lambda x, i: x * a)), X * a)
    b = np.array(2.0)
    np.testing.assert_array_equal(result(program(lambda x, i: x * b + np.float64(1.0))), X * 2 + 1)


CALLS: list[int] = []
COUNT = 0


def counted(x: Any, i: Any) -> Any:
    global COUNT
    COUNT += 1
    return x


def appended(x: Any, i: Any) -> Any:
    CALLS.append(1)
    return x


def changed(s: Slope) -> Any:
    def f(x: Any, i: Any) -> Any:
        s.by = 3.0
        return x

    return f


def nonlocal_count() -> Any:
    n = 0

    def f(x: Any, i: Any) -> Any:
        nonlocal n
        n += 1
        return x

    return f


def held(value: Any) -> Any:
    return lambda x, i: x * value


@pytest.mark.parametrize(("f", "code", "line", "word"), [
    (counted, "trace/capture", "COUNT += 1", "return what it computes"), (appended, "trace/capture", "CALLS.append(1)", "list of its own"),
    (changed(Slope(TABLE)), "trace/capture", "s.by = 3.0", "return what it computes"),
    (nonlocal_count(), "trace/capture", "n += 1", "`n`"),
    (held(x for x in (1.0, 2.0)), "trace/capture", "x * value", "capture a tuple"), (held({1, 2}), "trace/capture", "x * value", "tuple"),
    (held("2"), "trace/usage", "x * value", "'2'"), (held(10**400), "trace/capture", "x * value", "1329 bits"), (held(1j), "trace/capture", "x * value", "float(x)"),
    (held(np.zeros((2, 2), np.complex64)), "trace/capture", "x * value", "convert"), (held([].append), "trace/capture", "x * value", "method")],
    ids=["global", "list", "object", "nonlocal", "generator", "set", "text", "beyond floats", "complex", "dtype", "method"])
def test_what_cannot_be_captured_is_refused_where_it_is_used(f: Any, code: str, line: str, word: str) -> None:
    with pytest.raises(fc.FcError) as e:
        program(f)
    assert e.value.code == code and word in str(e.value), str(e.value)
    assert e.value.loc is not None and line in (e.value.loc.source_line() or ""), str(e.value)


def test_what_changes_while_it_is_looked_at_is_refused() -> None:
    class Turns:
        n = 0

        @property
        def scale(self) -> Any:
            self.n += 1
            return (1, 1.0)[self.n % 2]

        def __call__(self, x: Any, i: Any) -> Any:
            return x * self.scale

    turns = Turns()
    turns.__call__  # noqa: B018
    with pytest.raises(fc.FcError, match="each time"):
        program(turns)


def test_a_captured_tensor_is_not_kept() -> None:
    import gc
    import weakref

    class Array(np.ndarray):
        pass

    bias = np.zeros(40, np.float32).view(Array)
    gone = weakref.ref(bias)
    f = (lambda b: lambda x, i: x + b[i])(bias)
    p = program(f)
    family = p.family
    del p, f, bias
    gc.collect()
    assert gone() is None and family._known and captured._shared


def test_torchs_tensors_modules_and_numbers() -> None:
    torch = pytest.importorskip("torch")

    class Bias(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.arange(4, dtype=torch.bfloat16))
            self.by = torch.tensor(2.0)

        def forward(self, x: Any, i: Any) -> Any:
            return x + self.table[i // 10].to(fc.f32) * self.by

    m = Bias()
    p = program(m)
    assert [str(v.type) for v in p.tile.params[2:]] == ["tensor bf16[f_0_0]", "f32"]
    np.testing.assert_allclose(result(p), X + 2 * (np.arange(40) // 10)[:, None], rtol=1e-6)
    m.by, m.table.data = torch.tensor(3.0), m.table.data + 1
    np.testing.assert_allclose(result(p), X + 3 * (np.arange(40) // 10 + 1)[:, None], rtol=1e-6)
    size = torch.Size((2, 5))
    np.testing.assert_allclose(result(program(lambda x, i: x * size[1])), X * 5, rtol=1e-6)
    with pytest.raises(fc.FcError, match="dtype"):
        program(held(torch.zeros(3, dtype=torch.complex64)))


def test_arrays_of_the_specs_own_function_are_parameters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.arange(40, dtype=np.float32)

    @fc.kernel
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows], fc.load(X[rows]) * fc.load(row[rows]) + TABLE[rows.index // 10])

    p = spec.compile(target="sm_89", schedule=SCHEDULE, D=16)
    assert [v.name for v in p.params] == ["X", "Y"] and [v.name for v in p.tile.params[2:]] == ["own_0", "own_1"]
    np.testing.assert_allclose(result(p), X * row[:, None] + TABLE[np.arange(40) // 10][:, None], rtol=1e-6)
    row = row[::-1].copy()
    monkeypatch.setitem(globals(), "TABLE", TABLE * 2)
    np.testing.assert_allclose(result(p), X * row[:, None] + TABLE[np.arange(40) // 10][:, None], rtol=1e-6)
    assert len(p.family._known) == 1 and len(spec.trace({"BLOCK_M": 32}, D=16).params) == 4


def helper_with_an_array(x: Any, i: Any) -> Any:
    return x + TABLE[i]


def test_arrays_of_what_a_spec_calls_are_refused_with_what_to_do() -> None:
    def spec(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows], helper_with_an_array(fc.load(X[rows]), rows.index))

    with pytest.raises(fc.FcError, match="given when the spec is compiled, by itself or held"):
        fc.kernel(spec).trace({"BLOCK_M": 32})


def test_a_promise_about_a_captured_number() -> None:
    a = 2.0
    p = program(lambda x, i: fc.maximum(x * fc.positive(a), 0.0))
    np.testing.assert_allclose(result(p), np.maximum(X * 2, 0), rtol=1e-6)
    a = -1.0
    with pytest.raises(fc.FcError, match="must be positive"):
        p.interpret(X=X)
