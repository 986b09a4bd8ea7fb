"""Expressions of the elementwise functions, over scalars and over one register of a fragment.

Arithmetic on 16-bit floats widens to float, computes, and rounds after every function, as `ir.elementwise` defines it; the last
rounding is the packing. Accuracy: div within 2 ulp, exp2 2 ulp, log absolute 2e-7, tanh_approx 2^-11 relative, everything else about
1e-6 relative or better.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from ...errors import FcError
from ...ir.core import Op, Value
from ...ir.elementwise import FNS, to_dtype
from ...ir.types import DType, Frag, Scalar
from .emit import Emitter, emits
from .spread import GAINS, broadcast_map, spread
from .text import AND, ATOM, CTYPES, EQUAL, MUL, OR, TERNARY, UNARY, ZERO, X, add, binary, call, every, inside, literal
from .words import scalar, wished

LONG = 90  # an expression longer than this gets a name of its own
LONG_ARM = 3  # functions

_LIBM = {"pow": "powf", "sqrt": "sqrt_approx", "rsqrt": "rsqrt_approx", "rcp": "rcp_approx", "sin": "sin_approx",
         "cos": "cos_approx", "tanh": "tanhf", "tanh_approx": "tanh_approx", "sigmoid": "sigmoid_approx", "erf": "erff",
         "floor": "floorf", "ceil": "ceilf", "fma": "fmaf", "exp2": "exp2_approx", "max": "fmaxf", "min": "fminf", "abs": "fabsf",
         "div": "div_approx"}
_LIBM64 = {"max": "fmax", "min": "fmin", "abs": "fabs", "tanh_approx": "tanh"}  # the others have the function's own name


def apply(em: Emitter, name: str, dtype: DType, args: list[X], nonneg: bool = False) -> X:
    """C++ of one elementwise function on operands of `dtype`."""
    fn = FNS[name]
    depth = max(a.depth for a in args)
    if name == "neg":
        return X(f"-{args[0].within(ATOM)}", UNARY, depth)
    if name in ("bits", "from_bits"):
        return call("__float_as_int" if name == "bits" else "__int_as_float", *args)
    if name == "not":
        return X(f"{'!' if dtype.name == 'i1' else '~'}{args[0].within(UNARY)}", UNARY, depth)
    if fn.kind == "logic" and dtype.name == "i1" and name in ("and", "or"):
        op, prec, least = ("&&", AND, EQUAL) if name == "and" else ("||", OR, UNARY)
        return X(f"{args[0].within(least)} {op} {args[1].within(least)}", prec, depth)
    if name in ("shl", "shr") and not (args[1].text.rstrip("uL").isdigit() and int(args[1].text.rstrip("uL")) < dtype.computed.bits):
        return call(em.fn(f"{name}_{dtype.computed.name}"), *args)
    if fn.symbol and not (name == "div" and dtype.name != "f64"):
        return binary(fn.symbol, *args)
    if dtype.is_int:
        if name == "mulhi":
            return call("__mulhi" if dtype.signed else "__umulhi", *args)
        if name in ("floordiv", "mod"):
            if nonneg or not dtype.signed:
                sign = "/" if name == "floordiv" else "%"
                if dtype.name == "i32" and not args[1].text.isdigit():
                    # (half the instructions; and short of registers, ptxas 13.0 takes |n ^ d| for |n| in a signed one)
                    return call("int", binary(sign, *(call("unsigned", x) for x in args)))
                return binary(sign, *args)
            wide = "_i64" if dtype.name == "i64" else ""
            return call(em.fn(("floor_div" if name == "floordiv" else "floor_mod") + wide), *args)
        return call({"max": "max", "min": "min", "abs": "abs"}[name], *args)
    if dtype.name == "f64":
        if name == "rcp":
            return binary("/", X("1.0"), args[0])
        if name == "sigmoid":
            return X(f"1.0 / (1.0 + exp(-{args[0].within(ATOM)}))", MUL, depth)
        return call(_LIBM64.get(name, name), *args)
    if name == "exp":
        return call(em.fn("exp2_approx"), binary("*", args[0], literal(math.log2(math.e), dtype)))
    if name in ("log", "log2"):
        x = call(em.fn("log2_approx"), *args)
        return x if name == "log2" else binary("*", x, literal(math.log(2), dtype))
    c = _LIBM[name]
    return call(em.fn(c) if c in em.target.instrs else c, *args)


def cast(x: X, src: DType, dst: DType) -> X:
    a, b = CTYPES[src.name], CTYPES[dst.name]
    if dst.is_int and src.is_float:  # the nearest integer that there is, which C++ leaves undefined
        to = {"int": "int", "uint32_t": "uint", "long long": "ll"}[b]
        x = call(f"__{a}2{to}_rz", x)
        return call("max", X(str(dst.range[0])), call("min", X(str(dst.range[1])), x)) if dst.bits < 32 else x
    if a == b:
        return x
    if dst.name == "i1":
        return binary("!=", x, ZERO)
    return call("static_cast<long long>" if b == "long long" else b, x)


def choose(c: X, a: X, b: X) -> X:
    return X(f"{c.within(TERNARY + 1)} ? {a.within(TERNARY + 1)} : {b.within(TERNARY)}", TERNARY, max(c.depth, a.depth, b.depth))


def rounded(em: Emitter, x: X, dtype: DType) -> X:
    return call(em.fn(f"round_{dtype.name}"), x) if dtype.per_register > 1 else x


# ---- scalars ---------------------------------------------------------------------------------------------------------


def nonneg(em: Emitter, v: Value, fuel: int = 12) -> bool:
    """Whether an integer, or all of a tile of them, is known to be at least 0."""
    if fuel == 0:
        return False
    op = em.plan.maker.get(v)
    if op is None:
        return v in em.nonneg or "positive" in em.kernel.flags.get(v.name, ())
    if op.kind == "const":
        return op["value"] >= 0
    if op.kind in ("add", "mul", "floordiv", "mod", "min", "shr"):
        wraps = op.kind in ("add", "mul") and (v.type.dtype.bits < 32 or em.plan.wraps(v))  # from the largest number to the least
        return not wraps and all(nonneg(em, o, fuel - 1) for o in op.operands)
    if op.kind in ("max",):
        return any(nonneg(em, o, fuel - 1) for o in op.operands)
    if op.kind == "cast":
        src, dst = op.operands[0].type.dtype, v.type.dtype
        if not src.is_int or dst.bits - dst.signed < src.bits - src.signed:
            return False
        return not src.signed or nonneg(em, op.operands[0], fuel - 1)
    if op.kind in ("broadcast", "full"):
        return nonneg(em, op.operands[0], fuel - 1)
    return op.kind in ("size", "iota", "block_index", "block_count", "claim", "fetch")


def define_scalar(em: Emitter, op: Op, x: X, inline: bool | None = None) -> None:
    """Name a scalar's value, or keep it as an expression where it is used once, nearby, and short."""
    v = op.result
    users = em.plan.users.get(v, [])
    if inline is None:
        same = len(users) == 1 and users[0][1] is em.plan.home[v] and users[0][0].kind not in ("for", "yield", "if")
        inline = (x.prec == ATOM and "(" not in x.text and "[" not in x.text) or (same and len(x.text) <= 40)
    if inline:
        em.scalars[v] = x
        return
    known = em.fold(v)
    if known is not None:
        em.scalars[v] = literal(known, v.type.dtype)
        return
    em.comment([op.loc])
    name = X(em.names(wished(em.plan, v) or scalar(em.plan, v)), depth=em.depth)
    em.w.line(f"const {CTYPES[v.type.dtype.name]} {name} = {x};")
    em.scalars[v] = name


