"""Launches of kernels whose functions hold numbers and tensors, and of grids that a scalar sizes, with a driver that only listens."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from pretend import Driver, Dtype, Tensor, install, number, torch

import fcgen as fc
from fcgen import api
from fcgen.build import captured
from fcgen.errors import FcError

F32, F16 = Dtype("float32"), Dtype("float16")
SIZES = {"ptr": 8, "stride": 8, "size": 4, "scalar": 4, "map": 128, "counter": 8}
SCHEDULE = fc.Schedule(tiles={"BLOCK_M": 32}, warps=1)


@fc.kernel
def mapped(X: "f32[M, D]", Y: "out f32[M, D]", *, f):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    fc.store(Y[rows], f(fc.load(X[rows]), rows.index))


class World:
    def __init__(self, fake: Any):
        self.fake = fake

    def expect(self, p: fc.Program) -> None:
        self.fake.kernels[p.built.cubin] = [SIZES[kind] for kind, *_ in p.built.facts.flat]

    def last(self, p: fc.Program) -> dict[str, bytes]:
        """kind and name of each kernel parameter -> what the last launch gave"""
        return {f"{kind} {name}": raw for (kind, name, *_), raw in zip(p.built.facts.flat, self.fake.launches[-1][4])}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setitem(sys.modules, "torch", torch())
    monkeypatch.setenv("FCGEN_CHECK", "0")
    monkeypatch.setattr(captured, "_families", {})
    monkeypatch.setattr(captured, "_shared", {})
    return World(install(monkeypatch, Driver()))


def pair(rows: int = 64) -> tuple[Tensor, Tensor]:
    return Tensor((rows, 16), F32), Tensor((rows, 16), F32)


def test_numbers_and_pointers_are_those_of_the_call(world: World) -> None:
    a, bias = 2.0, Tensor((4, 200), F32)
    p = mapped.compile(target="sm_90", schedule=SCHEDULE, D=16, f=lambda x, i: x * a + bias[1, i])
    world.expect(p)
    p(*pair())
    assert number(world.last(p)["scalar f_0"], "f") == 2.0 and number(world.last(p)["ptr f_1"], "Q") == bias.data_ptr()
    a, bias = -0.5, Tensor((9, 72), F32)
    p(*pair())
    assert number(world.last(p)["scalar f_0"], "f") == -0.5 and number(world.last(p)["ptr f_1"], "Q") == bias.data_ptr()
    assert (number(world.last(p)["stride f_1"], "q"), number(world.last(p)["size f_1_1"], "i")) == (72, 72)
    assert len(world.fake.cubins) == 1


def test_a_call_of_the_spec_compiles_nothing_for_another_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    scheduled = fc.Spec.scheduled
    monkeypatch.setattr(fc.Spec, "scheduled", lambda self, *a, **k: traced.append(1) or scheduled(self, *a, **k))
    monkeypatch.setattr(Driver, "cuLaunchKernelEx", lambda self, *a: 0)
    scaled = lambda n: lambda x, i: x * n + 1.5 * n
    n = 3
    for a in range(4):
        mapped(*pair(), f=scaled(a), schedule=SCHEDULE)
    assert len(traced) == 1 and len(world.fake.cubins) == 1
    mapped(*pair(), f=lambda y, j: y * 3 + 1.5 * 3.0, schedule=SCHEDULE)
    assert len(traced) == 2
    beta = 3.0
    mapped(*pair(), f=lambda z, k: z * beta + 1.5 * beta, schedule=SCHEDULE)
    assert len(traced) == 3 and len(world.fake.cubins) == 2, "traced again, and found to be the first program"
    for f in (lambda x, i: x * np.float32(n), lambda x, i: x):
        mapped(*pair(), f=f, schedule=SCHEDULE)
    assert len(captured._families) == 5


class Emptied(dict):  # type: ignore[type-arg]
    """A table that another thread empties whenever something came in."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.clear()

    def setdefault(self, key: Any, value: Any = None) -> Any:
        return value


