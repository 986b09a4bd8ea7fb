"""What the DSL can say, traced and run through the tile interpreter."""

from __future__ import annotations

import linecache
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.ir.core import walk
from fcgen.ir.parse import parse_kernel
from fcgen.sim.tile import interpret

TILES = {"BM": 16, "BN": 16}
RNG = np.random.default_rng(0)


def run(spec: Any, args: dict[str, Any], tiles: dict[str, int] | None = None, **binding: Any) -> dict[str, np.ndarray]:
    kernel = spec.trace(tiles or TILES, **binding)
    assert str(parse_kernel(str(kernel))) == str(kernel)
    return interpret(kernel, args)


def test_axes_are_told_apart_in_square_tiles() -> None:
    @fc.kernel
    def outer(X: "f32[M]", Z: "f32[N]", Y: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(Z.N, "BN"))
        fc.store(Y[rows, cols], fc.load(Z[cols]) - 2.0 * fc.load(X[rows]))

    x, z = RNG.standard_normal(20).astype(np.float32), RNG.standard_normal(30).astype(np.float32)
    np.testing.assert_allclose(run(outer, {"X": x, "Z": z})["Y"], z[None] - 2 * x[:, None], rtol=1e-6)


def test_a_tile_stored_along_other_axes_is_transposed() -> None:
    @fc.kernel
    def turn(X: "f32[M, N]", Y: "out f32[N, M]"):
        rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
        fc.store(Y[cols, rows], fc.load(X[rows, cols]))

    x = RNG.standard_normal((20, 30)).astype(np.float32)
    np.testing.assert_array_equal(run(turn, {"X": x})["Y"], x.T)


def test_nested_loops_carry_what_they_assign() -> None:
    @fc.kernel
    def count(X: "f32[M]", Y: "out f32[M]", *, n: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        total, last = fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows))
        for i in fc.loop(n):
            for j in fc.loop(i + 1, descending=True):
                total <<= total + fc.load(X[rows]) * (i * 10 + j).to(fc.f32)
                last <<= fc.full(rows, 1.0) * j.to(fc.f32)
        fc.store(Y[rows], total + last)

    x = np.ones(16, np.float32)
    want = sum(10 * i + j for i in range(4) for j in range(i + 1))
    np.testing.assert_allclose(run(count, {"X": x, "n": 4})["Y"], want)


