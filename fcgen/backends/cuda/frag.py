"""Fragment ops: one unrolled loop over registers per stored pointwise value, folds, butterflies and votes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import FcError, Loc
from ...ir.core import Op, Value
from ...ir.elementwise import FNS, REDUCTIONS
from ...ir.layout import RegLayout
from ...ir.types import Frag, Scalar
from . import opaque
from .emit import Emitter, emits
from .expr import LONG, Registers, apply, apply_op, define_scalar, gathered, rounded, view_index
from .opaque import is_opaque
from .packed import Words, takes
from .text import BITS, CTYPES, X, add, binary, call, mul


def locs_of(em: Emitter, op: Op) -> list[Loc | None]:
    """The op's place and those of the expressions it evaluates, in program order."""
    out: list[Loc | None] = []
    seen: set[Value] = set()

    def visit(v: Value) -> None:
        if v in em.plan.fused and v not in seen:
            seen.add(v)
            src = em.plan.maker[v]
            for o in src.operands:
                visit(o)
            out.append(src.loc)

    for o in op.operands:
        visit(o)
    here = op.loc.file if op.loc else ""
    order: list[Loc] = [x for x in dict.fromkeys([*out, op.loc]) if x is not None]
    return [*sorted(order, key=lambda x: (x.file != here, x.line))]


def fill(em: Emitter, name: str, t: Frag, value) -> None:
    """`name[i] = value(register i)` over all registers of type t. value(Registers) -> X."""
    layout = t.layout
    assert isinstance(layout, RegLayout)
    n = layout.regs

    per = t.dtype.per_register
    if per == 1:
        def body(i: X) -> list[str]:
            lines: list[str] = []
            x = value(Registers(em, i, lines, name))
            return [*lines, f"{name}[{i}] = {x};"]

        em.w.loop(n, "i", body)
        return
    pack = em.fn(f"pack_{t.dtype.name}")

    ctype, zero = CTYPES[t.dtype.name], "0.0f" if t.dtype.is_float else "0"

    def word(i: X, count: int = per) -> list[str]:
        lines: list[str] = []
        parts = [value(Registers(em, at, lines, name)) for at in members(i, per)[:count]] + [X(zero)] * (per - count)
        if sum(len(x.text) for x in parts) > LONG:
            names = [em.names(wish) for wish in (("lo", "hi") if per == 2 else "abcd")]
            lines += [f"const {ctype} {a} = {x};" for a, x in zip(names, parts)]
            parts = [X(a) for a in names]
        return [*lines, f"{name}[{i}] = {call(pack, *parts)};"]

    words(em, n, per, word)


def members(i: X, per: int) -> list[X]:
    """The elements that share word i of a packed array."""
    if per == 1:
        return [i]
    if i.text.isdigit():
        return [X(str(per * int(i.text) + k)) for k in range(per)]
    return [add(binary("*", X(str(per)), i), X(str(k))) for k in range(per)]


