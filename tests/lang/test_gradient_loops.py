# mypy: disable-error-code="name-defined, valid-type, syntax"
# (annotations of specs are fcgen's own)
"""Gradients through loops that carry more than sums: running maxima, what is rescaled by them, decayed and other states."""

from __future__ import annotations

import numpy as np
import pytest

import fcgen as fc
from benchmarks.specs import CASES
from tests.gradients import compare, example

pytestmark = pytest.mark.filterwarnings("ignore")
HOPPER = {"warps": 8, "math": "wgmma", "copy": "tma", "epilogue": "direct", "persistent": "static"}
WIDE = {"T": fc.f16, "D": 64, "E": 64}


@pytest.mark.parametrize("name, sizes, target, schedule, binding", [
    ("differential_attention", {"b": 1, "m": 40, "n": 70, "d": 32, "e": 48}, "sm_89", fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}), {"T": fc.f16, "D": 32, "E": 48}),
    ("differential_attention", {"b": 1, "h": 1, "m": 70, "n": 130}, "sm_90a", fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 64}, late="acc", grid={"s": (1, 1)}, **HOPPER), WIDE),
    ("linear_attention", {"b": 1, "h": 2, "m": 100, "d": 32, "e": 48}, "sm_89", fc.Schedule(tiles={"BLOCK_M": 32}), {"T": fc.f16, "D": 32, "E": 48}),
    ("linear_attention", {"b": 1, "h": 1, "m": 200}, "sm_90a", fc.Schedule(tiles={"BLOCK_M": 64}, makers=4, **HOPPER), WIDE),
    ("softmax", {"m": 20, "n": 70}, "sm_89", fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 32}), {"T": fc.f16}),
    ("attention", {"h": 2, "g": 1, "n": 50, "d": 32}, "sm_89", fc.Schedule(tiles={"BLOCK_M": 32, "BLOCK_N": 32}), {"T": fc.f16, "D": 32, "E": 32})])
def test_examples(name, sizes, target, schedule, binding) -> None:
    e, given = example(name, **sizes)
    assert depth(compare(e.spec, e.reference, given, binding, schedule, target)) == 1


def depth(program) -> int:
    """How deep loops lie in loops."""
    lines = [line for line in str(program.tile).splitlines() if " = for %" in line or line.lstrip().startswith("for %")]
    return max(len(line) - len(line.lstrip()) for line in lines) // 2


def draw(**shapes):
    rng = np.random.default_rng(5)
    return {n: rng.standard_normal(s).astype(np.float32).astype(float) for n, s in shapes.items()}


def check(spec, reference, given, **more):
    return compare(fc.kernel(spec) if not isinstance(spec, fc.Spec) else spec, reference, given, more.pop("binding", {}), fc.Schedule(tiles=more.pop("tiles", {"BM": 16, "BN": 16})), **{"tolerance": 1e-3, **more})


# ---- a running maximum, and what is computed against it -------------------------------------------------------------------------


@fc.kernel
def statistics(X: "f32[M, N]", V: "f32[N, E]", A: "out f32[M, E]", S: "out f32[M]", L: "out f32[M]", O: "out f32[M, E]"):
    """All that a softmax has: what hangs on its maximum, and what does not."""
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    soft = fc.online_softmax(rows, V.E)
    for cols in fc.loop(fc.tile(X.N, "BN")):
        soft.add(fc.load(X[rows, cols]), V[cols], where=cols.index != rows.index)
    fc.store(A[rows], soft.acc * 0.5)
    fc.store(S[rows], soft.max + soft.sum)
    fc.store(L[rows], soft.lse())
    fc.store(O[rows], soft.out())


def of_statistics(X, V):
    m, n = X.shape
    s = np.where(np.arange(n) != np.arange(m)[:, None], X, -np.inf)
    top = s.max(1, keepdims=True)
    p = np.exp(s - top)
    return {"A": p @ V * 0.5, "S": top[:, 0] + p.sum(1), "L": top[:, 0] + np.log(p.sum(1)), "O": p @ V / p.sum(1, keepdims=True)}


def test_what_hangs_on_the_maximum_of_a_softmax_has_its_gradient() -> None:
    check(statistics, of_statistics, draw(X=(20, 40), V=(40, 16)), binding={"E": 16})