def test_when_keeps_the_old_value_otherwise() -> None:
    @fc.kernel
    def pick(X: "f32[M]", Y: "out f32[M]", *, n: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        v = fc.var(fc.load(X[rows]))
        with fc.when(n > 2):
            v <<= v * 2.0
        fc.store(Y[rows], v)

    x = RNG.standard_normal(16).astype(np.float32)
    for n in (1, 3):
        np.testing.assert_allclose(run(pick, {"X": x, "n": n})["Y"], x * (2 if n > 2 else 1))


def test_start_stop_and_descending() -> None:
    @fc.kernel
    def partial(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        acc = fc.var(fc.zeros(rows))
        for cols in fc.loop(fc.tile(X.N, "BN"), start=1, stop=3, descending=True):
            acc <<= acc * 0.5 + fc.sum(fc.load(X[rows, cols]), axis=cols)
        fc.store(Y[rows], acc)

    x = RNG.standard_normal((16, 64)).astype(np.float32)
    want = x[:, 32:48].sum(1) * 0.5 + x[:, 16:32].sum(1)
    np.testing.assert_allclose(run(partial, {"X": x})["Y"], want, rtol=1e-5)


def test_positions_gather_elements_and_scalars_read_one() -> None:
    @fc.kernel
    def relative(X: "f32[M, N]", table: "f32[R]", w: "f32[H]", Y: "out f32[M, N]"):
        rows, cols = fc.grid(fc.tile(X.M, "BM"), fc.tile(X.N, "BN"))
        fc.store(Y[rows, cols], table[rows.index - cols.index + 31] * w[1])

    args = {"X": np.zeros((20, 30), np.float32), "table": np.arange(64, dtype=np.float32), "w": np.array([1, 3, 5], np.float32)}
    i, j = np.arange(20)[:, None], np.arange(30)
    np.testing.assert_allclose(run(relative, args)["Y"], (i - j + 31) * 3.0)


def test_atomic_add_lets_programs_meet() -> None:
    @fc.kernel
    def total(X: "f32[H, M]", Y: "inout f32[M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        fc.atomic_add(Y[rows], fc.load(X[h, rows]))

    x = RNG.standard_normal((5, 20)).astype(np.float32)
    np.testing.assert_allclose(run(total, {"X": x, "Y": np.ones(20, np.float32)})["Y"], 1 + x.sum(0), rtol=1e-5)


def test_helpers_constants_and_python_control_flow_are_metaprogramming() -> None:
    def cap(x: Any, c: float) -> Any:
        return c * fc.tanh(x / c)

    @fc.kernel
    def layered(X: "f32[M, D]", Y: "out f32[M, D]", *, caps):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        for c in caps:
            x = cap(x, c)
        fc.store(Y[rows], x)

    x = RNG.standard_normal((16, 16)).astype(np.float32)
    got = run(layered, {"X": x}, D=16, caps=(3.0, 2.0))["Y"]
    np.testing.assert_allclose(got, 2 * np.tanh(3 * np.tanh(x / 3) / 2), rtol=1e-4)
    lines = {op.loc.source_line().strip() for op in walk(layered.trace(TILES, D=16, caps=(3.0,)).body) if op.kind == "tanh"}
    assert lines == {"return c * fc.tanh(x / c)"}


def test_values_have_the_names_of_the_spec() -> None:
    @fc.kernel
    def named(X: "f32[M, D]", Y: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        x = fc.exp(x)
        total = fc.sum(x, axis=1)
        fc.store(Y[rows], x / total)

    kernel = named.trace(TILES, D=16)
    names = {op.kind: op.result.name for op in walk(kernel.body) if op.results and op.result.name}
    assert names["load"] == "x" and names["exp"] == "x" and names["reduce"] == "total"
    assert kernel.grid[0].name == "rows_tile"


def test_a_spec_needs_no_source_file() -> None:
    scope: dict[str, Any] = {"fc": fc}
    code = '@fc.kernel\ndef twice(X: "f32[M]", Y: "out f32[M]"):\n    (rows,) = fc.grid(fc.tile(X.M, "BM"))\n    fc.store(Y[rows], fc.load(X[rows]) * 2.0)\n'
    exec(compile(code, "<cell 1>", "exec"), scope)
    x = RNG.standard_normal(20).astype(np.float32)
    np.testing.assert_allclose(run(scope["twice"], {"X": x})["Y"], 2 * x)
    linecache.cache["<cell 2>"] = (len(code), None, code.splitlines(keepends=True), "<cell 2>")
    exec(compile(code.replace("2.0", "'a'"), "<cell 2>", "exec"), scope)
    with pytest.raises(fc.FcError) as e:
        scope["twice"].trace(TILES)
    assert e.value.loc is not None and e.value.loc.file == "<cell 2>"


def test_until_counts_programs_and_iterations() -> None:
    @fc.kernel
    def sums(X: "f32[H, M, N]", Y: "out f32[H, M]"):
        h, rows = fc.grid(X.H, fc.tile(X.M, "BM"))
        acc = fc.var(fc.zeros(rows))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            part = fc.sum(fc.load(X[h, rows, cols]), axis=1)
            big = part > 0.0
            acc <<= acc + fc.where(big, part, 0.0)
        fc.store(Y[h, rows], acc)

    x = RNG.standard_normal((2, 32, 48)).astype(np.float32)
    want = x.reshape(2, 2, 16, 3, 16).sum(-1).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(interpret(sums.until("part").trace(TILES), {"X": x})["UNTIL"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(interpret(sums.until("big").trace(TILES), {"X": x})["UNTIL"], want > 0)
    with pytest.raises(fc.FcError) as e:
        sums.until("nothing").trace(TILES)
    assert "part" in str(e.value)


def test_bf16_and_integers() -> None:
    @fc.kernel
    def mix(X: "bf16[M, D]", Y: "out i32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        n = fc.sum(fc.where(x + x > 1.0, 1, 0), axis=1)
        fc.store(Y[rows], n // 2 + rows.index % 3 - (-n) * 2)

    x = RNG.standard_normal((20, 16)).astype(np.float32)
    n = (2 * fc.round_to(x, fc.bf16) > 1).sum(1)
    np.testing.assert_array_equal(run(mix, {"X": x}, D=16)["Y"], n // 2 + np.arange(20) % 3 + 2 * n)


@fc.kernel
def three_axes(X: "T[B, M, D]", Y: "T[G, M, D]", O: "out T[B, M, D]", L: "out f32[B, M]"):
    batch, rows = fc.grid(fc.tile(X.B, "BB"), fc.tile(X.M, "BM"))
    x = fc.load(X[batch, rows, :])
    z = (x + fc.load(Y[:, rows, :])) * (batch.start.to(X.dtype) + 1.0)
    fc.store(O[batch, rows, :], z)
    fc.store(L[batch, rows], fc.sum(z.to(fc.f32), axis=1))


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
def test_an_axis_of_one_position_among_three(target):
    x, y = (np.random.default_rng(n).standard_normal((3 - 2 * n, 37, 16)).astype(np.float32) for n in (0, 1))
    p = three_axes.compile(target=target, schedule=fc.Schedule(tiles={"BB": 1, "BM": 16}, warps=4), T=fc.f32, G=1, D=16)
    want = (x + y) * np.arange(1, 4)[:, None, None]
    for run in (p.interpret, p.simulate):
        got = run(X=x, Y=y)
        np.testing.assert_allclose(got["O"], want, rtol=1e-5)
        np.testing.assert_allclose(got["L"], want.sum(-1), rtol=1e-4, atol=1e-4)
