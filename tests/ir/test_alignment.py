"""How wide accesses may be, and what they need of pointers and strides: values computed from an access."""

from __future__ import annotations

import numpy as np
import pytest

from fcgen.errors import FcError
from fcgen.ir.access import Access
from fcgen.ir.alignment import Promise, demands, natural, of_arguments, promised, widest
from fcgen.ir.core import Op, Value
from fcgen.ir.known import multiple
from fcgen.ir.parse import parse_kernel
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import Scalar, Tensor, Tile, bf16, f16, f32, f64, i32, i64
from fcgen.launch import misaligned
from fcgen.sim.addresses import pitched


def scalar(text, b, args):
    """`64 * m + 8`: a scalar made of the numbers and names in it."""
    if text.isdigit():
        return b.emit("const", value=int(text), dtype="i32")
    if text.isidentifier():
        return args.setdefault(text, Value(Scalar(i32), text))
    for word, kind in ((" + ", "add"), (" - ", "sub"), (" * ", "mul"), (" // ", "floordiv"), (" max ", "max")):
        if word in text:
            left, right = text.split(word, 1)
            return b.emit(kind, scalar(left, b, args), scalar(right, b, args))
    raise AssertionError(text)


def made(b):
    return {r: o for o in b.ops for r in o.results}


@pytest.mark.parametrize(("text", "n"), [("0", 0), ("48", 48), ("m", 1), ("m * 64", 64), ("m * 64 + 8", 8), ("m * 64 - n * 48", 16),
                                         ("m * n", 1), ("m * 4 * n * 4", 16), ("m * 64 // 2", 32), ("m * 64 // n", 1), ("m * 64 max 16", 16),
                                         ("m * 0 + 0", 0), ("n - m * 64", 1)])
def test_what_a_position_is_a_multiple_of(text, n):
    b = Builder()
    got = multiple(scalar(text, b, {}), made(b))
    assert got == n or ("//" in text and got == 1)  # a quotient is not looked into


def access(t, index, positions, shape):
    b, args = Builder(), {}
    given = [scalar(p, b, args) for p in positions]
    op = Op("load", (Value(t, "X"), *given), (Value(Tile(t.dtype, shape), "x"),), {"index": index, "guard": (True,) * len(shape)})
    return Access.of(op), made(b)


ROWS, PLANE = ("tile", "all"), ("at", "tile", "all", "at")


@pytest.mark.parametrize(("t", "index", "positions", "shape", "elements"), [
    *[(Tensor(f16, ("M", d)), ROWS, ("m * 64",), (64, d), n) for d, n in ((8, 8), (64, 8), (10, 2), (12, 4), (20, 4), (28, 4), (9, 1), (36, 4))],
    *[(Tensor(i32, ("M", d)), ROWS, ("m * 64",), (64, d), n) for d, n in ((8, 4), (10, 2), (9, 1), (12, 4))],
    (Tensor(f64, ("M", 3)), ROWS, ("m",), (64, 3), 1), (Tensor(i64, ("M", 4)), ROWS, ("m",), (64, 4), 2),
    (Tensor(bf16, ("M", "N")), ("tile", "tile"), ("m * 64", "n * 64"), (64, 64), 8),     # the launch asks for rows of 16 bytes
    (Tensor(bf16, ("M", "N")), ("tile", "tile"), ("m * 64", "n * 20"), (64, 20), 4),     # a tile may begin inside 16 bytes
    (Tensor(bf16, ("M", "N")), ("tile", "tile"), ("m * 64", "s - n * 64"), (64, 64), 1),  # counted from the end
    (Tensor(bf16, ("M", "N")), ("tile", "at"), ("m * 64", "n"), (64,), 1),               # down a column
    (Tensor(f16, ("H", "M", 10, 4)), PLANE, ("h", "m * 64", "r"), (64, 10), 1),          # a strided plane
    (Tensor(f16, ("M", 10)), ROWS, ("0",), (1, 10), 8),                                  # nobody steps along the rows
    (Tensor(f16, ("M", 12)), ("at", "all"), ("m * 2",), (12,), 8),                       # every other row is on 16 bytes
    (Tensor(f16, (16,)), ("all",), (), (16,), 8), (Tensor(f32, ("N",)), ("tile",), ("n * 64",), (64,), 4)])
def test_the_widest_access(t, index, positions, shape, elements):
    a, defs = access(t, index, positions, shape)
    assert widest(a, natural(t), defs) == elements
    want = demands(a, elements * t.dtype.bytes, defs)
    assert want is not None and natural(t).covers(want)


