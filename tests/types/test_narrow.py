"""Elements of 8 bits and unsigned ones: what they hold, how they convert, and that both simulators and the printed text agree on it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fcgen as fc
from fcgen.backends.cuda.printer import print_cuda
from fcgen.ir.core import Op
from fcgen.ir.elementwise import apply, to_dtype
from fcgen.ir.types import DTYPES
from fcgen.sim.memory import SharedMemory

from ..backends.host import run_on_host
from .specs import convert, numbers

NARROW = ("i8", "u8", "f8e4m3", "f8e5m2")


def compiled(a: str, b: str, arch: str) -> fc.Program:
    return convert.compile(target=arch, schedule=fc.Schedule(tiles={"BM": 32, "BN": 64}, warps=4), TI=DTYPES[a], TO=DTYPES[b])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a == b) | (np.isnan(a.astype(float)) & np.isnan(b.astype(float)))).all())


PAIRS = [("i8", "f16"), ("u8", "bf16"), ("f8e4m3", "f16"), ("f8e5m2", "f32"), ("f16", "i8"), ("f32", "u8"), ("bf16", "f8e4m3"), ("f32", "f8e5m2"),
         ("i32", "i8"), ("i8", "i32"), ("u8", "i8"), ("u32", "f32"), ("f32", "u32"), ("i32", "u32"), ("u32", "u8"), ("f8e4m3", "f8e5m2"),
         ("i8", "f8e4m3"), ("f8e4m3", "u8")]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_conversions_are_the_same_everywhere(a: str, b: str, tmp_path) -> None:
    """Ragged sizes, so that both whole runs and single elements are moved. The text is run on the CPU."""
    program, x = compiled(a, b, "sm_80"), numbers(a, (37, 70))
    want = program.interpret(X=x)["Y"]
    assert same(want, to_dtype(x, DTYPES[b])) and same(want, program.simulate(X=x)["Y"])
    stored, y = x.astype(DTYPES[a].stored), np.zeros(x.shape, DTYPES[b].stored)
    run_on_host(print_cuda(program._for_arrays({"X": x}).machine, program.target), tmp_path, 2, {"X": stored, "Y": y}, {}, {"M": 37, "N": 70})
    assert same(y.astype(DTYPES[b].np_dtype), want)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize("name", NARROW)
def test_they_compile_for_every_target(name: str, arch: str) -> None:
    for a, b in ((name, "f16"), ("f16", name)):
        program = compiled(a, b, arch)
        assert len(program.cubin) > 1000
        assert (f"cvt.rn.f16x2.{name[2:]}x2" in program.cuda or "cvt.rn.satfinite" in program.cuda) == (name[0] == "f" and arch != "sm_80")


def test_floats_of_8_bits_are_those_of_ml_dtypes() -> None:
    """Rounded to nearest even, saturated, NaN kept; each of their values comes back."""
    for name, kind in (("f8e4m3", ml_dtypes.float8_e4m3fn), ("f8e5m2", ml_dtypes.float8_e5m2)):
        every = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
        finite = every[np.isfinite(every)]
        assert same(to_dtype(finite, DTYPES[name]), finite)
        between = (np.sort(np.unique(finite))[1:] + np.sort(np.unique(finite))[:-1]) / 2
        assert same(to_dtype(between, DTYPES[name]), between.astype(kind).astype(np.float32))
        assert same(to_dtype(np.float32([1e9, -np.inf, np.nan]), DTYPES[name]), np.float32([1, -1, np.nan]) * float(ml_dtypes.finfo(kind).max))


def test_bytes_become_halves_two_at_a_time() -> None:
    """What `spread_bytes` counts on: 0x64 above a byte is 1024 and the byte, and halves there count ones."""
    every = np.arange(256, dtype=np.uint16)
    halves = lambda x: (0x6400 | x).astype(np.uint16).view(np.float16)
    assert (halves(every) - np.uint16(0x6400).view(np.float16) == every).all()
    assert (halves(every ^ 0x80) - np.uint16(0x6480).view(np.float16) == every.astype(np.uint8).view(np.int8)).all()
    assert "pack_f16" not in compiled("i8", "f16", "sm_80").cuda and "pack_f16" not in compiled("f8e4m3", "f16", "sm_89").cuda


def test_integers_wrap_and_floats_become_the_nearest() -> None:
    i8, u8, u32 = DTYPES["i8"], DTYPES["u8"], DTYPES["u32"]
    assert apply("add", i8, 127, 1) == -128 and apply("sub", u8, 0, 1) == 255 and apply("mul", u32, 2**31, 2) == 0
    assert list(to_dtype(np.float32([300, -300, 1.9, -1.9, np.nan]), i8)) == [127, -128, 1, -1, 0]
    assert list(to_dtype(np.float32([5e9, -1]), u32)) == [2**32 - 1, 0] and to_dtype(np.int32(-1), u32) == 2**32 - 1


@pytest.mark.parametrize("name", ["i8", "u8", "u32"])
def test_numbers_that_do_not_fit(name: str) -> None:
    low, high = DTYPES[name].range
    program = compiled(name, "i32", "sm_80")
    for x in (low - 1, high + 1):
        with pytest.raises(fc.FcError, match="do not fit") as caught:
            program.interpret(X=np.full((2, 2), x))
        assert str(high) in str(caught.value)

    @fc.kernel
    def spec(X: "T[M]", Y: "out T[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.load(X[rows]) + (high + 1))

    with pytest.raises(fc.FcError, match="does not fit") as caught:
        spec.trace({"BM": 16}, T=DTYPES[name])
    assert caught.value.hint


def test_memory_is_watched_byte_by_byte() -> None:
    """Two warps that write neighbouring bytes do not race; the same byte does, and so do neighbours where elements have two bytes."""
    op = Op("barrier", (), ())
    lane = np.zeros(1, int)
    for grain, bytes_apart, clash in ((1, 1, False), (1, 0, True), (2, 1, True), (2, 2, False)):
        memory = SharedMemory(64, 2, grain)
        assert memory.write(0, np.array([8 // grain]), lane, op) is None
        bad = memory.write(1, np.array([(8 + bytes_apart) // grain]), lane, op)
        assert (bad is not None and bad.kind == "race" and bad.byte == 8) == clash
    x = numbers("f32", (64, 128))
    assert same(compiled("f32", "i8", "sm_80").simulate(X=x)["Y"], to_dtype(x, DTYPES["i8"]))  # through shared memory


@fc.kernel
def chosen(X: "f32[M, N]", Keep: "i1[M, N]", Rows: "i1[M]", Y: "out f32[M, N]", Both: "out i1[M, N]"):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    for cols in fc.loop(fc.tile(X.N, "BN")):
        keep = fc.load(Keep[rows, cols]) & fc.load(Rows[rows])
        fc.store(Y[rows, cols], fc.where(keep, fc.load(X[rows, cols]), 0.0))
        fc.store(Both[rows, cols], keep)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_conditions_in_memory(target: str, tmp_path) -> None:
    """A condition is a byte there, and moved as one."""
    rng = np.random.default_rng(0)
    given = {"X": rng.standard_normal((40, 70)).astype(np.float32), "Keep": rng.random((40, 70)) < 0.5, "Rows": rng.random(40) < 0.5}
    both = given["Keep"] & given["Rows"][:, None]
    program = chosen.compile(target=target, schedule=fc.Schedule(tiles={"BM": 16, "BN": 32}, warps=2))
    y = {"Y": np.zeros((40, 70), np.float32), "Both": np.zeros((40, 70), bool)}
    run_on_host(print_cuda(program._for_arrays(given).machine, program.target), tmp_path, 3, {**given, **y}, {}, {"M": 40, "N": 70})
    for got in (program.interpret(**given), program.simulate(**given), y):
        assert (got["Y"] == np.where(both, given["X"], 0)).all() and (got["Both"] == both).all()
    assert program.cubin


@fc.kernel
def scalars(X: "f32[M, N]", S: "T[M]", Y: "out f32[M, N]", Z: "out T[M]"):
    m, cols = fc.grid(X.M, fc.tile(X.N, "BN"))
    s = fc.load(S[m])
    fc.store(Y[m, cols], fc.load(X[m, cols]) * s.to(fc.f32) + fc.gather(S, m + 1).to(fc.f32))
    with fc.when(cols.start == 0):
        fc.store(Z[m], (s.to(fc.f32) * 0.5).to(Z.dtype))


@pytest.mark.parametrize("name", ["i8", "u8", "u32", "f8e4m3", "f8e5m2", "f16", "bf16"])
def test_single_elements(name: str, tmp_path) -> None:
    """One number per program: read, gathered and written."""
    dtype = DTYPES[name]
    x, s = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32), to_dtype(np.array([1, 3, 100, 7, 2.0]), dtype)
    program = scalars.compile(target="sm_80", schedule=fc.Schedule(tiles={"BN": 64}, warps=1), T=dtype)
    wide = s.astype(np.float32)
    want, half = x * wide[:, None] + np.append(wide[1:], 0)[:, None], to_dtype(wide * 0.5, dtype)
    host = {"Y": np.zeros_like(x), "Z": np.zeros(5, dtype.stored)}
    run_on_host(print_cuda(program._for_arrays({"X": x}).machine, program.target), tmp_path, 5, {"X": x, "S": s.astype(dtype.stored), **host},
                {}, {"M": 5, "N": 40})
    for got in (program.interpret(X=x, S=s), program.simulate(X=x, S=s), host):
        np.testing.assert_allclose(got["Y"], want, rtol=1e-5)
        assert (got["Z"].astype(dtype.np_dtype) == half).all()
    assert program.cubin