@emits("const")
def _const(em: Emitter, op: Op) -> None:
    dtype = op.result.type.dtype
    value = float(to_dtype(np.float32(op["value"]), dtype)) if dtype.is_float and dtype.bits < 32 else op["value"]
    em.scalars[op.result] = literal(value, dtype)


@emits("size")
def _size(em: Emitter, op: Op) -> None:
    em.scalars[op.result] = em.size(op["dim"])


def apply_op(em: Emitter, op: Op, args: list[X]) -> X:
    if op.kind == "select":
        return choose(*args)
    if op.kind == "cast":
        return cast(args[0], op.operands[0].type.dtype, op.result.type.dtype)
    dtype = op.operands[0].type.dtype
    if op.kind in ("mul", "mulhi") and dtype.name == "u32" and _has_both_halves(em, op):
        wide = call(em.fn("mul_wide_u32"), *args)
        return call("uint32_t", wide if op.kind == "mul" else binary(">>", wide, X("32")))
    if op.kind in ("add", "sub", "mul", "neg") and dtype.is_int and dtype.signed and dtype.bits >= 32 and em.plan.wraps(op.result):
        unsigned, signed = ("uint32_t", "int") if dtype.bits == 32 else ("static_cast<unsigned long long>", "static_cast<long long>")
        return call(signed, apply(em, op.kind, dtype, [call(unsigned, args[0]), *args[1:]]))
    whole = op.kind in ("floordiv", "mod") and dtype.is_int and all(nonneg(em, o) for o in op.operands)
    if op.kind in ("floordiv", "mod") and dtype.name == "i32" and not isinstance(op.result.type, Scalar):
        by = op.operands[1]
        if isinstance(by.type, Scalar) and em.fold(by) is None and nonneg(em, by):
            return _by_product(em, op.kind, args[0], args[1], whole)
        if whole:  # half of what signed numbers take
            return call("int", apply(em, op.kind, dtype, [call("unsigned", x) for x in args], True))
    return apply(em, op.kind, dtype, args, whole)


