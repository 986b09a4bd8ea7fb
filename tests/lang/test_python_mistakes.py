"""Python habits that have no meaning in a spec: one FcError with the spec's own line and a hint; what is the user's own stays theirs."""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fcgen as fc
from fcgen.lang.mistakes import VOCABULARY

SOURCE = '''@fc.kernel
def spec(X: "f32[M, D]", Bias: "f32[H, N]", Y: "out f32[M, D]", *, n: "i32", s: "f32", act=None):
    (rows,) = fc.grid(fc.tile(X.M, "BM"))
    x = fc.load(X[rows])
    r = fc.sum(x, axis=1)
    v = fc.var(fc.zeros(rows))
    cut = fc.tile(Bias.N, "BN")
    {}
    fc.store(Y[rows], x)
'''


def trace(line: str, **binding: Any) -> None:
    source = SOURCE.format(line)
    name = f"<{line}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"fc": fc, "np": np, "math": math}
    exec(compile(source, name, "exec"), scope)
    scope["spec"].trace({"BM": 16, "BN": 16}, D=16, **binding)


@pytest.mark.parametrize(("line", "words"), [
    # names that other libraries have
    ("x.to(fc.float32)", "did you mean fc.f32?"), ("x.to('float32')", "did you mean fc.f32?"), ("x.to(np.float16)", "did you mean fc.f16?"),
    ("fc.zeros(rows, dtype='half')", "did you mean fc.f16?"), ("fc.zeros(rows, dtype=float)", "did you mean fc.f32?"),
    ("fc.Sum(x)", "did you mean fc.sum?"), ("fc.softmax(x)", "fc.exp(x - fc.max"), ("x.sum()", "write fc.sum"), ("x.t()", "write x.T"),
    ("x.float()", "x.to(fc.f32)"), ("x.reshape(2, 2)", "nothing is reshaped"), ("x.foo", "T, dtype, shape, to"), ("rows.idx", "index"),
    ("X.shape", "X.M, X.D"), ("X[rows].dtype", "load it first"), ("v.set(1)", "v <<= value"), ("fc.f32(x)", "x.to(fc.f32)"),
    # NumPy, math
    ("np.exp(x)", "write fc.exp"), ("np.sum(x)", "write fc.sum"), ("np.where(x > 0, x, 0)", "write fc.where"), ("np.asarray(x)", "arrays"),
    ("np.dot(x, x)", "write fc.dot"), ("np.ones(16) * x", "not a value"), ("math.exp(x)", "fc.exp"), ("math.floor(s)", "fc.floor"),
    # Python's own operations
    ("x[0] = 1", "fc.where"), ("Y[rows] = x", "fc.store"), ("del x[0]", "do not change"), ("x[rows]", "as a whole"), ("rows[0]", "rows.index"),
    ("len(x)", "x.shape"), ("x @ x", "fc.dot"), ("x()", "fc.exp(x)"), ("f'{x:.3f}'", "dtype and axes"), ("round(x)", "fc.floor"),
    ("0 < x < 1", "(a < x) & (x < b)"), ("max(r, 0)", "fc.maximum"), ("sum(r)", "fc.sum"), ("divmod(n, 2)", "a // b"), ("x.foo = 1", "not set"),
    ("X.M = 1", "not set"), ("int(n)", "fc.i32"), ("[1, 2][n]", "Python integer"), ("pow(x, 2, 3)", "positional"), ("[*x]", "iterated"),
    ("with x: pass", "fc.when"), ("for z in X: pass", "iterated"), ("for z in cut: pass", "fc.loop"), ("rows <<= 1", "fc.var"),
    # calls
    ("fc.exp()", "fc.exp(x)"), ("fc.load(X[rows], mask=x > 0)", "read as zero"), ("fc.sum(x, dim=1)", "did you mean axis?"),
    ("fc.sum(x, axis=True)", "no such axis"), ("fc.sum(x, axis=(0, 1))", "axis=None"), ("fc.gather(Bias[n, rows.index])", "by itself"),
    ("fc.gather(x, 0)", "takes a tensor"), ("fc.full(rows, x)", "one value"), ("fc.full((rows, rows, rows), 0.0)", "one or two axes"),
    ("fc.zeros()", "one or two axes"), ("fc.tile(-3, 'BM')", "dimension"), ("fc.tile(True, 'BM')", "dimension"), ("x.to()", "value.to"),
    ("fc.tile(X.M, 'BMM')", "did you mean BM?"), ("X[..., 0]", "left away"), ("X[True]", "indexed by"), ("X[0, 16]", "0 to 15"),
    # loops and branches
    ("fc.loop(cut)", "nothing is done with it"), ("fc.when(n > 1)", "nothing is done with it"), ("list(fc.loop(cut))", "`for` statement"),
    ("for i, c in enumerate(fc.loop(cut)): pass", "cols.start // cols.size"), ("for c in fc.loop(cut, live=lambda: True): pass", "of the range"),
    ("for c in fc.loop(cut, live=3): pass", "of the range"), ("for c in fc.loop(cut, descending='no'): pass", "switch"),
    ("for c in fc.loop(-1): pass", "a count"), ("for c in fc.loop(cut, step=2): pass", "did you mean stop?"),
    ("for c in fc.loop(cut, live=lambda c: c.foo): pass", "no attribute foo"), ("with fc.when(n): pass", "n > 0")])
