"""The tile interpreter: what a program means, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.errors import FcError
from fcgen.ir.parse import parse_kernel
from fcgen.kernels.attention import attention
from fcgen.sim.tile import interpret


def copy_kernel(load_guard="true", store_guard="true", grid="M / 8", start="%r", reduce=""):
    return parse_kernel(f"""tile kernel copy
param %X: tensor f32[M, 4]
param %Y: tensor f32[M, 4] out
grid %i: {grid}
{{
  %0 = const {{value = 8, dtype = i32}} : i32
  %z = const {{value = 0, dtype = i32}} : i32
  %r = mul %i, %0 : i32
  %x = load %X, %r {{index = (tile, all), guard = ({load_guard}, false)}} : f32[8,4]
  store %Y, %x, {start} {{index = (tile, all), guard = ({store_guard}, false){reduce}}}
}}
""", "t.fcir", locate=True)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 24])
def test_copy(rows):
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    np.testing.assert_array_equal(interpret(copy_kernel(), {"X": x})["Y"], x)


@pytest.mark.parametrize(("guards", "kind"), [(("false", "true"), "load"), (("true", "false"), "store")])
def test_bounds(guards, kind):
    k = copy_kernel(*guards)
    interpret(k, {"X": np.zeros((16, 4))})
    with pytest.raises(FcError) as e:
        interpret(k, {"X": np.zeros((13, 4))})
    assert e.value.code == "sim/bounds" and e.value.expected == "0..12 along axis 0" and e.value.got == "8..15"
    assert f"{kind} outside {'X' if kind == 'load' else 'Y'}" in e.value.message and e.value.loc.file == "t.fcir"


def test_two_programs_write_one_element():
    with pytest.raises(FcError) as e:
        interpret(copy_kernel(start="%z"), {"X": np.zeros((16, 4))})
    assert e.value.code == "sim/race" and "two programs write the same element of Y" in e.value.message


def test_two_programs_add_to_one_element():
    x = np.arange(64, dtype=np.float32).reshape(16, 4)
    y = interpret(copy_kernel(start="%z", reduce=", reduce = add"), {"X": x, "Y": np.ones((16, 4))})["Y"]
    np.testing.assert_array_equal(y[:8], 1 + x[:8] + x[8:])
    np.testing.assert_array_equal(y[8:], 1)


def test_what_nothing_writes_is_not_zero():
    with pytest.raises(fc.FcError) as e:
        interpret(copy_kernel(grid="1"), {"X": np.ones((16, 4))})
    assert e.value.code == "sim/unwritten" and "nothing writes 32 of the 64 elements of Y" in str(e.value) and "[8, 0]" in str(e.value)
    y = interpret(copy_kernel(grid="1"), {"X": np.ones((16, 4)), "Y": np.full((16, 4), np.nan)})["Y"]
    assert (y[:8] == 1).all() and np.isnan(y[8:]).all()


@fc.kernel
def scaled(X: "T[M, D]", Z: "T[M, D]", Y: "out T[M, D]", *, factor: "f32 > 0"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    fc.store(Y[rows], ((fc.load(X[rows]) + fc.load(Z[rows])).to(fc.f32) * factor).to(Y.dtype))


def compiled(dtype):
    return scaled.compile(target="sm_89", schedule=fc.Schedule(tiles={"BLOCK_M": 16}), T=dtype, D=16)


def test_arguments():
    p, x = compiled(fc.f32), np.ones((5, 16))
    for given, word in [
        ({"X": x, "Z": np.ones((6, 16)), "factor": 1.0}, "size of M"),
        ({"X": x, "Z": np.ones((5, 8)), "factor": 1.0}, "wrong shape"),
        ({"X": x, "Z": np.ones(5), "factor": 1.0}, "number of axes"),
        ({"X": x, "factor": 1.0}, "`Z` is missing"),
        ({"X": x, "Z": x}, "`factor` is missing"),
        ({"X": x, "Z": x, "factor": -1.0}, "must be positive"),
        ({"X": x, "Z": x, "factor": 0.0}, "must be positive"),
    ]:
        with pytest.raises(FcError) as e:
            p.interpret(**given)
        assert e.value.code == "call/argument" and word in e.value.message, str(e.value)


def test_bf16_rounds_to_nearest_even():
    """1 + 2^-8 lies between 1 and 1 + 2^-7: to even, down; 1 + 3 * 2^-8 up. Inputs, sums and casts all round."""
    step = 2.0**-7
    x = np.zeros((4, 16))
    z = np.zeros((4, 16))
    x[0], x[1] = 1 + step / 2, 1 + 3 * step / 2  # inputs
    x[2], z[2] = 1.0, step / 2  # a sum
    x[3], z[3] = 1 + step, step / 2 + step / 64
    y = compiled(fc.bf16).interpret(X=x, Z=z, factor=1.0)["Y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y[:, 0], [1, 1 + 2 * step, 1, 1 + 2 * step])
    np.testing.assert_array_equal(compiled(fc.f32).interpret(X=x, Z=z, factor=1.0)["Y"], (x + z).astype(np.float32))


def test_f16_overflows():
    y = compiled(fc.f16).interpret(X=np.full((1, 16), 60000.0), Z=np.full((1, 16), 60000.0), factor=0.25)["Y"]
    assert np.isposinf(y).all()  # the sum is one of 16 bits


@pytest.mark.parametrize("mask", ["causal_top_left", "causal_bottom_right", "none"])
@pytest.mark.parametrize(("m", "n"), [(40, 40), (20, 70), (70, 20)])
def test_leaving_out_dead_iterations_changes_nothing(mask, m, n):
    schedule = fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 16})
    p = attention.compile(target="sm_89", schedule=schedule, T=fc.f16, D=16, E=16, mask=mask)
    rng = np.random.default_rng(1)
    arguments = {k: rng.standard_normal((1, 2, s, 16)) for k, s in (("Q", m), ("K", n), ("V", n))}
    full, skipped = (interpret(p.tile, {**arguments, "scale": 0.25}, skip_dead=skip) for skip in (False, True))
    for name in ("O", "LSE"):
        np.testing.assert_array_equal(full[name], skipped[name])


# ---- programs that meet ----------------------------------------------------------------------------------------------------


@fc.kernel
def neighbour(X: "inout f32[H]"):
    (h,) = fc.grid(X.H)
    fc.store(X[h], fc.load(X[h + 1 - h // 3]))


@fc.kernel
def add_and_read(X: "f32[H]", Y: "inout T[N]"):
    (h,) = fc.grid(X.H)
    fc.atomic_add(Y[0], fc.load(X[h]).to(Y.dtype))
    with fc.when(h == 2):
        fc.store(Y[2], fc.load(Y[0]) * 1.0)


@fc.kernel
def add_only(X: "f32[H]", Y: "inout T[N]"):
    (h,) = fc.grid(X.H)
    fc.atomic_add(Y[0], fc.load(X[h]).to(Y.dtype))


def test_a_read_of_what_another_program_writes_is_a_race():
    with pytest.raises(FcError) as e:
        interpret(neighbour.trace({}), {"X": np.arange(4.0)})
    assert e.value.code == "sim/race" and "X" in e.value.message and "element (1,)" in str(e.value) and "h = 1" in str(e.value)
    with pytest.raises(FcError) as e:
        interpret(add_and_read.trace({}, T=fc.f32), {"X": np.ones(4), "Y": np.zeros(3)})
    assert e.value.code == "sim/race" and "adds it" in str(e.value) and "reads it" in str(e.value) and e.value.loc.source_line()


def test_sums_of_16_bits_round_each_time():
    y = interpret(add_only.trace({}, T=fc.bf16), {"X": np.full(4, 2.0**-9), "Y": np.ones(3)})["Y"]
    np.testing.assert_array_equal(y, 1)  # each addend is less than half a step of bf16 at 1
    y = interpret(add_only.trace({}, T=fc.f32), {"X": np.full(4, 2.0**-9), "Y": np.ones(3)})["Y"]
    assert y[0] == 1 + 2.0**-7


def test_bounds_name_the_program():
    with pytest.raises(FcError) as e:
        interpret(copy_kernel("false", "true"), {"X": np.zeros((13, 4))})
    assert "in the program i = 1" in str(e.value)


def test_unknown_arguments():
    with pytest.raises(FcError) as e:
        interpret(copy_kernel(), {"X": np.zeros((8, 4)), "Z": 1})
    assert e.value.code == "call/argument" and "no parameter `Z`" in e.value.message and e.value.expected == "X, Y"


@fc.kernel
def looked_up(X: "f32[M]", table: "f32[N]", Y: "out f32[M]"):
    (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))
    fc.store(Y[rows], fc.load(X[rows]) + table[rows.index])


@pytest.mark.filterwarnings("error")
def test_empty_tensors_and_silent_arithmetic():
    k = looked_up.trace({"BLOCK_M": 8})
    np.testing.assert_array_equal(interpret(k, {"X": np.arange(5), "table": np.zeros(0)})["Y"], np.arange(5))
    assert interpret(k, {"X": np.zeros(0), "table": np.ones(3)})["Y"].shape == (0,)
    q = np.full((1, 1, 4, 16), np.inf)
    tiles = {"BLOCK_M": 16, "BLOCK_N": 16}
    out = interpret(attention.trace(tiles, T=fc.f16, D=16, E=16), {"Q": q, "K": np.zeros_like(q), "V": q, "scale": 1.0})
    assert np.isnan(out["LSE"]).all()
    out = interpret(attention.trace(tiles, T=fc.f16, D=16, E=16), {"Q": q, "K": q[:, :, :0], "V": q[:, :, :0], "scale": 1.0})
    assert (out["O"] == 0).all() and np.isneginf(out["LSE"]).all()