def test_a_program_is_found_whatever_other_threads_do_to_tables_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "_shared", Emptied())
    monkeypatch.setattr(captured, "_families", Emptied())
    monkeypatch.setattr(captured, "_EACH", 1)
    n = 3
    family = mapped.compile(target="sm_90", schedule=SCHEDULE, D=16, f=lambda x, i: x * n).family
    made = family._made

    def disturbed(given: Any) -> Any:
        entry = made(given)
        family.__class__ = Forgetful
        return entry

    class Forgetful(captured.Family):
        """Of which another thread finds programs at the same time, and keeps those instead."""

        _known = property(lambda self: (), lambda self, known: None)  # type: ignore[assignment]

    monkeypatch.setattr(family, "_made", disturbed)
    f = lambda x, i: x * (n + 0)
    program, values, bind = family.bound({"f": f})
    assert bind(f) == (3,) == tuple(values.values()) and family.entry({"f": f})[1].name == program.name


@pytest.mark.parametrize(("bias", "word"), [
    (np.zeros((4, 200), np.float32), "on the CPU"), (Tensor((4, 200), F32, device="cuda:1"), "cuda:1"),
    (Tensor((4, 200), F32, strides=(1, 4)), "not contiguous")], ids=["host", "device", "strides"])
def test_what_a_launch_cannot_take_is_refused_by_the_name_that_people_know(world: World, bias: Any, word: str) -> None:
    p = mapped.compile(target="sm_90", schedule=SCHEDULE, D=16, f=lambda x, i: x + bias[1, i])
    with pytest.raises(fc.FcError) as e:
        p(*pair())
    assert e.value.code == "call/argument" and word in str(e.value)
    assert "`f_0` is bias, held by what was given as `f`" in str(e.value) and not world.fake.launches


def test_an_output_that_is_captured_as_well_is_refused(world: World) -> None:
    x, y = pair()
    p = mapped.compile(target="sm_90", schedule=SCHEDULE, D=16, f=lambda x, i: x + y[i, 0])
    with pytest.raises(fc.FcError, match=r"share|overlap"):
        p(x, y)


def test_a_tensor_given_as_a_compile_time_parameter_is_a_captured_one(world: World) -> None:
    @fc.kernel
    def biased(X: "f32[M, D]", Y: "out f32[M, D]", *, bias=None):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        x = fc.load(X[rows])
        fc.store(Y[rows], x if bias is None else x + fc.load(bias[rows]))

    b = Tensor((64,), F32)
    p = biased.compile(target="sm_90", schedule=SCHEDULE, D=16, bias=b)
    world.expect(p)
    p(*pair())
    assert number(world.last(p)["ptr bias_0"], "Q") == b.data_ptr()
    assert len(biased.compile(target="sm_90", schedule=SCHEDULE, D=16).tile.params) == 2


@fc.kernel
def first(X: "f32[M, D]", Y: "inout f32[M, D]", *, n: "i32", m: "i32"):
    i, rows = fc.grid(n, fc.tile(m, "BLOCK_M"))
    fc.atomic_add(Y[i], fc.load(X[i]) * rows.start.to(fc.f32))


def test_a_grid_is_as_large_as_its_scalars_say(world: World) -> None:
    p = first.compile(target="sm_90", schedule=SCHEDULE, D=16)
    world.expect(p)
    x, y = pair()
    for n, m, blocks in ((5, 32, 5), (7, 33, 14), (7, 1, 7), (3, 320, 30), (5, 32, 5)):
        p(x, y, n=n, m=m)
        assert world.fake.launches[-1][0] == (blocks, 1, 1)
        assert (number(world.last(p)["scalar n"], "i"), number(world.last(p)["scalar m"], "i")) == (n, m)
    before = len(world.fake.launches)
    p(x, y, n=0, m=5)
    assert len(world.fake.launches) == before
    for n in (-1, 65, 2**30 + 2**29 + 1):  # X has 64 rows
        with pytest.raises(fc.FcError, match=r"out of range|too short"):
            p(x, y, n=n, m=64)


