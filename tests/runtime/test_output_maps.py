"""A launch of a kernel that stores in bulk: its output's map follows the tensor, is remembered, and is refused before anything is launched."""

import sys

import pytest
from pretend import Driver, Tensor, install, torch

import fcgen as fc
from fcgen.build import compiler
from fcgen.build.compiler import Built
from fcgen.errors import FcError
from fcgen.ir.schedule import Schedule
from fcgen.launch import Launcher


@fc.kernel
def copy(X: "f16[M, N]", Y: "out f16[M, N]"):
    rows, cols = fc.grid(fc.tile(X.M, "BLOCK_M"), fc.tile(X.N, "BLOCK_N"))
    fc.store(Y[rows, cols], fc.load(X[rows, cols]))


@pytest.fixture
def call(monkeypatch):
    """A launcher of `copy` for sm_90a; its driver is `call.driver`."""
    t = torch()
    monkeypatch.setitem(sys.modules, "torch", t)
    schedule = Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, epilogue="tma")
    program = copy.compile(target="sm_90a", schedule=schedule)
    facts = compiler.facts_of(program.machine, compiler.to_cuda(program.machine, program.target), program.target)
    sizes = [{"map": 128, "size": 4, "scalar": 4}.get(kind, 8) for kind, *_ in facts.flat]
    out = Launcher(Built(facts, schedule, "", "", "", b"", ""))
    out.driver, out.float16 = install(monkeypatch, Driver(sizes)), t.float16
    return out


def test_the_outputs_map_is_the_only_way_to_it(call):
    assert [(kind, name, detail) for kind, name, _, detail in call.facts.flat if name == "Y"] == [("map", "Y", (64, 32, 64))]


def test_a_map_is_made_once_per_place(call):
    x = Tensor((100, 64), call.float16)
    ys = [Tensor((100, 64), call.float16) for _ in range(2)]
    for y in (*ys, *ys, ys[1]):
        call({"X": x, "Y": y})
    maps = [next(b for b in raw if len(b) == 128) for *_, raw in call.driver.launches]
    assert maps[0] == maps[2] != maps[1] == maps[3] == maps[4] and len(call.driver.encoded) == 2
    assert [facts[2] for facts in call.driver.encoded] == [y.data_ptr() for y in ys]


@pytest.mark.parametrize("shape, strides, said", [
    ((100, 60), None, "axis 0 of argument `Y` is not aligned"),
    ((100, 64), (68, 1), "`Y`"),
    ((100, 64), (64, 2), "argument `Y`"),
])
def test_what_no_map_describes_is_not_launched(call, shape, strides, said):
    with pytest.raises(FcError, match=said) as e:
        call({"X": Tensor(shape, call.float16), "Y": Tensor(shape, call.float16, strides)})
    assert e.value.code == "call/argument" and e.value.hint and not call.driver.launches


def test_a_pointer_between_16_bytes_is_refused(call):
    with pytest.raises(FcError, match="argument `Y` is not aligned"):
        call({"X": Tensor((100, 64), call.float16), "Y": Tensor((100, 64), call.float16, ptr=0x1008)})
    assert not call.driver.launches