def test_habits(line: str, words: str) -> None:
    with pytest.raises(fc.FcError) as caught:
        trace(line)
    e = caught.value
    assert words in str(e), str(e)
    assert e.loc is not None and line in (e.loc.source_line() or ""), str(e)
    assert "bug of fcgen" not in str(e)


@pytest.mark.parametrize("line", ["abs(x) + 1", "np.float32(2) * x", "np.array(2.0) + x", "x - np.int64(1)", "sum([r, r])", "print(f'{x}')",
                                  "fc.exp(3)", "import copy; copy.deepcopy([x, v])", "fc.full(rows, n, fc.f32)", "fc.cast(3, 'f32')",
                                  "hasattr(x, 'sum') or hasattr(X, 'Q') or hasattr(fc, 'float32') or fc.sum(x)"])
def test_what_has_a_meaning(line: str) -> None:
    trace(line)


@pytest.mark.parametrize(("line", "kind"), [("undefined", NameError), ("1 / 0", ZeroDivisionError), ("raise ValueError('mine')", ValueError),
                                            ("assert False", AssertionError), ("act + 1", TypeError), ("{}['x']", KeyError),
                                            ("len(3)", TypeError)])
def test_the_users_own_errors_stay_theirs(line: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        trace(line)
    assert not isinstance(caught.value, fc.FcError)


def test_a_copied_variable_is_a_snapshot() -> None:
    with pytest.raises(fc.FcError, match="assigns to a variable, and this is none"):
        trace("import copy; w = copy.copy(v); w <<= 1.0")


#: function -> arguments that are right, as text
RIGHT = {"full": ["rows", "0.0"], "zeros": ["rows"], "load": ["X[rows]"], "store": ["Y[rows]", "x"], "atomic_add": ["Y[rows]", "x"],
         "gather": ["Bias", "n", "n"], "where": ["x > 0", "x", "x"], "cast": ["x", "fc.f16"], "max": ["x", "1"], "min": ["x", "1"],
         "sum": ["x", "1"], "dot": ["x", "x.T"], "maximum": ["x", "x"], "minimum": ["x", "x"], "var": ["x"], "tile": ["X.M", "'BM'"],
         "grid": ["3"], "when": ["n > 1"], "loop": ["cut", "0", "n"], "kernel": ["act"]}
WRONG = ["None", "'a'", "b'a'", "3", "-1", "2**70", "3.5", "True", "[]", "{}", "()", "(x, x)", "object()", "np.ones(3)", "np.float32", "fc", "fc.f32",
         "fc.exp", "X", "X[rows]", "Bias", "rows", "cut", "x", "r", "x > 0", "n", "s", "slice(2)", "len", "1j", "float('nan')"]


@pytest.mark.parametrize("name", sorted(VOCABULARY))
def test_every_function_with_every_kind_of_thing(name: str) -> None:
    """A result, or an FcError that names the line: never Python's own exception, and never a shrug."""
    right = RIGHT.get(name, ["x"])
    for at in range(len(right)):
        for wrong in WRONG:
            call = f"fc.{name}({', '.join([*right[:at], wrong, *right[at + 1:]])})"
            try:
                trace(f"for _ in {call}: pass" if name == "loop" else call)
            except fc.FcError as e:
                assert "bug of fcgen" not in str(e) and e.loc is not None and call in (e.loc.source_line() or ""), f"{call}: {e}"


@pytest.mark.parametrize("form", ["x + ({})", "({}) <= x", "r ** ({})", "({}) - n", "v.__ilshift__({})", "x.to({})", "X[rows, {}]"])
def test_every_operator_with_every_kind_of_thing(form: str) -> None:
    for wrong in WRONG:
        try:
            trace(form.format(wrong))
        except fc.FcError as e:
            assert "bug of fcgen" not in str(e), f"{form.format(wrong)}: {e}"


def test_helpers_are_the_users_frames_too() -> None:
    def helper(t: Any) -> Any:
        return t.mean()  # here

    def spec(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], helper(fc.load(X[rows])))

    with pytest.raises(fc.FcError) as caught:
        fc.kernel(spec).trace({"BM": 16})
    assert "# here" in caught.value.loc.source_line()


def test_names_that_the_module_does_not_have() -> None:
    with pytest.raises(fc.FcError, match=r"did you mean fc\.f16"):
        fc.float16  # noqa: B018
    with pytest.raises(ImportError):
        from fcgen import float16  # noqa: F401
    assert not hasattr(fc, "bfloat16") and not hasattr(fc, "__wrapped__")


def test_torch_functions() -> None:
    torch = pytest.importorskip("torch")
    call: Callable[[Any], Any] = torch.exp

    def spec(X: "f32[M]", Y: "out f32[M]"):
        (rows,) = fc.grid(fc.tile(X.M, "BM"))
        fc.store(Y[rows], call(fc.load(X[rows])))  # here

    with pytest.raises(fc.FcError) as caught:
        fc.kernel(spec).trace({"BM": 16})
    assert "write fc.exp" in str(caught.value) and "# here" in caught.value.loc.source_line()
