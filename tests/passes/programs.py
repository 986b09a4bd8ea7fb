"""Tile programs for the tests of this folder, written with a thin expression layer over `Builder`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from fcgen.ir.core import GridAxis, Kernel, Op, Role, Value
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import Scalar, Tensor, Tile, f16, f32, i1, i32

__all__ = ["E", "T", "attention", "branches", "ceil_div", "column_sums", "f16", "f32", "gemm", "i1", "i32", "kernel", "linear",
           "nested", "row_norm", "scalar", "sigmoid_rows", "tensor"]


class T:
    """Builds ops into a stack of blocks."""

    def __init__(self) -> None:
        self.stack = [Builder()]

    @property
    def b(self) -> Builder:
        return self.stack[-1]

    def const(self, x: Any, dtype: str = "f32") -> E:
        return E(self, self.b.emit("const", value=x, dtype=dtype))

    def e(self, x: Any, dtype: str) -> E:
        return x if isinstance(x, E) else self.const(float(x) if dtype[0] in "fb" else x, dtype)

    def full(self, x: Any, *shape: int, dtype: str = "f32") -> E:
        return E(self, self.b.emit("full", self.e(x, dtype).v, shape=shape))

    def iota(self, n: int) -> E:
        return E(self, self.b.emit("iota", shape=(n,)))

    def size(self, dim: str | int) -> E:
        return self.const(dim, "i32") if isinstance(dim, int) else E(self, self.b.emit("size", dim=dim, name=dim.lower()))

    def fn(self, name: str, *args: Any, label: str = "") -> E:
        dtype = next(str(a.v.type.dtype) for a in args if isinstance(a, E))
        vs = [self.e(a, dtype) for a in args]
        rank = max(len(v.v.type.shape) for v in vs)
        assert all(len(v.v.type.shape) in (0, rank) for v in vs), "broadcast by hand: .col(n) or .row(m)"
        return E(self, self.b.emit(name, *[v.v for v in vs], name=label))

    def where(self, c: E, a: Any, b: Any) -> E:
        dtype = next((str(x.v.type.dtype) for x in (a, b) if isinstance(x, E)), "f32")
        return E(self, self.b.emit("select", c.v, self.e(a, dtype).v, self.e(b, dtype).v))

    def load(self, tensor: Value, *at: Any, shape: Sequence[int], guard: Sequence[bool], name: str = "") -> E:
        """at: "all", ("tile", E) or E per dimension."""
        words = tuple("all" if isinstance(a, str) else "tile" if isinstance(a, tuple) else "at" for a in at)
        pos = [self.e(a[1] if isinstance(a, tuple) else a, "i32").v for a in at if not isinstance(a, str)]
        typ = Tile(tensor.type.dtype, tuple(shape)) if shape else Scalar(tensor.type.dtype)
        return E(self, self.b.emit("load", tensor, *pos, type=typ, name=name, index=words, guard=tuple(guard)))

    def store(self, tensor: Value, value: E, *at: Any, guard: Sequence[bool], **kw: Any) -> None:
        words = tuple("all" if isinstance(a, str) else "tile" if isinstance(a, tuple) else "at" for a in at)
        pos = [self.e(a[1] if isinstance(a, tuple) else a, "i32").v for a in at if not isinstance(a, str)]
        self.b.do("store", tensor, value.v, *pos, index=words, guard=tuple(guard), **kw)

    def loop(self, lo: E, hi: E, inits: dict[str, E], body: Callable[..., Sequence[E]], live: Callable[[E], E] | None = None,
             **attrs: Any) -> list[E]:
        i = Value(Scalar(i32), "i")
        args = [Value(v.v.type, k) for k, v in inits.items()]
        regions = []
        for fn, values in ((body, args), (live, [])):
            if fn is None:
                continue
            with self.inner() as b:
                out = fn(E(self, i), *[E(self, a) for a in values])
                b.do("yield", *[o.v for o in (out if isinstance(out, (list, tuple)) else [out])])
            regions.append(b.block((i, *values)))
            i = Value(Scalar(i32), "i")
        results = tuple(Value(a.type, a.name) for a in args)
        self.b.add(Op("for", (lo.v, hi.v, *(v.v for v in inits.values())), results, attrs, tuple(regions)))
        return [E(self, r) for r in results]

    def branch(self, cond: E, then: Callable[[], Sequence[E]], other: Callable[[], Sequence[E]]) -> list[E]:
        regions = []
        for fn in (then, other):
            with self.inner() as b:
                b.do("yield", *[o.v for o in fn()])
            regions.append(b.block())
        results = tuple(Value(v.type, v.name) for v in regions[0].yielded)
        self.b.add(Op("if", (cond.v,), results, {}, tuple(regions)))
        return [E(self, r) for r in results]

    @contextlib.contextmanager
    def inner(self):
        self.stack.append(Builder())
        yield self.stack[-1]
        self.stack.pop()


class E:
    """A value with operators."""

    def __init__(self, t: T, v: Value):
        self.t, self.v = t, v

    def _op(name: str, swap: bool = False):
        def run(self, other: Any) -> E:
            return self.t.fn(name, other, self) if swap else self.t.fn(name, self, other)

        return run

    __add__, __radd__, __sub__, __rsub__ = _op("add"), _op("add", True), _op("sub"), _op("sub", True)
    __mul__, __rmul__, __truediv__, __floordiv__ = _op("mul"), _op("mul", True), _op("div"), _op("floordiv")
    __mod__ = _op("mod")
    __lt__, __le__, __gt__, __ge__ = _op("lt"), _op("le"), _op("gt"), _op("ge")
    __and__, __or__ = _op("and"), _op("or")
    __eq__, __ne__ = _op("eq"), _op("ne")  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def __invert__(self) -> E:
        return self.t.fn("not", self)

    def col(self, n: int) -> E:
        """One value per row, copied along n columns."""
        return E(self.t, self.t.b.emit("broadcast", self.v, axes=(0,), shape=(*self.v.type.shape, n)))

    def row(self, m: int) -> E:
        return E(self.t, self.t.b.emit("broadcast", self.v, axes=(1,), shape=(m, *self.v.type.shape)))

    @property
    def T(self) -> E:
        return E(self.t, self.t.b.emit("transpose", self.v))

    def reduce(self, fn: str, axis: int) -> E:
        return E(self.t, self.t.b.emit("reduce", self.v, fn=fn, axis=axis))

    def to(self, dtype: str) -> E:
        return E(self.t, self.t.b.emit("cast", self.v, to=dtype))

    def dot(self, other: E, name: str = "") -> E:
        return E(self.t, self.t.b.emit("dot", self.v, other.v, name=name))


def kernel(name: str, params: Sequence[Value], grid: Sequence[GridAxis], flags: dict, body: Callable[..., None]) -> Kernel:
    t = T()
    ids = [Value(Scalar(i32), g.name) for g in grid]
    body(t, *[E(t, v) for v in ids])
    return Kernel(name, "tile", tuple(params), tuple(grid), (Role("all", 0, t.b.block(tuple(ids))),), flags)


def tensor(name: str, dtype: Any, *dims: str | int) -> Value:
    return Value(Tensor(dtype, dims), name)


def scalar(name: str, dtype: Any = f32) -> Value:
    return Value(Scalar(dtype), name)


def ceil_div(x: E, n: int) -> E:
    return (x + (n - 1)) // n


Mask = Callable[[T, dict, E, E], E]


def attention(d: int = 32, e: int = 32, bm: int = 32, bn: int = 16, mask: Mask | None = None, descending: bool = False,
              cap: bool = False, live: bool = True, stale: bool = False, extra: Sequence[Value] = (), dtype: Any = f16) -> Kernel:
    """Rows against columns with a running maximum. mask(t, params, rows, cols) of shapes [bm, 1-d] spread to [bm, bn]."""
    Q, K, V = tensor("Q", dtype, "M", d), tensor("K", dtype, "N", d), tensor("V", dtype, "N", e)
    O, L = tensor("O", f32, "M", e), tensor("L", f32, "M")
    scale, capv = scalar("scale"), scalar("cap")
    params = [Q, K, V, O, L, scale, *([capv] if cap else []), *extra]

    def body(t: T, mt: E) -> None:
        names = {p.name: p if isinstance(p.type, Tensor) else E(t, p) for p in params}
        start = mt * bm
        rows = (t.iota(bm) + start).col(bn)
        q = t.load(Q, ("tile", start), "all", shape=(bm, d), guard=(True, False), name="q")
        n = t.size("N")

        def cols(i: E) -> E:
            return (t.iota(bn) + i * bn).row(bm)

        def keep(i: E) -> E:
            c = cols(i)
            inside = c < n
            return inside & mask(t, names, rows, c) if mask else inside

        def step(i: E, m: E, l: E, acc: E) -> list[E]:
            k = t.load(K, ("tile", i * bn), "all", shape=(bn, d), guard=(True, False), name="k")
            s = q.dot(k.T, name="s") * names["scale"]
            if cap:
                s = t.fn("tanh", s / names["cap"]) * names["cap"]
            s = t.where(keep(i), s, -math.inf)
            mn = t.fn("max", m, s.reduce("max", 1))
            if stale:
                mn = t.where((mn - m) > 4.0, mn, m)
            base = t.where(mn == -math.inf, t.full(0.0, bm), mn)
            p = t.fn("exp", s - base.col(bn))
            a = t.fn("exp", m - base)
            v = t.load(V, ("tile", i * bn), "all", shape=(bn, e), guard=(True, False), name="v")
            return [mn, l * a + p.reduce("sum", 1), acc * a.col(e) + p.to(str(dtype)).dot(v)]

        inits = {"m": t.full(-math.inf, bm), "l": t.full(0.0, bm), "acc": t.full(0.0, bm, e)}
        m, l, acc = t.loop(t.const(0, "i32"), ceil_div(n, bn), inits, step, live=keep if live else None, tile=bn,
                           descending=descending)
        good = l > 0.0
        t.store(O, t.where(good.col(e), acc / l.col(e), 0.0), ("tile", start), "all", guard=(True, False))
        t.store(L, m + t.fn("log", l), ("tile", start), guard=(True,))

    return kernel("rows", params, [GridAxis("mt", "M", bm)], {"O": ("out",), "L": ("out",), "scale": ("positive",),
                                                             "cap": ("positive",)}, body)


def gemm(bm: int = 32, bn: int = 32, bk: int = 16, k: str | int = "K") -> Kernel:
    """gelu(A B + bias)."""
    A, B, bias, C = tensor("A", f16, "M", k), tensor("B", f16, k, "N"), tensor("bias", f32, "N"), tensor("C", f16, "M", "N")

    def body(t: T, mi: E, ni: E) -> None:
        r, c = mi * bm, ni * bn

        def step(i: E, acc: E) -> list[E]:
            a = t.load(A, ("tile", r), ("tile", i * bk), shape=(bm, bk), guard=(True, True), name="a")
            b = t.load(B, ("tile", i * bk), ("tile", c), shape=(bk, bn), guard=(True, True), name="b")
            return [acc + a.dot(b)]

        (acc,) = t.loop(t.const(0, "i32"), ceil_div(t.size(k), bk), {"acc": t.full(0.0, bm, bn)}, step, tile=bk)
        x = acc + t.load(bias, ("tile", c), shape=(bn,), guard=(True,)).row(bm)
        y = x * 0.5 * (t.fn("erf", x * (1 / math.sqrt(2))) + 1.0)
        t.store(C, y.to("f16"), ("tile", r), ("tile", c), guard=(True, True))

    return kernel("gemm", [A, B, bias, C], [GridAxis("mi", "M", bm), GridAxis("ni", "N", bn)], {"C": ("out",)}, body)


def row_norm(bm: int = 16, d: int = 40) -> Kernel:
    """exp(x - max) / sum over a compile-time width that is no multiple of anything."""
    X, Y = tensor("X", f32, "M", d), tensor("Y", f32, "M", d)

    def body(t: T, mt: E) -> None:
        at = ("tile", mt * bm)
        x = t.load(X, at, "all", shape=(bm, d), guard=(True, False))
        p = t.fn("exp", x - x.reduce("max", 1).col(d))
        t.store(Y, p / p.reduce("sum", 1).col(d), at, "all", guard=(True, False))

    return kernel("row_norm", [X, Y], [GridAxis("mt", "M", bm)], {"Y": ("out",)}, body)


def sigmoid_rows(bm: int = 32, bn: int = 16, d: int = 24, e: int = 40) -> Kernel:
    """sum over columns of sigmoid(scale * q.k + shift) v, below the diagonal."""
    Q, K, V, O = tensor("Q", f16, "M", d), tensor("K", f16, "N", d), tensor("V", f16, "N", e), tensor("O", f32, "M", e)
    scale, shift = scalar("scale"), scalar("shift")

    def body(t: T, mt: E) -> None:
        start = mt * bm
        q = t.load(Q, ("tile", start), "all", shape=(bm, d), guard=(True, False))
        rows = (t.iota(bm) + start).col(bn)

        def keep(i: E) -> E:
            c = (t.iota(bn) + i * bn).row(bm)
            return (c <= rows) & (c < t.size("N"))

        def step(i: E, acc: E) -> list[E]:
            k = t.load(K, ("tile", i * bn), "all", shape=(bn, d), guard=(True, False))
            p = t.where(keep(i), t.fn("sigmoid", q.dot(k.T) * E(t, scale) + E(t, shift)), 0.0)
            v = t.load(V, ("tile", i * bn), "all", shape=(bn, e), guard=(True, False))
            return [acc + p.to("f16").dot(v)]

        (acc,) = t.loop(t.const(0, "i32"), ceil_div(t.size("N"), bn), {"acc": t.full(0.0, bm, e)}, step, live=keep, tile=bn)
        t.store(O, acc, ("tile", start), "all", guard=(True, False))

    flags = {"O": ("out",), "scale": ("positive",)}
    return kernel("sigmoid_rows", [Q, K, V, O, scale, shift], [GridAxis("mt", "M", bm)], flags, body)


def linear(d: int = 24, e: int = 40, bn: int = 16) -> Kernel:
    """A state carried over columns: S = decay * S + k^T v per tile of rows; the rows read S before it moves."""
    Q, K, V, O = tensor("Q", f16, "N", d), tensor("K", f16, "N", d), tensor("V", f16, "N", e), tensor("O", f32, "N", e)
    decay = scalar("decay")

    def body(t: T, one: E) -> None:
        def step(i: E, state: E) -> list[E]:
            at = ("tile", i * bn)
            q = t.load(Q, at, "all", shape=(bn, d), guard=(True, False))
            k = t.load(K, at, "all", shape=(bn, d), guard=(True, False))
            v = t.load(V, at, "all", shape=(bn, e), guard=(True, False))
            t.store(O, q.to("f32").dot(state), at, "all", guard=(True, False))
            return [state * E(t, decay) + k.T.dot(v)]

        t.loop(t.const(0, "i32"), ceil_div(t.size("N"), bn), {"state": t.full(0.0, d, e)}, step, tile=bn)

    return kernel("linear", [Q, K, V, O, decay], [GridAxis("one", 1)], {"O": ("out",)}, body)


def column_sums(n: str | int = "N", d: int = 24, bn: int = 16) -> Kernel:
    """Guards and nothing else to decide."""
    X, O = tensor("X", f32, n, d), tensor("O", f32, d)

    def body(t: T, one: E) -> None:
        def step(i: E, s: E) -> list[E]:
            return [s + t.load(X, ("tile", i * bn), "all", shape=(bn, d), guard=(True, False)).reduce("sum", 0)]

        (s,) = t.loop(t.const(0, "i32"), ceil_div(t.size(n), bn), {"s": t.full(0.0, d)}, step, tile=bn)
        t.store(O, s, "all", guard=(False,))

    return kernel("column_sums", [X, O], [GridAxis("one", 1)], {"O": ("out",)}, body)


def branches(d: int = 24, bn: int = 16) -> Kernel:
    """A running maximum of scaled rows, taken in a branch; every third tile is skipped, the last tile is counted double."""
    X, O, P = tensor("X", f32, "N", d), tensor("O", f32, d), tensor("P", f32, d)
    scale = scalar("scale")

    def body(t: T, one: E) -> None:
        n = t.size("N")
        last = ceil_div(n, bn) - 1

        def step(i: E, m: E, s: E) -> list[E]:
            def then() -> list[E]:
                x = t.load(X, ("tile", i * bn), "all", shape=(bn, d), guard=(True, False)) * E(t, scale)
                ok = (t.iota(bn) + i * bn).col(d) < n
                return [t.fn("max", m, t.where(ok, x, -math.inf).reduce("max", 0)), s + t.where(ok, x, 0.0).reduce("sum", 0)]

            m, s = t.branch((i % 3) < 2, then, lambda: [m, s])
            (s,) = t.branch(i >= last, lambda: [s + s], lambda: [s])
            return [m, s]

        inits = {"m": t.full(-math.inf, d), "s": t.full(0.0, d)}
        m, s = t.loop(t.const(0, "i32"), last + 1, inits, step, tile=bn)
        t.store(O, t.where(m == -math.inf, 0.0, t.fn("exp", m)), "all", guard=(False,))
        t.store(P, s, "all", guard=(False,))

    flags = {"O": ("out",), "P": ("out",), "scale": ("positive",)}
    return kernel("branches", [X, O, P, scale], [GridAxis("one", 1)], flags, body)


def nested(bm: int = 16, bn: int = 16, d: int = 24) -> Kernel:
    """One program for all row tiles: sums below the diagonal, one loop in the other, and a store in the outer one."""
    Q, K, O = tensor("Q", f16, "M", d), tensor("K", f16, "N", d), tensor("O", f32, "M")
    scale = scalar("scale")

    def body(t: T, one: E) -> None:
        def outer(j: E, total: E) -> list[E]:
            q = t.load(Q, ("tile", j * bm), "all", shape=(bm, d), guard=(True, False))
            rows = (t.iota(bm) + j * bm).col(bn)

            def keep(i: E) -> E:
                c = (t.iota(bn) + i * bn).row(bm)
                return (c <= rows) & (c < t.size("N"))

            def step(i: E, m: E, l: E) -> list[E]:
                k = t.load(K, ("tile", i * bn), "all", shape=(bn, d), guard=(True, False))
                s = t.where(keep(i), q.dot(k.T) * E(t, scale), -math.inf)
                mn = t.fn("max", m, s.reduce("max", 1))
                base = t.where(mn == -math.inf, 0.0, mn)
                return [mn, l * t.fn("exp", m - base) + t.fn("exp", s - base.col(bn)).reduce("sum", 1)]

            m, l = t.loop(t.const(0, "i32"), ceil_div(t.size("N"), bn), {"m": t.full(-math.inf, bm), "l": t.full(0.0, bm)}, step,
                          live=keep, tile=bn)
            x = m + t.fn("log", l)
            t.store(O, x + total, ("tile", j * bm), guard=(True,))
            return [t.fn("max", total, x)]

        t.loop(t.const(0, "i32"), ceil_div(t.size("M"), bm), {"total": t.full(0.0, bm)}, outer)

    return kernel("nested", [Q, K, O, scale], [GridAxis("one", 1)], {"O": ("out",), "scale": ("positive",)}, body)
