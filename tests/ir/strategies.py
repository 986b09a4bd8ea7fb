"""Random programs, attributes and layouts for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from fcgen.errors import Loc
from fcgen.ir.core import Block, GridAxis, Kernel, Op, Role, Value
from fcgen.ir.layout import OpaqueLayout, SmemLayout, blocked, mma_a, mma_b, mma_c, rowwise
from fcgen.ir.rewrite import Builder
from fcgen.ir.types import DTYPES, Buffer, Frag, Scalar, Tensor, Tile, f16, f32, i1, i32

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=4) | st.sampled_from(
    ["s", "m", "m.1", "7", "x y", "frag", "for", "inf", "w4", "x2", "é", "@", "%a"])
words = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
warps = st.sampled_from([(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
sizes = st.sampled_from([1, 2, 3, 4])


@st.composite
def mma_layouts(draw):
    """(layout, shape, words of the maker) for whole tiles of mma fragments."""
    wm, wn = draw(warps)
    m, n = draw(sizes) * 16 * wm, draw(sizes) * 16 * wn
    kind = draw(st.sampled_from([mma_a, mma_b, mma_c]))
    if kind is mma_b:
        return kind(draw(sizes) * 16, n, (wm, wn))
    return kind(m, draw(sizes) * 16 if kind is mma_a else n, (wm, wn))


@st.composite
def row_layouts(draw):
    rows, cols = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    n = draw(st.sampled_from([1, 2, 4, 8]))
    vec = draw(st.sampled_from([1, 2, 4, 8]))
    if draw(st.booleans()):
        return blocked(rows, cols, n, vec)
    return rowwise(rows, cols, n, draw(st.sampled_from([1, 2, 4, 8, 16, 32])), vec)


reg_layouts = mma_layouts() | row_layouts()
opaque_layouts = st.builds(OpaqueLayout, st.sampled_from(["acc", "a", "b"]), st.integers(1, 8), st.integers(1, 8))
smem_layouts = st.builds(SmemLayout, st.sampled_from([8, 16, 32, 64]), st.sampled_from([0, 8])) | st.sampled_from(
    [SmemLayout(16, 0, 32), SmemLayout(32, 0, 64), SmemLayout(64, 0, 128), SmemLayout(32, 0, 128)])

leaves = (st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(max_size=8) | st.booleans() | st.none() | reg_layouts | opaque_layouts
          | smem_layouts | st.sampled_from(["true", "inf", "none", "mma.m16n8k16", "a b", '"', "\\", "\n", "-1"]))
attr_values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


def _literal(b: Builder, t) -> Value:
    """Any value of this type."""
    value = {True: 0.5, False: 1}[t.dtype.is_float]
    scalar = b.emit("const", value=value, dtype=t.dtype.name)
    if isinstance(t, Scalar):
        return scalar
    if isinstance(t, Tile):
        return b.emit("full", scalar, shape=t.shape)
    return b.emit("full", scalar, type=t)


@st.composite
def value_types(draw, level: str):
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    if draw(st.integers(0, 3)) == 0:
        return Scalar(dtype)
    if level == "tile":
        return Tile(dtype, tuple(draw(st.lists(st.integers(1, 64), min_size=1, max_size=3))))
    layout = draw(reg_layouts)
    return Frag(dtype, layout.shape, layout, draw(st.sampled_from([None, None, "sum", "max"])))


@st.composite
def blocks(draw, level: str, seen: list[Value], args: tuple[Value, ...] = (), result_types: tuple = (), depth: int = 0):
    """A region over values of outer scope that yields `result_types`."""
    b = Builder()
    seen = [*seen, *args]
    for _ in range(draw(st.integers(0, 5))):
        b.loc = Loc(draw(st.sampled_from(["a/k.py", "b/k.py", "<stdin>", "C:\\x\\k 2.py"])), draw(st.integers(1, 99))) \
            if draw(st.booleans()) else None
        kind = draw(st.sampled_from(["new", "unary", "cast", "pair", "for", "if", "barrier"]))
        shaped = [v for v in seen if not isinstance(v.type, (Tensor, Buffer))]
        name = draw(names)
        if kind in ("for", "if") and depth < 2:
            types = tuple(draw(st.lists(value_types(level), max_size=2)))
            results = tuple(Value(t, draw(names)) for t in types)
            if kind == "if":
                cond = _literal(b, Scalar(i1))
                regions = tuple(draw(blocks(level, seen, (), types, depth + 1)) for _ in range(2))
                op = Op("if", (cond,), results, {}, regions, b.loc)
            else:
                inits = (_literal(b, Scalar(i32)), _literal(b, Scalar(i32)), *(_literal(b, t) for t in types))
                body_args = (Value(Scalar(i32), draw(names)), *(Value(t, draw(names)) for t in types))
                regions = (draw(blocks(level, seen, body_args, types, depth + 1)),)
                if draw(st.booleans()):
                    regions += (draw(blocks(level, seen, (Value(Scalar(i32), draw(names)),), (Scalar(i1),), depth + 1)),)
                attrs = draw(st.fixed_dictionaries({}, optional={
                    "descending": st.booleans(), "label": st.text(max_size=5), "tile": st.integers(1, 64),
                    "chain": st.integers(0, 99)}))
                op = Op("for", inits, results, attrs, regions, b.loc)
            b.add(op)
            seen += results
        elif kind == "barrier" and any(isinstance(v.type, Frag) for v in seen):  # a role without fragments is one thread: none meet
            b.do("barrier")
        elif kind == "unary" and shaped:
            v = draw(st.sampled_from(shaped))
            fn = "not" if not v.type.dtype.is_float else draw(st.sampled_from(["exp", "neg", "abs"]))
            seen.append(b.emit(fn, v, name=name))
        elif kind == "pair" and shaped:
            v = draw(st.sampled_from(shaped))
            seen.append(b.emit(draw(st.sampled_from(["lt", "eq"])), v, v, name=name))
        elif kind == "cast" and shaped:
            seen.append(b.emit("cast", draw(st.sampled_from(shaped)), name=name, to=draw(st.sampled_from(list(DTYPES)))))
        else:
            seen.append(_literal(b, draw(value_types(level))))
    if depth:
        b.loc = None
        b.do("yield", *[next((v for v in seen if v.type == t), None) or _literal(b, t) for t in result_types])
    return b.block(args)


@st.composite
def kernels(draw):
    level = draw(st.sampled_from(["tile", "machine"]))
    params = [Value(draw(st.sampled_from([Scalar(f32), Tensor(f16, ("B", "M", 64)), Tensor(f32, ()), Tensor(i32, (4, "N"))])),
                    name)
              for name in draw(st.lists(words, max_size=3, unique=True))]
    flags = {p.name: ("out" if isinstance(p.type, Tensor) else "positive",) for p in params if draw(st.booleans())}
    dims = sorted({d for p in params if isinstance(p.type, Tensor) for d in p.type.dims if isinstance(d, str)})
    grid = tuple(GridAxis(n, draw(st.sampled_from([1, 9, *dims])), draw(st.integers(1, 3)), draw(st.booleans()), draw(st.sampled_from([1, 1, 2])))
                 for n in draw(st.lists(words, max_size=3)))
    order = tuple(draw(st.permutations(range(len(grid))))) if draw(st.booleans()) else ()
    buffers: list[Value] = []
    if level == "machine":
        for _ in range(draw(st.integers(0, 2))):
            layout = draw(smem_layouts)
            buffers.append(Value(Buffer(f16, (draw(st.integers(1, 64)), 2 * layout.panel), layout, draw(st.integers(1, 4))),
                                 draw(words)))
    roles = []
    count = 1 if level == "tile" else draw(st.integers(1, 2))
    for n in range(count):
        args = tuple(Value(Scalar(i32), a.name) for a in grid)
        body = draw(blocks(level, params + buffers, args))
        roles.append(Role("all", 0, body) if level == "tile" else
                     Role(draw(st.text(max_size=5)) + str(n), 8, body, draw(st.sampled_from([0, 24, 256])) if count > 1 else 0))
    meta = draw(st.fixed_dictionaries({}, optional={"target": st.text(max_size=8), "until_loops": st.just((("n", "N", 1),))}))
    if level == "machine":
        meta |= draw(st.fixed_dictionaries({}, optional={"schedule": st.text(max_size=8), "min_blocks": st.integers(1, 32)}))
    return Kernel(draw(st.text(max_size=8)), level, tuple(params), grid, tuple(roles), flags, order, tuple(buffers), meta)


def body_of(*ops: Op) -> Block:
    return Block((), ops)