def _by_product(em: Emitter, kind: str, x: X, d: X, whole: bool) -> X:
    """x // d or x % d for many x, and one d above 0: what follows from d alone is computed once, and what is left takes three to six
    instructions where a division takes twenty."""
    magic = em.hoist("uint32_t", "magic", call(em.fn("div_magic"), d))
    shift = em.hoist("int", "shift", call(em.fn("div_shift"), d))
    q = call("int", call(em.fn("div_by"), x, magic, shift)) if whole else call(em.fn("floor_div_by"), x, magic, shift)
    return q if kind == "floordiv" else binary("-", x, binary("*", q, d))


def _has_both_halves(em: Emitter, op: Op) -> bool:
    """Is the other half of the product wanted too? One instruction makes both; NVVM makes them one by one."""
    other = "mul" if op.kind == "mulhi" else "mulhi"
    return any(u.kind == other and u.operands == op.operands for u, _ in em.plan.users.get(op.operands[0], ()))


# ---- one register of a fragment --------------------------------------------------------------------------------------


#: axes of what is broadcast -> what runs along them
_ALONG: dict[tuple[int, ...], str] = {(0,): "row", (1,): "col"}


def _position(v: Value, along: tuple[int, ...] | None) -> str:
    return v.name or _ALONG.get(along or (), "pos")