def words(em: Emitter, n: int, per: int, word: Callable[..., list[str]]) -> None:
    """`word(i)` for each whole word of n packed elements, and `word(i, count)` for the one that is not."""
    em.w.loop(n // per, "i", word)
    if n % per:
        for line in word(X(str(n // per)), n % per):
            em.w.line(line)


def one_by_one(em: Emitter, name: str, n: int, each: int, bits: Callable[[X], X]) -> None:
    """`name` from its n parts of `each` bits, each fetched by itself."""
    per = max(1, 32 // each)

    def word(i: X, count: int = per) -> list[str]:
        at = members(i, per)[:count]
        if count == 1:
            return [f"{name}[{i}] = {bits(at[0])};"]
        names = ("lo", "hi") if per == 2 else ("b0", "b1", "b2", "b3")
        lines = [f"const uint32_t {b} = {bits(x)};" for b, x in zip(names, at)]
        parts = [b if k == 0 else f"{b} << {k * each}" for k, b in enumerate(names[:count])]
        lines.append(f"{name}[{i}] = {' | '.join(parts)};")
        return ["{", *("    " + t for t in lines), "}"] if i.text.isdigit() else lines  # no loop is around it

    words(em, n, per, word)


def evaluate_into(em: Emitter, name: str, v: Value) -> None:
    """Copy or compute value v into the array `name`."""
    t = v.type
    if is_opaque(v):
        opaque.into(em, name, v)
        return
    same = em.plan.unturned(v)
    if same not in em.plan.fused and t.dtype.per_register > 1 and em.plan.base(v) is same:
        em.w.loop(-(-t.layout.regs // t.dtype.per_register), "i", lambda i: [f"{name}[{i}] = {em.array(same)}[{i}];"])
        return
    op = em.plan.maker.get(v)
    if v in em.plan.fused and op is not None:
        evaluate(em, name, op)
    else:
        fill(em, name, t, lambda regs: regs.value(v, _full(t), final=True))


def declare(em: Emitter, v: Value) -> str:
    """The array of a stored fragment, declared here if this is the first time it is met."""
    return opaque.declare(em, v) if is_opaque(v) else em.declare(v)


def put(em: Emitter, v: Value | None, into: Value) -> str:
    """The array of `into`, with v in it if there is one: copied where it does not lie there already."""
    name = declare(em, into)
    if v is not None and (v in em.plan.fused or em.plan.root(em.plan.base(v)) is not em.plan.root(into)):
        evaluate_into(em, name, v)
    return name


def evaluate(em: Emitter, name: str, op: Op) -> None:
    """Compute what the op makes into the array `name`, packed elements together where there are instructions for that."""
    t = op.result.type
    per = t.dtype.per_register
    if per > 1 and t.layout.regs % per == 0 and takes(em, op):
        table = _full(t).reshape(-1, per)

        def word(i: X) -> list[str]:
            lines: list[str] = []
            x = Words(em, i, lines, name).compute(op, table)
            return [*lines, f"{name}[{i}] = {x};"]

        em.w.loop(len(table), "i", word)
        return
    fill(em, name, t, lambda regs: regs.compute(op, _full(t), final=True))


def _full(t: Frag) -> np.ndarray:
    assert isinstance(t.layout, RegLayout)
    return np.arange(t.layout.regs)


def stored(em: Emitter, v: Value) -> str:
    """The array of v; a view is copied out for whoever needs registers in a row."""
    if em.plan.base(v) is v:
        return em.array(v)
    if v not in em.arrays:
        em.plan.parent[v] = v
        evaluate_into(em, em.declare(v), v)
        del em.plan.parent[v]
    return em.arrays[v]


@emits(*FNS, "select", "cast", "iota", "full", "broadcast")
def _pointwise(em: Emitter, op: Op) -> None:
    v = op.result
    if isinstance(v.type, Scalar):
        define_scalar(em, op, rounded(em, apply_op(em, op, list(map(em.scalar, op.operands))), v.type.dtype))
    elif v not in em.plan.fused and v not in em.delayed:
        em.comment(locs_of(em, op))
        if is_opaque(v):
            opaque.pointwise(em, op)
        else:
            evaluate(em, em.declare(v), op)


@emits("slice", "transpose")
def _view(em: Emitter, op: Op) -> None:
    pass  # a view: whoever reads it indexes the stored fragment


@emits("gather")
def _gather(em: Emitter, op: Op) -> None:
    if op.result in em.plan.fused:
        return
    em.comment(locs_of(em, op))
    t, positions = op.result.type, op.operands[1:]
    if isinstance(t, Scalar):
        x = gathered(em, op, [em.scalar(p) for p in positions])
        em.scalars[op.result] = X(em.names(op.result.name), depth=em.depth)
        em.w.line(f"const {CTYPES[t.dtype.name]} {em.scalars[op.result]} = {x};")
        return
    fill(em, em.declare(op.result), t, lambda regs: gathered(em, op, [regs.value(p, _full(t)) for p in positions]))


def check_wide(v: Value, op: Op) -> None:
    if v.type.dtype.bits < 32:
        raise FcError("compile/unsupported", f"{op.kind}: sums and extrema are kept in 32 bits or more", got=v.type, loc=op.loc,
                      hint=f"cast the tile to {v.type.dtype.computed} first")


# ---- folds -----------------------------------------------------------------------------------------------------------


@emits("reduce")
def _reduce(em: Emitter, op: Op) -> None:
    """Each result register folds its elements in a fixed order, in two interleaved chains where there are eight or more."""
    em.comment(locs_of(em, op))
    src, v, axis = op.operands[0], op.result, op["axis"]
    name = em.declare(v)
    layout = src.type.layout
    drop = layout.drop_map(axis)
    rows = v.type.layout.regs if v.type.shape else 1
    members = np.array([np.flatnonzero(drop == r) for r in range(rows)])
    per_row, f = members.shape[1], REDUCTIONS[op["fn"]][1]
    dtype = v.type.dtype
    check_wide(v, op)
    starts, steps = members[:, 0], members[0] - members[0, 0]
    assert (members - starts[:, None] == steps).all(), "rows of a register layout are laid out alike"
    ctype = CTYPES[dtype.name]
    chains = 2 if per_row >= 8 else 1

    def element(at: X, lines: list[str]) -> X:
        known = at.text.isdigit()
        x = _read(em, src, at, lines)
        if known or (len(x.text) <= 40 and chains == 1) or x.text.endswith("]"):
            return x
        lines.append(f"const {ctype} value = {x};")
        return X("value")

    def row(j: X) -> list[str]:
        first = em.form(starts, j, f"first_{name}")
        if per_row == 1:
            lines: list[str] = []
            x = element(first, lines)
            return [*lines, f"{name}[{j}] = {x};"]
        into = "part[i % 2]" if chains == 2 else f"{name}[{j}]"
        at = add(first, em.form(steps, X("i"), f"step_{name}"))
        if op["fn"] == "max" and dtype.name == "i32" and "vmax3" in em.target.instrs and per_row % 4 == 0:
            return _max3(em, src, first, steps, name, j)
        inner: list[str] = []
        if not at.text.isidentifier():
            inner.append(f"const int e = {at};")
            at = X("e")
        x = element(at, inner)
        folded = apply(em, f, dtype, [X(into), x])
        inner.append(f"{into} = i < {chains} ? {x} : {folded};")
        out = [f"{ctype} part[2];"] if chains == 2 else []
        out += ["#pragma unroll", f"for (int i = 0; i < {per_row}; ++i) {{", *("    " + t for t in inner), "}"]
        if chains == 2:
            out.append(f"{name}[{j}] = {apply(em, f, dtype, [X('part[0]'), X('part[1]')])};")
        return out

    em.w.loop(rows, "j", row, block=chains == 2)


def _max3(em: Emitter, src: Value, first: X, steps: np.ndarray, name: str, j: X) -> list[str]:
    """The largest of a row's integers, two new ones per instruction, in two chains."""
    lines: list[str] = []

    def element(i: str) -> X:
        return _read(em, src, add(first, em.form(steps, X(i), f"step_{name}")), lines)

    fn, n = em.fn("vmax3"), len(steps)
    x = [element(f"({e})" if not e.isidentifier() else e) for e in ("i", "i + 1", "i + 2", "i + 3")]
    return [
        "int part[2] = {0, 0};",
        "#pragma unroll",
        f"for (int i = 0; i < {n}; i += 4) {{",
        *("    " + t for t in lines),
        f"    part[0] = {fn}(part[0], {x[0]}, {x[1]});",
        f"    part[1] = {fn}(part[1], {x[2]}, {x[3]});",
        "}",
        f"{name}[{j}] = max(part[0], part[1]);",
    ]


def _read(em: Emitter, v: Value, at: X, lines: list[str]) -> X:
    """Register `at` of v, which is an expression or lies in an array; lines: what has to stand in front."""
    domain = em.arrays.get(em.plan.root(em.plan.base(v)), v.name or "tile")
    return Registers(em, at, lines, domain).value(v, _full(v.type))


@emits("combine", "apart")
def _combine(em: Emitter, op: Op) -> None:
    em.comment([op.loc])
    src, v = op.operands[0], op.result
    f = REDUCTIONS[src.type.partial][1]
    dtype = v.type.dtype
    check_wide(v, op)
    name = em.declare(v)
    shfl = em.fn(f"shfl_xor_{dtype.name}")

    def body(i: X) -> list[str]:
        out, at = [], f"{name}[{i}]"
        base, k = view_index(em, src, np.arange(v.type.layout.regs), i)
        read = f"{em.array(base)}[{k}]"
        for s in op["lanes"]:
            out.append(f"{at} = {apply(em, f, dtype, [X(read), call(shfl, read, str(s))])};")
            read = at
        if not out and read != at:
            out.append(f"{at} = {read};")
        return out

    if op["lanes"] or em.plan.root(em.plan.base(src)) is not em.plan.root(v):
        em.w.loop(v.type.layout.regs, "i", body)


@emits("vote_any")
def _vote(em: Emitter, op: Op) -> None:
    em.comment(locs_of(em, op))
    src = op.operands[0]
    name = em.names(op.result.name, "any")
    if isinstance(src.type, Scalar):
        em.w.line(f"const bool {name} = __any_sync(0xffffffffu, {em.scalar(src)});")
    else:
        em.w.line(f"bool {name} = false;")

        def body(i: X) -> list[str]:
            lines: list[str] = []
            x = _read(em, src, i, lines)
            return [*lines, f"{name} |= {x.within(BITS)};"]

        em.w.loop(src.type.layout.regs, "i", body)
        em.w.line(f"{name} = __any_sync(0xffffffffu, {name});")
    em.scalars[op.result] = X(name, depth=em.depth)


@emits("quad_transpose")
def _quad_transpose(em: Emitter, op: Op) -> None:
    """Four words at a time: those of one row, 32 columns apart in the quad's lanes."""
    src, out = op.operands[0], op.result
    em.comment(locs_of(em, op))
    name, source = em.declare(out), stored(em, src)
    have = {tuple(c): r for r, c in enumerate(src.type.layout.coords(em.kernel.warps)[0, 0].tolist())}
    first = out.type.layout.coords(em.kernel.warps)[0, 0, ::8].tolist()
    words = np.array([have[r, c + 8 * q] // 2 for r, c in first for q in range(4)])
    fn = em.fn("quad_transpose")

    def body(i: X) -> list[str]:
        at = mul(i, 4)
        return [f"{name}[{add(at, X(str(q)))}] = {source}[{em.form(words[q::4], i, f'word_{name}')}];" for q in range(4)] \
            + [f"{fn}(&{name}[{at}], lane);"]

    em.w.loop(len(first), "i", body)
