"""The op table: inference, and what is said when a rule is broken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fcgen.errors import FcError
from fcgen.ir.core import Block, GridAxis, Kernel, Op, Role, Value
from fcgen.ir.elementwise import FNS
from fcgen.ir.layout import OpaqueLayout, RegLayout, SmemLayout, blocked, mma_a, mma_b, mma_c
from fcgen.ir.op_table import TRAITS, having
from fcgen.ir.ops import OPS, infer
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import Buffer, Frag, Scalar, Tensor, Tile, f16, f32, i1, i32
from fcgen.ir.verify import Verifier, verify

from .programs import machine_kernel, tile_kernel

I, F, B1 = Scalar(i32), Scalar(f32), Scalar(i1)
ROW, TALL, WIDE = Tile(f32, (8,)), Tile(f32, (8, 4)), Tile(f32, (4, 8))
Q = Tensor(f16, ("B", "M", 64))
ACC, A, B = Frag(f32, (64, 64), mma_c(64, 64)), Frag(f16, (64, 16), mma_a(64, 16)), Frag(f16, (16, 64), mma_b(16, 64))
PART = replace(ACC, shape=(64,), layout=mma_c(64, 64).drop(1), partial="sum")
SLOT = Buffer(f16, (64, 64), SmemLayout(64, 0, 128))
WMMA = [Frag(f16, (64, 64), OpaqueLayout(r, 4)) for r in ("a", "b")] + [Frag(f32, (64, 64), OpaqueLayout("acc", 4))]
Q_TILE = {"index": ("at", "tile", "all"), "guard": (True, False)}

# kind, operand types, attributes, result types
GOOD = [
    ("add", (TALL, F), {}, (TALL,)), ("lt", (I, I), {}, (B1,)), ("select", (B1, TALL, F), {}, (TALL,)),
    ("cast", (TALL,), {"to": "f16"}, (Tile(f16, (8, 4)),)), ("reduce", (TALL,), {"fn": "max", "axis": 1}, (ROW,)),
    ("reduce", (ROW,), {"fn": "sum", "axis": 0}, (F,)), ("dot", (TALL, WIDE), {}, (Tile(f32, (8, 8)),)),
    ("transpose", (TALL,), {}, (WIDE,)), ("iota", (), {"shape": (8,)}, (Tile(i32, (8,)),)), ("const", (), {"value": 1,
                                                                                                           "dtype": "f32"}, (F,)),
    ("reduce", (ACC,), {"fn": "sum", "axis": 1}, (PART,)), ("combine", (PART,), {"lanes": (1, 2)}, (replace(PART,
                                                                                                            partial=None),)),
    ("slot", (replace(SLOT, slots=3), I), {"ahead": 1}, (SLOT,)), ("exp", (ACC,), {}, (ACC,)),
    ("mul", (PART, replace(PART, partial=None)), {}, (PART,)), ("gather", (Tensor(f32, ("N",)), Tile(i32, (8,))), {}, (ROW,)),
]

# kind, operand types, attributes, declared result types, message, expected
BAD = [
    ("add", (TALL, WIDE), {}, (TALL,), "add: shapes agree", "f32[8,4]"),
    ("add", (TALL, Tile(f16, (8, 4))), {}, (TALL,), "add: operands have one dtype", None),
    ("add", (TALL,), {}, (TALL,), "add takes 2 operands", "2"),
    ("add", (B1, B1), {}, (B1,), "add is not defined on i1", None),
    ("add", (ACC, replace(ACC, layout=mma_c(64, 64, (2, 2)))), {}, (ACC,), "add: layouts agree", str(ACC.layout)),
    ("add", (PART, replace(PART, partial="max")), {}, (PART,), "add: a partial reduction only meets its like", str(PART)),
    ("exp", (I,), {}, (I,), "exp is for floats", "f16, bf16, f32, f64, f8e4m3, f8e5m2"),
    ("mod", (F, F), {}, (F,), "mod is for integers", "i8, u8, i32, u32, i64"),
    ("not", (F,), {}, (F,), "not is for i1 and integers", "i1, i8, u8, i32, u32, i64"),
    ("exp", (F,), {}, (ROW,), "exp: result types follow from the operands", "f32"),
    ("exp", (F,), {}, (), "exp: result types follow from the operands", "f32"),
    ("exp", (Q,), {}, (F,), "exp takes scalars and tiles", None),
    ("select", (F, F, F), {}, (F,), "select: the condition is i1", "i1"),
    ("select", (B1, F, I), {}, (F,), "select: both values have one dtype", "f32"),
    ("cast", (F,), {"to": "f8"}, (F,), "cast: attribute 'to' may not have this value", None),
    ("const", (), {"value": 1, "dtype": "f8"}, (F,), "const: attribute 'dtype' may not have this value", None),
    ("const", (), {"value": 1.5, "dtype": "i32"}, (I,), "const: an integer dtype takes a whole number", None),
    ("const", (), {"value": math.inf, "dtype": "i32"}, (I,), "const: an integer dtype takes a whole number", None),
    ("const", (), {"value": "1", "dtype": "f32"}, (F,), "const: attribute 'value' has the wrong type",
     "a whole number or a number or true or false"),
    ("const", (), {"value": 1}, (F,), "const needs the attribute 'dtype'", None),
    ("const", (), {"value": 1, "dtype": "f32", "shape": (1,)}, (F,), "const has no attribute 'shape'", "value, dtype"),
    ("reduce", (TALL,), {"fn": "mean", "axis": 1}, (ROW,), "reduce: attribute 'fn' may not have this value", "sum, max, min"),
    ("reduce", (TALL,), {"fn": "max", "axis": 2}, (ROW,), "reduce: axis is one of the tile's", "0..1"),
    ("reduce", (TALL,), {"fn": "max", "axis": True}, (ROW,), "reduce: attribute 'axis' has the wrong type", "a whole number"),
    ("combine_across", (PART,), {"lanes": (1, 2), "warps": PART.layout}, (PART,), "combine_across: warps of one axis", "warp digits"),
    ("reduce", (WMMA[2],), {"fn": "max", "axis": 1}, (ROW,), "reduce: an opaque fragment has no known rows", "registers"),
    ("dot", (TALL, TALL), {}, (TALL,), "dot: inner sizes agree", "4 rows in b"),
    ("dot", (TALL, Tile(f16, (4, 8))), {}, (TALL,), "dot: operands have one dtype", "f32"),
    ("dot", (TALL, WIDE, TALL), {}, (Tile(f32, (8, 8)),), "dot: the accumulator's type is the result's", "f32[8,8]"),
    ("broadcast", (ROW,), {"axes": (1,), "shape": (8, 4)}, (TALL,), "broadcast: sizes agree", "f32[8]"),
    ("broadcast", (ROW,), {"axes": (0, 1), "shape": (8, 4)}, (TALL,), "broadcast: one target axis per source axis", "f32[8]"),
    ("broadcast", (replace(PART, partial=None),), {"axes": (1,)}, (ACC,), "broadcast: the source has the layout of the target",
     None),
    ("transpose", (ROW,), {}, (ROW,), "transpose takes a 2-d tile", "2 axes"),
    ("load", (Q, I), Q_TILE, (Tile(f16, (8, 64)),), "load: one scalar per 'at' and 'tile', two per 'until'", "2"),
    ("load", (Q, I, F), Q_TILE, (Tile(f16, (8, 64)),), "load: positions are integer scalars", "i32"),
    ("load", (Q, I, I), Q_TILE, (Tile(f32, (8, 64)),), "load: the tile has the tensor's dtype", "f16"),
    ("load", (Q, I, I), Q_TILE, (Tile(f16, (8, 32)),), "load: the axis is the whole dimension", "64"),
    ("load", (Q, I, I), Q_TILE, (Tile(f16, (8,)),), "load: one tile axis per 'tile', 'until', 'each' and 'all'", "2"),
    ("load", (Q, I), {**Q_TILE, "index": ("at", "all", "all")}, (Tile(f16, (8, 64)),),
     "load: 'all' is for compile-time dimensions", "a number"),
    ("load", (Q, I, I), {**Q_TILE, "index": ("at", "tile", "some")}, (Tile(f16, (8, 64)),), "load: attribute 'index' may not have this value", "0 to 8 values, each at, tile, until, all, each, also, element"),
    ("load", (Q, I, I), {**Q_TILE, "guard": (True,)}, (Tile(f16, (8, 64)),), "load: one guard per tile axis", "2"),
    ("load", (F, I, I), Q_TILE, (Tile(f16, (8, 64)),), "load: the first operand is a tensor parameter", "tensor"),
    ("store", (Q, Tile(f32, (8, 64)), I, I), Q_TILE, (), "store: the tile has the tensor's dtype", "f16"),
    ("store", (Q, Tile(f16, (8, 64)), I, I), {**Q_TILE, "reduce": "max"}, (), "store: attribute 'reduce' may not have this value", "add"),
    ("for", (I, F), {}, (), "for: bounds are i32", "i32, i32"),
    ("for", (I, I), {}, (), "for has a body and possibly a `live` region", None),
    ("if", (I,), {}, (), "if has two regions", None),
    ("gather", (Tensor(f32, ("N",)), F), {}, (F,), "gather: positions are integers", "i32"),
    ("barrier", (I,), {}, (), "barrier takes no operands", "none"),
    ("slot", (I, I), {"ahead": 0}, (SLOT,), "slot takes a ring and an i32", "smem, i32"),
    ("combine", (ACC,), {"lanes": (1,)}, (ACC,), "combine takes a partial reduction", "partial"),
    ("mma", (A, A, ACC), {"instr": "m"}, (ACC,), "mma: shapes agree", None),
    ("mma", (A, B, PART), {"instr": "m"}, (ACC,), "mma: the result has the accumulator's type", str(PART)),
    ("mma", (A,), {"instr": "m"}, (ACC,), "mma takes a, b, acc and possibly a first column", "3 or 4"),
    ("ldmatrix", (replace(SLOT, slots=2), I, I), {"transposed": False, "trans": False}, (A,), "ldmatrix takes one slot of a ring",
     "slot, i32, i32"),
    ("ldmatrix", (SLOT, I, F), {"transposed": False, "trans": False}, (A,), "ldmatrix takes an i32 scalar", "slot, i32, i32"),
    ("ldmatrix", (SLOT, I, I), {"transposed": False, "trans": False}, (ACC,), "ldmatrix: one dtype", "f16"),
    ("ldmatrix", (SLOT, I, I), {"transposed": False, "trans": False}, (Frag(f16, (128, 64), mma_a(128, 64)),),
     "ldmatrix: the fragment fits the stored tile", "(64, 64)"),
    ("cp_async", (Tensor(f16, ("M", 64)), I, SLOT), {"index": ("tile", "all"), "guard": (True, False), "threads": blocked(64, 64,
                                                                                                                          4, 1)},
                                                                                                                          (),
     "cp_async copies 4, 8 or 16 bytes", "4, 8, 16"),
    ("st_shared", (replace(PART, dtype=f16), SLOT, I, I), {}, (), "st_shared takes a complete fragment", "complete, slot, i32, i32"),
    ("wmma_load", (SLOT, I, I), {}, (WMMA[0],), "wmma_load: rows at one stride", "one panel without swizzle"),
    ("wmma_mma", (WMMA[1], WMMA[0], WMMA[2]), {}, (WMMA[2],), "wmma_mma takes a, b and accumulator fragments", None),
    ("vote_any", (ACC,), {}, (B1,), "vote_any takes i1", "i1"),
    ("exp", (F,), {"fast": True}, (F,), "exp has no attribute 'fast'", "no attributes"),
    ("expo", (F,), {}, (F,), "expo: no op is called 'expo'", None),
    ("full", (F,), {}, (Frag(f32, (8, 4), mma_c(16, 8, (1, 1))),), "full: the fragment's layout covers its shape", "(8, 4)"),
    ("full", (F,), {}, (Frag(f32, (4,), RegLayout((blocked(4, 4, 1).axes[1][:0],))),),
     "full: the fragment's layout covers", "(4,)"),
]


def check(kind, operands, attrs, results, level=None):
    """Verify a block of one op whose operands are its arguments."""
    values = tuple(Value(t, f"v{n}") for n, t in enumerate(operands))
    op = Op(kind, values, tuple(Value(t) for t in results), attrs)
    if level is None:
        machine = any(isinstance(t, (Frag, Buffer)) for t in (*operands,
                                                              *results)) or kind not in OPS or "tile" not in OPS[kind].levels
        level = "machine" if machine else "tile"
    one = Verifier(Kernel("k", level, (), (), (), buffers=tuple(v for v in values if isinstance(v.type, Buffer))), {})
    one.warps = 32
    one.block(Block(values, (op,)), 0)


@pytest.mark.parametrize("kind, operands, attrs, results", GOOD, ids=[g[0] for g in GOOD])
def test_good(kind, operands, attrs, results):
    assert infer(kind, [Value(t) for t in operands], attrs) == results
    check(kind, operands, attrs, results)


@pytest.mark.parametrize("kind, operands, attrs, results, message, expected", BAD, ids=[f"{b[0]}-{n}" for n, b in enumerate(BAD)])
def test_bad(kind, operands, attrs, results, message, expected):
    with pytest.raises(FcError) as e:
        check(kind, operands, attrs, results)
    assert e.value.code == "ir/verify" and e.value.message.startswith(message), str(e.value)
    if expected is not None:
        assert str(e.value.expected) == expected
    assert any(n.startswith("in  ") and kind in n for n in e.value.notes), "the op itself is shown"


@pytest.mark.parametrize("kind", sorted(OPS))
@pytest.mark.parametrize("operands", [(), (F,), (Q,), (ACC, I), (SLOT,) * 3, (TALL, ROW, I)], ids=str)
def test_no_op_dies_of_nonsense(kind, operands):
    """Whatever IR text says, the answer is an FcError or a kernel."""
    samples = (0, 1, 0.0, True, "x", "add", "f32", (), (1,), ("at",), (True,), blocked(4, 4, 1))
    attrs = {n: next((s for s in samples if a.admits(s)), "x") for n, a in OPS[kind].attrs.items()}
    for results in ((), (F,), (ACC,)):
        for level in ("tile", "machine"):
            try:
                check(kind, operands, attrs, results, level)
            except FcError as e:
                assert e.code == "ir/verify"


def test_every_op_says_what_it_does():
    for d in OPS.values():
        assert d.doc.endswith(".") and set(d.levels) <= {"tile", "machine"} and d.effect in ("none", "read", "write"), d.kind


# ---- programs ------------------------------------------------------------------------------------------------------------


def program(*ops: Op, level: str = "tile", args: tuple[Value, ...] = (), grid: tuple[GridAxis, ...] = ()) -> Kernel:
    return Kernel("k", level, (), grid, (Role("all", 0, Block(args, ops)),))


def test_good_programs():
    verify(tile_kernel())
    verify(machine_kernel())


def test_an_op_of_the_other_level():
    with pytest.raises(FcError, match="barrier does not exist at this level"):
        verify(program(Op("barrier")))


def test_a_third_level():
    with pytest.raises(FcError, match="one of two levels"):
        verify(program(level="assembly"))


def test_use_before_definition_and_two_definitions():
    b = Builder()
    v = b.emit("const", value=1.0, dtype="f32", name="v")
    b.emit("exp", v)
    with pytest.raises(FcError, match="operand %v is used before it is defined"):
        verify(program(*b.ops[::-1]))
    with pytest.raises(FcError, match="value %v is defined twice"):
        verify(program(b.ops[0], b.ops[0]))


def test_values_of_a_region_stay_inside():
    b, then, other = Builder(), Builder(), Builder()
    c = b.emit("const", value=True, dtype="i1")
    inner = then.emit("const", value=1.0, dtype="f32", name="inner")
    then.do("yield")
    other.do("yield")
    b.do("if", c, regions=(then.block(), other.block()))
    b.emit("exp", inner)
    with pytest.raises(FcError, match="operand %inner is used before it is defined"):
        verify(program(*b.ops))


def test_roles_do_not_share_values():
    b = Builder()
    v = b.emit("const", value=1.0, dtype="f32", name="v")
    with pytest.raises(FcError, match="operand %v is used before"):
        verify(Kernel("k", "machine", (), (), (Role("a", 1, b.block()), Role("b", 1, Block((), (Op("exp", (v,),
                                                                                                   (Value(F),)),))))))


def test_role_arguments():
    with pytest.raises(FcError, match="role all: one argument per grid axis"):
        verify(program(grid=(GridAxis("b", 4),)))


def test_yield_is_last():
    b = Builder()
    b.do("yield")
    b.emit("const", value=1.0, dtype="f32")
    with pytest.raises(FcError, match="yield is the last op of its region"):
        verify(program(*b.ops))


def loop(body: Block, *more: Block, init: Value | None = None) -> Kernel:
    b = Builder()
    lo = b.emit("const", value=0, dtype="i32")
    x = b.emit("const", value=0.0, dtype="f32")
    b.add(Op("for", (lo, lo, x), (Value(F),), {}, (body, *more)))
    return program(*b.ops)


def test_loops():
    j, x, y = Value(I, "j"), Value(F, "x"), Value(B1, "y")
    good = Block((j, x), (Op("yield", (x,)),))
    verify(loop(good))
    verify(loop(good, Block((j,), (Op("lt", (j, j), (y,)), Op("yield", (y,))))))
    for kernel, message in [
            (loop(Block((x, j), (Op("yield", (x,)),))), "for: the arguments of the body"),
            (loop(Block((j, x), ())), "for: the body ends in yield"),
            (loop(Block((j, x), (Op("yield", (j,)),))), "for: the body yields"),
            (loop(good, good), "for: the arguments of `live`"),
            (loop(good, Block((j,), (Op("yield", (j,)),))), "for: `live` yields one i1 scalar or tile"),
            (loop(good, good, good), "for has a body and possibly a `live` region")]:
        with pytest.raises(FcError) as e:
            verify(kernel)
        assert e.value.message == message


def test_every_trait_is_some_op_s_and_readers_find_it():
    """What passes ask of ops stands in their records: nobody keeps a list of its own that a new op would be missing from."""
    assert all(having(trait) for trait in TRAITS)
    assert having("elementwise") == set(FNS) | {"select", "cast"}
    assert having("regions") == {kind for kind in OPS if kind in ("for", "if", "while")}
    reach = {kind for kind, d in OPS.items() if d.reach}
    assert reach == {kind for kind, d in OPS.items() if {"index", "guard"} <= set(d.attrs)}