class Registers:
    """Evaluates fragment values at register `i` of one loop. Values used more than once become constants of the
    loop's body (`lines`)."""

    def __init__(self, em: Emitter, i: X, lines: list[str], domain: str = "tile"):
        self.em, self.i, self.lines, self.domain = em, i, lines, domain
        self.along: tuple[int, ...] | None = None  # axes of what is broadcast, within one
        self.known: dict[tuple[Value, bytes], X] = {}

    def value(self, v: Value, table: np.ndarray, final: bool = False) -> X:
        """Value v at register table[i]. final: 16-bit results may be left unrounded, the caller packs them."""
        em = self.em
        if isinstance(v.type, Scalar):
            return em.scalar(v)
        op = em.plan.maker.get(v)
        if v not in em.plan.fused:
            return self.load(v, table)
        assert op is not None
        return self.compute(op, table, final)

    def compute(self, op: Op, table: np.ndarray, final: bool = False) -> X:
        em, v = self.em, op.result
        t = v.type
        if op.kind == "full":
            return em.scalar(op.operands[0])
        if op.kind == "iota":
            layout, word = t.layout, _position(v, self.along)
            regs = np.asarray(layout.part(0, "r", np.arange(layout.regs)))[table]
            return add(em.thread_part(layout, 0, f"{word}0"), em.form(regs, self.i, f"{word}_at"))
        if op.kind == "broadcast":
            outer, self.along = self.along, tuple(op["axes"])
            x = self.value(op.operands[0], broadcast_map(op)[table])
            self.along = outer
            return x
        if op.kind in ("lt", "le", "gt", "ge") and (sides := self.against_position(op, table)) is not None:
            return binary(FNS[op.kind].symbol, *sides)
        key = (v, table.tobytes())
        if key in self.known:
            return self.known[key]
        apart = spread(em, v, table, here=True) if op.kind in GAINS else None
        if apart is not None and (op.kind == "and" or (apart.at != apart.at[0]).any()):
            x = apart.value(em, self.i, t.dtype)
        else:
            args = [self.value(o, table) for o in op.operands[op.kind == "gather":]]
            if op.kind == "select" and len(t.shape) == 2:
                args[1:] = [self.before(a, o) for a, o in zip(args[1:], op.operands[1:])]
            x = gathered(em, op, args) if op.kind == "gather" else apply_op(em, op, args)
        uses = [u for u, _ in em.plan.users.get(v, [])]
        twice = len(uses) > 1 or any(list(u.operands).count(v) > 1 for u in uses)
        if v in em.plan.fused and (twice or len(x.text) > LONG):
            x = rounded(em, x, t.dtype)
            name = X(em.names(wished(em.plan, v), "x"))
            self.lines.append(f"const {CTYPES[t.dtype.name]} {name} = {x};")
            self.known[key] = x = name
        elif not final:
            x = rounded(em, x, t.dtype)
        return x

    def before(self, arm: X, v: Value) -> X:
        """What a choice may take, computed whether it is taken or not: NVVM puts long arms under branches of their own."""
        if v.type.dtype.per_register > 1 or self.length(v) < LONG_ARM:
            return arm
        name = X(self.em.names("x"))
        self.lines.append(f"const {CTYPES[v.type.dtype.name]} {name} = {arm};")
        return name

    def length(self, v: Value) -> int:
        """Functions that are computed for it here."""
        @cache
        def length(v: Value) -> int:
            op = self.em.plan.maker.get(v)
            if op is None or isinstance(v.type, Scalar) or v not in self.em.plan.fused:
                return 0
            return (op.kind in FNS or op.kind == "cast") + sum(map(length, op.operands))

        return length(v)

    def against_position(self, op: Op, table: np.ndarray) -> tuple[X, X] | None:
        """Both sides of `position < bound` with the thread's part of the position on the bound's side: what is left is a number in an
        unrolled loop, and the bound the same for many registers."""
        em, (x, y) = self.em, op.operands
        step, at = em.plan.maker.get(x), table
        if x not in em.plan.fused or step is None or step.kind != "broadcast" or not isinstance(x.type, Frag):
            return None
        source = em.plan.maker.get(step.operands[0])
        if source is None or source.kind != "iota" or step.operands[0] not in em.plan.fused:
            return None
        layout = source.result.type.layout
        regs = np.asarray(layout.part(0, "r", np.arange(layout.regs)))[broadcast_map(step)[at]]
        word = _position(source.result, tuple(step["axes"]))
        base = em.thread_part(layout, 0, f"{word}0")
        bound = self.value(y, table)
        return em.form(regs, self.i, f"{word}_at"), binary("-", bound, base)

    def load(self, v: Value, table: np.ndarray) -> X:
        """Register of a stored fragment, or of a view into one."""
        em = self.em
        base, at = view_index(em, v, table, self.i, "" if self.along is None else f"{_ALONG.get(self.along, 'at')}_{self.domain}")
        name, t = em.array(base), base.type
        if t.dtype.per_register > 1:
            return call(em.fn(f"at_{t.dtype.name}"), name, at)
        return X(f"{name}[{at}]", depth=em.depth)


