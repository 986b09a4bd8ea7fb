"""What a compilation says besides its result: a schedule is tried in the simulator once, spills and loops that stay whole are told."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest

import fcgen as fc
from benchmarks.schedule_pairs import SPECS, row_softmax
from fcgen.attend.forward import compiled
from fcgen.build import compiler
from fcgen.cli.console import report
from fcgen.errors import FcError
from fcgen.ir.parse import parse_kernel
from fcgen.kernels.schedules import TABLES, pick, shipped
from fcgen.runtime import nvrtc
from fcgen.sim import trial


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[str]:
    """An empty cache, and the names of the kernels that the simulator was given; it finds nothing."""
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("FCGEN_CHECK", raising=False)
    names: list[str] = []
    monkeypatch.setattr(trial, "run_trials", lambda kernel, target, *rest, **more: names.append(kernel.name) or [])
    return names


def rows(**more):
    schedule = fc.Schedule(tiles={"BM": 16}, **more.pop("schedule", {}))
    return row_softmax.compile(target="sm_80", schedule=schedule, T=fc.f16, D=more.pop("D", 32), **more)


def test_a_schedule_is_tried_in_the_first_compilation_alone(tried: list[str]) -> None:
    steps: list[str] = []
    program = rows()
    program.progress = steps.append
    assert not program.built.cached and tried == ["row_softmax"]
    assert steps == ["passes", "CUDA text", "simulator", "NVRTC"]
    assert rows().built.cached and tried == ["row_softmax"]
    assert rows(schedule={"copy": "scalar"}).cubin and len(tried) == 2


def test_the_text_is_printed_without_a_compiler_and_is_what_is_compiled(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = rows()
    with monkeypatch.context() as without:
        without.setattr(compiler, "build", lambda *_, **__: pytest.fail("to be read, a text needs no compiler"))
        text = program.cuda
    assert "__global__" in text and not tried and program.built.cuda_text == text == program.cuda


def test_it_is_tried_while_it_is_compiled(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, compile_cuda = threading.Event(), nvrtc.compile_cuda

    def compiled(*args: object, **named: object) -> object:
        compiling.set()
        return compile_cuda(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(nvrtc, "compile_cuda", compiled)
    monkeypatch.setattr(trial, "run_trials", lambda *_: compiling.wait(60) or pytest.fail("NVRTC waits for the simulator"))
    assert rows().cubin


def test_what_the_simulator_finds_is_raised_and_nothing_runs_on(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where NVRTC has something to say as well."""
    def wrong(*_: object, **__: object) -> None:
        raise FcError("sim/race", "two warps")

    def refused(*_: object, **__: object) -> None:
        raise FcError("compile/nvrtc", "a mistake of the printer")

    monkeypatch.setattr(nvrtc, "compile_cuda", refused)
    with pytest.raises(FcError, match="mistake of the printer"):
        _ = rows(check=True).cubin
    monkeypatch.setattr(trial, "run_trials", wrong)
    before = threading.active_count()
    with pytest.raises(FcError, match="two warps"):
        _ = rows(check=True, schedule={"copy": "scalar"}).cubin
    assert threading.active_count() == before