def test_every_demand_is_right_by_enumeration():
    """Whatever pointers and strides keep what is demanded: all accesses start on multiples of their size."""
    rng = np.random.default_rng(0)
    for dims, index, texts in ((("A", "M", 24), ("at", "tile", "all"), ("a * 2", "m * 64")), ((3, "M", "N"), ("at", "tile", "tile"), ("a", "m", "n * 4")),
                               (("A", 5, 8), ("at", "at", "all"), ("a * 4 + 2", "m"))):
        t, tile = Tensor(f16, dims), (4, 16)[2 - sum(w != "at" for w in index):]
        a, defs = access(t, index, texts, tile)
        for size in (4, 8, 16):
            want = demands(a, size, defs)
            if want is None:
                continue
            for _ in range(50):
                pointer = want.pointer * int(rng.integers(1, 99))
                strides = [s * int(rng.integers(-99, 99)) for s in want.strides]
                at = [eval(x, {k: int(rng.integers(0, 99)) for k in "amn"}) for x in texts]
                rows = [at[0], *([at[1]] if index[1] == "at" else [at[1] + int(rng.integers(0, 4))]), at[2] if index[2] == "tile" else 0]
                address = pointer + sum(r * s for r, s in zip(rows, (*strides, 2)))
                assert address % size == 0, (dims, size, want)


@pytest.mark.parametrize(("t", "strides"), [
    (Tensor(f16, ("M", 64)), (16,)), (Tensor(f16, ("M", 10)), (4,)), (Tensor(f16, ("B", "M", 10)), (4, 4)), (Tensor(f16, ("M", 2, 5)), (4, 2)),
    (Tensor(f32, ("M", "N")), (16,)), (Tensor(f16, ("M", "N", 5)), (2, 2)), (Tensor(f16, ("B", 3, "N")), (16, 16)), (Tensor(f32, (7,)), ())])
def test_what_packed_tensors_keep(t, strides):
    assert natural(t) == Promise(16, strides)
    sizes = [d if isinstance(d, int) else 8 * (n + 1) for n, d in enumerate(t.dims)]
    packed = np.zeros(sizes, f"V{t.dtype.bytes}").strides
    assert of_arguments(0x7f0000000200, sizes, [s // t.dtype.bytes for s in packed], t.dtype.bytes).covers(natural(t))
    for want in (natural(t), Promise(t.dtype.bytes, (t.dtype.bytes,) * len(strides))):
        least = of_arguments(want.pointer, sizes, pitched(t, sizes, want), t.dtype.bytes)
        assert least == want


def test_a_promise_is_kept_and_nothing_more():
    t = Tensor(f16, ("H", "M", "N"))
    assert pitched(t, (2, 3, 97), Promise(16, (16, 16))) == (312, 104, 1) and pitched(t, (2, 3, 97), Promise(4, (4, 4))) == (294, 98, 1)
    assert pitched(t, (2, 3, 97), Promise(2, (2, 2))) == (291, 97, 1) and pitched(t, (0, 3, 8), Promise(2, (2, 2))) == (27, 9, 1)


@pytest.mark.parametrize(("shape", "strides", "pointer", "said"), [
    ((64, 64), (64, 1), 0x1000, None), ((64, 64), (72, 1), 0x1010, None), ((1, 64), (7, 1), 0x1000, None), ((64, 64), (0, 1), 0x1000, None),
    ((64, 64), (-64, 1), 0x1000, None), ((64, 64), (68, 1), 0x1000, ("axis 0 of argument `X`", "call X.contiguous()")),
    ((64, 60), (60, 1), 0x1000, ("axis 0 of argument `X`", "pad the last axis of X to a multiple of 8 elements")),
    ((64, 64), (64, 1), 0x1006, ("argument `X` is not aligned", "6 bytes past one"))])
def test_what_is_refused(shape, strides, pointer, said):
    e = misaligned("X", Promise(16, (16,)), pointer, shape, strides, 2)
    assert (e is None) == (said is None)
    if said is not None:
        assert e.code == "call/argument" and all(s in str(e) for s in said) and "multiple of 16 bytes" in str(e)


TEXT = """machine kernel k
param %X: tensor f16[H, M, 64]
param %Y: tensor f32[M] out
meta aligned = {}
role main warps 1 {{
}}
"""


def test_a_promise_survives_the_text():
    k = parse_kernel(TEXT.format("((X, 8, 16, 4), (Y, 4))"), "k.fc")
    assert promised(k) == {"X": Promise(8, (16, 4)), "Y": Promise(4, ())} and promised(parse_kernel(str(k), "k.fc")) == promised(k)
    assert promised(parse_kernel(TEXT.format("((X, 8, 16, 4),)"), "k.fc"))["Y"] == Promise(4, ())


@pytest.mark.parametrize("lines", ["((X, 8, 16),)", "((Z, 8),)", "((X, 3, 16, 16),)", "((X, 8, 16, 1),)", "((X, 32, 16, 16),)", "7", "(X, 8, 16, 16)",
                                   "((Y, 2),)", "((X, a, 16, 16),)", "((),)"])
def test_a_promise_without_sense_is_refused(lines):
    with pytest.raises(FcError, match="meta aligned") as e:
        parse_kernel(TEXT.format(lines), "k.fc")
    assert e.value.code == "ir/verify"