def view_index(em: Emitter, v: Value, table: np.ndarray, i: X, hint: str = "") -> tuple[Value, X]:
    """(stored fragment, register) of register table[i] of v, which may be a slice of it."""
    op = em.plan.maker.get(v)
    if op is None or op.kind not in ("slice", "transpose"):
        return v, em.index(table, i, hint or f"reg_{em.array(v)}")
    if op.kind == "transpose":
        assert (op.operands[0].type.layout.transpose() == op.result.type.layout), "a transposed view has the transposed layout"
        return view_index(em, op.operands[0], table, i, hint)
    over, regs = slice_table(em, op)
    parts = regs[:, table]
    base, inner = em.plan.base(v), regs[0]
    # register = (what the part adds) + (what the register adds)
    if not (parts - parts[:, :1] == parts[0] - parts[0, 0]).all():
        raise FcError("compile/unsupported", "slice: the parts are not laid out alike", got=op.operands[0].type.layout,
                      loc=op.loc)
    first = em.form(parts[:, 0] - parts[0, 0], over, f"part_{em.array(base)}")
    return base, add(first, em.form(parts[0], i, f"regs_{em.array(base)}")) if len(inner) else ZERO


def slice_table(em: Emitter, op: Op) -> tuple[X, np.ndarray]:
    """(index, int [trips, registers]): for each value of the enclosing expanded loop's index, the register of the *stored*
    fragment that holds each register of the slice. Found by comparing coordinates in every warp and lane."""
    src, out = op.operands[0], op.result.type
    over, firsts = em.expanded(op, [op.operands[1]])
    inner = np.arange(src.type.layout.regs)[None]
    maker = em.plan.maker.get(src)
    if maker is not None and maker.kind == "slice":
        over2, inner = slice_table(em, maker)
        assert len(inner) == 1 or over2 == over, "nested slices vary with one loop"
    rows = []
    have = src.type.layout.coords(em.kernel.warps)
    want = out.layout.coords(em.kernel.warps)
    for n, (first,) in enumerate(firsts):
        shifted = want.copy()
        shifted[..., op["axis"]] += first
        at = {tuple(c): r for r, c in reversed(list(enumerate(have[0, 0])))}
        regs = [at.get(tuple(c)) for c in shifted[0, 0]]
        if any(r is None for r in regs) or not (have[:, :, [r or 0 for r in regs]] == shifted).all():
            if n and not any(f == first for f in firsts[:n]) and first >= src.type.shape[op["axis"]]:
                regs = [0] * len(regs)
            else:
                raise FcError("compile/unsupported", "slice: a thread does not hold the part's registers", expected=out.layout,
                              got=src.type.layout, loc=op.loc)
        rows.append(inner[n % len(inner)][np.array(regs)])
    return over, np.array(rows)


def gathered(em: Emitter, op: Op, args: list[X]) -> X:
    """An element of a tensor, zero outside of it."""
    (tensor, *positions), dtype, conditions, offset = op.operands, op.result.type.dtype, list[X](), ZERO
    for axis, (p, dim) in enumerate(zip(args, tensor.type.dims)):
        size = em.size(dim)
        conditions += [inside(p, size)] if positions[axis].type.dtype.bits == 32 else [binary(">=", p, ZERO), binary("<", p, size)]
        s = em.stride(tensor, axis)
        offset = add(offset, p if s.text == "1" else binary("*", call("(long long)", p), s))
    raw = X(f"{em.pname[tensor]}[{offset}]")
    if dtype.per_register > 1:
        raw = call(em.fn(f"to_{dtype.computed.name}_{dtype.name}"), raw)
    if dtype.bits == 1:
        raw = binary("!=", raw, ZERO)
    where = every(conditions)
    assert where is not None
    return choose(where, raw, literal(0, dtype))
