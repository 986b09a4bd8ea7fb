"""What no pass can carry out is refused in words, and not by an error of the compiler's own."""

from __future__ import annotations

import pytest

import fcgen as fc
from fcgen.build import compiler
from fcgen.errors import FcError
from fcgen.ir.parse import parse_kernel
from fcgen.kernels.attention import attention
from fcgen.passes import run_passes

SLICED = """tile kernel sliced
param %X: tensor f32[M, 32]
param %Y: tensor f32[M, 16] out
grid %m: M / 32
{{
  %rows = const {{value = 32, dtype = i32}} : i32
  %zero = const {{value = 0, dtype = i32}} : i32
  %at = mul %m, %rows : i32
  {made} : f32[32,32]
  %s = slice %x, %zero {{axis = 1, size = 16}} : f32[32,16]
  store %Y, %s, %at {{index = (tile, all), guard = (true, false)}}
}}
"""


@pytest.mark.parametrize("made", ["%x = load %X, %at {index = (tile, all), guard = (true, false)}",
                                  "%one = const {value = 1.0, dtype = f32} : f32\n  %x = full %one {shape = (32, 32)}"])
def test_a_part_of_a_tile_that_lanes_share(made: str) -> None:
    kernel = parse_kernel(SLICED.format(made=made), "sliced.fc")
    with pytest.raises(FcError, match="threads do not keep whole parts of %s") as e:
        run_passes(kernel, fc.Schedule(), compiler.target("sm_89"))
    assert e.value.code == "compile/unsupported" and e.value.expected and e.value.loc.line == len(SLICED.format(made=made).split("%s = ")[0].splitlines())


@fc.kernel
def long_product(X: "f16[A, B, C, D, E, F, M, K]", W: "f16[N, K]", Y: "out f32[A, B, C, D, E, F, M, N]"):
    a, b, c, d, e, f, ms, ns = fc.grid(X.A, X.B, X.C, X.D, X.E, X.F, fc.tile(X.M, "BM"), fc.tile(W.N, "BN"))
    acc = fc.var(fc.zeros(ms, ns))
    for ks in fc.loop(fc.tile(X.K, "BK")):
        acc <<= acc + fc.dot(fc.load(X[a, b, c, d, e, f, ms, ks]), fc.load(W[ns, ks]).T)
    fc.store(Y[a, b, c, d, e, f, ms, ns], acc)


@pytest.mark.parametrize(("parts", "message", "expected"), [
    (1, "X has more axes than a bulk copy can follow", "at most 5"), (2, "the grid has no room for one more axis", "at most 7 axes")])
def test_tensors_and_grids_of_eight_axes(parts: int, message: str, expected: str) -> None:
    schedule = fc.Schedule(tiles={"BM": 64, "BN": 64, "BK": 64}, copy="tma", parts=parts)
    with pytest.raises(FcError, match=message) as e:
        _ = long_product.compile(target="sm_90a", schedule=schedule, check=False).cuda
    assert e.value.code == "compile/schedule" and e.value.expected == expected and e.value.hint


@pytest.mark.parametrize(("made", "stage", "then"), [
    ({"ones": "acc", "math": "wgmma", "copy": "tma"}, "row_sums", {"math": "mma"}), ({}, "order", {"copy": "tma", "parts": 2})])
def test_ir_from_the_middle_of_the_pipeline_starts_over(made: dict[str, str], stage: str, then: dict[str, object]) -> None:
    """With another schedule: what can be done is done, and what cannot is refused in words."""
    tiles = {"BLOCK_M": 64, "BLOCK_N": 64}
    traced = attention.trace(tiles, T=fc.f16, D=64, E=64, mask="none", LSE=None)
    text = str(run_passes(traced, fc.Schedule(**made), compiler.target("sm_90a"), stop_after=stage))
    try:
        run_passes(parse_kernel(text), fc.Schedule(**then), compiler.target("sm_90a"))
    except FcError as e:
        assert e.code == "compile/schedule" and not e.message.startswith("internal"), e