#: what is stored of a softmax of square tiles: as a function of the language's words, whether it hangs on the maximum, its width
STORED = {
    "mean": (lambda w, x, v: w.acc / w.l, False), "log-sum-exp": (lambda w, x, v: w.rows(w.m + w.log(w.l)), False),
    "written otherwise": (lambda w, x, v: w.acc * w.exp(w.rows(-w.m * 1.0)) * w.exp(w.rows(w.m)) / w.l, True),
    "squares of both": (lambda w, x, v: w.acc * w.acc / (w.l * w.l), False), "root": (lambda w, x, v: w.acc * w.acc / w.sqrt(w.l), True),
    "sum": (lambda w, x, v: w.rows(w.l), True), "twice the maximum": (lambda w, x, v: w.rows(w.m * 2.0 + w.log(w.l)), True),
    "weights": (lambda w, x, v: w.dot(w.exp(x - w.m), v) / w.l, False), "of the row's sum": (lambda w, x, v: w.acc / w.sum(w.acc, 1), False),
    "of all rows' sum": (lambda w, x, v: w.acc / w.sum(w.rows(w.l), 0), True), "product with values": (lambda w, x, v: w.dot(w.acc, v) / w.l, False),
    "product over rows": (lambda w, x, v: w.dot(x, w.dot(x.T, w.acc)) / w.l, True), "chosen": (lambda w, x, v: w.where(w.acc > 0.0, w.acc, 2.0 * w.acc) / w.l, False)}


class OfLanguage:
    exp, log, sqrt, where = staticmethod(fc.exp), staticmethod(fc.log), staticmethod(fc.sqrt), staticmethod(fc.where)

    def __init__(self, soft, like):
        self.m, self.l, self.acc, self.like = soft.max + 0.0, soft.sum + 0.0, soft.acc + 0.0, like

    def rows(self, x):
        return x + fc.zeros(*self.like)

    def sum(self, x, axis):
        return fc.sum(x, axis=axis)

    def dot(self, x, y):
        return fc.dot(x, y)


class OfNumPy:
    exp, log, sqrt, where = staticmethod(np.exp), staticmethod(np.log), staticmethod(np.sqrt), staticmethod(np.where)

    def __init__(self, x, v):
        self.m = x.max(1, keepdims=True)
        p = np.exp(x - self.m)
        self.l, self.acc = p.sum(1, keepdims=True), p @ v

    def rows(self, x):
        return x + np.zeros((16, 16))

    def sum(self, x, axis):
        return x.sum(axis, keepdims=True)

    def dot(self, x, y):
        return x @ y


