"""Ops of the tile IR, most of which the machine IR shares (there their operands are fragments).

An index names a rectangle of a tensor: see `access`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .attrs import AXES, DTYPE, FLAG, GUARD, INDEX, NUMBER, SHAPE, TEXT, VEC, every, one_of, whole
from .core import Op, Value
from .elementwise import FNS, REDUCTIONS
from .layout import WARPS, RegLayout
from .op_table import OPS, RuleError, define, need, need_region
from .types import DTYPES, DType, Frag, Scalar, Tensor, Tile, bf16, f16, f32, i1, i32, i64, u32, with_dtype

BOTH = "tile machine"
#: which load or dot of the traced program an op is, in each of its copies
SITE: dict[str, Any] = {"site": TEXT.maybe}


def shaped(types: tuple[Any, ...], rule: str) -> Any:
    """The common type of elementwise operands: scalars go with anything, shaped operands must agree in shape and layout."""
    out: Any = None
    for t in types:
        if not isinstance(t, (Scalar, Tile, Frag)):
            raise RuleError(f"{rule} takes scalars and tiles, not {t}")
        if isinstance(t, Scalar):
            continue
        if out is None:
            out = t
        else:
            need(type(t) is type(out) and t.shape == out.shape, f"{rule}: shapes agree", out, t,
                 hint="broadcast the smaller one explicitly")
            if isinstance(t, Frag) and isinstance(out, Frag):
                need(t.layout == out.layout, f"{rule}: layouts agree", out.layout, t.layout)
                if rule == "mul" and "sum" in (t.partial, out.partial):
                    out = out if out.partial else t  # a lane's part of a sum, scaled by what all lanes agree on
                elif rule in ("max", "add", "mul", "sub", "gt", "ge") and {t.partial, out.partial} == {"max", None}:
                    out = out if out.partial else t  # grows with each lane's part of a maximum
                else:
                    need(t.partial == out.partial, f"{rule}: a partial reduction only meets its like", out, t)
    return out if out is not None else types[0]


_TAKES: dict[str, tuple[Callable[[DType], bool], str]] = {
    "float": (lambda d: d.is_float, "for floats"), "int": (lambda d: d.is_int, "for integers"),
    "word": (lambda d: d in (i32, u32), "for integers of 32 bits"), "logic": (lambda d: not d.is_float, "for i1 and integers"),
    "arith": (lambda d: d != i1, "not defined on i1"), "bits": (lambda d: d == f32, "for 32-bit floats"),
    "from_bits": (lambda d: d == i32, "for 32-bit integers")}
#: kind of an elementwise function -> (the dtypes that it takes, in words, which those are)
TAKES = {kind: (takes, what, ", ".join(name for name, d in DTYPES.items() if takes(d))) for kind, (takes, what) in _TAKES.items()}


def infer_elementwise(name: str):
    fn = FNS[name]

    def run(types: tuple[Any, ...], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
        need(len(types) == fn.arity, f"{name} takes {fn.arity} operands", fn.arity, len(types))
        base = shaped(types, name)
        dtype = types[0].dtype
        if any([t.dtype is not dtype and t.dtype != dtype for t in types]):
            raise RuleError(f"{name}: operands have one dtype", got=", ".join(sorted({str(t.dtype) for t in types})))
        takes, what, expected = TAKES.get(fn.kind, (lambda d: True, "", ""))
        need(takes(dtype), f"{name} is {what}", expected, dtype)
        return (with_dtype(base, {"compare": i1, "bits": i32, "from_bits": f32}.get(fn.kind, dtype)),)

    return run


for _fn in FNS.values():
    define(_fn.name, BOTH, f"Elementwise {_fn.name}; scalars go with tiles.", infer_elementwise(_fn.name),
           traits="elementwise, compare" if _fn.kind == "compare" else "elementwise")


def _select(types, attrs):
    need(len(types) == 3, "select takes condition, value if true, value if false", 3, len(types))
    need(types[0].dtype == i1, "select: the condition is i1", "i1", types[0])
    need(types[1].dtype == types[2].dtype, "select: both values have one dtype", types[1].dtype, types[2].dtype)
    return (with_dtype(shaped(types, "select"), types[1].dtype),)


define("select", BOTH, "Elementwise `condition ? a : b`. rare: the condition hardly ever holds.", _select, rare=FLAG.maybe,
       traits="elementwise")


define("cast", BOTH, "Convert, as `elementwise.convert` defines it.", lambda types, attrs: (with_dtype(types[0], DTYPES[attrs["to"]]),),
       to=DTYPE, traits="elementwise")


def _sum_blocks(types, attrs):
    need(len(types) == 1 and isinstance(types[0], (Tile, Frag)), "sum_blocks takes a tile", "a tile", types)
    need(not isinstance(types[0], Frag) or (types[0].partial is None and isinstance(types[0].layout, RegLayout)),
         "sum_blocks takes a complete tile in registers", "complete", types[0])
    return types


define("sum_blocks", BOTH, """The sum of what the blocks of a cluster have there: in the first block, which adds up the others' in their
       order. The others keep what they have. All of them come here.""", _sum_blocks, effect="write",
       phases="placed selected")


def _const(types, attrs):
    need(not types, "const takes no operands")
    dtype, value = DTYPES[attrs["dtype"]], attrs["value"]
    if not dtype.is_float:
        low, high = dtype.range
        need(isinstance(value, int) or value in (0, 1), "const: an integer dtype takes a whole number", "a whole number", value)
        need(low <= value <= high, f"const: {dtype} holds the number", f"{low} to {high}", value)
    return (Scalar(dtype),)


define("const", BOTH, "A compile-time scalar.", _const, value=NUMBER, dtype=DTYPE, traits="cheap")


def _made(dtype: DType, attrs: Mapping[str, Any]) -> tuple[Tile] | None:
    """A tile of the shape that is given; the layout of a fragment is a free choice."""
    return (Tile(dtype, tuple(attrs["shape"])),) if "shape" in attrs else None


def _full(types, attrs):
    need(len(types) == 1 and isinstance(types[0], Scalar), "full takes one scalar")
    return _made(types[0].dtype, attrs)


def _shaped(op: Op) -> None:
    need(isinstance(op.result.type, Frag) != ("shape" in op.attrs), f"{op.kind}: the attribute shape goes with tiles, and with them only")


def _check_full(op: Op) -> None:
    t = op.result.type
    _shaped(op)
    need(isinstance(t, (Tile, Frag)) and t.dtype == op.operands[0].type.dtype, "full makes a tile of its scalar's dtype",
         op.operands[0].type.dtype, t)


define("full", BOTH, "A tile with the scalar operand everywhere. Tile level: attribute shape.", _full, check=_check_full,
       shape=SHAPE.maybe, traits="cheap")


def _iota(types, attrs):
    need(not types, "iota takes no operands")
    return _made(i32, attrs)


def _check_iota(op: Op) -> None:
    t = op.result.type
    _shaped(op)
    need(len(t.shape) == 1 and t.dtype == i32, "iota makes i32[n]", "i32[n]", t)


define("iota", BOTH, "0, 1, ... n-1 as i32[n]. Tile level: attribute shape.", _iota, check=_check_iota, shape=SHAPE.maybe, traits="cheap")


def _check_broadcast(op: Op) -> None:
    src, out, axes = op.operands[0].type, op.result.type, op["axes"]
    need(len(op.operands) == 1 and isinstance(out, (Tile, Frag)) and isinstance(src, (Scalar, Tile, Frag)), "broadcast takes a tile", src,
         out)
    need(src.dtype == out.dtype, "broadcast: one dtype", src, out)
    _shaped(op)
    need(len(axes) == len(src.shape) and len(set(axes)) == len(axes), "broadcast: one target axis per source axis", src, axes)
    need(all(0 <= a < len(out.shape) and out.shape[a] == n for a, n in zip(axes, src.shape)), "broadcast: sizes agree", src, out)
    if isinstance(out, Frag):
        need(isinstance(out.layout, RegLayout), "broadcast: an opaque fragment has no known rows", "registers", out.layout)
        layout: Any = out.layout
        layout = layout.keep(axes)
        need(src.layout == layout, "broadcast: the source has the layout of the target without the new axes", layout, src.layout)


define("broadcast", BOTH, "Copy a tile along new axes: source axis i becomes axis axes[i] of the result.",
       lambda types, attrs: _made(types[0].dtype, attrs), check=_check_broadcast, axes=AXES, shape=SHAPE.maybe, traits="cheap")


def _transpose(types, attrs):
    t = types[0]
    need(len(types) == 1 and isinstance(t, (Tile, Frag)) and len(t.shape) == 2, "transpose takes a 2-d tile", "2 axes", t)
    if isinstance(t, Tile):
        return (Tile(t.dtype, t.shape[::-1]),)
    need(isinstance(t.layout, RegLayout), "transpose: an opaque fragment has no known rows", "registers", t.layout)
    return (Frag(t.dtype, t.shape[::-1], t.layout.transpose(), t.partial),)


define("transpose", BOTH, "A view with the two axes swapped.", _transpose, traits="view")


def _reduce(types, attrs):
    t: Any
    t, axis = types[0], attrs["axis"]
    need(0 <= axis < len(t.shape), "reduce: axis is one of the tile's", f"0..{len(t.shape) - 1}", axis)
    shape = tuple(n for i, n in enumerate(t.shape) if i != axis)
    if isinstance(t, Frag):
        need(isinstance(t.layout, RegLayout), "reduce: an opaque fragment has no known rows", "registers", t.layout)
        layout: Any = t.layout
        shared = any(f.unit != "r" for f in layout.axes[axis])
        return (Frag(t.dtype, shape, layout.drop(axis), attrs["fn"] if shared else None),)
    return (Tile(t.dtype, shape) if shape else Scalar(t.dtype),)


define("reduce", BOTH, """Fold one axis with sum, max or min. On fragments each thread folds what it holds; the result is
       `partial` where lanes or warps share the axis, and `combine` or
       `combine_across` finishes it.""", _reduce, fn=one_of(*REDUCTIONS), axis=whole(0, 7), traits="reduces")


def _cumsum(types, attrs):
    t: Any
    t, axis = types[0], attrs["axis"]
    need(len(types) == 1 and isinstance(t, (Tile, Frag)) and 0 <= axis < len(t.shape), "cumsum: axis is one of the tile's", got=types)
    need(t.dtype != i1, "cumsum adds numbers", got=t)
    if isinstance(t, Frag):
        layout: Any = t.layout
        need(isinstance(layout, RegLayout) and t.partial is None, "cumsum takes a complete tile in registers", got=t)
        units = [f.unit for f in layout.axes[axis]]
        need(units == sorted(units) and units.count("l") <= 1 and "w" not in units, "cumsum: lanes hold runs, one after the other",
             "l... r... on the axis", layout)
    return (t,)


define("cumsum", BOTH, "The sum of each element of an axis and those before it.", _cumsum, axis=whole(0, 7), traits="reduces")


def _dot(types, attrs):
    need(len(types) in (2, 3), "dot takes a, b and optionally an accumulator", "2 or 3", len(types))
    a, b = types[:2]
    need(len(a.shape) == 2 and len(b.shape) == 2, "dot takes 2-d tiles", got=f"{a} and {b}")
    need(a.dtype == b.dtype, "dot: operands have one dtype", a.dtype, b.dtype, hint="cast one of them: x.to(dtype)")
    need(a.dtype in (f16, bf16, f32) or a.dtype.bits == 8, "dot: operands have 8 or 16 bits, or are f32",
         "f16, bf16, f32, i8, u8, f8e4m3, f8e5m2", a.dtype)
    inner_a, inner_b = a.shape[0 if attrs.get("ta") else 1], b.shape[1 if attrs.get("tb") else 0]
    need(inner_a == inner_b, "dot: inner sizes agree", f"{inner_a} rows in b", b)
    if isinstance(a, Tile) and isinstance(b, Tile):
        out = Tile(a.dtype.computed, (a.shape[0], b.shape[1] + attrs.get("ones", 0)))
        if len(types) == 3:
            need(types[2] == out, "dot: the accumulator's type is the result's", out, types[2])
        return (out,)
    return None


define("dot", BOTH, """Matrix product with accumulation in f32, of integers in i32: a[M,K] b[K,N] (+ acc[M,N]) -> f32[M,N]. Machine level,
       until `select` expands it: an operand may be a shared-memory tile, stored transposed where ta / tb says so. math, late, early,
       behind, rolling, sums, regs, made, grid: what the schedule decides about it (`bind`). ones: so many columns of ones stand to the
       right of b, and the result is that much wider.""", _dot, phases="placed pipelined", ta=FLAG.maybe, tb=FLAG.maybe,
       math=one_of("mma", "wmma", "wgmma", "fma").maybe, ones=whole(8, 8).maybe, **SITE, late=FLAG.maybe, early=FLAG.maybe,
       behind=FLAG.maybe, rolling=FLAG.maybe, sums=FLAG.maybe, regs=FLAG.maybe, made=FLAG.maybe,
       grid=every(whole(1, WARPS), 2, 2).maybe)


def _slice(types, attrs):
    t, axis = types[0], attrs["axis"]
    need(isinstance(t, (Tile, Frag)) and 0 <= axis < len(t.shape), "slice: axis is one of the tile's", "0 or 1", axis)
    if isinstance(t, Tile):
        need("size" in attrs and 0 < attrs["size"] <= t.shape[axis], "slice: size says how many", f"1..{t.shape[axis]}", attrs.get("size"))
        return (Tile(t.dtype, tuple(attrs["size"] if n == axis else s for n, s in enumerate(t.shape))),)
    return None


def _check_slice(op: Op) -> None:
    src, out, axis = op.operands[0].type, op.result.type, op["axis"]
    need(len(op.operands) == 2 and type(src) is type(out) and src.dtype == out.dtype, "slice takes a tile and makes one", src, out)
    need(op.operands[1].type == Scalar(i32), "slice: the first position is an i32 scalar", "i32", op.operands[1].type)
    need(all(a == b or (n == axis and b <= a) for n, (a, b) in enumerate(zip(src.shape, out.shape))), "slice: other axes are whole", src,
         out)


define("slice", BOTH, """`slice tile, first`: the part that starts at `first` along `axis`. Tile level: `size` positions. On fragments it
       moves nothing, each thread keeps its own registers; `first` is known when the enclosing loop is expanded.""", _slice,
       check=_check_slice, axis=whole(0, 7), size=whole(1).maybe, traits="view")


def _none(types, attrs):
    return None


def _check_load(op: Op) -> None:
    tensor, t = op.operands[0].type, op.result.type
    need(t.dtype == tensor.dtype, "load: the tile has the tensor's dtype", tensor.dtype, t.dtype)


define("load", BOTH, """Read a rectangle of a tensor: `load T, scalars...`. See `access`. stages: slots of its ring, if the
       schedule names it. vec (once it is placed): at most this many elements per access. leaves: it may be moved out of this many loops
       that may have no iterations (without: out of all).""", _none, effect="read", check=_check_load, phases="placed pipelined",
       index=INDEX, guard=GUARD, **SITE, stages=whole(0, 64).maybe, vec=VEC.maybe, leaves=whole(0, 64).maybe, reach=(1, 0, None))


def _check_store(op: Op) -> None:
    tensor, value = op.operands[0].type, op.operands[1].type
    need(value.dtype == tensor.dtype, "store: the tile has the tensor's dtype", tensor.dtype, value.dtype,
         hint="cast it: x.to(T.dtype)")
    check_added(op)


def check_added(op: Op) -> None:
    """Memory adds words, and halves of them."""
    tensor = op.operands[0].type
    need(not op.get("reduce") or (tensor.dtype.bits > 8 and tensor.dtype.name != "i64"), f"{op.kind}: atomic adds are for 16 bits and more",
         "f16, bf16, f32, f64, i32, u32", tensor.dtype)
    if op.get("turn"):
        need(bool(op.get("reduce")), f"{op.kind}: what adds has a turn", "reduce=add", op.get("reduce"))
        check_turn([v.type for v in in_turn(op)], op.kind)


def in_turn(op: Op) -> tuple[Value, ...]:
    """Whose turn a store waits for: a tensor of i32, a position in it, and the number that stands there then. Nothing where it has none."""
    reach = OPS[op.kind].reach
    end = len(op.operands) - (reach.after if reach else 0)
    return op.operands[end - op.get("turn", 0):end]


def check_turn(types: Sequence[Any], what: str) -> None:
    tensor, *scalars = types
    need(isinstance(tensor, Tensor) and tensor.dtype == i32, f"{what}: a tensor of i32 says whose turn it is", "i32", tensor)
    need(len(scalars) == len(tensor.dims) + 1 and all(t in (Scalar(i32), Scalar(i64)) for t in scalars),
         f"{what}: a turn is one position per dimension, and a number", len(tensor.dims) + 1, scalars)


#: operands that say whose turn it is: a tensor of up to six axes
TURN = whole(3, 8).maybe
define("store", BOTH, """Write a rectangle of a tensor: `store T, value, scalars..., turn...`, in bulk where the value is a slot;
       reduce="add" adds atomically. turn: so many operands at the end, a tensor of i32, a position in it and a number n: the add waits
       until n stands there, and leaves n + 1 there when it is done.""", _none,
       effect="write", check=_check_store, phases="placed pipelined", index=INDEX, guard=GUARD, reduce=one_of("add").maybe, vec=VEC.maybe,
       turn=TURN, reach=(2, 0, 1))


def _gather(types, attrs):
    need(isinstance(types[0], Tensor), "gather: the first operand is a tensor parameter", "tensor", types[0])
    need(len(types) - 1 == len(types[0].dims), "gather: one position per dimension", len(types[0].dims), len(types) - 1)
    need(all(t.dtype in (i32, i64) for t in types[1:]), "gather: positions are integers", "i32")
    return (with_dtype(shaped(types[1:], "gather"), types[0].dtype),)


define("gather", BOTH, "Read one element per position: `gather T, i0, i1, ...` with scalars and tiles of integers. Positions outside "
       "the tensor read as zero.", _gather, effect="read")


define("size", BOTH, "The run-time size of the tensor dimension with this name.", "-> i32", dim=TEXT)


def _for(types, attrs):
    need(len(types) >= 2, "for takes low, high and the initial carried values")
    need(all(isinstance(t, Scalar) and t.dtype == i32 for t in types[:2]), "for: bounds are i32", "i32, i32",
         types[:2])
    return tuple(types[2:])


def _check_for(op: Op) -> None:
    need(len(op.regions) in (1, 2), "for has a body and possibly a `live` region")
    carried = tuple(v.type for v in op.operands[2:])
    need_region(op, 0, "the body", (Scalar(i32), *carried), carried)
    for live in op.regions[1:]:
        told = tuple(v.type for v in live.yielded)
        need_region(op, 1, "`live`", (Scalar(i32),), told)
        need([t.dtype for t in told] == [i1], "for: `live` yields one i1 scalar or tile", "i1", told)


define("for", BOTH, """`for lo, hi, inits... -> (i, carried...)`: i runs over [lo, hi), downwards if descending. tile: the tile size that i
       counts; label: its name. A second region `live(i)` yields an i1 tile: where it is false everywhere the iteration may be left out.
       unroll: bounds are constants and the body is expanded (machine level); turns: so many iterations are printed one behind the other,
       whose carried registers change places. chain: loops with one number run one after the other over one range and share rings. part:
       which part of the range ("masked", "full"), for people.""", _for, check=_check_for,
       descending=FLAG.maybe, label=TEXT.maybe, tile=whole(1).maybe, unroll=FLAG.maybe, turns=whole(2, 2).maybe, chain=whole().maybe,
       part=one_of("masked", "full").maybe, traits="regions, in flight, position")


def _check_if(op: Op) -> None:
    need(len(op.regions) == 2, "if has two regions")
    need(op.operands[0].type == Scalar(i1), "if: the condition is a scalar i1", "i1", op.operands[0].type)
    for n in (0, 1):
        need_region(op, n, "each region", (), tuple(r.type for r in op.results))


define("turn", BOTH, """Groups of warps that take turns issue their matrix products one after the other: a group's turn starts here and ends
       when its first product is done.""", "->", effect="write", phases="placed selected")
define("row_part", BOTH, """Which of `parts` equal parts of the program's rows this group of warps works on. Where nobody shares rows out
       (tile level, one group) it is 0.""", "-> i32", parts=whole(1, 32))


define("narrow", BOTH, """`narrow all, own`: one end of a range. `all` holds for every row of the program; a group of warps that works on
       its own part of the rows may take `own` instead. chain: of the loops whose range it is; end: "first" where they start, "last" where
       they stop, "inner" between two of them.""",
       "i32, i32 -> i32", phases="placed pipelined", chain=whole(), end=one_of("first", "last", "inner"))


define("if", BOTH, "Run one of two regions; the results are what it yields.", _none, check=_check_if, traits="regions, in flight, position")
define("yield", BOTH, "Ends a region.", "* ->", effect="write", traits="in flight, position")
