"""Keys and values of 8 and 4 bits with a scale per key, in the loop that dequantises them; products of elements of 8 bits."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.types import DTYPES

from .specs import eight, eight_in_words, four, operands, product, requantised, scaled, whole_f8, whole_f8_case

D = 64


@pytest.mark.parametrize(("name", "target"), [("i8", "sm_80"), ("i8", "sm_90a"), ("f8e4m3", "sm_80"), ("f8e4m3", "sm_89"), ("f8e5m2", "sm_90a")])
def test_keys_of_8_bits(name: str, target: str) -> None:
    rng = np.random.default_rng(0)
    program = eight.compile(target=target, schedule=fc.Schedule(tiles={"BM": 64, "BN": 32}, warps=4), TK=DTYPES[name], D=D)
    q = rng.standard_normal((2, 70, D)).astype(np.float16)
    (k, ks), (v, vs) = (scaled(rng, name, (2, 90, D)) for _ in range(2))
    given = {"Q": q, "K": k, "KS": ks, "V": v, "VS": vs}
    s = np.einsum("hmd,hnd->hmn", q.astype(np.float64), k.astype(np.float64) * ks[..., None]) * 0.125
    p = np.exp(s - s.max(2, keepdims=True))
    want = np.einsum("hmn,hnd->hmd", p / p.sum(2, keepdims=True), v.astype(np.float64) * vs[..., None])
    for got in (program.interpret(**given)["O"], program.simulate(**given)["O"]):
        assert np.abs(got - want).max() < 4e-3 * np.abs(want).max()
    assert program.cubin


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_keys_of_4_bits(target: str) -> None:
    rng = np.random.default_rng(0)
    program = four.compile(target=target, schedule=fc.Schedule(tiles={"BM": 64, "BN": 32}, warps=4), TK=fc.u8, E=32)
    q = rng.standard_normal((1, 70, 2, 32)).astype(np.float16)
    k, ks = scaled(rng, "u8", (1, 50, 32))
    whole = np.concatenate([k & 15, k >> 4], axis=2).astype(np.float64) - 8
    want = np.einsum("hmd,hnd->hmn", q.reshape(1, 70, 64).astype(np.float64), whole * ks[..., None])
    for got in (program.interpret(Q=q, K=k, KS=ks)["S"], program.simulate(Q=q, K=k, KS=ks)["S"]):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert program.cubin


def test_words_of_8_numbers() -> None:
    rng = np.random.default_rng(0)
    program = eight_in_words.compile(target="sm_80", schedule=fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=2), W=16)
    q, k = rng.standard_normal((40, 8, 16)).astype(np.float16), rng.integers(0, 2**32, (33, 16), dtype=np.uint32)
    want = sum(q[:, n].astype(np.float64) @ ((k >> 4 * n & 15).astype(np.float64) - 8).T for n in range(8))
    for got in (program.interpret(Q=q, K=k)["S"], program.simulate(Q=q, K=k)["S"]):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["i8", "u8", "f8e4m3", "f8e5m2"])
@pytest.mark.parametrize(("target", "math"), [("sm_80", "mma"), ("sm_89", "mma"), ("sm_90a", "mma"), ("sm_90a", "wgmma"), ("sm_80", "fma")])
def test_products_of_8_bits(name: str, target: str, math: str) -> None:
    """By the instruction for them where the target has one; sm_80 multiplies and adds floats of 8 bits."""
    dtype, copy = DTYPES[name], "tma" if math == "wgmma" else "cp_async"
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 32, "BK": 64}, warps=4, math=math, copy=copy)
    program = product.compile(target=target, schedule=schedule, T=dtype, S=dtype.computed)
    a, b, want = operands(name, 70, 48, 112)
    for got in (program.interpret(A=a, B=b)["C"], program.simulate(A=a, B=b)["C"]):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max() if dtype.is_float else 0)
    ptx = {"i8": "s8", "u8": "u8"}.get(name, name[2:])
    used = math != "fma" and (target != "sm_80" or not dtype.is_float)
    assert (f".{ptx}.{ptx}" in program.cuda) == used and program.cubin


@pytest.mark.parametrize(("name", "math", "grid", "tile"), [
    ("i8", "mma", (1, 4), (16, 96)), ("u8", "mma", (2, 2), (32, 384)), ("f8e4m3", "mma", (4, 1), (64, 192)), ("f8e5m2", "wgmma", (1, 2), (64, 64)),
    ("i8", "wgmma", (2, 1), (128, 32)), ("u8", "wgmma", (1, 2), (128, 96))])
def test_products_of_8_bits_over_a_grid_of_warps(name: str, math: str, grid: tuple[int, int], tile: tuple[int, int]) -> None:
    dtype, copy = DTYPES[name], "tma" if math == "wgmma" else "cp_async"
    tiles = {"BM": tile[0], "BN": tile[1], "BK": 64}
    schedule = fc.Schedule(tiles=tiles, warps=8 if math == "wgmma" else 4, math=math, copy=copy, grid={"acc": grid})
    program = product.compile(target="sm_90a", schedule=schedule, T=dtype, S=dtype.computed)
    a, b, want = operands(name, tile[0] + 6, tile[1] + 10, 112)
    np.testing.assert_allclose(program.simulate(A=a, B=b)["C"], want, rtol=0, atol=1e-4 * np.abs(want).max() if dtype.is_float else 0)
    assert program.cubin


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("math", ["mma", "wgmma"])
def test_an_operand_across_the_depth_is_refused(across: bool, math: str) -> None:
    @fc.kernel
    def spec(A: "f8e4m3[M, K]", B: "f8e4m3[P, Q]", C: "out f32[M, N]", *, across: bool):
        rows, cols = fc.grid(fc.tile(A.M, "BM"), fc.tile(C.N, "BN"))
        fc.store(C[rows, cols], fc.dot(fc.load(A[rows]), fc.load(B[:, cols]) if across else fc.load(B[cols]).T))

    schedule = fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, math=math, copy="tma" if math == "wgmma" else "cp_async")
    program = spec.compile(target="sm_90a", schedule=schedule, K=64, across=across, **{"P" if across else "Q": 64})
    if not across:
        assert program.machine
        return
    with pytest.raises(fc.FcError, match="across its depth") as caught:
        _ = program.machine
    assert "transposed" in caught.value.hint and "columns, depth" in str(caught.value)


@pytest.mark.parametrize(("target", "more"), [
    ("sm_89", {"math": "mma"}), ("sm_90a", {"math": "wgmma", "copy": "tma"}), ("sm_90a", {"math": "wgmma", "copy": "tma", "regs_a": ("s",)})])
def test_both_products_of_8_bits(target: str, more: dict) -> None:
    program = whole_f8.compile(target=target, schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, **more), T=fc.f8e4m3, D=64)
    given, want = whole_f8_case(70, 80)
    told, got = program.interpret(**given)["O"], program.simulate(**given)["O"]
    assert np.abs(told - want).max() < 0.03 * np.abs(want).max() and np.abs(got - told).max() < 1e-2
    assert ".f32.e4m3.e4m3" in program.cuda and ("_f8e4m3_rs" in program.cuda) == ("regs_a" in more) and program.cubin


@pytest.mark.parametrize(("name", "to", "more"), [
    ("i8", "i8", {"math": "wgmma", "copy": "tma", "epilogue": "tma", "persistent": "static"}),
    ("f8e4m3", "f8e4m3", {"math": "wgmma", "copy": "tma", "cluster": {"cols": 2}}), ("f16", "i8", {"math": "wgmma", "copy": "tma", "epilogue": "tma"}),
    ("f8e5m2", "f8e4m3", {"math": "mma", "epilogue": "smem"})])
def test_results_of_8_bits(name: str, to: str, more: dict) -> None:
    """On each way that a tile takes to memory."""
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 64, "BK": 64}, warps=4, **more)
    program = requantised.compile(target="sm_90a", schedule=schedule, T=DTYPES[name], TO=DTYPES[to])
    a, b, want = operands(name, 130, 144, 80)
    scale = np.linspace(0.2, 1, 130, dtype=np.float32) * np.float32(100 / np.abs(want).max())
    told, got = (run(A=a, B=b, S=scale)["C"].astype(float) for run in (program.interpret, program.simulate))
    near = 0.13 if to[0] == "f" else 1.0
    assert (np.abs(told - want * scale[:, None]) <= near * (1 if to[0] == "i" else np.abs(want * scale[:, None]) + 0.01)).all()
    assert (told != got).mean() < 0.01  # where a sum in another order is rounded the other way


@pytest.mark.parametrize(("target", "name", "math"), [("sm_90a", "i8", "wgmma"), ("sm_89", "f8e4m3", "mma")])
def test_a_chosen_schedule_uses_their_instructions(target: str, name: str, math: str) -> None:
    types = {"T": DTYPES[name], "S": DTYPES[name].computed}
    schedule = fc.schedule_for(product, target, M=4096, N=4096, K=4096, **types)
    program = product.compile(target=target, schedule=schedule, **types)
    a, b, want = operands(name, 140, 150, 96)
    np.testing.assert_allclose(program.simulate(A=a, B=b)["C"], want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert schedule.math == math
