"""Sizes and scalars that a kernel may be called with: no arithmetic on positions overflows for them, and windows of any size mean what they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fcgen as fc
from fcgen.build.compiler import from_text
from fcgen.errors import FcError
from fcgen.ir.core import Kernel, Value, walk
from fcgen.ir.ranges import FLOOR, HIGHEST, LOWEST, REACH, Admitted, admitted
from fcgen.passes import run_passes

M, N = None, None  # names in annotations
WINDOWS = [HIGHEST, HIGHEST - 1, LOWEST, HIGHEST - 63, 40]


def spec(mask, **kw):
    """A kernel that marks what a mask lets through; its loop is as short as `live` allows."""

    @fc.kernel
    def marked(X: "f16[M, 64]", Z: "f16[N, 64]", Y: "out f32[M]", *, window: "i32", back: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x, total = fc.load(X[rows]), fc.var(fc.zeros(rows))
        near = lambda cols: mask(rows.index, cols.index, window, back)
        for cols in fc.loop(fc.tile(Z.N, "BN"), live=near, **kw):
            s = fc.dot(x, fc.load(Z[cols]).T)
            total <<= total + fc.sum(fc.where(near(cols) & cols.valid, s, 0.0), axis=1)
        fc.store(Y[rows], total)

    return marked


MASKS = {
    "behind": lambda r, c, w, b: r - c < w, "ahead": lambda r, c, w, b: c - r <= w, "moved": lambda r, c, w, b: c <= r + w,
    "turned": lambda r, c, w, b: c >= r - w, "both": lambda r, c, w, b: (r - c < w) & (c - r < b), "distance": lambda r, c, w, b: abs(r - c) <= w,
    "twice": lambda r, c, w, b: 2 * w > r - c, "either": lambda r, c, w, b: (r - c < w) | (c < b), "negative": lambda r, c, w, b: ~(c - r > w),
}


def truth(name, r, c, w, b):
    r, c = np.arange(r, dtype=object)[:, None], np.arange(c, dtype=object)[None]
    return {"behind": lambda: r - c < w, "ahead": lambda: c - r <= w, "moved": lambda: c <= r + w, "turned": lambda: c >= r - w,
            "both": lambda: (r - c < w) & (c - r < b), "distance": lambda: abs(r - c) <= w, "twice": lambda: 2 * w > r - c,
            "either": lambda: (r - c < w) | (c < b), "negative": lambda: c - r <= w}[name]().astype(bool)


@pytest.mark.parametrize("arch", ["sm_89", "sm_90a"])
@pytest.mark.parametrize("name", MASKS)
def test_no_window_is_too_large(name, arch):
    """The tile interpreter, the machine program and arithmetic without bounds agree, whatever i32 is passed."""
    more = {"copy": "tma", "math": "wgmma"} if arch == "sm_90a" else {}
    p = spec(MASKS[name]).compile(target=arch, schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, **more))
    rng = np.random.default_rng(0)
    m, n = 40, 100
    x, z = (rng.integers(-2, 3, (k, 64)).astype(np.float16) for k in (m, n))
    s = x.astype(np.float64) @ z.astype(np.float64).T
    for w, b in [(w, 20) for w in WINDOWS] + [(HIGHEST, HIGHEST), (40, LOWEST)] * (name in ("both", "either")):
        want = np.where(truth(name, m, n, w, b), s, 0.0).sum(1)
        np.testing.assert_array_equal(p.interpret(X=x, Z=z, window=w, back=b)["Y"], want, err_msg=f"{w}, {b}")
        np.testing.assert_array_equal(p.simulate(X=x, Z=z, window=w, back=b)["Y"], want, err_msg=f"{w}, {b}")
    assert admitted(p.tile)["window"].saturates and admitted(p.machine)["window"].saturates


@pytest.mark.parametrize(("mask", "why"), [
    (lambda r, c, w, b: r - c < w + b, "two scalars in one comparison"), (lambda r, c, w, b: c < w // 2 * 3, "half of it"),
    (lambda r, c, w, b: (c + w) % 3 == 0, "a remainder"), (lambda r, c, w, b: (c + w).to(fc.f32) > 0.0, "another type")], ids=lambda x: x if type(x) is str else "")
def test_what_does_not_saturate_is_refused_past_its_range(mask, why):
    p = spec(mask).compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4))
    r = admitted(p.machine)["window"]
    assert not r.saturates and FLOOR <= r.hi < HIGHEST
    given = {"X": np.zeros((8, 64), np.float16), "Z": np.zeros((8, 64), np.float16), "back": 1}
    for run in (p.interpret, p.simulate):
        with pytest.raises(FcError, match="argument `window` is out of range") as e:
            run(**given, window=HIGHEST)
        assert e.value.code == "call/argument"
        assert str(r.hi if run == p.simulate else admitted(p.tile)["window"].hi) in str(e.value)
    p.simulate(**given, window=r.hi)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40])
def test_scalars_past_32_bits_are_refused(value):
    p = spec(MASKS["behind"]).compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4))
    for run in (p.interpret, p.simulate):
        with pytest.raises(FcError, match="argument `window` is out of range"):
            run(X=np.zeros((8, 64), np.float16), Z=np.zeros((8, 64), np.float16), window=value, back=1)


def test_lengths_near_the_end_of_32_bits_are_refused_before_they_are_read():
    p = spec(MASKS["behind"]).compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4))
    for n in (HIGHEST, HIGHEST - 62, HIGHEST - 63, admitted(p.machine)["N"].hi + 1):
        pretended = np.broadcast_to(np.float16(0), (n, 64))
        with pytest.raises(FcError, match="argument `Z` is too large"):
            p.simulate(X=np.zeros((8, 64), np.float16), Z=pretended, window=1, back=1)


def test_a_positive_scalar_stays_positive():
    @fc.kernel
    def marked(X: "f32[M]", Y: "out f32[M]", *, window: "i32 > 0"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], fc.where(rows.index < window, fc.load(X[rows]), 0.0))

    p = marked.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64}, warps=2))
    assert admitted(p.tile)["window"] == (1, REACH, True)
    np.testing.assert_array_equal(p.simulate(X=np.ones(5, np.float32), window=HIGHEST)["Y"], 1)
    with pytest.raises(FcError):
        p.simulate(X=np.ones(5, np.float32), window=0)


def test_arithmetic_that_is_meant_to_wrap_limits_nothing():
    @fc.kernel
    def hashed(X: "f32[M]", Y: "out i32[M]", *, salt: "i32"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], (rows.index * 1640531527 + salt) ^ 12345)

    p = hashed.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64}, warps=2))
    assert admitted(p.machine)["M"].hi >= 2**30 and admitted(p.machine)["salt"].hi >= FLOOR
    assert (p.simulate(X=np.ones(200, np.float32), salt=7)["Y"] == p.interpret(X=np.ones(200, np.float32), salt=7)["Y"]).all()


def corners(kernel: Kernel):
    """Every i32 scalar op outside of loops, and positions in tiles, with exact integers at the corners of what is admitted."""
    r = admitted(kernel)
    for ends in itertools.product((0, 1), repeat=3):
        env: dict[Value, list[int]] = {}
        size = lambda d: d if isinstance(d, int) else r[d].hi if ends[0] else 1  # noqa: B023
        for p in kernel.params:
            if p.name in r:
                env[p] = [r[p.name].hi if ends[1] else r[p.name].lo]
        for axis, arg in zip(kernel.grid, kernel.body.args):
            env[arg] = [max(0, (size(axis.dim) - 1) // axis.tile) if ends[2] else 0]
        fns = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "max": max, "min": min, "neg": lambda a: -a,
               "abs": abs, "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b}
        for op in walk(kernel.body):
            if op.kind == "for":
                ab = [env.get(v) for v in op.operands[:2]]
                if all(ab):
                    env[op.regions[0].args[0]] = [min(ab[0]), max(*ab[0], max(ab[1]) - 1)]
            if len(op.results) != 1 or getattr(op.results[0].type, "dtype", None) != fc.i32:
                continue
            xs = [env.get(v) for v in op.operands]
            if op.kind == "const":
                env[op.results[0]] = [op["value"]]
            elif op.kind == "size":
                env[op.results[0]] = [size(op["dim"])]
            elif op.kind == "iota":
                env[op.results[0]] = [0, op.results[0].type.shape[0] - 1]
            elif op.kind in ("full", "broadcast", "transpose") and all(xs):
                env[op.results[0]] = xs[0]
            elif op.kind == "select" and all(xs[1:]):
                env[op.results[0]] = sorted({*xs[1], *xs[2]})
            elif op.kind in fns and all(xs):
                out = sorted({fns[op.kind](*v) for v in itertools.product(*xs)})
                env[op.results[0]] = [out[0], out[-1]]
                yield op, out


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("split", ["loops", "branch", "none"])
def test_nothing_overflows_at_the_corners(name, split):
    p = spec(MASKS[name], descending=split == "none").compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 64, "BN": 64}, split=split))
    kernel = run_passes(p.tile, p.schedule, p.target, stop_after="ranges.2")
    seen = 0
    for op, values in corners(kernel):
        seen += 1
        assert all(LOWEST <= v <= HIGHEST for v in values), (str(op), values)
    assert seen > 50


@pytest.mark.parametrize("mask", ["none", "causal_top_left", "causal_bottom_right"])
def test_shipped_kernels_take_all_that_fits_in_memory(mask):
    from fcgen.attend.forward import compiled
    from fcgen.kernels.schedules import choose

    for arch in ("sm_89", "sm_90a"):
        schedule, lazy, sums = choose(arch, (2, 4, 4096, 64), (2, 4, 4096, 64), 64, mask, 132)
        r = admitted(compiled("f16", 64, 64, mask, True, arch, schedule, True, lazy, sums).machine)
        assert all(r[d].hi >= 2**28 for d in "MNBHG")


TEXT = """machine kernel k
param %X: tensor f16[M, 64]
param %w: i32
meta ranges = {}
role main warps 1 {{
}}
"""


def test_ranges_survive_the_text():
    k = from_text(TEXT.format("((M, 0, 100, false), (w, -5, 5, true))"), "k.fc")
    assert admitted(k) == {"M": Admitted(0, 100), "w": Admitted(-5, 5, True)} and admitted(from_text(str(k), "k.fc")) == admitted(k)
    w = admitted(k)["w"]
    assert (w("w", 3), w("w", 2**31 - 1), w("w", -(2**31))) == (3, 5, -5)


@pytest.mark.parametrize("lines", ["((M, 0, 100),)", "((Z, 0, 1, false),)", "((M, 5, 1, false),)", "((M, 0, 4294967296, false),)", "((M, 0, 1, 1),)", "3",
                                   "((M, 0.5, 1, false),)", "(M, 0, 1, false)"])
def test_ranges_without_sense_are_refused(lines):
    with pytest.raises(FcError, match="meta ranges") as e:
        from_text(TEXT.format(lines), "k.fc")
    assert e.value.code == "ir/verify"