def test_what_someone_wrote_is_tried_before_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise FcError("sim/race", "two warps")

    monkeypatch.setattr(trial, "run_trials", wrong)
    monkeypatch.setattr(nvrtc, "compile_cuda", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(FcError, match="two warps"):
        compiler.build(parse_kernel(str(rows().machine)), fc.Schedule(), compiler.target("sm_89"), cache=False)


def test_what_was_begun_is_waited_for_and_told_where_it_is_asked_for(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = rows().begin()
    assert program.begin().built is program.built and tried == ["row_softmax"]
    monkeypatch.setattr(nvrtc, "compile_cuda", lambda *_, **__: pytest.fail("compiled again"))
    assert rows().begin().built.cached

    def wrong(*_: object, **__: object) -> None:
        raise FcError("sim/race", "two warps")

    monkeypatch.setattr(trial, "run_trials", wrong)
    other = rows(check=True, schedule={"copy": "scalar"}).begin()
    for _ in range(2):
        with pytest.raises(FcError, match="two warps"):
            _ = other.built


def test_it_can_be_left_out(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(check=False).cubin and not tried
    assert rows().built.cached and len(tried) == 1, "the cubin is there, the verdict was not"
    monkeypatch.setenv("FCGEN_CHECK", "0")
    assert rows(schedule={"copy": "scalar"}).cubin and len(tried) == 1


def test_what_the_simulator_finds_is_raised_each_time_and_nothing_is_kept(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise FcError("sim/race", "two warps")

    monkeypatch.setattr(trial, "run_trials", wrong)
    for _ in range(2):
        with pytest.raises(FcError, match="two warps"):
            _ = rows().cubin


def test_why_a_program_was_not_tried_is_said(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: object, **__: object) -> None:
        raise FcError("compile/unsupported", "the simulator has no meaning for frob")

    monkeypatch.setattr(trial, "run_trials", unable)
    with pytest.warns(fc.FcWarning, match="no meaning for frob"):
        assert ("unchecked", "row_softmax was not run in the simulator: the simulator has no meaning for frob") in rows().built.remarks
    with pytest.warns(fc.FcWarning, match="no meaning for frob"):
        assert rows().built.cached


def test_the_librarys_own_schedules_are_not_tried(tried: list[str]) -> None:
    assert compiled("f16", 64, 64, "none", False, "sm_89").trust
    own = pick("sm_89", 64)
    assert own in shipped() and len(shipped()) > len(TABLES)
    assert compiled("f16", 64, 64, "none", False, "sm_89", own).trust
    assert not compiled("f16", 64, 64, "none", False, "sm_89", fc.Schedule(tiles=dict(own.tiles), stages=3)).trust


def test_spills_are_said_when_a_kernel_is_compiled(tried: list[str]) -> None:
    spec = SPECS["gated"]
    program = spec.spec.compile(target="sm_80", schedule=fc.Schedule(tiles=spec.tiles[0], stages=1, min_blocks=7), **spec.binding)
    with pytest.warns(fc.FcWarning, match="gated has more values than registers: .* smaller Schedule.tiles") as told:
        built = program.built
    assert told[0].filename == __file__, "it points to who asked for the kernel"
    assert [kind for kind, _ in built.remarks] == ["spills"]
    assert program.resources.spills and "has more values than registers" in report(program)


def test_a_kernel_without_remarks_says_nothing(tried: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = rows()
        assert program.built.remarks == () and len(report(program).splitlines()) == 2  # resources and the schedule


@fc.kernel
def copied(X: "T[M, N]", Y: "out T[M, N]", *, cut: "i32"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        fc.store(Y[rows, cols], fc.load(X[rows, cols.until(cut)]))


@pytest.mark.parametrize(("size", "said"), [({}, {"X": "1 of 8 elements at a time: a limit cuts N off",
                                                  "Y": "1 of 8 elements at a time: N is not known to be a multiple of 8 (bind it: N=512)"}),
                                            ({"N": 256}, {"X": "1 of 8 elements at a time: a limit cuts 256 off"}),
                                            ({"N": 132}, {"X": "1 of 4 elements at a time: a limit cuts 132 off"})])
def test_accesses_that_are_narrow_for_want_of_a_size_are_told(size, said) -> None:
    p = copied.compile(target="sm_89", T=fc.f16, schedule=fc.Schedule(tiles={"BM": 8, "BN": 128}, warps=2), check=False, **size)
    told = [text for kind, text in p.built.remarks if kind == "narrow"]
    assert len(told) == len(said) and all(f"of {name}'s tiles move {text}" in "".join(told) for name, text in said.items())
    assert all(f"narrow   {text}" in report(p) for text in told)


@fc.kernel
def live_by(X: "T[M, D]", K: "T[N, D]", seen: "i32[M]", O: "out f32[M, D]", *, way="tensor"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x, limit = fc.load(X[rows]), fc.load(seen[rows])
    acc = fc.var(fc.zeros(rows, K.D))
    conditions = {
        "tensor": lambda cols: cols.index < limit, "square": lambda cols: rows.index * rows.index >= cols.index,
        "float": lambda cols: rows.index.to(fc.f32) >= cols.index.to(fc.f32), "known": lambda cols: cols.index <= rows.index}
    mask = lambda cols: cols.valid & conditions[way](cols)
    for cols in fc.loop(fc.tile(K.N, "BN"), live=mask):
        k = fc.load(K[cols])
        p = fc.where(mask(cols), fc.dot(x, k.T), 0.0)
        acc <<= acc + fc.dot(p.to(K.dtype), k)
    fc.store(O[rows], acc)


@pytest.mark.parametrize("way, said", [("tensor", "%limit (load, test_compile_remarks.py:"), ("square", "(mul, test_compile_remarks.py:"),
                                       ("float", "compares floats"), ("known", "")])
def test_a_loop_that_live_did_not_shrink_says_why(way: str, said: str) -> None:
    machine = live_by.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64, "BN": 32}), T=fc.f16, D=32, way=way).machine
    remarks = machine.meta.get("remarks", ())
    assert len(remarks) == bool(said)
    for kind, text in remarks:
        assert kind == "live" and text.startswith("the loop over BN leaves out no tile by a part of its `live` condition") and said in text
    assert parse_kernel(str(machine)).meta.get("remarks", ()) == remarks


def test_what_cannot_be_printed_is_not_simulated() -> None:
    spec = SPECS["attention"]
    schedule = fc.Schedule(tiles={"BLOCK_M": 128, "BLOCK_N": 128})
    program = spec.spec.compile(target="sm_89", schedule=schedule, **{**spec.binding, "D": 64, "E": 64})
    with pytest.raises(FcError) as printed:
        compiler.to_cuda(program.machine, program.target)
    inputs = trial.random_inputs(program.machine, spec.sizes)
    with pytest.raises(FcError) as simulated:
        program.simulate(**inputs)
    assert str(simulated.value) == str(printed.value) and simulated.value.code == "compile/budget"


def test_run_without_torch_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FcError, match="torch, which is not installed") as e:
        rows().run()
    assert e.value.code == "call/driver" and e.value.hint is not None and "simulate" in e.value.hint