def test_attention_with_a_score_function(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    scheduled = fc.Spec.scheduled
    monkeypatch.setattr(fc.Spec, "scheduled", lambda self, *a, **k: traced.append(1) or scheduled(self, *a, **k))
    monkeypatch.setattr(Driver, "cuLaunchKernelEx", lambda self, *a: self.launches.append(1) or 0)
    q, k, v = (Tensor((2, h, 70, 32), F16) for h in (4, 2, 2))
    schedule = fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}, warps=2)

    def run(by: float, bias: Tensor) -> None:
        fc.attention(q, k, v, score=lambda s, b, h, i, j: s * by + bias[h, j], schedule=schedule, causal="bottom_right")

    for by in (1.0, 2.0, 0.5):
        run(by, Tensor((4, 70), F32))
    assert (len(world.fake.launches), len(world.fake.cubins), len(traced)) == (3, 1, 1)
    with pytest.raises(fc.FcError, match="not a function"):
        fc.attention(q, k, v, score=3.0)
    with pytest.raises(fc.FcError, match="`score_1` is bias"):
        run(1.0, Tensor((4, 70), F32, device="cuda:1"))


def test_without_a_schedule_one_is_chosen_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "cuLaunchKernelEx", lambda self, *a: self.launches.append(1) or 0)
    chosen: list[Any] = []
    monkeypatch.setattr(api, "_choice", lambda *a: chosen.append(a[1]) or (SCHEDULE, ()))
    scaled = lambda n: lambda x, i: x * n
    for a in (1.0, 2.0):
        mapped(*pair(), f=scaled(a))
    assert chosen == ["sm_90a"] and len(world.fake.launches) == 2


def test_a_schedule_is_chosen_for_a_spec_whose_function_holds_a_tensor() -> None:
    bias, cap = Tensor((4, 200), F32), 3.0
    f = lambda x, i: cap * fc.tanh(x / cap) + bias[1, i]
    assert dict(fc.schedule_for(mapped, "sm_89", D=64, f=f).tiles)
    p = mapped.compile(target="sm_89", D=64, f=f)
    assert len(p.params) == 2 and len(p.machine.params) == 4


def test_an_array_of_the_specs_own_is_bound_at_the_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Tensor((64,), F32)

    @fc.kernel
    def spec(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
        fc.store(Y[rows], fc.load(X[rows]) * fc.load(row[rows]))

    p = spec.compile(target="sm_90a", schedule=SCHEDULE, D=16)
    world.expect(p)
    for _ in range(2):
        row = Tensor((64,), F32)
        spec(*pair(), schedule=SCHEDULE)
        assert number(world.last(p)["ptr own_0"], "Q") == row.data_ptr()
    assert len(world.fake.cubins) == 1


@fc.kernel
def mapped_heads(X: "f32[H, M, N]", Y: "out f32[H, M, N]", *, f):
    h, rows = fc.grid(X.H, fc.tile(X.M, "BLOCK_M"))
    for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):
        fc.store(Y[h, rows, cols], f(fc.load(X[h, rows, cols]), h, rows.index, cols.index))


def test_a_table_with_fewer_heads_than_the_call_is_refused(world: World) -> None:
    """It is loaded tile by tile, from places that no guard looks at."""
    table = Tensor((4, 16, 16), F32)
    schedule = fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 16}, warps=1)
    p = mapped_heads.compile(target="sm_90", schedule=schedule, f=lambda x, h, i, j: x + table[h, i, j])
    world.expect(p)
    tensors = lambda: (Tensor((4, 16, 16), F32), Tensor((4, 16, 16), F32))
    p(*tensors())
    table = Tensor((3, 16, 16), F32)
    with pytest.raises(FcError, match="axis 0 of argument `f_0` is too short"):
        p(*tensors())
    assert len(world.fake.launches) == 1