@pytest.mark.parametrize("what", STORED)
def test_the_maximum_is_followed_where_something_hangs_on_it(what) -> None:
    """There are three loops then: what is as large is counted. All tiles are square, so that rows and columns may be taken for each other."""
    stored, hangs = STORED[what]

    def part(X: "f32[M, N]", V: "f32[N, E]", Y: "out f32[M, E]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        soft = fc.online_softmax(rows, V.E)
        for _ in fc.loop(1):
            soft.add(fc.load(X[rows]), fc.load(V))
        fc.store(Y[rows], stored(OfLanguage(soft, (rows, V.E)), fc.load(X[rows]), fc.load(V)))

    given = draw(X=(16, 16), V=(16, 16))
    program = check(part, lambda X, V: {"Y": stored(OfNumPy(X, V), X, V)}, given, tiles={"BM": 16}, runs=("interpret",),
                    tolerance=2e-3, binding={"N": 16, "E": 16})
    assert str(program.tile).count("for %") == (3 if hangs else 2)


@pytest.mark.parametrize("target, schedule", [("sm_89", fc.Schedule(tiles={"BM": 32, "BN": 32})),
                                              ("sm_90a", fc.Schedule(tiles={"BM": 64, "BN": 64}, warps=4, math="wgmma", copy="tma"))])
def test_a_maximum_of_products_is_found_again(target, schedule) -> None:
    """The loop that counts what is as large, and that which hands the gradient on, make the products anew."""
    def top(Q: "f16[M, D]", K: "f16[N, D]", S: "out f32[M]", T: "out f32[M]", *, scale: "f32 > 0"):
        (rows,) = fc.grid(fc.tile(Q.M, "BM"))
        q, soft = fc.load(Q[rows]), fc.online_softmax(rows)
        for cols in fc.loop(fc.tile(K.N, "BN"), live=lambda cols: cols.index <= rows.index + 5):
            soft.add(fc.dot(q, fc.load(K[cols]).T) * scale)
        fc.store(S[rows], soft.max)
        fc.store(T[rows], soft.sum)

    def reference(Q, K, scale):
        s = np.where(np.arange(len(K)) <= np.arange(len(Q))[:, None] + 5, Q @ K.T * scale, -np.inf)
        return {"S": s.max(1), "T": np.exp(s - s.max(1, keepdims=True)).sum(1)}

    given = {n: x.astype(np.float16).astype(float) for n, x in draw(Q=(70, 64), K=(90, 64)).items()}
    compare(fc.kernel(top), reference, {**given, "scale": 0.1767}, {"D": 64}, schedule, target)


def test_rows_that_see_nothing_have_no_gradient_and_spoil_none() -> None:
    @fc.kernel
    def masked(X: "f32[M, N]", V: "f32[N, E]", O: "out f32[M, E]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        soft = fc.online_softmax(rows, V.E)
        for cols in fc.loop(fc.tile(X.N, "BN"), live=lambda cols: cols.index < rows.index):
            soft.add(fc.load(X[rows, cols]), V[cols])
        fc.store(O[rows], soft.out())

    def reference(X, V):
        m, n = X.shape
        p = np.where(np.arange(n) < np.arange(m)[:, None], np.exp(X), 0.0)
        return {"O": p @ V / np.maximum(p.sum(1, keepdims=True), 1e-30)}

    check(masked, reference, draw(X=(20, 40), V=(40, 16)), binding={"E": 16})


def test_written_out_with_a_number_to_begin_with_in_powers_of_two() -> None:
    """What a sum and its reference begin with has its gradient: one score per row that is no column's."""
    def written(X: "f32[M, N]", B: "f32[M]", O: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        b = fc.load(B[rows])
        m, l, total = fc.var(b), fc.var(fc.full(rows, 1.0)), fc.var(b * 3.0)
        for cols in fc.loop(fc.tile(X.N, "BN"), descending=True):
            x = fc.load(X[rows, cols])
            s = fc.where(cols.valid, x * 1.5, -fc.inf)
            top = fc.maximum(m, fc.max(s, axis=1))
            p, fade = fc.exp2(s - top), fc.exp2(m - top)
            total <<= fade * total + fc.sum(p * x, axis=1)
            l <<= l * fade - fc.sum(-p, axis=1)
            m <<= top
        fc.store(O[rows], total / l)

    def reference(X, B):
        p, first = np.exp2(X * 1.5), np.exp2(B)
        return {"O": (3 * B * first + (p * X).sum(1)) / (first + p.sum(1))}

    check(written, reference, draw(X=(20, 40), B=(20,)))


@pytest.mark.parametrize("fn", ["maximum", "minimum"])
def test_a_running_extreme_shares_its_gradient_among_what_is_equal(fn) -> None:
    def extreme(X: "f32[M, N]", B: "f32[M]", O: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        m = fc.var(fc.load(B[rows]))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            for k in range(cols.size // 8):
                one = fc.load(X[rows, cols])
                one = fc.where((cols.index - cols.start) // 8 == k, one, fc.inf if fn == "minimum" else -fc.inf)
                m <<= getattr(fc, fn)(m, (fc.min if fn == "minimum" else fc.max)(one, axis=1))
        fc.store(O[rows], m * m)

    given = draw(X=(16, 48), B=(16,))
    program = check(extreme, lambda X, B: {"O": getattr(np, fn)(getattr(X, fn[:3])(1), B) ** 2}, given)
    sign = 1 if fn == "maximum" else -1
    x, b = np.full((16, 48), -sign * 5.0), np.full(16, sign * 4.0)
    x[:, [1, 30, 47]] = sign * 4.0
    found = program.interpret(X=x, B=b, dO=np.ones(16), dX=0 * x, dB=0 * b)
    assert np.allclose(found["dX"][:, [1, 30, 47]], sign * 2.0) and np.allclose(found["dB"], sign * 2.0)


# ---- other states ----------------------------------------------------------------------------------------------------------------


GATES = {"exp": lambda g: np.exp(-g * g), "exp2": lambda g: np.exp2(-g * g), "sigmoid": lambda g: 1 / (1 + np.exp(-g)), "plain": lambda g: g}


@pytest.mark.parametrize("gate, deep", [("exp", 1), ("exp2", 1), ("sigmoid", 1), ("plain", 2)])
@pytest.mark.parametrize("along", ["rows", "columns", "all"])
def test_a_state_that_fades_by_what_the_loop_reads(gate, deep, along) -> None:
    """Nothing is computed again where the gate vanishes with its derivative; it may be 0."""
    def gated(X: "f32[N, M, D]", G: "f32[N, M, D]", Y: "out f32[N, M]", Z: "out f32[M, D]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        state = fc.var(fc.load(X[0, rows]) * 0.5)
        for n in fc.loop(X.N):
            g, x = fc.load(G[n, rows]), fc.load(X[n, rows])
            g = fc.load(G[n, rows, 0]) if along == "rows" else fc.load(G[n, 0]) if along == "columns" else g
            a = g if gate == "plain" else fc.sigmoid(g) if gate == "sigmoid" else getattr(fc, gate)(-g * g)
            fc.store(Y[n, rows], fc.sum(state * x, axis=1))
            state <<= a * state + x - fc.sin(x)
        fc.store(Z[rows], state)

    def reference(X, G):
        G = {"rows": G[:, :, :1], "columns": G[:, :1], "all": G}[along]
        state, y = X[0] * 0.5, []
        for x, a in zip(X, GATES[gate](G)):
            y.append((state * x).sum(1))
            state = a * state + x - np.sin(x)
        return {"Y": np.array(y), "Z": state}

    given = draw(X=(9, 16, 16), G=(9, 16, 16))
    if gate != "sigmoid":
        given["G"][4] = {"plain": 0.0}.get(gate, 12.0)  # the state is forgotten here
    runs = ("interpret", "simulate") if along == "rows" else ("interpret",)
    assert depth(check(gated, reference, given, binding={"D": 16}, tiles={"BM": 16}, runs=runs)) == deep


def test_a_state_that_is_no_sum_is_walked_backwards() -> None:
    """What the loop does to its states is no sum, they hang on each other, and it stores what they are on the way."""
    def recurrent(X: "f32[M, N]", W: "f32[N]", H: "out f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        h, c = fc.var(fc.load(X[rows, 0])), fc.var(fc.zeros(rows))
        for n in fc.loop(X.N):
            x = X[rows.index, n]
            new = fc.tanh(h * W[n] + x)
            c <<= c * fc.sigmoid(x) + h * new
            h <<= new
            fc.store(H[rows, n], new * c)
        fc.store(Y[rows], c + h)

    def reference(X, W):
        h, c, out = X[:, 0], 0 * X[:, 0], 0 * X
        for n in range(X.shape[1]):
            new = np.tanh(h * W[n] + X[:, n])
            h, c = new, c / (1 + np.exp(-X[:, n])) + h * new
            out[:, n] = new * c
        return {"H": out, "Y": c + h}

    check(recurrent, reference, draw(X=(20, 7), W=(7,)), tiles={"BM": 16})


@pytest.mark.parametrize("descending", [False, True])
def test_sums_of_sums_and_states_that_change_places(descending) -> None:
    def sums(X: "f32[M, N]", Y: "out f32[M]", Z: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        one, other = fc.var(fc.zeros(rows)), fc.var(fc.full(rows, 1.0))
        for cols in fc.loop(fc.tile(X.N, "BN"), descending=descending, start=1):
            x = fc.sum(fc.load(X[rows, cols]), axis=1)
            was = one + 0.0
            one <<= other + x
            other <<= was + one * x
        fc.store(Y[rows], one)
        fc.store(Z[rows], other)

    def reference(X):
        one, other = 0 * X[:, 0], 0 * X[:, 0] + 1
        tiles = [X[:, n:n + 16].sum(1) for n in range(16, X.shape[1], 16)]
        for x in tiles[::-1] if descending else tiles:
            new = other + x
            one, other = new, one + new * x
        return {"Y": one, "Z": other}

    check(sums, reference, draw(X=(20, 70)))


def test_a_sum_that_is_stored_on_the_way_and_loops_in_such_a_loop() -> None:
    def prefix(X: "f32[M, N]", W: "f32[M]", Y: "out f32[M, N]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        w, total = fc.load(W[rows]), fc.var(fc.zeros(rows))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            x = fc.load(X[rows, cols])
            square = fc.var(fc.sum(x, axis=1))
            for _ in fc.loop(2):
                square <<= square * w
            total <<= total * 0.5 + square
            fc.store(Y[rows, cols], total * x)

    def reference(X, W):
        total, out = 0 * W, 0 * X
        for n in range(0, X.shape[1], 16):
            total = total * 0.5 + X[:, n:n + 16].sum(1) * W**2
            out[:, n:n + 16] = total[:, None] * X[:, n:n + 16]
        return {"Y": out}

    check(prefix, reference, draw(X=(20, 40), W=(20,)))


def test_a_weight_that_is_stored_while_its_maximum_still_changes() -> None:
    """It hangs on the maximum so far, not on the last one: the loop is walked backwards."""
    def early(X: "f32[M, N]", P: "out f32[M, N]", L: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        m, l = fc.var(fc.full(rows, -2.0)), fc.var(fc.zeros(rows))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            x = fc.load(X[rows, cols])
            top = fc.maximum(m, fc.max(fc.where(cols.valid, x, -fc.inf), axis=1))
            p = fc.where(cols.valid, fc.exp(x - top), 0.0)
            l <<= l * fc.exp(m - top) + fc.sum(p, axis=1)
            m <<= top
            fc.store(P[rows, cols], p)
        fc.store(L[rows], fc.log(l) + m)

    def reference(X):
        out = np.concatenate([np.exp(X[:, n:n + 16] - np.maximum(X[:, :n + 16].max(1, keepdims=True), -2.0)) for n in range(0, X.shape[1], 16)], 1)
        return {"P": out, "L": np.log(np.exp(X).sum(1))}

    check(early, reference, draw(X=(20, 40)))


def test_a_branch_in_a_loop_is_refused_with_its_line() -> None:
    def branch(X: "f32[M, N]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        one = fc.var(fc.zeros(rows))
        for cols in fc.loop(fc.tile(X.N, "BN")):
            with fc.when(cols.start > 16):
                one <<= one + fc.sum(fc.load(X[rows, cols]), axis=1)
        fc.store(Y[rows], one)

    with pytest.raises(fc.FcError, match="no derivative through a branch") as e:
        fc.grad(fc.kernel(branch)).trace({"BM": 16, "BN": 16})
    assert e.value.code == "trace/grad" and "fc.when(cols.start > 16)" in str(e.value)


def test_states_of_16_bits() -> None:
    """Their gradients are f32."""
    def short(X: "f16[M, N]", G: "f16[N]", Y: "out f32[M, N]", Z: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        top, state = fc.var(fc.load(X[rows, 0])), fc.var(fc.load(X[rows, 0]) * 0.5)
        for n in fc.loop(X.N):
            x = X[rows.index, n]
            fc.store(Y[rows, n], (state * x).to(fc.f32))
            state <<= state * fc.sigmoid(G[n]) + x
            top <<= fc.maximum(top, x)
        fc.store(Z[rows], top.to(fc.f32))

    def reference(X, G):
        state, out = X[:, 0] * 0.5, 0 * X
        for n in range(X.shape[1]):
            out[:, n] = state * X[:, n]
            state = state / (1 + np.exp(-G[n])) + X[:, n]
        return {"Y": out, "Z": X.max(1)}

    given = {n: x.astype(np.float16).astype(float) for n, x in draw(X=(20, 6), G=(6,)).items()}
    check(short, reference, given, tiles={"BM": 16}, tolerance=2e-2)


class Probe(dict):
    """Tiles of 32, by whatever names they are asked for."""

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return self.setdefault(name, 32)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"backward", "backward_128", "totals"}))  # these add to what is given
def test_kernels_of_many_kinds(name) -> None:
    """In float32, along a direction of each tensor, by central differences of the kernel itself."""
    case, rng, tiles = CASES[name], np.random.default_rng(0), Probe()
    binding = {**case.binding, **({"T": fc.f32} if "T" in case.binding else {})}
    case.spec.trace(tiles, **binding)
    spec, gradient = (s.compile(target="sm_89", schedule=fc.Schedule(tiles=dict(tiles)), check=False, **binding) for s in (case.spec, fc.grad(case.spec)))
    given = dict(case.given)
    for p in spec.params:
        if p.name not in given and not spec.is_output(p.name):
            sizes = [case.sizes.get(d, d) for d in getattr(p.type, "dims", ())]
            x = rng.standard_normal(sizes).astype(np.float32).astype(float) if p.type.dtype.is_float else rng.integers(0, 3, sizes)
            given[p.name] = x if sizes else 0.3 if p.type.dtype.is_float else case.sizes.get(p.name, 2)
    cotangents = {n: rng.standard_normal(x.shape) for n, x in spec.interpret(**given).items()}
    sums = [p.name for p in gradient.params if gradient.is_output(p.name)]
    found = gradient.interpret(**given, **{f"d{n}": c for n, c in cotangents.items()}, **{n: np.zeros(given[n[1:]].shape) for n in sums})
    for n in sums:
        step = 3e-3 * rng.standard_normal(found[n].shape).astype(np.float32)
        ends = [sum((x.astype(float) * cotangents[o]).sum() for o, x in spec.interpret(**{**given, n[1:]: given[n[1:]] + s * step}).items()) for s in (1, -1)]
        want, got = (ends[0] - ends[1]) / 2, (found[n].astype(float) * step).sum()
        assert abs(got - want) < 3e-3 * (abs(want) + np.linalg.norm(found[n].astype(float) * 3e-3)), n
