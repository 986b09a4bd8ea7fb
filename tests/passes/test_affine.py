"""Loop bounds and whole tiles against enumeration: conditions made at random from affine comparisons, and, or and not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgen.ir.core import GridAxis, Kernel
from fcgen.ir.schedule import Schedule
from fcgen.ir.verify import verify
from fcgen.passes.tile import simplify, split_loops

from .mini import Run
from .programs import E, T, ceil_div, f32, i32, kernel, scalar, tensor

BM, BN = 8, 4

# kind, and of `a * col <kind> b * row + c * w + d` the coefficients; or one of the other kinds of comparison
leaves = st.tuples(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), st.integers(-3, 3), st.integers(-2, 2),
                   st.integers(-1, 1), st.integers(-20, 20),
                   st.sampled_from(["plain", "plain", "plain", "div", "mod", "max", "uniform", "data", "abs", "quotients",
                                    "quotient", "rest"]))
trees = st.recursive(leaves, lambda t: st.one_of(st.tuples(st.just("and"), t, t), st.tuples(st.just("or"), t, t),
                                                 st.tuples(st.just("not"), t)), max_leaves=5)


def build(tree, split_cond, descending: bool) -> Kernel:
    """Marks, per program, iteration and element, where the loop ran (Ran) and what the select chose (Y)."""
    N, Y, Ran, doc = tensor("N", f32, "N"), tensor("Y", f32, "M", "N"), tensor("Ran", f32, "G", "J"), tensor("doc", i32, "N")
    w, p = scalar("w", i32), scalar("p", i32)

    def cond(t: T, tr, rows: E, cols: E) -> E:
        if tr[0] in ("and", "or"):
            return t.fn(tr[0], cond(t, tr[1], rows, cols), cond(t, tr[2], rows, cols))
        if tr[0] == "not":
            return ~cond(t, tr[1], rows, cols)
        kind, a, b, c, d, how = tr
        x, y = cols * a, rows * b + E(t, w) * c + d
        if how == "div":
            x, y = cols // 2, (rows + d) // 3
        if how == "mod":
            x = cols % 3
        if how == "max":
            y = t.fn("max", rows + d, 2)
        if how == "abs":
            x = t.fn("abs", cols * a - rows + b)
            y = E(t, w) * c + d
        if how in ("quotients", "quotient", "rest"):
            by = t.full(E(t, p), BM, BN, dtype="i32")
            x = t.fn("mod" if how == "rest" else "floordiv", cols * a, by)
            y = t.fn("floordiv", rows + d, by) if how == "quotients" else E(t, w) * c + d
        if how == "uniform":
            return t.fn(kind, t.full(E(t, w), BM, BN, dtype="i32"), d)
        if how == "data":
            x = E(t, t.b.emit("gather", doc, cols.v))
        return t.fn(kind, x, y)

    def body(t: T, mt: E) -> None:
        rows = (t.iota(BM) + mt * BM).col(BN)

        def cols(i: E) -> E:
            return (t.iota(BN) + i * BN).row(BM)

        def step(i: E, n: E) -> list[E]:
            c = cols(i)
            ok = c < t.size("N")
            if split_cond is not None:
                ok = ok & cond(t, split_cond, rows, c)
            x = t.load(N, ("tile", i * BN), shape=(BN,), guard=(True,)).row(BM)
            t.store(Y, t.where(ok, x, -1.0), ("tile", mt * BM), ("tile", i * BN), guard=(True, True))
            t.store(Ran, t.full(1.0, 1, 1), ("tile", mt), ("tile", i), guard=(False, False))
            return [n + 1.0]

        live = None if tree is None else lambda i: cond(t, tree, rows, cols(i))
        hi = ceil_div(t.size("N"), BN)
        t.loop(t.const(0, "i32"), hi, {"n": t.full(0.0, 1)}, step, live=live, tile=BN, descending=descending)

    return kernel("marks", [N, Y, Ran, doc, w, p], [GridAxis("mt", "M", BM)], {"Y": ("out",), "Ran": ("out",), "p": ("positive",)},
                  body)


def tiles_of(tree, g: int, n: int, w: int, doc, p: int) -> list[np.ndarray]:
    """The condition on each tile of one program."""
    rows = np.arange(g * BM, (g + 1) * BM)[:, None]
    return [truth(tree, rows, np.arange(i * BN, (i + 1) * BN)[None, :], w, doc, p) for i in range(-(-n // BN))]


def marks(m: int, n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"N": rng.standard_normal(n), "Y": np.zeros((m, n)), "Ran": np.zeros((-(-m // BM), -(-n // BN))),
            "doc": rng.integers(0, 3, n)}


def truth(tr, rows, cols, w, doc, p):
    if tr[0] == "and":
        return truth(tr[1], rows, cols, w, doc, p) & truth(tr[2], rows, cols, w, doc, p)
    if tr[0] == "or":
        return truth(tr[1], rows, cols, w, doc, p) | truth(tr[2], rows, cols, w, doc, p)
    if tr[0] == "not":
        return ~truth(tr[1], rows, cols, w, doc, p)
    kind, a, b, c, d, how = tr
    fn = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}[kind]
    x, y = cols * a, rows * b + w * c + d
    if how == "div":
        x, y = cols // 2, (rows + d) // 3
    if how == "mod":
        x = cols % 3
    if how == "max":
        y = np.maximum(rows + d, 2)
    if how == "abs":
        x, y = abs(cols * a - rows + b), w * c + d
    if how in ("quotients", "quotient", "rest"):
        x = cols * a % p + 0 * rows if how == "rest" else cols * a // p + 0 * rows
        y = (rows + d) // p if how == "quotients" else w * c + d
    if how == "uniform":
        x, y = np.full(np.broadcast_shapes(rows.shape, cols.shape), w), d
    if how == "data":
        x = np.where(cols < len(doc), doc[np.minimum(cols, len(doc) - 1)], 0)
    return fn(x, y)


def exact(tr) -> bool:
    """Whether the analysis is exact: one comparison of a plain linear form (no hull, no choice between two ranges)."""
    return tr[0] not in ("and", "or", "not", "eq", "ne") and tr[5] == "plain"


@settings(max_examples=300, deadline=None)
@given(trees, st.integers(1, 20), st.integers(1, 30), st.integers(-10, 10), st.integers(1, 30), st.booleans())
def test_bounds_keep_every_live_tile(tree, m, n, w, p, descending):
    k = simplify.run(verify(build(tree, None, descending)), Schedule(), None)
    k = verify(split_loops.run(k, Schedule(split="none"), None))
    arrays = marks(m, n, 1)
    Run(k, arrays, {"w": w, "p": p}).run()
    for g in range(-(-m // BM)):
        want = np.array([x.any() for x in tiles_of(tree, g, n, w, arrays["doc"], p)])
        ran = arrays["Ran"][g] > 0
        assert (ran >= want).all(), "a live tile was left out"
        if exact(tree):
            assert (ran == want).all(), "a dead tile was kept"


@settings(max_examples=300, deadline=None)
@given(trees, trees, st.integers(1, 20), st.integers(1, 30), st.integers(-10, 10), st.integers(1, 30), st.booleans(), st.booleans())
def test_split_writes_the_same(tree, live, m, n, w, p, descending, simple):
    before = verify(build(None if simple else live, tree, descending))
    after = verify(split_loops.run(simplify.run(before, Schedule(), None), Schedule(), None))
    a = marks(m, n, 2)
    b = {k: v.copy() for k, v in a.items()}
    Run(before, a, {"w": w, "p": p}).run()
    run = Run(after, b, {"w": w, "p": p}).run()
    ran = np.repeat(np.repeat(b["Ran"], BM, 0), BN, 1)[:m, :n] > 0
    np.testing.assert_array_equal(b["Y"][ran], a["Y"][ran])
    if simple:
        assert ran.all()
    if simple and exact(tree) and tree[1] != 0:
        # the whole tiles are found, all of them (rows past the end count)
        whole = sum(bool(x.all()) and (i + 1) * BN <= n for g in range(-(-m // BM))
                    for i, x in enumerate(tiles_of(tree, g, n, w, a["doc"], p)))
        assert run.iterations["full"] == whole


#: the first columns, and those that begin where a row says
APART = ("or", ("lt", 1, 0, 0, 6, "plain"), ("ge", 1, 1, 0, 50, "plain"))


@pytest.mark.parametrize(("leaf", "p"), [(("lt", 1, 3, 0, 9, "abs"), 1), (("le", 1, 0, 0, 6, "abs"), 1), (("eq", 1, 0, 0, 0, "quotients"), 9),
                                         (("lt", 1, 0, 0, 3, "quotient"), 7), (("ge", 1, 0, 0, 2, "quotient"), 11),
                                         (("gt", 1, -40, 0, 30, "abs"), 1), (APART, 1),
                                         (("and", ("le", 1, 1, 0, 70, "plain"), APART), 1)])
@pytest.mark.parametrize("descending", [False, True])
def test_such_a_mask_shrinks_its_loop(leaf, p, descending):
    """Of 30 tiles, only those run in which the condition holds somewhere, also where these are two ranges."""
    m, n = 8, 30 * BN
    k = verify(split_loops.run(simplify.run(verify(build(leaf, None, descending)), Schedule(), None), Schedule(split="none"), None))
    arrays = marks(m, n, 1)
    Run(k, arrays, {"w": 0, "p": p}).run()
    want = np.array([x.any() for x in tiles_of(leaf, 0, n, 0, arrays["doc"], p)])
    assert 0 < want.sum() < 30
    np.testing.assert_array_equal(arrays["Ran"][0] > 0, want)
