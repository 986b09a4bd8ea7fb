# mypy: disable-error-code="name-defined, valid-type, syntax"
"""`fc.vjp` and `fc.jvp`: against central differences in float64, against torch, and what has no derivative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fcgen as fc
from fcgen.errors import FcError
from fcgen.grad.elementwise import PARTIALS
from fcgen.grad.structural import RULES
from fcgen.ir.core import walk_kernel
from fcgen.lang.arith import elementwise
from fcgen.passes.tile import simplify
from fcgen.sim.tile import interpret

M, N = 5, 4


def spec_of(f, many=False):
    """A kernel of f(x [rows, cols], r [rows], c): its value, gradients against G, and tangent along the D..."""

    @fc.kernel
    def spec(X: T[M, N], R: T[M], C: T[K], G: T[M, N], DX: T[M, N], DR: T[M], DC: T[K], Y: "out T[M, N]", dX: "out T[M, N]",
             dR: "out T[M]", dC: "inout T[K]", dY: "out T[M, N]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        given = fc.load(X[rows]), fc.load(R[rows]), C[0]
        y, pull = fc.vjp(f, *given)
        dx, dr, dc = pull(fc.load(G[rows]))
        fc.store(Y[rows], y)
        fc.store(dX[rows], dx)
        fc.store(dR[rows], dr)
        fc.atomic_add(dC[0], dc)
        _, t = fc.jvp(f, given, (fc.load(DX[rows]), fc.load(DR[rows]), DC[0]))
        fc.store(dY[rows], t)

    return spec


def draw(seed):
    rng = np.random.default_rng(seed)
    shapes = {"X": (M, N), "R": (M,), "C": (1,), "G": (M, N), "DX": (M, N), "DR": (M,), "DC": (1,), "dC": (1,)}
    return {name: rng.uniform(0.3, 1.7, s) * rng.choice([-1, 1], s) * (name != "dC") for name, s in shapes.items()}


def check(f, args, tolerance=1e-6, step=1e-5):
    kernel = spec_of(f).trace({"BM": M}, T=fc.f64, N=N)
    got = interpret(kernel, args)
    moved = [interpret(kernel, {**args, **{n: args[n] + sign * step * args["D" + n] for n in "XRC"}})["Y"] for sign in (1, -1)]
    slope = (moved[0] - moved[1]) / (2 * step)
    size = 1 + np.abs(slope).max()
    assert np.abs(got["dY"] - slope).max() < tolerance * size
    along = sum((got["d" + n] * args["D" + n]).sum() for n in "XRC")
    assert abs(along - (args["G"] * slope).sum()) < tolerance * size * (1 + abs(along))


#: functions of one or two operands on what they are defined for
ONE = {"exp": fc.exp, "exp2": fc.exp2, "log": lambda x: fc.log(fc.abs(x)), "log2": lambda x: fc.log2(x * x), "sqrt": lambda x: fc.sqrt(x * x),
       "rsqrt": lambda x: fc.rsqrt(1.0 + x * x), "rcp": lambda x: elementwise("rcp", x), "sin": fc.sin, "cos": fc.cos, "tanh": fc.tanh,
       "tanh_approx": fc.tanh_approx, "sigmoid": fc.sigmoid, "erf": fc.erf, "floor": lambda x: fc.floor(x) * x, "ceil": lambda x: fc.ceil(x) - x, "neg": lambda x: -x,
       "abs": fc.abs, "cumsum": lambda x: fc.cumsum(x, axis=0), "transpose": lambda x: fc.sin(x.T).T,
       "sum": lambda x: fc.sum(fc.exp(x), axis=0) * x, "max": lambda x: fc.max(x, axis=1) * x, "min": lambda x: x - fc.min(x, axis=0),
       "all": lambda x: x * fc.max(x, axis=None) + fc.sum(x * x, axis=None), "cast": lambda x: x * x.to(fc.f64)}
TWO = {"add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y,
       "maximum": fc.maximum, "minimum": fc.minimum, "pow": lambda x, y: fc.abs(x) ** y, "select": lambda x, y: fc.where(x > y, y, x * y),
       "fma": lambda x, y: elementwise("fma", x, y, x)}


@pytest.mark.parametrize("word", ONE)
def test_of_one_operand(word) -> None:
    check(lambda x, r, c: ONE[word](x) + ONE[word](x * c) * r, draw(0))


@pytest.mark.parametrize("word", TWO)
def test_of_two_operands(word) -> None:
    f = TWO[word]
    how = {"tolerance": 1e-4, "step": 1e-2} if word == "fma" else {}  # which is computed in float32
    check(lambda x, r, c: f(x, r) + f(r, x) * f(x, c) + f(c, r * x), draw(1), **how)


def test_every_rule_is_tried() -> None:
    tried = {op.kind for f in (*ONE.values(), *[lambda x, f=f: f(x, x * x) for f in TWO.values()])
             for op in walk_kernel(spec_of(lambda x, r, c, f=f: f(x) * r + c).trace({"BM": M}, T=fc.f64, N=N))}
    assert set(PARTIALS) | set(RULES) <= tried | {"dot", "full"}


EXPRESSIONS = st.recursive(
    st.sampled_from(["x", "r", "c", 0.5, -1.25]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["tanh", "sin", "cos", "sigmoid", "erf", "abs", "neg", "exp", "sum", "cumsum", "max"]), inner),
        st.tuples(st.sampled_from(["add", "sub", "mul", "maximum", "minimum", "select", "over"]), inner, inner)), max_leaves=8)


def build(e, env):
    if isinstance(e, (str, float)):
        return env[e] if isinstance(e, str) else e
    word, *rest = e
    args = [build(a, env) for a in rest]
    if word == "over":
        return args[0] / (1.5 + args[1] * args[1])
    if len(args) == 2:
        if all(isinstance(a, float) for a in args):
            return args[0]
        return TWO[word](*args)
    tile = not isinstance(args[0], float) and args[0].shape
    if word in ("sum", "cumsum", "max") or isinstance(args[0], float):
        return args[0] if not tile else fc.cumsum(args[0], axis=0) * 0.3 if word == "cumsum" else {"sum": fc.sum, "max": fc.max}.get(
            word, fc.sum)(args[0], axis=0) * 0.2
    return fc.exp(fc.tanh(args[0])) if word == "exp" else ONE[word](args[0])


@settings(max_examples=30)
@given(EXPRESSIONS, st.integers(0, 2**31))
def test_random_expressions(e, seed) -> None:
    """Reverse and forward mode agree with the slope along a random direction."""
    def f(x, r, c):
        y = build(e, {"x": x, "r": r, "c": c})
        return (y if isinstance(y, float) else fc.tanh(y * 0.5)) * x + c * r

    check(f, draw(seed), tolerance=2e-5)


def test_a_derivative_has_a_derivative() -> None:
    """The gradient is a program like others: its own gradient is that of the second order."""
    def first(x, r, c):
        _, pull = fc.vjp(lambda y: fc.sin(y) * y * r, x)
        return pull(c)

    check(first, draw(2))
    check(lambda x, r, c: fc.jvp(lambda y: fc.tanh(y) * r, (x,), (c * x,))[1], draw(3))


# ---- as torch has them -----------------------------------------------------------------------------------------------

EDGES = np.array([[-2.0, -1.0, -0.5, 0.0], [0.0, 0.5, 1.0, 2.0], [1.0, 1.0, -1.0, -1.0], [0.0, 0.0, 3.0, 3.0], [2.5, -2.5, 0.25, 1.0]])
WITH = np.array([-1.0, 0.5, 1.0, 0.0, 2.0])


@pytest.mark.parametrize("word", ["abs", "floor", "ceil", "maximum", "minimum", "max", "min", "pow", "exponent", "sqrt", "log", "where", "div",
                                  "sigmoid", "tanh", "erf", "exp", "exp2", "log2", "rsqrt", "sin", "cos", "cumsum", "relu"])
def test_edges_are_those_of_torch(word) -> None:
    torch = pytest.importorskip("torch")
    both = {"maximum": (fc.maximum, torch.maximum), "minimum": (fc.minimum, torch.minimum), "pow": (lambda x, y: x ** y, torch.pow),
            "exponent": (lambda x, y: fc.abs(y) ** x, lambda x, y: y.abs() ** x), "div": (lambda x, y: y / x, lambda x, y: y / x),
            "where": (lambda x, y: fc.where(x > 0.0, x, y), lambda x, y: torch.where(x > 0, x, y))}
    ours, theirs = both.get(word) or {
        "max": (lambda x, y: fc.max(x, axis=1) * y - x, lambda x, y: x.amax(1, keepdim=True) * y - x),
        "min": (lambda x, y: fc.min(x, axis=0) + y, lambda x, y: x.amin(0) + y),
        "cumsum": (lambda x, y: fc.cumsum(x, axis=1) * y, lambda x, y: x.cumsum(1) * y),
        "relu": (lambda x, y: fc.maximum(x, 0.0) * y, lambda x, y: torch.maximum(x, torch.zeros_like(x)) * y)}.get(word) or (
            lambda x, y: getattr(fc, word)(x) * y, lambda x, y: getattr(torch, word)(x) * y)
    args = {**draw(0), "X": EDGES, "R": WITH}
    got = interpret(spec_of(lambda x, r, c: ours(x, r)).trace({"BM": M}, T=fc.f64, N=N), args)
    x, r, g = (torch.tensor(args[n], requires_grad=n != "G") for n in "XRG")
    y = theirs(x, r[:, None]) + torch.zeros(M, N)
    y.backward(g)
    np.testing.assert_allclose(got["Y"], y.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(got["dX"], x.grad.numpy(), rtol=1e-6, err_msg=word)
    np.testing.assert_allclose(got["dR"], r.grad.numpy(), rtol=1e-6)


# ---- products, tensors, dtypes ---------------------------------------------------------------------------------------

TARGETS = {"sm_89": fc.Schedule(tiles={"BM": 32, "BN": 32}, warps=4),
           "sm_90a": fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=8, math="wgmma", copy="tma")}


@fc.kernel
def scores(Q: "f16[M, D]", K: "f16[N, D]", G: "f32[M, N]", dQ: "inout f32[M, D]", dK: "inout f32[N, D]", Y: "out f32[M, N]", *, f=None):
    rows, cols = fc.grid(fc.tile(Q.M, "BM"), fc.tile(K.N, "BN"))
    whole = lambda q, k: f(fc.dot(q, k.T), rows.index, cols.index)
    y, pull = fc.vjp(whole, fc.load(Q[rows]), fc.load(K[cols]), captured=True)
    dq, dk = pull(fc.load(G[rows, cols]))
    assert dq.dtype == dk.dtype == fc.f32
    fc.atomic_add(dQ[rows], dq)
    fc.atomic_add(dK[cols], dk)
    fc.store(Y[rows, cols], y)


def products(f, target, m=37, n=45, **more):
    rng = np.random.default_rng(3)
    q, k, g = (rng.standard_normal(s) for s in ((m, 64), (n, 64), (m, n)))
    program = scores.compile(target=target, schedule=TARGETS[target], D=64, f=f)
    given = {"Q": q.astype(np.float16), "K": k.astype(np.float16), "G": g, "dQ": np.zeros((m, 64)), "dK": np.zeros((n, 64)), **more}
    one, two = program.interpret(**given), program.simulate(**given)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-3, atol=2e-3)
    return given["Q"].astype(float), given["K"].astype(float), g, one


@pytest.mark.parametrize("target", TARGETS)
def test_products(target) -> None:
    q, k, g, got = products(lambda s, i, j: fc.tanh(s * 0.1), target)
    ds = g * (1 - np.tanh(q @ k.T * 0.1) ** 2) * 0.1
    np.testing.assert_allclose(got["dQ"], ds @ k, atol=5e-3)
    np.testing.assert_allclose(got["dK"], ds.T @ q, atol=5e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_function_holds_gets_its_gradient_where_it_was_read(target) -> None:
    """A bias is a rectangle, a slope one element, a table has a place for each element of the tile; outside of them is nothing."""
    rng = np.random.default_rng(4)
    m, n = 37, 45
    bias, slopes, table, rows, far = (rng.standard_normal(s).astype(np.float32) for s in ((2, m, n - 4), 3, 9, m, (1, n)))

    def f(s, i, j):
        return s * (bias[1, i, j] + slopes[2] + table[j - i + 3]) + rows[i] * far[0, j] + far[1, j] + slopes[i // 20] * s

    grads = {f"f_{n}_grad": np.zeros(x.shape) for n, x in enumerate((bias, slopes, table, rows, far))}
    q, k, g, got = products(f, target, m, n, **grads)
    s, i, j = q @ k.T, np.arange(m)[:, None], np.arange(n)
    at = j - i + 3
    ok = (at >= 0) & (at < 9)
    want = [np.zeros(x.shape) for x in (bias, slopes, table, rows, far)]
    want[0][1] = (g * s)[:, :n - 4]
    want[1][2] = (g * s).sum()
    np.add.at(want[1], np.broadcast_to(i // 20, s.shape), g * s)
    np.add.at(want[2], at[ok], (g * s)[ok])
    want[3][:] = g @ far[0]
    want[4][0] = rows @ g
    for name, x in zip(grads, want):
        np.testing.assert_allclose(got[name], x, atol=1e-3, err_msg=name)


def test_a_gradient_that_is_stored_is_refused_to_another_function_that_reads_the_tensor() -> None:
    held = np.zeros(40, np.float32)

    @fc.kernel
    def spec(X: "f32[M]", Y: "out f32[M]", *, f=None):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x, each = fc.load(X[rows]), lambda x: f(x, rows.index)
        gradients = [fc.vjp(each, x, captured=True, places=places)[1](1.0) for places in ((rows.index,), ())]
        fc.store(Y[rows], gradients[0] + gradients[1])

    with pytest.raises(FcError) as e:
        spec.compile(target="sm_89", schedule=fc.Schedule(tiles={"BM": 32}), f=lambda x, i: x * held[i])
    assert e.value.code == "trace/grad" and "another one reads it too" in str(e.value)


def test_gradients_of_tensors_are_added_where_one_says() -> None:
    @fc.kernel
    def spec(X: "f16[M, N]", W: "f16[N]", dW: "inout f32[N]", dX: "inout f32[M, N]", T: "f16[N]", Y: "out f32[M, N]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        f = lambda x, w: fc.load(x[rows]).to(fc.f32) * fc.load(w).to(fc.f32)
        _, pull = fc.vjp(f, X, W)
        gx, gw = pull(2.0)
        gx.add_to(dX)
        gw.add_to(dW)
        fc.store(Y[rows], fc.jvp(f, (X, W), (None, T))[1])

    rng = np.random.default_rng(5)
    x, w, t = (rng.standard_normal(s).astype(np.float16) for s in ((7, 6), 6, 6))
    got = interpret(spec.trace({"BM": 4}, N=6), {"X": x, "W": w, "T": t, "dW": np.ones(6), "dX": np.zeros((7, 6))})
    np.testing.assert_allclose(got["dX"], np.tile(2.0 * w.astype(float), (7, 1)))
    np.testing.assert_allclose(got["dW"], 1 + 2.0 * x.astype(float).sum(0), rtol=1e-6)
    np.testing.assert_allclose(got["Y"], x.astype(float) * t, rtol=1e-6)


def test_narrow_floats_have_wide_gradients() -> None:
    """Nothing is rounded to 16 bits on the way: of x * x * ... the gradient is that of float32 arithmetic."""
    @fc.kernel
    def spec(X: "f16[M]", dX: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        _, pull = fc.vjp(lambda x: (x * 1.0009765625).to(fc.f32) * 3.0, fc.load(X[rows]))
        fc.store(dX[rows], pull(1.0 / 3.0))

    assert (interpret(spec.trace({"BM": 8}), {"X": np.ones(8, np.float16)})["dX"] == np.float32(1.0009765625)).all()


def test_operands_that_a_function_holds_are_constant() -> None:
    @fc.kernel
    def spec(X: "f32[M]", dX: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        x = fc.load(X[rows])
        _, pull = fc.vjp(lambda y: x * y, x)
        fc.store(dX[rows], pull(1.0))

    x = np.arange(8.0)
    assert (interpret(spec.trace({"BM": 8}), {"X": x})["dX"] == x).all()


def test_nothing_is_left_of_what_has_no_derivative() -> None:
    """Of s + b the gradient is the one that came in: no product with 1, no sum with 0, no copy."""
    @fc.kernel
    def spec(X: "f32[M]", B: "f32[M]", G: "f32[M]", dX: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        b = fc.load(B[rows])
        _, pull = fc.vjp(lambda x: fc.where(rows.index >= 0, x + b * fc.floor(b), x - 1.0), fc.load(X[rows]))
        fc.store(dX[rows], pull(fc.load(G[rows])))

    kinds = [op.kind for op in walk_kernel(simplify.run(spec.trace({"BM": 8}), None, None))]  # type: ignore[arg-type]
    assert set(kinds) <= {"size", "const", "mul", "load", "store", "select", "add", "ge", "iota", "full"}


# ---- refused ---------------------------------------------------------------------------------------------------------


def refused(code, body, *words):
    @fc.kernel
    def spec(X: "f32[M]", I: "i32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        body(fc.load(X[rows]), fc.load(I[rows]), rows, Y)
        fc.store(Y[rows], 0.0)

    with pytest.raises(FcError) as e:
        spec.trace({"BM": 8})
    assert e.value.code == code and all(w in str(e.value) for w in words), str(e.value)


def _looped(x):
    v = fc.var(x)
    for _ in fc.loop(3):
        v <<= v * x  # the loop that has no derivative
    return v


def _branched(x):
    v = fc.var(x)
    with fc.when(fc.sum(x) > 0.0):
        v <<= v * 2.0
    return v


@pytest.mark.parametrize("code, body, words", [
    ("trace/grad", lambda x, i, rows, Y: fc.vjp(_looped, x)[1](1.0), ("a loop", "for _ in fc.loop(3)", "inside of it")),
    ("trace/grad", lambda x, i, rows, Y: fc.jvp(_branched, (x,), (x,)), ("a branch", "with fc.when", "fc.where")),
    ("trace/grad", lambda x, i, rows, Y: fc.vjp(lambda y: elementwise("bits", y), x)[1](1.0), ("bits of a float",)),
    ("trace/grad", lambda x, i, rows, Y: fc.vjp(lambda y: y, i), ("floats", "i32")),
    ("trace/shape", lambda x, i, rows, Y: fc.vjp(lambda y: fc.sum(y), x)[1](x), ("the gradient",)),
    ("trace/dtype", lambda x, i, rows, Y: fc.vjp(lambda y: y, x)[1](i), ("the gradient", "i32")),
    ("trace/usage", lambda x, i, rows, Y: fc.vjp(lambda y: (y, y), x)[1](x), ("2 of them",)),
    ("trace/usage", lambda x, i, rows, Y: fc.vjp(lambda: x), ("fc.vjp(f, x)",)),
    ("trace/usage", lambda x, i, rows, Y: fc.vjp(lambda y: y, x, captured="fewer"), ("captured", "fewer")),
    ("trace/usage", lambda x, i, rows, Y: fc.vjp(lambda y: y, x, places=(rows.index,)), ("captured", "1 places")),
    ("trace/usage", lambda x, i, rows, Y: fc.jvp(lambda y: y, (x,), (x, x)), ("a tangent for each",)),
    ("trace/usage", lambda x, i, rows, Y: fc.vjp(lambda y: y, x)[0] + fc.vjp(lambda t: x, Y)[1](1.0), ("add_to",)),
    ("trace/store", lambda x, i, rows, Y: fc.vjp(lambda t: x, Y)[1](1.0).add_to(x), ("inout f32[M]",)),
])
def test_refused(code, body, words) -> None:
    refused(code, body, *words)
